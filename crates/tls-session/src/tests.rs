//! Both ends in memory, and a peer that misbehaves.

use std::io::ErrorKind;

use zeroize::Zeroizing;

use super::*;

fn keys(list: &[(&str, &[u8])]) -> SharedKeys {
    let mut keys = SharedKeys::default();
    for (name, key) in list {
        keys.add(name.as_bytes(), Zeroizing::new(key.to_vec()))
            .unwrap();
    }
    keys
}

fn psk_server() -> ServerTls {
    let keys = keys(&[("qemu", &[7; 32]), ("other", &[1; 16])]);
    ServerTls::shared_keys(keys, None).unwrap()
}

fn psk_client(name: &str, key: &[u8]) -> ClientTls {
    ClientTls::shared_key(keys(&[(name, key)]), name).unwrap()
}

/// Carries what each has to say to the other, `step` bytes at a time; the first error ends it.
fn carry(from: &mut TlsSession, to: &mut TlsSession, step: usize) -> io::Result<usize> {
    let mut room = vec![0; step];
    let mut carried = 0;
    loop {
        let count = from.take_cipher(&mut room).unwrap();
        if count == 0 {
            return Ok(carried);
        }
        carried += count;
        assert_eq!(to.put_cipher(&room[..count])?, count);
    }
}

fn shake_hands(server: &ServerTls, client: &ClientTls, step: usize) -> io::Result<[TlsSession; 2]> {
    let mut server = server.session().unwrap();
    let mut client = client.session("").unwrap();
    while carry(&mut client, &mut server, step)? + carry(&mut server, &mut client, step)? > 0 {}
    assert!(!server.is_handshaking() && !client.is_handshaking());
    Ok([server, client])
}

/// Sends `data` through a session, and reads it.
fn send(from: &mut TlsSession, to: &mut TlsSession, data: &[u8]) -> Vec<u8> {
    let mut rest = data;
    let mut received = Vec::new();
    let mut room = vec![0; 10_000];
    let mut cipher = vec![0; 30_000];
    while !rest.is_empty() || from.has_cipher() {
        let taken = from.write_plain(rest).unwrap();
        rest = &rest[taken..];
        let count = from.take_cipher(&mut cipher).unwrap();
        let mut put = 0;
        while put < count {
            put += to.put_cipher(&cipher[put..count]).unwrap();
            loop {
                match to.read_plain(&mut room) {
                    Ok(count) => received.extend_from_slice(&room[..count]),
                    Err(error) => break assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
            }
        }
    }
    received
}

#[test]
fn data_goes_both_ways_and_ends_are_announced() {
    let anonymous = (
        ServerTls::anonymous(None).unwrap(),
        ClientTls::anonymous().unwrap(),
    );
    let shared = (psk_server(), psk_client("qemu", &[7; 32]));
    for (server, client) in [anonymous, shared] {
        for step in [1, 7, 20_000] {
            let [mut server, mut client] = shake_hands(&server, &client, step).unwrap();
            assert_eq!(server.peer_certificate(), None);
            let data: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
            assert!(send(&mut client, &mut server, &data) == data);
            assert!(send(&mut server, &mut client, &data) == data);
            client.send_close_notify();
            carry(&mut client, &mut server, 100).unwrap();
            assert_eq!(server.read_plain(&mut [0; 10]).unwrap(), 0);
            // Nobody has announced this one.
            client.put_cipher(&[]).unwrap();
            let cut = client.read_plain(&mut [0; 10]).unwrap_err();
            assert_eq!(cut.kind(), ErrorKind::UnexpectedEof);
        }
    }
}

#[test]
fn who_does_not_have_the_key_gets_nowhere() {
    let server = psk_server();
    for client in [
        psk_client("qemu", &[8; 32]),
        psk_client("qemu", &[7; 31]),
        psk_client("nobody", &[7; 32]),
        psk_client("other", &[7; 32]),
        ClientTls::anonymous().unwrap(),
    ] {
        let refused = shake_hands(&server, &client, 20_000).err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::InvalidData, "{refused}");
    }
    let anonymous = ServerTls::anonymous(None).unwrap();
    let client = psk_client("qemu", &[7; 32]);
    let refused = shake_hands(&anonymous, &client, 20_000).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::InvalidData);
}

#[test]
fn a_changed_record_ends_the_session() {
    let (server, client) = (psk_server(), psk_client("qemu", &[7; 32]));
    let [mut server, mut client] = shake_hands(&server, &client, 20_000).unwrap();
    client.write_plain(b"hello").unwrap();
    let mut cipher = [0; 200];
    let count = client.take_cipher(&mut cipher).unwrap();
    cipher[count - 1] ^= 1;
    server.put_cipher(&cipher[..count]).unwrap();
    let error = server.read_plain(&mut [0; 10]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData);
    assert!(server.has_cipher(), "there is an alert for the peer");
}

