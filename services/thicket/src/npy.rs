//! NumPy `.npy` files, read strictly.
//!
//! A file is hostile until its header, its dtype and its length agree: nothing is allocated on the word of a header.
//! C and Fortran order and both byte orders are read; what is written is C order, little endian, version 1.0.

use std::fs::{File, Permissions};
use std::io::{BufReader, BufWriter, Cursor, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

mod header;

use header::Header;

/// Values converted at a time.
const CHUNK: usize = 1 << 16;

/// Why a file was refused. Each names the field the file was given for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NpyError {
    #[error("{field}: {path} cannot be read: {reason}")]
    Unreadable { field: &'static str, path: String, reason: String },
    #[error("{field}: {path} is empty")]
    Empty { field: &'static str, path: String },
    #[error("{field}: {path} is not an npy file: {reason}")]
    Format { field: &'static str, path: String, reason: String },
    #[error("{field}: {path} holds {actual}, {expected} expected")]
    Dtype { field: &'static str, path: String, expected: &'static str, actual: String },
    #[error("{field}: {path} has {actual} dimensions, {expected} expected")]
    Dimensions { field: &'static str, path: String, expected: usize, actual: usize },
    #[error(
        "{field}: {path} is cut or has something after its end: shape {shape} of {dtype} takes {expected} bytes, the file has {actual}"
    )]
    Length { field: &'static str, path: String, shape: String, dtype: String, expected: u64, actual: u64 },
    #[error("{field}: {path} has at {index} the value {actual}, {expected} expected")]
    Value { field: &'static str, path: String, index: String, expected: &'static str, actual: String },
}

/// A row-major matrix of f32.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Matrix<T> {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) values: Vec<T>,
}

/// Reads a float32 or float64 matrix; NaN may be in it, a float64 beyond the range of float32 may not.
pub(crate) fn read_floats(field: &'static str, path: &Path) -> Result<Matrix<f32>, NpyError> {
    let expected = "float32 or float64";
    let file = Source::open(field, path, 2, expected, |dtype| matches!(dtype, "f4" | "f8"))?;
    let (rows, columns) = (file.header.shape[0], file.header.shape[1]);
    let values = match file.header.dtype.width {
        4 => file.read(|bytes| Some(f32::from_le_bytes(*bytes))),
        _ => file.read(|bytes| {
            let wide = f64::from_le_bytes(*bytes);
            let narrow = wide as f32;
            (narrow.is_finite() || !wide.is_finite()).then_some(narrow)
        }),
    };
    Ok(Matrix { rows, columns, values: values? })
}

/// Reads a list of integers of any width that fit int64.
pub(crate) fn read_integers(field: &'static str, path: &Path) -> Result<Vec<i64>, NpyError> {
    let file = Source::open(field, path, 1, "int64 or int32", |dtype| {
        matches!(dtype, "i1" | "i2" | "i4" | "i8" | "u1" | "u2" | "u4" | "u8")
    })?;
    match (file.header.dtype.kind, file.header.dtype.width) {
        ('i', 1) => file.read(|bytes| Some(i8::from_le_bytes(*bytes).into())),
        ('i', 2) => file.read(|bytes| Some(i16::from_le_bytes(*bytes).into())),
        ('i', 4) => file.read(|bytes| Some(i32::from_le_bytes(*bytes).into())),
        ('i', _) => file.read(|bytes| Some(i64::from_le_bytes(*bytes))),
        (_, 1) => file.read(|bytes| Some(u8::from_le_bytes(*bytes).into())),
        (_, 2) => file.read(|bytes| Some(u16::from_le_bytes(*bytes).into())),
        (_, 4) => file.read(|bytes| Some(u32::from_le_bytes(*bytes).into())),
        _ => file.read(|bytes| i64::try_from(u64::from_le_bytes(*bytes)).ok()),
    }
}

/// Reads a matrix of uint8 (or bool) that are 0 or 1.
pub(crate) fn read_flags(field: &'static str, path: &Path) -> Result<Matrix<u8>, NpyError> {
    let file = Source::open(field, path, 2, "uint8 of 0 and 1", |dtype| matches!(dtype, "u1" | "b1"))?;
    let (rows, columns) = (file.header.shape[0], file.header.shape[1]);
    Ok(Matrix { rows, columns, values: file.read(|&[byte]| (byte <= 1).then_some(byte))? })
}

/// Writes a matrix. The file appears under its name only when it is whole.
pub(crate) fn write_floats(path: &Path, matrix: &Matrix<f32>) -> std::io::Result<()> {
    // A device or a pipe is written as it is: it cannot be replaced by a rename.
    if std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir()) {
        return write_to(std::fs::OpenOptions::new().write(true).open(path)?, matrix);
    }
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let file = tempfile::Builder::new().permissions(Permissions::from_mode(0o666)).tempfile_in(folder)?;
    write_to(file.as_file(), matrix)?;
    file.persist(path)?;
    Ok(())
}

fn write_to(file: impl Write, matrix: &Matrix<f32>) -> std::io::Result<()> {
    let mut writer = BufWriter::with_capacity(CHUNK, file);
    writer.write_all(&header::write("<f4", &[matrix.rows, matrix.columns]))?;
    for value in &matrix.values {
        writer.write_all(&value.to_le_bytes())?;
    }
    writer.flush()
}

/// An opened file whose header has been checked against its length.
struct Source {
    field: &'static str,
    path: String,
    expected: &'static str,
    header: Header,
    reader: Box<dyn Read>,
}

impl Source {
    fn open(
        field: &'static str,
        path: &Path,
        dimensions: usize,
        expected: &'static str,
        accepts: impl Fn(&str) -> bool,
    ) -> Result<Self, NpyError> {
        let shown = path.display().to_string();
        let unreadable = |error: std::io::Error| NpyError::Unreadable {
            field,
            path: shown.clone(),
            reason: error.to_string(),
        };
        let (mut reader, length) = bytes_of(path).map_err(unreadable)?;
        if length == 0 {
            return Err(NpyError::Empty { field, path: shown });
        }
        let (header, header_length) = header::read(&mut reader).map_err(|reason| NpyError::Format {
            field,
            path: shown.clone(),
            reason,
        })?;
        let dtype = header.dtype;
        if !accepts(&format!("{}{}", dtype.kind, dtype.width)) {
            return Err(NpyError::Dtype { field, path: shown, expected, actual: dtype.to_string() });
        }
        if header.shape.len() != dimensions {
            let actual = header.shape.len();
            return Err(NpyError::Dimensions { field, path: shown, expected: dimensions, actual });
        }
        let size =
            header.shape.iter().try_fold(dtype.width as u64, |size, side| size.checked_mul(*side as u64));
        let held = length.saturating_sub(header_length);
        if size != Some(held) {
            return Err(NpyError::Length {
                field,
                path: shown,
                shape: format!("{:?}", header.shape),
                dtype: dtype.to_string(),
                expected: size.unwrap_or(u64::MAX),
                actual: held,
            });
        }
        Ok(Self { field, path: shown, expected, header, reader })
    }

    /// Converts every value; `convert` gets little-endian bytes and may refuse.
    fn read<T: Copy + Default, const WIDTH: usize>(
        mut self,
        convert: impl Fn(&[u8; WIDTH]) -> Option<T>,
    ) -> Result<Vec<T>, NpyError> {
        let count: usize = self.header.shape.iter().product();
        let mut values = vec![T::default(); count];
        let mut buffer = vec![0u8; CHUNK * WIDTH];
        let mut done = 0;
        while done < count {
            let chunk = &mut buffer[..CHUNK.min(count - done) * WIDTH];
            self.reader.read_exact(chunk).map_err(|error| NpyError::Unreadable {
                field: self.field,
                path: self.path.clone(),
                reason: error.to_string(),
            })?;
            for bytes in chunk.as_chunks_mut::<WIDTH>().0 {
                if self.header.dtype.big_endian {
                    bytes.reverse();
                }
                let place = self.header.row_major(done);
                values[place] = convert(bytes).ok_or_else(|| self.refuse(place, bytes))?;
                done += 1;
            }
        }
        Ok(values)
    }

    fn refuse(&self, place: usize, bytes: &[u8]) -> NpyError {
        let index = match *self.header.shape {
            [_, columns] => format!("[{}, {}]", place / columns, place % columns),
            _ => format!("[{place}]"),
        };
        let mut wide = [0u8; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        let actual = match self.header.dtype.kind {
            'f' => f64::from_le_bytes(wide).to_string(),
            _ => u64::from_le_bytes(wide).to_string(),
        };
        NpyError::Value { field: self.field, path: self.path.clone(), index, expected: self.expected, actual }
    }
}

/// The bytes of a file and how many there are. A pipe has no length beforehand and is read to its end.
fn bytes_of(path: &Path) -> std::io::Result<(Box<dyn Read>, u64)> {
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_file() {
        return Ok((Box::new(BufReader::new(file)), metadata.len()));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let length = bytes.len() as u64;
    Ok((Box::new(Cursor::new(bytes)), length))
}

#[cfg(test)]
mod tests;
