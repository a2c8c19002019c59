//! JSON as this crate takes it: no key twice, no number rounded, and errors that name the field and
//! show no value.

use std::fmt;

use serde::de::value::{SeqDeserializer, StringDeserializer};
use serde::de::{
    self, Deserialize, DeserializeOwned, DeserializeSeed, Deserializer, Expected, IntoDeserializer,
    MapAccess, SeqAccess, Unexpected, Visitor,
};
use serde_json::map::Entry;
use serde_json::{Map, Number, Value};

use crate::error::text::did_you_mean;
use crate::error::{Error, ErrorKind, clip};

/// Reads JSON text as a `T`.
pub(crate) fn read<T: DeserializeOwned>(text: &str) -> Result<T, Wrong> {
    of_value(value(text)?)
}

/// Reads JSON text, and refuses a repeated key and a number that would be rounded.
pub(crate) fn value(text: &str) -> Result<Value, Wrong> {
    if let Some(key) = rounded_number(text) {
        let of = if key.is_empty() {
            "a number"
        } else {
            "the number of "
        };
        let key = if key.is_empty() {
            key
        } else {
            format!("{key:?}")
        };
        return Err(Wrong::new(format!("{of}{key} {ROUNDED}")));
    }
    let mut from = serde_json::Deserializer::from_str(text);
    let read = Reader { exact: true }.deserialize(&mut from);
    read.and_then(|value| from.end().map(|()| value))
        .map_err(|error| {
            let message = error.to_string();
            // serde_json's own messages may quote the text; those about data are of this file.
            Wrong::new(match message.rsplit_once(" at line ") {
                Some((what, _)) if error.is_data() => what.to_owned(),
                _ => format!(
                    "not JSON (line {}, column {})",
                    error.line(),
                    error.column()
                ),
            })
        })
}

/// Reads JSON text as updates read it: a repeated key is refused, and so is a number that would be
/// rounded.
///
/// ```
/// use genesys_attributes::validate;
///
/// assert_eq!(validate::parse("19.99")?, 19.99);
/// assert!(validate::parse(r#"{"a":1,"a":2}"#).is_err());
/// assert!(validate::parse("123456789012345678901234567890").is_err());
/// # Ok::<(), genesys_attributes::Error>(())
/// ```
///
/// # Errors
///
/// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput), naming the key or the place, and no
/// value.
pub fn parse(text: &str) -> Result<Value, Error> {
    value(text).map_err(|wrong| Error::new(ErrorKind::InvalidInput, wrong.to_string()))
}

/// Reads a value as a `T`.
pub(crate) fn of_value<T: DeserializeOwned>(value: Value) -> Result<T, Wrong> {
    T::deserialize(Field(value))
}

const ROUNDED: &str = "cannot be kept exactly: give it as text";

/// Whole numbers from here on may have been rounded to a float.
const LARGEST: f64 = 9_007_199_254_740_992.0;

/// The number that a text writes, where it can be kept exactly.
fn number(text: &str) -> Option<Number> {
    if text.parse::<i64>().is_ok() || text.parse::<u64>().is_ok() {
        return serde_json::from_str(text).ok();
    }
    let float = text.parse::<f64>().ok()?;
    let is_exact = digits(text) == digits(&format!("{float:e}"));
    is_exact.then(|| Number::from_f64(float))?
}

/// The significant digits of a number, and the power of ten of the last one.
fn digits(number: &str) -> (bool, String, i64) {
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = [whole.trim_start_matches('-'), fraction].concat();
    let significant = all.trim_start_matches('0').trim_end_matches('0');
    if significant.is_empty() {
        return (false, String::new(), 0);
    }
    let dropped = all.len() - all.trim_end_matches('0').len();
    let exponent: i64 = exponent.parse().unwrap_or(0);
    let power = exponent - fraction.len() as i64 + dropped as i64;
    (number.starts_with('-'), significant.to_owned(), power)
}

/// The key of the first number in JSON text that would be rounded.
fn rounded_number(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let (mut at, mut key) = (0, "");
    while let Some(&byte) = bytes.get(at) {
        let start = at;
        at += 1;
        if byte == b'"' {
            while bytes.get(at).is_some_and(|b| *b != b'"') {
                at += if bytes[at] == b'\\' { 2 } else { 1 };
            }
            at += 1;
            let rest = bytes.get(at..).unwrap_or_default().trim_ascii_start();
            if rest.first() == Some(&b':') {
                key = text.get(start + 1..at - 1).unwrap_or_default();
            }
        } else if byte == b'-' || byte.is_ascii_digit() {
            let more = |b: &u8| b.is_ascii_digit() || b".eE+-".contains(b);
            at += bytes[at..].iter().take_while(|b| more(b)).count();
            let token = &text[start..at];
            if number(token).is_none() && token.parse::<f64>().is_ok() {
                return Some(clip(key, 64));
            }
        }
    }
    None
}

/// A value in which no key is repeated and no number was rounded.
pub(crate) struct Strict(pub(crate) Value);

