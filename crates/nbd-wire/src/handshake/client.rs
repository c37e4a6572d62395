//! The client's side of the handshake.

use super::{
    BlockSize, ExportInfo, InfoRequest, Input, ListedExport, MAX_REPLIES, MetaContext, MetaQuery,
    Negotiated, REPLY_HEADER_BYTES, Ready, push_option,
};
use crate::bytes::Reader;
use crate::protocol::{
    ClientFlags, EXPORT_NAME_ZEROES_BYTES, HandshakeFlags, InfoKind, MAGIC_NBD, MAGIC_OPTION,
    MAGIC_OPTION_REPLY, OptionKind, OptionReply, TransmissionFlags,
};
use crate::{MAX_STRING_BYTES, WireError};

/// What a client wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientWishes {
    /// What the connection is for.
    pub goal: Goal,
    /// TLS before anything else. The server's refusal is an error then.
    pub tls: bool,
    /// Structured replies, if the server can.
    pub structured: bool,
    /// Extended headers, if the server can.
    pub extended: bool,
    /// Metadata contexts, as far as the server has them (needs one of the two).
    pub meta_contexts: Vec<String>,
}

/// What a connection is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Goal {
    /// Using the export of this name.
    Transmission(String),
    /// Seeing what exports there are.
    List,
}

/// Where the handshake stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientStatus {
    /// It goes on when more has been fed.
    NeedMore,
    /// Do the TLS handshake, call [`ClientHandshake::tls_started`], and feed what comes through TLS.
    StartTls,
    /// The transmission phase, which begins with [`ClientHandshake::take_input`].
    Ready(Box<Ready>),
    /// The list that was wanted; after the output has been sent the connection is to be closed.
    Listed(Vec<ListedExport>),
    /// After the output has been sent: close the connection.
    Failed(WireError),
}

#[derive(Debug)]
enum Phase {
    Greeting,
    /// Waiting for the answer to an option.
    Option(OptionKind),
    /// Waiting for what `EXPORT_NAME` is answered with.
    ExportName,
    Over(ClientStatus),
}

/// The longest reply that there can be: a name, a description, and their length.
const MAX_REPLY_BYTES: usize = 2 * MAX_STRING_BYTES + 64;

/// The client's side of one connection's handshake.
#[derive(Debug)]
pub struct ClientHandshake {
    wishes: ClientWishes,
    phase: Phase,
    input: Input,
    output: Vec<u8>,
    replies: usize,
    in_tls: bool,
    negotiated: Negotiated,
    export: Option<ExportInfo>,
    block_size: BlockSize,
    description: Option<String>,
    canonical_name: Option<String>,
    listed: Vec<ListedExport>,
}

impl ClientHandshake {
    /// A handshake with a server that has just been reached.
    pub fn new(wishes: ClientWishes) -> Self {
        Self {
            wishes,
            phase: Phase::Greeting,
            input: Input::default(),
            output: Vec::new(),
            replies: 0,
            in_tls: false,
            negotiated: Negotiated::default(),
            export: None,
            block_size: BlockSize::default(),
            description: None,
            canonical_name: None,
            listed: Vec::new(),
        }
    }

    /// What is to be sent now.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// What was fed and belongs to the transmission phase.
    pub fn take_input(&mut self) -> Vec<u8> {
        self.input.take_rest()
    }

    /// The TLS handshake after [`ClientStatus::StartTls`] went well.
    pub fn tls_started(&mut self) {
        if matches!(self.phase, Phase::Over(ClientStatus::StartTls)) {
            self.in_tls = true;
            self.after(OptionKind::StartTls);
        }
    }

    /// Takes the server's bytes and goes on as far as they reach.
    pub fn feed(&mut self, bytes: &[u8]) -> ClientStatus {
        self.input.feed(bytes);
        if matches!(self.phase, Phase::Over(ClientStatus::StartTls)) && self.input.len() > 0 {
            let plain = WireError::Unexpected("plain text after STARTTLS".to_owned());
            self.phase = Phase::Over(ClientStatus::Failed(plain));
        }
        loop {
            let step = match &self.phase {
                Phase::Greeting => self.greeting(),
                Phase::Option(option) => self.reply(*option),
                Phase::ExportName => self.export_name_answer(),
                Phase::Over(status) => return status.clone(),
            };
            match step {
                Ok(true) => {}
                Ok(false) => return ClientStatus::NeedMore,
                Err(error) => self.phase = Phase::Over(ClientStatus::Failed(error)),
            }
        }
    }

