//! What is sent: ASCII only, QEMU's spacing, in one line or pretty, with CRLF at line ends.

use std::io;

use serde::Serialize;
use serde_json::ser::{CharEscape, Formatter, Serializer};

use crate::Error;
use crate::json::is_noncharacter;

/// How a monitor's output looks (its `pretty` property).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Style {
    /// One line for each message: `{"return": {}, "id": 1}`.
    #[default]
    Compact,
    /// One line for each member and element, indented by four spaces for each level.
    Pretty,
}

/// Appends a value as JSON without a line end; on an error `out` is as it was.
///
/// # Errors
/// [`Error::Encode`] if the value cannot be JSON, such as a map whose keys are not strings.
pub fn encode_value<T: Serialize + ?Sized>(
    out: &mut Vec<u8>,
    style: Style,
    value: &T,
) -> Result<(), Error> {
    write_value(out, style, 0, value)
}

fn write_value<T: Serialize + ?Sized>(
    out: &mut Vec<u8>,
    style: Style,
    depth: usize,
    value: &T,
) -> Result<(), Error> {
    let before = out.len();
    let mut serializer = Serializer::with_formatter(&mut *out, Layout { style, depth });
    let written = value.serialize(&mut serializer);
    written.map_err(|error| {
        out.truncate(before);
        Error::Encode(error.to_string())
    })
}

/// Writes one message, member by member, and takes it back whole if a member fails.
pub(crate) struct MessageWriter<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    style: Style,
    first: bool,
    failed: Option<Error>,
}

impl<'a> MessageWriter<'a> {
    pub(crate) fn new(out: &'a mut Vec<u8>, style: Style) -> Self {
        let start = out.len();
        out.push(b'{');
        Self {
            out,
            start,
            style,
            first: true,
            failed: None,
        }
    }

    fn name(&mut self, name: &str) {
        match (self.style, self.first) {
            (Style::Compact, true) => {}
            (Style::Compact, false) => self.out.extend_from_slice(b", "),
            (Style::Pretty, true) => self.out.extend_from_slice(b"\r\n    "),
            (Style::Pretty, false) => self.out.extend_from_slice(b",\r\n    "),
        }
        self.first = false;
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\": ");
    }

    /// Adds a member; `name` is one of the protocol's own.
    pub(crate) fn member<T: Serialize + ?Sized>(mut self, name: &str, value: &T) -> Self {
        self.name(name);
        if let Err(error) = write_value(self.out, self.style, 1, value) {
            self.failed.get_or_insert(error);
        }
        self
    }

    /// Adds a member if there is a value for it.
    pub(crate) fn optional<T: Serialize + ?Sized>(self, name: &str, value: Option<&T>) -> Self {
        match value {
            Some(value) => self.member(name, value),
            None => self,
        }
    }

    /// Adds a member whose value is written already.
    pub(crate) fn text(mut self, name: &str, text: &[u8]) -> Self {
        self.name(name);
        self.out.extend_from_slice(text);
        self
    }

    pub(crate) fn finish(self) -> Result<(), Error> {
        if let Some(error) = self.failed {
            self.out.truncate(self.start);
            return Err(error);
        }
        self.out.extend_from_slice(match self.style {
            Style::Compact => b"}\r\n",
            Style::Pretty => b"\r\n}\r\n",
        });
        Ok(())
    }
}

/// Spacing, escapes and numbers as QEMU writes them.
struct Layout {
    style: Style,
    depth: usize,
}

impl Layout {
    fn line<W: ?Sized + io::Write>(&self, out: &mut W) -> io::Result<()> {
        out.write_all(b"\r\n")?;
        (0..self.depth).try_for_each(|_| out.write_all(b"    "))
    }

    fn begin<W: ?Sized + io::Write>(&mut self, out: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        out.write_all(bracket)
    }

    fn end<W: ?Sized + io::Write>(&mut self, out: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth = self.depth.saturating_sub(1);
        if self.style == Style::Pretty {
            self.line(out)?;
        }
        out.write_all(bracket)
    }

    fn separate<W: ?Sized + io::Write>(&self, out: &mut W, first: bool) -> io::Result<()> {
        match (self.style, first) {
            (Style::Compact, true) => Ok(()),
            (Style::Compact, false) => out.write_all(b", "),
            (Style::Pretty, true) => self.line(out),
            (Style::Pretty, false) => {
                out.write_all(b",")?;
                self.line(out)
            }
        }
    }
}

