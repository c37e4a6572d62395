//! Bytes to tokens. Strings are ASCII in single quotes, comments run from `#` to the end of line,
//! and a comment block that begins with a line `##` is a documentation comment.

use crate::source::{FileId, Position, Problem};

/// The smallest piece of a schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Token {
    /// One of `{ } [ ] : ,`.
    Punctuation(char),
    String(String),
    Bool(bool),
    Documentation(CommentBlock),
    End,
}

/// A documentation comment as it stands, its leading `# ` removed from every line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CommentBlock {
    pub position: Position,
    /// The lines between the two `##`, the first being on the line after `position`.
    pub lines: Vec<String>,
    /// Whether a `##` line closes the block. The oldest dialect does without.
    pub closed: bool,
}

/// Reads the tokens of one file from its beginning to its end.
pub(crate) struct Lexer<'a> {
    rest: &'a str,
    file: FileId,
    line: u32,
    column: u32,
}

impl<'a> Lexer<'a> {
    pub fn new(file: FileId, text: &'a str) -> Self {
        Self {
            rest: text,
            file,
            line: 1,
            column: 1,
        }
    }

    pub fn position(&self) -> Position {
        Position {
            file: self.file,
            line: self.line,
            column: self.column,
        }
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn bump(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let c = chars.next()?;
        self.rest = chars.as_str();
        if c == '\n' {
            self.line = self.line.saturating_add(1);
            self.column = 1;
        } else {
            self.column = self.column.saturating_add(1);
        }
        Some(c)
    }

    /// The rest of the line without its end; the line end is consumed.
    fn take_line(&mut self) -> &'a str {
        let (line, rest) = self.rest.split_once('\n').unwrap_or((self.rest, ""));
        let ended = line.len() < self.rest.len();
        self.rest = rest;
        if ended {
            self.line = self.line.saturating_add(1);
            self.column = 1;
        } else {
            let count = u32::try_from(line.chars().count()).unwrap_or(u32::MAX);
            self.column = self.column.saturating_add(count);
        }
        line.strip_suffix('\r').unwrap_or(line)
    }

    /// The next token and where it begins.
    pub fn next_token(&mut self) -> Result<(Token, Position), Problem> {
        loop {
            let position = self.position();
            let Some(c) = self.peek() else {
                return Ok((Token::End, position));
            };
            let token = match c {
                ' ' | '\t' | '\r' | '\n' => {
                    self.bump();
                    continue;
                }
                '#' => match self.comment(position)? {
                    Some(block) => Token::Documentation(block),
                    None => continue,
                },
                '{' | '}' | '[' | ']' | ':' | ',' => {
                    self.bump();
                    Token::Punctuation(c)
                }
                '\'' => Token::String(self.string(position)?),
                '"' => {
                    return Err(Problem::new(position, "string in double quotes")
                        .hint("QAPI strings are in 'single quotes'"));
                }
                _ => self.word(position)?,
            };
            return Ok((token, position));
        }
    }

    /// Skips a plain comment, or reads a documentation comment.
    fn comment(&mut self, position: Position) -> Result<Option<CommentBlock>, Problem> {
        let line = self.take_line();
        if !line.starts_with("##") {
            return Ok(None);
        }
        if line.trim_end().len() > 2 {
            // `###...` is a separator in old files, `## text` a mistake.
            if line.trim_end().chars().all(|c| c == '#') {
                return Ok(None);
            }
            return Err(Problem::new(position, "junk after '##'")
                .hint("a documentation comment begins and ends with a line of '##' alone"));
        }
        let mut block = CommentBlock {
            position,
            lines: Vec::new(),
            closed: false,
        };
        loop {
            let indent = self.rest.len() - self.rest.trim_start_matches([' ', '\t']).len();
            let Some(after_indent) = self.rest.get(indent..) else {
                return Ok(Some(block));
            };
            if !after_indent.starts_with('#') {
                return Ok(Some(block));
            }
            let at = self.position();
            let line = self.take_line().trim_start().trim_end();
            if line == "##" {
                block.closed = true;
                return Ok(Some(block));
            }
            let text = line.strip_prefix('#').unwrap_or(line);
            match text.strip_prefix(' ') {
                Some(text) => block.lines.push(text.to_owned()),
                None if text.is_empty() => block.lines.push(String::new()),
                None => {
                    return Err(Problem::new(at, "expected a space after '#'"));
                }
            }
        }
    }

    fn string(&mut self, position: Position) -> Result<String, Problem> {
        self.bump();
        let mut text = String::new();
        loop {
            let at = self.position();
            match self.bump() {
                Some('\'') => return Ok(text),
                Some('\\') => match self.bump() {
                    Some('\\') => text.push('\\'),
                    Some(c) if c.is_ascii_graphic() => {
                        return Err(Problem::new(at, format!("unknown escape '\\{c}'"))
                            .hint("the only escape is '\\\\'"));
                    }
                    _ => return Err(Problem::new(at, "unknown escape")),
                },
                Some('\n') | None => {
                    return Err(Problem::new(position, "missing terminating \"'\""));
                }
                Some(c) if c == ' ' || c.is_ascii_graphic() => text.push(c),
                Some(c) => {
                    return Err(Problem::new(
                        at,
                        format!("character U+{:04X} in a string", u32::from(c)),
                    )
                    .hint("strings are printable ASCII"));
                }
            }
        }
    }

    fn word(&mut self, position: Position) -> Result<Token, Problem> {
        let mut word = String::new();
        while let Some(c) = self.peek() {
            if !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')) {
                break;
            }
            word.push(c);
            self.bump();
        }
        match word.as_str() {
            "true" => Ok(Token::Bool(true)),
            "false" => Ok(Token::Bool(false)),
            "" => {
                let c = self.peek().unwrap_or(' ');
                let shown: String = c.escape_default().collect();
                Err(Problem::new(position, format!("stray \"{shown}\"")))
            }
            word if word.starts_with(|c: char| c.is_ascii_digit() || c == '-') => {
                Err(Problem::new(position, format!("stray \"{word}\"")).hint("QAPI has no numbers"))
            }
            word => Err(Problem::new(position, format!("stray \"{word}\""))
                .hint("expected a string, 'true' or 'false'")),
        }
    }
}
