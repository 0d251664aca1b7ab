//! Images come back as they were, by item and by hash, as long as an item shows them.

use crate::common::*;
use crate::contract::places::everywhere;
use thicket_proto::v1;

async fn by_hash(client: &mut Client, hash: &str) -> Result<v1::GetImageResponse, tonic::Status> {
    let by = Some(v1::get_image_request::By::ImageHash(hash.to_owned()));
    let request = v1::GetImageRequest { collection: "lobby".to_owned(), by, ..Default::default() };
    client.get_image(request).await.map(tonic::Response::into_inner)
}

fn hash(i: u32) -> String {
    blake3::hash(&png(i)).to_hex().to_string()
}

#[tokio::test]
async fn an_image_is_there_as_long_as_an_item_shows_it() {
    everywhere(async |place| {
        let client = &mut place.client;
        create(client, "lobby", 2).await;
        let show = |id: &str, i| with_image(item(id, at(0.0)), png(i));
        fill(client, vec![show("a", 1), show("b", 1), item("plain", at(1.0))]).await;
        let found = image_of(client, "a").await.unwrap();
        assert_eq!((found.image, found.media_type.as_str()), (png(1), "image/png"), "{}", place.name);
        assert_eq!(found.image_hash, hash(1));
        assert_eq!(by_hash(client, &hash(1)).await.unwrap().image, png(1));
        assert_eq!(refusal(image_of(client, "plain").await).1, "IMAGE_NOT_FOUND");
        assert_eq!(refusal(image_of(client, "nobody").await).1, "ITEM_NOT_FOUND");
        // One of two items goes, then the other shows another image.
        delete(client, &["a"]).await;
        assert_eq!(image_of(client, "b").await.unwrap().image, png(1));
        fill(client, vec![show("b", 2)]).await;
        assert_eq!(image_of(client, "b").await.unwrap().image, png(2));
        assert_eq!(refusal(by_hash(client, &hash(1)).await).1, "IMAGE_NOT_FOUND");
        // And none at all.
        fill(client, vec![item("b", at(0.0))]).await;
        assert_eq!(refusal(image_of(client, "b").await).1, "IMAGE_NOT_FOUND");
    })
    .await;
}

#[tokio::test]
async fn an_image_is_reported_with_its_last_item_alone() {
    everywhere(async |place| {
        let client = &mut place.client;
        for name in ["lobby", "attic"] {
            create(client, name, 2).await;
            for copy in ["a", "b"] {
                let mut request = with_image(item(copy, at(1.0)), png(1));
                request.collection = name.to_owned();
                fill(client, vec![request]).await;
            }
        }
        for (collection, copy, expected) in [
            ("lobby", "a", vec![]),
            ("lobby", "b", vec![]),
            ("attic", "a", vec![]),
            ("attic", "ghost", vec![]),
            ("attic", "b", vec![hash(1)]),
        ] {
            let request = v1::DeleteRequest { collection: collection.to_owned(), ids: vec![copy.to_owned()] };
            let response = client.delete(request).await.unwrap().into_inner();
            assert_eq!(response.unused_image_hashes, expected, "{} {collection} {copy}", place.name);
        }
        fill(client, vec![with_image(item("c", at(0.0)), png(3))]).await;
        let answers = client.upsert(tokio_stream::iter([with_image(item("c", at(0.0)), png(4))])).await;
        let answer = answers.unwrap().into_inner().message().await.unwrap().unwrap();
        assert_eq!(answer.unused_image_hash, hash(3), "{}", place.name);
        let request = v1::DeleteCollectionRequest { name: "lobby".to_owned(), max_items: None };
        let response = client.delete_collection(request).await.unwrap().into_inner();
        assert_eq!((response.unused_image_hashes, response.unused_images), (vec![hash(4)], 1));
    })
    .await;
}
