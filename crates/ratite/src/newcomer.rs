//! `ratite` without arguments: a first look.
//!
//! Starts a machine with the embedded guest and a fresh disk in a temporary folder, shows the guest's first lines, says
//! how to reach it with the tools people have, and serves until the guest or `quit` ends it, or until the end of input.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use machine_pc::ExitStatus;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UnixStream;

use qmp_client::{Address, Client, ConnectOptions};

use crate::qmp_shell;
use crate::standard_output;
use crate::storage_daemon::{EndSignals, control_runtime};
use crate::system::options::Given;
use crate::system::{System, machine_options_of, machine_storage};

/// Size of the disk that the newcomer gets.
const DISK_SIZE: u64 = 10 << 30;
/// How long the guest's lines are shown before a person gets the word.
const FIRST_LINES: Duration = Duration::from_millis(2500);

pub(crate) fn main() -> ExitCode {
    match run() {
        Ok(ExitStatus(code)) => ExitCode::from(code),
        Err(error) => {
            eprintln!("ratite: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<ExitStatus> {
    let folder = tempfile::Builder::new().prefix("ratite-").tempdir()?;
    let runtime = control_runtime()?;
    let given = options(folder.path());
    let served = runtime.block_on(async {
        let mut signals = EndSignals::take()?;
        let machine = machine_options_of(&given).map_err(anyhow::Error::msg)?;
        let storage = machine_storage(&runtime)?;
        let path = disk_path(folder.path());
        let made = storage.create_disk(&path, DISK_SIZE).await;
        made.map_err(|error| anyhow::anyhow!(error.desc))?;
        let mut system = System::set_up(storage, &given, machine)
            .await
            .map_err(anyhow::Error::msg)?;
        standard_output::write(&welcome(folder.path()))?;
        system.start().await.map_err(anyhow::Error::msg)?;
        let status = serve(&system, folder.path(), &mut signals).await;
        system.close().await;
        status
    });
    runtime.shutdown_background();
    served
}

fn disk_path(folder: &Path) -> String {
    folder.join("disk.qcow2").display().to_string()
}

/// The command line that the newcomer could have typed.
fn options(folder: &Path) -> Vec<Given> {
    let at = |name: &str| folder.join(name).display().to_string().replace(',', ",,");
    let texts = [
        ("m", "128M".to_owned()),
        ("name", "first-look".to_owned()),
        ("append", "disk=write".to_owned()),
        (
            "blockdev",
            format!(
                "driver=qcow2,node-name=disk,discard=unmap,file.driver=file,file.filename={}",
                at("disk.qcow2")
            ),
        ),
        ("device", "virtio-blk-pci,drive=disk,id=disk0".to_owned()),
        ("device", "virtio-balloon-pci,id=balloon0".to_owned()),
        (
            "serial",
            format!("unix:{},server=on,wait=off", at("serial.sock")),
        ),
        ("qmp", format!("unix:{},server=on,wait=off", at("qmp.sock"))),
        (
            "nbd-server",
            format!("addr.type=unix,addr.path={}", at("nbd.sock")),
        ),
        (
            "export",
            "type=nbd,id=disk,node-name=disk,name=disk".to_owned(),
        ),
    ];
    let given = |(option, text)| Given { option, text };
    texts.into_iter().map(given).collect()
}

fn welcome(folder: &Path) -> String {
    let folder = folder.display();
    let program = std::env::current_exe().unwrap_or_else(|_| "ratite".into());
    let ratite = program.display();
    format!(
        "\
Ratite {version}: a PC with its embedded guest and a fresh 10 GiB qcow2 disk, steered over QMP.

  QMP      {folder}/qmp.sock
  serial   {folder}/serial.sock
  disk     {folder}/disk.qcow2
  NBD      nbd+unix:///disk?socket={folder}/nbd.sock   (read only)

Try, in another terminal:

  {ratite} qmp {folder}/qmp.sock query-status
  {ratite} qmp {folder}/qmp.sock stop                     # and cont
  {ratite} qmp {folder}/qmp.sock balloon value=67108864
  {ratite} qmp {folder}/qmp.sock system_powerdown         # the guest switches off
  {ratite} qmp {folder}/qmp.sock                          # a shell with completion
  nbdinfo 'nbd+unix:///disk?socket={folder}/nbd.sock'   # package libnbd-bin

A machine of your own: {ratite} system --help
The folder goes away at the end.

The guest says:

",
        version = env!("CARGO_PKG_VERSION"),
    )
}

/// Serves until the end: with a terminal, a shell is at hand; without one, the end of input ends it.
async fn serve(
    system: &System,
    folder: &Path,
    signals: &mut EndSignals,
) -> anyhow::Result<ExitStatus> {
    let shown = tokio::spawn(show_guest(folder.join("serial.sock")));
    let on_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    let first_look = async {
        tokio::time::sleep(FIRST_LINES).await;
        if !on_terminal {
            end_of_input().await?;
            return Ok(());
        }
        // From here on the guest's lines would stand between a person's.
        shown.abort();
        standard_output::write("\nThis is the QMP shell; 'help' tells more, Ctrl-D ends it.\n\n")?;
        let address = Address::Unix(folder.join("qmp.sock"));
        let client = Client::connect(&address, &ConnectOptions::default()).await?;
        let runtime = tokio::runtime::Handle::current();
        let shell =
            tokio::task::spawn_blocking(move || qmp_shell::interactive(&runtime, client, || {}));
        shell.await?;
        anyhow::Ok(())
    };
    let status = tokio::select! {
        status = system.wait_for_end(signals) => status,
        looked = first_look => {
            looked?;
            system.switch_off().await
        }
    };
    // What the guest said last.
    tokio::time::sleep(Duration::from_millis(50)).await;
    Ok(status)
}

/// Prints what the guest says.
async fn show_guest(socket: PathBuf) -> io::Result<()> {
    let mut lines = BufReader::new(UnixStream::connect(socket).await?).lines();
    while let Some(line) = lines.next_line().await? {
        standard_output::write(&format!("  {}\n", line.trim_end()))?;
    }
    Ok(())
}

async fn end_of_input() -> io::Result<()> {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while lines.next_line().await?.is_some() {}
    Ok(())
}
