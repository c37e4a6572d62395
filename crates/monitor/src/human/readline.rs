//! Line editing for a person at a terminal, as a pure machine: bytes in, finished lines and what the terminal is to show
//! out.
//!
//! | key | does |
//! |---|---|
//! | Enter | ends the line |
//! | Backspace, ^H | takes the character before the cursor away |
//! | Delete, ^D | the one under it |
//! | Left, Right, ^B, ^F | move by a character |
//! | Home, End, ^A, ^E | to the line's beginning, its end |
//! | ^K, ^U, ^W | take away what is behind the cursor, before it, the word before it |
//! | Up, Down, ^P, ^N | lines of the history; what was typed comes back below the newest |
//! | Tab | asks for a completion |
//! | ^C | drops the line |
//! | ^L | clears the screen |
//!
//! Keys come as VT100 and its successors send them. Bytes that mean nothing are dropped. A line has at most
//! [`MAX_LINE_CHARS`] characters, what comes beyond is dropped; the history has [`HISTORY_LINES`]. Each character counts as
//! one column.

use std::collections::VecDeque;

/// The most characters of a line.
pub const MAX_LINE_CHARS: usize = 4095;
/// How many lines the history keeps.
pub const HISTORY_LINES: usize = 64;
/// The longest sequence of a key that is looked at.
const MAX_SEQUENCE_BYTES: usize = 8;
/// How wide a terminal is taken to be where words are listed.
const TERMINAL_COLUMNS: usize = 80;
/// Room for a word in such a list, at least, and what stands between two.
const MIN_WORD_COLUMNS: usize = 10;
const WORD_GAP: usize = 2;
const ERASE_TO_END: &str = "\x1b[K";
const CLEAR_SCREEN: &str = "\x1b[2J\x1b[1;1H";

/// What a byte led to, besides what is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Typed {
    /// Nothing.
    Nothing,
    /// A line is finished.
    Line(String),
    /// A completion of this, the line up to the cursor, is asked for: [`Readline::complete`].
    Complete(String),
}

/// How far a key's sequence has come.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Sequence {
    None,
    /// ESC.
    Escape,
    /// ESC and `[`, with what came behind.
    Brackets(Vec<u8>),
    /// ESC and `O`.
    Single,
}

/// A key that is none of the characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Left,
    Right,
    Up,
    Down,
    Home,
    End,
    Delete,
}

/// The editor of one terminal.
#[derive(Debug)]
pub struct Readline {
    prompt: String,
    line: Vec<char>,
    cursor: usize,
    history: VecDeque<String>,
    /// The line of the history that is shown, and what was typed before.
    shown: Option<(usize, Vec<char>)>,
    sequence: Sequence,
    /// Bytes of a character that is not whole.
    partial: Vec<u8>,
    /// The last byte was a carriage return: a line feed behind it belongs to it.
    after_return: bool,
}

impl Readline {
    /// An editor with nothing typed.
    #[must_use]
    pub fn new(prompt: &str) -> Self {
        Self {
            prompt: prompt.to_owned(),
            line: Vec::new(),
            cursor: 0,
            history: VecDeque::new(),
            shown: None,
            sequence: Sequence::None,
            partial: Vec::new(),
            after_return: false,
        }
    }

    /// Shows the prompt, and what is typed so far behind it.
    pub fn show(&self, out: &mut String) {
        out.push_str(&self.prompt);
        out.extend(&self.line);
        back(out, self.line.len().saturating_sub(self.cursor));
    }

    /// Takes a byte from the terminal; what it is to show goes to `out`.
    pub fn feed(&mut self, byte: u8, out: &mut String) -> Typed {
        let after_return = std::mem::replace(&mut self.after_return, byte == b'\r');
        if byte == b'\n' && after_return {
            return Typed::Nothing;
        }
        match std::mem::replace(&mut self.sequence, Sequence::None) {
            Sequence::None => return self.plain(byte, out),
            // No key has these in it: whatever began is broken off.
            _ if byte < b' ' => return self.plain(byte, out),
            Sequence::Escape => match byte {
                b'[' => self.sequence = Sequence::Brackets(Vec::new()),
                b'O' => self.sequence = Sequence::Single,
                _ => {}
            },
            Sequence::Brackets(mut before) => match byte {
                b'0'..=b'9' | b';' => {
                    // What is longer is no key that is known.
                    if before.len() < MAX_SEQUENCE_BYTES {
                        before.push(byte);
                    }
                    self.sequence = Sequence::Brackets(before);
                }
                _ => self.key_of(&before, byte, out),
            },
            Sequence::Single => self.key_of(&[], byte, out),
        }
        Typed::Nothing
    }

