//! Requests: their headers, and whether they may run.

use crate::bytes::{Reader, concat};
use crate::handshake::{ExportInfo, Negotiated};
use crate::protocol::{MAGIC_EXTENDED_REQUEST, MAGIC_REQUEST};
use crate::{Command, CommandFlags, ErrorCode, TransmissionFlags, WireError};

/// How long a request's header is without extended headers.
pub const COMPACT_REQUEST_BYTES: usize = 28;
/// How long a request's header is with extended headers.
pub const EXTENDED_REQUEST_BYTES: usize = 32;
/// How much data a request may carry or ask for: 32 MiB, as QEMU's.
pub const MAX_PAYLOAD_BYTES: u32 = 32 << 20;

/// Which of the two request headers is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestFormat {
    /// 28 bytes, 32-bit lengths.
    Compact,
    /// 32 bytes, 64-bit lengths.
    Extended,
}

impl RequestFormat {
    /// How long a header is.
    pub const fn header_bytes(self) -> usize {
        match self {
            Self::Compact => COMPACT_REQUEST_BYTES,
            Self::Extended => EXTENDED_REQUEST_BYTES,
        }
    }
}

/// A request without its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// All flags that were sent, the unknown ones too.
    pub flags: CommandFlags,
    /// What to do.
    pub command: Command,
    /// The client's mark, to be sent back.
    pub cookie: u64,
    /// Where in the export, in bytes.
    pub offset: u64,
    /// How much, in bytes. With a payload: how long that is.
    pub length: u64,
    /// How long the payload behind the header is, at most [`MAX_PAYLOAD_BYTES`].
    payload_bytes: u32,
}

impl Request {
    /// A request to be sent.
    ///
    /// # Errors
    /// [`WireError::TooLong`] for a payload over [`MAX_PAYLOAD_BYTES`], or a length that the compact
    /// header cannot hold.
    pub fn new(
        format: RequestFormat,
        command: Command,
        flags: CommandFlags,
        cookie: u64,
        offset: u64,
        length: u64,
    ) -> Result<Self, WireError> {
        let extended_write = format == RequestFormat::Extended && command == Command::Write;
        let flags = if extended_write {
            flags | CommandFlags::PAYLOAD_LEN
        } else {
            flags
        };
        if format == RequestFormat::Compact && length > u32::MAX.into() {
            let limit = u32::MAX.into();
            return Err(WireError::TooLong {
                place: "request",
                bytes: length,
                limit,
            });
        }
        let payload_bytes = payload_bytes(format, command, flags, length)?;
        Ok(Self {
            flags,
            command,
            cookie,
            offset,
            length,
            payload_bytes,
        })
    }

    /// Reads a header of [`RequestFormat::header_bytes`] bytes.
    ///
    /// # Errors
    /// After any error the connection has to end: [`WireError::BadMagic`], [`WireError::BadLength`]
    /// if `header` has another length, [`WireError::TooLong`] for a payload over
    /// [`MAX_PAYLOAD_BYTES`]. An unknown command or flag is no error here, see [`validate`].
    pub fn decode(format: RequestFormat, header: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new("request", header);
        reader.magic32(match format {
            RequestFormat::Compact => MAGIC_REQUEST,
            RequestFormat::Extended => MAGIC_EXTENDED_REQUEST,
        })?;
        let flags = CommandFlags::from_bits_retain(reader.u16()?);
        let command = Command::from_number(reader.u16()?);
        let cookie = reader.u64()?;
        let offset = reader.u64()?;
        let length = match format {
            RequestFormat::Compact => reader.u32()?.into(),
            RequestFormat::Extended => reader.u64()?,
        };
        reader.finish()?;
        let payload_bytes = payload_bytes(format, command, flags, length)?;
        Ok(Self {
            flags,
            command,
            cookie,
            offset,
            length,
            payload_bytes,
        })
    }

