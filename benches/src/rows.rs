//! Which rows there are, and how each is measured.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::Settings;
use crate::daemon::{Daemon, Memory, Side, cpu_time};
use crate::images::Disk;
use crate::machine::{self, Guests, WORKLOADS};
use crate::nbd_load::{Direction, Load, NbdClient, Order};
use crate::qmp_load;
use crate::report::{Aim, Metric, Row};

const KIB: u32 = 1024;
const MIB: u32 = 1024 * KIB;

/// How many requests of 1 MiB are under way in sequential rows.
const SEQUENTIAL_DEPTH: u32 = 4;
/// How many QMP commands a pipelining client has under way.
const QMP_DEPTH: usize = 16;
/// How often a daemon or a machine is started in one round.
const STARTS_PER_ROUND: u32 = 3;
/// How often Linux is booted at most: it takes its time.
const MAX_BOOT_ROUNDS: u32 = 3;
/// How long a daemon is left alone before its memory is read, or load begins.
const IDLE_TIME: Duration = Duration::from_millis(300);
/// How often memory is looked at while there is load.
const MEMORY_INTERVAL: Duration = Duration::from_millis(20);
/// The most data that is written to a fresh image in one measurement, so that the disk beneath
/// does not come to write while it is measured.
const MAX_FRESH_REQUESTS: u64 = 8192;

/// A measurement; it gives one value or several.
pub(crate) struct Case {
    pub(crate) name: String,
    kind: Kind,
    metrics: Vec<Metric>,
}

/// What is measured.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Requests per second over NBD.
    Nbd(Disk, Load),
    /// Commands per second over QMP.
    Qmp { command: &'static str, depth: usize },
    /// Milliseconds until the greeting, with this disk exported.
    StartUp(Option<Disk>),
    /// Memory of a daemon that has exported a disk and does nothing.
    IdleMemory(Disk),
    /// The most memory while there is load.
    LoadedMemory(Disk, Load),
    /// Linux on a machine: its boot, its workloads, the machine's memory.
    Linux,
    /// Milliseconds until the embedded guest's first line on this board.
    FirstLine(&'static str),
}

/// All rows.
pub(crate) fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    nbd_rows(&mut cases);
    let qmp = |name: &str, command, depth| Case {
        name: format!("qmp {name}"),
        kind: Kind::Qmp { command, depth },
        metrics: rate_and_cost(Aim::AtLeast(3.0)),
    };
    cases.push(qmp("round trips (query-version)", "query-version", 1));
    cases.push(qmp("pipelined (query-version)", "query-version", QMP_DEPTH));
    cases.push(qmp("query-qmp-schema", "query-qmp-schema", 1));
    let start_up = |name: &str, disk| Case {
        name: format!("start-up {name}"),
        kind: Kind::StartUp(disk),
        metrics: vec![Metric::new("", "ms", 2, Aim::AtMost(0.5))],
    };
    cases.push(start_up("monitor only", None));
    cases.push(start_up("qcow2 export", Some(Disk::Qcow2)));
    let memory = |name: &str, kind| Case {
        name: format!("memory {name}"),
        kind,
        metrics: ["rss", "pss", "anonymous"]
            .map(|which| Metric::new(which, "MiB", 1, Aim::AtMost(0.5)))
            .into(),
    };
    cases.push(memory("idle", Kind::IdleMemory(Disk::Qcow2)));
    let load = |direction| Load {
        direction,
        order: Order::Random,
        request_bytes: 4 * KIB,
        depth: 32,
        max_requests: u64::MAX,
    };
    let read = Kind::LoadedMemory(Disk::Qcow2, load(Direction::Read));
    cases.push(memory("read 4k depth 32", read));
    let write = Kind::LoadedMemory(Disk::Qcow2, load(Direction::Write));
    cases.push(memory("write 4k depth 32", write));
    machine_rows(&mut cases);
    cases
}

/// The software CPU beside QEMU's translator.
fn machine_rows(cases: &mut Vec<Case>) {
    let seconds = |which, aim| Metric::new(which, "s", 2, aim);
    let mut linux = vec![seconds("boot to userspace", Aim::AtMost(4.0))];
    linux.extend(WORKLOADS.map(|workload| seconds(workload, Aim::None)));
    linux.push(Metric::new("memory", "MiB", 1, Aim::Below(20.0)));
    cases.push(Case {
        name: "machine linux".to_owned(),
        kind: Kind::Linux,
        metrics: linux,
    });
    for (board, aim) in [("microvm", Aim::Below(30.0)), ("pc", Aim::None)] {
        cases.push(Case {
            name: format!("machine {board} first line"),
            kind: Kind::FirstLine(board),
            metrics: vec![Metric::new("", "ms", 1, aim)],
        });
    }
}

