//! Whether events that were valid under one schema stay valid under the next.
//!
//! A schema is a set of constraints that all have to hold. So every constraint of the new one must follow from the
//! old one; what the new one leaves out only allows more. Where that cannot be told, the answer is no: a `yes` is
//! always true, a `no` may be too careful, and then a person decides (`--force`).

mod keywords;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::LazyLock;

use serde_json::{Map, Value};

use self::keywords::{Group, group, implied, types, types_named};
use super::limits::{draft, resolve};

/// Reasons given at most.
const MOST_REASONS: usize = 10;
/// Pairs of subschemas compared at most.
const MOST_STEPS: u32 = 50_000;

static ANYTHING: Value = Value::Bool(true);
static NOTHING_SAID: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);

/// Why an event that is valid under `old` may be invalid under `new`; nothing if none can be. Both keep the limits.
pub fn reasons(old: &Value, new: &Value) -> Vec<String> {
    if draft(old) != draft(new) {
        return vec!["the schema: its \"$schema\" changes, and with it the meaning of all of it".to_owned()];
    }
    let latest = draft(new).is_ok_and(|draft| draft.contains("2020-12"));
    let mut judge = Judge { old, new, latest, reasons: Vec::new(), steps: 0 };
    judge.narrow("", old, new);
    judge.reasons
}

struct Judge<'a> {
    old: &'a Value,
    new: &'a Value,
    /// Draft 2020-12; some keywords mean something else in earlier ones.
    latest: bool,
    reasons: Vec<String>,
    steps: u32,
}

type Schema = Map<String, Value>;

impl<'a> Judge<'a> {
    /// Finds the constraints of `new` that do not follow from `old`.
    fn narrow(&mut self, at: &str, old: &'a Value, new: &'a Value) {
        self.steps += 1;
        if self.steps > MOST_STEPS {
            return self.no("", "is too large to be compared");
        }
        if self.reasons.len() >= MOST_REASONS {
            return;
        }
        let (old, new) = match (follow(self.old, old), follow(self.new, new)) {
            (_, Value::Bool(true)) | (Value::Bool(false), _) => return,
            (_, Value::Bool(false)) => return self.no(at, "allows nothing any more"),
            (old, Value::Object(new)) => (old.as_object().unwrap_or(&NOTHING_SAID), new),
            _ => return self.no(at, "cannot be judged"),
        };
        if self.depends_on_everything(old) || self.depends_on_everything(new) {
            if old != new || !self.same_references(old.values().chain(new.values())) {
                self.no(at, "cannot be judged, since one of its keywords depends on all others, and it has changed");
            }
            return;
        }
        let before = types(old);
        if let Some(lost) = new.get("type").and_then(|now| types_named(before & !types(&only("type", now)))) {
            self.no(at, &format!("no longer allows {lost}"));
        }
        for (keyword, value) in new {
            let (group, of_types) = group(keyword);
            if of_types & before != 0 {
                self.keyword(at, group, keyword, value, old, new);
            }
        }
        if before & keywords::OBJECT != 0 {
            self.properties(at, old, new);
        }
        if before & keywords::ARRAY != 0 {
            self.items(at, old, new);
        }
    }

    /// One constraint by itself.
    fn keyword(&mut self, at: &str, group: Group, keyword: &str, value: &'a Value, old: &'a Schema, new: &'a Schema) {
        match group {
            Group::Said | Group::Elsewhere => {}
            Group::Compared => {
                if let Err(reason) = implied(keyword, value, old) {
                    self.no(&below(at, keyword), &reason);
                }
            }
            Group::Names => {
                self.narrow(&below(at, keyword), old.get(keyword).unwrap_or(&ANYTHING), value);
            }
            Group::Reference => match (old.get("$ref"), target(self.new, value)) {
                (Some(before), Some(now)) => {
                    let before = target(self.old, before).unwrap_or(&ANYTHING);
                    self.narrow(at, before, now);
                }
                _ => self.no(&below(at, keyword), "is new and cannot be judged"),
            },
            Group::Together(others) => {
                let all = [&[keyword], others].concat();
                let same = all.iter().all(|keyword| old.get(*keyword) == new.get(*keyword));
                if !same || !self.same_references(all.iter().filter_map(|keyword| new.get(*keyword))) {
                    self.no(&below(at, keyword), "has changed, and what that means cannot be judged");
                }
            }
        }
    }

