//! What a schema may cost. Every event of a type is checked on the gateway that all projects share, so a schema's
//! author must not be able to make that slow: with all references written out, it has to be small.

use serde_json::{Map, Value};

/// Most subschemas, each counted once for every reference that leads to it.
const MOST_SUBSCHEMAS: usize = 2_000;
/// Deepest nesting, references included.
const MOST_DEPTH: usize = 64;
/// Most regular expressions: each one's automaton takes memory.
const MOST_PATTERNS: usize = 32;
const DRAFTS: [&str; 3] = [
    "https://json-schema.org/draft/2020-12/schema",
    "https://json-schema.org/draft/2019-09/schema",
    "http://json-schema.org/draft-07/schema",
];

/// Keywords whose value is a schema, …
const ONE: [&str; 11] = [
    "additionalItems",
    "additionalProperties",
    "contains",
    "else",
    "if",
    "items",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
];
/// … an array of schemas, …
const SEVERAL: [&str; 5] = ["allOf", "anyOf", "items", "oneOf", "prefixItems"];
/// … and an object of schemas. Definitions count where they are referred to.
const NAMED: [&str; 4] = ["dependencies", "dependentSchemas", "patternProperties", "properties"];

/// The draft that a schema is written in, if it may be.
pub fn draft(document: &Value) -> Result<&'static str, String> {
    let Some(named) = document.get("$schema") else { return Ok(DRAFTS[0]) };
    let plain = named.as_str().unwrap_or_default().trim_end_matches('#');
    DRAFTS
        .into_iter()
        .find(|draft| *draft == plain)
        .ok_or_else(|| format!("has \"$schema\": {named}, which is not supported; use {:?}", DRAFTS[0]))
}

/// Whether a schema keeps the limits. The error goes on after "the schema".
pub fn check(document: &Value) -> Result<(), String> {
    draft(document)?;
    Walk { document, open: Vec::new(), subschemas: 0, patterns: 0 }.visit(document, 0)
}

/// What a reference points at. Only references into the document itself are known.
pub fn resolve<'a>(document: &'a Value, reference: &str) -> Option<&'a Value> {
    let pointer = reference.strip_prefix('#')?;
    if pointer.contains('%') { None } else { document.pointer(pointer) }
}

struct Walk<'a> {
    document: &'a Value,
    /// References that are being followed.
    open: Vec<&'a str>,
    subschemas: usize,
    patterns: usize,
}

impl<'a> Walk<'a> {
    fn visit(&mut self, schema: &'a Value, depth: usize) -> Result<(), String> {
        self.subschemas += 1;
        if self.subschemas > MOST_SUBSCHEMAS || depth > MOST_DEPTH {
            return Err(format!(
                "is too large: with its references written out it may have {MOST_SUBSCHEMAS} subschemas, \
                 nested {MOST_DEPTH} deep; simplify it"
            ));
        }
        let Some(schema) = schema.as_object() else { return Ok(()) };
        self.keywords(schema, depth)?;
        for child in inside(schema) {
            self.visit(child, depth + 1)?;
        }
        match schema.get("$ref").and_then(Value::as_str) {
            Some(reference) => self.follow(reference, depth),
            None => Ok(()),
        }
    }

    fn keywords(&mut self, schema: &Map<String, Value>, depth: usize) -> Result<(), String> {
        let nested = ["$id", "$schema"].into_iter().filter(|_| depth > 0);
        for refused in ["$dynamicRef", "$recursiveRef"].into_iter().chain(nested) {
            if schema.contains_key(refused) {
                return Err(format!("has {refused:?} inside, which is not supported; use \"$ref\": \"#/$defs/…\""));
            }
        }
        self.patterns += usize::from(schema.contains_key("pattern"));
        self.patterns += schema.get("patternProperties").and_then(Value::as_object).map_or(0, Map::len);
        if self.patterns > MOST_PATTERNS {
            return Err(format!("has more than {MOST_PATTERNS} regular expressions; use fewer"));
        }
        Ok(())
    }

    fn follow(&mut self, reference: &'a str, depth: usize) -> Result<(), String> {
        let target = resolve(self.document, reference).ok_or_else(|| {
            format!("refers to {reference:?}, which is not in it; only \"#/$defs/…\" of its own can be referred to")
        })?;
        if self.open.contains(&reference) {
            return Err(format!("refers to {reference:?} from within; write out as many levels as events have"));
        }
        self.open.push(reference);
        self.visit(target, depth + 1)?;
        self.open.pop();
        Ok(())
    }
}

fn inside(schema: &Map<String, Value>) -> impl Iterator<Item = &Value> {
    let one = ONE.into_iter().filter_map(|name| schema.get(name)).filter(|value| !value.is_array());
    let several = SEVERAL.into_iter().filter_map(|name| schema.get(name)?.as_array()).flatten();
    let named = NAMED.into_iter().filter_map(|name| schema.get(name)?.as_object()).flat_map(Map::values);
    one.chain(several).chain(named)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_too_much_is_refused() {
        let wide: Vec<Value> = (0..3_000).map(|_| json!(true)).collect();
        let patterns: Map<String, Value> = (0..33).map(|i| (format!("^{i}"), json!({}))).collect();
        // Each level refers to the next one twice: 2^30 subschemas, written out.
        let mut doubling: Map<String, Value> = (0..30)
            .map(|i| {
                let next = json!({"$ref": format!("#/$defs/d{}", i + 1)});
                (format!("d{i}"), json!({"allOf": [next, next]}))
            })
            .collect();
        doubling.insert("d30".into(), json!({}));
        let table = [
            (json!({"allOf": wide}), "too large"),
            (json!({"patternProperties": patterns}), "regular expressions"),
            (json!({"$ref": "#/$defs/d0", "$defs": doubling}), "too large"),
            (json!({"$ref": "#"}), "from within"),
            (json!({"properties": {"a": {"$ref": "#/properties/a"}}}), "from within"),
            (json!({"$ref": "https://example.com/a.json"}), "only"),
            (json!({"$ref": "#/$defs/a"}), "not in it"),
            (json!({"items": {"$id": "x"}}), "$id"),
            (json!({"$dynamicRef": "#a"}), "$dynamicRef"),
            (json!({"$schema": "http://json-schema.org/draft-04/schema#"}), "2020-12"),
        ];
        for (schema, word) in table {
            assert!(check(&schema).expect_err(word).contains(word), "{word}: {:?}", check(&schema));
        }
    }

    #[test]
    fn what_only_looks_like_a_schema_is_not_one() {
        let schema = json!({"$schema": "http://json-schema.org/draft-07/schema#", "properties": {"$ref": {"enum": [
            {"$ref": "x"}]}, "a": {"$ref": "#/$defs/a"}, "b": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"type": "string"}}});
        assert_eq!(check(&schema), Ok(()));
    }
}
