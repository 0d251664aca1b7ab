//! Attention in bf16 in the tiles of AMX.

use half::bf16;

#[cfg(target_arch = "x86_64")]
mod packed;
#[cfg(target_arch = "x86_64")]
mod tiles;
#[cfg(target_arch = "x86_64")]
mod weights;

use crate::{Error, linear::length};

/// Rows of a matrix, which lie so many values apart.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub struct Rows<'a> {
    values: &'a [bf16],
    count: usize,
    dim: usize,
    stride: usize,
}

impl<'a> Rows<'a> {
    /// `count` rows of `dim` values, the first at the beginning of `values` and each `stride` values behind the one before it.
    ///
    /// # Errors
    /// [`Error`] for fewer values.
    pub fn new(values: &'a [bf16], count: usize, dim: usize, stride: usize) -> Result<Self, Error> {
        let end = |row: usize| row.checked_mul(stride).and_then(|start| start.checked_add(dim));
        let needed = if count == 0 { Some(0) } else { end(count - 1) };
        match needed {
            Some(needed) if needed <= values.len() => Ok(Self { values, count, dim, stride }),
            _ => Err(Error::Length {
                what: "rows",
                expected: needed.unwrap_or(usize::MAX),
                actual: values.len(),
            }),
        }
    }

    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    fn row(&self, row: usize) -> &'a [bf16] {
        assert!(row < self.count, "row {row} of {}", self.count);
        // SAFETY: the last row is there, so all before it are.
        unsafe { std::slice::from_raw_parts(self.values.as_ptr().add(row * self.stride), self.dim) }
    }
}

/// Some queries of a head and what they attend to.
#[derive(Debug, Clone)]
pub struct Part<'a> {
    /// The queries, at least one.
    pub queries: Rows<'a>,
    /// The keys, in two pieces one after the other: at least one.
    pub keys: [Rows<'a>; 2],
    /// As many values.
    pub values: [Rows<'a>; 2],
    /// Whether the queries stand for the last keys, at most all of them, and see no key behind their own.
    pub causal: bool,
}

#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
impl Part<'_> {
    fn keys(&self) -> usize {
        self.keys[0].count + self.keys[1].count
    }

    /// How many of the first keys a query sees.
    fn seen(&self, query: usize) -> usize {
        if self.causal { self.keys() - self.queries.count + query + 1 } else { self.keys() }
    }

    fn check(&self, dim: usize) -> Result<(), Error> {
        let Self { queries, keys, values, causal } = self;
        for rows in [queries, &keys[0], &keys[1], &values[0], &values[1]] {
            length("row of attention", rows.dim, dim)?;
        }
        for (values, keys) in values.iter().zip(keys) {
            length("rows of values", values.count, keys.count)?;
        }
        let fewest = if *causal { queries.count } else { 1 };
        if queries.count == 0 || self.keys() < fewest {
            return Err(Error::Length { what: "rows of keys", expected: fewest, actual: self.keys() });
        }
        Ok(())
    }
}

/// Attention in bf16 in the tiles of AMX, without the library.
#[derive(Debug, Clone, Copy)]
pub struct TiledAttention {
    #[cfg(not(target_arch = "x86_64"))]
    never: std::convert::Infallible,
}

impl TiledAttention {
    /// `None` on a processor without AMX in bf16, or where the system does not permit it.
    #[must_use]
    pub fn new() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        return crate::amx::available().then_some(Self {});
        #[cfg(not(target_arch = "x86_64"))]
        None
    }

    /// `softmax(scale q k^T) v` of every query, `[batch, queries, heads, dim]`, for a positive `scale`. The parts of a head follow each
    /// other in the order of its queries, the heads of a batch row follow each other, and so do the batch rows.
    ///
    /// Scores and sums are in f32. A weight is rounded to bf16 before it is multiplied by the values, and less than 2^-31 of the largest
    /// of its query is as much or nothing. What becomes of a query does not depend on the others; with a score that is not a number it
    /// is none.
    ///
    /// # Errors
    /// [`Error`] for rows of another length, other numbers of keys and values, a part without queries or keys, a causal one of more
    /// queries than keys, and parts of more or fewer queries than the shape's.
    pub fn forward(
        self,
        [batch, queries, heads, dim]: [usize; 4],
        scale: f32,
        parts: &[Part<'_>],
    ) -> Result<Vec<bf16>, Error> {
        let (mut count, mut of_head) = (0, 0);
        for part in parts {
            part.check(dim)?;
            of_head += part.queries.count;
            count += part.queries.count;
            if of_head > queries {
                return Err(Error::Length { what: "queries of a head", expected: queries, actual: of_head });
            }
            if of_head == queries {
                of_head = 0;
            }
        }
        length("queries of all heads", count, batch * heads * queries)?;
        #[cfg(target_arch = "x86_64")]
        return Ok(tiles::attended([batch, queries, heads, dim], scale, parts));
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = scale;
            match self.never {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Rows<'static> = Rows { values: &[], count: 0, dim: 2, stride: 2 };

    fn rows(values: &[bf16]) -> Rows<'_> {
        Rows { values, count: values.len() / 2, dim: 2, stride: 2 }
    }

    fn refused(shape: [usize; 4], parts: &[Part<'_>], expected: &str) {
        if let Some(attention) = TiledAttention::new() {
            assert_eq!(attention.forward(shape, 1.0, parts).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn rows_that_are_not_there_are_refused() {
        let values = [bf16::ONE; 10];
        assert!(Rows::new(&values, 3, 2, 4).is_ok());
        assert_eq!(Rows::new(&values, 3, 3, 4).unwrap_err().to_string(), "rows of 10 values, 11 expected");
        assert!(Rows::new(&values, 2, 1, usize::MAX).is_err());
        assert!(Rows::new(&values, usize::MAX, 1, usize::MAX).is_err());
        assert!(Rows::new(&[], 0, 3, 4).is_ok());
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let values = [bf16::ONE; 8];
        let whole = rows(&values);
        let part = Part { queries: whole, keys: [whole, NONE], values: [whole, NONE], causal: false };
        refused([1, 4, 1, 3], std::slice::from_ref(&part), "row of attention of 2 values, 3 expected");
        refused([1, 3, 1, 2], std::slice::from_ref(&part), "queries of a head of 4 values, 3 expected");
        refused([1, 4, 2, 2], std::slice::from_ref(&part), "queries of all heads of 4 values, 8 expected");
        let fewer = Part { values: [rows(&values[..6]), NONE], ..part.clone() };
        refused([1, 4, 1, 2], &[fewer], "rows of values of 3 values, 4 expected");
        let causal = Part {
            keys: [rows(&values[..6]), NONE],
            values: [rows(&values[..6]), NONE],
            causal: true,
            ..part.clone()
        };
        refused([1, 4, 1, 2], &[causal], "rows of keys of 3 values, 4 expected");
        let blind = Part { keys: [NONE, NONE], values: [NONE, NONE], ..part };
        refused([1, 4, 1, 2], &[blind], "rows of keys of 0 values, 1 expected");
    }
}
