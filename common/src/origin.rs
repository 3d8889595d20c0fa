//! Where a record stands in its project's log, and how strays and dead letters say so.

use std::fmt;

use crate::kafka::Record;

/// Header of strays and dead letters: where the record first stood, as [`Origin`] is written.
pub const SOURCE: &str = "source";

/// A record's place in its project's log. Written as `partition:offset:append_ms`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Origin {
    /// The number of the partition in its project ([`crate::names::partition_number`]).
    pub partition: i32,
    /// The offset.
    pub offset: i64,
    /// When the broker appended it, in milliseconds since 1970.
    pub append_ms: i64,
}

impl Origin {
    /// Where a stray or a dead letter says that it comes from; none if it does not, or nobody of ours wrote that.
    pub fn of_sent_on(record: &Record) -> Option<Self> {
        let text = std::str::from_utf8(record.header(SOURCE)?).ok()?;
        let mut parts = text.split(':');
        let origin = Self {
            partition: parts.next()?.parse().ok()?,
            offset: parts.next()?.parse().ok()?,
            append_ms: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(origin)
    }
}

impl From<&Record> for Origin {
    fn from(record: &Record) -> Self {
        Self { partition: record.number_of_partition(), offset: record.offset, append_ms: record.append_ms }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { partition, offset, append_ms } = self;
        write!(f, "{partition}:{offset}:{append_ms}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::TopicPartition;
    use proptest::prelude::*;

    fn sent_on(source: &[u8]) -> Option<Origin> {
        let headers = vec![("other".to_owned(), b"1:2:3".to_vec()), (SOURCE.to_owned(), source.to_vec())];
        let at = TopicPartition { topic: "events.dlq.p".into(), partition: 0 };
        Origin::of_sent_on(&Record::new(at, 0, 0, (None, b""), headers))
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(partition: i32, offset: i64, append_ms: i64) {
            let origin = Origin { partition, offset, append_ms };
            prop_assert_eq!(sent_on(origin.to_string().as_bytes()), Some(origin));
        }
    }

    #[test]
    fn what_no_worker_wrote_is_nothing() {
        for text in ["", "1:2", "1:2:3:4", "1:2:", "x:2:3", "1 :2:3", "2147483648:0:0", "1:9223372036854775808:0"] {
            assert_eq!(sent_on(text.as_bytes()), None, "{text}");
        }
        assert_eq!(sent_on(b"1:2:\xff"), None);
    }
}
