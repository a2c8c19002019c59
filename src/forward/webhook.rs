//! Events by HTTP POST, signed as the Standard Webhooks specification 1.0 says.
//!
//! It has connections and time limits of its own, shared with no client.

use std::fmt;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use ring::hmac;

use crate::client::settings::{Proxy, Roots, Settings};
use crate::error::secret::Secret;
use crate::error::{Error, ErrorKind, Result};
use crate::forward::{Envelope, Sink, Undelivered};
use crate::http::address::{check_webhook, host_and_port};
use crate::http::ureq_transport::{ProxyChoice, TransportOptions, UreqTransport};
use crate::http::{Body, Method, Request, Response, Timeouts, Transport};
use crate::report::event::UpdateEvent;
use crate::util::base64;
use crate::util::clock::{Clock, SystemClock};
use crate::util::date;

/// Posts the [webhook envelope](crate::UpdateEvent::webhook_payload) of an update to a receiver.
///
/// As a [`Sink`] of a [`Forwarder`](crate::forward::Forwarder) it delivers at least once, also after a
/// crash. [`deliver`](Webhook::deliver) posts one event and is for those who need no more.
///
/// Each request has the header fields of the
/// [Standard Webhooks specification](https://www.standardwebhooks.com): `webhook-id` (the id of the
/// update's audit records: the same whenever it is sent again, so a receiver can tell repeats),
/// `webhook-timestamp` (when it is sent, seconds since 1970) and, with a
/// [secret](Webhook::secret), `webhook-signature`. Any status of 200 to 299 is success. Redirects
/// are not followed.
///
/// ```
/// use genesys_attributes::webhook::Webhook;
///
/// let webhook = Webhook::new("https://crm.example/hooks/genesys")?
///     .secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")?
///     .header("X-Tenant", "north")?;
/// # Ok::<(), genesys_attributes::Error>(())
/// ```
#[must_use = "a webhook does nothing until an event is delivered to it"]
pub struct Webhook {
    url: String,
    keys: Vec<hmac::Key>,
    headers: Vec<(String, Secret)>,
    options: TransportOptions,
    transport: Arc<dyn Transport>,
    clock: Arc<dyn Clock>,
}

/// Statuses of a receiver that does not take this event, however often it is sent.
const FINAL: [u16; 4] = [400, 413, 415, 422];
/// Statuses of a receiver that takes no events: the address is wrong, or the credentials.
const UNAVAILABLE: [u16; 6] = [401, 403, 404, 405, 407, 410];

/// The header fields that the webhook sets itself.
const OWN: [&str; 9] = [
    "accept",
    "connection",
    "content-length",
    "content-type",
    "host",
    "transfer-encoding",
    "webhook-id",
    "webhook-signature",
    "webhook-timestamp",
];

impl Webhook {
    /// A webhook to this address: https, or http to a loopback host.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`], saying what is wrong with the address.
    pub fn new(url: impl Into<String>) -> Result<Webhook> {
        let url = url.into();
        check_webhook(&url).map_err(|problem| Error::config("webhook URL", problem))?;
        let options = TransportOptions {
            timeouts: Timeouts::default(),
            proxy: ProxyChoice::Environment,
            root_certificates: None,
            client_certificate: None,
            max_idle_connections: 4,
            max_response_body: 1 << 16,
            user_agent: concat!("genesys-attributes/", env!("CARGO_PKG_VERSION")).to_owned(),
        };
        Ok(Webhook {
            url,
            keys: Vec::new(),
            headers: Vec::new(),
            transport: Arc::new(UreqTransport::new(&options)?),
            options,
            clock: Arc::new(SystemClock),
        })
    }

    /// The webhook that the field `webhook` of the settings describes, at `url` if that is given;
    /// `None` without an address.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`], saying what is wrong, or which file cannot be read.
    pub fn from_settings(settings: &Settings, url: Option<&str>) -> Result<Option<Webhook>> {
        let receiver = settings.webhook.clone();
        let Some(url) = url.or(receiver.url.as_ref().map(Secret::expose)) else {
            return Ok(None);
        };
        let mut webhook = Webhook::new(url)?.timeouts(receiver.timeouts)?;
        webhook.options.proxy = match receiver.proxy {
            None => ProxyChoice::Environment,
            Some(Proxy::None) => ProxyChoice::None,
            Some(Proxy::Url(url)) => ProxyChoice::Url(url),
        };
        webhook.options.root_certificates =
            receiver.root_certificates.map(Roots::pem).transpose()?;
        webhook.rebuilt().map(Some)
    }

