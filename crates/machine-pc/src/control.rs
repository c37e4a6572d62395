//! The machine's own side: what its thread owns, and the changes of its run state.

use std::sync::Arc;

use api::{BlockErrorAction, EventSink, PanicAction, RebootAction, ShutdownAction, WatchdogAction};
use boot_pc::acpi::LegacyDevice;
use dev_storage::Ide;
use device::{Clock, MachineRequest, ResetKind};
use guest_memory::GuestMemory;
use tokio::sync::watch;
use vcpu::VcpuState;

use crate::assembly::{self, Assembled};
use crate::boot;
use crate::chipset::Chipset;
use crate::config::{AcceleratorKind, MachineConfig};
use crate::cpu_thread::CpuShared;
use crate::devices::{DeviceServices, Plugged};
use crate::error::MachineError;
use crate::events;
use crate::hotplug::Ejections;
use crate::machine::{ExitStatus, Requests};
use crate::qom::MachineObjects;
use crate::run_state::{IllegalTransition, RunState};

pub use api::ShutdownCause;

/// Devices that work on their own, besides processors and timers: they stand still when the machine does.
pub trait Pausable: Send + Sync {
    /// Stands still: when this returns, no guest memory is touched any more.
    fn pause(&self);

    /// Goes on.
    fn resume(&self);
}

impl Pausable for Ide {
    fn pause(&self) {
        Ide::pause(self);
    }

    fn resume(&self) {
        Ide::resume(self);
    }
}

/// What the machine's thread owns.
pub struct Control {
    pub(crate) config: MachineConfig,
    pub(crate) events: Arc<dyn EventSink>,
    pub(crate) services: DeviceServices,
    pub(crate) requests: Arc<Requests>,
    end: watch::Sender<Option<ExitStatus>>,
    state: RunState,
    pub(crate) clock: Clock,
    pub(crate) memory: Option<Arc<GuestMemory>>,
    pub(crate) chips: Option<Chipset>,
    pub(crate) cpus: Vec<Arc<CpuShared>>,
    pub(crate) ejections: Arc<Ejections>,
    /// What the last reset put into memory.
    placed: boot::Placed,
    pub(crate) devices: Vec<Plugged>,
    pub(crate) next_device_number: usize,
    /// What the object tree shows of all this.
    pub(crate) objects: MachineObjects,
    /// The guest sleeps, whether it is stopped besides or not.
    asleep: bool,
    /// The power is on: devices that come now come while a guest may be running.
    powered: bool,
}

impl Control {
    pub(crate) fn new(
        config: MachineConfig,
        events: Arc<dyn EventSink>,
        services: DeviceServices,
        requests: Arc<Requests>,
        end: watch::Sender<Option<ExitStatus>>,
    ) -> Result<Self, MachineError> {
        let ejections = Ejections::new(Arc::clone(&requests));
        let Assembled {
            clock,
            memory,
            chips,
            cpus,
        } = assembly::assemble(&config, &requests, &ejections)?;
        requests.set_cpus(&cpus);
        let mut control = Self {
            config,
            events,
            services,
            requests,
            end,
            state: RunState::Prelaunch,
            clock,
            memory,
            chips,
            cpus,
            ejections,
            placed: boot::Placed::default(),
            devices: Vec::new(),
            next_device_number: 0,
            asleep: false,
            powered: false,
            objects: MachineObjects::default(),
        };
        let tree = Arc::clone(&control.services.objects);
        let attached = MachineObjects::attach(&control, &tree);
        control.objects = attached.map_err(|error| MachineError::Config(error.to_string()))?;
        Ok(control)
    }

    /// The run state.
    #[must_use]
    pub fn state(&self) -> RunState {
        self.state
    }

    /// Whether the board has a PCI bus.
    #[must_use]
    pub fn has_pci(&self) -> bool {
        self.chips.as_ref().is_some_and(|chips| chips.pci.is_some())
    }

    /// Whether the board has anything at all.
    #[must_use]
    pub fn has_chips(&self) -> bool {
        self.chips.is_some()
    }

    /// Whether the machine has been switched on.
    #[must_use]
    pub fn is_powered(&self) -> bool {
        self.powered
    }

