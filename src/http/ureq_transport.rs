//! The built-in transport, and the only file that names ureq.

use std::fmt;
use std::io::Read;
use std::time::Duration;

use ureq::http::header;

use crate::error::secret::Secret;
use crate::error::{Error, ErrorKind, Result, Sent};
use crate::http::address::{host_and_port, host_of, is_addressable, is_loopback};
use crate::http::{Body, KEPT, Method, Request, Response, Timeouts, Transport, TransportError};

/// Which proxy the built-in transport uses.
#[derive(Clone, Default)]
pub(crate) enum ProxyChoice {
    /// What `ALL_PROXY`, `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` say, or else the variables of
    /// the platform's Terraform provider.
    #[default]
    Environment,
    None,
    /// May hold a password.
    Url(Secret),
}

/// What the built-in transport is made from.
#[derive(Clone)]
pub(crate) struct TransportOptions {
    pub(crate) timeouts: Timeouts,
    pub(crate) proxy: ProxyChoice,
    pub(crate) root_certificates: Option<Vec<u8>>,
    /// PEM text of a certificate chain, and of its key.
    pub(crate) client_certificate: Option<(Vec<u8>, Vec<u8>)>,
    pub(crate) max_idle_connections: usize,
    pub(crate) max_response_body: usize,
    pub(crate) user_agent: String,
}

/// The built-in transport.
pub(crate) struct UreqTransport {
    agent: ureq::Agent,
    /// Where there is a proxy: for loopback hosts, which it cannot reach in our stead.
    direct: Option<ureq::Agent>,
    timeouts: Timeouts,
    max_response_body: usize,
}

impl UreqTransport {
    pub(crate) fn new(options: &TransportOptions) -> Result<UreqTransport> {
        let proxy = match &options.proxy {
            ProxyChoice::Environment => match ureq::Proxy::try_from_env() {
                Some(proxy) => Some(proxy),
                None => terraform_proxy()?,
            },
            ProxyChoice::None => None,
            // The error would quote the URL, which may hold a password.
            ProxyChoice::Url(url) => Some(ureq::Proxy::new(url.expose()).map_err(|_| {
                Error::config(
                    "proxy",
                    "is not a proxy address: give one such as http://user:password@host:8080",
                )
            })?),
        };
        if let Some(authority) = proxy.as_ref().and_then(|proxy| proxy.uri().authority())
            && !is_addressable(without_user(authority.as_str()))
        {
            return Err(Error::config(
                "proxy",
                "has no valid host and port: give an address such as \
                 http://user:password@host:8080",
            ));
        }
        if let Some(proxy) = &proxy
            && !matches!(
                proxy.protocol(),
                ureq::ProxyProtocol::Http | ureq::ProxyProtocol::Https
            )
        {
            return Err(Error::config(
                "proxy",
                "has an unsupported scheme: give the address of an http:// or https:// proxy",
            ));
        }
        let Timeouts {
            resolve,
            connect,
            send,
            response,
            body,
        } = options.timeouts;
        #[cfg(feature = "rustls")]
        let tls = {
            let mut tls = ureq::tls::TlsConfig::builder();
            if let Some(pem) = &options.root_certificates {
                let roots = certificates("root_certificates", pem)?;
                tls = tls.root_certs(ureq::tls::RootCerts::from(roots.into_iter()));
            }
            tls.client_cert(client_certificate(options)?).build()
        };
        let agent_with = |proxy| {
            let config = ureq::Agent::config_builder()
                // As errors, statuses would lose their body, headers and connection.
                .http_status_as_error(false)
                .max_redirects(0)
                .max_redirects_will_error(false)
                .timeout_resolve(resolve)
                .timeout_connect(Some(connect))
                .timeout_send_request(Some(send))
                .timeout_send_body(Some(send))
                .timeout_recv_response(Some(response))
                .timeout_recv_body(Some(body))
                .max_idle_connections(options.max_idle_connections)
                .max_idle_connections_per_host(options.max_idle_connections)
                .user_agent(options.user_agent.as_str())
                // Bodies are small, and asking for no coding keeps a caller's own ureq features
                // out.
                .accept_encoding(ureq::config::AutoHeaderValue::None)
                .proxy(proxy);
            #[cfg(feature = "rustls")]
            let config = config.tls_config(tls.clone());
            ureq::Agent::new_with_config(config.build())
        };
        let direct = proxy.is_some().then(|| agent_with(None));
        Ok(UreqTransport {
            agent: agent_with(proxy),
            direct,
            timeouts: options.timeouts,
            max_response_body: options.max_response_body,
        })
    }
}

