//! What keys and values may be: checked before anything is sent, every violation at once.

use std::borrow::Cow;

use serde_json::{Map, Number, Value};

use crate::error::{Error, Result, Rule, Violation};

/// A set of attributes: keys and JSON values.
pub type Attributes = Map<String, Value>;

/// The limits of keys and values. The defaults are those of the conversation-level endpoint and the
/// platform's documented limit of a request body.
///
/// Lengths count UTF-16 code units, as JavaScript and the platform do: most characters are one,
/// those beyond the basic plane (emoji, for instance) two.
#[must_use = "limits do nothing until a builder is given them"]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ValidationLimits {
    /// Longest key of the conversation target, in UTF-16 code units. Default 128.
    pub key_length: usize,
    /// Longest string of the conversation target, in UTF-16 code units. Default 1,024.
    pub string_length: usize,
    /// Largest integer of the conversation target. Default 999,999,999.
    pub integer_max: u64,
    /// Largest request body of any target, in bytes. Default 512,000, the platform's
    /// `request.bytes.max`.
    pub body_bytes: usize,
}

impl Default for ValidationLimits {
    fn default() -> ValidationLimits {
        ValidationLimits {
            key_length: 128,
            string_length: 1_024,
            integer_max: 999_999_999,
            body_bytes: 512_000,
        }
    }
}

impl ValidationLimits {
    /// Sets the longest key, in UTF-16 code units.
    pub fn with_key_length(mut self, units: usize) -> ValidationLimits {
        self.key_length = units;
        self
    }

    /// Sets the longest string, in UTF-16 code units.
    pub fn with_string_length(mut self, units: usize) -> ValidationLimits {
        self.string_length = units;
        self
    }

    /// Sets the largest integer.
    pub fn with_integer_max(mut self, largest: u64) -> ValidationLimits {
        self.integer_max = largest;
        self
    }

    /// Sets the largest request body, in bytes.
    pub fn with_body_bytes(mut self, bytes: usize) -> ValidationLimits {
        self.body_bytes = bytes;
        self
    }

    pub(crate) fn check(&self) -> Result<()> {
        for (name, value) in [
            ("validation_limits.key_length", self.key_length),
            ("validation_limits.string_length", self.string_length),
            ("validation_limits.body_bytes", self.body_bytes),
        ] {
            if value == 0 {
                return Err(Error::config(name, "must be at least 1"));
            }
        }
        Ok(())
    }
}

/// Which values a target takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Values {
    /// Strings, integers and booleans within the limits.
    Typed,
    /// Text. Numbers and booleans are written as their JSON text.
    Text,
    /// Any JSON; the record's schema is checked by the platform.
    Any,
}

/// Checks every key and value and adds what is wrong to `found`.
pub(crate) fn check(
    attributes: &Attributes,
    values: Values,
    limits: &ValidationLimits,
    found: &mut Vec<Violation>,
) {
    for (key, value) in attributes {
        if key.is_empty() {
            found.push(Violation::new(key, Rule::KeyEmpty, "0 UTF-16 units"));
        }
        if values == Values::Typed {
            length(key, key, limits.key_length, Rule::KeyLength, found);
        }
        match (values, value) {
            (Values::Any, _) | (_, Value::Bool(_)) => {}
            (Values::Text, Value::String(_) | Value::Number(_)) => {}
            (Values::Typed, Value::String(text)) => {
                length(key, text, limits.string_length, Rule::ValueLength, found);
            }
            (_, Value::Number(number)) => match whole(number) {
                None => found.push(Violation::new(key, Rule::Integer, describe_number(number))),
                Some(n) if n < 0 => {
                    found.push(Violation::new(key, Rule::IntegerMin, "a negative number"));
                }
                Some(n) if n > i128::from(limits.integer_max) => found.push(
                    Violation::new(key, Rule::IntegerMax, "a larger number")
                        .limit(limits.integer_max),
                ),
                Some(_) => {}
            },
            (_, Value::Null) => found.push(Violation::new(key, Rule::Type, "null")),
            (_, Value::Array(_)) => found.push(Violation::new(key, Rule::Type, "an array")),
            (_, Value::Object(_)) => found.push(Violation::new(key, Rule::Type, "an object")),
        }
    }
}

