//! How large values may grow. Neither the planner, which computes constants, nor the execution counts the
//! memory of a batch that it makes, so a query must not be able to make large values out of small ones:
//!
//! - No function gives more than it was given ([`super::context`] knows no other), but for joining values.
//! - Values are joined ([`MAX_JOINED`]) in one query of the statement only, not again around a subquery or CTE.
//! - Text in the statement has [`MAX_TEXT`] bytes; text in IN lists goes nowhere and does not count.
//!
//! So a value has at most 32 times the bytes of what it is made from; once more so under an alias in ORDER BY,
//! where both share the 32: 17² × 8 KiB = 2.3 MiB out of nothing.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{BinaryOperator, Expr, FunctionArguments, Query, Value, Visit, Visitor};

use super::error::SqlError;

/// Bytes of text in a statement, outside of IN lists.
pub const MAX_TEXT: usize = 8 * 1024;
/// Values that a statement joins with `||`, concat, concat_ws and `[…]`.
const MAX_JOINED: usize = 32;
/// The functions that join values.
pub const JOINING: [&str; 2] = ["concat", "concat_ws"];

/// Refuses a query that can make large values.
pub fn check(query: &Query) -> Result<(), SqlError> {
    let mut growth = Growth { text: MAX_TEXT, joined: 0, joining: None, open: Vec::new(), seen: 0 };
    match query.visit(&mut growth) {
        ControlFlow::Break(why) => Err(SqlError::Refused(why)),
        ControlFlow::Continue(()) => Ok(()),
    }
}

struct Growth {
    /// Room for text that is left.
    text: usize,
    joined: usize,
    /// The query that joins values.
    joining: Option<usize>,
    /// The visited query, below those that it lies in.
    open: Vec<usize>,
    seen: usize,
}

impl Growth {
    fn join(&mut self, values: usize) -> ControlFlow<String> {
        self.joined += values;
        let here = self.open.last().copied();
        if self.joined > MAX_JOINED {
            refuse(format!("the query joins more than {MAX_JOINED} values with ||, concat, concat_ws and […]"))
        } else if self.joining.is_some() && self.joining != here {
            refuse("||, concat, concat_ws and […] may stand in one SELECT of the query only; join values there")
        } else {
            self.joining = here;
            ControlFlow::Continue(())
        }
    }
}

impl Visitor for Growth {
    type Break = String;

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<String> {
        self.seen += 1;
        self.open.push(self.seen);
        if query.with.as_ref().is_some_and(|with| with.recursive) {
            return refuse("WITH RECURSIVE is not allowed; a query must end by itself");
        }
        if !query.pipe_operators.is_empty() {
            return refuse("|> is not allowed; use subqueries");
        }
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<String> {
        self.open.pop();
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<String> {
        match expr {
            Expr::BinaryOp { op: BinaryOperator::StringConcat, .. } => self.join(1),
            Expr::Array(array) => self.join(array.elem.len()),
            Expr::Function(function) => match &function.args {
                FunctionArguments::List(list) if JOINING.iter().any(|name| is_named(function, name)) => {
                    self.join(list.args.len())
                }
                _ => ControlFlow::Continue(()),
            },
            Expr::InList { list, .. } => {
                self.text += list.iter().map(plain_text).sum::<usize>();
                ControlFlow::Continue(())
            }
            // The planner makes functions of these, whatever functions there are.
            Expr::Overlay { .. } => refuse("OVERLAY is not allowed"),
            Expr::Tuple(_) | Expr::Struct { .. } | Expr::Dictionary(_) | Expr::Map(_) => {
                refuse("rows, structs and maps are not allowed as values; select their parts as columns")
            }
            _ => ControlFlow::Continue(()),
        }
    }

    fn pre_visit_value(&mut self, value: &Value) -> ControlFlow<String> {
        match self.text.checked_sub(length(value)) {
            Some(left) => {
                self.text = left;
                ControlFlow::Continue(())
            }
            None => refuse(format!("the query has more than {MAX_TEXT} bytes of text outside of IN lists")),
        }
    }
}

fn refuse(why: impl Into<String>) -> ControlFlow<String> {
    ControlFlow::Break(why.into())
}

fn is_named(function: &datafusion::sql::sqlparser::ast::Function, name: &str) -> bool {
    let last = function.name.0.last().and_then(|part| part.as_ident());
    last.is_some_and(|ident| ident.value.eq_ignore_ascii_case(name))
}

fn plain_text(expr: &Expr) -> usize {
    if let Expr::Value(value) = expr { length(&value.value) } else { 0 }
}

fn length(value: &Value) -> usize {
    match value {
        Value::Number(..) => 0,
        text => text.clone().into_string().map_or(0, |text| text.len()),
    }
}

#[cfg(test)]
mod tests {
    use crate::sql::guard;

    fn allowed(sql: &str) -> bool {
        guard::parse(sql).and_then(|mut statement| guard::query(&mut statement).map(drop)).is_ok()
    }

    #[test]
    fn values_are_joined_in_one_query_and_not_too_often() {
        assert!(allowed(&format!("SELECT a {} FROM t ORDER BY 1", "|| 'b' ".repeat(32))));
        assert!(!allowed(&format!("SELECT a {} FROM t", "|| 'b' ".repeat(33))));
        assert!(allowed("SELECT a || b FROM t UNION ALL SELECT concat(a, b) FROM t"));
        for sql in [
            "SELECT b || b FROM (SELECT a || a AS b FROM t)",
            "WITH b AS (SELECT Concat(a, a) AS c FROM t) SELECT concat_ws(',', c, c) FROM b",
            "SELECT (SELECT max(a || a) FROM t) || 'x'",
            "SELECT [a, a] FROM (SELECT [b, b] AS a FROM t)",
            "WITH RECURSIVE r AS (SELECT 'x' AS a UNION ALL SELECT a || a FROM r) SELECT a FROM r",
            "SELECT 'x' AS a |> EXTEND a || a AS b |> EXTEND b || b AS c",
            "SELECT overlay('a' PLACING 'b' FROM 1)",
            "SELECT {'a': 'b'}",
            "SELECT ('a', 'b')",
        ] {
            assert!(!allowed(sql), "{sql}");
        }
        let list = vec!["'x'"; 33].join(", ");
        assert!(!allowed(&format!("SELECT concat({list})")));
        assert!(!allowed(&format!("SELECT [{list}]")));
        assert!(allowed(&format!("SELECT coalesce({list})")));
    }

    #[test]
    fn text_is_short_outside_of_lists() {
        let text = |bytes: usize| "x".repeat(bytes);
        assert!(allowed(&format!("SELECT '{}'", text(8_192))));
        assert!(!allowed(&format!("SELECT '{}'", text(8_193))));
        assert!(!allowed(&format!("SELECT '{}', '{}'", text(5_000), text(5_000))));
        assert!(!allowed(&format!("SELECT $${}$$", text(8_193))));
        assert!(allowed(&format!("SELECT a IN ('{}', '{}') FROM t", text(5_000), text(5_000))));
        assert!(!allowed(&format!("SELECT a IN ('{}' || 'x') FROM t", text(9_000))));
        assert!(!allowed(&format!("SELECT 1 AS \"{}\"", text(300))), "a name");
    }
}
