use proptest::prelude::*;

use super::*;

/// A terminal that understands what a [`Readline`] sends.
#[derive(Default)]
struct Screen {
    lines: Vec<Vec<char>>,
    row: usize,
    column: usize,
}

impl Screen {
    fn new() -> Self {
        Self {
            lines: vec![Vec::new()],
            ..Self::default()
        }
    }

    fn put(&mut self, text: &str) {
        let mut rest = text.chars();
        while let Some(c) = rest.next() {
            match c {
                '\r' => self.column = 0,
                '\n' => {
                    self.row += 1;
                    if self.lines.len() == self.row {
                        self.lines.push(Vec::new());
                    }
                }
                '\x1b' => self.sequence(&mut rest),
                _ => {
                    let line = &mut self.lines[self.row];
                    while line.len() <= self.column {
                        line.push(' ');
                    }
                    line[self.column] = c;
                    self.column += 1;
                }
            }
        }
    }

    fn sequence(&mut self, rest: &mut std::str::Chars) {
        assert_eq!(rest.next(), Some('['));
        let mut number = String::new();
        let last = loop {
            match rest.next().unwrap() {
                c @ ('0'..='9' | ';') => number.push(c),
                c => break c,
            }
        };
        let count = number.parse().unwrap_or(1);
        match last {
            'D' => {
                assert!(count <= self.column, "beyond the left edge");
                self.column -= count;
            }
            'C' => {
                self.column += count;
                assert!(self.column <= self.lines[self.row].len());
            }
            'K' => {
                let column = self.column;
                self.lines[self.row].truncate(column);
            }
            'J' => *self = Self::new(),
            'H' => (self.row, self.column) = (0, 0),
            other => panic!("ESC [ {number} {other}"),
        }
    }

    fn last(&self) -> String {
        self.lines[self.row].iter().collect()
    }
}

struct Terminal {
    readline: Readline,
    screen: Screen,
    lines: Vec<String>,
    asked: Vec<String>,
}

impl Terminal {
    fn new() -> Self {
        let readline = Readline::new("> ");
        let mut screen = Screen::new();
        let mut out = String::new();
        readline.show(&mut out);
        screen.put(&out);
        Self {
            readline,
            screen,
            lines: Vec::new(),
            asked: Vec::new(),
        }
    }

    fn type_bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let mut out = String::new();
            match self.readline.feed(*byte, &mut out) {
                Typed::Nothing => {}
                Typed::Line(line) => {
                    self.lines.push(line);
                    self.readline.show(&mut out);
                }
                Typed::Complete(typed) => self.asked.push(typed),
            }
            self.screen.put(&out);
        }
    }

    /// What is typed, checked against what the screen shows.
    fn line(&self) -> String {
        let line: String = self.readline.line.iter().collect();
        assert_eq!(self.screen.last(), format!("> {line}"));
        assert_eq!(self.screen.column, 2 + self.readline.cursor);
        line
    }

    fn complete(&mut self, words: &[&str]) {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let mut out = String::new();
        self.readline.complete(&words, &mut out);
        self.screen.put(&out);
    }
}

fn after(bytes: &[u8]) -> String {
    let mut terminal = Terminal::new();
    terminal.type_bytes(bytes);
    terminal.line()
}

#[test]
fn keys_edit_the_line() {
    for (typed, line) in [
        (&b"info"[..], "info"),
        (b"abc\x7f\x08d", "ad"),
        (b"\x7f\x7fa", "a"),
        (b"abc\x1b[D\x1b[DX", "aXbc"),
        (b"abc\x1bOD\x1bODX\x1bOCY", "aXbYc"),
        (b"bc\x01a\x05d", "abcd"),
        (b"bc\x1b[Ha\x1b[Fd", "abcd"),
        (b"bc\x1b[1~a\x1b[4~d", "abcd"),
        (b"abcd\x02\x02\x0b", "ab"),
        (b"abcd\x02\x02\x15", "cd"),
        (b"abcd\x01\x06\x04", "acd"),
        (b"abcd\x01\x1b[3~\x1b[3~", "cd"),
        (b"foo bar  baz\x17", "foo bar  "),
        (b"foo bar  \x17", "foo "),
        (b"foo bar\x02\x02\x17", "foo ar"),
        (b"lost\x03kept", "kept"),
        (b"left\x0c\x02\x7f", "let"),
        (b"a\x00\x1b[99;99;99;99Zb\x1bxc\x07", "abc"),
        (b"ab\x1b\x08c\x1b[1\x01d", "dac"),
        (
            "gr\u{fc}n \u{20ac}\x1b[D\x7f".as_bytes(),
            "gr\u{fc}n\u{20ac}",
        ),
        (b"\xc3a\xff\xfeb\xe2\x82c", "abc"),
        // U+0085 is a control character.
        (b"a\xc2\x85b", "ab"),
    ] {
        assert_eq!(after(typed), line, "{}", typed.escape_ascii());
    }
}

