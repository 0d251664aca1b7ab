//! One request to the hub: redirects, the token, and which failures may be tried again.

use std::sync::Arc;
use std::time::Duration;

use ureq::http::{HeaderMap, Response, StatusCode, header};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use crate::url::Address;
use crate::{HubError, Settings};

/// Most redirects from one request; the hub needs one or two.
const MAX_REDIRECTS: usize = 8;
/// Longest JSON answer.
const MAX_ANSWER_BYTES: u64 = 16 << 20;
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long the answer to a question of the API may take, all in all.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
const USER_AGENT: &str = concat!("thicket/", env!("CARGO_PKG_VERSION"));

/// A failure of one attempt.
#[derive(Debug)]
pub(crate) enum Attempt {
    /// Another attempt may work.
    Retry { reason: String, after: Option<Duration> },
    /// Another attempt would fail alike.
    Fatal(HubError),
}

impl From<HubError> for Attempt {
    fn from(error: HubError) -> Self {
        Self::Fatal(error)
    }
}

/// An answer with a body.
#[derive(Debug)]
pub(crate) struct Answer {
    /// What the endpoint itself said, before any redirect to another host.
    pub(crate) first: HeaderMap,
    pub(crate) response: Response<Body>,
}

/// The connection to one endpoint.
#[derive(Debug)]
pub(crate) struct Client {
    agent: Agent,
    endpoint: Address,
    settings: Settings,
}

impl Client {
    /// # Errors
    /// [`HubError::Setting`] for an endpoint that is no address, or where the system has no certificates to check an
    /// encrypted one with.
    pub(crate) fn new(settings: Settings) -> Result<Self, HubError> {
        let refuse = |reason| HubError::Setting { name: "HF_ENDPOINT".to_owned(), reason };
        let endpoint = Address::endpoint(&settings.endpoint).map_err(refuse)?;
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(USER_AGENT)
            .accept_encoding("identity")
            .timeout_connect(Some(CONNECT_LIMIT))
            .timeout_per_read(Some(settings.idle))
            .timeout_per_write(Some(settings.idle));
        if endpoint.is_loopback() {
            // A proxy has a loopback of its own.
            config = config.proxy(None);
        }
        if endpoint.as_str().starts_with("https") {
            config = config.tls_config(tls()?);
        }
        Ok(Self { agent: config.build().into(), endpoint, settings })
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The address of `path`, which begins with a slash, at the endpoint.
    pub(crate) fn address(&self, path: &str) -> Result<Address, HubError> {
        let text = format!("{}{path}", self.settings.endpoint);
        Address::parse(&text).map_err(|reason| HubError::Answer { url: text, reason })
    }

    /// Asks for `address` and follows redirects. The token goes along as long as the endpoint itself is asked.
    ///
    /// Answers with another status than a redirect, an overload or a fault of the server are returned as they are.
    pub(crate) fn get(&self, address: &Address, range_from: Option<u64>) -> Result<Answer, Attempt> {
        let mut address = address.clone();
        let mut first = None;
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send(&address, range_from)?;
            let headers = first.get_or_insert_with(|| response.headers().clone());
            let status = response.status();
            if !status.is_redirection() {
                let retry = matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
                if retry || status.is_server_error() {
                    let reason = format!("{} answers {}", address.host_and_port(), status.as_u16());
                    return Err(Attempt::Retry { reason, after: retry_after(response.headers()) });
                }
                return Ok(Answer { first: headers.clone(), response });
            }
            address = self.redirected(&address, &response)?;
        }
        let reason = format!("more than {MAX_REDIRECTS} redirects");
        Err(Attempt::Fatal(HubError::Answer { url: address.shown().to_owned(), reason }))
    }

