use std::sync::Arc;
use std::time::Duration;

use object_store::client::{HttpClient, HttpConnector};
use object_store::{ClientConfigKey, ClientOptions};
use reqwest::redirect::Policy;

use crate::error::one_line;

/// How long one request may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(60);
/// How long a connection attempt may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Makes the HTTP client of a bucket: encrypted by the same library as everything else here.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Transport;

impl HttpConnector for Transport {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let plain =
            options.get_config_value(&ClientConfigKey::AllowHttp).is_some_and(|value| value == "true");
        client(plain)
            .map(HttpClient::new)
            .map_err(|reason| object_store::Error::Generic { store: "S3", source: reason.into() })
    }
}

fn client(plain: bool) -> Result<reqwest::Client, String> {
    // Images of people go to the server that was named and nowhere else: no proxy, no redirect.
    reqwest::Client::builder()
        .no_proxy()
        .redirect(Policy::none())
        .https_only(!plain)
        .connect_timeout(CONNECT_LIMIT)
        .timeout(REQUEST_LIMIT)
        .tls_backend_preconfigured(tls(!plain)?)
        .build()
        .map_err(|error| one_line(&error))
}

/// Encryption with the certificates that the system trusts (`SSL_CERT_FILE` and `SSL_CERT_DIR` name others); without any
/// where it may be done `without`.
fn tls(needed: bool) -> Result<rustls::ClientConfig, String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if needed && roots.is_empty() {
        return Err("the system has no certificates; install ca-certificates".to_owned());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}
