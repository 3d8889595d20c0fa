//! What another engine is told of our projects, so that each may read its own table and no other: access rules for
//! Trino, statements for ClickHouse. Pure.

use serde_json::{Value, json};

use crate::config::Address;
use crate::sql::tenant;

/// A project's table, as far as ClickHouse has to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The project's id.
    pub project: String,
    /// Where its table lies: `file:///…` or `s3://bucket/…`
    pub location: String,
}

/// How S3 is reached.
#[derive(Debug, Clone, Default)]
pub struct S3 {
    /// The server. None: Amazon's.
    pub endpoint: Option<String>,
    /// Its region.
    pub region: String,
}

/// A place that ClickHouse has no engine for.
#[derive(Debug, thiserror::Error)]
#[error("the table of {project} lies at {location}; ClickHouse is set up for file:// and s3:// only")]
pub struct UnknownPlace {
    project: String,
    location: String,
}

/// The file of rules for Trino's file-based access control (`security.config-file`): our own user may become the
/// projects', each of which may read its table and do nothing else. Others may do what they may without rules; put
/// your own in place of the last rule of each list.
pub fn trino_rules(address: &Address, projects: &[String]) -> Value {
    let (catalog, user) = (literal(&address.catalog), literal(&address.user));
    let (tenants, ours) = (format!("{user}_.*"), format!("{user}(_.*)?"));
    let mut tables: Vec<Value> = projects
        .iter()
        .map(|project| {
            let (user, schema) = (literal(&tenant(&address.user, project)), literal(&format!("tidemill.{project}")));
            json!({"user": user, "catalog": catalog, "schema": schema, "table": "events", "privileges": ["SELECT"]})
        })
        .collect();
    let all = ["SELECT", "INSERT", "DELETE", "UPDATE", "OWNERSHIP", "GRANT_SELECT"];
    tables.extend([json!({"user": ours, "privileges": []}), json!({"privileges": all})]);
    json!({
        "catalogs": [
            {"user": tenants, "catalog": catalog, "allow": "read-only"},
            {"user": ours, "allow": "none"},
            {"allow": "all"},
        ],
        "schemas": [{"user": ours, "owner": false}, {"owner": true}],
        "tables": tables,
        "impersonation": [
            // Without rules nobody may.
            {"original_user": user, "new_user": tenants, "allow": true},
        ],
        "functions": [
            {"user": ours, "catalog": "system", "schema": "builtin", "privileges": ["EXECUTE"]},
            {"user": ours, "privileges": []},
            {"privileges": ["EXECUTE", "GRANT_EXECUTE", "OWNERSHIP"]},
        ],
        "procedures": [{"user": ours, "privileges": []}, {"privileges": ["EXECUTE", "GRANT_EXECUTE"]}],
        "queries": [{"user": ours, "allow": ["execute"]}, {"allow": ["execute", "view", "kill"]}],
        "system_session_properties": [
            {"user": tenants, "property": "query_max_run_time", "allow": true},
            {"user": ours, "allow": false},
            {"allow": true},
        ],
        "catalog_session_properties": [{"user": ours, "allow": false}, {"allow": true}],
    })
}

/// A text as a regular expression for itself. Names have nothing but letters, digits, `.`, `_` and `-`.
fn literal(text: &str) -> String {
    text.replace('.', "\\.")
}

/// Statements for ClickHouse: per project a database with the table, and a role that may read it; our own user has the
/// roles, and none of them unless a query names it. They can be run again at any time.
pub fn clickhouse_statements(address: &Address, places: &[Place], s3: &S3) -> Result<Vec<String>, UnknownPlace> {
    let user = name(&address.user);
    let mut all = vec![format!("ALTER USER {user} SETTINGS readonly = 2")];
    for place in places {
        let tenant = name(&tenant(&address.user, &place.project));
        all.extend([
            format!("CREATE DATABASE IF NOT EXISTS {tenant}"),
            format!("CREATE TABLE IF NOT EXISTS {tenant}.`events` ENGINE = {}", engine(place, s3)?),
            format!("CREATE ROLE IF NOT EXISTS {tenant}"),
            format!("GRANT SELECT ON {tenant}.`events` TO {tenant}"),
            format!("GRANT {tenant} TO {user}"),
        ]);
    }
    all.push(format!("SET DEFAULT ROLE NONE TO {user}"));
    Ok(all)
}

