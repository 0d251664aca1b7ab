//! A filtered search ranks the items that the filter holds for as if there were no others.

use crate::common::*;
use thicket_proto::v1;
use thicket_runtime::Fault;
use tonic::Code;

/// Cameras, hours and tags in every combination; every angle many times, so that ties are common.
fn crowd() -> Vec<v1::UpsertRequest> {
    (0..240).map(|i| described(i, at((i * 53 % 30) as f32 * 6.0))).collect()
}

fn described(i: u32, vector: v1::Vector) -> v1::UpsertRequest {
    let mut item = item(&format!("p{i:03}"), vector);
    let tags = ["red", "red, bag", "bag,hat", ""][(i / 5 % 4) as usize];
    item.metadata = [("camera", format!("gate-{}", i % 5)), ("tags", tags.to_owned())]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
    if !i.is_multiple_of(3) {
        let hour = i / 20;
        item.metadata.insert("captured_at".to_owned(), format!("2026-03-01T{hour:02}:00:00Z"));
    }
    item
}

/// 2026-03-01 at so many hours UTC.
fn hour(hour: i64) -> i64 {
    1_772_323_200_000 + hour * 3_600_000
}

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

async fn filtered(client: &mut Client, query: v1::Vector, top: u32, filter: v1::Filter) -> Vec<v1::Hit> {
    let mut request = search_request(query, top);
    request.filter = Some(filter);
    let response = client.search(request).await.unwrap().into_inner();
    response.rankings.into_iter().next().unwrap().hits
}

/// Whether a filter holds, read plainly off the metadata.
fn meets(item: &v1::Item, filter: &v1::Filter) -> bool {
    let value = |key: &str| item.metadata.get(key).cloned().unwrap_or_default();
    let tags: Vec<String> = value("tags").split(',').map(|tag| tag.trim().to_owned()).collect();
    let time = value("captured_at");
    let time = time.get(11..13).map(|text| hour(text.parse().unwrap()));
    (filter.cameras.is_empty() || filter.cameras.contains(&value("camera")))
        && filter.captured_from_unix_ms.is_none_or(|from| time.is_some_and(|time| time >= from))
        && filter.captured_until_unix_ms.is_none_or(|until| time.is_some_and(|time| time < until))
        && filter.tags_all.iter().all(|tag| tags.contains(tag))
        && (filter.tags_any.is_empty() || filter.tags_any.iter().any(|tag| tags.contains(tag)))
}

fn filters() -> Vec<v1::Filter> {
    let none = v1::Filter::default;
    vec![
        none(),
        v1::Filter { cameras: strings(&["gate-1"]), ..none() },
        v1::Filter { cameras: strings(&["gate-1", "gate-4", "gate-9"]), ..none() },
        v1::Filter { captured_from_unix_ms: Some(hour(3)), captured_until_unix_ms: Some(hour(7)), ..none() },
        v1::Filter { captured_from_unix_ms: Some(hour(9)), ..none() },
        v1::Filter { captured_until_unix_ms: Some(hour(2)), ..none() },
        v1::Filter { tags_all: strings(&["red", "bag"]), ..none() },
        v1::Filter { tags_any: strings(&["hat", "red"]), ..none() },
        v1::Filter {
            cameras: strings(&["gate-2"]),
            tags_all: strings(&["bag"]),
            tags_any: strings(&["red"]),
            ..none()
        },
        v1::Filter {
            cameras: strings(&["gate-0", "gate-3"]),
            captured_from_unix_ms: Some(hour(1)),
            tags_any: strings(&["bag", "hat"]),
            ..none()
        },
        v1::Filter { cameras: strings(&["nowhere"]), ..none() },
        v1::Filter { tags_all: strings(&["red", "hat"]), ..none() },
    ]
}

async fn assert_filtered_equals_the_rest_of_the_full_ranking(client: &mut Client) {
    for query in [at(0.0), at(77.0)] {
        let full = search(client, query.clone(), 100_000).await;
        for filter in filters() {
            let expected: Vec<v1::Hit> =
                full.iter().filter(|hit| meets(hit.item.as_ref().unwrap(), &filter)).cloned().collect();
            for top in [1, 7, 100_000] {
                let found = filtered(client, query.clone(), top, filter.clone()).await;
                let expected = &expected[..expected.len().min(top as usize)];
                assert_eq!(ids(&found), ids(expected), "{filter:?}, top {top}");
                assert_eq!(found, expected);
            }
        }
    }
}

