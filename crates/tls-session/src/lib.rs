//! TLS over bytes: what comes from the peer goes in, what the peer has to get comes out; whoever
//! owns the socket carries them.
//!
//! ```text
//!   ServerTls, ClientTls   how an end speaks TLS; made once, for any number of sessions
//!        | session()
//!        v
//!   TlsSession   cipher text in and out <-> plain text in and out
//!        |-- rustls      certificates                      (rustls_session.rs)
//!        '-- OpenSSL     no certificates: anonymous        (openssl_session.rs)
//!                        or with shared keys; cargo feature `tls-anon-psk`
//! ```
//!
//! rustls speaks TLS wherever it can. It has neither anonymous sessions nor keys shared beforehand;
//! those, and nothing else, go to the system's OpenSSL, in builds with the feature.
//!
//! Lifecycle: carry cipher text until [`TlsSession::is_handshaking`] ends, then plain text both
//! ways; [`TlsSession::send_close_notify`] at the end.
//!
//! Invariants:
//! - No socket, thread or file; nothing blocks. rustls asks the clock about certificates.
//! - A session holds bounded memory, whatever the peer sends.
//! - A stream that ends without being announced in TLS is an error, never an end.
//! - What a peer sends never panics: it is an error, after which [`TlsSession::take_cipher`] may
//!   still have an alert for the peer.
//!
//! A new kind of credentials: a constructor of [`ServerTls`] and [`ClientTls`]; a new TLS library: a
//! variant of the enum in [`TlsSession`].

#[cfg(feature = "tls-anon-psk")]
mod openssl_session;
mod rustls_session;

use std::io;
use std::sync::Arc;

