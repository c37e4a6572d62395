//! Pausing, interrupts, and chains that a device holds.

use std::sync::{Arc, OnceLock};

use device::{Clock, Device, Error, SavedState};
use parking_lot::Mutex;

use crate::test_driver::*;
use crate::{Chain, DeviceQueue, DeviceType, HostEntropy, Link, VirtioDevice, VirtioRng};

/// Takes chains and holds them until it is told otherwise.
#[derive(Default)]
struct Holding {
    queue: OnceLock<Arc<DeviceQueue>>,
    link: OnceLock<Arc<Link>>,
    held: Mutex<Vec<Chain>>,
}

impl Holding {
    fn finish_all(&self, byte: u8) {
        let Some(mut queue) = self.queue.get().unwrap().lock() else {
            return;
        };
        for chain in self.held.lock().drain(..) {
            let written = queue.write(chain, 1, &[byte; 2]) as u32;
            queue.finish(chain, written);
        }
        queue.signal();
    }
}

impl VirtioDevice for Holding {
    fn device_type(&self) -> DeviceType {
        DeviceType::Entropy
    }
    fn features(&self) -> u64 {
        0
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![16]
    }
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }
    fn write_config(&self, _offset: usize, _bytes: &[u8]) {}
    fn connect(&self, link: Arc<Link>, queues: Vec<Arc<DeviceQueue>>) {
        self.queue.set(queues[0].clone()).ok().unwrap();
        self.link.set(link).ok().unwrap();
    }
    fn activate(&self, _features: u64) {
        self.queue_notified(0);
    }
    fn queue_notified(&self, _index: u16) {
        let Some(mut queue) = self.queue.get().unwrap().lock() else {
            return;
        };
        while let Some(chain) = queue.pop() {
            self.held.lock().push(chain);
        }
    }
    fn reset(&self) {}
    fn save(&self) -> Result<SavedState, Error> {
        SavedState::of("holding", 1, &())
    }
    fn restore(&self, state: &SavedState) -> Result<(), Error> {
        state.read("holding", 1)
    }
}

fn rng() -> Arc<VirtioRng> {
    VirtioRng::new(Box::new(HostEntropy), None, &Clock::stepped())
}

#[test]
fn a_paused_device_touches_nothing() {
    let mut driver = Driver::new(rng());
    driver.start(0);
    driver.mmio.core().pause();
    let head = driver.send(0, &[writable(BUFFERS, 4)]);
    assert_eq!(driver.take_used(0), None);
    driver.mmio.core().resume();
    assert_eq!(driver.take_used(0), Some((head, 4)));
}

#[test]
fn the_driver_chooses_when_to_be_interrupted() {
    for features in [0, EVENT_IDX] {
        let mut driver = Driver::new(rng());
        driver.start(features);
        driver.send(0, &[writable(BUFFERS, 4)]);
        assert_eq!(driver.take_interrupt(), 1);
        // No interrupts, please: by flag, or by an index far away.
        driver.put(Driver::available(0), &1_u16.to_le_bytes());
        let event = Driver::available(0) + 4 + 2 * 8;
        driver.put(event, &0x4000_u16.to_le_bytes());
        driver.send(0, &[writable(BUFFERS, 4)]);
        assert_eq!(driver.take_interrupt(), 0);
        // After the fourth chain.
        driver.put(event, &3_u16.to_le_bytes());
        driver.send(0, &[writable(BUFFERS, 4)]);
        assert_eq!(driver.take_interrupt(), 0);
        driver.send(0, &[writable(BUFFERS, 4)]);
        let wanted = if features == 0 { 0 } else { 1 };
        assert_eq!(driver.take_interrupt(), wanted);
    }
}

#[test]
fn a_held_chain_cannot_be_given_twice() {
    let device = Arc::new(Holding::default());
    let mut driver = Driver::new(device.clone());
    driver.start(0);
    let head = driver.send(0, &[writable(BUFFERS, 4)]);
    assert!(!driver.is_broken());
    driver.offer_head(0, head);
    driver.notify(0);
    assert!(driver.is_broken());
}

