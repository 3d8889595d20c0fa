//! What may be run at all: one statement, a query or the EXPLAIN of one.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use datafusion::sql::TableReference;
use datafusion::sql::parser::{DFParserBuilder, Statement};
use datafusion::sql::resolve::resolve_table_references;
use datafusion::sql::sqlparser::ast::{BinaryOperator, Expr, Query, Statement as Ast, Visit, Visitor};
use datafusion::sql::sqlparser::dialect::{Dialect, GenericDialect};
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};

use super::error::SqlError;
use super::{expansion, growth};

/// Longest text, in bytes.
const MAX_TEXT: usize = 256 * 1024;
/// Words and signs of a query; lists of values may be longer.
const MAX_WORDS: usize = 2_000;
/// Longest name, in bytes: every step of a plan has the names of its columns.
const MAX_NAME: usize = 256;
/// Operators on top of each other, as in `a + b + …`; chains of AND and OR may be longer. Planning takes time
/// that grows with the cube of this depth, and nothing can stop it meanwhile.
const MAX_DEPTH: usize = 100;

const DIALECT: GenericDialect = GenericDialect {};

/// Parses a query's text.
pub fn parse(sql: &str) -> Result<Statement, SqlError> {
    let tokens = tokens(sql, &DIALECT, true)?;
    let mut statements = DFParserBuilder::new(tokens).with_dialect(&DIALECT).build()?.parse_statements()?;
    match (statements.pop_front(), statements.len()) {
        (Some(statement), 0) => Ok(statement),
        (None, _) => Err(SqlError::Refused("there is no query; send one SELECT".to_owned())),
        (Some(_), _) => Err(SqlError::Refused("there is more than one statement; send one SELECT".to_owned())),
    }
}

/// The words and signs of a text that is not too long. With `unescape` texts are what they stand for, else as they are
/// written.
pub fn tokens(sql: &str, dialect: &dyn Dialect, unescape: bool) -> Result<Vec<TokenWithSpan>, SqlError> {
    if sql.len() > MAX_TEXT {
        return Err(SqlError::Refused(format!("the query is longer than {MAX_TEXT} bytes")));
    }
    let tokens = Tokenizer::new(dialect, sql)
        .with_unescape(unescape)
        .tokenize_with_location()
        .map_err(|error| SqlError::Refused(format!("the query cannot be read: {error}")))?;
    if tokens.iter().filter(|token| is_word(&token.token)).count() > MAX_WORDS {
        return Err(SqlError::Refused(format!("the query has more than {MAX_WORDS} words and signs beside values")));
    }
    if tokens.iter().any(|token| matches!(&token.token, Token::Word(word) if word.value.len() > MAX_NAME)) {
        return Err(SqlError::Refused(format!("the query has a name of more than {MAX_NAME} bytes")));
    }
    Ok(tokens)
}

fn is_word(token: &Token) -> bool {
    let value = matches!(token, Token::Number(..) | Token::SingleQuotedString(_));
    !value && !matches!(token, Token::Comma | Token::Whitespace(_))
}

/// The query in a statement, if it is nothing else.
pub fn query(statement: &mut Statement) -> Result<&mut Query, SqlError> {
    match statement {
        Statement::Statement(ast) => match ast.as_mut() {
            Ast::Query(query) => {
                check_depth(query)?;
                growth::check(query)?;
                expansion::check(query)?;
                Ok(query.as_mut())
            }
            other => Err(no_query(&other.to_string())),
        },
        Statement::Explain(explain) => query(&mut explain.statement),
        other => Err(no_query(&other.to_string())),
    }
}

/// Refuses expressions that lie too deep in each other.
pub fn check_depth(query: &Query) -> Result<(), SqlError> {
    if query.visit(&mut Depth(0)).is_break() {
        return Err(SqlError::Refused(format!("the query has expressions more than {MAX_DEPTH} operators deep")));
    }
    Ok(())
}

