use std::sync::Arc;
use std::time::Duration;

use reqwest::header::RETRY_AFTER;
use reqwest::redirect::Policy;
use reqwest::{RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;

use crate::Server;
use crate::wire::{ChatRequest, ChatResponse, ListedModel, ModelList};

/// Longest answer of a server that is read.
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// Most of a server's explanation that is passed on.
const MAX_REASON: usize = 300;
/// Longest pause that a server may ask for.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// Why a server gave no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ServerError {
    /// It could not be reached, broke off, or was overloaded every time.
    #[error("{url} gave no answer in {attempts} attempts: {reason}")]
    Unavailable {
        /// What was asked.
        url: String,
        /// Attempts made.
        attempts: u32,
        /// What happened at the last.
        reason: String,
    },
    /// It refused the request.
    #[error("{url} answers {status}: {reason}")]
    Refused {
        /// What was asked.
        url: String,
        /// The HTTP status.
        status: u16,
        /// Its own words, shortened.
        reason: String,
    },
    /// The answer is not one of the interface.
    #[error("{url} gave an answer that is not understood: {reason}")]
    Answer {
        /// What was asked.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The model that is asked for is not served.
    #[error("{url} serves {served}, not {wanted}")]
    Model {
        /// What was asked.
        url: String,
        /// The models there.
        served: String,
        /// What was looked for.
        wanted: String,
    },
    /// Nothing can be sent from here.
    #[error("no connection can be made from here: {reason}")]
    Local {
        /// Why not.
        reason: String,
    },
}

/// What came of one attempt.
enum Attempt {
    Retry { reason: String, after: Option<Duration> },
    Fatal(ServerError),
}

/// The way to one server.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    server: Arc<Server>,
}

impl Client {
    /// Opens no connection yet.
    pub(crate) fn new(server: Server) -> Result<Self, ServerError> {
        let local = |reason: String| ServerError::Local { reason };
        // Images of people and the key go to the server that was named and nowhere else: no proxy, no redirect.
        let encrypted = server.url.scheme() == "https";
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(Policy::none())
            .connect_timeout(server.connect_limit)
            .timeout(server.answer_limit)
            .tls_backend_preconfigured(tls(encrypted).map_err(local)?)
            .build()
            .map_err(|error| local(one_line(&error)))?;
        Ok(Self { http, server: Arc::new(server) })
    }

    pub(crate) fn server(&self) -> &Server {
        &self.server
    }

    /// The model to ask: the one that is named, or else the only one that is served.
    pub(crate) async fn model(&self) -> Result<ListedModel, ServerError> {
        let url = self.server.address("models");
        let list: ModelList = self.call(&url, |http| http.get(&url)).await?;
        let served = || match list.data.as_slice() {
            [] => "no model".to_owned(),
            models => models.iter().map(|model| model.id.as_str()).collect::<Vec<_>>().join(", "),
        };
        let wanted = self.server.model.as_deref();
        let chosen = match (wanted, list.data.as_slice()) {
            (None, [only]) => Some(only),
            (None, _) => None,
            (Some(name), models) => models.iter().find(|model| model.id == name),
        };
        let Some(ListedModel { id, max_model_len }) = chosen else {
            let wanted = wanted.unwrap_or("one model: name one").to_owned();
            return Err(ServerError::Model { url, served: served(), wanted });
        };
        Ok(ListedModel { id: id.clone(), max_model_len: *max_model_len })
    }

    /// Has a question answered.
    pub(crate) async fn chat(&self, request: &ChatRequest) -> Result<ChatResponse, ServerError> {
        let url = self.server.address("chat/completions");
        self.call(&url, |http| http.post(&url).json(request)).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        url: &str,
        request: impl Fn(&reqwest::Client) -> RequestBuilder,
    ) -> Result<T, ServerError> {
        let mut pause = self.server.first_pause;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let request = request(&self.http);
            let request = match self.server.key() {
                Some(key) => request.bearer_auth(key),
                None => request,
            };
            let (reason, after) = match read(url, request).await {
                Ok(value) => return Ok(value),
                Err(Attempt::Fatal(error)) => return Err(error),
                Err(Attempt::Retry { reason, after }) => (reason, after),
            };
            if attempts >= self.server.attempts {
                return Err(ServerError::Unavailable { url: url.to_owned(), attempts, reason });
            }
            tokio::time::sleep(after.unwrap_or(pause).min(MAX_PAUSE)).await;
            pause *= 2;
        }
    }
}

async fn read<T: DeserializeOwned>(url: &str, request: RequestBuilder) -> Result<T, Attempt> {
    let retry = |error: reqwest::Error| Attempt::Retry { reason: one_line(&error), after: None };
    let response = request.send().await.map_err(retry)?;
    let (status, after) = (response.status(), retry_after(&response));
    let body = body(url, response).await?;
    if status.is_success() {
        return serde_json::from_slice(&body).map_err(|error| {
            Attempt::Fatal(ServerError::Answer { url: url.to_owned(), reason: error.to_string() })
        });
    }
    let reason = explanation(&body);
    if matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
        || status.is_server_error()
    {
        return Err(Attempt::Retry { reason: format!("{}: {reason}", status.as_u16()), after });
    }
    Err(Attempt::Fatal(ServerError::Refused { url: url.to_owned(), status: status.as_u16(), reason }))
}

async fn body(url: &str, mut response: Response) -> Result<Vec<u8>, Attempt> {
    let mut bytes = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
            Ok(None) => return Ok(bytes),
            Err(error) => return Err(Attempt::Retry { reason: one_line(&error), after: None }),
        }
        if bytes.len() > MAX_ANSWER_BYTES {
            let reason = format!("it is longer than {MAX_ANSWER_BYTES} bytes");
            return Err(Attempt::Fatal(ServerError::Answer { url: url.to_owned(), reason }));
        }
    }
}

fn retry_after(response: &Response) -> Option<Duration> {
    response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// What a server says of a refusal, as one short line.
fn explanation(body: &[u8]) -> String {
    let parsed: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let message = parsed.as_ref().and_then(|value| {
        let found = [value.pointer("/error/message"), value.pointer("/message"), value.pointer("/detail")];
        found.into_iter().flatten().find_map(serde_json::Value::as_str)
    });
    let text = message.map_or_else(|| String::from_utf8_lossy(body).into_owned(), str::to_owned);
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.is_empty() { "without a word".to_owned() } else { line.chars().take(MAX_REASON).collect() }
}

/// An error and its causes as one line.
fn one_line(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        line += &format!(": {inner}");
        cause = inner.source();
    }
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Encryption with the certificates that the system trusts (`SSL_CERT_FILE` and `SSL_CERT_DIR` name others); with none where
/// nothing is `encrypted`.
fn tls(encrypted: bool) -> Result<rustls::ClientConfig, String> {
    let mut roots = rustls::RootCertStore::empty();
    if encrypted {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    if encrypted && roots.is_empty() {
        return Err("the system has no certificates; install ca-certificates".to_owned());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_explained_in_the_servers_words() {
        for (body, line) in [
            (r#"{"error": {"message": "too\n long"}}"#, "too long"),
            (r#"{"detail": "no such field"}"#, "no such field"),
            ("<html>Bad Gateway</html>", "<html>Bad Gateway</html>"),
            ("", "without a word"),
        ] {
            assert_eq!(explanation(body.as_bytes()), line);
        }
        assert_eq!(explanation("x".repeat(5000).as_bytes()).len(), MAX_REASON);
    }
}
