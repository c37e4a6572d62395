//! OpenSSL's sessions, for what rustls does not have: anonymous ones and those with shared keys.
//!
//! The library reads from and writes to a [`Duplex`] in memory, which says `WouldBlock` where a
//! socket would.

use std::collections::HashMap;
use std::io::{self, Read, Write};

use openssl::bn::BigNum;
use openssl::dh::Dh;
use openssl::error::ErrorStack;
use openssl::pkey::Params;
use openssl::ssl::{
    ErrorCode, Ssl, SslContext, SslContextBuilder, SslMethod, SslMode, SslOptions,
    SslSessionCacheMode, SslStream, SslVersion,
};
use zeroize::Zeroizing;

use crate::TlsSetupError;

/// The longest shared key, in bytes.
pub const PSK_KEY_BYTES_MAX: usize = 256;
/// The longest name of a shared key, in bytes (OpenSSL's limit since 1.0).
pub const PSK_USERNAME_BYTES_MAX: usize = 128;
/// The shortest prime of Diffie-Hellman parameters, in bits. Files of old installations have 1024.
pub const DH_PRIME_BITS_MIN: i32 = 1024;
/// The longest prime of Diffie-Hellman parameters, in bits: each handshake computes with it.
pub const DH_PRIME_BITS_MAX: i32 = 8192;

/// How much received cipher text waits for the library: a few records of 16 KiB.
const INCOMING_BYTES_MAX: usize = 64 << 10;
/// No more plain text is taken while so much cipher text waits to be sent.
const OUTGOING_BYTES_ENOUGH: usize = 64 << 10;
/// The most that waits to be sent: the above, one more record, and answers to a peer that asks for
/// new keys again and again. A peer that asks beyond that without listening loses its session.
const OUTGOING_BYTES_MAX: usize = 256 << 10;

/// Forward secrecy first; no null, SHA-1 or legacy ciphers.
const PSK_CIPHERS_TLS12: &str = "kECDHEPSK:kDHEPSK:kPSK:!eNULL:!SHA1:!3DES:!CAMELLIA:!ARIA:!AESCCM";
/// Those whose hash is SHA-256, which is that of shared keys unless both ends agree otherwise
/// (RFC 8446, section 4.2.11).
const PSK_CIPHERS_TLS13: &str = "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256";
/// There is no anonymous key exchange in TLS 1.3. OpenSSL has its suites at level 0 only.
const ANONYMOUS_CIPHERS: &str = "ADH+AESGCM:ADH+AES:AECDH+AES:@SECLEVEL=0";

/// A group for Diffie-Hellman.
pub struct DhParameters(Dh<Params>);

impl DhParameters {
    /// Reads a PEM file's content (PKCS #3).
    ///
    /// # Errors
    /// It is no such file, or its prime is shorter than [`DH_PRIME_BITS_MIN`] or longer than
    /// [`DH_PRIME_BITS_MAX`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, TlsSetupError> {
        let parameters = Dh::params_from_pem(pem).map_err(|_| TlsSetupError::NoDhParameters)?;
        let bits = parameters.prime_p().num_bits();
        if !(DH_PRIME_BITS_MIN..=DH_PRIME_BITS_MAX).contains(&bits) {
            return Err(TlsSetupError::PrimeLength(bits));
        }
        Ok(Self(parameters))
    }

    /// Group 15 of RFC 3526: 3072 bits.
    fn built_in() -> Result<Self, ErrorStack> {
        let generator = BigNum::from_u32(2)?;
        Dh::from_pqg(BigNum::get_rfc3526_prime_3072()?, None, generator).map(Self)
    }
}

/// Keys by the names of their users. They are overwritten when they are dropped.
#[derive(Default)]
pub struct SharedKeys(HashMap<Vec<u8>, Zeroizing<Vec<u8>>>);

