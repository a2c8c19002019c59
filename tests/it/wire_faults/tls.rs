//! Certificates.

use super::*;

/// A certificate authority of the test's own, and what it signed for one name.
pub(crate) struct Authority {
    pub(crate) pem: String,
    key: rcgen::KeyPair,
    params: rcgen::CertificateParams,
}

impl Authority {
    pub(crate) fn new() -> Authority {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { pem, key, params }
    }

    pub(crate) fn server(&self, name: &str) -> rustls::ServerConfig {
        self.server_with(name, rustls::DEFAULT_VERSIONS, |_| {})
    }

    fn server_with(
        &self,
        name: &str,
        versions: &[&'static rustls::SupportedProtocolVersion],
        change: impl FnOnce(&mut rcgen::CertificateParams),
    ) -> rustls::ServerConfig {
        let verifier = rustls::server::WebPkiClientVerifier::no_client_auth();
        self.server_asking(name, versions, change, verifier)
    }

    /// Accepts clients with a certificate of this authority only.
    #[cfg(feature = "client-certificate")]
    fn verifier(&self) -> Arc<dyn rustls::server::danger::ClientCertVerifier> {
        let mut roots = rustls::RootCertStore::empty();
        let certificate = self.params.self_signed(&self.key).unwrap();
        roots.add(certificate.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider)
            .build()
            .unwrap()
    }

    fn server_asking(
        &self,
        name: &str,
        versions: &[&'static rustls::SupportedProtocolVersion],
        change: impl FnOnce(&mut rcgen::CertificateParams),
        verifier: Arc<dyn rustls::server::danger::ClientCertVerifier>,
    ) -> rustls::ServerConfig {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        change(&mut params);
        let issuer = rcgen::Issuer::from_params(&self.params, &self.key);
        let certificate = params.signed_by(&key, &issuer).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into());
        rustls::ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
            .with_protocol_versions(versions)
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap()
    }
}

/// TLS in front of a server: each connection has one of its own behind it.
#[cfg(feature = "capi")]
pub(crate) struct TlsFront(SocketAddr);

#[cfg(feature = "capi")]
impl TlsFront {
    pub(crate) fn start(config: rustls::ServerConfig, behind: SocketAddr) -> TlsFront {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let config = Arc::new(config);
        // It ends with the tests.
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let config = Arc::clone(&config);
                std::thread::spawn(move || pass_on(stream, config, behind));
            }
        });
        TlsFront(address)
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.0)
    }
}

#[cfg(feature = "capi")]
fn pass_on(
    stream: TcpStream,
    config: Arc<rustls::ServerConfig>,
    behind: SocketAddr,
) -> std::io::Result<()> {
    let tls = rustls::ServerConnection::new(config).map_err(std::io::Error::other)?;
    stream.set_nodelay(true)?;
    let mut outside = BufReader::new(rustls::StreamOwned::new(tls, stream));
    let mut inside = BufReader::new(TcpStream::connect(behind)?);
    inside.get_ref().set_nodelay(true)?;
    loop {
        let request = message(&mut outside)?;
        inside.get_mut().write_all(&request)?;
        let answer = message(&mut inside)?;
        outside.get_mut().write_all(&answer)?;
        outside.get_mut().flush()?;
    }
}

