//! An NBD client that only makes load: requests of one size, so many at a time, over one connection.
//!
//! It is as light as a client can be, so that the server is what is measured: one thread, one
//! `write` for all requests that replies have made room for, data thrown away as it is received.
//! It negotiates structured replies, as most clients do.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nbd_wire::protocol::ChunkKind;
use nbd_wire::reply::{ReplyFormat, ReplyHeader};
use nbd_wire::{
    ClientHandshake, ClientStatus, ClientWishes, Command, CommandFlags, Goal, ReplyFlags, Request,
    RequestFormat,
};

use crate::daemon::EXPORT;

/// Receive buffer: small enough to stay in the processor's cache.
const RECEIVE_BYTES: usize = 256 << 10;
/// How long the server may be silent.
const SILENCE: Duration = Duration::from_secs(20);

/// Which way the data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Read,
    Write,
}

/// Where requests go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Random,
    Sequential,
}

/// What is asked of the server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) direction: Direction,
    pub(crate) order: Order,
    pub(crate) request_bytes: u32,
    /// How many requests are under way at a time.
    pub(crate) depth: u32,
    /// No more requests than that are made, however much time is left.
    pub(crate) max_requests: u64,
}

/// A connection in its transmission phase.
pub(crate) struct NbdClient {
    stream: UnixStream,
    size_bytes: u64,
    buf: Vec<u8>,
    start: usize,
    end: usize,
    /// A chunk of which not all has been received.
    chunk: Option<Chunk>,
}

impl NbdClient {
    /// Connects to the export.
    pub(crate) fn connect(socket: &Path) -> Result<Self> {
        let mut stream = UnixStream::connect(socket).context("connecting to the NBD server")?;
        stream.set_read_timeout(Some(SILENCE))?;
        let mut handshake = ClientHandshake::new(ClientWishes {
            goal: Goal::Transmission(EXPORT.to_owned()),
            tls: false,
            structured: true,
            extended: false,
            meta_contexts: Vec::new(),
        });
        let mut bytes = [0; 4096];
        loop {
            let count = stream.read(&mut bytes)?;
            if count == 0 {
                bail!("the server closed the connection in the handshake");
            }
            let status = handshake.feed(bytes.get(..count).unwrap_or_default());
            stream.write_all(&handshake.take_output())?;
            match status {
                ClientStatus::NeedMore => {}
                ClientStatus::Ready(ready) if ready.negotiated.structured => {
                    return Ok(Self {
                        stream,
                        size_bytes: ready.export.size_bytes,
                        buf: vec![0; RECEIVE_BYTES],
                        start: 0,
                        end: 0,
                        chunk: None,
                    });
                }
                other => bail!("the handshake led to {other:?}"),
            }
        }
    }

    /// Makes load for `duration`, or until `max_requests` are done; gives how many were.
    pub(crate) fn run(&mut self, load: &Load, duration: Duration, seed: u64) -> Result<u64> {
        let mut requests = Requests::new(load, self.size_bytes, seed)?;
        let mut out = Vec::new();
        let began = Instant::now();
        let (mut under_way, mut done, mut started) = (0_u32, 0_u64, 0_u64);
        loop {
            out.clear();
            let goes_on = began.elapsed() < duration;
            while goes_on && under_way < load.depth && started < load.max_requests {
                requests.encode_next(&mut out)?;
                under_way += 1;
                started += 1;
            }
            if under_way == 0 {
                break;
            }
            self.stream.write_all(&out).context("sending requests")?;
            let ended = self.receive(requests.direction)?;
            under_way = under_way
                .checked_sub(ended)
                .context("more replies than requests")?;
            done += u64::from(ended);
        }
        Ok(done)
    }

    /// Receives until requests have ended; says how many.
    fn receive(&mut self, direction: Direction) -> Result<u32> {
        let mut ended = 0;
        while ended == 0 {
            self.fill()?;
            while let Some(ends) = self.take_chunk(direction)? {
                ended += u32::from(ends);
            }
        }
        Ok(ended)
    }

