//! What an update would change: each key's value now and then. Only read, never written.

use std::fmt::Write as _;

use genesys_attributes::{Client, Error, Target, TargetKind, Update};
use serde::Serialize;
use serde_json::Value;

/// What would become of one key.
#[derive(Serialize)]
pub(crate) struct Change {
    key: String,
    /// The value now, unless there is none or it is secure.
    #[serde(skip_serializing_if = "Option::is_none")]
    old: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    new: Option<Value>,
    change: &'static str,
}

/// What would become of one target.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Diff {
    pub(crate) target: &'static str,
    pub(crate) status: &'static str,
    pub(crate) changes: Vec<Change>,
}

/// Reads the target, and compares.
pub(crate) fn diff(client: &Client, update: &Update) -> Result<Diff, Error> {
    let target = update.target();
    let now = client.preview(update)?.attributes;
    let hidden = target.kind() == TargetKind::Secure;
    let shown = |value: &Value| (!hidden).then(|| value.clone());
    let mut changes = Vec::new();
    for (key, new) in update.attributes() {
        let new = stored(target, new);
        let change = match now.get(key) {
            Some(old) if same(&stored(target, old), &new) => continue,
            Some(old) => Change {
                key: key.clone(),
                old: shown(old),
                new: shown(&new),
                change: "changed",
            },
            None => Change {
                key: key.clone(),
                old: None,
                new: shown(&new),
                change: "added",
            },
        };
        changes.push(change);
    }
    for key in update.removals() {
        if let Some(old) = now.get(key) {
            changes.push(Change {
                key: key.clone(),
                old: shown(old),
                new: None,
                change: "removed",
            });
        }
    }
    Ok(Diff {
        target: target.kind().name(),
        status: if changes.is_empty() {
            "unchanged"
        } else {
            "wouldChange"
        },
        changes,
    })
}

/// A value as the target stores it.
fn stored(target: &Target, value: &Value) -> Value {
    let value = match value.as_f64() {
        // 85.0 is written as 85.
        Some(number) if number.fract() == 0.0 && number.abs() < 1e15 => Value::from(number as i64),
        _ => value.clone(),
    };
    match target.kind() {
        TargetKind::Participant | TargetKind::Secure if !value.is_string() => {
            Value::from(value.to_string())
        }
        _ => value,
    }
}

/// True if two values are the same JSON at every depth: `1` and `1.0` are.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => {
            let fraction = a.is_f64() || b.is_f64();
            a == b || fraction && a.as_f64() == b.as_f64()
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            let has = |(key, a): (&String, &Value)| b.get(key).is_some_and(|b| same(a, b));
            a.len() == b.len() && a.iter().all(has)
        }
        _ => a == b,
    }
}

impl Diff {
    /// The changes for a person.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for Change {
            key,
            old,
            new,
            change,
        } in &self.changes
        {
            let _ = match (old, new, *change) {
                (None, None, change) => writeln!(text, "  {key:?}: {change} (value hidden)"),
                (Some(old), Some(new), _) => writeln!(text, "  {key:?}: {old} → {new}"),
                (None, Some(new), _) => writeln!(text, "  {key:?}: (none) → {new}"),
                (Some(old), None, _) => writeln!(text, "  {key:?}: {old} → (none)"),
            };
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_are_compared_by_their_value_at_every_depth() {
        let old = json!({ "a": [1, { "b": 2.0 }], "c": -0.0 });
        assert!(same(&old, &json!({ "a": [1.0, { "b": 2 }], "c": 0 })));
        for other in [
            json!({ "a": [1, { "b": 3 }], "c": 0 }),
            json!({ "a": [1, { "b": "2" }], "c": 0 }),
            json!({ "a": [1, { "b": 2 }], "c": 0, "d": null }),
            json!({ "a": [{ "b": 2 }, 1], "c": 0 }),
        ] {
            assert!(!same(&old, &other), "{other}");
        }
        // Neighbours beyond the exact floats differ.
        assert!(!same(
            &json!(9_007_199_254_740_993_u64),
            &json!(9_007_199_254_740_992_u64)
        ));
    }
}
