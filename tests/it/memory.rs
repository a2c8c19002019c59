//! The stand-in for the platform as a transport, for tests with many threads.

use std::time::Duration;

use genesys_attributes::clock::ManualClock;
use genesys_attributes::error::Sent;
use genesys_attributes::http::{Request, Response, Transport, TransportError};
use genesys_attributes::{Client, ClientBuilder, Credentials, ErrorKind, RateLimit, Region};

use crate::fake::{BASE, failure};
use crate::sandbox::{Backend, CLIENT_ID, CLIENT_SECRET, Call, Reply, World};

/// Clones share it. Conversations come into being at first sight, as version 0.
#[derive(Clone)]
pub struct Memory(Backend);

impl Memory {
    pub fn new() -> Memory {
        let backend = Backend::new();
        backend.world(|world| {
            world.auto_create = true;
            world.first_version = 0;
        });
        Memory(backend)
    }

    pub fn world<R>(&self, f: impl FnOnce(&mut World) -> R) -> R {
        self.0.world(f)
    }

    pub fn builder(&self) -> ClientBuilder {
        let credentials = Credentials::new(CLIENT_ID, CLIENT_SECRET);
        Client::builder(Region::parse("eu-west-1").unwrap(), credentials)
            .base_url(BASE)
            .transport(self.clone())
            .clock(ManualClock::new())
            .rate_limit(RateLimit::unlimited())
    }
}

impl Transport for Memory {
    fn send(&self, request: &Request) -> Result<Response, TransportError> {
        let call = Call::new(
            request.method().as_str(),
            request.url().strip_prefix(BASE).unwrap_or(request.url()),
            request.headers(),
            request.body().unwrap_or_default(),
            Duration::ZERO,
        );
        match self.0.handle(&call) {
            Reply::Lost => Err(failure(ErrorKind::Transport, Sent::Maybe)),
            Reply::Unreachable => Err(failure(ErrorKind::Connect, Sent::No)),
            Reply::Answer(answer) => {
                let headers = answer.headers().into_iter();
                let response = headers.fold(Response::new(answer.status), |all, (name, value)| {
                    all.with_header(name, value)
                });
                Ok(response.with_body(answer.body))
            }
        }
    }
}
