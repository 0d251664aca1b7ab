use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use thicket_engine::VectorIndex;

use crate::native::Native;
use crate::proposer::Proposer;
use crate::{FaissIndex, IndexKind, MAX_DIMENSION};

/// Bytes of the caller's tag in a snapshot.
pub const TAG_BYTES: usize = 16;

/// First bytes of a snapshot: name and version of the format.
const MAGIC: [u8; 8] = *b"THKTIDX1";
/// The same where the index is of an approximate kind.
const MAGIC_OF_KINDS: [u8; 8] = *b"THKTIDX2";
/// Magic, dimension (u32), count (u64), tag.
const HEADER_BYTES: usize = 8 + 4 + 8 + TAG_BYTES;
/// Kind, parameters, vectors covered and trained with, bytes of the structure.
const STRUCTURE_BYTES: usize = 1 + 3 * 4 + 3 * 8;
const CHECKSUM_BYTES: usize = blake3::OUT_LEN;
/// Bytes of a structure that are copied at a time.
const COPY_BYTES: usize = 1 << 16;
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
    /// FAISS could not write its part.
    #[error("cannot write the structure of snapshot {path}: {reason}")]
    Index {
        /// The file.
        path: PathBuf,
        /// What FAISS says.
        reason: String,
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

/// What stands before the vectors of a snapshot of an approximate kind, besides the common header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Structure {
    kind: IndexKind,
    /// How many of the vectors, from the first, the structure has; 0 where it was left out.
    covered: u64,
    /// Vectors that there were when it was trained.
    trained_with: u64,
    /// Bytes of the structure, in FAISS's form, behind the vectors.
    bytes: u64,
}

/// Writes a snapshot, whole or not at all: to a file beside it first, synced, then renamed.
///
/// An exact index is its ids and vectors; an approximate one has its kind before them and its structure, if any, behind
/// them.
pub(crate) fn save(
    exact: &FaissIndex,
    kind: IndexKind,
    structure: Option<&Proposer>,
    path: &Path,
    tag: &[u8; TAG_BYTES],
) -> Result<(), SnapshotError> {
    let failed = |source| SnapshotError::Io { operation: "write", path: path.to_owned(), source };
    let unfinished = path.with_extension("unfinished");
    let graph = path.with_extension("structure");
    let written = match structure {
        Some(structure) => structure
            .native()
            .write(&graph)
            .map_err(|cause| SnapshotError::Index { path: path.to_owned(), reason: cause.to_string() }),
        None => Ok(()),
    };
    let written = written.and_then(|()| {
        let renamed =
            write_to(exact, kind, structure.map(|structure| (structure, graph.as_path())), &unfinished, tag)
                .and_then(|()| std::fs::rename(&unfinished, path))
                .and_then(|()| path.parent().map_or(Ok(()), sync_directory));
        renamed.map_err(failed)
    });
    if structure.is_some() {
        let _ = std::fs::remove_file(&graph);
    }
    if written.is_err() {
        // A full disk must not stay full because of this file.
        let _ = std::fs::remove_file(&unfinished);
    }
    written
}

fn write_to(
    exact: &FaissIndex,
    kind: IndexKind,
    structure: Option<(&Proposer, &Path)>,
    path: &Path,
    tag: &[u8; TAG_BYTES],
) -> io::Result<()> {
    let mut out = HashingWriter { file: BufWriter::new(File::create(path)?), hash: blake3::Hasher::new() };
    out.write_all(if kind == IndexKind::Exact { &MAGIC } else { &MAGIC_OF_KINDS })?;
    out.write_all(&(exact.dimension() as u32).to_le_bytes())?;
    out.write_all(&(exact.len() as u64).to_le_bytes())?;
    out.write_all(tag)?;
    let mut bytes_of_structure = None;
    if kind != IndexKind::Exact {
        let mut header = Structure { kind, covered: 0, trained_with: 0, bytes: 0 };
        if let Some((structure, file)) = structure {
            let file = File::open(file)?;
            header.covered = structure.slots() as u64;
            header.trained_with = structure.trained_with() as u64;
            header.bytes = file.metadata()?.len();
            bytes_of_structure = Some(file);
        }
        out.write_all(&header.encode())?;
    }
    for id in exact.ids() {
        out.write_all(&id.to_le_bytes())?;
    }
    let mut bytes = Vec::with_capacity(ROWS_PER_BLOCK * 4);
    for block in exact.data().chunks(ROWS_PER_BLOCK) {
        bytes.clear();
        bytes.extend(block.iter().flat_map(|value| value.to_le_bytes()));
        out.write_all(&bytes)?;
    }
    if let Some(mut file) = bytes_of_structure {
        let mut block = vec![0; COPY_BYTES];
        loop {
            let read = file.read(&mut block)?;
            if read == 0 {
                break;
            }
            out.write_all(&block[..read])?;
        }
    }
    let checksum = out.hash.finalize();
    out.file.write_all(checksum.as_bytes())?;
    let file = out.file.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()
}

