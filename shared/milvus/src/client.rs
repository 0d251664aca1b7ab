use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

use crate::call::{Line, Repeat};
use crate::columns::{Column, Columns};
use crate::error::MilvusError;
use crate::expression::Expression;
use crate::proto;
use crate::schema::{Field, Index, pair};
use crate::search::{Candidates, Search, candidates};

/// Most bytes of a message in either direction.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;
/// Most results that Milvus gives for one query of a search, and most rows of one query.
pub const MAX_RESULTS: usize = 16_384;
/// How long a connection attempt may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(60);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// How often Milvus is asked whether something that it does by itself is done.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Where Milvus is and how it is spoken to.
#[derive(Clone)]
pub struct Settings {
    /// `http://host:port`, or `https://host:port` with TLS.
    pub url: String,
    /// `user:password` or a key of the API, sent with every call.
    pub token: Option<String>,
    /// File in PEM with the certificates that are trusted with `https://`. Default: those of the system.
    pub ca: Option<PathBuf>,
    /// Database; empty for the default one.
    pub database: String,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("url", &self.url)
            .field("token", &self.token.as_ref().map(|_| "..."))
            .field("ca", &self.ca)
            .field("database", &self.database)
            .finish()
    }
}

/// A client. Clones share its connection, which is made when it is first used and again when it is lost.
#[derive(Debug, Clone)]
pub struct Client {
    line: Line,
    database: String,
}

/// What Milvus knows of a collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collection {
    /// Number that Milvus gave it.
    pub number: i64,
    /// Properties as they were given, and others that Milvus adds.
    pub properties: Vec<(String, String)>,
    /// Its description as it was given; not every Milvus keeps it.
    pub description: String,
}

/// Which rows a query is for.
#[derive(Debug, Clone, Copy)]
pub enum Page {
    /// All that meet the condition; for conditions that name their keys.
    All,
    /// The first of them in the order of their keys, at most so many.
    First(usize),
}

