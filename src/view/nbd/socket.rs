//! Sockets: the one that listens, and those of clients.
//!
//! Guarantees: a Unix socket is its user's alone from the moment it exists, replaces nothing but a socket that nobody listens
//! on, and is removed at the end; no read or write outlives a cancel, a client that does not go on with what it has begun, or
//! one that takes no answers.

use std::fs;
use std::io::{self, BufReader, Read, Write};
use std::mem;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::set_socket_keepalive;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::address::Listen;
use super::client::{Connection, Patience};
use crate::cancel::Cancel;
use crate::error::{Error, Result};

/// For all of the negotiation.
pub const NEGOTIATION: Duration = Duration::from_secs(10);
/// Without a byte, in the middle of something.
pub const MESSAGE: Duration = Duration::from_secs(60);

/// A socket that listens.
#[derive(Debug)]
pub enum Listener {
    /// With the path that goes away at the end.
    Unix(UnixListener, SocketFile),
    /// On a port.
    Tcp(TcpListener),
}

/// Removed when dropped, if it is still the one that was made.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    made: Option<(u64, u64)>,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.made.is_some() && identity(&self.path) == self.made {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = fs::symlink_metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

impl Listener {
    /// Begins to listen.
    pub fn bind(listen: &Listen) -> Result<Self> {
        let listener = match listen {
            Listen::Unix(path) => Self::unix(path)?,
            Listen::Tcp(addresses) => {
                let bound = TcpListener::bind(&addresses[..]);
                Listener::Tcp(bound.map_err(|error| {
                    let shown: Vec<_> = addresses.iter().map(ToString::to_string).collect();
                    Error::io(format!("cannot listen on {}", shown.join(", ")), error)
                })?)
            }
        };
        let set = match &listener {
            Listener::Unix(socket, _) => socket.set_nonblocking(true),
            Listener::Tcp(socket) => socket.set_nonblocking(true),
        };
        set.map_err(|error| Error::io("cannot set up the socket", error))?;
        Ok(listener)
    }

    fn unix(path: &Path) -> Result<Self> {
        remove_stale(path)?;
        // Nobody else may connect, not even between its making and a change of its mode.
        let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let bound = UnixListener::bind(path);
        rustix::process::umask(before);
        let socket = bound
            .map_err(|error| Error::io(format!("cannot listen on {}", path.display()), error))?;
        let file = SocketFile {
            made: identity(path),
            path: path.to_owned(),
        };
        Ok(Listener::Unix(socket, file))
    }

