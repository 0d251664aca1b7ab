//! What is left to be done when rows have changed.
//!
//! Rows and objects are in two places, and a process may be lost between any two steps. So before a write changes rows it
//! notes the objects that it brings and those that its rows leave. Whoever finds the note later, the writer itself or after
//! a while any other process, deletes what no row refers to. The note goes last.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use thicket_blobs::{BlobError, Entry};
use thicket_milvus::{Expression, Page, Token};
use uuid::Uuid;

use crate::error::GalleryError;
use crate::milvus::names;
use crate::milvus::rows::{self, IMAGE, KEY, OBJECT, Object};
use crate::milvus::{Shared, together, unavailable};
use crate::record::ImageHash;

/// What the notes are under.
const FOLDER: &str = "outbox";
/// What the images are under about which answers are to be forgotten.
const TO_FORGET: &str = "forget";
/// Objects or images that Milvus is asked about at once.
const NAMES_AT_ONCE: usize = 200;
/// Objects deleted at a time.
const DELETIONS_AT_ONCE: usize = 16;

/// A note.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    /// Name of the collection.
    pub(super) collection: String,
    /// What the name stood for.
    pub(super) number: u64,
    /// The collection is being dropped.
    pub(super) dropped: bool,
    /// Objects to look at, by name.
    pub(super) objects: Vec<String>,
    /// Images that rows may have been the last to show.
    pub(super) images: Vec<ImageHash>,
}

/// What came of a note.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Which of the images no item of any collection shows, sorted.
    pub(super) unused: Vec<ImageHash>,
}

impl Shared {
    /// Writes a note; returns its name.
    pub(super) async fn note(&self, note: &Note, until: Instant) -> Result<String, GalleryError> {
        let name = format!("{FOLDER}/{}", Uuid::now_v7().simple());
        let text =
            serde_json::to_vec(note).map_err(|cause| GalleryError::internal("writing a note", cause))?;
        let written = self.blobs.put(&name, text.into(), until).await;
        written.map_err(|error| GalleryError::from_blob("writing to the outbox", error))?;
        Ok(name)
    }

    /// Forgets a note that is done.
    pub(super) async fn discard(&self, name: &str, until: Instant) -> Result<(), GalleryError> {
        let deleted = self.blobs.delete(name, until).await;
        deleted.map_err(|error| GalleryError::from_blob("clearing the outbox", error))
    }

    /// Does what a note asks for: deletes the objects that no row refers to, and finds the images that no item shows.
    pub(super) async fn settle(&self, note: &Note, until: Instant) -> Result<Outcome, GalleryError> {
        let there = names::in_milvus(&note.collection);
        let current = self.description(&note.collection, until).await;
        let exists = match current {
            Ok((_, description)) => description.number == note.number,
            Err(GalleryError::UnknownCollection { .. }) => false,
            Err(error) => return Err(error),
        };
        let mut images: BTreeSet<ImageHash> = note.images.iter().copied().collect();
        let unreferenced = match (note.dropped, exists) {
            // It was never dropped.
            (true, true) => return Ok(Outcome::default()),
            (true, false) => {
                let listed = self.listed(&rows::folder(note.number), until).await?;
                let objects: Vec<String> = listed.into_iter().map(|entry| entry.key).collect();
                images.extend(objects.iter().filter_map(|path| Some(Object::parse(path)?.1.hash)));
                objects
            }
            (false, false) => note.objects.clone(),
            (false, true) => self.unreferenced(&there, &note.objects, until).await?,
        };
        self.delete_objects(&unreferenced, until).await?;
        let unused = self.unused(images.into_iter().collect(), until).await?;
        if self.forgets {
            let names: Vec<String> = unused.iter().map(|image| format!("{TO_FORGET}/{image}")).collect();
            for names in names.chunks(NAMES_AT_ONCE) {
                let notes = names.iter().map(|name| self.blobs.put(name, Bytes::new(), until).boxed());
                let noted: Result<(), BlobError> =
                    together(notes.collect(), DELETIONS_AT_ONCE).await.into_iter().collect();
                noted.map_err(|error| GalleryError::from_blob("writing to the outbox", error))?;
            }
        }
        Ok(Outcome { unused })
    }

