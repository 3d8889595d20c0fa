//! How large a query becomes when it is planned. The planner copies a CTE into every place that names it, and the
//! optimizer copies a column's expression into every place that uses it, so a short text can stand for a plan without
//! end, and neither can be stopped meanwhile. Here that size is computed from the text alone, before planning.

use std::collections::HashMap;
use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    Expr, GroupByExpr, ObjectName, Query, SelectItem, SetExpr, TableFactor, Visit, Visitor,
};

use super::error::SqlError;

/// Tables and subqueries of the plan.
const MAX_RELATIONS: usize = 200;
/// Expressions of the plan.
const MAX_EXPRESSIONS: usize = 20_000;
/// Expressions of one subquery, with what its names stand for put in their places.
const MAX_INLINED: usize = 100_000;

/// The size of a query with all that it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Size {
    relations: usize,
    expressions: usize,
    /// Names in the largest column, with what they stand for put in their places.
    growth: usize,
    /// Expressions of the largest subquery, likewise.
    inlined: usize,
}

/// Of a table.
const PLAIN: Size = Size { relations: 1, expressions: 1, growth: 1, inlined: 1 };

/// CTEs by name, lower case: a name that differs in case alone counts as the same, which is never too little.
type Known = HashMap<String, Size>;

/// Refuses a query whose plan would be too large.
pub fn check(query: &Query) -> Result<(), SqlError> {
    let size = size(query, &Known::new());
    let refuse = |why: String| Err(SqlError::Refused(format!("{why}; use fewer, smaller subqueries")));
    if size.relations > MAX_RELATIONS {
        refuse(format!(
            "the query has more than {MAX_RELATIONS} tables and subqueries, with CTEs put where they are named"
        ))
    } else if size.expressions > MAX_EXPRESSIONS {
        refuse(format!("the query has more than {MAX_EXPRESSIONS} expressions, with CTEs put where they are named"))
    } else if size.inlined > MAX_INLINED {
        refuse(format!("the query has more than {MAX_INLINED} expressions, with columns put where they are named"))
    } else {
        Ok(())
    }
}

fn size(query: &Query, outer: &Known) -> Size {
    let mut known = outer.clone();
    for table in query.with.iter().flat_map(|with| &with.cte_tables) {
        let size = size(&table.query, &known);
        known.insert(table.alias.name.value.to_lowercase(), size);
    }
    let mut parts = Parts { known: &known, size: PLAIN, own: 0, depth: 0 };
    // Its own CTEs count where they are named.
    let _ = query.body.visit(&mut parts);
    let _ = query.order_by.visit(&mut parts);
    let (mut size, own) = (parts.size, parts.own);
    size.expressions = size.expressions.saturating_add(own);
    size.inlined = size.inlined.max(own.saturating_mul(size.growth));
    size.growth = size.growth.saturating_mul(names_per_column(&query.body));
    size
}

/// The names in the column with the most of them.
fn names_per_column(body: &SetExpr) -> usize {
    match body {
        SetExpr::Select(select) => {
            let columns = select.projection.iter().map(|item| match item {
                SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => names(expr),
                _ => 1,
            });
            let keys = match &select.group_by {
                GroupByExpr::Expressions(keys, _) => keys.iter().map(names).max(),
                GroupByExpr::All(_) => None,
            };
            columns.chain(keys).max().unwrap_or(1).max(1)
        }
        SetExpr::SetOperation { left, right, .. } => names_per_column(left).max(names_per_column(right)),
        // A query in parentheses counts where it is visited.
        _ => 1,
    }
}

fn names(expr: &Expr) -> usize {
    struct Names(usize);
    impl Visitor for Names {
        type Break = ();
        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            self.0 += usize::from(matches!(expr, Expr::Identifier(_) | Expr::CompoundIdentifier(_)));
            ControlFlow::Continue(())
        }
    }
    let mut names = Names(0);
    let _ = expr.visit(&mut names);
    names.0
}

/// Adds up what a query has beside its CTEs.
struct Parts<'a> {
    known: &'a Known,
    size: Size,
    /// Expressions outside of subqueries.
    own: usize,
    /// How many subqueries the visitor is in; what is in them counts by itself.
    depth: usize,
}

