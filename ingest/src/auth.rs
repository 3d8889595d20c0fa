//! API keys: who calls, and what they may do.

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use sqlx::PgPool;
use subtle::ConstantTimeEq;

use crate::breaker::{Breaker, Failure};
use crate::key_cache::{ASKING, KeyCache, Remembered};
use crate::limit::{Granted, Limit};
use crate::sql::{self, KeyRow};

/// Keys are looked up by so many of their first bytes.
const PREFIX: usize = 11;
const WRITE: &str = "write";

/// Who sends a request: an API key and its project.
pub struct Caller {
    hash: Vec<u8>,
    /// Whose events these are.
    pub project: String,
    /// The project's number of home partitions.
    pub partitions: i32,
    scopes: Vec<String>,
    limit: Option<Arc<Limit>>,
    expires_at: Option<DateTime<Utc>>,
}

/// A key as it came with a request.
pub struct Credential<'a> {
    /// The whole key.
    pub key: &'a str,
    /// It stood in the URL, where only keys that can do nothing but write may stand.
    pub in_url: bool,
}

/// Why a caller is turned away.
#[derive(Debug, thiserror::Error)]
pub enum Denied {
    /// No such key, or no longer.
    #[error("this API key is unknown, revoked or expired; create one with `tidemill keys create`")]
    Unknown,
    /// A key for something else.
    #[error("this API key cannot write events; create one with `--scope write`")]
    NotForWriting,
    /// A key with more rights in the URL, where logs and proxies see it.
    #[error("only keys that can do nothing but write may stand in the URL; send this one as Authorization: Bearer")]
    NotInUrl,
    /// The key is not known here, and Postgres cannot be asked.
    #[error("API keys cannot be looked up: {0}")]
    Unavailable(Failure<sqlx::Error>),
}

/// All API keys.
pub struct Keys {
    pool: PgPool,
    breaker: Breaker,
    cache: Mutex<KeyCache>,
}

impl Keys {
    /// Keys in this database.
    pub fn new(pool: PgPool) -> Self {
        Self { pool, breaker: Breaker::new(ASKING), cache: Mutex::default() }
    }

    /// The caller with this key, if it may write events.
    pub async fn writer(&self, credential: &Credential<'_>) -> Result<Arc<Caller>, Denied> {
        let prefix = credential.key.get(..PREFIX).ok_or(Denied::Unknown)?;
        let caller = self.caller(prefix).await?.ok_or(Denied::Unknown)?;
        caller.check(credential, Utc::now())?;
        Ok(caller)
    }

    async fn caller(&self, prefix: &str) -> Result<Option<Arc<Caller>>, Denied> {
        let asked = Instant::now();
        let remembered = match self.cache().get(prefix, asked) {
            Remembered::Key(caller) => return Ok(Some(caller)),
            Remembered::NoKey => return Ok(None),
            Remembered::Ask(older) => older,
        };
        match self.breaker.call(sql::key(&self.pool, prefix)).await {
            Ok(row) => {
                let caller = row.map(|row| Arc::new(Caller::new(row, remembered.as_deref())));
                self.cache().put(prefix, caller.clone(), asked);
                Ok(caller)
            }
            Err(failure) => remembered.map(Some).ok_or(Denied::Unavailable(failure)),
        }
    }

    fn cache(&self) -> MutexGuard<'_, KeyCache> {
        self.cache.lock().expect("no holder panics")
    }
}

impl Caller {
    /// The caller of a row. A limit that did not change keeps its count.
    fn new(row: KeyRow, before: Option<&Self>) -> Self {
        let rate = row.rate_limit.and_then(|rate| u32::try_from(rate).ok()).and_then(NonZeroU32::new);
        let counting = before.and_then(|caller| caller.limit.clone());
        let limit = rate.map(|rate| match counting {
            Some(limit) if limit.rate() == rate => limit,
            _ => Arc::new(Limit::new(rate)),
        });
        Self {
            hash: row.hash,
            project: row.project,
            partitions: row.partitions,
            scopes: row.scopes,
            limit,
            expires_at: row.expires_at,
        }
    }

    fn check(&self, credential: &Credential<'_>, now: DateTime<Utc>) -> Result<(), Denied> {
        let right = bool::from(Sha256::digest(credential.key).as_slice().ct_eq(&self.hash));
        if !right || self.expires_at.is_some_and(|at| at <= now) {
            return Err(Denied::Unknown);
        }
        if !self.scopes.iter().any(|scope| scope == WRITE) {
            return Err(Denied::NotForWriting);
        }
        if credential.in_url && self.scopes.iter().any(|scope| scope != WRITE) {
            return Err(Denied::NotInUrl);
        }
        Ok(())
    }

    /// Takes events from the key's limit.
    pub fn take(&self, events: usize) -> Granted {
        match &self.limit {
            Some(limit) => limit.take(events),
            None => Granted { events, retry_after: std::time::Duration::ZERO },
        }
    }
}

#[cfg(test)]
impl Caller {
    /// A caller whose key is `tm_12345678-secret`, without limits.
    pub fn test() -> Self {
        let row = KeyRow {
            hash: Sha256::digest("tm_12345678-secret").to_vec(),
            project: "shop".into(),
            partitions: 4,
            scopes: vec!["write".into()],
            rate_limit: None,
            expires_at: None,
        };
        Self::new(row, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Credential<'static> = Credential { key: "tm_12345678-secret", in_url: false };

    #[test]
    fn the_whole_key_counts() {
        let caller = Caller::test();
        assert!(caller.check(&KEY, Utc::now()).is_ok());
        let other = Credential { key: "tm_12345678-guess!", in_url: false };
        assert!(matches!(caller.check(&other, Utc::now()), Err(Denied::Unknown)));
    }

    #[test]
    fn keys_expire() {
        let now = Utc::now();
        let caller = Caller { expires_at: Some(now), ..Caller::test() };
        assert!(matches!(caller.check(&KEY, now), Err(Denied::Unknown)));
        assert!(caller.check(&KEY, now - chrono::TimeDelta::milliseconds(1)).is_ok());
    }

    #[test]
    fn scopes_are_kept() {
        let reader = Caller { scopes: vec!["read".into()], ..Caller::test() };
        assert!(matches!(reader.check(&KEY, Utc::now()), Err(Denied::NotForWriting)));
        let both = Caller { scopes: vec!["read".into(), "write".into()], ..Caller::test() };
        assert!(both.check(&KEY, Utc::now()).is_ok());
        let in_url = Credential { in_url: true, ..KEY };
        assert!(matches!(both.check(&in_url, Utc::now()), Err(Denied::NotInUrl)));
        assert!(Caller::test().check(&in_url, Utc::now()).is_ok());
    }

    #[test]
    fn an_unchanged_limit_keeps_its_count() {
        let row = |rate| KeyRow {
            hash: vec![],
            project: "shop".into(),
            partitions: 4,
            scopes: vec![],
            rate_limit: Some(rate),
            expires_at: None,
        };
        let first = Caller::new(row(5), None);
        assert_eq!(first.take(5).events, 5);
        assert_eq!(Caller::new(row(5), Some(&first)).take(5).events, 0);
        assert_eq!(Caller::new(row(6), Some(&first)).take(6).events, 6);
    }
}
