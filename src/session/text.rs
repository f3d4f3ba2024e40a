//! Text that came from the other end, made fit for a terminal and for a message.
//!
//! Guarantees: what leaves here has no control character but newline and tab, and nothing that turns
//! the direction of text, so it can neither move a cursor nor pretend to be another line's words.

/// Replaces what a terminal could act upon by U+FFFD; carriage returns before a newline are dropped.
pub fn sanitise(text: &str) -> String {
    let plain = text.replace("\r\n", "\n");
    plain
        .chars()
        .map(|c| {
            if is_harmful(c) {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect()
}

/// The same for bytes that may not be UTF-8.
pub fn sanitise_bytes(bytes: &[u8]) -> String {
    sanitise(&String::from_utf8_lossy(bytes))
}

fn is_harmful(c: char) -> bool {
    let allowed = matches!(c, '\n' | '\t');
    let invisible = matches!(c,
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}');
    (c.is_control() && !allowed) || invisible
}

/// At most `bytes` of `text`, cut between characters; says so when something is left out.
pub fn shorten(text: &str, bytes: usize) -> String {
    const MARK: &str = "\n[cut]";
    if text.len() <= bytes {
        return text.to_owned();
    }
    let most = bytes.saturating_sub(MARK.len());
    let end = (0..=most)
        .rev()
        .find(|end| text.is_char_boundary(*end))
        .unwrap_or(0);
    format!("{}{MARK}", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_no_orders_from_the_other_end() {
        assert_eq!(
            sanitise("a\x1b[2J\x07b\r\nc\td\u{9b}"),
            "a\u{fffd}[2J\u{fffd}b\nc\td\u{fffd}"
        );
        assert_eq!(sanitise("\u{202e}cod.exe"), "\u{fffd}cod.exe");
        assert_eq!(sanitise_bytes(b"caf\xc3\xa9 \xff"), "café \u{fffd}");
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        assert_eq!(shorten("short", 10), "short");
        let cut = shorten(&"é".repeat(100), 51);
        assert!(cut.len() <= 51 && cut.ends_with("[cut]"), "{cut}");
    }
}
