use std::fmt;
use std::time::Duration;

use reqwest::Url;

/// Tokens of prompt and answer together where neither the server nor the operator says otherwise.
pub const DEFAULT_CONTEXT_LENGTH: usize = 32_768;
/// How long a connection attempt may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long one answer may take, whatever the caller's deadline.
const ANSWER_LIMIT: Duration = Duration::from_secs(600);
/// Attempts at one question, the first included.
const ATTEMPTS: u32 = 3;
/// Pause before the second attempt; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// A server and how it is asked.
#[derive(Clone)]
pub struct Server {
    /// Address up to and with the version, such as `http://127.0.0.1:8000/v1/`; it ends in a slash.
    pub(crate) url: Url,
    /// Name of the model there; `None` takes the only one that is served.
    pub model: Option<String>,
    /// Bearer token.
    key: Option<String>,
    /// Questions that the server is asked at a time, at least 1.
    pub concurrency: usize,
    /// How long a connection attempt may take. Default: 5 s.
    pub connect_limit: Duration,
    /// How long one answer may take. Default: 10 min.
    pub answer_limit: Duration,
    /// Attempts at one question where the server is away or overloaded, at least 1. Default: 3.
    pub attempts: u32,
    /// Pause before the second attempt, twice as long before the third, unless the server says how long. Default: 200 ms.
    pub first_pause: Duration,
}

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// The address is not one of a server.
    #[error("`{url}` is no server: {reason}; write it as http://host:port/v1")]
    Address {
        /// As given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The key cannot be sent in a header.
    #[error("the server's key is not one line of printable text")]
    Key,
}

impl Server {
    /// The server at an address, asked up to `concurrency` questions at a time.
    ///
    /// # Errors
    /// [`SettingError::Address`] for anything but an absolute `http` or `https` address without credentials or query.
    pub fn at(url: &str, concurrency: usize) -> Result<Self, SettingError> {
        let refuse = |reason: &str| SettingError::Address { url: url.to_owned(), reason: reason.to_owned() };
        let mut parsed = Url::parse(url).map_err(|error| refuse(&error.to_string()))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(refuse("http or https expected"));
        }
        if !parsed.username().is_empty() || parsed.password().is_some() {
            return Err(refuse("a key goes into a file of its own"));
        }
        if parsed.query().is_some() || parsed.fragment().is_some() {
            return Err(refuse("it has a query"));
        }
        if !parsed.path().ends_with('/') {
            parsed.set_path(&format!("{}/", parsed.path()));
        }
        Ok(Self {
            url: parsed,
            model: None,
            key: None,
            concurrency: concurrency.max(1),
            connect_limit: CONNECT_LIMIT,
            answer_limit: ANSWER_LIMIT,
            attempts: ATTEMPTS,
            first_pause: FIRST_PAUSE,
        })
    }

    /// The same, asked with a bearer token.
    ///
    /// # Errors
    /// [`SettingError::Key`].
    pub fn with_key(self, key: &str) -> Result<Self, SettingError> {
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(SettingError::Key);
        }
        Ok(Self { key: Some(key.to_owned()), ..self })
    }

    pub(crate) fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// The address of an operation.
    pub(crate) fn address(&self, operation: &str) -> String {
        format!("{}{operation}", self.url)
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("url", &self.url.as_str())
            .field("model", &self.model)
            .field("key", &self.key.as_ref().map(|_| "given"))
            .field("concurrency", &self.concurrency)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_follows_the_version() {
        for url in ["http://localhost:8000/v1", "http://localhost:8000/v1/"] {
            let server = Server::at(url, 1).unwrap();
            assert_eq!(server.address("models"), "http://localhost:8000/v1/models");
        }
    }

    #[test]
    fn what_is_no_address_of_a_server_is_refused() {
        for url in [
            "",
            "localhost:8000",
            "/v1",
            "ftp://host/v1",
            "http://",
            "http://me:secret@host/v1",
            "http://host/v1?a=b",
        ] {
            assert!(matches!(Server::at(url, 1), Err(SettingError::Address { .. })), "{url}");
        }
    }

    #[test]
    fn a_key_is_never_shown() {
        let server = Server::at("http://host/v1", 1).unwrap().with_key("sk-secret").unwrap();
        assert!(!format!("{server:?}").contains("secret"));
        assert_eq!(server.clone().with_key("two\nlines").unwrap_err(), SettingError::Key);
        assert_eq!(server.with_key("").unwrap_err(), SettingError::Key);
    }
}
