//! What somebody might try. All of it must be refused.

/// Places that a query should never reach.
pub struct Places {
    /// A file with the word `secret` in it.
    pub file: String,
    /// A file that is not there, in a folder that can be written to.
    pub target: String,
    /// The folder of the project's own table.
    pub warehouse: String,
    /// Another project.
    pub other: String,
}

/// Statements that are no queries, reach out, or grow without end.
pub fn statements(places: &Places) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    all.extend(WRITES.iter().chain(SETTINGS).chain(NO_QUERIES).map(|sql| (*sql).to_owned()));
    all.extend(
        ["EXPLAIN", "EXPLAIN ANALYZE", "EXPLAIN VERBOSE"]
            .iter()
            .flat_map(|explain| WRITES.iter().take(8).map(move |sql| format!("{explain} {sql}"))),
    );
    all.extend(copies(places));
    all.extend(files(places));
    all.extend(others(&places.other));
    all.extend(FUNCTIONS.iter().map(|call| format!("SELECT {call}")));
    all.extend(TABLE_FUNCTIONS.iter().map(|call| format!("SELECT * FROM {call}")));
    all.extend(growing());
    all
}

/// The same, in queries that read the project's own events too.
pub fn beside_events(places: &Places) -> Vec<String> {
    // These an engine may know, and they do no harm there.
    let harmless = ["replace(", "translate(", "regexp_replace(", "overlay("];
    let calls = FUNCTIONS.iter().filter(|call| !harmless.iter().any(|name| call.starts_with(name)));
    let calls = calls.map(|call| format!("SELECT {call} FROM events"));
    let tables = TABLE_FUNCTIONS.iter().map(|call| format!("SELECT * FROM events, {call}"));
    let names = others(&places.other).into_iter().chain(files(places)).filter(|sql| sql.starts_with("SELECT * FROM "));
    let names = names.map(|sql| sql.replacen("FROM ", "FROM events, ", 1));
    calls.chain(tables).chain(names).collect()
}

const WRITES: &[&str] = &[
    "INSERT INTO events SELECT * FROM events",
    "INSERT INTO sessions (session_id) VALUES ('x')",
    "INSERT OVERWRITE TABLE events SELECT * FROM events",
    "UPDATE events SET user_id = 'x'",
    "UPDATE sessions SET user_id = 'x' WHERE true",
    "DELETE FROM events",
    "DELETE FROM sessions WHERE session_id = 's'",
    "DROP TABLE events",
    "TRUNCATE TABLE events",
    "DROP TABLE IF EXISTS sessions CASCADE",
    "DROP SCHEMA project CASCADE",
    "DROP SCHEMA IF EXISTS tidemill",
    "DROP VIEW v",
    "DROP FUNCTION f",
    "DROP DATABASE tidemill",
    "DROP CATALOG tidemill",
    "ALTER TABLE events ADD COLUMN x int",
    "ALTER TABLE events RENAME TO e",
    "ALTER TABLE events DROP COLUMN user_id",
    "CREATE TABLE t (a int)",
    "CREATE TABLE t AS SELECT 1",
    "CREATE OR REPLACE TABLE events AS SELECT 1",
    "CREATE TEMPORARY TABLE t AS SELECT * FROM events",
    "CREATE VIEW v AS SELECT 1",
    "CREATE OR REPLACE VIEW events AS SELECT 1",
    "CREATE MATERIALIZED VIEW v AS SELECT 1",
    "CREATE SCHEMA s",
    "CREATE DATABASE d",
    "CREATE CATALOG c",
    "CREATE INDEX i ON events (user_id)",
    "CREATE FUNCTION f() RETURNS int RETURN 1",
    "CREATE FUNCTION f(int) RETURNS int LANGUAGE c AS '/lib/x86_64-linux-gnu/libc.so.6', 'system'",
    "CREATE ROLE r",
    "CREATE TRIGGER t AFTER INSERT ON events EXECUTE FUNCTION f()",
    "CREATE SEQUENCE s",
    "CREATE EXTENSION dblink",
    "MERGE INTO events USING sessions ON true WHEN MATCHED THEN DELETE",
    "REPLACE INTO events VALUES (1)",
    "GRANT ALL ON events TO public",
    "REVOKE ALL ON events FROM public",
    "COMMENT ON TABLE events IS 'x'",
    "ANALYZE TABLE events",
    "VACUUM events",
    "OPTIMIZE TABLE events",
    "SELECT * INTO t FROM sessions",
    "WITH a AS (INSERT INTO events SELECT 1) SELECT 1",
    "WITH a AS (DELETE FROM sessions RETURNING *) SELECT * FROM a",
];

