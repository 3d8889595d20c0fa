//! What may be sent to another engine, and in which words. The engine reads by rules of its own, so nothing is sent
//! but what we have understood: the tokens that were parsed and checked, without comments, and only such tokens as both
//! sides take for the same. Pure.

use std::ops::ControlFlow;

use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    Expr, Function, Ident, ObjectName, Query, Select, SetExpr, Statement as Ast, TableFactor, Visit, Visitor,
};
use datafusion::sql::sqlparser::dialect::{ClickHouseDialect, Dialect, GenericDialect};
use datafusion::sql::sqlparser::parser::Parser;

use super::functions::is_allowed;
use super::{Kind, words};
use crate::sql::error::SqlError;
use crate::sql::idents::{self, Written};
use crate::sql::{expansion, guard};

/// The one table that lies there.
const TABLE: &str = "events";
/// Names that Trino takes for questions about the session.
const SESSION: [&str; 6] =
    ["current_catalog", "current_path", "current_role", "current_schema", "current_user", "session_user"];

/// A query that may be sent.
#[derive(Debug, PartialEq, Eq)]
pub struct Checked {
    /// Its text, in the engine's dialect.
    pub text: String,
    /// The names that the caller wrote.
    pub names: Written,
}

/// Whether a query is the engine's to answer: it reads `events`, or we cannot read it. All else is answered here.
pub fn is_theirs(sql: &str) -> bool {
    guard::parse(sql).and_then(|statement| guard::tables(&statement)).map_or(true, |tables| tables.contains(TABLE))
}

/// Checks a query and puts it into the words that are sent.
pub fn check(sql: &str, kind: Kind) -> Result<Checked, SqlError> {
    let dialect: &dyn Dialect = match kind {
        Kind::Trino => &GenericDialect {},
        Kind::ClickHouse => &ClickHouseDialect {},
    };
    // Texts stay as they are written: what stands between quotes is the engine's to read.
    let tokens = guard::tokens(sql, dialect, false)?;
    words::check(&tokens)?;
    let refused = |error| SqlError::Refused(format!("the query cannot be read: {error}"));
    let parser = Parser::new(dialect).with_tokens_with_locations(tokens.clone());
    let mut statements = { parser }.parse_statements().map_err(refused)?;
    let (Some(statement), true) = (statements.pop(), statements.is_empty()) else {
        return Err(SqlError::Refused("send one SELECT, no more and no less".to_owned()));
    };
    let Ast::Query(mut query) = statement else { return Err(only_queries(&statement.to_string(), kind)) };
    guard::check_depth(&query)?;
    expansion::check(&query)?;
    if let ControlFlow::Break(why) = query.visit(&mut Walk(kind)) {
        return Err(SqlError::Refused(why));
    }
    let (names, places) = idents::rewrite(&mut query);
    check_tables(query, kind)?;
    Ok(Checked { text: words::text(&tokens, &places), names })
}

fn only_queries(text: &str, kind: Kind) -> SqlError {
    let word = text.split_whitespace().next().unwrap_or_default();
    SqlError::Refused(format!("{word} is not passed on to {}; only queries are: SELECT … FROM events", kind.name()))
}

fn check_tables(query: Box<Query>, kind: Kind) -> Result<(), SqlError> {
    let tables = guard::tables(&Statement::Statement(Box::new(Ast::Query(query))))?;
    match tables.iter().find(|table| *table != TABLE) {
        Some(other) => Err(SqlError::Refused(format!(
            "{other:?} cannot be read in one query with events: those are in {}, and sessions, metrics and \
             daily_metrics are not",
            kind.name()
        ))),
        None if tables.is_empty() => Err(SqlError::Refused("the query reads no table".to_owned())),
        None => Ok(()),
    }
}

/// Looks for what reads anything but the table, or asks who is asking.
struct Walk(Kind);

impl Visitor for Walk {
    type Break = String;

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<String> {
        if query.with.as_ref().is_some_and(|with| with.recursive) {
            return refuse("WITH RECURSIVE is not allowed; a query must end by itself");
        }
        if query.settings.is_some() || query.format_clause.is_some() {
            return refuse("SETTINGS and FORMAT are not allowed; the form of an answer is chosen with Accept");
        }
        if !query.locks.is_empty() || query.for_clause.is_some() || !query.pipe_operators.is_empty() {
            return refuse("FOR … and |> are not allowed");
        }
        body(&query.body)
    }

    fn pre_visit_relation(&mut self, name: &ObjectName) -> ControlFlow<String> {
        match name.0.as_slice() {
            [name] if name.as_ident().is_some() => ControlFlow::Continue(()),
            _ => refuse(format!("{name} is not allowed; there is one table, events, without a schema before it")),
        }
    }

