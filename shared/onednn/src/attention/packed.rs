//! Factors of a head as the tiles want them, their dimensions filled up with zeros to whole steps.

use std::arch::x86_64::{
    __m512i, _MM_HINT_T1, _mm512_loadu_epi16, _mm512_maskz_loadu_epi16, _mm512_setzero_si512,
    _mm512_shuffle_i32x4, _mm512_store_si512, _mm512_unpackhi_epi16, _mm512_unpackhi_epi32,
    _mm512_unpackhi_epi64, _mm512_unpacklo_epi16, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

use half::bf16;

use super::{Rows, weights::place_of_pair};
use crate::{
    amx::{BLOCK, DEPTH, LINE, TILE, ask_for},
    lines::Line,
};

/// Lines of a step: two tiles.
pub(super) const STEP: usize = 2 * TILE;

/// So many lines, with whatever they have held before.
pub(super) fn room(memory: &mut Vec<Line>, lines: usize) -> &mut [Line] {
    if memory.len() < lines {
        memory.resize(lines, Line([0; LINE]));
    }
    &mut memory[..lines]
}

/// Asks for what lies behind a row: that of the next head, where the heads of a token lie side by side, and the thread's next work.
fn ask_for_next_head(row: &[bf16]) {
    let next = row.as_ptr_range().end.cast::<u8>();
    for line in (0..size_of_val(row)).step_by(LINE) {
        ask_for::<_MM_HINT_T1>(next.wrapping_add(line));
    }
}

/// Queries as they lie in memory, where they fill tiles; else a copy of them in whole tiles.
pub(super) fn pack_queries<'a>(memory: &'a mut Vec<Line>, queries: Rows<'a>) -> Rows<'a> {
    let row = |row| {
        let row = queries.row(row);
        ask_for_next_head(row);
        row
    };
    if queries.count >= TILE && queries.dim.is_multiple_of(DEPTH) {
        (0..queries.count).for_each(|place| _ = row(place));
        return queries;
    }
    let (count, dim) = (queries.count.next_multiple_of(TILE), queries.dim.next_multiple_of(DEPTH));
    let lines = room(memory, count * dim / DEPTH);
    lines.fill(Line([0; LINE]));
    // SAFETY: lines are plain bytes without gaps, and aligned to more than a value; any bits are one.
    let values = unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), count * dim) };
    for (place, values) in values.chunks_exact_mut(dim).take(queries.count).enumerate() {
        values[..queries.dim].copy_from_slice(row(place));
    }
    Rows { values, count, dim, stride: dim }
}

/// Keys as pairs of their values, those of 16 keys side by side: `[keys / 32][dim / 32][2][16]`, lines of 16 pairs. The second half of the
/// last block is what it was where there are no keys for it.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn pack_keys<'a>(memory: &'a mut Vec<Line>, keys: &[Rows<'_>; 2]) -> &'a [Line] {
    let (count, dim) = (keys[0].count + keys[1].count, keys[0].dim);
    let steps = dim.div_ceil(DEPTH);
    let lines = room(memory, count.div_ceil(BLOCK) * steps * STEP);
    for first in (0..count).step_by(TILE) {
        let mut rows = [[].as_slice(); TILE];
        for (place, row) in rows[..TILE.min(count - first)].iter_mut().enumerate() {
            *row = joined(keys, first + place);
            ask_for_next_head(row);
        }
        let start = first / BLOCK * steps * STEP + first % BLOCK;
        for step in 0..steps {
            let columns = &mut lines[start + step * STEP..][..TILE];
            transpose(&rows, step * DEPTH, columns);
        }
    }
    lines
}

