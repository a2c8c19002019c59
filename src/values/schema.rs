//! Rules of the caller's own for keys and values, beside the platform's.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result, Rule, Violation};
use crate::util::sync::discard;
use crate::values::attributes::{Attributes, same, whole};
use crate::values::json;

/// Which keys an update may set, and what their values may be.
///
/// It is checked together with the platform's own rules, before anything is sent, and all
/// violations are reported at once. A pattern is a key, or the beginning of keys and a `*` at its
/// end; the longest pattern that matches a key counts.
///
/// ```
/// use genesys_attributes::Update;
/// use genesys_attributes::validate::{Field, Schema};
///
/// let schema = Schema::new()
///     .key("customer.tier", Field::text().required().one_of(["gold", "premium"]))
///     .key("routing.*", Field::integer().range(0, 100))
///     .forbid("routing.internal.*")
///     .only_known_keys();
///
/// let update = Update::participant("5b2f0c1e", "customer")
///     .set("customer.tier", "bronze")
///     .set("routing.score", 101)
///     .set("other", "x");
/// let error = schema.validate(&update).unwrap_err();
/// assert_eq!(error.violations().len(), 3);
/// ```
#[must_use = "a schema does nothing until it is given to a builder or checks something"]
#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Schema {
    keys: BTreeMap<String, Field>,
    forbidden: Vec<String>,
    #[serde(rename = "onlyKnownKeys")]
    only_known: bool,
    #[serde(skip)]
    checks: Vec<Arc<Check>>,
}

type Check = dyn Fn(&Attributes) -> Vec<Violation> + Send + Sync;

/// What the value of a key may be.
#[must_use = "a field does nothing until a schema is given it"]
///
/// `Debug` shows how many values are allowed, not which.
#[derive(Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Field {
    #[serde(rename = "type")]
    kind: Option<FieldType>,
    required: bool,
    min_length: Option<usize>,
    max_length: Option<usize>,
    min: Option<f64>,
    max: Option<f64>,
    one_of: Option<Vec<Value>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
enum FieldType {
    Text,
    Integer,
    Number,
    Boolean,
}

impl Field {
    /// Any value.
    pub fn any() -> Field {
        Field::default()
    }

    /// A string.
    pub fn text() -> Field {
        Field::of(FieldType::Text)
    }

    /// A number without a fraction.
    pub fn integer() -> Field {
        Field::of(FieldType::Integer)
    }

    /// Any number.
    pub fn number() -> Field {
        Field::of(FieldType::Number)
    }

    /// `true` or `false`.
    pub fn boolean() -> Field {
        Field::of(FieldType::Boolean)
    }

    fn of(kind: FieldType) -> Field {
        Field {
            kind: Some(kind),
            ..Field::default()
        }
    }

    /// The key must be set by every update. Not for patterns.
    pub fn required(mut self) -> Field {
        self.required = true;
        self
    }

    /// The shortest and the longest text, in UTF-16 code units.
    pub fn length(mut self, min: usize, max: usize) -> Field {
        (self.min_length, self.max_length) = (Some(min), Some(max));
        self
    }

    /// The smallest and the largest number.
    pub fn range(mut self, min: impl Into<f64>, max: impl Into<f64>) -> Field {
        (self.min, self.max) = (Some(min.into()), Some(max.into()));
        self
    }

    /// The values that are allowed.
    pub fn one_of<V: Into<Value>>(mut self, values: impl IntoIterator<Item = V>) -> Field {
        self.one_of = Some(values.into_iter().map(Into::into).collect());
        self
    }

