//! Debian's kernel and an initial RAM disk for it, as tests and benchmarks boot them: a kernel that
//! others built, busybox, and a shell on the serial line.
//!
//! The packages are fetched and unpacked by `cargo xtask`, below a folder that [`DebianGuest::find`]
//! is given; nothing of them is in the tree. What the guest does once it is up is a script that the
//! caller gives, see [`DebianGuest::initrd`].

mod cpio;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::cpio::{Archive, FOLDER, PLAIN, PROGRAM};

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

/// What comes before the caller's part.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod /modules/$module.ko; done
echo init is ready
";

/// What the console says when the modules are loaded and the caller's part begins.
pub const INIT_IS_READY: &str = "init is ready";

/// A shell on the first serial port, in place of init.
pub const SHELL: &str = "exec setsid sh -c 'exec sh </dev/ttyS0 >/dev/ttyS0 2>&1'\n";

/// A file that is not there, or cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DebianGuestError {
    /// The packages have not been unpacked.
    #[error("no {what} below {}; 'cargo xtask test' fetches it", .root.display())]
    Missing {
        /// What is looked for.
        what: &'static str,
        /// Where packages are unpacked.
        root: PathBuf,
    },
    /// Reading failed.
    #[error("{}: {source}", .path.display())]
    Read {
        /// What was read.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Packing the initial RAM disk failed.
    #[error("cannot pack an initial RAM disk: {0}")]
    Pack(io::Error),
}

/// The files of the packages `linux-image-*-cloud-amd64` and `busybox-static`.
#[derive(Debug, Clone)]
pub struct DebianGuest {
    kernel: PathBuf,
    modules: PathBuf,
    busybox: PathBuf,
}

impl DebianGuest {
    /// Finds them below `root`, where the packages have been unpacked; of several kernels the one
    /// whose name sorts last.
    ///
    /// # Errors
    /// [`DebianGuestError::Missing`].
    pub fn find(root: &Path) -> Result<Self, DebianGuestError> {
        let missing = |what| DebianGuestError::Missing {
            what,
            root: root.to_owned(),
        };
        let boot = fs::read_dir(root.join("boot")).map_err(|_| missing("kernel"))?;
        let release = boot
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter_map(|name| Some(name.strip_prefix("vmlinuz-")?.to_owned()))
            .max()
            .ok_or_else(|| missing("kernel"))?;
        // Where `/lib` is a link to `/usr/lib`, packages may use either.
        let either = |path: &str| {
            [root.join(path), root.join("usr").join(path)]
                .into_iter()
                .find(|path| path.exists())
        };
        let modules = either(&format!("lib/modules/{release}/kernel"));
        Ok(Self {
            kernel: root.join(format!("boot/vmlinuz-{release}")),
            modules: modules.ok_or_else(|| missing("kernel modules"))?,
            busybox: either("bin/busybox").ok_or_else(|| missing("busybox"))?,
        })
    }

    /// The kernel's bzImage.
    pub fn kernel(&self) -> &Path {
        &self.kernel
    }

    /// An initial RAM disk with busybox and the modules for virtio. Its init mounts `/proc`, `/sys`
    /// and `/dev`, loads the modules, prints [`INIT_IS_READY`] and goes on with `then`, lines of
    /// shell that must not come to an end ([`SHELL`]).
    ///
    /// # Errors
    /// [`DebianGuestError::Read`], [`DebianGuestError::Pack`].
    pub fn initrd(&self, then: &str) -> Result<Vec<u8>, DebianGuestError> {
        let mut archive = Archive::default();
        for folder in ["bin", "dev", "mnt", "modules", "proc", "sys"] {
            archive.add(folder, FOLDER, &[]);
        }
        archive.add("bin/busybox", PROGRAM, &read(&self.busybox)?);
        archive.add("init", PROGRAM, format!("{INIT}{then}").as_bytes());
        let mut order = String::new();
        for module in MODULES {
            let name = module.rsplit('/').next().unwrap_or(module);
            let file = read(&self.modules.join(format!("{module}.ko")))?;
            archive.add(&format!("modules/{name}.ko"), PLAIN, &file);
            order.push_str(name);
            order.push('\n');
        }
        archive.add("modules/order", PLAIN, order.as_bytes());
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        let written = packed.write_all(&archive.finish());
        written
            .and_then(|()| packed.finish())
            .map_err(DebianGuestError::Pack)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, DebianGuestError> {
    fs::read(path).map_err(|source| DebianGuestError::Read {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
#[allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let root = tempfile::tempdir().unwrap();
        let missing = || DebianGuest::find(root.path()).unwrap_err().to_string();
        let fetches = format!(
            "below {}; 'cargo xtask test' fetches it",
            root.path().display()
        );
        assert_eq!(missing(), format!("no kernel {fetches}"));
        fs::create_dir(root.path().join("boot")).unwrap();
        fs::write(root.path().join("boot/vmlinuz-6.1"), "").unwrap();
        assert_eq!(missing(), format!("no kernel modules {fetches}"));
        fs::create_dir_all(root.path().join("usr/lib/modules/6.1/kernel")).unwrap();
        assert_eq!(missing(), format!("no busybox {fetches}"));
    }

    /// The kernel's own format is what cpio of other people reads.
    #[test]
    fn cpio_unpacks_what_was_packed() {
        let root = tempfile::tempdir().unwrap();
        let modules = root.path().join("lib/modules/6.1/kernel");
        for file in ["boot/vmlinuz-6.0", "boot/vmlinuz-6.1", "bin/busybox"] {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
        for module in MODULES {
            let path = modules.join(format!("{module}.ko"));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, module.repeat(3)).unwrap();
        }
        let guest = DebianGuest::find(root.path()).unwrap();
        assert!(guest.kernel().ends_with("boot/vmlinuz-6.1"));
        let initrd = guest.initrd("echo then\n").unwrap();
        let mut archive = Vec::new();
        GzDecoder::new(&*initrd).read_to_end(&mut archive).unwrap();

        let unpacked = root.path().join("unpacked");
        fs::create_dir(&unpacked).unwrap();
        let packed = unpacked.join(".archive");
        fs::write(&packed, archive).unwrap();
        let status = std::process::Command::new("cpio")
            .args(["-i", "--quiet", "-F", ".archive"])
            .current_dir(&unpacked)
            .status()
            .expect("cpio is missing: apt-get install -y cpio");
        assert!(status.success());
        let text = |name: &str| fs::read_to_string(unpacked.join(name)).unwrap();
        assert_eq!(text("init"), format!("{INIT}echo then\n"));
        assert_eq!(text("bin/busybox"), "bin/busybox");
        assert_eq!(text("modules/order").lines().count(), MODULES.len());
        assert_eq!(
            text("modules/virtio_blk.ko"),
            "drivers/block/virtio_blk".repeat(3)
        );
    }
}
