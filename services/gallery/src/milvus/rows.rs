//! Items as rows of Milvus.

use std::collections::BTreeMap;

use thicket_milvus::{Column, Columns, Field, Kind, MilvusError, Token, Values};
use thicket_proto::v1;
use uuid::Uuid;

use crate::backend::Facts;
use crate::error::GalleryError;
use crate::facets::Marks;
use crate::milvus::{names, unavailable};
use crate::record::{ImageFormat, ImageHash, ImageRef};
use crate::write::Put;

pub(super) const KEY: &str = "key";
pub(super) const ID: &str = "id";
pub(super) const SEQUENCE: &str = "sequence";
pub(super) const VECTOR: &str = "vector";
pub(super) const IMAGE: &str = "image";
pub(super) const OBJECT: &str = "object";
pub(super) const CAMERA: &str = "camera";
pub(super) const CAPTURED: &str = "captured";
pub(super) const TAGS: &str = "tags";
const METADATA: &str = "metadata";

/// Stands for no time of capture: earlier than any that can be written.
pub(super) const NEVER: i64 = -(1 << 62);
/// Most bytes of a text in Milvus.
const TEXT_BYTES: usize = 65_535;
/// Most tags of an item: as many as fit into one value of metadata.
const MOST_TAGS: usize = 512;

/// The fields of a collection.
pub(super) fn fields(dimension: usize) -> Vec<Field> {
    let word = Kind::Text { bytes: names::KEY_CHARS };
    let field = |name, kind| Field { name, kind };
    vec![
        field(KEY, Kind::Key { bytes: names::KEY_CHARS }),
        field(ID, Kind::Text { bytes: crate::check::ID_BYTES }),
        field(SEQUENCE, Kind::Number),
        field(VECTOR, Kind::Vector { dimension }),
        field(IMAGE, Kind::Text { bytes: 64 }),
        field(OBJECT, Kind::Text { bytes: 40 }),
        field(CAMERA, word),
        field(CAPTURED, Kind::Number),
        field(TAGS, Kind::Texts { count: MOST_TAGS, bytes: names::KEY_CHARS }),
        field(METADATA, Kind::Text { bytes: TEXT_BYTES }),
    ]
}

/// Where the bytes of one item's image are. Every write of an item has an object of its own, so that nobody has to count
/// who else uses it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Object {
    pub(super) hash: ImageHash,
    /// A letter for the format, then a random number.
    pub(super) name: Token,
}

impl Object {
    /// A new one.
    pub(super) fn new(image: &ImageRef) -> Self {
        let letter = match image.format {
            ImageFormat::Jpeg => 'j',
            ImageFormat::Png => 'p',
            ImageFormat::Webp => 'w',
        };
        match Token::new(format!("{letter}{}", Uuid::new_v4().simple())) {
            Some(name) => Self { hash: image.hash, name },
            None => unreachable!("a letter and hexadecimal digits"),
        }
    }

    /// That of a row; `None` where the item has no image.
    pub(super) fn of(image: &str, object: String) -> Option<Self> {
        Some(Self { hash: ImageHash::from_hex(image)?, name: Token::new(object)? })
    }

    pub(super) fn format(&self) -> Option<ImageFormat> {
        match self.name.as_str().as_bytes().first()? {
            b'j' => Some(ImageFormat::Jpeg),
            b'p' => Some(ImageFormat::Png),
            b'w' => Some(ImageFormat::Webp),
            _ => None,
        }
    }

    /// Its name in the object store, under its collection's.
    pub(super) fn path(&self, collection: u64) -> String {
        let hash = self.hash.to_string();
        format!("{}/{}/{hash}/{}", folder(collection), &hash[..2], self.name.as_str())
    }

    /// The reverse of [`Self::path`]: the collection and the object; `None` for an object that is none of an item.
    pub(super) fn parse(path: &str) -> Option<(u64, Self)> {
        let mut parts = path.split('/');
        let (collection, _, hash, name) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let collection = u64::from_str_radix(collection.strip_prefix('c')?, 16).ok()?;
        let object = Self::of(hash, name.to_owned())?;
        parts.next().is_none().then_some((collection, object))
    }
}

/// What the objects of a collection are under.
pub(super) fn folder(collection: u64) -> String {
    format!("c{collection:016x}")
}

/// A row to be written.
#[derive(Debug)]
pub(super) struct NewRow {
    pub(super) put: Put,
    pub(super) key: Token,
    pub(super) sequence: i64,
    pub(super) object: Option<Object>,
}

/// Metadata as Milvus keeps it.
///
/// # Errors
/// [`GalleryError::Invalid`] where it needs more than Milvus takes: 35 kB of ordinary text fit, control characters may not.
pub(super) fn metadata_text(metadata: &BTreeMap<String, String>) -> Result<String, GalleryError> {
    let text = serde_json::to_string(metadata).unwrap_or_default();
    if text.len() > TEXT_BYTES {
        let message = format!("at most {TEXT_BYTES} bytes as JSON in Milvus, got {}", text.len());
        return Err(GalleryError::invalid("metadata", "METADATA_INVALID", message));
    }
    Ok(text)
}

