//! Places in a topic, as they are typed: `<partition>:<offset>`.

/// A partition and an offset, neither below zero.
pub fn parse(text: &str) -> Option<(i32, i64)> {
    let (partition, offset) = text.split_once(':')?;
    let (partition, offset) = (partition.parse().ok()?, offset.parse().ok()?);
    (partition >= 0 && offset >= 0).then_some((partition, offset))
}
