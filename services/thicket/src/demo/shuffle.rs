//! The control: an answer service in front of the real one that answers about somebody else.
//!
//! Every query is given another one by a seeded permutation without fixed points. What is asked about a query's k-th
//! candidate is answered by the real model about the other query and its k-th candidate; what is described is another
//! image. Answers keep their distribution and lose their meaning, so an honest gain has to disappear.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use thicket_proto::v1::answer_service_client::AnswerServiceClient;
use thicket_proto::v1::answer_service_server::{AnswerService, AnswerServiceServer};
use thicket_proto::v1::{
    AggregateRequest, AggregateResponse, DecomposeRequest, DecomposeResponse, DescribeRequest,
    DescribeResponse, ForgetImageRequest, ForgetImageResponse, ForgetImagesRequest, ForgetImagesResponse,
    GetAnswerModelRequest, GetAnswerModelResponse, ListAdaptersRequest, ListAdaptersResponse,
    LoadAdapterRequest, LoadAdapterResponse, LocateRequest, LocateResponse, RewriteRequest, RewriteResponse,
    UnloadAdapterRequest, UnloadAdapterResponse,
};
use thicket_runtime::{
    Failure as RoleFailure, MAX_MESSAGE_BYTES, Peer, Role, RoleConfig, Server, Services, Stop,
};
use tonic::{Request, Response, Status};

use super::queries::Searched;
use super::sample::Sample;
use crate::Failure;

/// Who stands in for whom.
#[derive(Debug)]
pub(super) struct Swap {
    /// The text and image that stand in for a text and image.
    located: HashMap<(String, Bytes), (String, Bytes)>,
    /// The image that stands in for an image.
    described: HashMap<Bytes, Bytes>,
}

