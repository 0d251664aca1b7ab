use std::io::{self, Write};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use parquet::data_type::{ByteArray, ByteArrayType, DataType, FloatType, Int32Type, Int64Type};
use parquet::errors::{ParquetError, Result};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};

use crate::columns::{Lists, Optional, properties, schema};
use crate::{FileError, Ranking, Row};

/// Writes a file of any size, a group of rows at a time, handing out its bytes as they come.
pub struct FileWriter {
    writer: SerializedFileWriter<Sink>,
    sink: Sink,
}

impl std::fmt::Debug for FileWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileWriter").field("bytes", &self.writer.bytes_written()).finish()
    }
}

/// The rows as a file.
///
/// # Errors
/// [`FileError::Write`] where a number is out of its column's range.
pub fn write(rows: &[Row]) -> std::result::Result<Bytes, FileError> {
    let mut writer = FileWriter::new()?;
    let mut file = writer.append(rows)?.to_vec();
    file.extend_from_slice(&writer.finish()?);
    Ok(file.into())
}

impl FileWriter {
    /// An empty file.
    ///
    /// # Errors
    /// None that a caller can cause.
    pub fn new() -> std::result::Result<Self, FileError> {
        let sink = Sink::default();
        let begun = schema().and_then(|schema| SerializedFileWriter::new(sink.clone(), schema, properties()));
        Ok(Self { writer: begun.map_err(failed)?, sink })
    }

    /// Appends rows as one group, and gives the bytes that follow those given before. The groups are part of the file's
    /// bytes: the same rows in other groups are another file.
    ///
    /// # Errors
    /// [`FileError::Write`] where a number is out of its column's range.
    pub fn append(&mut self, rows: &[Row]) -> std::result::Result<Bytes, FileError> {
        if !rows.is_empty() {
            self.group(rows).map_err(failed)?;
        }
        self.writer.flush().map_err(|error| FileError::Write { reason: error.to_string() })?;
        Ok(self.sink.take())
    }

    /// Ends the file, and gives its last bytes.
    ///
    /// # Errors
    /// None that a caller can cause.
    pub fn finish(mut self) -> std::result::Result<Bytes, FileError> {
        self.writer.finish().map_err(failed)?;
        self.writer.flush().map_err(|error| FileError::Write { reason: error.to_string() })?;
        Ok(self.sink.take())
    }

    fn group(&mut self, rows: &[Row]) -> Result<()> {
        let mut group = self.writer.next_row_group()?;
        let found = || rows.iter().map(|row| row.result.as_ref().ok());
        let error = || rows.iter().map(|row| row.result.as_ref().err());

        let positions = rows.iter().map(|row| number(row.position)).collect::<Result<Vec<i64>>>()?;
        put::<Int64Type>(&mut group, &positions, None, None)?;
        let ids: Vec<ByteArray> = rows.iter().map(|row| text(&row.query_id)).collect();
        put::<ByteArrayType>(&mut group, &ids, None, None)?;
        texts(&mut group, found().map(|found| Some(text(&found?.outcome))))?;
        let anchor = || found().map(|found| found?.anchor.as_ref());
        texts(&mut group, anchor().map(|anchor| Some(text(&anchor?.id))))?;
        texts(&mut group, anchor().map(|anchor| Some(text(&anchor?.image))))?;
        let rounds = anchor().map(|anchor| anchor.map(|anchor| number(anchor.round)).transpose());
        let rounds = Optional::of(rounds.collect::<Result<Vec<Option<i32>>>>()?.into_iter());
        put::<Int32Type>(&mut group, &rounds.values, Some(&rounds.levels), None)?;
        texts(&mut group, found().map(|found| found?.refined_text.as_deref().map(text)))?;
        for kind in 0..3 {
            let asked = |found: Option<&Ranking>| found.map_or(0, |found| found.questions[kind]);
            let asked = found().map(|found| number(asked(found))).collect::<Result<Vec<i32>>>()?;
            put::<Int32Type>(&mut group, &asked, None, None)?;
        }
        let items = || found().map(|found| found.map(|found| found.items.as_slice()).unwrap_or_default());
        lists::<ByteArrayType, _>(&mut group, items().map(|items| items.iter().map(|item| text(&item.id))))?;
        lists::<ByteArrayType, _>(
            &mut group,
            items().map(|items| items.iter().map(|item| text(&item.image))),
        )?;
        lists::<FloatType, _>(&mut group, items().map(|items| items.iter().map(|item| item.score)))?;
        texts(&mut group, error().map(|error| Some(text(&error?.code))))?;
        texts(&mut group, error().map(|error| Some(text(&error?.reason))))?;
        texts(&mut group, error().map(|error| Some(text(&error?.message))))?;
        group.close().map(drop)
    }
}

/// Writes the next column.
fn put<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, Sink>,
    values: &[T::T],
    definitions: Option<&[i16]>,
    repetitions: Option<&[i16]>,
) -> Result<()> {
    let mut column =
        group.next_column()?.ok_or_else(|| ParquetError::General("there is no such column".to_owned()))?;
    column.typed::<T>().write_batch(values, definitions, repetitions)?;
    column.close()
}

fn lists<T: DataType, L: IntoIterator<Item = T::T>>(
    group: &mut SerializedRowGroupWriter<'_, Sink>,
    rows: impl Iterator<Item = L>,
) -> Result<()> {
    let column = Lists::of(rows);
    put::<T>(group, &column.values, Some(&column.definitions), Some(&column.repetitions))
}

fn texts(
    group: &mut SerializedRowGroupWriter<'_, Sink>,
    rows: impl Iterator<Item = Option<ByteArray>>,
) -> Result<()> {
    let column = Optional::of(rows);
    put::<ByteArrayType>(group, &column.values, Some(&column.levels), None)
}

fn text(text: &str) -> ByteArray {
    ByteArray::from(text.as_bytes().to_vec())
}

fn number<T: Copy + std::fmt::Display, N: TryFrom<T>>(number: T) -> Result<N> {
    N::try_from(number).map_err(|_| ParquetError::General(format!("{number} is out of range")))
}

fn failed(error: ParquetError) -> FileError {
    FileError::Write { reason: error.to_string() }
}

/// Keeps what is written until it is taken; the writer itself cannot be asked for it.
#[derive(Debug, Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Sink {
    fn take(&self) -> Bytes {
        std::mem::take(&mut *self.0.lock()).into()
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
