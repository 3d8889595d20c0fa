//! An event's properties, of which only the top level is read, once, without copying: most readers want a
//! few fields of many.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::decimal::Decimal;

/// Where the fields of JSON objects stand, each in its object's text. They own nothing of the texts, so that they can be
/// kept beside them.
#[derive(Debug, Clone, Default)]
pub struct Fields {
    list: Vec<Field>,
    /// Names that are written with escapes, without them.
    unescaped: String,
}

/// Where a field stands in a text; a name behind the text's end stands among the unescaped ones.
#[derive(Debug, Clone, Copy)]
struct Field {
    name: u32,
    name_length: u32,
    value: u32,
    value_length: u32,
}

/// The properties of an event.
#[derive(Debug, Clone, Copy)]
pub struct Properties<'a, 'f> {
    text: &'a str,
    fields: &'f [Field],
    unescaped: &'f str,
}

/// A JSON value as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Json<'a>(&'a str);

impl Fields {
    /// Those of one object.
    pub fn read(text: &str) -> Self {
        let mut fields = Self::default();
        fields.add(text);
        fields
    }

    /// Reads one more object; gives the places of its fields among all of them. None if it is no object, or one with a name
    /// that no text can be.
    pub fn add(&mut self, text: &str) -> Option<Range<u32>> {
        let (start, names) = (self.list.len(), self.unescaped.len());
        let mut json = serde_json::Deserializer::from_str(text);
        let short = u32::try_from(2 * text.len() + names).is_ok(); // names without escapes are no longer than with them
        if short && json.deserialize_map(Reader { text, fields: self }).and_then(|()| json.end()).is_ok() {
            return Some(start as u32..self.list.len() as u32);
        }
        self.list.truncate(start);
        self.unescaped.truncate(names);
        None
    }

    /// With the text that they were read from.
    pub fn of<'a>(&self, text: &'a str) -> Properties<'a, '_> {
        self.part(0..self.list.len() as u32, text)
    }

    /// Those of one of the objects, with its text.
    pub fn part<'a>(&self, at: Range<u32>, text: &'a str) -> Properties<'a, '_> {
        Properties { text, fields: &self.list[at.start as usize..at.end as usize], unescaped: &self.unescaped }
    }

    /// None again; their room is kept.
    pub fn clear(&mut self) {
        self.list.clear();
        self.unescaped.clear();
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
        let is = |field: &&Field| field.name_length as usize == name.len() && self.name(field) == name;
        let field = self.fields.iter().rev().find(is)?;
        Some(Json(slice(self.text, field.value, field.value_length)))
    }

    fn name(&self, field: &Field) -> &str {
        match field.name.checked_sub(self.text.len() as u32) {
            None => slice(self.text, field.name, field.name_length),
            Some(start) => slice(self.unescaped, start, field.name_length),
        }
    }
}

fn slice(text: &str, start: u32, length: u32) -> &str {
    &text[start as usize..(start + length) as usize]
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

impl<'de> Visitor<'de> for Reader<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { text, fields: Fields { list, unescaped } } = self;
        let place = |part: &str| (part.as_ptr() as usize - text.as_ptr() as usize) as u32;
        while let Some((Key(name), value)) = map.next_entry::<Key<'de>, &'de RawValue>()? {
            let start = match &name {
                Cow::Borrowed(name) => place(name),
                Cow::Owned(name) => {
                    unescaped.push_str(name);
                    (text.len() + unescaped.len() - name.len()) as u32
                }
            };
            let (value, value_length) = (place(value.get()), value.get().len() as u32);
            list.push(Field { name: start, name_length: name.len() as u32, value, value_length });
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
    use tidemill_common::event::is_object;

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
    fn fields_of_several_objects_stand_together() {
        let texts =
            [r#"{"\u0061": 1, "b": 2}"#, "nothing", r#"{"\u0062": 3, "a": 4, "\u00e4": 5}"#, r#"{"\u0063": 6, "d""#];
        let mut fields = Fields::default();
        let places = texts.map(|text| fields.add(text).unwrap_or_default());
        for name in ["a", "b", "c", "d", "ä"] {
            for (text, at) in texts.iter().zip(&places) {
                assert_eq!(
                    fields.part(at.clone(), text).get(name),
                    Fields::read(text).of(text).get(name),
                    "{name} in {text}"
                );
            }
        }
        assert_eq!(fields.part(places[2].clone(), texts[2]).get("b"), Some(Json("3")));
        assert!(places[3].is_empty(), "half an object is none");
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

    #[test]
    fn what_has_fields_is_an_object() {
        for text in
            ["{}", " {\"a\":[{}]}\n", r#"{"\ud800":1}"#, r#"{"a":"\ud800"}"#, "{}x", "{", "[]", "1", "", "{\"a\":01}"]
        {
            let has_fields = Fields::default().add(text).is_some();
            let lone_surrogate = text.starts_with(r#"{"\ud800"#);
            assert_eq!(has_fields, is_object(text) && !lone_surrogate, "{text}");
        }
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
            for end in 0..=text.len() {
                let cut = String::from_utf8_lossy(&text.as_bytes()[..end]);
                prop_assert_eq!(Fields::default().add(&cut).is_some(), is_object(&cut));
            }
            for name in object.keys().chain([&asked]) {
                let found = fields.of(&text).field(name).map(|json| serde_json::from_str::<Value>(json.0).expect("JSON"));
                prop_assert_eq!(found.as_ref(), object.get(name));
            }
        }
    }
}
