//! A channel: the registers of two drives, their interrupt, and the task that moves their data.
//!
//! | offset | read | write |
//! |---|---|---|
//! | 0 | data | data |
//! | 1 | error | features |
//! | 2 | sector count | sector count |
//! | 3 to 5 | LBA low, mid, high | the same |
//! | 6 | device | device |
//! | 7 | status | command |
//! | control | alternate status | device control: interrupt off 1, reset 2, older bytes 7 |

use std::future::poll_fn;
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Poll, Waker};

use api::BlockErrorAction;
use block_graph::{BlockBackend, BlockError, WriteFlags};
use device::pci::PciHeader;
use device::{DmaSpace, Error, IrqLine, Width, read_bytes, write_bytes};
use host_io::{IoBuf, IoBytes};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::bus_master::{BusMaster, Cursor, Moved};
use crate::drive::{Drive, DriveState, Job, JobKind, Outcome, Phase, error, status};
use crate::{ata, atapi};

const CONTROL_NO_INTERRUPT: u8 = 2;
const CONTROL_RESET: u8 = 4;
const CONTROL_OLDER: u8 = 0x80;
const DEVICE_RESET: u8 = 0x08;
const DIAGNOSTIC: u8 = 0x90;

/// Registers of a channel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChannelState {
    device: u8,
    control: u8,
    interrupt: bool,
    drives: [DriveState; 2],
    master: BusMaster,
}

impl ChannelState {
    fn selected(&self) -> usize {
        usize::from(self.device >> 4 & 1)
    }
}

struct Inner {
    state: ChannelState,
    /// Counts resets and whatever else makes a request's end unwanted.
    epoch: u64,
    /// There is a task.
    is_running: bool,
    is_paused: bool,
    /// A request has failed, and waits for the machine to be stopped and to go on.
    is_held: bool,
    is_closed: bool,
    waiters: Vec<Waker>,
}

/// What the task does at the medium.
enum Step {
    Read(usize),
    Write(IoBytes, WriteFlags, Option<Cursor>),
    Flush,
    Nothing,
}

/// A step with all it needs.
struct Plan {
    drive: Arc<Drive>,
    medium: Option<Arc<BlockBackend>>,
    job: Job,
    step: Step,
    epoch: u64,
}

/// A channel.
pub(crate) struct Channel {
    me: Weak<Channel>,
    header: Weak<PciHeader>,
    irq: IrqLine,
    memory: Arc<dyn DmaSpace>,
    places: [OnceLock<Arc<Drive>>; 2],
    inner: Mutex<Inner>,
}

impl Channel {
    pub(crate) fn new(
        header: Weak<PciHeader>,
        irq: IrqLine,
        memory: Arc<dyn DmaSpace>,
    ) -> Arc<Channel> {
        Arc::new_cyclic(|me| Channel {
            me: me.clone(),
            header,
            irq,
            memory,
            places: [OnceLock::new(), OnceLock::new()],
            inner: Mutex::new(Inner {
                state: ChannelState {
                    device: 0,
                    control: 0,
                    interrupt: false,
                    drives: [DriveState::new(None), DriveState::new(None)],
                    master: BusMaster::default(),
                },
                epoch: 0,
                is_running: false,
                is_paused: false,
                is_held: false,
                is_closed: false,
                waiters: Vec::new(),
            }),
        })
    }

    /// Puts a drive into a place; false if that is taken, or is none.
    pub(crate) fn attach(&self, unit: u8, drive: Drive) -> bool {
        let Some(place) = self.places.get(usize::from(unit)) else {
            return false;
        };
        let mut inner = self.inner.lock();
        let state = DriveState::new(Some(&drive));
        if place.set(Arc::new(drive)).is_err() {
            return false;
        }
        if let Some(old) = inner.state.drives.get_mut(usize::from(unit)) {
            *old = state;
        }
        true
    }

    pub(crate) fn drive(&self, unit: usize) -> Option<&Arc<Drive>> {
        self.places.get(unit)?.get()
    }

    /// Changes something, tells of it, and begins what has become possible.
    fn change<T>(&self, work: impl FnOnce(&mut Inner) -> (T, Outcome)) -> T {
        let mut inner = self.inner.lock();
        let unit = inner.state.selected();
        let (value, outcome) = work(&mut inner);
        let starts = self.settle(&mut inner, outcome);
        drop(inner);
        self.spawn(starts);
        if let (Outcome::Tray { is_open }, Some(drive)) = (outcome, self.drive(unit)) {
            drive.options.events.tray_moved(is_open);
        }
        value
    }

