//! The names of the kinds of stores.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result, clip};

/// The kinds of targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum TargetKind {
    /// The attributes of the conversation itself, by the conversation-level endpoint.
    Conversation,
    /// The attributes of one participant.
    Participant,
    /// The conversation's secure attributes.
    Secure,
    /// A record of custom attributes.
    Custom,
}

impl TargetKind {
    /// Every kind.
    pub const ALL: &[TargetKind] = &[
        TargetKind::Conversation,
        TargetKind::Participant,
        TargetKind::Secure,
        TargetKind::Custom,
    ];

    /// The name used in JSON records, such as `"participant"`.
    pub fn name(self) -> &'static str {
        match self {
            TargetKind::Conversation => "conversation",
            TargetKind::Participant => "participant",
            TargetKind::Secure => "secure",
            TargetKind::Custom => "custom",
        }
    }
}

impl fmt::Display for TargetKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for TargetKind {
    type Err = Error;

    /// Reads what [`TargetKind::name`] gives.
    fn from_str(name: &str) -> Result<TargetKind> {
        let known = TargetKind::ALL.iter().find(|kind| kind.name() == name);
        known.copied().ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "unknown target {:?}; known are conversation, participant, secure and custom",
                    clip(name, 64)
                ),
            )
        })
    }
}
