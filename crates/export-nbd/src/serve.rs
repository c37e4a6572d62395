//! What each command does, and its reply.

use std::borrow::Cow;

use block_graph::{BlockError, BlockErrorKind, WriteFlags};
use host_io::{IoBuf, IoBytes};
use nbd_wire::reply::{ChunkWriter, ReplyFormat, encode_simple};
use nbd_wire::{Command, CommandFlags, ErrorCode, MAX_PAYLOAD_BYTES, ReplyFlags, Request};

use crate::block_status::{self, ContextExtents};
use crate::transmission::{Payload, Session, Work};

/// Reads up to this long are not looked at for holes: finding out costs more than it saves.
const DENSE_READ_BYTES: u64 = 64 << 10;
/// How far ahead of a read it is asked what is data, so that the next ones need not ask.
const LOOK_AHEAD_BYTES: u64 = 64 << 20;
/// How much of a range is brought into the host's cache at a time.
const CACHE_CHUNK_BYTES: u64 = 1 << 20;

/// A request that failed: the code for any client, and words for those that can be told.
struct Failure {
    code: ErrorCode,
    message: Cow<'static, str>,
}

impl From<BlockError> for Failure {
    fn from(error: BlockError) -> Self {
        let code = match error.kind {
            // The request was checked when it came; the export has become shorter since.
            BlockErrorKind::OutOfRange => ErrorCode::NoSpace,
            _ => ErrorCode::from_linux_errno(error.errno),
        };
        Self {
            code,
            message: error.message.into(),
        }
    }
}

impl From<ErrorCode> for Failure {
    fn from(code: ErrorCode) -> Self {
        let message = match code {
            ErrorCode::Permission => "the export is read-only",
            ErrorCode::NoSpace => "the request goes beyond the end of the export",
            _ => "the request is not valid for this export",
        };
        Self {
            code,
            message: message.into(),
        }
    }
}

impl From<(ErrorCode, String)> for Failure {
    fn from((code, message): (ErrorCode, String)) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

/// What a request that went well is answered with.
enum Answer {
    Done,
    Data(IoBytes),
    Pieces(Vec<Piece>),
    Extents(Vec<ContextExtents>),
}

/// A part of a read: data, or a hole of so many bytes.
struct Piece {
    offset: u64,
    bytes: u32,
    data: Option<IoBytes>,
}

impl Session<'_> {
    /// Does what is asked and puts the reply into the outbox.
    pub(crate) async fn serve(&self, work: Work) {
        let request = work.request;
        let answer = match work.refused {
            Some(code) => Err(code.into()),
            None => self.execute(&request, work.payload).await,
        };
        match answer {
            Ok(answer) => self.reply(&request, answer),
            Err(failure) => self.reply_failure(&request, &failure),
        }
    }

    async fn execute(&self, request: &Request, payload: Payload) -> Result<Answer, Failure> {
        let backend = self.backend;
        let (offset, length) = (request.offset, request.length);
        let flags = self.write_flags(request);
        match (request.command, payload) {
            (Command::Read, _) => return self.read(request).await,
            (Command::Write, Payload::Data(data)) => {
                backend.write(offset, data.freeze(), flags).await?;
            }
            // A write of no bytes has no payload.
            (Command::Write, _) if !flags.contains(WriteFlags::FUA) => {}
            (Command::Write, _) | (Command::Flush, _) => backend.flush().await?,
            (Command::Trim, _) => {
                backend.discard(offset, length).await?;
                if flags.contains(WriteFlags::FUA) {
                    backend.flush().await?;
                }
            }
            (Command::WriteZeroes, _) => backend.write_zeroes(offset, length, flags).await?,
            (Command::Cache, _) => self.cache(offset, length).await?,
            (Command::BlockStatus, payload) => {
                let one = request.flags.contains(CommandFlags::REQ_ONE);
                let selection = match payload {
                    Payload::Status(selection) => Some(selection),
                    _ => None,
                };
                let length = selection.as_ref().map_or(length, |found| found.length);
                let ids = selection.as_ref().map(|found| found.context_ids.as_slice());
                let contexts = block_status::selected(&self.negotiated.meta_contexts, ids);
                if length == 0 || contexts.is_empty() {
                    return Err(ErrorCode::Invalid.into());
                }
                let found = block_status::extents(backend, contexts, offset, length, one).await?;
                return Ok(Answer::Extents(found));
            }
            (Command::Resize, _) => self.export.resize(offset).await?,
            (Command::Disconnect | Command::Unknown(_), _) => {
                return Err(ErrorCode::Invalid.into());
            }
        }
        Ok(Answer::Done)
    }

    fn write_flags(&self, request: &Request) -> WriteFlags {
        let mut flags = WriteFlags::empty();
        if self.writethrough || request.flags.contains(CommandFlags::FUA) {
            flags |= WriteFlags::FUA;
        }
        if request.command == Command::WriteZeroes {
            if !request.flags.contains(CommandFlags::NO_HOLE) {
                flags |= WriteFlags::MAY_UNMAP;
            }
            if request.flags.contains(CommandFlags::FAST_ZERO) {
                flags |= WriteFlags::NO_FALLBACK;
            }
        }
        flags
    }

