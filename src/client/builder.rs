//! The settings of a client: from code, from the environment, checked once.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::client::Client;
use crate::error::secret::Secret;
use crate::error::{Error, ErrorKind, Result};
use crate::http::address::base_url;
use crate::http::region::Region;
use crate::http::ureq_transport::{ProxyChoice, TransportOptions, UreqTransport};
use crate::http::{Timeouts, Transport};
use crate::report::audit::{AuditMode, AuditSink};
use crate::report::event::{Hook, Listeners, UpdateEvent};
use crate::report::metrics::Counters;
use crate::session::Session;
use crate::session::auth::{Credentials, TokenSource};
use crate::session::exchange::Wire;
use crate::session::limiter::{Limiter, RateLimit};
use crate::session::retry::RetryPolicy;
use crate::store::cache::Cache;
use crate::update::core::{Audit, Core, EndedPolicy};
use crate::util::clock::{Clock, SystemClock};
use crate::util::keyed_lock::KeyedLock;
use crate::util::process::Process;
use crate::util::random::{Seeds, unique_name};
use crate::values::attributes::ValidationLimits;
use crate::values::schema::Schema;

/// Makes a [`Client`]. Every setting has a default; all are checked in
/// [`build`](ClientBuilder::build).
///
/// ```
/// use genesys_attributes::{Client, Credentials, RateLimit, Region, RetryPolicy};
///
/// let client = Client::builder(Region::parse("eu-west-1")?, Credentials::new("id", "secret"))
///     .rate_limit(RateLimit::per_minute(120))
///     .retry(RetryPolicy::default().with_max_attempts(6))
///     .metadata_source("crm-sync")
///     .on_update(|event| println!("{} changed", event.conversation_id))
///     .build()?;
/// # Ok::<(), genesys_attributes::Error>(())
/// ```
#[must_use = "a builder does nothing until `build` is called"]
pub struct ClientBuilder {
    region: Option<Region>,
    credentials: Credentials,
    base_url: Option<String>,
    login_url: Option<String>,
    allow_http: bool,
    transport_options: TransportOptions,
    retry: RetryPolicy,
    rate_limit: RateLimit,
    limits: ValidationLimits,
    schemas: Vec<Schema>,
    metadata_source: String,
    ended: EndedPolicy,
    hooks: Vec<Hook>,
    secure_values_in_events: bool,
    audit: Option<Arc<dyn AuditSink>>,
    audit_mode: AuditMode,
    audit_values: bool,
    secure_values_in_audit: bool,
    version_cache: usize,
    jitter_seed: Option<u64>,
    transport: Option<Arc<dyn Transport>>,
    clock: Arc<dyn Clock>,
    names: Names,
}

/// Other names for settings, by those that [`ClientBuilder::build`] has for them in its errors.
pub(crate) type Names = &'static [(&'static str, &'static str)];

impl Client {
    /// Starts the settings of a client for a region and credentials.
    pub fn builder(region: Region, credentials: Credentials) -> ClientBuilder {
        ClientBuilder::new(Some(region), credentials)
    }

    /// A client with the settings of the environment; see [`ClientBuilder::from_env`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`], naming the variable that is missing or wrong.
    pub fn from_env() -> Result<Client> {
        ClientBuilder::from_env()?.build()
    }
}

/// The names that the platform's SDKs use in their samples, and those of the official command line
/// and Terraform provider.
const CURRENT: [&str; 3] = [
    "GENESYS_CLOUD_REGION",
    "GENESYS_CLOUD_CLIENT_ID",
    "GENESYS_CLOUD_CLIENT_SECRET",
];
const OFFICIAL: [&str; 4] = [
    "GENESYSCLOUD_REGION",
    "GENESYSCLOUD_OAUTHCLIENT_ID",
    "GENESYSCLOUD_OAUTHCLIENT_SECRET",
    "GENESYSCLOUD_ACCESS_TOKEN",
];
pub(crate) const BASE_URL: &str = "GENESYS_CLOUD_BASE_URL";
pub(crate) const LOGIN_URL: &str = "GENESYS_CLOUD_LOGIN_URL";