    fn become_state(&mut self, next: RunState) -> Result<(), IllegalTransition> {
        if !self.state.may_become(next) {
            let from = self.state;
            return Err(IllegalTransition { from, to: next });
        }
        self.state = next;
        Ok(())
    }

    /// As [`Control::become_state`], where the caller has looked already.
    fn enter(&mut self, next: RunState) {
        if let Err(error) = self.become_state(next) {
            tracing::error!(%error, "the run state stays as it is");
        }
    }

    /// Everything that acts stands still when this returns.
    fn stand(&self) {
        for cpu in &self.cpus {
            cpu.hold();
        }
        for cpu in &self.cpus {
            cpu.wait_standing();
        }
        self.clock.stop();
        for pausable in self.pausables() {
            pausable.pause();
        }
    }

    fn ide(&self) -> Option<&Arc<Ide>> {
        let pci = self.chips.as_ref()?.pci.as_ref()?;
        Some(&pci.ide)
    }

    fn pausables(&self) -> impl Iterator<Item = &dyn Pausable> {
        let devices = self.devices.iter();
        let devices = devices.filter_map(|device| device.made.pausable.as_deref());
        let ide = self.ide().map(|ide| ide.as_ref() as &dyn Pausable);
        devices.chain(ide)
    }

    fn go(&self) {
        for pausable in self.pausables() {
            pausable.resume();
        }
        self.clock.start();
        for cpu in &self.cpus {
            cpu.resume();
        }
    }

    /// Makes the machine ready for its first instruction: power-on reset, memory filled.
    ///
    /// # Errors
    /// What the guest starts with does not fit.
    pub fn power_on(&mut self) -> Result<(), MachineError> {
        if let Some(chips) = &self.chips {
            let devices = self.described_devices();
            boot::tell_firmware(&self.config, &devices, &chips.fw_cfg, &chips.rtc)?;
        }
        self.powered = true;
        self.reset_all(ResetKind::PowerOn)
    }

    fn reset_all(&mut self, kind: ResetKind) -> Result<(), MachineError> {
        let (Some(chips), Some(memory)) = (&self.chips, &self.memory) else {
            return Ok(());
        };
        self.asleep = false;
        let with_firmware = self.config.payload.firmware.is_some();
        for device in &self.devices {
            device.made.device.reset(kind);
        }
        chips.reset(kind, with_firmware);
        let (placed, start) = boot::load(&self.config, &self.described_devices(), memory)?;
        self.placed = placed;
        self.start_cpus_at(start);
        Ok(())
    }

    /// What the tables tell the guest of, besides what every board has.
    fn described_devices(&self) -> Vec<LegacyDevice> {
        let described = self
            .devices
            .iter()
            .filter_map(|device| device.made.described);
        described.collect()
    }

    fn start_cpus_at(&self, start: Option<Box<VcpuState>>) {
        let mut start = start;
        for cpu in &self.cpus {
            cpu.reset(start.take());
        }
    }

    /// `stop`, and every other reason to stand still.
    pub fn stop(&mut self, state: RunState) {
        if !self.state.is_live() {
            return;
        }
        self.stand();
        self.enter(state);
        events::stop(&*self.events);
    }

    /// `cont`.
    ///
    /// # Errors
    /// The machine must be reset before.
    pub fn cont(&mut self) -> Result<(), MachineError> {
        if self.state.needs_reset() {
            return Err(MachineError::Config(
                "Resetting the Virtual Machine is required".to_owned(),
            ));
        }
        if self.state.is_live() {
            return Ok(());
        }
        for backend in self.services.graph.backends() {
            if let Some(frontend) = backend.frontend() {
                frontend.reset_io_status();
            }
        }
        if self.asleep {
            self.sleep_on();
            events::resume(&*self.events);
            return Ok(());
        }
        self.enter(RunState::Running);
        events::resume(&*self.events);
        self.go();
        Ok(())
    }

    /// The processors stand; timers, which can wake the guest, go on.
    fn sleep_on(&mut self) {
        self.enter(RunState::Suspended);
        self.clock.start();
    }

