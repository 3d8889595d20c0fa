//! ClickHouse over HTTP: one POST, whose answer is a line of names, a line of types, and a line per row.

use std::collections::VecDeque;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, SchemaRef};
use bytes::{Buf, Bytes, BytesMut};
use futures::StreamExt;
use reqwest::{Client, Response};
use url::Url;

use super::columns::{self, Row};
use super::{Allowance, Answer, Failure, tenant};
use crate::config::Address;
use crate::sql::error::SqlError;

/// Longest line.
const MAX_LINE: usize = 64 * 1024 * 1024;
/// So that values come as [`columns`] reads them, and nothing goes on for nobody.
const SETTINGS: [(&str, &str); 9] = [
    ("readonly", "2"),
    ("default_format", "JSONCompactEachRowWithNamesAndTypes"),
    ("session_timezone", "UTC"),
    ("date_time_output_format", "iso"),
    ("output_format_json_quote_64bit_integers", "1"),
    ("output_format_json_quote_decimals", "1"),
    ("output_format_json_quote_denormals", "1"),
    ("result_overflow_mode", "break"),
    ("cancel_http_readonly_queries_on_client_close", "1"),
];
const CODE: &str = "x-clickhouse-exception-code";

/// A ClickHouse. Cheap to clone.
#[derive(Clone)]
pub struct ClickHouse {
    client: Client,
    address: Address,
}

impl ClickHouse {
    /// The one at this address.
    pub fn new(client: Client, address: Address) -> Self {
        Self { client, address }
    }

    /// Runs a query with the project's own role alone, in the project's own database, at this snapshot of its table.
    /// ClickHouse itself finds the newest metadata file in the table's folder, which need not be the one that the
    /// catalog knows; a snapshot that was committed is right in whichever has it.
    pub async fn query(
        &self,
        project: &str,
        text: String,
        snapshot: Option<&str>,
        allowance: Allowance,
    ) -> Result<Answer, Failure> {
        let url = url(&self.address, project, snapshot, allowance);
        let mut request = self.client.post(url).header("x-clickhouse-user", &self.address.user).body(text);
        if let Some(password) = &self.address.password {
            request = request.header("x-clickhouse-key", password);
        }
        let response = request.send().await?;
        if !response.status().is_success() {
            return Err(refusal(response).await?);
        }
        let mut lines = Lines { response, buffer: BytesMut::new(), ready: VecDeque::new() };
        let (Some(names), Some(kinds)) = (lines.next().await?, lines.next().await?) else {
            return Err(Failure::Broken("it ended without columns".to_owned()));
        };
        let schema = schema(&names, &kinds)?;
        let batches = batches(lines, schema.clone());
        Ok(Answer { schema, batches: batches.boxed() })
    }
}

fn url(address: &Address, project: &str, snapshot: Option<&str>, allowance: Allowance) -> Url {
    let tenant = tenant(&address.user, project);
    let mut url = address.url.clone();
    url.query_pairs_mut()
        .extend_pairs(SETTINGS)
        .append_pair("database", &tenant)
        .append_pair("role", &tenant)
        .append_pair("max_execution_time", &allowance.seconds.to_string())
        .append_pair("max_memory_usage", &allowance.memory.to_string())
        // One more row tells that some are cut off.
        .append_pair("max_result_rows", &(allowance.limits.rows + 1).to_string())
        .extend_pairs(snapshot.map(|id| ("iceberg_snapshot_id", id)));
    url
}

async fn refusal(response: Response) -> Result<Failure, Failure> {
    let status = response.status().as_u16();
    let code = response.headers().get(CODE).and_then(|code| code.to_str().ok()?.parse().ok());
    Ok(failure(status, code, response.text().await?.trim()))
}