    fn key_of(&mut self, before: &[u8], last: u8, out: &mut String) {
        let key = match (before, last) {
            (_, b'A') => Key::Up,
            (_, b'B') => Key::Down,
            (_, b'C') => Key::Right,
            (_, b'D') => Key::Left,
            (_, b'H') | (b"1" | b"7", b'~') => Key::Home,
            (_, b'F') | (b"4" | b"8", b'~') => Key::End,
            (b"3", b'~') => Key::Delete,
            _ => return,
        };
        self.press(key, out);
    }

    fn plain(&mut self, byte: u8, out: &mut String) -> Typed {
        if byte >= 0x80 {
            self.part_of_character(byte, out);
            return Typed::Nothing;
        }
        self.partial.clear();
        match byte {
            b'\r' | b'\n' => return Typed::Line(self.finish(out)),
            b'\t' => return Typed::Complete(self.line.iter().take(self.cursor).collect()),
            0x1b => self.sequence = Sequence::Escape,
            0x01 => self.press(Key::Home, out),
            0x02 => self.press(Key::Left, out),
            0x03 => self.drop_line(out),
            0x04 => self.press(Key::Delete, out),
            0x05 => self.press(Key::End, out),
            0x06 => self.press(Key::Right, out),
            0x08 | 0x7f => self.erase_back_to(self.cursor.saturating_sub(1), out),
            0x0b => {
                self.line.truncate(self.cursor);
                out.push_str(ERASE_TO_END);
            }
            0x0c => {
                out.push_str(CLEAR_SCREEN);
                self.show(out);
            }
            0x0e => self.press(Key::Down, out),
            0x10 => self.press(Key::Up, out),
            0x15 => self.erase_back_to(0, out),
            0x17 => self.erase_back_to(self.word_start(), out),
            b' '..=b'~' => self.insert(&[char::from(byte)], out),
            _ => {}
        }
        Typed::Nothing
    }

    /// A byte of a character that is not ASCII.
    fn part_of_character(&mut self, byte: u8, out: &mut String) {
        self.partial.push(byte);
        match std::str::from_utf8(&self.partial) {
            Ok(text) => {
                let text: Vec<char> = text.chars().filter(|c| !c.is_control()).collect();
                self.partial.clear();
                self.insert(&text, out);
            }
            // More is to come.
            Err(error) if error.error_len().is_none() => {}
            Err(_) => self.partial.clear(),
        }
    }

    /// The end of a line: it goes into the history, unless it is empty.
    fn finish(&mut self, out: &mut String) -> String {
        out.push_str("\r\n");
        let line: String = self.line.drain(..).collect();
        self.cursor = 0;
        self.shown = None;
        if !line.trim().is_empty() {
            // A line that is there already becomes the newest.
            self.history.retain(|known| *known != line);
            if self.history.len() >= HISTORY_LINES {
                self.history.pop_front();
            }
            self.history.push_back(line.clone());
        }
        line
    }

    fn drop_line(&mut self, out: &mut String) {
        self.line.clear();
        self.cursor = 0;
        self.shown = None;
        out.push_str("^C\r\n");
        self.show(out);
    }

    /// Shows what stands from the cursor on, which then is `columns` further on, and goes there.
    fn redraw_from_cursor(&mut self, columns: usize, out: &mut String) {
        out.extend(self.line.iter().skip(self.cursor));
        out.push_str(ERASE_TO_END);
        self.cursor = self.cursor.saturating_add(columns).min(self.line.len());
        back(out, self.line.len().saturating_sub(self.cursor));
    }

    fn insert(&mut self, text: &[char], out: &mut String) {
        let room = MAX_LINE_CHARS.saturating_sub(self.line.len());
        let text = text.get(..room.min(text.len())).unwrap_or_default();
        if text.is_empty() {
            return;
        }
        let at = self.cursor.min(self.line.len());
        if at == self.line.len() {
            self.line.extend(text);
            self.cursor = self.line.len();
            out.extend(text);
            return;
        }
        self.line.splice(at..at, text.iter().copied());
        self.redraw_from_cursor(text.len(), out);
    }

