//! Sums of money in answers: JSON numbers with all their digits.

use serde::ser::Error;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use tidemill_stream::decimal::Decimal;

/// A decimal.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Money(pub Decimal);

impl Money {
    /// From a database's text; none is nothing.
    pub fn parse(text: Option<&str>) -> Self {
        Self(text.and_then(Decimal::parse).unwrap_or_default())
    }
}

impl Serialize for Money {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        RawValue::from_string(self.0.to_string()).map_err(S::Error::custom)?.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_digit_is_lost() {
        let json = |text: &str| serde_json::to_string(&Money::parse(Some(text))).expect("JSON");
        assert_eq!(json("100000000000000000.000000001"), "100000000000000000.000000001");
        assert_eq!(json("-0.50"), "-0.5");
        assert_eq!(serde_json::to_string(&Money::parse(None)).expect("JSON"), "0");
    }
}
