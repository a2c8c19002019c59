//! Settings, from code and from the environment: what is taken, and what is refused by name before anything is sent.
//!
//! Long, since it is tables: a row for each setting and each way to get it wrong.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use genesys_attributes::clock::ManualClock;
use genesys_attributes::error::Sent;
use genesys_attributes::http::{Request, Response, TransportError};
use genesys_attributes::validate::ValidationLimits;
use genesys_attributes::{
    Client, ClientBuilder, Credentials, Error, ErrorKind, RateLimit, Region, Result, RetryPolicy,
    Timeouts, Update,
};
use serde_json::json;

use crate::fake::{Fake, Seen, json_response, lock, ms, says, secs};

const BASE_URL: &str = "http://127.0.0.1:1";

fn region() -> Region {
    Region::parse("eu-west-1").unwrap()
}

fn builder() -> ClientBuilder {
    let builder = Client::builder(region(), Credentials::new("id", "secret")).no_proxy();
    if cfg!(feature = "rustls") {
        builder
    } else {
        // The region's addresses are https.
        builder.base_url(BASE_URL)
    }
}

fn update() -> Update {
    Update::participant("c-1", "p-1").set("k", "v")
}

/// The requests of one update, with a transport in place of the network.
fn requests_of(builder: ClientBuilder) -> Result<Vec<Seen>> {
    let log: Arc<Mutex<Vec<Seen>>> = Arc::default();
    let record = log.clone();
    let client = builder
        .clock(ManualClock::new())
        .transport(
            move |request: &Request| -> std::result::Result<_, TransportError> {
                let seen = Seen::of(request, Duration::ZERO);
                let is_login = seen.method == "POST";
                lock(&record).push(seen);
                Ok(if is_login {
                    json_response(200, &json!({ "access_token": "token", "expires_in": 300 }))
                } else {
                    Response::new(202)
                })
            },
        )
        .build()?;
    client.update(&update())?;
    let log = lock(&log).clone();
    Ok(log)
}

/// Refused in `build()` as a setting, by this name.
#[track_caller]
fn refused(builder: ClientBuilder, setting: &str) -> Error {
    let error = builder.build().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(!error.is_transient());
    says(&error, &[setting]);
    error
}

// ---------------------------------------------------------------------------------------------------------------------
// Environment

const CLOUD: [(&str, &str); 3] = [
    ("GENESYS_CLOUD_REGION", "eu-central-1"),
    ("GENESYS_CLOUD_CLIENT_ID", "cloud-id"),
    ("GENESYS_CLOUD_CLIENT_SECRET", "cloud-secret"),
];
const OFFICIAL: [(&str, &str); 3] = [
    ("GENESYSCLOUD_REGION", "us-west-2"),
    ("GENESYSCLOUD_OAUTHCLIENT_ID", "official-id"),
    ("GENESYSCLOUD_OAUTHCLIENT_SECRET", "official-secret"),
];
const TOKEN: (&str, &str) = ("GENESYSCLOUD_ACCESS_TOKEN", "official-token");
const BASE: (&str, &str) = ("GENESYS_CLOUD_BASE_URL", "http://127.0.0.1:8080/gw/");

fn from(variables: &[(&str, &str)]) -> Result<ClientBuilder> {
    ClientBuilder::from_variables(|name| {
        let found = variables.iter().rev().find(|(known, _)| *known == name);
        Ok(found.map(|(_, value)| (*value).to_owned()))
    })
}

fn and(
    family: &[(&'static str, &'static str)],
    more: &[(&'static str, &'static str)],
) -> Vec<(&'static str, &'static str)> {
    [family, more].concat()
}

/// `id:secret` of each, as a login carries it.
const CLOUD_BASIC: &str = "Basic Y2xvdWQtaWQ6Y2xvdWQtc2VjcmV0";
const OFFICIAL_BASIC: &str = "Basic b2ZmaWNpYWwtaWQ6b2ZmaWNpYWwtc2VjcmV0";

