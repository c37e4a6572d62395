//! Replies: headers and payloads of the server, and reading them at the client.
//!
//! The server's encoders answer arrays, to be put before the data in one vectored write.

use crate::bytes::{Reader, concat};
use crate::handshake::Negotiated;
use crate::protocol::{
    ChunkKind, MAGIC_EXTENDED_REPLY, MAGIC_SIMPLE_REPLY, MAGIC_STRUCTURED_REPLY,
};
use crate::{ErrorCode, MAX_PAYLOAD_BYTES, MAX_STRING_BYTES, ReplyFlags, WireError};

/// How long a simple reply is, without data.
pub const SIMPLE_BYTES: usize = 16;
/// How long a structured chunk's header is.
pub const STRUCTURED_BYTES: usize = 20;
/// How long an extended chunk's header is.
pub const EXTENDED_BYTES: usize = 32;
/// The most extents in one block status chunk.
pub const MAX_EXTENTS: usize = 1 << 20;
/// The longest payload of a chunk that a client takes: the data, or the extents, with what is
/// before them.
pub const MAX_CHUNK_BYTES: u64 = MAX_PAYLOAD_BYTES as u64 + 16;

/// Which of the three reply headers is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyFormat {
    /// An error code, and data after it for a read.
    Simple,
    /// Chunks with 32-bit lengths.
    Structured,
    /// Chunks with 64-bit lengths.
    Extended,
}

impl ReplyFormat {
    /// The one that was negotiated. (With structured replies a server may use simple ones too,
    /// except for reads and block status.)
    pub fn of(negotiated: &Negotiated) -> Self {
        match (negotiated.extended, negotiated.structured) {
            (true, _) => Self::Extended,
            (false, true) => Self::Structured,
            (false, false) => Self::Simple,
        }
    }
}

/// A simple reply; after it, for a read without an error, the data.
pub fn encode_simple(cookie: u64, error: Option<ErrorCode>) -> [u8; SIMPLE_BYTES] {
    concat(&[
        &MAGIC_SIMPLE_REPLY.to_be_bytes(),
        &error.map_or(0, ErrorCode::number).to_be_bytes(),
        &cookie.to_be_bytes(),
    ])
}

/// The header of a structured chunk.
pub fn encode_structured(
    flags: ReplyFlags,
    kind: ChunkKind,
    cookie: u64,
    payload_bytes: u32,
) -> [u8; STRUCTURED_BYTES] {
    concat(&[
        &MAGIC_STRUCTURED_REPLY.to_be_bytes(),
        &flags.bits().to_be_bytes(),
        &kind.number().to_be_bytes(),
        &cookie.to_be_bytes(),
        &payload_bytes.to_be_bytes(),
    ])
}

/// The header of an extended chunk. `offset` is the request's.
pub fn encode_extended(
    flags: ReplyFlags,
    kind: ChunkKind,
    cookie: u64,
    offset: u64,
    payload_bytes: u64,
) -> [u8; EXTENDED_BYTES] {
    concat(&[
        &MAGIC_EXTENDED_REPLY.to_be_bytes(),
        &flags.bits().to_be_bytes(),
        &kind.number().to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &payload_bytes.to_be_bytes(),
    ])
}

/// What all chunks of one reply have in common: enough to write any of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkWriter {
    /// With extended headers.
    pub extended: bool,
    /// The request's mark.
    pub cookie: u64,
    /// The request's offset, in bytes.
    pub offset: u64,
}

/// One extent of a block status reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// How long it is, in bytes, not 0.
    pub length: u64,
    /// What the context says of it. Above 32 bits only with extended headers.
    pub status: u64,
}

impl ChunkWriter {
    /// Appends a chunk's header.
    pub fn header(self, flags: ReplyFlags, kind: ChunkKind, payload_bytes: u32, out: &mut Vec<u8>) {
        let Self {
            extended,
            cookie,
            offset,
        } = self;
        if extended {
            let bytes = u64::from(payload_bytes);
            out.extend_from_slice(&encode_extended(flags, kind, cookie, offset, bytes));
        } else {
            out.extend_from_slice(&encode_structured(flags, kind, cookie, payload_bytes));
        }
    }

    /// Appends the final chunk of a request that went well.
    pub fn done(self, out: &mut Vec<u8>) {
        self.header(ReplyFlags::DONE, ChunkKind::None, 0, out);
    }

    /// Appends what goes before `data_bytes` bytes of data read at `offset`.
    pub fn data(self, flags: ReplyFlags, offset: u64, data_bytes: u32, out: &mut Vec<u8>) {
        self.header(
            flags,
            ChunkKind::OffsetData,
            data_bytes.saturating_add(8),
            out,
        );
        out.extend_from_slice(&offset.to_be_bytes());
    }

    /// Appends a chunk that says that `hole_bytes` bytes at `offset` are zeroes.
    pub fn hole(self, flags: ReplyFlags, offset: u64, hole_bytes: u32, out: &mut Vec<u8>) {
        self.header(flags, ChunkKind::OffsetHole, 12, out);
        out.extend_from_slice(&offset.to_be_bytes());
        out.extend_from_slice(&hole_bytes.to_be_bytes());
    }

