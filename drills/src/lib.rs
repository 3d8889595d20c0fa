//! Fault drills: real processes on real components are broken in a given way under traffic; then journal, log,
//! Postgres, Redis, archive, processed topic and dead letters are compared event by event with what the log says
//! they must hold, and every difference is printed. `docs/drills.md` tells what each row shows.

pub mod archiving;
pub mod drill;
pub mod flow;
pub mod journal;
pub mod load;
pub mod log;
pub mod onlooker;
pub mod oracle;
pub mod process;
pub mod proxy;
pub mod reconcile;
pub mod rows;
pub mod run;
pub mod send;
mod settle;
pub mod tmpfs;
pub mod traffic;
pub mod views;
