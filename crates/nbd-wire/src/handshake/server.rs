//! The server's side of the handshake.

use super::{
    ExportInfo, InfoRequest, Input, ListedExport, MAX_OPTION_BYTES, MAX_OPTIONS,
    MAX_PENDING_OUTPUT_BYTES, MAX_SKIPPED_OPTION_BYTES, MetaContext, MetaQuery, Negotiated,
    OPTION_HEADER_BYTES, Ready, push_reply, push_string,
};
use crate::WireError;
use crate::bytes::Reader;
use crate::protocol::{
    ClientFlags, EXPORT_NAME_ZEROES_BYTES, HandshakeFlags, InfoKind, MAGIC_NBD, MAGIC_OPTION,
    OptionKind, OptionReply, TransmissionFlags,
};

/// The exports that a client may see, by name.
pub trait Exports {
    /// The export of this name; the empty name is the default export's.
    fn find(&self, name: &str) -> Option<ExportInfo>;

    /// All exports, for LIST.
    fn list(&self) -> Vec<ListedExport>;
}

/// What the server says to STARTTLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    /// No.
    Unavailable,
    /// Yes, but it goes without, too.
    Offered,
    /// Yes, and nothing but that before it.
    Required,
}

/// Where the handshake stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerStatus {
    /// It goes on when more has been fed.
    NeedMore,
    /// After the output has been sent: do the TLS handshake, call
    /// [`ServerHandshake::tls_started`], and feed what comes through TLS.
    StartTls,
    /// After the output has been sent: the transmission phase, which begins with
    /// [`ServerHandshake::take_input`].
    Ready(Box<Ready>),
    /// After the output has been sent: close the connection.
    Closed(CloseReason),
}

/// Why a handshake ended without a transmission phase.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CloseReason {
    /// The client said so.
    #[error("the client ended the session")]
    Aborted,
    /// Flags that the specification does not have.
    #[error("unknown client flags {0:#x}")]
    UnknownClientFlags(u32),
    /// Something other than an option, or an option without the client flag for it.
    #[error("the client breaks the protocol: {0}")]
    Protocol(WireError),
    /// `EXPORT_NAME` with a name that no export has.
    #[error("there is no export '{0}'")]
    UnknownExport(String),
    /// `EXPORT_NAME` without TLS where that is required.
    #[error("the client did not start TLS")]
    TlsRequired,
    /// Bytes behind STARTTLS that did not come through TLS.
    #[error("plain text after STARTTLS")]
    PlainTextAfterStartTls,
    /// An option over [`MAX_SKIPPED_OPTION_BYTES`].
    #[error("an option of {0} bytes")]
    OptionTooLong(u32),
    /// Over [`MAX_OPTIONS`] options.
    #[error("too many options")]
    TooManyOptions,
    /// Over [`MAX_PENDING_OUTPUT_BYTES`] bytes that the client has not waited for.
    #[error("the client sends options without reading the replies")]
    NotReading,
}

#[derive(Debug)]
enum Phase {
    ClientFlags,
    Options,
    /// Data of an option that was refused is passed over.
    Skip(usize),
    /// Nothing goes on by itself any more.
    Over(ServerStatus),
}

/// The server's side of one connection's handshake.
#[derive(Debug)]
pub struct ServerHandshake {
    phase: Phase,
    input: Input,
    output: Vec<u8>,
    tls: Tls,
    in_tls: bool,
    fixed: bool,
    options: usize,
    negotiated: Negotiated,
    /// The export's name for which the metadata contexts were selected.
    contexts_of: Option<String>,
}

