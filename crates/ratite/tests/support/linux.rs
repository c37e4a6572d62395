//! Other people's kernels: where their files are, an initial RAM disk, and a shell on the serial line.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::machine::Machine;

/// How long a guest may take for anything: a kernel boots in seconds, but hosts differ.
pub const GUEST_PATIENCE: Duration = Duration::from_secs(300);

/// The modules for virtio, in the order in which they need each other, and where the kernel's
/// package has them.
const MODULES: &[&str] = &[
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci",
    "drivers/virtio/virtio_mmio",
    "drivers/block/virtio_blk",
];

const INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod /modules/$module.ko; done
echo init is ready
exec setsid sh -c 'exec sh </dev/ttyS0 >/dev/ttyS0 2>&1'
";

/// What the shell says when it is there.
const SHELL_IS_THERE: &str = "built-in shell (ash)";

/// Where `cargo xtask test` unpacks the packages.
fn guests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/test-guests/root")
}

/// A file of the packages, by its path.
pub fn guest_file(path: &str) -> PathBuf {
    let file = guests().join(path);
    let which = if super::is_full() {
        "RATITE_FULL=1 "
    } else {
        ""
    };
    assert!(
        file.exists(),
        "{} is missing; '{which}cargo xtask test' fetches it",
        file.display()
    );
    file
}

/// Debian's kernel, and the folder of its modules.
fn kernel() -> (PathBuf, PathBuf) {
    let boot = guest_file("boot");
    let kernels = fs::read_dir(&boot).expect("a folder").flatten();
    let mut kernels: Vec<String> = kernels
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with("vmlinuz-"))
        .collect();
    kernels.sort();
    let name = kernels.pop().unwrap_or_else(|| "vmlinuz".to_owned());
    let release = name.trim_start_matches("vmlinuz-").to_owned();
    let modules = [
        format!("lib/modules/{release}"),
        format!("usr/lib/modules/{release}"),
    ];
    let modules = modules
        .iter()
        .map(|path| guests().join(path))
        .find(|path| path.is_dir());
    let modules = modules.unwrap_or_else(|| guest_file("lib/modules"));
    (guest_file(&format!("boot/{name}")), modules)
}

/// An archive in cpio's "newc" form, as the kernel takes it.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const PLAIN: u32 = 0o100_644;

impl Archive {
    fn add(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.entries += 1;
        let links = if mode == FOLDER { 2 } else { 1 };
        let length = |bytes: usize| u32::try_from(bytes).expect("a small file");
        // i-node, mode, owner, group, links, time, length, device and the file's device, the
        // name's length with its zero, checksum.
        let fields = [
            self.entries,
            mode,
            0,
            0,
            links,
            0,
            length(data.len()),
            0,
            0,
            0,
            0,
            length(name.len() + 1),
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        let length = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(length, 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// An initial RAM disk with busybox and the modules for virtio.
fn initrd(modules: &Path) -> Vec<u8> {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "mnt", "modules", "proc", "sys"] {
        archive.add(folder, FOLDER, &[]);
    }
    let busybox = ["bin/busybox", "usr/bin/busybox"].map(|path| guests().join(path));
    let busybox = busybox.iter().find(|path| path.exists());
    let busybox = busybox
        .cloned()
        .unwrap_or_else(|| guest_file("bin/busybox"));
    archive.add("bin/busybox", PROGRAM, &read(&busybox));
    archive.add("init", PROGRAM, INIT.as_bytes());
    let mut order = String::new();
    for module in MODULES {
        let name = module.rsplit('/').next().unwrap_or(module);
        let file = modules.join(format!("kernel/{module}.ko"));
        archive.add(&format!("modules/{name}.ko"), PLAIN, &read(&file));
        order.push_str(name);
        order.push('\n');
    }
    archive.add("modules/order", PLAIN, order.as_bytes());
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed
        .write_all(&archive.finish())
        .expect("room for an archive");
    packed.finish().expect("room for an archive")
}

/// Debian's kernel with a shell on the serial line.
pub struct Linux {
    pub machine: Machine,
    /// All that came on the console before the shell.
    pub console: String,
}

impl Linux {
    /// Starts a machine and waits for the shell.
    pub fn boot(folder: tempfile::TempDir, options: &[&str]) -> Self {
        let (kernel, modules) = kernel();
        let initrd_file = folder.path().join("initrd.gz");
        fs::write(&initrd_file, initrd(&modules)).expect("room for a file");
        let boot = [
            "-m",
            "256",
            "-kernel",
            kernel.to_str().expect("a path"),
            "-initrd",
            initrd_file.to_str().expect("a path"),
            "-append",
            "console=ttyS0 ignore_loglevel",
        ];
        let machine = Machine::start_in(folder, &[&boot, options].concat());
        let mut linux = Self {
            machine,
            console: String::new(),
        };
        linux.machine.set_patience(GUEST_PATIENCE);
        linux.wait_for_shell();
        linux
    }

    /// Waits until it has booted, again perhaps.
    pub fn wait_for_shell(&mut self) {
        self.console = self.machine.wait_for(SHELL_IS_THERE);
        self.machine.wait_for("# ");
    }

    /// Runs a line in the shell, which must succeed; what it printed.
    pub fn run(&mut self, line: &str) -> String {
        // What is typed comes back, too, but not with the product.
        self.machine
            .type_text(&format!("{line}; echo \"<$((6*7))>$?<\"\n"));
        let output = self.machine.wait_for("<42>");
        let status = self.machine.wait_for("<");
        assert_eq!(status, "0<", "{line}: {output}");
        self.machine.wait_for("# ");
        output
    }

    /// Runs a line that ends the guest.
    pub fn run_last(&mut self, line: &str) {
        self.machine.type_text(&format!("{line}\n"));
    }
}
