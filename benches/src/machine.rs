//! A machine of either kind: a guest that is booted, watched on its serial line, and killed.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use debian_guest::{DebianGuest, INIT_IS_READY};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;

use crate::Settings;
use crate::daemon::Side;

/// How long a guest has for any of its steps.
const PATIENCE: Duration = Duration::from_secs(300);
/// Memory of Linux's guest, in MiB.
const LINUX_MIB: u64 = 256;
/// Memory of the embedded guest, in MiB.
const EMBEDDED_MIB: u64 = 64;
/// What the embedded guest says first.
const HELLO: &str = "Ratite guest:";

/// What Linux's guest does once it is up: each workload between two marks. The input is made
/// before, of text and of what does not compress, so that no row measures making it.
const WORKLOADS_SCRIPT: &str = "
cat /bin/busybox /bin/busybox /bin/busybox /bin/busybox > /input
echo sha256sum begins; sha256sum /input; echo sha256sum ends
echo gzip begins; gzip -c /bin/busybox | wc -c; echo gzip ends
echo loop begins
n=0; sum=0; while [ $n -lt 100000 ]; do n=$((n + 1)); sum=$((sum + n * 3 % 7)); done; echo $sum
echo loop ends
while true; do sleep 1000; done
";

/// The workloads of the guest, in their order.
pub(crate) const WORKLOADS: [&str; 3] = ["sha256sum", "gzip", "loop"];

/// What the guests are started from, below a folder of their own.
pub(crate) struct Guests {
    folder: TempDir,
    kernel: PathBuf,
}

impl Guests {
    /// # Errors
    /// If the kernel's package has not been fetched, or the folder cannot be written.
    pub(crate) fn new(packages: &Path) -> Result<Self> {
        let guest = DebianGuest::find(packages)?;
        let folder = tempfile::Builder::new().prefix("ratite-bench-").tempdir()?;
        fs::write(
            folder.path().join("initrd.gz"),
            guest.initrd(WORKLOADS_SCRIPT)?,
        )?;
        let embedded = guest_payload::image().context("no embedded guest on this host")?;
        fs::write(folder.path().join("guest.elf"), embedded)?;
        Ok(Self {
            kernel: guest.kernel().to_owned(),
            folder,
        })
    }

    fn linux(&self) -> Vec<String> {
        let kernel = self.kernel.display().to_string();
        let initrd = self.folder.path().join("initrd.gz").display().to_string();
        let memory = LINUX_MIB.to_string();
        [
            &["-m", &memory, "-cpu", "max", "-kernel", &kernel][..],
            &["-initrd", &initrd, "-append", "console=ttyS0 panic=-1"],
        ]
        .concat()
        .into_iter()
        .map(str::to_owned)
        .collect()
    }

    fn embedded(&self, board: &str) -> Vec<String> {
        let kernel = self.folder.path().join("guest.elf").display().to_string();
        let memory = EMBEDDED_MIB.to_string();
        ["-M", board, "-m", &memory, "-kernel", &kernel]
            .map(str::to_owned)
            .into()
    }
}

/// A machine that runs.
struct Machine {
    child: Child,
    began: Instant,
    output: ChildStdout,
    /// What the guest said that nobody has waited for yet.
    said: Vec<u8>,
}

impl Machine {
    fn start(side: Side, settings: &Settings, options: &[String]) -> Result<Self> {
        let mut command = match side {
            Side::Ratite => {
                let mut command = Command::new(&settings.ratite);
                command.arg("system");
                command
            }
            Side::Peer => Command::new(&settings.machine_peer),
        };
        command.args(["-accel", "tcg", "-nodefaults", "-no-reboot"]);
        command.args(["-display", "none", "-serial", "stdio"]);
        command.args(options);
        let began = Instant::now();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot run {}", command.get_program().display()))?;
        let output = child.stdout.take().context("a pipe")?;
        Ok(Self {
            child,
            began,
            output,
            said: Vec::new(),
        })
    }

    /// Waits until the guest says `text`; since the start of its process.
    fn wait_for(&mut self, text: &str) -> Result<Duration> {
        let deadline = Instant::now() + PATIENCE;
        let mut bytes = [0; 64 << 10];
        loop {
            if let Some(at) = find(&self.said, text.as_bytes()) {
                self.said.drain(..at + text.len());
                return Ok(self.began.elapsed());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).context("a time to wait")?;
            let mut readable = [PollFd::new(&self.output, PollFlags::IN)];
            if poll(&mut readable, Some(&left))? == 0 {
                bail!("no '{text}' within {} s", PATIENCE.as_secs());
            }
            match self.output.read(&mut bytes)? {
                0 => bail!("the machine ended before it said '{text}'"),
                count => self.said.extend(bytes.iter().take(count)),
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The guest has nothing to lose.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

/// Boots Linux: seconds until its init is ready, seconds that each of [`WORKLOADS`] took, and MiB
/// of memory beyond the guest's RAM at the end.
pub(crate) fn boot_linux(side: Side, settings: &Settings, guests: &Guests) -> Result<Vec<f64>> {
    let mut machine = Machine::start(side, settings, &guests.linux())?;
    let mut values = vec![machine.wait_for(INIT_IS_READY)?.as_secs_f64()];
    for workload in WORKLOADS {
        let from = machine.wait_for(&format!("{workload} begins"))?;
        let to = machine.wait_for(&format!("{workload} ends"))?;
        values.push((to - from).as_secs_f64());
    }
    values.push(memory_beyond(machine.child.id(), LINUX_MIB)?);
    Ok(values)
}

/// From the start of the process to the embedded guest's first line.
pub(crate) fn first_line(
    side: Side,
    settings: &Settings,
    guests: &Guests,
    board: &str,
) -> Result<Duration> {
    let options = guests.embedded(board);
    Machine::start(side, settings, &options)?.wait_for(HELLO)
}

/// Resident MiB of a process, without the mapping that holds the guest's RAM.
fn memory_beyond(process: u32, guest_mib: u64) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{process}/smaps"))?;
    let kib = |line: &str| -> Option<u64> { line.split_whitespace().nth(1)?.parse().ok() };
    let (mut is_guest, mut guest_mappings, mut resident_kib) = (false, 0, 0);
    for line in text.lines() {
        if line.starts_with("Size:") {
            // Ours has what firmware needs behind the RAM.
            let ram = guest_mib << 10..(guest_mib + 1) << 10;
            is_guest = kib(line).is_some_and(|kib| ram.contains(&kib));
            guest_mappings += u32::from(is_guest);
        } else if line.starts_with("Rss:") && !is_guest {
            resident_kib += kib(line).context("a size in smaps")?;
        }
    }
    if guest_mappings != 1 {
        bail!("{guest_mappings} mappings are as large as the guest's RAM");
    }
    Ok(resident_kib as f64 / 1024.0)
}
