//! Values as people read them: as few lines as fit, in colours where there are any.

use std::fmt::Write as _;
use std::io::IsTerminal;

use qmp_client::Event;
use serde_json::{Map, Value};

/// Widest line on which an object or array stands whole, in columns.
const WIDTH: usize = 96;
const INDENT: usize = 2;

/// The look of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Look {
    pub(crate) color: bool,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Paint {
    Key,
    Text,
    Number,
    Word,
    Error,
    Event,
    Strong,
}

impl Paint {
    fn code(self) -> &'static str {
        match self {
            Self::Key => "36",
            Self::Text => "32",
            Self::Number => "33",
            Self::Word => "35",
            Self::Error => "1;31",
            Self::Event => "2;34",
            Self::Strong => "1",
        }
    }
}

impl Look {
    pub(crate) const PLAIN: Self = Self { color: false };

    /// Colours if the stream is a terminal and nobody asked for none (<https://no-color.org>).
    pub(crate) fn of(stream: &impl IsTerminal) -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|name| name == "dumb");
        Self {
            color: stream.is_terminal() && !set("NO_COLOR") && !dumb,
        }
    }

    pub(crate) fn paint(self, paint: Paint, text: &str) -> String {
        if self.color {
            format!("\x1b[{}m{text}\x1b[0m", paint.code())
        } else {
            text.to_owned()
        }
    }

    /// A value on one line or more, without a line end.
    pub(crate) fn value(self, value: &Value) -> String {
        let mut out = String::new();
        self.write(value, 0, 0, &mut out);
        out
    }

    /// An event, without a line end.
    pub(crate) fn event(self, event: &Event) -> String {
        let time = clock(event.timestamp.seconds, event.timestamp.microseconds);
        let name = self.paint(Paint::Strong, &printable(&event.name));
        let head = format!(
            "{} {name}",
            self.paint(Paint::Event, &format!("event {time}"))
        );
        match &event.data {
            Some(data) => format!("{head} {}", self.value(data)),
            None => head,
        }
    }

    pub(crate) fn error(self, class: &str, desc: &str) -> String {
        let class = self.paint(Paint::Error, &printable(class));
        format!("{class}: {}", printable(desc))
    }

    fn write(self, value: &Value, indent: usize, used: usize, out: &mut String) {
        let (open, close, empty) = match value {
            Value::Object(members) => ('{', '}', members.is_empty()),
            Value::Array(elements) => ('[', ']', elements.is_empty()),
            scalar => return out.push_str(&self.scalar(scalar)),
        };
        let room = WIDTH.saturating_sub(used);
        if empty || inline_width(value, room).is_some() {
            return self.write_inline(value, out);
        }
        out.push(open);
        let inner = indent + INDENT;
        let mut first = true;
        let mut begin_line = |out: &mut String| {
            out.push_str(if first { "\n" } else { ",\n" });
            first = false;
            out.extend(std::iter::repeat_n(' ', inner));
        };
        match value {
            Value::Object(members) => {
                for (key, member) in members {
                    begin_line(out);
                    let key = quoted(key);
                    let _ = write!(out, "{}: ", self.paint(Paint::Key, &key));
                    self.write(member, inner, inner + key.chars().count() + 2, out);
                }
            }
            Value::Array(elements) => {
                for element in elements {
                    begin_line(out);
                    self.write(element, inner, inner, out);
                }
            }
            _ => {}
        }
        out.push('\n');
        out.extend(std::iter::repeat_n(' ', indent));
        out.push(close);
    }

    fn write_inline(self, value: &Value, out: &mut String) {
        match value {
            Value::Object(members) => self.write_members(members, out),
            Value::Array(elements) => {
                out.push('[');
                for (at, element) in elements.iter().enumerate() {
                    out.push_str(if at == 0 { "" } else { ", " });
                    self.write_inline(element, out);
                }
                out.push(']');
            }
            scalar => out.push_str(&self.scalar(scalar)),
        }
    }

    fn write_members(self, members: &Map<String, Value>, out: &mut String) {
        out.push('{');
        for (at, (key, member)) in members.iter().enumerate() {
            out.push_str(if at == 0 { "" } else { ", " });
            let _ = write!(out, "{}: ", self.paint(Paint::Key, &quoted(key)));
            self.write_inline(member, out);
        }
        out.push('}');
    }

    fn scalar(self, value: &Value) -> String {
        match value {
            Value::String(text) => self.paint(Paint::Text, &quoted(text)),
            Value::Number(number) => self.paint(Paint::Number, &number.to_string()),
            other => self.paint(Paint::Word, &other.to_string()),
        }
    }
}

/// How wide a value is on one line, if that is no more than `room`.
fn inline_width(value: &Value, room: usize) -> Option<usize> {
    let within = |width: usize| (width <= room).then_some(width);
    match value {
        Value::Object(members) => members.iter().try_fold(2_usize, |width, (key, member)| {
            let width = within(width + key.chars().count() + 6)?;
            within(width + inline_width(member, room - width)?)
        }),
        Value::Array(elements) => elements.iter().try_fold(2_usize, |width, element| {
            let width = within(width + 2)?;
            within(width + inline_width(element, room - width)?)
        }),
        Value::String(text) if text.len() > 4 * room + 4 => None,
        scalar => within(Look::PLAIN.scalar(scalar).chars().count()),
    }
}

/// A JSON string whose characters do nothing to a terminal.
fn quoted(text: &str) -> String {
    printable(&Value::from(text).to_string())
}

/// The text with everything escaped that moves a terminal's cursor or turns its text around.
pub(crate) fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() || is_bidirectional_control(character) {
            let _ = write!(out, "\\u{:04X}", u32::from(character));
        } else {
            out.push(character);
        }
    }
    out
}

fn is_bidirectional_control(character: char) -> bool {
    matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The time of day in UTC.
fn clock(seconds: i64, microseconds: i64) -> String {
    let of_day = seconds.rem_euclid(86400);
    let (hours, minutes) = (of_day / 3600, of_day / 60 % 60);
    format!(
        "{hours:02}:{minutes:02}:{:02}.{:03}Z",
        of_day % 60,
        microseconds / 1000
    )
}
