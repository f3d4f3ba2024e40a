//! The service that is a virtual machine of libvirt: stopped, and started again, by `virsh`.
//!
//! Guarantees: that libvirt knows it, and still does when it is off, is found before anything is copied; one that was not
//! told to stop is left as it is.

use std::time::{Duration, Instant};

use super::pause::{Environment, hook};
use crate::cancel::Cancel;
use crate::error::{Error, Result};

/// So often libvirt is asked how far it is.
const ASKS_EVERY: Duration = Duration::from_millis(200);

/// One virtual machine.
pub(super) struct Machine<'a> {
    /// For the shell.
    pub(super) name: String,
    /// It is suspended, and not shut down.
    pub(super) suspends: bool,
    /// So long a shutdown may take.
    pub(super) timeout: Duration,
    pub(super) environment: &'a Environment,
}

impl Machine<'_> {
    /// What could not be stopped, or not be started again, is no machine to begin with.
    pub(super) fn check(&self, cancel: &Cancel) -> Result<()> {
        let name = &self.name;
        let refused = |reason: &str, way_out: String| {
            cancel.check()?;
            Err(Error::refused(
                format!("virtual machine {name}"),
                reason,
                way_out,
            ))
        };
        if self
            .run(&format!("virsh domstate {name} >/dev/null"), cancel)
            .is_err()
        {
            return refused(
                "virsh does not tell its state, so it could not be stopped either",
                "Is this its name, is libvirtd up, and is this its connection (LIBVIRT_DEFAULT_URI)? virsh list --all".to_owned(),
            );
        }
        let stays = format!("LC_ALL=C virsh dominfo {name} | grep -q '^Persistent: *yes$'");
        if !self.suspends && self.run(&stays, cancel).is_err() {
            return refused(
                "it is not persistent: libvirt forgets it when it is off, and it could not be started here again",
                format!(
                    "virsh dumpxml {name} > {name}.xml && virsh define {name}.xml; or say how it is stopped and started: \
                     --pause-cmd and --back-cmd."
                ),
            );
        }
        Ok(())
    }

    /// Stops it. Also whether it may have been: what was off, or was never told, is not started here by a failure.
    pub(super) fn stop(&self, cancel: &Cancel) -> (bool, Result<()>) {
        if self.is("shut off", cancel) {
            return (false, Ok(()));
        }
        if let Err(error) = cancel.check() {
            return (false, Err(error));
        }
        let name = &self.name;
        let verb = if self.suspends { "suspend" } else { "shutdown" };
        if let Err(error) = self.run(&format!("virsh {verb} {name} >/dev/null"), cancel) {
            // A virsh that was interrupted may have said it all the same.
            let goes_on =
                !matches!(error, Error::Interrupted) && self.is("running", &Cancel::new());
            return (!goes_on, Err(error));
        }
        if self.suspends {
            return (true, Ok(()));
        }
        let off = self.wait_until_off(cancel).and_then(|is_off| match is_off {
            true => Ok(()),
            false => Err(Error::io(
                format!(
                    "virtual machine {name} does not shut down within {} s",
                    self.timeout.as_secs_f64()
                ),
                std::io::ErrorKind::TimedOut.into(),
            )),
        });
        (true, off)
    }

    /// Starts it here again after it was told to stop.
    pub(super) fn start_again(&self, cancel: &Cancel) -> Result<()> {
        let name = &self.name;
        if self.suspends {
            return self.run(&format!("virsh resume {name} >/dev/null"), cancel);
        }
        // One that was told to shut down does so yet: only then can it be started.
        if !self.wait_until_off(cancel)? {
            return Err(Error::io(
                format!(
                    "virtual machine {name} was told to shut down, and may do so yet; then: virsh start {name}"
                ),
                std::io::ErrorKind::TimedOut.into(),
            ));
        }
        self.run(&format!("virsh start {name} >/dev/null"), cancel)
    }

    fn wait_until_off(&self, cancel: &Cancel) -> Result<bool> {
        let begun = Instant::now();
        while !self.is("shut off", cancel) {
            cancel.check()?;
            if begun.elapsed() > self.timeout {
                return Ok(false);
            }
            cancel.sleep(ASKS_EVERY);
        }
        Ok(true)
    }

    fn is(&self, state: &str, cancel: &Cancel) -> bool {
        let name = &self.name;
        // It is asked again and again: what it cannot tell is said once, by what comes of that.
        let asks = format!("test \"$(LC_ALL=C virsh domstate {name} 2>/dev/null)\" = '{state}'");
        self.run(&asks, cancel).is_ok()
    }

    fn run(&self, command: &str, cancel: &Cancel) -> Result<()> {
        hook(command, "the virtual machine", self.environment, cancel)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::error::ExitCode;

    /// A virsh whose one domain, `vm`, is a directory: `state`, `persistent`, and what it was told in `told`.
    const VIRSH: &str = r#"#!/bin/sh
cd "$VIRSH_HOME" || exit 1
test -e libvirtd || { echo 'error: failed to connect to the hypervisor' >&2; exit 1; }
test "$2" = vm && test -e state || { echo "error: failed to get domain '$2'" >&2; exit 1; }
case $1 in
    domstate) cat state; echo ;;
    dominfo) echo "Name:           vm"; echo "Persistent:     $(cat persistent)" ;;
    *)
        echo "$1" >> told
        test ! -e "refuses-$1" || { echo 'error: it does not' >&2; exit 1; }
        case $1 in
            shutdown) echo 'shut off' > state; test "$(cat persistent)" = yes || rm state ;;
            suspend) echo paused > state ;;
            start | resume) echo running > state ;;
        esac ;;
