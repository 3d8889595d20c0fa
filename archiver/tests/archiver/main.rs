//! The archiver on the real components. Every test has a project, topics, a database and a warehouse of its own.
#![allow(clippy::unwrap_used)] // a test that cannot go on must fail loudly

mod commits;
mod files;
mod given_up;
mod group;
mod once;
mod reader;
mod support;
mod trouble;
