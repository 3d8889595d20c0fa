//! Promoted columns of a project: which there are, and what an event has in them.

use std::collections::{HashMap, HashSet};
use std::fmt;

use chrono::DateTime;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use tidemill_common::event::EventRef;
use tidemill_common::promoted::{Kind, Promoted};

/// Most promoted columns of a table. Each is a piece of every file.
const MOST: usize = 200;

/// A value of a promoted column; `None` is null.
pub type Value = Option<Scalar>;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub enum Scalar {
    /// A text.
    Text(String),
    /// An integer, or microseconds since 1970.
    Long(i64),
    /// A number.
    Double(f64),
    /// A truth.
    Bool(bool),
}

/// The promoted columns of a project.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Promotions {
    columns: Vec<(String, Kind)>,
    /// What to read of each type's properties.
    types: HashMap<String, Node>,
}

/// An object among the properties, or a property with a column.
#[derive(Debug, Clone, PartialEq)]
enum Node {
    Object(Vec<(String, Node)>),
    Column(usize, Kind),
}

impl Promotions {
    /// What the event types declare. Where two declare a column with different kinds, it is listed with both: the table's
    /// column has one of them, and the values of the other kind have no place.
    pub fn new(mut declared: Vec<(String, Vec<Promoted>)>) -> Self {
        declared.sort_by(|(one, _), (other, _)| one.cmp(other));
        let (mut columns, mut names) = (Vec::<(String, Kind)>::new(), HashSet::new());
        for (event_type, Promoted { column, kind, .. }) in
            declared.iter().flat_map(|(event_type, all)| all.iter().map(move |promoted| (event_type, promoted)))
        {
            let same_name = columns.iter().filter(|(name, _)| name == column).map(|(_, kind)| *kind);
            match same_name.collect::<Vec<_>>() {
                kinds if kinds.contains(kind) => {}
                kinds if !kinds.is_empty() || names.len() < MOST => {
                    names.insert(column);
                    if !kinds.is_empty() {
                        tracing::warn!(event_type, column, ?kind, others = ?kinds, "a promoted column has other kinds, too");
                    }
                    columns.push((column.clone(), *kind));
                }
                _ => tracing::warn!(event_type, column, "a table has no more than {MOST} promoted columns"),
            }
        }
        columns.sort_by(|(one, _), (other, _)| one.cmp(other)); // of one name, the first that was declared is first
        let mut types = HashMap::new();
        for (event_type, promoted) in declared {
            let mut root = Vec::new();
            for Promoted { column, kind, path } in promoted {
                let slot = columns.iter().position(|(name, other)| *name == column && *other == kind);
                if let Some(slot) = slot {
                    plant(&mut root, &path, Node::Column(slot, kind));
                }
            }
            if !root.is_empty() {
                types.insert(event_type, Node::Object(root));
            }
        }
        Self { columns, types }
    }

    /// The columns, by name; those of one name in the order of the types' names.
    pub fn columns(&self) -> &[(String, Kind)] {
        &self.columns
    }

    /// What an event has in each column.
    pub fn values(&self, event: &EventRef<'_>, values: &mut Vec<Value>) {
        values.clear();
        values.resize(self.columns.len(), None);
        let (Some(node), Some(properties)) = (self.types.get(event.event_type), event.properties) else { return };
        // Whatever is wrong further behind: what was read is what is there.
        let _ = Reader { node, values }.deserialize(&mut serde_json::Deserializer::from_str(properties));
    }
}

fn plant(nodes: &mut Vec<(String, Node)>, path: &[String], column: Node) {
    let [name, rest @ ..] = path else { return };
    if rest.is_empty() {
        nodes.push((name.clone(), column));
        return;
    }
    let inner = |(there, node): &(String, Node)| there == name && matches!(node, Node::Object(_));
    let at = nodes.iter().position(inner).unwrap_or_else(|| {
        nodes.push((name.clone(), Node::Object(Vec::new())));
        nodes.len() - 1
    });
    if let Node::Object(inner) = &mut nodes[at].1 {
        plant(inner, rest, column);
    }
}

/// Reads what a node asks for, and goes past everything else without keeping it.
struct Reader<'a> {
    node: &'a Node,
    values: &'a mut [Value],
}

impl Reader<'_> {
    fn set(self, value: impl FnOnce(Kind) -> Value) {
        if let Node::Column(slot, kind) = *self.node {
            self.values[slot] = value(kind);
        }
    }
}

