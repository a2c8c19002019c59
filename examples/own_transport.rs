//! A transport of your own around a ureq agent: the library retries, waits and reads the answers,
//! and you carry the requests, by another HTTP client, through a gateway, or with measurements.

#[path = "../tests/support/sandbox.rs"]
mod sandbox;
#[path = "../tests/support/server.rs"]
mod server;

use genesys_attributes::error::Sent;
use genesys_attributes::http::{Request, Response, Transport, TransportError};
use genesys_attributes::{Client, Credentials, Error, ErrorKind, Region, Update};
use sandbox::{CLIENT_ID, CLIENT_SECRET, Sandbox};

struct Logged(ureq::Agent);

impl Transport for Logged {
    fn send(&self, request: &Request) -> Result<Response, TransportError> {
        // The one duty that matters: whether the request may have arrived. `No` only when it is
        // certain, since a write is then counted as not done.
        let lost = |error: ureq::Error| {
            let (kind, sent) = match error {
                ureq::Error::ConnectionFailed | ureq::Error::HostNotFound => {
                    (ErrorKind::Connect, Sent::No)
                }
                ureq::Error::Timeout(_) => (ErrorKind::Timeout, Sent::Maybe),
                _ => (ErrorKind::Transport, Sent::Maybe),
            };
            TransportError::new(Error::new(kind, error.to_string()), sent)
        };
        let mut out = ureq::http::Request::builder()
            .method(request.method().as_str())
            .uri(request.url());
        for (name, value) in request.headers() {
            out = out.header(name, value);
        }
        let out = out
            .body(request.body().unwrap_or_default())
            .map_err(|error| lost(error.into()))?;
        // Any status is an answer, and redirects are not followed.
        let sent = self.0.run(out).map_err(lost)?;
        println!(
            "{} {}: {}",
            request.method().as_str(),
            request.url(),
            sent.status()
        );
        let (head, mut body) = sent.into_parts();
        let mut response = Response::new(head.status.as_u16());
        for (name, value) in &head.headers {
            response = response.with_header(name.as_str(), value.to_str().unwrap_or_default());
        }
        Ok(match body.read_to_vec() {
            Ok(body) => response.with_body(body),
            Err(error) => response.with_broken_body(error.to_string()),
        })
    }
}

fn main() -> Result<(), Error> {
    let sandbox = Sandbox::start();
    sandbox.world(|world| {
        world.add("c-1");
    });
    let agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .timeout_global(Some(std::time::Duration::from_secs(30)))
        .build();
    let credentials = Credentials::new(CLIENT_ID, CLIENT_SECRET);
    let client = Client::builder(Region::parse("us-east-1")?, credentials)
        .base_url(sandbox.url())
        .transport(Logged(agent.into()))
        .build()?;
    let update = Update::participant("c-1", "customer").set("customer.tier", "gold");
    println!("{}", client.update(&update)?.outcome);
    Ok(())
}