/// A request or an answer, whole.
#[cfg(feature = "capi")]
fn message(from: &mut impl BufRead) -> std::io::Result<Vec<u8>> {
    let (mut bytes, mut length) = (Vec::new(), 0);
    loop {
        let start = bytes.len();
        if from.read_until(b'\n', &mut bytes)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let line = String::from_utf8_lossy(&bytes[start..]).to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().map_err(std::io::Error::other)?;
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let head = bytes.len();
    bytes.resize(head + length, 0);
    from.read_exact(&mut bytes[head..])?;
    Ok(bytes)
}

/// A server of https, one connection after the other: enough for a client on one thread.
struct Https {
    address: SocketAddr,
    state: Arc<HttpsState>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct HttpsState {
    stopping: AtomicBool,
    connections: Mutex<usize>,
    /// Method, path and `Authorization`.
    requests: Mutex<Vec<(String, String, String)>>,
}

impl Https {
    fn start(config: rustls::ServerConfig) -> Https {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(HttpsState::default());
        let theirs = Arc::clone(&state);
        let config = Arc::new(config);
        let acceptor = std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if theirs.stopping.load(Ordering::SeqCst) {
                    return;
                }
                *theirs.connections.lock().unwrap() += 1;
                // It ends with the client's closing, or with a handshake that fails.
                let mut raw = stream.try_clone().unwrap();
                let _ = theirs.serve(stream, &config);
                // Closed with bytes unread, the connection would be reset, and its alert lost.
                let _ = raw.shutdown(std::net::Shutdown::Write);
                let _ = std::io::copy(&mut raw, &mut std::io::sink());
            }
        });
        Https {
            address,
            state,
            acceptor: Some(acceptor),
        }
    }

    fn url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }

    fn connections(&self) -> usize {
        *self.state.connections.lock().unwrap()
    }
}

impl Drop for Https {
    fn drop(&mut self) {
        self.state.stopping.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

impl HttpsState {
    fn serve(
        &self,
        stream: TcpStream,
        config: &Arc<rustls::ServerConfig>,
    ) -> Result<(), Box<dyn std::error::Error>> {
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let connection = rustls::ServerConnection::new(Arc::clone(config))?;
        let mut stream = BufReader::new(rustls::StreamOwned::new(connection, stream));
        loop {
            let (mut line, mut authorization, mut length) = (String::new(), String::new(), 0);
            stream.read_line(&mut line)?;
            let mut words = line.split(' ').map(str::to_owned);
            let (Some(method), Some(path)) = (words.next(), words.next()) else {
                return Ok(());
            };
            loop {
                let mut field = String::new();
                stream.read_line(&mut field)?;
                let Some((name, value)) = field.trim_end().split_once(": ") else {
                    break;
                };
                match name.to_ascii_lowercase().as_str() {
                    "authorization" => authorization = value.to_owned(),
                    "content-length" => length = value.parse()?,
                    _ => {}
                }
            }
            stream.read_exact(&mut vec![0; length])?;
            let body = match method.as_str() {
                "POST" => r#"{"access_token":"over-tls","expires_in":86400}"#,
                "GET" => READ,
                _ => WRITTEN,
            };
            self.requests
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push((method, path, authorization));
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.get_mut().write_all(answer.as_bytes())?;
        }
    }
}

#[test]
fn https_with_matching_root_works() {
    let authority = Authority::new();
    let server = Https::start(authority.server("localhost"));
    let client = builder_of(&server.url(), Credentials::new("id", "secret"))
        .root_certificates(authority.pem.as_str())
        .build()
        .unwrap();
    let receipt = client.update(&update()).unwrap();
    assert_eq!(receipt.outcome, Outcome::Applied);
    assert_eq!((receipt.attempts, receipt.requests), (1, 2));
    assert_eq!(receipt.version.as_deref(), Some("7"));
    assert_eq!(client.update(&update()).unwrap().requests, 1);
    drop(client);
    assert_eq!(server.connections(), 1);
    let requests = server.state.requests.lock().unwrap();
    let (read, bearer) = ("/api/v2/conversations/c-1", "Bearer over-tls");
    let write = "/api/v2/conversations/c-1/attributes";
    assert_eq!(
        *requests,
        [
            ("POST", "/oauth/token", "Basic aWQ6c2VjcmV0"),
            ("GET", read, bearer),
            ("PATCH", write, bearer),
            ("PATCH", write, bearer),
        ]
        .map(|(a, b, c)| (a.to_owned(), b.to_owned(), c.to_owned()))
    );
}

#[test]
fn certificate_untrusted_is_final_and_sends_nothing() {
    let (authority, other) = (Authority::new(), Authority::new());
    // An authority we do not trust; one that we do, for another name; and the built-in roots.
    for (name, server_name, root) in [
        ("another authority", "localhost", Some(&other)),
        ("another name", "elsewhere.example", Some(&authority)),
        ("built-in roots", "localhost", None),
    ] {
        eprintln!("{name}");
        for (update, writes) in [(update(), 0), (direct(), 1)] {
            let server = Https::start(authority.server(server_name));
            let clock = ManualClock::new();
            let mut builder = builder(&server.url()).clock(clock.clone());
            if let Some(root) = root {
                builder = builder.root_certificates(root.pem.as_str());
            }
            let client = builder.build().unwrap();
            let error = client.update(&update).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Connect);
            let text = error.to_string();
            assert!(
                text.contains("not trusted") && text.contains("root_certificates"),
                "{text}"
            );
            assert!(!error.may_have_applied() && !error.is_transient());
            assert_eq!((error.attempts(), error.requests()), (writes, 1));
            assert!(clock.sleeps().is_empty());
            drop(client);
            assert_eq!(server.connections(), 1);
            assert!(server.state.requests.lock().unwrap().is_empty());
        }
    }
}

#[test]
#[cfg(feature = "client-certificate")]
fn client_certificate_is_shown_to_a_server_that_asks_for_one() {
    let authority = Authority::new();
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["client".to_owned()]).unwrap();
    let issuer = rcgen::Issuer::from_params(&authority.params, &authority.key);
    let certificate = params.signed_by(&key, &issuer).unwrap().pem();
    let key = key.serialize_pem();
    let with = |server: &Https| builder(&server.url()).root_certificates(authority.pem.as_str());
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let asking = || {
            let verifier = authority.verifier();
            Https::start(authority.server_asking("localhost", &[version], |_| {}, verifier))
        };
        let server = asking();
        let client = with(&server).client_certificate(certificate.as_str(), key.as_str());
        let client = client.build().unwrap();
        assert_eq!(client.update(&update()).unwrap().outcome, Outcome::Applied);
        drop(client);

