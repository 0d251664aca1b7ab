use std::panic::AssertUnwindSafe;

use bytes::Bytes;
use parquet::column::reader::get_typed_column_reader;
use parquet::data_type::{ByteArray, ByteArrayType, DataType, FloatType, Int32Type, Int64Type};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};

use crate::columns::{Lists, Optional, schema};
use crate::{Anchor, FileError, Item, QueryError, Ranking, Row};

/// The rows of a file.
///
/// # Errors
/// [`FileError::Form`] where it is no file of [`crate::write`]; damage never panics.
pub fn read(file: Bytes) -> std::result::Result<Vec<Row>, FileError> {
    // The library's reader takes much of a file's description at its word and panics where it does not hold.
    let read = std::panic::catch_unwind(AssertUnwindSafe(|| rows(file)));
    match read {
        Ok(rows) => rows.map_err(|error| FileError::Form { reason: error.to_string() }),
        Err(_) => Err(FileError::Form { reason: "its description does not fit its content".to_owned() }),
    }
}

fn rows(file: Bytes) -> Result<Vec<Row>> {
    let length = i64::try_from(file.len())?;
    let reader = SerializedFileReader::new(file)?;
    for chunk in reader.metadata().row_groups().iter().flat_map(RowGroupMetaData::columns) {
        let start = chunk.dictionary_page_offset().unwrap_or_else(|| chunk.data_page_offset());
        let end = start.checked_add(chunk.compressed_size());
        if start < 0 || chunk.compressed_size() < 0 || end.is_none_or(|end| end > length) {
            return Err(general("a column lies outside of it"));
        }
    }
    if *reader.metadata().file_metadata().schema() != *schema()? {
        return Err(general("it has other columns"));
    }
    let mut rows = Vec::new();
    for group in 0..reader.num_row_groups() {
        rows.append(&mut group_rows(reader.get_row_group(group)?.as_ref())?);
    }
    Ok(rows)
}

fn group_rows(group: &dyn RowGroupReader) -> Result<Vec<Row>> {
    let mut columns = Columns { group, next: 0, rows: usize::try_from(group.metadata().num_rows())? };
    let positions = columns.required::<Int64Type>()?;
    let query_ids = columns.required::<ByteArrayType>()?;
    let mut outcomes = columns.texts()?.into_iter();
    let mut anchor_ids = columns.texts()?.into_iter();
    let mut anchor_images = columns.texts()?.into_iter();
    let mut anchor_rounds = columns.optional::<Int32Type>()?.into_iter();
    let mut refined_texts = columns.texts()?.into_iter();
    let questions = [(); 3].map(|()| columns.required::<Int32Type>());
    let [locate, describe, aggregate] = questions;
    let (locate, describe, aggregate) = (locate?, describe?, aggregate?);
    let mut item_ids = columns.lists::<ByteArrayType>()?.into_iter();
    let mut item_images = columns.lists::<ByteArrayType>()?.into_iter();
    let mut item_scores = columns.lists::<FloatType>()?.into_iter();
    let mut codes = columns.texts()?.into_iter();
    let mut reasons = columns.texts()?.into_iter();
    let mut messages = columns.texts()?.into_iter();

    let mut rows = Vec::with_capacity(columns.rows);
    for (row, (position, query_id)) in positions.into_iter().zip(&query_ids).enumerate() {
        let (outcome, anchor_id) = (outcomes.next().flatten(), anchor_ids.next().flatten());
        let (anchor_image, anchor_round) = (anchor_images.next().flatten(), anchor_rounds.next().flatten());
        let refined_text = refined_texts.next().flatten();
        let (ids, images) = (item_ids.next().unwrap_or_default(), item_images.next().unwrap_or_default());
        let scores = item_scores.next().unwrap_or_default();
        let (code, reason, message) =
            (codes.next().flatten(), reasons.next().flatten(), messages.next().flatten());
        if ids.len() != scores.len() || ids.len() != images.len() {
            return Err(general("a ranking has other ids than images or scores"));
        }
        let result = match (outcome, code) {
            (Some(outcome), None) => Ok(Ranking {
                items: ids
                    .iter()
                    .zip(&images)
                    .zip(scores)
                    .map(|((id, image), score)| Ok(Item { id: text(id)?, image: text(image)?, score }))
                    .collect::<Result<_>>()?,
                outcome,
                anchor: match (anchor_id, anchor_image, anchor_round) {
                    (Some(id), Some(image), Some(round)) => {
                        Some(Anchor { id, image, round: u32::try_from(round)? })
                    }
                    _ => None,
                },
                refined_text,
                questions: [&locate, &describe, &aggregate]
                    .map(|column| column.get(row).and_then(|count| u32::try_from(*count).ok()))
                    .map(Option::unwrap_or_default),
            }),
            (None, Some(code)) => Err(QueryError {
                code,
                reason: reason.unwrap_or_default(),
                message: message.unwrap_or_default(),
            }),
            _ => return Err(general("a row is neither a ranking nor an error")),
        };
        rows.push(Row { position: u64::try_from(position)?, query_id: text(query_id)?, result });
    }
    Ok(rows)
}

/// The columns of a group, one after the other.
struct Columns<'a> {
    group: &'a dyn RowGroupReader,
    next: usize,
    rows: usize,
}

/// Values, definition levels and repetition levels.
type Raw<T> = (Vec<T>, Vec<i16>, Vec<i16>);

impl Columns<'_> {
    fn raw<T: DataType>(&mut self) -> Result<Raw<T::T>> {
        let mut reader = get_typed_column_reader::<T>(self.group.get_column_reader(self.next)?);
        self.next += 1;
        let (mut values, mut definitions, mut repetitions) = (Vec::new(), Vec::new(), Vec::new());
        let mut read = 0;
        while read < self.rows {
            let (records, _, _) = reader.read_records(
                self.rows - read,
                Some(&mut definitions),
                Some(&mut repetitions),
                &mut values,
            )?;
            if records == 0 {
                return Err(general("a column has fewer rows than the others"));
            }
            read += records;
        }
        Ok((values, definitions, repetitions))
    }

    fn required<T: DataType>(&mut self) -> Result<Vec<T::T>> {
        Ok(self.raw::<T>()?.0)
    }

    fn optional<T: DataType>(&mut self) -> Result<Vec<Option<T::T>>> {
        let (values, levels, _) = self.raw::<T>()?;
        Ok(Optional { values, levels }.into_rows())
    }

    fn texts(&mut self) -> Result<Vec<Option<String>>> {
        let rows = self.optional::<ByteArrayType>()?.into_iter();
        rows.map(|row| row.as_ref().map(text).transpose()).collect()
    }

    fn lists<T: DataType>(&mut self) -> Result<Vec<Vec<T::T>>> {
        let (values, definitions, repetitions) = self.raw::<T>()?;
        Ok(Lists { values, definitions, repetitions }.into_rows())
    }
}

fn text(bytes: &ByteArray) -> Result<String> {
    Ok(bytes.as_utf8()?.to_owned())
}

fn general(reason: &str) -> ParquetError {
    ParquetError::General(reason.to_owned())
}
