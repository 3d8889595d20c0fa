//! What a metric can be grouped and filtered by: a dimension, or several together.

use serde::{Deserialize, Serialize};

/// Between names in the `dimension_key` of a combination.
pub const SEPARATOR: char = ',';
/// Longest value that is kept, in characters; of a combination, all of its values together.
const LONGEST: usize = 256;

/// A dimension by its name, or some whose values are counted together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a dimension must be a name, or a list of names that are counted together")]
pub enum Dimension {
    /// A value of this counts by itself.
    One(String),
    /// The values that an event has of these count as one.
    Together(Vec<String>),
}

impl Dimension {
    /// Its names.
    pub fn names(&self) -> &[String] {
        match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Together(names) => names,
        }
    }

    /// The rollups' `dimension_key`.
    pub fn key(&self) -> String {
        self.names().join(&SEPARATOR.to_string())
    }

    /// Whether its values are those of several.
    pub fn is_combined(&self) -> bool {
        matches!(self, Self::Together(_))
    }
}

/// The one value that stands for several, one of each name: a JSON array of texts. It is short enough for an index
/// whatever producers send, and control characters are replaced.
pub fn together<T: AsRef<str>>(values: &[T]) -> String {
    let longest = LONGEST / values.len().max(1);
    let plain = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    let kept: Vec<String> =
        values.iter().map(|value| value.as_ref().chars().take(longest).map(plain).collect()).collect();
    serde_json::to_string(&kept).expect("texts are JSON")
}

/// The values that one stands for; none where it stands for the rest, or is no combination's.
pub fn apart(value: &str) -> Option<Vec<String>> {
    serde_json::from_str(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::OTHER;
    use proptest::prelude::*;

    #[test]
    fn what_is_neither_name_nor_list_is_refused() {
        let parse = |json: &str| serde_json::from_str::<Dimension>(json).map(|dimension| dimension.key());
        assert_eq!(parse("\"country\"").expect("a name"), "country");
        assert_eq!(parse(r#"["country","plan"]"#).expect("names"), "country,plan");
        assert!(parse("7").expect_err("a number").to_string().contains("a name, or a list of names"));
        assert_eq!(apart(OTHER), None);
    }

    proptest! {
        /// Different values stay different, and none is too long.
        #[test]
        fn values_come_apart_as_they_were(a in "\\PC{0,80}", b in "[\"\\\\,\\[\\]a-z]{0,80}", more in "\\PC{300}") {
            let values = [a, b, String::new()];
            prop_assert_eq!(apart(&together(&values)), Some(values.to_vec()));
            let long = together(&[&more, &more]);
            prop_assert!(long.len() <= LONGEST * 4 + 7, "{} bytes", long.len());
            prop_assert_eq!(apart(&together(&["a\u{0}\n", "b"])), Some(vec!["a\u{fffd}\u{fffd}".into(), "b".into()]));
        }
    }
}
