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
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::who::{CUSTOMER, Participant, STAYING, Selector};
use super::{
    AttributesPatch, Change, ConversationBody, Kind, ReadFailure, TargetKind, TargetState, Write,
    encoded, identifier, json_bytes, nothing_to_write_on,
};
use crate::error::{Error, ErrorKind, Result, Rule, Violation, one_line};
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
            several => Err(Error::violated(vec![Violation::new(
                "participant",
                Rule::SeveralParticipants,
                format!(
                    "{self} means {} participants ({}); give the id of one: {}",
                    several.len(),
                    list(several),
                    ids(several)
                ),
            )])),
        }
    }

    fn not_found(&self, participants: &[ParticipantBody]) -> Error {
        let there = Vec::from_iter(participants);
        let message = format!("it does not exist; the conversation has {}", list(&there));
        Error::new(ErrorKind::NotFound, message)
    }
}

fn ids(participants: &[&ParticipantBody]) -> String {
    let ids = participants.iter().filter_map(|p| p.id.as_deref());
    Vec::from_iter(ids).join(", ")
}

/// The participants of a conversation, for a message.
fn list(participants: &[&ParticipantBody]) -> String {
    const MOST: usize = 20;
    if participants.is_empty() {
        return "no participants".to_owned();
    }
    let shown = participants.iter().take(MOST).map(|p| p.info().to_string());
    let more = participants.len().saturating_sub(MOST);
    let more = (more > 0).then(|| format!("{more} more"));
    Vec::from_iter(shown.chain(more)).join("; ")
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
        if let Some(word) = self.unknown_word() {
            found.push(Violation::new("participant", Rule::UnknownPurpose, word));
        }
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
        self.as_id()
            .is_none()
            .then(|| [conversation, "/", self.as_str()].concat().into())
    }

    fn resource_id(&self, state: &TargetState) -> Option<String> {
        Some(match &state.participant {
            Some(found) => found.id.clone(),
            None => self.as_id().unwrap_or(self.as_str()).to_owned(),
        })
    }

    fn shows_end(&self) -> bool {
        true
    }

    fn who_is_there(&self, conversation: &Response) -> Option<String> {
        self.as_id()?;
        let read: ConversationBody = conversation.object_of().ok()?;
        let participants = read.participants.unwrap_or_default();
        let there = list(&Vec::from_iter(&participants));
        Some(format!("the conversation has {there}"))
    }

    fn approximate_size(&self) -> usize {
        self.as_str().len()
    }
}

/// A participant of a conversation, as [`Client::participants`](crate::Client::participants) finds it.
///
/// `Display` writes one line, such as `agent 7c1b (Ann) since 2026-01-01T00:00:00Z, active`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct ParticipantInfo {
    /// The id, by which an update can name the participant.
    pub id: String,
    /// The purpose, such as `customer`; empty if the platform tells none.
    pub purpose: String,
    /// The name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// When the participant was connected, as the platform writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connected_time: Option<String>,
    /// When the participant left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_time: Option<String>,
    /// False if the participant left.
    pub active: bool,
}

impl fmt::Display for ParticipantInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let purpose = Some(one_line(&self.purpose)).filter(|purpose| !purpose.is_empty());
        f.write_str(purpose.as_deref().unwrap_or("participant"))?;
        if !self.id.is_empty() {
            write!(f, " {}", one_line(&self.id))?;
        }
        if let Some(name) = &self.name {
            write!(f, " ({})", one_line(name))?;
        }
        if let Some(since) = &self.connected_time {
            write!(f, " since {}", one_line(since))?;
        }
        f.write_str(if self.active { ", active" } else { ", left" })
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
    name: Option<Value>,
    #[serde(default)]
    connected_time: Option<Value>,
    #[serde(default)]
    start_time: Option<Value>,
    #[serde(default)]
    end_time: Option<Value>,
    #[serde(default)]
    attributes: Option<Attributes>,
}

impl ParticipantBody {
    pub(super) fn info(&self) -> ParticipantInfo {
        let text = |value: &Option<Value>| {
            let text = value.as_ref().and_then(Value::as_str);
            text.filter(|text| !text.is_empty()).map(str::to_owned)
        };
        ParticipantInfo {
            id: self.id.clone().unwrap_or_default(),
            purpose: self.purpose.clone().unwrap_or_default(),
            name: text(&self.name),
            connected_time: text(&self.connected_time).or(text(&self.start_time)),
            end_time: text(&self.end_time),
            active: self.is_active(),
        }
    }

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
            Participant::id("nobody"),
        ] {
            assert_eq!(Participant::from(who.to_string()), who, "{who}");
        }
        assert!(Participant::from("agent") == Participant::from("purpose:agent"));
        assert_eq!(Participant::from("agent").as_id(), None);
        assert_eq!(Participant::id("agent").as_id(), Some("agent"));
    }

    #[test]
    fn participant_word_that_is_no_purpose_is_refused_with_the_ways_out() {
        for (who, hint) in [
            ("Customer", Some("customer")),
            ("custmer", Some("customer")),
            ("AGENT", Some("agent")),
            ("voice_mail", Some("voicemail")),
            ("nobody", None),
        ] {
            let error = crate::Target::participant("c-1", who)
                .checked()
                .unwrap_err();
            assert_eq!(error.violations()[0].rule, Rule::UnknownPurpose);
            let text = error.to_string();
            assert!(
                text.contains("purpose:NAME") && text.contains("id:ID"),
                "{text}"
            );
            assert_eq!(hint.is_some(), text.contains("did you mean"), "{text}");
            assert!(hint.is_none_or(|hint| text.contains(hint)), "{text}");
            assert!(!text.contains("attribute validation"), "{text}");
            let by_id = Participant::id(who);
            assert_eq!(by_id.as_id(), Some(who));
            assert!(crate::Target::participant("c-1", by_id).checked().is_ok());
        }
        for who in [
            "voicesurveyflow",
            "7c1b4f0e-0000-4000-8000-000000000001",
            "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee",
            "p-1",
            "purpose:robot",
            "id:nobody",
        ] {
            assert!(
                crate::Target::participant("c-1", who).checked().is_ok(),
                "{who}"
            );
        }
    }

    #[test]
    fn participants_of_one_purpose_are_listed_so_that_one_can_be_chosen() {
        let participants: Vec<ParticipantBody> = serde_json::from_value(serde_json::json!([
            { "id": "1", "purpose": "customer", "name": "Ann\nB", "connectedTime": "2026-01-01T00:00:00Z" },
            { "id": "2", "purpose": "customer" },
        ]))
        .unwrap();
        let error = Participant::customer()
            .choose(&participants)
            .map(|_| ())
            .unwrap_err();
        assert_eq!(error.violations()[0].rule, Rule::SeveralParticipants);
        assert_eq!(
            error.to_string(),
            "customer means 2 participants (customer 1 (Ann B) since 2026-01-01T00:00:00Z, active; \
             customer 2, active); give the id of one: 1, 2"
        );
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