    /// Takes away what stands from `start` to the cursor.
    fn erase_back_to(&mut self, start: usize, out: &mut String) {
        let end = self.cursor.min(self.line.len());
        if start >= end {
            return;
        }
        self.line.drain(start..end);
        back(out, end - start);
        self.cursor = start;
        self.redraw_from_cursor(0, out);
    }

    /// Where the word before the cursor begins.
    fn word_start(&self) -> usize {
        let before = self.line.iter().take(self.cursor).rev();
        let spaces = before.clone().take_while(|c| c.is_whitespace()).count();
        let letters = before.skip(spaces).take_while(|c| !c.is_whitespace());
        self.cursor.saturating_sub(spaces + letters.count())
    }

    fn press(&mut self, key: Key, out: &mut String) {
        match key {
            Key::Left => self.move_to(self.cursor.saturating_sub(1), out),
            Key::Right => self.move_to(self.cursor.saturating_add(1), out),
            Key::Home => self.move_to(0, out),
            Key::End => self.move_to(self.line.len(), out),
            Key::Delete if self.cursor < self.line.len() => {
                self.line.remove(self.cursor);
                self.redraw_from_cursor(0, out);
            }
            Key::Delete => {}
            Key::Up => self.look_up(out),
            Key::Down => self.look_down(out),
        }
    }

    fn move_to(&mut self, place: usize, out: &mut String) {
        let place = place.min(self.line.len());
        back(out, self.cursor.saturating_sub(place));
        let ahead = place.saturating_sub(self.cursor);
        if ahead > 0 {
            out.push_str(&format!("\x1b[{ahead}C"));
        }
        self.cursor = place;
    }

    fn look_up(&mut self, out: &mut String) {
        let newest = self.history.len();
        let at = self.shown.as_ref().map_or(newest, |(at, _)| *at);
        let Some(above) = at.checked_sub(1) else {
            return;
        };
        let Some(line) = self.history.get(above).map(|line| line.chars().collect()) else {
            return;
        };
        let typed = match self.shown.take() {
            Some((_, typed)) => typed,
            None => self.line.clone(),
        };
        self.shown = Some((above, typed));
        self.replace(line, out);
    }

    fn look_down(&mut self, out: &mut String) {
        let Some((at, typed)) = self.shown.take() else {
            return;
        };
        let line = match self.history.get(at + 1) {
            Some(line) => {
                let line = line.chars().collect();
                self.shown = Some((at + 1, typed));
                line
            }
            None => typed,
        };
        self.replace(line, out);
    }

    fn replace(&mut self, line: Vec<char>, out: &mut String) {
        back(out, self.cursor);
        self.line = line;
        self.cursor = 0;
        self.redraw_from_cursor(usize::MAX, out);
    }

    /// Completes the word before the cursor to what all of `words` have in common. A single one is entered with a space
    /// behind it; of several all are listed.
    pub fn complete(&mut self, words: &[String], out: &mut String) {
        let typed: String = self.line.iter().take(self.cursor).collect();
        let word = typed.rsplit(char::is_whitespace).next().unwrap_or_default();
        let Some(shared) = shared_beginning(words) else {
            return;
        };
        let rest = shared.strip_prefix(word).unwrap_or_default();
        let mut rest: Vec<char> = rest.chars().collect();
        if let [_] = words {
            rest.push(' ');
            self.insert(&rest, out);
            return;
        }
        list(words, out);
        let mut unseen = String::new();
        self.insert(&rest, &mut unseen);
        self.show(out);
    }
}

fn back(out: &mut String, columns: usize) {
    if columns > 0 {
        out.push_str(&format!("\x1b[{columns}D"));
    }
}

/// What all words begin with; none if there are no words.
fn shared_beginning(words: &[String]) -> Option<String> {
    let (first, others) = words.split_first()?;
    let mut shared = first.clone();
    for other in others {
        let same = shared.chars().zip(other.chars());
        let count = same.take_while(|(left, right)| left == right).count();
        shared = shared.chars().take(count).collect();
    }
    Some(shared)
}

/// Words in columns, below the line.
fn list(words: &[String], out: &mut String) {
    let longest = words.iter().map(|word| word.chars().count()).max();
    let width = longest.unwrap_or(0).saturating_add(WORD_GAP);
    let width = width.max(MIN_WORD_COLUMNS);
    let per_line = (TERMINAL_COLUMNS / width).max(1);
    out.push_str("\r\n");
    for row in words.chunks(per_line) {
        for word in row {
            out.push_str(&format!("{word:width$}"));
        }
        out.push_str("\r\n");
    }
}

#[cfg(test)]
mod tests;
