//! An in-memory platform to test your own code with, without a network and without waiting (feature `testing`).
//!
//! [`Platform`] stands in for Genesys Cloud behind a real [`Client`]: all four stores with their versions and
//! conflicts, the login, throttling and whatever fault you script. Time is a [`ManualClock`]: a wait is
//! over at once, and you can look at how long it would have been.
//!
//! ```
//! use genesys_attributes::testing::{Action, Fault, Platform};
//! use genesys_attributes::{Client, Error, Update};
//! use std::time::Duration;
//!
//! // The code under test.
//! fn promote(client: &Client, conversation: &str) -> Result<(), Error> {
//!     client.update(&Update::participant(conversation, "customer").set("tier", "gold"))?;
//!     Ok(())
//! }
//!
//! let platform = Platform::new();
//! platform.add_conversation("c-1");
//! let client = platform.client_builder().build()?;
//!
//! // The platform is busy, and then the answer to the write gets lost on its way.
//! platform.script(Fault::on_write(Action::rate_limited(30)));
//! platform.script(Fault::on_write(Action::ApplyThenLose));
//! promote(&client, "c-1")?;
//!
//! let customer = &platform.conversation("c-1").expect("it was added").participants[1];
//! assert_eq!(customer.attributes["tier"], "gold");
//! assert!(platform.clock().sleeps()[0] >= Duration::from_secs(30));
//! assert_eq!(platform.counters().throttled, 1);
//! // Sent again after the lost answer: it took effect twice, with the same value.
//! assert_eq!(platform.writes().len(), 2);
//! # Ok::<(), genesys_attributes::Error>(())
//! ```
//!
//! Unlike the rest of this crate, these types show values in their `Debug` output: it is test data, and a failed assertion
//! has to show it.

mod platform;
mod records;
mod server;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::error::Sent;
use crate::http::{Request, Response, Transport, TransportError};
use crate::util::clock::{Clock, ManualClock};
use crate::{Client, ClientBuilder, Credentials, Error, ErrorKind, Region};
pub use platform::{
    Action, CLIENT_ID, CLIENT_SECRET, Conversation, Counters, Fault, Participant, Record, Secure,
    Seen, Store, VersionStyle, World, Write,
};
use platform::{Call, Reply};
pub use records::{audit_record, batch_outcome, event, metrics, receipt, snapshot};
pub use server::Server;

/// Nothing listens there, and nothing is to: the platform is the client's transport.
const URL: &str = "http://127.0.0.1:1";

/// A stand-in for the platform, in memory. Clones share it.
///
/// It is a [`Transport`], so it can also be given to any [`ClientBuilder`]; [`Platform::client_builder`] sets the rest.
#[derive(Clone)]
pub struct Platform {
    inside: Arc<Mutex<Inside>>,
    clock: ManualClock,
    start: Instant,
}

struct Inside {
    world: World,
    latency: Duration,
}

impl Platform {
    /// Without conversations, with a clock of its own.
    pub fn new() -> Platform {
        Platform::with_clock(ManualClock::new())
    }

    /// On a clock that it shares with others.
    pub fn with_clock(clock: ManualClock) -> Platform {
        Platform {
            inside: Arc::new(Mutex::new(Inside {
                world: World::new(),
                latency: Duration::ZERO,
            })),
            start: clock.now(),
            clock,
        }
    }

    /// The settings of a client of this platform: address, credentials, transport and clock. All others are the defaults;
    /// change what you like before `build()`.
    pub fn client_builder(&self) -> ClientBuilder {
        let credentials = Credentials::new(CLIENT_ID, CLIENT_SECRET);
        #[allow(clippy::expect_used, reason = "a row of the table, whatever comes in")]
        let region = Region::parse("us-east-1").expect("a known region");
        Client::builder(region, credentials)
            .base_url(URL)
            .transport(self.clone())
            .clock(self.clock.clone())
    }

    /// Serves the platform over HTTP on this port of the loopback interface; port 0 takes a free one. Programs and other
    /// languages reach it there: set `GENESYS_CLOUD_BASE_URL` to [`Server::url`], and log in with [`CLIENT_ID`] and
    /// [`CLIENT_SECRET`]. Behind HTTP the platform lives by the system's clock.
    ///
    /// # Errors
    ///
    /// Where the port is taken, or must not be used.
    pub fn serve(&self, port: u16) -> std::io::Result<Server> {
        Server::start(self.clone(), port)
    }

    /// The clock of the platform and its clients: what they slept, and the hand that moves it.
    pub fn clock(&self) -> &ManualClock {
        &self.clock
    }

    /// Adds a conversation with the participants `{id}-agent` and `{id}-customer`, in this order, or replaces one. Its
    /// conversation-level version is 1; no secure attributes and no custom records were ever written.
    pub fn add_conversation(&self, id: &str) {
        self.world(|world| {
            world.add(id);
        });
    }

