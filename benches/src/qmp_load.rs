//! A QMP client that only makes load: the same command again and again.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Receive buffer.
const RECEIVE_BYTES: usize = 256 << 10;

/// Runs `command` for `duration`, keeping `depth` of them under way; gives how many replies came.
pub(crate) fn run(
    monitor: &mut UnixStream,
    command: &str,
    depth: usize,
    duration: Duration,
) -> Result<u64> {
    let one = format!("{{\"execute\": \"{command}\"}}\n");
    let all = one.repeat(depth);
    let mut buf = vec![0; RECEIVE_BYTES];
    let began = Instant::now();
    let (mut under_way, mut done) = (0, 0_u64);
    loop {
        if began.elapsed() < duration {
            let more = all.get(..one.len() * (depth - under_way));
            monitor.write_all(more.unwrap_or_default().as_bytes())?;
            under_way = depth;
        }
        if under_way == 0 {
            return Ok(done);
        }
        let count = monitor.read(&mut buf).context("reading replies")?;
        let bytes = buf.get(..count).unwrap_or_default();
        if count == 0 || bytes.starts_with(b"{\"error\"") {
            bail!("'{command}' failed: {}", String::from_utf8_lossy(bytes));
        }
        // A reply is one line; neither server writes line ends inside.
        let replies = bytes.iter().filter(|byte| **byte == b'\n').count();
        under_way = under_way
            .checked_sub(replies)
            .context("more replies than commands")?;
        done += replies as u64;
    }
}