impl<'de> DeserializeSeed<'de> for Reader<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reader<'_> {
    type Value = ();

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Node::Object(inner) = self.node else {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return Ok(());
        };
        while let Some(node) = map.next_key_seed(Key(inner))? {
            match node {
                Some(node) => map.next_value_seed(Reader { node, values: self.values })?,
                None => map.next_value::<IgnoredAny>().map(drop)?,
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.set(|kind| match kind {
            Kind::Text => Some(Scalar::Text(text.to_owned())),
            Kind::Time => DateTime::parse_from_rfc3339(text).ok().map(|time| Scalar::Long(time.timestamp_micros())),
            _ => None,
        });
        Ok(())
    }

    fn visit_i64<E>(self, number: i64) -> Result<(), E> {
        self.set(|kind| match kind {
            Kind::Long => Some(Scalar::Long(number)),
            Kind::Double => Some(Scalar::Double(number as f64)),
            _ => None,
        });
        Ok(())
    }

    fn visit_u64<E>(self, number: u64) -> Result<(), E> {
        self.set(|kind| match kind {
            Kind::Long => i64::try_from(number).ok().map(Scalar::Long),
            Kind::Double => Some(Scalar::Double(number as f64)),
            _ => None,
        });
        Ok(())
    }

    fn visit_f64<E>(self, number: f64) -> Result<(), E> {
        /// Up to here every integer is a number of its own.
        const EXACT: f64 = 9_007_199_254_740_992.0;
        self.set(|kind| match kind {
            Kind::Double => Some(Scalar::Double(number)),
            // JSON Schema takes 5.0 for an integer.
            Kind::Long if number.fract() == 0.0 && number.abs() <= EXACT => Some(Scalar::Long(number as i64)),
            _ => None,
        });
        Ok(())
    }

    fn visit_bool<E>(self, truth: bool) -> Result<(), E> {
        self.set(|kind| (kind == Kind::Bool).then_some(Scalar::Bool(truth)));
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// The node of a name, without keeping the name.
struct Key<'a>(&'a [(String, Node)]);

impl<'a> Visitor<'_> for Key<'a> {
    type Value = Option<&'a Node>;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().find(|(there, _)| there == name).map(|(_, node)| node))
    }
}

impl<'de, 'a> DeserializeSeed<'de> for Key<'a> {
    type Value = Option<&'a Node>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

#[cfg(test)]
mod tests {
    use tidemill_common::event::Event;

    use super::*;

    fn promoted(column: &str, kind: Kind, path: &[&str]) -> Promoted {
        Promoted { column: column.to_owned(), kind, path: path.iter().map(|&name| name.to_owned()).collect() }
    }

    fn values(promotions: &Promotions, event_type: &str, properties: &str) -> Vec<Value> {
        let event = Event { properties: Some(properties.to_owned()), ..Event::new("e", event_type, 0) };
        let mut values = vec![Some(Scalar::Bool(true)); 9];
        promotions.values(&event.as_ref(), &mut values);
        values
    }

    #[test]
    fn a_columns_second_kind_takes_no_place_of_another_column() {
        let many = |kind| (0..MOST - 1).map(|i| promoted(&format!("c{i}"), kind, &["x"])).collect::<Vec<_>>();
        let last = ["last", "one too many"].map(|name| promoted(name, Kind::Long, &["y"])).to_vec();
        let declared = [("a", many(Kind::Long)), ("b", many(Kind::Text)), ("c", last)];
        let promotions = Promotions::new(declared.map(|(name, all)| (name.to_owned(), all)).to_vec());
        let names: HashSet<&str> = promotions.columns().iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!((promotions.columns().len(), names.len()), (2 * (MOST - 1) + 1, MOST));
        assert!(names.contains("last"));
    }

    #[test]
    fn values_are_read_where_the_type_declares_them() {
        let promotions = Promotions::new(vec![
            (
                "view".to_owned(),
                vec![promoted("depth", Kind::Long, &["page", "depth"]), promoted("price", Kind::Text, &["p"])],
            ),
            ("buy".to_owned(), vec![promoted("price", Kind::Double, &["price"]), promoted("at", Kind::Time, &["at"])]),
        ]);
        let names: Vec<&str> = promotions.columns().iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["at", "depth", "price", "price"]);
        assert_eq!(promotions.columns()[2].1, Kind::Double, "buy comes first");
        let text = |text: &str| Some(Scalar::Text(text.to_owned()));
        let (long, double) = (|n| Some(Scalar::Long(n)), |n| Some(Scalar::Double(n)));
        let all = r#"{"a":[1,{"b":2}],"page":{"x":{},"depth":7},"price":9.5,"at":"1970-01-01T00:00:01Z","p":"x"}"#;
        assert_eq!(values(&promotions, "view", all), [None, long(7), None, text("x")]);
        assert_eq!(values(&promotions, "buy", all), [long(1_000_000), None, double(9.5), None]);
        assert_eq!(values(&promotions, "other", all), [None, None, None, None]);
        assert_eq!(values(&promotions, "buy", r#"{"price":3}"#), [None, None, double(3.0), None]);
        assert_eq!(values(&promotions, "view", r#"{"page":{"depth":5.0}}"#), [None, long(5), None, None]);
        for other in [
            r#"{"page":{"depth":"7"}}"#,
            r#"{"page":{"depth":{"a":1}}}"#,
            r#"{"page":7}"#,
            r#"{"page":[7]}"#,
            r#"{"page":{"depth":5.5}}"#,
        ] {
            assert_eq!(values(&promotions, "view", other), [None, None, None, None], "{other}");
        }
    }
}