    /// The address on which it listens, for a port.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match self {
            Listener::Unix(..) => None,
            Listener::Tcp(socket) => socket.local_addr().ok(),
        }
    }

    /// The next client; `None` when the run was told to stop.
    pub fn accept(&self, cancel: &Cancel) -> io::Result<Option<Socket>> {
        loop {
            if cancel.is_cancelled() {
                return Ok(None);
            }
            let fd = match self {
                Listener::Unix(socket, _) => socket.as_fd(),
                Listener::Tcp(socket) => socket.as_fd(),
            };
            wait(fd, PollFlags::IN, None, cancel)?;
            let accepted = match self {
                Listener::Unix(socket, _) => {
                    socket.accept().map(|(socket, _)| Stream::Unix(socket))
                }
                Listener::Tcp(socket) => socket.accept().map(|(socket, _)| Stream::Tcp(socket)),
            };
            match accepted {
                Ok(stream) => return Socket::new(stream, cancel.clone()).map(Some),
                // It went away again, or nobody was there.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock
                            | io::ErrorKind::Interrupted
                            | io::ErrorKind::ConnectionAborted
                    ) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// What SIGKILL has left is a socket that nobody listens on.
fn remove_stale(path: &Path) -> Result<()> {
    let Ok(found) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    let refused = |reason| {
        let way_out = "Choose another path.";
        Err(Error::refused(path.display().to_string(), reason, way_out))
    };
    if !found.file_type().is_socket() {
        return refused("this file exists, and is no socket");
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .map_err(|error| Error::io(format!("cannot remove {}", path.display()), error)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => refused("another process listens on this socket"),
    }
}

#[derive(Debug)]
enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(socket) => socket.write(buffer),
            Stream::Tcp(socket) => socket.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A client's. What it sends is read as much at once as there is: it may ask for many things before it waits for answers.
#[derive(Debug)]
pub struct Socket {
    way: Way,
    tls: Option<Arc<ServerConfig>>,
}

#[derive(Debug)]
enum Way {
    Plain(BufReader<Line>),
    Secure(Box<BufReader<StreamOwned<ServerConnection, Line>>>),
    /// TLS could not be begun.
    Gone,
}

#[derive(Debug)]
struct Line {
    stream: Stream,
    cancel: Cancel,
    patience: Patience,
    begun: Instant,
    has_failed: bool,
}

impl Socket {
    fn new(stream: Stream, cancel: Cancel) -> io::Result<Self> {
        Line::new(stream, cancel).map(|line| Self {
            way: Way::Plain(BufReader::new(line)),
            tls: None,
        })
    }

    /// The same, and nothing is served without TLS.
    pub fn with_tls(mut self, tls: Option<Arc<ServerConfig>>) -> Self {
        self.tls = tls;
        self
    }

    fn line(&mut self) -> Option<&mut Line> {
        match &mut self.way {
            Way::Plain(line) => Some(line.get_mut()),
            Way::Secure(stream) => Some(&mut stream.get_mut().sock),
            Way::Gone => None,
        }
    }
}

impl Line {
    fn new(stream: Stream, cancel: Cancel) -> io::Result<Self> {
        match &stream {
            Stream::Unix(socket) => socket.set_nonblocking(true)?,
            Stream::Tcp(socket) => {
                socket.set_nonblocking(true)?;
                // Small replies wait for nothing.
                socket.set_nodelay(true)?;
                // An idle client may be silent for days; one whose machine is gone does not keep its place.
                set_socket_keepalive(socket, true)?;
            }
        }
        Ok(Self {
            stream,
            cancel,
            patience: Patience::Negotiation,
            begun: Instant::now(),
            has_failed: false,
        })
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match &self.stream {
            Stream::Unix(socket) => socket.as_fd(),
            Stream::Tcp(socket) => socket.as_fd(),
        }
    }

    fn wait(&self, flags: PollFlags) -> io::Result<()> {
        let until = match self.patience {
            Patience::Negotiation => Some(self.begun + NEGOTIATION),
            Patience::Idle if flags == PollFlags::IN => None,
            Patience::Idle | Patience::Message => Some(Instant::now() + MESSAGE),
        };
        wait(self.fd(), flags, until, &self.cancel)
    }

    fn each(
        &mut self,
        flags: PollFlags,
        act: &mut dyn FnMut(&mut Stream) -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            // One that never lets us wait hears it here.
            if self.cancel.is_cancelled() {
                return Err(ends());
            }
            // TLS goes on behind an error of the socket, and would wait once more.
            if self.has_failed {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            if self.patience == Patience::Negotiation && self.begun.elapsed() > NEGOTIATION {
                return Err(too_long());
            }
            match act(&mut self.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let waited = self.wait(flags);
                    self.has_failed = waited.is_err();
                    waited?;
                }
                done => return done,
            }
        }
    }
}

impl Read for Line {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.each(PollFlags::IN, &mut |stream| match stream {
            Stream::Unix(socket) => socket.read(buffer),
            Stream::Tcp(socket) => socket.read(buffer),
        })
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.way {
            Way::Plain(line) => line.read(buffer),
            Way::Secure(stream) => stream.read(buffer),
            Way::Gone => Ok(0),
        }
    }
}

impl Write for Line {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.each(PollFlags::OUT, &mut |stream| stream.write(buffer))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for Socket {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match &mut self.way {
            Way::Plain(line) => line.get_mut().write(buffer),
            Way::Secure(stream) => stream.get_mut().write(buffer),
            Way::Gone => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.way {
            Way::Secure(stream) => stream.get_mut().flush(),
            Way::Plain(_) | Way::Gone => Ok(()),
        }
    }
}

impl Connection for Socket {
    fn patience(&mut self, patience: Patience) {
        if let Some(line) = self.line() {
            line.patience = patience;
        }
    }

    fn needs_tls(&self) -> bool {
        self.tls.is_some()
    }

    fn begin_tls(&mut self) -> io::Result<()> {
        let config = self.tls.clone().ok_or(io::ErrorKind::Unsupported)?;
        let Way::Plain(plain) = mem::replace(&mut self.way, Way::Gone) else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        // Whoever sits in between could have put it there, to be taken for the client's own words behind the handshake.
        if !plain.buffer().is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the client went on without TLS",
            ));
        }
        let session = ServerConnection::new(config).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(session, plain.into_inner());
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        self.way = Way::Secure(Box::new(BufReader::new(stream)));
        Ok(())
    }
}

/// Says goodbye, or the client would have to take the end for an attack.
impl Drop for Socket {
    fn drop(&mut self) {
        if let Way::Secure(stream) = &mut self.way {
            let stream = stream.get_mut();
            stream.conn.send_close_notify();
            // Without waiting: it has gone, or takes nothing, or the run is told to stop.
            let _ = stream.conn.write_tls(&mut stream.sock.stream);
        }
    }
}

fn too_long() -> io::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        "the client was silent for too long",
    )
}

fn ends() -> io::Error {
    io::Error::other("the export ends")
}

/// Returns when `fd` is ready; a cancel, and a moment that has come, are errors.
fn wait(
    fd: BorrowedFd<'_>,
    flags: PollFlags,
    until: Option<Instant>,
    cancel: &Cancel,
) -> io::Result<()> {
    loop {
        if cancel.is_cancelled() {
            return Err(ends());
        }
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(too_long());
        }
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        let mut waited = vec![PollFd::from_borrowed_fd(fd, flags)];
        waited.extend(
            cancel
                .wake()
                .map(|wake| PollFd::from_borrowed_fd(wake, PollFlags::IN)),
        );
        match poll(&mut waited, left.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if waited.first().is_some_and(|fd| !fd.revents().is_empty()) {
            return Ok(());
        }
    }
}
