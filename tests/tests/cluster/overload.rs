//! Twice as many searches as can be done: what is accepted is done, the rest is refused at once and told when to come back.
//! How fast is measured by `cargo bench --workspace --bench load`.

use std::sync::Arc;
use std::time::Duration;

use thicket_tests::{Fate, LoadOptions, LoadedCluster};

#[tokio::test(flavor = "multi_thread")]
async fn of_searches_at_twice_capacity_none_is_lost_or_doubled_and_those_refused_are_told_when_to_come_back()
{
    let data = tempfile::tempdir().unwrap();
    let options = LoadOptions {
        replicas: 2,
        slots: 2,
        takes: Duration::from_millis(40),
        max_calls: 16,
        data: data.path().into(),
    };
    let cluster = Arc::new(LoadedCluster::start(options).await.unwrap());
    // A hundred a second can be done, two hundred come; nobody's deadline is near.
    let fates = cluster.pour(400, Duration::from_millis(5), Duration::from_secs(120)).await;
    let mut finished = vec![0; cluster.asked().len()];
    let mut refused = 0;
    for (number, fate) in fates.iter().enumerate() {
        match fate {
            Fate::Finished(_) => finished[cluster.text_of(number)] += 1,
            Fate::Refused(_, hint) => {
                assert!(hint.is_some_and(|delay| !delay.is_zero()), "search {number}: {hint:?}");
                refused += 1;
            }
            Fate::Failed(code, message) => panic!("search {number}: {code:?} {message}"),
        }
    }
    assert_eq!(finished.iter().sum::<usize>() + refused, 400);
    assert!(refused > 0, "nothing was refused: the load was none");
    assert_eq!(cluster.asked(), finished, "questions asked for each text, and searches finished");
    Arc::into_inner(cluster).unwrap().stop().await.unwrap();
}
