//! `cargo xtask bench [ROW...]`: Ratite's storage daemon and machine against QEMU's, in the same run.
//!
//! Each row is measured in several rounds, the two sides taking turns; what is told is the median
//! of each, and the median of the rounds' ratios. Absolute figures depend on the machine and on
//! who else is using it; the ratio does so much less.
//!
//! ```text
//!   rows.rs      which rows there are, and what each asks of a daemon
//!   daemon.rs    one daemon of either kind: its command line, its end, its memory
//!   machine.rs   one machine of either kind: its guests, what they say, its memory
//!   images.rs    the disks that are served
//!   nbd_load.rs  an NBD client that only makes load
//!   qmp_load.rs  a QMP client that only makes load
//!   report.rs    medians, the table, JSON
//! ```
//!
//! A new row is an entry of `rows::all`; a new kind of measurement a variant of `rows::Kind`.

mod daemon;
mod images;
mod machine;
mod nbd_load;
mod qmp_load;
mod report;
mod rows;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};

use crate::images::Images;

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Ratite's storage daemon and machine against QEMU's: figures of both, and their ratio.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench")]
struct Arguments {
    /// Rows to run: those whose name contains one of these words. All, if none is given.
    rows: Vec<String>,
    /// Only print the names of the rows.
    #[arg(long)]
    list: bool,
    /// How often each side is measured; Linux is booted three times at most.
    #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// How long one measurement of throughput takes.
    #[arg(long, default_value_t = 250, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    milliseconds: u64,
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
    /// The program to measure. The one that was built with this benchmark, if it is not given.
    #[arg(long)]
    ratite: Option<PathBuf>,
    /// What the daemon is measured against.
    #[arg(long, default_value = "qemu-storage-daemon")]
    peer: PathBuf,
    /// What the machine is measured against.
    #[arg(long, default_value = "qemu-system-x86_64")]
    machine_peer: PathBuf,
    /// The peer's 'aio' option of file nodes (threads, native, io_uring); its default if not given.
    #[arg(long)]
    peer_aio: Option<String>,
    /// Where the disks are made, about 2 GB: a file system on a real disk.
    #[arg(long, default_value = "target/bench")]
    folder: PathBuf,
    /// Where the packages with the guest's kernel have been unpacked.
    #[arg(long, default_value = "target/test-guests/root")]
    guests: PathBuf,
}

/// What all measurements need to know.
struct Settings {
    ratite: PathBuf,
    peer: PathBuf,
    machine_peer: PathBuf,
    peer_aio: Option<String>,
    rounds: u32,
    duration: Duration,
    images: Images,
    guests: PathBuf,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut cases = rows::all();
    if !arguments.rows.is_empty() {
        cases.retain(|case| arguments.rows.iter().any(|word| case.name.contains(word)));
        if cases.is_empty() {
            bail!("no row has such a name; --list prints them");
        }
    }
    if arguments.list {
        for case in &cases {
            println!("{}", case.name);
        }
        return Ok(());
    }
    let settings = Settings {
        ratite: match arguments.ratite {
            Some(path) => path,
            None => beside_this_program()?,
        },
        peer: arguments.peer,
        machine_peer: arguments.machine_peer,
        peer_aio: arguments.peer_aio,
        rounds: arguments.rounds,
        duration: Duration::from_millis(arguments.milliseconds),
        images: Images::new(&arguments.folder)?,
        guests: arguments.guests,
    };
    let mut results = Vec::new();
    for case in &cases {
        eprintln!("{} ...", case.name);
        let rows = rows::run(case, &settings);
        results.extend(rows.with_context(|| format!("row '{}'", case.name))?);
    }
    match arguments.output {
        Output::Text => report::print_table(&results),
        Output::Json => println!("{:#}", report::to_json(&results)),
    }
    Ok(())
}

/// `ratite`, built into the same folder as this program.
fn beside_this_program() -> Result<PathBuf> {
    let here = std::env::current_exe().context("where this program is")?;
    let path = here.with_file_name("ratite");
    if !path.is_file() {
        bail!(
            "{} does not exist; 'cargo xtask bench' builds it, or name one with --ratite",
            path.display()
        );
    }
    Ok(path)
}
