//! Which metrics there are, and declaring more.

use axum::http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;
use tidemill_common::problem::Problem;
use tidemill_common::projects::Project;
use tidemill_stream::metric::{self, BadDeclaration, Declaration, MAX_DECLARED, Snapshot};

use crate::postgres;

/// Event types that are listed.
const MAX_LISTED: i64 = 10_000;
/// What a declaration is worth, and from when on.
const EFFECTIVE: &str = "workers count by this definition within a few seconds, and from then on: what was processed \
                         before is not counted anew until the project is rebuilt";
const BUILT_IN: [(&str, &str); 9] = [
    ("events", "Events; by eventType"),
    ("active_users", "Different users, within 2 %; by eventType"),
    ("daily_active_users", "Different users by day, within 2 %; by eventType"),
    ("sessions", "Sessions, by their start"),
    ("new_users", "Sessions in which a user's first event lies, by their start"),
    ("page_views", "Events that show a page"),
    ("conversions", "Conversions"),
    ("revenue", "What conversions brought in"),
    ("bounce_rate", "The share of sessions that have a single event"),
];

/// All metrics: their names, and what they are.
pub async fn list(pool: &PgPool, project: &Project, snapshot: &Snapshot) -> Result<Value, Problem> {
    let types = postgres::event_types(pool, project, MAX_LISTED).await.map_err(postgres::problem)?;
    let metrics = snapshot.project(&project.id);
    let declared = metrics.all().map(|metric| {
        let scope = if snapshot.is_own(&project.id, &metric.name) { "project" } else { "all" };
        let mut described = serde_json::to_value(&metric.declaration).unwrap_or_default();
        described["kind"] = "declared".into();
        described["scope"] = scope.into();
        described
    });
    let built_in = BUILT_IN
        .iter()
        .map(|(name, description)| json!({ "name": name, "kind": "built-in", "description": description }));
    let types = types.into_iter().filter(|name| !metric::is_reserved(name) && metrics.get(name).is_none());
    let types = types.map(|name| json!({ "name": name, "kind": "event-type" }));
    let all: Vec<Value> = built_in.chain(declared).chain(types).collect();
    let names: Vec<&Value> = all.iter().map(|metric| &metric["name"]).collect();
    Ok(json!({ "metrics": names, "definitions": all }))
}

/// Declares a metric for a project, or declares it otherwise. Says whether it is new.
pub async fn declare(pool: &PgPool, project: &Project, name: &str, body: &[u8]) -> Result<(bool, Value), Problem> {
    let wrong = |BadDeclaration { field, problem }: BadDeclaration| {
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "bad-metric", "Bad metric", problem).field(field)
    };
    let in_body = |problem: &str| wrong(BadDeclaration { field: "body", problem: problem.to_owned() });
    let mut json: Value = serde_json::from_slice(body)
        .map_err(|error| in_body(&format!("{error}; send the definition as a JSON object")))?;
    let fields = json.as_object_mut().ok_or_else(|| in_body("must be a JSON object"))?;
    if fields.get("name").is_some_and(|other| other != name) {
        return Err(wrong(BadDeclaration {
            field: "name",
            problem: "must be the one in the path, or left out".into(),
        }));
    }
    fields.insert("name".to_owned(), name.into());
    let declaration = Declaration::from_json(json).map_err(wrong)?;
    let definition = serde_json::to_value(&declaration).map_err(Problem::internal)?;
    let types = postgres::event_types(pool, project, MAX_LISTED).await.map_err(postgres::problem)?;
    if types.iter().any(|event_type| event_type == name) {
        let problem = "is the name of an event type, whose own metric would be hidden; choose another name";
        return Err(wrong(BadDeclaration { field: "name", problem: problem.to_owned() }));
    }
    let declared =
        postgres::declare(pool, project, name, &definition, MAX_DECLARED).await.map_err(postgres::problem)?;
    let is_new = declared.ok_or_else(|| {
        let problem = format!("a project has at most {MAX_DECLARED} metrics of its own; delete one first");
        wrong(BadDeclaration { field: "name", problem })
    })?;
    Ok((is_new, json!({ "definition": definition, "effective": EFFECTIVE })))
}

/// Takes a project's metric back. Its rows stay, but nobody sees them unless it is declared again.
pub async fn undeclare(pool: &PgPool, project: &Project, name: &str) -> Result<(), Problem> {
    if postgres::undeclare(pool, project, name).await.map_err(postgres::problem)? {
        return Ok(());
    }
    let detail = format!(
        "the project has declared no metric {name:?}; those of all projects are taken back in the files they stand in"
    );
    Err(Problem::new(StatusCode::NOT_FOUND, "no-metric", "No such metric", detail))
}