    /// Drives the interrupt; gives the unit whose request is to be begun.
    fn settle(&self, inner: &mut Inner, outcome: Outcome) -> Option<usize> {
        if outcome != Outcome::Quiet {
            inner.state.interrupt = true;
            inner.state.master.interrupt();
        }
        let is_on = inner.state.control & CONTROL_NO_INTERRUPT == 0;
        self.irq.set(inner.state.interrupt && is_on);
        let unit = inner.ready_unit()?;
        if inner.is_running {
            return None;
        }
        inner.is_running = true;
        Some(unit)
    }

    fn spawn(&self, unit: Option<usize>) {
        if let Some(unit) = unit
            && let Some(channel) = self.me.upgrade()
            && let Some(drive) = self.drive(unit)
        {
            // It ends by itself; whoever waits for that waits in `shutdown`.
            drive
                .options
                .executor
                .spawn(move || async move { channel.serve(unit).await })
                .detach();
        }
    }

    pub(crate) fn read_command(&self, offset: u64, width: Width) -> u64 {
        if offset == 0 {
            return self.change(|inner| self.read_data(inner, width));
        }
        self.change(|inner| {
            let value = read_bytes(offset, width, |at| self.read_register(inner, at));
            (value, Outcome::Quiet)
        })
    }

    pub(crate) fn write_command(&self, offset: u64, width: Width, value: u64) {
        if offset == 0 {
            return self.change(|inner| ((), self.write_data(inner, width, value)));
        }
        self.change(|inner| {
            let mut outcome = Outcome::Quiet;
            write_bytes(offset, width, value, |at, byte| {
                match self.write_register(inner, at, byte) {
                    Outcome::Quiet => {}
                    other => outcome = other,
                }
            });
            ((), outcome)
        });
    }

    pub(crate) fn read_control(&self) -> u8 {
        let inner = self.inner.lock();
        let unit = inner.state.selected();
        let state = inner.state.drives.get(unit);
        state.map_or(0, |state| state.status)
    }

    pub(crate) fn write_control(&self, byte: u8) {
        self.change(|inner| {
            let old = std::mem::replace(&mut inner.state.control, byte);
            let (was, is) = (old & CONTROL_RESET != 0, byte & CONTROL_RESET != 0);
            if was != is {
                self.soft_reset(inner, is);
            }
            ((), Outcome::Quiet)
        });
    }

    /// The reset bit rises: drives are busy; it falls: they show what they are.
    fn soft_reset(&self, inner: &mut Inner, is_on: bool) {
        inner.forget_request();
        inner.state.interrupt = false;
        for (state, place) in inner.state.drives.iter_mut().zip(&self.places) {
            let drive = place.get();
            state.sign(drive.map(|drive| &**drive));
            if is_on && drive.is_some() {
                state.status = status::BUSY;
            }
        }
        inner.state.device = 0;
    }

    pub(crate) fn read_master(&self, offset: u64) -> u8 {
        self.inner.lock().state.master.read(offset)
    }

    pub(crate) fn write_master(&self, offset: u64, byte: u8) {
        self.change(|inner| {
            inner.state.master.write(offset, byte);
            ((), Outcome::Quiet)
        });
    }

    fn read_register(&self, inner: &mut Inner, offset: u64) -> u8 {
        let unit = inner.state.selected();
        if self.drive(unit).is_none() {
            // Nobody drives the bus, which is held low.
            return 0;
        }
        let older = usize::from(inner.state.control & CONTROL_OLDER != 0);
        let device = inner.state.device;
        let Some(state) = inner.state.drives.get(unit) else {
            return 0;
        };
        let of = |pair: &[u8; 2]| pair.get(older).copied().unwrap_or(0);
        match offset {
            1 => state.error,
            2 => of(&state.count),
            3 => of(&state.low),
            4 => of(&state.mid),
            5 => of(&state.high),
            6 => device | 0xa0,
            7 => {
                let value = state.status;
                inner.state.interrupt = false;
                value
            }
            _ => 0xff,
        }
    }

    fn write_register(&self, inner: &mut Inner, offset: u64, byte: u8) -> Outcome {
        if offset == 7 {
            inner.state.control &= !CONTROL_OLDER;
            return self.command(inner, byte);
        }
        if offset > 7 {
            return Outcome::Quiet;
        }
        inner.state.control &= !CONTROL_OLDER;
        if offset == 6 {
            inner.state.device = byte;
            return Outcome::Quiet;
        }
        // Both drives hear; a busy one does not listen.
        for state in inner
            .state
            .drives
            .iter_mut()
            .filter(|state| !state.is_busy())
        {
            let push = |pair: &mut [u8; 2]| {
                let [now, _] = *pair;
                *pair = [byte, now];
            };
            match offset {
                1 => state.features = byte,
                2 => push(&mut state.count),
                3 => push(&mut state.low),
                4 => push(&mut state.mid),
                _ => push(&mut state.high),
            }
        }
        Outcome::Quiet
    }