impl Swap {
    /// Draws the permutations. `first` are the queries' rankings without interaction, whose first `rounds` images are
    /// the candidates.
    ///
    /// # Errors
    /// [`Failure`] where an image cannot be read, or where there are too few queries to swap.
    pub(super) fn draw(
        sample: &Sample,
        first: &[Searched],
        rounds: usize,
        seed: u64,
    ) -> Result<Self, Failure> {
        if sample.queries.len() < 2 {
            return Err(Failure::bad_input(format!(
                "queries: at least 2 are needed to swap answers, not {}",
                sample.queries.len()
            )));
        }
        let images = sample
            .images
            .iter()
            .map(|image| {
                std::fs::read(&image.path)
                    .map(Bytes::from)
                    .map_err(|error| Failure::failed(format!("{}: {error}", image.path.display())))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let partner = derangement(sample.queries.len(), seed);
        let mut located = HashMap::new();
        for (query, &other) in partner.iter().enumerate() {
            let candidates = first[query].ranking.iter().zip(&first[other].ranking).take(rounds);
            for (&candidate, &theirs) in candidates {
                located.insert(
                    (sample.queries[query].text.clone(), images[candidate].clone()),
                    (sample.queries[other].text.clone(), images[theirs].clone()),
                );
            }
        }
        let stand_in = derangement(images.len(), seed ^ 1);
        let described = stand_in
            .into_iter()
            .enumerate()
            .map(|(image, other)| (images[image].clone(), images[other].clone()));
        Ok(Self { located, described: described.collect() })
    }
}

/// A permutation of `0..count` in which nothing stays where it is, for `count` of at least 2: one cycle through a
/// shuffled order (Sattolo).
fn derangement(count: usize, seed: u64) -> Vec<usize> {
    let mut state = seed;
    let mut next = move || {
        // SplitMix64: small, and the same on every machine.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    };
    let mut order: Vec<usize> = (0..count).collect();
    for place in (1..count).rev() {
        order.swap(place, (next() % place as u64) as usize);
    }
    order
}

/// Serves the swapped answers on a loopback port of its own; returns its address and what runs it.
///
/// # Errors
/// [`Failure`] where the port cannot be opened or the real service's address is malformed.
pub(super) async fn serve(
    answer: &str,
    swap: Swap,
    stop: Stop,
) -> Result<(String, impl Future<Output = Result<(), RoleFailure>> + use<>), Failure> {
    let real = AnswerServiceClient::new(Peer::lazy(answer, None).map_err(Failure::failed)?)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let server = Server::bind(Role::Answer, &RoleConfig::in_process()).await.map_err(Failure::failed)?;
    let url = format!("http://{}", server.grpc_addr());
    let service = AnswerServiceServer::new(Swapped { real, swap: Arc::new(swap) })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let serving =
        async move { server.serve(Services::new().with(service), stop.requested()).await?.into_result() };
    Ok((url, serving))
}

#[derive(Debug, Clone)]
struct Swapped {
    real: AnswerServiceClient<Peer>,
    swap: Arc<Swap>,
}

#[tonic::async_trait]
impl AnswerService for Swapped {
    async fn locate(&self, request: Request<LocateRequest>) -> Result<Response<LocateResponse>, Status> {
        let LocateRequest { text, image, adapter } = request.into_inner();
        let (text, image) = self
            .swap
            .located
            .get(&(text, image))
            .cloned()
            .ok_or_else(|| Status::invalid_argument("text, image: not a candidate of the control"))?;
        self.real.clone().locate(LocateRequest { text, image, adapter }).await
    }

    async fn describe(
        &self,
        request: Request<DescribeRequest>,
    ) -> Result<Response<DescribeResponse>, Status> {
        let DescribeRequest { image, adapter } = request.into_inner();
        let image = self
            .swap
            .described
            .get(&image)
            .cloned()
            .ok_or_else(|| Status::invalid_argument("image: not in the gallery of the control"))?;
        self.real.clone().describe(DescribeRequest { image, adapter }).await
    }

    async fn get_answer_model(
        &self,
        request: Request<GetAnswerModelRequest>,
    ) -> Result<Response<GetAnswerModelResponse>, Status> {
        self.real.clone().get_answer_model(request.into_inner()).await
    }

    async fn aggregate(
        &self,
        request: Request<AggregateRequest>,
    ) -> Result<Response<AggregateResponse>, Status> {
        self.real.clone().aggregate(request.into_inner()).await
    }

    async fn decompose(
        &self,
        request: Request<DecomposeRequest>,
    ) -> Result<Response<DecomposeResponse>, Status> {
        self.real.clone().decompose(request.into_inner()).await
    }

    async fn rewrite(&self, request: Request<RewriteRequest>) -> Result<Response<RewriteResponse>, Status> {
        self.real.clone().rewrite(request.into_inner()).await
    }

    async fn list_adapters(
        &self,
        request: Request<ListAdaptersRequest>,
    ) -> Result<Response<ListAdaptersResponse>, Status> {
        self.real.clone().list_adapters(request.into_inner()).await
    }

    async fn load_adapter(
        &self,
        request: Request<LoadAdapterRequest>,
    ) -> Result<Response<LoadAdapterResponse>, Status> {
        self.real.clone().load_adapter(request.into_inner()).await
    }

    async fn forget_images(
        &self,
        request: Request<ForgetImagesRequest>,
    ) -> Result<Response<ForgetImagesResponse>, Status> {
        self.real.clone().forget_images(request.into_inner()).await
    }

    async fn forget_image(
        &self,
        request: Request<ForgetImageRequest>,
    ) -> Result<Response<ForgetImageResponse>, Status> {
        self.real.clone().forget_image(request.into_inner()).await
    }

    async fn unload_adapter(
        &self,
        request: Request<UnloadAdapterRequest>,
    ) -> Result<Response<UnloadAdapterResponse>, Status> {
        self.real.clone().unload_adapter(request.into_inner()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_stands_in_for_itself_and_everything_for_something() {
        for count in [2, 3, 10, 1000] {
            for seed in 0..5 {
                let mut swapped = derangement(count, seed);
                assert!(swapped.iter().enumerate().all(|(place, other)| place != *other), "{count} {seed}");
                swapped.sort_unstable();
                assert!(swapped.into_iter().eq(0..count));
            }
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_swap() {
        assert_eq!(derangement(50, 7), derangement(50, 7));
        assert_ne!(derangement(50, 7), derangement(50, 8));
    }
}