#[test]
fn environment_families_are_never_mixed() {
    for (name, variables, first, authorization) in [
        (
            "the family of this library",
            and(&CLOUD, &[]),
            "https://login.mypurecloud.de/oauth/token",
            CLOUD_BASIC,
        ),
        (
            "the official tools'",
            and(&OFFICIAL, &[]),
            "https://login.usw2.pure.cloud/oauth/token",
            OFFICIAL_BASIC,
        ),
        (
            "the family of this library goes first",
            and(&OFFICIAL, &CLOUD),
            "https://login.mypurecloud.de/oauth/token",
            CLOUD_BASIC,
        ),
        (
            "also before a token",
            and(&CLOUD, &[TOKEN]),
            "https://login.mypurecloud.de/oauth/token",
            CLOUD_BASIC,
        ),
        (
            "a token",
            vec![OFFICIAL[0], TOKEN],
            "https://api.usw2.pure.cloud/api/v2/conversations/c-1/participants/p-1/attributes",
            "Bearer official-token",
        ),
        (
            "a token before a client",
            and(&OFFICIAL, &[TOKEN]),
            "https://api.usw2.pure.cloud/api/v2/conversations/c-1/participants/p-1/attributes",
            "Bearer official-token",
        ),
        (
            "an empty family counts as none",
            and(
                &OFFICIAL,
                &[
                    ("GENESYS_CLOUD_REGION", ""),
                    ("GENESYS_CLOUD_CLIENT_ID", "  "),
                    ("GENESYS_CLOUD_CLIENT_SECRET", "\n"),
                ],
            ),
            "https://login.usw2.pure.cloud/oauth/token",
            OFFICIAL_BASIC,
        ),
        (
            "an empty token counts as none",
            and(&OFFICIAL, &[("GENESYSCLOUD_ACCESS_TOKEN", "")]),
            "https://login.usw2.pure.cloud/oauth/token",
            OFFICIAL_BASIC,
        ),
        (
            "an address goes with the family of this library",
            and(&CLOUD, &[BASE]),
            "http://127.0.0.1:8080/gw/oauth/token",
            CLOUD_BASIC,
        ),
        (
            "and with the official ones",
            and(&OFFICIAL, &[BASE]),
            "http://127.0.0.1:8080/gw/oauth/token",
            OFFICIAL_BASIC,
        ),
        (
            "the region may be left out then",
            and(&CLOUD[1..], &[BASE]),
            "http://127.0.0.1:8080/gw/oauth/token",
            CLOUD_BASIC,
        ),
        (
            "and with a token",
            vec![TOKEN, BASE],
            "http://127.0.0.1:8080/gw/api/v2/conversations/c-1/participants/p-1/attributes",
            "Bearer official-token",
        ),
        (
            "an empty address counts as none",
            and(&CLOUD, &[("GENESYS_CLOUD_BASE_URL", " ")]),
            "https://login.mypurecloud.de/oauth/token",
            CLOUD_BASIC,
        ),
        (
            "a region by its domain",
            and(
                &CLOUD[1..],
                &[("GENESYS_CLOUD_REGION", "mypurecloud.com.au")],
            ),
            "https://login.mypurecloud.com.au/oauth/token",
            CLOUD_BASIC,
        ),
        (
            "a region with underscores and space around it",
            and(&CLOUD[1..], &[("GENESYS_CLOUD_REGION", " EU_WEST_2\n")]),
            "https://login.euw2.pure.cloud/oauth/token",
            CLOUD_BASIC,
        ),
    ] {
        let requests = requests_of(from(&variables).unwrap()).unwrap();
        assert_eq!(requests[0].path, first, "{name}");
        assert_eq!(requests[0].authorization(), authorization, "{name}");
    }
}

