//! The server's side of one client's conversation: negotiation, the envelope, replies, events.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::encode::{MessageWriter, Style};
use crate::json::StreamParser;
use crate::{Error, ErrorClass};

/// Something that a client said.
#[derive(Debug, Clone, PartialEq)]
pub enum Incoming {
    /// A command to be looked up and run. Only ever given when negotiation is complete.
    Command {
        /// To be sent back with the result.
        id: Option<Value>,
        /// The command's name, not known to exist.
        name: String,
        /// The arguments, if the member was there.
        arguments: Option<Map<String, Value>>,
        /// To be run out of band. The command may not allow it:
        /// [`Answer::no_oob_support`] is the reply then.
        oob: bool,
    },
    /// A reply that needs no command to be run; it is due after the replies of what came before.
    Answer(Answer),
}

/// A reply that is already decided.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The client's `id`, where there was one and it could be read.
    pub id: Option<Value>,
    /// What to say.
    pub outcome: Outcome,
}

/// The outcome of what needs no command to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// An empty `return`: capabilities are negotiated.
    Done,
    /// An error.
    Error {
        /// Its class.
        class: ErrorClass,
        /// Its words.
        desc: String,
    },
}

impl Answer {
    fn generic(id: Option<Value>, desc: String) -> Self {
        Self {
            id,
            outcome: Outcome::Error {
                class: ErrorClass::GenericError,
                desc,
            },
        }
    }

    fn not_found(id: Option<Value>, desc: &str) -> Self {
        let desc = desc.to_owned();
        Self {
            id,
            outcome: Outcome::Error {
                class: ErrorClass::CommandNotFound,
                desc,
            },
        }
    }

    /// QEMU's reply to a command that does not exist.
    pub fn unknown_command(id: Option<Value>, name: &str) -> Self {
        Self::not_found(id, &format!("The command {name} has not been found"))
    }

    /// QEMU's reply to `exec-oob` of a command that must not run out of band.
    pub fn no_oob_support(id: Option<Value>, name: &str) -> Self {
        Self::generic(id, format!("The command {name} does not support OOB"))
    }
}

/// When an event happened, since the Unix epoch. Both are -1 if the time could not be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Timestamp {
    /// Whole seconds.
    pub seconds: i64,
    /// Microseconds after them, below a million.
    pub microseconds: i64,
}

/// The server's side of one client's conversation.
#[derive(Debug)]
pub struct Session {
    parser: StreamParser,
    style: Style,
    offers_oob: bool,
    negotiated: bool,
    oob: bool,
}

/// The one capability there is.
const OOB: &str = "oob";
/// The one command that a session runs itself.
const NEGOTIATE: &str = "qmp_capabilities";

impl Session {
    /// A conversation with a client that has just connected. `offers_oob`: whether the monitor can
    /// run commands out of band.
    pub fn new(style: Style, offers_oob: bool) -> Self {
        let parser = StreamParser::new();
        Self {
            parser,
            style,
            offers_oob,
            negotiated: false,
            oob: false,
        }
    }

    /// Whether the client has negotiated: commands run and events are sent only then.
    pub fn is_negotiated(&self) -> bool {
        self.negotiated
    }

    /// Whether the client has enabled out-of-band execution.
    pub fn is_oob_enabled(&self) -> bool {
        self.oob
    }

    /// How the output looks.
    pub fn style(&self) -> Style {
        self.style
    }

