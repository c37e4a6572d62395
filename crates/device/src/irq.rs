//! Interrupt lines and messages.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

/// Something with interrupt inputs: an interrupt controller, or the part of a board that routes them.
///
/// Calls come from devices, possibly with their locks held: the callee never calls the device back from inside.
pub trait InterruptController: Send + Sync {
    /// Input `pin` has this level now. Called only when the level changes; an unknown pin is ignored.
    fn set_level(&self, pin: u32, level: bool);
}

/// A message-signalled interrupt: a write of `data` to `address`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MsiMessage {
    /// Where the write goes.
    pub address: u64,
    /// What is written.
    pub data: u32,
}

/// Takes message-signalled interrupts.
pub trait MsiSink: Send + Sync {
    /// Delivers a message; one that is not an interrupt on this machine is dropped.
    fn send(&self, message: MsiMessage);
}

struct Wire {
    ends: Vec<(Arc<dyn InterruptController>, u32)>,
    /// How many sources drive the wire high. The lock is held while the ends hear of it, so they hear changes in order.
    drivers: Mutex<u32>,
}

/// One source on an interrupt line.
///
/// The line is high while any of its sources drives it high. Each holder has a source of its own: [`IrqLine::share`]
/// adds one. A source that is dropped lets go of the line.
pub struct IrqLine {
    wire: Arc<Wire>,
    high: AtomicBool,
}

impl IrqLine {
    /// A line that ends at one pin of a controller.
    pub fn new(controller: Arc<dyn InterruptController>, pin: u32) -> IrqLine {
        IrqLine::with_ends(vec![(controller, pin)])
    }

    /// A line that ends at several pins (IRQ 0 at the 8259 and at the IOAPIC, say).
    pub fn with_ends(ends: Vec<(Arc<dyn InterruptController>, u32)>) -> IrqLine {
        IrqLine {
            wire: Arc::new(Wire {
                ends,
                drivers: Mutex::new(0),
            }),
            high: AtomicBool::new(false),
        }
    }

    /// A line that ends nowhere, for a device whose interrupt is not connected.
    pub fn unconnected() -> IrqLine {
        IrqLine::with_ends(Vec::new())
    }

    /// Another source on the same line, low.
    pub fn share(&self) -> IrqLine {
        IrqLine {
            wire: self.wire.clone(),
            high: AtomicBool::new(false),
        }
    }

    /// Drives the line from this source.
    pub fn set(&self, high: bool) {
        let mut drivers = self.wire.drivers.lock();
        if self.high.swap(high, Ordering::AcqRel) == high {
            return;
        }
        let before = *drivers;
        *drivers = if high {
            before.saturating_add(1)
        } else {
            before.saturating_sub(1)
        };
        if (before == 0) != (*drivers == 0) {
            for (controller, pin) in &self.wire.ends {
                controller.set_level(*pin, high);
            }
        }
    }

    /// High and low again: one edge, if no other source holds the line high.
    pub fn pulse(&self) {
        self.set(true);
        self.set(false);
    }

    /// Whether this source drives the line high.
    pub fn is_high(&self) -> bool {
        self.high.load(Ordering::Acquire)
    }
}

impl Drop for IrqLine {
    fn drop(&mut self) {
        self.set(false);
    }
}

impl fmt::Debug for IrqLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IrqLine")
            .field("high", &self.is_high())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doubles::RecordingPins;

    #[test]
    fn a_line_is_the_or_of_its_sources() {
        let pins = Arc::new(RecordingPins::default());
        let first = IrqLine::new(pins.clone(), 5);
        let second = first.share();
        first.set(true);
        second.set(true);
        first.set(false);
        assert_eq!(pins.take(), [(5, true)]);
        assert!(pins.level(5));
        second.set(false);
        assert_eq!(pins.take(), [(5, false)]);
    }

    #[test]
    fn a_dropped_source_lets_go() {
        let pins = Arc::new(RecordingPins::default());
        let first = IrqLine::new(pins.clone(), 1);
        let second = first.share();
        second.set(true);
        drop(second);
        assert_eq!(pins.take(), [(1, true), (1, false)]);
        assert!(!first.is_high());
    }

    #[test]
    fn setting_a_level_twice_is_told_once_and_a_pulse_is_an_edge() {
        let pins = Arc::new(RecordingPins::default());
        let line = IrqLine::with_ends(vec![(pins.clone(), 0), (pins.clone(), 2)]);
        line.set(true);
        line.set(true);
        line.set(false);
        line.pulse();
        assert_eq!(
            pins.take(),
            [
                (0, true),
                (2, true),
                (0, false),
                (2, false),
                (0, true),
                (2, true),
                (0, false),
                (2, false)
            ]
        );
    }
}