/// By this name serde_json hands over the text of a value (`RawValue`). Other formats do not know
/// it, and hand over the value.
const TEXT: &str = "$serde_json::private::RawValue";

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Strict, D::Error> {
        let reader = Reader { exact: false };
        deserializer
            .deserialize_newtype_struct(TEXT, reader)
            .map(Strict)
    }
}

/// Builds a value, and refuses a repeated key.
#[derive(Clone, Copy)]
struct Reader {
    /// Every number is known to be exact.
    exact: bool,
}

impl<'de> DeserializeSeed<'de> for Reader {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reader {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<Value, D::Error> {
        inner.deserialize_any(self)
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<Value, D::Error> {
        inner.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        if !self.exact && value.fract() == 0.0 && value.abs() >= LARGEST {
            return Err(E::custom(format_args!("a number {ROUNDED}")));
        }
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(value) = list.next_element_seed(self)? {
            all.push(value);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if key == TEXT && !self.exact {
                return value(&map.next_value::<String>()?).map_err(de::Error::custom);
            }
            let value = map.next_value_seed(self)?;
            match all.entry(key) {
                Entry::Vacant(entry) => drop(entry.insert(value)),
                Entry::Occupied(entry) => {
                    let key = clip(entry.key(), 64);
                    let problem = format_args!("the key {key:?} is given twice: keep one");
                    return Err(de::Error::custom(problem));
                }
            }
        }
        Ok(Value::Object(all))
    }
}

/// What is wrong with JSON text or with one of its fields; never its value.
#[derive(Debug)]
pub(crate) struct Wrong {
    /// The field, such as `retry.maxAttempts`; empty where the problem says all.
    path: String,
    /// An unknown field; the names that are known there.
    unknown: Option<&'static [&'static str]>,
    problem: String,
}

impl Wrong {
    pub(crate) fn new(problem: impl Into<String>) -> Wrong {
        Wrong {
            path: String::new(),
            unknown: None,
            problem: problem.into(),
        }
    }

    fn within(mut self, key: &str) -> Wrong {
        if !self.path.is_empty() {
            self.path.insert(0, '.');
        }
        self.path.insert_str(0, &clip(key, 64));
        self
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Wrong { path, problem, .. } = self;
        match self.unknown {
            Some(known) => {
                let last = path.rsplit('.').next().unwrap_or_default();
                let (hint, known) = (did_you_mean(last, known), known.join(", "));
                write!(f, "unknown field {path:?}{hint}; known are {known}")
            }
            None if path.is_empty() => f.write_str(problem),
            None if problem.starts_with("must") => write!(f, "{path} {problem}"),
            None => write!(f, "{path}: {problem}"),
        }
    }
}

impl std::error::Error for Wrong {}

impl de::Error for Wrong {
    fn custom<T: fmt::Display>(problem: T) -> Wrong {
        Wrong::new(problem.to_string())
    }

    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Wrong {
        let expected = expected.to_string();
        Wrong::new(match expected.as_str() {
            "u16" | "u32" | "u64" | "usize" => "must be a whole number, 0 or more".to_owned(),
            "f32" | "f64" => "must be a number".to_owned(),
            "a boolean" => "must be true or false".to_owned(),
            "a string" | "a borrowed string" => "must be text".to_owned(),
            "a sequence" => "must be a list".to_owned(),
            text if text.contains("struct ") || text == "a map" => "must be an object".to_owned(),
            other => format!("must be {other}"),
        })
    }

    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Wrong {
        match unexpected {
            Unexpected::Unsigned(_) => Wrong::new("is too large"),
            other => Wrong::invalid_type(other, expected),
        }
    }

    fn unknown_variant(_: &str, known: &'static [&'static str]) -> Wrong {
        Wrong::new(format!("must be one of {}", known.join(", ")))
    }

    fn unknown_field(field: &str, known: &'static [&'static str]) -> Wrong {
        Wrong {
            unknown: Some(known),
            ..Wrong::new("").within(field)
        }
    }

    fn missing_field(field: &'static str) -> Wrong {
        Wrong::new(format!("missing field `{field}`"))
    }
}

/// A value, whose errors name the path of the field.
struct Field(Value);

impl<'de> Deserializer<'de> for Field {
    type Error = Wrong;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match self.0 {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(value),
            Value::String(text) => visitor.visit_string(text),
            Value::Array(list) => {
                visitor.visit_seq(SeqDeserializer::new(list.into_iter().map(Field)))
            }
            Value::Object(map) => visitor.visit_map(Fields {
                rest: map.into_iter(),
                next: None,
            }),
            Value::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(number), _) => visitor.visit_u64(number),
                (None, Some(number)) => visitor.visit_i64(number),
                (None, None) => visitor.visit_f64(number.as_f64().unwrap_or_default()),
            },
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        // serde would fill a struct from a list as well.
        match self.0 {
            Value::Object(_) => self.deserialize_any(visitor),
            _ => Err(Wrong::new("must be an object")),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        match self.0 {
            Value::String(name) => visitor.visit_enum(StringDeserializer::new(name)),
            _ => Err(de::Error::unknown_variant("", known)),
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map identifier ignored_any
    }
}

