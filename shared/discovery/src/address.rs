use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::shown;

/// Most bytes of a host name, as in DNS.
const MAX_HOST: usize = 253;
/// Most bytes of a part of a host name.
const MAX_LABEL: usize = 63;

/// Where a server is called: `http://host:port` or `https://host:port`, with a host that can be called (not `0.0.0.0`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    secure: bool,
    host: Host,
    port: u16,
}

/// The host of an [`Address`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Host {
    Ip(IpAddr),
    Name(String),
}

/// Why something is no [`Address`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("address `{address}` is not valid: {reason}")]
pub struct AddressError {
    /// What was given, cut short.
    pub address: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl Address {
    /// Reads `http://host:port` or `https://host:port`; one slash may follow. Host names become lower case.
    ///
    /// # Errors
    /// [`AddressError`] for anything else, for port 0 and for a host that means "any address of this machine".
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        read(text).map_err(|reason| AddressError { address: shown(text), reason })
    }

    /// The address of a plain (not TLS) server at an IP address.
    ///
    /// # Errors
    /// As [`Address::parse`]: for port 0 and for an IP address that means "any".
    pub fn of_ip(ip: IpAddr, port: u16) -> Result<Self, AddressError> {
        let address = Self { secure: false, host: Host::Ip(ip), port };
        match refusal(&address) {
            Some(reason) => Err(AddressError { address: address.to_string(), reason }),
            None => Ok(address),
        }
    }

    /// Whether it is called over TLS.
    pub fn is_secure(&self) -> bool {
        self.secure
    }

    /// Host and port, as in `gallery:7702` or `[::1]:7702`.
    pub fn authority(&self) -> String {
        match &self.host {
            Host::Ip(IpAddr::V6(ip)) => format!("[{ip}]:{}", self.port),
            Host::Ip(IpAddr::V4(ip)) => format!("{ip}:{}", self.port),
            Host::Name(name) => format!("{name}:{}", self.port),
        }
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn host(&self) -> &Host {
        &self.host
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.secure { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority())
    }
}

impl std::str::FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        Self::parse(text)
    }
}

fn read(text: &str) -> Result<Address, &'static str> {
    let (secure, rest) = match (text.strip_prefix("http://"), text.strip_prefix("https://")) {
        (Some(rest), _) => (false, rest),
        (_, Some(rest)) => (true, rest),
        _ => return Err("write it as http://host:port"),
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = authority.rsplit_once(':').ok_or("it names no port")?;
    if port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("its port is not a number");
    }
    let port = port.parse().map_err(|_| "its port is above 65535")?;
    let address = Address { secure, host: read_host(host)?, port };
    refusal(&address).map_or(Ok(address), Err)
}

fn read_host(host: &str) -> Result<Host, &'static str> {
    if let Some(inner) = host.strip_prefix('[') {
        let ip = inner.strip_suffix(']').and_then(|inner| inner.parse::<Ipv6Addr>().ok());
        return ip.map(|ip| Host::Ip(IpAddr::V6(ip))).ok_or("its host is not an IPv6 address");
    }
    if let Ok(ip) = host.parse::<Ipv4Addr>() {
        return Ok(Host::Ip(IpAddr::V4(ip)));
    }
    let fits = |label: &str| {
        (1..=MAX_LABEL).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    let labels = host.strip_suffix('.').unwrap_or(host);
    if host.len() > MAX_HOST || !labels.split('.').all(fits) {
        return Err("its host is neither a name nor an IP address");
    }
    // A top-level domain has a letter: what ends in a number was meant to be an IP address.
    let last = labels.rsplit('.').next().unwrap_or_default();
    if last.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("its host is not an IPv4 address");
    }
    Ok(Host::Name(host.to_ascii_lowercase()))
}

fn refusal(address: &Address) -> Option<&'static str> {
    match address.host {
        _ if address.port == 0 => Some("its port is 0"),
        Host::Ip(ip) if ip.is_unspecified() => Some("its host stands for any address, nobody can call it"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_and_ip_addresses_of_both_kinds_are_read() {
        for (text, shown) in [
            ("http://gallery:7702", "http://gallery:7702"),
            ("http://Gallery-0.gallery.people.svc:7702/", "http://gallery-0.gallery.people.svc:7702"),
            ("https://10.0.0.7:443", "https://10.0.0.7:443"),
            ("http://[fd00::1]:7702", "http://[fd00::1]:7702"),
            ("http://answer_1:1", "http://answer_1:1"),
        ] {
            assert_eq!(Address::parse(text).unwrap().to_string(), shown);
        }
    }

    #[test]
    fn what_nobody_can_call_is_refused() {
        for text in [
            "",
            "gallery:7702",
            "ftp://gallery:7702",
            "http://gallery",
            "http://:7702",
            "http://gallery:",
            "http://gallery:0",
            "http://gallery:+80",
            "http://gallery:65536",
            "http://gallery:7702/path",
            "http://user@gallery:7702",
            "http://gal lery:7702",
            "http://a..b:7702",
            "http://300.0.0.1:7702",
            "http://0.0.0.0:7702",
            "http://[::]:7702",
            "http://[::1:7702",
            "http://::1:7702",
        ] {
            assert!(Address::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_refusal_fits_one_short_line() {
        let error = Address::parse(&"\n".repeat(10_000)).unwrap_err().to_string();
        assert!(error.len() < 400 && error.lines().count() == 1, "{error}");
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_is_read_reads_the_same_again(text in ".{0,80}") {
            for text in [text.clone(), format!("http://{text}"), format!("http://{text}:80")] {
                if let Ok(address) = Address::parse(&text) {
                    prop_assert_eq!(Address::parse(&address.to_string()), Ok(address));
                }
            }
        }
    }
}
