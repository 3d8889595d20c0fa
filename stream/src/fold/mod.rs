//! The pure part: events into sessions and metric changes. No I/O, no clock, and no answer that depends on
//! the order of arrival.

pub mod carts;
mod cells;
pub mod guard;
pub mod rollups;
pub mod sessions;