    /// `system_reset` and resets that the guest asks for.
    pub fn reset(&mut self, cause: ShutdownCause) {
        let was_live = self.state.is_live();
        self.stand();
        // What the last guest asked for meanwhile is not the next one's wish.
        drop(self.requests.take());
        self.take_asked_back();
        if let Err(error) = self.reset_all(ResetKind::System) {
            tracing::error!(%error, "the machine cannot start again");
            self.enter(RunState::InternalError);
            return;
        }
        events::reset(&*self.events, cause);
        if was_live {
            if self.state == RunState::Suspended {
                self.enter(RunState::Running);
            }
            self.go();
        } else if self.state != RunState::Prelaunch {
            self.enter(RunState::Prelaunch);
        }
    }

    /// The guest or somebody outside wants the machine off.
    pub fn shutdown(&mut self, cause: ShutdownCause) {
        events::shutdown(&*self.events, cause);
        // Whoever is outside wants the end of the program, whatever guests' own wishes lead to.
        let stays =
            self.config.actions.shutdown == ShutdownAction::Pause && events::is_guests(cause);
        if stays {
            self.stop(RunState::Shutdown);
        } else {
            self.finish(ExitStatus(0));
        }
    }

    fn finish(&mut self, status: ExitStatus) {
        self.stand();
        self.end.send_if_modified(|end| {
            let first = end.is_none();
            if first {
                *end = Some(status);
            }
            first
        });
    }

    /// `system_powerdown`: the power button.
    pub fn power_button(&mut self) {
        events::powerdown(&*self.events);
        if let Some(chips) = &self.chips {
            chips.press_power_button();
        }
    }

    /// `system_wakeup`.
    ///
    /// # Errors
    /// The guest does not sleep, or the board cannot.
    pub fn wake_up(&mut self) -> Result<(), MachineError> {
        let Some(chips) = self.chips.as_ref().filter(|chips| chips.pci.is_some()) else {
            return Err(MachineError::Config(
                "wake-up from suspend is not supported by this guest".to_owned(),
            ));
        };
        if self.state != RunState::Suspended {
            return Err(MachineError::Config(
                "Unable to wake up: guest is not in suspended state".to_owned(),
            ));
        }
        if let Some(pci) = &chips.pci {
            pci.pm.wake(dev_pc::acpi_pm::WakeReason::Other);
        }
        self.start_cpus_at(None);
        let reset = self.cpu_state(0);
        let memory = self.memory.as_deref();
        let start = memory.and_then(|memory| boot::wake_state(self.placed, memory, reset));
        self.start_cpus_at(start);
        self.asleep = false;
        self.enter(RunState::Running);
        events::wakeup(&*self.events);
        self.go();
        Ok(())
    }

    /// Makes a non-maskable interrupt pending at every processor.
    pub fn inject_nmi(&self) {
        for cpu in &self.cpus {
            cpu.inject_nmi();
        }
    }

    /// A processor's state, between two instructions; `None` if there is no such processor.
    pub(crate) fn cpu_state(&self, index: i64) -> Option<VcpuState> {
        let cpu = self.cpus.get(usize::try_from(index).ok()?)?;
        cpu.ask(|vcpu| vcpu.state())?.ok()
    }

    /// Whether a processor waits for an interrupt.
    pub(crate) fn is_halted(&self, index: i64) -> bool {
        let cpu = usize::try_from(index)
            .ok()
            .and_then(|index| self.cpus.get(index));
        cpu.is_some_and(|cpu| cpu.is_halted())
    }

    /// Whether KVM executes.
    pub(crate) fn is_kvm(&self) -> bool {
        self.config.accelerator == AcceleratorKind::Kvm
    }

    /// The ranges of registers among ports, or in memory, as they are now: first address and length.
    #[must_use]
    pub fn register_ranges(&self, ports: bool) -> Vec<(u64, u64)> {
        let Some(chips) = &self.chips else {
            return Vec::new();
        };
        let map = if ports { &chips.ports } else { &chips.memory };
        let ranges = map.ranges().into_iter();
        ranges
            .map(|range| (range.start, range.last - range.start + 1))
            .collect()
    }