#[tokio::test]
async fn a_filtered_search_is_the_full_ranking_without_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let mut gallery = Running::on(folder.path()).await;
    create(&mut gallery.client, "lobby", 2).await;
    fill(&mut gallery.client, crowd()).await;
    assert_filtered_equals_the_rest_of_the_full_ranking(&mut gallery.client).await;
    gallery.stop().await;
    let mut gallery = Running::on(folder.path()).await;
    assert_filtered_equals_the_rest_of_the_full_ranking(&mut gallery.client).await;
    gallery.stop().await;
}

#[tokio::test]
async fn a_filter_follows_replaced_and_deleted_items() {
    let folder = tempfile::tempdir().unwrap();
    let mut gallery = Running::on(folder.path()).await;
    create(&mut gallery.client, "lobby", 2).await;
    fill(&mut gallery.client, crowd()).await;
    // New cameras, times and tags for some, none at all for one, and others gone.
    let replaced = (0..40).map(|i| {
        let mut other = described(i + 17, at(i as f32));
        other.id = format!("p{i:03}");
        other
    });
    fill(&mut gallery.client, replaced.collect()).await;
    let mut bare = item("p050", at(3.0));
    bare.metadata.clear();
    fill(&mut gallery.client, vec![bare]).await;
    let gone: Vec<String> = (100..160).map(|i| format!("p{i:03}")).collect();
    delete(&mut gallery.client, &gone.iter().map(String::as_str).collect::<Vec<_>>()).await;
    assert_filtered_equals_the_rest_of_the_full_ranking(&mut gallery.client).await;
    gallery.stop().await;
}

#[tokio::test]
async fn rank_of_with_a_filter_counts_the_items_that_it_holds_for() {
    let folder = tempfile::tempdir().unwrap();
    let mut gallery = Running::on(folder.path()).await;
    create(&mut gallery.client, "lobby", 2).await;
    fill(&mut gallery.client, crowd()).await;
    let full = search(&mut gallery.client, at(40.0), 100_000).await;
    for filter in filters() {
        let request = v1::RankOfRequest {
            collection: "lobby".to_owned(),
            query: Some(at(40.0)),
            ids: ids(&full),
            filter: Some(filter.clone()),
            ..Default::default()
        };
        let ranks = gallery.client.rank_of(request).await.unwrap().into_inner().ranks;
        let mut before = 0;
        let expected: Vec<u64> = full
            .iter()
            .map(|hit| {
                let rank = before + 1;
                before += u64::from(meets(hit.item.as_ref().unwrap(), &filter));
                rank
            })
            .collect();
        assert_eq!(ranks, expected, "{filter:?}");
    }
    gallery.stop().await;
}

#[tokio::test]
async fn a_bad_filter_is_refused_with_the_path_of_the_bad_part() {
    let folder = tempfile::tempdir().unwrap();
    let mut gallery = Running::on(folder.path()).await;
    create(&mut gallery.client, "lobby", 2).await;
    let none = v1::Filter::default;
    for (filter, field, reason) in [
        (
            v1::Filter { cameras: strings(&["1", ""]), ..none() },
            "filter.cameras[1]",
            "FILTER_CAMERAS_INVALID",
        ),
        (v1::Filter { tags_all: strings(&["a,b"]), ..none() }, "filter.tags_all[0]", "FILTER_TAGS_INVALID"),
        (
            v1::Filter { tags_any: vec!["a".to_owned(); 65], ..none() },
            "filter.tags_any",
            "FILTER_TAGS_INVALID",
        ),
        (
            v1::Filter { captured_from_unix_ms: Some(2), captured_until_unix_ms: Some(1), ..none() },
            "filter.captured_until_unix_ms",
            "FILTER_TIME_RANGE_EMPTY",
        ),
    ] {
        let mut request = search_request(at(0.0), 1);
        request.filter = Some(filter);
        let status = gallery.client.search(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        match Fault::from_status(&status) {
            Fault::InvalidInput { field: found, reason: why, .. } => {
                assert_eq!((&*found, &*why), (field, reason));
            }
            other => panic!("{other:?}"),
        }
    }
    gallery.stop().await;
}