const SETTINGS: &[&str] = &[
    "SET datafusion.execution.batch_size = 1",
    "SET datafusion.catalog.information_schema = true",
    "SET datafusion.runtime.memory_limit = '100G'",
    "SET datafusion.catalog.location = '/'",
    "SET TIME ZONE = 'UTC'",
    "SET ROLE postgres",
    "SET SESSION AUTHORIZATION postgres",
    "SET VARIABLE a = 1",
    "RESET datafusion.execution.batch_size",
    "RESET ALL",
    "SHOW ALL",
    "SHOW TABLES",
    "SHOW COLUMNS FROM events",
    "SHOW CREATE TABLE events",
    "SHOW FUNCTIONS",
    "SHOW datafusion.execution.batch_size",
    "SHOW DATABASES",
    "USE tidemill",
];

const NO_QUERIES: &[&str] = &[
    "",
    ";",
    "   -- only a comment",
    "/* only */",
    "SELECT 1; SELECT 2",
    "SELECT 1; DROP TABLE sessions",
    "SELECT 1;;SELECT 2",
    "SELEC 1",
    "DESCRIBE events",
    "DESC events",
    "BEGIN",
    "START TRANSACTION",
    "COMMIT",
    "ROLLBACK",
    "SAVEPOINT s",
    "PREPARE p AS SELECT 1",
    "EXECUTE p",
    "EXECUTE IMMEDIATE 'SELECT 1'",
    "DEALLOCATE p",
    "CALL f()",
    "DECLARE c CURSOR FOR SELECT 1",
    "FETCH ALL FROM c",
    "CLOSE c",
    "LOCK TABLE events",
    "KILL 1",
    "LISTEN x",
    "NOTIFY x",
    "UNLOAD ('SELECT 1') TO 's3://b/x'",
    "LOAD DATA INPATH '/etc/passwd' INTO TABLE events",
    "INSTALL httpfs",
    "LOAD httpfs",
    "ATTACH DATABASE '/tmp/x.db' AS x",
    "DETACH DATABASE x",
    "PRAGMA database_list",
    "EXPORT DATABASE '/tmp/x'",
    "ADD JAR '/tmp/x.jar'",
    "MSCK REPAIR TABLE events",
    "CACHE TABLE events",
    "FLUSH TABLES",
    "TABLE events INTO OUTFILE '/tmp/x'",
    "SELECT nothing FROM sessions",
    "SELECT * FROM sessions WHERE",
    "SELECT 1 / 0",
    "SELECT CAST('x' AS integer)",
    "SELECT $1",
    "SELECT * FROM sessions WHERE session_id = ?",
    "FROM sessions |> SELECT session_id |> EXTEND 1 AS a",
];

fn copies(places: &Places) -> Vec<String> {
    let target = &places.target;
    let what = ["events", "sessions", "(SELECT 1)", "(SELECT * FROM sessions)"];
    let options = ["", " STORED AS CSV", " STORED AS PARQUET", " STORED AS JSON", " OPTIONS ('format.delimiter' ';')"];
    let mut all: Vec<String> = what
        .iter()
        .flat_map(|what| options.iter().map(move |options| format!("COPY {what} TO '{target}'{options}")))
        .collect();
    all.extend([
        format!("COPY sessions FROM '{}'", places.file),
        "COPY sessions TO PROGRAM 'id'".to_owned(),
        "COPY sessions FROM PROGRAM 'id'".to_owned(),
        "COPY sessions TO STDOUT".to_owned(),
        format!("EXPLAIN COPY sessions TO '{target}'"),
        format!("EXPLAIN ANALYZE COPY sessions TO '{target}' STORED AS CSV"),
        "COPY sessions TO 's3://bucket/x.parquet'".to_owned(),
        "COPY sessions TO 'http://127.0.0.1:1/x.csv'".to_owned(),
    ]);
    all
}

