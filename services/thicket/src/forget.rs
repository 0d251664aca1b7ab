//! Having the answer service forget images that no item shows any more.

use std::time::Duration;

use thicket_proto::v1::ForgetImagesRequest;
use thicket_runtime::{Deadline, request_by};

use crate::Failure;
use crate::client::{self, Answer};

/// Images in one call, the most that the answer service takes.
const IMAGES_PER_CALL: usize = 10_000;
/// Limit of a call that rewrites a store.
pub(crate) const REWRITING_LIMIT: Duration = Duration::from_secs(3600);

/// Has the answer service forget images, by their hashes; returns how many answers went.
///
/// # Errors
/// [`Failure`] where it does not: the items have changed by then, which the message says.
pub(crate) async fn forget(answer: &mut Answer, images: &[String]) -> Result<u64, Failure> {
    let mut forgotten = 0;
    for image_hashes in images.chunks(IMAGES_PER_CALL) {
        let request = ForgetImagesRequest { image_hashes: image_hashes.to_vec() };
        let request = request_by(request, Deadline::after(REWRITING_LIMIT));
        let response = answer.forget_images(request).await.map_err(|status| {
            Failure::failed(format!(
                "the items are gone, the answers about {} images of theirs are not: {}",
                images.len(),
                client::failure(&status)
            ))
        })?;
        forgotten += response.into_inner().answers;
    }
    Ok(forgotten)
}