impl IntoDeserializer<'_, Wrong> for Field {
    type Deserializer = Field;

    fn into_deserializer(self) -> Field {
        self
    }
}

struct Fields {
    rest: serde_json::map::IntoIter,
    next: Option<(String, Value)>,
}

impl<'de> MapAccess<'de> for Fields {
    type Error = Wrong;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Wrong> {
        self.next = self.rest.next();
        let Some((key, _)) = &self.next else {
            return Ok(None);
        };
        seed.deserialize(key.clone().into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Wrong> {
        let (key, value) = self.next.take().unwrap_or_default();
        seed.deserialize(Field(value))
            .map_err(|wrong| wrong.within(&key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_number_is_exact_or_refused() {
        for exact in [
            "0",
            "-0",
            "-0.0",
            "7",
            "-7",
            "1.5",
            "85.0",
            "1e3",
            "1E+3",
            "0.1",
            "1.50",
            "2.5e-3",
            "18446744073709551615",
            "-9223372036854775808",
            "0.30000000000000004",
            "0e999",
            "1e-7",
            "9007199254740991.0",
            "1e30",
            "123450000000000000000.0",
            "5e-324",
        ] {
            assert_eq!(
                rounded_number(&format!("{{\"n\":[{exact}]}}")),
                None,
                "{exact}"
            );
            assert!(number(exact).is_some(), "{exact}");
        }
        for rounded in [
            "18446744073709551616",
            "-9223372036854775809",
            "123456789012345678901234567890",
            "9007199254740993.0",
            "0.1000000000000000055",
            "1.00000000000000000001",
            "1e400",
            "1e-400",
        ] {
            for text in [
                format!(r#"{{"a":1,"n":{rounded}}}"#),
                format!("{{\"n\" : [{{}}, {rounded} ]}}"),
            ] {
                assert_eq!(rounded_number(&text).as_deref(), Some("n"), "{text}");
                let error = value(&text).unwrap_err().to_string();
                assert!(
                    error.starts_with("the number of \"n\" cannot be kept"),
                    "{error}"
                );
            }
            let error = serde_json::from_str::<Strict>(&format!("[{rounded}]")).err();
            let error = error.map(|error| error.to_string()).unwrap_or_default();
            assert!(
                error.starts_with("a number cannot be kept exactly") || rounded == "1e400",
                "{rounded}: {error}"
            );
        }
        // Text is not looked into, and what is no JSON is left to the parser.
        for text in [
            r#"{"a\"1e999":"1e999\\","b":"\"1e999"}"#,
            "\"",
            "-",
            "[\"\\",
            "{\"a\":1e",
        ] {
            assert_eq!(rounded_number(text), None, "{text}");
        }
    }

    #[test]
    fn json_repeated_key_is_refused_at_every_depth() {
        for text in [
            r#"{"a":1,"a":1}"#,
            r#"{"o":[{"a":{},"b":1,"a":null}]}"#,
            "{\"a\":1,\"\\u0061\":2}",
        ] {
            let error = value(text).unwrap_err().to_string();
            assert_eq!(error, "the key \"a\" is given twice: keep one");
        }
        assert!(value(r#"{"a":{"a":{"a":[1]}},"b":1}"#).is_ok());
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
    #[derive(Default)]
    struct Outer {
        inner_part: Inner,
        list: Vec<u32>,
        flag: Option<bool>,
    }

    #[derive(Debug, Default, serde::Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
    struct Inner {
        max_count: u32,
        name: String,
    }

    #[test]
    fn json_error_names_the_path_and_no_value() {
        let outer: Outer = read(r#"{"innerPart":{"maxCount":7},"list":[1],"flag":null}"#).unwrap();
        assert_eq!(
            (outer.inner_part.max_count, outer.list, outer.flag),
            (7, vec![1], None)
        );
        for (text, message) in [
            (
                r#"{"innerPart":{"maxCount":"SECRET"}}"#,
                "innerPart.maxCount must be a whole number, 0 or more",
            ),
            (
                r#"{"innerPart":{"maxCount":-1}}"#,
                "innerPart.maxCount must be a whole number, 0 or more",
            ),
            (
                r#"{"innerPart":{"maxCount":4294967296}}"#,
                "innerPart.maxCount: is too large",
            ),
            (
                r#"{"innerPart":{"name":["SECRET"]}}"#,
                "innerPart.name must be text",
            ),
            (r#"{"innerPart":["SECRET"]}"#, "innerPart must be an object"),
            (
                r#"{"innerPart":{"max_count":1}}"#,
                "unknown field \"innerPart.max_count\" (did you mean \"maxCount\"?); known are maxCount, name",
            ),
            (r#"{"flag":"SECRET"}"#, "flag must be true or false"),
            (r#"{"list":{"SECRET":1}}"#, "list must be a list"),
            (r#"["SECRET"]"#, "must be an object"),
            (r#"{"flag":SECRET}"#, "not JSON (line 1, column 9)"),
        ] {
            assert_eq!(read::<Outer>(text).unwrap_err().to_string(), message);
        }
    }
}
