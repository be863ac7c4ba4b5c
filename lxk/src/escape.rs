//! Text for terminals, programs and spreadsheets. Names of keys are their owners' choice: nothing in them
//! may give a command, or hide what is written.

use serde_json::Value;
use unicode_general_category::{GeneralCategory, get_general_category};

/// What stands in the place of something that was typed: it may be a key or a secret.
pub const MASKED: &str = "[not shown]";

/// Returns a text for terminals: what is unseen is written as `\u{1b}`.
pub fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for character in text.chars() {
        if is_unseen(character) {
            printable.extend(character.escape_unicode());
        } else {
            printable.push(character);
        }
    }
    printable
}

/// Writes an object on one line: the same object to whoever parses it.
pub fn json_line(object: &Value) -> String {
    let mut line = String::new();
    // JSON has other characters than ASCII in strings alone, where an escape may stand for them.
    for character in object.to_string().chars() {
        if is_unseen(character) {
            for unit in character.encode_utf16(&mut [0; 2]) {
                line += &format!("\\u{unit:04x}");
            }
        } else {
            line.push(character);
        }
    }
    line + "\n"
}

/// Returns a cell that no spreadsheet takes for a formula, or for several cells one of which is one,
/// whichever separator it goes by. <https://owasp.org/www-community/attacks/CSV_Injection>
pub fn cell(text: &str) -> String {
    let mut cell = String::with_capacity(text.len());
    let mut is_start = true;
    for character in printable(text).chars() {
        // Some spreadsheets take the full-width forms for the same.
        if is_start && "=+-@＝＋－＠".contains(character) {
            cell.push('\'');
        }
        let separates = matches!(character, ',' | ';' | '|');
        is_start = separates || (is_start && matches!(character, ' ' | '"' | '\''));
        cell.push(character);
    }
    cell
}

/// Returns whether a character shows nothing of its own, but may act on what shows it: a control
/// character, one that changes the direction or the form of others, or an end of line.
fn is_unseen(character: char) -> bool {
    use GeneralCategory::{Control, Format, LineSeparator, ParagraphSeparator};
    let category = get_general_category(character);
    matches!(category, Control | Format | LineSeparator | ParagraphSeparator)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unseen_is_written_out() {
        for character in ['\0', '\u{1b}', '\n', '\u{7f}', '\u{85}', '\u{9b}', '\u{ad}', '\u{200b}']
        {
            assert_eq!(printable(&character.to_string()), character.escape_unicode().to_string());
        }
        for character in ['\u{202e}', '\u{2028}', '\u{2029}', '\u{2066}', '\u{feff}', '\u{e0041}'] {
            let text = format!("a{character}b");
            assert_eq!(printable(&text), format!("a{}b", character.escape_unicode()));
            let line = json_line(&Value::from(text.clone()));
            assert!(line.is_ascii(), "{line}");
            assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), text);
        }
        let seen = "déjà vu, 日本語, \u{5d0}, 👍 \\u{1b}";
        assert_eq!(printable(seen), seen);
        assert_eq!(json_line(&Value::from("日本語")), "\"日本語\"\n");
    }

    #[test]
    fn no_cell_begins_like_a_formula() {
        for (text, expected) in [
            ("=1+1", "'=1+1"),
            ("a;=1", "a;'=1"),
            ("a; \"@x", "a; \"'@x"),
            ("\t=1", "\\u{9}=1"),
            ("＝1", "'＝1"),
            ("-", "'-"),
            ("nightly - build", "nightly - build"),
            ("ops@acme.example", "ops@acme.example"),
            ("0d6f7c1e-2f0a", "0d6f7c1e-2f0a"),
        ] {
            assert_eq!(cell(text), expected);
        }
    }
}