fn engine(place: &Place, s3: &S3) -> Result<String, UnknownPlace> {
    let Place { project, location } = place;
    if let Some(path) = location.strip_prefix("file://") {
        return Ok(format!("IcebergLocal({})", text(path)));
    }
    let Some((bucket, key)) = location.strip_prefix("s3://").and_then(|rest| rest.split_once('/')) else {
        return Err(UnknownPlace { project: project.clone(), location: location.clone() });
    };
    let url = match &s3.endpoint {
        Some(endpoint) => format!("{}/{bucket}/{key}/", endpoint.trim_end_matches('/')),
        None => format!("https://{bucket}.s3.{}.amazonaws.com/{key}/", s3.region),
    };
    Ok(format!("IcebergS3(`tidemill_archive`, url = {})", text(&url)))
}

fn name(name: &str) -> String {
    format!("`{name}`")
}

fn text(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Kind;

    fn address() -> Address {
        let url = "http://there".parse().expect("a URL");
        let (user, catalog) = ("tidemill".to_owned(), "lake".to_owned());
        Address { kind: Kind::Trino, url, user, password: None, catalog }
    }

    #[test]
    fn trino_users_may_read_their_own_table() {
        let rules = trino_rules(&address(), &["shop".to_owned(), "a-b".to_owned()]);
        let own = json!({"user": "tidemill_shop", "catalog": "lake", "schema": "tidemill\\.shop", "table": "events", "privileges": ["SELECT"]});
        assert_eq!(rules["tables"][0], own);
        assert_eq!(rules["tables"][1]["schema"], "tidemill\\.a-b");
        assert_eq!(rules["tables"][2], json!({"user": "tidemill(_.*)?", "privileges": []}));
        assert_eq!(rules["catalogs"][1], json!({"user": "tidemill(_.*)?", "allow": "none"}));
    }

    #[test]
    fn clickhouse_roles_may_read_their_own_table() {
        let place = |location: &str| [Place { project: "a-b".to_owned(), location: location.to_owned() }];
        let of = |location: &str, s3: &S3| clickhouse_statements(&address(), &place(location), s3);
        let all = of("file:///var/it's/events", &S3::default()).expect("statements");
        let expected = [
            "ALTER USER `tidemill` SETTINGS readonly = 2",
            "CREATE DATABASE IF NOT EXISTS `tidemill_a-b`",
            "CREATE TABLE IF NOT EXISTS `tidemill_a-b`.`events` ENGINE = IcebergLocal('/var/it\\'s/events')",
            "CREATE ROLE IF NOT EXISTS `tidemill_a-b`",
            "GRANT SELECT ON `tidemill_a-b`.`events` TO `tidemill_a-b`",
            "GRANT `tidemill_a-b` TO `tidemill`",
            "SET DEFAULT ROLE NONE TO `tidemill`",
        ];
        assert_eq!(all, expected);
        let there = S3 { endpoint: Some("http://s3:9000/".to_owned()), region: "us-east-1".to_owned() };
        let table = |s3: &S3| of("s3://bucket/tidemill/a-b/events", s3).expect("statements")[2].clone();
        assert!(
            table(&there)
                .ends_with("IcebergS3(`tidemill_archive`, url = 'http://s3:9000/bucket/tidemill/a-b/events/')")
        );
        let amazon = S3 { endpoint: None, ..there };
        assert!(table(&amazon).contains("'https://bucket.s3.us-east-1.amazonaws.com/tidemill/a-b/events/'"));
        assert!(of("gs://bucket/x", &amazon).is_err());
    }
}
