//! Metric windows: fixed spans of event time.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How long a window is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Granularity {
    /// `1m`
    #[serde(rename = "1m")]
    Minute,
    /// `1h`
    #[serde(rename = "1h")]
    Hour,
    /// `1d`, UTC
    #[serde(rename = "1d")]
    Day,
}

impl Granularity {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Minute, Self::Hour, Self::Day];

    /// The name in URLs, keys and rows.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Minute => "1m",
            Self::Hour => "1h",
            Self::Day => "1d",
        }
    }

    /// The granularity with this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|granularity| granularity.as_str() == name)
    }

    /// The length in seconds.
    pub fn seconds(self) -> i64 {
        match self {
            Self::Minute => 60,
            Self::Hour => 3_600,
            Self::Day => 86_400,
        }
    }

    /// The start, in seconds since 1970, of the window in which a time (in microseconds) lies.
    pub fn window(self, micros: i64) -> i64 {
        let seconds = micros.div_euclid(1_000_000);
        seconds - seconds.rem_euclid(self.seconds())
    }

    /// When the hot copy of a window ends, in seconds since 1970. Until then a window is *hot*: written to
    /// Redis, and read from there.
    pub fn hot_until(self, window_start: i64) -> i64 {
        let kept = match self {
            Self::Minute => 3_600,
            Self::Hour => 2 * 3_600,
            Self::Day => 2 * 86_400,
        };
        window_start + kept
    }
}

impl fmt::Display for Granularity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_start_at_multiples_of_their_length() {
        let micros = 1_704_067_261_999_999; // 2024-01-01T00:01:01.999999Z
        assert_eq!(Granularity::Minute.window(micros), 1_704_067_260);
        assert_eq!(Granularity::Hour.window(micros), 1_704_067_200);
        assert_eq!(Granularity::Day.window(micros), 1_704_067_200);
        assert_eq!(Granularity::Minute.window(-1), -60, "before 1970 too");
    }
}
