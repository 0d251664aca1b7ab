//! The events of every way an interaction can go.

use thicket_proto::v1::search_person_response::Event;
use thicket_proto::v1::{
    Answer, DescribeResponse, Filter, InteractionSettings, Outcome, SearchFinished, SearchPersonRequest,
};

use crate::fakes::{Bench, REFINED, Says, TEXT, World, finished, ids, request};

/// The first ranking is `a b c d e`, above xi.
fn high() -> World {
    World::of(&[(0.9, 0.1), (0.8, 0.2), (0.7, 0.3), (0.6, 0.4), (0.5, 0.5)])
}

/// The first ranking is `a b c d e`, below xi.
fn low() -> World {
    World::of(&[(0.45, 0.1), (0.4, 0.2), (0.35, 0.3), (0.3, 0.4), (0.25, 0.5)])
}

/// One word an event; rounds and candidates of the questions.
fn story(events: &[Event]) -> Vec<String> {
    events
        .iter()
        .map(|event| match event {
            Event::CandidatesFound(found) => format!("candidates {}", ids(&found.hits).concat()),
            Event::QuestionAsked(asked) => {
                format!("asked {} {}", asked.round, ids(asked.candidate.as_slice()).concat())
            }
            Event::QuestionAnswered(answered) => {
                format!("{:?} {}", answered.answer(), answered.candidate_id)
            }
            Event::AnchorDescribed(described) => format!("described {}", described.anchor_id),
            Event::QueryRefined(refined) => format!("refined {}", refined.text),
            Event::Finished(finished) => format!("finished {:?}", finished.outcome()),
        })
        .collect()
}

async fn told(world: World) -> (Vec<String>, SearchFinished) {
    let bench = Bench::start(world).await;
    let events = bench.search(request()).await.expect("a search");
    (story(&events), finished(&events).clone())
}

#[tokio::test]
async fn a_confirmed_first_candidate_above_xi_refines_the_query() {
    let (story, end) = told(high().saying("a", Says::PYes(0.9))).await;
    assert_eq!(
        story,
        [
            "candidates abcde",
            "asked 1 a",
            "Yes a",
            "described a",
            &format!("refined {REFINED}"),
            "finished Refined"
        ]
    );
    assert_eq!((end.anchor_id.as_str(), end.anchor_round, end.refined_text.as_str()), ("a", 1, REFINED));
    let questions = end.questions.unwrap();
    assert_eq!((questions.locate, questions.describe, questions.aggregate), (1, 1, 1));
}

#[tokio::test]
async fn a_rejected_first_candidate_above_xi_ends_the_interaction() {
    let (story, end) = told(high().saying("b", Says::PYes(0.9))).await;
    assert_eq!(story, ["candidates abcde", "asked 1 a", "No a", "finished HighRejected"]);
    assert_eq!((end.anchor_id.as_str(), end.anchor_round, end.refined_text.as_str()), ("", 0, ""));
    assert_eq!(ids(&end.hits).concat(), "abcde");
}

#[tokio::test]
async fn a_confirmed_first_candidate_below_xi_leaves_the_query_alone() {
    let (story, end) = told(low().saying("a", Says::PYes(0.9))).await;
    assert_eq!(story, ["candidates abcde", "asked 1 a", "Yes a", "finished LowConfirmedFirst"]);
    assert_eq!(end.anchor_id, "");
}

#[tokio::test]
async fn a_later_yes_below_xi_refines_the_query() {
    let (story, end) = told(low().saying("c", Says::PYes(0.9))).await;
    assert_eq!(
        story[1..],
        [
            "asked 1 a",
            "No a",
            "asked 2 b",
            "No b",
            "asked 3 c",
            "Yes c",
            "described c",
            &format!("refined {REFINED}"),
            "finished Refined"
        ]
    );
    assert_eq!((end.anchor_id.as_str(), end.anchor_round), ("c", 3));
    assert_eq!(end.questions.unwrap().locate, 3);
}