#[test]
fn environment_missing_or_wrong_variable_is_named() {
    for (name, variables, missing) in [
        (
            "nothing",
            vec![],
            "GENESYS_CLOUD_REGION, GENESYS_CLOUD_CLIENT_ID, GENESYS_CLOUD_CLIENT_SECRET",
        ),
        (
            "only an address",
            vec![BASE],
            "GENESYS_CLOUD_CLIENT_ID, GENESYS_CLOUD_CLIENT_SECRET",
        ),
        (
            "half of the official ones",
            and(&OFFICIAL[..1], &[]),
            "GENESYSCLOUD_OAUTHCLIENT_ID, GENESYSCLOUD_OAUTHCLIENT_SECRET",
        ),
        ("no region", and(&CLOUD[1..], &[]), "GENESYS_CLOUD_REGION"),
        ("no id", vec![CLOUD[0], CLOUD[2]], "GENESYS_CLOUD_CLIENT_ID"),
        (
            "no secret",
            and(&CLOUD[..2], &[]),
            "GENESYS_CLOUD_CLIENT_SECRET",
        ),
        (
            "an empty secret",
            and(&CLOUD, &[("GENESYS_CLOUD_CLIENT_SECRET", " ")]),
            "GENESYS_CLOUD_CLIENT_SECRET",
        ),
        (
            "no official region",
            and(&OFFICIAL[1..], &[]),
            "GENESYSCLOUD_REGION",
        ),
        (
            "a token without a region",
            vec![TOKEN],
            "GENESYSCLOUD_REGION",
        ),
        (
            "no official id",
            vec![OFFICIAL[0], OFFICIAL[2]],
            "GENESYSCLOUD_OAUTHCLIENT_ID",
        ),
        (
            "no official secret",
            and(&OFFICIAL[..2], &[]),
            "GENESYSCLOUD_OAUTHCLIENT_SECRET",
        ),
        // The families are never mixed: one variable of the first asks for all of it.
        (
            "a mixture",
            and(&OFFICIAL, &CLOUD[..1]),
            "GENESYS_CLOUD_CLIENT_ID, GENESYS_CLOUD_CLIENT_SECRET",
        ),
        (
            "a mixture",
            and(&OFFICIAL, &CLOUD[1..2]),
            "GENESYS_CLOUD_REGION, GENESYS_CLOUD_CLIENT_SECRET",
        ),
        (
            "a mixture",
            and(&OFFICIAL, &CLOUD[..2]),
            "GENESYS_CLOUD_CLIENT_SECRET",
        ),
        (
            "a mixture with a token",
            vec![OFFICIAL[0], TOKEN, CLOUD[0]],
            "GENESYS_CLOUD_CLIENT_ID, GENESYS_CLOUD_CLIENT_SECRET",
        ),
        (
            "an unknown region",
            and(&CLOUD, &[("GENESYS_CLOUD_REGION", "eu-west-9")]),
            "GENESYS_CLOUD_REGION",
        ),
        (
            "an unknown official region",
            and(&OFFICIAL, &[("GENESYSCLOUD_REGION", "mars")]),
            "GENESYSCLOUD_REGION",
        ),
        // The address does not make a wrong region right.
        (
            "an unknown region with an address",
            and(&CLOUD, &[("GENESYS_CLOUD_REGION", "eu-west-9"), BASE]),
            "GENESYS_CLOUD_REGION",
        ),
    ] {
        let error = from(&variables).expect_err(name);
        assert_eq!(error.kind(), ErrorKind::Config, "{name}");
        let start = if name.starts_with("an unknown") {
            format!("{missing}: ")
        } else {
            let verb = if missing.contains(',') { "are" } else { "is" };
            format!("missing required environment variables: {missing} {verb} not set; set all of ")
        };
        if !name.starts_with("an unknown") {
            says(&error, &["--credentials", "--profile", "sandbox"]);
        }
        assert!(error.to_string().starts_with(&start), "{name}: {error}");
        assert!(!error.to_string().contains("-secret"), "{error}");
    }
}

#[test]
fn environment_names_of_other_tools_are_told() {
    for (variables, found) in [
        (
            vec![("PURECLOUD_CLIENT_ID", "x-secret")],
            "(PURECLOUD_CLIENT_ID is set,",
        ),
        (
            vec![
                CLOUD[1],
                CLOUD[2],
                ("GENESYS_CLOUD_ENVIRONMENT", "mypurecloud.ie"),
            ],
            "(GENESYS_CLOUD_ENVIRONMENT is set,",
        ),
        (
            vec![
                ("GENESYSCLOUD_CLIENT_ID", "x"),
                ("GENESYS_CLIENT_SECRET", "x-secret"),
            ],
            "(GENESYSCLOUD_CLIENT_ID, GENESYS_CLIENT_SECRET are set,",
        ),
        (
            and(&OFFICIAL, &CLOUD[..1]),
            "(GENESYSCLOUD_REGION, GENESYSCLOUD_OAUTHCLIENT_ID, GENESYSCLOUD_OAUTHCLIENT_SECRET are set,",
        ),
    ] {
        let error = from(&variables).unwrap_err();
        says(&error, &[found]);
        assert!(!error.to_string().contains("-secret"), "{error}");
    }
    // A whole family is enough, whatever else is set.
    let all = and(&CLOUD, &[("PURECLOUD_CLIENT_ID", "x")]);
    assert!(from(&all).is_ok());
}

