//! The map of what a batch looks up for every event.

use std::collections::HashMap;

/// A map that lives for a batch. Its hash is quick, and keyed, since clients choose what stands in it.
pub type BatchMap<K, V> = HashMap<K, V, ahash::RandomState>;