    fn command(&self, inner: &mut Inner, command: u8) -> Outcome {
        let unit = inner.state.selected();
        let device = inner.state.device;
        let Some(drive) = self.drive(unit) else {
            return Outcome::Quiet;
        };
        let Some(state) = inner.state.drives.get_mut(unit) else {
            return Outcome::Quiet;
        };
        if command == DEVICE_RESET && drive.is_cdrom() {
            state.sign(Some(drive));
            inner.forget_request();
            inner.state.interrupt = false;
            return Outcome::Quiet;
        }
        if state.is_busy() {
            return Outcome::Quiet;
        }
        state.stop_transfer();
        inner.state.interrupt = false;
        if command == DIAGNOSTIC {
            self.soft_reset(inner, false);
            return Outcome::Interrupt;
        }
        if drive.is_cdrom() {
            atapi::command(state, drive, command)
        } else {
            ata::command(state, drive, device, command)
        }
    }

    fn buffer_done(&self, unit: usize, state: &mut DriveState) -> Outcome {
        match self.drive(unit) {
            Some(drive) if drive.is_cdrom() => atapi::buffer_done(state, drive),
            _ => ata::buffer_done(state),
        }
    }

    fn read_data(&self, inner: &mut Inner, width: Width) -> (u64, Outcome) {
        let unit = inner.state.selected();
        let Some(state) = inner.state.drives.get_mut(unit) else {
            return (width.ones(), Outcome::Quiet);
        };
        if !matches!(state.phase, Phase::Give | Phase::GiveReply) {
            return (width.ones(), Outcome::Quiet);
        }
        let mut value = 0;
        for index in 0..width.bytes() {
            if state.position >= state.piece_end {
                break;
            }
            let at = usize::try_from(state.position).unwrap_or(usize::MAX);
            value |= u64::from(state.buffer.get(at).copied().unwrap_or(0)) << (8 * index);
            state.position += 1;
        }
        if state.position < state.piece_end {
            return (value, Outcome::Quiet);
        }
        (value, self.buffer_done(unit, state))
    }

    fn write_data(&self, inner: &mut Inner, width: Width, value: u64) -> Outcome {
        let unit = inner.state.selected();
        let Some(state) = inner.state.drives.get_mut(unit) else {
            return Outcome::Quiet;
        };
        if !matches!(state.phase, Phase::Take | Phase::TakePacket) {
            return Outcome::Quiet;
        }
        let bytes = value.to_le_bytes();
        for byte in bytes
            .iter()
            .take(usize::try_from(width.bytes()).unwrap_or(0))
        {
            if state.position >= state.piece_end {
                break;
            }
            let at = usize::try_from(state.position).unwrap_or(usize::MAX);
            if let Some(place) = state.buffer.get_mut(at) {
                *place = *byte;
            }
            state.position += 1;
        }
        if state.position < state.piece_end {
            return Outcome::Quiet;
        }
        self.buffer_done(unit, state)
    }
}

impl Inner {
    /// The end of a request that is under way is of no interest any more.
    fn forget_request(&mut self) {
        self.epoch += 1;
        self.is_held = false;
    }

    /// The unit whose request can go on.
    fn ready_unit(&self) -> Option<usize> {
        if self.is_paused || self.is_held || self.is_closed {
            return None;
        }
        let can_start = |state: &DriveState| {
            let job = state.ready_job();
            job.is_some_and(|job| !job.is_dma || self.state.master.is_started())
        };
        self.state.drives.iter().position(can_start)
    }

    fn wake(&mut self) {
        for waiter in self.waiters.drain(..) {
            waiter.wake();
        }
    }
}

/// The task.
impl Channel {
    async fn serve(self: Arc<Self>, unit: usize) {
        while let Some(plan) = self.plan(unit) {
            let result = run(&plan).await;
            self.apply(unit, plan, result);
        }
    }

    /// The next step for this unit; without one the task ends.
    fn plan(&self, unit: usize) -> Option<Plan> {
        let mut inner = self.inner.lock();
        while inner.ready_unit() == Some(unit) {
            let Some(drive) = self.drive(unit) else { break };
            match self.plan_step(&mut inner, unit, drive) {
                Ok(plan) => return Some(plan),
                Err(outcome) => {
                    // Nothing becomes ready by a failure: the task that runs is this one.
                    self.settle(&mut inner, outcome);
                }
            }
        }
        inner.is_running = false;
        inner.wake();
        // The other unit's requests are served where its executor is.
        let starts = self.settle(&mut inner, Outcome::Quiet);
        drop(inner);
        self.spawn(starts);
        None
    }