#[test]
fn what_is_late_after_a_reset_does_nothing() {
    let device = Arc::new(Holding::default());
    let mut driver = Driver::new(device.clone());
    driver.start(0);
    driver.send(0, &[writable(BUFFERS, 4)]);
    let late = device.held.lock().clone();
    driver.start(0);
    // The same head is held again, by the new driver.
    driver.send(0, &[writable(BUFFERS, 4)]);
    *device.held.lock() = late;
    device.finish_all(7);
    assert_eq!(driver.take_used(0), None);
    assert_eq!(driver.get(BUFFERS, 4), [0; 4]);
}

#[test]
fn held_chains_survive_being_saved() {
    let device = Arc::new(Holding::default());
    let mut driver = Driver::new(device);
    driver.start(EVENT_IDX);
    let first = driver.send(0, &[readable(BUFFERS, 1), writable(BUFFERS, 4)]);
    let second = driver.send(0, &[writable(BUFFERS + 16, 4)]);
    driver.mmio.core().pause();
    let saved = driver.mmio.save().unwrap();

    let device = Arc::new(Holding::default());
    let mut other = Driver::over(device.clone(), driver.memory.clone());
    other.mmio.core().pause();
    other.mmio.restore(&saved).unwrap();
    assert_eq!(other.mmio.save().unwrap(), saved);
    assert_eq!(other.status(), 15);
    other.mmio.core().resume();
    assert_eq!(device.held.lock().len(), 2);
    device.finish_all(9);
    assert_eq!(other.take_used(0), Some((first, 2)));
    assert_eq!(other.take_used(0), Some((second, 2)));
    assert_eq!(driver.get(BUFFERS, 4), [0, 9, 9, 0]);
    assert_eq!(driver.get(BUFFERS + 16, 4), [0, 9, 9, 0]);
}

#[test]
fn an_interrupt_is_not_lost_in_a_pause() {
    let device = Arc::new(Holding::default());
    let mut driver = Driver::new(device.clone());
    driver.start(0);
    driver.send(0, &[writable(BUFFERS, 4)]);
    let chain = device.held.lock().pop().unwrap();
    // Finished, and paused before the signal.
    device.queue.get().unwrap().lock().unwrap().finish(chain, 0);
    driver.mmio.core().pause();
    let saved = driver.mmio.save().unwrap();
    driver.mmio.core().resume();
    assert_eq!(driver.take_interrupt(), 1);
    driver.mmio.core().pause();
    driver.mmio.restore(&saved).unwrap();
    assert_eq!(driver.take_interrupt(), 0);
    driver.mmio.core().resume();
    assert_eq!(driver.take_interrupt(), 1);
}

#[test]
fn a_bad_state_leaves_the_device_as_it_was() {
    let device = Arc::new(Holding::default());
    let mut driver = Driver::new(device);
    driver.start(0);
    driver.send(0, &[writable(BUFFERS, 4)]);
    driver.mmio.core().pause();
    let good = driver.mmio.save().unwrap();
    for (path, value) in [
        ("/core/status", 0x20),
        ("/core/status", 4),
        ("/core/registers/driver_features", 1),
        ("/core/queues/0/setup/size", 64),
        ("/core/queues/0/setup/descriptors", 4),
        ("/core/queues/0/held/0/head", 99),
    ] {
        let mut bad = good.clone();
        *bad.data.pointer_mut(path).unwrap() = value.into();
        assert!(driver.mmio.restore(&bad).is_err(), "{path}");
        assert_eq!(driver.mmio.save().unwrap(), good, "{path}");
    }
}

#[test]
fn a_change_of_configuration_is_told_to_a_driver_that_is_there() {
    let device = Arc::new(Holding::default());
    let mut driver = Driver::new(device.clone());
    let link = device.link.get().unwrap();
    link.config_changed();
    assert_eq!(driver.take_interrupt(), 0);
    assert_eq!(driver.read(0xfc), 1);
    driver.start(0);
    link.config_changed();
    assert_eq!(driver.take_interrupt(), 2);
    assert_eq!(driver.read(0xfc), 2);
}