/// The proxy of the variables that the platform's Terraform provider reads.
fn terraform_proxy() -> Result<Option<ureq::Proxy>> {
    let get = |name: &str| {
        let value = std::env::var(name).ok();
        value.filter(|value| !value.trim().is_empty())
    };
    let Some(host) = get("GENESYSCLOUD_PROXY_HOST") else {
        return Ok(None);
    };
    let wrong = |name, problem| Error::config(name, problem);
    let protocol = get("GENESYSCLOUD_PROXY_PROTOCOL").unwrap_or_else(|| "http".to_owned());
    let protocol = ureq::ProxyProtocol::try_from(protocol.trim())
        .map_err(|_| wrong("GENESYSCLOUD_PROXY_PROTOCOL", "must be http or https"))?;
    let mut proxy = ureq::Proxy::builder(protocol).host(host.trim());
    if let Some(port) = get("GENESYSCLOUD_PROXY_PORT") {
        let port = port.trim().parse();
        proxy = proxy.port(port.map_err(|_| wrong("GENESYSCLOUD_PROXY_PORT", "must be a port"))?);
    }
    if let Some(name) = get("GENESYSCLOUD_PROXY_AUTH_USERNAME") {
        let password = get("GENESYSCLOUD_PROXY_AUTH_PASSWORD").unwrap_or_default();
        proxy = proxy.username(&name).password(&password);
    }
    for hosts in [get("NO_PROXY"), get("no_proxy")].into_iter().flatten() {
        for host in hosts.split(',') {
            proxy = proxy.no_proxy(host.trim());
        }
    }
    let proxy = proxy.build();
    let proxy = proxy.map_err(|_| wrong("GENESYSCLOUD_PROXY_HOST", "must be a host name"))?;
    Ok(Some(proxy))
}

#[cfg(feature = "rustls")]
fn certificates(name: &str, pem: &[u8]) -> Result<Vec<ureq::tls::Certificate<'static>>> {
    use ureq::tls::{PemItem, parse_pem};

    let mut found = Vec::new();
    for item in parse_pem(pem) {
        match item {
            Ok(PemItem::Certificate(certificate)) if is_der(certificate.der()) => {
                found.push(certificate);
            }
            // ureq would leave it out in silence, and then trust nobody.
            Ok(PemItem::Certificate(_)) => {
                return Err(Error::config(
                    name,
                    "a certificate in the PEM text is damaged or cut short",
                ));
            }
            Ok(_) => {}
            Err(e) => {
                return Err(Error::config(name, "the PEM text cannot be read").with_source(e));
            }
        }
    }
    if found.is_empty() {
        return Err(Error::config(
            name,
            "no certificate found: give PEM text with at least one \
             \"-----BEGIN CERTIFICATE-----\" block",
        ));
    }
    Ok(found)
}

/// The client certificate with its key, once they are known to belong together: ureq would panic.
#[cfg(feature = "client-certificate")]
fn client_certificate(options: &TransportOptions) -> Result<Option<ureq::tls::ClientCert>> {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};

    let Some((chain, key)) = &options.client_certificate else {
        return Ok(None);
    };
    let chain = certificates("client_certificate", chain)?;
    let no_key = |_| {
        Error::config(
            "client_key",
            "no key found: give PEM text with one \"-----BEGIN PRIVATE KEY-----\" block, without \
             a passphrase",
        )
    };
    let key = ureq::tls::PrivateKey::from_pem(key).map_err(no_key)?;
    let ders = chain
        .iter()
        .map(|one| CertificateDer::from(one.der().to_vec()));
    let der = PrivateKeyDer::try_from(key.der().to_vec());
    let der = der.map_err(|_| Error::config("client_key", "the key is damaged or cut short"))?;
    let provider = rustls::crypto::ring::default_provider();
    match rustls::sign::CertifiedKey::from_der(ders.collect(), der, &provider) {
        Ok(_) => Ok(Some(ureq::tls::ClientCert::new_with_certs(&chain, key))),
        Err(rustls::Error::InconsistentKeys(_)) => Err(Error::config(
            "client_key",
            "is not the key of the first certificate in client_certificate",
        )),
        Err(rustls::Error::InvalidCertificate(_)) => Err(Error::config(
            "client_certificate",
            "the first certificate cannot be used",
        )),
        Err(_) => Err(Error::config("client_key", "the key cannot be used")),
    }
}

