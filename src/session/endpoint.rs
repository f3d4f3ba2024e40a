//! `[HOST:]PATH` on the command line, by rsync's rule.
//!
//! Guarantees: pure; what comes out as a host can be put on ssh's command line: it is not empty, does
//! not begin with `-`, and has no blank and no control character.

use std::path::PathBuf;

use crate::error::{Error, Result};

/// Where a destination is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// On this machine.
    Local(PathBuf),
    /// On another one.
    Remote {
        /// `host` or `user@host`, as ssh takes it; an IPv6 address without its brackets.
        host: String,
        /// There.
        path: String,
    },
}

/// Reads `[user@]host:path`, `[user@][v6]:path` or a local path: one without a colon, or with a `/`
/// before the first colon.
pub fn parse_endpoint(text: &str) -> Result<Endpoint> {
    if text.is_empty() {
        return Err(usage(text, "it is empty"));
    }
    if text.chars().any(char::is_control) {
        return Err(usage(text, "it contains a control character"));
    }
    let Some((host, path)) = split_host(text)? else {
        return Ok(Endpoint::Local(PathBuf::from(text)));
    };
    check_host(&host).map_err(|reason| usage(text, reason))?;
    if path.is_empty() {
        return Err(usage(text, "no path follows the host"));
    }
    Ok(Endpoint::Remote {
        host,
        path: path.to_owned(),
    })
}

/// Says why a host may not be given to ssh.
pub fn check_host(host: &str) -> std::result::Result<(), &'static str> {
    let name = host.rsplit_once('@').map_or(host, |(_, name)| name);
    if name.is_empty() || host.starts_with('@') {
        return Err("the host is empty; for a local path with a colon write ./PATH");
    }
    if host.starts_with('-') || name.starts_with('-') {
        return Err("a host must not begin with `-`");
    }
    if host.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err("a host must not contain blanks or control characters");
    }
    Ok(())
}

/// Host and path, or nothing for a local path.
fn split_host(text: &str) -> Result<Option<(String, &str)>> {
    let special = text
        .find([':', '/', '['])
        .map_or((None, text.len()), |at| (text[at..].chars().next(), at));
    match special {
        (Some('['), at) if at == 0 || text[..at].ends_with('@') => {
            let (user, rest) = (&text[..at], &text[at + 1..]);
            let Some((address, path)) = rest.split_once("]:") else {
                // Without a colon it is a local file with an odd name.
                return if rest.contains(':') && !rest.contains('/') {
                    Err(usage(text, "write an IPv6 host as [ADDRESS]:PATH"))
                } else {
                    Ok(None)
                };
            };
            let fits =
                |c: char| c.is_ascii_alphanumeric() || matches!(c, ':' | '.' | '%' | '-' | '_');
            if address.is_empty() || !address.chars().all(fits) {
                return Err(usage(
                    text,
                    "what stands in the brackets is not an IPv6 address",
                ));
            }
            Ok(Some((format!("{user}{address}"), path)))
        }
        (Some('/'), _) | (None, _) => Ok(None),
        _ => Ok(text
            .split_once(':')
            .filter(|(host, _)| !host.contains('/'))
            .map(|(host, path)| (host.to_owned(), path))),
    }
}

fn usage(text: &str, reason: &str) -> Error {
    Error::Usage(format!(
        "`{}` is not a destination: {reason}",
        super::text::sanitise(text)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn remote(host: &str, path: &str) -> Endpoint {
        Endpoint::Remote {
            host: host.into(),
            path: path.into(),
        }
    }

    #[test]
    fn hosts_and_paths_come_apart_as_in_rsync() {
        for (text, expected) in [
            ("host:/dev/vg/lv", remote("host", "/dev/vg/lv")),
            ("user@host:vg/lv", remote("user@host", "vg/lv")),
            ("host:a:b", remote("host", "a:b")),
            ("[::1]:/dev/x", remote("::1", "/dev/x")),
            ("u@[fe80::1%eth0]:x", remote("u@fe80::1%eth0", "x")),
            ("a[b:c", remote("a[b", "c")),
            ("vg/lv", Endpoint::Local("vg/lv".into())),
            (
                "/dev/disk/by-path/pci-0000:00",
                Endpoint::Local("/dev/disk/by-path/pci-0000:00".into()),
            ),
            ("./a:b", Endpoint::Local("./a:b".into())),
            ("[odd]", Endpoint::Local("[odd]".into())),
            ("plain", Endpoint::Local("plain".into())),
        ] {
            assert_eq!(parse_endpoint(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_ssh_could_misread_is_a_usage_error() {
        for text in [
            "",
            ":/dev/x",
            "host:",
            "-oProxyCommand=x:/dev/x",
            "u@-x:/y",
            "@host:x",
            "u@:x",
            "a b:c",
            "a\nb:c",
            "h:a\0b",
            "[]:x",
            "[a b]:x",
            "[::1",
            "u@[-x]:y",
            "[-o]:y",
        ] {
            let error = parse_endpoint(text).unwrap_err();
            assert!(matches!(error, Error::Usage(_)), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_host_is_always_fit_for_a_command_line(text in "[-a:@/\\[\\] .\\n]{0,12}") {
            if let Ok(Endpoint::Remote { host, path }) = parse_endpoint(&text) {
                prop_assert!(!host.starts_with('-') && !host.is_empty() && !path.is_empty());
                prop_assert!(!host.contains([' ', '\n', '/']));
            }
        }
    }
}