#[test]
fn environment_logs_in_where_the_address_or_its_variable_says() {
    const LOGIN: (&str, &str) = ("GENESYS_CLOUD_LOGIN_URL", "http://127.0.0.1:8081/login/");
    let base = |url: &'static str| ("GENESYS_CLOUD_BASE_URL", url);
    let (ireland, sydney) = (
        "https://api.mypurecloud.ie",
        "https://API.mypurecloud.com.au/",
    );
    for (variables, login, api) in [
        (
            vec![base(ireland)],
            "https://login.mypurecloud.ie/oauth/token",
            ireland,
        ),
        (
            vec![base(sydney)],
            "https://login.mypurecloud.com.au/oauth/token",
            "https://API.mypurecloud.com.au",
        ),
        (
            vec![base("https://api.gateway.example")],
            "https://api.gateway.example/oauth/token",
            "https://api.gateway.example",
        ),
        (
            vec![BASE, LOGIN],
            "http://127.0.0.1:8081/login/oauth/token",
            "http://127.0.0.1:8080/gw",
        ),
        (
            vec![base(ireland), LOGIN],
            "http://127.0.0.1:8081/login/oauth/token",
            ireland,
        ),
    ] {
        let builder = from(&and(&CLOUD[1..], &variables)).unwrap();
        let requests = requests_of(builder).unwrap();
        assert_eq!(requests[0].path, login);
        assert!(
            requests[1].path.starts_with(&format!("{api}/api/v2/")),
            "{}",
            requests[1].path
        );
    }
}

#[test]
fn variable_lookup_error_is_passed_on() {
    let error = ClientBuilder::from_variables(|name| match name {
        "GENESYS_CLOUD_CLIENT_SECRET" => Err(Error::new(ErrorKind::Config, "the vault is closed")),
        _ => Ok(Some("eu-west-1".to_owned())),
    })
    .unwrap_err();
    assert_eq!(error.to_string(), "the vault is closed");
}

#[test]
fn environment_bad_base_url_is_config_error() {
    let variables = and(
        &CLOUD,
        &[("GENESYS_CLOUD_BASE_URL", "http://gateway.example")],
    );
    refused(from(&variables).unwrap(), "base_url");
}

// ---------------------------------------------------------------------------------------------------------------------
// Addresses

#[test]
fn region_unknown_lists_known_ones() {
    for name in [
        "",
        "eu-west-9",
        "mypurecloud",
        "api.mypurecloud.co",
        "https://mypurecloud.com.example",
    ] {
        let error = Region::parse(name).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        says(&error, &["unknown region", "us-east-1", "mypurecloud.jp"]);
    }
}

#[test]
fn custom_domain_sets_api_and_login_urls() {
    let region = Region::custom("pure.example.org").unwrap();
    let builder = Client::builder(region, Credentials::new("id", "secret"));
    let paths: Vec<_> = requests_of(builder)
        .unwrap()
        .into_iter()
        .map(|r| r.path)
        .collect();
    assert_eq!(paths[0], "https://login.pure.example.org/oauth/token");
    assert!(
        paths[1].starts_with("https://api.pure.example.org/api/v2/"),
        "{paths:?}"
    );
}

#[test]
fn http_url_beyond_loopback_needs_allow_http() {
    for (url, loopback) in [
        ("http://127.0.0.1:8080", true),
        ("http://127.1.2.3", true),
        ("http://[::1]:8080", true),
        ("http://localhost:8080", true),
        ("http://LocalHost", true),
        ("http://sandbox.localhost", true),
        ("http://gateway.example", false),
        ("http://10.0.0.1", false),
        ("http://localhost.example", false),
        ("http://127.0.0.1.example", false),
        ("http://[::2]", false),
        ("http://0.0.0.0", false),
    ] {
        for login in [false, true] {
            let with_url = || match login {
                false => builder().base_url(url),
                true => builder().login_url(url),
            };
            let setting = if login { "login_url" } else { "base_url" };
            if loopback {
                with_url().build().unwrap();
            } else {
                let error = refused(with_url(), setting);
                says(&error, &["https", "allow_http"]);
            }
            with_url().allow_http(true).build().unwrap();
        }
    }
}