#[cfg(all(feature = "rustls", not(feature = "client-certificate")))]
fn client_certificate(options: &TransportOptions) -> Result<Option<ureq::tls::ClientCert>> {
    match options.client_certificate {
        Some(_) => Err(Error::config(
            "client_certificate",
            "needs the feature \"client-certificate\" of this library",
        )),
        None => Ok(None),
    }
}

/// Whether these bytes are framed as a certificate is: one DER sequence, and nothing after it.
#[cfg(feature = "rustls")]
fn is_der(bytes: &[u8]) -> bool {
    let Some((0x30, [length, rest @ ..])) = bytes.split_first().map(|(tag, rest)| (*tag, rest))
    else {
        return false;
    };
    match length {
        0..=0x7f => usize::from(*length) == rest.len() && *length > 0,
        // The length follows, in this many bytes.
        0x81..=0x84 if rest.len() > usize::from(length & 0x7f) => {
            let (declared, content) = rest.split_at(usize::from(length & 0x7f));
            declared
                .iter()
                .fold(0, |sum, byte| sum << 8 | usize::from(*byte))
                == content.len()
        }
        _ => false,
    }
}

impl Transport for UreqTransport {
    fn send(&self, request: &Request) -> std::result::Result<Response, TransportError> {
        let agent = match &self.direct {
            Some(direct) if is_loopback(host_of(&request.url)) => direct,
            _ => &self.agent,
        };
        let mut builder = ureq::http::Request::builder()
            .method(match request.method {
                Method::Get => ureq::http::Method::GET,
                Method::Post => ureq::http::Method::POST,
                Method::Patch => ureq::http::Method::PATCH,
                Method::Put => ureq::http::Method::PUT,
            })
            .uri(request.url.as_str())
            .header(header::ACCEPT, JSON);
        if let Some(secret) = &request.authorization {
            builder = builder.header(header::AUTHORIZATION, secret.expose());
        }
        if let Some(tag) = &request.if_match {
            builder = builder.header(header::IF_MATCH, tag);
        }
        for (name, value) in &request.extra {
            builder = builder.header(name, value.expose());
        }
        let outcome = match request.body() {
            Some(body) => {
                let builder = builder.header(
                    header::CONTENT_TYPE,
                    header::HeaderValue::from_static(request.content_type),
                );
                self.run(agent, builder.body(body), request.timeout)
            }
            None => self.run(agent, builder.body(()), request.timeout),
        };
        match outcome {
            Ok(response) => {
                let limit = self.max_response_body.max(request.least_body_limit);
                Ok(received(response, limit))
            }
            Err(error) => {
                let proxied = agent.config().proxy().is_some();
                Err(failed(error, &request.url, proxied))
            }
        }
    }
}

const JSON: header::HeaderValue = header::HeaderValue::from_static("application/json");

impl UreqTransport {
    /// Runs the request, with shorter phases where little time is left. A limit over all of them
    /// would make ureq start a thread for each look-up of a name.
    fn run<B: ureq::AsSendBody>(
        &self,
        agent: &ureq::Agent,
        request: std::result::Result<ureq::http::Request<B>, ureq::http::Error>,
        rest: Option<Duration>,
    ) -> std::result::Result<ureq::http::Response<ureq::Body>, ureq::Error> {
        let request = request?;
        let Some(rest) = rest else {
            return agent.run(request);
        };
        let phases = self.timeouts.scaled_to(rest);
        agent.run(
            agent
                .configure_request(request)
                .timeout_resolve(phases.resolve)
                .timeout_connect(Some(phases.connect))
                .timeout_send_request(Some(phases.send))
                .timeout_send_body(Some(phases.send))
                .timeout_recv_response(Some(phases.response))
                .timeout_recv_body(Some(phases.body))
                .build(),
        )
    }
}

