//! The forms that an answer can have, and how a caller asks for one.

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON object.
    Json,
    /// One JSON object per row and line.
    Ndjson,
    /// RFC 4180, with a line of names first.
    Csv,
    /// Arrow's IPC stream.
    Arrow,
}

/// Media types and what they mean; the first that fits counts, so each format's own name stands before wildcards.
const TYPES: [(&str, Format); 11] = [
    ("application/json", Format::Json),
    ("application/x-ndjson", Format::Ndjson),
    ("application/ndjson", Format::Ndjson),
    ("application/jsonl", Format::Ndjson),
    ("text/csv", Format::Csv),
    ("application/vnd.apache.arrow.stream", Format::Arrow),
    ("text/json", Format::Json),
    // Browsers.
    ("text/html", Format::Json),
    ("application/*", Format::Json),
    ("text/*", Format::Csv),
    ("*/*", Format::Json),
];

impl Format {
    /// The one that `Accept` prefers; JSON without it. None: none of ours will do.
    pub fn accepted(accept: Option<&str>) -> Option<Self> {
        let Some(accept) = accept else { return Some(Self::Json) };
        let mut best: Option<(f32, Self)> = None;
        for part in accept.split(',') {
            let mut parts = part.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default().to_ascii_lowercase();
            let weight = parts.find_map(|part| part.strip_prefix("q=")).map_or(1.0, |q| q.parse().unwrap_or(0.0));
            let Some((_, format)) = TYPES.iter().find(|(media, _)| *media == name) else { continue };
            if weight > 0.0 && best.is_none_or(|(most, _)| weight > most) {
                best = Some((weight, *format));
            }
        }
        best.map(|(_, format)| format)
    }

    /// Its media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Ndjson => "application/x-ndjson",
            Self::Csv => "text/csv; charset=utf-8",
            Self::Arrow => "application/vnd.apache.arrow.stream",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caller_gets_what_it_prefers() {
        for (accept, expected) in [
            (None, Some(Format::Json)),
            (Some("*/*"), Some(Format::Json)),
            (Some("text/csv"), Some(Format::Csv)),
            (Some("Application/X-NDJSON"), Some(Format::Ndjson)),
            (Some("text/csv;q=0.5, application/vnd.apache.arrow.stream"), Some(Format::Arrow)),
            (Some("application/json;q=0.1,text/csv;q=0.2;x=y"), Some(Format::Csv)),
            (Some("image/png, */*;q=0.1"), Some(Format::Json)),
            (Some("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"), Some(Format::Json)),
            (Some("application/json;q=0"), None),
            (Some("image/png"), None),
            (Some(""), None),
        ] {
            assert_eq!(Format::accepted(accept), expected, "{accept:?}");
        }
    }
}
