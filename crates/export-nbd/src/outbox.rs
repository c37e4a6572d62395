//! Replies that are ready and wait for the socket.

use host_io::{IoBuf, IoBytes};

/// Room for headers that is taken from the buffer pool at a time.
const HEADER_ROOM_BYTES: usize = 4096;

/// Replies in the order in which they go out. Headers are collected in shared memory, data is
/// passed on as it is.
pub(crate) struct Outbox {
    parts: Vec<IoBytes>,
    /// The next headers go into its beginning; `written` bytes are there already.
    room: IoBuf,
    written: usize,
    scratch: Vec<u8>,
    requests: usize,
    payload_bytes: usize,
}

/// What has been taken out to be sent.
#[derive(Default)]
pub(crate) struct Sendable {
    pub(crate) parts: Vec<IoBytes>,
    /// How many requests are answered with it.
    pub(crate) requests: usize,
    /// What those requests hold, see [`crate::MAX_HELD_PAYLOAD_BYTES`].
    pub(crate) payload_bytes: usize,
}

impl Outbox {
    pub(crate) fn new() -> Self {
        Self {
            parts: Vec::new(),
            room: IoBuf::with_len(0),
            written: 0,
            scratch: Vec::new(),
            requests: 0,
            payload_bytes: 0,
        }
    }

    /// Whether there is nothing to send.
    pub(crate) fn is_empty(&self) -> bool {
        self.requests == 0
    }

    /// Appends what `encode` writes.
    pub(crate) fn header(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        encode(&mut scratch);
        self.bytes(&scratch);
        self.scratch = scratch;
    }

    /// Appends a copy of `bytes`.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        if self.room.len() - self.written < bytes.len() {
            self.end_run();
            if bytes.len() > HEADER_ROOM_BYTES / 4 {
                self.parts.push(IoBytes::copy_of(bytes));
                return;
            }
            self.room = IoBuf::with_len(HEADER_ROOM_BYTES);
        }
        let end = self.written + bytes.len();
        if let Some(place) = self.room.get_mut(self.written..end) {
            place.copy_from_slice(bytes);
            self.written = end;
        }
    }

    /// Appends data without copying it.
    pub(crate) fn data(&mut self, data: IoBytes) {
        self.end_run();
        self.parts.push(data);
    }

    /// A request that holds so many bytes has been answered with what was appended.
    pub(crate) fn request_done(&mut self, payload_bytes: usize) {
        self.requests += 1;
        self.payload_bytes += payload_bytes;
    }

    /// Takes everything out into `sendable`, which is empty.
    pub(crate) fn take(&mut self, sendable: &mut Sendable) {
        self.end_run();
        std::mem::swap(&mut self.parts, &mut sendable.parts);
        sendable.requests = std::mem::take(&mut self.requests);
        sendable.payload_bytes = std::mem::take(&mut self.payload_bytes);
    }

    fn end_run(&mut self) {
        if self.written > 0 {
            let run = self.room.split_to(self.written);
            self.written = 0;
            self.parts.push(run.freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_share_memory_and_keep_their_order() {
        let mut outbox = Outbox::new();
        let mut expected = Vec::new();
        for round in 0..300_u32 {
            let head = [round as u8; 28];
            outbox.header(|out| out.extend_from_slice(&head));
            expected.extend_from_slice(&head);
            if round % 7 == 0 {
                let data = vec![round as u8 ^ 0xff; 100];
                outbox.data(IoBytes::copy_of(&data));
                expected.extend_from_slice(&data);
            }
            if round % 50 == 0 {
                let large = vec![1; 3000];
                outbox.bytes(&large);
                expected.extend_from_slice(&large);
            }
            outbox.request_done(10);
        }
        let mut sendable = Sendable::default();
        outbox.take(&mut sendable);
        assert!(outbox.is_empty());
        assert_eq!((sendable.requests, sendable.payload_bytes), (300, 3000));
        assert!(sendable.parts.len() < 120, "headers are put together");
        let sent: Vec<u8> = sendable
            .parts
            .iter()
            .flat_map(|part| part.to_vec())
            .collect();
        assert_eq!(sent, expected);
    }
}
