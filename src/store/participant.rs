//! The attributes of one participant: data for agents, scripts, flows and reports.
//!
//! - Read: `GET /api/v2/conversations/{id}`, and in it the participant that is meant. A write to
//!   an id needs no read.
//! - Write: `PATCH …/participants/{id}/attributes` with the changed keys only → 202: it will be
//!   stored shortly.
//! - Lock: none exists, neither version nor entity tag; the last writer of a key wins. 409 asks to
//!   send it again.
//! - Values: text; integers and booleans are written as text.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Value;

use super::who::{CUSTOMER, Participant, STAYING, Selector};
use super::{
    AttributesPatch, Change, ConversationBody, Kind, ReadFailure, TargetKind, TargetState, Write,
    encoded, identifier, json_bytes, nothing_to_write_on,
};
use crate::error::{Error, ErrorKind, Result, Rule, Violation};
use crate::http::{Method, Response};
use crate::values::attributes::{Attributes, Values};

impl Participant {
    /// The participant that is meant: active ones before those who left, one and no more.
    fn choose<'p>(&self, participants: &'p [ParticipantBody]) -> Result<&'p ParticipantBody> {
        let of_purpose = |purpose: &str| -> Vec<&'p ParticipantBody> {
            let has =
                |p: &&ParticipantBody| p.id.is_some() && p.purpose.as_deref() == Some(purpose);
            participants.iter().filter(has).collect()
        };
        let mut meant = match self.selector() {
            Selector::Id(id) => {
                let mut all = participants.iter();
                return all
                    .find(|p| p.id.as_deref() == Some(id))
                    .ok_or_else(|| self.not_found(participants));
            }
            Selector::Purpose(purpose) => of_purpose(purpose),
            Selector::Customer => CUSTOMER
                .iter()
                .map(|purpose| of_purpose(purpose))
                .find(|found| !found.is_empty())
                .unwrap_or_default(),
        };
        if meant.iter().any(|p| p.is_active()) {
            meant.retain(|p| p.is_active());
        }
        match meant.as_slice() {
            [one] => Ok(one),
            [] => Err(self.not_found(participants)),
            several => {
                let ids: Vec<&str> = several.iter().filter_map(|p| p.id.as_deref()).collect();
                Err(Error::violated(vec![Violation::new(
                    "participant",
                    Rule::Unsupported,
                    format!(
                        "{self} means {} participants; give the id of one: {}",
                        ids.len(),
                        ids.join(", ")
                    ),
                )]))
            }
        }
    }

    fn not_found(&self, participants: &[ParticipantBody]) -> Error {
        let mut purposes: Vec<&str> = Vec::new();
        for purpose in participants.iter().filter_map(|p| p.purpose.as_deref()) {
            if !purposes.contains(&purpose) {
                purposes.push(purpose);
            }
        }
        let there = match purposes.as_slice() {
            [] => "no participants".to_owned(),
            some => format!("participants of the purposes {}", some.join(", ")),
        };
        Error::new(
            ErrorKind::NotFound,
            format!("it does not exist; the conversation has {there}"),
        )
    }
}

/// The participant that a read found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) id: String,
    /// Whether it stays as long as the conversation does, so that its id may be remembered.
    pub(crate) stays: bool,
}

impl Kind for Participant {
    const KIND: TargetKind = TargetKind::Participant;
    const VALUES: Values = Values::Text;

    fn description(&self) -> String {
        format!("participant {self} of conversation ")
    }

    fn check(&self, found: &mut Vec<Violation>) {
        let name = match self.selector() {
            Selector::Id(id) => id,
            Selector::Purpose(purpose) => purpose,
            Selector::Customer => return,
        };
        identifier("participant", name, found);
    }

    fn is_locked(&self) -> bool {
        false
    }

    fn known(&self, cached: Option<String>) -> Option<TargetState> {
        let participant = match self.selector() {
            // The selector has it already.
            Selector::Id(_) => None,
            _ => Some(Found {
                id: cached?,
                stays: true,
            }),
        };
        Some(TargetState {
            participant,
            ..TargetState::default()
        })
    }

