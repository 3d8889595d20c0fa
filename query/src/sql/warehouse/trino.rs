//! Trino over HTTP: a statement is posted, its answer comes page by page, each naming the next.

use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, SchemaRef};
use futures::StreamExt;
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde::Deserialize;
use tokio::runtime::Handle;
use url::Url;

use super::columns::{self, Row};
use super::{Allowance, Answer, Failure, tenant};
use crate::config::Address;
use crate::sql::error::SqlError;

/// Between two tries where it asks for patience.
const PATIENCE: Duration = Duration::from_millis(100);
/// To say that an answer is not wanted any more.
const CANCELLING: Duration = Duration::from_secs(5);

/// A Trino. Cheap to clone.
#[derive(Clone)]
pub struct Trino {
    client: Client,
    address: Address,
}

/// A part of an answer.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    next_uri: Option<String>,
    columns: Option<Vec<Column>>,
    #[serde(default)]
    data: Vec<Row>,
    error: Option<Error>,
}

#[derive(Debug, Deserialize)]
struct Column {
    name: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Error {
    message: String,
    error_name: String,
    error_type: String,
}

impl Trino {
    /// The one at this address.
    pub fn new(client: Client, address: Address) -> Self {
        Self { client, address }
    }

    /// Runs a query as the project's own user, in the project's own schema.
    pub async fn query(&self, project: &str, text: String, allowance: Allowance) -> Result<Answer, Failure> {
        let user = tenant(&self.address.user, project);
        let value = |text: String| HeaderValue::from_str(&text).map_err(|error| Failure::Broken(error.to_string()));
        let headers = HeaderMap::from_iter(
            [
                ("x-trino-user", value(user)?),
                ("x-trino-catalog", value(self.address.catalog.clone())?),
                ("x-trino-schema", value(format!("tidemill.{project}"))?),
                ("x-trino-source", HeaderValue::from_static("tidemill")),
                ("x-trino-time-zone", HeaderValue::from_static("UTC")),
                ("x-trino-session", value(format!("query_max_run_time={}s", allowance.seconds))?),
                // Times with all their digits.
                ("x-trino-client-capabilities", HeaderValue::from_static("PARAMETRIC_DATETIME")),
            ]
            .map(|(name, value)| (reqwest::header::HeaderName::from_static(name), value)),
        );
        let mut running = Running { trino: self.clone(), headers, next: None, runtime: Handle::current() };
        let mut page = running.post(text).await?;
        loop {
            let rows = std::mem::take(&mut page.data);
            if let Some(columns) = page.columns.take() {
                let schema = columns::schema(columns.into_iter().map(|column| (column.name, kind(&column.kind))));
                let batches = batches(running, rows, schema.clone());
                return Ok(Answer { schema, batches: batches.boxed() });
            }
            page = match running.next().await? {
                Some(page) => page,
                None => return Err(Failure::Broken("it ended without columns".to_owned())),
            };
        }
    }
}

fn batches(
    running: Running,
    rows: Vec<Row>,
    schema: SchemaRef,
) -> impl futures::Stream<Item = Result<RecordBatch, SqlError>> + Send {
    futures::stream::try_unfold((running, Some(rows)), move |(mut running, rows)| {
        let schema = schema.clone();
        async move {
            let rows = match rows {
                Some(rows) => rows,
                None => match running.next().await? {
                    Some(page) => page.data,
                    None => return Ok(None),
                },
            };
            Ok(Some((columns::batch(&schema, &rows)?, (running, None))))
        }
    })
}

/// A query under way. Trino is told when nobody wants the rest of its answer.
struct Running {
    trino: Trino,
    headers: HeaderMap,
    next: Option<Url>,
    runtime: Handle,
}

impl Running {
    async fn post(&mut self, text: String) -> Result<Page, Failure> {
        let mut url = self.trino.address.url.clone();
        url.set_path("/v1/statement");
        let page = loop {
            let request = self.request(Method::POST, url.clone()).body(text.clone());
            if let Some(page) = read(request).await? {
                break page;
            }
        };
        self.taken(page)
    }

    /// None: it has ended.
    async fn next(&mut self) -> Result<Option<Page>, Failure> {
        loop {
            let Some(url) = self.next.clone() else { return Ok(None) };
            if let Some(page) = read(self.request(Method::GET, url)).await? {
                return self.taken(page).map(Some);
            }
        }
    }

    fn taken(&mut self, page: Page) -> Result<Page, Failure> {
        // Trino may know itself by another name than we do.
        self.next = page.next_uri.as_ref().map(|next| at(&self.trino.address.url, next)).transpose()?;
        match page.error {
            Some(error) => Err(failure(error)),
            None => Ok(page),
        }
    }

