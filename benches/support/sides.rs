//! The two sides that the benches compare, and the server they talk to.

#![allow(dead_code)]

use std::error::Error;
use std::sync::Mutex;
use std::time::SystemTime;

use genesys_attributes::clock::rfc3339;
use genesys_attributes::{Client, ClientBuilder, Credentials, RateLimit, Region, Timeouts, Update};
use serde::Deserialize;
use serde_json::json;

use crate::server::{Req, Resp, Server};

pub type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// Each side has a conversation of its own, so that neither moves the other's version.
const LIBRARY: &str = "00000000-0000-4000-8000-000000000001";
const BARE: &str = "00000000-0000-4000-8000-000000000002";
/// As long as the library's own, so that both sides send the same number of bytes.
const USER_AGENT: &str = concat!("genesys-attributes/", env!("CARGO_PKG_VERSION"));

/// The stand-in for the platform: a version for each conversation, that every write must name.
pub fn platform() -> Server {
    let versions = [Mutex::new(1_000_000_u64), Mutex::new(1_000_000_u64)];
    Server::start(move |req: &Req| {
        if req.path == "/oauth/token" {
            return Resp::json(
                200,
                r#"{"access_token":"an-access-token-of-the-usual-length-0123456789","token_type":"bearer","expires_in":86399}"#,
            );
        }
        let id = if req.path.contains(LIBRARY) {
            LIBRARY
        } else {
            BARE
        };
        let Ok(mut version) = versions[usize::from(id == BARE)].lock() else {
            return Resp::empty(500);
        };
        if req.method == "PATCH" {
            if req.header("if-match") != Some(format!("\"{version}\"").as_str()) {
                return Resp::empty(412);
            }
            *version += 1;
        }
        Resp::json(
            200,
            format!(
                r#"{{"id":"{id}","version":"{version}","state":"connected","startTime":"2025-01-01T00:00:00.000Z","attributes":{{"campaign.id":"12345","customer.tier":"premium","routing.score":85}}}}"#
            ),
        )
    })
}

pub fn builder(url: &str, cache: usize) -> Result<ClientBuilder> {
    let builder = Client::builder(
        Region::parse("us-east-1")?,
        Credentials::new("client-id", "client-secret"),
    )
    .base_url(url)
    .no_proxy()
    .rate_limit(RateLimit::unlimited())
    .version_cache(cache)
    .user_agent(USER_AGENT);
    Ok(builder)
}

pub fn client(url: &str, cache: usize) -> Result<Client> {
    Ok(builder(url, cache)?.build()?)
}

pub fn update() -> Update {
    update_of(LIBRARY)
}

/// The same update of the other side's conversation, for two sides that are the library's.
pub fn other_update() -> Update {
    update_of(BARE)
}

fn update_of(conversation: &str) -> Update {
    Update::conversation(conversation)
        .set("campaign.id", "12345")
        .set("customer.tier", "premium")
        .set("routing.score", 85)
}

/// What a program would write without the library: no retry, no validation, no lock on versions
/// in memory, but the same agent, the same header fields and bodies, and no less of the answers
/// read than it needs.
pub struct Bare {
    agent: ureq::Agent,
    url: String,
    authorization: String,
}

#[derive(Deserialize)]
struct Grant {
    access_token: String,
}

#[derive(Deserialize)]
struct Conversation {
    version: String,
}

impl Bare {
    /// With a token, fetched.
    pub fn new(url: &str) -> Result<Bare> {
        let timeouts = Timeouts::default();
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(timeouts.connect))
            .timeout_send_request(Some(timeouts.send))
            .timeout_send_body(Some(timeouts.send))
            .timeout_recv_response(Some(timeouts.response))
            .timeout_recv_body(Some(timeouts.body))
            .max_idle_connections(64)
            .max_idle_connections_per_host(64)
            .user_agent(USER_AGENT)
            .accept_encoding(ureq::config::AutoHeaderValue::None)
            .proxy(None)
            .build();
        let agent = ureq::Agent::new_with_config(config);
        let response = agent
            .post(format!("{url}/oauth/token"))
            .header("Accept", "application/json")
            // client-id:client-secret
            .header("Authorization", "Basic Y2xpZW50LWlkOmNsaWVudC1zZWNyZXQ=")
            .header("Content-Type", "application/x-www-form-urlencoded")
            .send("grant_type=client_credentials")?;
        let grant: Grant = json_of(response)?;
        Ok(Bare {
            agent,
            url: url.to_owned(),
            authorization: format!("Bearer {}", grant.access_token),
        })
    }

    pub fn version(&self) -> Result<String> {
        let response = self
            .agent
            .get(format!("{}/api/v2/conversations/{BARE}", self.url))
            .header("Accept", "application/json")
            .header("Authorization", &self.authorization)
            .call()?;
        Ok(json_of::<Conversation>(response)?.version)
    }

    pub fn patch(&self, version: &str) -> Result<String> {
        let body = serde_json::to_vec(&json!({
            "attributes": {
                "campaign.id": "12345",
                "customer.tier": "premium",
                "routing.score": 85,
            },
            "metadata": {
                "source": "external-integration",
                "timestamp": rfc3339(SystemTime::now()),
            },
        }))?;
        let response = self
            .agent
            .patch(format!(
                "{}/api/v2/conversations/{BARE}/attributes",
                self.url
            ))
            .header("Accept", "application/json")
            .header("Authorization", &self.authorization)
            .header("If-Match", format!("\"{version}\""))
            .header("Content-Type", "application/json")
            .send(&body[..])?;
        Ok(json_of::<Conversation>(response)?.version)
    }
}

fn json_of<T: serde::de::DeserializeOwned>(
    mut response: ureq::http::Response<ureq::Body>,
) -> Result<T> {
    let status = response.status();
    let body = response
        .body_mut()
        .with_config()
        .limit(1 << 20)
        .read_to_vec()?;
    if !status.is_success() {
        return Err(format!("the server answered {status}").into());
    }
    Ok(serde_json::from_slice(&body)?)
}
