//! TLS over a socket: `tls-session` does the protocol, the socket's operations stay those of
//! `host-io`.

use std::cell::RefCell;
use std::io;

use host_io::{IoBuf, IoBytes, Stream};
use tls_session::{ServerTls, TlsSession};

/// How much cipher text is received or sent at a time: a few records of 16 KiB.
const CIPHER_BYTES: usize = 64 << 10;

/// The server's end of a TLS session whose handshake is done.
pub(crate) struct TlsStream {
    stream: Stream,
    session: RefCell<TlsSession>,
    /// Received, and not taken by the session yet, which holds little plain text at a time.
    cipher: RefCell<IoBytes>,
}

impl TlsStream {
    /// Does the handshake.
    ///
    /// # Errors
    /// The host's, or `InvalidData` with what is wrong with the peer or its certificate.
    pub(crate) async fn accept(stream: Stream, server: &ServerTls) -> io::Result<Self> {
        let session = server.session().map_err(io::Error::other)?;
        let tls = Self {
            stream,
            session: RefCell::new(session),
            cipher: RefCell::new(IoBytes::copy_of(&[])),
        };
        loop {
            let sent = tls.send_cipher().await;
            if !tls.session.borrow().is_handshaking() {
                sent?;
                return Ok(tls);
            }
            sent?;
            if let Err(error) = tls.receive_cipher().await {
                // The peer is told why, if it still listens.
                let _ = tls.send_cipher().await;
                return Err(error);
            }
        }
    }

    /// The socket beneath.
    pub(crate) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// The certificate that the client has shown, in DER.
    pub(crate) fn client_certificate(&self) -> Option<Vec<u8>> {
        self.session.borrow().peer_certificate()
    }

    /// Receives up to `buf.len()` bytes of plain text; 0 is the end of the stream, which has to be
    /// announced in TLS.
    pub(crate) async fn recv(&self, mut buf: IoBuf) -> (io::Result<usize>, IoBuf) {
        loop {
            let read = self.session.borrow_mut().read_plain(&mut buf);
            match read {
                Ok(count) => return (Ok(count), buf),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return (Err(error), buf),
            }
            if let Err(error) = self.receive_cipher().await {
                return (Err(error), buf);
            }
        }
    }

    /// Sends all `parts` and leaves them empty. What TLS itself has to say goes out with them.
    ///
    /// # Errors
    /// The host's.
    pub(crate) async fn send(&self, parts: &mut Vec<IoBytes>) -> io::Result<()> {
        for part in parts.drain(..) {
            let mut rest = part.slice(..);
            while !rest.is_empty() {
                // The session's buffer takes only so much, then it has to be emptied.
                let taken = self.session.borrow_mut().write_plain(&rest)?;
                rest = rest.slice(taken..);
                if !rest.is_empty() {
                    self.send_cipher().await?;
                }
            }
        }
        self.send_cipher().await
    }

    /// Says that nothing more comes, if the peer still listens.
    pub(crate) async fn finish(&self) {
        self.session.borrow_mut().send_close_notify();
        let _ = self.send_cipher().await;
    }

    async fn send_cipher(&self) -> io::Result<()> {
        while self.session.borrow().has_cipher() {
            let mut cipher = IoBuf::with_len(CIPHER_BYTES);
            let filled = self.session.borrow_mut().take_cipher(&mut cipher)?;
            cipher.truncate(filled);
            self.stream.send_all(cipher.freeze()).await?;
        }
        Ok(())
    }

    /// Gives the session more cipher text, received if there is none left.
    async fn receive_cipher(&self) -> io::Result<()> {
        if self.cipher.borrow().is_empty() {
            let (result, mut cipher) = self.stream.recv(IoBuf::with_len(CIPHER_BYTES)).await;
            cipher.truncate(result?);
            self.cipher.replace(cipher.freeze());
        }
        let mut cipher = self.cipher.borrow_mut();
        // Nothing at all tells the session that the stream has ended.
        let taken = self.session.borrow_mut().put_cipher(&cipher)?;
        *cipher = cipher.slice(taken..);
        Ok(())
    }
}