    /// Asks a question of the API and returns the whole answer, whatever its status.
    pub(crate) fn ask(&self, address: &Address) -> Result<(StatusCode, HeaderMap, Vec<u8>), HubError> {
        self.with_retries(address, || {
            let answer = self.get(address, None)?;
            let (parts, body) = answer.response.into_parts();
            let bytes =
                body.into_with_config().limit(MAX_ANSWER_BYTES).read_to_vec().map_err(
                    |error| match error {
                        ureq::Error::BodyExceedsLimit(limit) => Attempt::Fatal(HubError::Answer {
                            url: address.shown().to_owned(),
                            reason: format!("the answer is longer than {limit} bytes"),
                        }),
                        error => Attempt::Retry { reason: cause(&error), after: None },
                    },
                )?;
            Ok((parts.status, parts.headers, bytes))
        })
    }

    fn with_retries<T>(
        &self,
        address: &Address,
        mut attempt: impl FnMut() -> Result<T, Attempt>,
    ) -> Result<T, HubError> {
        let retry = self.settings.retry;
        let mut failures = 0;
        loop {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(Attempt::Fatal(error)) => return Err(error),
                Err(Attempt::Retry { reason, after }) => {
                    failures += 1;
                    if failures >= retry.attempts {
                        return Err(unreachable(address, reason, failures));
                    }
                    std::thread::sleep(retry.pause(failures, after));
                }
            }
        }
    }

    fn send(&self, address: &Address, range_from: Option<u64>) -> Result<Response<Body>, Attempt> {
        let mut request = self.agent.get(address.as_str());
        if let Some(token) = self.settings.token.as_ref().filter(|_| address.same_origin(&self.endpoint)) {
            request = request.header(header::AUTHORIZATION, token.header());
        }
        if let Some(first) = range_from {
            request = request.header(header::RANGE, format!("bytes={first}-"));
        }
        let request = request.config().timeout_recv_response(Some(ANSWER_LIMIT)).build();
        request.call().map_err(|error| {
            let host = address.host_and_port();
            let reason = match &error {
                ureq::Error::Io(error) => cause(error),
                error => cause(error),
            };
            if is_final(&error) {
                return Attempt::Fatal(unreachable(address, reason, 1));
            }
            Attempt::Retry { reason: format!("{host}: {reason}"), after: None }
        })
    }

    fn redirected(&self, from: &Address, response: &Response<Body>) -> Result<Address, HubError> {
        let refuse = |reason: String| HubError::Answer { url: from.shown().to_owned(), reason };
        let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
        let location = location.ok_or_else(|| refuse("a redirect says not where to".to_owned()))?;
        from.follow(location).map_err(refuse)
    }
}

/// Whether trying again cannot help: no certificate becomes good by it.
fn is_final(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::Rustls(_) | ureq::Error::Tls(_) | ureq::Error::BadUri(_) => true,
        ureq::Error::Io(error) => matches!(
            error.get_ref().and_then(|cause| cause.downcast_ref()),
            Some(rustls::Error::InvalidCertificate(_))
        ),
        _ => false,
    }
}

pub(crate) fn unreachable(address: &Address, reason: String, attempts: u32) -> HubError {
    let host = address.host_and_port();
    let reason = reason.strip_prefix(&format!("{host}: ")).map(str::to_owned).unwrap_or(reason);
    HubError::Unreachable { host, reason, attempts }
}

/// An error as one line.
pub(crate) fn cause(error: &dyn std::error::Error) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// Encryption with the certificates that the system trusts, so that a company's own authority works as elsewhere
/// (`SSL_CERT_FILE` and `SSL_CERT_DIR` name others).
fn tls() -> Result<TlsConfig, HubError> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let reason = match found.errors.first() {
            Some(error) => format!("the system's certificates cannot be read: {}", cause(error)),
            None => "the system has no certificates; install ca-certificates".to_owned(),
        };
        return Err(HubError::Setting { name: "SSL_CERT_FILE".to_owned(), reason });
    }
    let roots: Vec<Certificate<'static>> =
        found.certs.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect();
    Ok(TlsConfig::builder()
        .root_certs(RootCerts::from(roots))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build())
}
