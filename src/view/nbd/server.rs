//! Many clients at once.
//!
//! Guarantees: a thread for each, no more of them than was said; what goes wrong with one ends that one; when the run is
//! told to stop every connection ends, and then the server.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ServerConfig;

use super::socket::Listener;
use super::{Export, client};
use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::monitor::Monitor;

/// For how many, and who listens.
pub struct Options<'a> {
    /// Clients at the same time.
    pub clients: usize,
    /// What clients have to begin with, if anything.
    pub tls: Option<Arc<ServerConfig>>,
    /// Ends the export.
    pub cancel: &'a Cancel,
    /// Hears what goes wrong.
    pub monitor: &'a dyn Monitor,
}

/// Counts one client less when dropped.
struct Place<'a>(&'a AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Serves `export` until the run is told to stop, and says how many clients there were.
pub fn serve(listener: &Listener, export: &dyn Export, options: &Options<'_>) -> Result<u64> {
    let taken = AtomicUsize::new(0);
    let said = Mutex::new(String::new());
    // A client asks for what is damaged again and again.
    let report = |text: &str| {
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        if *said != text {
            options.monitor.warn(text);
            text.clone_into(&mut said);
        }
    };
    let (taken, report) = (&taken, &report);
    std::thread::scope(|scope| {
        let mut served = 0;
        loop {
            let mut socket = match listener.accept(options.cancel) {
                Ok(Some(socket)) => socket.with_tls(options.tls.clone()),
                _ if options.cancel.is_cancelled() => return Ok(served),
                Ok(None) => return Ok(served),
                // Out of file descriptors or memory: it passes when clients go.
                Err(error) => {
                    report(&format!("cannot take a client: {error}"));
                    options.cancel.sleep(Duration::from_millis(100));
                    continue;
                }
            };
            if taken.load(Ordering::SeqCst) >= options.clients {
                report(&format!(
                    "a client was sent away: {} are served at the same time (--clients)",
                    options.clients
                ));
                continue;
            }
            taken.fetch_add(1, Ordering::SeqCst);
            served += 1;
            let place = Place(taken);
            let number = served;
            let serve_one = move || {
                let _place = place;
                match client::serve(&mut socket, export, report) {
                    Err(error) if !options.cancel.is_cancelled() => {
                        options.monitor.note(&format!("client {number}: {error}"));
                    }
                    _ => {}
                }
                drop(socket);
            };
            std::thread::Builder::new()
                .name(format!("client {number}"))
                .spawn_scoped(scope, serve_one)
                .map_err(|error| Error::io("cannot start a thread for a client", error))?;
        }
    })
}
