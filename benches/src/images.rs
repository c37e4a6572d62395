//! The disks that are served.
//!
//! Both daemons have the same file of a written disk open, without locks: what the host's page cache
//! makes of a file (large folios or small ones) may differ from file to file, and makes a difference
//! of several times for small writes. It harms nothing: each cluster is allocated already, so that
//! neither daemon has anything to change but data. Fresh disks are each daemon's own.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::daemon::Side;

/// How large the written disks are: two L2 tables of a qcow2 image.
pub(crate) const WRITTEN_BYTES: u64 = 640 << 20;
/// How large the fresh disks are: so large that a random write hardly ever meets an earlier one.
pub(crate) const FRESH_BYTES: u64 = 16 << 30;

/// What lies beneath an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disk {
    /// A raw file, each byte written.
    Raw,
    /// A qcow2 image with default options, each cluster written.
    Qcow2,
    /// A qcow2 image that was just made: each write allocates.
    FreshQcow2,
    /// No file: `null-co`. What is left is the way from the socket and back.
    Null,
}

/// The folder with the disks.
pub(crate) struct Images {
    folder: PathBuf,
}

impl Images {
    /// Disks are made in `folder` when they are first asked for, and serve the next run, too.
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        let folder = folder.canonicalize()?;
        Ok(Self { folder })
    }

    /// The file of a disk for one of the daemons; none for [`Disk::Null`].
    pub(crate) fn file(&self, disk: Disk, side: Side) -> Result<Option<PathBuf>> {
        let file = match disk {
            Disk::Null => return Ok(None),
            Disk::Raw => self.folder.join("raw"),
            Disk::Qcow2 => self.folder.join("qcow2"),
            Disk::FreshQcow2 => self.fresh(side),
        };
        if disk == Disk::FreshQcow2 {
            remove(&file)?;
            let size = FRESH_BYTES.to_string();
            qemu_img(&["create", "-q", "-f", "qcow2"], &[&file], &[&size])?;
        } else if !file.is_file() {
            // Under its name only once it is whole.
            let unfinished = file.with_extension("unfinished");
            if disk == Disk::Raw {
                write_raw(&unfinished)?;
            } else if let Some(raw) = self.file(Disk::Raw, side)? {
                let formats = ["convert", "-q", "-f", "raw", "-O", "qcow2"];
                qemu_img(&formats, &[&raw, &unfinished], &[])?;
            }
            // What is still to be written to the disk would disturb what is measured.
            File::open(&unfinished)?.sync_all()?;
            fs::rename(&unfinished, &file)?;
        }
        Ok(Some(file))
    }

    /// Removes the fresh disk of one of the daemons, before all of it has to go to the disk.
    pub(crate) fn remove_fresh(&self, side: Side) -> Result<()> {
        remove(&self.fresh(side))
    }

    fn fresh(&self, side: Side) -> PathBuf {
        self.folder.join(match side {
            Side::Ratite => "fresh.ratite",
            Side::Peer => "fresh.peer",
        })
    }
}

fn remove(file: &Path) -> Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", file.display()))
        }
        _ => Ok(()),
    }
}

fn write_raw(path: &Path) -> Result<()> {
    let file = File::create(path).with_context(|| format!("making {}", path.display()))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    for block in 0..WRITTEN_BYTES / 4096 {
        // No block is like another one, and none is zero.
        let pattern = (block + 1).to_le_bytes();
        for _ in 0..4096 / pattern.len() {
            out.write_all(&pattern)?;
        }
    }
    out.flush()?;
    Ok(())
}

fn qemu_img(options: &[&str], files: &[&Path], rest: &[&str]) -> Result<()> {
    let status = Command::new("qemu-img")
        .args(options)
        .args(files)
        .args(rest)
        .status()
        .context("cannot run qemu-img; install the Debian package qemu-utils")?;
    if !status.success() {
        bail!("qemu-img {} failed: {status}", options.join(" "));
    }
    Ok(())
}