    /// Whether there was enough input; so do the other steps.
    fn greeting(&mut self) -> Result<bool, WireError> {
        const GREETING_BYTES: usize = 18;
        let Some(bytes) = self.input.take(GREETING_BYTES) else {
            return Ok(false);
        };
        let mut reader = Reader::new("greeting", &bytes);
        reader.magic64(MAGIC_NBD)?;
        reader.magic64(MAGIC_OPTION)?;
        let flags = HandshakeFlags::from_bits_retain(reader.u16()?);
        if !flags.contains(HandshakeFlags::FIXED_NEWSTYLE) {
            return Err(WireError::Lacking("fixed newstyle negotiation"));
        }
        let mut answer = ClientFlags::FIXED_NEWSTYLE;
        if flags.contains(HandshakeFlags::NO_ZEROES) {
            answer |= ClientFlags::NO_ZEROES;
            self.negotiated.no_zeroes = true;
        }
        self.output.extend_from_slice(&answer.bits().to_be_bytes());
        if self.wishes.tls {
            self.ask(OptionKind::StartTls, &[]);
        } else {
            self.after(OptionKind::StartTls);
        }
        Ok(true)
    }

    fn ask(&mut self, option: OptionKind, data: &[u8]) {
        push_option(&mut self.output, option, data);
        self.phase = Phase::Option(option);
    }

    /// Asks for what comes after an option that is through, whether or not it was granted.
    fn after(&mut self, option: OptionKind) {
        let name = match (&self.wishes.goal, option) {
            (Goal::List, _) => return self.ask(OptionKind::List, &[]),
            (Goal::Transmission(name), _) => name.clone(),
        };
        if option == OptionKind::StartTls && self.wishes.extended {
            return self.ask(OptionKind::ExtendedHeaders, &[]);
        }
        let before_structured =
            matches!(option, OptionKind::StartTls | OptionKind::ExtendedHeaders);
        if before_structured && !self.negotiated.extended && self.wishes.structured {
            return self.ask(OptionKind::StructuredReply, &[]);
        }
        let wants_contexts = self.negotiated.structured && !self.wishes.meta_contexts.is_empty();
        if option != OptionKind::SetMetaContext && wants_contexts {
            let queries = self
                .wishes
                .meta_contexts
                .iter()
                .map(String::as_str)
                .collect();
            let data = MetaQuery {
                name: &name,
                queries,
            }
            .encode();
            return self.ask(OptionKind::SetMetaContext, &data);
        }
        let kinds = vec![InfoKind::Name, InfoKind::Description, InfoKind::BlockSize];
        let data = InfoRequest { name: &name, kinds }.encode();
        self.ask(OptionKind::Go, &data);
    }

    fn reply(&mut self, option: OptionKind) -> Result<bool, WireError> {
        let Some(header) = self.input.rest().get(..REPLY_HEADER_BYTES) else {
            return Ok(false);
        };
        let mut reader = Reader::new("option reply", header);
        reader.magic64(MAGIC_OPTION_REPLY)?;
        let answered = OptionKind::from_number(reader.u32()?);
        let kind = OptionReply::from_number(reader.u32()?);
        let length = reader.u32()?;
        if answered != option {
            let what = format!("reply to option {}", answered.number());
            return Err(WireError::Unexpected(what));
        }
        let limit = MAX_REPLY_BYTES;
        let bytes = usize::try_from(length).ok().filter(|&bytes| bytes <= limit);
        let Some(bytes) = bytes else {
            let (bytes, limit) = (length.into(), u64::try_from(limit).unwrap_or(0));
            return Err(WireError::TooLong {
                place: "option reply",
                bytes,
                limit,
            });
        };
        let whole = self.input.rest().get(..REPLY_HEADER_BYTES + bytes);
        let Some(data) = whole.and_then(|whole| whole.get(REPLY_HEADER_BYTES..)) else {
            return Ok(false);
        };
        let data = data.to_vec();
        self.input.advance(REPLY_HEADER_BYTES + bytes);
        self.replies += 1;
        if self.replies > MAX_REPLIES {
            return Err(WireError::Unexpected("number of option replies".to_owned()));
        }
        if kind.is_error() {
            self.refused(option, kind, &data)?;
        } else {
            self.take_reply(option, kind, &data)?;
        }
        Ok(true)
    }

    fn refused(
        &mut self,
        option: OptionKind,
        kind: OptionReply,
        data: &[u8],
    ) -> Result<(), WireError> {
        match (option, kind) {
            (OptionKind::ExtendedHeaders | OptionKind::StructuredReply, _)
            | (OptionKind::SetMetaContext, OptionReply::Unsupported) => {
                self.negotiated.meta_contexts.clear();
                self.after(option);
                Ok(())
            }
            (OptionKind::Go, OptionReply::Unsupported) => {
                if let Goal::Transmission(name) = &self.wishes.goal {
                    push_option(&mut self.output, OptionKind::ExportName, name.as_bytes());
                }
                self.phase = Phase::ExportName;
                Ok(())
            }
            _ => {
                push_option(&mut self.output, OptionKind::Abort, &[]);
                let words = String::from_utf8_lossy(data);
                let reason = format!("{kind:?}: {words}");
                Err(WireError::Refused {
                    option: option.number(),
                    reason,
                })
            }
        }
    }

