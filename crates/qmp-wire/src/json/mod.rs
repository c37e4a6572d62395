//! QMP's JSON as it arrives: a stream of values without separators, with QEMU's extensions
//! (single-quoted strings, `\'`) and QEMU's ways of reporting and leaving errors.

mod lexer;
mod parser;
mod text;

pub use parser::StreamParser;
pub(crate) use text::is_noncharacter;

/// How many arrays and objects may be open at once; one more is [`crate::Error::NestingDepth`].
pub const MAX_NESTING_DEPTH: usize = 1024;

/// How many tokens one top-level value may have; one more is [`crate::Error::TokenCount`].
pub const MAX_MESSAGE_TOKENS: usize = 2 << 20;

/// How many bytes the tokens of one top-level value may have together, white space not counted;
/// one more is [`crate::Error::TokenSize`].
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// How many bytes of a peer's text an error quotes; what is longer is cut and ends in `...`.
pub const MAX_QUOTED_BYTES: usize = 1024;