        // Without it nothing is sent, and the error says what is missing.
        let server = asking();
        let clock = ManualClock::new();
        let client = with(&server).clock(clock.clone()).build().unwrap();
        let error = client.update(&direct()).unwrap_err();
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        assert_eq!(error.kind(), ErrorKind::Connect, "{error} {cause:?}");
        assert!(
            error.to_string().contains("see client_certificate"),
            "{error}"
        );
        assert!(!error.may_have_applied() && !error.is_transient());
        assert!(clock.sleeps().is_empty());
        drop(client);
        assert!(server.state.requests.lock().unwrap().is_empty());
    }

    // What does not belong together or is no key is refused before anything is sent.
    let other = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let half = &key[..key.len() / 2];
    let damaged = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    for (certificate, key, name) in [
        (certificate.as_str(), other.as_str(), "client_key"),
        (&certificate, half, "client_key"),
        (&certificate, damaged, "client_key"),
        (&certificate, "", "client_key"),
        (&certificate, &certificate, "client_key"),
        ("", &key, "client_certificate"),
        (&key, &key, "client_certificate"),
    ] {
        let built = builder("https://localhost:1").client_certificate(certificate, key);
        let error = built.build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.to_string().starts_with(name), "{error}");
    }
    let both = format!("{certificate}{key}");
    let built = builder("https://localhost:1").client_certificate(both.as_str(), both.as_str());
    assert!(built.build().is_ok());
}

#[test]
fn https_of_either_tls_version_works() {
    let authority = Authority::new();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let server = Https::start(authority.server_with("localhost", &[version], |_| {}));
        let client = builder(&server.url())
            .root_certificates(authority.pem.as_str())
            .build()
            .unwrap();
        let receipt = client.update(&update()).unwrap();
        assert_eq!(receipt.outcome, Outcome::Applied, "{version:?}");
    }
}

