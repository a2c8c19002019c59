//! The stand-in as the batch and the program need it: conversations come into being at first sight (as version 0), any
//! credentials are good, and each conversation shows its own writes.

use serde_json::{Map, Value};

use crate::sandbox::Backend;
use crate::server::{Req, Resp, Server};

/// A conversation as it is at one moment.
pub struct Conversation {
    #[cfg_attr(
        not(feature = "cli"),
        allow(dead_code, reason = "looked at by the tests of the program")
    )]
    pub attributes: Map<String, Value>,
    /// The attributes of each write to the conversation-level store that took effect, in order.
    pub writes: Vec<Map<String, Value>>,
}

#[derive(Clone)]
pub struct Store(Backend);

impl Default for Store {
    fn default() -> Store {
        let backend = Backend::new();
        backend.world(|world| {
            world.auto_create = true;
            world.first_version = 0;
            world.check_credentials = false;
            world.organization = "Org".into();
        });
        Store(backend)
    }
}

impl Store {
    pub fn with<R>(&self, id: &str, f: impl FnOnce(&Conversation) -> R) -> R {
        let now = self.0.world(|world| {
            let found = world.conversations.get(id).cloned();
            let writes = world.writes.iter();
            Conversation {
                attributes: found.map(|found| found.attributes).unwrap_or_default(),
                writes: writes
                    .filter(|write| write.conversation == id)
                    .map(|write| write.sent.clone())
                    .collect(),
            }
        });
        f(&now)
    }

    /// Another writer moves the version on, where the conversation is there already.
    #[cfg_attr(
        not(feature = "capi"),
        allow(dead_code, reason = "used by the tests of the C interface")
    )]
    pub fn write_by_another(&self, id: &str) {
        self.0.world(|world| {
            if let Some(found) = world.conversations.get_mut(id) {
                found.version += 1;
            }
        });
    }

    pub fn ids(&self) -> Vec<String> {
        self.0
            .world(|world| world.conversations.keys().cloned().collect())
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
        self.0.answer(req)
    }
}
