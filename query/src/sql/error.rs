//! What can become of a query instead of an answer.

use std::time::Duration;

use arrow::error::ArrowError;
use axum::http::StatusCode;
use datafusion::error::DataFusionError;
use tidemill_common::problem::Problem;

use super::context::{CATALOG, SCHEMA};
use super::warehouse::Failure;

/// Longest message of the planner that is passed on, in characters.
const MESSAGE: usize = 2_000;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    /// The query is not one, or not one that is allowed.
    #[error("{0}")]
    Refused(String),
    /// Too many queries are under way.
    #[error("too many queries are under way; try again")]
    Busy,
    /// It took too long.
    #[error("the query was stopped after {} s; ask for less, e.g. for a shorter time", .0.as_secs())]
    Timeout(Duration),
    /// The planner or the execution failed.
    #[error(transparent)]
    DataFusion(#[from] DataFusionError),
    /// The engine that the query was sent to gave no answer.
    #[error(transparent)]
    Warehouse(#[from] Failure),
}

impl From<ArrowError> for SqlError {
    fn from(error: ArrowError) -> Self {
        Self::DataFusion(error.into())
    }
}

/// A parameter that cannot be.
pub fn bad_request(why: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad-parameter", "Bad parameter", why)
}

/// None of our formats is wanted.
pub fn not_acceptable() -> Problem {
    let why = "answers come as application/json, application/x-ndjson, text/csv or application/vnd.apache.arrow.stream";
    Problem::new(StatusCode::NOT_ACCEPTABLE, "not-acceptable", "Not acceptable", why)
}

/// A request without a query.
pub fn missing(why: &str) -> Problem {
    bad_sql(format!("{why}; send GET /v1/query?sql=… or POST /v1/query with {{\"sql\":\"…\"}}"))
}

impl From<SqlError> for Problem {
    fn from(error: SqlError) -> Self {
        match error {
            SqlError::Refused(why) => bad_sql(why),
            SqlError::Busy => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "Busy", error.to_string()).retry_after(1)
            }
            SqlError::Timeout(_) => too_large(error.to_string()),
            SqlError::DataFusion(error) => of_data_fusion(error),
            SqlError::Warehouse(failure) => of_warehouse(failure),
        }
    }
}

fn of_data_fusion(error: DataFusionError) -> Problem {
    use DataFusionError as E;
    match error.find_root() {
        E::SQL(wrong, _) => bad_sql(wrong.to_string()),
        E::Plan(why) if why.starts_with("table '") && why.ends_with("' not found") => {
            let why = why.replace(&format!("{CATALOG}.{SCHEMA}."), "");
            bad_sql(format!("{why}; there are events, sessions, metrics and daily_metrics"))
        }
        E::Plan(_) | E::SchemaError(..) | E::NotImplemented(_) | E::Configuration(_) => {
            bad_sql(error.strip_backtrace())
        }
        // A value that cannot be computed, like 1/0 or a cast of 'x' to a number.
        E::ArrowError(inner, _) if !matches!(**inner, ArrowError::ExternalError(_) | ArrowError::IoError(..)) => {
            bad_sql(error.strip_backtrace())
        }
        E::Execution(_) => bad_sql(error.strip_backtrace()),
        E::ResourcesExhausted(_) => {
            too_large("the query needs more memory than one query may take; ask for less at once".to_owned())
        }
        E::External(_) | E::IoError(_) | E::ObjectStore(_) | E::ParquetError(_) | E::ArrowError(..) => {
            Problem::unavailable("the archive or Postgres", error)
        }
        _ => Problem::internal(error),
    }
}

fn of_warehouse(failure: Failure) -> Problem {
    match failure {
        Failure::Query(why) => bad_sql(why),
        Failure::Value(_) => bad_sql(failure.to_string()),
        Failure::TooLarge(why) => too_large(format!("{why}; ask for less at once")),
        // What it says of itself is for the log.
        Failure::Unavailable(_) | Failure::Broken(_) => Problem::unavailable("the warehouse", failure),
    }
}

fn bad_sql(why: String) -> Problem {
    let why = match why.char_indices().nth(MESSAGE) {
        Some((end, _)) => format!("{}…", &why[..end]),
        None => why,
    };
    Problem::new(StatusCode::BAD_REQUEST, "bad-sql", "SQL that cannot be run", why)
}

fn too_large(why: String) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "query-too-large", "Query too large", why)
}
