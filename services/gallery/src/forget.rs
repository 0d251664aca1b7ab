//! Has the answer services forget what they keep of images that no item shows any more.
//!
//! The images are noted together with the deletion that took their last item, and stay noted until every answer service that
//! is known has forgotten them: a crash of this process, or of theirs, loses no request.

use std::sync::Arc;
use std::time::Duration;

use thicket_discovery::{Address, Directory, EtcdConfig, Source, StaticPeer};
use thicket_proto::v1::ForgetImagesRequest;
use thicket_proto::v1::answer_service_client::AnswerServiceClient;
use thicket_runtime::{Deadline, Failure, MAX_MESSAGE_BYTES, Peer, Role, request_by};

use crate::backend::Backend;
use crate::record::ImageHash;

/// Images named in one call, the most that an answer service takes.
pub(crate) const IMAGES_AT_ONCE: usize = 10_000;
/// How often it is looked whether there is something to forget. An answer service rewrites its file with each call.
const INTERVAL: Duration = Duration::from_secs(2);
/// Longest pause after a failure; the first is [`INTERVAL`], and each doubles.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long an answer service may take to rewrite its file.
const CALL_LIMIT: Duration = Duration::from_secs(600);

/// Who is to forget.
#[derive(Debug, Clone)]
pub struct ForgetConfig {
    /// Where the answer services are.
    pub answers: Answers,
    /// Bearer token with the right `write`; `None` sends none.
    pub token: Option<String>,
}

/// Where answer services are.
#[derive(Debug, Clone)]
pub enum Answers {
    /// At these addresses; every address of a host name is one.
    At(Vec<Address>),
    /// Those that are registered in etcd.
    Registered(Box<EtcdConfig>),
}

/// Tells answer services, again and again until they have done it.
#[derive(Debug)]
pub(crate) struct Forgetter {
    backend: Arc<dyn Backend>,
    directory: Directory,
    token: Option<String>,
}

impl Forgetter {
    /// Follows the answer services; tells nobody anything yet.
    pub(crate) fn new(backend: Arc<dyn Backend>, config: ForgetConfig) -> Result<Self, Failure> {
        let source = match config.answers {
            Answers::At(addresses) => Source::Static(
                addresses
                    .into_iter()
                    .map(|address| StaticPeer { role: Role::Answer, address, writable: true })
                    .collect(),
            ),
            Answers::Registered(etcd) => Source::Etcd(etcd),
        };
        let directory = Directory::start(source).map_err(|error| Failure::Failed(error.to_string()))?;
        Ok(Self { backend, directory, token: config.token })
    }

    /// Works until it is dropped.
    pub(crate) async fn run(self) {
        let mut pause = INTERVAL;
        loop {
            tokio::time::sleep(pause).await;
            pause = match self.round().await {
                Ok(()) => INTERVAL,
                Err(reason) => {
                    tracing::warn!(reason, "answers about images that are gone are not forgotten yet");
                    (2 * pause).min(LONGEST_PAUSE)
                }
            };
        }
    }

    /// Has everything that is noted forgotten.
    async fn round(&self) -> Result<(), String> {
        loop {
            let writes = self.backend.writes();
            let images = writes.pending_forgets(IMAGES_AT_ONCE).await.map_err(|error| error.to_string())?;
            if images.is_empty() {
                return Ok(());
            }
            self.tell_all(&images).await?;
            writes.forgotten(images).await.map_err(|error| error.to_string())?;
        }
    }

    async fn tell_all(&self, images: &[ImageHash]) -> Result<(), String> {
        let members = self.directory.members();
        let answers = members.of(Role::Answer);
        if answers.is_empty() {
            return Err("no answer service is known".to_owned());
        }
        for member in answers {
            let forgotten = self.tell(&member.address, images).await;
            let answers = forgotten.map_err(|reason| format!("{}: {reason}", member.address))?;
            tracing::info!(at = %member.address, images = images.len(), answers, "answers were forgotten");
        }
        Ok(())
    }

    async fn tell(&self, address: &Address, images: &[ImageHash]) -> Result<u64, String> {
        let peer =
            Peer::lazy(&address.to_string(), self.token.as_deref()).map_err(|error| error.to_string())?;
        let mut client = AnswerServiceClient::new(peer)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let image_hashes = images.iter().map(ToString::to_string).collect();
        let request = request_by(ForgetImagesRequest { image_hashes }, Deadline::after(CALL_LIMIT));
        let response = client.forget_images(request).await.map_err(|status| status.message().to_owned())?;
        Ok(response.into_inner().answers)
    }
}