fn length(key: &str, text: &str, limit: usize, rule: Rule, found: &mut Vec<Violation>) {
    // UTF-8 never takes fewer bytes than UTF-16 takes units.
    if text.len() <= limit {
        return;
    }
    let units = text.encode_utf16().count();
    if units > limit {
        found.push(Violation::new(key, rule, format!("{units} UTF-16 units")).limit(limit as u64));
    }
}

fn describe_number(number: &Number) -> &'static str {
    match number.as_f64() {
        Some(n) if n.fract() != 0.0 => "a fraction",
        _ => "a number beyond the exact integers",
    }
}

/// The integer that a JSON number stands for: `85.0`, `8.5e1` and `-0` are integers, as they are
/// in JavaScript.
pub(crate) fn whole(number: &Number) -> Option<i128> {
    if let Some(n) = number.as_u64() {
        return Some(n.into());
    }
    if let Some(n) = number.as_i64() {
        return Some(n.into());
    }
    // Beyond 2^53 a float no longer tells neighbouring integers apart.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let n = number.as_f64()?;
    (n.fract() == 0.0 && n.abs() <= EXACT).then_some(n as i128)
}

/// The attributes as they are written, compared and reported: `85.0` and `-0` become `85` and `0`,
/// and where a target holds text, numbers and booleans become text. Borrowed when nothing
/// changes. Expects attributes that passed [`check`].
pub(crate) fn normalized(attributes: &Attributes, values: Values) -> Cow<'_, Attributes> {
    let changes = |value: &Value| match (values, value) {
        (Values::Any, _) | (_, Value::String(_)) => None,
        (Values::Typed, Value::Number(number)) if number.is_f64() => {
            let n = i64::try_from(whole(number)?).ok()?;
            Some(Value::from(n))
        }
        (Values::Text, Value::Number(number)) => Some(Value::String(match whole(number) {
            Some(whole) => whole.to_string(),
            None => number.to_string(),
        })),
        (Values::Text, Value::Bool(b)) => Some(Value::String(b.to_string())),
        _ => None,
    };
    if attributes.values().all(|value| changes(value).is_none()) {
        return Cow::Borrowed(attributes);
    }
    let mut changed = attributes.clone();
    for value in changed.values_mut() {
        if let Some(better) = changes(value) {
            *value = better;
        }
    }
    Cow::Owned(changed)
}

/// No less than how long attributes are as JSON, in bytes.
pub(crate) fn longest_json(attributes: &Attributes) -> usize {
    // A control character takes the most: six bytes for one.
    let text = |s: &str| 6 * s.len() + 2;
    let value = |value: &Value| match value {
        Value::String(s) => text(s),
        Value::Null | Value::Bool(_) => 5,
        // Numbers, whose digits are not worth counting, and what only custom records hold.
        _ => json_length(value),
    };
    let entries = attributes.iter();
    entries.fold(2, |sum, (k, v)| sum + text(k) + value(v) + 2)
}

