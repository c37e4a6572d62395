//! Tokens to top-level expressions, each with the documentation comment before it.

use crate::documentation::Documentation;
use crate::lexer::{CommentBlock, Lexer, Token};
use crate::source::{FileId, NESTING_MAX, Position, Problem};

/// A value with its position.
#[derive(Debug, Clone)]
pub(crate) struct Expr {
    pub value: ExprValue,
    pub position: Position,
}

#[derive(Debug, Clone)]
pub(crate) enum ExprValue {
    Bool(bool),
    String(String),
    List(Vec<Expr>),
    Object(Vec<Entry>),
}

/// One member of an object.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub key: String,
    pub key_position: Position,
    pub value: Expr,
}

impl Expr {
    /// What the value is, for messages.
    pub fn what(&self) -> &'static str {
        match self.value {
            ExprValue::Bool(_) => "a boolean",
            ExprValue::String(_) => "a string",
            ExprValue::List(_) => "an array",
            ExprValue::Object(_) => "an object",
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            ExprValue::String(text) => Some(text),
            _ => None,
        }
    }
}

/// What stands at the top level of a file.
#[derive(Debug, Clone)]
pub(crate) enum Item {
    /// A directive or a definition.
    Expression(TopLevel),
    /// Documentation that belongs to no definition.
    FreeForm(Documentation),
}

#[derive(Debug, Clone)]
pub(crate) struct TopLevel {
    pub entries: Vec<Entry>,
    pub position: Position,
    pub documentation: Option<Documentation>,
}

impl TopLevel {
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }
}

/// Parses one file. A syntax error ends the parsing of the file.
pub(crate) fn parse(file: FileId, text: &str) -> Result<Vec<Item>, Problem> {
    let mut parser = Parser {
        lexer: Lexer::new(file, text),
    };
    let mut items = Vec::new();
    let mut pending: Option<CommentBlock> = None;
    loop {
        let (token, position) = parser.lexer.next_token()?;
        match token {
            Token::Documentation(block) => {
                flush(&mut pending, &mut items)?;
                pending = Some(block);
            }
            Token::End => {
                flush(&mut pending, &mut items)?;
                return Ok(items);
            }
            Token::Punctuation('{') => {
                let mut documentation = None;
                if let Some(block) = pending.take() {
                    let parsed = Documentation::parse(&block)?;
                    if parsed.symbol.is_some() {
                        documentation = Some(parsed);
                    } else {
                        items.push(Item::FreeForm(parsed));
                    }
                }
                let entries = parser.object(1)?;
                items.push(Item::Expression(TopLevel {
                    entries,
                    position,
                    documentation,
                }));
            }
            other => {
                return Err(Problem::new(
                    position,
                    format!("expected '{{', got {}", describe(&other)),
                )
                .hint("the top level consists of objects"));
            }
        }
    }
}

/// A comment that no expression followed stands for itself.
fn flush(pending: &mut Option<CommentBlock>, items: &mut Vec<Item>) -> Result<(), Problem> {
    if let Some(block) = pending.take() {
        items.push(Item::FreeForm(Documentation::parse(&block)?));
    }
    Ok(())
}

struct Parser<'a> {
    lexer: Lexer<'a>,
}

impl Parser<'_> {
    /// The next token inside an expression, where documentation comments are plain comments.
    fn token(&mut self) -> Result<(Token, Position), Problem> {
        loop {
            let (token, position) = self.lexer.next_token()?;
            if !matches!(token, Token::Documentation(_)) {
                return Ok((token, position));
            }
        }
    }

    /// The members of an object whose `{` is consumed.
    fn object(&mut self, depth: usize) -> Result<Vec<Entry>, Problem> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        let (mut token, mut position) = self.token()?;
        if token == Token::Punctuation('}') {
            return Ok(entries);
        }
        loop {
            let Token::String(key) = token else {
                let wanted = if entries.is_empty() {
                    "string or '}'"
                } else {
                    "string"
                };
                return Err(Problem::new(
                    position,
                    format!("expected {wanted}, got {}", describe(&token)),
                ));
            };
            let key_position = position;
            if !seen.insert(key.clone()) {
                return Err(Problem::new(key_position, format!("duplicate key '{key}'")));
            }
            let (colon, colon_position) = self.token()?;
            if colon != Token::Punctuation(':') {
                return Err(Problem::new(
                    colon_position,
                    format!("expected ':', got {}", describe(&colon)),
                ));
            }
            let value = self.value(depth)?;
            entries.push(Entry {
                key,
                key_position,
                value,
            });
            let (next, next_position) = self.token()?;
            match next {
                Token::Punctuation('}') => return Ok(entries),
                Token::Punctuation(',') => (token, position) = self.token()?,
                other => {
                    return Err(Problem::new(
                        next_position,
                        format!("expected ',' or '}}', got {}", describe(&other)),
                    ));
                }
            }
        }
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Expr>, Problem> {
        let mut values = Vec::new();
        let (mut token, mut position) = self.token()?;
        if token == Token::Punctuation(']') {
            return Ok(values);
        }
        loop {
            values.push(self.value_from(token, position, depth)?);
            let (next, next_position) = self.token()?;
            match next {
                Token::Punctuation(']') => return Ok(values),
                Token::Punctuation(',') => (token, position) = self.token()?,
                other => {
                    return Err(Problem::new(
                        next_position,
                        format!("expected ',' or ']', got {}", describe(&other)),
                    ));
                }
            }
        }
    }

    fn value(&mut self, depth: usize) -> Result<Expr, Problem> {
        let (token, position) = self.token()?;
        self.value_from(token, position, depth)
    }

    fn value_from(
        &mut self,
        token: Token,
        position: Position,
        depth: usize,
    ) -> Result<Expr, Problem> {
        if depth > NESTING_MAX {
            return Err(Problem::new(
                position,
                format!("nested deeper than {NESTING_MAX} levels"),
            ));
        }
        let value = match token {
            Token::Bool(value) => ExprValue::Bool(value),
            Token::String(text) => ExprValue::String(text),
            Token::Punctuation('{') => ExprValue::Object(self.object(depth + 1)?),
            Token::Punctuation('[') => ExprValue::List(self.list(depth + 1)?),
            other => {
                return Err(Problem::new(
                    position,
                    format!(
                        "expected '{{', '[', string, or boolean, got {}",
                        describe(&other)
                    ),
                ));
            }
        };
        Ok(Expr { value, position })
    }
}

fn describe(token: &Token) -> String {
    match token {
        Token::Punctuation(c) => format!("'{c}'"),
        Token::String(text) => format!("string '{text}'"),
        Token::Bool(value) => format!("'{value}'"),
        Token::Documentation(_) => "a documentation comment".to_owned(),
        Token::End => "the end of the file".to_owned(),
    }
}
