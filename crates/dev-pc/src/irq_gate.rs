//! A switch in an interrupt line: the HPET takes IRQ 0 and IRQ 8 away from the 8254 and the MC146818 with it.

use std::sync::Arc;

use device::{InterruptController, IrqLine};
use parking_lot::Mutex;

#[derive(Clone, Copy, Debug)]
struct Gate {
    input: bool,
    open: bool,
}

/// The switch: pin 0 is its input. Its position belongs to the chip that moves it, and is saved there.
pub struct IrqGate {
    output: IrqLine,
    gate: Mutex<Gate>,
}

impl IrqGate {
    /// An open switch: the output follows the input.
    pub fn new(output: IrqLine) -> Arc<IrqGate> {
        Arc::new(IrqGate {
            output,
            gate: Mutex::new(Gate {
                input: false,
                open: true,
            }),
        })
    }

    /// Opens (lets through) or closes (output low).
    pub fn set_open(&self, open: bool) {
        let mut gate = self.gate.lock();
        gate.open = open;
        self.output.set(gate.input && open);
    }
}

impl InterruptController for IrqGate {
    fn set_level(&self, pin: u32, level: bool) {
        if pin == 0 {
            let mut gate = self.gate.lock();
            gate.input = level;
            self.output.set(level && gate.open);
        }
    }
}

#[cfg(test)]
mod tests {
    use device::doubles::RecordingPins;

    use super::*;

    #[test]
    fn a_closed_gate_holds_the_line_low() {
        let pins = Arc::new(RecordingPins::default());
        let gate = IrqGate::new(IrqLine::new(pins.clone(), 0));
        gate.set_level(0, true);
        gate.set_level(1, false);
        assert!(pins.level(0));
        gate.set_open(false);
        assert!(!pins.level(0));
        gate.set_level(0, false);
        gate.set_level(0, true);
        assert!(!pins.level(0));
        gate.set_open(true);
        assert!(pins.level(0));
    }
}