#[tokio::test]
async fn without_a_yes_every_candidate_is_asked_about_once() {
    let (story, end) = told(low()).await;
    assert_eq!(story.iter().filter(|line| line.starts_with("asked")).count(), 5);
    assert_eq!(story.last().unwrap(), "finished NoneConfirmed");
    assert_eq!(ids(&end.hits).concat(), "abcde");
}

#[tokio::test]
async fn an_empty_collection_has_no_candidates() {
    let (story, end) = told(World::of(&[])).await;
    assert_eq!(story, ["candidates ", "finished NoCandidates"]);
    assert!(end.hits.is_empty());
}

#[tokio::test]
async fn a_gallery_smaller_than_the_rounds_is_asked_about_as_far_as_it_goes() {
    let (story, _) = told(World::of(&[(0.4, 0.1), (0.3, 0.2)])).await;
    assert_eq!(story, ["candidates ab", "asked 1 a", "No a", "asked 2 b", "No b", "finished NoneConfirmed"]);
}

#[tokio::test]
async fn a_disabled_interaction_ranks_once_and_asks_nothing() {
    let bench = Bench::start(high().saying("a", Says::PYes(0.9))).await;
    let settings = Some(InteractionSettings { disabled: true, ..Default::default() });
    let events = bench.search(SearchPersonRequest { settings, ..request() }).await.unwrap();
    assert_eq!(story(&events), ["candidates abcde", "finished Disabled"]);
    let world = bench.world();
    assert_eq!((world.count("locate"), world.count("search"), world.count("embed")), (0, 1, 1));
}

#[tokio::test]
async fn a_garbage_answer_counts_as_no_and_is_reported_with_its_text() {
    let world = low().saying("a", Says::Garbage).saying("b", Says::PYes(0.9));
    let bench = Bench::start(world).await;
    let events = bench.search(request()).await.unwrap();
    let Event::QuestionAnswered(answered) = &events[2] else { panic!("{events:?}") };
    assert_eq!(answered.answer(), Answer::Unusable);
    assert_eq!((answered.p_yes, answered.raw_text.as_str()), (0.0, "\u{fffd}\u{fffd} 42"));
    assert_eq!(finished(&events).anchor_id, "b");
}

#[tokio::test]
async fn a_probability_that_is_none_counts_as_no() {
    let (story, _) = told(high().saying("a", Says::PYes(1.5))).await;
    assert_eq!(story[2..], ["Unusable a", "finished HighRejected"]);
}

#[tokio::test]
async fn an_unusable_description_leaves_the_query_unrefined() {
    let mut world = high().saying("a", Says::PYes(0.9));
    world.describe = DescribeResponse { raw_text: "###".into(), ..Default::default() };
    let (story, end) = told(world).await;
    assert_eq!(story[3..], ["described a", "finished RefinementUnusable"]);
    assert_eq!((end.anchor_id.as_str(), end.anchor_round, end.refined_text.as_str()), ("a", 1, ""));
    assert_eq!(ids(&end.hits).concat(), "abcde");
    assert_eq!(end.questions.unwrap().aggregate, 0);
}

#[tokio::test]
async fn an_unusable_rewrite_leaves_the_query_unrefined() {
    for (text, usable) in [("", false), ("   ", true), (&*"a".repeat(20_001), true), ("nonsense", true)] {
        let mut world = high().saying("a", Says::PYes(0.9));
        // The fake embedding refuses "nonsense" as a real one would refuse what it cannot read.
        world.aggregate.text = text.to_owned();
        world.aggregate.usable = usable;
        let (story, end) = told(world).await;
        assert_eq!(story[3..], ["described a", "finished RefinementUnusable"]);
        assert_eq!(ids(&end.hits).concat(), "abcde");
    }
}

#[tokio::test]
async fn a_candidate_without_an_image_counts_as_no() {
    let mut world = low().saying("b", Says::PYes(0.9));
    world.collections.values_mut().for_each(|stored| stored[0].image.clear());
    let (story, end) = told(world).await;
    assert_eq!(story[1..4], ["Unusable a", "asked 2 b", "Yes b"]);
    assert_eq!(end.questions.unwrap().locate, 1);
}

