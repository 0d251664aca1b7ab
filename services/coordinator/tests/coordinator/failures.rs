//! Other roles that fail, callers that go away, too many calls.

use std::time::Duration;

use thicket_proto::v1::search_person_response::Event;
use thicket_runtime::Fault;
use tokio::sync::mpsc;
use tonic::{Code, Request};
use tonic_types::StatusExt;

use crate::fakes::{Bench, Says, World, request};

fn low() -> World {
    World::of(&[(0.4, 0.1), (0.3, 0.2), (0.2, 0.3)])
}

#[tokio::test]
async fn an_answer_role_that_fails_ends_the_stream_with_its_status() {
    let fault = Fault::unavailable("DRAINING", "this replica is stopping", Duration::ZERO);
    let bench = Bench::start(low().saying("b", Says::Fails(fault))).await;
    let mut stream = bench.client.clone().search_person(request()).await.unwrap().into_inner();
    let mut events = 0;
    let status = loop {
        match stream.message().await {
            Ok(Some(_)) => events += 1,
            Ok(None) => panic!("the stream ended without an error"),
            Err(status) => break status,
        }
    };
    // Candidates, question and answer of round 1, question of round 2.
    assert_eq!((events, status.code()), (4, Code::Unavailable));
    assert_eq!(status.get_details_error_info().unwrap().reason, "DRAINING");
}

#[tokio::test]
async fn a_full_answer_queue_says_when_to_come_back() {
    let pause = Duration::from_millis(750);
    let fault = Fault::exhausted("QUEUE_FULL", "8 of 8 requests", pause);
    let bench = Bench::start(low().saying("a", Says::Fails(fault))).await;
    let status = bench.search(request()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.get_details_retry_info().unwrap().retry_delay, Some(pause));
}

#[tokio::test]
async fn a_role_that_cannot_be_reached_is_unavailable() {
    // A port that was free a moment ago and that nobody listens on.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let bench = Bench::start_with(low(), |config| config.peers.answer = vec![format!("http://{free}")]).await;
    assert_eq!(bench.search(request()).await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn a_caller_that_goes_away_stops_the_question_in_flight() {
    let (held, mut released) = mpsc::channel(1);
    let bench = Bench::start(low().saying("a", Says::Hang(held))).await;
    let mut stream = bench.client.clone().search_person(request()).await.unwrap().into_inner();
    loop {
        let message = stream.message().await.unwrap().expect("the search goes on");
        if matches!(message.event, Some(Event::QuestionAsked(_))) {
            break;
        }
    }
    while bench.world().count("locate") == 0 {
        tokio::task::yield_now().await;
    }
    // The world's own copy goes first: the one left is held by the call in flight.
    bench.world().says.clear();
    drop(stream);
    assert!(released.recv().await.is_none());
    assert_eq!(bench.world().count("locate"), 1);
}

#[tokio::test]
async fn a_deadline_ends_the_search_and_the_question() {
    let (held, mut released) = mpsc::channel(1);
    let bench = Bench::start(low().saying("a", Says::Hang(held))).await;
    let mut request = Request::new(request());
    request.set_timeout(Duration::from_millis(300));
    let outcome = async {
        let mut stream = bench.client.clone().search_person(request).await?.into_inner();
        while stream.message().await?.is_some() {}
        Ok::<_, tonic::Status>(())
    };
    // tonic's own client timer may fire first, and calls it CANCELLED.
    let code = outcome.await.unwrap_err().code();
    assert!(matches!(code, Code::DeadlineExceeded | Code::Cancelled), "{code:?}");
    bench.world().says.clear();
    assert!(released.recv().await.is_none());
}

#[tokio::test]
async fn more_calls_than_allowed_are_refused_with_a_pause() {
    let (held, _released) = mpsc::channel(1);
    let bench = Bench::start_with(low().saying("a", Says::Hang(held)), |config| config.max_calls = 1).await;
    let first = bench.client.clone().search_person(request()).await.unwrap();
    let status = bench.search(request()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.get_details_retry_info().unwrap().retry_delay.is_some());

    bench.world().says.clear();
    drop(first);
    // The place is free again once the first search has gone.
    while bench.search(request()).await.is_err() {
        tokio::task::yield_now().await;
    }
}