    fn request(&self, method: Method, url: Url) -> RequestBuilder {
        let request = self.trino.client.request(method, url).headers(self.headers.clone());
        match &self.trino.address.password {
            Some(password) => request.basic_auth(&self.trino.address.user, Some(password)),
            None => request,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(url) = self.next.take() {
            let cancel = self.request(Method::DELETE, url).timeout(CANCELLING);
            self.runtime.spawn(async move {
                if let Err(error) = cancel.send().await {
                    tracing::debug!(%error, "Trino was not told that a query is over");
                }
            });
        }
    }
}

fn at(base: &Url, next: &str) -> Result<Url, Failure> {
    let next = Url::parse(next).map_err(|error| Failure::Broken(format!("nextUri: {error}")))?;
    let mut url = base.clone();
    url.set_path(next.path());
    url.set_query(next.query());
    Ok(url)
}

/// None: try again.
async fn read(request: RequestBuilder) -> Result<Option<Page>, Failure> {
    let response = request.send().await?;
    match response.status() {
        StatusCode::OK => {
            let body = response.bytes().await?;
            serde_json::from_slice(&body).map(Some).map_err(|error| Failure::Broken(error.to_string()))
        }
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => {
            tokio::time::sleep(PATIENCE).await;
            Ok(None)
        }
        status => {
            let why: String = response.text().await?.chars().take(300).collect();
            Err(Failure::Unavailable(format!("Trino said {status}: {why}")))
        }
    }
}

fn failure(error: Error) -> Failure {
    let Error { message, error_name, error_type } = error;
    match (error_type.as_str(), error_name.as_str()) {
        // Its rules, tables and users are the operator's, not the caller's.
        (_, "PERMISSION_DENIED" | "TABLE_NOT_FOUND" | "SCHEMA_NOT_FOUND" | "CATALOG_NOT_FOUND") => {
            Failure::Unavailable(format!("{message}; see 'tidemill archive warehouse-setup'"))
        }
        (_, "EXCEEDED_TIME_LIMIT") | ("INSUFFICIENT_RESOURCES", _) => Failure::TooLarge(message),
        ("USER_ERROR", _) => Failure::Query(message),
        _ => Failure::Unavailable(format!("{error_name}: {message}")),
    }
}

/// What a type is here; text where there is nothing like it.
fn kind(name: &str) -> DataType {
    let (base, parameters) = name.split_once('(').map_or((name, ""), |(base, rest)| (base, rest.trim_end_matches(')')));
    match base.trim() {
        "boolean" => DataType::Boolean,
        "tinyint" | "smallint" | "integer" | "bigint" => DataType::Int64,
        "real" | "double" => DataType::Float64,
        "date" => DataType::Date32,
        // With a zone behind the parentheses, too.
        "timestamp" | "timestamp with time zone" => columns::time(),
        "decimal" => {
            let (precision, scale) = parameters.split_once(',').unwrap_or((parameters, "0"));
            columns::decimal(precision, scale)
        }
        _ => DataType::Utf8,
    }
}

#[cfg(test)]
mod tests {
    use arrow::util::pretty::pretty_format_batches;

    use super::*;

    #[test]
    fn a_page_is_rows_in_columns() {
        let page = r#"{"id":"1","nextUri":"http://10.0.0.9:8080/v1/statement/executing/1/y/2?a=b","columns":[
            {"name":"n","type":"bigint","typeSignature":{}},{"name":"t","type":"timestamp(6) with time zone"},
            {"name":"d","type":"decimal(38,2)"},{"name":"l","type":"array(integer)"},{"name":"v","type":"varchar(9)"}],
            "data":[[1,"2026-01-01 00:00:00.123456 UTC","1.50",[1,2],"x"],[null,null,null,null,null]],"stats":{}}"#;
        let page: Page = serde_json::from_str(page).expect("a page");
        let next = at(&"https://trino.example:8443".parse().expect("a URL"), page.next_uri.as_ref().expect("one"))
            .expect("a URL");
        assert_eq!(next.as_str(), "https://trino.example:8443/v1/statement/executing/1/y/2?a=b");
        let columns = page.columns.expect("columns").into_iter();
        let schema = columns::schema(columns.map(|column| (column.name, kind(&column.kind))));
        let batch = columns::batch(&schema, &page.data).expect("rows");
        let shown = pretty_format_batches(&[batch]).expect("text").to_string();
        assert!(shown.contains("| 1 | 2026-01-01T00:00:00.123456Z | 1.50 | [1,2] | x |"), "{shown}");
    }

    #[test]
    fn types_are_what_is_like_them() {
        for (name, expected) in [
            ("timestamp(12)", columns::time()),
            ("timestamp", columns::time()),
            ("decimal(5, 2)", DataType::Decimal128(5, 2)),
            ("real", DataType::Float64),
            ("char(3)", DataType::Utf8),
            ("map(varchar(1), integer)", DataType::Utf8),
            ("time(3)", DataType::Utf8),
            ("unknown", DataType::Utf8),
        ] {
            assert_eq!(kind(name), expected, "{name}");
        }
    }

    #[test]
    fn errors_are_the_callers_or_not() {
        let of = |name: &str, kind: &str| {
            failure(Error { message: "m".to_owned(), error_name: name.to_owned(), error_type: kind.to_owned() })
        };
        assert!(matches!(of("COLUMN_NOT_FOUND", "USER_ERROR"), Failure::Query(_)));
        assert!(matches!(of("PERMISSION_DENIED", "USER_ERROR"), Failure::Unavailable(_)));
        assert!(matches!(of("EXCEEDED_TIME_LIMIT", "INSUFFICIENT_RESOURCES"), Failure::TooLarge(_)));
        assert!(matches!(of("GENERIC_INTERNAL_ERROR", "INTERNAL_ERROR"), Failure::Unavailable(_)));
    }
}