#[tokio::test]
async fn an_image_that_the_model_refuses_counts_as_no() {
    let refusal = thicket_runtime::Fault::invalid("image", "IMAGE_UNDECODABLE", "not an image");
    let (story, _) = told(low().saying("a", Says::Fails(refusal)).saying("b", Says::PYes(0.9))).await;
    assert_eq!(story[1..5], ["asked 1 a", "Unusable a", "asked 2 b", "Yes b"]);
}

#[tokio::test]
async fn every_question_quotes_the_original_text_and_the_merge_gets_the_answers() {
    let bench = Bench::start(low().saying("b", Says::PYes(0.9))).await;
    bench.search(request()).await.unwrap();
    let world = bench.world();
    let asked: Vec<_> = world.log.iter().filter(|line| line.contains(':')).cloned().collect();
    assert!(asked.contains(&format!("locate:{TEXT}:a")));
    assert!(asked.contains(&format!("locate:{TEXT}:b")));
    assert!(asked.contains(&"describe:b".to_owned()));
    assert!(asked.contains(&format!("aggregate:{TEXT}:Female.|A black bag.")));
}

#[tokio::test]
async fn the_image_of_the_anchor_is_fetched_once() {
    let bench = Bench::start(low().saying("c", Says::PYes(0.9))).await;
    bench.search(request()).await.unwrap();
    assert_eq!(bench.world().count("image:"), 3);
}

#[tokio::test]
async fn the_callers_settings_are_in_force_and_reported() {
    let bench = Bench::start(high().saying("a", Says::PYes(0.9))).await;
    let settings = InteractionSettings {
        rounds: Some(2),
        xi: Some(0.95),
        lambda: Some(0.25),
        yes_threshold: Some(0.9),
        disabled: false,
    };
    let request = SearchPersonRequest { settings: Some(settings), top: 1, ..request() };
    let events = bench.search(request).await.unwrap();
    let Event::CandidatesFound(found) = &events[0] else { panic!("{events:?}") };
    assert_eq!((found.settings, found.high_similarity), (Some(settings), false));
    // As many candidates as rounds, although fewer results are wanted; p(Yes) at the threshold is a No.
    assert_eq!(
        story(&events),
        ["candidates ab", "asked 1 a", "No a", "asked 2 b", "No b", "finished NoneConfirmed"]
    );
    assert_eq!(ids(&finished(&events).hits).concat(), "a");
}

#[tokio::test]
async fn an_anchor_that_is_deleted_during_the_search_is_in_no_ranking() {
    let mut world = high().saying("a", Says::PYes(0.9));
    world.deleted_at_refinement = Some("a".into());
    let (_, end) = told(world).await;
    assert_eq!((end.outcome(), ids(&end.hits).concat().as_str()), (Outcome::Refined, "bcde"));
}

#[tokio::test]
async fn times_of_the_events_do_not_go_backwards() {
    let bench = Bench::start(low()).await;
    let mut stream = bench.client.clone().search_person(request()).await.unwrap().into_inner();
    let mut last = 0;
    while let Some(response) = stream.message().await.unwrap() {
        assert!(response.elapsed_ns >= last);
        last = response.elapsed_ns;
    }
    assert!(last > 0);
}

#[tokio::test]
async fn every_question_of_a_search_names_its_adapter() {
    let bench = Bench::start(high().saying("a", Says::PYes(0.9))).await;
    bench.search(SearchPersonRequest { adapter: "tuned".into(), ..request() }).await.expect("a search");
    assert_eq!(bench.world().adapters, ["tuned", "tuned", "tuned"]);
}

#[tokio::test]
async fn the_first_and_the_last_ranking_of_a_search_have_its_filter() {
    let filter =
        Filter { cameras: vec!["gate".into()], captured_from_unix_ms: Some(5), ..Default::default() };
    let bench = Bench::start(high().saying("a", Says::PYes(0.9))).await;
    bench.search(SearchPersonRequest { filter: Some(filter.clone()), ..request() }).await.expect("a search");
    assert_eq!(bench.world().filters, [Some(filter.clone()), Some(filter)]);
}
