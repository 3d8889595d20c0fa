//! Exact sums of money and other decimals: adding them gives the same in any order, which floats do not.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Mul, Neg, Sub};

/// Digits kept behind the point; what lies beyond is rounded, half away from zero.
const SCALE: i32 = 9;
const ONE: i128 = 1_000_000_000;
/// Values from here on are not taken for numbers. Sums have room for 10^11 of the largest.
const LIMIT: i128 = 1_000_000_000_000_000_000 * ONE;
/// Significant digits that are read.
const DIGITS: i128 = 10_i128.pow(30);

/// A decimal in units of 10^-9.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Decimal(i128);

impl Decimal {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// The decimal in a text like `-12.5` or `3e4`. None when it is no number, or not below 10^18.
    pub fn parse(text: &str) -> Option<Self> {
        let (negative, digits) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (mantissa, exponent) = match digits.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
            None => (digits, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        if whole.is_empty() || (fraction.is_empty() && mantissa.contains('.')) {
            return None;
        }
        let (mut value, mut power) = (0_i128, exponent.clamp(-100_000, 100_000) + SCALE);
        for (digit, behind) in whole.bytes().map(|b| (b, false)).chain(fraction.bytes().map(|b| (b, true))) {
            if !digit.is_ascii_digit() {
                return None;
            }
            if value < DIGITS {
                value = value * 10 + i128::from(digit - b'0');
                power -= i32::from(behind);
            } else {
                power += i32::from(!behind);
            }
        }
        let value = shift(value, power).filter(|value| *value < LIMIT)?;
        Some(Self(if negative { -value } else { value }))
    }

    /// The nearest float.
    pub fn to_f64(self) -> f64 {
        // Through the text, which is rounded once.
        self.to_string().parse().unwrap_or(f64::NAN)
    }

    /// The decimal nearest to a float; none for what [`Self::parse`] would not take.
    pub fn from_f64(value: f64) -> Option<Self> {
        Self::parse(&value.to_string())
    }

    /// This, divided by a count; rounded half away from zero.
    pub fn divided_by(self, count: i64) -> Option<Self> {
        (count > 0).then(|| {
            let (value, count) = (self.0, i128::from(count));
            Self((value + value.signum() * (count / 2)) / count)
        })
    }
}

/// `value * 10^power`; none when it is too large.
fn shift(value: i128, power: i32) -> Option<i128> {
    if value == 0 {
        return Some(0);
    }
    let factor = 10_i128.checked_pow(power.unsigned_abs());
    if power >= 0 {
        return value.checked_mul(factor?);
    }
    Some(factor.map_or(0, |factor| (value + factor / 2) / factor))
}

impl From<i64> for Decimal {
    fn from(value: i64) -> Self {
        Self(i128::from(value) * ONE)
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, value) = (if self.0 < 0 { "-" } else { "" }, self.0.unsigned_abs());
        let (whole, rest) = (value / ONE as u128, value % ONE as u128);
        if rest == 0 {
            return write!(f, "{sign}{whole}");
        }
        let rest = format!("{rest:09}");
        write!(f, "{sign}{whole}.{}", rest.trim_end_matches('0'))
    }
}

impl Add for Decimal {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Decimal {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Mul<i64> for Decimal {
    type Output = Self;
    fn mul(self, count: i64) -> Self {
        Self(self.0.saturating_mul(i128::from(count)))
    }
}

impl Neg for Decimal {
    type Output = Self;
    fn neg(self) -> Self {
        Self(-self.0)
    }
}

impl Sub for Decimal {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self + -other
    }
}

impl Sum for Decimal {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::ZERO, Add::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(text: &str) -> Option<String> {
        Decimal::parse(text).map(|decimal| decimal.to_string())
    }

    #[test]
    fn numbers_are_read_as_they_are_written() {
        for (text, expected) in [
            ("0", "0"),
            ("-0.0", "0"),
            ("19.99", "19.99"),
            ("-12.50", "-12.5"),
            ("1e3", "1000"),
            ("2.5E-3", "0.0025"),
            ("0.0000000005", "0.000000001"),
            ("-0.0000000005", "-0.000000001"),
            ("0.00000000049999", "0"),
            ("1e-400", "0"),
            ("999999999999999999.999999999", "999999999999999999.999999999"),
            ("0.10000000000000000000000000000000000000000000001", "0.1"),
        ] {
            assert_eq!(shown(text).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_number_or_too_large_is_refused() {
        for text in ["", "-", "abc", "1.", ".5", "1.2.3", "1e", "1e400", "1e18", "-1e18", "0x1", "1 ", "--1", "NaN"] {
            assert_eq!(shown(text), None, "{text}");
        }
        assert_eq!(shown(&"9".repeat(400)), None);
    }

    #[test]
    fn division_rounds_half_away_from_zero() {
        let divided = |text: &str, by| Decimal::parse(text).and_then(|d| d.divided_by(by)).map(|d| d.to_string());
        assert_eq!(divided("10", 4).as_deref(), Some("2.5"));
        assert_eq!(divided("1", 3).as_deref(), Some("0.333333333"));
        assert_eq!(divided("-2", 3).as_deref(), Some("-0.666666667"));
        assert_eq!(divided("1", 0), None);
    }

    proptest! {
        #[test]
        fn text_and_value_are_one(units in -LIMIT + 1..LIMIT) {
            let decimal = Decimal(units);
            prop_assert_eq!(Decimal::parse(&decimal.to_string()), Some(decimal));
        }

        /// With floats this fails.
        #[test]
        fn sums_do_not_depend_on_the_order(mut cents in prop::collection::vec(any::<i32>(), 0..50)) {
            let sum = |cents: &[i32]| -> Decimal {
                cents.iter().filter_map(|c| Decimal::parse(&format!("{}.{:02}", c / 100, c.unsigned_abs() % 100))).sum()
            };
            let before = sum(&cents);
            cents.reverse();
            prop_assert_eq!(sum(&cents), before);
        }
    }
}
