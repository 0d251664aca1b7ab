//! What the store remembers beside collections: images that are still to be deleted or forgotten, and where images are.

use redb::{Database, ReadableDatabase, ReadableTable, Table, TableDefinition};
use uuid::Uuid;

use crate::error::GalleryError;
use crate::record::ImageHash;
use crate::store::{Store, unix_ms};
use crate::tables::{META, UNCOMPACTED_SINCE};

/// Images that no item uses any more and that may not be deleted yet.
pub(crate) const DOOMED: TableDefinition<[u8; 32], ()> = TableDefinition::new("doomed_images");
/// Images about which answers are to be forgotten: their last item is gone.
pub(crate) const TO_FORGET: TableDefinition<[u8; 32], ()> = TableDefinition::new("to_forget");
/// Facts in words.
pub(crate) const WORDS: TableDefinition<&str, &str> = TableDefinition::new("words");
/// Where the images are; missing for the folder beside the store.
const IMAGES_AT: &str = "images_at";
/// What tells this store from others.
const NAME: &str = "name";

impl Store {
    /// Where the images are; `None` for the folder beside the store.
    pub(crate) fn images_at(&mut self) -> Result<Option<String>, GalleryError> {
        self.read(|database| {
            let table = database.begin_read()?.open_table(WORDS)?;
            Ok(table.get(IMAGES_AT)?.map(|url| url.value().to_owned()))
        })
    }

    /// Notes where the images are from now on.
    pub(crate) fn set_images_at(&mut self, url: Option<&str>) -> Result<(), GalleryError> {
        self.note(|words| match url {
            Some(url) => words.insert(IMAGES_AT, url).map(drop),
            None => words.remove(IMAGES_AT).map(drop),
        })
    }

    /// What tells this store from others: random, for as long as it lives.
    pub(crate) fn name(&mut self) -> Result<String, GalleryError> {
        let name = self.read(|database| {
            let table = database.begin_read()?.open_table(WORDS)?;
            Ok(table.get(NAME)?.map(|name| name.value().to_owned()))
        })?;
        if let Some(name) = name {
            return Ok(name);
        }
        let name = Uuid::new_v4().simple().to_string();
        self.note(|words| words.insert(NAME, name.as_str()).map(drop))?;
        Ok(name)
    }

    fn note(
        &mut self,
        change: impl FnOnce(&mut Table<'_, &'static str, &'static str>) -> Result<(), redb::StorageError>,
    ) -> Result<(), GalleryError> {
        let written = |database: &Database| -> Result<(), redb::Error> {
            let transaction = database.begin_write()?;
            change(&mut transaction.open_table(WORDS)?)?;
            Ok(transaction.commit()?)
        };
        let database = self.database()?;
        written(&database).map_err(|cause| {
            drop(database);
            self.give_up();
            GalleryError::from_write("writing the store", &cause)
        })
    }

    /// Images that were to be deleted and may not have been.
    pub(crate) fn doomed_images(&mut self) -> Result<Vec<ImageHash>, GalleryError> {
        self.read(|database| {
            let table = database.begin_read()?.open_table(DOOMED)?;
            table.iter()?.map(|entry| Ok(ImageHash::from(entry?.0.value()))).collect()
        })
    }

    /// Forgets that some images were to be deleted: they have been.
    pub(crate) fn forget_doomed(&mut self, deleted: &[ImageHash]) -> Result<(), GalleryError> {
        self.strike(DOOMED, deleted)
    }

    /// At most so many of the images about which answers are to be forgotten.
    pub(crate) fn pending_forgets(&mut self, most: usize) -> Result<Vec<ImageHash>, GalleryError> {
        self.read(|database| {
            let table = database.begin_read()?.open_table(TO_FORGET)?;
            table.iter()?.take(most).map(|entry| Ok(ImageHash::from(entry?.0.value()))).collect()
        })
    }

    /// Notes that the answers about some images are forgotten.
    pub(crate) fn forgotten(&mut self, images: &[ImageHash]) -> Result<(), GalleryError> {
        self.strike(TO_FORGET, images)
    }

    /// Takes images off a list.
    fn strike(
        &mut self,
        list: TableDefinition<'static, [u8; 32], ()>,
        images: &[ImageHash],
    ) -> Result<(), GalleryError> {
        if images.is_empty() {
            return Ok(());
        }
        let written = |database: &Database| -> Result<(), redb::Error> {
            let transaction = database.begin_write()?;
            {
                let mut list = transaction.open_table(list)?;
                for hash in images {
                    list.remove(hash.bytes())?;
                }
                // What was on the list stays in the file until it is compacted.
                let mut meta = transaction.open_table(META)?;
                if meta.get(UNCOMPACTED_SINCE)?.is_none() {
                    meta.insert(UNCOMPACTED_SINCE, unix_ms())?;
                }
            }
            Ok(transaction.commit()?)
        };
        let database = self.database()?;
        written(&database).map_err(|cause| {
            drop(database);
            self.give_up();
            GalleryError::from_write("writing the store", &cause)
        })
    }
}
