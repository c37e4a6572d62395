//! What stands around a device in tests: pins, memory and a machine that remember what they were told.

use std::collections::BTreeMap;
use std::mem;

use parking_lot::Mutex;

use crate::{
    DmaSpace, Error, InterruptController, MachineRequest, MachineSink, MsiMessage, MsiSink,
};

/// Remembers every change of every pin, and every message.
#[derive(Debug, Default)]
pub struct RecordingPins {
    levels: Mutex<BTreeMap<u32, bool>>,
    changes: Mutex<Vec<(u32, bool)>>,
    messages: Mutex<Vec<MsiMessage>>,
}

impl RecordingPins {
    /// The changes since the last call.
    pub fn take(&self) -> Vec<(u32, bool)> {
        mem::take(&mut self.changes.lock())
    }

    /// The messages since the last call.
    pub fn take_messages(&self) -> Vec<MsiMessage> {
        mem::take(&mut self.messages.lock())
    }

    /// The level of a pin now.
    pub fn level(&self, pin: u32) -> bool {
        self.levels.lock().get(&pin).copied().unwrap_or(false)
    }
}

impl InterruptController for RecordingPins {
    fn set_level(&self, pin: u32, level: bool) {
        self.levels.lock().insert(pin, level);
        self.changes.lock().push((pin, level));
    }
}

impl MsiSink for RecordingPins {
    fn send(&self, message: MsiMessage) {
        self.messages.lock().push(message);
    }
}

/// Remembers what devices asked of the machine.
#[derive(Debug, Default)]
pub struct RecordingMachine {
    requests: Mutex<Vec<MachineRequest>>,
}

impl RecordingMachine {
    /// The requests since the last call.
    pub fn take(&self) -> Vec<MachineRequest> {
        mem::take(&mut self.requests.lock())
    }
}

impl MachineSink for RecordingMachine {
    fn request(&self, request: MachineRequest) {
        self.requests.lock().push(request);
    }
}

/// Guest memory from address 0.
#[derive(Debug)]
pub struct SmallMemory {
    bytes: Mutex<Vec<u8>>,
}

impl SmallMemory {
    /// So many zeros.
    pub fn new(length: usize) -> SmallMemory {
        SmallMemory {
            bytes: Mutex::new(vec![0; length]),
        }
    }
}

fn place(bytes: &mut [u8], address: u64, length: usize) -> Result<&mut [u8], Error> {
    usize::try_from(address)
        .ok()
        .and_then(|start| bytes.get_mut(start..start.checked_add(length)?))
        .ok_or(Error::Dma {
            address,
            length: length as u64,
        })
}

impl DmaSpace for SmallMemory {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Error> {
        let mut bytes = self.bytes.lock();
        into.copy_from_slice(place(&mut bytes, address, into.len())?);
        Ok(())
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), Error> {
        let mut bytes = self.bytes.lock();
        place(&mut bytes, address, from.len())?.copy_from_slice(from);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_ends_where_it_ends() {
        let memory = SmallMemory::new(16);
        memory.write(14, &[1, 2]).unwrap();
        let mut two = [0; 2];
        memory.read(14, &mut two).unwrap();
        assert_eq!(two, [1, 2]);
        assert!(memory.write(15, &[1, 2]).is_err());
        assert!(memory.read(u64::MAX, &mut two).is_err());
    }
}
