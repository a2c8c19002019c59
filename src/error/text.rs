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