    fn take_reply(
        &mut self,
        option: OptionKind,
        kind: OptionReply,
        data: &[u8],
    ) -> Result<(), WireError> {
        match (option, kind) {
            (OptionKind::StartTls, OptionReply::Ack) => {
                let plain = || WireError::Unexpected("plain text after STARTTLS".to_owned());
                if self.input.len() > 0 {
                    return Err(plain());
                }
                self.phase = Phase::Over(ClientStatus::StartTls);
            }
            (OptionKind::ExtendedHeaders | OptionKind::StructuredReply, OptionReply::Ack) => {
                self.negotiated.structured = true;
                self.negotiated.extended |= option == OptionKind::ExtendedHeaders;
                self.after(option);
            }
            (OptionKind::SetMetaContext, OptionReply::MetaContext) => {
                let mut reader = Reader::new("metadata context", data);
                let id = reader.u32()?;
                let name = reader.last_string()?.to_owned();
                if self.negotiated.meta_contexts.len() >= self.wishes.meta_contexts.len() {
                    return Err(WireError::Unexpected(format!("metadata context '{name}'")));
                }
                self.negotiated.meta_contexts.push(MetaContext { id, name });
            }
            (OptionKind::SetMetaContext, OptionReply::Ack) => self.after(option),
            (OptionKind::List, OptionReply::Server) => {
                let mut reader = Reader::new("list entry", data);
                let name = reader.counted_string()?.to_owned();
                let description = reader.last_string()?.to_owned();
                self.listed.push(ListedExport { name, description });
            }
            (OptionKind::List, OptionReply::Ack) => {
                push_option(&mut self.output, OptionKind::Abort, &[]);
                let listed = std::mem::take(&mut self.listed);
                self.phase = Phase::Over(ClientStatus::Listed(listed));
            }
            (OptionKind::Go, OptionReply::Info) => self.info(data)?,
            (OptionKind::Go, OptionReply::Ack) => {
                self.negotiated.block_size_requested = true;
                let export = self
                    .export
                    .take()
                    .ok_or(WireError::Lacking("INFO_EXPORT"))?;
                self.ready(export);
            }
            _ => {
                let (option, kind) = (option.number(), kind.number());
                return Err(WireError::Unexpected(format!(
                    "reply {kind} to option {option}"
                )));
            }
        }
        Ok(())
    }

    fn info(&mut self, data: &[u8]) -> Result<(), WireError> {
        let mut reader = Reader::new("INFO reply", data);
        match InfoKind::from_number(reader.u16()?) {
            InfoKind::Export => {
                let export = read_export(&mut reader)?;
                reader.finish()?;
                self.export = Some(export);
            }
            InfoKind::Name => self.canonical_name = Some(reader.last_string()?.to_owned()),
            InfoKind::Description => self.description = Some(reader.last_string()?.to_owned()),
            InfoKind::BlockSize => {
                self.block_size = BlockSize {
                    minimum: reader.u32()?,
                    preferred: reader.u32()?,
                    maximum_payload: reader.u32()?,
                };
                reader.finish()?;
                let minimum = self.block_size.minimum;
                if !minimum.is_power_of_two() || minimum > LARGEST_MINIMUM_BLOCK {
                    return Err(WireError::Unexpected(format!(
                        "minimum block size {minimum}"
                    )));
                }
            }
            InfoKind::Unknown(_) => {}
        }
        Ok(())
    }

    fn export_name_answer(&mut self) -> Result<bool, WireError> {
        const FIELDS_BYTES: usize = 10;
        let zeroes = if self.negotiated.no_zeroes {
            0
        } else {
            EXPORT_NAME_ZEROES_BYTES
        };
        let Some(bytes) = self.input.take(FIELDS_BYTES + zeroes) else {
            return Ok(false);
        };
        let export = read_export(&mut Reader::new("EXPORT_NAME answer", &bytes))?;
        self.ready(export);
        Ok(true)
    }

    fn ready(&mut self, mut export: ExportInfo) {
        let requested_name = match &self.wishes.goal {
            Goal::Transmission(name) => name.clone(),
            Goal::List => String::new(),
        };
        export.name = self
            .canonical_name
            .take()
            .unwrap_or_else(|| requested_name.clone());
        export.description = self.description.take();
        export.block_size = self.block_size;
        let negotiated = std::mem::take(&mut self.negotiated);
        export.meta_contexts = negotiated
            .meta_contexts
            .iter()
            .map(|context| context.name.clone())
            .collect();
        let ready = Ready {
            requested_name,
            export,
            negotiated,
        };
        self.phase = Phase::Over(ClientStatus::Ready(Box::new(ready)));
    }

    /// Whether TLS is on.
    pub fn is_in_tls(&self) -> bool {
        self.in_tls
    }
}

/// The largest minimum block size that the specification allows.
const LARGEST_MINIMUM_BLOCK: u32 = 64 << 10;

/// Size and flags; the rest is not known yet.
fn read_export(reader: &mut Reader<'_>) -> Result<ExportInfo, WireError> {
    Ok(ExportInfo {
        name: String::new(),
        size_bytes: reader.u64()?,
        flags: TransmissionFlags::from_bits_retain(reader.u16()?),
        description: None,
        block_size: BlockSize::default(),
        meta_contexts: Vec::new(),
    })
}
