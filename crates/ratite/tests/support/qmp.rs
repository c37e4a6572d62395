//! A small blocking QMP client, independent of the workspace's own code.

#![allow(
    clippy::indexing_slicing,
    reason = "JSON values index to null, they do not panic"
)]

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::PATIENCE;

/// One client on a monitor's socket.
pub struct Qmp {
    stream: BufReader<UnixStream>,
    /// What was read of a line that is not complete.
    partial: Vec<u8>,
    /// Events that came while a reply was awaited, oldest first.
    events: VecDeque<Value>,
}

impl Qmp {
    /// Connects and negotiates.
    pub fn connect(socket: &Path) -> Self {
        let mut client = Self::connect_raw(socket)
            .unwrap_or_else(|error| panic!("{}: {error}", socket.display()));
        let greeting = client.read(PATIENCE).expect("a greeting");
        assert!(greeting.get("QMP").is_some(), "not a greeting: {greeting}");
        client.ok("qmp_capabilities", &json!({}));
        client
    }

    /// Connects only.
    pub fn connect_raw(socket: &Path) -> std::io::Result<Self> {
        let stream = BufReader::new(UnixStream::connect(socket)?);
        Ok(Self {
            stream,
            partial: Vec::new(),
            events: VecDeque::new(),
        })
    }

    /// Sends bytes as they are. What the other end does not take any more is lost silently: what
    /// it answers tells.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.get_mut().write_all(bytes);
    }

    /// The next message of any kind; none at the end of the stream or after `timeout`.
    pub fn read(&mut self, timeout: Duration) -> Option<Value> {
        let line = self.read_line(timeout)?;
        let text = String::from_utf8(line).expect("UTF-8 from the daemon");
        Some(
            serde_json::from_str(&text)
                .unwrap_or_else(|error| panic!("{error} in the daemon's line {text:?}")),
        )
    }

    fn read_line(&mut self, timeout: Duration) -> Option<Vec<u8>> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = left.max(Duration::from_millis(1));
            self.stream
                .get_ref()
                .set_read_timeout(Some(left))
                .expect("a timeout to set");
            match self.stream.read_until(b'\n', &mut self.partial) {
                Ok(_) if self.partial.ends_with(b"\n") => {
                    return Some(std::mem::take(&mut self.partial));
                }
                Ok(_) => return None,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
    }

    /// Executes a command; its `return`, or its `error`.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value, Value> {
        let mut text = json!({ "execute": command, "arguments": arguments }).to_string();
        text.push('\n');
        self.send(text.as_bytes());
        loop {
            let Some(mut message) = self.read(PATIENCE) else {
                panic!("no reply to {text}");
            };
            if message.get("event").is_some() {
                self.events.push_back(message);
            } else if let Some(value) = message.get_mut("return") {
                return Ok(value.take());
            } else {
                return Err(message["error"].take());
            }
        }
    }

    /// Executes a command that must succeed.
    pub fn ok(&mut self, command: &str, arguments: &Value) -> Value {
        self.execute(command, arguments)
            .unwrap_or_else(|error| panic!("{command} {arguments}: {error}"))
    }

    /// Executes a command that must fail; its `desc`.
    pub fn error(&mut self, command: &str, arguments: &Value) -> String {
        match self.execute(command, arguments) {
            Ok(value) => panic!("{command} {arguments} returned {value}"),
            Err(error) => error["desc"].as_str().unwrap_or_default().to_owned(),
        }
    }

    /// The next event of this name; others before it are passed over.
    pub fn event(&mut self, name: &str) -> Value {
        self.any_event(&[name])
    }

    /// The next events of two names, in whichever order they come: one with a rate limit may be late.
    pub fn both_events(&mut self, names: [&str; 2]) -> [Value; 2] {
        let [first, second] = names;
        let one = self.any_event(&names);
        if one["event"] == first {
            let other = self.event(second);
            return [one, other];
        }
        [self.event(first), one]
    }

    fn any_event(&mut self, names: &[&str]) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let next = self
                .events
                .pop_front()
                .or_else(|| self.read(deadline.saturating_duration_since(Instant::now())));
            match next {
                None => panic!("no event {names:?}"),
                Some(event) if names.iter().any(|name| event["event"] == *name) => return event,
                Some(_) => {}
            }
        }
    }
}