fn files(places: &Places) -> Vec<String> {
    let Places { file, warehouse, .. } = places;
    let mut names = Vec::new();
    for path in [file.as_str(), warehouse, "/etc/passwd", "/proc/self/environ", "../../../../etc/passwd"] {
        names.extend([path.to_owned(), format!("file://{path}"), format!("{path}/*.parquet")]);
    }
    names.extend(
        [
            "s3://bucket/x.parquet",
            "http://127.0.0.1:1/x.csv",
            "https://example.com/x.parquet",
            "http://169.254.169.254/latest/meta-data/",
            "gs://bucket/x",
            "hdfs://h/x",
            "data:text/csv,a",
            "archive://files/",
        ]
        .map(str::to_owned),
    );
    let mut all: Vec<String> = names.iter().map(|name| format!("SELECT * FROM \"{name}\"")).collect();
    all.extend([
        format!("SELECT * FROM '{file}'"),
        format!("SELECT * FROM `{file}`"),
        format!("TABLE \"{file}\""),
        format!("SELECT * FROM sessions s JOIN '{file}' f ON true"),
        format!("SELECT (SELECT a FROM '{file}')"),
        format!("SELECT * FROM sessions WHERE session_id IN (SELECT secret FROM \"{file}\")"),
        format!("WITH a AS (SELECT * FROM '{file}') SELECT * FROM a"),
        format!("CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '{file}'"),
        format!("CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION '{warehouse}'"),
        "CREATE UNBOUNDED EXTERNAL TABLE t STORED AS CSV LOCATION '/dev/stdin'".to_owned(),
        "CREATE EXTERNAL TABLE t STORED AS ICEBERG LOCATION 's3://b/t'".to_owned(),
    ]);
    all
}

fn others(other: &str) -> Vec<String> {
    [
        format!("\"{other}\".events"),
        format!("tidemill.\"{other}\".events"),
        format!("\"events.{other}\""),
        format!("\"tidemill.{other}.events\""),
        format!("\"events\"@\"{other}\""),
        "api_keys".to_owned(),
        "projects".to_owned(),
        "ledger".to_owned(),
        "raw_events".to_owned(),
        "metric_rollups".to_owned(),
        "iceberg_tables".to_owned(),
        "public.sessions".to_owned(),
        "tidemill.public.sessions".to_owned(),
        "information_schema.tables".to_owned(),
        "information_schema.df_settings".to_owned(),
        "tidemill.information_schema.columns".to_owned(),
        "pg_catalog.pg_tables".to_owned(),
        "pg_catalog.pg_authid".to_owned(),
        "pg_user".to_owned(),
        "events.snapshots".to_owned(),
        "\"events$snapshots\"".to_owned(),
        "\"events$files\"".to_owned(),
        "project.EVENTS2".to_owned(),
        "EVENTS e, api_keys k".to_owned(),
    ]
    .into_iter()
    .map(|name| format!("SELECT * FROM {name}"))
    .chain(["SELECT * FROM sessions WHERE session_id = (SELECT hash FROM api_keys)".to_owned()])
    .collect()
}

/// Functions that other engines have, or that make large values.
const FUNCTIONS: &[&str] = &[
    "pg_read_file('/etc/passwd')",
    "pg_ls_dir('/')",
    "lo_import('/etc/passwd')",
    "dblink('host=127.0.0.1', 'SELECT 1')",
    "load_file('/etc/passwd')",
    "readfile('/etc/passwd')",
    "file('/etc/passwd')",
    "url('http://127.0.0.1:1/')",
    "http_get('http://127.0.0.1:1/')",
    "system('id')",
    "shell('id')",
    "getenv('PATH')",
    "current_setting('x')",
    "set_config('x', 'y', false)",
    "pg_sleep(10)",
    "sleep(10)",
    "benchmark(1000000000, md5('x'))",
    "query_to_xml('SELECT 1', true, true, '')",
    "repeat('x', 2000000000)",
    "lpad('x', 2000000000)",
    "rpad('x', 2000000000)",
    "space(2000000000)",
    "replace('x', 'x', 'yyyy')",
    "translate('x', 'x', 'y')",
    "regexp_replace('x', 'x', 'yy')",
    "overlay('x' PLACING 'yy' FROM 1)",
    "array_repeat(1, 1000000000)",
    "range(1000000000)",
    "generate_series(1, 1000000000)",
    "array_to_string(string_to_array('xx', NULL), 'yyyy')",
    "encode('x', 'hex')",
    "make_array(1, 2)",
    "flatten([[1]])",
    "json_from_scalar(1)",
    "arrow_cast(1, 'FixedSizeBinary(2000000000)')",
    "named_struct('a', 1)",
    "map(['a'], [1])",
];

