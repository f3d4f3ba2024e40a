//! Where an export listens.
//!
//! Guarantees: no address that another machine can reach is listened on unless that was said; names are looked up once, and
//! what was looked at is what is bound.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;

use crate::error::{Error, Result};

/// As the user wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A Unix socket.
    Unix(PathBuf),
    /// A host and a port.
    Tcp {
        /// A name or an address.
        host: String,
        /// 0: any that is free.
        port: u16,
    },
}

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// At this path.
    Unix(PathBuf),
    /// At the first of these that is free.
    Tcp(Vec<SocketAddr>),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong = || format!("`{text}` is no address: write unix:PATH or tcp:HOST:PORT");
        match text.split_once(':').ok_or_else(wrong)? {
            ("unix", path) if !path.is_empty() => Ok(Address::Unix(path.into())),
            ("tcp", rest) => {
                let (host, port) = rest.rsplit_once(':').ok_or_else(wrong)?;
                let port = port.parse().map_err(|_| wrong())?;
                let host = host
                    .strip_prefix('[')
                    .and_then(|host| host.strip_suffix(']'))
                    .unwrap_or(host);
                if host.is_empty() {
                    return Err(wrong());
                }
                let host = host.to_owned();
                Ok(Address::Tcp { host, port })
            }
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Address::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
        }
    }
}

impl Address {
    /// Looks it up, and refuses what other machines reach unless `allow_network`, or TLS, says who they are.
    pub fn resolve(&self, allow_network: bool) -> Result<Listen> {
        let (host, port) = match self {
            Address::Unix(path) => return Ok(Listen::Unix(path.clone())),
            Address::Tcp { host, port } => (host, port),
        };
        let found = (host.as_str(), *port).to_socket_addrs();
        let found = found.map_err(|error| Error::io(format!("cannot find {self}"), error))?;
        let found: Vec<SocketAddr> = found.collect();
        if let Some(open) = found.iter().find(|found| !is_loopback(found))
            && !allow_network
        {
            return Err(Error::refused(
                self.to_string(),
                format!(
                    "{} can be reached by other machines, and what is served is neither encrypted nor asks who reads it",
                    open.ip()
                ),
                "Encrypted, and for clients with a certificate of yours: --tls-certificates DIR. Or unix:PATH, and ssh -L in \
                 front of it. In a network that you trust: --allow-network.",
            ));
        }
        Ok(Listen::Tcp(found))
    }
}

fn is_loopback(address: &SocketAddr) -> bool {
    match address.ip() {
        std::net::IpAddr::V6(ip) => {
            ip.is_loopback() || ip.to_ipv4_mapped().is_some_and(|ip| ip.is_loopback())
        }
        std::net::IpAddr::V4(ip) => ip.is_loopback(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ExitCode;

    #[test]
    fn addresses_are_read_and_shown_as_they_are_written() {
        for text in ["unix:/run/a b", "tcp:localhost:10809", "tcp:[::1]:0"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "unix:",
            "tcp::1",
            "tcp:localhost",
            "tcp:localhost:70000",
            "/run/x",
            "vsock:1:2",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[test]
    fn only_loopback_is_listened_on_unless_that_was_said() {
        for text in ["tcp:127.0.0.1:0", "tcp:[::1]:0", "tcp:[::ffff:127.0.0.1]:0"] {
            text.parse::<Address>().unwrap().resolve(false).unwrap();
        }
        for text in ["tcp:0.0.0.0:0", "tcp:[::]:0", "tcp:192.0.2.1:1"] {
            let address: Address = text.parse().unwrap();
            let error = address.resolve(false).unwrap_err();
            assert_eq!(error.exit_code(), ExitCode::Refused, "{text}");
            assert!(error.to_string().contains("--allow-network"), "{error}");
            address.resolve(true).unwrap();
        }
    }
}