impl Parts<'_> {
    fn add(&mut self, part: Size) {
        self.size.relations = self.size.relations.saturating_add(part.relations);
        self.size.expressions = self.size.expressions.saturating_add(part.expressions);
        self.size.growth = self.size.growth.max(part.growth);
        self.size.inlined = self.size.inlined.max(part.inlined);
    }

    fn table(&self, name: &ObjectName) -> Size {
        let plain = if let [name] = name.0.as_slice() { name.as_ident() } else { None };
        let cte = plain.and_then(|name| self.known.get(&name.value.to_lowercase()));
        cte.copied().unwrap_or(PLAIN)
    }
}

impl Visitor for Parts<'_> {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        if self.depth == 0 {
            self.add(size(query, self.known));
        }
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, table: &TableFactor) -> ControlFlow<()> {
        if let (0, TableFactor::Table { name, .. }) = (self.depth, table) {
            self.add(self.table(name));
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        // Values in lists cost next to nothing.
        self.own += usize::from(self.depth == 0 && !matches!(expr, Expr::Value(_)));
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::guard;

    fn sized(sql: &str) -> Size {
        let mut statement = guard::parse(sql).expect("SQL");
        size(guard::query(&mut statement).expect("a query"), &Known::new())
    }

    /// On a stack such as queries get.
    fn allowed(sql: &str) -> bool {
        let sql = sql.to_owned();
        let check = move || is_allowed(&sql);
        let thread = std::thread::Builder::new().stack_size(crate::sql::STACK).spawn(check);
        thread.expect("a thread").join().expect("no panic")
    }

    fn is_allowed(sql: &str) -> bool {
        guard::parse(sql).and_then(|mut statement| guard::query(&mut statement).map(drop)).is_ok()
    }

    #[test]
    fn ctes_count_where_they_are_named() {
        let one = sized("SELECT a FROM t").relations;
        let twice = sized("WITH c AS (SELECT a FROM t) SELECT x.a FROM c x, C y").relations;
        assert_eq!(twice, 1 + 2 * one);
        let unused = sized("WITH c AS (SELECT a FROM t) SELECT a FROM t");
        assert_eq!(unused.relations, one);
        let nested =
            sized("SELECT (SELECT max(a) FROM t) FROM (SELECT a FROM t) WHERE a IN (SELECT a FROM t)").relations;
        assert_eq!(nested, 1 + 3 * one);
        let shadowed =
            "WITH c AS (SELECT a FROM t) SELECT * FROM (WITH c AS (SELECT x.a FROM c x, c y) SELECT a FROM c)";
        assert_eq!(sized(shadowed).relations, 2 + twice);
    }

    #[test]
    fn plans_without_end_are_refused() {
        let levels = |step: &dyn Fn(usize) -> String, count: usize| {
            let steps: Vec<String> = (1..=count).map(|i| format!("c{i} AS ({})", step(i - 1))).collect();
            format!(
                "WITH c0 AS (SELECT page_views AS a FROM sessions), {} SELECT a FROM c{count} WHERE a = 1",
                steps.join(", ")
            )
        };
        let twice = |i: usize| format!("SELECT x.a FROM c{i} x, c{i} y");
        assert!(allowed(&levels(&twice, 5)));
        assert!(!allowed(&levels(&twice, 30)));
        let union = |i: usize| format!("SELECT a FROM c{i} UNION ALL (SELECT a FROM c{i})");
        assert!(!allowed(&levels(&union, 30)));
        let subquery =
            |i: usize| format!("SELECT a FROM c{i} WHERE a IN (SELECT a FROM c{i}) OR EXISTS (SELECT a FROM c{i})");
        assert!(!allowed(&levels(&subquery, 20)));
        let sum = |i: usize| format!("SELECT a + a AS a FROM c{i}");
        assert!(allowed(&levels(&sum, 5)));
        assert!(!allowed(&levels(&sum, 30)));
        let derived = (0..30).fold("SELECT page_views AS a FROM sessions".to_owned(), |sql, _| {
            format!("SELECT a * a AS a FROM ({sql})")
        });
        assert!(!allowed(&format!("SELECT a FROM ({derived}) WHERE a = 1")));
        let wide = format!(
            "SELECT a FROM ({}) WHERE {} false",
            (0..8).fold("SELECT page_views AS a FROM sessions".to_owned(), |sql, _| format!(
                "SELECT a * a AS a FROM ({sql})"
            )),
            "a = 1 OR ".repeat(450)
        );
        assert!(!allowed(&wide));
        let joins: Vec<String> = (0..250).map(|i| format!("t t{i}")).collect();
        assert!(!allowed(&format!("SELECT 1 FROM {}", joins.join(", "))));
    }
}
