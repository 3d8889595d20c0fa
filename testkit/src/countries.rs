//! A file of countries that is as small as one can be.

/// A database in MaxMind's format (<https://maxmind.github.io/MaxMind-DB/>) that knows the two halves of the IPv4
/// addresses: below 128.0.0.0 is `low`, the rest `high`. Countries are two letters.
pub fn countries(low: &str, high: &str) -> Vec<u8> {
    let text = |text: &str| [&[0x40 | text.len() as u8][..], text.as_bytes()].concat();
    let map = |pairs: &[(&str, Vec<u8>)]| {
        let head = vec![0xe0 | pairs.len() as u8];
        pairs.iter().fold(head, |map, (key, value)| [map, text(key), value.clone()].concat())
    };
    let number = |number: u8, kind: u8| match kind {
        5 | 6 => vec![kind << 5 | 1, number],
        extended => vec![1, extended - 7, number],
    };
    let country = |code: &str| map(&[("country", map(&[("iso_code", text(code))]))]);
    let (low, high) = (country(low), country(high));
    // One node. A record above the number of nodes points into the data, 16 bytes behind the tree.
    let (to_low, to_high) = (1_u32 + 16, 1 + 16 + low.len() as u32);
    let tree = [&to_low.to_be_bytes()[1..], &to_high.to_be_bytes()[1..]].concat();
    let metadata = map(&[
        ("binary_format_major_version", number(2, 5)),
        ("binary_format_minor_version", number(0, 5)),
        ("build_epoch", number(1, 9)),
        ("database_type", text("Country")),
        ("description", map(&[("en", text("test"))])),
        ("ip_version", number(4, 5)),
        ("languages", vec![0, 4]),
        ("node_count", number(1, 6)),
        ("record_size", number(24, 5)),
    ]);
    [tree, vec![0; 16], low, high, b"\xab\xcd\xefMaxMind.com".to_vec(), metadata].concat()
}
