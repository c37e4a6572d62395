//! Documentation comments: their parts, not yet held against a definition.

use crate::lexer::CommentBlock;
use crate::source::{MEMBERS_MAX, Position, Problem};

/// A documentation comment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Documentation {
    /// Where the comment begins.
    pub position: Position,
    /// The definition that it documents; none in a free-form comment.
    pub symbol: Option<String>,
    /// A free-form comment's heading: its level (1 for `=`) and its text.
    pub heading: Option<(usize, String)>,
    /// The text before, between and after the other parts.
    pub overview: String,
    /// Members, arguments, enum values or branches.
    pub members: Vec<DocumentedName>,
    /// Features.
    pub features: Vec<DocumentedName>,
    /// Tagged sections in their order.
    pub sections: Vec<Section>,
    /// Whether the closing `##` was there.
    pub closed: bool,
    /// The first line that breaks the modern rules on indentation.
    pub unindented: Option<Position>,
}

/// The description of one member or feature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentedName {
    /// The name after the `@`.
    pub name: String,
    /// The description; lines end in `\n`.
    pub text: String,
    /// Where the description begins.
    pub position: Position,
}

/// A tagged section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// Its kind.
    pub tag: SectionTag,
    /// Its text.
    pub text: String,
    /// Where it begins.
    pub position: Position,
}

/// The kinds of tagged sections. Those after `Todo` exist in the older dialects only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SectionTag {
    /// `Since:`, the first release with the definition.
    Since,
    /// `Returns:`, of commands.
    Returns,
    /// `Errors:`, of commands.
    Errors,
    /// `TODO:`, for developers; not rendered.
    Todo,
    /// `Note:` or `Notes:`.
    Notes,
    /// `Example:` or `Examples:`.
    Examples,
}

impl SectionTag {
    const TABLE: [(&'static str, Self); 8] = [
        ("Since:", Self::Since),
        ("Returns:", Self::Returns),
        ("Errors:", Self::Errors),
        ("TODO:", Self::Todo),
        ("Note:", Self::Notes),
        ("Notes:", Self::Notes),
        ("Example:", Self::Examples),
        ("Examples:", Self::Examples),
    ];

    /// The heading of the section in the reference documentation.
    pub fn title(self) -> &'static str {
        match self {
            Self::Since => "Since",
            Self::Returns => "Returns",
            Self::Errors => "Errors",
            Self::Todo => "TODO",
            Self::Notes => "Notes",
            Self::Examples => "Examples",
        }
    }
}

/// Where the next line of text goes.
#[derive(Clone, Copy)]
enum Target {
    Overview,
    Member,
    Feature,
    Section,
}

impl Documentation {
    pub(crate) fn parse(block: &CommentBlock) -> Result<Self, Problem> {
        let mut reader = Reader {
            out: Self {
                position: block.position,
                symbol: None,
                heading: None,
                overview: String::new(),
                members: Vec::new(),
                features: Vec::new(),
                sections: Vec::new(),
                closed: block.closed,
                unindented: None,
            },
            target: Target::Overview,
            in_features: false,
            after_blank: true,
        };
        let mut position = block.position;
        position.column = 3;
        let mut begun = false;
        for line in &block.lines {
            position.line = position.line.saturating_add(1);
            if !begun && line.is_empty() {
                continue;
            }
            if begun {
                reader.line(line, position)?;
            } else {
                reader.first_line(line, position)?;
            }
            begun = true;
        }
        Ok(reader.finish())
    }

    /// The text of the first section of this kind.
    pub fn section(&self, tag: SectionTag) -> Option<&str> {
        self.sections
            .iter()
            .find(|section| section.tag == tag)
            .map(|section| section.text.as_str())
    }

    /// The description of the member `name`.
    pub fn member(&self, name: &str) -> Option<&str> {
        self.members
            .iter()
            .find(|member| member.name == name)
            .map(|member| member.text.as_str())
    }
}

struct Reader {
    out: Documentation,
    target: Target,
    in_features: bool,
    after_blank: bool,
}

