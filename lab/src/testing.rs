//! Lab tests as ordinary Rust tests. On the host, such a test boots a guest that runs the same test binary with the
//! same test's name; there, its body runs. So `cargo test NAME` runs one, and a debugger's or a person's `println!`
//! goes to the guest's console and, when the test fails, from there to the test's output.

use crate::boot::{Outcome, Running};
use crate::error::{Error, Result, While};
use crate::inside::Guest;
use crate::machine::{Machine, Screen, quote};
use crate::setup::Setup;
use crate::{direct, needs, stuck};
use std::env;
use std::path::PathBuf;
use std::time::Duration;

/// Runs `body` as root in a guest. `name` is the test's name as `cargo test` shows it, with its modules.
///
/// ```no_run
/// // in tests/lab_snapshots.rs
/// # /*
/// #[test]
/// # */
/// fn empty_snapshot() {
///     let setup = lab::Setup::new().disk("1G").program(env!("CARGO"));
///     lab::test("empty_snapshot", setup, |guest| {
///         guest.volume_group("vg0", 0);
///         guest.volume("vg0", "data", "64M");
///         guest.sh("lvcreate -qq -s -L 16M -n s1 vg0/data");
///         assert!(guest.sh("dmsetup status vg0-s1").contains("16/32768 16"));
///     });
/// }
/// ```
pub fn test(name: &str, setup: Setup, body: impl Fn(&Guest)) {
    Script::new(name, setup).phase("body", body).one_boot();
}

type Phase<'a> = Box<dyn Fn(&Guest) + 'a>;

/// A test of several boots on the same disks: phases, which run in the guest, and a driver on the host that says when
/// to boot into which, and when to cut the power.
///
/// ```no_run
/// # /*
/// #[test]
/// # */
/// fn synced_data_survives() {
///     lab::Script::new("synced_data_survives", lab::Setup::new().disk("64M"))
///         .phase("write", |guest| {
///             guest.sh("echo hello > /dev/ubdb; sync; sleep 60");
///         })
///         .phase("check", |guest| {
///             guest.sh("head -n1 /dev/ubdb | grep hello");
///         })
///         .drive(|driver| {
///             let guest = driver.boot("write");
///             std::thread::sleep(std::time::Duration::from_secs(8));
///             guest.cut().unwrap();
///             driver.run("check");
///         });
/// }
/// ```
pub struct Script<'a> {
    name: &'a str,
    setup: Setup,
    phases: Vec<(&'a str, Phase<'a>)>,
}

impl<'a> Script<'a> {
    /// A test called `name`, with the machine it needs.
    pub fn new(name: &'a str, setup: Setup) -> Self {
        Self {
            name,
            setup,
            phases: Vec::new(),
        }
    }

    /// Something that can be run in the guest.
    pub fn phase(mut self, name: &'a str, body: impl Fn(&Guest) + 'a) -> Self {
        self.phases.push((name, Box::new(body)));
        self
    }

    /// On the host, lets `driver` boot and cut. In the guest, runs the phase that was booted into.
    pub fn drive(self, driver: impl FnOnce(&mut Driver<'_>)) {
        match Where::now() {
            Where::Guest => self.run_phase(),
            Where::Off => skipped(self.name, "LVMSYNC_LAB=off"),
            Where::Direct => skipped(
                self.name,
                "it cuts the power, which LVMSYNC_LAB=direct cannot",
            ),
            Where::Host => self.on_host(driver),
        }
    }

    /// The one phase, in whatever place was asked for.
    fn one_boot(self) {
        match Where::now() {
            Where::Guest => self.run_phase(),
            Where::Off => skipped(self.name, "LVMSYNC_LAB=off"),
            Where::Direct => {
                let ran = direct::run(self.name, &self.setup, |guest| {
                    for (_, body) in &self.phases {
                        body(guest);
                    }
                });
                match ran.unwrap_or_else(|e| panic!("{e}")) {
                    direct::Ran::Whole => {}
                    direct::Ran::UpTo(why) => skipped(
                        self.name,
                        &format!("{why}, which LVMSYNC_LAB=direct has not"),
                    ),
                }
            }
            Where::Host => self.on_host(|driver| driver.run("body")),
        }
    }

    fn run_phase(&self) {
        let wanted = env::var("LAB_PHASE").unwrap_or_default();
        if env::var("LAB_TEST").as_deref() != Ok(self.name) {
            panic!(
                "this test is not called {:?}: give lab::test the name it has",
                self.name
            );
        }
        let guest = Guest::from_environment().unwrap_or_else(|e| panic!("{e}"));
        stuck::answer_when_asked(&guest.shared);
        match self.phases.iter().find(|(name, _)| *name == wanted) {
            Some((_, body)) => body(&guest),
            None => panic!("no phase {wanted:?}"),
        }
        // A test binary that finds no test of that name succeeds too.
        let done = guest.shared.join("done");
        std::fs::write(&done, wanted).unwrap_or_else(|e| panic!("{}: {e}", done.display()));
    }

    fn on_host(self, driver: impl FnOnce(&mut Driver<'_>)) {
        if let Some(complaint) = needs::complaint() {
            panic!("{complaint}");
        }
        let machine = Machine::new(self.name, self.setup).unwrap_or_else(|e| panic!("{e}"));
        driver(&mut Driver {
            test: self.name,
            machine,
        });
    }
}

/// The host's side of a [`Script`].
#[derive(Debug)]
pub struct Driver<'a> {
    test: &'a str,
    machine: Machine,
}

impl Driver<'_> {
    /// Boots into a phase and lets it run.
    pub fn boot(&mut self, phase: &str) -> Running {
        let _ = std::fs::remove_file(self.machine.directory().join("done"));
        match command(self.test, phase).and_then(|command| self.machine.boot(&command, Screen::Log))
        {
            Ok(running) => running,
            Err(e) => panic!("{e}"),
        }
    }

