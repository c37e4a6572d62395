//! What can be wrong with bytes from a peer, in the words that QEMU's clients read.

use std::fmt;
use std::str::FromStr;

/// Everything that this crate can find wrong.
///
/// The text of the JSON variants is the `desc` that QEMU sends, unless the variant says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Bytes that begin no token, or break one off; the quoted text ends with the offending byte.
    #[error("JSON parse error, stray '{0}'")]
    Stray(String),
    /// A bare word other than `true`, `false` and `null`.
    #[error("JSON parse error, invalid keyword '{0}'")]
    InvalidKeyword(String),
    /// A structural character where a value or an object's key has to stand.
    #[error("JSON parse error, expecting value")]
    ExpectingValue,
    /// Neither `,` nor `]` after an array's element.
    #[error("JSON parse error, expected separator in list")]
    SeparatorInList,
    /// Neither `,` nor `}` after an object's member.
    #[error("JSON parse error, expected separator in dict")]
    SeparatorInDict,
    /// An object's key that is some other value than a string.
    #[error("JSON parse error, key is not a string in object")]
    KeyIsNotString,
    /// No `:` after an object's key.
    #[error("JSON parse error, missing : in object pair")]
    MissingColon,
    /// A key that the same object had before.
    #[error("JSON parse error, duplicate key")]
    DuplicateKey,
    /// A backslash before a character that stands for nothing.
    #[error("JSON parse error, invalid escape sequence in string")]
    InvalidEscape,
    /// A string that is not UTF-8, or has a noncharacter in it.
    #[error("JSON parse error, invalid UTF-8 sequence in string")]
    InvalidUtf8,
    /// A `\u` escape for something that is no character; the text begins with `\u`.
    #[error("JSON parse error, {0} is not a valid Unicode character")]
    InvalidCodePoint(String),
    /// A number beyond what a double can hold. The words are ours: QEMU takes it for infinity.
    #[error("JSON parse error, number '{0}' is out of range")]
    NumberOutOfRange(String),
    /// More than [`crate::json::MAX_NESTING_DEPTH`] arrays and objects within each other.
    #[error("JSON nesting depth limit exceeded")]
    NestingDepth,
    /// More than [`crate::json::MAX_MESSAGE_TOKENS`] tokens in one message.
    #[error("JSON token count limit exceeded")]
    TokenCount,
    /// More than [`crate::json::MAX_MESSAGE_BYTES`] bytes of tokens in one message.
    #[error("JSON token size limit exceeded")]
    TokenSize,
    /// A value to be sent that JSON cannot express, such as a map with keys that are not strings.
    #[error("cannot be written as JSON: {0}")]
    Encode(String),
    /// A server's message that is none of greeting, return, error and event.
    #[error("not a QMP server's message: {0}")]
    NotAServerMessage(String),
}

/// The class of an error reply (qmp-spec, "Error"); everything new is a
/// [`GenericError`](Self::GenericError).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// Any error that needs no handling of its own.
    GenericError,
    /// The command is not known, or not now.
    CommandNotFound,
    /// The device has not been activated.
    DeviceNotActive,
    /// There is no such device.
    DeviceNotFound,
    /// KVM lacks a capability that is needed.
    KvmMissingCap,
}

impl ErrorClass {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::GenericError => "GenericError",
            Self::CommandNotFound => "CommandNotFound",
            Self::DeviceNotActive => "DeviceNotActive",
            Self::DeviceNotFound => "DeviceNotFound",
            Self::KvmMissingCap => "KVMMissingCap",
        }
    }
}

impl fmt::Display for ErrorClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ErrorClass {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        [
            Self::GenericError,
            Self::CommandNotFound,
            Self::DeviceNotActive,
            Self::DeviceNotFound,
            Self::KvmMissingCap,
        ]
        .into_iter()
        .find(|class| class.as_str() == name)
        .ok_or_else(|| Error::NotAServerMessage(format!("unknown error class '{name}'")))
    }
}
