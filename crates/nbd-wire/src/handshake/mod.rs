//! The fixed newstyle handshake: what both sides of it share.

pub(crate) mod client;
pub(crate) mod server;

use crate::bytes::Reader;
use crate::protocol::{
    InfoKind, MAGIC_OPTION, MAGIC_OPTION_REPLY, OptionKind, OptionReply, TransmissionFlags,
};
use crate::request::{MAX_PAYLOAD_BYTES, RequestFormat};
use crate::{WireError, reply};

/// The most data of an option that the server looks at; a longer option is refused as too big.
pub const MAX_OPTION_BYTES: u32 = 128 << 10;
/// The most data of a refused option that the server passes over; beyond it the session ends.
pub const MAX_SKIPPED_OPTION_BYTES: u32 = 32 << 20;
/// How many options a client may send before the server ends the session.
pub const MAX_OPTIONS: usize = 1024;
/// How much output may wait when a client sends another option; beyond it the session ends.
pub const MAX_PENDING_OUTPUT_BYTES: usize = 1 << 20;
/// How many replies a server may send to a client's options before the client gives up.
pub const MAX_REPLIES: usize = 10_000;

/// How long the header of an option is.
const OPTION_HEADER_BYTES: usize = 16;
/// How long the header of a reply to an option is.
const REPLY_HEADER_BYTES: usize = 20;

/// Size constraints of an export, in bytes (proto.md, "Size constraints").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSize {
    /// Offsets and lengths are multiples of this; a power of two up to 64 KiB.
    pub minimum: u32,
    /// What goes well; a power of two.
    pub preferred: u32,
    /// The longest payload.
    pub maximum_payload: u32,
}

impl Default for BlockSize {
    /// What holds where nothing is said, but with a minimum of 1.
    fn default() -> Self {
        Self {
            minimum: 1,
            preferred: 4096,
            maximum_payload: MAX_PAYLOAD_BYTES,
        }
    }
}

/// An export, as the handshake tells about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportInfo {
    /// Its canonical name.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// What can be done with it. In a [`Ready`]: what was told to the client, which is less where
    /// a flag needs something that was not negotiated.
    pub flags: TransmissionFlags,
    /// For people.
    pub description: Option<String>,
    /// Size constraints.
    pub block_size: BlockSize,
    /// The metadata contexts that can be selected, such as `base:allocation`.
    pub meta_contexts: Vec<String>,
}

/// A selected metadata context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaContext {
    /// Its number in this session.
    pub id: u32,
    /// Its name.
    pub name: String,
}

/// What both sides agreed on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Negotiated {
    /// Reads and block status are answered in chunks. True with extended headers, too.
    pub structured: bool,
    /// Requests and replies have extended headers.
    pub extended: bool,
    /// No zeroes after `EXPORT_NAME`.
    pub no_zeroes: bool,
    /// The client has asked for block sizes and keeps to them.
    pub block_size_requested: bool,
    /// The selected metadata contexts of the export.
    pub meta_contexts: Vec<MetaContext>,
}

impl Negotiated {
    /// The header of requests.
    pub fn request_format(&self) -> RequestFormat {
        if self.extended {
            RequestFormat::Extended
        } else {
            RequestFormat::Compact
        }
    }

    /// The header of replies.
    pub fn reply_format(&self) -> reply::ReplyFormat {
        reply::ReplyFormat::of(self)
    }
}

/// The handshake's result: the transmission phase begins with the next byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// The name that the client gave.
    pub requested_name: String,
    /// The export.
    pub export: ExportInfo,
    /// What was agreed on.
    pub negotiated: Negotiated,
}

/// An entry of the list of exports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedExport {
    /// Its name.
    pub name: String,
    /// For people; may be empty.
    pub description: String,
}

