//! The balloon: gives pages above 32 MiB away and takes them back, as the machine wishes, and says
//! how much memory there is.

use crate::serial::say;
use crate::start_info::StartInfo;
use crate::tick_page;
use crate::virtio::{Device, Queue, over};

const STATISTICS: u64 = 1 << 1;
const FIRST_PAGE: u32 = (32 << 20) / 4096;
/// Pages told of at once.
const BATCH: usize = 256;
const WISH: u64 = 0;
const ACTUAL: u64 = 4;
/// Tags of statistics: free and total memory, in bytes.
const FREE: u16 = 4;
const TOTAL: u16 = 5;

#[repr(C, packed)]
struct Statistic {
    tag: u16,
    value: u64,
}

pub struct Balloon {
    device: Device,
    inflate: Queue,
    deflate: Queue,
    statistics: Option<Queue>,
    /// Pages given away.
    pages: u32,
    /// The most that can be.
    most: u32,
    total: u64,
}

/// What the device reads at its leisure.
static mut STATISTICS_BUFFER: [Statistic; 2] = [
    Statistic {
        tag: FREE,
        value: 0,
    },
    Statistic {
        tag: TOTAL,
        value: 0,
    },
];

impl Balloon {
    pub fn start(device: Device, info: &StartInfo) -> Option<Self> {
        let features = device.begin(STATISTICS)?;
        let (inflate, deflate) = (device.queue(0)?, device.queue(1)?);
        let statistics = match features & STATISTICS {
            0 => None,
            _ => device.queue(2),
        };
        device.ready();
        let first = u64::from(FIRST_PAGE) * 4096;
        let end = info.usable_end(first);
        let mut balloon = Self {
            device,
            inflate,
            deflate,
            statistics,
            pages: 0,
            most: ((end - first) / 4096) as u32,
            total: info.usable_mib() << 20,
        };
        say!("balloon: up to {} MiB", balloon.most / 256);
        balloon.send_statistics();
        Some(balloon)
    }

    fn send_statistics(&mut self) {
        let free = self.total - u64::from(self.pages) * 4096 - (32 << 20).min(self.total);
        let Some(queue) = &mut self.statistics else {
            return;
        };
        // SAFETY: the device has given the buffer back, or has not had it yet.
        unsafe {
            let buffer = &raw mut STATISTICS_BUFFER;
            (*buffer)[0].value = free;
            (*buffer)[1].value = self.total;
            queue.send(&[over(&mut *buffer, false)]);
        }
    }

    /// Does what the machine wishes, if it wishes something new.
    pub fn follow(&mut self) {
        if self
            .statistics
            .as_mut()
            .is_some_and(|queue| queue.finished().is_some())
        {
            self.send_statistics();
        }
        let wish = self.device.config(WISH).min(self.most);
        if wish == self.pages {
            return;
        }
        let mut numbers = [0_u32; BATCH];
        while self.pages != wish {
            let count = self.pages.abs_diff(wish).min(BATCH as u32);
            let inflates = self.pages < wish;
            let from = if inflates {
                self.pages
            } else {
                self.pages - count
            };
            let list = &mut numbers[..count as usize];
            for (place, page) in list.iter_mut().zip(from..) {
                *place = FIRST_PAGE + page;
            }
            let mut buffer = over(&mut numbers, false);
            buffer.bytes = count * 4;
            if inflates {
                self.inflate.run(&[buffer]);
                self.pages += count;
            } else {
                self.deflate.run(&[buffer]);
                self.pages -= count;
            }
            self.device.set_config(ACTUAL, self.pages);
            tick_page::set_balloon_pages(self.pages);
        }
        say!("balloon: {} MiB given away", self.pages / 256);
    }
}