    fn plan_step(
        &self,
        inner: &mut Inner,
        unit: usize,
        drive: &Arc<Drive>,
    ) -> Result<Plan, Outcome> {
        let epoch = inner.epoch;
        let ChannelState { drives, master, .. } = &mut inner.state;
        let state = drives.get_mut(unit).ok_or(Outcome::Quiet)?;
        let job = state.ready_job().cloned().ok_or(Outcome::Quiet)?;
        if job.is_dma {
            let can = self
                .header
                .upgrade()
                .is_some_and(|header| header.is_master());
            if !can || master.is_to_memory() == (job.kind == JobKind::Write) {
                return Err(dma_failed(state, drive, master));
            }
        }
        let length = usize::try_from(job.next_bytes()).unwrap_or(0);
        let step = match job.kind {
            JobKind::Read => Step::Read(length),
            JobKind::Flush => Step::Flush,
            JobKind::Reply => Step::Nothing,
            JobKind::Write => {
                let mut bytes = IoBuf::zeroed(length);
                let mut cursor = None;
                if job.is_dma {
                    let mut here = master.cursor();
                    match here.take(&*self.memory, &mut bytes) {
                        Moved::All => cursor = Some(here),
                        Moved::Short => return Err(dma_ended(state, master)),
                        Moved::Failed => return Err(dma_failed(state, drive, master)),
                    }
                } else {
                    for (to, from) in bytes.iter_mut().zip(&state.buffer) {
                        *to = *from;
                    }
                }
                let is_durable = job.is_durable || !state.write_cache;
                let flags = if is_durable {
                    WriteFlags::FUA
                } else {
                    WriteFlags::empty()
                };
                Step::Write(bytes.freeze(), flags, cursor)
            }
        };
        Ok(Plan {
            drive: Arc::clone(drive),
            medium: drive.medium(),
            job,
            step,
            epoch,
        })
    }

    fn apply(&self, unit: usize, plan: Plan, result: Result<Option<IoBuf>, BlockError>) {
        let is_read = plan.job.kind == JobKind::Read;
        let is_wanted = self.inner.lock().epoch == plan.epoch;
        let action = match &result {
            Err(error) if is_wanted => Some(plan.drive.report(error, is_read)),
            _ => None,
        };
        let mut inner = self.inner.lock();
        if inner.epoch != plan.epoch || inner.is_paused || inner.is_closed {
            // It was forgotten, or is done again later.
            return;
        }
        if action == Some(BlockErrorAction::Stop) {
            inner.is_held = true;
            return;
        }
        let outcome = match action {
            Some(BlockErrorAction::Report) => request_failed(&mut inner.state, unit, &plan),
            _ => self.step_done(&mut inner.state, unit, plan, result.ok().flatten()),
        };
        // The task that runs is this one, which looks for more itself.
        self.settle(&mut inner, outcome);
    }

    /// A step went well, or its failure is to be ignored.
    fn step_done(
        &self,
        channel: &mut ChannelState,
        unit: usize,
        plan: Plan,
        data: Option<IoBuf>,
    ) -> Outcome {
        let ChannelState { drives, master, .. } = channel;
        let Some(state) = drives.get_mut(unit) else {
            return Outcome::Quiet;
        };
        let Plan {
            drive,
            mut job,
            step,
            ..
        } = plan;
        let mut bytes = Vec::new();
        match &step {
            Step::Read(length) => {
                bytes = data.map_or_else(|| vec![0; *length], |data| data.to_vec());
            }
            Step::Nothing => bytes.clone_from(&state.buffer),
            Step::Write(_, _, Some(cursor)) => master.set_cursor(cursor.clone()),
            Step::Write(..) | Step::Flush => {}
        }
        if job.is_dma && job.kind != JobKind::Write {
            let mut cursor = master.cursor();
            match cursor.put(&*self.memory, &bytes) {
                Moved::All => master.set_cursor(cursor),
                Moved::Short => return dma_ended(state, master),
                Moved::Failed => return dma_failed(state, &drive, master),
            }
        }
        let moved = u64::from(job.next_bytes());
        job.offset = job.offset.saturating_add(moved);
        job.remaining = job.remaining.saturating_sub(moved);
        if job.is_dma && job.remaining == 0 {
            master.finish();
        }
        if drive.is_cdrom() {
            atapi::block_done(state, job, bytes)
        } else {
            ata::block_done(state, job, bytes)
        }
    }
}