    async fn read(&self, request: &Request) -> Result<Answer, Failure> {
        let (offset, length) = (request.offset, request.length);
        let end = offset.saturating_add(length);
        let one_chunk =
            self.format == ReplyFormat::Simple || request.flags.contains(CommandFlags::DF);
        let (data_start, data_end) = self.known_data.get();
        let is_known_data = data_start <= offset && end <= data_end;
        if one_chunk || length <= DENSE_READ_BYTES || is_known_data {
            return Ok(Answer::Data(self.read_data(offset, length).await?));
        }
        let mut pieces = Vec::new();
        let mut at = offset;
        while at < end {
            let ahead = self.backend.length().saturating_sub(at);
            let asked = ahead.min(LOOK_AHEAD_BYTES).max(end - at);
            let status = self.backend.status(at, asked).await?;
            if !status.zero {
                self.known_data.set((at, at.saturating_add(status.len)));
            }
            let bytes = status.len.clamp(1, end - at);
            let data = if status.zero {
                None
            } else {
                Some(self.read_data(at, bytes).await?)
            };
            pieces.push(Piece {
                offset: at,
                bytes: u32::try_from(bytes).unwrap_or(MAX_PAYLOAD_BYTES),
                data,
            });
            at += bytes;
        }
        Ok(Answer::Pieces(pieces))
    }

    async fn read_data(&self, offset: u64, length: u64) -> Result<IoBytes, Failure> {
        let length = usize::try_from(length).map_err(|_| ErrorCode::Invalid)?;
        let buf = IoBuf::with_len(length);
        Ok(self.backend.read(offset, buf).await?.freeze())
    }

    /// Reads a range, so that what lies beneath has it in its cache.
    async fn cache(&self, offset: u64, length: u64) -> Result<(), Failure> {
        if length > MAX_PAYLOAD_BYTES.into() {
            return Err(ErrorCode::Invalid.into());
        }
        let end = offset.saturating_add(length);
        let mut at = offset;
        while at < end {
            let bytes = CACHE_CHUNK_BYTES.min(end - at);
            self.read_data(at, bytes).await?;
            at += bytes;
        }
        Ok(())
    }

    fn chunks(&self, request: &Request) -> ChunkWriter {
        ChunkWriter {
            extended: self.format == ReplyFormat::Extended,
            cookie: request.cookie,
            offset: request.offset,
        }
    }

    fn reply(&self, request: &Request, answer: Answer) {
        let chunks = self.chunks(request);
        let mut outbox = self.outbox.borrow_mut();
        match answer {
            Answer::Done if self.format == ReplyFormat::Extended => {
                outbox.header(|out| chunks.done(out));
            }
            Answer::Done => outbox.bytes(&encode_simple(request.cookie, None)),
            Answer::Data(data) if self.format == ReplyFormat::Simple => {
                outbox.bytes(&encode_simple(request.cookie, None));
                outbox.data(data);
            }
            // A chunk of data must not be empty.
            Answer::Data(data) if data.is_empty() => outbox.header(|out| chunks.done(out)),
            Answer::Data(data) => {
                let bytes = u32::try_from(data.len()).unwrap_or(MAX_PAYLOAD_BYTES);
                outbox.header(|out| chunks.data(ReplyFlags::DONE, request.offset, bytes, out));
                outbox.data(data);
            }
            Answer::Pieces(pieces) => {
                let count = pieces.len();
                for (index, piece) in pieces.into_iter().enumerate() {
                    let flags = done_if(index + 1 == count);
                    let Piece {
                        offset,
                        bytes,
                        data,
                    } = piece;
                    match data {
                        Some(data) => {
                            outbox.header(|out| chunks.data(flags, offset, bytes, out));
                            outbox.data(data);
                        }
                        None => outbox.header(|out| chunks.hole(flags, offset, bytes, out)),
                    }
                }
            }
            Answer::Extents(contexts) => {
                let count = contexts.len();
                for (index, context) in contexts.iter().enumerate() {
                    let flags = done_if(index + 1 == count);
                    outbox.header(|out| {
                        chunks.block_status(flags, context.id, &context.extents, out);
                    });
                }
            }
        }
    }

    fn reply_failure(&self, request: &Request, failure: &Failure) {
        let mut outbox = self.outbox.borrow_mut();
        match self.format {
            ReplyFormat::Simple => {
                outbox.bytes(&encode_simple(request.cookie, Some(failure.code)));
            }
            ReplyFormat::Structured | ReplyFormat::Extended => {
                let chunks = self.chunks(request);
                outbox.header(|out| chunks.error(failure.code, &failure.message, out));
            }
        }
    }
}

fn done_if(last: bool) -> ReplyFlags {
    if last {
        ReplyFlags::DONE
    } else {
        ReplyFlags::empty()
    }
}
