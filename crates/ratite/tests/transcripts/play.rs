//! Playing a transcript against our daemon.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::differs::{Listed, OfFile};
use super::equal::are_same;
use super::support::{self, PATIENCE, Qmp};
use super::transcript::{Action, Answer, Part, Step};

/// How long an expected answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(8);
/// How long nothing must come, after a difference, before the play goes on.
const SETTLE: Duration = Duration::from_millis(200);
/// How long one waits for what is not expected.
const GLANCE: Duration = Duration::from_millis(1);
/// How long a shell command may take, in seconds.
const SHELL_LIMIT_S: &str = "60";

/// A difference that is not listed, or a listed one that is none.
pub struct Finding {
    /// The line, or what ended.
    pub line: String,
    pub occurrence: usize,
    pub expected: Vec<String>,
    pub came: Vec<String>,
    /// Whether the list says something else than what came.
    pub is_listed: bool,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listed = if self.is_listed {
            " (listed in differs.toml otherwise)"
        } else {
            ""
        };
        writeln!(f, "{}{listed}", self.line)?;
        for line in &self.expected {
            writeln!(f, "  expected {line}")?;
        }
        for line in &self.came {
            writeln!(f, "  came     {line}")?;
        }
        Ok(())
    }
}

/// Plays all parts of a file.
pub fn file(parts: &[Part], mut differences: OfFile) -> Result<Vec<Finding>, String> {
    let mut findings = Vec::new();
    let mut met = BTreeMap::new();
    for part in parts {
        let mut player = Player::new(&mut differences, &mut findings, &mut met);
        player.play(part)?;
    }
    findings.extend(differences.left().map(|(line, occurrence)| Finding {
        line: line.clone(),
        occurrence: *occurrence,
        expected: vec!["a line of this transcript".to_owned()],
        came: vec!["no such line: remove it from differs.toml".to_owned()],
        is_listed: true,
    }));
    Ok(findings)
}

/// One part in play.
struct Player<'a> {
    differences: &'a mut OfFile,
    findings: &'a mut Vec<Finding>,
    /// How often each line was met in the file so far.
    met: &'a mut BTreeMap<String, usize>,
    folder: TempDir,
    /// Process groups of shell commands, which may have left processes in the background.
    groups: Vec<u32>,
    daemon: Option<Child>,
    client: Option<Qmp>,
}

impl Drop for Player<'_> {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // It may have ended by itself.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        for group in &self.groups {
            let group = format!("-{group}");
            let _ = Command::new("kill")
                .args(["-s", "KILL", "--", &group])
                .stderr(Stdio::null())
                .status();
        }
    }
}

impl<'a> Player<'a> {
    fn new(
        differences: &'a mut OfFile,
        findings: &'a mut Vec<Finding>,
        met: &'a mut BTreeMap<String, usize>,
    ) -> Self {
        let folder = support::new_folder();
        Self {
            differences,
            findings,
            met,
            folder,
            groups: vec![],
            daemon: None,
            client: None,
        }
    }

    fn play(&mut self, part: &Part) -> Result<(), String> {
        for command in &part.setup {
            self.shell(command)?;
        }
        self.start(&part.arguments)?;
        let greeting = self.connect()?;
        if let Some(expected) = &part.greeting {
            let came: Vec<Answer> = greeting.clone().into_iter().collect();
            self.judge("greeting", std::slice::from_ref(expected), came);
        }
        if greeting.is_none() && !part.steps.is_empty() {
            let (exit, stderr) = self.finish()?;
            return Err(format!("the daemon ended with {exit}: {stderr:?}"));
        }
        for step in &part.steps {
            self.step(step)?;
        }
        let (exit, stderr) = self.finish()?;
        self.judge_end(part, exit, &stderr);
        for command in &part.checks {
            self.shell(command)?;
        }
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        match &step.action {
            Action::Send(text) => {
                let text = format!("{}\n", self.local(text));
                self.client().send(text.as_bytes());
            }
            Action::Bytes(bytes) => self.client().send(bytes),
            Action::Run(command) => self.shell(command)?,
        }
        let occurrence = self.count(&step.line);
        let listed = match self.differences.take(&step.line, occurrence) {
            Some(Listed::Answers(answers)) => Some(answers),
            Some(Listed::End(_)) | None => None,
        };
        let wanted = listed.as_ref().unwrap_or(&step.answers);
        let came = self.collect(wanted);
        let is_fine =
            are_same(wanted, &came) && (listed.is_none() || !are_same(&step.answers, &came));
        if !is_fine {
            let mut came = came;
            came.extend(self.drain(SETTLE));
            self.findings.push(Finding {
                line: step.line.clone(),
                occurrence,
                expected: lines(&step.answers),
                came: lines(&came),
                is_listed: listed.is_some(),
            });
        }
        Ok(())
    }

