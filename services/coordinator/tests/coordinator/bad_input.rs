//! What is refused, with which code and which field.

use thicket_proto::v1::{InteractionSettings, SearchPersonRequest};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::fakes::{Bench, World, finished, request};

fn world() -> World {
    World::of(&[(0.9, 0.1)])
}

async fn refused(request: SearchPersonRequest) -> (Status, usize) {
    let bench = Bench::start(world()).await;
    let status = bench.search(request).await.expect_err("a refusal");
    let work = bench.world().log.len();
    (status, work)
}

/// Refused with INVALID_ARGUMENT, the field and a reason, before any other role is bothered.
async fn invalid(request: SearchPersonRequest, field: &str, reason: &str) {
    let (status, work) = refused(request).await;
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let violations = status.get_details_bad_request().expect("field violations").field_violations;
    assert_eq!(violations[0].field, field);
    let info = status.get_details_error_info().expect("an ErrorInfo");
    assert_eq!((info.reason.as_str(), info.domain.as_str()), (reason, "thicket"));
    assert_eq!(work, 0);
}

fn with(settings: InteractionSettings) -> SearchPersonRequest {
    SearchPersonRequest { settings: Some(settings), ..request() }
}

#[tokio::test]
async fn a_text_of_spaces_is_refused() {
    invalid(SearchPersonRequest { text: "  \t ".into(), ..request() }, "text", "TEXT_EMPTY").await;
}

#[tokio::test]
async fn a_text_that_is_too_long_is_refused() {
    let text = "word ".repeat(10_000);
    invalid(SearchPersonRequest { text, ..request() }, "text", "TEXT_TOO_LONG").await;
}

#[tokio::test]
async fn zero_rounds_are_refused() {
    let settings = InteractionSettings { rounds: Some(0), ..Default::default() };
    invalid(with(settings), "settings.rounds", "SETTING_OUT_OF_RANGE").await;
}

#[tokio::test]
async fn an_xi_that_is_no_number_is_refused() {
    for xi in [f32::NAN, f32::INFINITY] {
        let settings = InteractionSettings { xi: Some(xi), ..Default::default() };
        invalid(with(settings), "settings.xi", "SETTING_OUT_OF_RANGE").await;
    }
}

#[tokio::test]
async fn a_lambda_outside_its_range_is_refused() {
    for lambda in [-0.1, 1.1, f32::NAN] {
        let settings = InteractionSettings { lambda: Some(lambda), ..Default::default() };
        invalid(with(settings), "settings.lambda", "SETTING_OUT_OF_RANGE").await;
    }
}

#[tokio::test]
async fn a_yes_threshold_outside_its_range_is_refused() {
    let settings = InteractionSettings { yes_threshold: Some(1.5), ..Default::default() };
    invalid(with(settings), "settings.yes_threshold", "SETTING_OUT_OF_RANGE").await;
}

#[tokio::test]
async fn an_unknown_priority_is_refused() {
    invalid(SearchPersonRequest { priority: 77, ..request() }, "priority", "PRIORITY_UNKNOWN").await;
}

#[tokio::test]
async fn too_many_results_are_refused() {
    invalid(SearchPersonRequest { top: 100_001, ..request() }, "top", "TOP_OUT_OF_RANGE").await;
}

#[tokio::test]
async fn a_missing_collection_name_is_refused() {
    let request = SearchPersonRequest { collection: String::new(), ..request() };
    invalid(request, "collection", "COLLECTION_NAME_MISSING").await;
}

#[tokio::test]
async fn an_unknown_collection_is_not_found() {
    let (status, _) = refused(SearchPersonRequest { collection: "nowhere".into(), ..request() }).await;
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(status.get_details_resource_info().expect("a resource").resource_name, "nowhere");
}

#[tokio::test]
async fn a_collection_of_another_model_is_a_failed_precondition() {
    let mut world = world();
    world.fingerprint_of_collection = "model-2".into();
    let status = Bench::start(world).await.search(request()).await.expect_err("a refusal");
    assert_eq!(status.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn any_script_is_searched_for() {
    for text in ["🧥 👜", "امرأة ترتدي معطفا أحمر", "穿红色外套的女人"] {
        let mut world = world();
        world.texts.insert(text.into(), vec![1.0, 0.0]);
        let bench = Bench::start(world).await;
        let events = bench.search(SearchPersonRequest { text: text.into(), ..request() }).await.unwrap();
        assert_eq!(finished(&events).hits.len(), 1);
    }
}