    /// How many bytes follow the header. They follow even where [`validate`] refuses the request.
    pub const fn payload_bytes(&self) -> u32 {
        self.payload_bytes
    }

    /// The header without extended headers; a length over 32 bits is cut, which
    /// [`Self::new`] does not let happen.
    pub fn encode_compact(&self) -> [u8; COMPACT_REQUEST_BYTES] {
        concat(&[
            &MAGIC_REQUEST.to_be_bytes(),
            &self.flags.bits().to_be_bytes(),
            &self.command.number().to_be_bytes(),
            &self.cookie.to_be_bytes(),
            &self.offset.to_be_bytes(),
            &u32::try_from(self.length).unwrap_or(u32::MAX).to_be_bytes(),
        ])
    }

    /// The header with extended headers.
    pub fn encode_extended(&self) -> [u8; EXTENDED_REQUEST_BYTES] {
        concat(&[
            &MAGIC_EXTENDED_REQUEST.to_be_bytes(),
            &self.flags.bits().to_be_bytes(),
            &self.command.number().to_be_bytes(),
            &self.cookie.to_be_bytes(),
            &self.offset.to_be_bytes(),
            &self.length.to_be_bytes(),
        ])
    }
}

fn payload_bytes(
    format: RequestFormat,
    command: Command,
    flags: CommandFlags,
    length: u64,
) -> Result<u32, WireError> {
    // With extended headers a write has to say PAYLOAD_LEN, but QEMU's client does not.
    let flagged = format == RequestFormat::Extended && flags.contains(CommandFlags::PAYLOAD_LEN);
    let has_payload = flagged || command == Command::Write;
    if !has_payload {
        return Ok(0);
    }
    match u32::try_from(length) {
        Ok(bytes) if bytes <= MAX_PAYLOAD_BYTES => Ok(bytes),
        _ => {
            let limit = MAX_PAYLOAD_BYTES.into();
            Err(WireError::TooLong {
                place: "request payload",
                bytes: length,
                limit,
            })
        }
    }
}

/// The payload of a `BLOCK_STATUS` request that has one: which part of the export and which
/// contexts the client wants to know of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusSelection {
    /// The range's length, in bytes; the header holds the payload's.
    pub length: u64,
    /// Context ids, each of them a negotiated one and there once.
    pub context_ids: Vec<u32>,
}

impl StatusSelection {
    /// Reads a payload.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`], to be replied: a wrong length, no ids, ids that were not negotiated
    /// or are there twice, or a range beyond the export.
    pub fn decode(
        request: &Request,
        payload: &[u8],
        export: &ExportInfo,
        negotiated: &Negotiated,
    ) -> Result<Self, ErrorCode> {
        let mut reader = Reader::new("block status payload", payload);
        let length = reader.u64().map_err(|_| ErrorCode::Invalid)?;
        let mut context_ids = Vec::new();
        while reader.remaining() > 0 {
            let id = reader.u32().map_err(|_| ErrorCode::Invalid)?;
            let known = negotiated
                .meta_contexts
                .iter()
                .any(|context| context.id == id);
            if !known || context_ids.contains(&id) {
                return Err(ErrorCode::Invalid);
            }
            context_ids.push(id);
        }
        let in_bounds = is_within(request.offset, length, export.size_bytes);
        if context_ids.is_empty() || !in_bounds {
            Err(ErrorCode::Invalid)
        } else {
            Ok(Self {
                length,
                context_ids,
            })
        }
    }

    /// Appends the payload.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.length.to_be_bytes());
        for id in &self.context_ids {
            out.extend_from_slice(&id.to_be_bytes());
        }
    }
}