    /// What is wrong with a value; never the value itself.
    fn check(&self, key: &str, value: &Value, found: &mut Vec<Violation>) {
        let is_kind = match self.kind {
            None => true,
            Some(FieldType::Text) => value.is_string(),
            Some(FieldType::Number) => value.is_number(),
            Some(FieldType::Boolean) => value.is_boolean(),
            Some(FieldType::Integer) => {
                matches!(value, Value::Number(number) if whole(number).is_some())
            }
        };
        if !is_kind {
            let expected = match self.kind {
                Some(FieldType::Text) => "text",
                Some(FieldType::Number) => "a number",
                Some(FieldType::Boolean) => "true or false",
                _ => "an integer",
            };
            let problem = format!("{}, where the schema wants {expected}", kind_of(value));
            found.push(Violation::new(key, Rule::Schema, problem));
            return;
        }
        if let Some(text) = value.as_str() {
            let units = text.encode_utf16().count();
            if self.min_length.is_some_and(|min| units < min) {
                let problem = format!("{units} UTF-16 units, fewer than the schema wants");
                let limit = self.min_length.unwrap_or_default() as u64;
                found.push(Violation::new(key, Rule::Schema, problem).limit(limit));
            }
            if self.max_length.is_some_and(|max| units > max) {
                let problem = format!("{units} UTF-16 units, more than the schema allows");
                let limit = self.max_length.unwrap_or_default() as u64;
                found.push(Violation::new(key, Rule::Schema, problem).limit(limit));
            }
        }
        if let Some(number) = value.as_f64()
            && (self.min.is_some_and(|min| number < min)
                || self.max.is_some_and(|max| number > max))
        {
            let edge = |edge: Option<f64>| edge.map_or_else(|| "…".to_owned(), |n| n.to_string());
            let problem = format!(
                "a number outside of {} to {}",
                edge(self.min),
                edge(self.max)
            );
            found.push(Violation::new(key, Rule::Schema, problem));
        }
        if let Some(allowed) = &self.one_of
            && !allowed.iter().any(|one| same(one, value))
        {
            let problem = format!(
                "none of the {} values that the schema allows",
                allowed.len()
            );
            found.push(Violation::new(key, Rule::Schema, problem));
        }
    }
}

impl fmt::Debug for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Field")
            .field("type", &self.kind)
            .field("required", &self.required)
            .field("length", &(self.min_length, self.max_length))
            .field("range", &(self.min, self.max))
            .field("one_of", &self.one_of.as_ref().map(Vec::len))
            .finish()
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

impl Schema {
    /// A schema that allows everything.
    pub fn new() -> Schema {
        Schema::default()
    }

    /// Says what the values of a key, or of the keys that match a pattern, may be.
    pub fn key(mut self, pattern: impl Into<String>, field: Field) -> Schema {
        self.keys.insert(pattern.into(), field);
        self
    }

    /// Refuses a key, or the keys that match a pattern.
    pub fn forbid(mut self, pattern: impl Into<String>) -> Schema {
        self.forbidden.push(pattern.into());
        self
    }

    /// Refuses keys that no pattern matches.
    pub fn only_known_keys(mut self) -> Schema {
        self.only_known = true;
        self
    }

    /// Adds a check of the attributes as a whole; see [`Violation::custom`].
    ///
    /// ```
    /// use genesys_attributes::validate::{Schema, Violation};
    ///
    /// let schema = Schema::new().check(|attributes| {
    ///     if attributes.contains_key("from") != attributes.contains_key("to") {
    ///         return vec![Violation::custom("from", "pair", "one of from and to without the other")];
    ///     }
    ///     Vec::new()
    /// });
    /// ```
    pub fn check(
        mut self,
        check: impl Fn(&Attributes) -> Vec<Violation> + Send + Sync + 'static,
    ) -> Schema {
        self.checks.push(Arc::new(check));
        self
    }