    /// Reads until as many events and replies came as are wanted.
    fn collect(&mut self, wanted: &[Answer]) -> Vec<Answer> {
        let wanted_events = wanted.iter().filter(|answer| answer.is_event()).count();
        let wanted_replies = wanted.len() - wanted_events;
        let (mut events, mut replies) = (0, 0);
        let mut came = Vec::new();
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        while events < wanted_events || replies < wanted_replies {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(answer) = self.read(left) else {
                return came;
            };
            if answer.is_event() {
                events += 1;
            } else {
                replies += 1;
            }
            came.push(answer);
        }
        came.extend(self.drain(GLANCE));
        came
    }

    /// Reads until nothing comes for some time.
    fn drain(&mut self, quiet: Duration) -> Vec<Answer> {
        std::iter::from_fn(|| self.read(quiet)).collect()
    }

    fn read(&mut self, timeout: Duration) -> Option<Answer> {
        let message = self.client.as_mut()?.read(timeout)?;
        let text = self.portable(&message.to_string());
        let mut value: Value = serde_json::from_str(&text).ok()?;
        if value.get("event").is_some()
            && let Some(event) = value.as_object_mut()
        {
            event.shift_remove("timestamp");
        }
        Some(Answer {
            value,
            has_sets: false,
        })
    }

    fn judge(&mut self, line: &str, expected: &[Answer], came: Vec<Answer>) {
        if !are_same(expected, &came) {
            self.findings.push(Finding {
                line: line.to_owned(),
                occurrence: 1,
                expected: lines(expected),
                came: lines(&came),
                is_listed: false,
            });
        }
    }

    fn judge_end(&mut self, part: &Part, exit: i32, stderr: &[String]) {
        let line = format!("args:{}", part.arguments);
        let occurrence = self.count(&line);
        let expected = end_lines(part.exit, &part.stderr);
        let came = end_lines(exit, stderr);
        let listed = match self.differences.take(&line, occurrence) {
            Some(Listed::End(lines)) => Some(lines),
            Some(Listed::Answers(_)) | None => None,
        };
        let wanted = listed.as_ref().unwrap_or(&expected);
        if *wanted != came || (listed.is_some() && expected == came) {
            let is_listed = listed.is_some();
            self.findings.push(Finding {
                line,
                occurrence,
                expected,
                came,
                is_listed,
            });
        }
    }

    /// Which occurrence of a line this is, from 1.
    fn count(&mut self, line: &str) -> usize {
        let count = self.met.entry(line.to_owned()).or_insert(0);
        *count += 1;
        *count
    }

    fn client(&mut self) -> &mut Qmp {
        self.client.as_mut().expect("a client")
    }

    fn dir(&self) -> &Path {
        self.folder.path()
    }

    /// With our folder in place of `{dir}`.
    fn local(&self, text: &str) -> String {
        text.replace("{dir}", &self.dir().display().to_string())
    }

