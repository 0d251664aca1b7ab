//! Where the token goes, and where it must not.

use crate::support::{FakeHub, Fault};

#[test]
fn the_token_goes_to_the_hub_and_not_to_where_it_redirects() {
    let hub = FakeHub::new();
    hub.pull().unwrap();
    let seen = hub.state().seen.clone();
    assert!(seen.iter().any(|seen| seen.host == "cdn"));
    for request in seen {
        let expected = (request.host == "hub").then_some("Bearer hf_secret");
        assert_eq!(request.authorization.as_deref(), expected, "{request:?}");
    }
}

#[test]
fn the_token_stays_away_after_a_cut_too() {
    let hub = FakeHub::new();
    hub.state().cdn_faults.extend([Fault::Cut(1000), Fault::Status(503)]);
    hub.pull().unwrap();
    assert_eq!(hub.cdn_requests().len(), 3);
    assert!(hub.cdn_requests().iter().all(|seen| seen.authorization.is_none()));
}

#[test]
fn a_redirect_that_cannot_be_followed_is_refused_without_its_signature() {
    for location in [
        "ftp://x/y?Signature=signed",
        "http://user:pw@127.0.0.1/x?Signature=signed",
        "nowhere?Signature=signed",
    ] {
        let hub = FakeHub::new();
        hub.state().hub_faults.extend([Fault::Cut(usize::MAX), Fault::Redirect(location.to_owned())]);
        let text = hub.pull().unwrap_err().to_string();
        assert!(
            text.contains("redirect") && !text.contains("signed") && !text.contains("hf_secret"),
            "{text}"
        );
    }
}

#[test]
fn redirects_without_end_are_given_up() {
    let hub = FakeHub::new();
    let round = format!(
        "{}/Owner/small-model/resolve/{}/nested/model.safetensors",
        hub.settings().endpoint,
        crate::support::COMMIT
    );
    hub.state().hub_faults.push_back(Fault::Cut(usize::MAX));
    hub.state().hub_faults.extend((0..20).map(|_| Fault::Redirect(round.clone())));
    let text = hub.pull().unwrap_err().to_string();
    assert!(text.contains("redirects"), "{text}");
}
