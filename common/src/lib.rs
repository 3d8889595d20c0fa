//! What more than one Tidemill service needs: the event and its Avro form, names, settings, and thin
//! clients for Kafka, Redis, Postgres and HTTP. No service's policy lives here.

pub mod auth;
pub mod breaker;
pub mod codec;
pub mod config;
pub mod dead_letters;
pub mod declared;
pub mod event;
pub mod failpoint;
pub mod home;
pub mod http;
pub mod kafka;
pub mod lock;
pub mod metric_update;
pub mod names;
pub mod origin;
pub mod postgres;
pub mod problem;
pub mod progress;
pub mod projects;
pub mod promoted;
pub mod redis;
pub mod registry;
pub mod seen;
pub mod telemetry;
pub mod verdict;
