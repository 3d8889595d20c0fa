//! JSON names work as column names: `eventType`, `EVENTTYPE` and `"eventType"` are the column `event_type`.
//!
//! They are replaced everywhere in the query alike, in aliases too, so that a query means what it would mean
//! if the columns bore these names. Where the answer's columns come from names so replaced, they get back the
//! names that the caller wrote.

use std::collections::HashMap;
use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    Expr, Ident, JoinConstraint, JoinOperator, ObjectName, ObjectNamePart, Query, Select, SelectItem, SetExpr,
    TableAlias, TableFactor, VisitMut, VisitorMut,
};
use datafusion::sql::sqlparser::tokenizer::Location;

/// JSON names in lower case, and their columns.
const COLUMNS: [(&str, &str); 30] = [
    ("eventid", "event_id"),
    ("eventtype", "event_type"),
    ("eventaction", "event_action"),
    ("userid", "user_id"),
    ("sessionid", "session_id"),
    ("timestamp", "occurred_at"),
    ("occurredat", "occurred_at"),
    ("receivedat", "received_at"),
    ("appendtime", "append_time"),
    ("clientaddress", "client_address"),
    ("useragent", "user_agent"),
    ("kafkapartition", "kafka_partition"),
    ("kafkaoffset", "kafka_offset"),
    ("firsteventat", "first_event_at"),
    ("lasteventat", "last_event_at"),
    ("totalevents", "total_events"),
    ("pageviews", "page_views"),
    ("hasconversion", "has_conversion"),
    ("isnew", "is_new"),
    ("isbounce", "is_bounce"),
    ("entrypage", "entry_page"),
    ("exitpage", "exit_page"),
    ("currentpage", "current_page"),
    ("trafficsource", "traffic_source"),
    ("devicetype", "device_type"),
    ("durationseconds", "duration_seconds"),
    ("metricname", "metric_name"),
    ("dimensionkey", "dimension_key"),
    ("dimensionvalue", "dimension_value"),
    ("windowstart", "window_start"),
];

/// The names that the caller wrote, by the columns of the answer that stand for them.
pub type Written = HashMap<String, String>;

/// Where in the text a name was replaced, and by which.
pub type Places = HashMap<Location, &'static str>;

/// Replaces JSON names in a query.
pub fn rewrite(query: &mut Query) -> (Written, Places) {
    let mut written = Written::new();
    first_select(&query.body).into_iter().flat_map(|select| &select.projection).for_each(|item| {
        let name = match item {
            SelectItem::UnnamedExpr(Expr::Identifier(name)) | SelectItem::ExprWithAlias { alias: name, .. } => name,
            SelectItem::UnnamedExpr(Expr::CompoundIdentifier(names)) if !names.is_empty() => &names[names.len() - 1],
            _ => return,
        };
        if let Some(column) = column(&name.value) {
            written.insert(column.to_owned(), name.value.clone());
        }
    });
    let mut rewriter = Rewriter::default();
    let _ = query.visit(&mut rewriter);
    (written, rewriter.places)
}

fn column(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase();
    COLUMNS.iter().find(|(json, _)| *json == name).map(|(_, column)| *column)
}

/// The select that names the answer's columns.
fn first_select(body: &SetExpr) -> Option<&Select> {
    match body {
        SetExpr::Select(select) => Some(select),
        SetExpr::Query(query) => first_select(&query.body),
        SetExpr::SetOperation { left, .. } => first_select(left),
        _ => None,
    }
}

#[derive(Default)]
struct Rewriter {
    places: Places,
}

impl VisitorMut for Rewriter {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        match expr {
            Expr::Identifier(name) => self.rename(name),
            Expr::CompoundIdentifier(names) => names.last_mut().into_iter().for_each(|name| self.rename(name)),
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        let ctes = query.with.iter_mut().flat_map(|with| &mut with.cte_tables);
        ctes.for_each(|table| self.rename_alias(&mut table.alias));
        self.rename_in_body(&mut query.body);
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, table: &mut TableFactor) -> ControlFlow<()> {
        if let TableFactor::Table { alias: Some(alias), .. } | TableFactor::Derived { alias: Some(alias), .. } = table {
            self.rename_alias(alias);
        }
        ControlFlow::Continue(())
    }
}