/// Appends an option, as a client sends it.
fn push_option(out: &mut Vec<u8>, option: OptionKind, data: &[u8]) {
    out.extend_from_slice(&MAGIC_OPTION.to_be_bytes());
    out.extend_from_slice(&option.number().to_be_bytes());
    out.extend_from_slice(&length32(data).to_be_bytes());
    out.extend_from_slice(data);
}

/// Appends a reply to an option, as a server sends it.
fn push_reply(out: &mut Vec<u8>, option: OptionKind, reply: OptionReply, data: &[u8]) {
    out.extend_from_slice(&MAGIC_OPTION_REPLY.to_be_bytes());
    out.extend_from_slice(&option.number().to_be_bytes());
    out.extend_from_slice(&reply.number().to_be_bytes());
    out.extend_from_slice(&length32(data).to_be_bytes());
    out.extend_from_slice(data);
}

fn push_string(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&length32(text.as_bytes()).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// All that is ever counted so is a handful of strings of at most 4096 bytes.
fn length32(data: &[u8]) -> u32 {
    u32::try_from(data.len()).unwrap_or(u32::MAX)
}

/// The data of INFO and GO.
#[derive(Debug, PartialEq, Eq)]
struct InfoRequest<'a> {
    name: &'a str,
    kinds: Vec<InfoKind>,
}

impl<'a> InfoRequest<'a> {
    fn decode(data: &'a [u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new("INFO or GO option", data);
        let name = reader.counted_string()?;
        let count = reader.u16()?;
        let kinds = (0..count)
            .map(|_| reader.u16().map(InfoKind::from_number))
            .collect::<Result<_, _>>()?;
        reader.finish()?;
        Ok(Self { name, kinds })
    }

    fn encode(&self) -> Vec<u8> {
        let mut data = Vec::new();
        push_string(&mut data, self.name);
        let count = u16::try_from(self.kinds.len()).unwrap_or(u16::MAX);
        data.extend_from_slice(&count.to_be_bytes());
        for kind in self.kinds.iter().take(count.into()) {
            data.extend_from_slice(&kind.number().to_be_bytes());
        }
        data
    }
}

/// The data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
#[derive(Debug, PartialEq, Eq)]
struct MetaQuery<'a> {
    name: &'a str,
    queries: Vec<&'a str>,
}

impl<'a> MetaQuery<'a> {
    fn decode(data: &'a [u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new("META_CONTEXT option", data);
        let name = reader.counted_string()?;
        let count = reader.u32()?;
        let queries = (0..count)
            .map(|_| reader.counted_string())
            .collect::<Result<_, WireError>>()?;
        reader.finish()?;
        Ok(Self { name, queries })
    }

    fn encode(&self) -> Vec<u8> {
        let mut data = Vec::new();
        push_string(&mut data, self.name);
        let count = u32::try_from(self.queries.len()).unwrap_or(u32::MAX);
        data.extend_from_slice(&count.to_be_bytes());
        for query in &self.queries {
            push_string(&mut data, query);
        }
        data
    }
}

/// Input that has arrived and not been used.
#[derive(Debug, Default)]
struct Input {
    bytes: Vec<u8>,
    used: usize,
}

impl Input {
    fn feed(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.used);
        self.used = 0;
        self.bytes.extend_from_slice(bytes);
    }

    fn rest(&self) -> &[u8] {
        self.bytes.get(self.used..).unwrap_or_default()
    }

    fn len(&self) -> usize {
        self.bytes.len() - self.used
    }

    /// Marks `count` bytes of the rest as used.
    fn advance(&mut self, count: usize) {
        self.used = (self.used + count).min(self.bytes.len());
    }

    /// Takes `count` bytes, if there are so many.
    fn take(&mut self, count: usize) -> Option<Vec<u8>> {
        let taken = self.rest().get(..count)?.to_vec();
        self.advance(count);
        Some(taken)
    }

    fn take_rest(&mut self) -> Vec<u8> {
        let rest = self.rest().to_vec();
        *self = Self::default();
        rest
    }
}

#[cfg(test)]
#[path = "handshake_tests.rs"]
mod tests;
