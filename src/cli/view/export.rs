//! A state for other programs, as a network block device.
//!
//! Guarantees: whoever runs it is told how to connect, once it listens; Ctrl-C, SIGTERM and SIGHUP are the way to end it, and no
//! error; the socket and what was written over the state are gone then.

use std::path::Path;

use crate::cancel::Cancel;
use crate::commands::word;
use crate::error::Result;
use crate::monitor::Monitor;
use crate::units::{Bytes, count};
use crate::view::nbd::Export;
use crate::view::nbd::address::{Address, Listen};
use crate::view::nbd::server::{Options, serve as serve_clients};
use crate::view::nbd::socket::Listener;
use crate::view::nbd::tls;
use crate::view::scratch::Scratch;
use crate::view::state::View;
use crate::volume::ReadAt;

/// What is asked for.
pub(super) struct Wish<'a> {
    pub(super) address: &'a Address,
    pub(super) listen: Listen,
    pub(super) overlay: Option<&'a Path>,
    pub(super) clients: usize,
    /// Where the certificates are, if it is to be encrypted.
    pub(super) certificates: Option<&'a Path>,
}

/// Serves `view` until the run is told to stop.
pub(super) fn serve<V: ReadAt>(
    view: &View<'_, V>,
    wish: &Wish<'_>,
    cancel: &Cancel,
    terminal: &super::super::Terminal,
) -> Result<()> {
    let tls = wish.certificates.map(tls::load).transpose()?;
    let listener = Listener::bind(&wish.listen)?;
    let scratch = wish
        .overlay
        .map(|path| Scratch::create(view, path))
        .transpose()?;
    let export: &dyn Export = match &scratch {
        Some(scratch) => scratch,
        None => view,
    };
    tell(terminal, wish, &listener, export);
    let options = Options {
        clients: wish.clients,
        tls,
        cancel,
        monitor: terminal,
    };
    let served = serve_clients(&listener, export, &options)?;
    drop(listener);
    terminal.summary(&format!(
        "the export has ended: {} served",
        count(served, "client")
    ));
    Ok(())
}

fn tell(
    terminal: &super::super::Terminal,
    wish: &Wish<'_>,
    listener: &Listener,
    export: &dyn Export,
) {
    let uri = word(&uri(wish, listener));
    let how = match export.is_writable() {
        true => "for reading and writing; what is written is gone when the export ends",
        false => "for reading",
    };
    let whom = match wish.certificates {
        Some(_) => ", with TLS, for clients with a certificate of the same authority (DIR: theirs)",
        None => "",
    };
    terminal.remark(&format!(
        "serving {} as {uri} {how}{whom}, until Ctrl-C. To use it:\n  \
         nbdinfo {uri}\n  \
         nbdcopy {uri} state.img\n  \
         qemu-img info {uri}",
        Bytes(export.size_bytes())
    ));
}

/// As clients want it.
fn uri(wish: &Wish<'_>, listener: &Listener) -> String {
    let secure = if wish.certificates.is_some() { "s" } else { "" };
    let mut uri = match (wish.address, listener.tcp_address()) {
        (Address::Unix(path), _) => {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            format!("nbd{secure}+unix:///?socket={}", escaped(&path))
        }
        (_, Some(bound)) => format!("nbd{secure}://{bound}"),
        (address, None) => return address.to_string(),
    };
    if wish.certificates.is_some() {
        uri.push_str(if uri.contains('?') { "&" } else { "/?" });
        uri.push_str("tls-certificates=DIR");
    }
    uri
}

/// In a URI.
fn escaped(path: &Path) -> String {
    use std::fmt::Write;
    use std::os::unix::ffi::OsStrExt;
    let mut text = String::new();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' | b'~' => {
                text.push(char::from(*byte));
            }
            _ => {
                // Writing to a string succeeds.
                let _ = write!(text, "%{byte:02X}");
            }
        }
    }
    text
}