    /// Takes a chunk out of what has been received, its data included; says whether it ends its
    /// request. None if more has to be received.
    fn take_chunk(&mut self, direction: Direction) -> Result<Option<bool>> {
        let mut chunk = match self.chunk.take() {
            Some(chunk) => chunk,
            None => {
                let here = self.buf.get(self.start..self.end).unwrap_or_default();
                let Some((header, header_bytes)) =
                    ReplyHeader::decode(ReplyFormat::Structured, here)?
                else {
                    return Ok(None);
                };
                self.start += header_bytes;
                chunk_of(header, direction)?
            }
        };
        let here = chunk.bytes_left.min(self.end - self.start);
        self.start += here;
        chunk.bytes_left -= here;
        if chunk.bytes_left == 0 {
            return Ok(Some(chunk.ends_request));
        }
        self.chunk = Some(chunk);
        Ok(None)
    }

    /// Receives more behind what is left.
    fn fill(&mut self) -> Result<()> {
        self.buf.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let room = self.buf.get_mut(self.end..).unwrap_or_default();
        let count = self.stream.read(room).context("receiving replies")?;
        if count == 0 {
            bail!("the server closed the connection");
        }
        self.end += count;
        Ok(())
    }

    /// Says goodbye.
    pub(crate) fn disconnect(mut self) -> Result<()> {
        let bytes = request_bytes(Command::Disconnect, 0, 0, 0)?;
        self.stream.write_all(&bytes)?;
        Ok(())
    }
}

/// A chunk whose header has been read.
struct Chunk {
    ends_request: bool,
    bytes_left: usize,
}

fn chunk_of(header: ReplyHeader, direction: Direction) -> Result<Chunk> {
    match header {
        ReplyHeader::Simple { error: None, .. } if direction == Direction::Write => Ok(Chunk {
            ends_request: true,
            bytes_left: 0,
        }),
        ReplyHeader::Chunk {
            flags,
            kind: ChunkKind::None | ChunkKind::OffsetData | ChunkKind::OffsetHole,
            payload_bytes,
            ..
        } => Ok(Chunk {
            ends_request: flags.contains(ReplyFlags::DONE),
            bytes_left: usize::try_from(payload_bytes)?,
        }),
        other => bail!("the server answered {other:?}"),
    }
}

/// Makes the requests of a load, one after the other.
struct Requests {
    direction: Direction,
    order: Order,
    request_bytes: u32,
    /// How many places of that size the disk has.
    places: u64,
    next: u64,
    cookie: u64,
    payload: Vec<u8>,
}

impl Requests {
    fn new(load: &Load, size_bytes: u64, seed: u64) -> Result<Self> {
        let payload = match load.direction {
            Direction::Read => Vec::new(),
            Direction::Write => vec![0xa5; usize::try_from(load.request_bytes)?],
        };
        let places = size_bytes
            .checked_div(load.request_bytes.into())
            .filter(|places| *places > 0)
            .context("the disk is smaller than one request")?;
        let next = match load.order {
            // The generator must not begin with zero.
            Order::Random => seed | 1 << 40,
            Order::Sequential => 0,
        };
        Ok(Self {
            direction: load.direction,
            order: load.order,
            request_bytes: load.request_bytes,
            places,
            next,
            cookie: 0,
            payload,
        })
    }

    fn encode_next(&mut self, out: &mut Vec<u8>) -> Result<()> {
        let place = match self.order {
            Order::Sequential => {
                self.next += 1;
                self.next - 1
            }
            Order::Random => {
                // Marsaglia's xorshift.
                self.next ^= self.next << 13;
                self.next ^= self.next >> 7;
                self.next ^= self.next << 17;
                self.next >> 16
            }
        };
        let command = match self.direction {
            Direction::Read => Command::Read,
            Direction::Write => Command::Write,
        };
        let offset = place % self.places * u64::from(self.request_bytes);
        self.cookie += 1;
        let header = request_bytes(command, self.cookie, offset, self.request_bytes)?;
        out.extend_from_slice(&header);
        out.extend_from_slice(&self.payload);
        Ok(())
    }
}

fn request_bytes(command: Command, cookie: u64, offset: u64, length: u32) -> Result<[u8; 28]> {
    let (format, flags) = (RequestFormat::Compact, CommandFlags::empty());
    let request = Request::new(format, command, flags, cookie, offset, length.into())?;
    Ok(request.encode_compact())
}