    /// At most so many of the images about which answers are to be forgotten.
    pub(super) async fn pending_forgets(
        &self,
        most: usize,
        until: Instant,
    ) -> Result<Vec<ImageHash>, GalleryError> {
        let listed = self.blobs.list(TO_FORGET, until);
        let images = listed.try_filter_map(|entry| async move {
            Ok(entry.key.rsplit('/').next().and_then(ImageHash::from_hex))
        });
        let images = pin!(images.take(most)).try_collect().await;
        images.map_err(|error| GalleryError::from_blob("reading the outbox", error))
    }

    /// Notes that the answers about some images are forgotten.
    pub(super) async fn forgotten(&self, images: &[ImageHash], until: Instant) -> Result<(), GalleryError> {
        let names: Vec<String> = images.iter().map(|image| format!("{TO_FORGET}/{image}")).collect();
        self.delete_objects(&names, until).await
    }

    /// Which of these objects no row of a collection refers to.
    async fn unreferenced(
        &self,
        there: &str,
        paths: &[String],
        until: Instant,
    ) -> Result<Vec<String>, GalleryError> {
        let named: BTreeMap<Token, &String> =
            paths.iter().filter_map(|path| Some((Object::parse(path)?.1.name, path))).collect();
        let names: Vec<Token> = named.keys().cloned().collect();
        let mut unreferenced = named;
        for names in names.chunks(NAMES_AT_ONCE) {
            let which = Expression::one_of(OBJECT, names);
            let found = self.client.query(there, &which, Page::All, &[KEY, OBJECT], until).await;
            let found = found.and_then(|mut rows| rows.texts(OBJECT)).map_err(unavailable)?;
            for name in found {
                if let Some(name) = Token::new(name) {
                    unreferenced.remove(&name);
                }
            }
        }
        Ok(unreferenced.into_values().cloned().collect())
    }

    async fn delete_objects(&self, paths: &[String], until: Instant) -> Result<(), GalleryError> {
        for paths in paths.chunks(NAMES_AT_ONCE) {
            let deletions = paths.iter().map(|path| self.blobs.delete(path, until).boxed());
            let deleted: Result<(), BlobError> =
                together(deletions.collect(), DELETIONS_AT_ONCE).await.into_iter().collect();
            deleted.map_err(|error| GalleryError::from_blob("deleting an image", error))?;
        }
        Ok(())
    }

    /// Which of these images no item of any collection shows.
    async fn unused(&self, images: Vec<ImageHash>, until: Instant) -> Result<Vec<ImageHash>, GalleryError> {
        if images.is_empty() {
            return Ok(images);
        }
        let mut unused: BTreeSet<ImageHash> = images.into_iter().collect();
        for (name, description) in self.collections(until).await? {
            let there = names::in_milvus(&name);
            self.serve(&description.facts(&name), &there, until).await?;
            let asked: Vec<ImageHash> = unused.iter().copied().collect();
            for images in asked.chunks(NAMES_AT_ONCE) {
                for used in self.used(&there, images, until).await? {
                    unused.remove(&used);
                }
            }
            if unused.is_empty() {
                break;
            }
        }
        Ok(unused.into_iter().collect())
    }