    /// Appends a final chunk that says why the request failed; a long message is cut.
    pub fn error(self, code: ErrorCode, message: &str, out: &mut Vec<u8>) {
        let (message, count) = cut_message(message);
        self.header(
            ReplyFlags::DONE,
            ChunkKind::Error,
            u32::from(count) + 6,
            out,
        );
        out.extend_from_slice(&code.number().to_be_bytes());
        out.extend_from_slice(&count.to_be_bytes());
        out.extend_from_slice(message.as_bytes());
    }

    /// The same, naming the offset where it failed.
    pub fn error_at(self, code: ErrorCode, message: &str, offset: u64, out: &mut Vec<u8>) {
        let (message, count) = cut_message(message);
        self.header(
            ReplyFlags::DONE,
            ChunkKind::ErrorOffset,
            u32::from(count) + 14,
            out,
        );
        out.extend_from_slice(&code.number().to_be_bytes());
        out.extend_from_slice(&count.to_be_bytes());
        out.extend_from_slice(message.as_bytes());
        out.extend_from_slice(&offset.to_be_bytes());
    }

    /// Appends one context's extents, at most [`MAX_EXTENTS`] of them: 32-bit ones without extended
    /// headers (a longer length is cut, which the protocol allows for the last one), 64-bit with.
    pub fn block_status(
        self,
        flags: ReplyFlags,
        context_id: u32,
        extents: &[Extent],
        out: &mut Vec<u8>,
    ) {
        let extents = extents.get(..MAX_EXTENTS).unwrap_or(extents);
        let count = u32::try_from(extents.len()).unwrap_or(0);
        if self.extended {
            self.header(flags, ChunkKind::BlockStatusExtended, 8 + 16 * count, out);
            out.extend_from_slice(&context_id.to_be_bytes());
            out.extend_from_slice(&count.to_be_bytes());
            for extent in extents {
                out.extend_from_slice(&extent.length.to_be_bytes());
                out.extend_from_slice(&extent.status.to_be_bytes());
            }
            return;
        }
        self.header(flags, ChunkKind::BlockStatus, 4 + 8 * count, out);
        out.extend_from_slice(&context_id.to_be_bytes());
        for extent in extents {
            let length = u32::try_from(extent.length).unwrap_or(LONGEST_EXTENT_32);
            let status = u32::try_from(extent.status).unwrap_or(u32::MAX);
            out.extend_from_slice(&length.to_be_bytes());
            out.extend_from_slice(&status.to_be_bytes());
        }
    }
}

/// The longest extent in 32 bits that keeps an alignment of 64 KiB.
const LONGEST_EXTENT_32: u32 = 0xffff_0000;

fn cut_message(message: &str) -> (&str, u16) {
    let cut = message.floor_char_boundary(MAX_STRING_BYTES);
    let message = message.get(..cut).unwrap_or_default();
    (message, u16::try_from(message.len()).unwrap_or(0))
}

/// A reply's header, as a client reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyHeader {
    /// A simple reply; for a successful read the data follow, as long as was asked for.
    Simple {
        /// The request's mark.
        cookie: u64,
        /// Why it failed, if it did.
        error: Option<ErrorCode>,
    },
    /// A chunk, structured or extended.
    Chunk {
        /// Whether it is the last one.
        flags: ReplyFlags,
        /// What its payload is.
        kind: ChunkKind,
        /// The request's mark.
        cookie: u64,
        /// How long the payload is, at most [`MAX_CHUNK_BYTES`].
        payload_bytes: u32,
    },
}

