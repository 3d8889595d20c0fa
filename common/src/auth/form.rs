//! What a key looks like.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

/// What every key starts with.
const MARK: &str = "tm_";
/// Characters of a key that are its prefix: for people, and for the lookup.
pub(super) const PREFIX: usize = MARK.len() + 8;
/// Characters of a key: 32 random bytes in base64url behind the mark.
pub(super) const LENGTH: usize = MARK.len() + 43;

/// A new key; only its prefix and hash are to be kept.
pub struct NewKey {
    /// The whole key, shown once.
    pub key: String,
    /// Its first characters.
    pub prefix: String,
    /// Its SHA-256.
    pub hash: [u8; 32],
}

/// Makes a key of 32 random bytes.
pub fn generate() -> NewKey {
    let key = format!("{MARK}{}", URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>()));
    NewKey { prefix: key[..PREFIX].to_owned(), hash: hash(&key), key }
}

/// What Postgres keeps of a key.
pub(super) fn hash(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// The prefix of what could be a key. Nothing else is worth a lookup.
pub(super) fn prefix(key: &str) -> Option<&str> {
    let rest = key.strip_prefix(MARK)?;
    let letters = rest.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    (letters && key.len() == LENGTH).then(|| &key[..PREFIX])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_has_the_form_that_is_looked_up() {
        let new = generate();
        assert_eq!(new.key.len(), LENGTH);
        assert_eq!(prefix(&new.key), Some(new.prefix.as_str()));
        assert_ne!(generate().key, new.key);
        for other in ["", "tm_", "tm_short", &new.key[1..], &format!("{}x", new.key), &new.key.replace("tm_", "tm'")] {
            assert_eq!(prefix(other), None, "{other}");
        }
    }
}
