//! Keys from the environment, for development: `API_KEYS=key:project[:scope+scope],…`.

use std::collections::HashMap;

use super::Scope;
use super::form::hash;
use crate::names::ProjectId;

/// Shorter keys are typing errors.
const SHORTEST: usize = 8;
const FORM: &str = "API_KEYS must look like 'key:project' or 'key:project:write+read', with commas between; \
     a key has at least 8 of a-z, A-Z, 0-9, '-', '_' and '.', a scope is write, read or admin";

/// An entry that cannot be used. It does not show the key.
#[derive(Debug, thiserror::Error)]
#[error("entry {entry} of API_KEYS {wrong}; {FORM}")]
pub struct EnvironmentError {
    entry: usize,
    wrong: String,
}

/// One of these keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EnvironmentKey {
    /// Stands for the key where a prefix is shown. Keys this short have none that could be.
    pub prefix: String,
    pub project: String,
    pub scopes: Vec<Scope>,
}

/// Reads all of them, by their SHA-256.
pub(super) fn parse(text: &str) -> Result<HashMap<[u8; 32], EnvironmentKey>, EnvironmentError> {
    let entries = text.split(',').map(str::trim).enumerate().filter(|(_, entry)| !entry.is_empty());
    let mut keys = HashMap::new();
    for (index, entry) in entries {
        let error = |wrong: String| EnvironmentError { entry: index + 1, wrong };
        let (hash, key) = read(entry).map_err(error)?;
        if keys.insert(hash, key).is_some() {
            return Err(error("has the same key as an earlier one".to_owned()));
        }
    }
    Ok(keys)
}

fn read(entry: &str) -> Result<([u8; 32], EnvironmentKey), String> {
    let mut parts = entry.split(':');
    let (Some(key), Some(project), scopes, None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err("has not two or three parts".to_owned());
    };
    if key.len() < SHORTEST {
        return Err(format!("has a key of {} characters", key.len()));
    }
    if !key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
        return Err("has a key with other characters".to_owned());
    }
    let project = ProjectId::parse(project).map_err(|error| format!("names no project: {error}"))?;
    let scope = |name: &str| Scope::parse(name).ok_or_else(|| format!("has the scope {name:?}"));
    let scopes = scopes.unwrap_or("write").split('+').map(scope).collect::<Result<_, _>>()?;
    let hash = hash(key);
    let prefix = format!("env_{:02x}{:02x}{:02x}{:02x}", hash[0], hash[1], hash[2], hash[3]);
    Ok((hash, EnvironmentKey { prefix, project: project.as_str().to_owned(), scopes }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_a_project_and_scopes() {
        let keys = parse("dev-key-1:shop, dev-key-2:blog:read+admin,").expect("good");
        let scopes = |key: &str| (keys[&hash(key)].project.as_str(), keys[&hash(key)].scopes.clone());
        assert_eq!(keys.len(), 2);
        assert_eq!(scopes("dev-key-1"), ("shop", vec![Scope::Write]));
        assert_eq!(scopes("dev-key-2"), ("blog", vec![Scope::Read, Scope::Admin]));
        assert!(parse("").expect("none").is_empty());
    }

    #[test]
    fn a_bad_entry_is_told_without_its_key() {
        for text in [
            "secret-1",
            "secret:shop",
            "secret-1:Shop",
            "secret-1:shop:",
            "secret-1:shop:fly",
            "secret-1:shop:read:x",
            "secret 11:shop",
            "secret-1:shop,secret-1:blog",
        ] {
            let told = parse(text).expect_err(text).to_string();
            assert!(told.contains("key:project") && !told.contains("secret"), "{text}: {told}");
        }
    }
}
