//! What an audit has found.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Kind, Plain, verify};
use crate::project::compare::Finding;
use crate::project::pending::Key;

/// More keys that are not as they should be are counted, and not mended before the next audit.
pub(super) const MOST_ODD: usize = 100_000;
/// Examples that are kept.
const EXAMPLES: usize = 20;

/// How many copies of a kind are how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// That Redis or Postgres have.
    pub compared: u64,
    /// Both say the same.
    pub equal: u64,
    /// Redis shows an older version.
    pub behind: u64,
    /// Only Postgres has it, and readers ask there: no mistake.
    pub missing: u64,
    /// Redis shows a version that Postgres has not come to.
    pub ahead: u64,
    /// Redis says something else of the same version, or nothing that can be read.
    pub corrupt: u64,
    /// Postgres knows nothing of it.
    pub foreign: u64,
    /// A replica shows less than its master did some seconds before, or something else.
    pub replica_behind: u64,
}

/// What an audit has found.
#[derive(Debug, Default)]
pub struct Audit {
    /// By kind.
    pub tallies: BTreeMap<Kind, Tally>,
    /// Some of what is not as it should be.
    pub examples: Vec<String>,
    pub(super) odd: Odd,
}

/// What has to be mended.
#[derive(Debug, Default)]
pub struct Odd {
    pub(super) keys: BTreeMap<Key, Finding>,
    /// Keys that stand for nothing.
    pub(super) foreign: Vec<String>,
    pub(super) plain: Vec<Plain>,
}

impl Tally {
    /// Whether something is wrong; what is missing is not.
    pub fn is_wrong(&self) -> bool {
        self.behind + self.ahead + self.corrupt + self.foreign + self.replica_behind > 0
    }

    fn add(&mut self, finding: &Finding) {
        let counter = match finding {
            Finding::Same => &mut self.equal,
            Finding::Behind(_) => &mut self.behind,
            Finding::Absent => &mut self.missing,
            Finding::Ahead(..) => &mut self.ahead,
            Finding::Differs(_) => &mut self.corrupt,
            Finding::Alone(_) => &mut self.foreign,
            Finding::Nowhere => return,
        };
        *counter += 1;
        self.compared += 1;
    }
}

impl Audit {
    /// Whether something is wrong.
    pub fn is_wrong(&self) -> bool {
        self.tallies.values().any(Tally::is_wrong)
    }

    /// How many things `repair` would write or delete.
    pub fn to_mend(&self) -> usize {
        self.odd.keys.len() + self.odd.foreign.len() + self.odd.plain.len()
    }

    pub(super) fn count(&mut self, kind: Kind, finding: &Finding) {
        self.tallies.entry(kind).or_default().add(finding);
    }

    pub(super) fn example(&mut self, text: String) {
        if self.examples.len() < EXAMPLES {
            self.examples.push(text);
        }
    }

    /// What a key is in the end.
    pub(super) fn last(&mut self, key: Key, finding: Finding) {
        self.count(Kind::of(&key), &finding);
        if matches!(finding, Finding::Same | Finding::Nowhere) {
            return;
        }
        if finding != Finding::Absent {
            self.example(verify::explain(&key, &finding));
        }
        if self.odd.keys.len() < MOST_ODD {
            self.odd.keys.insert(key, finding);
        }
    }

    /// A key that stands for nothing.
    pub(super) fn foreign(&mut self, kind: Kind, key: String) {
        self.count(kind, &Finding::Alone(None));
        self.example(format!("{key}: Postgres has no such thing"));
        if self.odd.foreign.len() < MOST_ODD {
            self.odd.foreign.push(key);
        }
    }
}
