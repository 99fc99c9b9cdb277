//! Names to addresses, addresses to connected sockets.

use crate::params::{ConnectionParameters, Host, HostTarget, Keepalives};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// One address of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl std::fmt::Display for Address {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(formatter),
            Self::Unix(path) => path.display().fmt(formatter),
        }
    }
}

/// A connected socket.
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// The addresses of a host in the resolver's order, each once.
pub(super) async fn look_up(host: &Host) -> io::Result<Vec<Address>> {
    let text = match &host.target {
        HostTarget::Socket(_) => {
            return Ok(host.socket_path().into_iter().map(Address::Unix).collect());
        }
        HostTarget::Name(name) => name,
        HostTarget::Address { address, .. } => {
            if !address.contains('%') && address.parse::<std::net::IpAddr>().is_err() {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "not a network address",
                ));
            }
            address
        }
    };
    let mut addresses: Vec<Address> = Vec::new();
    for address in tokio::net::lookup_host((text.as_str(), host.port)).await? {
        if !addresses.contains(&Address::Tcp(address)) {
            addresses.push(Address::Tcp(address));
        }
    }
    Ok(addresses)
}

pub(super) async fn connect(address: &Address, parameters: &ConnectionParameters) -> io::Result<Socket> {
    match address {
        Address::Tcp(address) => {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            apply_keepalives(&stream, &parameters.keepalives)?;
            Ok(Socket::Tcp(stream))
        }
        Address::Unix(path) => {
            let stream = connect_unix(path).await?;
            if let Some(wanted) = &parameters.require_peer {
                check_peer(&stream, wanted)?;
            }
            Ok(Socket::Unix(stream))
        }
    }
}

async fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::ffi::OsStrExt;
    let Some(name) = path.as_os_str().as_bytes().strip_prefix(b"@") else {
        return UnixStream::connect(path).await;
    };
    // An abstract socket: connecting does not block, there is nothing to wait for.
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
    let stream = std::os::unix::net::UnixStream::connect_addr(&address)?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// libpq's `requirepeer`.
fn check_peer(stream: &UnixStream, wanted: &str) -> io::Result<()> {
    let uid = stream.peer_cred()?.uid();
    let actual = crate::params::account_name(uid).unwrap_or_else(|| uid.to_string());
    if actual == wanted {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!("requirepeer asks for a server of user \"{wanted}\", but it runs as \"{actual}\""),
    ))
}

fn apply_keepalives(stream: &TcpStream, keepalives: &Keepalives) -> io::Result<()> {
    use rustix::net::sockopt;
    if keepalives.enabled {
        sockopt::set_socket_keepalive(stream, true)?;
        if let Some(idle) = keepalives.idle {
            sockopt::set_tcp_keepidle(stream, idle)?;
        }
        if let Some(interval) = keepalives.interval {
            sockopt::set_tcp_keepintvl(stream, interval)?;
        }
        if let Some(count) = keepalives.count {
            sockopt::set_tcp_keepcnt(stream, count)?;
        }
    }
    if let Some(timeout) = keepalives.user_timeout {
        sockopt::set_tcp_user_timeout(stream, u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX))?;
    }
    Ok(())
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Self::Unix(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
