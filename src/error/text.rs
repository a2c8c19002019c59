//! Foreign text, made fit for a message.

/// Foreign text as one printable line of bounded length.
pub(crate) fn one_line(text: &str) -> String {
    const MAX: usize = 2_000;
    let clean: String = text
        .chars()
        .take(MAX)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if text.chars().nth(MAX).is_some() {
        clean + "…"
    } else {
        clean
    }
}

/// `text`, cut to `max` characters.
pub(crate) fn clip(text: &str, max: usize) -> String {
    match text.char_indices().nth(max) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// How many letters differ between two words: left out, added, replaced, or swapped with the next.
pub(crate) fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut above: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    let mut before = None;
    for (i, x) in a.chars().enumerate() {
        let mut next = vec![i + 1];
        for (j, &y) in b.iter().enumerate() {
            let mut least = (row[j] + usize::from(x != y)).min(row[j + 1] + 1);
            least = least.min(next[j] + 1);
            if j > 0 && before == Some(y) && b[j - 1] == x {
                least = least.min(above[j - 1] + 1);
            }
            next.push(least);
        }
        above = std::mem::replace(&mut row, next);
        before = Some(x);
    }
    row[b.len()]
}

/// The name that a word was probably meant to be, whatever its case and its separators.
pub(crate) fn nearest<'n>(word: &str, names: &[&'n str]) -> Option<&'n str> {
    let bare = |text: &str| text.replace(['_', '-', ' '], "").to_lowercase();
    let word = bare(word);
    let near = names
        .iter()
        .map(|name| (distance(&word, &bare(name)), *name));
    let (far, name) = near.min_by_key(|(far, _)| *far)?;
    (far <= name.len().max(3) / 3).then_some(name)
}

/// ` (did you mean "NAME"?)`, or nothing where no name is near.
pub(crate) fn did_you_mean(word: &str, names: &[&str]) -> String {
    let hint = nearest(word, names).map(|name| format!(" (did you mean {name:?}?)"));
    hint.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_name_by_table() {
        let names = ["conversationId", "participant", "ifVersion", "agent"];
        for (word, name) in [
            ("conversation_id", Some("conversationId")),
            ("ifversoin", Some("ifVersion")),
            ("agnet", Some("agent")),
            ("Participants", Some("participant")),
            ("tier", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, &names), name, "{word}");
        }
        for (a, b, far) in [
            ("", "abc", 3),
            ("ab", "ba", 1),
            ("abc", "abc", 0),
            ("ca", "abc", 3),
        ] {
            assert_eq!(distance(a, b), far, "{a} {b}");
        }
    }
}