/// Reads a snapshot that [`save`] wrote with the same kind and tag.
pub(crate) fn load(
    path: &Path,
    dimension: usize,
    kind: IndexKind,
    tag: &[u8; TAG_BYTES],
) -> Result<(FaissIndex, Option<Proposer>), SnapshotError> {
    let read_failed = |source| SnapshotError::Io { operation: "read", path: path.to_owned(), source };
    let damaged = |reason: String| SnapshotError::Damaged { path: path.to_owned(), reason };
    let file = File::open(path).map_err(read_failed)?;
    let length = file.metadata().map_err(read_failed)?.len();
    let mut input =
        HashingReader { file: BufReader::with_capacity(1 << 16, file), hash: blake3::Hasher::new() };

    let header_bytes = if kind == IndexKind::Exact { HEADER_BYTES } else { HEADER_BYTES + STRUCTURE_BYTES };
    if length < (header_bytes + CHECKSUM_BYTES) as u64 {
        return Err(damaged(format!("{length} bytes are fewer than a header")));
    }
    let magic: [u8; 8] = input.array().map_err(read_failed)?;
    let found_dimension = u32::from_le_bytes(input.array().map_err(read_failed)?) as usize;
    let count = u64::from_le_bytes(input.array().map_err(read_failed)?);
    let found_tag: [u8; TAG_BYTES] = input.array().map_err(read_failed)?;
    if magic != if kind == IndexKind::Exact { MAGIC } else { MAGIC_OF_KINDS } {
        return Err(damaged(format!("it does not start as a snapshot of kind {kind} does")));
    }
    let mut structure = Structure { kind, covered: 0, trained_with: 0, bytes: 0 };
    if kind != IndexKind::Exact {
        let encoded = input.array().map_err(read_failed)?;
        structure =
            Structure::decode(&encoded).ok_or_else(|| damaged("it names no known kind".to_owned()))?;
    }
    if structure.kind != kind {
        return Err(damaged(format!("it is of kind {}, not {kind}", structure.kind)));
    }
    if found_dimension != dimension || dimension > MAX_DIMENSION {
        return Err(damaged(format!("it holds vectors of {found_dimension} values, not {dimension}")));
    }
    // The length is checked before anything is allocated by the count.
    let expected = count
        .checked_mul(8 + 4 * dimension as u64)
        .and_then(|body| body.checked_add(structure.bytes))
        .and_then(|body| body.checked_add((header_bytes + CHECKSUM_BYTES) as u64));
    if expected != Some(length) || structure.covered > count {
        return Err(damaged(format!("{length} bytes do not fit {count} vectors of {dimension} values")));
    }
    let count = count as usize;

    let mut ids = Vec::with_capacity(count);
    for _ in 0..count {
        ids.push(u64::from_le_bytes(input.array().map_err(read_failed)?));
    }
    let mut index = FaissIndex::new(dimension).map_err(|cause| damaged(cause.to_string()))?;
    let mut bytes = vec![0u8; ROWS_PER_BLOCK * dimension * 4];
    for block in ids.chunks(ROWS_PER_BLOCK) {
        let bytes = &mut bytes[..block.len() * dimension * 4];
        input.read_exact(bytes).map_err(read_failed)?;
        let (values, _) = bytes.as_chunks::<4>();
        let values: Vec<f32> = values.iter().map(|value| f32::from_le_bytes(*value)).collect();
        index.add(block, &values).map_err(|cause| damaged(cause.to_string()))?;
    }
    let own_file = OwnFile(path.with_extension("structure"));
    if structure.bytes > 0 {
        // FAISS reads files only, and must not read a byte before the checksum is known to be right.
        copy_to(&mut input, structure.bytes, &own_file.0).map_err(read_failed)?;
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
    let mut proposer = None;
    if structure.bytes > 0 {
        let native =
            Native::read(&own_file.0, kind, dimension).map_err(|cause| damaged(cause.to_string()))?;
        let covered = structure.covered as usize;
        if native.len() != covered {
            return Err(damaged(format!("its structure has {} vectors, not {covered}", native.len())));
        }
        proposer = Some(Proposer::restored(native, &index, covered, structure.trained_with as usize));
    }
    Ok((index, proposer))
}

impl Structure {
    /// Kind (u8), its three parameters (u32 each, 0 where it has fewer), covered, trained_with, bytes (u64 each).
    fn encode(self) -> [u8; STRUCTURE_BYTES] {
        let (code, parameters) = match self.kind {
            IndexKind::Exact => (0u8, [0; 3]),
            IndexKind::Ivf { lists, probes } => (1, [lists, probes, 0]),
            IndexKind::Hnsw { links, ef_search, ef_construction } => (2, [links, ef_search, ef_construction]),
        };
        let mut bytes = [0; STRUCTURE_BYTES];
        bytes[0] = code;
        for (place, value) in bytes[1..13].chunks_exact_mut(4).zip(parameters) {
            place.copy_from_slice(&value.to_le_bytes());
        }
        for (place, value) in
            bytes[13..].chunks_exact_mut(8).zip([self.covered, self.trained_with, self.bytes])
        {
            place.copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8; STRUCTURE_BYTES]) -> Option<Self> {
        let (parameters, _) = bytes[1..13].as_chunks::<4>();
        let [a, b, c] = [0, 1, 2].map(|i: usize| u32::from_le_bytes(parameters[i]));
        let (numbers, _) = bytes[13..].as_chunks::<8>();
        let [covered, trained_with, bytes_behind] = [0, 1, 2].map(|i: usize| u64::from_le_bytes(numbers[i]));
        let kind = match bytes[0] {
            1 => IndexKind::Ivf { lists: a, probes: b },
            2 => IndexKind::Hnsw { links: a, ef_search: b, ef_construction: c },
            _ => return None,
        };
        Some(Self { kind, covered, trained_with, bytes: bytes_behind })
    }
}

/// A file that goes with its owner.
struct OwnFile(PathBuf);

impl Drop for OwnFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn copy_to(input: &mut HashingReader, bytes: u64, path: &Path) -> io::Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    let mut block = vec![0; COPY_BYTES];
    let mut left = bytes;
    while left > 0 {
        let part = &mut block[..left.min(COPY_BYTES as u64) as usize];
        input.read_exact(part)?;
        out.write_all(part)?;
        left -= part.len() as u64;
    }
    out.flush()
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
