//! An event's properties, of which only the top level is read, once, without copying: most readers want a
//! few fields of many.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::OnceLock;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::decimal::Decimal;

/// Where the fields of a JSON object stand in its text. It owns nothing of the text, so that it can be kept
/// beside it.
#[derive(Debug, Clone, Default)]
pub struct Fields(Vec<(Name, Range<u32>)>);

#[derive(Debug, Clone)]
enum Name {
    Plain(Range<u32>),
    /// Written with escapes.
    Unescaped(Box<str>),
}

/// The fields of an event's properties, read when somebody first asks, and only then.
#[derive(Debug, Clone, Default)]
pub struct LazyFields(OnceLock<Fields>);

/// The properties of an event.
#[derive(Debug, Clone, Copy)]
pub struct Properties<'a, 'f> {
    text: &'a str,
    fields: &'f Fields,
}

/// A JSON value as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Json<'a>(&'a str);

impl Fields {
    /// Reads an object. What is none has no fields.
    pub fn read(text: &str) -> Self {
        let mut fields = Self::default();
        let mut json = serde_json::Deserializer::from_str(text);
        if u32::try_from(text.len()).is_err() || json.deserialize_map(Reader { text, fields: &mut fields }).is_err() {
            return Self::default();
        }
        fields
    }

    /// With the text that they were read from.
    pub fn of<'a>(&self, text: &'a str) -> Properties<'a, '_> {
        Properties { text, fields: self }
    }
}

impl LazyFields {
    /// With the properties that these are kept beside.
    pub fn of<'a>(&self, properties: Option<&'a str>) -> Properties<'a, '_> {
        let text = properties.unwrap_or_default();
        self.0.get_or_init(|| Fields::read(text)).of(text)
    }
}

impl<'a> Properties<'a, '_> {
    /// The field of this name (of several the last, as usual), else the one at this dotted path.
    pub fn get(&self, name: &str) -> Option<Json<'a>> {
        if let Some(value) = self.field(name) {
            return Some(value);
        }
        let (outer, inner) = name.split_once('.')?;
        self.field(outer)?.get(inner)
    }

    fn field(&self, name: &str) -> Option<Json<'a>> {
        let is = |field: &Name| match field {
            Name::Plain(at) => self.slice(at) == name,
            Name::Unescaped(text) => **text == *name,
        };
        let (_, value) = self.fields.0.iter().rev().find(|(field, _)| is(field))?;
        Some(Json(self.slice(value)))
    }

    fn slice(&self, at: &Range<u32>) -> &'a str {
        &self.text[at.start as usize..at.end as usize]
    }
}

impl<'a> Json<'a> {
    /// A field of an object.
    fn get(self, name: &str) -> Option<Json<'a>> {
        Fields::read(self.0).of(self.0).get(name)
    }

    /// The text of a string.
    pub fn text(self) -> Option<Cow<'a, str>> {
        let inner = self.0.strip_prefix('"')?.strip_suffix('"')?;
        if inner.contains('\\') {
            serde_json::from_str(self.0).ok().map(Cow::Owned)
        } else {
            Some(Cow::Borrowed(inner))
        }
    }

    /// A number, also one that stands in a string, as amounts of money often do.
    pub fn number(self) -> Option<Decimal> {
        match self.0.as_bytes().first()? {
            b'-' | b'0'..=b'9' => Decimal::parse(self.0),
            b'"' => Decimal::parse(self.text()?.trim()),
            _ => None,
        }
    }

    /// `true` or `false`.
    pub fn boolean(self) -> Option<bool> {
        match self.0 {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        }
    }

    /// Whether it is `null`.
    pub fn is_null(self) -> bool {
        self.0 == "null"
    }

    /// What a scalar looks like as the value of a dimension; numbers that are equal look the same.
    pub fn label(self) -> Option<Cow<'a, str>> {
        match self.0.as_bytes().first()? {
            b'"' => self.text(),
            b't' | b'f' => Some(Cow::Borrowed(self.0)),
            b'-' | b'0'..=b'9' => Some(self.number().map_or(Cow::Borrowed(self.0), |n| Cow::Owned(n.to_string()))),
            _ => None,
        }
    }
}

