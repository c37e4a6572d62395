//! A serial port's line as a chardev's frontend.
//!
//! Output goes into a buffer that a task empties into whoever is connected; without a connection it is dropped, as on a
//! cable with nobody at its end. What is sent before the first connection is kept for it, as far as there is room. A peer
//! that does not read holds the guest up, a little with each byte, and then loses bytes; one that has not read for
//! [`MAX_FRUITLESS_WAITS`] bytes holds nobody up any more until it does. A guest cannot be made to wait for ever.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use chardev::ChardevClaim;
use dev_pc::debug_ports::DebugOutput;
use dev_pc::uart::{SerialLine, Uart};
use device::IrqLine;
use parking_lot::{Condvar, Mutex};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

/// Output that waits for its reader.
const MAX_OUTPUT_BYTES: usize = 1 << 20;
/// How long one byte waits for room.
const PATIENCE: Duration = Duration::from_millis(20);
/// How many bytes wait in vain for a peer that does not read, before the next ones are dropped at once.
const MAX_FRUITLESS_WAITS: u32 = 50;
/// How long a machine that ends waits for a first connection: one that was there from the start takes as long to be
/// noticed at most.
const ARRIVAL: Duration = Duration::from_millis(100);
/// Input read at once.
const INPUT_BYTES: usize = 4096;

/// Who is at the other end.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Peer {
    /// Nobody, or nobody any more.
    #[default]
    None,
    /// Somebody may come.
    Awaited,
    Connected,
}

#[derive(Default)]
struct Output {
    bytes: VecDeque<u8>,
    peer: Peer,
    /// How many bytes in a row have waited for room and found none.
    fruitless_waits: u32,
    /// Bytes have been taken and are not with the reader yet.
    sending: bool,
}

/// The buffer between a device and its chardev.
#[derive(Default)]
pub(crate) struct SerialCable {
    output: Mutex<Output>,
    room: Condvar,
    has_output: Notify,
    input_wanted: Notify,
}

impl SerialCable {
    fn send(&self, byte: u8) {
        let mut output = self.output.lock();
        if output.peer == Peer::None {
            return;
        }
        if output.bytes.len() >= MAX_OUTPUT_BYTES {
            if output.peer == Peer::Awaited || output.fruitless_waits >= MAX_FRUITLESS_WAITS {
                return;
            }
            self.room.wait_for(&mut output, PATIENCE);
            if output.bytes.len() >= MAX_OUTPUT_BYTES {
                output.fruitless_waits = output.fruitless_waits.saturating_add(1);
                return;
            }
        }
        output.bytes.push_back(byte);
        // Whoever was told already takes what has come since.
        let first = output.bytes.len() == 1;
        drop(output);
        if first {
            self.has_output.notify_one();
        }
    }

    fn take_output(&self, into: &mut Vec<u8>) {
        let mut output = self.output.lock();
        into.extend(output.bytes.drain(..));
        output.sending = !into.is_empty();
        output.fruitless_waits = 0;
        drop(output);
        self.room.notify_all();
    }

    fn set_peer(&self, peer: Peer) {
        let mut output = self.output.lock();
        output.peer = peer;
        if peer == Peer::None {
            output.bytes.clear();
            output.sending = false;
            self.room.notify_all();
        }
    }

