//! Going to the background, and the file with the process id.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// Set in the environment of the process that is to be the daemon.
const MARK: &str = "RATITE_IN_BACKGROUND";
/// What the daemon writes to its parent when it is ready.
const READY: &[u8] = b"ready";

/// Whether this process was started to be the daemon.
pub(crate) fn is_background() -> bool {
    std::env::var_os(MARK).is_some()
}

/// Starts this program again as the daemon and waits until it is ready or has failed.
///
/// A new process, rather than a fork, since this one may have threads.
pub(crate) fn start_again() -> io::Result<ExitCode> {
    let mut arguments = std::env::args_os();
    let called = arguments.next().unwrap_or_default();
    let mut child = Command::new("/proc/self/exe")
        .arg0(called)
        .args(arguments)
        .env(MARK, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(READY.len() as u64).read_to_end(&mut said)?;
    }
    if said == READY {
        return Ok(ExitCode::SUCCESS);
    }
    let status = child.wait()?;
    Ok(ExitCode::from(
        status
            .code()
            .and_then(|code| u8::try_from(code).ok())
            .unwrap_or(1),
    ))
}

/// Tells the waiting parent that all is set up, and lets go of terminal and folder.
pub(crate) fn settle() -> io::Result<()> {
    // Fails only for a process group leader, which a child is not.
    let _ = rustix::process::setsid();
    rustix::process::chdir("/")?;
    let mut stdout = io::stdout();
    stdout.write_all(READY)?;
    stdout.flush()?;
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

/// The file that holds the process id while the daemon lives.
pub(crate) struct PidFile {
    path: PathBuf,
    _file: File,
}

impl PidFile {
    /// Writes the file; no other process may hold it.
    ///
    /// # Errors
    /// Words for people.
    pub(crate) fn create(path: &str) -> Result<Self, String> {
        let could_not = |what: &str, error: &io::Error| {
            let words = host_io::strerror(error);
            format!("cannot create PID file: {what} '{path}': {words}")
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|error| could_not("Could not create", &error))?;
        file.try_lock()
            .map_err(|error| could_not("Could not lock", &io::Error::other(error.to_string())))?;
        let written = file
            .set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(|error| could_not("Could not write", &error))?;
        // The daemon's folder will be another by the time it removes the file.
        let path = fs::canonicalize(path).unwrap_or_else(|_| Path::new(path).to_path_buf());
        Ok(Self { path, _file: file })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Somebody may have removed it: then there is nothing to do.
        let _ = fs::remove_file(&self.path);
    }
}
