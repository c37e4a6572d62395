//! `ratite` without arguments: a first look.
//!
//! Starts a storage daemon on a fresh disk in a temporary folder, says how to reach it with the
//! tools people have, and serves until the end of input or `quit`.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::ExitCode;

use api::QmpError;
use tokio::io::{AsyncBufReadExt, BufReader};

use qmp_client::{Address, Client, ConnectOptions};

use crate::qmp_shell;
use crate::storage_daemon::options::Step;
use crate::storage_daemon::{Daemon, EndSignals, control_runtime};

/// Size of the disk that the newcomer gets.
const DISK_SIZE: u64 = 10 << 30;

pub(crate) fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ratite: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let folder = tempfile::Builder::new().prefix("ratite-").tempdir()?;
    let runtime = control_runtime()?;
    let daemon = Daemon::new(&runtime)?;
    let served = runtime.block_on(async {
        set_up(&daemon, folder.path()).await?;
        daemon.serve_monitors();
        let mut signals = EndSignals::take()?;
        print!("{}", welcome(folder.path()));
        serve(&daemon, folder.path(), &mut signals).await
    });
    runtime.block_on(daemon.close());
    drop(daemon);
    runtime.shutdown_background();
    served
}

async fn set_up(daemon: &Daemon, folder: &Path) -> anyhow::Result<()> {
    let at = |name: &str| folder.join(name).display().to_string().replace(',', ",,");
    daemon
        .create_disk(&folder.join("disk.qcow2").display().to_string(), DISK_SIZE)
        .await?;
    let steps = [
        (
            "chardev",
            format!("socket,id=qmp,path={},server=on,wait=off", at("qmp.sock")),
        ),
        ("monitor", "chardev=qmp".to_owned()),
        (
            "blockdev",
            format!(
                "driver=qcow2,node-name=disk,discard=unmap,file.driver=file,file.filename={}",
                at("disk.qcow2")
            ),
        ),
        (
            "nbd-server",
            format!("addr.type=unix,addr.path={}", at("nbd.sock")),
        ),
        (
            "export",
            "type=nbd,id=disk,node-name=disk,name=disk,writable=on".to_owned(),
        ),
    ];
    for (option, text) in steps {
        let step = Step { option, text };
        let done: Result<(), QmpError> = daemon.set_up(&step).await;
        done.map_err(|error| anyhow::anyhow!("--{option} {}: {error}", step.text))?;
    }
    Ok(())
}

fn welcome(folder: &Path) -> String {
    let folder = folder.display();
    let program = std::env::current_exe().unwrap_or_else(|_| "ratite".into());
    let ratite = program.display();
    format!(
        "\
Ratite {version} is serving a fresh 10 GiB qcow2 disk, steered over QMP.

  disk   {folder}/disk.qcow2
  QMP    {folder}/qmp.sock
  NBD    nbd+unix:///disk?socket={folder}/nbd.sock

Try, in another terminal:

  {ratite} qmp {folder}/qmp.sock query-block-exports
  {ratite} qmp {folder}/qmp.sock                # a shell with completion
  nbdinfo 'nbd+unix:///disk?socket={folder}/nbd.sock'   # package libnbd-bin
  qemu-io -f raw -c 'write -P 42 0 1M' 'nbd+unix:///disk?socket={folder}/nbd.sock'   # qemu-utils

The folder goes away at the end.
",
        version = env!("CARGO_PKG_VERSION"),
    )
}

/// Serves until the end: with a terminal, a shell is at hand; without one, the end of input ends it.
async fn serve(daemon: &Daemon, folder: &Path, signals: &mut EndSignals) -> anyhow::Result<()> {
    if io::stdin().is_terminal() && io::stdout().is_terminal() {
        println!("This is the QMP shell; 'help' tells more, Ctrl-D ends it.\n");
        let address = Address::Unix(folder.join("qmp.sock"));
        let client = Client::connect(&address, &ConnectOptions::default()).await?;
        let runtime = tokio::runtime::Handle::current();
        let shell =
            tokio::task::spawn_blocking(move || qmp_shell::interactive(&runtime, client, || {}));
        tokio::select! {
            () = daemon.wait_for_end(signals) => {}
            left = shell => drop(left?),
        }
        return Ok(());
    }
    tokio::select! {
        () = daemon.wait_for_end(signals) => {}
        ended = end_of_input() => ended?,
    }
    Ok(())
}

async fn end_of_input() -> io::Result<()> {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while lines.next_line().await?.is_some() {}
    Ok(())
}