    /// Boots into a phase and waits for its end, which must be a good one.
    pub fn run(&mut self, phase: &str) {
        let outcome = self.boot(phase).wait().unwrap_or_else(|e| panic!("{e}"));
        self.check(phase, &outcome);
    }

    /// Panics, with the end of the log, unless the phase ran to its end.
    pub fn check(&self, phase: &str, outcome: &Outcome) {
        let done = std::fs::read_to_string(self.machine.directory().join("done"));
        if outcome.success() && done.as_deref().ok() == Some(phase) {
            eprintln!("lab: {} ({phase}): {}", self.test, outcome.describe());
            return;
        }
        let hint = if outcome.success() {
            ", but the test did not run: is that its name?"
        } else {
            ""
        };
        panic!(
            "in the lab, {} ({phase}): {}{hint}\nlog: {}\n{}",
            self.test,
            outcome.describe(),
            outcome.log.display(),
            outcome.tail(60)
        );
    }

    /// Waits for a word on the console; panics, with the end of the log, if it does not come.
    pub fn wait_for(&self, running: &mut Running, text: &str, limit: Duration) {
        if let Err(e) = running.wait_for(text, limit) {
            panic!("{e}\n{}", running.tail(60));
        }
    }

    /// The machine, for its disks and its log.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }
}

impl Guest {
    fn from_environment() -> Result<Self> {
        let variable = |name: &str| env::var(name).during(|| format!("{name} in the guest"));
        let scratch = PathBuf::from("/run/lab/scratch");
        std::fs::create_dir_all(&scratch)
            .during(|| format!("cannot create {}", scratch.display()))?;
        Ok(Self {
            disks: variable("LAB_DISKS")?
                .split_whitespace()
                .map(PathBuf::from)
                .collect(),
            scratch,
            shared: PathBuf::from(variable("LAB_JOB")?),
            env: Vec::new(),
            is_guest: true,
        })
    }
}

/// What the guest runs: this program, this test alone.
fn command(test: &str, phase: &str) -> Result<String> {
    let exe = env::current_exe().during(|| "cannot find the test binary".to_owned())?;
    let exe = exe
        .to_str()
        .ok_or_else(|| Error::new("the test binary's path is not UTF-8"))?;
    Ok(format!(
        "export LAB_GUEST=1 LAB_TEST={} LAB_PHASE={}\n\
         exec {} --exact {} --nocapture --include-ignored --test-threads=1\n",
        quote(test),
        quote(phase),
        quote(exe),
        quote(test)
    ))
}

fn skipped(test: &str, why: &str) {
    eprintln!("lab: SKIPPED {test}: {why}");
}

enum Where {
    Guest,
    Host,
    Direct,
    Off,
}

impl Where {
    fn now() -> Self {
        if env::var_os("LAB_GUEST").is_some() {
            return Self::Guest;
        }
        match env::var("LVMSYNC_LAB").as_deref() {
            Ok("off") => Self::Off,
            Ok("direct") => Self::Direct,
            Ok("") | Err(_) => Self::Host,
            Ok(other) => panic!("LVMSYNC_LAB={other}: say direct or off, or unset it"),
        }
    }
}
