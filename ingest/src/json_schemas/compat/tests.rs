#![allow(clippy::unwrap_used)]

use serde_json::json;

use super::super::{limits, schema};
use super::*;

#[test]
fn what_allows_no_less_is_compatible() {
    let closed = |properties: Value| json!({"properties": properties, "additionalProperties": false});
    let table = [
        (json!({"type": "object"}), json!({})),
        (json!({"title": "a"}), json!({"title": "b", "description": "c", "x-owner": "d"})),
        (json!({"required": ["a", "b"]}), json!({"required": ["b"]})),
        (closed(json!({"a": {"type": "integer"}})), closed(json!({"a": {"type": ["number", "null"]}}))),
        (closed(json!({})), closed(json!({"a": {"type": "string"}}))),
        (closed(json!({"a": {"const": 1}})), closed(json!({"a": {"enum": [1, 2], "type": "integer"}}))),
        (closed(json!({"a": {"minimum": 3}})), closed(json!({"a": {"exclusiveMinimum": 2}}))),
        (closed(json!({"a": {"maxLength": 3}})), closed(json!({"a": {"maxLength": 4, "minLength": 0}}))),
        (closed(json!({"a": {"multipleOf": 6}})), closed(json!({"a": {"multipleOf": 3}}))),
        (closed(json!({"a": {"type": "string"}})), closed(json!({"a": {"type": ["string", "integer"], "minimum": 0}}))),
        (json!({"properties": {"a": {}}, "additionalProperties": false}), json!({})),
        (json!({"not": {"required": ["a"]}}), json!({})),
        (
            json!({"anyOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {}}}),
            json!({"anyOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {}}, "title": "b"}),
        ),
        (
            closed(json!({"a": {"$ref": "#/properties/b"}, "b": {"maxLength": 3}})),
            closed(json!({"a": {"maxLength": 4}, "b": {}})),
        ),
        (
            closed(json!({"a": {"items": {"type": "string"}, "type": "array"}})),
            closed(json!({"a": {"items": {"type": ["string", "null"]}}})),
        ),
    ];
    for (old, new) in table {
        assert_eq!(reasons(&old, &new), Vec::<String>::new(), "{old} to {new}");
    }
}

#[test]
fn what_may_allow_less_is_not_and_the_place_is_named() {
    let a = |schema: Value| json!({"properties": {"a": schema}});
    let table = [
        (json!({}), json!({"required": ["a"]}), "required: asks for \"a\""),
        (a(json!({"type": "number"})), a(json!({"type": "integer"})), "properties/a: no longer allows number"),
        (a(json!({"type": ["string", "null"]})), a(json!({"type": "string"})), "properties/a: no longer allows null"),
        (a(json!({"enum": [1, 2]})), a(json!({"enum": [1]})), "properties/a/enum: is tightened"),
        (a(json!({"type": "string"})), a(json!({"type": "string", "enum": ["x"]})), "properties/a/enum: is new"),
        (json!({}), json!({"additionalProperties": false}), "additionalProperties: allows nothing"),
        (a(json!({})), json!({"additionalProperties": false}), "additionalProperties"),
        (json!({}), a(json!({"type": "string"})), "properties/a: is new"),
        (a(json!({"maximum": 5})), a(json!({"exclusiveMaximum": 5})), "properties/a/exclusiveMaximum"),
        (a(json!({"minLength": 1})), a(json!({"minLength": 2})), "properties/a/minLength: is tightened, from 1 to 2"),
        (a(json!({"maximum": 9007199254740993u64})), a(json!({"maximum": 9007199254740992.0})), "maximum"),
        (a(json!({"pattern": "a"})), a(json!({"pattern": "b"})), "properties/a/pattern"),
        (a(json!({"items": {}})), a(json!({"items": {"type": "string"}})), "properties/a/items: no longer"),
        (a(json!({})), a(json!({"uniqueItems": true})), "uniqueItems"),
        (a(json!({"multipleOf": 3})), a(json!({"multipleOf": 6})), "multipleOf"),
        (a(json!({"properties": {"b": {}}})), a(json!({"properties": {"b": false}})), "properties/a/properties/b"),
        (json!({"dependentRequired": {"a": ["b"]}}), json!({"dependentRequired": {"a": ["b", "c"]}}), "\"c\""),
        (json!({"anyOf": [{"required": ["a"]}]}), json!({"anyOf": [{"required": ["b"]}]}), "anyOf: has changed"),
        (json!({}), json!({"not": {"required": ["a"]}}), "not: has changed"),
        (json!({}), json!({"if": {}, "then": false}), "if: has changed"),
        (json!({"x": 1}), json!({"madeUp": 1}), "madeUp"),
        (json!({"unevaluatedProperties": false}), json!({"unevaluatedProperties": false, "title": "a"}), "depends on"),
        (
            json!({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {}}}),
            json!({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": false}}),
            "allOf: has changed",
        ),
        (
            json!({"patternProperties": {"^a": {}}}),
            json!({"patternProperties": {"^b": {"type": "null"}}}),
            "^b: is new",
        ),
        (json!({}), json!({"$schema": "http://json-schema.org/draft-07/schema#"}), "$schema"),
        (
            json!({"$schema": "http://json-schema.org/draft-07/schema#", "$ref": "#/definitions/a", "required": ["b"], "definitions": {"a": {}}}),
            json!({"$schema": "http://json-schema.org/draft-07/schema#", "required": ["b"]}),
            "cannot be judged",
        ),
    ];
    for (old, new, reason) in table {
        let found = reasons(&old, &new);
        assert!(found.iter().any(|found| found.contains(reason)), "{old} to {new}: {found:?}, not {reason:?}");
    }
}

/// Small numbers from a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    fn name(&mut self) -> &'static str {
        ["a", "b", "c"][self.roll(3) as usize]
    }

    fn value(&mut self, depth: u32) -> Value {
        match self.roll(if depth == 0 { 6 } else { 8 }) {
            0 => Value::Null,
            1 => json!(self.roll(2) == 0),
            2 | 3 => json!(self.roll(5)),
            4 => json!(self.roll(5) as f64 + 0.5),
            5 => json!("abcd"[..self.roll(4) as usize]),
            6 => (0..self.roll(4)).map(|_| self.value(depth - 1)).collect(),
            _ => self.object(depth),
        }
    }

    fn object(&mut self, depth: u32) -> Value {
        (0..self.roll(4)).map(|_| (self.name().to_owned(), self.value(depth - 1))).collect::<Map<_, _>>().into()
    }

    fn schema(&mut self, depth: u32) -> Value {
        if self.roll(8) == 0 {
            return json!(self.roll(3) > 0);
        }
        let keywords = self.roll(4);
        let mut schema = Map::new();
        for _ in 0..keywords {
            let (name, value) = self.keyword(depth);
            schema.insert(name.to_owned(), value);
        }
        schema.into()
    }

    fn keyword(&mut self, depth: u32) -> (&'static str, Value) {
        let sub = depth.saturating_sub(1);
        let choice = self.roll(if depth == 0 { 14 } else { 26 });
        self.keyword_of(choice, sub)
    }

    fn keyword_of(&mut self, choice: u64, sub: u32) -> (&'static str, Value) {
        let types = ["null", "boolean", "object", "array", "number", "integer", "string"];
        match choice {
            0 | 1 => ("type", json!(types[self.roll(7) as usize])),
            2 => ("type", json!([types[self.roll(3) as usize], types[3 + self.roll(4) as usize]])),
            3 => ("enum", (0..=self.roll(3)).map(|_| self.value(0)).collect()),
            4 => ("const", self.value(0)),
            5 => ("minimum", json!(self.roll(4))),
            6 => ("exclusiveMinimum", json!(self.roll(4))),
            7 => ("maximum", json!(self.roll(4))),
            8 => ("exclusiveMaximum", json!(self.roll(4))),
            9 => ("multipleOf", json!(1 + self.roll(3))),
            10 => ("minLength", json!(self.roll(3))),
            11 => ("maxLength", json!(self.roll(3))),
            12 => ("pattern", json!(["a", "b$"][self.roll(2) as usize])),
            13 => ("maxProperties", json!(self.roll(3))),
            14..=16 => {
                let members = (0..=self.roll(2)).map(|_| (self.name().to_owned(), self.schema(sub)));
                ("properties", members.collect::<Map<_, _>>().into())
            }
            17 => ("additionalProperties", self.schema(sub)),
            18 => ("patternProperties", json!({["^a", "b"][self.roll(2) as usize]: self.schema(sub)})),
            19 => ("required", json!([self.name()])),
            20 => ("items", self.schema(sub)),
            21 => ("prefixItems", json!([self.schema(sub)])),
            22 => ("dependentRequired", json!({self.name(): [self.name()]})),
            23 => ("propertyNames", self.schema(0)),
            24 => (["anyOf", "allOf", "oneOf"][self.roll(3) as usize], json!([self.schema(sub), self.schema(sub)])),
            _ => ("$ref", json!(["#/$defs/x", "#/$defs/y"][self.roll(2) as usize])),
        }
    }

    /// Bounds of numbers.
    fn bounds(&mut self) -> Value {
        let keywords = 1 + self.roll(2);
        let bounds = (0..keywords).map(|_| {
            let choice = 5 + self.roll(5);
            let (name, value) = self.keyword_of(choice, 0);
            (name.to_owned(), value)
        });
        bounds.collect::<Map<_, _>>().into()
    }

    /// The same schema with something else somewhere.
    fn changed(&mut self, schema: &Value, depth: u32) -> Value {
        let Value::Object(schema) = schema else { return self.schema(depth) };
        let mut changed = schema.clone();
        let keys: Vec<&String> = schema.keys().collect();
        match self.roll(4) {
            0 if !keys.is_empty() => drop(changed.remove(keys[self.roll(keys.len() as u64) as usize])),
            1 => {
                let (name, value) = self.keyword(depth);
                changed.insert(name.to_owned(), value);
            }
            _ => {
                for keyword in ["properties", "patternProperties", "$defs"] {
                    for (_, sub) in changed.get_mut(keyword).and_then(Value::as_object_mut).into_iter().flatten() {
                        *sub = self.changed(sub, depth.saturating_sub(1));
                    }
                }
                for keyword in ["items", "additionalProperties"] {
                    if let Some(sub) = changed.get_mut(keyword) {
                        *sub = self.changed(sub, depth.saturating_sub(1));
                    }
                }
            }
        }
        changed.into()
    }

    fn document(&mut self) -> Value {
        let mut document = json!({"properties": {"a": self.schema(2)}});
        for _ in 0..self.roll(4) {
            let (name, value) = self.keyword(2);
            document[name] = value;
        }
        document["$defs"] = json!({"x": self.schema(0), "y": self.schema(0)});
        document
    }
}

#[test]
fn bounds_that_are_called_compatible_are() {
    let (mut dice, mut compatible) = (Dice(11), 0);
    for _ in 0..10_000 {
        let (old, new) = (dice.bounds(), dice.bounds());
        if !reasons(&old, &new).is_empty() {
            continue;
        }
        compatible += 1;
        let (before, after) = (schema::compile(&old).unwrap(), schema::compile(&new).unwrap());
        for number in (-2..10).map(|half| json!(f64::from(half) / 2.0)) {
            assert!(!before.is_valid(&number) || after.is_valid(&number), "{number}: {old} to {new}");
        }
    }
    assert!(compatible > 500, "too little was tried: {compatible}");
}

#[test]
fn what_is_called_compatible_is() {
    let (mut dice, mut compatible, mut checked) = (Dice(7), 0, 0);
    for _ in 0..30_000 {
        let old = dice.document();
        let new = dice.changed(&old, 2);
        let may_be_registered = limits::check(&old).and(limits::check(&new)).is_ok();
        if old == new || !may_be_registered || !reasons(&old, &new).is_empty() {
            continue;
        }
        let (Ok(before), Ok(after)) = (schema::compile(&old), schema::compile(&new)) else { continue };
        compatible += 1;
        for _ in 0..40 {
            let event = dice.object(3);
            if before.is_valid(&event) {
                checked += 1;
                assert!(after.is_valid(&event), "{event} was valid under {old} but is not under {new}");
            }
        }
    }
    assert!(compatible > 2_000 && checked > 20_000, "too little was tried: {compatible} pairs, {checked} events");
}
