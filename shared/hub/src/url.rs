//! Addresses: which host a request goes to decides whether it carries the token.

use std::fmt::Write as _;

use ureq::http::Uri;

/// An address of `http` or `https`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    text: String,
    encrypted: bool,
    host: String,
    port: u16,
}

impl Address {
    /// Reads an absolute address.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let uri: Uri = text.parse().map_err(|_| "it is not an address".to_owned())?;
        let encrypted = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err("it does not begin with https:// or http://".to_owned()),
        };
        let authority = uri.authority().ok_or("it names no host")?;
        if authority.as_str().contains('@') {
            return Err("it holds a user name; use HF_TOKEN".to_owned());
        }
        let host = authority.host().to_ascii_lowercase();
        if host.is_empty() {
            return Err("it names no host".to_owned());
        }
        let port = authority.port_u16().unwrap_or(if encrypted { 443 } else { 80 });
        Ok(Self { text: text.to_owned(), encrypted, host, port })
    }

    /// Reads an endpoint, below which paths are put.
    pub(crate) fn endpoint(text: &str) -> Result<Self, String> {
        let address = Self::parse(text)?;
        if text.contains(['?', '#']) {
            return Err("it has a query or a fragment".to_owned());
        }
        Ok(address)
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// The address without its query, which may hold a signature that lets its reader in.
    pub(crate) fn shown(&self) -> &str {
        self.text.split(['?', '#']).next().unwrap_or_default()
    }

    /// Host and port, for messages.
    pub(crate) fn host_and_port(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// Whether both lead to one server in one way.
    pub(crate) fn same_origin(&self, other: &Self) -> bool {
        (self.encrypted, &self.host, self.port) == (other.encrypted, &other.host, other.port)
    }

    pub(crate) fn is_loopback(&self) -> bool {
        let host = self.host.trim_matches(['[', ']']);
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// Where a redirect from here leads.
    ///
    /// # Errors
    /// An address that cannot be used, or one that gives up encryption.
    pub(crate) fn follow(&self, location: &str) -> Result<Self, String> {
        let scheme = if self.encrypted { "https" } else { "http" };
        let authority = self.text.split("://").nth(1).and_then(|rest| rest.split(['/', '?', '#']).next());
        let target = if location.starts_with("//") {
            format!("{scheme}:{location}")
        } else if location.starts_with('/') {
            format!("{scheme}://{}{location}", authority.unwrap_or_default())
        } else {
            location.to_owned()
        };
        let target =
            Self::parse(&target).map_err(|reason| format!("a redirect cannot be followed: {reason}"))?;
        if self.encrypted && !target.encrypted {
            return Err(format!("a redirect to {} gives up encryption", target.host_and_port()));
        }
        Ok(target)
    }
}

/// A text as one part of an address's path; with `slash`, a `/` stays one.
pub(crate) fn encoded(text: &str, slash: bool) -> String {
    let mut result = String::with_capacity(text.len());
    for byte in text.bytes() {
        let plain = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || (slash && byte == b'/');
        if plain {
            result.push(char::from(byte));
        } else {
            let _ = write!(result, "%{byte:02X}");
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        Address::parse(text).unwrap()
    }

    #[test]
    fn one_origin_is_one_scheme_host_and_port() {
        let hub = address("https://huggingface.co/api");
        assert!(hub.same_origin(&address("https://HuggingFace.co:443/x")));
        for other in [
            "http://huggingface.co",
            "https://huggingface.co:444",
            "https://huggingface.co.evil",
            "https://cdn.huggingface.co",
        ] {
            assert!(!hub.same_origin(&address(other)), "{other}");
        }
    }

    #[test]
    fn redirects_are_followed_up_but_not_out_of_encryption() {
        let here = address("https://hub:8443/a/b?c=d");
        assert_eq!(here.follow("/x?y").unwrap().as_str(), "https://hub:8443/x?y");
        assert_eq!(here.follow("//cdn/x").unwrap().as_str(), "https://cdn/x");
        assert_eq!(here.follow("https://cdn/x").unwrap().as_str(), "https://cdn/x");
        for location in ["http://hub/x", "x", "ftp://x", "", "https://a@b/x"] {
            assert!(here.follow(location).is_err(), "{location}");
        }
    }

    #[test]
    fn what_is_shown_has_no_query() {
        assert_eq!(address("https://cdn/x?Signature=secret").shown(), "https://cdn/x");
    }

    #[test]
    fn odd_characters_are_encoded() {
        assert_eq!(encoded("refs/pr/1", false), "refs%2Fpr%2F1");
        assert_eq!(encoded("a b/ä#?.json", true), "a%20b/%C3%A4%23%3F.json");
    }
}