/// Whether a request may run on an export, by what was negotiated: command and flags known and
/// advertised, export writable where needed, range within it and aligned.
///
/// The range of a `BLOCK_STATUS` with a payload is in the payload: [`StatusSelection::decode`].
///
/// # Errors
/// The code to reply, as proto.md asks for it ("Request types", "Error values"). The payload, if
/// there is one, has to be read and dropped first.
pub fn validate(
    request: &Request,
    export: &ExportInfo,
    negotiated: &Negotiated,
) -> Result<(), ErrorCode> {
    check_flags(request, export, negotiated)?;
    let has = |flag| export.flags.contains(flag);
    let require = |allowed: bool| {
        if allowed {
            Ok(())
        } else {
            Err(ErrorCode::Invalid)
        }
    };
    let writable = || {
        if has(TransmissionFlags::READ_ONLY) {
            Err(ErrorCode::Permission)
        } else {
            Ok(())
        }
    };
    match request.command {
        Command::Read => require(request.length <= MAX_PAYLOAD_BYTES.into())?,
        Command::Write => writable()?,
        Command::Trim => {
            require(has(TransmissionFlags::SEND_TRIM))?;
            writable()?;
        }
        Command::WriteZeroes => {
            require(has(TransmissionFlags::SEND_WRITE_ZEROES))?;
            writable()?;
        }
        Command::Cache => require(has(TransmissionFlags::SEND_CACHE))?,
        Command::BlockStatus => {
            require(!negotiated.meta_contexts.is_empty())?;
            if request.flags.contains(CommandFlags::PAYLOAD_LEN) {
                return Ok(());
            }
        }
        Command::Flush => {
            require(has(TransmissionFlags::SEND_FLUSH))?;
            return require(request.offset == 0 && request.length == 0);
        }
        Command::Disconnect => return Ok(()),
        Command::Resize => {
            // The new length is in the field of the offset.
            require(has(TransmissionFlags::SEND_RESIZE))?;
            return writable();
        }
        Command::Unknown(_) => return Err(ErrorCode::Invalid),
    }
    check_range(request, export)
}

fn check_flags(
    request: &Request,
    export: &ExportInfo,
    negotiated: &Negotiated,
) -> Result<(), ErrorCode> {
    let mut allowed = CommandFlags::empty();
    let has = |flag| export.flags.contains(flag);
    if has(TransmissionFlags::SEND_FUA) {
        allowed |= CommandFlags::FUA;
    }
    match request.command {
        Command::Read if has(TransmissionFlags::SEND_DF) => allowed |= CommandFlags::DF,
        Command::Write if negotiated.extended => allowed |= CommandFlags::PAYLOAD_LEN,
        Command::WriteZeroes => {
            allowed |= CommandFlags::NO_HOLE;
            if has(TransmissionFlags::SEND_FAST_ZERO) {
                allowed |= CommandFlags::FAST_ZERO;
            }
        }
        Command::BlockStatus => {
            allowed |= CommandFlags::REQ_ONE;
            if negotiated.extended && has(TransmissionFlags::BLOCK_STATUS_PAYLOAD) {
                allowed |= CommandFlags::PAYLOAD_LEN;
            }
        }
        _ => {}
    }
    if allowed.contains(request.flags) {
        Ok(())
    } else {
        Err(ErrorCode::Invalid)
    }
}

fn check_range(request: &Request, export: &ExportInfo) -> Result<(), ErrorCode> {
    if !is_within(request.offset, request.length, export.size_bytes) {
        return Err(match request.command {
            Command::Write | Command::WriteZeroes => ErrorCode::NoSpace,
            // What a client has made smaller has no space there.
            _ if export.flags.contains(TransmissionFlags::SEND_RESIZE) => ErrorCode::NoSpace,
            _ => ErrorCode::Invalid,
        });
    }
    let block = u64::from(export.block_size.minimum).max(1);
    let at_end = request.offset + request.length == export.size_bytes;
    let aligned =
        request.offset.is_multiple_of(block) && (at_end || request.length.is_multiple_of(block));
    if aligned {
        Ok(())
    } else {
        Err(ErrorCode::Invalid)
    }
}

fn is_within(offset: u64, length: u64, size: u64) -> bool {
    offset.checked_add(length).is_some_and(|end| end <= size)
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
