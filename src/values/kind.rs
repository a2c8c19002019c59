//! The names of the kinds of stores.

use crate::error::Error;
use crate::error::names::named_enum;

named_enum! {
    /// The kinds of targets.
    #[derive(PartialOrd, Ord)]
    pub enum TargetKind, "target" {
        /// The attributes of the conversation itself, by the conversation-level endpoint.
        Conversation = "conversation",
        /// The attributes of one participant.
        Participant = "participant",
        /// The conversation's secure attributes.
        Secure = "secure",
        /// A record of custom attributes.
        Custom = "custom",
    }
}
