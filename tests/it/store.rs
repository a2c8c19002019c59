//! A fast stand-in for the conversation store: token endpoint, versions, `If-Match`, and a log of
//! every write that took effect. Faults are up to the test.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde_json::{Map, Value, json};

use crate::server::{Req, Resp, Server};

#[derive(Default)]
pub struct Conversation {
    pub version: u64,
    pub attributes: Map<String, Value>,
    /// The attributes of each write that took effect, in order.
    pub writes: Vec<Map<String, Value>>,
}

#[derive(Clone, Default)]
pub struct Store(Arc<Mutex<BTreeMap<String, Conversation>>>);

impl Store {
    pub fn with<R>(&self, id: &str, f: impl FnOnce(&mut Conversation) -> R) -> R {
        let mut all = self.0.lock().unwrap();
        f(all.entry(id.to_owned()).or_default())
    }

    pub fn ids(&self) -> Vec<String> {
        self.0.lock().unwrap().keys().cloned().collect()
    }

    /// A server of this store; `first` may answer in its stead.
    pub fn serve(
        &self,
        first: impl Fn(&Req<'_>, &Store) -> Option<Resp> + Send + Sync + 'static,
    ) -> Server {
        let store = self.clone();
        Server::start(move |req| first(req, &store).unwrap_or_else(|| store.answer(req)))
    }

    /// What the platform would do.
    pub fn answer(&self, req: &Req<'_>) -> Resp {
        if req.path == "/oauth/token" {
            return Resp::json(
                200,
                r#"{"access_token":"store-token","token_type":"bearer","expires_in":86400}"#,
            );
        }
        if req.path == "/api/v2/tokens/me" {
            return Resp::json(200, r#"{"organization":{"id":"o","name":"Org"}}"#);
        }
        let Some(rest) = req.path.strip_prefix("/api/v2/conversations/") else {
            return Resp::json(404, "{}");
        };
        let id = rest.split('/').next().unwrap_or_default();
        self.with(id, |conversation| {
            if req.method == "GET" {
                let body = json!({
                    "version": conversation.version.to_string(),
                    "attributes": conversation.attributes,
                });
                return Resp::json(200, body.to_string());
            }
            if req.header("if-match") != Some(&format!("\"{}\"", conversation.version)) {
                return Resp::json(412, r#"{"code":"precondition.failed"}"#);
            }
            let body = req.json();
            let Some(attributes) = body["attributes"].as_object() else {
                return Resp::json(400, "{}");
            };
            conversation.version += 1;
            conversation.attributes.extend(attributes.clone());
            conversation.writes.push(attributes.clone());
            Resp::json(200, format!(r#"{{"version":"{}"}}"#, conversation.version))
        })
    }
}
