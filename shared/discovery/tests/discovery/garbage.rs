use thicket_runtime::Role;
use thicket_telemetry::prometheus_text;
use tokio::sync::Mutex;

use crate::etcd::Etcd;
use crate::support::{are, follow, is_down, is_up, member, register, sees};

const REASONS: [&str; 4] = ["json", "size", "protocol", "key"];

/// Counters are of the process: the tests here, which alone make these count, take turns.
static TURN: Mutex<()> = Mutex::const_new(());

/// How many registrations were ignored so far, by reason.
fn ignored(reason: &str) -> f64 {
    let series = format!("thicket_discovery_ignored_total{{reason=\"{reason}\"}} ");
    let text = prometheus_text();
    text.lines().find_map(|line| line.strip_prefix(&series)).map_or(0.0, |count| count.parse().unwrap())
}

#[tokio::test]
async fn garbage_is_ignored_and_counted_once() {
    let Some(mut etcd) = Etcd::start().await else { return };
    let _turn = TURN.lock().await;
    let before = REASONS.map(ignored);
    let mut client = etcd.client().await;
    let members = "/thicket/v1/members";
    let of_another = member(Role::Gallery, "of-another").encode().unwrap();
    let future = br#"{"protocol":2,"role":"gallery","instance":"future"}"#.to_vec();
    let put: [(String, Vec<u8>); 7] = [
        (format!("{members}/gallery/empty"), Vec::new()),
        (format!("{members}/gallery/bytes"), vec![0xff; 100]),
        (format!("{members}/gallery/large"), vec![b' '; 1 << 20]),
        (format!("{members}/gallery/future"), future),
        (format!("{members}/gallery/name"), of_another.clone()),
        (format!("{members}/chef/of-another"), of_another.clone()),
        (format!("{members}/gallery/a/b/c"), of_another),
    ];
    // The first half is found by the listing, the second is seen by the watch.
    let (listed, watched) = put.split_at(4);
    for (key, value) in listed {
        client.put(key.as_str(), value.as_slice(), None).await.unwrap();
    }
    let directory = follow(&etcd.config());
    is_up(&directory).await;
    for (key, value) in watched {
        client.put(key.as_str(), value.as_slice(), None).await.unwrap();
    }
    let _good = register(&etcd.config(), member(Role::Gallery, "good")).await;
    sees(&directory, are(["good"])).await;
    let counted = || {
        let now = REASONS.map(ignored);
        std::array::from_fn(|reason| now[reason] - before[reason])
    };
    assert_eq!(counted(), [2.0, 1.0, 1.0, 3.0], "{REASONS:?}");
    // A listing after an outage finds the same garbage, which has been told.
    etcd.nodes[0].kill();
    is_down(&directory).await;
    etcd.nodes[0].restart();
    is_up(&directory).await;
    assert_eq!(counted(), [2.0, 1.0, 1.0, 3.0], "{REASONS:?} after a second listing");
    // What is put right becomes a member.
    let repaired = member(Role::Gallery, "empty").encode().unwrap();
    client.put(format!("{members}/gallery/empty"), repaired, None).await.unwrap();
    sees(&directory, are(["empty", "good"])).await;
}

#[tokio::test]
async fn many_large_values_do_not_end_the_watch() {
    let Some(etcd) = Etcd::start().await else { return };
    let _turn = TURN.lock().await;
    let directory = follow(&etcd.config());
    is_up(&directory).await;
    let mut client = etcd.client().await;
    for n in 0..12 {
        client
            .put(format!("/thicket/v1/members/gallery/large-{n}"), vec![b'x'; 1 << 20], None)
            .await
            .unwrap();
    }
    let _good = register(&etcd.config(), member(Role::Gallery, "good")).await;
    sees(&directory, are(["good"])).await;
    let later = follow(&etcd.config());
    sees(&later, are(["good"])).await;
}
