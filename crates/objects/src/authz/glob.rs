//! Shell-style patterns, as POSIX describes them (XCU 2.14) for text in which `/` is nothing special.

/// Whether the whole text fits the pattern: `*` is any text, `?` any character, `[...]` one of a set
/// (`[!...]` or `[^...]`: none of it), and a backslash takes the next character as it is.
///
/// Time is at most the product of both lengths.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    let mut pattern = pattern.as_slice();
    let mut text = text.as_slice();
    // Where to go on when the pattern after the last star did not fit: that pattern, and the text
    // without the character that the star now takes too.
    let mut retry: Option<(&[char], &[char])> = None;
    loop {
        if let Some((&'*', rest)) = pattern.split_first() {
            pattern = rest;
            retry = text.split_first().map(|(_, rest_text)| (rest, rest_text));
            continue;
        }
        let step = match (text.split_first(), pattern.is_empty()) {
            (None, is_empty) => return is_empty,
            (Some(_), true) => None,
            (Some((&c, rest_text)), false) => {
                match_one(pattern, c).map(|rest_pattern| (rest_pattern, rest_text))
            }
        };
        match (step, retry) {
            (Some((rest_pattern, rest_text)), _) => {
                pattern = rest_pattern;
                text = rest_text;
            }
            (None, Some((after_star, shorter))) => {
                pattern = after_star;
                text = shorter;
                retry = shorter
                    .split_first()
                    .map(|(_, rest_text)| (after_star, rest_text));
            }
            (None, None) => return false,
        }
    }
}

/// The pattern after its first element, when that fits the character.
fn match_one(pattern: &[char], c: char) -> Option<&[char]> {
    let (&first, rest) = pattern.split_first()?;
    match first {
        '?' => Some(rest),
        '[' => match match_set(rest, c) {
            Some((fits, after)) => fits.then_some(after),
            // A bracket that is never closed is a character like others.
            None => (c == '[').then_some(rest),
        },
        '\\' => {
            let (&literal, after) = rest.split_first()?;
            (literal == c).then_some(after)
        }
        literal => (literal == c).then_some(rest),
    }
}

/// Whether a set, whose bracket is open, has the character, and the pattern after the set.
fn match_set(set: &[char], c: char) -> Option<(bool, &[char])> {
    let (negated, mut rest) = match set.split_first() {
        Some((&('!' | '^'), rest)) => (true, rest),
        _ => (false, set),
    };
    let mut found = false;
    let mut is_first = true;
    loop {
        let (low, after) = set_member(rest, is_first)?;
        let Some(low) = low else {
            return Some((found != negated, after));
        };
        is_first = false;
        rest = after;
        let mut high = low;
        if let Some((&'-', after_dash)) = after.split_first()
            && let (Some(end), after_end) = set_member(after_dash, false)?
        {
            high = end;
            rest = after_end;
        }
        found |= (low..=high).contains(&c);
    }
}

/// The next character of a set and what follows; none when the set ends there. A closing bracket
/// that comes first belongs to the set.
fn set_member(set: &[char], is_first: bool) -> Option<(Option<char>, &[char])> {
    let (&first, rest) = set.split_first()?;
    match first {
        ']' if !is_first => Some((None, rest)),
        '\\' => {
            let (&literal, after) = rest.split_first()?;
            Some((Some(literal), after))
        }
        literal => Some((Some(literal), rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns_fit_as_in_a_shell() {
        for (pattern, text, fits) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("**", "abc", true),
            ("a*c", "abbc", true),
            ("a*c", "abbcd", false),
            ("a*b*c", "axbxbxc", true),
            ("*.example", "www.example", true),
            ("*.example", "www.example.org", false),
            ("CN=*,O=Acme", "CN=a/b,O=Acme", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("?", "ü", true),
            ("[a-c]x", "bx", true),
            ("[a-c]x", "dx", false),
            ("[!a-c]x", "dx", true),
            ("[^a-c]x", "ax", false),
            ("[]a]", "]", true),
            ("[a-]", "-", true),
            ("[-a]", "-", true),
            ("[a\\]b]", "]", true),
            ("[abc", "[abc", true),
            ("[abc", "a", false),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("a\\", "a\\", false),
        ] {
            assert_eq!(matches(pattern, text), fits, "{pattern:?} {text:?}");
        }
    }

    /// The definition, with all its branches tried.
    fn oracle(pattern: &[char], text: &[char]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((&'*', rest)) => {
                oracle(rest, text) || (!text.is_empty() && oracle(pattern, &text[1..]))
            }
            Some(_) => text.split_first().is_some_and(|(&c, rest_text)| {
                match_one(pattern, c).is_some_and(|rest| oracle(rest, rest_text))
            }),
        }
    }

    proptest! {
        #[test]
        fn going_back_to_the_last_star_is_enough(pattern in "[ab*?]{0,8}", text in "[ab]{0,8}") {
            let chars: (Vec<_>, Vec<_>) = (pattern.chars().collect(), text.chars().collect());
            prop_assert_eq!(matches(&pattern, &text), oracle(&chars.0, &chars.1));
        }

        #[test]
        fn no_pattern_harms(pattern in ".{0,30}", text in ".{0,30}") {
            matches(&pattern, &text);
        }
    }

    #[test]
    fn a_hostile_pattern_takes_no_time() {
        let pattern = "*a".repeat(2000);
        let text = "a".repeat(1999);
        assert!(!matches(&pattern, &text));
    }
}