impl Formatter for Layout {
    fn begin_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.begin(out, b"[")
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.end(out, b"]")
    }

    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.separate(out, first)
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.begin(out, b"{")
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.end(out, b"}")
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.separate(out, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }

    fn write_f32<W: ?Sized + io::Write>(&mut self, out: &mut W, value: f32) -> io::Result<()> {
        self.write_f64(out, f64::from(value))
    }

    fn write_f64<W: ?Sized + io::Write>(&mut self, out: &mut W, value: f64) -> io::Result<()> {
        out.write_all(double_text(value).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(|c: char| !c.is_ascii() || c == '\u{7f}') {
            let (plain, special) = rest.split_at(at);
            out.write_all(plain.as_bytes())?;
            let mut characters = special.chars();
            if let Some(character) = characters.next() {
                let shown = if is_noncharacter(character) {
                    char::REPLACEMENT_CHARACTER
                } else {
                    character
                };
                for unit in shown.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04X}")?;
                }
            }
            rest = characters.as_str();
        }
        out.write_all(rest.as_bytes())
    }

    fn write_char_escape<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        escape: CharEscape,
    ) -> io::Result<()> {
        let short: &[u8] = match escape {
            CharEscape::Quote => b"\\\"",
            CharEscape::ReverseSolidus => b"\\\\",
            CharEscape::Solidus => b"/",
            CharEscape::Backspace => b"\\b",
            CharEscape::FormFeed => b"\\f",
            CharEscape::LineFeed => b"\\n",
            CharEscape::CarriageReturn => b"\\r",
            CharEscape::Tab => b"\\t",
            CharEscape::AsciiControl(byte) => return write!(out, "\\u{byte:04X}"),
        };
        out.write_all(short)
    }
}

/// A double with 17 significant digits, without trailing zeros; with an exponent when that is
/// below -4 or above 16.
fn double_text(value: f64) -> String {
    const DIGITS: i32 = 17;
    let scientific = format!("{value:.16e}");
    let Some((mantissa, exponent)) = scientific.split_once('e') else {
        return scientific;
    };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if !(-4..DIGITS).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{}e{sign}{:02}", without_zeros(mantissa), exponent.abs());
    }
    let decimals = usize::try_from(DIGITS - 1 - exponent).unwrap_or(0);
    without_zeros(&format!("{value:.decimals$}")).to_owned()
}

fn without_zeros(number: &str) -> &str {
    if number.contains('.') {
        number.trim_end_matches('0').trim_end_matches('.')
    } else {
        number
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn compact(value: &Value) -> String {
        let mut out = Vec::new();
        encode_value(&mut out, Style::Compact, value).unwrap();
        String::from_utf8(out).unwrap()
    }

    /// Observed as the `id` that qemu-storage-daemon 10.0.2 echoes.
    #[test]
    fn doubles_look_as_in_qemu() {
        for (value, text) in [
            (18446744073709551616.0, "1.8446744073709552e+19"),
            (-9223372036854775809.0, "-9.2233720368547758e+18"),
            (0.0, "0"),
            (-0.0, "-0"),
            (1.5, "1.5"),
            (0.1, "0.10000000000000001"),
            (1e5, "100000"),
            (1e-5, "1.0000000000000001e-05"),
            (1e-4, "0.0001"),
            (1e16, "10000000000000000"),
            (1e17, "1e+17"),
            (1e100, "1e+100"),
            (f64::MAX, "1.7976931348623157e+308"),
            (5e-324, "4.9406564584124654e-324"),
            (123456.789, "123456.789"),
            (12345678901234567.0, "12345678901234568"),
        ] {
            assert_eq!(compact(&json!(value)), text);
        }
    }

    /// Observed likewise.
    #[test]
    fn strings_are_ascii_with_upper_case_escapes() {
        let text = "\u{8}\u{c}\n\r\t/\\\"'<>&\u{1}\u{1f}\u{7f}\u{80}é€😀\0";
        let expected = concat!(
            r#""\b\f\n\r\t/\\\"'<>&\u0001\u001F\u007F"#,
            r#"\u0080\u00E9\u20AC\uD83D\uDE00\u0000""#
        );
        assert_eq!(compact(&json!(text)), expected);
    }

    #[test]
    fn noncharacters_become_the_replacement_character() {
        assert_eq!(compact(&json!("a\u{ffff}b")), r#""a\uFFFDb""#);
    }

    #[test]
    fn empty_collections_take_two_lines_when_pretty() {
        let mut out = Vec::new();
        encode_value(&mut out, Style::Pretty, &json!({"a": [], "b": [{}]})).unwrap();
        let expected =
            "{\r\n    \"a\": [\r\n    ],\r\n    \"b\": [\r\n        {\r\n        }\r\n    ]\r\n}";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn a_value_that_is_no_json_leaves_nothing_behind() {
        let mut out = b"before".to_vec();
        let keyed_by_list = std::collections::BTreeMap::from([(vec![1], 2)]);
        let failed = encode_value(&mut out, Style::Compact, &keyed_by_list);
        assert!(matches!(failed, Err(Error::Encode(_))));
        assert_eq!(out, b"before");
    }
}