    /// Takes a block of the client's bytes. Ask [`Self::next_request`] until it answers `None`
    /// before feeding more: what has not been asked for is kept.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.parser.feed(bytes);
    }

    /// How many fed bytes have not been looked at yet.
    pub fn unread_bytes(&self) -> usize {
        self.parser.unread_bytes()
    }

    /// Whether everything fed has been read and no message is half there.
    pub fn is_between_messages(&self) -> bool {
        self.parser.is_between_messages()
    }

    /// The next thing that the client said, `None` when more bytes are needed.
    pub fn next_request(&mut self) -> Option<Incoming> {
        Some(match self.parser.next_value()? {
            Ok(message) => self.read_message(message),
            Err(error) => Incoming::Answer(Answer::generic(None, error.to_string())),
        })
    }

    fn read_message(&mut self, message: Value) -> Incoming {
        let Value::Object(mut members) = message else {
            let desc = "QMP input must be a JSON object".to_owned();
            return Incoming::Answer(Answer::generic(None, desc));
        };
        let id = members.shift_remove("id");
        let request = match Request::from_members(members, self.oob) {
            Ok(request) => request,
            Err(desc) => return Incoming::Answer(Answer::generic(id, desc)),
        };
        if request.name == NEGOTIATE {
            return Incoming::Answer(self.negotiate(id, &request));
        }
        if !self.negotiated {
            let desc = "Expecting capabilities negotiation with 'qmp_capabilities'";
            return Incoming::Answer(Answer::not_found(id, desc));
        }
        let Request {
            name,
            arguments,
            oob,
        } = request;
        Incoming::Command {
            id,
            name,
            arguments,
            oob,
        }
    }

    /// Runs `qmp_capabilities`.
    fn negotiate(&mut self, id: Option<Value>, request: &Request) -> Answer {
        if request.oob {
            return Answer::no_oob_support(id, NEGOTIATE);
        }
        let wants_oob = match wants_oob(request.arguments.as_ref()) {
            Ok(wants_oob) => wants_oob,
            Err(desc) => return Answer::generic(id, desc),
        };
        if self.negotiated {
            let desc = "Capabilities negotiation is already complete, command ignored";
            return Answer::not_found(id, desc);
        }
        if wants_oob && !self.offers_oob {
            return Answer::generic(id, "Capability 'oob' is not available".to_owned());
        }
        self.negotiated = true;
        self.oob = wants_oob;
        Answer {
            id,
            outcome: Outcome::Done,
        }
    }

    /// Appends the greeting, the first thing that a client gets. `version` is what `query-version`
    /// returns.
    ///
    /// # Errors
    /// [`Error::Encode`] if `version` cannot be JSON; nothing is appended then. All `encode_*`
    /// functions do so.
    pub fn encode_greeting<V: Serialize + ?Sized>(
        &self,
        version: &V,
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        #[derive(Serialize)]
        struct Greeting<'a, V: ?Sized> {
            version: &'a V,
            capabilities: &'a [&'a str],
        }
        let capabilities: &[&str] = if self.offers_oob { &[OOB] } else { &[] };
        let greeting = Greeting {
            version,
            capabilities,
        };
        MessageWriter::new(out, self.style)
            .member("QMP", &greeting)
            .finish()
    }

    /// Appends a command's result.
    ///
    /// # Errors
    /// [`Error::Encode`], see [`Self::encode_greeting`].
    pub fn encode_return<T: Serialize + ?Sized>(
        &self,
        id: Option<&Value>,
        result: &T,
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        MessageWriter::new(out, self.style)
            .member("return", result)
            .optional("id", id)
            .finish()
    }

    /// Appends a command's result that is ASCII JSON text already. Only its spacing may differ
    /// from what [`Self::encode_return`] would write.
    ///
    /// # Errors
    /// [`Error::Encode`] if it is not JSON; only looked at when the style is pretty.
    pub fn encode_return_json(
        &self,
        id: Option<&Value>,
        json: &str,
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        match self.style {
            Style::Compact => MessageWriter::new(out, self.style)
                .text("return", json.as_bytes())
                .optional("id", id)
                .finish(),
            Style::Pretty => {
                let value: Value =
                    serde_json::from_str(json).map_err(|error| Error::Encode(error.to_string()))?;
                self.encode_return(id, &value, out)
            }
        }
    }

    /// Appends an error reply.
    ///
    /// # Errors
    /// [`Error::Encode`], see [`Self::encode_greeting`].
    pub fn encode_error(
        &self,
        id: Option<&Value>,
        class: ErrorClass,
        desc: &str,
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        #[derive(Serialize)]
        struct Body<'a> {
            class: &'a str,
            desc: &'a str,
        }
        let body = Body {
            class: class.as_str(),
            desc,
        };
        MessageWriter::new(out, self.style)
            .optional("id", id)
            .member("error", &body)
            .finish()
    }

    /// Appends a reply that [`Self::next_request`] decided.
    ///
    /// # Errors
    /// [`Error::Encode`], see [`Self::encode_greeting`].
    pub fn encode_answer(&self, answer: &Answer, out: &mut Vec<u8>) -> Result<(), Error> {
        let id = answer.id.as_ref();
        match &answer.outcome {
            Outcome::Done => self.encode_return(id, &Map::new(), out),
            Outcome::Error { class, desc } => self.encode_error(id, *class, desc, out),
        }
    }

    /// Appends an event; not to be sent before [`Self::is_negotiated`].
    ///
    /// # Errors
    /// [`Error::Encode`], see [`Self::encode_greeting`].
    pub fn encode_event<T: Serialize + ?Sized>(
        &self,
        name: &str,
        data: Option<&T>,
        timestamp: Timestamp,
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        MessageWriter::new(out, self.style)
            .member("timestamp", &timestamp)
            .member("event", name)
            .optional("data", data)
            .finish()
    }
}

