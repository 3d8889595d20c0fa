//! The map of what is looked up for every event.

use std::collections::HashMap;

/// A map whose hash is quick, and keyed, since clients choose what stands in it.
pub type QuickMap<K, V> = HashMap<K, V, ahash::RandomState>;
