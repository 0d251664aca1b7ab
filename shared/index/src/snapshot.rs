use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use thicket_engine::VectorIndex;

use crate::{FaissIndex, MAX_DIMENSION};

/// Bytes of the caller's tag in a snapshot.
pub const TAG_BYTES: usize = 16;

/// First bytes of a snapshot: name and version of the format.
const MAGIC: [u8; 8] = *b"THKTIDX1";
/// Magic, dimension (u32), count (u64), tag.
const HEADER_BYTES: usize = 8 + 4 + 8 + TAG_BYTES;
const CHECKSUM_BYTES: usize = blake3::OUT_LEN;
/// Vectors that are read and added at a time.
const ROWS_PER_BLOCK: usize = 1024;

/// Why a snapshot was not written or not believed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The file could not be written or read.
    #[error("cannot {operation} snapshot {path}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file is no snapshot, or its bytes are not those that were written.
    #[error("snapshot {path} is damaged: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// The snapshot is sound, but of another state of the truth.
    #[error("snapshot {path} is of another version of the data")]
    Stale {
        /// The file.
        path: PathBuf,
    },
}

impl FaissIndex {
    /// Writes the index to `path`, whole or not at all: to a file beside it first, synced, then renamed.
    ///
    /// `tag` names the state of the data that the index was built from; [`Self::load`] asks for it again. All numbers
    /// in the file are little-endian; a BLAKE3 checksum of everything before it ends the file.
    ///
    /// # Errors
    /// [`SnapshotError::Io`]; an older snapshot at `path` is then left as it was.
    pub fn save(&self, path: &Path, tag: &[u8; TAG_BYTES]) -> Result<(), SnapshotError> {
        let unfinished = path.with_extension("unfinished");
        let written = self.write_to(&unfinished, tag).and_then(|()| std::fs::rename(&unfinished, path));
        let written = written.and_then(|()| path.parent().map_or(Ok(()), sync_directory));
        if written.is_err() {
            // A full disk must not stay full because of this file.
            let _ = std::fs::remove_file(&unfinished);
        }
        written.map_err(|source| SnapshotError::Io { operation: "write", path: path.to_owned(), source })
    }

    fn write_to(&self, path: &Path, tag: &[u8; TAG_BYTES]) -> io::Result<()> {
        let mut out =
            HashingWriter { file: BufWriter::new(File::create(path)?), hash: blake3::Hasher::new() };
        out.write_all(&MAGIC)?;
        out.write_all(&(self.dimension() as u32).to_le_bytes())?;
        out.write_all(&(self.len() as u64).to_le_bytes())?;
        out.write_all(tag)?;
        for id in self.ids() {
            out.write_all(&id.to_le_bytes())?;
        }
        let mut bytes = Vec::with_capacity(ROWS_PER_BLOCK * 4);
        for block in self.data().chunks(ROWS_PER_BLOCK) {
            bytes.clear();
            bytes.extend(block.iter().flat_map(|value| value.to_le_bytes()));
            out.write_all(&bytes)?;
        }
        let checksum = out.hash.finalize();
        out.file.write_all(checksum.as_bytes())?;
        let file = out.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()
    }

    /// Reads a snapshot that [`Self::save`] wrote with the same `tag`.
    ///
    /// The file is verified to its last byte (length, checksum, unique ids, finite values) before an index comes back.
    ///
    /// # Errors
    /// [`SnapshotError::Stale`] where the tag differs, [`SnapshotError::Damaged`] where the bytes do not fit,
    /// [`SnapshotError::Io`] where the file cannot be read.
    pub fn load(path: &Path, dimension: usize, tag: &[u8; TAG_BYTES]) -> Result<Self, SnapshotError> {
        let read_failed = |source| SnapshotError::Io { operation: "read", path: path.to_owned(), source };
        let damaged = |reason: String| SnapshotError::Damaged { path: path.to_owned(), reason };
        let file = File::open(path).map_err(read_failed)?;
        let length = file.metadata().map_err(read_failed)?.len();
        let mut input =
            HashingReader { file: BufReader::with_capacity(1 << 16, file), hash: blake3::Hasher::new() };

        if length < (HEADER_BYTES + CHECKSUM_BYTES) as u64 {
            return Err(damaged(format!("{length} bytes are fewer than a header")));
        }
        let magic: [u8; 8] = input.array().map_err(read_failed)?;
        let found_dimension = u32::from_le_bytes(input.array().map_err(read_failed)?) as usize;
        let count = u64::from_le_bytes(input.array().map_err(read_failed)?);
        let found_tag: [u8; TAG_BYTES] = input.array().map_err(read_failed)?;
        if magic != MAGIC {
            return Err(damaged("it does not start as a snapshot does".to_owned()));
        }
        if found_dimension != dimension || dimension > MAX_DIMENSION {
            return Err(damaged(format!("it holds vectors of {found_dimension} values, not {dimension}")));
        }
        // The length is checked before anything is allocated by the count.
        let expected = count
            .checked_mul(8 + 4 * dimension as u64)
            .and_then(|body| body.checked_add((HEADER_BYTES + CHECKSUM_BYTES) as u64));
        if expected != Some(length) {
            return Err(damaged(format!("{length} bytes do not fit {count} vectors of {dimension} values")));
        }
        let count = count as usize;

        let mut ids = Vec::with_capacity(count);
        for _ in 0..count {
            ids.push(u64::from_le_bytes(input.array().map_err(read_failed)?));
        }
        let mut index = Self::new(dimension).map_err(|cause| damaged(cause.to_string()))?;
        let mut bytes = vec![0u8; ROWS_PER_BLOCK * dimension * 4];
        for block in ids.chunks(ROWS_PER_BLOCK) {
            let bytes = &mut bytes[..block.len() * dimension * 4];
            input.read_exact(bytes).map_err(read_failed)?;
            let (values, _) = bytes.as_chunks::<4>();
            let values: Vec<f32> = values.iter().map(|value| f32::from_le_bytes(*value)).collect();
            index.add(block, &values).map_err(|cause| damaged(cause.to_string()))?;
        }
        let checksum = input.hash.finalize();
        let mut found = [0u8; CHECKSUM_BYTES];
        input.file.read_exact(&mut found).map_err(read_failed)?;
        if checksum != blake3::Hash::from_bytes(found) {
            return Err(damaged("the checksum does not match".to_owned()));
        }
        // Only after the checksum: a flipped bit in the tag is damage, not age.
        if &found_tag != tag {
            return Err(SnapshotError::Stale { path: path.to_owned() });
        }
        Ok(index)
    }
}

/// Makes the rename of a file in `directory` durable.
fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

struct HashingWriter {
    file: BufWriter<File>,
    hash: blake3::Hasher,
}

impl HashingWriter {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.file.write_all(bytes)
    }
}

struct HashingReader {
    file: BufReader<File>,
    hash: blake3::Hasher,
}

impl HashingReader {
    fn read_exact(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_exact(bytes)?;
        self.hash.update(bytes);
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0u8; N];
        self.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}