impl ReplyHeader {
    /// Reads a header from the start of `input`: the header and how long it is, or none if `input`
    /// is too short to tell.
    ///
    /// # Errors
    /// After any error the connection has to end: [`WireError::BadMagic`] for a header that was not
    /// negotiated, [`WireError::TooLong`] for a payload over [`MAX_CHUNK_BYTES`].
    pub fn decode(format: ReplyFormat, input: &[u8]) -> Result<Option<(Self, usize)>, WireError> {
        let Some(magic) = input.first_chunk().map(|bytes| u32::from_be_bytes(*bytes)) else {
            return Ok(None);
        };
        let header_bytes = match (format, magic) {
            (ReplyFormat::Extended, MAGIC_EXTENDED_REPLY) => EXTENDED_BYTES,
            (ReplyFormat::Structured, MAGIC_STRUCTURED_REPLY) => STRUCTURED_BYTES,
            (ReplyFormat::Structured | ReplyFormat::Simple, MAGIC_SIMPLE_REPLY) => SIMPLE_BYTES,
            _ => {
                let expected = match format {
                    ReplyFormat::Simple => MAGIC_SIMPLE_REPLY,
                    ReplyFormat::Structured => MAGIC_STRUCTURED_REPLY,
                    ReplyFormat::Extended => MAGIC_EXTENDED_REPLY,
                };
                let (found, expected) = (magic.into(), expected.into());
                return Err(WireError::BadMagic {
                    place: "reply",
                    found,
                    expected,
                });
            }
        };
        let Some(header) = input.get(4..header_bytes) else {
            return Ok(None);
        };
        let mut reader = Reader::new("reply", header);
        if header_bytes == SIMPLE_BYTES {
            let code = reader.u32()?;
            let error = if code == 0 {
                None
            } else {
                Some(ErrorCode::from_number(code))
            };
            return Ok(Some((
                Self::Simple {
                    cookie: reader.u64()?,
                    error,
                },
                header_bytes,
            )));
        }
        let flags = ReplyFlags::from_bits_retain(reader.u16()?);
        let kind = ChunkKind::from_number(reader.u16()?);
        let cookie = reader.u64()?;
        let bytes = if format == ReplyFormat::Extended {
            reader.u64()?;
            reader.u64()?
        } else {
            reader.u32()?.into()
        };
        match u32::try_from(bytes) {
            Ok(payload_bytes) if bytes <= MAX_CHUNK_BYTES => Ok(Some((
                Self::Chunk {
                    flags,
                    kind,
                    cookie,
                    payload_bytes,
                },
                header_bytes,
            ))),
            _ => Err(WireError::TooLong {
                place: "reply chunk",
                bytes,
                limit: MAX_CHUNK_BYTES,
            }),
        }
    }
}

/// A chunk's payload, as a client reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chunk<'a> {
    /// Nothing more to say.
    None,
    /// Data.
    Data {
        /// Where they are, in bytes.
        offset: u64,
        /// What they are.
        data: &'a [u8],
    },
    /// Zeroes.
    Hole {
        /// Where they are, in bytes.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// What a metadata context says.
    BlockStatus {
        /// Which context.
        context_id: u32,
        /// The extents from the request's offset on.
        extents: Vec<Extent>,
    },
    /// The request failed.
    Error {
        /// Why.
        code: ErrorCode,
        /// The server's words, maybe none.
        message: &'a str,
        /// Where, if the server says so.
        offset: Option<u64>,
    },
}

impl<'a> Chunk<'a> {
    /// Reads a payload.
    ///
    /// # Errors
    /// After any error the connection has to end: [`WireError::BadLength`],
    /// [`WireError::BadString`], or [`WireError::Unexpected`] for a kind that is not known and no
    /// error.
    pub fn decode(kind: ChunkKind, payload: &'a [u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new("reply chunk", payload);
        match kind {
            ChunkKind::None => reader.finish().map(|()| Self::None),
            ChunkKind::OffsetData => {
                let offset = reader.u64()?;
                let data = reader.take(reader.remaining())?;
                if data.is_empty() {
                    Err(WireError::BadLength("data chunk"))
                } else {
                    Ok(Self::Data { offset, data })
                }
            }
            ChunkKind::OffsetHole => {
                let offset = reader.u64()?;
                let length = u64::from(reader.u32()?);
                reader.finish()?;
                if length == 0 {
                    Err(WireError::BadLength("hole chunk"))
                } else {
                    Ok(Self::Hole { offset, length })
                }
            }
            ChunkKind::BlockStatus | ChunkKind::BlockStatusExtended => block_status(kind, reader),
            ChunkKind::Error | ChunkKind::ErrorOffset | ChunkKind::Unknown(_)
                if kind.is_error() =>
            {
                let code = ErrorCode::from_number(reader.u32()?);
                let count = reader.u16()?;
                let message = reader.string(count.into())?;
                let offset = match kind {
                    ChunkKind::ErrorOffset => Some(reader.u64()?),
                    _ => None,
                };
                Ok(Self::Error {
                    code,
                    message,
                    offset,
                })
            }
            _ => Err(WireError::Unexpected(format!(
                "reply chunk of type {}",
                kind.number()
            ))),
        }
    }
}

fn block_status<'a>(kind: ChunkKind, mut reader: Reader<'a>) -> Result<Chunk<'a>, WireError> {
    const WRONG: WireError = WireError::BadLength("block status chunk");
    let context_id = reader.u32()?;
    let extended = kind == ChunkKind::BlockStatusExtended;
    let count = if extended {
        usize::try_from(reader.u32()?).map_err(|_| WRONG)?
    } else {
        reader.remaining() / 8
    };
    let extent_bytes = if extended { 16 } else { 8 };
    if count == 0 || count.checked_mul(extent_bytes) != Some(reader.remaining()) {
        return Err(WRONG);
    }
    let mut extents = Vec::with_capacity(count);
    for _ in 0..count {
        let (length, status) = if extended {
            (reader.u64()?, reader.u64()?)
        } else {
            (reader.u32()?.into(), reader.u32()?.into())
        };
        if length == 0 {
            return Err(WRONG);
        }
        extents.push(Extent { length, status });
    }
    Ok(Chunk::BlockStatus {
        context_id,
        extents,
    })
}

#[cfg(test)]
#[path = "reply_tests.rs"]
mod tests;
