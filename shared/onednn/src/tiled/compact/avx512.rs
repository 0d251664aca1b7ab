use std::{
    arch::x86_64::{
        __m512bh, __m512i, _MM_HINT_T0, _mm_loadu_si128, _mm512_add_ps, _mm512_and_si512,
        _mm512_broadcast_i32x4, _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_set1_epi8, _mm512_set1_epi32,
        _mm512_setzero_ps, _mm512_shuffle_epi8, _mm512_srli_epi16, _mm512_storeu_ps, _mm512_storeu_si512,
        _mm512_ternarylogic_epi64, _mm512_unpackhi_epi8, _mm512_unpacklo_epi8,
    },
    mem::{MaybeUninit, transmute},
};

use half::bf16;

use super::{GROUP, GROUP_BYTES, HALF, NUMBERED, VECTORS};
use crate::{
    amx::{LINE, TILE, TILE_BYTES, ask_for},
    lines::Line,
    product::Sums,
};

/// `a | b & c`
const OR_AND: i32 = 0xf8;

/// How far ahead of its use a weight is asked for, bytes, into the first cache: 5 % faster than twice as far into the second.
const AHEAD: usize = 2048;

/// What groups are unpacked with.
#[derive(Clone, Copy)]
struct Unpacker {
    /// What an exponent leaves in the upper and in the lower byte of a value, by its number.
    high: __m512i,
    low: __m512i,
    sign: __m512i,
    fraction: __m512i,
    number: __m512i,
}

impl Unpacker {
    #[target_feature(enable = "avx512f,avx512bw")]
    fn new(exponents: [u8; NUMBERED]) -> Self {
        Self {
            high: table(exponents.map(|exponent| exponent >> 1)),
            low: table(exponents.map(|exponent| exponent << 7)),
            sign: _mm512_set1_epi8(-0x80),
            fraction: _mm512_set1_epi8(0x7f),
            number: _mm512_set1_epi8(0x0f),
        }
    }

    /// The values of half a group.
    ///
    /// # Safety
    /// The group has [`GROUP_BYTES`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn half(&self, group: *const u8, half: usize) -> [__m512i; VECTORS / 2] {
        // SAFETY: a group is as long.
        let rest = unsafe { _mm512_loadu_si512(group.wrapping_add(half * HALF).cast()) };
        // SAFETY: as above.
        let numbers = unsafe { _mm512_loadu_si512(group.wrapping_add(GROUP).cast()) };
        let numbers = if half == 0 { numbers } else { _mm512_srli_epi16::<4>(numbers) };
        let numbers = _mm512_and_si512(numbers, self.number);
        let high = _mm512_shuffle_epi8(self.high, numbers);
        let high = _mm512_ternarylogic_epi64::<OR_AND>(high, rest, self.sign);
        let low = _mm512_shuffle_epi8(self.low, numbers);
        let low = _mm512_ternarylogic_epi64::<OR_AND>(low, rest, self.fraction);
        [_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)]
    }
}

/// The tiles of whole steps, of their halves some.
///
/// # Safety
/// There is room for them in `to`.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn unpack<const FIRST: usize, const END: usize>(
    groups: &[u8],
    exponents: [u8; NUMBERED],
    to: &mut [MaybeUninit<Line>],
) {
    let unpacker = Unpacker::new(exponents);
    let mut place = to.as_mut_ptr().cast::<u8>();
    for step in groups.chunks_exact(TILE * GROUP_BYTES) {
        for (pair, group) in step.chunks_exact(GROUP_BYTES).enumerate() {
            for half in FIRST..END {
                // SAFETY: a whole group; the caller answers for the room.
                let vectors = unsafe { unpacker.half(group.as_ptr(), half) };
                for (vector, values) in vectors.into_iter().enumerate() {
                    let tile = (half - FIRST) * vectors.len() + vector;
                    // SAFETY: as above.
                    unsafe { _mm512_storeu_si512(place.add(tile * TILE_BYTES + pair * LINE).cast(), values) };
                }
            }
        }
        place = place.wrapping_add((END - FIRST) * VECTORS / 2 * TILE_BYTES);
    }
}

/// The products of rows of pairs of inputs and a panel, which has a group for each pair, as `[ROWS][VECTORS]`, overwritten.
///
/// The panel is read at `STREAMS` places side by side, of equal shares of the pairs: memory gives more to several readings than to one.
/// The panel after it is asked for at the end of each.
///
/// # Panics
/// For pairs that do not divide into so many shares, and for slices of other lengths.
// The numbers are constants: the loops over them are unrolled and the sums stay in registers.
#[allow(clippy::needless_range_loop)]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) fn multiply<const ROWS: usize, const STREAMS: usize>(
    panel: &[u8],
    exponents: [u8; NUMBERED],
    x: [&[[bf16; 2]]; ROWS],
    sums: &mut [Sums],
) {
    let pairs = x[0].len();
    assert!(x.iter().all(|row| row.len() == pairs) && pairs.is_multiple_of(STREAMS));
    assert_eq!((panel.len(), sums.len()), (pairs * GROUP_BYTES, ROWS * VECTORS));
    let share = pairs / STREAMS;
    let unpacker = Unpacker::new(exponents);
    let mut kept = [[[_mm512_setzero_ps(); VECTORS]; STREAMS]; ROWS];
    // What lies ahead of the last pairs of a share is that share of the next panel.
    let last = share.saturating_sub(AHEAD / GROUP_BYTES);
    for (pairs, ahead) in [(0..last, AHEAD), (last..share, AHEAD + panel.len() - share * GROUP_BYTES)] {
        for pair in pairs {
            for stream in 0..STREAMS {
                let pair = stream * share + pair;
                let group = panel.as_ptr().wrapping_add(pair * GROUP_BYTES);
                for line in (0..GROUP_BYTES).step_by(LINE) {
                    ask_for::<_MM_HINT_T0>(group.wrapping_add(ahead + line));
                }
                // SAFETY: a panel has as many groups. Not in a closure, which would not be compiled for the same processor.
                let weights = unsafe { [unpacker.half(group, 0), unpacker.half(group, 1)] };
                for row in 0..ROWS {
                    // SAFETY: a row has as many pairs, and a pair is as long as an integer.
                    let x = unsafe { x[row].as_ptr().add(pair).cast::<i32>().read_unaligned() };
                    // SAFETY: all bits are values, of the same size.
                    let x = unsafe { transmute::<__m512i, __m512bh>(_mm512_set1_epi32(x)) };
                    for vector in 0..VECTORS {
                        let sum = &mut kept[row][stream][vector];
                        // SAFETY: as above.
                        let weights =
                            unsafe { transmute::<__m512i, __m512bh>(weights[vector / 2][vector % 2]) };
                        *sum = _mm512_dpbf16_ps(*sum, x, weights);
                    }
                }
            }
        }
    }
    for (row, kept) in kept.iter().enumerate() {
        for vector in 0..VECTORS {
            let mut sum = kept[0][vector];
            for stream in 1..STREAMS {
                sum = _mm512_add_ps(sum, kept[stream][vector]);
            }
            // SAFETY: a vector is as long.
            unsafe { _mm512_storeu_ps(sums[row * VECTORS + vector].as_mut_ptr(), sum) };
        }
    }
}

/// The same 16 bytes in every part of a vector that bytes are looked up in.
#[target_feature(enable = "avx512f")]
fn table(bytes: [u8; NUMBERED]) -> __m512i {
    // SAFETY: they are as many.
    _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
}