impl SharedKeys {
    /// Adds a key; the first one of a user counts.
    ///
    /// # Errors
    /// The name or the key is empty or too long.
    pub fn add(&mut self, username: &[u8], key: Zeroizing<Vec<u8>>) -> Result<(), TlsSetupError> {
        let shown = || String::from_utf8_lossy(username).into_owned();
        if !(1..=PSK_USERNAME_BYTES_MAX).contains(&username.len()) || username.contains(&0) {
            return Err(TlsSetupError::Username(shown()));
        }
        if !(1..=PSK_KEY_BYTES_MAX).contains(&key.len()) {
            return Err(TlsSetupError::KeyLength {
                username: shown(),
                bytes: key.len(),
            });
        }
        self.0.entry(username.to_vec()).or_insert(key);
        Ok(())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Copies a user's key into `room`; 0 is what OpenSSL takes for "no such user".
    fn copy_into(&self, username: &[u8], room: &mut [u8]) -> usize {
        let key = self.0.get(username);
        let place = key.and_then(|key| room.get_mut(..key.len()));
        match (key, place) {
            (Some(key), Some(place)) => {
                place.copy_from_slice(key);
                key.len()
            }
            _ => 0,
        }
    }
}

/// What all contexts have: no state that outlives a session, no renegotiation.
fn context() -> Result<SslContextBuilder, ErrorStack> {
    let mut context = SslContextBuilder::new(SslMethod::tls())?;
    context.set_mode(SslMode::ENABLE_PARTIAL_WRITE | SslMode::ACCEPT_MOVING_WRITE_BUFFER);
    context.set_options(
        SslOptions::NO_COMPRESSION
            | SslOptions::NO_TICKET
            | SslOptions::NO_RENEGOTIATION
            | SslOptions::CIPHER_SERVER_PREFERENCE,
    );
    context.set_session_cache_mode(SslSessionCacheMode::OFF);
    context.set_num_tickets(0)?;
    context.set_min_proto_version(Some(SslVersion::TLS1_2))?;
    Ok(context)
}

fn set_group(
    context: &mut SslContextBuilder,
    parameters: Option<&DhParameters>,
) -> Result<(), ErrorStack> {
    match parameters {
        Some(parameters) => context.set_tmp_dh(&parameters.0),
        None => context.set_tmp_dh(&DhParameters::built_in()?.0),
    }
}

fn anonymous() -> Result<SslContextBuilder, ErrorStack> {
    let mut context = context()?;
    context.set_max_proto_version(Some(SslVersion::TLS1_2))?;
    context.set_cipher_list(ANONYMOUS_CIPHERS)?;
    Ok(context)
}

pub(crate) fn anonymous_client() -> Result<SslContext, TlsSetupError> {
    Ok(anonymous()?.build())
}

pub(crate) fn anonymous_server(
    parameters: Option<&DhParameters>,
) -> Result<SslContext, TlsSetupError> {
    let mut context = anonymous()?;
    set_group(&mut context, parameters)?;
    Ok(context.build())
}

fn shared_keys() -> Result<SslContextBuilder, ErrorStack> {
    let mut context = context()?;
    context.set_cipher_list(PSK_CIPHERS_TLS12)?;
    context.set_ciphersuites(PSK_CIPHERS_TLS13)?;
    Ok(context)
}

pub(crate) fn shared_keys_server(
    keys: SharedKeys,
    parameters: Option<&DhParameters>,
) -> Result<SslContext, TlsSetupError> {
    let mut context = shared_keys()?;
    if parameters.is_some_and(|group| group.0.prime_p().num_bits() < 2048) {
        // The level of today's defaults would refuse the group that was asked for.
        context.set_security_level(1);
    }
    set_group(&mut context, parameters)?;
    context.set_psk_server_callback(move |_, username, room| {
        Ok(keys.copy_into(username.unwrap_or_default(), room))
    });
    Ok(context.build())
}

pub(crate) fn shared_key_client(
    keys: SharedKeys,
    username: &str,
) -> Result<SslContext, TlsSetupError> {
    let username = username.as_bytes().to_vec();
    if !keys.0.contains_key(&username) {
        let username = String::from_utf8_lossy(&username).into_owned();
        return Err(TlsSetupError::Username(username));
    }
    let mut context = shared_keys()?;
    context.set_psk_client_callback(move |_, _hint, name_room, key_room| {
        // The name ends with a zero byte.
        let zero_at = username.len();
        let Some((place, zero)) = name_room
            .get_mut(..=zero_at)
            .and_then(|place| place.split_at_mut_checked(zero_at))
        else {
            return Ok(0);
        };
        place.copy_from_slice(&username);
        zero.fill(0);
        Ok(keys.copy_into(&username, key_room))
    });
    Ok(context.build())
}

/// What OpenSSL takes for its socket.
struct Duplex {
    incoming: Vec<u8>,
    /// How much of `incoming` the library has read.
    taken: usize,
    /// Nothing more comes in.
    has_ended: bool,
    outgoing: Vec<u8>,
    /// How much of `outgoing` has been taken out.
    sent: usize,
}

impl Read for Duplex {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut rest = self.incoming.get(self.taken..).unwrap_or_default();
        if rest.is_empty() {
            return match self.has_ended {
                true => Err(io::ErrorKind::UnexpectedEof.into()),
                false => Err(io::ErrorKind::WouldBlock.into()),
            };
        }
        let count = rest.read(buf)?;
        self.taken += count;
        Ok(count)
    }
}