esac
"#;

    struct Host {
        directory: tempfile::TempDir,
        environment: Environment,
    }

    impl Host {
        fn new(state: &str, persistent: &str) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path();
            let virsh = path.join("virsh");
            fs::write(&virsh, VIRSH).unwrap();
            fs::set_permissions(&virsh, fs::Permissions::from_mode(0o755)).unwrap();
            let host = Self {
                environment: vec![
                    ("VIRSH_HOME", path.display().to_string()),
                    ("PATH", format!("{}:/usr/bin:/bin", path.display())),
                ],
                directory,
            };
            host.put("libvirtd", "");
            host.put("state", state);
            host.put("persistent", persistent);
            host
        }

        fn put(&self, name: &str, text: &str) {
            fs::write(self.directory.path().join(name), text).unwrap();
        }

        fn text(&self, name: &str) -> String {
            let text = fs::read_to_string(self.directory.path().join(name));
            text.unwrap_or_default().trim().replace('\n', " ")
        }

        fn machine(&self, name: &str) -> Machine<'_> {
            Machine {
                name: name.to_owned(),
                suspends: false,
                timeout: Duration::from_millis(300),
                environment: &self.environment,
            }
        }
    }

    #[test]
    fn one_that_could_not_be_stopped_or_started_is_refused_before_anything_is_done() {
        let cancel = Cancel::new();
        let host = Host::new("running", "yes");
        host.machine("vm").check(&cancel).unwrap();
        let refused = |machine: Machine<'_>, words: &str| {
            let error = machine.check(&cancel).unwrap_err();
            assert_eq!(error.exit_code(), ExitCode::Refused);
            assert!(error.chain().contains(words), "{}", error.chain());
        };
        refused(host.machine("typo"), "virsh list --all");
        fs::remove_file(host.directory.path().join("libvirtd")).unwrap();
        refused(host.machine("vm"), "virsh list --all");

        let transient = Host::new("running", "no");
        refused(transient.machine("vm"), "virsh define vm.xml");
        // What is only suspended does not go.
        let suspended = Machine {
            suspends: true,
            ..transient.machine("vm")
        };
        suspended.check(&cancel).unwrap();
        assert_eq!(transient.text("told"), "");

        cancel.cancel();
        let error = host.machine("vm").check(&cancel).unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::Interrupted);
    }

    #[test]
    fn one_that_was_stopped_is_started_again() {
        let cancel = Cancel::new();
        for (suspends, told) in [(false, "shutdown start"), (true, "suspend resume")] {
            let host = Host::new("running", "yes");
            let machine = Machine {
                suspends,
                ..host.machine("vm")
            };
            let (stopped, result) = machine.stop(&cancel);
            result.unwrap();
            assert!(stopped);
            machine.start_again(&cancel).unwrap();
            assert_eq!(host.text("told"), told);
            assert_eq!(host.text("state"), "running");
        }
    }

    #[test]
    fn one_that_was_never_told_or_was_off_is_left_as_it_is() {
        let cancel = Cancel::new();
        let off = Host::new("shut off", "yes");
        let (stopped, result) = off.machine("vm").stop(&cancel);
        result.unwrap();
        assert!(!stopped && off.text("told").is_empty());

        for (suspends, verb) in [(false, "shutdown"), (true, "suspend")] {
            let host = Host::new("running", "yes");
            host.put(&format!("refuses-{verb}"), "");
            let machine = Machine {
                suspends,
                ..host.machine("vm")
            };
            let (stopped, result) = machine.stop(&cancel);
            assert!(result.unwrap_err().chain().contains(verb));
            assert!(!stopped, "it runs as ever");
        }

        // Nobody knows how it is: then it is looked after.
        let host = Host::new("running", "yes");
        fs::remove_file(host.directory.path().join("libvirtd")).unwrap();
        let (stopped, result) = host.machine("vm").stop(&cancel);
        assert!(stopped && result.is_err());
        host.put("libvirtd", "");
        host.put("state", "shut off");
        host.machine("vm").start_again(&cancel).unwrap();
        assert_eq!(host.text("told"), "start");

        let host = Host::new("running", "yes");
        cancel.cancel();
        let (stopped, result) = host.machine("vm").stop(&cancel);
        assert_eq!(result.unwrap_err().exit_code(), ExitCode::Interrupted);
        assert!(!stopped && host.text("told").is_empty());
    }

    #[test]
    fn one_that_does_not_shut_down_in_time_is_not_started_twice() {
        let cancel = Cancel::new();
        // Off at last, and then it is started.
        let host = Host::new("in shutdown", "yes");
        let error = host.machine("vm").start_again(&cancel).unwrap_err();
        assert!(error.chain().contains("may do so yet"), "{}", error.chain());
        assert_eq!(host.text("told"), "");
        host.put("state", "shut off");
        host.machine("vm").start_again(&cancel).unwrap();
        assert_eq!(host.text("told"), "start");
    }
}