    /// Saves every device, restores it from that, and saves it again: the states must be the same. The machine stands.
    ///
    /// # Errors
    /// A device that does not save or restore, or is another one afterwards.
    pub fn check_saved_states(&self) -> Result<(), MachineError> {
        let chips = self.chips.iter().flat_map(|chips| &chips.devices);
        let chips = chips.map(|named| &named.device);
        let devices = self.devices.iter().map(|device| &device.made.device);
        for device in chips.chain(devices) {
            let saved = device.save()?;
            device.restore(&saved)?;
            let again = device.save()?;
            if again != saved {
                let name = saved.device;
                return Err(MachineError::Config(format!(
                    "the state of '{name}' changes when it is restored"
                )));
            }
        }
        Ok(())
    }

    /// Does what devices have asked for. The processors have been held when they asked.
    pub(crate) fn serve_requests(&mut self) {
        self.take_ejected();
        for note in self.requests.take_io_errors() {
            let stops = note.error.action == BlockErrorAction::Stop;
            events::block_io_error(&*self.events, note);
            if stops {
                self.stop(RunState::IoError);
            }
        }
        for request in self.requests.take() {
            self.serve(request);
        }
        if self.state.is_running() && self.end.borrow().is_none() {
            for cpu in &self.cpus {
                cpu.resume();
            }
        }
    }

    fn serve(&mut self, request: MachineRequest) {
        match request {
            MachineRequest::Reset(_) => self.guest_reset(ShutdownCause::GuestReset),
            MachineRequest::PowerOff => self.shutdown(ShutdownCause::GuestShutdown),
            MachineRequest::Suspend => self.suspend(),
            MachineRequest::Hibernate => {
                events::suspend_disk(&*self.events);
                self.shutdown(ShutdownCause::GuestShutdown);
            }
            MachineRequest::Exit(status) => {
                events::shutdown(&*self.events, ShutdownCause::GuestShutdown);
                self.finish(ExitStatus(status));
            }
            MachineRequest::GuestPanicked => self.panicked(),
            MachineRequest::GuestCrashLoaded => events::crash_loaded(&*self.events),
            MachineRequest::GuestShutdown => {
                events::pvshutdown(&*self.events);
                self.shutdown(ShutdownCause::GuestShutdown);
            }
            MachineRequest::WatchdogExpired => self.watchdog(),
            MachineRequest::InternalError => self.stop(RunState::InternalError),
        }
    }

    fn guest_reset(&mut self, cause: ShutdownCause) {
        match self.config.actions.reboot {
            RebootAction::Reset => self.reset(cause),
            RebootAction::Shutdown => self.shutdown(cause),
        }
    }

    fn suspend(&mut self) {
        self.stand();
        self.asleep = true;
        if self.state.is_live() {
            self.sleep_on();
        }
        events::suspend(&*self.events);
    }

    fn panicked(&mut self) {
        let action = self.config.actions.panic;
        events::panicked(&*self.events, action);
        match action {
            PanicAction::None => {}
            PanicAction::Pause => self.stop(RunState::GuestPanicked),
            PanicAction::Shutdown => {
                self.stop(RunState::GuestPanicked);
                self.shutdown(ShutdownCause::GuestPanic);
            }
            PanicAction::ExitFailure => {
                self.stop(RunState::GuestPanicked);
                events::shutdown(&*self.events, ShutdownCause::GuestPanic);
                self.finish(ExitStatus(1));
            }
        }
    }

    fn watchdog(&mut self) {
        let action = self.config.actions.watchdog;
        events::watchdog(&*self.events, action);
        match action {
            WatchdogAction::Reset => self.guest_reset(ShutdownCause::GuestReset),
            WatchdogAction::Shutdown => self.power_button(),
            WatchdogAction::Poweroff => self.shutdown(ShutdownCause::GuestShutdown),
            WatchdogAction::Pause => self.stop(RunState::Watchdog),
            WatchdogAction::InjectNmi => self.inject_nmi(),
            WatchdogAction::Debug => tracing::warn!("watchdog: timer fired"),
            WatchdogAction::None => {}
        }
    }

    /// Ends the processors' threads.
    pub(crate) fn close(&mut self) {
        self.stand();
        for cpu in &self.cpus {
            cpu.end();
        }
        if let Some(ide) = self.ide() {
            self.services.runtime.block_on(ide.shutdown());
        }
        for device in std::mem::take(&mut self.devices) {
            if let Some(detach) = &device.made.detach {
                detach();
            }
        }
    }
}
