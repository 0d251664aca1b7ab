use std::sync::Arc;

use parquet::basic::Compression;
use parquet::errors::Result;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesPtr};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::TypePtr;

/// The columns, in the order in which they are written and read.
const SCHEMA: &str = "
message result {
    REQUIRED INT64 position;
    REQUIRED BYTE_ARRAY query_id (UTF8);
    OPTIONAL BYTE_ARRAY outcome (UTF8);
    OPTIONAL BYTE_ARRAY anchor_id (UTF8);
    OPTIONAL BYTE_ARRAY anchor_image (UTF8);
    OPTIONAL INT32 anchor_round;
    OPTIONAL BYTE_ARRAY refined_text (UTF8);
    REQUIRED INT32 locate;
    REQUIRED INT32 describe;
    REQUIRED INT32 aggregate;
    REQUIRED GROUP item_ids (LIST) {
        REPEATED GROUP list {
            REQUIRED BYTE_ARRAY element (UTF8);
        }
    }
    REQUIRED GROUP item_images (LIST) {
        REPEATED GROUP list {
            REQUIRED BYTE_ARRAY element (UTF8);
        }
    }
    REQUIRED GROUP item_scores (LIST) {
        REPEATED GROUP list {
            REQUIRED FLOAT element;
        }
    }
    OPTIONAL BYTE_ARRAY error_code (UTF8);
    OPTIONAL BYTE_ARRAY error_reason (UTF8);
    OPTIONAL BYTE_ARRAY error_message (UTF8);
}";

pub(crate) fn schema() -> Result<TypePtr> {
    parse_message_type(SCHEMA).map(Arc::new)
}

/// Settings that are part of the file's bytes.
pub(crate) fn properties() -> WriterPropertiesPtr {
    let properties = WriterProperties::builder()
        .set_created_by("thicket".to_owned())
        .set_compression(Compression::SNAPPY)
        .set_statistics_enabled(EnabledStatistics::Chunk);
    Arc::new(properties.build())
}

/// A column of values that may be absent, and where they are.
#[derive(Debug)]
pub(crate) struct Optional<T> {
    pub(crate) values: Vec<T>,
    /// 1 where there is a value.
    pub(crate) levels: Vec<i16>,
}

impl<T> Optional<T> {
    pub(crate) fn of(rows: impl Iterator<Item = Option<T>>) -> Self {
        let mut column = Self { values: Vec::new(), levels: Vec::new() };
        for value in rows {
            column.levels.push(value.is_some().into());
            column.values.extend(value);
        }
        column
    }

    pub(crate) fn into_rows(self) -> Vec<Option<T>> {
        let mut values = self.values.into_iter();
        self.levels.into_iter().map(|level| if level == 0 { None } else { values.next() }).collect()
    }
}

/// A column of lists, which may be empty.
#[derive(Debug)]
pub(crate) struct Lists<T> {
    pub(crate) values: Vec<T>,
    /// 0 for an empty list, 1 for each value of another.
    pub(crate) definitions: Vec<i16>,
    /// 0 where a list begins.
    pub(crate) repetitions: Vec<i16>,
}

impl<T> Lists<T> {
    pub(crate) fn of<L: IntoIterator<Item = T>>(rows: impl Iterator<Item = L>) -> Self {
        let mut column = Self { values: Vec::new(), definitions: Vec::new(), repetitions: Vec::new() };
        for row in rows {
            let before = column.values.len();
            column.values.extend(row);
            let count = column.values.len() - before;
            column.definitions.extend(std::iter::repeat_n(i16::from(count > 0), count.max(1)));
            column.repetitions.push(0);
            column.repetitions.extend(std::iter::repeat_n(1, count.saturating_sub(1)));
        }
        column
    }

    pub(crate) fn into_rows(self) -> Vec<Vec<T>> {
        let mut rows: Vec<Vec<T>> = Vec::new();
        let mut values = self.values.into_iter();
        for (definition, repetition) in self.definitions.into_iter().zip(self.repetitions) {
            if repetition == 0 || rows.is_empty() {
                rows.push(Vec::new());
            }
            if definition > 0
                && let (Some(row), Some(value)) = (rows.last_mut(), values.next())
            {
                row.push(value);
            }
        }
        rows
    }
}
