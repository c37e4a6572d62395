//! The source of randomness, which is asked once.

use crate::serial::say;
use crate::virtio::{Device, over};

pub fn ask(device: Device) {
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
