//! Devices that are tried once: the source of randomness and the console.

use crate::serial::say;
use crate::virtio::{Buffer, Device, over};

const TRANSMIT: u16 = 1;
const GREETING: &[u8] = b"Ratite guest on the virtio console\r\n";

pub fn entropy(device: Device) {
    let queue = device.begin(0).and_then(|_| device.queue(0));
    let Some(mut queue) = queue else {
        return;
    };
    device.ready();
    let mut bytes = [0_u8; 8];
    let length = queue.run(&[over(&mut bytes, true)]);
    // SAFETY: bytes of ours, which the device wrote behind the compiler's back.
    let bytes = unsafe { (&raw const bytes).read_volatile() };
    say!("rng: {length} bytes, {bytes:02x?}");
}

pub fn console(device: Device) {
    let queue = device.begin(0).and_then(|_| device.queue(TRANSMIT));
    let Some(mut queue) = queue else {
        return;
    };
    device.ready();
    queue.run(&[Buffer {
        address: GREETING.as_ptr() as u64,
        bytes: GREETING.len() as u32,
        device_writes: false,
    }]);
    say!("console: greeted");
}