/// What a producer writes into its properties may be of any length, and may hold U+0000, which Postgres cannot
/// store; neither may keep everybody's batch from going through. Cuts behind `longest` characters.
pub fn storable(text: Cow<'_, str>, longest: usize) -> Cow<'_, str> {
    if text.len() <= longest && !text.contains('\0') {
        return text;
    }
    text.chars().take(longest).map(|c| if c == '\0' { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

struct Reader<'f, 't> {
    text: &'t str,
    fields: &'f mut Fields,
}

impl Reader<'_, '_> {
    /// Where a part of the text stands in it.
    fn place(&self, part: &str) -> Range<u32> {
        let start = (part.as_ptr() as usize - self.text.as_ptr() as usize) as u32;
        start..start + part.len() as u32
    }
}

impl<'de> Visitor<'de> for Reader<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some((key, value)) = map.next_entry::<Key<'de>, &'de RawValue>()? {
            let name = match key.0 {
                Cow::Borrowed(name) => Name::Plain(self.place(name)),
                Cow::Owned(name) => Name::Unescaped(name.into()),
            };
            let value = self.place(value.get());
            self.fields.0.push((name, value));
        }
        Ok(())
    }
}

/// A key, borrowed unless it has escapes.
struct Key<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Key<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn get(json: &str, name: &str) -> Option<String> {
        Fields::read(json).of(json).get(name).map(|value| value.0.to_owned())
    }

    #[test]
    fn fields_are_found_by_name_and_by_path() {
        let json = r#" {"a": 1, "b.c": "literal", "b": {"c": 2, "d": {"e": [3]}}, "\u0061x": "escaped", "a": 4}"#;
        assert_eq!(get(json, "a").as_deref(), Some("4"), "the last of two");
        assert_eq!(get(json, "b.c").as_deref(), Some("\"literal\""));
        assert_eq!(get(json, "b.d.e").as_deref(), Some("[3]"));
        assert_eq!(get(json, "ax").as_deref(), Some("\"escaped\""));
        assert_eq!(get(json, "c"), None);
        assert_eq!(get("[1]", "a"), None);
        assert_eq!(get("{\"a\":", "a"), None);
    }

    #[test]
    fn scalars_have_their_kinds() {
        let json = r#"{"s":"a\"b","n":-1.50,"t":"2.5","b":true,"z":null,"o":{}}"#;
        let fields = Fields::read(json);
        let at = |name: &str| fields.of(json).get(name).expect("there");
        assert_eq!(at("s").text().as_deref(), Some("a\"b"));
        assert_eq!(at("n").number(), Decimal::parse("-1.5"));
        assert_eq!(at("t").number(), Decimal::parse("2.5"), "a number in a string");
        assert_eq!((at("b").boolean(), at("z").is_null(), at("s").number()), (Some(true), true, None));
        let label = |name: &str| at(name).label().map(Cow::into_owned);
        assert_eq!([label("n"), label("b")], [Some("-1.5".to_owned()), Some("true".to_owned())]);
        assert_eq!([label("z"), label("o")], [None, None]);
    }

    fn key() -> impl Strategy<Value = String> {
        prop_oneof!["[a-c]{1,2}", ".{0,4}"]
    }

    proptest! {
        /// What serde_json finds in a whole tree is found here.
        #[test]
        fn the_same_as_a_whole_tree(
            pairs in prop::collection::vec((key(), prop_oneof![".{0,5}".prop_map(Value::from), any::<i32>().prop_map(Value::from)]), 0..8),
            asked in "[a-c]{1,2}",
        ) {
            let object: serde_json::Map<String, Value> = pairs.into_iter().collect();
            let text = Value::Object(object.clone()).to_string();
            let fields = Fields::read(&text);
            for name in object.keys().chain([&asked]) {
                let found = fields.of(&text).field(name).map(|json| serde_json::from_str::<Value>(json.0).expect("JSON"));
                prop_assert_eq!(found.as_ref(), object.get(name));
            }
        }
    }
}
