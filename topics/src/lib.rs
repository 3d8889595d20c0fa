//! Topics: declared in YAML (`topics/*.yaml`), compared with what Kafka has, and created where they are missing; and
//! more partitions for those that have events ([`grow`]).
//!
//! ```text
//! Declarations ──► Vec<Topic> ─┐
//!                              ├─ plan ──► Vec<Change> ──► Cluster::apply
//! Cluster::existing ───────────┘
//! ```

mod cluster;
mod declaration;
mod grow;
mod plan;

pub use cluster::{Cluster, ClusterError};
pub use declaration::{Declarations, DeclareError, Partitions, Topic};
pub use grow::{GrowError, Growth, Step, grow, plan_growth};
pub use plan::{Change, Existing, plan, replication};
