//! The archiver on the real components. Every test has a project, topics, a database and a warehouse of its own.
#![allow(clippy::unwrap_used)] // a test that cannot go on must fail loudly

mod commits;
mod elsewhere;
mod files;
mod given_up;
mod group;
mod grow;
mod https;
mod layout;
mod maintain;
mod once;
mod reader;
mod route;
mod support;
mod trouble;
