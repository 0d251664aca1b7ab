use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::Fault;

/// What a token allows. None implies another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Right {
    /// Search, embed, ask, read items and images.
    Read,
    /// Ingest and delete items.
    Write,
    /// Create and delete collections, change settings.
    Admin,
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        })
    }
}

/// Why the tokens file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// It cannot be read.
    #[error("tokens file {path} cannot be read: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// It is not the JSON we expect.
    #[error("tokens file {path} is not valid: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// It has no entry.
    #[error("tokens file {path} holds no token")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A hash is not one.
    #[error("tokens file {path}: `sha256` of `{name}` must be 64 hex digits")]
    Hash {
        /// The file.
        path: PathBuf,
        /// The entry.
        name: String,
    },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    sha256: String,
    rights: Vec<Right>,
    /// Absent: all collections.
    collections: Option<Vec<String>>,
}

/// Who calls, and what they may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Name in the tokens file, `anonymous` where the API is open.
    pub name: String,
    rights: Vec<Right>,
    collections: Option<Vec<String>>,
}

impl Caller {
    fn open() -> Self {
        Self {
            name: "anonymous".to_owned(),
            rights: vec![Right::Read, Right::Write, Right::Admin],
            collections: None,
        }
    }

    pub(crate) fn nobody() -> Self {
        Self { name: "nobody".to_owned(), rights: Vec::new(), collections: Some(Vec::new()) }
    }

    /// Whether the caller has its rights on every collection, also on those that are created later.
    pub fn is_everywhere(&self) -> bool {
        self.collections.is_none()
    }

    /// Whether the caller has a right, and has it on the collection if one is named.
    pub fn may(&self, right: Right, collection: Option<&str>) -> bool {
        let on_collection = match (&self.collections, collection) {
            (Some(allowed), Some(wanted)) => allowed.iter().any(|name| name == wanted),
            _ => true,
        };
        self.rights.contains(&right) && on_collection
    }
}

#[derive(Debug)]
struct Token {
    sha256: [u8; 32],
    caller: Arc<Caller>,
}

/// Tells callers apart by their bearer token.
#[derive(Debug)]
pub(crate) struct Authenticator {
    /// `None` where the API is open.
    tokens: Option<Vec<Token>>,
    open: Arc<Caller>,
}

impl Authenticator {
    /// Reads the tokens file; without one everybody may call.
    pub(crate) fn load(file: Option<&Path>) -> Result<Self, TokensError> {
        let tokens = file.map(read_tokens).transpose()?;
        Ok(Self { tokens, open: Arc::new(Caller::open()) })
    }

    pub(crate) fn is_open(&self) -> bool {
        self.tokens.is_none()
    }

    /// Finds the caller of a request.
    pub(crate) fn identify(&self, headers: &HeaderMap) -> Result<Arc<Caller>, Fault> {
        let Some(tokens) = &self.tokens else { return Ok(self.open.clone()) };
        let refuse = |message: &str| Fault::Unauthenticated { message: message.to_owned() };
        let token = headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim())
            .ok_or_else(|| refuse("a bearer token is required"))?;
        let digest: [u8; 32] = Sha256::digest(token).into();
        // Every entry is compared, so that the time does not tell which one came close.
        let mut found = None;
        for token in tokens {
            if bool::from(token.sha256.ct_eq(&digest)) {
                found = Some(&token.caller);
            }
        }
        found.cloned().ok_or_else(|| refuse("the bearer token is not known"))
    }
}

fn read_tokens(path: &Path) -> Result<Vec<Token>, TokensError> {
    let text = std::fs::read(path).map_err(|source| TokensError::Read { path: path.to_owned(), source })?;
    let entries: Vec<Entry> = serde_json::from_slice(&text)
        .map_err(|source| TokensError::Parse { path: path.to_owned(), source })?;
    if entries.is_empty() {
        return Err(TokensError::Empty { path: path.to_owned() });
    }
    entries
        .into_iter()
        .map(|entry| {
            let sha256 = parse_hash(&entry.sha256)
                .ok_or_else(|| TokensError::Hash { path: path.to_owned(), name: entry.name.clone() })?;
            let caller = Caller { name: entry.name, rights: entry.rights, collections: entry.collections };
            Ok(Token { sha256, caller: Arc::new(caller) })
        })
        .collect()
}

fn parse_hash(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn tokens(json: &str) -> Result<Authenticator, TokensError> {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(json.as_bytes()).expect("written");
        Authenticator::load(Some(file.path()))
    }

    fn entry(token: &str, rest: &str) -> String {
        let hash: String = Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect();
        format!(r#"{{"name":"{token}","sha256":"{hash}",{rest}}}"#)
    }

    fn bearer(token: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, format!("Bearer {token}").parse().expect("a header"));
        headers
    }

    #[test]
    fn a_token_has_its_rights_on_its_collections_and_no_other() {
        let list = format!("[{}]", entry("door", r#""rights":["read"],"collections":["lobby"]"#));
        let caller = tokens(&list).expect("valid").identify(&bearer("door")).expect("known");
        assert!(caller.may(Right::Read, Some("lobby")));
        assert!(caller.may(Right::Read, None));
        assert!(!caller.may(Right::Read, Some("vault")));
        assert!(!caller.may(Right::Write, Some("lobby")));
    }

    #[test]
    fn an_unknown_missing_or_malformed_token_is_unauthenticated() {
        let auth = tokens(&format!("[{}]", entry("door", r#""rights":["read"]"#))).expect("valid");
        let mut basic = HeaderMap::new();
        basic.insert(AUTHORIZATION, "Basic door".parse().expect("a header"));
        for headers in [bearer("window"), bearer(""), HeaderMap::new(), basic] {
            assert!(matches!(auth.identify(&headers), Err(Fault::Unauthenticated { .. })), "{headers:?}");
        }
    }

    #[test]
    fn a_bad_tokens_file_is_refused() {
        let short = r#"[{"name":"a","sha256":"00","rights":["read"]}]"#;
        assert!(matches!(tokens("[]"), Err(TokensError::Empty { .. })));
        assert!(matches!(tokens(short), Err(TokensError::Hash { .. })));
        assert!(matches!(tokens("{"), Err(TokensError::Parse { .. })));
        let unknown = format!("[{}]", entry("a", r#""rights":["everything"]"#));
        assert!(matches!(tokens(&unknown), Err(TokensError::Parse { .. })));
        assert!(matches!(Authenticator::load(Some(Path::new("/nowhere"))), Err(TokensError::Read { .. })));
    }
}