impl Reader {
    fn first_line(&mut self, line: &str, position: Position) -> Result<(), Problem> {
        if let Some(name) = line.strip_prefix('@') {
            let (symbol, rest) = match name.split_once(':') {
                Some((symbol, rest)) => (symbol, rest.trim()),
                None => (name.trim_end(), ""),
            };
            if symbol.is_empty() || symbol.contains(char::is_whitespace) {
                return Err(Problem::new(
                    position,
                    "expected '@NAME:' on the first line",
                ));
            }
            self.out.symbol = Some(symbol.to_owned());
            if !rest.is_empty() {
                self.push(rest);
            }
            return Ok(());
        }
        let level = line.len() - line.trim_start_matches('=').len();
        if level > 0 && line.get(level..).is_some_and(|rest| rest.starts_with(' ')) {
            let text = line.get(level..).unwrap_or_default().trim();
            self.out.heading = Some((level, text.to_owned()));
            return Ok(());
        }
        self.line(line, position)
    }

    fn line(&mut self, line: &str, position: Position) -> Result<(), Problem> {
        if line.is_empty() {
            self.push("");
            self.after_blank = true;
            return Ok(());
        }
        let after_blank = std::mem::replace(&mut self.after_blank, false);
        if self.out.symbol.is_some() {
            if let Some((name, rest)) = member_start(line) {
                return self.begin_member(name, rest, position);
            }
            if after_blank && line.trim_end() == "Features:" {
                self.in_features = true;
                self.target = Target::Overview;
                return Ok(());
            }
            if after_blank && let Some((tag, rest)) = section_start(line) {
                self.in_features = false;
                self.target = Target::Section;
                self.out.sections.push(Section {
                    tag,
                    text: String::new(),
                    position,
                });
                if !rest.is_empty() {
                    self.push(rest);
                }
                return Ok(());
            }
        }
        let indented = line.starts_with(' ');
        if !indented && !matches!(self.target, Target::Overview) {
            if after_blank {
                self.target = Target::Overview;
            } else if self.out.unindented.is_none() {
                self.out.unindented = Some(position);
            }
        }
        if matches!(self.target, Target::Overview) {
            self.push(line);
        } else {
            // Continuation lines are indented by four; what is beyond belongs to the text.
            let spaces = line.len() - line.trim_start_matches(' ').len();
            self.push(line.get(spaces.min(4)..).unwrap_or_default());
        }
        Ok(())
    }

    fn begin_member(&mut self, name: &str, rest: &str, position: Position) -> Result<(), Problem> {
        let list = if self.in_features {
            &mut self.out.features
        } else {
            &mut self.out.members
        };
        if list.iter().any(|known| known.name == name) {
            return Err(Problem::new(
                position,
                format!("'{name}' is described twice"),
            ));
        }
        if list.len() >= MEMBERS_MAX {
            let message = format!("more than {MEMBERS_MAX} descriptions");
            return Err(Problem::new(position, message));
        }
        list.push(DocumentedName {
            name: name.to_owned(),
            text: String::new(),
            position,
        });
        self.target = if self.in_features {
            Target::Feature
        } else {
            Target::Member
        };
        let rest = rest.strip_prefix("#optional").unwrap_or(rest).trim();
        if !rest.is_empty() {
            self.push(rest);
        }
        Ok(())
    }

    fn push(&mut self, line: &str) {
        let text = match self.target {
            Target::Overview => Some(&mut self.out.overview),
            Target::Member => self.out.members.last_mut().map(|member| &mut member.text),
            Target::Feature => self
                .out
                .features
                .last_mut()
                .map(|feature| &mut feature.text),
            Target::Section => self
                .out
                .sections
                .last_mut()
                .map(|section| &mut section.text),
        };
        if let Some(text) = text {
            text.push_str(line);
            text.push('\n');
        }
    }

    fn finish(mut self) -> Documentation {
        let trim = |text: &mut String| *text = text.trim_matches('\n').to_owned();
        trim(&mut self.out.overview);
        self.out
            .members
            .iter_mut()
            .for_each(|member| trim(&mut member.text));
        self.out
            .features
            .iter_mut()
            .for_each(|feature| trim(&mut feature.text));
        self.out
            .sections
            .iter_mut()
            .for_each(|section| trim(&mut section.text));
        self.out
    }
}

/// `@name: text` at the beginning of a line.
fn member_start(line: &str) -> Option<(&str, &str)> {
    let (name, rest) = line.strip_prefix('@')?.split_once(':')?;
    let fits = !name.is_empty()
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        && (rest.is_empty() || rest.starts_with(' '));
    fits.then(|| (name, rest.trim()))
}

fn section_start(line: &str) -> Option<(SectionTag, &str)> {
    SectionTag::TABLE.iter().find_map(|(word, tag)| {
        let rest = line.strip_prefix(word)?;
        (rest.is_empty() || rest.starts_with(' ')).then(|| (*tag, rest.trim()))
    })
}
