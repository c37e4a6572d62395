//! Ratite's embedded guest. What it does, and what it understands, says `src/lib.rs`.
//!
//! | module | what |
//! |---|---|
//! | `entry` | from the PVH entry, a start-up message or a wake-up to Rust in 64-bit mode |
//! | `cpu` | instructions that Rust has no words for |
//! | `start_info`, `acpi` | what the machine says about itself |
//! | `interrupts` | the timer, the serial line and the power button wake the guest |
//! | `serial`, `shell` | what it says and what it is told |
//! | `pci`, `virtio`, `disk`, `ide`, `balloon`, `entropy`, `ports`, `watchdog` | devices |
//! | `processors` | the other CPUs |
//!
//! Everything runs on the boot CPU, with interrupts off but for the moment in which it waits; the
//! interrupt handlers are a few instructions each (`entry`) and touch nothing that Rust owns.

#![no_std]
#![no_main]

mod acpi;
mod balloon;
mod cpu;
mod disk;
mod entropy;
mod entry;
mod ide;
mod interrupts;
mod memory_functions;
mod pci;
mod ports;
mod processors;
mod serial;
mod shell;
mod start_info;
mod tick_page;
mod virtio;
mod watchdog;

use acpi::Acpi;
use serial::say;
use start_info::StartInfo;

/// All that the guest knows.
pub struct Guest {
    info: StartInfo,
    acpi: Acpi,
    disk: Option<disk::Disk>,
    balloon: Option<balloon::Balloon>,
    ports: Option<ports::Ports>,
    shell: shell::Shell,
    watchdog: Option<watchdog::Watchdog>,
    /// Ticks when the last line was printed.
    told: u64,
}

/// Where the entry code goes on, with the start info's address.
pub extern "C" fn begin(start_info: u64) -> ! {
    let info = StartInfo::at(start_info);
    serial::prepare();
    let acpi = Acpi::find(info.rsdp());
    tick_page::prepare(acpi.cpus().len());
    say!(
        "Ratite guest: {} MiB, {} CPUs, command line '{}'",
        info.usable_mib(),
        acpi.cpus().len(),
        info.command_line()
    );
    live(info, acpi)
}

/// Where a wake-up from suspension to memory goes on, with the start info's address.
pub extern "C" fn wake(start_info: u64) -> ! {
    let info = StartInfo::at(start_info);
    serial::prepare();
    say!("awake");
    let acpi = Acpi::find(info.rsdp());
    acpi.acknowledge_wake();
    live(info, acpi)
}

fn live(info: StartInfo, acpi: Acpi) -> ! {
    acpi.watch_power_button();
    interrupts::prepare(&acpi);
    let mut guest = Guest {
        info,
        acpi,
        disk: None,
        balloon: None,
        ports: None,
        shell: shell::Shell::new(),
        watchdog: None,
        told: tick_page::ticks(),
    };
    guest.find_devices();
    loop {
        guest.look_around();
        interrupts::wait();
    }
}

impl Guest {
    fn find_devices(&mut self) {
        virtio::forget_queues();
        let mut found = |device: virtio::Device| match device.kind() {
            virtio::BLOCK if self.disk.is_none() => {
                self.disk = disk::Disk::start(device, self.info.has_word("disk=write"));
            }
            virtio::BALLOON if self.balloon.is_none() => {
                self.balloon = balloon::Balloon::start(device, &self.info);
            }
            virtio::ENTROPY => entropy::ask(device),
            virtio::CONSOLE if self.ports.is_none() => self.ports = ports::Ports::start(device),
            other => say!("virtio device of type {other}: not used"),
        };
        pci::find(&mut found);
        for place in self.acpi.mmio_devices().chain(self.info.mmio_devices()) {
            if let Some(device) = virtio::Device::at_memory(place) {
                found(device);
            }
        }
    }

    /// Does what there is to do.
    fn look_around(&mut self) {
        if self.acpi.power_button_pressed() {
            say!("power button");
            self.acpi.power_off();
        }
        let nmis = interrupts::take_nmis();
        if nmis != 0 {
            say!("NMI");
        }
        if let Some(watchdog) = &self.watchdog {
            watchdog.feed();
        }
        if let Some(balloon) = &mut self.balloon {
            balloon.follow();
        }
        if let Some(ports) = &mut self.ports {
            ports.follow();
        }
        while let Some(byte) = serial::read() {
            if let Some(line) = self.shell.typed(byte) {
                shell::obey(self, &line);
            }
        }
        let ticks = tick_page::ticks();
        if ticks >= self.told + tick_page::TICKS_A_SECOND {
            self.told = ticks;
            say!("tick {ticks}");
            if let Some(disk) = &mut self.disk {
                disk.every_second();
            }
        }
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    say!("the guest has a fault: {info}");
    loop {
        cpu::halt_for_good();
    }
}
