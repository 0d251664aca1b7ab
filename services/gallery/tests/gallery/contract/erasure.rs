//! What was deleted is in none of the files that the gallery writes itself.

use crate::common::*;
use crate::contract::places::{Place, everywhere};
use thicket_proto::v1;

fn picture(i: u32) -> bytes::Bytes {
    noise(i, 16, 32)
}

fn person(i: u32) -> v1::UpsertRequest {
    let mut request = with_image(item(&format!("person-{i:03}"), at(i as f32)), picture(i));
    request.metadata.insert("note".to_owned(), format!("seen with suspect {i:03}!"));
    request
}

/// Which of some people are in any file, by picture, note or hash.
fn found(place: &Place, people: impl IntoIterator<Item = u32>) -> Vec<u32> {
    let contents: Vec<Vec<u8>> = place
        .files()
        .iter()
        .map(|path| [path.to_string_lossy().as_bytes(), &std::fs::read(path).unwrap()[..]].concat())
        .collect();
    let holds = |needle: &[u8]| {
        contents.iter().any(|content| {
            let mut places = content.iter().enumerate().filter(|(_, byte)| **byte == needle[0]);
            places.any(|(at, _)| content[at..].starts_with(needle))
        })
    };
    let traces = |i: &u32| {
        let hash = blake3::hash(&picture(*i)).to_hex().to_string();
        let note = format!("seen with suspect {i:03}!");
        [picture(*i).to_vec(), hash.into_bytes(), note.into_bytes()]
    };
    people.into_iter().filter(|i| traces(i).iter().any(|trace| holds(trace))).collect()
}

#[tokio::test]
async fn nothing_of_what_was_deleted_replaced_or_dropped_is_in_a_file() {
    everywhere(async |place| {
        let mut client = place.client.clone();
        create(&mut client, "lobby", 2).await;
        create(&mut client, "attic", 2).await;
        fill(&mut client, (0..30).map(person).collect()).await;
        let mut above: Vec<_> = (30..40).map(person).collect();
        above.iter_mut().for_each(|request| request.collection = "attic".to_owned());
        fill(&mut client, above).await;
        assert_eq!(found(place, 0..40), (0..40).collect::<Vec<_>>(), "or the search would prove nothing");
        let gone: Vec<String> = (0..10).map(|i| format!("person-{i:03}")).collect();
        let gone: Vec<&str> = gone.iter().map(String::as_str).collect();
        assert_eq!(delete(&mut client, &gone).await, 10);
        let mut other = person(50);
        other.id = "person-010".to_owned();
        fill(&mut client, vec![other]).await;
        let request = v1::DeleteCollectionRequest { name: "attic".to_owned(), max_items: None };
        client.delete_collection(request).await.unwrap();
        client.compact(v1::CompactRequest {}).await.unwrap();
        assert_eq!(found(place, (0..11).chain(30..40)), Vec::<u32>::new(), "{}", place.name);
        assert_eq!(found(place, (11..30).chain([50])), (11..30).chain([50]).collect::<Vec<_>>());
        for i in 11..30 {
            let id = format!("person-{i:03}");
            assert_eq!(image_of(&mut client, &id).await.unwrap().image, picture(i));
        }
    })
    .await;
}

#[tokio::test]
async fn what_a_process_that_is_gone_left_half_done_is_finished_by_the_next() {
    let Some(mut place) = Place::milvus().await else { return };
    create(&mut place.client, "lobby", 2).await;
    fill(&mut place.client, vec![person(1), person(2)]).await;
    // A write whose row never came, and the deletion of an item that is still there.
    let objects = place.folder().join("objects");
    let stored = place.files().into_iter().find(|path| path.starts_with(&objects)).unwrap();
    let kept = stored.strip_prefix(&objects).unwrap().to_string_lossy().into_owned();
    let orphan = format!("{}/p{}", kept.rsplit_once('/').unwrap().0, "0".repeat(32));
    std::fs::write(objects.join(&orphan), picture(9)).unwrap();
    let number = u64::from_str_radix(&kept[1..17], 16).unwrap();
    let note = format!(
        r#"{{"collection":"lobby","number":{number},"dropped":false,"objects":["{orphan}","{kept}"],"images":[]}}"#
    );
    std::fs::create_dir_all(objects.join("outbox")).unwrap();
    std::fs::write(objects.join("outbox/of-a-process-that-is-gone"), note).unwrap();
    place.restart().await;
    while objects.join("outbox/of-a-process-that-is-gone").exists() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(!objects.join(&orphan).exists());
    for i in [1, 2] {
        let id = format!("person-{i:03}");
        assert_eq!(image_of(&mut place.client, &id).await.unwrap().image, picture(i));
    }
    place.end().await;
}

#[tokio::test]
async fn a_compaction_deletes_images_that_no_row_refers_to() {
    let Some(mut place) = Place::milvus().await else { return };
    create(&mut place.client, "lobby", 2).await;
    fill(&mut place.client, vec![person(1)]).await;
    let objects = place.folder().join("objects");
    let stored = place.files().into_iter().find(|path| path.starts_with(&objects)).unwrap();
    let orphan = stored.with_file_name(format!("p{}", "1".repeat(32)));
    std::fs::write(&orphan, picture(9)).unwrap();
    place.client.compact(v1::CompactRequest {}).await.unwrap();
    assert!(!orphan.exists() && stored.exists());
    place.end().await;
}