    /// Signs with this secret, `whsec_` and base64, as the receiver gave it. With several, each
    /// request has a signature of each, so that secrets can be exchanged without a gap.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] when it is no base64.
    pub fn secret(mut self, secret: &str) -> Result<Webhook> {
        let secret = secret.trim();
        let key = base64::decode(secret.strip_prefix("whsec_").unwrap_or(secret))
            .filter(|key| !key.is_empty())
            .ok_or_else(|| {
                Error::config(
                    "webhook secret",
                    "is no base64: give it as the receiver shows it, whsec_ and base64",
                )
            })?;
        if key.len() < 24 {
            log::warn!(
                "the webhook secret has {} bytes; the specification asks for 24 to 64",
                key.len()
            );
        }
        self.keys.push(hmac::Key::new(hmac::HMAC_SHA256, &key));
        Ok(self)
    }

    /// Adds a header field to each request. Its value is kept out of logs and `Debug`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] when it is no header field, or one that the webhook sets itself.
    pub fn header(mut self, name: impl Into<String>, value: &str) -> Result<Webhook> {
        let name = name.into();
        let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if name.is_empty() || !name.bytes().all(is_token) {
            return Err(Error::config(
                "webhook header",
                "has no valid name: letters, digits and hyphens",
            ));
        }
        if OWN.iter().any(|own| own.eq_ignore_ascii_case(&name)) {
            return Err(Error::config(
                "webhook header",
                format!("{name} is set by the webhook itself: leave it out"),
            ));
        }
        let value = value.trim();
        if value.is_empty() || !value.bytes().all(|b| (b' '..=b'~').contains(&b)) {
            return Err(Error::config(
                "webhook header",
                format!("{name} has a value that is empty or not printable ASCII"),
            ));
        }
        self.headers.push((name, Secret::new(value)));
        Ok(self)
    }

    /// Sets the time limits of one request. Default [`Timeouts::default`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] when they are out of bounds.
    pub fn timeouts(mut self, timeouts: Timeouts) -> Result<Webhook> {
        timeouts.check()?;
        self.options.timeouts = timeouts;
        self.rebuilt()
    }

    /// Trusts these certificate authorities, and no others: PEM text.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] when it cannot be read.
    pub fn root_certificates(mut self, pem: impl Into<Vec<u8>>) -> Result<Webhook> {
        self.options.root_certificates = Some(pem.into());
        self.rebuilt()
    }

    /// Sends to other than loopback hosts through this proxy, such as
    /// `http://user:password@proxy:8080`. Default: what `ALL_PROXY`, `HTTPS_PROXY`, `HTTP_PROXY`
    /// and `NO_PROXY` say.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] when it is no address of a proxy.
    pub fn proxy(mut self, url: impl Into<String>) -> Result<Webhook> {
        self.options.proxy = ProxyChoice::Url(Secret::new(url));
        self.rebuilt()
    }

    fn rebuilt(mut self) -> Result<Webhook> {
        self.transport = Arc::new(UreqTransport::new(&self.options)?);
        Ok(self)
    }

    /// Sends by another transport than the built-in one; timeouts and certificates are then that
    /// transport's.
    pub fn transport(mut self, transport: impl Transport + 'static) -> Webhook {
        self.transport = Arc::new(transport);
        self
    }

    /// Takes the time from another clock; for tests.
    pub fn clock(mut self, clock: impl Clock + 'static) -> Webhook {
        self.clock = Arc::new(clock);
        self
    }

    /// Posts one event, once. Nothing is kept: when it fails the event is the caller's.
    ///
    /// # Errors
    ///
    /// Why the receiver did not take it; [`Error::is_transient`] says whether another try may
    /// help, [`Error::retry_after`] when.
    ///
    /// ```no_run
    /// # use genesys_attributes::{Client, webhook::Webhook};
    /// # let client = Client::from_env()?;
    /// let webhook = Webhook::new("https://crm.example/hooks/genesys")?;
    /// let events = client.subscribe(1_000); // bounded: what does not fit is dropped and counted
    /// std::thread::spawn(move || {
    ///     for event in events {
    ///         if let Err(error) = webhook.deliver(&event) {
    ///             eprintln!("{}: {error}", event.conversation_id);
    ///         }
    ///     }
    /// });
    /// # Ok::<(), genesys_attributes::Error>(())
    /// ```
    pub fn deliver(&self, event: &UpdateEvent) -> Result<()> {
        let body = event.webhook_payload().to_string();
        self.post(&event.id, body.as_bytes())
            .map_err(Undelivered::into_error)
    }

