use std::time::Duration;

use etcd_client::{GetOptions, GetResponse, Txn, TxnResponse};
use thicket_discovery::EtcdConfig;
use thicket_discovery::etcd::{Dialer, Session, SessionError};
use tokio::sync::Mutex;

use crate::StoreError;

/// The session that calls share, and the next where it fails.
#[derive(Debug)]
pub(super) struct Link {
    endpoints: usize,
    dialer: Mutex<Dialer>,
    session: parking_lot::Mutex<Option<Session>>,
}

impl Link {
    pub(super) fn new(config: EtcdConfig) -> Self {
        let (endpoints, limit): (usize, Duration) = (config.endpoints.len(), config.timing.request);
        Self {
            endpoints,
            dialer: Mutex::new(Dialer::new(config, limit)),
            session: parking_lot::Mutex::new(None),
        }
    }

    /// Reads keys.
    pub(super) async fn get(
        &self,
        what: &'static str,
        key: impl Into<Vec<u8>>,
        options: GetOptions,
    ) -> Result<GetResponse, StoreError> {
        let key = key.into();
        self.with(|session| {
            let (key, options) = (key.clone(), options.clone());
            async move {
                let mut client = session.client.kv_client();
                session.answer(what, client.get(key, Some(options))).await
            }
        })
        .await
    }

    /// Makes a transaction that may be made twice.
    pub(super) async fn txn(&self, what: &'static str, txn: Txn) -> Result<TxnResponse, StoreError> {
        self.with(|session| {
            let txn = txn.clone();
            async move {
                let mut client = session.client.kv_client();
                session.answer(what, client.txn(txn)).await
            }
        })
        .await
    }

    /// Makes a call on every endpoint in turn until one answers.
    async fn with<T, F>(&self, call: impl Fn(Session) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, SessionError>>,
    {
        let mut reason = "etcd has no address".to_owned();
        // The session at hand may be of an endpoint that has gone; then each is tried once.
        for _ in 0..=self.endpoints {
            let session = match self.session().await {
                Ok(session) => session,
                Err(error) => {
                    reason = error.to_string();
                    continue;
                }
            };
            match call(session.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    reason = error.to_string();
                    self.forget(&session);
                }
            }
        }
        Err(StoreError::Unavailable { reason })
    }

    async fn session(&self) -> Result<Session, SessionError> {
        let at_hand = self.session.lock().clone();
        if let Some(session) = at_hand {
            return Ok(session);
        }
        let mut dialer = self.dialer.lock().await;
        // Somebody else may have dialled meanwhile.
        let at_hand = self.session.lock().clone();
        if let Some(session) = at_hand {
            return Ok(session);
        }
        let session = dialer.dial().await?;
        *self.session.lock() = Some(session.clone());
        Ok(session)
    }

    /// Does not use a session any more, unless there is another already.
    fn forget(&self, failed: &Session) {
        let mut session = self.session.lock();
        if session.as_ref().is_some_and(|session| session.endpoint == failed.endpoint) {
            *session = None;
        }
    }
}
