//! Findings on the machine itself: rights, kernel, device-mapper and its targets, tools.
//!
//! Guarantees: pure. What lvmsync can do without (files need no device-mapper, a local copy no ssh) is at most
//! a warning.

use super::Check;
use super::facts::{Control, Device, Installer, Kind, Machine, Tool, ToolName};
use super::parse::kernel_version;

/// What the machine's facts mean. `devices` tell what is needed.
pub(super) fn findings(machine: &Machine, devices: &[Device]) -> Vec<Check> {
    let mut checks = vec![root(machine), kernel(machine), control(machine)];
    // Without device-mapper there is nothing more to say of it.
    if machine.control != Control::Absent {
        let look = |(id, target): &(&'static str, Target)| target_of(machine, id, target);
        checks.extend(TARGETS.iter().map(look));
        checks.extend(era_is_old(machine));
    }
    let has_pool = devices
        .iter()
        .any(|device| matches!(device.kind, Ok(Kind::ThinPool(_))));
    let tools = machine.tools.iter();
    checks.extend(tools.filter_map(|tool| tool_of(machine, tool, has_pool)));
    checks
}

fn root(machine: &Machine) -> Check {
    let id = "machine.root";
    if machine.root {
        return Check::ok(id, "running as root");
    }
    Check::note(
        id,
        "not running as root: files can be used, devices and snapshots mostly not, and what only root may \
         look at was not looked at",
    )
    .way_out("sudo lvmsync doctor")
}

fn kernel(machine: &Machine) -> Check {
    Check::ok("machine.kernel", format!("Linux {}", machine.release))
}

fn control(machine: &Machine) -> Check {
    let id = "device-mapper.control";
    match &machine.control {
        Control::Usable([major, minor, patch]) => Check::ok(
            id,
            format!("/dev/mapper/control answers, interface {major}.{minor}.{patch}"),
        ),
        Control::NeedsRoot => Check::note(
            id,
            "/dev/mapper/control is there, and asking it needs root: not looked at",
        )
        .way_out("sudo lvmsync doctor"),
        Control::Absent => {
            let check = Check::warning(
                id,
                "this kernel has no device-mapper, so there are no logical volumes and no snapshots here; \
                 files and plain disks can be used",
            );
            match module(machine, "dm_mod") {
                Some(true) => check.way_out("modprobe dm-mod"),
                _ => check,
            }
        }
        Control::Fails(reason) => Check::problem(
            id,
            format!("/dev/mapper/control is there and cannot be used: {reason}"),
        )
        .way_out(
            "In a container: give it the device and CAP_SYS_ADMIN, or run lvmsync on its host.",
        ),
    }
}

/// A target type, its module and what it is for.
struct Target {
    name: &'static str,
    module: &'static str,
    package: &'static str,
    purpose: &'static str,
    needed: bool,
}

const fn target(
    name: &'static str,
    [module, package]: [&'static str; 2],
    purpose: &'static str,
    needed: bool,
) -> Target {
    Target {
        name,
        module,
        package,
        purpose,
        needed,
    }
}

const SNAPSHOT: [&str; 2] = ["dm_snapshot", "dm-snapshot"];
const THIN: [&str; 2] = ["dm_thin_pool", "dm-thin-pool"];

const TARGETS: [(&str, Target); 6] = [
    (
        "device-mapper.snapshot",
        target("snapshot", SNAPSHOT, "classic snapshots", true),
    ),
    (
        "device-mapper.snapshot-origin",
        target("snapshot-origin", SNAPSHOT, "their origins", true),
    ),
    (
        "device-mapper.snapshot-merge",
        target(
            "snapshot-merge",
            SNAPSHOT,
            "taking a volume back to a snapshot",
            true,
        ),
    ),
    (
        "device-mapper.thin",
        target("thin", THIN, "thin volumes", false),
    ),
    (
        "device-mapper.thin-pool",
        target("thin-pool", THIN, "their pools", false),
    ),
    (
        "device-mapper.era",
        target("era", ["dm_era", "dm-era"], "dm-era devices", false),
    ),
];

fn target_of(machine: &Machine, id: &'static str, target: &Target) -> Check {
    let Target {
        name,
        package,
        purpose,
        ..
    } = target;
    let listed = machine.targets.as_ref().map(|all| {
        all.iter()
            .find(|(kind, _)| kind == name)
            .map(|(_, version)| version)
    });
    match (listed, module(machine, target.module)) {
        (Some(Some([major, minor, patch])), _) => {
            Check::ok(id, format!("{name} {major}.{minor}.{patch} ({purpose})"))
        }
        (None, _) if has(&machine.loaded, target.module) || is_built_in(machine, target) => {
            Check::ok(id, format!("{name} ({purpose}): the kernel has {package}"))
        }
        (_, Some(true)) => Check::note(
            id,
            format!(
                "{name} ({purpose}) is not loaded; its module {package} is there and is loaded when it is \
                 needed first"
            ),
        )
        .way_out(format!("modprobe {package}")),
        (_, Some(false)) => {
            let found = format!(
                "{name} ({purpose}) is missing: the kernel {} has no module {package}",
                machine.release
            );
            let check = if target.needed {
                Check::warning(id, found)
            } else {
                Check::note(id, found)
            };
            check.way_out(format!(
                "Boot a kernel that has {package}; some distributions keep it in a package of further modules."
            ))
        }
        (_, None) => Check::note(
            id,
            format!(
                "{name} ({purpose}) is not loaded, and whether it could be cannot be told: there is no list of \
                 modules in /lib/modules/{}",
                machine.release
            ),
        )
        .way_out(format!("modprobe {package}")),
    }
}

fn has(names: &std::collections::BTreeSet<String>, name: &str) -> bool {
    names.contains(name)
}

fn is_built_in(machine: &Machine, target: &Target) -> bool {
    let modules = machine.modules.as_ref();
    modules.is_some_and(|modules| has(&modules.builtin, target.module))
}

/// Whether the kernel has this module, loaded, loadable or built in; `None` if that cannot be told.
fn module(machine: &Machine, name: &str) -> Option<bool> {
    if has(&machine.loaded, name) {
        return Some(true);
    }
    let modules = machine.modules.as_ref()?;
    Some(has(&modules.loadable, name) || has(&modules.builtin, name))
}

/// The first kernel whose era target keeps what it had committed over a crash.
const ERA_REPAIRED: (u32, u32) = (5, 12);

fn era_is_old(machine: &Machine) -> Option<Check> {
    let listed = machine.targets.iter().flatten();
    let has_era = listed.into_iter().any(|(kind, _)| kind == "era")
        || module(machine, "dm_era") == Some(true);
    if !has_era {
        return None;
    }
    let id = "device-mapper.era-version";
    match kernel_version(&machine.release) {
        Some(version) if version >= ERA_REPAIRED => None,
        Some(_) => Some(
            Check::warning(
                id,
                format!(
                    "in kernels older than 5.12 dm-era may lose writes that it had committed when the machine \
                     crashes, and this is {}, which may or may not have the repair",
                    machine.release
                ),
            )
            .way_out("After a crash send a full copy of volumes under dm-era, or use a newer kernel."),
        ),
        None => Some(Check::note(
            id,
            format!(
                "whether dm-era is older than the repair in 5.12 cannot be told: `{}` begins with no version",
                machine.release
            ),
        )),
    }
}

/// `None`: it is not there, and nobody needs it.
fn tool_of(machine: &Machine, tool: &Tool, has_pool: bool) -> Option<Check> {
    let (id, name, purpose) = match tool.name {
        ToolName::Lvm => ("tools.lvm", "lvm", "explains inactive and absent volumes"),
        ToolName::Dmsetup => (
            "tools.dmsetup",
            "dmsetup",
            "needed for some of the commands here",
        ),
        ToolName::Ssh => ("tools.ssh", "ssh", "reaches other machines"),
        ToolName::ThinCheck => (
            "tools.thin",
            "thin-provisioning-tools",
            "check and repair thin pools",
        ),
    };
    let install = |check: Check| match machine.installer {
        Some(installer) => check.way_out(install_command(installer, tool.name)),
        None => check.way_out(format!(
            "Install the package that {name} is in with your distribution's installer."
        )),
    };
    match &tool.says {
        Some(Ok(version)) => Some(Check::ok(id, format!("{name} {version}"))),
        Some(Err(reason)) => Some(Check::warning(
            id,
            format!("{name} is there, and asking its version failed: {reason}"),
        )),
        None if tool.name == ToolName::ThinCheck && !has_pool => None,
        None => {
            let found = format!("there is no {name}, which {purpose}");
            let no_volumes = machine.control == Control::Absent;
            let check = match tool.name {
                ToolName::Lvm | ToolName::Dmsetup if no_volumes => Check::note(id, found),
                ToolName::Dmsetup => Check::note(id, found),
                _ => Check::warning(id, found),
            };
            Some(install(check))
        }
    }
}

fn install_command(installer: Installer, tool: ToolName) -> String {
    use Installer::*;
    let package = match (tool, installer) {
        (ToolName::Lvm, _) => "lvm2",
        (ToolName::Dmsetup, Apt) => "dmsetup",
        (ToolName::Dmsetup, _) => "device-mapper",
        (ToolName::Ssh, Apt) => "openssh-client",
        (ToolName::Ssh, Pacman) => "openssh",
        (ToolName::Ssh, _) => "openssh-clients",
        (ToolName::ThinCheck, Dnf) => "device-mapper-persistent-data",
        (ToolName::ThinCheck, _) => "thin-provisioning-tools",
    };
    let command = match installer {
        Apt => "apt-get install",
        Dnf => "dnf install",
        Zypper => "zypper install",
        Pacman => "pacman -S",
    };
    format!("{command} {package}")
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::super::facts::Modules;
    use super::*;

    fn machine(targets: &[&str], loadable: &[&str]) -> Machine {
        let version = |name: &&str| ((*name).to_owned(), [1, 16, 0]);
        Machine {
            root: true,
            release: "6.1.0-18-amd64".into(),
            control: Control::Usable([4, 47, 0]),
            targets: Some(targets.iter().map(version).collect()),
            modules: Some(Modules {
                loadable: loadable.iter().map(|name| (*name).to_owned()).collect(),
                ..Modules::default()
            }),
            ..Machine::default()
        }
    }

    fn get(machine: &Machine, id: &str) -> Check {
        let mut checks = findings(machine, &[]).into_iter();
        checks.find(|check| check.id == id).unwrap()
    }

    #[test]
    fn a_target_is_there_or_can_be_loaded_or_is_missing_or_nobody_knows() {
        let full = machine(&["snapshot", "snapshot-origin"], &["dm_thin_pool"]);
        let snapshot = get(&full, "device-mapper.snapshot");
        assert_eq!(snapshot.status, Status::Ok);
        assert!(snapshot.found.contains("1.16.0"), "{snapshot:?}");
        let thin = get(&full, "device-mapper.thin");
        assert_eq!(thin.status, Status::Note);
        assert_eq!(thin.way_out.as_deref(), Some("modprobe dm-thin-pool"));
        let era = get(&full, "device-mapper.era");
        assert!(
            era.status == Status::Note && era.found.contains("missing"),
            "{era:?}"
        );
        let bare = machine(&[], &[]);
        assert_eq!(get(&bare, "device-mapper.snapshot").status, Status::Warning);
        let blind = Machine {
            modules: None,
            ..machine(&[], &[])
        };
        let unknown = get(&blind, "device-mapper.snapshot");
        assert!(unknown.found.contains("cannot be told"), "{unknown:?}");
        assert_eq!(unknown.status, Status::Note);
    }

    #[test]
    fn without_root_modules_tell_what_the_control_device_does_not() {
        let user = Machine {
            root: false,
            control: Control::NeedsRoot,
            targets: None,
            loaded: ["dm_snapshot".to_owned()].into(),
            ..machine(&[], &["dm_era"])
        };
        assert_eq!(get(&user, "device-mapper.snapshot").status, Status::Ok);
        assert_eq!(get(&user, "device-mapper.era").status, Status::Note);
        assert_eq!(get(&user, "device-mapper.thin").status, Status::Note);
        assert!(
            get(&user, "device-mapper.control")
                .found
                .contains("not looked at")
        );
        assert_eq!(
            get(&user, "machine.root").way_out.as_deref(),
            Some("sudo lvmsync doctor")
        );
    }

    #[test]
    fn without_device_mapper_it_is_said_once_and_is_no_problem() {
        let none = Machine {
            control: Control::Absent,
            targets: None,
            ..machine(&[], &["dm_mod"])
        };
        let control = get(&none, "device-mapper.control");
        assert_eq!(control.status, Status::Warning);
        assert_eq!(control.way_out.as_deref(), Some("modprobe dm-mod"));
        let warnings = findings(&none, &[]);
        let warnings = warnings.iter().filter(|c| c.status >= Status::Warning);
        assert_eq!(warnings.count(), 1);
        let said = findings(&none, &[]);
        let said = said.iter().filter(|c| c.group() == "device-mapper");
        assert_eq!(said.count(), 1);
        let broken = Machine {
            control: Control::Fails("Operation not permitted".into()),
            ..none
        };
        let control = get(&broken, "device-mapper.control");
        assert!(control.status == Status::Problem && control.found.contains("not permitted"));
    }

    #[test]
    fn an_old_era_is_warned_of_and_only_where_there_is_one() {
        let id = "device-mapper.era-version";
        let on = |release: &str, targets: &[&str]| {
            let machine = Machine {
                release: release.into(),
                ..machine(targets, &[])
            };
            findings(&machine, &[]).into_iter().find(|c| c.id == id)
        };
        assert_eq!(
            on("5.11.22-generic", &["era"]).unwrap().status,
            Status::Warning
        );
        assert_eq!(on("5.12.0", &["era"]), None);
        assert_eq!(on("4.19.0", &["snapshot"]), None);
        assert_eq!(on("custom", &["era"]).unwrap().status, Status::Note);
    }

    #[test]
    fn missing_tools_come_with_the_command_that_installs_them() {
        let tool = |name, says| Tool { name, says };
        let mut debian = machine(&["snapshot"], &[]);
        debian.installer = Some(Installer::Apt);
        debian.tools = vec![
            tool(ToolName::Lvm, Some(Ok("2.03".into()))),
            tool(ToolName::Ssh, None),
            tool(ToolName::ThinCheck, None),
        ];
        assert_eq!(get(&debian, "tools.lvm").found, "lvm 2.03");
        let ssh = get(&debian, "tools.ssh");
        assert_eq!(
            ssh.way_out.as_deref(),
            Some("apt-get install openssh-client")
        );
        assert_eq!(ssh.status, Status::Warning);
        let no_pool = findings(&debian, &[]);
        assert!(no_pool.iter().all(|check| check.id != "tools.thin"));
        let pool = Device {
            name: "vg-pool-tpool".into(),
            of_lvm: true,
            suspended: false,
            kind: Ok(Kind::ThinPool(super::super::facts::PoolStatus::Failed)),
        };
        let checks = findings(&debian, &[pool]);
        let thin = checks.iter().find(|c| c.id == "tools.thin").unwrap();
        assert!(
            thin.way_out
                .as_deref()
                .unwrap()
                .ends_with("thin-provisioning-tools")
        );
        assert!(install_command(Installer::Dnf, ToolName::ThinCheck).contains("persistent"));
    }
}