impl Client {
    /// A client of the Milvus at a URL; must be called inside a tokio runtime. Connects to nothing yet.
    ///
    /// # Errors
    /// [`MilvusError::Setting`].
    pub fn new(settings: &Settings) -> Result<Self, MilvusError> {
        let invalid = |setting, reason: String| MilvusError::Setting { setting, reason };
        let endpoint = Endpoint::from_shared(settings.url.clone())
            .map_err(|_| invalid("milvus", "write it as http://host:port or https://host:port".to_owned()))?;
        let endpoint = match endpoint.uri().scheme_str() {
            Some("http") => endpoint,
            Some("https") => {
                let tls = tls(settings).map_err(|reason| invalid("milvus-ca", reason))?;
                endpoint.tls_config(tls).map_err(|error| invalid("milvus-ca", error.to_string()))?
            }
            _ => {
                let reason = "write it as http://host:port or https://host:port".to_owned();
                return Err(invalid("milvus", reason));
            }
        };
        if endpoint.uri().host().is_none() {
            return Err(invalid("milvus", "it names no host".to_owned()));
        }
        let token = match &settings.token {
            None => None,
            Some(token) => {
                let mut value: tonic::metadata::MetadataValue<_> = STANDARD
                    .encode(token)
                    .parse()
                    .map_err(|_| invalid("milvus-token", "it cannot be sent".to_owned()))?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let channel = endpoint
            .connect_timeout(CONNECT_LIMIT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(false)
            .connect_lazy();
        Ok(Self { line: Line { channel, token }, database: settings.database.clone() })
    }

    /// Names of all collections of the database.
    ///
    /// # Errors
    /// [`MilvusError`]; so for every call.
    pub async fn collections(&self, until: Instant) -> Result<Vec<String>, MilvusError> {
        let message = proto::ShowCollectionsRequest { db_name: self.database.clone() };
        let answer: proto::ShowCollectionsResponse = self
            .line
            .call("ShowCollections", "", Repeat::May, until, message, |mut client, request| async move {
                client.show_collections(request).await
            })
            .await?;
        Ok(answer.collection_names)
    }

    /// What a collection is; `None` where there is none of that name.
    ///
    /// # Errors
    /// [`MilvusError`].
    pub async fn describe(&self, name: &str, until: Instant) -> Result<Option<Collection>, MilvusError> {
        let message = proto::DescribeCollectionRequest {
            db_name: self.database.clone(),
            collection_name: name.to_owned(),
        };
        let answer: Result<proto::DescribeCollectionResponse, _> = self
            .line
            .call("DescribeCollection", name, Repeat::May, until, message, |mut client, request| async move {
                client.describe_collection(request).await
            })
            .await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(MilvusError::UnknownCollection { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let properties = answer.properties.into_iter().map(|pair| (pair.key, pair.value)).collect();
        let description = answer.schema.map(|schema| schema.description).unwrap_or_default();
        Ok(Some(Collection { number: answer.collection_id, properties, description }))
    }

    /// Creates a collection, without an index and not in memory yet. Its description is that of its property of that name.
    ///
    /// # Errors
    /// [`MilvusError`]; how a name that is taken is refused is not said, so look for it afterwards.
    pub async fn create(
        &self,
        name: &str,
        fields: &[Field],
        property: (&str, &str),
        until: Instant,
    ) -> Result<(), MilvusError> {
        let schema = proto::CollectionSchema {
            name: name.to_owned(),
            description: property.1.to_owned(),
            fields: fields.iter().map(Field::schema).collect(),
        };
        let message = proto::CreateCollectionRequest {
            db_name: self.database.clone(),
            collection_name: name.to_owned(),
            schema: schema.encode_to_vec(),
            shards_num: 0,
            consistency_level: proto::ConsistencyLevel::Strong as i32,
            properties: vec![pair(property.0, property.1)],
        };
        let _: proto::Status = self
            .line
            .call(
                "CreateCollection",
                name,
                Repeat::MayNot,
                until,
                message,
                |mut client, request| async move { client.create_collection(request).await },
            )
            .await?;
        Ok(())
    }

    /// Sees to it that the vectors of a collection are indexed and that it is in memory. Does nothing where that is so.
    ///
    /// # Errors
    /// [`MilvusError`].
    pub async fn serve(
        &self,
        name: &str,
        field: &str,
        index: Index,
        until: Instant,
    ) -> Result<(), MilvusError> {
        if self.load_state(name, until).await? == proto::LoadState::Loaded {
            return Ok(());
        }
        let message = proto::CreateIndexRequest {
            db_name: self.database.clone(),
            collection_name: name.to_owned(),
            field_name: field.to_owned(),
            extra_params: index.parameters(),
            index_name: field.to_owned(),
        };
        let indexed: Result<proto::Status, _> = self
            .line
            .call("CreateIndex", name, Repeat::May, until, message, |mut client, request| async move {
                client.create_index(request).await
            })
            .await;
        match indexed {
            // Somebody was faster; whether the index is a sound one shows when it is loaded.
            Ok(_) | Err(MilvusError::Refused { .. }) => {}
            Err(error) => return Err(error),
        }
        let message = proto::LoadCollectionRequest {
            db_name: self.database.clone(),
            collection_name: name.to_owned(),
            // The number that the database or the cluster is set to.
            replica_number: 0,
        };
        let _: proto::Status = self
            .line
            .call("LoadCollection", name, Repeat::May, until, message, |mut client, request| async move {
                client.load_collection(request).await
            })
            .await?;
        while self.load_state(name, until).await? != proto::LoadState::Loaded {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    async fn load_state(&self, name: &str, until: Instant) -> Result<proto::LoadState, MilvusError> {
        let message =
            proto::GetLoadStateRequest { db_name: self.database.clone(), collection_name: name.to_owned() };
        let answer: proto::GetLoadStateResponse = self
            .line
            .call("GetLoadState", name, Repeat::May, until, message, |mut client, request| async move {
                client.get_load_state(request).await
            })
            .await?;
        match answer.state() {
            proto::LoadState::NotExist => Err(MilvusError::UnknownCollection { collection: name.to_owned() }),
            state => Ok(state),
        }
    }

    /// Drops a collection with all its rows; one that is not there is no error.
    ///
    /// # Errors
    /// [`MilvusError`].
    pub async fn drop_collection(&self, name: &str, until: Instant) -> Result<(), MilvusError> {
        let message =
            proto::DropCollectionRequest { db_name: self.database.clone(), collection_name: name.to_owned() };
        let dropped: Result<proto::Status, _> = self
            .line
            .call("DropCollection", name, Repeat::MayNot, until, message, |mut client, request| async move {
                client.drop_collection(request).await
            })
            .await;
        match dropped {
            Ok(_) | Err(MilvusError::UnknownCollection { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Writes rows in place of any others with their keys.
    ///
    /// # Errors
    /// [`MilvusError`]; after [`MilvusError::TimedOut`] and [`MilvusError::Unavailable`] they may have been written.
    pub async fn upsert(
        &self,
        name: &str,
        rows: usize,
        columns: Vec<Column>,
        until: Instant,
    ) -> Result<(), MilvusError> {
        const OPERATION: &str = "Upsert";
        let message = proto::UpsertRequest {
            db_name: self.database.clone(),
            collection_name: name.to_owned(),
            fields_data: columns.into_iter().map(Column::data).collect(),
            num_rows: rows as u32,
        };
        // The same rows under the same keys: twice is once.
        let answer: proto::MutationResult = self
            .line
            .call(OPERATION, name, Repeat::May, until, message, |mut client, request| async move {
                client.upsert(request).await
            })
            .await?;
        if answer.err_index.is_empty() {
            return Ok(());
        }
        let reason = format!("{} of {rows} rows refused", answer.err_index.len());
        Err(MilvusError::Answer { operation: OPERATION, reason })
    }

    /// Deletes the rows that meet a condition, which must name their keys.
    ///
    /// # Errors
    /// [`MilvusError`]; they may be gone nevertheless, as with [`Self::upsert`].
    pub async fn delete(&self, name: &str, which: &Expression, until: Instant) -> Result<(), MilvusError> {
        let message = proto::DeleteRequest {
            db_name: self.database.clone(),
            collection_name: name.to_owned(),
            expr: which.as_str().to_owned(),
            consistency_level: proto::ConsistencyLevel::Strong as i32,
        };
        let _: proto::MutationResult = self
            .line
            .call("Delete", name, Repeat::May, until, message, |mut client, request| async move {
                client.delete(request).await
            })
            .await?;
        Ok(())
    }

    /// Fields of the rows that meet a condition.
    ///
    /// # Errors
    /// [`MilvusError`].
    pub async fn query(
        &self,
        name: &str,
        which: &Expression,
        page: Page,
        fields: &[&str],
        until: Instant,
    ) -> Result<Columns, MilvusError> {
        const OPERATION: &str = "Query";
        let params = match page {
            Page::All => Vec::new(),
            Page::First(rows) => vec![
                pair("limit", &rows.to_string()),
                // What the SDKs send when they go through a collection by its keys.
                pair("iterator", "True"),
                pair("reduce_stop_for_best", "True"),
            ],
        };
        let answer = self.ask(OPERATION, name, which, params, fields, until).await?;
        Columns::read(OPERATION, answer.fields_data, None)
    }

    /// How many rows meet a condition.
    ///
    /// # Errors
    /// [`MilvusError`].
    pub async fn count(&self, name: &str, which: &Expression, until: Instant) -> Result<u64, MilvusError> {
        const OPERATION: &str = "Query";
        const COUNT: &str = "count(*)";
        let answer = self.ask(OPERATION, name, which, Vec::new(), &[COUNT], until).await?;
        let counts = Columns::read(OPERATION, answer.fields_data, None)?.numbers(COUNT)?;
        let count = counts.first().and_then(|count| u64::try_from(*count).ok());
        let wrong = || MilvusError::Answer { operation: OPERATION, reason: format!("{counts:?} as a count") };
        count.ok_or_else(wrong)
    }

    async fn ask(
        &self,
        operation: &'static str,
        name: &str,
        which: &Expression,
        query_params: Vec<proto::KeyValuePair>,
        fields: &[&str],
        until: Instant,
    ) -> Result<proto::QueryResults, MilvusError> {
        let message = proto::QueryRequest {
            db_name: self.database.clone(),
            collection_name: name.to_owned(),
            expr: which.as_str().to_owned(),
            output_fields: fields.iter().map(|field| (*field).to_owned()).collect(),
            guarantee_timestamp: 0,
            query_params,
            consistency_level: proto::ConsistencyLevel::Strong as i32,
        };
        self.line
            .call(operation, name, Repeat::May, until, message, |mut client, request| async move {
                client.query(request).await
            })
            .await
    }

    /// Candidates for each query, best first.
    ///
    /// # Errors
    /// [`MilvusError`].
    pub async fn search(
        &self,
        name: &str,
        search: Search<'_>,
        until: Instant,
    ) -> Result<Vec<Candidates>, MilvusError> {
        const OPERATION: &str = "Search";
        let rows = search.queries.len() / search.dimension.max(1);
        let message = search.message(&self.database, name);
        let answer: proto::SearchResults = self
            .line
            .call(OPERATION, name, Repeat::May, until, message, |mut client, request| async move {
                client.search(request).await
            })
            .await?;
        candidates(answer.results.unwrap_or_default(), rows)
            .map_err(|reason| MilvusError::Answer { operation: OPERATION, reason })
    }

    /// Has everything that a collection holds in memory written.
    ///
    /// # Errors
    /// [`MilvusError`].
    pub async fn flush(&self, name: &str, until: Instant) -> Result<(), MilvusError> {
        let message =
            proto::FlushRequest { db_name: self.database.clone(), collection_names: vec![name.to_owned()] };
        let _: proto::FlushResponse = self
            .line
            .call("Flush", name, Repeat::May, until, message, |mut client, request| async move {
                client.flush(request).await
            })
            .await?;
        Ok(())
    }

    /// Has a collection written anew without the rows that were deleted or replaced, and waits for it.
    ///
    /// # Errors
    /// [`MilvusError`].
    pub async fn compact(&self, name: &str, number: i64, until: Instant) -> Result<(), MilvusError> {
        let message = proto::ManualCompactionRequest {
            collection_id: number,
            collection_name: name.to_owned(),
            db_name: self.database.clone(),
        };
        let started: proto::ManualCompactionResponse = self
            .line
            .call("ManualCompaction", name, Repeat::May, until, message, |mut client, request| async move {
                client.manual_compaction(request).await
            })
            .await?;
        loop {
            let message = proto::GetCompactionStateRequest { compaction_id: started.compaction_id };
            let answer: proto::GetCompactionStateResponse = self
                .line
                .call(
                    "GetCompactionState",
                    name,
                    Repeat::May,
                    until,
                    message,
                    |mut client, request| async move { client.get_compaction_state(request).await },
                )
                .await?;
            if answer.state() == proto::CompactionState::Completed {
                return Ok(());
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}

fn tls(settings: &Settings) -> Result<ClientTlsConfig, String> {
    let certificates = match &settings.ca {
        Some(file) => {
            let pem =
                std::fs::read_to_string(file).map_err(|cause| format!("{}: {cause}", file.display()))?;
            if !pem.contains("-----BEGIN CERTIFICATE-----") {
                return Err(format!("{} holds no certificate in PEM", file.display()));
            }
            vec![Certificate::from_pem(pem)]
        }
        None => rustls_native_certs::load_native_certs().certs.iter().map(|der| pem(der)).collect(),
    };
    if certificates.is_empty() {
        return Err("the system has no certificates; install ca-certificates or name a file".to_owned());
    }
    Ok(ClientTlsConfig::new().ca_certificates(certificates))
}

fn pem(der: &[u8]) -> Certificate {
    let body = STANDARD.encode(der);
    let lines: Vec<&str> =
        (0..body.len()).step_by(64).map(|at| &body[at..(at + 64).min(body.len())]).collect();
    let text = format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"));
    Certificate::from_pem(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_of_another_kind_is_refused() {
        for url in ["", "milvus:19530", "ftp://milvus:19530", "http://"] {
            let settings = Settings { url: url.to_owned(), token: None, ca: None, database: String::new() };
            assert!(matches!(Client::new(&settings), Err(MilvusError::Setting { .. })), "{url}");
        }
    }

    #[tokio::test]
    async fn a_server_that_says_nothing_is_not_waited_for_beyond_the_limit() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", silent.local_addr().unwrap());
        let client = Client::new(&Settings { url, token: None, ca: None, database: String::new() }).unwrap();
        let until = Instant::now() + Duration::from_millis(50);
        assert!(matches!(client.collections(until).await, Err(MilvusError::TimedOut { .. })));
    }
}