    fn post(&self, id: &str, body: &[u8]) -> std::result::Result<(), Undelivered> {
        // It goes into a header field.
        if id.is_empty() || !id.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Undelivered::Never {
                error: Error::new(
                    ErrorKind::InvalidInput,
                    "the id of the event cannot be sent as webhook-id: it is not printable ASCII \
                     without spaces",
                ),
                answer: String::new(),
            });
        }
        let sent_at = self.clock.wall().duration_since(UNIX_EPOCH);
        let timestamp = sent_at.unwrap_or_default().as_secs().to_string();
        let mut request = Request::new(Method::Post, self.url.clone());
        request.extra.clone_from(&self.headers);
        if !self.keys.is_empty() {
            let signatures = self.signatures(id, &timestamp, body);
            let field = ("webhook-signature".to_owned(), Secret::new(signatures));
            request.extra.push(field);
        }
        for (name, value) in [("webhook-id", id), ("webhook-timestamp", &timestamp)] {
            request.extra.push((name.to_owned(), Secret::new(value)));
        }
        request.body = Some(body.to_vec());
        match self.transport.send(&request) {
            Ok(response) if response.is_success() => Ok(()),
            Ok(response) => Err(self.refusal(&response)),
            Err(failure) => Err(Undelivered::Later {
                error: failure.error.within("webhook"),
                answer: String::new(),
            }),
        }
    }

    fn signatures(&self, id: &str, timestamp: &str, body: &[u8]) -> String {
        let mut all = String::with_capacity(48 * self.keys.len());
        for key in &self.keys {
            let mut context = hmac::Context::with_key(key);
            for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
                context.update(part);
            }
            if !all.is_empty() {
                all.push(' ');
            }
            all += "v1,";
            all += &base64::encode(context.sign().as_ref());
        }
        all
    }

    fn refusal(&self, response: &Response) -> Undelivered {
        const SHOWN: usize = 200;
        let status = response.status;
        let host = host_and_port(&self.url);
        let (kind, advice) = match status {
            300..=399 => (
                ErrorKind::Protocol,
                ", a redirect, which is not followed: give the address that it leads to",
            ),
            401 => (
                ErrorKind::Auth,
                ": check the secret and the header fields that it wants",
            ),
            403 => (ErrorKind::Forbidden, ": it does not permit the delivery"),
            404 | 410 => (ErrorKind::NotFound, ": check the webhook's address"),
            408 => (ErrorKind::Timeout, ""),
            413 => (
                ErrorKind::PayloadTooLarge,
                ": the event is too large for it",
            ),
            429 => (ErrorKind::RateLimited, ": it asks to slow down"),
            405 => (
                ErrorKind::InvalidInput,
                ": it takes no POST; check the webhook's address",
            ),
            407 => (ErrorKind::Auth, ": the proxy wants other credentials"),
            400 | 415 | 422 => (
                ErrorKind::InvalidInput,
                ": it does not take such events; check the webhook's address",
            ),
            500..=599 => (ErrorKind::Server, ""),
            _ => (ErrorKind::Protocol, ""),
        };
        let wait = response.header("retry-after");
        let is_final = FINAL.contains(&status);
        let is_unavailable = UNAVAILABLE.contains(&status) || (300..=399).contains(&status);
        let error = Error::new(
            kind,
            format!("the receiver at {host} answered {status}{advice}"),
        )
        .with_http_status(status)
        .with_retry_after(wait.and_then(|text| date::retry_after(text, self.clock.wall())))
        .with_transient(!is_final && !is_unavailable);
        let answer = match &response.body {
            Body::Whole(bytes) | Body::TooLarge(bytes) => {
                String::from_utf8_lossy(bytes).chars().take(SHOWN).collect()
            }
            _ => String::new(),
        };
        match (is_final, is_unavailable) {
            (true, _) => Undelivered::Never { error, answer },
            (_, true) => Undelivered::Unavailable { error, answer },
            _ => Undelivered::Later { error, answer },
        }
    }
}

impl Sink for Webhook {
    fn hand_over(&mut self, envelope: &Envelope<'_>) -> std::result::Result<(), Undelivered> {
        self.post(envelope.id, envelope.body)
    }
}

/// Shows only the host of the URL: the rest may hold a token.
impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headers = self.headers.iter().map(|(name, _)| name);
        f.debug_struct("Webhook")
            .field("host", &host_and_port(&self.url))
            .field("headers", &Vec::from_iter(headers))
            .field("secrets", &self.keys.len())
            .finish_non_exhaustive()
    }
}