/// The envelope of a command, without its `id`.
struct Request {
    name: String,
    arguments: Option<Map<String, Value>>,
    oob: bool,
}

impl Request {
    fn from_members(members: Map<String, Value>, oob_enabled: bool) -> Result<Self, String> {
        let known = |name: &str| match name {
            "execute" | "arguments" => true,
            "exec-oob" => oob_enabled,
            _ => false,
        };
        if let Some(name) = members.keys().find(|name| !known(name)) {
            return Err(format!("QMP input member '{name}' is unexpected"));
        }
        let (mut execute, mut exec_oob, mut arguments) = (None, None, None);
        for (member, value) in members {
            match (member.as_str(), value) {
                ("execute", Value::String(name)) => execute = Some(name),
                ("exec-oob", Value::String(name)) => exec_oob = Some(name),
                ("arguments", Value::Object(object)) => arguments = Some(object),
                ("arguments", _) => {
                    return Err("QMP input member 'arguments' must be an object".to_owned());
                }
                (member, _) => return Err(format!("QMP input member '{member}' must be a string")),
            }
        }
        match (execute, exec_oob) {
            (Some(_), Some(_)) => {
                Err("QMP input member 'execute' clashes with 'exec-oob'".to_owned())
            }
            (Some(name), None) => Ok(Self {
                name,
                arguments,
                oob: false,
            }),
            (None, Some(name)) => Ok(Self {
                name,
                arguments,
                oob: true,
            }),
            (None, None) => Err("QMP input lacks member 'execute'".to_owned()),
        }
    }
}

/// Whether the arguments of `qmp_capabilities` enable `oob`; or what is wrong with them.
fn wants_oob(arguments: Option<&Map<String, Value>>) -> Result<bool, String> {
    let mut wanted = false;
    let Some(arguments) = arguments else {
        return Ok(false);
    };
    if let Some(enable) = arguments.get("enable") {
        let Value::Array(names) = enable else {
            return Err("Invalid parameter type for 'enable', expected: array".to_owned());
        };
        for (index, name) in names.iter().enumerate() {
            match name {
                Value::String(name) if name == OOB => wanted = true,
                // The 'null' is QEMU's: it has no name for the element of a list.
                Value::String(name) => {
                    return Err(format!("Parameter 'null' does not accept value '{name}'"));
                }
                _ => {
                    let place = format!("enable[{index}]");
                    return Err(format!(
                        "Invalid parameter type for '{place}', expected: string"
                    ));
                }
            }
        }
    }
    match arguments.keys().find(|name| *name != "enable") {
        Some(name) => Err(format!("Parameter '{name}' is unexpected")),
        None => Ok(wanted),
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
