//! Copies of sessions whose text is long, as long URLs make it, can be kept compressed: the hash has one field `z`
//! beside the numbers that it is stamped with, which is a JSON object of all other fields, compressed by zstd. Readers
//! take both forms, whatever the setting is.

use std::collections::{BTreeMap, HashMap};

/// The field of a compressed copy.
pub const FIELD: &str = "z";
/// The library's own default; higher ones gain nothing with so little text.
const LEVEL: i32 = 3;
/// No session's text is longer: what claims to be is none of ours.
const MOST: usize = 1 << 20;

/// The field's value, where the fields have more than `above` bytes together and it is shorter than they are.
pub fn pack(fields: &[(&'static str, String)], above: Option<usize>) -> Option<Vec<u8>> {
    let above = above?;
    let bytes: usize = fields.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes <= above {
        return None;
    }
    let fields: BTreeMap<&str, &str> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let text = serde_json::to_vec(&fields).ok().filter(|text| text.len() <= MOST)?;
    zstd::bulk::compress(&text, LEVEL).ok().filter(|packed| packed.len() < bytes)
}

/// The fields of a hash in either form; none: it can be read in neither.
pub fn unpack(mut hash: HashMap<String, Vec<u8>>) -> Option<HashMap<String, String>> {
    let mut fields: HashMap<String, String> = match hash.remove(FIELD) {
        Some(packed) => serde_json::from_slice(&zstd::bulk::decompress(&packed, MOST).ok()?).ok()?,
        None => HashMap::new(),
    };
    for (name, value) in hash {
        fields.insert(name, String::from_utf8(value).ok()?);
    }
    Some(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(query: usize) -> Vec<(&'static str, String)> {
        let page = format!("https://shop.example/things/{}", "utm_campaign=spring&".repeat(query));
        vec![("sessionId", "s-1".to_owned()), ("currentPage", page.clone()), ("entryPage", page)]
    }

    fn hash(fields: &[(&str, String)]) -> HashMap<String, Vec<u8>> {
        fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone().into_bytes())).collect()
    }

    #[test]
    fn both_forms_are_read_as_what_was_written() {
        let fields = session(20);
        let expected: HashMap<String, String> =
            fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        assert_eq!(unpack(hash(&fields)), Some(expected.clone()));
        let packed = pack(&fields, Some(100)).expect("it is long");
        assert!(packed.len() * 3 < 800, "{}", packed.len());
        let mut compressed = HashMap::from([(FIELD.to_owned(), packed), ("version".to_owned(), b"7".to_vec())]);
        let mut with_version = expected;
        with_version.insert("version".to_owned(), "7".to_owned());
        assert_eq!(unpack(compressed.clone()), Some(with_version));
        compressed.get_mut(FIELD).expect("the field").truncate(9);
        assert_eq!(unpack(compressed), None, "a torn copy is none");
    }

    #[test]
    fn what_is_short_or_no_shorter_stays_as_it_is() {
        assert_eq!(pack(&session(20), None), None, "it is off");
        assert_eq!(pack(&session(20), Some(10_000)), None);
        assert_eq!(pack(&[("sessionId", "s-1".to_owned())], Some(0)), None, "nothing is gained");
    }
}