    fn read_path(&self) -> Cow<'static, str> {
        Cow::Borrowed("")
    }

    fn parse(&self, response: &Response) -> Result<TargetState, ReadFailure> {
        let read: ConversationBody = response.object_of()?;
        let participant = self.choose(read.participants.as_deref().unwrap_or_default())?;
        let purpose = participant.purpose.as_deref().unwrap_or_default();
        let stays = STAYING.contains(&purpose);
        Ok(TargetState {
            participant: participant.id.clone().map(|id| Found { id, stays }),
            // A participant without the field has no attributes.
            attributes: Some(participant.attributes.clone().unwrap_or_default()),
            ended: read.ended(),
            ..TargetState::default()
        })
    }

    fn write(&self, mut path: String, change: &Change<'_>, state: &TargetState) -> Result<Write> {
        let id = match (&state.participant, self.selector()) {
            (Some(found), _) => found.id.as_str(),
            (None, Selector::Id(id)) => id,
            (None, _) => return Err(nothing_to_write_on("no participant to write to")),
        };
        path += "/participants/";
        path += &encoded(id);
        path += "/attributes";
        Ok(Write {
            method: Method::Patch,
            path,
            if_match: None,
            body: json_bytes(&AttributesPatch {
                attributes: change.set,
            })?,
        })
    }

    /// The id that was found for a purpose. No identifier holds a '/'.
    fn cache_key<'k>(&self, conversation: &'k str) -> Option<Cow<'k, str>> {
        (!self.is_id()).then(|| [conversation, "/", self.as_str()].concat().into())
    }

    fn resource_id(&self, state: &TargetState) -> Option<String> {
        Some(match &state.participant {
            Some(found) => found.id.clone(),
            None => self.to_string(),
        })
    }

    fn shows_end(&self) -> bool {
        true
    }

    fn advice(&self, status: u16, _: bool) -> Option<String> {
        let purpose = self.resembles().filter(|_| status == 404)?;
        Some(format!(
            "{:?} was taken for the id of a participant: if the purpose {purpose} was meant, write \
             purpose:{purpose}",
            self.as_str()
        ))
    }

    fn approximate_size(&self) -> usize {
        self.as_str().len()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ParticipantBody {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    purpose: Option<String>,
    #[serde(default)]
    end_time: Option<Value>,
    #[serde(default)]
    attributes: Option<Attributes>,
}

impl ParticipantBody {
    fn is_active(&self) -> bool {
        self.end_time.as_ref().is_none_or(Value::is_null)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(who: &str, participants: Value) -> std::result::Result<String, ErrorKind> {
        let participants: Vec<ParticipantBody> = serde_json::from_value(participants).unwrap();
        let found = Participant::from(who)
            .choose(&participants)
            .map_err(|e| e.kind())?;
        Ok(found.id.clone().unwrap_or_default())
    }

    #[test]
    fn participant_choice_by_table() {
        let one = |id: &str, purpose: &str| serde_json::json!({ "id": id, "purpose": purpose });
        let left = |id: &str, purpose: &str| serde_json::json!({ "id": id, "purpose": purpose, "endTime": "2026-01-01T00:00:00Z" });
        let call = serde_json::json!([one("u", "user"), one("x", "external"), one("a", "agent")]);
        for (who, participants, found) in [
            ("customer", &call, Ok("x")),
            ("user", &call, Ok("u")),
            ("purpose:agent", &call, Ok("a")),
            ("purpose:customer", &call, Err(ErrorKind::NotFound)),
            ("a", &call, Ok("a")),
            ("nobody", &call, Err(ErrorKind::NotFound)),
            (
                "agent",
                &serde_json::json!([left("1", "agent"), one("2", "agent")]),
                Ok("2"),
            ),
            ("agent", &serde_json::json!([left("1", "agent")]), Ok("1")),
            (
                "agent",
                &serde_json::json!([one("1", "agent"), one("2", "agent")]),
                Err(ErrorKind::InvalidInput),
            ),
            (
                "agent",
                &serde_json::json!([{ "purpose": "agent" }]),
                Err(ErrorKind::NotFound),
            ),
        ] {
            assert_eq!(
                chosen(who, participants.clone()),
                found.map(str::to_owned),
                "{who} in {participants}"
            );
        }
    }

    #[test]
    fn participant_text_reads_back_to_the_same_meaning() {
        for who in [
            Participant::customer(),
            Participant::purpose("customer"),
            Participant::purpose("agent"),
            Participant::purpose("robot"),
            Participant::id("7c1b"),
            Participant::id("agent"),
            Participant::id("purpose:x"),
            Participant::id("id:x"),
        ] {
            assert_eq!(Participant::from(who.to_string()), who, "{who}");
        }
        assert!(Participant::from("agent") == Participant::from("purpose:agent"));
        assert!(!Participant::from("agent").is_id() && Participant::id("agent").is_id());
    }

    #[test]
    fn participant_id_that_resembles_a_purpose_is_told() {
        for (id, purpose) in [
            ("agnet", Some("agent")),
            ("Customer", Some("customer")),
            ("custommer", Some("customer")),
            ("7c1b4f0e-0000-4000-8000-000000000001", None),
            ("p-1", None),
        ] {
            assert_eq!(Participant::id(id).resembles(), purpose, "{id}");
        }
        let advice = Participant::from("agnet").advice(404, false).unwrap();
        assert!(
            advice.starts_with("\"agnet\" was taken for the id"),
            "{advice}"
        );
        assert_eq!(Participant::from("agnet").advice(403, false), None);
    }

    #[test]
    fn participant_who_may_leave_is_not_remembered() {
        for (purpose, stays) in [("customer", true), ("external", true), ("user", false)] {
            let body = serde_json::json!({ "participants": [{ "id": "p", "purpose": purpose }] });
            let response = Response::new(200).with_body(body.to_string());
            let state = Participant::customer().parse(&response).unwrap();
            let found = state.participant.unwrap();
            assert_eq!((found.id.as_str(), found.stays), ("p", stays), "{purpose}");
        }
    }
}
