//! The client's side of a conversation.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::encode::{MessageWriter, Style};
use crate::json::StreamParser;
use crate::{Error, Timestamp};

/// Something that a server said.
#[derive(Debug, Clone, PartialEq)]
pub enum ServerMessage {
    /// The first message of a conversation.
    Greeting {
        /// As `query-version` returns it.
        version: Value,
        /// What may be enabled, such as `oob`; entries that are not strings are left out.
        capabilities: Vec<String>,
    },
    /// A command's result.
    Return {
        /// The command's `id`, if it had one.
        id: Option<Value>,
        /// The result.
        value: Value,
    },
    /// A command's failure.
    Error {
        /// The command's `id`, if it had one and the server could read it.
        id: Option<Value>,
        /// The class's name; [`crate::ErrorClass`] parses the known ones.
        class: String,
        /// What happened, for people.
        desc: String,
    },
    /// Something that happened by itself.
    Event {
        /// The event's name.
        name: String,
        /// What belongs to it.
        data: Option<Value>,
        /// When it happened, by the server's clock.
        timestamp: Timestamp,
    },
}

/// The client's side of a conversation: bytes in, messages out; commands in, bytes out.
#[derive(Debug, Default)]
pub struct ClientSession {
    parser: StreamParser,
}

impl ClientSession {
    /// A conversation that has not begun.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a block of the server's bytes. Ask [`Self::next_message`] until it answers `None`
    /// before feeding more.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.parser.feed(bytes);
    }

    /// The next message, `None` when more bytes are needed.
    ///
    /// # Errors
    /// Any JSON variant of [`Error`], or [`Error::NotAServerMessage`]. Reading can go on after it.
    pub fn next_message(&mut self) -> Option<Result<ServerMessage, Error>> {
        Some(
            self.parser
                .next_value()?
                .and_then(ServerMessage::from_value),
        )
    }

    /// Appends a command, in one line.
    ///
    /// # Errors
    /// [`Error::Encode`] if the arguments cannot be JSON; nothing is appended then.
    pub fn encode_command<T: Serialize + ?Sized>(
        &self,
        name: &str,
        arguments: Option<&T>,
        id: Option<&Value>,
        oob: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let execute = if oob { "exec-oob" } else { "execute" };
        MessageWriter::new(out, Style::Compact)
            .member(execute, name)
            .optional("arguments", arguments)
            .optional("id", id)
            .finish()
    }
}

impl ServerMessage {
    fn from_value(value: Value) -> Result<Self, Error> {
        let Value::Object(mut members) = value else {
            return Err(Error::NotAServerMessage("it is no object".to_owned()));
        };
        let id = members.swap_remove("id");
        if let Some(value) = members.swap_remove("return") {
            return Ok(Self::Return { id, value });
        }
        if let Some(error) = members.swap_remove("error") {
            let mut error = object("error", error)?;
            let class = text("class", error.swap_remove("class"))?;
            let desc = text("desc", error.swap_remove("desc"))?;
            return Ok(Self::Error { id, class, desc });
        }
        if let Some(name) = members.swap_remove("event") {
            let timestamp = members.swap_remove("timestamp").unwrap_or_default();
            let timestamp = serde_json::from_value(timestamp)
                .map_err(|error| Error::NotAServerMessage(format!("'timestamp': {error}")))?;
            let name = text("event", Some(name))?;
            return Ok(Self::Event {
                name,
                data: members.swap_remove("data"),
                timestamp,
            });
        }
        if let Some(greeting) = members.swap_remove("QMP") {
            let mut greeting = object("QMP", greeting)?;
            let version = greeting.swap_remove("version").unwrap_or_default();
            let capabilities = match greeting.swap_remove("capabilities") {
                Some(Value::Array(names)) => names,
                _ => Vec::new(),
            };
            let capabilities = capabilities
                .into_iter()
                .filter_map(|name| {
                    if let Value::String(name) = name {
                        Some(name)
                    } else {
                        None
                    }
                })
                .collect();
            return Ok(Self::Greeting {
                version,
                capabilities,
            });
        }
        let lacks = "it has none of 'return', 'error', 'event' and 'QMP'";
        Err(Error::NotAServerMessage(lacks.to_owned()))
    }
}

fn object(name: &str, value: Value) -> Result<Map<String, Value>, Error> {
    match value {
        Value::Object(members) => Ok(members),
        _ => Err(Error::NotAServerMessage(format!("'{name}' is no object"))),
    }
}

fn text(name: &str, value: Option<Value>) -> Result<String, Error> {
    match value {
        Some(Value::String(text)) => Ok(text),
        _ => Err(Error::NotAServerMessage(format!("'{name}' is no string"))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(bytes: &str) -> Vec<Result<ServerMessage, Error>> {
        let mut client = ClientSession::new();
        client.feed(bytes.as_bytes());
        std::iter::from_fn(|| client.next_message()).collect()
    }

    #[test]
    fn every_kind_of_message_is_told_apart() {
        let messages = read(concat!(
            r#"{"QMP": {"version": {"package": ""}, "capabilities": ["oob", 1]}}"#,
            r#"{"return": {}, "id": 1}{"id": 2, "error": {"class": "X", "desc": "y"}}"#,
            r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "E", "data": {"a": 1}}"#,
        ));
        let expected = [
            ServerMessage::Greeting {
                version: json!({"package": ""}),
                capabilities: vec!["oob".to_owned()],
            },
            ServerMessage::Return {
                id: Some(json!(1)),
                value: json!({}),
            },
            ServerMessage::Error {
                id: Some(json!(2)),
                class: "X".into(),
                desc: "y".into(),
            },
            ServerMessage::Event {
                name: "E".into(),
                data: Some(json!({"a": 1})),
                timestamp: Timestamp {
                    seconds: 1,
                    microseconds: 2,
                },
            },
        ];
        assert_eq!(messages, expected.map(Ok));
    }

    #[test]
    fn what_is_no_message_is_an_error_and_reading_goes_on() {
        let messages = read(r#"[] {} {"error": 1} {"error": {}} {"event": "E"} {"return": 1}"#);
        let (last, wrong) = messages.split_last().unwrap();
        assert_eq!(wrong.len(), 5);
        assert!(
            wrong
                .iter()
                .all(|m| matches!(m, Err(Error::NotAServerMessage(_))))
        );
        assert_eq!(
            last,
            &Ok(ServerMessage::Return {
                id: None,
                value: json!(1)
            })
        );
    }

    #[test]
    fn commands_have_only_the_members_they_need() {
        let client = ClientSession::new();
        let mut out = Vec::new();
        client
            .encode_command("a", None::<&Value>, None, false, &mut out)
            .unwrap();
        client
            .encode_command(
                "b",
                Some(&json!({"c": 1})),
                Some(&json!("d")),
                true,
                &mut out,
            )
            .unwrap();
        let expected = concat!(
            "{\"execute\": \"a\"}\r\n",
            "{\"exec-oob\": \"b\", \"arguments\": {\"c\": 1}, \"id\": \"d\"}\r\n",
        );
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
