//! From bytes to tokens, one byte at a time, whatever the splitting of the input.

/// What kind of token the lexer's text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    BeginObject,
    EndObject,
    BeginArray,
    EndArray,
    Comma,
    Colon,
    /// Text with its quotes and escapes.
    String,
    Integer,
    Float,
    /// Lower-case letters.
    Keyword,
    /// Not a token: the bytes up to and with the one that fits nowhere.
    Stray,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Between tokens.
    Start,
    /// After a stray byte: everything up to a line end, a structural character or a next stray
    /// control byte is passed over.
    Recovery,
    Text(u8),
    Escape(u8),
    Minus,
    Zero,
    Digits,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
    Keyword,
}

/// What a byte does.
enum Step {
    /// It belongs to the token and more may follow.
    Part(State),
    /// It is not part of anything.
    Skip(State),
    /// It ends the token and belongs to it.
    Last(Token),
    /// The token ended before it.
    Before(Token),
}

/// Splits input into tokens; keeps the text of the one that is being read.
#[derive(Debug)]
pub(super) struct Lexer {
    state: State,
    text: Vec<u8>,
    /// The text belongs to a token that was handed out.
    finished: bool,
    /// The token grew too long: its end is looked for, its text is not kept.
    discarding: bool,
}

/// What reading on came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lexed {
    /// The input ended first.
    NeedMore,
    Token(Token),
    /// The token is over the limit; the rest of it will be passed over.
    TooLong,
}

/// How much of the text buffer is kept for reuse when a token was long.
const KEPT_TEXT_BYTES: usize = 64 << 10;

impl Lexer {
    /// Whether no token is begun.
    pub(super) fn is_between_tokens(&self) -> bool {
        matches!(self.state, State::Start | State::Recovery)
    }

    pub(super) fn new() -> Self {
        Self {
            state: State::Start,
            text: Vec::new(),
            finished: true,
            discarding: false,
        }
    }

    /// The bytes of the token that [`Self::next_token`] answered last, or of the unfinished one.
    pub(super) fn text(&self) -> &[u8] {
        &self.text
    }

    /// Reads on at the start of `input`; answers how many bytes were used and what they came to.
    pub(super) fn next_token(&mut self, input: &[u8], limit_bytes: usize) -> (usize, Lexed) {
        let mut used = 0;
        while let Some((&byte, after)) = input.get(used..).and_then(<[u8]>::split_first) {
            if self.finished {
                self.text.clear();
                self.text.shrink_to(KEPT_TEXT_BYTES);
                self.finished = false;
            }
            let token = match step(self.state, byte) {
                Step::Skip(state) => {
                    self.state = state;
                    used += 1;
                    continue;
                }
                Step::Part(state) => {
                    self.state = state;
                    used += 1 + self.take(byte, after, limit_bytes);
                    if self.text.len() > limit_bytes {
                        self.text = Vec::new();
                        self.discarding = true;
                        return (used, Lexed::TooLong);
                    }
                    continue;
                }
                Step::Last(token) => {
                    self.text.push(byte);
                    used += 1;
                    token
                }
                Step::Before(token) => token,
            };
            self.state = if token == Token::Stray {
                State::Recovery
            } else {
                State::Start
            };
            self.finished = true;
            if !std::mem::take(&mut self.discarding) {
                return (used, Lexed::Token(token));
            }
        }
        (used, Lexed::NeedMore)
    }

    /// Adds a byte to the text and, within a string, the run of bytes after it that mean nothing
    /// but themselves; answers how long the run was.
    fn take(&mut self, byte: u8, after: &[u8], limit_bytes: usize) -> usize {
        if !self.discarding {
            self.text.push(byte);
        }
        let State::Text(quote) = self.state else {
            return 0;
        };
        let room = limit_bytes.saturating_sub(self.text.len());
        let run = after
            .iter()
            .take(room)
            .take_while(|&&byte| byte != quote && byte != b'\\' && !breaks_text(byte))
            .count();
        if !self.discarding {
            self.text
                .extend_from_slice(after.get(..run).unwrap_or_default());
        }
        run
    }
}

/// Bytes that cannot stand in a string: control characters, and two that UTF-8 never has.
fn breaks_text(byte: u8) -> bool {
    !(0x20..0xfe).contains(&byte)
}

fn step(state: State, byte: u8) -> Step {
    use State::{
        Digits, Escape, Exponent, ExponentDigits, ExponentSign, Fraction, Keyword, Minus, Point,
        Recovery, Start, Text, Zero,
    };
    match (state, byte) {
        (Start, _) => start(byte),
        (Recovery, b'\n' | b'\r') => Step::Skip(Start),
        (Recovery, b'{' | b'}' | b'[' | b']' | b',' | b':') => start(byte),
        (Recovery, _) if breaks_text(byte) && byte != b'\t' => Step::Last(Token::Stray),
        (Recovery, _) => Step::Skip(Recovery),

        (Text(_) | Escape(_), _) if breaks_text(byte) => Step::Last(Token::Stray),
        (Text(quote), _) if byte == quote => Step::Last(Token::String),
        (Text(quote), b'\\') => Step::Part(Escape(quote)),
        (Text(quote) | Escape(quote), _) => Step::Part(Text(quote)),

        (Minus, b'0') => Step::Part(Zero),
        (Minus | Digits, b'0'..=b'9') => Step::Part(Digits),
        (Zero, b'0'..=b'9') => Step::Last(Token::Stray),
        (Zero | Digits, b'.') => Step::Part(Point),
        (Point | Fraction, b'0'..=b'9') => Step::Part(Fraction),
        (Digits | Fraction, b'e' | b'E') => Step::Part(Exponent),
        (Exponent, b'+' | b'-') => Step::Part(ExponentSign),
        (Exponent | ExponentSign | ExponentDigits, b'0'..=b'9') => Step::Part(ExponentDigits),
        (Minus | Point | Exponent | ExponentSign, _) => Step::Last(Token::Stray),
        (Zero | Digits, _) => Step::Before(Token::Integer),
        (Fraction | ExponentDigits, _) => Step::Before(Token::Float),

        (Keyword, b'a'..=b'z') => Step::Part(Keyword),
        (Keyword, _) => Step::Before(Token::Keyword),
    }
}

fn start(byte: u8) -> Step {
    match byte {
        b' ' | b'\t' | b'\r' | b'\n' => Step::Skip(State::Start),
        b'{' => Step::Last(Token::BeginObject),
        b'}' => Step::Last(Token::EndObject),
        b'[' => Step::Last(Token::BeginArray),
        b']' => Step::Last(Token::EndArray),
        b',' => Step::Last(Token::Comma),
        b':' => Step::Last(Token::Colon),
        b'"' | b'\'' => Step::Part(State::Text(byte)),
        b'-' => Step::Part(State::Minus),
        b'0' => Step::Part(State::Zero),
        b'1'..=b'9' => Step::Part(State::Digits),
        b'a'..=b'z' => Step::Part(State::Keyword),
        _ => Step::Last(Token::Stray),
    }
}
