//! Listening at and connecting to the addresses that clients give: `SocketAddress` of the schema.
//!
//! Everything here blocks (names are resolved, sockets bound): the caller runs it where blocking
//! is fine.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::{OwnedFd, RawFd};

use api::{
    InetSocketAddress, QmpError, SocketAddress, SocketAddressBranch, SocketAddressLegacy,
    SocketAddressLegacyBranch, UnixSocketAddress,
};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
    sockopt,
};

/// A bound and listening socket.
#[derive(Debug)]
pub struct Listening {
    /// The socket.
    pub fd: OwnedFd,
    /// Where it listens, as queries show it: `unix:/path` or `tcp:127.0.0.1:10809`.
    pub description: String,
    /// The path to remove when it is closed.
    pub unlink: Option<String>,
}

/// Finds the descriptors that `fd` addresses name.
pub trait FdLookup {
    /// The descriptor that a client named with `getfd`.
    ///
    /// # Errors
    /// No such name.
    fn named_fd(&self, name: &str) -> Result<OwnedFd, QmpError>;
}

/// The same address in the newer form.
pub fn from_legacy(address: SocketAddressLegacy) -> SocketAddress {
    let r#type = match address.r#type {
        SocketAddressLegacyBranch::Inet(wrapper) => {
            SocketAddressBranch::Inet(Box::new(wrapper.data))
        }
        SocketAddressLegacyBranch::Unix(wrapper) => {
            SocketAddressBranch::Unix(Box::new(wrapper.data))
        }
        SocketAddressLegacyBranch::Fd(wrapper) => SocketAddressBranch::Fd(Box::new(wrapper.data)),
    };
    SocketAddress { r#type }
}

/// How `address` is shown.
pub fn describe(address: &SocketAddress) -> String {
    match &address.r#type {
        SocketAddressBranch::Inet(inet) => format!("tcp:{}", host_port(&inet.host, &inet.port)),
        SocketAddressBranch::Unix(unix) => {
            let tight = unix.r#abstract == Some(true) && unix.tight != Some(false);
            let marks = match (unix.r#abstract == Some(true), tight) {
                (false, _) => "",
                (true, true) => ",abstract=on,tight=on",
                (true, false) => ",abstract=on",
            };
            format!("unix:{}{marks}", unix.path)
        }
        SocketAddressBranch::Fd(fd) => format!("fd:{}", fd.str),
    }
}

fn host_port(host: &str, port: &str) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

fn failed(what: impl std::fmt::Display, error: impl Into<io::Error>) -> QmpError {
    let text = host_io::strerror(&error.into());
    QmpError::generic(format!("{what}: {text}"))
}

/// Binds and listens at `address`; a name with several addresses gives several sockets.
///
/// # Errors
/// Words for the client, as QEMU's.
pub fn listen_at(
    address: &SocketAddress,
    backlog: i32,
    fds: &dyn FdLookup,
) -> Result<Vec<Listening>, QmpError> {
    match &address.r#type {
        SocketAddressBranch::Unix(unix) => Ok(vec![listen_unix(unix, backlog)?]),
        SocketAddressBranch::Inet(inet) => listen_inet(inet, backlog),
        SocketAddressBranch::Fd(named) => {
            let fd = passed_socket(&named.str, fds)?;
            listen(&fd, backlog).map_err(|e| failed("Failed to listen on fd socket", e))?;
            let description = format!("fd:{}", named.str);
            Ok(vec![Listening {
                fd,
                description,
                unlink: None,
            }])
        }
    }
}

/// Connects to `address`.
///
/// # Errors
/// Words for the client, as QEMU's.
pub fn connect_to(address: &SocketAddress, fds: &dyn FdLookup) -> Result<OwnedFd, QmpError> {
    match &address.r#type {
        SocketAddressBranch::Unix(unix) => {
            let at = unix_address(unix)?;
            let fd = stream_socket(AddressFamily::UNIX)?;
            connect(&fd, &at)
                .map_err(|e| failed(format!("Failed to connect to '{}'", unix.path), e))?;
            Ok(fd)
        }
        SocketAddressBranch::Inet(inet) => connect_inet(inet),
        SocketAddressBranch::Fd(named) => passed_socket(&named.str, fds),
    }
}

