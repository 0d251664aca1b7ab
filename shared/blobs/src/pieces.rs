use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream::{BoxStream, Stream, StreamExt};
use object_store::{MultipartUpload, ObjectStoreExt, WriteMultipart};

use crate::blobs::location;
use crate::{BlobError, Blobs};

/// Bytes of a piece that is written: servers take none below 5 MiB but the last.
pub const PIECE_BYTES: usize = 8 << 20;
/// Pieces under way at a time.
const PARALLEL_PIECES: usize = 2;

/// An object of any size that is written in pieces. It is there once [`Upload::finish`] has returned; dropped before that it
/// never was, though a server keeps its pieces until it is told to clear unfinished uploads.
#[derive(Debug)]
pub struct Upload {
    blobs: Blobs,
    key: String,
    pieces: WriteMultipart,
}

impl Blobs {
    /// Begins to write an object of any size, in place of any other of that name.
    ///
    /// # Errors
    /// [`BlobError`].
    pub async fn upload(&self, key: &str, until: Instant) -> Result<Upload, BlobError> {
        let location = location(key)?;
        let begun: Box<dyn MultipartUpload> =
            self.in_time("writing", key, until, self.store.put_multipart(&location)).await?;
        let pieces = WriteMultipart::new_with_chunk_size(begun, PIECE_BYTES);
        Ok(Upload { blobs: self.clone(), key: key.to_owned(), pieces })
    }

    /// The bytes of an object of any size as they come, each piece within `wait`.
    ///
    /// # Errors
    /// [`BlobError`], of which one within the stream ends it.
    pub async fn read(
        &self,
        key: &str,
        wait: Duration,
    ) -> Result<impl Stream<Item = Result<Bytes, BlobError>> + Send + Unpin + use<>, BlobError> {
        const OPERATION: &str = "reading";
        let location = location(key)?;
        let found = self.in_time(OPERATION, key, Instant::now() + wait, self.store.get(&location)).await?;
        let pieces: BoxStream<'static, object_store::Result<Bytes>> = found.into_stream();
        let (blobs, key) = (self.clone(), key.to_owned());
        let read = futures::stream::unfold(Some((blobs, key, pieces)), move |state| async move {
            let (blobs, key, mut pieces) = state?;
            let next = async { pieces.next().await.transpose() };
            match blobs.in_time(OPERATION, &key, Instant::now() + wait, next).await {
                Ok(None) => None,
                Ok(Some(piece)) => Some((Ok(piece), Some((blobs, key, pieces)))),
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok(read.boxed())
    }
}

impl Upload {
    /// Appends bytes; waits while earlier pieces are under way.
    ///
    /// # Errors
    /// [`BlobError`], also for an earlier piece; all that is left then is to begin anew.
    pub async fn write(&mut self, bytes: Bytes, until: Instant) -> Result<(), BlobError> {
        let waiting = self.pieces.wait_for_capacity(PARALLEL_PIECES);
        self.blobs.in_time("writing", &self.key, until, waiting).await?;
        self.pieces.put(bytes);
        Ok(())
    }

    /// Makes the object be there, durably.
    ///
    /// # Errors
    /// [`BlobError`]; after [`BlobError::TimedOut`] and [`BlobError::Unavailable`] it may be there.
    pub async fn finish(self, until: Instant) -> Result<(), BlobError> {
        self.blobs.in_time("writing", &self.key, until, self.pieces.finish()).await.map(drop)
    }

    /// Gives up, and clears what was written.
    ///
    /// # Errors
    /// [`BlobError`] where pieces stay.
    pub async fn abort(self, until: Instant) -> Result<(), BlobError> {
        self.blobs.in_time("giving up", &self.key, until, self.pieces.abort()).await
    }
}
