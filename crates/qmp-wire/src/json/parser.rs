//! From tokens to values, with an explicit stack and QEMU's limits and error reporting.

use serde_json::{Map, Number, Value};

use super::lexer::{Lexed, Lexer, Token};
use super::text;
use super::{MAX_MESSAGE_BYTES, MAX_MESSAGE_TOKENS, MAX_NESTING_DEPTH};
use crate::Error;

/// What may come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    /// A value, or an object's key.
    Value,
    /// The same, or the end of the array or object that has just begun.
    First,
    /// The `:` after a key.
    Colon,
    /// A separator, or the end of the array or object.
    Next,
}

/// An array or object that has begun.
#[derive(Debug)]
enum Frame {
    Array(Vec<Value>),
    Object {
        members: Map<String, Value>,
        key: Option<String>,
    },
}

/// Reads a stream of JSON values from bytes that are fed to it in blocks of any size.
///
/// A number or bare word at the top level ends only with the byte after it. Errors in characters
/// (`stray`) are reported at once, errors in grammar when the message they are in has ended, which
/// is when its braces and its brackets, counted apart, balance again.
#[derive(Debug)]
pub struct StreamParser {
    input: Vec<u8>,
    /// How much of `input` has been read.
    used: usize,
    lexer: Lexer,
    message: Message,
}

/// The unfinished message.
#[derive(Debug)]
struct Message {
    /// Begun less ended objects.
    braces: i64,
    /// Begun less ended arrays.
    brackets: i64,
    tokens: usize,
    bytes: usize,
    stack: Vec<Frame>,
    expect: Expect,
    whole: Option<Value>,
    /// The first thing wrong in the message; nothing is kept of it any more.
    wrong: Option<Error>,
}

/// How much of the input buffer is kept for reuse.
const KEPT_INPUT_BYTES: usize = 64 << 10;

impl StreamParser {
    /// A parser at the beginning of a stream.
    pub fn new() -> Self {
        Self {
            input: Vec::new(),
            used: 0,
            lexer: Lexer::new(),
            message: Message::new(),
        }
    }

    /// Takes a block of input. Ask [`Self::next_value`] until it answers `None` before feeding
    /// more: what has not been asked for is kept.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.used > 0 {
            self.input.drain(..self.used);
            self.used = 0;
            self.input.shrink_to(KEPT_INPUT_BYTES.max(bytes.len()));
        }
        self.input.extend_from_slice(bytes);
    }

    /// How many fed bytes have not been looked at yet.
    pub fn unread_bytes(&self) -> usize {
        self.input.len() - self.used
    }

    /// Whether all fed bytes have been looked at and none of them begins an unfinished message.
    pub fn is_between_messages(&self) -> bool {
        self.unread_bytes() == 0 && self.message.tokens == 0 && self.lexer.is_between_tokens()
    }

    /// The next value, or what is wrong with it; `None` when more input is needed.
    ///
    /// # Errors
    /// Any of the JSON variants of [`Error`]. The parser stands behind the error and goes on.
    pub fn next_value(&mut self) -> Option<Result<Value, Error>> {
        loop {
            let rest = self.input.get(self.used..).unwrap_or_default();
            if rest.is_empty() {
                return None;
            }
            let room = MAX_MESSAGE_BYTES.saturating_sub(self.message.bytes);
            let (used, lexed) = self.lexer.next_token(rest, room);
            self.used += used;
            let done = match lexed {
                Lexed::NeedMore => None,
                Lexed::TooLong => Some(Err(self.message.end(Error::TokenSize))),
                Lexed::Token(Token::Stray) => {
                    let stray = Error::Stray(text::quoted(self.lexer.text()));
                    Some(Err(self.message.end(stray)))
                }
                Lexed::Token(token) => self.message.take(token, self.lexer.text()),
            };
            if done.is_some() {
                return done;
            }
        }
    }
}

impl Default for StreamParser {
    fn default() -> Self {
        Self::new()
    }
}

impl Message {
    fn new() -> Self {
        Self {
            braces: 0,
            brackets: 0,
            tokens: 0,
            bytes: 0,
            stack: Vec::new(),
            expect: Expect::Value,
            whole: None,
            wrong: None,
        }
    }