#[test]
fn base_url_with_path_is_kept_without_trailing_slash() {
    for (url, base) in [
        ("https://gateway.example", "https://gateway.example"),
        ("https://gateway.example/", "https://gateway.example"),
        (
            "https://gateway.example:8443//",
            "https://gateway.example:8443",
        ),
        (
            "  https://gateway.example/genesys/eu/ \n",
            "https://gateway.example/genesys/eu",
        ),
        ("HTTPS://gateway.example", "HTTPS://gateway.example"),
    ] {
        let paths: Vec<_> = requests_of(builder().base_url(url))
            .unwrap()
            .into_iter()
            .map(|r| r.path)
            .collect();
        assert_eq!(paths[0], format!("{base}/oauth/token"), "{url:?}");
        assert_eq!(
            paths[1],
            format!("{base}/api/v2/conversations/c-1/participants/p-1/attributes")
        );
    }
}

#[test]
fn base_url_invalid_is_config_error() {
    for url in [
        "",
        " ",
        "gateway.example",
        "/path",
        "https://",
        "https:///path",
        "https://gateway.example:port",
        "https://gateway.example:99999",
        "https://gateway.example:",
        "https://:443",
        "https://gate way.example",
        "https://gateway.example\nX: 1",
        "https://gateway.example/?a=b",
        "https://gateway.example/?",
        "https://gateway.example/#x",
        "ftp://gateway.example",
        "file:///etc/passwd",
        "https://user@gateway.example",
        "http://127.0.0.1@gateway.example",
    ] {
        refused(builder().allow_http(true).base_url(url), "base_url");
        refused(builder().allow_http(true).login_url(url), "login_url");
    }
    let error = refused(
        builder().base_url("https://user:pa55word@gateway.example"),
        "base_url",
    );
    assert!(!format!("{error} {error:?}").contains("pa55word"));
}

#[test]
fn base_url_with_password_is_refused_and_not_shown() {
    let builder = builder().base_url("https://user:pa55word@gateway.example");
    let shown = format!("{builder:?}");
    assert!(!shown.contains("pa55word"), "{shown}");
}

// ---------------------------------------------------------------------------------------------------------------------
// Credentials

#[test]
fn credentials_unsendable_are_refused_without_showing_them() {
    for (id, secret, setting) in [
        ("", "secret", "client id"),
        ("id", "", "client secret"),
        ("i d", "secret", "client id"),
        ("id", "se5ret\n", "client secret"),
        ("id", "se5ret ", "client secret"),
        ("id", "se5rét", "client secret"),
        ("id\r\nX: 1", "se5ret", "client id"),
    ] {
        let builder = Client::builder(region(), Credentials::new(id, secret));
        let error = refused(builder, setting);
        assert!(!format!("{error} {error:?}").contains("se5r"), "{error}");
    }
    for token in ["", "t0ken\n", "t0ken t0ken", "t0kén", "t0ken\0"] {
        let builder = Client::builder(region(), Credentials::access_token(token));
        let error = refused(builder, "access token");
        assert!(!format!("{error} {error:?}").contains("t0k"), "{error}");
    }
}

#[test]
fn client_id_with_colon_is_config_error() {
    // RFC 7617: the secret would begin at the wrong place.
    let builder = Client::builder(region(), Credentials::new("i:d", "secret"));
    refused(builder, "client id");
}

// ---------------------------------------------------------------------------------------------------------------------
// Numbers

