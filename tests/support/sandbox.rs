//! The stand-in for the platform behind HTTP, on a port of this machine: `src/testing/platform`, which knows the platform,
//! served by `server.rs`, which knows HTTP. Who includes this file includes `server.rs` as `crate::server` beside it.
//!
//! Connections are kept alive and served in parallel; the world is looked at and changed by one request at a time.
#![allow(dead_code)]

#[allow(unused_imports)]
#[path = "../../src/testing/platform/mod.rs"]
mod platform;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

pub use platform::*;

use crate::server::{Req, Resp, Server};

/// The world and its clock, for any number of servers and threads. Clones share it.
#[derive(Clone)]
pub struct Backend {
    world: Arc<Mutex<World>>,
    start: Instant,
}

impl Backend {
    pub fn new() -> Backend {
        Backend {
            world: Arc::new(Mutex::new(World::new())),
            start: Instant::now(),
        }
    }

    /// Looks at or changes the world while no request is being answered. Never send a request from within `f`.
    pub fn world<R>(&self, f: impl FnOnce(&mut World) -> R) -> R {
        f(&mut self.lock())
    }

    pub fn handle(&self, call: &Call) -> Reply {
        self.lock().handle(call)
    }

    /// What the platform answers over HTTP. No connection is what no test of a server can play: it is a lost request.
    pub fn answer(&self, req: &Req<'_>) -> Resp {
        let at = req.at.saturating_duration_since(self.start);
        let call = Call::new(req.method, req.path, req.headers(), req.body, at);
        match self.handle(&call) {
            Reply::Lost | Reply::Unreachable => Resp::reset(),
            Reply::Answer(answer) => {
                let resp = match answer.body.is_empty() {
                    true => Resp::empty(answer.status),
                    false => Resp::json(answer.status, String::from_utf8_lossy(&answer.body)),
                };
                let headers = answer.headers().into_iter();
                headers.fold(resp, |resp, (name, value)| resp.header(name, value))
            }
        }
    }

    /// A failed assertion inside of `world` must not bring down the server, and other tests' messages with it.
    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One running stand-in. Clones share it; it lives until the last clone is dropped.
#[derive(Clone)]
pub struct Sandbox {
    backend: Backend,
    server: Arc<Server>,
}

impl Sandbox {
    /// Starts on a free port.
    pub fn start() -> Sandbox {
        Sandbox::start_on(0).expect("bind to loopback")
    }

    /// Starts on this port; an error says that it is taken.
    pub fn start_on(port: u16) -> io::Result<Sandbox> {
        Sandbox::build(port, |_, _| None)
    }

    /// Starts on a free port; `first` may answer in its stead, and let it do the work all the same.
    pub fn start_with(
        first: impl Fn(&Req<'_>, &Backend) -> Option<Resp> + Send + Sync + 'static,
    ) -> Sandbox {
        Sandbox::build(0, first).expect("bind to loopback")
    }

    fn build(
        port: u16,
        first: impl Fn(&Req<'_>, &Backend) -> Option<Resp> + Send + Sync + 'static,
    ) -> io::Result<Sandbox> {
        let backend = Backend::new();
        let theirs = backend.clone();
        let server = Server::start_on(port, move |req| {
            first(req, &theirs).unwrap_or_else(|| theirs.answer(req))
        })?;
        Ok(Sandbox {
            backend,
            server: Arc::new(server),
        })
    }

    /// `http://127.0.0.1:PORT`, the base of the API and of the login alike.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// The HTTP side: connections, bytes, handlers that panicked.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Looks at or changes the world while no request is being answered. Never send a request from within `f`.
    pub fn world<R>(&self, f: impl FnOnce(&mut World) -> R) -> R {
        self.backend.world(f)
    }

    /// All requests so far, in order.
    pub fn requests(&self) -> Vec<Seen> {
        self.world(|world| world.requests.clone())
    }

    /// All requests so far but those for a token, in order.
    pub fn api_requests(&self) -> Vec<Seen> {
        let mut seen = self.requests();
        seen.retain(|one| !one.is_login());
        seen
    }

    pub fn clear_requests(&self) {
        self.world(|world| world.requests.clear());
    }
}
