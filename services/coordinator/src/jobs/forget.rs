//! Taking forgotten images out of results.
//!
//! Who forgets notes it first and looks at the results then; who writes results looks at the notes afterwards. So one of
//! the two always sees the other, and nothing that was found before an image was deleted outlives it.

use thicket_proto::v1::ForgetJobImagesRequest;
use thicket_runtime::Fault;

use super::Jobs;
use super::forgotten::Forgotten;
use super::objects::Results;

impl Jobs {
    /// Takes images out of the results of every job; returns how many results named one.
    pub(super) async fn forget(&self, request: ForgetJobImagesRequest) -> Result<u64, Fault> {
        let images = Forgotten::parse(&request.image_hashes)?;
        self.objects.note(&images).await?;
        let mut forgotten = self.objects.forgotten().await?;
        let mut results = 0;
        loop {
            // By their objects, not by their records: what has a record that is damaged or gone is gone through as well.
            for (folder, found) in self.objects.all_results().await? {
                results += self.forget_in(&folder, &found, &forgotten).await?;
            }
            if self.objects.is_still(&mut forgotten).await? {
                break;
            }
        }
        tracing::info!(images = request.image_hashes.len(), results, "images were forgotten");
        Ok(results)
    }

    async fn forget_in(&self, folder: &str, results: &Results, forgotten: &Forgotten) -> Result<u64, Fault> {
        let mut naming = Vec::new();
        for part in &results.parts {
            // One may have been deleted with its job since.
            let Some(rows) = self.objects.results(folder, *part).await? else { continue };
            if forgotten.is_named_in(&rows) {
                naming.push(*part);
            }
        }
        if naming.is_empty() {
            return Ok(0);
        }
        // The file goes first: while a part names an image, whoever tries again finds it.
        if results.has_file {
            self.objects.write_file(folder, &results.parts, forgotten).await?;
        }
        let mut changed = 0;
        for part in naming {
            changed += self.objects.forget_in_part(folder, part, forgotten).await?;
        }
        Ok(changed)
    }
}