#[test]
fn settings_out_of_range_are_refused_by_name() {
    let retry = RetryPolicy::default;
    let timeouts = Timeouts::default;
    let limits = ValidationLimits::default;
    let (zero, most) = (Duration::ZERO, Duration::MAX);
    for (builder, setting) in [
        (
            builder().retry(retry().with_max_attempts(0)),
            "retry.max_attempts",
        ),
        (
            builder().retry(retry().with_deadline(zero)),
            "retry.deadline",
        ),
        (
            builder().retry(retry().with_deadline(most)),
            "retry.deadline",
        ),
        (
            builder().retry(retry().with_deadline(secs(86_401))),
            "retry.deadline",
        ),
        (
            builder().retry(retry().with_max_retry_after(most)),
            "retry.max_retry_after",
        ),
        (
            builder().retry(retry().with_backoff(secs(2), secs(1))),
            "retry.backoff",
        ),
        (
            builder().retry(retry().with_backoff(most, most)),
            "retry.backoff",
        ),
        (
            builder().retry(retry().with_backoff(zero, most)),
            "retry.backoff",
        ),
        (
            builder().timeouts(timeouts().with_connect(zero)),
            "timeouts.connect",
        ),
        (
            builder().timeouts(timeouts().with_connect(most)),
            "timeouts.connect",
        ),
        (
            builder().timeouts(timeouts().with_send(zero)),
            "timeouts.send",
        ),
        (
            builder().timeouts(timeouts().with_send(most)),
            "timeouts.send",
        ),
        (
            builder().timeouts(timeouts().with_response(zero)),
            "timeouts.response",
        ),
        (
            builder().timeouts(timeouts().with_response(most)),
            "timeouts.response",
        ),
        (
            builder().timeouts(timeouts().with_body(ms(1) / 2)),
            "timeouts.body",
        ),
        (
            builder().timeouts(timeouts().with_body(secs(3_601))),
            "timeouts.body",
        ),
        (builder().rate_limit(RateLimit::per_minute(0)), "rate_limit"),
        (
            builder().rate_limit(RateLimit::per_minute(u32::MAX)),
            "rate_limit",
        ),
        (
            builder().validation_limits(limits().with_key_length(0)),
            "key_length",
        ),
        (
            builder().validation_limits(limits().with_string_length(0)),
            "string_length",
        ),
        (
            builder().validation_limits(limits().with_body_bytes(0)),
            "body_bytes",
        ),
        (builder().max_response_body(0), "max_response_body"),
        (builder().max_response_body(usize::MAX), "max_response_body"),
        (builder().user_agent(""), "user_agent"),
        (builder().user_agent("a\r\nX: 1"), "user_agent"),
        (builder().user_agent("é"), "user_agent"),
    ] {
        refused(builder, setting);
    }
}

#[test]
fn settings_at_limits_are_accepted() {
    for builder in [
        builder().retry(
            RetryPolicy::default()
                .with_max_attempts(u32::MAX)
                .with_max_conflicts(u32::MAX)
                .with_deadline(secs(86_400))
                .with_max_retry_after(Duration::ZERO)
                .with_backoff(Duration::ZERO, secs(86_400)),
        ),
        builder().timeouts(
            Timeouts::default()
                .with_connect(ms(1))
                .with_send(secs(3_600))
                .with_response(secs(3_600))
                .with_body(secs(3_600)),
        ),
        builder().rate_limit(RateLimit::per_minute(1_000_000)),
        builder().rate_limit(RateLimit::unlimited()),
        builder().max_idle_connections(0),
        builder().max_idle_connections(usize::MAX),
        builder().version_cache(0),
        builder().version_cache(usize::MAX),
        builder().max_response_body(1),
        builder().user_agent("My App/1.0 (+https://example.org)"),
        builder().metadata_source(""),
    ] {
        builder.build().unwrap();
    }
}

#[test]
fn client_with_extreme_settings_updates() {
    let fake = Fake::new();
    fake.token()
        .get(7)
        .fault("PATCH", ErrorKind::Transport, Sent::Maybe)
        .patch(8);
    let client = fake
        .builder()
        .version_cache(usize::MAX)
        .retry(
            RetryPolicy::default()
                .with_max_attempts(u32::MAX)
                .with_max_conflicts(u32::MAX)
                .with_deadline(secs(86_400)),
        )
        .rate_limit(RateLimit::per_minute(1_000_000))
        .build()
        .unwrap();
    client
        .update(&Update::conversation("c-1").set("k", "v"))
        .unwrap();
}

#[test]
fn defaults_match_documentation() {
    let retry = RetryPolicy::default();
    assert_eq!((retry.max_attempts, retry.max_conflicts), (4, None));
    assert_eq!(
        (retry.deadline, retry.max_retry_after),
        (secs(300), secs(180))
    );
    assert_eq!((retry.backoff_base, retry.backoff_max), (ms(500), secs(20)));
    let timeouts = Timeouts::default();
    assert_eq!((timeouts.connect, timeouts.send), (secs(5), secs(10)));
    assert_eq!((timeouts.response, timeouts.body), (secs(20), secs(20)));
    assert_eq!(RateLimit::default(), RateLimit::per_minute(300));
    let limits = ValidationLimits::default();
    assert_eq!((limits.key_length, limits.string_length), (128, 1_024));
    assert_eq!(
        (limits.integer_max, limits.body_bytes),
        (999_999_999, 512_000)
    );
}