const TABLE_FUNCTIONS: &[&str] = &[
    "read_csv('/etc/passwd')",
    "read_csv_auto('/etc/passwd')",
    "read_parquet('/tmp/*.parquet')",
    "read_json('/etc/passwd')",
    "read_text('/etc/passwd')",
    "read_blob('/etc/passwd')",
    "parquet_metadata('/tmp/x.parquet')",
    "parquet_scan('/tmp/x.parquet')",
    "iceberg_scan('/tmp/x')",
    "delta_scan('/tmp/x')",
    "sqlite_scan('/tmp/x.db', 't')",
    "postgres_scan('host=127.0.0.1', 'public', 'api_keys')",
    "metadata_cache()",
    "glob('/*')",
    "generate_series(1, 1000000000)",
    "range(1, 1000000000)",
    "file('/etc/passwd', 'CSV', 'a String')",
    "url('http://127.0.0.1:1/', 'CSV', 'a String')",
    "s3('http://127.0.0.1:1/b/x', 'CSV')",
    "remote('127.0.0.1:9000', system.one)",
    "executable('id', 'CSV', 'a String')",
    "sessions('x')",
];

/// Short texts that stand for plans or values without end.
fn growing() -> Vec<String> {
    let levels = |first: &str, step: &dyn Fn(usize) -> String, count: usize, last: &str| {
        let steps: Vec<String> = (1..=count).map(|i| format!("c{i} AS ({})", step(i - 1))).collect();
        format!("WITH c0 AS ({first}), {} {last}", steps.join(", "))
    };
    let number = "SELECT page_views AS a FROM sessions";
    let nested = |step: &str, count: usize| {
        (0..count).fold(number.to_owned(), |inner, _| format!("SELECT {step} AS a FROM ({inner})"))
    };
    vec![
        levels(number, &|i| format!("SELECT x.a FROM c{i} x, c{i} y"), 30, "SELECT a FROM c30"),
        levels(number, &|i| format!("SELECT a FROM c{i} UNION ALL SELECT a FROM c{i}"), 30, "SELECT a FROM c30"),
        levels(number, &|i| format!("SELECT a FROM c{i} WHERE a IN (SELECT a FROM c{i})"), 30, "SELECT a FROM c30"),
        levels(
            number,
            &|i| format!("SELECT (SELECT max(a) FROM c{i}) + max(a) AS a FROM c{i}"),
            30,
            "SELECT a FROM c30",
        ),
        levels(number, &|i| format!("SELECT a + a AS a FROM c{i}"), 40, "SELECT a FROM c40 WHERE a = 1"),
        levels(number, &|i| format!("SELECT a + a AS a FROM c{i}"), 40, "SELECT a FROM c40 ORDER BY a + a LIMIT 1"),
        format!("SELECT a FROM ({}) WHERE a = 1", nested("a * a", 30)),
        format!("SELECT a FROM ({}) WHERE a = 1", nested("CASE WHEN a > 1 THEN a ELSE a END", 25)),
        format!("SELECT a FROM ({}) WHERE a = 1", nested("coalesce(a, a, a, a)", 20)),
        format!("SELECT 1 FROM {}", (0..300).map(|i| format!("sessions s{i}")).collect::<Vec<_>>().join(", ")),
        levels("SELECT 'x' AS a", &|i| format!("SELECT a || a AS a FROM c{i}"), 31, "SELECT octet_length(a) FROM c31"),
        levels("SELECT 'x' AS a", &|i| format!("SELECT [a, a] AS a FROM c{i}"), 31, "SELECT a FROM c31"),
        "WITH RECURSIVE r AS (SELECT 1 AS a UNION ALL SELECT a + 1 FROM r) SELECT max(a) FROM r".to_owned(),
        "WITH RECURSIVE r AS (SELECT 'x' AS a UNION ALL SELECT a || a FROM r) SELECT max(a) FROM r".to_owned(),
        format!("SELECT {}1{}", "(".repeat(5_000), ")".repeat(5_000)),
        format!("SELECT {}1", "1 + ".repeat(900)),
        format!("SELECT {}1", "- ".repeat(5_000)),
        format!("SELECT {}true", "NOT ".repeat(3_000)),
        format!("SELECT {}1{}", "CASE WHEN true THEN ".repeat(600), " END".repeat(600)),
        format!("SELECT {}1{}", "abs(".repeat(800), ")".repeat(800)),
        format!("SELECT * FROM {}sessions{}", "(SELECT * FROM ".repeat(400), ")".repeat(400)),
        format!("SELECT '{}'", "x".repeat(9_000)),
        format!("SELECT '{}'", "x".repeat(300_000)),
        format!("SELECT {} FROM sessions", vec!["session_id"; 101].join(", ")),
        format!("SELECT 1 AS \"{}\"", "x".repeat(300)),
        "SELECT string_agg(session_id, ',') FROM sessions".to_owned(),
        "SELECT array_agg(session_id) FROM sessions".to_owned(),
    ]
}
