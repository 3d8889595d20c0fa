//! The map of what a batch looks up for every event.

use std::collections::HashMap;

/// A map that lives for a batch. Its hash is quick and seeded, and since nobody sees what comes of it, nobody can find keys
/// that meet.
pub type BatchMap<K, V> = HashMap<K, V, foldhash::fast::RandomState>;