#[test]
fn validation_limits_set_apply_to_values() {
    let fake = Fake::new();
    let client = fake
        .builder()
        .validation_limits(
            ValidationLimits::default()
                .with_key_length(3)
                .with_string_length(4)
                .with_integer_max(5),
        )
        .build()
        .unwrap();
    let update = Update::conversation("c-1")
        .set("long", "x")
        .set("s", "12345")
        .set("n", 6);
    let error = client.update(&update).unwrap_err();
    let limits: Vec<_> = error.violations().iter().map(|v| v.limit).collect();
    assert_eq!(limits, [Some(3), Some(5), Some(4)]);

    fake.token().get(7).patch(8);
    let update = Update::conversation("c-1")
        .set("lon", "x")
        .set("s", "1234")
        .set("n", 5);
    client.update(&update).unwrap();
}

#[test]
fn backoff_doubles_up_to_max() {
    let fake = Fake::new();
    fake.token();
    for _ in 0..6 {
        fake.status("PATCH", 503);
    }
    let policy = RetryPolicy::default()
        .with_max_attempts(6)
        .with_backoff(secs(1), secs(3));
    let client = fake.builder().retry(policy).build().unwrap();
    client.update(&update()).unwrap_err();
    let up_to = |s| (Duration::ZERO, secs(s));
    fake.slept(&[up_to(1), up_to(2), up_to(3), up_to(3), up_to(3)]);
}

// ---------------------------------------------------------------------------------------------------------------------
// Proxy and certificates

#[test]
fn proxy_url_invalid_is_refused_without_showing_password() {
    for url in [
        "",
        "http://",
        "http://user:pa55word@",
        "http://user:pa55word@host:port",
        "http://user:pa55word@host:99999",
        "nonsense://user:pa55word@host:1",
        "socks5://user:pa55word@host:1",
        "http://user:pa55word@ho st:1",
    ] {
        let builder = builder().proxy(url);
        assert!(!format!("{builder:?}").contains("pa55word"));
        let result = builder.build();
        let error = result.err().unwrap_or_else(|| panic!("{url:?} is taken"));
        assert_eq!(error.kind(), ErrorKind::Config);
        says(&error, &["proxy"]);
        let mut shown = format!("{error} {error:?} {error:#?}");
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            shown += &format!("{cause} {cause:?}");
            source = cause.source();
        }
        assert!(!shown.contains("pa55word"), "{shown}");
    }
}

#[test]
fn proxy_url_with_or_without_password_is_accepted() {
    for url in [
        "http://proxy.example:8080",
        "http://user:pa55word@proxy.example:8080",
        "http://user:pa%40ss@[::1]:8080",
        "https://proxy.example",
    ] {
        let client = builder().proxy(url).build().unwrap();
        assert!(!format!("{client:?}").contains("pa55word"));
    }
}

#[cfg(feature = "rustls")]
#[test]
fn root_certificates_invalid_pem_is_config_error() {
    let key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    for (name, pem) in [
        ("empty", ""),
        ("blank", "\n\n"),
        ("garbage", "garbage"),
        ("only a key", key),
        ("no end", "-----BEGIN CERTIFICATE-----\nAAAA\n"),
        (
            "not base64",
            "-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n",
        ),
        (
            "not DER",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ),
        (
            "nothing inside",
            "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
        ),
    ] {
        let result = builder().root_certificates(pem).build();
        let error = result.err().unwrap_or_else(|| panic!("{name} is taken"));
        assert_eq!(error.kind(), ErrorKind::Config, "{name}");
        says(&error, &["root_certificates"]);
    }
    let bytes: &[u8] = &[0xff, 0, 0xfe];
    refused(builder().root_certificates(bytes), "root_certificates");
}

#[cfg(feature = "rustls")]
#[test]
fn root_certificates_pem_with_surrounding_text_is_accepted() {
    let pem = rcgen::generate_simple_self_signed(["localhost".to_owned()])
        .unwrap()
        .cert
        .pem();
    for text in [
        pem.clone(),
        format!("{pem}{pem}"),
        format!("# a comment\n{pem}\nmore\n"),
    ] {
        builder().root_certificates(text).build().unwrap();
    }
}