/// How deep the visited expression lies.
struct Depth(usize);

impl Visitor for Depth {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        self.0 += usize::from(deepens(expr));
        if self.0 > MAX_DEPTH { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn post_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        self.0 -= usize::from(deepens(expr));
        ControlFlow::Continue(())
    }
}

fn deepens(expr: &Expr) -> bool {
    !matches!(expr, Expr::BinaryOp { op: BinaryOperator::And | BinaryOperator::Or, .. })
}

fn no_query(text: &str) -> SqlError {
    let word = text.split_whitespace().next().unwrap_or_default();
    SqlError::Refused(format!(
        "{word} is not allowed; only queries are: SELECT … FROM events, sessions, metrics or daily_metrics"
    ))
}

/// The plain names of the tables that a statement reads. Names with a schema or catalog before them are left
/// out: there is nothing they could mean.
pub fn tables(statement: &Statement) -> Result<BTreeSet<String>, SqlError> {
    let (tables, _) = resolve_table_references(statement, true)?;
    let plain = |table| match table {
        TableReference::Bare { table } => Some(table.to_string()),
        _ => None,
    };
    Ok(tables.into_iter().filter_map(plain).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(sql: &str) -> bool {
        parse(sql).and_then(|mut statement| query(&mut statement).map(drop)).is_ok()
    }

    #[test]
    fn one_query_is_allowed() {
        for sql in [
            "SELECT 1",
            "SELECT * FROM events;",
            "WITH a AS (SELECT 1) SELECT * FROM a UNION ALL SELECT 2",
            "VALUES (1), (2)",
            "EXPLAIN SELECT * FROM events",
            "EXPLAIN ANALYZE SELECT * FROM events",
            "/* a; b */ SELECT ';' -- c",
        ] {
            assert!(allowed(sql), "{sql}");
        }
    }

    #[test]
    fn all_else_is_refused() {
        for sql in [
            "",
            "  -- nothing",
            "SELECT 1; SELECT 2",
            "DROP TABLE events",
            "INSERT INTO events VALUES (1)",
            "UPDATE sessions SET user_id = 'x'",
            "DELETE FROM sessions",
            "TRUNCATE sessions",
            "COPY events TO '/tmp/x.csv'",
            "COPY (SELECT 1) TO '/tmp/x.csv'",
            "SET datafusion.execution.batch_size = 1",
            "RESET datafusion.execution.batch_size",
            "SHOW TABLES",
            "SHOW ALL",
            "DESCRIBE events",
            "CREATE TABLE t AS SELECT 1",
            "CREATE VIEW v AS SELECT 1",
            "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'",
            "CREATE FUNCTION f() RETURNS int RETURN 1",
            "EXPLAIN ANALYZE INSERT INTO events VALUES (1)",
            "EXPLAIN COPY events TO '/tmp/x.csv'",
            "PREPARE p AS SELECT 1",
            "EXECUTE p",
            "BEGIN",
            "SELECT (1",
        ] {
            assert!(!allowed(sql), "{sql}");
        }
    }

    #[test]
    fn length_is_limited() {
        assert!(allowed(&format!("SELECT 1 IN ({}1)", "1, ".repeat(20_000))));
        assert!(allowed(&format!("SELECT {}true", "true OR ".repeat(900))));
        assert!(!allowed(&format!("SELECT {}true", "true OR ".repeat(1_000))));
        for step in ["+ 1 ", "= 1 ", "IS NULL ", "::int "] {
            assert!(allowed(&format!("SELECT 1 {}", step.repeat(99))), "{step}");
            assert!(!allowed(&format!("SELECT 1 {}", step.repeat(101))), "{step}");
        }
        assert!(!allowed(&format!("SELECT '{}'", "x".repeat(MAX_TEXT))));
        assert!(!allowed(&format!("SELECT {}1{}", "(".repeat(1_000), ")".repeat(1_000))));
    }
}
