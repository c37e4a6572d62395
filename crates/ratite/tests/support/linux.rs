//! Other people's kernels: where their files are, and a shell on the serial line.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use debian_guest::{DebianGuest, SHELL};

use super::machine::Machine;

/// How long a guest may take for anything: a kernel boots in seconds, but hosts differ.
pub const GUEST_PATIENCE: Duration = Duration::from_secs(300);

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

/// Debian's kernel with a shell on the serial line.
pub struct Linux {
    pub machine: Machine,
    /// All that came on the console before the shell.
    pub console: String,
}

impl Linux {
    /// Starts a machine and waits for the shell.
    pub fn boot(folder: tempfile::TempDir, options: &[&str]) -> Self {
        let guest = DebianGuest::find(&guests()).unwrap_or_else(|error| panic!("{error}"));
        let initrd = guest
            .initrd(SHELL)
            .unwrap_or_else(|error| panic!("{error}"));
        let initrd_file = folder.path().join("initrd.gz");
        fs::write(&initrd_file, initrd).expect("room for a file");
        let boot = [
            "-m",
            "256",
            "-kernel",
            guest.kernel().to_str().expect("a path"),
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
