//! A request, taken apart.

use std::time::Duration;

use serde_json::{Map, Value};

use super::{Answer, TOKEN_PATH};

/// One request as it came in, and the status it was answered with.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Seen {
    /// In capitals.
    pub method: String,
    /// As sent: percent-encoded, with the query.
    pub path: String,
    /// The header of this name, as are the next ones.
    pub authorization: Option<String>,
    /// `If-Match`
    pub if_match: Option<String>,
    /// `Content-Type`
    pub content_type: Option<String>,
    /// `User-Agent`
    pub user_agent: Option<String>,
    /// `Null` when there was none, or when it was not JSON.
    pub body: Value,
    /// The body as text.
    pub raw_body: String,
    /// 0 when there was no answer.
    pub status: u16,
}

impl Seen {
    /// Whether it asked for a token.
    pub fn is_login(&self) -> bool {
        self.path.split('?').next() == Some(TOKEN_PATH)
    }
}

pub(crate) struct Call {
    pub(crate) method: String,
    /// Path and query, as sent.
    pub(crate) target: String,
    /// Of the path, percent-decoded after splitting: an encoded slash does not separate.
    pub(crate) segments: Vec<String>,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// When it came, from the start of the platform.
    pub(crate) at: Duration,
}

impl Call {
    pub(crate) fn new<'n, 'v>(
        method: &str,
        target: &str,
        headers: impl IntoIterator<Item = (&'n str, &'v str)>,
        body: &[u8],
        at: Duration,
    ) -> Call {
        let path = target.split('?').next().unwrap_or_default();
        let headers = headers.into_iter();
        Call {
            method: method.to_owned(),
            target: target.to_owned(),
            segments: path.split('/').skip(1).map(decode).collect(),
            headers: headers
                .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
                .collect(),
            body: body.to_vec(),
            at,
        }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// What `Authorization` says in this scheme.
    pub(crate) fn credentials(&self, scheme: &str) -> Option<&str> {
        let (given, rest) = self.header("authorization")?.split_once(' ')?;
        given.eq_ignore_ascii_case(scheme).then_some(rest)
    }

    /// All values of a parameter of the query: given once with commas, repeated, or both.
    pub(crate) fn query(&self, name: &str) -> Vec<String> {
        let query = self.target.split_once('?').map_or("", |(_, query)| query);
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let values = pairs.filter(|(key, _)| *key == name);
        values
            .flat_map(|(_, value)| {
                decode(value)
                    .split(',')
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            })
            .filter(|value| !value.is_empty())
            .collect()
    }

    pub(crate) fn is_api(&self) -> bool {
        self.target.starts_with("/api/")
    }

    /// Whether this text is in the path, as sent or decoded.
    pub(crate) fn path_contains(&self, part: &str) -> bool {
        self.target.contains(part) || decode(&self.target).contains(part)
    }

    pub(crate) fn raw_body(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    pub(crate) fn object(&self) -> Result<Map<String, Value>, Answer> {
        let media = self.header("content-type").unwrap_or_default();
        let media = media.split(';').next().unwrap_or_default().trim();
        if !media.eq_ignore_ascii_case("application/json") {
            return Err(Answer::platform_error(415));
        }
        match self.json() {
            Value::Object(body) => Ok(body),
            _ => Err(Answer::platform_error(400)),
        }
    }

    pub(crate) fn seen(&self, status: u16) -> Seen {
        let header = |name| self.header(name).map(str::to_owned);
        Seen {
            body: self.json(),
            raw_body: self.raw_body(),
            method: self.method.clone(),
            path: self.target.clone(),
            authorization: header("authorization"),
            if_match: header("if-match"),
            content_type: header("content-type"),
            user_agent: header("user-agent"),
            status,
        }
    }
}

/// What is not valid percent-encoding stays as it is.
fn decode(text: &str) -> String {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let digit = |at: usize| char::from(*after.get(at)?).to_digit(16);
        if first == b'%'
            && let (Some(high), Some(low)) = (digit(0), digit(1))
            && let Ok(byte) = u8::try_from(high * 16 + low)
        {
            decoded.push(byte);
            rest = after.get(2..).unwrap_or_default();
        } else {
            decoded.push(first);
            rest = after;
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}
