//! A PS/2 mouse with a wheel and five buttons (IntelliMouse Explorer), off until the host asks for it.
//!
//! The identity is 0 until the sample rates 200, 100, 80 are set one after the other (then 3: a wheel), and from there
//! 4 after 200, 200, 80 (five buttons). Sample rates are stored; movements are sent when they happen.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Bytes that wait for the host; movement beyond is added up until there is room.
const QUEUE_BYTES: usize = 64;
/// Movement that is added up at most, in counts.
const PENDING_LIMIT: i32 = 0x7fff;
const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;

/// The mouse's buttons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MouseButton {
    /// Left.
    Left,
    /// Right.
    Right,
    /// Middle.
    Middle,
    /// Side, the fourth.
    Side,
    /// Extra, the fifth.
    Extra,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Waiting {
    Resolution,
    SampleRate,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mouse {
    queue: VecDeque<u8>,
    last_sent: u8,
    reporting: bool,
    remote: bool,
    wrap: bool,
    scaling_2_1: bool,
    resolution: u8,
    sample_rate: u8,
    rates_before: [u8; 2],
    identity: u8,
    buttons: u8,
    moved_x: i32,
    moved_y: i32,
    moved_wheel: i32,
    waiting: Option<Waiting>,
}

impl Mouse {
    pub(super) fn new() -> Mouse {
        Mouse {
            queue: VecDeque::new(),
            last_sent: 0,
            reporting: false,
            remote: false,
            wrap: false,
            scaling_2_1: false,
            resolution: 2,
            sample_rate: 100,
            rates_before: [0; 2],
            identity: 0,
            buttons: 0,
            moved_x: 0,
            moved_y: 0,
            moved_wheel: 0,
            waiting: None,
        }
    }

    /// Right, down and wheel towards the user are positive.
    pub(super) fn moves(&mut self, right: i32, down: i32, wheel: i32) {
        let add = |sum: i32, by: i32| sum.saturating_add(by).clamp(-PENDING_LIMIT, PENDING_LIMIT);
        self.moved_x = add(self.moved_x, right);
        self.moved_y = add(self.moved_y, down.saturating_neg());
        self.moved_wheel = add(self.moved_wheel, wheel);
        self.report();
    }

    pub(super) fn button(&mut self, button: MouseButton, pressed: bool) {
        let bit = match button {
            MouseButton::Left => 1,
            MouseButton::Right => 2,
            MouseButton::Middle => 4,
            MouseButton::Side => 8,
            MouseButton::Extra => 16,
        };
        let buttons = if pressed {
            self.buttons | bit
        } else {
            self.buttons & !bit
        };
        if buttons != self.buttons {
            self.buttons = buttons;
            if self.streams() {
                self.packet();
            }
        }
    }

    pub(super) fn next(&mut self) -> Option<u8> {
        let byte = self.queue.pop_front()?;
        self.last_sent = byte;
        if self.queue.is_empty() {
            self.report();
        }
        Some(byte)
    }

    pub(super) fn has_output(&self) -> bool {
        !self.queue.is_empty()
    }

    fn streams(&self) -> bool {
        self.reporting && !self.remote && self.queue.len() + 4 <= QUEUE_BYTES
    }

    /// Sends movement that waits, a packet at a time.
    fn report(&mut self) {
        while self.streams() && (self.moved_x, self.moved_y, self.moved_wheel) != (0, 0, 0) {
            if self.moved_x == 0 && self.moved_y == 0 && self.identity == 0 {
                // Nobody listens to the wheel.
                self.moved_wheel = 0;
                return;
            }
            self.packet();
        }
    }

    fn packet(&mut self) {
        let take = |sum: &mut i32, least: i32, most: i32| -> i32 {
            let part = (*sum).clamp(least, most);
            *sum -= part;
            part
        };
        let x = take(&mut self.moved_x, -255, 255);
        let y = take(&mut self.moved_y, -255, 255);
        let wheel = take(&mut self.moved_wheel, -8, 7);
        let sign = |value: i32, bit: u8| if value < 0 { bit } else { 0 };
        self.queue.extend([
            self.buttons & 7 | 8 | sign(x, 0x10) | sign(y, 0x20),
            low_byte(x),
            low_byte(y),
        ]);
        match self.identity {
            3 => self.queue.push_back(low_byte(wheel)),
            4 => self
                .queue
                .push_back(low_byte(wheel) & 0x0f | (self.buttons & 0x18) << 1),
            _ => {}
        }
    }

    /// A byte from the host.
    pub(super) fn command(&mut self, byte: u8) {
        if let Some(waiting) = self.waiting.take() {
            self.parameter(waiting, byte);
            return;
        }
        if self.wrap && byte != 0xec && byte != 0xff {
            self.queue.clear();
            self.queue.push_back(byte);
            return;
        }
        self.queue.clear();
        match byte {
            0xe6 | 0xe7 => self.scaling_2_1 = byte == 0xe7,
            0xe8 => self.waiting = Some(Waiting::Resolution),
            0xe9 => {
                let status = u8::from(self.remote) << 6
                    | u8::from(self.reporting) << 5
                    | u8::from(self.scaling_2_1) << 4
                    | (self.buttons & 1) << 2
                    | (self.buttons & 4) >> 1
                    | (self.buttons & 2) >> 1;
                self.queue
                    .extend([ACK, status, self.resolution, self.sample_rate]);
                return;
            }
            0xea => self.remote = false,
            0xeb => {
                self.queue.push_back(ACK);
                self.packet();
                return;
            }
            0xec => self.wrap = false,
            0xee => self.wrap = true,
            0xf0 => self.remote = true,
            0xf2 => {
                self.queue.extend([ACK, self.identity]);
                return;
            }
            0xf3 => self.waiting = Some(Waiting::SampleRate),
            0xf4 | 0xf5 => self.reporting = byte == 0xf4,
            0xf6 => self.defaults(),
            0xfe => {
                self.queue.push_back(self.last_sent);
                return;
            }
            0xff => {
                self.defaults();
                self.wrap = false;
                self.identity = 0;
                self.queue.extend([ACK, 0xaa, 0x00]);
                return;
            }
            _ => {
                self.queue.push_back(RESEND);
                return;
            }
        }
        self.queue.push_back(ACK);
    }

    fn parameter(&mut self, waiting: Waiting, byte: u8) {
        self.queue.clear();
        match waiting {
            Waiting::Resolution => self.resolution = byte & 3,
            Waiting::SampleRate => {
                let [older, newer] = self.rates_before;
                self.identity = match [older, newer, byte] {
                    [200, 100, 80] if self.identity == 0 => 3,
                    [200, 200, 80] if self.identity == 3 => 4,
                    _ => self.identity,
                };
                self.rates_before = [newer, byte];
                self.sample_rate = byte;
            }
        }
        self.queue.push_back(ACK);
    }

    fn defaults(&mut self) {
        self.reporting = false;
        self.remote = false;
        self.scaling_2_1 = false;
        self.resolution = 2;
        self.sample_rate = 100;
        (self.moved_x, self.moved_y, self.moved_wheel) = (0, 0, 0);
    }

    pub(super) fn check(&self) -> Result<(), &'static str> {
        let moved = [self.moved_x, self.moved_y, self.moved_wheel];
        if self.queue.len() > QUEUE_BYTES {
            Err("the mouse's queue is longer than it can be")
        } else if moved
            .iter()
            .any(|sum| sum.unsigned_abs() > PENDING_LIMIT.unsigned_abs())
        {
            Err("the mouse moved further than it keeps")
        } else if !matches!(self.identity, 0 | 3 | 4) {
            Err("the mouse's identity is not 0, 3 or 4")
        } else {
            Ok(())
        }
    }
}

