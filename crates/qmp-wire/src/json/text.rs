//! What a string token says: UTF-8, escapes and surrogates; and how broken text is shown.

use std::borrow::Cow;

use super::MAX_QUOTED_BYTES;
use crate::Error;

/// The contents of a string token, given with its quotes.
pub(super) fn decode(token: &[u8]) -> Result<String, Error> {
    let body = token
        .get(1..token.len().saturating_sub(1))
        .unwrap_or_default();
    if !body.contains(&b'\\')
        && let Ok(text) = std::str::from_utf8(body)
        && (text.is_ascii() || !text.chars().any(is_noncharacter))
    {
        return Ok(text.to_owned());
    }
    decode_slowly(token.get(1..).unwrap_or_default(), body.len())
}

/// `text` runs on past `body_len` to the closing quote, which QEMU's messages may quote.
fn decode_slowly(text: &[u8], body_len: usize) -> Result<String, Error> {
    let mut out = String::with_capacity(body_len);
    let mut at = 0;
    while at < body_len {
        let rest = text.get(at..).unwrap_or_default();
        let (character, used) = match rest {
            [b'\\', b'u', digits @ ..] => unicode_escape(digits)?,
            [b'\\', escaped, ..] => (simple_escape(*escaped)?, 2),
            _ => match first_character(rest) {
                (Some(character), used) => (character, used),
                (None, _) => return Err(Error::InvalidUtf8),
            },
        };
        out.push(character);
        at += used;
    }
    Ok(out)
}

fn simple_escape(escaped: u8) -> Result<char, Error> {
    match escaped {
        b'"' | b'\'' | b'\\' | b'/' => Ok(char::from(escaped)),
        b'b' => Ok('\u{8}'),
        b'f' => Ok('\u{c}'),
        b'n' => Ok('\n'),
        b'r' => Ok('\r'),
        b't' => Ok('\t'),
        _ => Err(Error::InvalidEscape),
    }
}

/// The character of `\u` followed by `rest`, and how long the whole escape is.
fn unicode_escape(rest: &[u8]) -> Result<(char, usize), Error> {
    const ONE: usize = 6;
    let wrong = |shown: usize| {
        let shown = rest.get(..shown).unwrap_or(rest);
        Err(Error::InvalidCodePoint(format!("\\u{}", lossy(shown))))
    };
    let Some(unit) = hex4(rest) else {
        return wrong(4);
    };
    let (code, used) = match unit {
        0xd800..=0xdbff => {
            let low = match rest.get(4..) {
                Some([b'\\', b'u', digits @ ..]) => hex4(digits),
                _ => None,
            };
            match low {
                Some(low @ 0xdc00..=0xdfff) => {
                    (0x1_0000 + ((unit - 0xd800) << 10) + (low - 0xdc00), 2 * ONE)
                }
                _ => return wrong(4),
            }
        }
        _ => (unit, ONE),
    };
    match char::from_u32(code) {
        Some(character) if !is_noncharacter(character) => Ok((character, used)),
        _ => wrong(used - 2),
    }
}

fn hex4(text: &[u8]) -> Option<u32> {
    text.get(..4)?.iter().try_fold(0, |sum, &byte| {
        Some(sum * 16 + char::from(byte).to_digit(16)?)
    })
}

/// Code points that Unicode sets aside for private use within a program.
pub(crate) fn is_noncharacter(character: char) -> bool {
    let code = u32::from(character);
    (0xfdd0..=0xfdef).contains(&code) || code & 0xfffe == 0xfffe
}

/// The character at the start of `bytes` (none if it is no valid one) and how many bytes it takes.
///
/// NUL as `C0 80` is taken, as QEMU takes it; other overlong forms are not.
fn first_character(bytes: &[u8]) -> (Option<char>, usize) {
    let Some(&lead) = bytes.first() else {
        return (None, 0);
    };
    let (length, bits) = match lead {
        0x00..=0x7f => return (Some(char::from(lead)), 1),
        0xc0..=0xdf => (2, u32::from(lead & 0x1f)),
        0xe0..=0xef => (3, u32::from(lead & 0x0f)),
        0xf0..=0xf7 => (4, u32::from(lead & 0x07)),
        0xf8..=0xfb => (5, u32::from(lead & 0x03)),
        0xfc..=0xfd => (6, u32::from(lead & 0x01)),
        _ => return (None, 1),
    };
    let mut code = bits;
    let mut used = 1;
    for &byte in bytes.iter().take(length).skip(1) {
        if byte & 0xc0 != 0x80 {
            return (None, used);
        }
        code = (code << 6) | u32::from(byte & 0x3f);
        used += 1;
    }
    let shortest = char::from_u32(code).map_or(0, char::len_utf8);
    let whole = used == length && (shortest == length || (length == 2 && code == 0));
    let character = char::from_u32(code).filter(|&c| whole && !is_noncharacter(c));
    (character, used)
}

/// Text for an error message: U+FFFD for each broken sequence, up to a NUL byte, and not too long.
pub(super) fn quoted(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(bytes.len());
    let bytes = bytes.get(..end).unwrap_or(bytes);
    match bytes.get(..MAX_QUOTED_BYTES) {
        Some(beginning) if bytes.len() > MAX_QUOTED_BYTES => format!("{}...", lossy(beginning)),
        _ => lossy(bytes).into_owned(),
    }
}

fn lossy(bytes: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(bytes)
        && !text.chars().any(is_noncharacter)
    {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(bytes.len());
    let mut rest = bytes;
    while !rest.is_empty() {
        let (character, used) = first_character(rest);
        out.push(character.unwrap_or(char::REPLACEMENT_CHARACTER));
        rest = rest.get(used.max(1)..).unwrap_or_default();
    }
    Cow::Owned(out)
}