fn received(response: ureq::http::Response<ureq::Body>, limit: usize) -> Response {
    let (parts, body) = response.into_parts();
    // Once through the few that came, rather than a search for each of those that are read.
    let headers = parts
        .headers
        .iter()
        .filter_map(|(name, value)| {
            let kept = KEPT.iter().find(|kept| **kept == name.as_str())?;
            Some((*kept, value.to_str().ok()?.to_owned()))
        })
        .collect();
    let expected = body.content_length().unwrap_or(0).min(limit as u64);
    let mut bytes = Vec::with_capacity(expected as usize);
    // One more than the limit, since ureq reports a limit that is met as one that is passed.
    let read = body
        .into_with_config()
        .limit(limit as u64 + 1)
        .reader()
        .read_to_end(&mut bytes);
    let body = match read {
        _ if bytes.len() > limit => {
            bytes.truncate(limit);
            Body::TooLarge(bytes)
        }
        Ok(_) => Body::Whole(bytes),
        // ureq wraps its own error, whose wording tells a time limit.
        Err(e)
            if e.kind() == std::io::ErrorKind::TimedOut
                || e.to_string().starts_with("timeout:") =>
        {
            Body::TimedOut
        }
        Err(e) => Body::Broken(e.to_string()),
    };
    Response::received(parts.status.as_u16(), headers, body)
}

/// Sorts ureq's errors by what a caller can do about them, and by how far the request got.
fn failed(error: ureq::Error, url: &str, proxied: bool) -> TransportError {
    use std::io::ErrorKind as Io;

    let host = host_and_port(url);
    if let Some(alert) = alert(&error) {
        let message = format!(
            "{host} refused the TLS connection ({alert}): if it asks for a client certificate, see \
             client_certificate"
        );
        return TransportError::new(
            Error::new(ErrorKind::Connect, message).with_transient(false),
            Sent::No,
        );
    }
    if let Some(what) = untrusted(&error) {
        let message =
            format!("the TLS connection to {host} is not trusted ({what}): see root_certificates");
        // Trust does not come by waiting.
        return TransportError::new(
            Error::new(ErrorKind::Connect, message).with_transient(false),
            Sent::No,
        );
    }
    let (kind, sent, mut message) = match &error {
        ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => (
            ErrorKind::Connect,
            Sent::No,
            format!("connecting to {host} took too long: check the address, firewall and proxy"),
        ),
        ureq::Error::Timeout(phase) => (
            ErrorKind::Timeout,
            Sent::Maybe,
            format!("{host} did not answer in time (phase: {phase})"),
        ),
        ureq::Error::HostNotFound => unresolved(host),
        ureq::Error::Io(e) => match e.kind() {
            Io::ConnectionRefused => (
                ErrorKind::Connect,
                Sent::No,
                format!("nothing is listening at {host}: connection refused"),
            ),
            Io::HostUnreachable | Io::NetworkUnreachable | Io::NetworkDown => (
                ErrorKind::Connect,
                Sent::No,
                format!("{host} cannot be reached: check the network"),
            ),
            _ => {
                // std has no kind for these; an unknown wording falls to the safe side.
                if is_look_up(e) {
                    unresolved(host)
                } else if is_out_of_files(e) {
                    (
                        ErrorKind::Connect,
                        Sent::No,
                        format!(
                            "no connection to {host}, since too many files are open: raise the \
                             limit of open files, or use fewer workers"
                        ),
                    )
                } else {
                    (
                        ErrorKind::Transport,
                        Sent::Maybe,
                        format!("the connection to {host} broke before an answer came"),
                    )
                }
            }
        },
        ureq::Error::Protocol(_) | ureq::Error::LargeResponseHeader(..) => (
            ErrorKind::Protocol,
            Sent::Maybe,
            format!("{host} did not answer in HTTP/1.1: is it the API, or a proxy in between?"),
        ),
        ureq::Error::ConnectProxyFailed(_) => (
            ErrorKind::Connect,
            Sent::No,
            format!("the proxy refused to connect to {host}: check its address and credentials"),
        ),
        ureq::Error::ConnectionFailed => (
            ErrorKind::Connect,
            Sent::No,
            format!("no connection to {host}"),
        ),
        ureq::Error::Http(_) | ureq::Error::BadUri(_) | ureq::Error::TlsRequired => (
            ErrorKind::Config,
            Sent::No,
            format!("a request to {host} could not be made: check the base URL"),
        ),
        _ => (
            ErrorKind::Transport,
            Sent::Maybe,
            format!("the request to {host} failed"),
        ),
    };
    if proxied && kind == ErrorKind::Connect && !message.contains("proxy") {
        message += " (a proxy is set: it may be the one that cannot be reached)";
    }
    TransportError::new(
        Error::new(kind, message).with_source(Cause(error.to_string())),
        sent,
    )
}