    /// Which of these images rows of a collection show.
    async fn used(
        &self,
        there: &str,
        images: &[ImageHash],
        until: Instant,
    ) -> Result<Vec<ImageHash>, GalleryError> {
        /// Rows that are read before each image is asked about on its own: many may show the same.
        const ROWS: usize = 4096;
        let named: Vec<Token> = images.iter().filter_map(|image| Token::new(image.to_string())).collect();
        let which = Expression::one_of(IMAGE, &named);
        let found = self.client.query(there, &which, Page::First(ROWS), &[KEY, IMAGE], until).await;
        let found = found.and_then(|mut rows| rows.texts(IMAGE)).map_err(unavailable)?;
        let complete = found.len() < ROWS;
        let mut used: BTreeSet<ImageHash> = found.iter().filter_map(|hex| ImageHash::from_hex(hex)).collect();
        if !complete {
            for (image, named) in images.iter().zip(&named) {
                if used.contains(image) {
                    continue;
                }
                let shows = Expression::equals(IMAGE, named);
                if self.client.count(there, &shows, until).await.map_err(unavailable)? > 0 {
                    used.insert(*image);
                }
            }
        }
        Ok(used.into_iter().collect())
    }

    /// Does what notes ask for that are older than `grace`: their writers are gone. Returns the images that no item shows
    /// any more.
    pub(super) async fn settle_old(
        &self,
        grace: Duration,
        until: Instant,
    ) -> Result<Vec<ImageHash>, GalleryError> {
        let mut unused = Vec::new();
        for entry in self.listed(FOLDER, until).await? {
            if !is_old(&entry, grace) {
                continue;
            }
            let text = match self.blobs.get(&entry.key, until).await {
                Ok(text) => text,
                // Somebody else was faster.
                Err(BlobError::NotFound { .. }) => continue,
                Err(error) => return Err(GalleryError::from_blob("reading the outbox", error)),
            };
            match serde_json::from_slice::<Note>(&text) {
                Ok(note) => {
                    tracing::info!(collection = note.collection, "finishing what another process began");
                    unused.extend(self.settle(&note, until).await?.unused);
                }
                Err(error) => tracing::warn!(note = entry.key, %error, "a note in the outbox cannot be read"),
            }
            self.discard(&entry.key, until).await?;
        }
        Ok(unused)
    }

    /// Deletes every object older than `grace` that no row refers to.
    pub(super) async fn sweep(&self, grace: Duration, until: Instant) -> Result<(), GalleryError> {
        let collections: BTreeMap<u64, String> = self
            .collections(until)
            .await?
            .into_iter()
            .map(|(name, description)| (description.number, names::in_milvus(&name)))
            .collect();
        let mut waiting: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        let mut listed = pin!(self.blobs.list("", until));
        while let Some(entry) = listed.next().await {
            let entry = entry.map_err(|error| GalleryError::from_blob("listing objects", error))?;
            let Some((number, _)) = Object::parse(&entry.key).filter(|_| is_old(&entry, grace)) else {
                continue;
            };
            let paths = waiting.entry(number).or_default();
            paths.push(entry.key);
            if paths.len() >= NAMES_AT_ONCE {
                let paths = std::mem::take(paths);
                self.sweep_some(collections.get(&number), &paths, until).await?;
            }
        }
        for (number, paths) in waiting {
            self.sweep_some(collections.get(&number), &paths, until).await?;
        }
        let removed = self.blobs.remove_unfinished(grace).await;
        removed.map(drop).map_err(|error| GalleryError::from_blob("removing unfinished files", error))
    }

    /// Deletes those of some objects that no row of their collection refers to; all where it is gone.
    async fn sweep_some(
        &self,
        there: Option<&String>,
        paths: &[String],
        until: Instant,
    ) -> Result<(), GalleryError> {
        let unreferenced = match there {
            Some(there) => self.unreferenced(there, paths, until).await?,
            None => paths.to_vec(),
        };
        if !unreferenced.is_empty() {
            tracing::info!(images = unreferenced.len(), "deleting images that no item shows");
        }
        self.delete_objects(&unreferenced, until).await
    }

    async fn listed(&self, prefix: &str, until: Instant) -> Result<Vec<Entry>, GalleryError> {
        let listed = self.blobs.list(prefix, until).try_collect().await;
        listed.map_err(|error| GalleryError::from_blob("listing objects", error))
    }
}

fn is_old(entry: &Entry, grace: Duration) -> bool {
    grace.is_zero() || SystemTime::now().duration_since(entry.modified).is_ok_and(|age| age >= grace)
}
