//! Values in JSON text, found without reading more than what stands before them. Pure.
//!
//! The text is as good as surely JSON: nothing else is accepted as `properties`. In other text something or nothing
//! is found, but never with an error.

use std::borrow::Cow;

use memchr::memchr2;

/// A step of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Into an object.
    Key(String),
    /// Into an array, from 0.
    Index(usize),
}

/// The text of the value at a path, as it stands there.
pub fn find<'a>(json: &'a str, path: &[Step]) -> Option<&'a str> {
    let mut cursor = Cursor { json, at: 0 };
    cursor.space();
    for step in path {
        cursor.enter(step)?;
    }
    let start = cursor.at;
    cursor.value()?;
    Some(&json[start..cursor.at])
}

/// A string without its quotes; None for other values.
pub fn string(value: &str) -> Option<Cow<'_, str>> {
    let inner = value.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') { serde_json::from_str(value).ok().map(Cow::Owned) } else { Some(Cow::Borrowed(inner)) }
}

/// How many entries an array or object has; None for other values.
pub fn length(value: &str) -> Option<usize> {
    let mut cursor = Cursor { json: value, at: 0 };
    let (is_object, close) = match cursor.next()? {
        b'{' => (true, b'}'),
        b'[' => (false, b']'),
        _ => return None,
    };
    for count in 0.. {
        cursor.space();
        if cursor.peek()? == close {
            return Some(count);
        }
        if is_object {
            cursor.key()?;
        }
        cursor.value()?;
        cursor.comma();
    }
    None
}

struct Cursor<'a> {
    json: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn peek(&self) -> Option<u8> {
        self.json.as_bytes().get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn space(&mut self) {
        while self.peek().is_some_and(|byte| byte.is_ascii_whitespace()) {
            self.at += 1;
        }
    }

    fn comma(&mut self) {
        self.space();
        if self.peek() == Some(b',') {
            self.at += 1;
        }
    }

    /// Goes to the start of the value of a step.
    fn enter(&mut self, step: &Step) -> Option<()> {
        match step {
            Step::Key(name) => {
                (self.next()? == b'{').then_some(())?;
                loop {
                    self.space();
                    if string(self.key()?).is_some_and(|key| key == *name) {
                        return Some(());
                    }
                    self.value()?;
                    self.comma();
                }
            }
            Step::Index(index) => {
                (self.next()? == b'[').then_some(())?;
                for _ in 0..*index {
                    self.space();
                    self.value()?;
                    self.comma();
                }
                self.space();
                (self.peek()? != b']').then_some(())
            }
        }
    }

    /// Goes past a key and its colon, and gives the key with its quotes.
    fn key(&mut self) -> Option<&'a str> {
        let start = self.at;
        self.quoted()?;
        let key = &self.json[start..self.at];
        self.space();
        (self.next()? == b':').then_some(())?;
        self.space();
        Some(key)
    }

    fn quoted(&mut self) -> Option<()> {
        (self.next()? == b'"').then_some(())?;
        loop {
            let found = memchr2(b'"', b'\\', self.json.as_bytes().get(self.at..)?)?;
            self.at += found + 1;
            if self.json.as_bytes()[self.at - 1] == b'"' {
                return Some(());
            }
            self.next()?; // what is escaped
        }
    }

    /// Goes past a value.
    fn value(&mut self) -> Option<()> {
        match self.peek()? {
            b'"' => self.quoted(),
            b'{' | b'[' => self.nested(),
            b',' | b'}' | b']' | b':' => None,
            _ => {
                let ends = |byte: u8| matches!(byte, b',' | b'}' | b']') || byte.is_ascii_whitespace();
                while self.peek().is_some_and(|byte| !ends(byte)) {
                    self.at += 1;
                }
                Some(())
            }
        }
    }

    fn nested(&mut self) -> Option<()> {
        let mut depth = 0usize;
        loop {
            match self.peek()? {
                b'"' => {
                    self.quoted()?;
                    continue;
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth -= 1,
                _ => {}
            }
            self.at += 1;
            if depth == 0 {
                return Some(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn steps(path: &[&str]) -> Vec<Step> {
        path.iter().map(|step| step.parse().map_or_else(|_| Step::Key((*step).to_owned()), Step::Index)).collect()
    }

    #[test]
    fn values_are_found_where_they_are() {
        let json = r#" {"a" : {"b":[1, {"c":"x\"y"}, []]}, "ä\n": -1.5e3 , "t":true,"n":null, "":{} } "#;
        for (path, expected) in [
            (&["a", "b", "0"][..], Some("1")),
            (&["a", "b", "1", "c"], Some(r#""x\"y""#)),
            (&["a", "b", "2"], Some("[]")),
            (&["a", "b", "3"], None),
            (&["a", "b", "2", "0"], None),
            (&["ä\n"], Some("-1.5e3")),
            (&["t"], Some("true")),
            (&["n"], Some("null")),
            (&[""], Some("{}")),
            (&["x"], None),
            (&["t", "x"], None),
            (&["0"], None),
        ] {
            assert_eq!(find(json, &steps(path)), expected, "{path:?}");
        }
        assert_eq!(string(r#""x\"y\u00e4""#).as_deref(), Some("x\"yä"));
        assert_eq!(string("1"), None);
        assert_eq!(
            [length("[]"), length("[1,[2,3]]"), length(r#"{"a":{"b":1},"c":","}"#), length("1")],
            [Some(0), Some(2), Some(2), None]
        );
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map(".{0,3}", inner, 0..4).prop_map(|map| json!(map)),
            ]
        })
    }

    proptest! {
        #[test]
        fn finds_what_a_parser_finds(value in value(), pretty in any::<bool>()) {
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) };
            let text = text.expect("JSON");
            let read = |found: Option<&str>| found.map(|found| serde_json::from_str::<Value>(found).expect("JSON"));
            // Through text, since the parser's numbers are not all read back to the last bit.
            let value: Value = serde_json::from_str(&text).expect("JSON");
            prop_assert_eq!(read(find(&text, &[])), Some(value.clone()));
            if let Value::Object(map) = &value {
                prop_assert_eq!(length(text.trim()), Some(map.len()));
                for (key, inner) in map {
                    prop_assert_eq!(read(find(&text, &[Step::Key(key.clone())])), Some(inner.clone()));
                }
            }
            if let Value::Array(list) = &value {
                prop_assert_eq!(length(text.trim()), Some(list.len()));
                for (index, inner) in list.iter().enumerate() {
                    prop_assert_eq!(read(find(&text, &[Step::Index(index)])), Some(inner.clone()));
                }
                prop_assert_eq!(find(&text, &[Step::Index(list.len())]), None);
            }
        }

        #[test]
        fn survives_anything(text in r#"[\{\}\[\]",:\\a1 ä]{0,40}"#, key in "[a1]{0,2}", index in 0usize..3) {
            for path in [vec![], vec![Step::Key(key)], vec![Step::Index(index), Step::Index(0)]] {
                if let Some(found) = find(&text, &path) {
                    let _ = (string(found), length(found));
                }
            }
        }
    }
}