/// By ClickHouse's own numbers of errors.
fn failure(status: u16, code: Option<u32>, message: &str) -> Failure {
    let message: String = message.chars().take(2_000).collect();
    match (code, status) {
        // Tables, databases, users, roles, grants and settings are the operator's, not the caller's.
        (Some(60 | 81 | 115 | 164 | 192 | 194 | 291 | 452 | 497 | 511 | 512 | 516), _) => {
            Failure::Unavailable(format!("{message}; see 'tidemill archive warehouse-setup'"))
        }
        // Time, memory, rows, bytes.
        (Some(158 | 159 | 160 | 241 | 307 | 396), _) => Failure::TooLarge(message),
        // A value that cannot be computed or read.
        (Some(6 | 27 | 38 | 41 | 69 | 70 | 72 | 153 | 407 | 457), _) | (Some(_), 400 | 404) => Failure::Query(message),
        _ => Failure::Unavailable(format!("ClickHouse said {status}: {message}")),
    }
}

fn schema(names: &[u8], kinds: &[u8]) -> Result<SchemaRef, Failure> {
    let list = |line| serde_json::from_slice::<Vec<String>>(line).map_err(|_| unreadable(line));
    let (names, kinds) = (list(names)?, list(kinds)?);
    if names.len() != kinds.len() {
        return Err(Failure::Broken("as many names as types were expected".to_owned()));
    }
    Ok(columns::schema(names.into_iter().zip(kinds.iter().map(|name| kind(name)))))
}

fn batches(lines: Lines, schema: SchemaRef) -> impl futures::Stream<Item = Result<RecordBatch, SqlError>> + Send {
    futures::stream::try_unfold(lines, move |mut lines| {
        let schema = schema.clone();
        async move {
            let Some(first) = lines.next().await? else { return Ok(None) };
            let rows: Vec<Row> =
                std::iter::once(first).chain(lines.ready.drain(..)).map(|line| row(&line)).collect::<Result<_, _>>()?;
            Ok::<_, SqlError>(Some((columns::batch(&schema, &rows)?, lines)))
        }
    })
}

/// An error in the middle of an answer comes as a line that is no row.
fn row(line: &[u8]) -> Result<Row, Failure> {
    serde_json::from_slice(line).map_err(|_| unreadable(line))
}

fn unreadable(line: &[u8]) -> Failure {
    Failure::Broken(String::from_utf8_lossy(line).chars().take(300).collect())
}

/// Lines of an answer as they come.
struct Lines {
    response: Response,
    buffer: BytesMut,
    /// Those that are there already.
    ready: VecDeque<Bytes>,
}

impl Lines {
    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Ok(Some(line));
            }
            match self.response.chunk().await? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None if self.buffer.is_empty() => return Ok(None),
                None => self.buffer.extend_from_slice(b"\n"),
            }
            cut(&mut self.buffer, &mut self.ready);
            if self.buffer.len() > MAX_LINE {
                return Err(Failure::Broken(format!("a row of more than {MAX_LINE} bytes")));
            }
        }
    }
}

/// Takes the lines that are whole.
fn cut(buffer: &mut BytesMut, ready: &mut VecDeque<Bytes>) {
    while let Some(end) = memchr::memchr(b'\n', buffer) {
        let line = buffer.split_to(end).freeze();
        buffer.advance(1);
        if !line.is_empty() {
            ready.push_back(line);
        }
    }
}

/// What a type is here; text where there is nothing like it.
fn kind(name: &str) -> DataType {
    let (base, inner) =
        name.split_once('(').map_or((name, ""), |(base, rest)| (base, rest.strip_suffix(')').unwrap_or(rest)));
    match base {
        "Nullable" | "LowCardinality" => kind(inner),
        "Bool" => DataType::Boolean,
        "Int8" | "Int16" | "Int32" | "Int64" | "UInt8" | "UInt16" | "UInt32" => DataType::Int64,
        "UInt64" => DataType::UInt64,
        "Float32" | "Float64" => DataType::Float64,
        "Date" | "Date32" => DataType::Date32,
        "DateTime" | "DateTime64" => columns::time(),
        "Decimal" => {
            let (precision, scale) = inner.split_once(',').unwrap_or((inner, "0"));
            columns::decimal(precision, scale)
        }
        _ => DataType::Utf8,
    }
}