    /// Takes one token; answers when the message ended with it. The message is then new.
    fn take(&mut self, token: Token, text: &[u8]) -> Option<Result<Value, Error>> {
        match token {
            Token::BeginObject => self.braces += 1,
            Token::EndObject => self.braces -= 1,
            Token::BeginArray => self.brackets += 1,
            Token::EndArray => self.brackets -= 1,
            _ => {}
        }
        self.tokens += 1;
        self.bytes += text.len();
        if self.bytes > MAX_MESSAGE_BYTES {
            return Some(Err(self.end(Error::TokenSize)));
        }
        if self.tokens > MAX_MESSAGE_TOKENS {
            return Some(Err(self.end(Error::TokenCount)));
        }
        let depth = usize::try_from(self.braces + self.brackets).unwrap_or(0);
        if depth > MAX_NESTING_DEPTH {
            return Some(Err(self.end(Error::NestingDepth)));
        }
        if self.wrong.is_none()
            && let Err(wrong) = self.accept(token, text)
        {
            self.stack = Vec::new();
            self.wrong = Some(wrong);
        }
        let balanced = self.braces == 0 && self.brackets == 0;
        if !balanced && self.braces >= 0 && self.brackets >= 0 {
            return None;
        }
        let ended = std::mem::replace(self, Self::new());
        Some(match (ended.wrong, ended.whole) {
            (None, Some(value)) => Ok(value),
            (wrong, _) => Err(wrong.unwrap_or(Error::ExpectingValue)),
        })
    }

    fn end(&mut self, error: Error) -> Error {
        *self = Self::new();
        error
    }

    /// Goes one step through the grammar.
    fn accept(&mut self, token: Token, text: &[u8]) -> Result<(), Error> {
        match self.expect {
            Expect::First if self.ends_top(token) => self.close(),
            Expect::First | Expect::Value => self.begin_value(token, text),
            Expect::Colon if token == Token::Colon => {
                self.expect = Expect::Value;
                Ok(())
            }
            Expect::Colon => Err(Error::MissingColon),
            Expect::Next if token == Token::Comma => {
                self.expect = Expect::Value;
                Ok(())
            }
            Expect::Next if self.ends_top(token) => self.close(),
            Expect::Next => Err(match self.stack.last() {
                Some(Frame::Object { .. }) => Error::SeparatorInDict,
                _ => Error::SeparatorInList,
            }),
        }
    }

    /// Whether the token ends the innermost array or object.
    fn ends_top(&self, token: Token) -> bool {
        match self.stack.last() {
            Some(Frame::Array(_)) => token == Token::EndArray,
            Some(Frame::Object { .. }) => token == Token::EndObject,
            None => false,
        }
    }

    fn begin_value(&mut self, token: Token, text: &[u8]) -> Result<(), Error> {
        match token {
            Token::BeginObject => {
                self.stack.push(Frame::Object {
                    members: Map::new(),
                    key: None,
                });
                self.expect = Expect::First;
                Ok(())
            }
            Token::BeginArray => {
                self.stack.push(Frame::Array(Vec::new()));
                self.expect = Expect::First;
                Ok(())
            }
            Token::String => self.put(Value::String(text::decode(text)?)),
            Token::Integer | Token::Float => self.put(Value::Number(number(token, text)?)),
            Token::Keyword => self.put(keyword(text)?),
            _ => Err(Error::ExpectingValue),
        }
    }

    fn close(&mut self) -> Result<(), Error> {
        match self.stack.pop() {
            Some(Frame::Array(elements)) => self.put(Value::Array(elements)),
            Some(Frame::Object { members, .. }) => self.put(Value::Object(members)),
            None => Err(Error::ExpectingValue),
        }
    }

    /// Puts a whole value where it belongs.
    fn put(&mut self, value: Value) -> Result<(), Error> {
        self.expect = Expect::Next;
        match self.stack.last_mut() {
            None => self.whole = Some(value),
            Some(Frame::Array(elements)) => elements.push(value),
            Some(Frame::Object { members, key }) => match (key.take(), value) {
                (None, Value::String(name)) => {
                    *key = Some(name);
                    self.expect = Expect::Colon;
                }
                (None, _) => return Err(Error::KeyIsNotString),
                (Some(name), value) => {
                    if members.insert(name, value).is_some() {
                        return Err(Error::DuplicateKey);
                    }
                }
            },
        }
        Ok(())
    }
}

fn keyword(text: &[u8]) -> Result<Value, Error> {
    match text {
        b"true" => Ok(Value::Bool(true)),
        b"false" => Ok(Value::Bool(false)),
        b"null" => Ok(Value::Null),
        _ => Err(Error::InvalidKeyword(text::quoted(text))),
    }
}

/// A signed integer if it fits, else an unsigned one, else a double.
fn number(token: Token, text: &[u8]) -> Result<Number, Error> {
    let out_of_range = || Error::NumberOutOfRange(text::quoted(text));
    let digits = std::str::from_utf8(text).map_err(|_| out_of_range())?;
    if token == Token::Integer {
        if let Ok(signed) = digits.parse::<i64>() {
            return Ok(signed.into());
        }
        if let Ok(unsigned) = digits.parse::<u64>() {
            return Ok(unsigned.into());
        }
    }
    let double = digits.parse::<f64>().map_err(|_| out_of_range())?;
    Number::from_f64(double).ok_or_else(out_of_range)
}

#[cfg(test)]
#[path = "parser_tests.rs"]
mod tests;