    /// A copy of a conversation as it is now; `None` if there is none of this id.
    pub fn conversation(&self, id: &str) -> Option<Conversation> {
        self.world(|world| world.conversations.get(id).cloned())
    }

    /// Changes a conversation behind the clients' back, as another program would. It comes into being if need be. Raise the
    /// version of the store that you change, or locked writes will not notice.
    pub fn change_conversation(&self, id: &str, change: impl FnOnce(&mut Conversation)) {
        self.world(|world| {
            if !world.conversations.contains_key(id) {
                world.add(id);
            }
            world.conversations.get_mut(id).map(change);
        });
    }

    /// Adds a fault; see [`Fault`] for which requests, what, and how often.
    ///
    /// # Panics
    ///
    /// If the fault's status is not between 200 and 999.
    pub fn script(&self, fault: Fault) {
        self.world(|world| world.script(fault));
    }

    /// The next request of the API is answered with this status and the platform's body for it, and nothing is done.
    ///
    /// # Panics
    ///
    /// If the status is not between 200 and 999.
    pub fn fail_next(&self, status: u16) {
        self.script(Fault::on_api(Action::status(status)));
    }

    /// The next request of the API is answered 429 with `Retry-After` in seconds.
    pub fn throttle_next(&self, seconds: u64) {
        self.script(Fault::on_api(Action::rate_limited(seconds)));
    }

    /// The next write takes effect, but its answer is lost.
    pub fn lose_next_answer(&self) {
        self.script(Fault::on_write(Action::ApplyThenLose));
    }

    /// Before the next write takes effect, another writer sets this key in the same store: on a locked target, a conflict.
    pub fn interfere_next(&self, key: impl Into<String>, value: impl Into<Value>) {
        let (key, value) = (key.into(), value.into());
        self.script(Fault::on_write(Action::Interfere { key, value }));
    }

    /// From now on nothing can be reached, until [`Platform::clear_faults`].
    pub fn go_down(&self) {
        self.world(|world| {
            world.clear_faults();
            world.script(Fault::any(Action::Unreachable).always());
        });
    }

    /// Ends all faults, those that were not met yet among them.
    pub fn clear_faults(&self) {
        self.world(World::clear_faults);
    }

    /// Each request takes this long, on the platform's clock.
    pub fn set_latency(&self, latency: Duration) {
        self.lock().latency = latency;
    }

    /// All requests so far, logins among them, in order.
    pub fn requests(&self) -> Vec<Seen> {
        self.world(|world| world.requests.clone())
    }

    /// All writes that took effect so far, in order.
    pub fn writes(&self) -> Vec<Write> {
        self.world(|world| world.writes.clone())
    }

    /// How often what happened so far.
    pub fn counters(&self) -> Counters {
        self.world(|world| world.counters)
    }

    /// Looks at or changes anything else: tokens, rate limit, permissions, how versions are told. No request is answered
    /// meanwhile: do not call a client inside of `f`, it would wait forever.
    pub fn world<R>(&self, f: impl FnOnce(&mut World) -> R) -> R {
        f(&mut self.lock().world)
    }

    /// The reply to a request, and how long it takes.
    fn handle(&self, call: &Call) -> (Reply, Duration) {
        let mut inside = self.lock();
        (inside.world.handle(call), inside.latency)
    }

    /// A failed assertion inside of [`Platform::world`] must not bring down the other threads of a test.
    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Platform {
    fn default() -> Platform {
        Platform::new()
    }
}

impl fmt::Debug for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Platform").finish_non_exhaustive()
    }
}

impl Transport for Platform {
    fn send(&self, request: &Request) -> Result<Response, TransportError> {
        let url = request.url();
        // Without scheme and host, whichever base the client has.
        let after_scheme = url.find("://").map_or(0, |at| at + 3);
        let path = url.get(after_scheme..).and_then(|rest| rest.find('/'));
        let target = path
            .and_then(|at| url.get(after_scheme + at..))
            .unwrap_or("/");
        let call = Call::new(
            request.method().as_str(),
            target,
            request.headers(),
            request.body().unwrap_or_default(),
            self.clock.now().saturating_duration_since(self.start),
        );
        let (reply, latency) = self.handle(&call);
        self.clock.advance(latency);
        let lost = |kind, text: &str, sent| Err(TransportError::new(Error::new(kind, text), sent));
        match reply {
            Reply::Answer(answer) => {
                let response = Response::new(answer.status);
                let headers = answer.headers().into_iter();
                let response =
                    headers.fold(response, |all, (name, value)| all.with_header(name, value));
                Ok(response.with_body(answer.body))
            }
            Reply::Lost => {
                let text = "the connection ended before the answer came";
                lost(ErrorKind::Transport, text, Sent::Maybe)
            }
            Reply::Unreachable => lost(
                ErrorKind::Connect,
                "the platform cannot be reached",
                Sent::No,
            ),
        }
    }
}
