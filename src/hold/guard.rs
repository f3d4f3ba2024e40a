//! The guard: a process of its own that holds things for a run, and gives them back when the run is no more.
//!
//! Guarantees: whatever ends the run closes the guard's input, and then everything is given back, last taken first;
//! signals that a terminal or a service manager sends to a whole group do not reach it.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::activation::{self, Activation};
use super::message::{Answer, MAX_LINE_BYTES, Request};
use super::reservation::{Pool, Reservation};
use super::temporary::{self, Ask, Temporary};
use crate::dm::device::DeviceMapper;
use crate::dm::name::LvName;
use crate::error::{Error, Result};
use crate::record::store::StateDir;

/// How often somebody who waits looks again.
const STEP: Duration = Duration::from_millis(100);

/// Serves requests from `input` until it ends, then gives everything back. The result is that of the giving back.
pub fn run<I: Read + AsFd, O: Write>(input: I, mut out: O, state: &StateDir) -> Result<()> {
    let dm = DeviceMapper::open()?;
    let mut input = BufReader::new(input);
    let mut holding = Holding::default();
    while let Some(request) = read_request(&mut input) {
        let answer = request
            .and_then(|request| holding.serve(&dm, request, state, &input, &mut out))
            .unwrap_or_else(|error| Answer::failed(&error));
        // The run may be gone: then the next read says so.
        let _ = say(&mut out, &answer);
    }
    let result = holding.give_back(&dm);
    activation::sweep(&dm);
    temporary::sweep(&dm, state, &mut |_| {});
    result
}

#[derive(Default)]
struct Holding {
    reservation: Option<Reservation>,
    activations: Vec<Activation>,
    snapshot: Option<Temporary>,
}

impl Holding {
    fn serve<I: Read + AsFd>(
        &mut self,
        dm: &DeviceMapper,
        request: Request,
        state: &StateDir,
        input: &BufReader<I>,
        out: &mut dyn Write,
    ) -> Result<Answer> {
        let mut said = String::new();
        let mut wait = |text: &str| {
            if said != text {
                text.clone_into(&mut said);
                let text = text.to_owned();
                let _ = say(out, &Answer::Note { text });
            }
            wait_or_end(input)
        };
        match request {
            Request::Activate { volume, uuid } => {
                let name = LvName::parse(&volume).ok_or_else(|| not_a_name("volume", &volume))?;
                let taken = Activation::take(dm, name, &uuid, &mut wait)?;
                self.activations.extend(taken);
                Ok(Answer::Active {})
            }
            Request::Reserve { pool } => {
                let device = pool.parse().map_err(|_| not_a_name("pool", &pool))?;
                let pool = Pool::open(dm, device)?;
                let taken = Reservation::take(dm, pool, state, &mut wait)?;
                let root = taken.root();
                self.reservation = Some(taken);
                Ok(Answer::Reserved { root })
            }
            Request::Release {} => match self.reservation.take() {
                Some(reservation) => reservation.release(dm).map(|()| Answer::Released {}),
                None => Err(not_a_name("release", "nothing is reserved")),
            },
            Request::Snapshot {
                volume,
                uuid,
                name,
                size_bytes,
            } => {
                if self.snapshot.is_some() {
                    return Err(not_a_name("snapshot", "there is one already"));
                }
                let ask = Ask {
                    origin: &volume,
                    uuid: &uuid,
                    name: name.as_deref(),
                    size_bytes,
                };
                let made = Temporary::make(dm, &ask, state, &mut wait)?;
                let answer = Answer::Made {
                    name: made.name().to_string(),
                    uuid: made.uuid.clone(),
                    store_bytes: made.store_bytes,
                };
                self.snapshot = Some(made);
                Ok(answer)
            }
            Request::Keep {} => {
                let missing = || not_a_name("keep", "there is no snapshot");
                // One that cannot be kept is removed like any other.
                self.snapshot.as_ref().ok_or_else(missing)?.make_lasting()?;
                let lasting = self.snapshot.take().ok_or_else(missing)?;
                lasting.forget().map(|()| Answer::Kept {})
            }
        }
    }

    fn give_back(self, dm: &DeviceMapper) -> Result<()> {
        let mut result = self.reservation.map_or(Ok(()), |held| held.release(dm));
        for activation in self.activations.into_iter().rev() {
            result = activation.end(dm).and(result);
        }
        // Last: what was activated may lie on it.
        match self.snapshot {
            Some(snapshot) => snapshot.remove(dm).and(result),
            None => result,
        }
    }
}

fn not_a_name(what: &str, text: &str) -> Error {
    Error::Lvm {
        what: what.to_owned(),
        reason: format!("cannot be meant: {text}"),
    }
}

fn say(out: &mut dyn Write, answer: &Answer) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    out.write_all(&line)?;
    out.flush()
}

/// The next request; `None` at the end of input. Nobody goes on after a line that is none.
fn read_request(input: &mut impl BufRead) -> Option<Result<Request>> {
    let mut line = Vec::new();
    let read = input
        .by_ref()
        .take(MAX_LINE_BYTES)
        .read_until(b'\n', &mut line);
    match read {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(
            serde_json::from_slice(&line)
                .map_err(|error| not_a_name("request", &error.to_string())),
        ),
    }
}

/// Waits a little; an error once the run is gone, for whom there is nothing to wait for any more.
fn wait_or_end<I: Read + AsFd>(input: &BufReader<I>) -> Result<()> {
    let timeout = Timespec {
        tv_sec: 0,
        tv_nsec: i64::from(STEP.subsec_nanos()),
    };
    let mut waited = [PollFd::new(input.get_ref(), PollFlags::IN)];
    match poll(&mut waited, Some(&timeout)) {
        // A run that waits for an answer says nothing: what can be read is its end.
        Ok(1..) => Err(Error::Interrupted),
        _ => Ok(()),
    }
}
