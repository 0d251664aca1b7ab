use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::HubError;
use crate::url::Address;

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
/// How long a connection may be silent.
const DEFAULT_IDLE: Duration = Duration::from_secs(10);
/// Longest token; real ones have 37 characters.
const MAX_TOKEN: usize = 512;

/// An access token. It prints as dots.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A token of visible ASCII characters, white space around it removed; `None` for anything else.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        let fits =
            !text.is_empty() && text.len() <= MAX_TOKEN && text.bytes().all(|byte| byte.is_ascii_graphic());
        fits.then(|| Self(text.to_owned()))
    }

    /// The value of the `Authorization` header.
    pub(crate) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(...)")
    }
}

/// How often and how fast something that failed is tried again.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    /// Attempts in a row that bring nothing, the first included; at least 1. An attempt that brought bytes starts the
    /// count again.
    pub attempts: u32,
    /// Pause after the first failure; it doubles with every further one.
    pub first_pause: Duration,
    /// Longest pause, also where the hub asks for a longer one.
    pub longest_pause: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: 6, first_pause: Duration::from_millis(500), longest_pause: Duration::from_secs(30) }
    }
}

impl Retry {
    /// The pause after `failures` failures in a row; `asked` is what the server wants.
    pub(crate) fn pause(&self, failures: u32, asked: Option<Duration>) -> Duration {
        let doubled = self.first_pause.saturating_mul(1 << failures.saturating_sub(1).min(16));
        doubled.max(asked.unwrap_or_default()).min(self.longest_pause)
    }
}

/// Where the hub is, who asks, and where files are kept.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Address of the hub or a mirror of it, without a slash at its end.
    pub endpoint: String,
    /// Sent to the endpoint, to no other host.
    pub token: Option<Token>,
    /// The cache that is shared with Python's tools.
    pub cache: PathBuf,
    /// The network is not used.
    pub offline: bool,
    /// How long a connection may be silent before it counts as cut.
    pub idle: Duration,
    /// How failures are tried again.
    pub retry: Retry,
}

