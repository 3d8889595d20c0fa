//! Countries of addresses, from a file in MaxMind's format (GeoLite2, GeoIP2, DB-IP and others).

use std::net::IpAddr;
use std::path::Path;

use maxminddb::{MaxMindDbError, PathElement, Reader};

/// A country's two letters (ISO 3166-1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Country([u8; 2]);

impl Country {
    /// Two capital letters; none for anything else.
    pub fn parse(code: &str) -> Option<Self> {
        let letters: [u8; 2] = code.as_bytes().try_into().ok()?;
        letters.iter().all(u8::is_ascii_uppercase).then_some(Self(letters))
    }

    /// The letters.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default() // they are ASCII
    }
}

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "the file of countries {path} cannot be read: {source}; it has to be a database with countries in MaxMind's format (.mmdb)"
)]
pub struct BadFile {
    path: String,
    source: MaxMindDbError,
}

/// A file of countries, in memory.
pub struct Countries(Reader<Vec<u8>>);

impl Countries {
    /// Reads the whole file.
    pub fn open(path: &Path) -> Result<Self, BadFile> {
        let bad = |source| BadFile { path: path.display().to_string(), source };
        Reader::open_readfile(path).map(Self).map_err(bad)
    }

    /// Where an address is; if nobody knows, where its owner is registered.
    pub fn find(&self, address: IpAddr) -> Option<Country> {
        let found = self.0.lookup(address).ok()?;
        let code = |of: &'static str| {
            found.decode_path::<&str>(&[PathElement::Key(of), PathElement::Key("iso_code")]).ok().flatten()
        };
        Country::parse(code("country").or_else(|| code("registered_country"))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_countries() {
        let countries = Countries(Reader::from_source(tidemill_testkit::countries("NL", "JP")).expect("a file"));
        let find = |address: &str| countries.find(address.parse().expect("an address"));
        assert_eq!(find("10.0.0.0"), Country::parse("NL"));
        assert_eq!(find("200.1.2.0").expect("known").as_str(), "JP");
        assert_eq!(find("2001:db8::1"), None, "the file has no such addresses");
    }

    #[test]
    fn what_is_no_file_of_countries_is_said_so() {
        let error = Countries::open(Path::new("/nowhere.mmdb")).err().expect("an error").to_string();
        assert!(error.contains("/nowhere.mmdb") && error.contains("MaxMind's format"), "{error}");
        assert_eq!([Country::parse("nl"), Country::parse("NLD"), Country::parse("")], [None; 3]);
    }
}
