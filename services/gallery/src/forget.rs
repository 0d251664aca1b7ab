//! Has answer services forget what they keep of images that no item shows any more, and coordinators what the results of
//! jobs keep.
//!
//! The images are noted together with the deletion that took their last item, and stay noted until everyone who is known has
//! forgotten them: a crash of this process, or of theirs, loses no request.

use std::sync::Arc;
use std::time::Duration;

use thicket_discovery::{Address, Directory, EtcdConfig, Members, Source, StaticPeer};
use thicket_proto::v1::answer_service_client::AnswerServiceClient;
use thicket_proto::v1::job_service_client::JobServiceClient;
use thicket_proto::v1::{ForgetImagesRequest, ForgetJobImagesRequest};
use thicket_runtime::{Deadline, Fault, MAX_MESSAGE_BYTES, Peer, Role, request_by};
use tokio::sync::watch;

use crate::backend::Backend;
use crate::record::ImageHash;

/// Images named in one call, the most that either takes.
pub(crate) const IMAGES_AT_ONCE: usize = 10_000;
/// How often it is looked whether there is something to forget. An answer service rewrites its file with each call.
const INTERVAL: Duration = Duration::from_secs(2);
/// Longest pause after a failure; the first is [`INTERVAL`], and each doubles.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long one of them may take to rewrite what it has.
const CALL_LIMIT: Duration = Duration::from_secs(600);

/// Who is to forget.
#[derive(Debug, Clone)]
pub struct ForgetConfig {
    /// Where they are.
    pub told: Told,
    /// Bearer token with the right `write` on every collection; `None` sends none.
    pub token: Option<String>,
}

/// Where those are who forget: answer services and coordinators.
#[derive(Debug, Clone)]
pub enum Told {
    /// At these addresses, once there are any; every address of a host name is one.
    At(watch::Receiver<Vec<StaticPeer>>),
    /// Those that are registered in etcd, at least one of either.
    Registered(Box<EtcdConfig>),
}

impl Told {
    /// Answer services and coordinators at these addresses.
    pub fn at(answers: &[Address], coordinators: &[Address]) -> Self {
        Self::At(watch::Sender::new(Self::peers(answers, coordinators)).subscribe())
    }

    /// Nobody yet: the gallery is told who by the sender, as where they start after it.
    pub fn later() -> (watch::Sender<Vec<StaticPeer>>, Self) {
        let (sender, told) = watch::channel(Vec::new());
        (sender, Self::At(told))
    }

    /// Answer services and coordinators as peers.
    pub fn peers(answers: &[Address], coordinators: &[Address]) -> Vec<StaticPeer> {
        let peer =
            |role| move |address: &Address| StaticPeer { role, address: address.clone(), writable: true };
        let answers = answers.iter().map(peer(Role::Answer));
        answers.chain(coordinators.iter().map(peer(Role::Coordinator))).collect()
    }
}

/// Tells everyone, again and again until they have done it.
#[derive(Debug)]
pub(crate) struct Forgetter {
    backend: Arc<dyn Backend>,
    told: Told,
    token: Option<String>,
}

impl Forgetter {
    /// Tells nobody anything yet.
    pub(crate) fn new(backend: Arc<dyn Backend>, config: ForgetConfig) -> Self {
        Self { backend, told: config.told, token: config.token }
    }

    /// Works until it is dropped.
    pub(crate) async fn run(mut self) {
        let (source, wanted) = match &mut self.told {
            Told::At(peers) => match peers.wait_for(|peers| !peers.is_empty()).await {
                Ok(peers) => (Source::Static(peers.clone()), Vec::new()),
                // Nobody will ever be named.
                Err(_) => return,
            },
            Told::Registered(etcd) => (Source::Etcd(etcd.clone()), vec![Role::Answer, Role::Coordinator]),
        };
        let directory = match Directory::start(source) {
            Ok(directory) => directory,
            Err(error) => {
                tracing::error!(%error, "nobody can be told of images that are gone");
                return;
            }
        };
        let mut pause = INTERVAL;
        loop {
            tokio::time::sleep(pause).await;
            pause = match self.round(&directory, &wanted).await {
                Ok(()) => INTERVAL,
                Err(reason) => {
                    tracing::warn!(reason, "what is kept of images that are gone is not forgotten yet");
                    (2 * pause).min(LONGEST_PAUSE)
                }
            };
        }
    }

    /// Has everything that is noted forgotten, by at least one of each role that is `wanted`.
    async fn round(&self, directory: &Directory, wanted: &[Role]) -> Result<(), String> {
        loop {
            let writes = self.backend.writes();
            let images = writes.pending_forgets(IMAGES_AT_ONCE).await.map_err(|error| error.to_string())?;
            if images.is_empty() {
                return Ok(());
            }
            self.tell_all(&directory.members(), wanted, &images).await?;
            writes.forgotten(images).await.map_err(|error| error.to_string())?;
        }
    }

    async fn tell_all(&self, members: &Members, wanted: &[Role], images: &[ImageHash]) -> Result<(), String> {
        if let Some(role) = wanted.iter().find(|role| members.of(**role).is_empty()) {
            return Err(format!("no {role} role is known"));
        }
        let told: Vec<_> = members.of(Role::Answer).iter().chain(members.of(Role::Coordinator)).collect();
        if told.is_empty() {
            return Err("nobody is known who is to forget".to_owned());
        }
        for member in told {
            let forgotten = match member.role {
                Role::Coordinator => self.tell_coordinator(&member.address, images).await,
                _ => self.tell_answers(&member.address, images).await,
            };
            let forgotten = forgotten.map_err(|reason| format!("{}: {reason}", member.address))?;
            tracing::info!(role = %member.role, at = %member.address, images = images.len(), forgotten, "images were forgotten");
        }
        Ok(())
    }

    async fn tell_answers(&self, address: &Address, images: &[ImageHash]) -> Result<u64, String> {
        let mut client = AnswerServiceClient::new(self.peer(address)?)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let request = ForgetImagesRequest { image_hashes: hashes(images) };
        let response = client.forget_images(request_by(request, Deadline::after(CALL_LIMIT))).await;
        response.map(|response| response.into_inner().answers).map_err(|status| status.message().to_owned())
    }

    async fn tell_coordinator(&self, address: &Address, images: &[ImageHash]) -> Result<u64, String> {
        let mut client = JobServiceClient::new(self.peer(address)?)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let request = ForgetJobImagesRequest { image_hashes: hashes(images) };
        match client.forget_job_images(request_by(request, Deadline::after(CALL_LIMIT))).await {
            Ok(response) => Ok(response.into_inner().results),
            // It keeps no jobs, so there is nothing to forget.
            Err(status) if Fault::from_status(&status).reason() == "JOBS_OFF" => Ok(0),
            Err(status) => Err(status.message().to_owned()),
        }
    }

    fn peer(&self, address: &Address) -> Result<Peer, String> {
        Peer::lazy(&address.to_string(), self.token.as_deref()).map_err(|error| error.to_string())
    }
}

fn hashes(images: &[ImageHash]) -> Vec<String> {
    images.iter().map(ToString::to_string).collect()
}
