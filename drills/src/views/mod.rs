//! What the views hold, read the way any reader would: by their documented tables, keys and topics.

mod archive;
mod postgres;
mod published;
mod redis;
mod topics;

pub use archive::archived;
pub use postgres::{Counted, Ledger, counted, ledger};
pub use published::{Published, Stamp, published};
pub use redis::{Shown, connect, shown};
pub use topics::{Processed, Sent, sent_on};
