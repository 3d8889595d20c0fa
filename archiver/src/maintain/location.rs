//! Names of files, as different engines write them. Pure.

/// One name for a file, however it is written: `file:/a`, `file:///a` and `/a` are one, so are `s3://` and `s3a://`.
pub fn place(url: &str) -> String {
    let (scheme, rest) = match url.split_once(":/") {
        Some((scheme, rest)) if !scheme.contains('/') => (scheme, rest),
        _ => ("file", url),
    };
    let scheme = if matches!(scheme, "s3a" | "s3n") { "s3" } else { scheme };
    let mut place = format!("{scheme}:");
    for part in rest.split('/').filter(|part| !part.is_empty()) {
        place.push('/');
        place.push_str(part);
    }
    place
}

/// The bucket and the path of an S3 address.
pub fn bucket(url: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = url.split_once("://")?;
    matches!(scheme, "s3" | "s3a" | "s3n").then(|| rest.split_once('/').unwrap_or((rest, "")))
}

/// The path of a local file's address.
pub fn path(url: &str) -> Option<&str> {
    let path = url.strip_prefix("file:").unwrap_or(url);
    let slashes = path.len() - path.trim_start_matches('/').len();
    (slashes > 0).then(|| &path[slashes - 1..])
}

/// Whether a place lies in a folder, or is it.
pub fn within(place: &str, folder: &str) -> bool {
    place.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_file_has_one_name() {
        for url in ["file:///a/b c/d=1/e", "file:/a/b c/d=1/e", "/a/b c/d=1/e", "file:///a//b c/d=1/e"] {
            assert_eq!(place(url), "file:/a/b c/d=1/e", "{url}");
        }
        for url in ["s3://bucket/a/b", "s3a://bucket/a/b", "s3n://bucket//a/b"] {
            assert_eq!(place(url), "s3:/bucket/a/b", "{url}");
        }
        assert_ne!(place("s3://one/a"), place("s3://other/a"));
        assert_ne!(place("s3://bucket/a"), place("file:///bucket/a"));
        assert!(within(&place("file:///a/b"), "file:/a") && within("file:/a", "file:/a"));
        assert!(!within(&place("file:///a_old/b"), "file:/a"));
    }

    #[test]
    fn addresses_have_parts() {
        assert_eq!(bucket("s3a://b/c/d"), Some(("b", "c/d")));
        assert_eq!(bucket("s3://b"), Some(("b", "")));
        assert_eq!(bucket("file:///b"), None);
        assert_eq!(
            [path("file:///a/b"), path("file:/a/b"), path("/a/b"), path("s3://a/b")],
            [Some("/a/b"), Some("/a/b"), Some("/a/b"), None]
        );
    }
}