    /// Waits until all output has been taken, or nobody is there to take it.
    pub(crate) async fn drained(&self) {
        let since = Instant::now();
        while self.is_owed(since.elapsed()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Whether somebody is to get what has been sent, after a wait for it.
    fn is_owed(&self, waited: Duration) -> bool {
        let output = self.output.lock();
        let somebody = match output.peer {
            Peer::None => false,
            Peer::Awaited => waited < ARRIVAL,
            Peer::Connected => true,
        };
        somebody && (output.sending || !output.bytes.is_empty())
    }
}

impl SerialLine for SerialCable {
    fn transmit(&self, byte: u8) {
        self.send(byte);
    }

    fn input_wanted(&self) {
        self.input_wanted.notify_one();
    }

    fn set_break(&self, _on: bool) {
        // Chardevs' streams have no condition that stands for it.
    }
}

impl DebugOutput for SerialCable {
    fn put(&self, byte: u8) {
        self.send(byte);
    }
}

/// Makes a serial port whose line ends at a chardev, or nowhere.
pub(crate) fn port(
    irq: IrqLine,
    claim: Option<ChardevClaim>,
    runtime: &tokio::runtime::Handle,
) -> (Arc<Uart>, Arc<SerialCable>) {
    let cable = Arc::new(SerialCable::default());
    let uart = Uart::new(irq, cable.clone());
    if let Some(claim) = claim {
        cable.set_peer(Peer::Awaited);
        let end = Arc::downgrade(&uart);
        runtime.spawn(serve(claim, cable.clone(), Some(end)));
    }
    (uart, cable)
}

/// Connects a device that only writes.
pub(crate) fn writer(claim: ChardevClaim, runtime: &tokio::runtime::Handle) -> Arc<SerialCable> {
    let cable = Arc::new(SerialCable::default());
    cable.set_peer(Peer::Awaited);
    runtime.spawn(serve(claim, cable.clone(), None));
    cable
}

/// Serves one connection after the other. What was sent before the first came is kept for it.
async fn serve(mut claim: ChardevClaim, cable: Arc<SerialCable>, uart: Option<Weak<Uart>>) {
    let Some(connections) = claim.connections() else {
        return;
    };
    let mut next = connections.recv().await;
    while let Some(stream) = next {
        cable.set_peer(Peer::Connected);
        let (reader, mut writer) = tokio::io::split(stream);
        let ended = Notify::new();
        // A peer that writes no more may still read; it is left for another one only. Of standard
        // input and output there is no other: a guest is heard also where nobody types to it.
        let another = async {
            ended.notified().await;
            match connections.recv().await {
                Some(stream) => Some(stream),
                None => std::future::pending().await,
            }
        };
        let replaced = tokio::select! {
            () = send_output(&mut writer, &cable) => None,
            never = take_input(reader, &cable, uart.as_ref(), &ended) => match never {},
            another = another => another,
        };
        next = match replaced {
            Some(stream) => Some(stream),
            None => {
                cable.set_peer(Peer::None);
                connections.recv().await
            }
        };
    }
}

async fn send_output(writer: &mut (impl AsyncWrite + Unpin), cable: &SerialCable) {
    let mut bytes = Vec::new();
    loop {
        cable.take_output(&mut bytes);
        if bytes.is_empty() {
            cable.has_output.notified().await;
            continue;
        }
        let written = writer.write_all(&bytes).await;
        if written.is_err() || writer.flush().await.is_err() {
            return;
        }
        bytes.clear();
    }
}

/// At the end of input, of whichever kind, says so and stays.
async fn take_input(
    mut reader: impl AsyncRead + Unpin,
    cable: &SerialCable,
    uart: Option<&Weak<Uart>>,
    ended: &Notify,
) -> Infallible {
    let mut bytes = [0; INPUT_BYTES];
    loop {
        match reader.read(&mut bytes).await {
            Ok(count @ 1..) => {
                let read = bytes.get(..count).unwrap_or_default();
                deliver(read, cable, uart).await;
            }
            Ok(0) | Err(_) => {
                ended.notify_one();
                std::future::pending().await
            }
        }
    }
}

/// Gives input to the port as its FIFO has room.
async fn deliver(mut bytes: &[u8], cable: &SerialCable, uart: Option<&Weak<Uart>>) {
    while !bytes.is_empty() {
        let Some(uart) = uart.and_then(Weak::upgrade) else {
            return;
        };
        let taken = uart.receive(bytes);
        drop(uart);
        bytes = bytes.get(taken..).unwrap_or_default();
        if !bytes.is_empty() {
            cable.input_wanted.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More than has room, and far more than anybody could wait for byte by byte.
    fn send_too_much(cable: &SerialCable) -> Duration {
        let begun = Instant::now();
        for _ in 0..MAX_OUTPUT_BYTES + 100_000 {
            cable.send(b'x');
        }
        begun.elapsed()
    }

    #[test]
    fn nobody_holds_a_guest_up_before_the_first_connection() {
        let cable = SerialCable::default();
        cable.set_peer(Peer::Awaited);
        assert!(send_too_much(&cable) < PATIENCE * MAX_FRUITLESS_WAITS);
        assert_eq!(cable.output.lock().fruitless_waits, 0);
        // The first one gets what had room.
        let mut kept = Vec::new();
        cable.take_output(&mut kept);
        assert_eq!(kept.len(), MAX_OUTPUT_BYTES);
    }

    #[test]
    fn a_peer_that_does_not_read_holds_a_guest_up_only_so_long() {
        let cable = SerialCable::default();
        cable.set_peer(Peer::Connected);
        let longest = PATIENCE * MAX_FRUITLESS_WAITS;
        assert!((longest..longest * 10).contains(&send_too_much(&cable)));
        // Once it reads, it is waited for again.
        cable.take_output(&mut Vec::new());
        assert!((longest..longest * 10).contains(&send_too_much(&cable)));
    }

    #[tokio::test]
    async fn an_end_does_not_wait_for_who_has_never_come() {
        let cable = SerialCable::default();
        cable.set_peer(Peer::Awaited);
        cable.send(b'x');
        let begun = Instant::now();
        cable.drained().await;
        assert!(begun.elapsed() >= ARRIVAL);
        cable.set_peer(Peer::Connected);
        let waited = tokio::time::timeout(2 * ARRIVAL, cable.drained()).await;
        assert!(waited.is_err(), "who is there gets it");
        cable.take_output(&mut Vec::new());
        cable.set_peer(Peer::None);
        cable.drained().await;
    }
}