/// How long a value is as JSON, in bytes, without writing it anywhere.
pub(crate) fn json_length(value: &impl serde::Serialize) -> usize {
    struct Length(usize);
    impl std::io::Write for Length {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut length = Length(0);
    // Neither JSON values nor this writer can fail.
    let _ = serde_json::to_writer(&mut length, value);
    length.0
}

/// Whether two values are the same to JSON, at every depth: `85` and `85.0` are.
pub fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => {
            x == y
                || match (whole(x), whole(y)) {
                    (Some(x), Some(y)) => x == y,
                    _ => x.as_f64() == y.as_f64(),
                }
        }
        (Value::Array(x), Value::Array(y)) => {
            x.len() == y.len() && x.iter().zip(y).all(|(x, y)| same(x, y))
        }
        (Value::Object(x), Value::Object(y)) => {
            x.len() == y.len()
                && x.iter()
                    .all(|(key, x)| y.get(key).is_some_and(|y| same(x, y)))
        }
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn violations(values: Values, attributes: Value) -> Vec<(Rule, Option<u64>, String)> {
        let Value::Object(attributes) = attributes else {
            panic!("an object")
        };
        let mut found = Vec::new();
        check(
            &attributes,
            values,
            &ValidationLimits::default(),
            &mut found,
        );
        found
            .into_iter()
            .map(|v| (v.rule, v.limit, v.found))
            .collect()
    }

    fn rules(values: Values, value: Value) -> Vec<Rule> {
        violations(values, json!({ "k": value }))
            .into_iter()
            .map(|(rule, ..)| rule)
            .collect()
    }

    #[test]
    fn attributes_typed_values_by_table() {
        let units = |n| "x".repeat(n);
        for (value, rule) in [
            (json!(""), None),
            (json!(units(1_024)), None),
            (json!(units(1_025)), Some(Rule::ValueLength)),
            // Each of these is two code units.
            (json!("😀".repeat(512)), None),
            (json!("😀".repeat(513)), Some(Rule::ValueLength)),
            // Two bytes each, one code unit each.
            (json!("é".repeat(1_024)), None),
            (json!(true), None),
            (json!(0), None),
            (json!(-0.0), None),
            (json!(999_999_999), None),
            (json!(85.0), None),
            (json!(1_000_000_000), Some(Rule::IntegerMax)),
            (json!(1e20), Some(Rule::Integer)),
            (json!(u64::MAX), Some(Rule::IntegerMax)),
            (json!(-1), Some(Rule::IntegerMin)),
            (json!(i64::MIN), Some(Rule::IntegerMin)),
            (json!(1.5), Some(Rule::Integer)),
            (json!(-0.1), Some(Rule::Integer)),
            (json!(null), Some(Rule::Type)),
            (json!([1]), Some(Rule::Type)),
            (json!({}), Some(Rule::Type)),
        ] {
            assert_eq!(
                rules(Values::Typed, value.clone()),
                Vec::from_iter(rule),
                "{value}"
            );
        }
    }

    #[test]
    fn validation_key_table() {
        for (key, rule) in [
            ("", Some(Rule::KeyEmpty)),
            ("k", None),
            (&"k".repeat(128), None),
            (&"k".repeat(129), Some(Rule::KeyLength)),
            (&"😀".repeat(64), None),
            (&"😀".repeat(65), Some(Rule::KeyLength)),
        ] {
            let found = violations(Values::Typed, json!({ key: "v" }));
            assert_eq!(found.first().map(|v| v.0), rule, "{key:?}");
            assert_eq!(found.len(), usize::from(rule.is_some()));
        }
    }

    #[test]
    fn validation_reports_all_violations_without_values() {
        let found = violations(
            Values::Typed,
            json!({ "": "secret-1", "a": -777_123, "b": "secret-2".repeat(200), "c": ["secret-3"], "d": 777_123.5 }),
        );
        assert_eq!(found.len(), 5);
        let text = format!("{found:?}");
        assert!(!text.contains("secret") && !text.contains("777"), "{text}");
        assert!(
            text.contains("1600 UTF-16 units") && text.contains("Some(1024)"),
            "{text}"
        );
    }

    #[test]
    fn validation_text_targets_take_scalars_of_any_length() {
        assert_eq!(rules(Values::Text, json!("x".repeat(5_000))), []);
        assert_eq!(rules(Values::Text, json!(-5)), []);
        assert_eq!(rules(Values::Text, json!(u64::MAX)), []);
        assert_eq!(rules(Values::Text, json!(true)), []);
        assert_eq!(rules(Values::Text, json!(1.5)), []);
        assert_eq!(rules(Values::Text, json!(null)), [Rule::Type]);
        assert_eq!(rules(Values::Text, json!({})), [Rule::Type]);
        assert_eq!(rules(Values::Any, json!({ "deep": [null, 1.5] })), []);
    }

    #[test]
    fn normalization_table() {
        for (values, from, to) in [
            (Values::Typed, json!(85.0), json!(85)),
            (Values::Typed, json!(-0.0), json!(0)),
            (Values::Typed, json!("85.0"), json!("85.0")),
            (Values::Typed, json!(true), json!(true)),
            (Values::Text, json!(85.0), json!("85")),
            (Values::Text, json!(-0.0), json!("0")),
            (Values::Text, json!(u64::MAX), json!("18446744073709551615")),
            (Values::Text, json!(-3), json!("-3")),
            (Values::Text, json!(19.99), json!("19.99")),
            (Values::Text, json!(1e3), json!("1000")),
            (Values::Text, json!(-2.5e-7), json!("-2.5e-7")),
            (Values::Text, json!(false), json!("false")),
            (Values::Any, json!(85.0), json!(85.0)),
        ] {
            let attributes: Attributes = [("k".to_owned(), from.clone())].into_iter().collect();
            assert_eq!(
                serde_json::to_string(&normalized(&attributes, values)["k"]).unwrap(),
                to.to_string(),
                "{from}"
            );
        }
        let text: Attributes = [("k".to_owned(), json!("v"))].into_iter().collect();
        assert!(matches!(normalized(&text, Values::Text), Cow::Borrowed(_)));
    }

    #[test]
    fn values_same_as_json_table() {
        assert!(same(&json!(85), &json!(85.0)));
        assert!(same(&json!({"a": [1.0]}), &json!({"a": [1]})));
        assert!(!same(&json!(1), &json!("1")));
        assert!(!same(&json!(0.1), &json!(0.2)));
        assert!(!same(&json!(u64::MAX), &json!(u64::MAX - 1)));
    }

    /// The endpoint's JSON schema, written down again in its own terms: any string of at most 1,024
    /// units (its date-time form adds nothing), or an integer in range, or a boolean.
    fn schema_accepts(key: &str, value: &Value) -> bool {
        let key_ok = (1..=128).contains(&key.encode_utf16().count());
        let value_ok = match value {
            Value::String(s) => s.encode_utf16().count() <= 1_024,
            Value::Bool(_) => true,
            Value::Number(n) => {
                let n = n.as_f64().unwrap_or(f64::NAN);
                n.trunc() == n && (0.0..=999_999_999.0).contains(&n)
            }
            _ => false,
        };
        key_ok && value_ok
    }

    fn scalar() -> impl Strategy<Value = Value> {
        prop_oneof![
            "\\PC{0,8}".prop_map(Value::from),
            (
                1_020usize..1_030,
                prop::sample::select(vec!["x", "é", "😀"])
            )
                .prop_map(|(n, c)| Value::from(c.repeat(n / c.encode_utf16().count()))),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(|n| json!(n)),
            (-3i64..3).prop_map(|n| json!(n as f64 / 2.0)),
            (999_999_990i64..1_000_000_010).prop_map(Value::from),
            any::<bool>().prop_map(Value::from),
            Just(Value::Null),
            Just(json!([])),
            Just(json!({})),
        ]
    }

    proptest! {
        #[test]
        fn attributes_check_agrees_with_the_schema(
            key in prop_oneof!["\\PC{0,4}", "k{120,135}", "😀{60,70}"],
            value in scalar(),
        ) {
            let attributes: Attributes = [(key.clone(), value.clone())].into_iter().collect();
            let mut found = Vec::new();
            check(&attributes, Values::Typed, &ValidationLimits::default(), &mut found);
            prop_assert_eq!(found.is_empty(), schema_accepts(&key, &value), "{:?}", found);
        }

        #[test]
        fn normalization_keeps_valid_values_the_same(value in scalar()) {
            let attributes: Attributes = [("k".to_owned(), value)].into_iter().collect();
            for values in [Values::Typed, Values::Text, Values::Any] {
                let mut found = Vec::new();
                check(&attributes, values, &ValidationLimits::default(), &mut found);
                if found.is_empty() {
                    let once = normalized(&attributes, values).into_owned();
                    let mut again = Vec::new();
                    check(&once, values, &ValidationLimits::default(), &mut again);
                    prop_assert!(again.is_empty());
                    let twice = normalized(&once, values).into_owned();
                    prop_assert_eq!(&twice, &once);
                    if values != Values::Text {
                        prop_assert!(same(&once["k"], &attributes["k"]));
                    }
                }
            }
        }
    }
}
