//! What callers get.

use crate::support::{Running, png, start};
use bytes::Bytes;
use thicket_embedding::{App, Config, MAX_IMAGES, MAX_TEXTS};
use thicket_proto::v1::embed_image_result::Result as ImageResult;
use thicket_proto::v1::{EmbedImageRequest, EmbedTextRequest, GetModelRequest, Similarity};
use thicket_runtime::{Failure, Fault};
use tonic::Code;

/// A role with the default settings.
pub(crate) async fn running() -> Running {
    start(Config::in_process("unused")).await
}

pub(crate) fn texts(texts: &[&str]) -> EmbedTextRequest {
    EmbedTextRequest { texts: texts.iter().map(|text| (*text).to_owned()).collect() }
}

async fn refused(texts: Vec<String>) -> Fault {
    let status = running().await.client.embed_text(EmbedTextRequest { texts }).await.unwrap_err();
    Fault::from_status(&status)
}

#[tokio::test]
async fn the_model_is_described_as_it_is() {
    let model =
        running().await.client.get_model(GetModelRequest {}).await.unwrap().into_inner().model.unwrap();
    assert_eq!((model.name.as_str(), model.fingerprint.as_str()), ("sizes", "f00d"));
    assert_eq!(model.similarity(), Similarity::MeanOfTwoCosines);
    assert_eq!((model.dimension, model.text_length), (2, 77));
    assert_eq!((model.image_height, model.image_width), (384, 128));
}

#[tokio::test]
async fn texts_come_back_as_vectors_in_their_order() {
    let mut role = running().await;
    let answer = role.client.embed_text(texts(&["a man", "رجل", "🧥"])).await.unwrap().into_inner();
    let firsts: Vec<f32> = answer.vectors.iter().map(|vector| vector.values[0]).collect();
    assert_eq!(firsts, [5.0, 3.0, 1.0]);
    assert_eq!(answer.model_fingerprint, "f00d");
}

#[tokio::test]
async fn a_text_of_white_space_names_its_place() {
    let fault = refused(vec!["a man".to_owned(), " \u{3000}\n".to_owned()]).await;
    assert!(
        matches!(&fault, Fault::InvalidInput { field, reason, .. } if field == "texts[1]" && reason == "TEXT_EMPTY"),
        "{fault:?}"
    );
}

#[tokio::test]
async fn ten_thousand_words_are_too_long() {
    let fault = refused(vec!["word ".repeat(10_000)]).await;
    assert_eq!(fault.reason(), "TEXT_TOO_LONG");
    assert!(fault.to_string().contains("20000") && fault.to_string().contains("50000"), "{fault}");
}

#[tokio::test]
async fn no_text_and_too_many_texts_are_refused() {
    assert_eq!(refused(Vec::new()).await.code(), Code::InvalidArgument);
    let fault = refused(vec!["a man".to_owned(); MAX_TEXTS + 1]).await;
    assert_eq!((fault.code(), &*fault.reason()), (Code::InvalidArgument, "TOO_MANY_TEXTS"));
    let mut role = running().await;
    let most = EmbedTextRequest { texts: vec!["a man".to_owned(); MAX_TEXTS] };
    assert_eq!(role.client.embed_text(most).await.unwrap().into_inner().vectors.len(), MAX_TEXTS);
}

#[tokio::test]
async fn a_vector_that_is_not_finite_is_internal_and_never_sent() {
    let status = running().await.client.embed_text(texts(&["nan"])).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
}

#[tokio::test]
async fn a_bad_image_fails_alone() {
    let mut role = running().await;
    let truncated = png(8, 8).slice(..40);
    let images = vec![png(3, 4), truncated, Bytes::from_static(b"a text file"), Bytes::new(), png(5, 6)];
    let answer = role.client.embed_image(EmbedImageRequest { images }).await.unwrap().into_inner();
    let results: Vec<Result<Vec<f32>, String>> = answer
        .results
        .into_iter()
        .map(|result| match result.result.unwrap() {
            ImageResult::Vector(vector) => Ok(vector.values),
            ImageResult::Error(error) => {
                assert_eq!(error.code, Code::InvalidArgument as i32);
                Err(error.reason)
            }
        })
        .collect();
    let refused = |reason: &str| Err(reason.to_owned());
    assert_eq!(
        results,
        [
            Ok(vec![3.0, 4.0]),
            refused("IMAGE_UNDECODABLE"),
            refused("IMAGE_FORMAT_UNKNOWN"),
            refused("IMAGE_EMPTY"),
            Ok(vec![5.0, 6.0]),
        ]
    );
}

#[tokio::test]
async fn an_image_with_too_many_pixels_is_refused_with_the_limit() {
    let mut role = running().await;
    let request = EmbedImageRequest { images: vec![png(5000, 2)] };
    let answer = role.client.embed_image(request).await.unwrap().into_inner();
    let Some(ImageResult::Error(error)) = &answer.results[0].result else { panic!("{answer:?}") };
    assert_eq!(error.reason, "IMAGE_TOO_LARGE");
    assert!(error.message.contains("5000") && error.message.contains("4096"), "{}", error.message);
}

#[tokio::test]
async fn too_many_images_are_refused() {
    let mut role = running().await;
    let request = EmbedImageRequest { images: vec![png(1, 1); MAX_IMAGES + 1] };
    assert_eq!(role.client.embed_image(request).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_stopped_role_drains_and_ends_well() {
    let mut role = running().await;
    role.client.embed_text(texts(&["a man"])).await.unwrap();
    role.stop.stop();
    assert_eq!(role.done.await.unwrap(), Ok(()));
    assert!(!role.health.snapshot().ready);
}

#[tokio::test]
async fn a_model_folder_that_is_not_there_is_bad_input() {
    let failure = App::build(Config::in_process("/nonexistent/model")).await.unwrap_err();
    assert_eq!(failure, Failure::BadInput("model folder /nonexistent/model is not there".to_owned()));
}

#[tokio::test]
async fn a_damaged_model_folder_ends_the_role_with_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let app = App::build(Config::in_process(folder.path())).await.unwrap();
    let (_stop, stopped) = thicket_runtime::Stop::by_hand();
    let Err(Failure::BadInput(line)) = app.run(stopped).await else { panic!("it cannot be loaded") };
    assert!(line.contains(folder.path().to_str().unwrap()), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
}