fn stream_socket(family: AddressFamily) -> Result<OwnedFd, QmpError> {
    socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(|e| failed("Failed to create socket", e))
}

fn unix_address(unix: &UnixSocketAddress) -> Result<SocketAddrUnix, QmpError> {
    /// What `sun_path` holds.
    const SUN_PATH: usize = 108;
    let made = if unix.r#abstract == Some(true) {
        let mut name = unix.path.clone().into_bytes();
        if unix.tight == Some(false) {
            name.resize(SUN_PATH - 1, 0);
        }
        SocketAddrUnix::new_abstract_name(&name)
    } else {
        SocketAddrUnix::new(unix.path.as_str())
    };
    made.map_err(|_| QmpError::generic(format!("UNIX socket path '{}' is too long", unix.path)))
}

fn listen_unix(unix: &UnixSocketAddress, backlog: i32) -> Result<Listening, QmpError> {
    let at = unix_address(unix)?;
    let fd = stream_socket(AddressFamily::UNIX)?;
    let is_abstract = unix.r#abstract == Some(true);
    if !is_abstract {
        // A socket file that an earlier process left behind would be in the way.
        match std::fs::remove_file(&unix.path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(failed(
                    format!("Failed to unlink socket {}", unix.path),
                    error,
                ));
            }
        }
    }
    bind(&fd, &at).map_err(|e| failed(format!("Failed to bind socket to {}", unix.path), e))?;
    listen(&fd, backlog).map_err(|e| failed("Failed to listen on socket", e))?;
    let address = SocketAddress {
        r#type: SocketAddressBranch::Unix(Box::new(unix.clone())),
    };
    let unlink = (!is_abstract).then(|| lasting_path(&unix.path));
    Ok(Listening {
        fd,
        description: describe(&address),
        unlink,
    })
}

/// The path, good also when the process has gone to another folder, as a daemon does.
fn lasting_path(path: &str) -> String {
    std::path::absolute(path)
        .ok()
        .and_then(|absolute| absolute.into_os_string().into_string().ok())
        .unwrap_or_else(|| path.to_owned())
}

/// The addresses that a name stands for, of the families that are wanted.
fn resolve(inet: &InetSocketAddress, port: u16) -> Result<Vec<SocketAddr>, QmpError> {
    if (inet.ipv4, inet.ipv6) == (Some(false), Some(false)) {
        return Err(QmpError::generic(
            "Cannot disable IPv4 and IPv6 at same time",
        ));
    }
    // Asking for one family and saying nothing of the other means only that one.
    let wants = |this: Option<bool>, other: Option<bool>| this.unwrap_or(other != Some(true));
    let (v4, v6) = (wants(inet.ipv4, inet.ipv6), wants(inet.ipv6, inet.ipv4));
    let found: Vec<SocketAddr> = if inet.host.is_empty() {
        vec![
            SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port),
            SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port),
        ]
    } else {
        let host = inet.host.trim_start_matches('[').trim_end_matches(']');
        let resolved = (host, port).to_socket_addrs();
        resolved
            .map_err(|error| {
                failed(
                    format!("address resolution failed for {}:{}", inet.host, inet.port),
                    error,
                )
            })?
            .collect()
    };
    let wanted: Vec<_> = found
        .into_iter()
        .filter(|at| if at.is_ipv4() { v4 } else { v6 })
        .collect();
    if wanted.is_empty() {
        return Err(QmpError::generic(format!(
            "address resolution failed for {}:{}: Address family for hostname not supported",
            inet.host, inet.port
        )));
    }
    Ok(wanted)
}

fn port_number(inet: &InetSocketAddress) -> Result<u16, QmpError> {
    if inet.port.is_empty() {
        return Ok(0);
    }
    inet.port.parse().map_err(|_| {
        QmpError::generic(format!(
            "address resolution failed for {}:{}: Servname not supported for ai_socktype",
            inet.host, inet.port
        ))
    })
}