    /// The other way round, and automatic node names without their numbers.
    fn portable(&self, text: &str) -> String {
        let text = text.replace(&self.dir().display().to_string(), "{dir}");
        let mut pieces = text.split("#block");
        let mut result = pieces.next().unwrap_or_default().to_owned();
        for piece in pieces {
            result.push_str("#block");
            result.push_str(piece.trim_start_matches(|c: char| c.is_ascii_digit()));
        }
        result
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.dir())
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .stdin(Stdio::null())
            .process_group(0);
        command
    }

    fn shell(&mut self, text: &str) -> Result<(), String> {
        let path: PathBuf = self.dir().join(".shell-output");
        let output = File::create(&path).map_err(|error| error.to_string())?;
        let again = output.try_clone().map_err(|error| error.to_string())?;
        let local = self.local(text);
        let mut child = self
            .command("timeout")
            .args(["--foreground", SHELL_LIMIT_S, "sh", "-c", &local])
            .stdout(output)
            .stderr(again)
            .spawn()
            .map_err(|error| format!("{text}: {error}"))?;
        self.groups.push(child.id());
        let status = child.wait().map_err(|error| error.to_string())?;
        if !status.success() {
            let said = fs::read_to_string(&path).unwrap_or_default();
            let daemon = self.stderr();
            return Err(format!(
                "{text}: {status}\n{said}\nthe daemon said: {daemon:?}"
            ));
        }
        Ok(())
    }

    fn start(&mut self, arguments: &str) -> Result<(), String> {
        let program = support::storage_daemon_in(self.dir());
        let monitor = "--chardev socket,id=qmp0,path={dir}/qmp.sock,server=on,wait=off --monitor chardev=qmp0";
        let line = self.local(&format!("exec \"$0\" {monitor} {arguments}"));
        let stderr = File::create(self.dir().join(".stderr")).map_err(|error| error.to_string())?;
        let child = self
            .command("sh")
            .args(["-c", &line])
            .arg(program)
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .map_err(|error| error.to_string())?;
        self.daemon = Some(child);
        Ok(())
    }

    /// The greeting, unless the daemon ended.
    fn connect(&mut self) -> Result<Option<Answer>, String> {
        let socket = self.dir().join("qmp.sock");
        let began = Instant::now();
        loop {
            if let Ok(client) = Qmp::connect_raw(&socket) {
                self.client = Some(client);
                return Ok(self.read(ANSWER_TIMEOUT));
            }
            if let Some(daemon) = &mut self.daemon
                && daemon
                    .try_wait()
                    .map_err(|error| error.to_string())?
                    .is_some()
            {
                return Ok(None);
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("no socket: {:?}", self.stderr()));
            }
            std::thread::sleep(Duration::from_millis(3));
        }
    }

    /// Ends the daemon if it still runs: exit status (minus the signal) and standard error.
    fn finish(&mut self) -> Result<(i32, Vec<String>), String> {
        if let Some(client) = &mut self.client {
            client.send(b"{\"execute\": \"qmp_capabilities\"}\n{\"execute\": \"quit\"}\n");
        }
        let mut daemon = self.daemon.take().ok_or("no daemon")?;
        let status = support::wait_for_end(&mut daemon, "the daemon");
        let exit = status
            .code()
            .unwrap_or_else(|| -status.signal().unwrap_or(0));
        Ok((exit, self.stderr()))
    }

    fn stderr(&self) -> Vec<String> {
        let text = fs::read(self.dir().join(".stderr")).unwrap_or_default();
        let text = self.portable(&String::from_utf8_lossy(&text));
        text.replace("qemu-storage-daemon", "{prog}")
            .lines()
            .map(str::to_owned)
            .collect()
    }
}

fn lines(answers: &[Answer]) -> Vec<String> {
    answers
        .iter()
        .map(|answer| {
            format!(
                "{} {}",
                if answer.has_sets { "<~" } else { "<" },
                answer.value
            )
        })
        .collect()
}

fn end_lines(exit: i32, stderr: &[String]) -> Vec<String> {
    let mut lines = vec![format!("exit: {exit}")];
    lines.extend(stderr.iter().map(|line| format!("stderr: {line}")));
    lines
}
