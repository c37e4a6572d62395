//! The watchdog of the Intel 6300ESB, a PCI function.
//!
//! | configuration | register |
//! |---|---|
//! | 0x60 | bits 1-0: interrupt of the first stage (0: the pin, 2: SMI, 3: none), 2: fast clock, 5: the output is off |
//! | 0x68 | lock: bit 0 locks this register, 1 enables, 2 free running (the first stage is left out) |
//!
//! | offset in BAR 0 | register |
//! |---|---|
//! | 0x00, 0x04 | preload of the first and of the second stage, 20 bits |
//! | 0x08 | bit 0: the first stage has passed; cleared by a one |
//! | 0x0c | bit 8: reload; bit 9: the second stage has passed, cleared by a one |
//!
//! Source: Intel 6300ESB I/O Controller Hub datasheet (300641), chapter "Watchdog Timer". Before each write to a preload or
//! to 0x0c the guest writes 0x80 and 0x86 to 0x0c. The counter has 35 bits at 33 MHz; a preload is its upper part: units of
//! 2^15 clocks (about 1 ms), or of 2^5 (about 1 µs) with the fast clock. After the second stage the watchdog stands until it is
//! reloaded or the machine is reset; what a timeout does is the machine's to decide. That it happened stays readable over a
//! system reset. SMI, which firmware would take, is not sent.

use std::sync::{Arc, Weak};

