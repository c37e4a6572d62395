//! One connection: the handshake with its deadline, and TLS. What comes after is `transmission.rs`.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use host_io::{IoBuf, Stream};
use nbd_wire::{CloseReason, Ready, ServerHandshake, ServerStatus, Tls};

use crate::clients::Client;
use crate::distinguished_name::subject_of;
use crate::server::ServerState;
use crate::tls::TlsStream;
use crate::transmission;
use crate::transport::Transport;

/// How much of the handshake is received at a time.
const HANDSHAKE_RECEIVE_BYTES: usize = 16 << 10;

/// Why a connection ended before its transmission phase.
#[derive(Debug, thiserror::Error)]
enum HandshakeError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Closed(CloseReason),
    #[error("the handshake took too long")]
    TooLong,
    #[error("the client has shown no certificate")]
    NoCertificate,
    #[error("client '{0}' is not authorized")]
    NotAuthorized(String),
}

/// What the handshake leads to.
struct Begun {
    transport: Transport,
    ready: Box<Ready>,
    /// What came behind the handshake.
    first: Vec<u8>,
}

/// Serves one connection to its end.
pub(crate) async fn run(state: Arc<ServerState>, stream: Stream, client: Client) {
    let begun = match with_deadline(&state, stream).await {
        Ok(begun) => begun,
        Err(error) => {
            tracing::debug!(%error, "an NBD handshake came to nothing");
            return;
        }
    };
    let Begun {
        transport,
        ready,
        first,
    } = begun;
    let Some(export) = state.find_export(&ready.export.name) else {
        return;
    };
    let Some(user) = export.enter(transport.stream()) else {
        return;
    };
    let elsewhere = export
        .executor()
        .filter(|executor| !executor.is_current())
        .cloned();
    // The two guards go along: they end with the last request.
    let serve = move || async move {
        transmission::run(&export, transport, &ready, &first).await;
        drop(user);
        drop(client);
    };
    match elsewhere {
        Some(executor) => executor.spawn(serve).detach(),
        None => serve().await,
    }
}

async fn with_deadline(state: &ServerState, stream: Stream) -> Result<Begun, HandshakeError> {
    let handshake = handshake(state, stream);
    match state.options.handshake_max_seconds {
        0 => handshake.await,
        seconds => {
            let deadline = host_io::sleep(Duration::from_secs(seconds.into()));
            let too_late = async {
                deadline.await;
                Err(HandshakeError::TooLong)
            };
            either(handshake, too_late).await
        }
    }
}

async fn handshake(state: &ServerState, stream: Stream) -> Result<Begun, HandshakeError> {
    let tls = if state.options.tls.is_some() {
        Tls::Required
    } else {
        Tls::Unavailable
    };
    let mut handshake = ServerHandshake::new(tls);
    let mut transport = Transport::plain(stream);
    let mut buf = IoBuf::with_len(HANDSHAKE_RECEIVE_BYTES);
    loop {
        let output = handshake.take_output();
        if !output.is_empty() {
            transport.send_bytes(&output).await?;
        }
        let (result, back) = transport.recv(buf).await;
        buf = back;
        let count = result?;
        if count == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let bytes = buf.get(..count).unwrap_or_default();
        let status = handshake.feed(bytes, state);
        if status == ServerStatus::NeedMore {
            continue;
        }
        transport.send_bytes(&handshake.take_output()).await?;
        match status {
            ServerStatus::NeedMore => {}
            ServerStatus::StartTls => {
                transport = start_tls(state, &transport).await?;
                handshake.tls_started();
            }
            ServerStatus::Ready(ready) => {
                let first = handshake.take_input();
                return Ok(Begun {
                    transport,
                    ready,
                    first,
                });
            }
            ServerStatus::Closed(reason) => return Err(HandshakeError::Closed(reason)),
        }
    }
}

async fn start_tls(state: &ServerState, plain: &Transport) -> Result<Transport, HandshakeError> {
    let Some(server) = &state.options.tls else {
        return Err(io::Error::from(io::ErrorKind::Unsupported).into());
    };
    let tls = TlsStream::accept(plain.stream().clone(), server).await?;
    if let Some(authorizer) = &state.options.authorizer {
        let certificate = tls.client_certificate();
        let name = certificate.as_deref().and_then(subject_of);
        let name = name.ok_or(HandshakeError::NoCertificate)?;
        if !authorizer(&name) {
            return Err(HandshakeError::NotAuthorized(name));
        }
    }
    Ok(Transport::Tls(Box::new(tls)))
}

/// Waits for the first of two to end, and drops the other.
pub(crate) async fn either<T>(
    first: impl Future<Output = T>,
    second: impl Future<Output = T>,
) -> T {
    let (mut first, mut second) = (pin!(first), pin!(second));
    poll_fn(|cx| match first.as_mut().poll(cx) {
        Poll::Ready(value) => Poll::Ready(value),
        Poll::Pending => second.as_mut().poll(cx),
    })
    .await
}
