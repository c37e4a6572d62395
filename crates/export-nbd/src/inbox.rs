//! What a client has sent and the server has not used yet.

use std::io;

use host_io::IoBuf;

use crate::transport::Transport;

/// How much is received at a time where no payload is expected: many small requests, or the
/// beginning of a large one.
pub(crate) const RECEIVE_BYTES: usize = 128 << 10;

/// The receive buffer of one connection.
pub(crate) struct Inbox {
    buf: IoBuf,
    start: usize,
    end: usize,
}

impl Inbox {
    /// An inbox that holds what came behind the handshake.
    pub(crate) fn new(first: &[u8]) -> Self {
        let mut buf = IoBuf::with_len(RECEIVE_BYTES.max(first.len()));
        if let Some(place) = buf.get_mut(..first.len()) {
            place.copy_from_slice(first);
        }
        Self {
            buf,
            start: 0,
            end: first.len(),
        }
    }

    /// The next `count` bytes, if they are all here.
    pub(crate) fn peek(&self, count: usize) -> Option<&[u8]> {
        let rest = self.buf.get(self.start..self.end)?;
        rest.get(..count)
    }

    /// Whether nothing is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Drops the next `count` bytes.
    pub(crate) fn advance(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
    }

    /// Receives more; gives how much, 0 at the end of the stream.
    ///
    /// # Errors
    /// The host's.
    pub(crate) async fn receive(&mut self, transport: &Transport) -> io::Result<usize> {
        // What is left is less than a header, so moving it to the front costs nothing.
        self.buf.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let mut buf = std::mem::replace(&mut self.buf, IoBuf::with_len(0));
        let front = buf.split_to(self.end);
        let (result, rest) = transport.recv(buf).await;
        self.buf = joined(front, rest);
        let count = result?;
        self.end += count;
        Ok(count)
    }

    /// Takes the next `count` bytes into a buffer of their own: copied as far as they are here,
    /// received straight into it beyond.
    ///
    /// # Errors
    /// The host's; `UnexpectedEof` when the stream ends before.
    pub(crate) async fn take_payload(
        &mut self,
        count: usize,
        transport: &Transport,
    ) -> io::Result<IoBuf> {
        let mut payload = IoBuf::with_len(count);
        let here = count.min(self.end - self.start);
        let source = self.buf.get(self.start..self.start + here);
        if let (Some(source), Some(place)) = (source, payload.get_mut(..here)) {
            place.copy_from_slice(source);
        }
        self.advance(here);
        let mut filled = here;
        while filled < count {
            let front = payload.split_to(filled);
            let (result, rest) = transport.recv_whole(payload).await;
            payload = joined(front, rest);
            match result? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                more => filled += more,
            }
        }
        Ok(payload)
    }
}

/// Puts together what was split for one receive.
fn joined(mut front: IoBuf, rest: IoBuf) -> IoBuf {
    if front.is_empty() {
        return rest;
    }
    // They were neighbours a moment ago, so they join; were they not, the rest would be lost.
    let strangers = front.join(rest).is_err();
    debug_assert!(!strangers);
    front
}