/// Values as pairs of rows, in the order of the pairs of weights: `[dim / 32][keys / 32][2][16]`, lines of 16 pairs. Of 32 values of a row
/// the first tile has every other four, and the second tile the others, as that takes one instruction for each. `in_order` of what is mixed
/// takes it back.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn pack_values<'a>(memory: &'a mut Vec<Line>, values: &[Rows<'_>; 2]) -> &'a [Line] {
    let (count, dim) = (values[0].count + values[1].count, values[0].dim);
    let (steps, blocks) = (count.div_ceil(BLOCK), dim.div_ceil(DEPTH));
    let lines = room(memory, blocks * steps * STEP);
    for pair in 0..steps * TILE {
        let mut rows = [[].as_slice(); 2];
        for (place, row) in rows.iter_mut().enumerate() {
            if 2 * pair + place < count {
                *row = joined(values, 2 * pair + place);
                ask_for_next_head(row);
            }
        }
        for block in 0..blocks {
            let (first, second) = (load(rows[0], block * DEPTH), load(rows[1], block * DEPTH));
            let start = (block * steps + pair / TILE) * STEP + place_of_pair(pair % TILE);
            store(&mut lines[start], _mm512_unpacklo_epi16(first, second));
            store(&mut lines[start + TILE], _mm512_unpackhi_epi16(first, second));
        }
    }
    lines
}

/// A row of two pieces.
#[inline]
fn joined<'a>(pieces: &[Rows<'a>; 2], row: usize) -> &'a [bf16] {
    match row.checked_sub(pieces[0].count) {
        None => pieces[0].row(row),
        Some(row) => pieces[1].row(row),
    }
}

/// Up to 32 values of a row, filled up with zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load(row: &[bf16], first: usize) -> __m512i {
    let values = row.as_ptr().wrapping_add(first).cast();
    let there = row.len().saturating_sub(first);
    // SAFETY: the values are there, all of a vector or the masked ones.
    unsafe {
        if there >= DEPTH {
            _mm512_loadu_epi16(values)
        } else {
            _mm512_maskz_loadu_epi16((1 << there) - 1, values)
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(line: &mut Line, values: __m512i) {
    // SAFETY: a line is a vector, and aligned like one.
    unsafe { _mm512_store_si512((&raw mut line.0).cast(), values) };
}

/// 16 pairs of 16 rows, from the `first` value of each on, as columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn transpose(rows: &[&[bf16]; TILE], first: usize, columns: &mut [Line]) {
    /// Quarters 0 and 2 of both, and 1 and 3.
    const EVEN: i32 = 0b10_00_10_00;
    const ODD: i32 = 0b11_01_11_01;
    // In each quarter of a vector, one column of four rows.
    let mut fours = [[_mm512_setzero_si512(); 4]; 4];
    for (group, fours) in fours.iter_mut().enumerate() {
        let a = load(rows[4 * group], first);
        let b = load(rows[4 * group + 1], first);
        let c = load(rows[4 * group + 2], first);
        let d = load(rows[4 * group + 3], first);
        let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
        fours[0] = _mm512_unpacklo_epi64(ab, cd);
        fours[1] = _mm512_unpackhi_epi64(ab, cd);
        let (ab, cd) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
        fours[2] = _mm512_unpacklo_epi64(ab, cd);
        fours[3] = _mm512_unpackhi_epi64(ab, cd);
    }
    for column in 0..4 {
        let (a, b, c, d) = (fours[0][column], fours[1][column], fours[2][column], fours[3][column]);
        let (ab, cd) = (_mm512_shuffle_i32x4::<EVEN>(a, b), _mm512_shuffle_i32x4::<EVEN>(c, d));
        store(&mut columns[column], _mm512_shuffle_i32x4::<EVEN>(ab, cd));
        store(&mut columns[8 + column], _mm512_shuffle_i32x4::<ODD>(ab, cd));
        let (ab, cd) = (_mm512_shuffle_i32x4::<ODD>(a, b), _mm512_shuffle_i32x4::<ODD>(c, d));
        store(&mut columns[4 + column], _mm512_shuffle_i32x4::<EVEN>(ab, cd));
        store(&mut columns[12 + column], _mm512_shuffle_i32x4::<ODD>(ab, cd));
    }
}