/// The columns of rows.
pub(super) fn columns(rows: &[NewRow], dimension: usize) -> Vec<Column> {
    let texts = |name, text: &dyn Fn(&NewRow) -> String| Column {
        name,
        values: Values::Texts(rows.iter().map(text).collect()),
    };
    let marks: Vec<Marks<'_>> = rows.iter().map(|row| Marks::of(&row.put.item.metadata)).collect();
    let camera = |marks: &Marks<'_>| marks.camera.map(|name| names::camera(name).into_string());
    let tags = |marks: &Marks<'_>| {
        let tags: std::collections::BTreeSet<&str> = marks.tags.iter().copied().collect();
        tags.into_iter().map(|tag| names::tag(tag).into_string()).collect()
    };
    vec![
        texts(KEY, &|row| row.key.as_str().to_owned()),
        texts(ID, &|row| row.put.item.id.clone()),
        Column { name: SEQUENCE, values: Values::Numbers(rows.iter().map(|row| row.sequence).collect()) },
        Column {
            name: VECTOR,
            values: Values::Vectors {
                dimension,
                values: rows.iter().flat_map(|row| row.put.vector.iter().copied()).collect(),
            },
        },
        texts(IMAGE, &|row| row.object.as_ref().map(|object| object.hash.to_string()).unwrap_or_default()),
        texts(OBJECT, &|row| {
            row.object.as_ref().map(|object| object.name.as_str().to_owned()).unwrap_or_default()
        }),
        Column {
            name: CAMERA,
            values: Values::Texts(marks.iter().map(|marks| camera(marks).unwrap_or_default()).collect()),
        },
        Column {
            name: CAPTURED,
            values: Values::Numbers(marks.iter().map(|marks| marks.captured.unwrap_or(NEVER)).collect()),
        },
        Column { name: TAGS, values: Values::Lists(marks.iter().map(tags).collect()) },
        texts(METADATA, &|row| serde_json::to_string(&row.put.item.metadata).unwrap_or_default()),
    ]
}

/// What a write has to know of the rows that are there already.
pub(super) const HELD_FIELDS: &[&str] = &[KEY, SEQUENCE, IMAGE, OBJECT];

/// A row that is there already.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) key: String,
    pub(super) sequence: i64,
    pub(super) object: Option<Object>,
}

pub(super) fn held(mut rows: Columns) -> Result<Vec<Held>, MilvusError> {
    let (keys, sequences) = (rows.texts(KEY)?, rows.numbers(SEQUENCE)?);
    let objects = rows.texts(IMAGE)?.into_iter().zip(rows.texts(OBJECT)?);
    let rows = keys.into_iter().zip(sequences).zip(objects);
    Ok(rows
        .map(|((key, sequence), (image, object))| Held { key, sequence, object: Object::of(&image, object) })
        .collect())
}

/// What a caller sees of a row.
pub(super) const ITEM_FIELDS: &[&str] = &[KEY, ID, IMAGE, METADATA];

/// Items by the keys of their rows.
pub(super) fn items(facts: &Facts, rows: &mut Columns) -> Result<Vec<(String, v1::Item)>, GalleryError> {
    let mut texts = |field| rows.texts(field).map_err(unavailable);
    let (keys, ids, images, metadata) = (texts(KEY)?, texts(ID)?, texts(IMAGE)?, texts(METADATA)?);
    let rows = keys.into_iter().zip(ids).zip(images.into_iter().zip(metadata));
    rows.map(|((key, id), (image_hash, metadata))| {
        let metadata = serde_json::from_str(&metadata).map_err(|cause| {
            let reason = format!("metadata of item {id:?} of collection {:?}: {cause}", facts.name);
            GalleryError::internal("reading a row", reason)
        })?;
        Ok((key, v1::Item { id, image_hash, metadata }))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_an_object_says_what_it_is_of() {
        let image = ImageRef { hash: ImageHash::of(b"x"), format: ImageFormat::Webp };
        let object = Object::new(&image);
        assert_eq!(object.format(), Some(ImageFormat::Webp));
        assert_eq!(Object::parse(&object.path(0xab)), Some((0xab, object.clone())));
        assert_ne!(Object::new(&image), object, "every write has an object of its own");
        assert_eq!(Object::parse("outbox/1"), None);
    }

    #[test]
    fn metadata_that_milvus_cannot_hold_is_refused() {
        let of = |value: String| (0..32).map(|i| (i.to_string(), value.clone())).collect();
        metadata_text(&of("x".repeat(1024))).unwrap();
        let refused = metadata_text(&of("\u{1}".repeat(1024)));
        assert!(matches!(refused, Err(GalleryError::Invalid { reason: "METADATA_INVALID", .. })));
    }
}