/// How many in a second, and how much processor time the daemon needs for each: that depends much
/// less on what else the machine does.
fn rate_and_cost(aim: Aim) -> Vec<Metric> {
    vec![
        Metric::new("", "per s", 0, aim),
        Metric::new("cpu", "us", 1, Aim::None),
    ]
}

fn nbd_rows(cases: &mut Vec<Case>) {
    let disks = [
        (Disk::Null, "null"),
        (Disk::Raw, "raw"),
        (Disk::Qcow2, "qcow2"),
        (Disk::FreshQcow2, "qcow2-fresh"),
    ];
    let loads = [
        (Order::Random, 4 * KIB, 1, "4k random depth 1"),
        (Order::Random, 4 * KIB, 32, "4k random depth 32"),
        (Order::Sequential, MIB, SEQUENTIAL_DEPTH, "1M sequential"),
    ];
    let directions = [(Direction::Read, "read"), (Direction::Write, "write")];
    for (disk, disk_name) in disks {
        for (direction, direction_name) in directions {
            for (order, request_bytes, depth, load_name) in loads {
                let is_fresh = disk == Disk::FreshQcow2;
                // Reading a fresh image reads nothing.
                if is_fresh && direction == Direction::Read {
                    continue;
                }
                // A request of a fresh image makes a cluster at least, which is 64 KiB.
                let fresh_bytes = u64::from(request_bytes.max(64 * KIB));
                let max_requests = if is_fresh {
                    MAX_FRESH_REQUESTS * u64::from(64 * KIB) / fresh_bytes
                } else {
                    u64::MAX
                };
                let load = Load {
                    direction,
                    order,
                    request_bytes,
                    depth,
                    max_requests,
                };
                let aim = match disk {
                    // No disk anybody has: it shows what the rest of the way costs.
                    Disk::Null => Aim::None,
                    _ => Aim::AtLeast(1.2),
                };
                cases.push(Case {
                    name: format!("{disk_name} {direction_name} {load_name}"),
                    kind: Kind::Nbd(disk, load),
                    metrics: rate_and_cost(aim),
                });
            }
        }
    }
}

/// Measures both sides in turn.
pub(crate) fn run(case: &Case, settings: &Settings) -> Result<Vec<Row>> {
    let mut rows: Vec<Row> = case
        .metrics
        .iter()
        .map(|metric| Row::new(&case.name, metric))
        .collect();
    let mut ours = Runner::new(case.kind, Side::Ratite, settings)?;
    let mut theirs = Runner::new(case.kind, Side::Peer, settings)?;
    let rounds = match case.kind {
        Kind::Linux => settings.rounds.min(MAX_BOOT_ROUNDS),
        _ => settings.rounds,
    };
    for round in 0..rounds {
        // Who comes first changes, so that what comes of being first helps neither.
        let (our_values, their_values) = if round % 2 == 0 {
            let first = ours.measure(round)?;
            (first, theirs.measure(round)?)
        } else {
            let first = theirs.measure(round)?;
            (ours.measure(round)?, first)
        };
        for ((row, ours), theirs) in rows.iter_mut().zip(our_values).zip(their_values) {
            row.rounds.push((ours, theirs));
        }
    }
    ours.end()?;
    theirs.end()?;
    Ok(rows)
}

/// One of the daemons and who makes its load.
struct Runner<'a> {
    kind: Kind,
    side: Side,
    settings: &'a Settings,
    /// Where one daemon serves all rounds.
    daemon: Option<Daemon>,
    client: Option<NbdClient>,
    guests: Option<Guests>,
}

impl<'a> Runner<'a> {
    fn new(kind: Kind, side: Side, settings: &'a Settings) -> Result<Self> {
        let mut runner = Self {
            kind,
            side,
            settings,
            daemon: None,
            client: None,
            guests: None,
        };
        match kind {
            Kind::Nbd(Disk::FreshQcow2, _) | Kind::StartUp(_) => {}
            Kind::Qmp { .. } => runner.daemon = Some(runner.start(None)?),
            Kind::Nbd(disk, load) => {
                let daemon = runner.start(Some(disk))?;
                let mut client = NbdClient::connect(&daemon.nbd_socket())?;
                // The file comes into the host's cache, the tables into the daemon's.
                client.run(&warm_up(load), Duration::from_secs(2), 0)?;
                runner.daemon = Some(daemon);
                runner.client = Some(client);
            }
            // What a daemon has taken it may keep: each round has a new one.
            Kind::IdleMemory(_) | Kind::LoadedMemory(..) => {}
            Kind::Linux | Kind::FirstLine(_) => {
                runner.guests = Some(Guests::new(&settings.guests)?)
            }
        }
        Ok(runner)
    }

    fn start(&self, disk: Option<Disk>) -> Result<Daemon> {
        Daemon::start(self.side, self.settings, disk)
    }