impl Rewriter {
    fn rename(&mut self, name: &mut Ident) {
        if let Some(column) = column(&name.value) {
            self.places.insert(name.span.start, column);
            column.clone_into(&mut name.value);
            name.quote_style = None;
        }
    }

    fn rename_alias(&mut self, alias: &mut TableAlias) {
        alias.columns.iter_mut().for_each(|column| self.rename(&mut column.name));
    }

    /// What the visitor does not come by: aliases of columns, and joins with USING.
    fn rename_in_body(&mut self, body: &mut SetExpr) {
        match body {
            SetExpr::Select(select) => {
                for item in &mut select.projection {
                    if let SelectItem::ExprWithAlias { alias, .. } = item {
                        self.rename(alias);
                    }
                }
                let joins = select.from.iter_mut().flat_map(|table| &mut table.joins);
                let names = joins.filter_map(|join| using(&mut join.join_operator)).flatten();
                names.for_each(|name| self.rename_object(name));
            }
            SetExpr::SetOperation { left, right, .. } => {
                self.rename_in_body(left);
                self.rename_in_body(right);
            }
            _ => {}
        }
    }

    fn rename_object(&mut self, name: &mut ObjectName) {
        if let Some(ObjectNamePart::Identifier(name)) = name.0.last_mut() {
            self.rename(name);
        }
    }
}

fn using(join: &mut JoinOperator) -> Option<&mut Vec<ObjectName>> {
    match join {
        JoinOperator::Join(constraint)
        | JoinOperator::Inner(constraint)
        | JoinOperator::Left(constraint)
        | JoinOperator::LeftOuter(constraint)
        | JoinOperator::Right(constraint)
        | JoinOperator::RightOuter(constraint)
        | JoinOperator::FullOuter(constraint) => match constraint {
            JoinConstraint::Using(columns) => Some(columns),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::guard;

    fn rewritten(sql: &str) -> (String, Written) {
        let mut statement = guard::parse(sql).expect("SQL");
        let (written, _) = rewrite(guard::query(&mut statement).expect("a query"));
        (statement.to_string(), written)
    }

    #[track_caller]
    fn same(sql: &str, expected: &str) {
        assert_eq!(rewritten(sql).0, expected);
    }

    #[test]
    fn json_names_become_columns_in_any_case() {
        same(
            "SELECT eventType, e.EVENTID, \"userId\", count(DISTINCT sessionid) FROM events e GROUP BY EventType",
            "SELECT event_type, e.event_id, user_id, count(DISTINCT session_id) FROM events e GROUP BY event_type",
        );
        same(
            "SELECT timestamp FROM events WHERE timestamp >= timestamp '2026-01-01' ORDER BY TIMESTAMP",
            "SELECT occurred_at FROM events WHERE occurred_at >= TIMESTAMP '2026-01-01' ORDER BY occurred_at",
        );
        same(
            "SELECT * FROM events JOIN sessions USING (sessionId)",
            "SELECT * FROM events JOIN sessions USING(session_id)",
        );
        same("SELECT 'eventType', event_type FROM events", "SELECT 'eventType', event_type FROM events");
    }

    #[test]
    fn aliases_are_replaced_with_what_refers_to_them() {
        same(
            "WITH d (timestamp) AS (SELECT date_trunc('day', timestamp) AS timestamp FROM events) \
             SELECT timestamp FROM (SELECT timestamp FROM d) AS x (timestamp) ORDER BY timestamp",
            "WITH d (occurred_at) AS (SELECT date_trunc('day', occurred_at) AS occurred_at FROM events) \
             SELECT occurred_at FROM (SELECT occurred_at FROM d) AS x (occurred_at) ORDER BY occurred_at",
        );
    }

    #[test]
    fn the_answer_bears_the_names_that_were_written() {
        let (_, written) = rewritten("SELECT EventType, e.userId, max(timestamp) AS timestamp, event_id FROM events e");
        let expected = [("event_type", "EventType"), ("user_id", "userId"), ("occurred_at", "timestamp")];
        assert_eq!(written, expected.map(|(column, name)| (column.to_owned(), name.to_owned())).into());
    }
}