#[cfg(test)]
mod tests {
    use arrow::util::pretty::pretty_format_batches;

    use super::*;
    use crate::sql::answer::Limits;

    #[test]
    fn lines_are_rows_in_columns() {
        let text = "[\"n\", \"t\", \"d\", \"l\", \"v\"]\n[\"UInt64\", \"DateTime64(6, 'UTC')\", \"Nullable(Decimal(38, 2))\", \"Array(UInt8)\", \"LowCardinality(Nullable(String))\"]\n[\"18446744073709551615\", \"2026-01-01T00:00:00.123456Z\", \"1.50\", [1,2], \"a\\/b\\n\"]\n[\"0\", \"1970-01-01T00:00:00.000000Z\", null, [], null]\nCode: 159. DB::Exc";
        let (mut buffer, mut ready) = (BytesMut::new(), VecDeque::new());
        for piece in text.as_bytes().chunks(7) {
            buffer.extend_from_slice(piece);
            cut(&mut buffer, &mut ready);
        }
        assert_eq!((ready.len(), &buffer[..]), (4, &b"Code: 159. DB::Exc"[..]));
        let schema = schema(&ready[0], &ready[1]).expect("columns");
        let rows: Vec<Row> = ready.iter().skip(2).map(|line| row(line).expect("a row")).collect();
        let shown = pretty_format_batches(&[columns::batch(&schema, &rows).expect("rows")]).expect("text").to_string();
        assert!(shown.contains("| 18446744073709551615 | 2026-01-01T00:00:00.123456Z | 1.50 | [1,2] | a/b"), "{shown}");
        assert!(matches!(row(&buffer), Err(Failure::Broken(why)) if why.starts_with("Code: 159")));
    }

    #[test]
    fn a_query_bears_its_tenant_and_its_limits() {
        let url = "http://ch:8123/".parse().expect("a URL");
        let address = Address {
            kind: crate::config::Kind::ClickHouse,
            url,
            user: "tidemill".to_owned(),
            password: None,
            catalog: String::new(),
        };
        let allowance = Allowance { seconds: 30, memory: 512, limits: Limits { rows: 10, bytes: 0 } };
        let url = super::url(&address, "shop-1", Some("123"), allowance).to_string();
        for part in [
            "database=tidemill_shop-1",
            "role=tidemill_shop-1",
            "readonly=2",
            "max_execution_time=30",
            "max_result_rows=11",
            "iceberg_snapshot_id=123",
        ] {
            assert!(
                url.contains(&format!("&{part}&")) || url.contains(&format!("?{part}&")) || url.ends_with(part),
                "{url}"
            );
        }
    }

    #[test]
    fn types_and_errors_are_what_is_like_them() {
        for (name, expected) in [
            ("Nullable(DateTime)", columns::time()),
            ("DateTime('Europe/Berlin')", columns::time()),
            ("Decimal(10, 2)", DataType::Decimal128(10, 2)),
            ("Decimal(76, 2)", DataType::Utf8),
            ("Int128", DataType::Utf8),
            ("Enum8('x' = 1)", DataType::Utf8),
            ("Nullable(Nothing)", DataType::Utf8),
        ] {
            assert_eq!(kind(name), expected, "{name}");
        }
        assert!(matches!(failure(404, Some(47), "Unknown identifier"), Failure::Query(_)));
        assert!(matches!(failure(403, Some(497), "Not enough privileges"), Failure::Unavailable(_)));
        assert!(matches!(failure(500, Some(241), "Memory limit"), Failure::TooLarge(_)));
        assert!(matches!(failure(500, Some(499), "S3_ERROR"), Failure::Unavailable(_)));
        assert!(matches!(failure(502, None, "a proxy"), Failure::Unavailable(_)));
    }
}
