use half::bf16;

#[cfg(target_arch = "x86_64")]
mod tiles;

/// A head of attention: rows of `dim` values each.
#[derive(Debug)]
pub struct Head<Q, K, V, S> {
    /// Values of a row, at least 1.
    pub dim: usize,
    /// What scores are multiplied by; positive.
    pub scale: f32,
    /// The queries.
    pub queries: Q,
    /// The keys.
    pub keys: K,
    /// As many values.
    pub values: V,
    /// How many of the first keys the query of a number sees, at least 1 and at most all.
    pub visible: S,
}

/// Attention in bf16 in the tiles of AMX, without the library, and the memory that a thread needs for it from head to head.
#[derive(Debug)]
pub struct TiledAttention {
    #[cfg(target_arch = "x86_64")]
    memory: tiles::Memory,
    #[cfg(not(target_arch = "x86_64"))]
    never: std::convert::Infallible,
}

impl TiledAttention {
    /// `None` on a processor without AMX in bf16, or where the system does not permit it.
    #[must_use]
    pub fn new() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        return tiles::Memory::new().map(|memory| Self { memory });
        #[cfg(not(target_arch = "x86_64"))]
        None
    }

    /// How many bytes are kept for the next head.
    #[must_use]
    pub fn kept(&self) -> usize {
        #[cfg(target_arch = "x86_64")]
        return self.memory.kept();
        #[cfg(not(target_arch = "x86_64"))]
        match self.never {}
    }

    /// Writes `softmax(scale q k^T) v` of every query to its target of `dim` values. Sums are in f32; weights are rounded to bf16
    /// before they are multiplied by the values. What becomes of a query does not depend on the others.
    ///
    /// # Panics
    /// For rows of another length, for fewer queries than targets or fewer values than keys, and for a query that sees no key or
    /// more than there are.
    pub fn attend<'a, Q, K, V, S>(
        &mut self,
        head: Head<Q, K, V, S>,
        targets: impl ExactSizeIterator<Item = &'a mut [bf16]>,
    ) where
        Q: Iterator<Item = &'a [bf16]>,
        K: Iterator<Item = &'a [bf16]>,
        V: Iterator<Item = &'a [bf16]>,
        S: Fn(usize) -> usize,
    {
        #[cfg(target_arch = "x86_64")]
        self.memory.attend(head, targets);
        #[cfg(not(target_arch = "x86_64"))]
        {
            drop((head, targets));
            match self.never {}
        }
    }
}
