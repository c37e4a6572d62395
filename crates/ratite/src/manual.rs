//! `ratite man` and `ratite completions`: what packagers install, from the same option tables
//! that the program itself uses.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::Command;
use clap_complete::Shell;

use crate::standard_output;

/// The whole program as one table.
fn program() -> Command {
    Command::new("ratite")
        .about("QEMU's machine protocol, and the machine and the disks behind it.")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand(crate::system::options::command())
        .subcommand(crate::storage_daemon::options::command())
        .subcommand(crate::qmp_shell::command().name("qmp"))
        .subcommand(crate::qapi_command::command())
}

/// `ratite man FOLDER`: writes the manual pages there.
pub(crate) fn write_pages(arguments: &[OsString]) -> ExitCode {
    let [folder] = arguments else {
        eprintln!("usage: ratite man FOLDER");
        return ExitCode::FAILURE;
    };
    finish(pages(Path::new(folder)))
}

fn pages(folder: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let whole = program();
    for part in whole.get_subcommands() {
        let name = format!("ratite-{}", part.get_name());
        let page = clap_mangen::Man::new(part.clone().name(name.clone()));
        let mut text = Vec::new();
        page.render(&mut text)?;
        std::fs::write(folder.join(format!("{name}.1")), text)?;
    }
    let mut text = Vec::new();
    clap_mangen::Man::new(whole.clone()).render(&mut text)?;
    std::fs::write(folder.join("ratite.1"), text)
}

/// `ratite completions SHELL`: prints the completions for a shell.
pub(crate) fn print_completions(arguments: &[OsString]) -> ExitCode {
    let shell = match arguments {
        [name] => name.to_str().and_then(|name| name.parse::<Shell>().ok()),
        _ => None,
    };
    let Some(shell) = shell else {
        eprintln!("usage: ratite completions bash|elvish|fish|powershell|zsh");
        return ExitCode::FAILURE;
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut program(), "ratite", &mut script);
    standard_output::print("ratite", &String::from_utf8_lossy(&script))
}

fn finish(done: io::Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ratite: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_personality_has_its_page() {
        let folder = tempfile::tempdir().unwrap();
        pages(folder.path()).unwrap();
        for name in [
            "ratite",
            "ratite-system",
            "ratite-storage-daemon",
            "ratite-qmp",
            "ratite-qapi",
        ] {
            let page = std::fs::read_to_string(folder.path().join(format!("{name}.1"))).unwrap();
            assert!(page.contains(".SH"), "{name}");
        }
        let page = folder.path().join("ratite-storage-daemon.1");
        assert!(
            std::fs::read_to_string(page)
                .unwrap()
                .contains("nbd\\-server")
        );
    }
}
