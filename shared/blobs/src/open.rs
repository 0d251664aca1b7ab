use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStore;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientOptions, RetryConfig};

use crate::Blobs;
use crate::blobs::Place;
use crate::error::{OpenError, one_line};
use crate::transport::Transport;

/// Most bytes of an object.
pub const DEFAULT_MAX_BYTES: u64 = 64 << 20;
/// Requests for one operation on a server at most: the first, and those after a failure of the server or the network.
const REQUESTS: usize = 4;
/// How long a failed request is tried again; the caller's own limit comes on top.
const RETRY_FOR: Duration = Duration::from_secs(30);

/// What a place for objects needs beside its URL.
#[derive(Clone)]
pub struct Settings {
    /// Most bytes of an object, for writing and for reading. Default: [`DEFAULT_MAX_BYTES`].
    pub max_bytes: u64,
    /// For `s3:`, name and value of environment variables that start with `AWS_`: `AWS_ENDPOINT_URL`, `AWS_REGION`,
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_ALLOW_HTTP` and so on. An endpoint without TLS is refused unless it
    /// is on loopback or `AWS_ALLOW_HTTP` is `true`. Later ones replace earlier ones. Default: none.
    pub aws: Vec<(String, String)>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { max_bytes: DEFAULT_MAX_BYTES, aws: Vec::new() }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Some of the values are secrets.
        let names: Vec<&str> = self.aws.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Settings").field("max_bytes", &self.max_bytes).field("aws", &names).finish()
    }
}

impl Settings {
    /// The defaults with the `AWS_` variables of this process.
    pub fn from_env() -> Self {
        let aws = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| name.starts_with("AWS_"));
        Self { aws: aws.collect(), ..Self::default() }
    }
}

impl Blobs {
    /// Opens a place for objects: `file:///path`, a folder that is created where it is missing, or `s3://bucket/prefix`. No
    /// request is made yet.
    ///
    /// # Errors
    /// [`OpenError`] for a URL of another kind, settings that contradict each other, or a folder that cannot be created.
    pub fn open(url: &str, settings: Settings) -> Result<Self, OpenError> {
        let refused = |reason: &str| OpenError::Url { url: url.to_owned(), reason: reason.to_owned() };
        let (scheme, rest) = url.split_once("://").ok_or_else(|| refused("write it as file:// or s3://"))?;
        match scheme {
            "file" if rest.starts_with('/') => Self::folder(url, Path::new(rest), settings.max_bytes),
            "file" => Err(refused("write a folder as file:///absolute/path")),
            "s3" => Self::bucket(url, rest, settings),
            _ => Err(refused("file:// and s3:// are known")),
        }
    }

    /// Opens a folder, which is created where it is missing, for objects of no more than `max_bytes`.
    ///
    /// # Errors
    /// [`OpenError::Unusable`].
    pub fn in_folder(folder: &Path, max_bytes: u64) -> Result<Self, OpenError> {
        Self::folder(&format!("file://{}", folder.display()), folder, max_bytes)
    }

    fn folder(url: &str, folder: &Path, max_bytes: u64) -> Result<Self, OpenError> {
        let unusable = |reason: String| OpenError::Unusable { url: url.to_owned(), reason };
        std::fs::create_dir_all(folder).map_err(|cause| unusable(cause.to_string()))?;
        let store = LocalFileSystem::new_with_prefix(folder)
            .map_err(|cause| unusable(one_line(&cause)))?
            .with_fsync(true);
        Ok(Self::new(Arc::new(store), Place::Folder(folder.to_owned()), url, max_bytes))
    }

    fn bucket(url: &str, rest: &str, settings: Settings) -> Result<Self, OpenError> {
        let refused = |reason: &str| OpenError::Url { url: url.to_owned(), reason: reason.to_owned() };
        let unusable = |cause: object_store::Error| OpenError::Unusable {
            url: url.to_owned(),
            reason: one_line(&cause),
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() || bucket.contains(['@', ':', '?', '#']) {
            return Err(refused(
                "write a bucket as s3://bucket/prefix; credentials come from AWS_ variables",
            ));
        }
        let prefix = ObjectPath::parse(prefix).map_err(|cause| refused(&one_line(&cause)))?;
        let retry = RetryConfig {
            backoff: BackoffConfig::default(),
            max_retries: REQUESTS - 1,
            retry_timeout: RETRY_FOR,
        };
        let mut builder = AmazonS3Builder::new().with_retry(retry).with_http_connector(Transport);
        let mut endpoint = None;
        for (name, value) in &settings.aws {
            // Other programs have `AWS_` variables of their own.
            let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() else { continue };
            if matches!(key, AmazonS3ConfigKey::Endpoint | AmazonS3ConfigKey::S3Endpoint) {
                endpoint = Some(value.as_str());
            }
            builder = builder.with_config(key, value);
        }
        let mut options = ClientOptions::new();
        let allowed = |name: &str| {
            let value = settings.aws.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value);
            value.is_some_and(|value| value.eq_ignore_ascii_case("true"))
        };
        if let Some(endpoint) = endpoint.filter(|endpoint| endpoint.starts_with("http://")) {
            if !allowed("AWS_ALLOW_HTTP") && !is_loopback(endpoint) {
                return Err(OpenError::Unusable {
                    url: url.to_owned(),
                    reason: format!("endpoint {endpoint} has no TLS; AWS_ALLOW_HTTP=true allows it"),
                });
            }
            options = options.with_allow_http(true);
        }
        let store =
            builder.with_client_options(options).with_bucket_name(bucket).build().map_err(unusable)?;
        let store: Arc<dyn ObjectStore> = match prefix.as_ref() {
            "" => Arc::new(store),
            _ => Arc::new(PrefixStore::new(store, prefix)),
        };
        Ok(Self::new(store, Place::Server, url, settings.max_bytes))
    }
}

/// True for an `http://` address on this machine.
fn is_loopback(endpoint: &str) -> bool {
    let address = endpoint.trim_start_matches("http://").split('/').next().unwrap_or_default();
    let host = match address.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => address.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(url: &str, aws: &[(&str, &str)]) -> Result<Blobs, OpenError> {
        let aws = aws.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Blobs::open(url, Settings { aws, ..Settings::default() })
    }

    #[test]
    fn a_url_of_another_kind_is_refused() {
        for url in
            ["", "/data", "data", "file://data", "http://host/x", "s3://", "s3:///x", "s3://key@bucket/x"]
        {
            assert!(matches!(open(url, &[]), Err(OpenError::Url { .. })), "{url}");
        }
        open("s3://bucket", &[]).unwrap();
        open("s3://bucket/a/b", &[]).unwrap();
    }

    #[test]
    fn an_endpoint_without_tls_is_on_loopback_or_allowed() {
        let endpoint = |url| ("AWS_ENDPOINT_URL", url);
        for local in ["http://127.0.0.1:9000", "http://localhost:9000/", "http://[::1]:9000"] {
            open("s3://bucket", &[endpoint(local)]).unwrap();
        }
        let far = endpoint("http://10.0.0.7:9000");
        assert!(matches!(open("s3://bucket", &[far]), Err(OpenError::Unusable { .. })));
        open("s3://bucket", &[far, ("AWS_ALLOW_HTTP", "true")]).unwrap();
    }

    #[test]
    fn secrets_are_not_shown() {
        let aws = vec![("AWS_SECRET_ACCESS_KEY".to_owned(), "hush".to_owned())];
        assert!(!format!("{:?}", Settings { aws, ..Settings::default() }).contains("hush"));
    }
}