impl Settings {
    /// The settings that the usual environment variables make: `HF_ENDPOINT`, `HF_TOKEN` (else the file that
    /// `HF_TOKEN_PATH` names, else `token` in `HF_HOME`), `HF_HUB_CACHE` (else `hub` in `HF_HOME`, which is
    /// `huggingface` in `XDG_CACHE_HOME` or `~/.cache`), `HF_HUB_OFFLINE`, `HF_HUB_DOWNLOAD_TIMEOUT` in seconds.
    ///
    /// # Errors
    /// [`HubError::Setting`] with the variable.
    pub fn from_environment(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, HubError> {
        let path = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let text = |name: &str| match variable(name).map(OsString::into_string) {
            None => Ok(None),
            Some(Ok(value)) => Ok(Some(value.trim().to_owned()).filter(|value| !value.is_empty())),
            Some(Err(_)) => Err(setting(name, "it is not UTF-8")),
        };
        let home = path("HF_HOME").or_else(|| {
            let caches = path("XDG_CACHE_HOME").or_else(|| path("HOME").map(|home| home.join(".cache")));
            caches.map(|caches| caches.join("huggingface"))
        });
        let cache = path("HF_HUB_CACHE").or_else(|| home.as_ref().map(|home| home.join("hub")));
        let cache = cache.ok_or_else(|| setting("HF_HUB_CACHE", "neither it nor HF_HOME nor HOME is set"))?;
        let endpoint = text("HF_ENDPOINT")?.unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        Address::endpoint(&endpoint).map_err(|reason| setting("HF_ENDPOINT", reason))?;
        let token_file = path("HF_TOKEN_PATH").or_else(|| home.map(|home| home.join("token")));
        Ok(Self {
            endpoint,
            token: match text("HF_TOKEN")? {
                Some(token) => Some(checked("HF_TOKEN", &token)?),
                None => token_file.map_or(Ok(None), |file| read_token(&file))?,
            },
            cache,
            offline: text("HF_HUB_OFFLINE")?.is_some_and(|value| is_true(&value)),
            idle: text("HF_HUB_DOWNLOAD_TIMEOUT")?.map_or(Ok(DEFAULT_IDLE), |value| seconds(&value))?,
            retry: Retry::default(),
        })
    }
}

fn setting(name: &str, reason: impl Into<String>) -> HubError {
    HubError::Setting { name: name.to_owned(), reason: reason.into() }
}

fn checked(name: &str, token: &str) -> Result<Token, HubError> {
    Token::new(token).ok_or_else(|| setting(name, "it is not a token: 1 to 512 visible ASCII characters"))
}

/// The token in a file; a file that is not there or is empty holds none.
fn read_token(file: &Path) -> Result<Option<Token>, HubError> {
    match std::fs::read_to_string(file) {
        Ok(text) if text.trim().is_empty() => Ok(None),
        Ok(text) => checked(&file.display().to_string(), &text).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(HubError::file(file, &error)),
    }
}

fn is_true(value: &str) -> bool {
    ["1", "ON", "YES", "TRUE"].contains(&value.to_ascii_uppercase().as_str())
}

fn seconds(value: &str) -> Result<Duration, HubError> {
    let seconds = value.parse().ok().filter(|seconds| (1..=86_400).contains(seconds));
    seconds.map(Duration::from_secs).ok_or_else(|| {
        setting("HF_HUB_DOWNLOAD_TIMEOUT", format!("1 to 86400 whole seconds expected, got {value:?}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<Settings, HubError> {
        Settings::from_environment(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn folders_are_found_as_python_finds_them() {
        let cache = |variables: &[(&str, &str)]| settings(variables).unwrap().cache;
        assert_eq!(cache(&[("HOME", "/h")]), Path::new("/h/.cache/huggingface/hub"));
        assert_eq!(cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
        assert_eq!(cache(&[("HOME", "/h"), ("HF_HOME", "/f")]), Path::new("/f/hub"));
        assert_eq!(cache(&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")]), Path::new("/c"));
        assert!(settings(&[]).unwrap_err().to_string().contains("HF_HUB_CACHE"));
    }

    #[test]
    fn a_token_comes_from_the_variable_or_from_the_file_and_is_never_printed() {
        let home = tempfile::tempdir().unwrap();
        let home_name = home.path().to_str().unwrap();
        assert_eq!(settings(&[("HF_HOME", home_name)]).unwrap().token, None);
        std::fs::write(home.path().join("token"), "hf_file\n").unwrap();
        let from_file = settings(&[("HF_HOME", home_name)]).unwrap();
        assert_eq!(from_file.token, Token::new("hf_file"));
        let given = settings(&[("HF_HOME", home_name), ("HF_TOKEN", "hf_secret")]).unwrap();
        assert_eq!(given.token, Token::new("hf_secret"));
        assert!(!format!("{given:?}").contains("secret"));
        let refused =
            settings(&[("HF_HOME", home_name), ("HF_TOKEN", "hf sec\u{e9}ret")]).unwrap_err().to_string();
        assert!(refused.contains("HF_TOKEN") && !refused.contains("ret"), "{refused}");
    }

    #[test]
    fn values_that_cannot_be_used_are_named() {
        let refusal =
            |name: &str, value: &str| settings(&[("HOME", "/h"), (name, value)]).unwrap_err().to_string();
        for value in ["huggingface.co", "ftp://x", "https://", "https://user:pass@x", "https://x?y=z"] {
            let text = refusal("HF_ENDPOINT", value);
            assert!(text.contains("HF_ENDPOINT") && !text.contains("pass"), "{text}");
        }
        assert!(refusal("HF_HUB_DOWNLOAD_TIMEOUT", "0").contains("86400"));
        let mirror = settings(&[("HOME", "/h"), ("HF_ENDPOINT", "https://mirror/hf/")]).unwrap();
        assert_eq!(mirror.endpoint, "https://mirror/hf");
        assert!(settings(&[("HOME", "/h"), ("HF_HUB_OFFLINE", "true")]).unwrap().offline);
        assert!(!settings(&[("HOME", "/h"), ("HF_HUB_OFFLINE", "0")]).unwrap().offline);
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let retry = Retry::default();
        let pauses: Vec<u64> =
            [1, 2, 3, 9].map(|failures| retry.pause(failures, None).as_millis() as u64).to_vec();
        assert_eq!(pauses, [500, 1000, 2000, 30_000]);
        assert_eq!(retry.pause(1, Some(Duration::from_secs(7))), Duration::from_secs(7));
        assert_eq!(retry.pause(1, Some(Duration::from_secs(7000))), Duration::from_secs(30));
    }
}