use device::{
    Clock, Device, Error, IoHandler, MachineRequest, MachineSink, ResetKind, SavedState, Timer,
    Width, merge_register, read_register,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use device::pci::{
    Bar, BarKind, HeaderSaved, PciAddress, PciBus, PciFunction, PciHeader, PciIdentity,
};

const NAME: &str = "i6300esb";
const VERSION: u32 = 1;
const CONFIG: u8 = 0x60;
const CONFIG_INTERRUPT: u8 = 0x03;
const CONFIG_FAST: u8 = 0x04;
const CONFIG_OUTPUT_OFF: u8 = 0x20;
const LOCK: u8 = 0x68;
const LOCK_LOCKED: u8 = 0x01;
const LOCK_ENABLED: u8 = 0x02;
const LOCK_FREE_RUNNING: u8 = 0x04;
const PRELOAD_MASK: u32 = 0x000f_ffff;
const RELOAD: u32 = 1 << 8;
const TIMEOUT: u32 = 1 << 9;
const CLOCK_MHZ: u64 = 33;

/// How far the unlocking sequence has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Unlocking {
    #[default]
    Locked,
    First,
    Open,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Stage {
    #[default]
    Standing,
    First,
    Second,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Watchdog {
    preloads: [u32; 2],
    unlocking: Unlocking,
    /// The first stage's interrupt.
    status: bool,
    timed_out: bool,
    stage: Stage,
    /// End of the stage.
    deadline_ns: u64,
    /// Copies of the configuration bytes, which the register block cannot reach.
    config: u8,
    lock: u8,
}

impl Watchdog {
    fn new() -> Watchdog {
        Watchdog {
            preloads: [PRELOAD_MASK; 2],
            unlocking: Unlocking::Locked,
            status: false,
            timed_out: false,
            stage: Stage::Standing,
            deadline_ns: 0,
            config: 0,
            lock: 0,
        }
    }

    fn enter(&mut self, stage: Stage, now_ns: u64) {
        let [first, second] = self.preloads;
        let preload = if stage == Stage::First { first } else { second };
        let unit_clocks: u64 = if self.config & CONFIG_FAST != 0 {
            1 << 5
        } else {
            1 << 15
        };
        let length_ns = u64::from(preload) * unit_clocks * 1000 / CLOCK_MHZ;
        self.stage = stage;
        self.deadline_ns = now_ns.saturating_add(length_ns.max(Timer::SHORTEST_PERIOD_NS));
    }

    fn restart(&mut self, now_ns: u64) {
        if self.lock & LOCK_ENABLED == 0 {
            self.stage = Stage::Standing;
        } else if self.lock & LOCK_FREE_RUNNING != 0 {
            self.enter(Stage::Second, now_ns);
        } else {
            self.enter(Stage::First, now_ns);
        }
    }

    /// A stage ends; true if the output is driven.
    fn expire(&mut self, now_ns: u64) -> bool {
        if self.stage == Stage::Standing || now_ns < self.deadline_ns {
            return false;
        }
        if self.stage == Stage::First {
            self.status = true;
            let ended_ns = self.deadline_ns;
            self.enter(Stage::Second, ended_ns);
            return false;
        }
        self.stage = Stage::Standing;
        self.timed_out = true;
        self.config & CONFIG_OUTPUT_OFF == 0
    }

    fn asks(&self) -> bool {
        self.status && self.config & CONFIG_INTERRUPT == 0
    }

    fn set_config(&mut self, config: u8, lock: u8, now_ns: u64) {
        let changed = (self.lock ^ lock) & (LOCK_ENABLED | LOCK_FREE_RUNNING) != 0;
        self.config = config;
        self.lock = lock;
        if changed {
            self.restart(now_ns);
        }
    }

    fn read(&self, offset: u64) -> u32 {
        let [first, second] = self.preloads;
        match offset {
            0x0 => first,
            0x4 => second,
            0x8 => u32::from(self.status),
            0xc if self.timed_out => TIMEOUT,
            _ => 0,
        }
    }

    fn write(&mut self, offset: u64, value: u32, now_ns: u64) {
        if offset == 0x8 {
            if value & 1 != 0 {
                self.status = false;
            }
            return;
        }
        let open = self.unlocking == Unlocking::Open;
        self.unlocking = match (self.unlocking, offset, value & 0xff) {
            (_, 0xc, 0x80) => Unlocking::First,
            (Unlocking::First, 0xc, 0x86) => Unlocking::Open,
            _ => Unlocking::Locked,
        };
        if !open {
            return;
        }
        let [first, second] = &mut self.preloads;
        match offset {
            0x0 => *first = value & PRELOAD_MASK,
            0x4 => *second = value & PRELOAD_MASK,
            0xc => {
                if value & TIMEOUT != 0 {
                    self.timed_out = false;
                }
                if value & RELOAD != 0 {
                    self.restart(now_ns);
                }
            }
            _ => {}
        }
    }
}

/// The registers behind BAR 0, apart from the function, so that the map of memory does not own the function.
struct Registers {
    clock: Clock,
    machine: Arc<dyn MachineSink>,
    timer: Timer,
    function: Weak<I6300esb>,
    state: Mutex<Watchdog>,
}

impl Registers {
    fn change<T>(&self, work: impl FnOnce(&mut Watchdog, u64) -> T) -> T {
        let mut state = self.state.lock();
        let now_ns = self.clock.now_ns();
        let mut timed_out = state.expire(now_ns);
        // Both stages may have ended since anybody looked.
        timed_out |= state.expire(now_ns);
        let result = work(&mut state, now_ns);
        self.arm(&state);
        if let Some(function) = self.function.upgrade() {
            function.header.set_intx(state.asks());
        }
        drop(state);
        if timed_out {
            self.machine.request(MachineRequest::WatchdogExpired);
        }
        result
    }

    fn arm(&self, state: &Watchdog) {
        match state.stage {
            Stage::Standing => self.timer.cancel(),
            Stage::First | Stage::Second => self.timer.arm(state.deadline_ns),
        }
    }
}

impl IoHandler for Registers {
    fn read(&self, offset: u64, width: Width) -> u64 {
        self.change(|state, _| read_register(offset, width, |at| state.read(at)))
    }

    fn write(&self, offset: u64, width: Width, value: u64) {
        self.change(|state, now_ns| {
            for register in [0x0, 0x4, 0x8, 0xc] {
                // Bytes that are not written count as zero: no register here is written in parts.
                let merged = merge_register(register, 0, offset, width, value);
                if let Some((value, _)) = merged {
                    state.write(register, value, now_ns);
                }
            }
        });
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct I6300esbState {
    header: HeaderSaved,
    watchdog: Watchdog,
}

/// The function.
pub struct I6300esb {
    header: PciHeader,
    registers: Arc<Registers>,
}

impl I6300esb {
    /// A watchdog that tells `machine` of its timeout.
    pub fn new(
        bus: &PciBus,
        address: PciAddress,
        clock: &Clock,
        machine: Arc<dyn MachineSink>,
    ) -> Arc<I6300esb> {
        let identity = PciIdentity {
            vendor: 0x8086,
            device: 0x25ab,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
            class: 0x08_8000,
            revision: 0,
            pin: 1,
            multifunction: false,
        };
        let header = PciHeader::new(&identity, bus, address);
        header.set_register(
            CONFIG,
            &[0],
            &[CONFIG_INTERRUPT | CONFIG_FAST | CONFIG_OUTPUT_OFF],
        );
        header.set_register(
            LOCK,
            &[0],
            &[LOCK_LOCKED | LOCK_ENABLED | LOCK_FREE_RUNNING],
        );
        Arc::new_cyclic(|function| {
            let registers = Arc::new_cyclic(|weak: &Weak<Registers>| {
                let weak = weak.clone();
                Registers {
                    clock: clock.clone(),
                    machine,
                    timer: clock.timer(move || {
                        if let Some(registers) = weak.upgrade() {
                            registers.change(|_, _| ());
                        }
                    }),
                    function: function.clone(),
                    state: Mutex::new(Watchdog::new()),
                }
            });
            header.add_bar(Bar {
                index: 0,
                kind: BarKind::Memory,
                length: 16,
                handler: registers.clone(),
                name: NAME.to_owned(),
            });
            I6300esb { header, registers }
        })
    }

    /// Lets the registers know the configuration bytes.
    fn apply(&self) {
        let config = self.header.byte(CONFIG);
        let lock = self.header.byte(LOCK);
        let bits = LOCK_LOCKED | LOCK_ENABLED | LOCK_FREE_RUNNING;
        self.header.set_locked(LOCK, bits, lock & LOCK_LOCKED != 0);
        self.registers
            .change(|state, now_ns| state.set_config(config, lock, now_ns));
    }
}

impl PciFunction for I6300esb {
    fn header(&self) -> &PciHeader {
        &self.header
    }

    fn config_written(&self, first: u8, last: u8) {
        if first <= LOCK && last >= CONFIG {
            self.apply();
        }
    }
}

impl Device for I6300esb {
    fn reset(&self, kind: ResetKind) {
        self.header.reset();
        self.registers.change(|state, _| {
            *state = Watchdog {
                timed_out: kind == ResetKind::System && state.timed_out,
                ..Watchdog::new()
            };
        });
        self.apply();
    }

    fn save(&self) -> Result<SavedState, Error> {
        let state = I6300esbState {
            header: self.header.save(),
            watchdog: self.registers.state.lock().clone(),
        };
        SavedState::of(NAME, VERSION, &state)
    }

    fn restore(&self, state: &SavedState) -> Result<(), Error> {
        let new: I6300esbState = state.read(NAME, VERSION)?;
        let watchdog = &new.watchdog;
        if watchdog
            .preloads
            .iter()
            .any(|preload| preload & !PRELOAD_MASK != 0)
        {
            return Err(device::Error::bad_state(
                NAME,
                "a preload has more than 20 bits",
            ));
        }
        self.header.restore(NAME, new.header)?;
        let mut state = self.registers.state.lock();
        *state = Watchdog {
            config: self.header.byte(CONFIG),
            lock: self.header.byte(LOCK),
            ..new.watchdog
        };
        self.registers.arm(&state);
        drop(state);
        self.apply();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use device::conformance::{self, Subject};
    use device::doubles::{RecordingMachine, RecordingPins};
    use device::{IoMap, IrqLine};

    use super::*;

    const DEVFN: u8 = 7 << 3;
    const BASE: u64 = 0xfea0_0000;

    struct Bench {
        bus: Arc<PciBus>,
        function: Arc<I6300esb>,
        clock: Clock,
        machine: Arc<RecordingMachine>,
        pins: Arc<RecordingPins>,
    }

    impl Bench {
        /// With its registers at [`BASE`].
        fn new() -> Bench {
            let pins = Arc::new(RecordingPins::default());
            let machine = Arc::new(RecordingMachine::default());
            let clock = Clock::stepped();
            let bus = PciBus::new(
                Arc::new(IoMap::new(IoMap::LAST_PORT)),
                Arc::new(IoMap::new(u64::MAX)),
                pins.clone(),
                std::array::from_fn(|_| IrqLine::new(pins.clone(), 10)),
            );
            let address = PciAddress::new(7, 0).unwrap();
            let function = I6300esb::new(&bus, address, &clock, machine.clone());
            assert!(bus.plug(address, function.clone()).is_ok());
            function.reset(ResetKind::PowerOn);
            bus.config_write(DEVFN, 0x10, Width::Dword, BASE);
            bus.config_write(DEVFN, 0x04, Width::Word, 2);
            Bench {
                bus,
                function,
                clock,
                machine,
                pins,
            }
        }

        fn read(&self, offset: u64) -> u64 {
            self.bus.memory().read(BASE + offset, Width::Dword)
        }

        fn write_raw(&self, offset: u64, value: u64) {
            self.bus.memory().write(BASE + offset, Width::Dword, value);
        }

        fn write(&self, offset: u64, value: u64) {
            self.write_raw(0xc, 0x80);
            self.write_raw(0xc, 0x86);
            self.write_raw(offset, value);
        }

        fn lock(&self, value: u64) {
            self.bus.config_write(DEVFN, LOCK, Width::Byte, value);
        }
    }

    #[test]
    fn registers_open_for_one_write() {
        let bench = Bench::new();
        assert_eq!(bench.read(0), 0xf_ffff);
        bench.write_raw(0, 5);
        assert_eq!(bench.read(0), 0xf_ffff);
        bench.write(0, 0x123_4567);
        assert_eq!(bench.read(0), 0x3_4567);
        bench.write_raw(4, 5);
        assert_eq!(bench.read(4), 0xf_ffff);
    }

    #[test]
    fn two_stages_then_the_timeout() {
        let bench = Bench::new();
        bench.write(0, 1000);
        bench.write(4, 2000);
        bench.lock(2);
        // 1000 units of 2^15 clocks of 33 MHz: 992.97 ms.
        bench.clock.step(992_000_000);
        assert_eq!(bench.read(8), 0);
        bench.clock.step(1_000_000);
        assert_eq!(bench.read(8), 1);
        assert!(bench.pins.level(10));
        bench.write_raw(8, 1);
        assert!(!bench.pins.level(10));
        bench.clock.step(1_985_000_000);
        assert!(bench.machine.take().is_empty());
        bench.clock.step(2_000_000);
        assert_eq!(bench.machine.take(), [MachineRequest::WatchdogExpired]);
        assert_eq!(bench.read(0xc), 0x200);
        bench.function.reset(ResetKind::System);
        bench.bus.config_write(DEVFN, 0x10, Width::Dword, BASE);
        bench.bus.config_write(DEVFN, 0x04, Width::Word, 2);
        assert_eq!(bench.read(0xc), 0x200);
        bench.write(0xc, 0x200);
        assert_eq!(bench.read(0xc), 0);
    }

    #[test]
    fn reloading_keeps_it_quiet() {
        let bench = Bench::new();
        bench.write(0, 1000);
        bench.write(4, 1000);
        bench.lock(2);
        for _ in 0..20 {
            bench.clock.step(900_000_000);
            bench.write(0xc, 0x100);
        }
        assert_eq!(bench.read(8), 0);
        bench.lock(0);
        bench.clock.step(100_000_000_000);
        assert!(bench.machine.take().is_empty());
    }

    #[test]
    fn the_lock_register_locks_itself() {
        let bench = Bench::new();
        bench.lock(3);
        bench.lock(0);
        assert_eq!(bench.bus.config_read(DEVFN, LOCK, Width::Byte), 3);
        bench.function.reset(ResetKind::System);
        bench.lock(2);
        bench.lock(0);
        assert_eq!(bench.bus.config_read(DEVFN, LOCK, Width::Byte), 0);
    }

    #[test]
    fn free_running_leaves_the_first_stage_out_and_the_output_can_be_off() {
        let bench = Bench::new();
        bench.write(4, 100);
        bench.bus.config_write(DEVFN, CONFIG, Width::Byte, 0x20);
        bench.lock(6);
        bench.clock.step(200_000_000);
        assert_eq!((bench.read(8), bench.read(0xc)), (0, 0x200));
        assert!(bench.machine.take().is_empty());
        bench.bus.config_write(DEVFN, CONFIG, Width::Byte, 0);
        bench.write(0xc, 0x100);
        bench.clock.step(200_000_000);
        assert_eq!(bench.machine.take(), [MachineRequest::WatchdogExpired]);
    }

    #[test]
    fn it_conforms() {
        conformance::check(|| {
            let bench = Bench::new();
            bench.function.reset(ResetKind::PowerOn);
            bench.lock(2);
            Subject {
                ranges: vec![(bench.function.registers.clone(), 16)],
                device: bench.function.clone(),
                clock: bench.clock.clone(),
                kept_by_reset: &[],
            }
        });
    }
}