#[test]
fn certificate_expired_or_not_valid_yet_is_final_and_sends_nothing() {
    let authority = Authority::new();
    for (from, to) in [(2_000, 2_001), (4_000, 4_001)] {
        let config = authority.server_with("localhost", rustls::DEFAULT_VERSIONS, |params| {
            params.not_before = rcgen::date_time_ymd(from, 1, 1);
            params.not_after = rcgen::date_time_ymd(to, 1, 1);
        });
        let server = Https::start(config);
        let client = builder(&server.url())
            .root_certificates(authority.pem.as_str())
            .build()
            .unwrap();
        let error = client.update(&direct()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
        assert!(!error.is_transient() && !error.may_have_applied());
        assert!(error.to_string().contains("not trusted"), "{error}");
        drop(client);
        assert!(server.state.requests.lock().unwrap().is_empty());
    }
}

/// A proxy that opens tunnels to one address, to those who know the password.
fn relay(to: SocketAddr) -> (SocketAddr, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let mut told = Vec::new();
        // One refused, and one let through.
        for _ in 0..2 {
            let (client, _) = listener.accept().unwrap();
            client
                .set_read_timeout(Some(Duration::from_secs(10)))
                .unwrap();
            let mut head = BufReader::new(client.try_clone().unwrap());
            let (mut line, mut authorized) = (String::new(), false);
            head.read_line(&mut line).unwrap();
            told.push(line.trim_end().to_owned());
            loop {
                let mut field = String::new();
                head.read_line(&mut field).unwrap();
                if field.trim_end().is_empty() {
                    break;
                }
                let field = field.trim_end().to_ascii_lowercase();
                authorized |= field == "proxy-authorization: basic dxnlcjpwyxnz";
            }
            let mut back = client;
            if !authorized {
                let refusal =
                    "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n";
                back.write_all(refusal.as_bytes()).unwrap();
                continue;
            }
            back.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
                .unwrap();
            let mut server = TcpStream::connect(to).unwrap();
            let mut answers = server.try_clone().unwrap();
            let down = std::thread::spawn(move || {
                let _ = std::io::copy(&mut answers, &mut back);
            });
            let _ = std::io::copy(&mut head, &mut server);
            let _ = server.shutdown(std::net::Shutdown::Both);
            let _ = down.join();
        }
        told
    });
    (address, thread)
}

#[test]
fn https_through_a_proxy_with_a_password_is_checked_end_to_end() {
    let name = "api.example.test";
    let authority = Authority::new();
    let server = Https::start(authority.server(name));
    let (proxy, relaying) = relay(server.address);
    for (user, allowed) in [("user:wrong@", false), ("user:pass@", true)] {
        let client = builder(&format!("https://{name}"))
            .proxy(format!("http://{user}{proxy}"))
            .root_certificates(authority.pem.as_str())
            .retry(RetryPolicy::default().with_max_attempts(1))
            .build()
            .unwrap();
        match client.update(&update()) {
            Ok(receipt) => {
                assert!(allowed);
                assert_eq!(receipt.outcome, Outcome::Applied);
            }
            Err(error) => {
                assert!(!allowed, "{error}");
                assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
                assert!(error.to_string().contains("proxy"), "{error}");
                assert!(!error.to_string().contains("wrong"), "{error}");
            }
        }
    }
    let told = relaying.join().unwrap();
    assert_eq!(told, ["CONNECT api.example.test:443 HTTP/1.1"; 2]);
    let requests = server.state.requests.lock().unwrap();
    let seen: Vec<&str> = requests
        .iter()
        .map(|(method, ..)| method.as_str())
        .collect();
    assert_eq!(seen, ["GET", "PATCH"]);
}