fn listen_inet(inet: &InetSocketAddress, backlog: i32) -> Result<Vec<Listening>, QmpError> {
    let first = port_number(inet)?;
    let last = inet.to.unwrap_or(first).max(first);
    let mut problem = None;
    for port in first..=last {
        match listen_on_port(inet, port, backlog) {
            Ok(listening) => return Ok(listening),
            Err(ListenFailure::InUse(error)) => problem = Some(error),
            Err(ListenFailure::Other(error)) => return Err(error),
        }
    }
    Err(problem.unwrap_or_else(|| QmpError::generic("Failed to find an available port")))
}

enum ListenFailure {
    /// Another port may do.
    InUse(QmpError),
    Other(QmpError),
}

fn listen_on_port(
    inet: &InetSocketAddress,
    port: u16,
    backlog: i32,
) -> Result<Vec<Listening>, ListenFailure> {
    let mut listening = Vec::new();
    for at in resolve(inet, port).map_err(ListenFailure::Other)? {
        let family = if at.is_ipv4() {
            AddressFamily::INET
        } else {
            AddressFamily::INET6
        };
        let fd = match stream_socket(family) {
            Ok(fd) => fd,
            // A host without one of the families serves the other.
            Err(_) if !listening.is_empty() => continue,
            Err(error) => return Err(ListenFailure::Other(error)),
        };
        // Failing to set these is told by bind.
        let _ = sockopt::set_socket_reuseaddr(&fd, true);
        if at.is_ipv6() {
            let _ = sockopt::set_ipv6_v6only(&fd, true);
        }
        let bound = bind(&fd, &at).and_then(|()| listen(&fd, backlog));
        if let Err(error) = bound {
            if !listening.is_empty() && error == rustix::io::Errno::ADDRNOTAVAIL {
                continue;
            }
            let failure = failed("Failed to find an available port", error);
            return Err(if error == rustix::io::Errno::ADDRINUSE {
                ListenFailure::InUse(failure)
            } else {
                ListenFailure::Other(failure)
            });
        }
        let local = local_address(&fd).unwrap_or(at);
        let description = format!(
            "tcp:{}",
            host_port(&local.ip().to_string(), &local.port().to_string())
        );
        listening.push(Listening {
            fd,
            description,
            unlink: None,
        });
    }
    Ok(listening)
}

/// The address a socket is bound to.
pub fn local_address(fd: &OwnedFd) -> Option<SocketAddr> {
    SocketAddr::try_from(rustix::net::getsockname(fd).ok()?).ok()
}

fn connect_inet(inet: &InetSocketAddress) -> Result<OwnedFd, QmpError> {
    let port = port_number(inet)?;
    let what = format!(
        "Failed to connect to '{}'",
        host_port(&inet.host, &inet.port)
    );
    let mut problem = None;
    for at in resolve(inet, port)? {
        let family = if at.is_ipv4() {
            AddressFamily::INET
        } else {
            AddressFamily::INET6
        };
        let fd = stream_socket(family)?;
        match connect(&fd, &at) {
            Ok(()) => {
                if inet.keep_alive == Some(true) {
                    let _ = sockopt::set_socket_keepalive(&fd, true);
                }
                return Ok(fd);
            }
            Err(error) => problem = Some(failed(&what, error)),
        }
    }
    Err(problem.unwrap_or_else(|| QmpError::generic(what)))
}

/// A descriptor that was passed in: by its number at start, or by the name given with `getfd`.
fn passed_socket(name: &str, fds: &dyn FdLookup) -> Result<OwnedFd, QmpError> {
    let fd = match name.parse::<RawFd>() {
        Ok(number) => host_io::duplicate_inherited_fd(number)
            .map_err(|error| failed(format!("File descriptor '{name}' is not usable"), error))?,
        Err(_) => fds.named_fd(name)?,
    };
    match sockopt::socket_type(&fd) {
        Ok(_) => Ok(fd),
        Err(_) => Err(QmpError::generic(format!(
            "File descriptor '{name}' is not a socket"
        ))),
    }
}
