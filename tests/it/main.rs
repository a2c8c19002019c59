//! The integration tests, in one binary so that the suite links once.
//!
//! Where does a new test go? A rule that needs neither network nor threads is a unit test beside its code in `src`. Else:
//!
//! | it is about | file | what it talks to |
//! |---|---|---|
//! | login, tokens, their refresh | `auth/` by subject | [`fake::Fake`], a script of answers |
//! | what comes of each answer to a write, and its bounds | `writes/` by subject | `Fake`; [`memory::Memory`] for threads |
//! | one kind of target: requests, bodies, versions, conflicts | `targets/` by kind | [`sandbox::Sandbox`] |
//! | events, hooks, subscriptions, audit, metrics, flush | `hooks/` by subject | `Fake`, `Memory` |
//! | settings, the environment, their errors | `config` | `Fake` |
//! | JSON in and out, names that are stable | `records` | nothing; `Sandbox` for what an update makes |
//! | what every public type promises | `public_types` | a transport of its own |
//! | that files import only from those before them | `layout` | the sources |
//! | what must not leak, anywhere | `secrets` | [`server::Server`], [`wire::Wire`] |
//! | broken connections, proxies, TLS, byte by byte | `wire_faults/` by subject | `Wire` |
//! | how many connections, and what goes over them | `connections` | `Server` |
//! | whether another HTTP server understands us | `independent_server` | mockito |
//! | many clients and threads on one store | `races` | `Sandbox` with random delays |
//! | many updates in one run | `batch/` by subject | [`store::Store`] |
//! | from the audit file to the world | `forward/` by subject | sinks and transports of its own; `Memory`, `Server`, `Store` |
//! | the program | `cli`, `cli/` by subject | `Store` |
//! | the feature `testing` | `testing` | `genesys_attributes::testing::Platform` |
//!
//! There is one platform that keeps state, `src/testing/platform`, and all stand-ins but scripts are front-ends of it:
//! `Sandbox` and `Store` over HTTP, `Memory` and `Platform` as a transport. What the platform does goes there; a fault that a
//! test needs is a `Fault` given to it. `Fake` is for tests in which the order of the requests is the point.
//!
//! Names are subject, condition, result: `batch_outage_at_start_parks_and_resumes`. Nothing sleeps: time is a `ManualClock`.

#[path = "../support/sandbox.rs"]
mod sandbox;
#[path = "../support/server.rs"]
mod server;
#[path = "../support/wire.rs"]
mod wire;

mod fake;
mod memory;
mod store;

mod auth;
mod batch;
#[cfg(all(feature = "capi", unix))]
mod capi;
#[cfg(feature = "cli")]
mod cli;
mod config;
mod connections;
#[cfg(feature = "forward")]
mod forward;
mod hooks;
mod independent_server;
mod layout;
mod public_types;
mod races;
mod records;
mod secrets;
mod targets;
#[cfg(feature = "testing")]
mod testing;
mod wire_faults;
mod writes;