    /// Reads a schema from JSON:
    ///
    /// ```
    /// use genesys_attributes::validate::Schema;
    ///
    /// let schema = Schema::from_json(r#"{
    ///     "keys": {
    ///         "customer.tier": {"type": "text", "required": true, "oneOf": ["gold", "premium"]},
    ///         "routing.*": {"type": "integer", "min": 0, "max": 100},
    ///         "note": {"type": "text", "minLength": 1, "maxLength": 200}
    ///     },
    ///     "forbidden": ["routing.internal.*"],
    ///     "onlyKnownKeys": true
    /// }"#)?;
    /// # Ok::<(), genesys_attributes::Error>(())
    /// ```
    ///
    /// A `type` is `text`, `integer`, `number` or `boolean`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`](crate::ErrorKind::Config), naming what is wrong and where; unknown fields are refused by name.
    pub fn from_json(text: &str) -> Result<Schema> {
        let schema: Schema = json::read(text).map_err(|wrong| Error::config("schema", wrong))?;
        schema.checked()?;
        Ok(schema)
    }

    /// Names a pattern that could not mean anything.
    pub(crate) fn checked(&self) -> Result<()> {
        for pattern in self.keys.keys().chain(&self.forbidden) {
            let body = pattern.strip_suffix('*').unwrap_or(pattern);
            if body.contains('*') {
                return Err(Error::config(
                    "schema",
                    format!(
                        "{pattern:?} holds a * before its end: only a trailing one is a pattern"
                    ),
                ));
            }
        }
        let contradiction = self.keys.iter().find(|(pattern, field)| {
            field.required && pattern.ends_with('*')
                || field.min_length > field.max_length.or(field.min_length)
                || matches!((field.min, field.max), (Some(min), Some(max)) if min > max)
        });
        match contradiction {
            Some((pattern, _)) => Err(Error::config(
                "schema",
                format!(
                    "{pattern:?} contradicts itself: a pattern cannot be required, and a smallest \
                     value cannot be above the largest"
                ),
            )),
            None => Ok(()),
        }
    }

    /// What is wrong with these attributes by this schema alone.
    pub fn violations(&self, attributes: &Attributes) -> Vec<Violation> {
        let mut found = Vec::new();
        for (key, value) in attributes {
            let pattern = self.longest(key, self.keys.keys());
            let forbidden = self.longest(key, self.forbidden.iter());
            if forbidden.is_some_and(|f| pattern.is_none_or(|p| f.len() >= p.len())) {
                found.push(Violation::new(
                    key,
                    Rule::Schema,
                    "a key that the schema forbids",
                ));
            } else if let Some(field) = pattern.and_then(|pattern| self.keys.get(pattern)) {
                field.check(key, value, &mut found);
            } else if self.only_known {
                found.push(Violation::new(
                    key,
                    Rule::Schema,
                    "a key that the schema does not know",
                ));
            }
        }
        for (key, field) in &self.keys {
            if field.required && !attributes.contains_key(key) {
                found.push(Violation::new(
                    key,
                    Rule::Schema,
                    "nothing, where the schema wants a value",
                ));
            }
        }
        for check in &self.checks {
            match catch_unwind(AssertUnwindSafe(|| check(attributes))) {
                Ok(violations) => found.extend(violations),
                Err(payload) => {
                    discard(payload);
                    found.push(Violation::new(
                        "attributes",
                        Rule::Schema,
                        "a check of the schema that panicked: correct it",
                    ));
                }
            }
        }
        found
    }