#[test]
fn every_kind_of_line_end_ends_one_line() {
    let mut terminal = Terminal::new();
    terminal.type_bytes(b"one\rtwo\nthree\r\nfour\r\r\n\n");
    assert_eq!(terminal.lines, ["one", "two", "three", "four", "", ""]);
    assert_eq!(terminal.line(), "");
}

#[test]
fn lines_come_back() {
    let mut terminal = Terminal::new();
    terminal.type_bytes(b"one\rtwo\rone\r   \rhalf");
    let mut after = |keys: &[u8]| {
        terminal.type_bytes(keys);
        terminal.line()
    };
    assert_eq!(after(b"\x1b[A"), "one");
    assert_eq!(after(b"\x10"), "two");
    assert_eq!(after(b"\x1b[A"), "two");
    assert_eq!(after(b"\x1b[B"), "one");
    assert_eq!(after(b"\x0e"), "half");
    assert_eq!(after(b"\x1b[B"), "half");
    assert_eq!(after(b"\x1b[A\x1b[A!\r"), "");
    assert_eq!(after(b"\x1b[A"), "two!");
    assert_eq!(terminal.lines.last().unwrap(), "two!");
}

#[test]
fn words_are_completed() {
    let mut terminal = Terminal::new();
    terminal.type_bytes(b"info re x\x1b[D\x1b[D\t");
    assert_eq!(terminal.asked, ["info re"]);
    terminal.complete(&["registers", "replay"]);
    assert_eq!(terminal.line(), "info re x");
    assert_eq!(
        terminal.screen.lines[1].iter().collect::<String>(),
        "registers  replay     "
    );
    terminal.complete(&["registers"]);
    assert_eq!(terminal.line(), "info registers  x");
    terminal.type_bytes(b"\x03st");
    terminal.complete(&["stop", "stopcapture"]);
    assert_eq!(terminal.line(), "stop");
    terminal.complete(&[]);
    assert_eq!(terminal.line(), "stop");
    let many: Vec<String> = (0..30).map(|n| format!("stop{n:020}")).collect();
    terminal.complete(&many.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(terminal.line(), "stop000000000000000000");
    let rows = &terminal.screen.lines;
    assert!(rows.iter().all(|row| row.len() <= TERMINAL_COLUMNS));
}

#[test]
fn what_never_ends_is_bounded() {
    let mut terminal = Terminal::new();
    terminal.type_bytes(&[b'x'; 3 * MAX_LINE_CHARS]);
    terminal.type_bytes(b"\x1b[");
    terminal.type_bytes(&[b'1'; 1000]);
    assert_eq!(terminal.line().len(), MAX_LINE_CHARS);
    assert!(terminal.readline.partial.len() < 4);
    for n in 0..3 * HISTORY_LINES {
        terminal.type_bytes(format!("\x03{n}\r").as_bytes());
    }
    assert_eq!(terminal.readline.history.len(), HISTORY_LINES);
    for _ in 0..2 * HISTORY_LINES {
        terminal.type_bytes(b"\x1b[A");
    }
    assert_eq!(terminal.line(), (2 * HISTORY_LINES).to_string());
}

proptest! {
    /// Whatever comes in, the screen shows what is typed, and the cursor stands where it is.
    #[test]
    fn the_screen_is_the_line(
        pieces in prop::collection::vec(
            prop_oneof![
                any::<u8>().prop_map(|byte| vec![byte]),
                "[a-z ]{1,4}".prop_map(String::into_bytes),
                prop::sample::select(vec![
                    &b"\x1b[A"[..], b"\x1b[B", b"\x1b[C", b"\x1b[D", b"\x1b[3~", b"\x01", b"\x05",
                    b"\x0b", b"\x15", b"\x17", b"\x7f", b"\r", b"\t", "\u{e4}".as_bytes(),
                ]).prop_map(<[u8]>::to_vec),
            ],
            0..60,
        )
    ) {
        let mut terminal = Terminal::new();
        for piece in pieces {
            terminal.type_bytes(&piece);
            terminal.line();
            terminal.complete(&["alpha", "alphabet"]);
            terminal.line();
        }
    }
}
