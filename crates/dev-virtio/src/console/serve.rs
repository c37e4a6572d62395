//! A port's task: carries bytes between the port and its chardev's connections, one after the other.

use std::sync::Arc;

use chardev::{ByteStream, ChardevClaim};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::port::{MAX_PORT_INPUT_BYTES, Port};

/// Serves a port until the task is aborted, or the chardev is gone.
pub(super) async fn serve(port: Arc<Port>, mut claim: ChardevClaim, told: impl Fn()) {
    while let Some(connections) = claim.connections() {
        let stream = tokio::select! {
            stream = connections.recv() => stream,
            () = port.news.notified() => {
                port.work();
                continue;
            }
        };
        let Some(stream) = stream else { return };
        if port.set_host_open(true) {
            told();
        }
        port.work();
        serve_stream(&port, stream).await;
        if port.set_host_open(false) {
            told();
        }
    }
}

/// Serves one connection until it ends.
async fn serve_stream(port: &Port, stream: Box<dyn ByteStream>) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut input = vec![0; MAX_PORT_INPUT_BYTES];
    let mut output = Vec::new();
    let mut sent = 0;
    loop {
        if sent >= output.len() {
            output.clear();
            sent = 0;
            port.take_output(&mut output);
            // There is room now.
            port.work();
        }
        let room = port.input_room();
        let into = input.get_mut(..room).unwrap_or_default();
        let from = output.get(sent..).unwrap_or_default();
        tokio::select! {
            result = reader.read(into), if room > 0 => match result {
                Ok(count) if count > 0 => {
                    port.receive(input.get(..count).unwrap_or_default());
                }
                _ => return,
            },
            result = writer.write(from), if !from.is_empty() => match result {
                Ok(count) if count > 0 => sent += count,
                _ => return,
            },
            () = port.news.notified() => port.work(),
        }
    }
}