    /// The longest pattern that matches.
    fn longest<'p>(
        &self,
        key: &str,
        patterns: impl Iterator<Item = &'p String>,
    ) -> Option<&'p String> {
        let matches = |pattern: &&'p String| match pattern.strip_suffix('*') {
            Some(start) => key.starts_with(start),
            None => key == pattern.as_str(),
        };
        // A whole key is more than a pattern of the same length.
        patterns
            .filter(matches)
            .max_by_key(|pattern| (pattern.len(), !pattern.ends_with('*')))
    }
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Schema")
            .field("keys", &self.keys)
            .field("forbidden", &self.forbidden)
            .field("only_known", &self.only_known)
            .field("checks", &self.checks.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use serde_json::json;

    fn broken(schema: &Schema, attributes: Value) -> Vec<String> {
        let attributes = attributes.as_object().cloned().unwrap_or_default();
        let found = schema.violations(&attributes);
        found.into_iter().map(|v| v.key).collect()
    }

    #[test]
    fn schema_rules_by_table() {
        let schema = Schema::from_json(
            r#"{"keys": {
                "tier": {"type": "text", "required": true, "oneOf": ["gold", "silver"]},
                "n.*": {"type": "integer", "min": 0, "max": 100},
                "n.free": {},
                "note": {"type": "text", "minLength": 1, "maxLength": 3},
                "flag": {"type": "boolean"},
                "ratio": {"type": "number", "max": 1}
            }, "forbidden": ["n.secret.*"], "onlyKnownKeys": true}"#,
        )
        .unwrap();
        for (attributes, keys) in [
            (json!({ "tier": "gold" }), vec![]),
            (json!({}), vec!["tier"]),
            (json!({ "tier": "bronze" }), vec!["tier"]),
            (json!({ "tier": 5 }), vec!["tier"]),
            (json!({ "tier": "gold", "n.a": 100 }), vec![]),
            (json!({ "tier": "gold", "n.a": 101 }), vec!["n.a"]),
            (json!({ "tier": "gold", "n.a": 1.5 }), vec!["n.a"]),
            (json!({ "tier": "gold", "n.a": 85.0 }), vec![]),
            (json!({ "tier": "gold", "n.free": "any" }), vec![]),
            (
                json!({ "tier": "gold", "n.secret.x": 1 }),
                vec!["n.secret.x"],
            ),
            (json!({ "tier": "gold", "note": "" }), vec!["note"]),
            (json!({ "tier": "gold", "note": "abcd" }), vec!["note"]),
            (json!({ "tier": "gold", "flag": "true" }), vec!["flag"]),
            (
                json!({ "tier": "gold", "ratio": 0.5, "flag": true }),
                vec![],
            ),
            (json!({ "tier": "gold", "ratio": 1.5 }), vec!["ratio"]),
            (json!({ "tier": "gold", "other": 1 }), vec!["other"]),
        ] {
            assert_eq!(broken(&schema, attributes.clone()), keys, "{attributes}");
        }
    }

    #[test]
    fn schema_json_mistakes_are_named() {
        for (text, part) in [
            (r#"{"keys": {"a": {"typ": "text"}}}"#, "typ"),
            (r#"{"key": {}}"#, "key"),
            (r#"{"keys": {"a*b": {}}}"#, "a*b"),
            (r#"{"keys": {"a.*": {"required": true}}}"#, "a.*"),
            (r#"{"keys": {"a": {"min": 2, "max": 1}}}"#, "\"a\""),
            (
                r#"{"keys": {"a": {"minLength": 2, "maxLength": 1}}}"#,
                "\"a\"",
            ),
            ("[]", "schema"),
            ("{", "schema"),
        ] {
            let error = Schema::from_json(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn schema_violations_come_together_with_the_platforms_and_hold_no_value() {
        let schema = Schema::new()
            .key("a", Field::integer())
            .check(|attributes| {
                let bad = attributes.contains_key("b");
                Vec::from_iter(bad.then(|| Violation::custom("b", "pair", "b without c")))
            });
        let update = crate::Update::conversation("c 1")
            .set("a", "SECRET")
            .set("b", json!(["SECRET"]));
        let error = schema.validate(&update).unwrap_err();
        let rules: Vec<&str> = error.violations().iter().map(|v| v.rule.name()).collect();
        assert_eq!(rules, ["identifier", "type", "schema", "pair"]);
        assert!(!error.to_string().contains("SECRET"), "{error}");
        assert!(error.to_string().contains("b without c"), "{error}");
    }

    #[test]
    fn schema_check_that_panics_is_a_violation() {
        let schema = Schema::new().check(|_| panic!("on purpose"));
        let error = schema
            .validate(&crate::Update::secure("c-1").set("k", "v"))
            .unwrap_err();
        assert_eq!(error.violations().len(), 1);
        assert!(error.to_string().contains("panicked"), "{error}");
    }
}
