//! Running the tools of others.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The programs that the tests talk to, and the Debian package of each.
const PACKAGES: &[(&str, &str)] = &[
    ("qemu-img", "qemu-utils"),
    ("qemu-io", "qemu-utils"),
    ("nbdinfo", "libnbd-bin"),
    ("nbdcopy", "libnbd-bin"),
    ("fio", "fio"),
    ("python3", "python3-venv"),
    ("sh", "dash"),
];

/// How long a tool may run, in seconds, before `timeout` ends it.
const LIMIT_S: &str = "120";

/// A call of a tool, to which arguments can be added. It ends when it takes too long.
pub fn tool(name: &str) -> Command {
    let package = PACKAGES
        .iter()
        .find(|(program, _)| *program == name)
        .map_or_else(
            || panic!("{name} is not in the table of tools"),
            |(_, package)| *package,
        );
    assert!(
        is_installed(name),
        "{name} is missing: apt-get install -y {package}"
    );
    command(name)
}

/// The Python that has `qemu.qmp`.
pub fn python_with_qmp() -> Command {
    let python = std::env::var("RATITE_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has_it = Command::new(&python)
        .args(["-c", "import qemu.qmp"])
        .output()
        .is_ok_and(|output| output.status.success());
    assert!(
        has_it,
        "{python} has no qemu.qmp: 'cargo xtask test' sets it up; or pip install qemu.qmp and set \
         RATITE_TEST_PYTHON to that Python"
    );
    command(&python)
}

/// A Python that has libnbd's module `nbd`, which is what `nbdsh` is. Debian's own Python has it,
/// which need not be the first on the path.
pub fn python_with_nbd() -> Command {
    let found = ["/usr/bin/python3", "python3"].into_iter().find(|python| {
        let tried = Command::new(python).args(["-c", "import nbd"]).output();
        tried.is_ok_and(|output| output.status.success())
    });
    let python = found.expect("no Python has libnbd: apt-get install -y python3-libnbd");
    command(python)
}

/// A script of `tests/scripts`.
pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/scripts")
        .join(name)
}

fn command(program: &str) -> Command {
    let mut command = Command::new("timeout");
    command
        .args(["--kill-after=5", LIMIT_S, program])
        .env("LC_ALL", "C")
        .env("TZ", "UTC")
        .stdin(Stdio::null());
    command
}

fn is_installed(program: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).any(|folder| folder.join(program).is_file())
}

/// Runs a command that must succeed; what it wrote to its standard output.
pub fn run(command: &mut Command) -> String {
    let output = output(command);
    assert!(output.status.success(), "{}", describe(command, &output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a command to its end, whatever its status.
pub fn output(command: &mut Command) -> Output {
    command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Words about a command that failed.
pub fn describe(command: &Command, output: &Output) -> String {
    format!(
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Runs `qemu-img` with these words.
pub fn qemu_img(words: &[&str]) -> String {
    run(tool("qemu-img").args(words))
}

/// Makes an image.
pub fn create_image(path: &Path, format: &str, options: &str, size: &str) {
    let mut command = tool("qemu-img");
    command.args(["create", "-q", "-f", format]);
    if !options.is_empty() {
        command.args(["-o", options]);
    }
    run(command.arg(path).arg(size));
}

/// Runs commands of `qemu-io` on an image. `qemu-io` says errors of reads and patterns only in
/// its text.
pub fn qemu_io(format: &str, image: &str, commands: &[impl AsRef<str>]) {
    let mut command = tool("qemu-io");
    command.args(["-f", format]);
    for line in commands {
        command.args(["-c", line.as_ref()]);
    }
    let text = run(command.arg(image));
    let is_bad = ["failed", "error", "rror:", "Invalid", "invalid"];
    assert!(
        !is_bad.iter().any(|word| text.contains(word)),
        "{command:?}: {text}"
    );
}
