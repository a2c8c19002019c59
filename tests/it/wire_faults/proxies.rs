//! Proxies.

use super::*;

/// A host that only a proxy can know.
const BEHIND: &str = "http://api.example.test";

/// A proxy that plays the API itself once it is asked for a tunnel to it.
fn tunnel(then_play: &[Act]) -> Vec<Act> {
    let opened = raw("HTTP/1.1 200 Connection established\r\n\r\n");
    then(&[&[Act::ReadRequest, opened], then_play])
}

#[test]
fn proxy_set_carries_requests_to_other_hosts() {
    let proxy = Wire::start(scripts![tunnel(&then(&[&read_ok(), &write_ok(), &kept()]))]);
    let with_user = proxy.url().replace("http://", "http://user:pass@");
    let client = builder(BEHIND)
        .allow_http(true)
        .proxy(with_user)
        .build()
        .unwrap();
    let receipt = client.update(&update()).unwrap();
    assert_eq!(receipt.outcome, Outcome::Applied);
    assert_eq!((receipt.attempts, receipt.requests), (1, 2));
    drop(client);
    let report = proxy.finish();
    report.assert_clean();
    assert_eq!(methods(&report.requests), ["CONNECT", "GET", "PATCH"]);
    let [connect, read, write] = &report.requests[..] else {
        unreachable!()
    };
    assert_eq!(connect.path, "api.example.test:80");
    assert_eq!(
        connect.header("proxy-authorization"),
        Some("Basic dXNlcjpwYXNz")
    );
    assert_eq!(connect.header("authorization"), None);
    for request in [read, write] {
        assert_eq!(request.header("proxy-authorization"), None);
        assert_eq!(request.header("authorization"), Some("Bearer token"));
        assert_eq!(request.header("host"), Some("api.example.test"));
    }
    assert_eq!(report.connections, 1);
}

#[test]
fn loopback_bypasses_proxy() {
    let proxy = Wire::start(Vec::new());
    let names = ["127.0.0.1", "localhost", "api.localhost."];
    for name in names {
        let wire = Wire::start(scripts![then(&[&read_ok(), &write_ok(), &kept()])]);
        let url = wire.url().replace("127.0.0.1", name);
        let client = builder(&url)
            .proxy(proxy.url())
            .clock(ManualClock::new())
            .build()
            .unwrap();
        match client.update(&update()) {
            Ok(receipt) => assert_eq!(receipt.outcome, Outcome::Applied),
            // Not every resolver knows all of localhost's names.
            Err(error) => assert!(error.to_string().contains("does not resolve"), "{error}"),
        }
    }
    assert_eq!(proxy.finish().connections, 0);
}

#[test]
fn proxy_refusing_lets_nothing_through() {
    let refusal = [
        Act::ReadRequest,
        respond(407, r#"{"error":"who are you?"}"#),
        Act::WaitClientClose,
    ];
    let proxy = Wire::start(vec![refusal.to_vec(); 4]);
    let client = builder(BEHIND)
        .allow_http(true)
        .proxy(proxy.url())
        .clock(ManualClock::new())
        .build()
        .unwrap();
    let error = client.update(&direct()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
    assert!(error.to_string().contains("proxy"), "{error}");
    assert!(!error.may_have_applied());
    assert_eq!((error.attempts(), error.requests()), (4, 4));
    drop(client);
    let report = proxy.finish();
    report.assert_clean();
    assert_eq!(methods(&report.requests), ["CONNECT"; 4]);

    // Nobody may look for the fault at the API when it is the proxy that is down.
    let client = builder(BEHIND)
        .allow_http(true)
        .proxy(refused_url())
        .clock(ManualClock::new())
        .build()
        .unwrap();
    let error = client.update(&direct()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
    assert!(error.to_string().contains("proxy"), "{error}");
    assert!(!error.may_have_applied());
}

const CHILD: &str = "GENESYS_ATTRIBUTES_TEST_LOOPBACK";

/// The environment is the process's, so this runs itself once more as a process of its own.
#[test]
fn environment_proxy_is_used_except_for_loopback() {
    let from_environment = |url: &str| {
        Client::builder(
            Region::parse("eu-west-1").unwrap(),
            Credentials::access_token("token"),
        )
        .base_url(url)
        .allow_http(true)
        .build()
        .unwrap()
    };
    if let Ok(loopback) = std::env::var(CHILD) {
        for url in [BEHIND, &loopback] {
            let receipt = from_environment(url).update(&update()).unwrap();
            assert_eq!(receipt.outcome, Outcome::Applied);
        }
        return;
    }
    for variable in [
        "ALL_PROXY",
        "HTTPS_PROXY",
        "HTTP_PROXY",
        "http_proxy",
        "GENESYSCLOUD_PROXY",
    ] {
        eprintln!("{variable}");
        let served = then(&[&read_ok(), &write_ok(), &kept()]);
        let proxy = Wire::start(scripts![tunnel(&served)]);
        let api = Wire::start(scripts![served]);
        let mut child = Command::new(std::env::current_exe().unwrap());
        child
            .arg("wire_faults::proxies::environment_proxy_is_used_except_for_loopback")
            .arg("--exact");
        for (name, _) in std::env::vars_os() {
            if name
                .to_string_lossy()
                .to_ascii_lowercase()
                .ends_with("_proxy")
            {
                child.env_remove(name);
            }
        }
        let url = proxy.url();
        if variable == "GENESYSCLOUD_PROXY" {
            let (host, port) = url["http://".len()..].split_once(':').unwrap();
            child
                .env("GENESYSCLOUD_PROXY_HOST", host)
                .env("GENESYSCLOUD_PROXY_PORT", port)
                .env("GENESYSCLOUD_PROXY_AUTH_USERNAME", "a b")
                .env("GENESYSCLOUD_PROXY_AUTH_PASSWORD", "c:d@e");
        } else {
            child.env(variable, &url);
        }
        let child = child.env(CHILD, api.url()).output().unwrap();
        let told = String::from_utf8_lossy(&child.stdout).into_owned();
        assert!(child.status.success(), "{told}");
        assert!(told.contains("1 passed"), "{told}");
        let (proxy, api) = (proxy.finish(), api.finish());
        proxy.assert_clean();
        api.assert_clean();
        assert_eq!(methods(&proxy.requests), ["CONNECT", "GET", "PATCH"]);
        assert_eq!(methods(&api.requests), ["GET", "PATCH"]);
        if variable == "GENESYSCLOUD_PROXY" {
            // `a b:c:d@e`
            let login = proxy.requests[0].header("proxy-authorization");
            assert_eq!(login, Some("Basic YSBiOmM6ZEBl"));
        }
    }
}
