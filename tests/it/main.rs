//! The integration tests, in one binary so that the suite links once.

#[path = "../support/sandbox.rs"]
mod sandbox;
#[path = "../support/server.rs"]
mod server;
#[path = "../support/wire.rs"]
mod wire;

mod fake;
mod store;

mod auth;
mod batch;
#[cfg(feature = "cli")]
mod cli;
mod config;
mod connections;
mod hooks;
mod public_api;
mod races;
mod records;
mod secrets;
mod targets;
mod wire_faults;
mod writes;