#[test]
fn garbage_is_an_error_or_more_is_waited_for() {
    let anonymous = ServerTls::anonymous(None).unwrap();
    for server in [anonymous, psk_server()] {
        for garbage in [
            &[0; 100][..],
            &[0x16; 5000],
            &b"IHAVEOPT"[..],
            &[0x80; 70_000],
        ] {
            let mut session = server.session().unwrap();
            let put = session.put_cipher(garbage);
            assert!(put.is_err() || session.is_handshaking());
            let ended = session.put_cipher(&[]).unwrap_err();
            let kinds = [ErrorKind::UnexpectedEof, ErrorKind::InvalidData];
            assert!(kinds.contains(&ended.kind()), "{ended}");
            assert!(session.read_plain(&mut [0; 10]).is_err());
        }
    }
}

/// Every prefix of a client's first message, and every message with one byte changed.
#[test]
fn no_first_message_panics() {
    let server = psk_server();
    let mut client = psk_client("qemu", &[7; 32]).session("").unwrap();
    let mut hello = [0; 4096];
    let count = client.take_cipher(&mut hello).unwrap();
    let hello = &hello[..count];
    for at in 1..count {
        let mut session = server.session().unwrap();
        session.put_cipher(&hello[..at]).unwrap();
        assert!(session.is_handshaking());
        let cut = session.put_cipher(&[]).unwrap_err();
        assert_eq!(cut.kind(), ErrorKind::UnexpectedEof, "at {at}");
        let mut changed = hello.to_vec();
        changed[at] ^= 0x55;
        let mut session = server.session().unwrap();
        let _ = session.put_cipher(&changed);
        assert!(session.is_handshaking());
    }
}

/// What is received waits in bounded memory until it is read.
#[test]
fn a_session_takes_only_so_much() {
    let (server, client) = (psk_server(), psk_client("qemu", &[7; 32]));
    let [mut server, mut client] = shake_hands(&server, &client, 20_000).unwrap();
    let mut cipher = vec![0; 1 << 20];
    let mut total = 0;
    for _ in 0..100 {
        client.write_plain(&[5; 1 << 20]).unwrap();
        let count = client.take_cipher(&mut cipher).unwrap();
        let taken = server.put_cipher(&cipher[..count]).unwrap();
        total += taken;
        if taken < count {
            assert!(total <= 64 << 10);
            return;
        }
    }
    panic!("the session has taken {total} bytes that nobody reads");
}

#[test]
fn setups_have_limits() {
    let mut keys = SharedKeys::default();
    assert!(keys.is_empty());
    let key = |bytes| Zeroizing::new(vec![1; bytes]);
    assert!(keys.add(b"a", key(0)).is_err());
    assert!(keys.add(b"a", key(PSK_KEY_BYTES_MAX + 1)).is_err());
    assert!(keys.add(b"", key(1)).is_err());
    assert!(keys.add(b"a\0b", key(1)).is_err());
    let long = vec![b'a'; PSK_USERNAME_BYTES_MAX + 1];
    assert!(keys.add(&long, key(1)).is_err());
    assert!(keys.is_empty());
    // The longest of both work.
    let (name, key) = ("n".repeat(PSK_USERNAME_BYTES_MAX), [9; PSK_KEY_BYTES_MAX]);
    let list: &[(&str, &[u8])] = &[(&name, &key)];
    let server = ServerTls::shared_keys(self::keys(list), None).unwrap();
    shake_hands(&server, &psk_client(&name, &key), 20_000).unwrap();
    assert!(ClientTls::shared_key(self::keys(list), "other").is_err());
    assert!(DhParameters::from_pem(b"garbage").is_err());
    let short = DhParameters::from_pem(DH_512.as_bytes());
    assert!(matches!(short, Err(TlsSetupError::PrimeLength(512))));
}

#[test]
fn a_group_of_ones_own_is_used() {
    let group = DhParameters::from_pem(DH_1024.as_bytes()).unwrap();
    let server = ServerTls::anonymous(Some(&group)).unwrap();
    shake_hands(&server, &ClientTls::anonymous().unwrap(), 20_000).unwrap();
    let keys = keys(&[("qemu", &[7; 32])]);
    let server = ServerTls::shared_keys(keys, Some(&group)).unwrap();
    shake_hands(&server, &psk_client("qemu", &[7; 32]), 20_000).unwrap();
}

/// `openssl dhparam 512`.
const DH_512: &str = "\
-----BEGIN DH PARAMETERS-----
MEYCQQCwerSHdVe2B73YFLfgoGLTbudksUG6+sQsYtvK+3dSHTzNFf95uepayVYl
x0qhSMS0orgp4LiIT9B2MMDzaaMHAgEC
-----END DH PARAMETERS-----
";
/// `openssl dhparam 1024`.
const DH_1024: &str = "\
-----BEGIN DH PARAMETERS-----
MIGHAoGBAJLc+GKkleigVWgO36wZaGqJNk70u6JYr4xbzL37cfewjWWM7kFKN5z7
KgplU90lM6V3DPA6vXcT7iqK4Uilfhjo6zbH/KRQBRApMZFWJPHp8pINUbkFsiwR
KkADGj4YA9ekMCtRCIh9a7zo9TDvFmGsZXvuVazNBVm5DsL/WdxvAgEC
-----END DH PARAMETERS-----
";
