//! Images are served as they came and live exactly as long as an item uses them.

use crate::common::*;
use thicket_proto::v1;
use tonic::Code;

#[tokio::test]
async fn an_image_comes_back_as_it_was_ingested_by_id_and_by_hash() {
    let folder = tempfile::tempdir().unwrap();
    let mut gallery = Running::on(folder.path()).await;
    create(&mut gallery.client, "lobby", 2).await;
    let picture = png(7);
    fill(&mut gallery.client, vec![with_image(item("a", at(0.0)), picture.clone())]).await;
    let by_id = image_of(&mut gallery.client, "a").await.unwrap();
    assert_eq!(by_id.image, picture);
    assert_eq!(by_id.media_type, "image/png");
    assert_eq!(by_id.image_hash, blake3::hash(&picture).to_hex().to_string());
    let by = Some(v1::get_image_request::By::ImageHash(by_id.image_hash.clone()));
    let request = v1::GetImageRequest { collection: "lobby".to_owned(), by, min_transaction: 0 };
    assert_eq!(gallery.client.get_image(request).await.unwrap().into_inner(), by_id);
    let request =
        v1::GetItemRequest { collection: "lobby".to_owned(), id: "a".to_owned(), ..Default::default() };
    let found = gallery.client.get_item(request).await.unwrap().into_inner().item.unwrap();
    assert_eq!(found.image_hash, by_id.image_hash);
    gallery.stop().await;
}

#[tokio::test]
async fn a_deletion_removes_the_vector_and_the_image_file() {
    let folder = tempfile::tempdir().unwrap();
    let mut gallery = Running::on(folder.path()).await;
    create(&mut gallery.client, "lobby", 2).await;
    let items = vec![with_image(item("a", at(0.0)), png(1)), with_image(item("b", at(50.0)), png(2))];
    fill(&mut gallery.client, items).await;
    assert_eq!(image_files(folder.path()).len(), 2);
    assert_eq!(delete(&mut gallery.client, &["a"]).await, 1);
    assert_eq!(image_files(folder.path()), [blake3::hash(&png(2)).to_hex().to_string()]);
    assert_eq!(ids(&search(&mut gallery.client, at(0.0), 10).await), ["b"]);
    assert_eq!(refusal(image_of(&mut gallery.client, "a").await).0, Code::NotFound);
    gallery.stop().await;
}

#[tokio::test]
async fn an_image_that_two_items_share_goes_with_the_last_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let mut gallery = Running::on(folder.path()).await;
    create(&mut gallery.client, "lobby", 2).await;
    let items = ["a", "b"].map(|id| with_image(item(id, at(0.0)), png(1))).to_vec();
    fill(&mut gallery.client, items).await;
    assert_eq!(image_files(folder.path()).len(), 1);
    delete(&mut gallery.client, &["a"]).await;
    assert_eq!(image_of(&mut gallery.client, "b").await.unwrap().image, png(1));
    delete(&mut gallery.client, &["b"]).await;
    assert_eq!(image_files(folder.path()).len(), 0);
    gallery.stop().await;
}

#[tokio::test]
async fn a_replaced_image_goes_and_an_unchanged_one_stays() {
    let folder = tempfile::tempdir().unwrap();
    let mut gallery = Running::on(folder.path()).await;
    create(&mut gallery.client, "lobby", 2).await;
    fill(&mut gallery.client, vec![with_image(item("a", at(0.0)), png(1))]).await;
    fill(&mut gallery.client, vec![with_image(item("a", at(9.0)), png(1))]).await;
    assert_eq!(image_of(&mut gallery.client, "a").await.unwrap().image, png(1));
    fill(&mut gallery.client, vec![with_image(item("a", at(9.0)), png(2))]).await;
    assert_eq!(image_files(folder.path()), [blake3::hash(&png(2)).to_hex().to_string()]);
    fill(&mut gallery.client, vec![item("a", at(9.0))]).await;
    assert_eq!(image_files(folder.path()).len(), 0);
    gallery.stop().await;
}

#[tokio::test]
async fn an_image_is_served_through_a_collection_that_uses_it_only() {
    let folder = tempfile::tempdir().unwrap();
    let mut gallery = Running::on(folder.path()).await;
    create(&mut gallery.client, "lobby", 2).await;
    create(&mut gallery.client, "attic", 2).await;
    fill(&mut gallery.client, vec![with_image(item("a", at(0.0)), png(1))]).await;
    let by = Some(v1::get_image_request::By::ImageHash(blake3::hash(&png(1)).to_hex().to_string()));
    let request = v1::GetImageRequest { collection: "attic".to_owned(), by, ..Default::default() };
    assert_eq!(
        refusal(gallery.client.get_image(request).await),
        (Code::NotFound, "IMAGE_NOT_FOUND".to_owned())
    );
    gallery.stop().await;
}

#[tokio::test]
async fn a_deleted_collection_takes_its_images_and_leaves_those_of_others() {
    let folder = tempfile::tempdir().unwrap();
    let mut gallery = Running::on(folder.path()).await;
    create(&mut gallery.client, "lobby", 2).await;
    create(&mut gallery.client, "attic", 2).await;
    fill(&mut gallery.client, (1..4).map(|i| with_image(item(&i.to_string(), at(0.0)), png(i))).collect())
        .await;
    let mut shared = with_image(item("x", at(0.0)), png(1));
    shared.collection = "attic".to_owned();
    fill(&mut gallery.client, vec![shared]).await;
    let request = v1::DeleteCollectionRequest { name: "lobby".to_owned(), max_items: None };
    let deleted = gallery.client.delete_collection(request).await.unwrap().into_inner().deleted_items;
    assert_eq!(deleted, 3);
    assert_eq!(image_files(folder.path()), [blake3::hash(&png(1)).to_hex().to_string()]);
    // The name is free again, and nothing of the old collection shows.
    create(&mut gallery.client, "lobby", 2).await;
    assert_eq!(search(&mut gallery.client, at(0.0), 10).await, []);
    gallery.stop().await;
}

#[tokio::test]
async fn a_lost_image_file_is_data_loss_and_comes_back_with_the_next_upsert() {
    let folder = tempfile::tempdir().unwrap();
    let mut gallery = Running::on(folder.path()).await;
    create(&mut gallery.client, "lobby", 2).await;
    fill(&mut gallery.client, vec![with_image(item("a", at(0.0)), png(1))]).await;
    let hash = image_files(folder.path()).remove(0);
    std::fs::remove_file(folder.path().join("images").join(&hash[..2]).join(&hash)).unwrap();
    assert_eq!(refusal(image_of(&mut gallery.client, "a").await).0, Code::DataLoss);
    fill(&mut gallery.client, vec![with_image(item("a", at(0.0)), png(1))]).await;
    assert_eq!(image_of(&mut gallery.client, "a").await.unwrap().image, png(1));
    gallery.stop().await;
}
