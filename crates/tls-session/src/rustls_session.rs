//! rustls's sessions: its calls with our meaning.

use std::io::{self, Read, Write};

use rustls::Connection;

pub(crate) fn take_cipher(session: &mut Connection, room: &mut [u8]) -> io::Result<usize> {
    let mut rest: &mut [u8] = room;
    let mut filled = 0;
    while !rest.is_empty() && session.wants_write() {
        filled += session.write_tls(&mut rest)?;
    }
    Ok(filled)
}

pub(crate) fn put_cipher(session: &mut Connection, bytes: &[u8]) -> io::Result<usize> {
    // Nothing at all tells the session that the stream has ended: its reader knows whether that is
    // right.
    let mut rest = bytes;
    let taken = session.read_tls(&mut rest)?;
    session
        .process_new_packets()
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    if taken == 0 && session.is_handshaking() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(taken)
}

pub(crate) fn read_plain(session: &mut Connection, room: &mut [u8]) -> io::Result<usize> {
    session.reader().read(room)
}

pub(crate) fn write_plain(session: &mut Connection, bytes: &[u8]) -> io::Result<usize> {
    session.writer().write(bytes)
}