    /// `properties`, `patternProperties` and `additionalProperties`: what each constrains depends on the others.
    fn properties(&mut self, at: &str, old: &'a Schema, new: &'a Schema) {
        let (old_named, new_named) = (schemas(old, "properties"), schemas(new, "properties"));
        let (old_patterns, new_patterns) = (schemas(old, "patternProperties"), schemas(new, "patternProperties"));
        let (old_rest, new_rest) = (rest(old, "additionalProperties"), rest(new, "additionalProperties"));
        for (name, now) in new_named {
            let at = below(at, &format!("properties/{name}"));
            match old_named.get(name) {
                Some(before) => self.narrow(&at, before, now),
                None => self.added(&at, old_patterns.values().chain([old_rest]), now),
            }
        }
        for (pattern, now) in new_patterns {
            let at = below(at, &format!("patternProperties/{pattern}"));
            match old_patterns.get(pattern) {
                Some(before) => self.narrow(&at, before, now),
                None => self.added(&at, old_named.values().chain(old_patterns.values()).chain([old_rest]), now),
            }
        }
        self.narrow(&below(at, "additionalProperties"), old_rest, new_rest);
        let gone = old_named.iter().filter(|(name, _)| !new_named.contains_key(*name));
        for (name, before) in gone.chain(old_patterns.iter().filter(|(name, _)| !new_patterns.contains_key(*name))) {
            self.narrow(&below(at, &format!("additionalProperties (once {name})")), before, new_rest);
        }
    }

    /// A constraint on properties that was not there by name: whichever of these held for them must imply it.
    fn added(&mut self, at: &str, before: impl Iterator<Item = &'a Value>, now: &'a Value) {
        let known = self.reasons.len();
        before.for_each(|before| self.narrow(at, before, now));
        if self.reasons.len() > known {
            self.reasons.truncate(known);
            self.no(at, "is new, and events may have other values there so far (additionalProperties allows them)");
        }
    }

    fn items(&mut self, at: &str, old: &'a Schema, new: &'a Schema) {
        let listed = |schema: &'a Schema| schema.get("prefixItems").and_then(Value::as_array);
        let (old_first, new_first) = (listed(old), listed(new));
        let (old_rest, new_rest) = (rest(old, "items"), rest(new, "items"));
        let length = |first: Option<&Vec<Value>>| first.map_or(0, Vec::len);
        for i in 0..length(old_first).max(length(new_first)) {
            let nth = |first: Option<&'a Vec<Value>>| first.and_then(|first| first.get(i));
            let (before, now) = (nth(old_first).unwrap_or(old_rest), nth(new_first).unwrap_or(new_rest));
            self.narrow(&below(at, &format!("prefixItems/{i}")), before, now);
        }
        self.narrow(&below(at, "items"), old_rest, new_rest);
    }

    /// Keywords that look at what others of their schema have seen, or that mean something else in this draft.
    fn depends_on_everything(&self, schema: &Schema) -> bool {
        let has = |names: &[&str]| names.iter().any(|name| schema.contains_key(*name));
        let old_forms = || {
            schema.get("items").is_some_and(Value::is_array)
                || has(&keywords::LATEST_ONLY)
                || (has(&["$ref"]) && schema.keys().any(|name| name != "$ref" && group(name).0 != Group::Said))
        };
        has(&["unevaluatedItems", "unevaluatedProperties"]) || (!self.latest && old_forms())
    }

    /// Whether whatever these refer to is the same in both documents.
    fn same_references<'v>(&self, values: impl Iterator<Item = &'v Value>) -> bool
    where
        'a: 'v,
    {
        let (mut pending, mut seen) = (Vec::new(), HashSet::new());
        values.for_each(|value| references(value, &mut pending));
        while let Some(reference) = pending.pop() {
            if !seen.insert(reference) {
                continue;
            }
            match (resolve(self.old, reference), resolve(self.new, reference)) {
                (Some(old), Some(new)) if old == new => references(new, &mut pending),
                _ => return false,
            }
        }
        true
    }

    fn no(&mut self, at: &str, reason: &str) {
        let at = if at.is_empty() { "the schema" } else { at };
        let reason = format!("{at}: {reason}");
        if self.reasons.len() < MOST_REASONS && !self.reasons.contains(&reason) {
            self.reasons.push(reason);
        }
    }
}

/// A schema that does nothing but refer to another one is that one.
fn follow<'a>(document: &'a Value, mut schema: &'a Value) -> &'a Value {
    while let Some(object) = schema.as_object()
        && object.keys().all(|name| name == "$ref" || group(name).0 == Group::Said)
        && let Some(referred) = object.get("$ref").and_then(|reference| target(document, reference))
    {
        schema = referred;
    }
    schema
}

fn target<'a>(document: &'a Value, reference: &Value) -> Option<&'a Value> {
    resolve(document, reference.as_str()?)
}

fn references<'v>(value: &'v Value, found: &mut Vec<&'v str>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| references(value, found)),
        Value::Object(members) => {
            found.extend(members.get("$ref").and_then(Value::as_str));
            members.values().for_each(|value| references(value, found));
        }
        _ => {}
    }
}

fn schemas<'a>(schema: &'a Schema, keyword: &str) -> &'a Schema {
    schema.get(keyword).and_then(Value::as_object).unwrap_or(&NOTHING_SAID)
}

fn rest<'a>(schema: &'a Schema, keyword: &str) -> &'a Value {
    schema.get(keyword).unwrap_or(&ANYTHING)
}

fn only(keyword: &str, value: &Value) -> Schema {
    [(keyword.to_owned(), value.clone())].into_iter().collect()
}

fn below(at: &str, name: &str) -> String {
    if at.is_empty() { name.to_owned() } else { format!("{at}/{name}") }
}