/// True if the system could not look a name up.
fn is_look_up(error: &std::io::Error) -> bool {
    // Windows: WSAHOST_NOT_FOUND to WSANO_DATA.
    (cfg!(windows) && matches!(error.raw_os_error(), Some(11_001..=11_004)))
        || error
            .to_string()
            .starts_with("failed to lookup address information")
}

/// True if the process or the system has no file descriptor left for a connection.
fn is_out_of_files(error: &std::io::Error) -> bool {
    // ENFILE and EMFILE, or WSAEMFILE.
    let codes = if cfg!(windows) {
        [10_024, 10_024]
    } else {
        [23, 24]
    };
    error
        .raw_os_error()
        .is_some_and(|code| codes.contains(&code))
}

fn unresolved(host: &str) -> (ErrorKind, Sent, String) {
    (
        ErrorKind::Connect,
        Sent::No,
        format!("the name of {host} does not resolve: check the region or base URL, and DNS"),
    )
}

/// The alert with which a server refuses a client for its certificate. It reads no request then.
fn alert(error: &ureq::Error) -> Option<String> {
    let text = match error {
        ureq::Error::Io(e) if e.kind() == std::io::ErrorKind::InvalidData => e.to_string(),
        #[cfg(feature = "rustls")]
        ureq::Error::Rustls(e) => e.to_string(),
        _ => return None,
    };
    let alert = text.strip_prefix("received fatal alert: ")?;
    let of_certificate = [
        "Certificate",
        "UnknownCA",
        "HandshakeFailure",
        "AccessDenied",
    ];
    let is_told = of_certificate.iter().any(|name| alert.contains(name));
    is_told.then(|| alert.to_owned())
}

/// What is wrong with the server's certificate, if that is what stopped the handshake. Nothing of
/// the request is sent before the handshake is over.
fn untrusted(error: &ureq::Error) -> Option<String> {
    match error {
        // rustls' errors arrive inside of an I/O error of this kind.
        ureq::Error::Io(e) if e.kind() == std::io::ErrorKind::InvalidData => {
            Some(e.to_string()).filter(|text| text.starts_with("invalid peer certificate"))
        }
        ureq::Error::Tls(what) => Some((*what).to_owned()),
        #[cfg(feature = "rustls")]
        ureq::Error::Rustls(e) => Some(e.to_string()),
        _ => None,
    }
}

/// ureq's error as text: the type itself stays out of this crate's public API.
#[derive(Debug)]
struct Cause(String);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Cause {}

/// An authority without the user name and password before its host.
fn without_user(authority: &str) -> &str {
    authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_files_used_up_is_a_connection_that_was_not_made() {
        let code = if cfg!(windows) { 10_024 } else { 24 };
        let error = ureq::Error::Io(std::io::Error::from_raw_os_error(code));
        let failure = failed(error, "https://api.example.com/x", false);
        assert_eq!(failure.error().kind(), ErrorKind::Connect);
        assert_eq!(failure.sent(), Sent::No);
        let text = failure.error().to_string();
        assert!(text.contains("too many files are open"), "{text}");
    }
}