impl ServerHandshake {
    /// A handshake with a client that has just connected; there is output to send already.
    pub fn new(tls: Tls) -> Self {
        let mut output = Vec::new();
        output.extend_from_slice(&MAGIC_NBD.to_be_bytes());
        output.extend_from_slice(&MAGIC_OPTION.to_be_bytes());
        let flags = HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES;
        output.extend_from_slice(&flags.bits().to_be_bytes());
        Self {
            phase: Phase::ClientFlags,
            input: Input::default(),
            output,
            tls,
            in_tls: false,
            fixed: false,
            options: 0,
            negotiated: Negotiated::default(),
            contexts_of: None,
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

    /// Whether TLS is on.
    pub fn is_in_tls(&self) -> bool {
        self.in_tls
    }

    /// The TLS handshake after [`ServerStatus::StartTls`] went well. What was negotiated before
    /// is forgotten.
    pub fn tls_started(&mut self) {
        if matches!(self.phase, Phase::Over(ServerStatus::StartTls)) {
            self.in_tls = true;
            let no_zeroes = self.negotiated.no_zeroes;
            self.negotiated = Negotiated {
                no_zeroes,
                ..Negotiated::default()
            };
            self.contexts_of = None;
            self.phase = Phase::Options;
        }
    }

    /// Takes the client's bytes and goes on as far as they reach.
    pub fn feed(&mut self, bytes: &[u8], exports: &dyn Exports) -> ServerStatus {
        self.input.feed(bytes);
        if matches!(self.phase, Phase::Over(ServerStatus::StartTls)) && self.input.len() > 0 {
            self.close(CloseReason::PlainTextAfterStartTls);
        }
        loop {
            let went_on = match &mut self.phase {
                Phase::ClientFlags => self.client_flags(),
                Phase::Options => self.option(exports),
                Phase::Skip(left) => {
                    let skipped = self.input.len().min(*left);
                    *left -= skipped;
                    let done = *left == 0;
                    self.input.advance(skipped);
                    if done {
                        self.phase = Phase::Options;
                    }
                    done
                }
                Phase::Over(status) => return status.clone(),
            };
            if !went_on {
                return ServerStatus::NeedMore;
            }
        }
    }

    fn close(&mut self, reason: CloseReason) {
        self.phase = Phase::Over(ServerStatus::Closed(reason));
    }

    /// Whether there was enough input; so do the other steps.
    fn client_flags(&mut self) -> bool {
        let Some(&bytes) = self.input.rest().first_chunk() else {
            return false;
        };
        let bits = u32::from_be_bytes(bytes);
        self.input.advance(bytes.len());
        match ClientFlags::from_bits(bits) {
            Some(flags) => {
                self.fixed = flags.contains(ClientFlags::FIXED_NEWSTYLE);
                self.negotiated.no_zeroes = flags.contains(ClientFlags::NO_ZEROES);
                self.phase = Phase::Options;
            }
            None => self.close(CloseReason::UnknownClientFlags(bits)),
        }
        true
    }

    fn option(&mut self, exports: &dyn Exports) -> bool {
        let Some(header) = self.input.rest().get(..OPTION_HEADER_BYTES) else {
            return false;
        };
        let (option, length) = match option_header(header) {
            Ok(header) => header,
            Err(error) => {
                self.close(CloseReason::Protocol(error));
                return true;
            }
        };
        if let Some(reason) = self.refuse_at_once(option, length) {
            self.close(reason);
            return true;
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > usize::try_from(MAX_OPTION_BYTES).unwrap_or(usize::MAX) {
            self.count_option(OPTION_HEADER_BYTES);
            self.refuse(option, OptionReply::TooBig, "the option is too long");
            self.phase = Phase::Skip(length);
            return true;
        }
        if self.input.len() - OPTION_HEADER_BYTES < length {
            return false;
        }
        self.count_option(OPTION_HEADER_BYTES);
        let data = self.input.take(length).unwrap_or_default();
        self.answer(option, &data, exports);
        true
    }

    fn count_option(&mut self, header_bytes: usize) {
        self.options += 1;
        self.input.advance(header_bytes);
    }

    fn refuse_at_once(&self, option: OptionKind, length: u32) -> Option<CloseReason> {
        if length > MAX_SKIPPED_OPTION_BYTES {
            return Some(CloseReason::OptionTooLong(length));
        }
        if self.options >= MAX_OPTIONS {
            return Some(CloseReason::TooManyOptions);
        }
        if self.output.len() > MAX_PENDING_OUTPUT_BYTES {
            return Some(CloseReason::NotReading);
        }
        if option == OptionKind::ExportName {
            let too_long = length > MAX_OPTION_BYTES;
            return too_long.then_some(CloseReason::OptionTooLong(length));
        }
        if !self.fixed {
            let what = format!("option {} without fixed newstyle", option.number());
            return Some(CloseReason::Protocol(WireError::Unexpected(what)));
        }
        None
    }

    fn answer(&mut self, option: OptionKind, data: &[u8], exports: &dyn Exports) {
        let tls_missing = self.tls == Tls::Required && !self.in_tls;
        match option {
            OptionKind::Abort => {
                self.accept(option);
                self.close(CloseReason::Aborted);
            }
            OptionKind::StartTls => self.start_tls(data),
            OptionKind::ExportName if tls_missing => self.close(CloseReason::TlsRequired),
            _ if tls_missing => {
                self.refuse(
                    option,
                    OptionReply::TlsRequired,
                    "TLS has to be started first",
                );
            }
            OptionKind::ExportName => self.export_name(data, exports),
            OptionKind::List => self.list(data, exports),
            OptionKind::Info | OptionKind::Go => self.info(option, data, exports),
            OptionKind::StructuredReply | OptionKind::ExtendedHeaders => {
                self.reply_headers(option, data);
            }
            OptionKind::ListMetaContext | OptionKind::SetMetaContext => {
                self.meta_contexts(option, data, exports);
            }
            OptionKind::Unknown(_) => {
                self.refuse(option, OptionReply::Unsupported, "the option is not known");
            }
        }
    }

    fn accept(&mut self, option: OptionKind) {
        push_reply(&mut self.output, option, OptionReply::Ack, &[]);
    }

    fn refuse(&mut self, option: OptionKind, reply: OptionReply, message: &str) {
        push_reply(&mut self.output, option, reply, message.as_bytes());
    }

    /// Refuses an option that must not have data but has some.
    fn has_no_data(&mut self, option: OptionKind, data: &[u8]) -> bool {
        if !data.is_empty() {
            self.refuse(option, OptionReply::Invalid, "the option takes no data");
        }
        data.is_empty()
    }

    fn start_tls(&mut self, data: &[u8]) {
        let option = OptionKind::StartTls;
        if self.in_tls {
            self.refuse(option, OptionReply::Invalid, "TLS is on already");
        } else if self.tls == Tls::Unavailable {
            self.refuse(option, OptionReply::Policy, "TLS is not configured");
        } else if self.has_no_data(option, data) {
            self.accept(option);
            // What a stranger put behind the option must not count as said in TLS.
            if self.input.len() > 0 {
                self.close(CloseReason::PlainTextAfterStartTls);
            } else {
                self.phase = Phase::Over(ServerStatus::StartTls);
            }
        }
    }

    fn list(&mut self, data: &[u8], exports: &dyn Exports) {
        if !self.has_no_data(OptionKind::List, data) {
            return;
        }
        for export in exports.list() {
            let mut entry = Vec::new();
            push_string(&mut entry, &export.name);
            entry.extend_from_slice(export.description.as_bytes());
            push_reply(
                &mut self.output,
                OptionKind::List,
                OptionReply::Server,
                &entry,
            );
        }
        self.accept(OptionKind::List);
    }

    fn export_name(&mut self, data: &[u8], exports: &dyn Exports) {
        let name = match Reader::new("export name", data).last_string() {
            Ok(name) => name,
            Err(error) => return self.close(CloseReason::Protocol(error)),
        };
        let Some(export) = exports.find(name) else {
            return self.close(CloseReason::UnknownExport(name.to_owned()));
        };
        let flags = self.flags_for(&export);
        self.output
            .extend_from_slice(&export.size_bytes.to_be_bytes());
        self.output.extend_from_slice(&flags.bits().to_be_bytes());
        if !self.negotiated.no_zeroes {
            self.output
                .extend_from_slice(&[0; EXPORT_NAME_ZEROES_BYTES]);
        }
        self.ready(name, export);
    }

    fn info(&mut self, option: OptionKind, data: &[u8], exports: &dyn Exports) {
        let request = match InfoRequest::decode(data) {
            Ok(request) => request,
            Err(error) => return self.refuse(option, OptionReply::Invalid, &error.to_string()),
        };
        let Some(export) = exports.find(request.name) else {
            return self.refuse_unknown(option, request.name);
        };
        let wants = |kind| request.kinds.contains(&kind);
        let mut info = |kind: InfoKind, parts: &[&[u8]]| {
            let mut payload = kind.number().to_be_bytes().to_vec();
            payload.extend(parts.iter().copied().flatten());
            push_reply(&mut self.output, option, OptionReply::Info, &payload);
        };
        if wants(InfoKind::Name) {
            info(InfoKind::Name, &[export.name.as_bytes()]);
        }
        if let Some(description) = &export.description {
            info(InfoKind::Description, &[description.as_bytes()]);
        }
        let sizes = export.block_size;
        info(
            InfoKind::BlockSize,
            &[
                &sizes.minimum.to_be_bytes(),
                &sizes.preferred.to_be_bytes(),
                &sizes.maximum_payload.to_be_bytes(),
            ],
        );
        let flags = self.flags_for(&export);
        let mut payload = InfoKind::Export.number().to_be_bytes().to_vec();
        payload.extend_from_slice(&export.size_bytes.to_be_bytes());
        payload.extend_from_slice(&flags.bits().to_be_bytes());
        push_reply(&mut self.output, option, OptionReply::Info, &payload);

        let knows_sizes = wants(InfoKind::BlockSize);
        if option == OptionKind::Go && !knows_sizes && sizes.minimum > DEFAULT_MINIMUM_BLOCK {
            let message = "block sizes have to be asked for";
            return self.refuse(option, OptionReply::BlockSizeRequired, message);
        }
        self.accept(option);
        if option == OptionKind::Go {
            self.negotiated.block_size_requested = knows_sizes;
            self.ready(request.name, export);
        }
    }

    fn refuse_unknown(&mut self, option: OptionKind, name: &str) {
        // A name is at most 4096 bytes, so the message has to leave part of a long one out.
        let shown = name
            .get(..name.floor_char_boundary(200))
            .unwrap_or_default();
        self.refuse(
            option,
            OptionReply::UnknownExport,
            &format!("there is no export '{shown}'"),
        );
    }

    fn reply_headers(&mut self, option: OptionKind, data: &[u8]) {
        if !self.has_no_data(option, data) {
            return;
        }
        let negotiated = &mut self.negotiated;
        let asked_before = match option {
            OptionKind::ExtendedHeaders => negotiated.extended,
            _ => negotiated.structured,
        };
        if option == OptionKind::StructuredReply && negotiated.extended {
            let message = "extended headers are negotiated already";
            return self.refuse(option, OptionReply::ExtendedHeadersRequired, message);
        }
        if asked_before {
            return self.refuse(option, OptionReply::Invalid, "it is negotiated already");
        }
        negotiated.structured = true;
        negotiated.extended = option == OptionKind::ExtendedHeaders;
        self.accept(option);
    }

    fn meta_contexts(&mut self, option: OptionKind, data: &[u8], exports: &dyn Exports) {
        let selects = option == OptionKind::SetMetaContext;
        if selects {
            self.negotiated.meta_contexts.clear();
            self.contexts_of = None;
        }
        if selects && !self.negotiated.structured {
            let message = "structured replies have to be negotiated first";
            return self.refuse(option, OptionReply::Invalid, message);
        }
        let query = match MetaQuery::decode(data) {
            Ok(query) => query,
            Err(error) => return self.refuse(option, OptionReply::Invalid, &error.to_string()),
        };
        let Some(export) = exports.find(query.name) else {
            return self.refuse_unknown(option, query.name);
        };
        let matches = |name: &str| {
            let lists_all = !selects && query.queries.is_empty();
            lists_all
                || query.queries.iter().any(|query| {
                    *query == name || (!selects && query.ends_with(':') && name.starts_with(*query))
                })
        };
        let mut found = export
            .meta_contexts
            .into_iter()
            .filter(|name| matches(name));
        if !selects {
            for name in found {
                push_meta_context(&mut self.output, option, 0, &name);
            }
            return self.accept(option);
        }
        for (id, name) in (0..).zip(found.by_ref()) {
            push_meta_context(&mut self.output, option, id, &name);
            self.negotiated.meta_contexts.push(MetaContext { id, name });
        }
        self.contexts_of = Some(query.name.to_owned());
        self.accept(option);
    }

    /// The export's flags, without those that need what was not negotiated.
    fn flags_for(&self, export: &ExportInfo) -> TransmissionFlags {
        let mut flags = export.flags | TransmissionFlags::HAS_FLAGS;
        flags.set(TransmissionFlags::SEND_DF, self.negotiated.structured);
        if !self.negotiated.extended {
            flags.remove(TransmissionFlags::BLOCK_STATUS_PAYLOAD);
        }
        flags
    }

    fn ready(&mut self, requested_name: &str, mut export: ExportInfo) {
        export.flags = self.flags_for(&export);
        let mut negotiated = std::mem::take(&mut self.negotiated);
        if self.contexts_of.as_deref() != Some(requested_name) {
            negotiated.meta_contexts.clear();
        }
        let requested_name = requested_name.to_owned();
        let ready = Ready {
            requested_name,
            export,
            negotiated,
        };
        self.phase = Phase::Over(ServerStatus::Ready(Box::new(ready)));
    }
}

/// The minimum block size that a client assumes which was told none.
const DEFAULT_MINIMUM_BLOCK: u32 = 512;

fn option_header(header: &[u8]) -> Result<(OptionKind, u32), WireError> {
    let mut reader = Reader::new("option", header);
    reader.magic64(MAGIC_OPTION)?;
    Ok((OptionKind::from_number(reader.u32()?), reader.u32()?))
}

fn push_meta_context(out: &mut Vec<u8>, option: OptionKind, id: u32, name: &str) {
    let payload = [&id.to_be_bytes(), name.as_bytes()].concat();
    push_reply(out, option, OptionReply::MetaContext, &payload);
}