/// The low eight bits, two's complement.
fn low_byte(value: i32) -> u8 {
    let [low, ..] = value.to_le_bytes();
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(mouse: &mut Mouse, bytes: &[u8]) -> Vec<u8> {
        let mut answers = Vec::new();
        for byte in bytes {
            mouse.command(*byte);
            answers.extend(std::iter::from_fn(|| mouse.next()));
        }
        answers
    }

    fn sent(mouse: &mut Mouse) -> Vec<u8> {
        std::iter::from_fn(|| mouse.next()).collect()
    }

    #[test]
    fn movement_in_three_bytes() {
        let mut mouse = Mouse::new();
        mouse.moves(5, 5, 0);
        assert!(sent(&mut mouse).is_empty());
        assert_eq!(answer(&mut mouse, &[0xff]), [0xfa, 0xaa, 0x00]);
        assert_eq!(answer(&mut mouse, &[0xf4]), [0xfa]);
        mouse.moves(5, 3, 1);
        assert_eq!(sent(&mut mouse), [0x28, 5, 0xfd]);
        mouse.button(MouseButton::Right, true);
        assert_eq!(sent(&mut mouse), [0x0a, 0, 0]);
        mouse.moves(-300, 0, 0);
        assert_eq!(sent(&mut mouse), [0x1a, 0x01, 0, 0x1a, 0xd3, 0]);
    }

    #[test]
    fn the_knock_for_wheel_and_buttons() {
        let mut mouse = Mouse::new();
        assert_eq!(answer(&mut mouse, &[0xf2]), [0xfa, 0]);
        answer(&mut mouse, &[0xf3, 200, 0xf3, 100, 0xf3, 80]);
        assert_eq!(answer(&mut mouse, &[0xf2]), [0xfa, 3]);
        answer(&mut mouse, &[0xf4]);
        mouse.moves(0, 0, -1);
        assert_eq!(sent(&mut mouse), [8, 0, 0, 0xff]);
        answer(&mut mouse, &[0xf3, 200, 0xf3, 200, 0xf3, 80]);
        assert_eq!(answer(&mut mouse, &[0xf2]), [0xfa, 4]);
        mouse.button(MouseButton::Extra, true);
        assert_eq!(sent(&mut mouse), [8, 0, 0, 0x20]);
    }

    #[test]
    fn status_remote_and_wrap() {
        let mut mouse = Mouse::new();
        assert_eq!(answer(&mut mouse, &[0xe9]), [0xfa, 0, 2, 100]);
        assert_eq!(answer(&mut mouse, &[0xe8, 3, 0xe7, 0xf0]), [0xfa; 4]);
        assert_eq!(answer(&mut mouse, &[0xe9]), [0xfa, 0x50, 3, 100]);
        mouse.moves(1, 0, 0);
        assert_eq!(answer(&mut mouse, &[0xeb]), [0xfa, 8, 1, 0]);
        assert_eq!(
            answer(&mut mouse, &[0xee, 0xf2, 0xec, 0xf2]),
            [0xfa, 0xf2, 0xfa, 0xfa, 0]
        );
    }

    #[test]
    fn movement_beyond_the_queue_is_added_up() {
        let mut mouse = Mouse::new();
        answer(&mut mouse, &[0xf4]);
        for _ in 0..100 {
            mouse.moves(1, 0, 0);
        }
        assert!(mouse.queue.len() <= QUEUE_BYTES);
        let all = sent(&mut mouse);
        let total: u32 = all.chunks(3).map(|packet| u32::from(packet[1])).sum();
        assert_eq!(total, 100);
    }
}