    fn measure(&mut self, round: u32) -> Result<Vec<f64>> {
        let duration = self.settings.duration;
        let seed = u64::from(round) + 1;
        match self.kind {
            Kind::Nbd(Disk::FreshQcow2, load) => {
                let daemon = self.start(Some(Disk::FreshQcow2))?;
                let mut client = NbdClient::connect(&daemon.nbd_socket())?;
                let done = with_cost(daemon.process(), || client.run(&load, duration, seed))?;
                client.disconnect()?;
                daemon.quit()?;
                self.settings.images.remove_fresh(self.side)?;
                Ok(done)
            }
            Kind::Nbd(_, load) => {
                let client = self.client.as_mut().context("a connection")?;
                let daemon = self.daemon.as_ref().context("a daemon")?;
                with_cost(daemon.process(), || client.run(&load, duration, seed))
            }
            Kind::Qmp { command, depth } => {
                let daemon = self.daemon.as_mut().context("a daemon")?;
                let (process, monitor) = (daemon.process(), daemon.monitor());
                with_cost(process, || qmp_load::run(monitor, command, depth, duration))
            }
            Kind::StartUp(disk) => {
                let mut total = Duration::ZERO;
                for _ in 0..STARTS_PER_ROUND {
                    let daemon = self.start(disk)?;
                    total += daemon.start_up;
                    daemon.quit()?;
                }
                let mean = total / STARTS_PER_ROUND;
                Ok(vec![mean.as_secs_f64() * 1000.0])
            }
            Kind::IdleMemory(disk) => {
                let daemon = self.start(Some(disk))?;
                std::thread::sleep(IDLE_TIME);
                let memory = Memory::of(daemon.process())?;
                daemon.quit()?;
                Ok(in_mib(memory))
            }
            Kind::LoadedMemory(disk, load) => {
                let daemon = self.start(Some(disk))?;
                // What starting took is another matter.
                std::thread::sleep(IDLE_TIME);
                let mut client = NbdClient::connect(&daemon.nbd_socket())?;
                let memory = peak_memory(daemon.process(), || {
                    client.run(&load, duration, seed).map(drop)
                })?;
                client.disconnect()?;
                daemon.quit()?;
                Ok(in_mib(memory))
            }
            Kind::Linux => machine::boot_linux(self.side, self.settings, self.guests()?),
            Kind::FirstLine(board) => {
                let guests = self.guests()?;
                let mut total = Duration::ZERO;
                for _ in 0..STARTS_PER_ROUND {
                    total += machine::first_line(self.side, self.settings, guests, board)?;
                }
                Ok(vec![(total / STARTS_PER_ROUND).as_secs_f64() * 1000.0])
            }
        }
    }

    fn guests(&self) -> Result<&Guests> {
        self.guests.as_ref().context("guests")
    }

    fn end(self) -> Result<()> {
        if let Some(client) = self.client {
            client.disconnect()?;
        }
        match self.daemon {
            Some(daemon) => daemon.quit(),
            None => Ok(()),
        }
    }
}

/// Reads the whole disk once before a read load, and does what the load does before any other.
fn warm_up(load: Load) -> Load {
    Load {
        order: Order::Sequential,
        request_bytes: MIB,
        depth: SEQUENTIAL_DEPTH,
        max_requests: crate::images::WRITTEN_BYTES / u64::from(MIB),
        ..load
    }
}

fn in_mib(memory: Memory) -> Vec<f64> {
    [memory.rss_kib, memory.pss_kib, memory.anonymous_kib]
        .map(|kib| kib as f64 / 1024.0)
        .into()
}

/// Runs a load that gives how much it did; gives how much in a second, and the microseconds of
/// processor time that each took.
fn with_cost(process: u32, load: impl FnOnce() -> Result<u64>) -> Result<Vec<f64>> {
    let before = cpu_time(process)?;
    let began = Instant::now();
    let done = load()? as f64;
    let seconds = began.elapsed().as_secs_f64();
    let spent = cpu_time(process)?.saturating_sub(before);
    Ok(vec![done / seconds, spent.as_secs_f64() * 1e6 / done])
}

/// The most memory that a process has while `load` runs.
fn peak_memory(process: u32, load: impl FnOnce() -> Result<()>) -> Result<Memory> {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| -> Result<Memory> {
            let mut peak = Memory::default();
            while !is_over.load(Ordering::Relaxed) {
                peak = peak.max(Memory::of(process)?);
                std::thread::sleep(MEMORY_INTERVAL);
            }
            Ok(peak)
        });
        let done = load();
        is_over.store(true, Ordering::Relaxed);
        let peak = watcher
            .join()
            .map_err(|_| anyhow::anyhow!("watching the memory failed"))?;
        done?;
        peak
    })
}