/// Does a step at the medium.
async fn run(plan: &Plan) -> Result<Option<IoBuf>, BlockError> {
    let Some(medium) = &plan.medium else {
        // Its tray has been opened by force: there is nothing to read.
        return match plan.step {
            Step::Nothing => Ok(None),
            _ => Err(BlockError::host(
                block_graph::BlockOperation::Read,
                &std::io::Error::from_raw_os_error(libc::ENODEV),
            )),
        };
    };
    match &plan.step {
        Step::Read(length) => {
            let buffer = IoBuf::with_len(*length);
            medium.read(plan.job.offset, buffer).await.map(Some)
        }
        Step::Write(bytes, flags, _) => medium
            .write(plan.job.offset, bytes.clone(), *flags)
            .await
            .map(|()| None),
        Step::Flush => medium.flush().await.map(|()| None),
        Step::Nothing => Ok(None),
    }
}

fn request_failed(channel: &mut ChannelState, unit: usize, plan: &Plan) -> Outcome {
    let Some(state) = channel.drives.get_mut(unit) else {
        return Outcome::Quiet;
    };
    if plan.job.is_dma {
        channel.master.stop(false);
    }
    if plan.drive.is_cdrom() {
        atapi::request_failed(state)
    } else {
        ata::request_failed(state, &plan.job)
    }
}

/// The table has ended before the request: the bus master rests, and the drive waits for a reset (as the interface's
/// specification has it, 1.3).
fn dma_ended(state: &mut DriveState, master: &mut BusMaster) -> Outcome {
    master.stop(false);
    state.job = None;
    Outcome::Quiet
}

/// The bus master cannot reach memory.
fn dma_failed(state: &mut DriveState, drive: &Drive, master: &mut BusMaster) -> Outcome {
    master.stop(true);
    if drive.is_cdrom() {
        atapi::request_failed(state)
    } else {
        state.fail(error::CRC | error::ABORTED)
    }
}

/// The phases of a device's life.
impl Channel {
    pub(crate) fn reset(&self) {
        self.change(|inner| {
            inner.forget_request();
            let state = &mut inner.state;
            (state.device, state.control, state.interrupt) = (0, 0, false);
            state.master = BusMaster::default();
            for (state, place) in state.drives.iter_mut().zip(&self.places) {
                // The tray and the medium are where they were.
                let is_open = state.packet.is_open;
                *state = DriveState::new(place.get().map(|drive| &**drive));
                state.packet.is_open = is_open;
            }
            ((), Outcome::Quiet)
        });
    }

    pub(crate) fn save(&self) -> ChannelState {
        self.inner.lock().state.clone()
    }

    /// Whether a state from outside fits here.
    pub(crate) fn check(&self, name: &str, saved: &ChannelState) -> Result<(), Error> {
        for (state, place) in saved.drives.iter().zip(&self.places) {
            let is_there = place.get().is_some();
            if !state.is_sound() {
                return Err(Error::bad_state(name, "a drive's buffer or request"));
            }
            if !is_there && (state.status != 0 || state.phase != Phase::Idle) {
                return Err(Error::bad_state(name, "a drive that is not there"));
            }
        }
        Ok(())
    }

    pub(crate) fn restore(&self, saved: ChannelState) {
        self.change(|inner| {
            inner.forget_request();
            inner.state = saved;
            ((), Outcome::Quiet)
        });
    }

    pub(crate) fn pause(&self) {
        self.inner.lock().is_paused = true;
    }

    pub(crate) fn resume(&self) {
        self.change(|inner| {
            (inner.is_paused, inner.is_held) = (false, false);
            ((), Outcome::Quiet)
        });
    }

    /// Begins no more, and waits for the end of what is under way.
    pub(crate) async fn shutdown(&self) {
        self.inner.lock().is_closed = true;
        poll_fn(|cx| {
            let mut inner = self.inner.lock();
            if !inner.is_running {
                return Poll::Ready(());
            }
            inner.waiters.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Looks at a drive's state, or changes it; the guest is not told.
    pub(crate) fn with_drive<T>(
        &self,
        unit: u8,
        work: impl FnOnce(&Drive, &mut DriveState) -> T,
    ) -> Option<T> {
        let unit = usize::from(unit);
        let drive = self.drive(unit)?;
        let mut inner = self.inner.lock();
        Some(work(drive, inner.state.drives.get_mut(unit)?))
    }

    #[cfg(test)]
    pub(crate) fn is_quiet(&self) -> bool {
        !self.inner.lock().is_running
    }
}