    fn pre_visit_table_factor(&mut self, table: &TableFactor) -> ControlFlow<String> {
        let is_plain = match table {
            TableFactor::Table { args, with_hints, version, partitions, json_path, index_hints, .. } => {
                args.is_none()
                    && version.is_none()
                    && json_path.is_none()
                    && with_hints.is_empty()
                    && partitions.is_empty()
                    && index_hints.is_empty()
            }
            TableFactor::UNNEST { .. } => self.0 == Kind::Trino,
            TableFactor::Derived { .. } | TableFactor::NestedJoin { .. } => true,
            _ => false,
        };
        if is_plain { ControlFlow::Continue(()) } else { refuse(format!("{table} is not allowed; read from events")) }
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<String> {
        match expr {
            Expr::Function(function) => self.function(function),
            Expr::Identifier(name) if is_session(name) => refuse(format!("{name} is not allowed")),
            // ClickHouse takes a lone name in such a list for a table, other databases' too.
            Expr::InList { list, .. } if list.iter().any(is_path) => {
                refuse("a name with a point is not allowed in a list behind IN; use = and OR")
            }
            _ => ControlFlow::Continue(()),
        }
    }
}

impl Walk {
    fn function(&self, function: &Function) -> ControlFlow<String> {
        let name = match function.name.0.as_slice() {
            [name] => name.as_ident(),
            _ => None,
        };
        match name {
            Some(name) if is_allowed(self.0, &name.value) && !function.uses_odbc_syntax => ControlFlow::Continue(()),
            _ => refuse(format!("the function {} is not passed on to {}", function.name, self.0.name())),
        }
    }
}

fn is_path(expr: &Expr) -> bool {
    match expr {
        Expr::Nested(inner) => is_path(inner),
        Expr::Tuple(list) => list.iter().any(is_path),
        other => matches!(other, Expr::CompoundIdentifier(_)),
    }
}

fn is_session(name: &Ident) -> bool {
    name.quote_style.is_none() && SESSION.iter().any(|session| name.value.eq_ignore_ascii_case(session))
}

fn body(part: &SetExpr) -> ControlFlow<String> {
    match part {
        SetExpr::Select(select) => plain(select),
        SetExpr::SetOperation { left, right, .. } => {
            body(left)?;
            body(right)
        }
        SetExpr::Query(_) | SetExpr::Values(_) => ControlFlow::Continue(()),
        other => refuse(format!("{other} is not allowed; only SELECT is")),
    }
}

fn plain(select: &Select) -> ControlFlow<String> {
    let is_plain = select.into.is_none()
        && select.lateral_views.is_empty()
        && select.connect_by.is_empty()
        && select.select_modifiers.is_none()
        && select.value_table_mode.is_none();
    if is_plain { ControlFlow::Continue(()) } else { refuse("INTO, LATERAL VIEW and CONNECT BY are not allowed") }
}

fn refuse(why: impl Into<String>) -> ControlFlow<String> {
    ControlFlow::Break(why.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [Kind; 2] = [Kind::Trino, Kind::ClickHouse];

    #[track_caller]
    fn sent(sql: &str, kind: Kind, expected: &str) {
        assert!(is_theirs(sql), "{sql}");
        assert_eq!(check(sql, kind).expect(sql).text, expected);
    }

    #[test]
    fn what_is_sent_is_what_was_read() {
        for kind in BOTH {
            for sql in [
                "SELECT event_type, count(*) FROM events GROUP BY 1 ORDER BY 2 DESC LIMIT 3",
                "WITH a AS (SELECT * FROM events) SELECT a.user_id FROM a JOIN events AS b ON a.user_id = b.user_id",
                "SELECT count(DISTINCT user_id) FROM events WHERE event_type IN ('a', 'b''c') UNION ALL SELECT 1",
                "SELECT max(x) OVER (PARTITION BY y) FROM (SELECT 1.5e3 AS x, \"event_type\" AS y FROM events) t",
                "SELECT '--', '/* no comment */', 'ünïcode', CAST(kafka_offset AS varchar) || 'x' FROM events",
                "SELECT count(*) FROM events WHERE occurred_at >= TIMESTAMP '2026-01-01 00:00:00'",
            ] {
                sent(sql, kind, sql);
            }
            sent("SELECT/* a;b */1 -- c\nFROM events ;", kind, "SELECT 1  FROM events");
        }
        let trino = "SELECT x FROM events CROSS JOIN UNNEST(filter(split(user_id, ','), y -> y > 'a')) AS t (x)";
        sent(trino, Kind::Trino, trino);
        let clickhouse =
            "SELECT countIf(event_type = 'a\\'b\\\\') FROM events PREWHERE kafka_offset % 2 == 0 LIMIT 1 BY user_id";
        sent(clickhouse, Kind::ClickHouse, clickhouse);
    }

    #[test]
    fn json_names_are_replaced_where_they_are_names() {
        let sql = "SELECT eventType, 'eventType', max(timestamp) AS timestamp FROM events WHERE timestamp > timestamp '2026-01-01' GROUP BY EVENTTYPE";
        let checked = check(sql, Kind::Trino).expect("a query");
        let expected = "SELECT event_type, 'eventType', max(occurred_at) AS occurred_at FROM events WHERE occurred_at > timestamp '2026-01-01' GROUP BY event_type";
        assert_eq!(checked.text, expected);
        assert_eq!(checked.names["event_type"], "eventType");
    }

    #[test]
    fn what_does_not_read_events_stays_here() {
        for sql in
            ["SELECT 1", "SELECT * FROM sessions", "WITH events AS (SELECT 1) SELECT * FROM events", "SELECT sleep(9)"]
        {
            assert!(!is_theirs(sql), "{sql}");
        }
        for sql in
            ["SELECT 1 FROM events", "SELECT * FROM sessions WHERE 1 = (SELECT count(*) FROM EVENTS)", "SELEC", ""]
        {
            assert!(is_theirs(sql), "{sql}");
        }
    }

    #[test]
    fn nothing_else_is_sent() {
        for sql in [
            "",
            "SELECT 1 FROM events; SELECT 1",
            "EXPLAIN SELECT 1 FROM events",
            "DROP TABLE events",
            "DELETE FROM events",
            "TABLE events",
            "SELECT * INTO t FROM events",
            "SELECT * FROM events FOR UPDATE",
            "SELECT * FROM events SETTINGS max_threads = 1",
            "SELECT * FROM events FORMAT JSON",
            "SELECT * FROM events INTO OUTFILE '/tmp/x'",
            "SELECT * FROM events, sessions",
            "SELECT * FROM events WHERE user_id IN (SELECT hash FROM api_keys)",
            "SELECT * FROM events, other.events",
            "SELECT * FROM events, tidemill.\"tidemill.other\".events",
            "SELECT * FROM events, system.one",
            "SELECT * FROM events, \"events$files\"",
            "SELECT * FROM events FOR VERSION AS OF 1",
            "SELECT * FROM events, file('/etc/passwd')",
            "SELECT * FROM events, TABLE(system.query('SELECT 1'))",
            "SELECT * FROM events WHERE 1 IN (system.one)",
            "SELECT * FROM events WHERE 1 IN ((system.one))",
            "SELECT * FROM events WHERE 1 NOT IN (1, other.events)",
            "SELECT dictGet('other.d', 'a', 1) FROM events",
            "SELECT joinGet('other.t', 'a', 1) FROM events",
            "SELECT hasColumnInTable('other', 'events', 'a') FROM events",
            "SELECT file('/etc/passwd') FROM events",
            "SELECT getSetting('x') FROM events",
            "SELECT currentUser() FROM events",
            "SELECT current_user FROM events",
            "SELECT CURRENT_SCHEMA FROM events",
            "SELECT system.version() FROM events",
            "SELECT sleep(3) FROM events",
            "SELECT repeat('x', 1000000000) FROM events",
            "SELECT upper(file('/etc/passwd')) FROM events",
            "SELECT count(*) FILTER (WHERE sleep(1) = 0) FROM events",
            "SELECT * FROM events ORDER BY sleep(1)",
            "SELECT * FROM (SELECT 1 FROM events LIMIT sleep(1)) t",
            "WITH RECURSIVE r AS (SELECT 1 AS a FROM events UNION ALL SELECT a + 1 FROM r) SELECT max(a) FROM r",
            "FROM events |> SELECT 1",
            "SELECT {a:String} FROM events",
            "SELECT $1 FROM events",
            "SELECT ? FROM events",
            "SELECT @@version FROM events",
            "SELECT $$a$$ FROM events",
            "SELECT x'61' FROM events",
            "SELECT b'\\' FROM events -- '",
            "SELECT E'\\' FROM events -- '",
            "SELECT U&'\\0061' FROM events",
            "SELECT “a” FROM events",
            "SELECT \"a\\\" FROM events",
            "SELECT `a\\` FROM events",
            "SELECT \"a\"\"b\" FROM events",
            "SELECT 1 # 2 FROM events",
        ] {
            for kind in BOTH {
                assert!(!is_theirs(sql) || check(sql, kind).is_err(), "{kind:?}: {sql}: {:?}", check(sql, kind));
            }
        }
        // Where a text ends is the engine's rule: here it has none after the backslash, there it goes on.
        let sql = "SELECT '\\' FROM events";
        sent(sql, Kind::Trino, sql);
        assert!(check(sql, Kind::ClickHouse).is_err());
    }
}
