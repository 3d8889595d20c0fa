//! Topics: declared in YAML (`topics/*.yaml`), compared with what Kafka has, and created where they are missing; and
//! more partitions for those that have events ([`grow`]), or a topic of their own for some of these ([`begin_route`]).
//!
//! ```text
//! Declarations ──► Vec<Topic> ─┐
//!                              ├─ plan ──► Vec<Change> ──► Cluster::apply
//! Cluster::existing ───────────┘
//! ```

mod cluster;
mod declaration;
mod era;
mod grow;
mod plan;
mod route;

pub use cluster::{Cluster, ClusterError};
pub use declaration::{Declarations, DeclareError, Partitions, Topic};
pub use era::EraError;
pub use grow::{GrowError, Growth, Step, grow, plan_growth};
pub use plan::{Change, Existing, plan, replication};
pub use route::{Route, RouteError, Wanted, begin_route, plan_route};
