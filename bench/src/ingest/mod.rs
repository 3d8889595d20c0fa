//! The gateway beside the bare Kafka client (the limit) and Benthos (the peer).

mod events;
pub mod limit;
mod load;
mod measure;
pub mod report;
mod request;
pub mod rounds;
pub mod soak;
mod subjects;
mod tally;