/// What other tools' names for region and credentials are made of.
const FAMILIES: [&str; 5] = [
    "GENESYS_CLOUD_",
    "GENESYSCLOUD_",
    "GENESYS_",
    "PURECLOUD_",
    "GC_",
];
const PARTS: [&str; 15] = [
    "REGION",
    "ENVIRONMENT",
    "HOST",
    "CLIENT_ID",
    "CLIENTID",
    "CLIENT_CREDENTIALS",
    "CLIENT_SECRET",
    "CLIENTSECRET",
    "OAUTH_CLIENT_ID",
    "OAUTH_CLIENT_SECRET",
    "OAUTHCLIENT_ID",
    "OAUTHCLIENT_SECRET",
    "ACCESS_TOKEN",
    "TOKEN",
    "SECRET",
];

/// A variable of the environment.
pub(crate) fn variable(name: &str) -> Result<Option<String>> {
    match std::env::var(name) {
        Ok(value) => Ok(Some(value)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => Err(Error::config(name, "is not UTF-8")),
    }
}

/// The error for variables that are not set; `unread` are set, under names that are not read.
fn incomplete(missing: &[&str], family: &[&str], unread: &[String]) -> Error {
    let verb = if missing.len() == 1 { "is" } else { "are" };
    let mut text = format!(
        "missing required environment variables: {} {verb} not set; set all of {}",
        missing.join(", "),
        family.join(", ")
    );
    if !unread.is_empty() {
        let (found, verb) = (
            unread.join(", "),
            if unread.len() == 1 { "is" } else { "are" },
        );
        text += &format!(" ({found} {verb} set, and not read together with them)");
    }
    text += ". The program also takes --credentials FILE or --profile NAME, and \
             `genesys-attributes sandbox` needs no organization";
    Error::new(ErrorKind::Config, text)
}

impl ClientBuilder {
    pub(crate) fn new(region: Option<Region>, credentials: Credentials) -> ClientBuilder {
        ClientBuilder {
            region,
            credentials,
            base_url: None,
            login_url: None,
            allow_http: false,
            transport_options: TransportOptions {
                timeouts: Timeouts::default(),
                proxy: ProxyChoice::Environment,
                root_certificates: None,
                client_certificate: None,
                max_idle_connections: 64,
                max_response_body: 1 << 20,
                user_agent: concat!("genesys-attributes/", env!("CARGO_PKG_VERSION")).to_owned(),
            },
            retry: RetryPolicy::default(),
            rate_limit: RateLimit::default(),
            limits: ValidationLimits::default(),
            schemas: Vec::new(),
            metadata_source: "external-integration".to_owned(),
            ended: EndedPolicy::default(),
            hooks: Vec::new(),
            secure_values_in_events: false,
            audit: None,
            audit_mode: AuditMode::default(),
            audit_values: false,
            secure_values_in_audit: false,
            version_cache: 10_000,
            jitter_seed: None,
            transport: None,
            clock: Arc::new(SystemClock),
            names: &[],
        }
    }

    /// Calls settings by these names in errors, for those who did not write Rust.
    pub(crate) fn named(mut self, names: Names) -> ClientBuilder {
        self.names = names;
        self
    }

    /// Takes region and credentials from the environment: one whole family of variables, never a
    /// mixture of two.
    ///
    /// 1. `GENESYS_CLOUD_REGION`, `GENESYS_CLOUD_CLIENT_ID` and `GENESYS_CLOUD_CLIENT_SECRET`, if
    ///    any of the three is set;
    /// 2. else `GENESYSCLOUD_REGION` with `GENESYSCLOUD_ACCESS_TOKEN`, or with
    ///    `GENESYSCLOUD_OAUTHCLIENT_ID` and `GENESYSCLOUD_OAUTHCLIENT_SECRET`.
    ///
    /// `GENESYS_CLOUD_BASE_URL` goes with both, for a sandbox or gateway, and so does
    /// `GENESYS_CLOUD_LOGIN_URL` where that logs in at another address; the region may be left out
    /// where a base URL is given. An empty variable counts as one that is not set.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`], naming every variable that is missing, those that are set under names
    /// that are not read, or the variable that is wrong.
    ///
    /// ```no_run
    /// use genesys_attributes::{ClientBuilder, RateLimit};
    ///
    /// let client = ClientBuilder::from_env()?.rate_limit(RateLimit::per_minute(120)).build()?;
    /// # Ok::<(), genesys_attributes::Error>(())
    /// ```
    pub fn from_env() -> Result<ClientBuilder> {
        ClientBuilder::from_variables(variable)
    }

    /// As [`ClientBuilder::from_env`], with the variables from anywhere: `lookup` gives the value
    /// of a name.
    ///
    /// # Errors
    ///
    /// As [`ClientBuilder::from_env`], and whatever `lookup` returns.
    ///
    /// ```
    /// use genesys_attributes::ClientBuilder;
    ///
    /// let error = ClientBuilder::from_variables(|name| {
    ///     Ok((name == "GENESYS_CLOUD_CLIENT_ID").then(|| "id".to_owned()))
    /// })
    /// .err()
    /// .unwrap();
    /// assert!(error.to_string().contains("GENESYS_CLOUD_CLIENT_SECRET"));
    /// ```
    pub fn from_variables(
        lookup: impl Fn(&str) -> Result<Option<String>>,
    ) -> Result<ClientBuilder> {
        let get = |name: &str| lookup(name).map(|value| value.filter(|v| !v.trim().is_empty()));
        let any = |names: &[&str]| -> Result<bool> {
            for name in names {
                if get(name)?.is_some() {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        let [_, _, _, token_name] = OFFICIAL;
        let is_official = !any(&CURRENT)? && any(&OFFICIAL)?;
        let family = match is_official {
            true => [OFFICIAL[0], OFFICIAL[1], OFFICIAL[2]],
            false => CURRENT,
        };
        let [region_name, id_name, secret_name] = family;
        let base = get(BASE_URL)?;
        let region = get(region_name)?;
        let token = if is_official { get(token_name)? } else { None };
        let (id, secret) = (get(id_name)?, get(secret_name)?);
        let missing = [
            (region.is_none() && base.is_none()).then_some(region_name),
            (id.is_none() && token.is_none()).then_some(id_name),
            (secret.is_none() && token.is_none()).then_some(secret_name),
        ];
        let missing = Vec::from_iter(missing.into_iter().flatten());
        let credentials = match (id, secret, token) {
            (_, _, Some(token)) if missing.is_empty() => Credentials::access_token(token),
            (Some(id), Some(secret), None) if missing.is_empty() => Credentials::new(id, secret),
            _ => {
                let mut unread = Vec::new();
                for name in FAMILIES
                    .iter()
                    .flat_map(|f| PARTS.map(|part| [*f, part].concat()))
                {
                    if !family.contains(&name.as_str()) && get(&name)?.is_some() {
                        unread.push(name);
                    }
                }
                return Err(incomplete(&missing, &family, &unread));
            }
        };
        let region = region.map(|text| Region::parse(&text)).transpose();
        let region = region.map_err(|e| Error::config(region_name, e))?;
        let mut builder = ClientBuilder::new(region, credentials);
        builder.base_url = base;
        builder.login_url = get(LOGIN_URL)?;
        Ok(builder)
    }

    /// Sends API and login requests to this address instead of the region's: a sandbox, a test
    /// server or a gateway. A path in it is kept. Where it is the API's address of a known region,
    /// logins go to that region's own address.
    pub fn base_url(mut self, url: impl Into<String>) -> ClientBuilder {
        self.base_url = Some(url.into());
        self
    }

    /// Sends login requests to this address, where it differs from [`ClientBuilder::base_url`].
    pub fn login_url(mut self, url: impl Into<String>) -> ClientBuilder {
        self.login_url = Some(url.into());
        self
    }

    /// Allows plain http to hosts other than loopback. The token then travels in the clear.
    pub fn allow_http(mut self, allow: bool) -> ClientBuilder {
        self.allow_http = allow;
        self
    }

    /// Sets the time limits of one request. Default [`Timeouts::default`].
    pub fn timeouts(mut self, timeouts: Timeouts) -> ClientBuilder {
        self.transport_options.timeouts = timeouts;
        self
    }

    /// Sets how often and for how long to try. Default [`RetryPolicy::default`].
    pub fn retry(mut self, policy: RetryPolicy) -> ClientBuilder {
        self.retry = policy;
        self
    }

    /// Sets the client's own rate limit. Default 300 requests a minute.
    pub fn rate_limit(mut self, rate: RateLimit) -> ClientBuilder {
        self.rate_limit = rate;
        self
    }

    /// Sets the limits of keys, values and bodies. Default [`ValidationLimits::default`].
    pub fn validation_limits(mut self, limits: ValidationLimits) -> ClientBuilder {
        self.limits = limits;
        self
    }

    /// Checks every update against a schema of your own, too. Each call adds one, and all hold.
    /// Default: none.
    ///
    /// ```
    /// use genesys_attributes::validate::{Field, Schema};
    /// use genesys_attributes::{Client, Credentials, Region};
    ///
    /// let builder = Client::builder(Region::parse("eu-west-1")?, Credentials::new("id", "secret"))
    ///     .schema(Schema::new().key("tier", Field::text().one_of(["gold", "premium"])));
    /// # Ok::<(), genesys_attributes::Error>(())
    /// ```
    pub fn schema(mut self, schema: Schema) -> ClientBuilder {
        self.schemas.push(schema);
        self
    }

    /// Sets the `metadata.source` of updates by the conversation-level endpoint. Default
    /// `external-integration`.
    pub fn metadata_source(mut self, source: impl Into<String>) -> ClientBuilder {
        self.metadata_source = source.into();
        self
    }

    /// Sets what to do about conversations that have ended. Default [`EndedPolicy::Warn`].
    pub fn ended_conversations(mut self, policy: EndedPolicy) -> ClientBuilder {
        self.ended = policy;
        self
    }

    /// Adds a hook that is called with every applied update.
    ///
    /// Hooks run on the thread that updates, in the order they were added, with no lock held: they
    /// may use the client. An update in a hook calls the hooks too: guard against a loop. One that
    /// panics is counted and logged, and the others still run. Their time is the caller's; for work
    /// that takes long use [`Client::subscribe`].
    ///
    /// ```
    /// # use genesys_attributes::{Client, Credentials, Region};
    /// let builder = Client::builder(Region::parse("eu-west-1")?, Credentials::new("id", "secret"))
    ///     .on_update(|event| println!("{} in {:?}", event.conversation_id, event.latency));
    /// # Ok::<(), genesys_attributes::Error>(())
    /// ```
    pub fn on_update(
        mut self,
        hook: impl Fn(&UpdateEvent) + Send + Sync + 'static,
    ) -> ClientBuilder {
        self.hooks.push(Box::new(hook));
        self
    }

    /// Puts the values of secure attributes into events, which otherwise hold only their keys.
    pub fn secure_values_in_events(mut self, include: bool) -> ClientBuilder {
        self.secure_values_in_events = include;
        self
    }

    /// Records each update that writes in `sink` (an intent before the first write, an outcome after
    /// the last answer), and each one that is refused (an outcome). An update that has nothing to
    /// change leaves no record, nor does one that is refused inside of a sink. Default: no audit.
    ///
    /// Take an [`AuditFile`](crate::report::audit::AuditFile) for a file,
    /// [`JsonLines`](crate::report::audit::JsonLines) for a stream, [`LogSink`](crate::report::audit::LogSink) for the
    /// log, or a closure.
    ///
    /// ```
    /// use genesys_attributes::audit::LogSink;
    /// use genesys_attributes::{Client, Credentials, Region};
    ///
    /// let builder = Client::builder(Region::parse("eu-west-1")?, Credentials::new("id", "secret"))
    ///     .audit(LogSink::default());
    /// # Ok::<(), genesys_attributes::Error>(())
    /// ```
    pub fn audit(mut self, sink: impl AuditSink + 'static) -> ClientBuilder {
        self.audit = Some(Arc::new(sink));
        self
    }

    /// Sets what happens when an intent cannot be recorded. Default [`AuditMode::BestEffort`].
    pub fn audit_mode(mut self, mode: AuditMode) -> ClientBuilder {
        self.audit_mode = mode;
        self
    }

    /// Puts attribute values into audit records, which otherwise hold only their keys. Values may
    /// be personal data. Those of secure attributes are left out, unless
    /// [`secure_values_in_audit`](ClientBuilder::secure_values_in_audit) asks for them too.
    pub fn audit_values(mut self, include: bool) -> ClientBuilder {
        self.audit_values = include;
        self
    }

    /// With [`audit_values`](ClientBuilder::audit_values): puts the values of secure attributes
    /// into audit records as well.
    pub fn secure_values_in_audit(mut self, include: bool) -> ClientBuilder {
        self.secure_values_in_audit = include;
        self
    }

    /// Sends requests to other than loopback hosts through this proxy, such as
    /// `http://user:password@proxy:8080`. Default: what `ALL_PROXY`, `HTTPS_PROXY`, `HTTP_PROXY`
    /// and `NO_PROXY` say, or else what the platform's Terraform provider reads:
    /// `GENESYSCLOUD_PROXY_HOST`, `_PORT`, `_PROTOCOL`, `_AUTH_USERNAME`, `_AUTH_PASSWORD`.
    pub fn proxy(mut self, url: impl Into<String>) -> ClientBuilder {
        self.transport_options.proxy = ProxyChoice::Url(Secret::new(url));
        self
    }

    /// Uses no proxy, whatever the environment says.
    pub fn no_proxy(mut self) -> ClientBuilder {
        self.transport_options.proxy = ProxyChoice::None;
        self
    }

    /// Trusts these certificate authorities, and no others: PEM text. It replaces the built-in
    /// set of Mozilla's.
    ///
    /// ```no_run
    /// # use genesys_attributes::{Client, Credentials, Region};
    /// let builder = Client::builder(Region::parse("eu-west-1")?, Credentials::new("id", "secret"))
    ///     .root_certificates(std::fs::read("company-ca.pem")?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn root_certificates(mut self, pem: impl Into<Vec<u8>>) -> ClientBuilder {
        self.transport_options.root_certificates = Some(pem.into());
        self
    }

    /// Shows this certificate to servers that ask for one: PEM text of the certificate, with those
    /// between it and its authority behind it, and of its key without a passphrase. Needs the
    /// feature `client-certificate`.
    ///
    /// ```no_run
    /// # use genesys_attributes::{Client, Credentials, Region};
    /// let builder = Client::builder(Region::parse("eu-west-1")?, Credentials::new("id", "secret"))
    ///     .client_certificate(std::fs::read("client.pem")?, std::fs::read("client.key")?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn client_certificate(
        mut self,
        certificate_pem: impl Into<Vec<u8>>,
        key_pem: impl Into<Vec<u8>>,
    ) -> ClientBuilder {
        let pair = (certificate_pem.into(), key_pem.into());
        self.transport_options.client_certificate = Some(pair);
        self
    }

    /// Sets how many idle connections are kept, in all and for one host. Default 64. Give at
    /// least the number of threads that update at the same time.
    pub fn max_idle_connections(mut self, connections: usize) -> ClientBuilder {
        self.transport_options.max_idle_connections = connections;
        self
    }

    /// Sets the largest response body that is read, in bytes. Default 1 MiB; of the answer about many
    /// conversations 8 MiB at least.
    pub fn max_response_body(mut self, bytes: usize) -> ClientBuilder {
        self.transport_options.max_response_body = bytes;
        self
    }

    /// Sets how many conversations' versions and participants are remembered. Default 10,000; 0
    /// makes every update a cold one.
    pub fn version_cache(mut self, capacity: usize) -> ClientBuilder {
        self.version_cache = capacity;
        self
    }

    /// Sets the `User-Agent`. Default `genesys-attributes/` and the version.
    pub fn user_agent(mut self, name: impl Into<String>) -> ClientBuilder {
        self.transport_options.user_agent = name.into();
        self
    }

    /// Starts the jitter of waits from this seed, so that a test's schedule repeats. Default: a
    /// random one.
    pub fn jitter_seed(mut self, seed: u64) -> ClientBuilder {
        self.jitter_seed = Some(seed);
        self
    }

    /// Sends requests by another transport than the built-in one; the settings of timeouts, proxy,
    /// certificates, connections, body size and user agent are then that transport's.
    pub fn transport(mut self, transport: impl Transport + 'static) -> ClientBuilder {
        self.transport = Some(Arc::new(transport));
        self
    }

    /// Takes the time from another clock; for tests.
    ///
    /// ```
    /// use genesys_attributes::clock::ManualClock;
    /// use genesys_attributes::{Client, Credentials, Region};
    ///
    /// let clock = ManualClock::new(); // waits return at once, and are written down
    /// let builder = Client::builder(Region::parse("eu-west-1")?, Credentials::new("id", "secret"))
    ///     .clock(clock.clone());
    /// assert!(clock.sleeps().is_empty());
    /// # Ok::<(), genesys_attributes::Error>(())
    /// ```
    pub fn clock(mut self, clock: impl Clock + 'static) -> ClientBuilder {
        self.clock = Arc::new(clock);
        self
    }

    /// Checks the settings and makes the client. No request is sent before the first update.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`], naming the setting that is wrong.
    pub fn build(self) -> Result<Client> {
        let names = self.names;
        self.checked().map_err(|error| error.with_names(names))
    }

    fn checked(self) -> Result<Client> {
        self.credentials.check()?;
        self.retry.check()?;
        self.rate_limit.check()?;
        self.limits.check()?;
        for schema in &self.schemas {
            schema.checked()?;
        }
        let options = &self.transport_options;
        options.timeouts.check()?;
        let agent = &options.user_agent;
        if agent.is_empty() || !agent.bytes().all(|b| (b' '..=b'~').contains(&b)) {
            return Err(Error::config(
                "user_agent",
                "must be printable ASCII, and not empty",
            ));
        }
        if !(1..=1 << 30).contains(&options.max_response_body) {
            return Err(Error::config(
                "max_response_body",
                "must be between 1 byte and 1 GiB",
            ));
        }

        let api_url = self.address("base_url", &self.base_url, Region::api_url)?;
        let of_base = || {
            let base = self.base_url.as_ref()?;
            let region = Region::of_api(base.trim());
            Some(region.map_or_else(|| base.clone(), |region| region.login_url()))
        };
        let login = self.login_url.clone().or_else(of_base);
        let login_url = self.address("login_url", &login, Region::login_url)?;
        let transport = match self.transport {
            Some(transport) => transport,
            None => {
                if !cfg!(feature = "rustls")
                    && [&api_url, &login_url]
                        .iter()
                        .any(|u| u.starts_with("https"))
                {
                    return Err(Error::config(
                        "base_url",
                        "https needs the feature \"rustls\" of this library, or a transport of \
                         your own",
                    ));
                }
                Arc::new(UreqTransport::new(options)?)
            }
        };

        let counters = Arc::new(Counters::default());
        let seeds = Arc::new(Seeds::new(self.jitter_seed));
        let process = Process::current();
        let wire = |rate, tokens| Wire {
            tokens,
            process,
            transport: transport.clone(),
            clock: self.clock.clone(),
            counters: counters.clone(),
            policy: self.retry,
            limiter: Limiter::new(rate),
            longest_request: options.timeouts.sum(),
            seeds: seeds.clone(),
        };
        // The login endpoint has a limit of its own, and so a pause of its own.
        let login = wire(RateLimit::unlimited(), None);
        let tokens = Arc::new(TokenSource::new(self.credentials, login_url, login));
        let core = Core {
            process,
            session: Session {
                base_url: api_url,
                wire: wire(self.rate_limit, Some(tokens.clone())),
                tokens,
            },
            clock: self.clock.clone(),
            counters: counters.clone(),
            listeners: Listeners::new(self.hooks),
            audit: self.audit.map(|sink| Audit {
                sink,
                mode: self.audit_mode,
                values: self.audit_values,
                secure_values: self.secure_values_in_audit,
            }),
            audit_prefix: unique_name(),
            audit_sequence: AtomicU64::new(0),
            limits: self.limits,
            schemas: self.schemas,
            metadata_source: self.metadata_source,
            ended: self.ended,
            secure_values_in_events: self.secure_values_in_events,
            cache: Cache::new(self.version_cache),
            locks: KeyedLock::default(),
            in_flight: Default::default(),
        };
        Ok(Client {
            core: Arc::new(core),
            cancel: None,
            deadline: None,
        })
    }

    /// A given address, or else the region's.
    fn address(
        &self,
        name: &str,
        given: &Option<String>,
        of_region: fn(&Region) -> String,
    ) -> Result<String> {
        let text = match (given, &self.region) {
            (Some(url), _) => url.trim().to_owned(),
            (None, Some(region)) => of_region(region),
            (None, None) => {
                return Err(Error::config(
                    name,
                    "neither it nor a region is given: give one of them",
                ));
            }
        };
        base_url(&text, self.allow_http).map_err(|problem| Error::config(name, problem))
    }
}

impl fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBuilder")
            .field("region", &self.region)
            .field("credentials", &self.credentials)
            // `build` refuses one with a password, but it may be printed before.
            .field(
                "base_url",
                &self.base_url.as_ref().filter(|url| !url.contains('@')),
            )
            .finish_non_exhaustive()
    }
}
