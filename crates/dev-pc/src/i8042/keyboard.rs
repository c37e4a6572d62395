//! A PS/2 keyboard: the bytes it sends and the commands it takes.
//!
//! Scan code sets 1 and 2; set 3 is refused with "resend" (0xfe), as is everything the keyboard does not know.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::keys::Key;

/// Bytes the keyboard holds while nobody takes them; keys beyond are lost, as on the real one (16 bytes there).
const QUEUE_BYTES: usize = 256;
const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;

/// A command that waits for its parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Waiting {
    Leds,
    ScanCodeSet,
    Typematic,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Keyboard {
    queue: VecDeque<u8>,
    last_sent: u8,
    scanning: bool,
    set_2: bool,
    leds: u8,
    typematic: u8,
    waiting: Option<Waiting>,
}

impl Keyboard {
    pub(super) fn new() -> Keyboard {
        Keyboard {
            queue: VecDeque::new(),
            last_sent: 0,
            scanning: true,
            set_2: true,
            leds: 0,
            typematic: 0x2b,
            waiting: None,
        }
    }

    /// Scroll, num and caps lock lights in bits 0 to 2.
    pub(super) fn leds(&self) -> u8 {
        self.leds
    }

    /// Whether the key was taken: not while scanning is off, nor beyond the queue.
    pub(super) fn key(&mut self, key: Key, pressed: bool) -> bool {
        let codes = key.codes(self.set_2, pressed);
        if !self.scanning || self.queue.len() + codes.len() > QUEUE_BYTES {
            return false;
        }
        self.queue.extend(codes);
        true
    }

    pub(super) fn next(&mut self) -> Option<u8> {
        let byte = self.queue.pop_front()?;
        self.last_sent = byte;
        Some(byte)
    }

    pub(super) fn has_output(&self) -> bool {
        !self.queue.is_empty()
    }

    /// A byte from the host. A command empties the queue: its answer comes first.
    pub(super) fn command(&mut self, byte: u8) {
        if byte < 0xed
            && let Some(waiting) = self.waiting.take()
        {
            self.parameter(waiting, byte);
            return;
        }
        self.waiting = None;
        self.queue.clear();
        match byte {
            0xed => self.wait(Waiting::Leds),
            0xee => self.queue.push_back(0xee),
            0xf0 => self.wait(Waiting::ScanCodeSet),
            0xf2 => self.queue.extend([ACK, 0xab, 0x83]),
            0xf3 => self.wait(Waiting::Typematic),
            0xf4 => {
                self.scanning = true;
                self.queue.push_back(ACK);
            }
            0xf5 | 0xf6 => {
                self.defaults();
                self.scanning = byte == 0xf6;
                self.queue.push_back(ACK);
            }
            // Key types are set 3's; a keyboard in another set takes and ignores them.
            0xf7..=0xfa => self.queue.push_back(ACK),
            0xfe => self.queue.push_back(self.last_sent),
            0xff => {
                self.defaults();
                self.leds = 0;
                self.scanning = true;
                self.queue.extend([ACK, 0xaa]);
            }
            _ => self.queue.push_back(RESEND),
        }
    }

    fn wait(&mut self, waiting: Waiting) {
        self.waiting = Some(waiting);
        self.queue.push_back(ACK);
    }

    fn parameter(&mut self, waiting: Waiting, byte: u8) {
        match (waiting, byte) {
            (Waiting::Leds, _) => self.leds = byte & 7,
            (Waiting::Typematic, _) => self.typematic = byte & 0x7f,
            (Waiting::ScanCodeSet, 0) => {
                let set = if self.set_2 { 2 } else { 1 };
                self.queue.extend([ACK, set]);
                return;
            }
            (Waiting::ScanCodeSet, 1 | 2) => self.set_2 = byte == 2,
            (Waiting::ScanCodeSet, _) => {
                self.queue.push_back(RESEND);
                return;
            }
        }
        self.queue.push_back(ACK);
    }

    fn defaults(&mut self) {
        self.set_2 = true;
        self.typematic = 0x2b;
    }

    pub(super) fn check(&self) -> Result<(), &'static str> {
        if self.queue.len() > QUEUE_BYTES {
            Err("the keyboard's queue is longer than it can be")
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(keyboard: &mut Keyboard, bytes: &[u8]) -> Vec<u8> {
        for byte in bytes {
            keyboard.command(*byte);
        }
        std::iter::from_fn(|| keyboard.next()).collect()
    }

    #[test]
    fn commands_are_answered() {
        let mut keyboard = Keyboard::new();
        assert_eq!(answer(&mut keyboard, &[0xff]), [0xfa, 0xaa]);
        assert_eq!(answer(&mut keyboard, &[0xee]), [0xee]);
        assert_eq!(answer(&mut keyboard, &[0xf2]), [0xfa, 0xab, 0x83]);
        assert_eq!(answer(&mut keyboard, &[0xed, 0x07]), [0xfa, 0xfa]);
        assert_eq!(keyboard.leds(), 7);
        assert_eq!(answer(&mut keyboard, &[0xf3, 0x20]), [0xfa, 0xfa]);
        assert_eq!(answer(&mut keyboard, &[0x12]), [0xfe]);
        assert_eq!(answer(&mut keyboard, &[0xf0, 3]), [0xfa, 0xfe]);
    }

    #[test]
    fn the_scan_code_set_is_changed_and_told() {
        let mut keyboard = Keyboard::new();
        assert_eq!(answer(&mut keyboard, &[0xf0, 0]), [0xfa, 0xfa, 2]);
        assert_eq!(answer(&mut keyboard, &[0xf0, 1]), [0xfa, 0xfa]);
        assert_eq!(answer(&mut keyboard, &[0xf0, 0]), [0xfa, 0xfa, 1]);
        keyboard.key(Key::from_qcode("a").unwrap(), false);
        assert_eq!(answer(&mut keyboard, &[]), [0x9e]);
        assert_eq!(answer(&mut keyboard, &[0xfe]), [0x9e]);
    }

    #[test]
    fn a_disabled_keyboard_takes_no_keys() {
        let mut keyboard = Keyboard::new();
        let key = Key::from_qcode("b").unwrap();
        assert_eq!(answer(&mut keyboard, &[0xf5]), [0xfa]);
        assert!(!keyboard.key(key, true));
        assert_eq!(answer(&mut keyboard, &[0xf4]), [0xfa]);
        assert!(keyboard.key(key, true));
        assert_eq!(answer(&mut keyboard, &[]), [0x32]);
    }

    #[test]
    fn the_queue_is_bounded() {
        let mut keyboard = Keyboard::new();
        let key = Key::from_qcode("b").unwrap();
        let taken = (0..1000).filter(|_| keyboard.key(key, true)).count();
        assert_eq!(taken, QUEUE_BYTES);
    }
}