#[cfg(feature = "tls-anon-psk")]
pub use openssl_session::{
    DH_PRIME_BITS_MAX, DH_PRIME_BITS_MIN, DhParameters, PSK_KEY_BYTES_MAX, PSK_USERNAME_BYTES_MAX,
    SharedKeys,
};
use rustls::pki_types::ServerName;

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsSetupError {
    /// The name of the host to connect to is neither a host name nor an address.
    #[error("'{0}' is not a host name that a certificate could have")]
    HostName(String),
    /// rustls refuses the setup.
    #[error("{0}")]
    Rustls(#[from] rustls::Error),
    /// A shared key is empty or too long.
    #[cfg(feature = "tls-anon-psk")]
    #[error("the key of '{username}' has {bytes} bytes; it must have 1 to {PSK_KEY_BYTES_MAX}")]
    KeyLength {
        /// Whose key it is.
        username: String,
        /// How long it is.
        bytes: usize,
    },
    /// The name of a shared key is empty, too long, or has a zero byte.
    #[cfg(feature = "tls-anon-psk")]
    #[error("the user name '{0}' must have 1 to {PSK_USERNAME_BYTES_MAX} bytes, none of them zero")]
    Username(String),
    /// What should be a PEM file of Diffie-Hellman parameters is none.
    #[cfg(feature = "tls-anon-psk")]
    #[error("these are no DH parameters in PEM")]
    NoDhParameters,
    /// The prime of Diffie-Hellman parameters is too short or too long.
    #[cfg(feature = "tls-anon-psk")]
    #[error("the prime has {0} bits; it must have {DH_PRIME_BITS_MIN} to {DH_PRIME_BITS_MAX}")]
    PrimeLength(i32),
    /// OpenSSL refuses the setup.
    #[cfg(feature = "tls-anon-psk")]
    #[error("{0}")]
    OpenSsl(#[from] openssl::error::ErrorStack),
}

/// How a server speaks TLS.
#[derive(Clone)]
pub struct ServerTls(Setup<Arc<rustls::ServerConfig>>);

/// How a client speaks TLS.
#[derive(Clone)]
pub struct ClientTls(Setup<Arc<rustls::ClientConfig>>);

#[derive(Clone)]
enum Setup<C> {
    Rustls(C),
    #[cfg(feature = "tls-anon-psk")]
    OpenSsl(openssl::ssl::SslContext),
}

impl From<Arc<rustls::ServerConfig>> for ServerTls {
    /// With certificates.
    fn from(config: Arc<rustls::ServerConfig>) -> Self {
        Self(Setup::Rustls(config))
    }
}

impl From<Arc<rustls::ClientConfig>> for ClientTls {
    /// With certificates.
    fn from(config: Arc<rustls::ClientConfig>) -> Self {
        Self(Setup::Rustls(config))
    }
}

impl ServerTls {
    /// Without any credentials: TLS 1.2 with anonymous Diffie-Hellman, in the group given or in one
    /// of RFC 3526. Who listens learns nothing, who stands in between learns everything.
    ///
    /// # Errors
    /// OpenSSL's.
    #[cfg(feature = "tls-anon-psk")]
    pub fn anonymous(parameters: Option<&DhParameters>) -> Result<Self, TlsSetupError> {
        let context = openssl_session::anonymous_server(parameters)?;
        Ok(Self(Setup::OpenSsl(context)))
    }

    /// With keys that both ends know: TLS 1.2 and 1.3 (RFC 4279, RFC 8446 section 2.2).
    ///
    /// # Errors
    /// OpenSSL's.
    #[cfg(feature = "tls-anon-psk")]
    pub fn shared_keys(
        keys: SharedKeys,
        parameters: Option<&DhParameters>,
    ) -> Result<Self, TlsSetupError> {
        let context = openssl_session::shared_keys_server(keys, parameters)?;
        Ok(Self(Setup::OpenSsl(context)))
    }

    /// A session with one client.
    ///
    /// # Errors
    /// The library's.
    pub fn session(&self) -> Result<TlsSession, TlsSetupError> {
        Ok(TlsSession(match &self.0 {
            Setup::Rustls(config) => {
                let connection = rustls::ServerConnection::new(Arc::clone(config))?;
                Backend::Rustls(Box::new(connection.into()))
            }
            #[cfg(feature = "tls-anon-psk")]
            Setup::OpenSsl(context) => {
                Backend::OpenSsl(Box::new(openssl_session::OpenSslSession::server(context)?))
            }
        }))
    }
}

impl ClientTls {
    /// As [`ServerTls::anonymous`].
    ///
    /// # Errors
    /// OpenSSL's.
    #[cfg(feature = "tls-anon-psk")]
    pub fn anonymous() -> Result<Self, TlsSetupError> {
        let context = openssl_session::anonymous_client()?;
        Ok(Self(Setup::OpenSsl(context)))
    }

    /// With the key that the server knows under `username`.
    ///
    /// # Errors
    /// The key is not among these, or OpenSSL's.
    #[cfg(feature = "tls-anon-psk")]
    pub fn shared_key(keys: SharedKeys, username: &str) -> Result<Self, TlsSetupError> {
        let context = openssl_session::shared_key_client(keys, username)?;
        Ok(Self(Setup::OpenSsl(context)))
    }

    /// A session with the server that is called `host`, where servers have certificates.
    ///
    /// # Errors
    /// The name cannot be a host's, or the library's.
    pub fn session(&self, host: &str) -> Result<TlsSession, TlsSetupError> {
        Ok(TlsSession(match &self.0 {
            Setup::Rustls(config) => {
                let name = ServerName::try_from(host.to_owned());
                let name = name.map_err(|_| TlsSetupError::HostName(host.to_owned()))?;
                let connection = rustls::ClientConnection::new(Arc::clone(config), name)?;
                Backend::Rustls(Box::new(connection.into()))
            }
            #[cfg(feature = "tls-anon-psk")]
            Setup::OpenSsl(context) => {
                Backend::OpenSsl(Box::new(openssl_session::OpenSslSession::client(context)?))
            }
        }))
    }
}

/// One end of one TLS session.
pub struct TlsSession(Backend);

enum Backend {
    Rustls(Box<rustls::Connection>),
    #[cfg(feature = "tls-anon-psk")]
    OpenSsl(Box<openssl_session::OpenSslSession>),
}

/// Calls a method of the library's session.
macro_rules! each_backend {
    ($self:ident, $session:ident => $call:expr) => {
        match &$self.0 {
            Backend::Rustls($session) => $call,
            #[cfg(feature = "tls-anon-psk")]
            Backend::OpenSsl($session) => $call,
        }
    };
    (mut $self:ident, $session:ident => $rustls:expr, $openssl:expr) => {
        match &mut $self.0 {
            Backend::Rustls($session) => $rustls,
            #[cfg(feature = "tls-anon-psk")]
            Backend::OpenSsl($session) => $openssl,
        }
    };
}

impl TlsSession {
    /// Whether the handshake is still under way; plain text goes through only after it.
    pub fn is_handshaking(&self) -> bool {
        each_backend!(self, session => session.is_handshaking())
    }

    /// Whether there is cipher text for the peer.
    pub fn has_cipher(&self) -> bool {
        each_backend!(self, session => session.wants_write())
    }

    /// Takes cipher text for the peer out; gives how many bytes of `room` it fills.
    ///
    /// # Errors
    /// None that is known of; the library's interface has some.
    pub fn take_cipher(&mut self, room: &mut [u8]) -> io::Result<usize> {
        each_backend!(mut self, session => rustls_session::take_cipher(session, room), Ok(session.take_cipher(room)))
    }

    /// Puts cipher text from the peer in; nothing at all says that the peer's stream has ended. Gives
    /// how many bytes were taken: not all while plain text waits to be read.
    ///
    /// # Errors
    /// `InvalidData` with what is wrong with the peer; `UnexpectedEof` when the stream has ended
    /// in the handshake.
    pub fn put_cipher(&mut self, bytes: &[u8]) -> io::Result<usize> {
        each_backend!(mut self, session => rustls_session::put_cipher(session, bytes), session.put_cipher(bytes))
    }

    /// Reads plain text; 0 is the end, announced by the peer.
    ///
    /// # Errors
    /// `WouldBlock` when more cipher text is needed, `UnexpectedEof` for an end that was not
    /// announced, `InvalidData` with what is wrong with the peer.
    pub fn read_plain(&mut self, room: &mut [u8]) -> io::Result<usize> {
        each_backend!(mut self, session => rustls_session::read_plain(session, room), session.read_plain(room))
    }

    /// Writes plain text; gives how much was taken: not all when cipher text has to be taken out
    /// first.
    ///
    /// # Errors
    /// The library's.
    pub fn write_plain(&mut self, bytes: &[u8]) -> io::Result<usize> {
        each_backend!(mut self, session => rustls_session::write_plain(session, bytes), session.write_plain(bytes))
    }

    /// Announces the end of what we write.
    pub fn send_close_notify(&mut self) {
        each_backend!(mut self, session => session.send_close_notify(), session.send_close_notify());
    }

    /// The certificate that the peer has shown, in DER.
    pub fn peer_certificate(&self) -> Option<Vec<u8>> {
        match &self.0 {
            Backend::Rustls(session) => {
                let first = session.peer_certificates()?.first()?;
                Some(first.to_vec())
            }
            #[cfg(feature = "tls-anon-psk")]
            Backend::OpenSsl(_) => None,
        }
    }
}

#[cfg(test)]
#[cfg(feature = "tls-anon-psk")]
mod tests;