impl Write for Duplex {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = OUTGOING_BYTES_MAX.saturating_sub(self.waiting());
        let taken = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        if taken.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.outgoing.extend_from_slice(taken);
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Duplex {
    /// How much waits to be sent.
    fn waiting(&self) -> usize {
        self.outgoing.len().saturating_sub(self.sent)
    }
}

/// One end of a session.
pub(crate) struct OpenSslSession {
    stream: SslStream<Duplex>,
    is_handshaking: bool,
}

impl OpenSslSession {
    fn new(ssl: Ssl) -> Result<Self, ErrorStack> {
        let duplex = Duplex {
            incoming: Vec::new(),
            taken: 0,
            has_ended: false,
            outgoing: Vec::new(),
            sent: 0,
        };
        let stream = SslStream::new(ssl, duplex)?;
        Ok(Self {
            stream,
            is_handshaking: true,
        })
    }

    pub(crate) fn server(context: &SslContext) -> Result<Self, TlsSetupError> {
        let mut ssl = Ssl::new(context)?;
        ssl.set_accept_state();
        Ok(Self::new(ssl)?)
    }

    pub(crate) fn client(context: &SslContext) -> Result<Self, TlsSetupError> {
        let mut ssl = Ssl::new(context)?;
        ssl.set_connect_state();
        let mut session = Self::new(ssl)?;
        // A client speaks first. What can go wrong here goes wrong again with the first answer.
        let _ = session.shake_hands();
        Ok(session)
    }

    pub(crate) fn is_handshaking(&self) -> bool {
        self.is_handshaking
    }

    pub(crate) fn wants_write(&self) -> bool {
        self.stream.get_ref().waiting() > 0
    }

    pub(crate) fn take_cipher(&mut self, room: &mut [u8]) -> usize {
        let duplex = self.stream.get_mut();
        let waiting = duplex.outgoing.get(duplex.sent..).unwrap_or_default();
        let count = waiting.len().min(room.len());
        if let (Some(from), Some(to)) = (waiting.get(..count), room.get_mut(..count)) {
            to.copy_from_slice(from);
        }
        duplex.sent += count;
        if duplex.waiting() == 0 {
            duplex.outgoing.clear();
            duplex.sent = 0;
        }
        count
    }

    pub(crate) fn put_cipher(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let duplex = self.stream.get_mut();
        duplex.has_ended |= bytes.is_empty();
        duplex.incoming.drain(..duplex.taken);
        duplex.taken = 0;
        let room = INCOMING_BYTES_MAX.saturating_sub(duplex.incoming.len());
        let taken = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        duplex.incoming.extend_from_slice(taken);
        let count = taken.len();
        if self.is_handshaking {
            self.shake_hands()?;
        }
        Ok(count)
    }

    fn shake_hands(&mut self) -> io::Result<()> {
        match self.stream.do_handshake() {
            Ok(()) => {
                self.is_handshaking = false;
                Ok(())
            }
            Err(error) if error.code() == ErrorCode::WANT_READ => Ok(()),
            Err(error) => Err(self.failure(error)),
        }
    }

    /// What an error of the library means.
    fn failure(&self, error: openssl::ssl::Error) -> io::Error {
        let duplex = self.stream.get_ref();
        if duplex.has_ended && duplex.taken == duplex.incoming.len() {
            return io::ErrorKind::UnexpectedEof.into();
        }
        io::Error::new(io::ErrorKind::InvalidData, error)
    }

    pub(crate) fn read_plain(&mut self, room: &mut [u8]) -> io::Result<usize> {
        if self.is_handshaking {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        match self.stream.ssl_read(room) {
            Ok(count) => Ok(count),
            Err(error) => match error.code() {
                ErrorCode::ZERO_RETURN => Ok(0),
                ErrorCode::WANT_READ => Err(io::ErrorKind::WouldBlock.into()),
                // Also when there is no room for what the peer makes us say.
                _ => Err(self.failure(error)),
            },
        }
    }

    pub(crate) fn write_plain(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_handshaking || self.stream.get_ref().waiting() >= OUTGOING_BYTES_ENOUGH {
            return Ok(0);
        }
        let mut done = 0;
        // A record at a time, until there is enough to be sent.
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty())
            && self.stream.get_ref().waiting() < OUTGOING_BYTES_ENOUGH
        {
            match self.stream.ssl_write(rest) {
                Ok(count) => done += count,
                Err(error) => return Err(self.failure(error)),
            }
        }
        Ok(done)
    }

    pub(crate) fn send_close_notify(&mut self) {
        // It fails where there is no session any more, and then there is nobody to tell.
        let _ = self.stream.shutdown();
    }
}
