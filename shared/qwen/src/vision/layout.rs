//! The order in which a tower holds patches, and who attends to whom in it.

use std::cmp::Reverse;

use crate::config::VisionConfig;

/// Windows of equal size that stand side by side in every image of a run, and share one attention call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Windows {
    /// Windows of this size in one image.
    pub(super) count: usize,
    /// Patches in a window.
    pub(super) patches: usize,
}

/// Consecutive images that fall into windows of the same sizes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) images: usize,
    /// Patches of one image.
    pub(super) patches: usize,
    /// All patches of an image, in the tower's order.
    pub(super) windows: Vec<Windows>,
}

/// How some images lie in the tower.
#[derive(Debug)]
pub(super) struct Layout {
    /// The listed merge block that stands at each place of the tower; `None` where blocks stay as listed.
    order: Option<Vec<u32>>,
    /// Every image as one window.
    pub(super) whole: Vec<Run>,
    /// Every image cut into windows; empty where the tower has none.
    pub(super) windowed: Vec<Run>,
}

impl Layout {
    /// `grids` are (rows, columns) of patches of every image, multiples of the merge size.
    pub(super) fn new(grids: &[(usize, usize)], config: &VisionConfig) -> Self {
        let mut whole = Vec::new();
        for (rows, columns) in grids {
            let patches = rows * columns;
            extend(&mut whole, patches, vec![Windows { count: 1, patches }]);
        }
        let Some(side) = config.window_side() else {
            return Self { order: None, whole, windowed: Vec::new() };
        };
        let (mut order, mut windowed, mut start) = (Vec::new(), Vec::new(), 0);
        for (rows, columns) in grids {
            let (rows, columns) = (rows / config.spatial_merge_size, columns / config.spatial_merge_size);
            let mut windows = windows((rows, columns), side);
            // Attention asks for nothing but that a window stays together, so that windows of one size may, too.
            windows.sort_by_key(|blocks| Reverse(blocks.len()));
            let sizes = windows
                .chunk_by(|a, b| a.len() == b.len())
                .map(|equal| Windows {
                    count: equal.len(),
                    patches: equal[0].len() * config.patches_per_token(),
                })
                .collect();
            extend(&mut windowed, rows * columns * config.patches_per_token(), sizes);
            order.extend(windows.into_iter().flatten().map(|block| start + block));
            start += (rows * columns) as u32;
        }
        let as_listed = order.iter().zip(0..).all(|(&block, place)| block == place);
        Self { order: (!as_listed).then_some(order), whole, windowed }
    }

    /// The listed merge block at each place of the tower, where blocks change places.
    pub(super) fn order(&self) -> Option<&[u32]> {
        self.order.as_deref()
    }

    /// The place in the tower of each listed merge block, where blocks change places.
    pub(super) fn places(&self) -> Option<Vec<u32>> {
        let order = self.order()?;
        let mut places = vec![0; order.len()];
        for (place, &block) in order.iter().enumerate() {
            places[block as usize] = place as u32;
        }
        Some(places)
    }
}

/// Adds an image to the last run, if it is cut in the same way.
fn extend(runs: &mut Vec<Run>, patches: usize, windows: Vec<Windows>) {
    match runs.last_mut() {
        Some(run) if run.windows == windows => run.images += 1,
        _ => runs.push(Run { images: 1, patches, windows }),
    }
}

/// The merge blocks of each window, row by row; windows at the right and at the bottom may be smaller.
fn windows((rows, columns): (usize, usize), side: usize) -> Vec<Vec<u32>> {
    let mut windows = Vec::with_capacity(rows.div_ceil(side) * columns.div_ceil(side));
    for top in (0..rows).step_by(side) {
        for left in (0..columns).step_by(side) {
            let inside = (top..rows.min(top + side)).flat_map(|row| {
                (left..columns.min(left + side)).map(move |column| (row * columns + column) as u32)
            });
            windows.push(inside.collect());
        }
    }
    windows
}

/// The (row, column) of every patch in the order in which patches are listed: merge block by merge block, row by row
/// inside a block.
pub(crate) fn merge_block_order(
    (rows, columns): (usize, usize),
    merge: usize,
) -> impl Iterator<Item = (usize, usize)> {
    let inside = move |block: (usize, usize)| {
        (0..merge).flat_map(move |row| {
            (0..merge).map(move |column| (block.0 * merge + row, block.1 * merge + column))
        })
    };
    (0..rows / merge)
        .flat_map(move |block_row| (0..columns / merge).map(move |block_column| (block_row, block_column)))
        .flat_map(inside)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::VisionFamily;

    fn windowed(window_size: usize) -> VisionConfig {
        let family =
            VisionFamily::Qwen2_5 { intermediate_size: 1, window_size, fullatt_block_indexes: Vec::new() };
        VisionConfig { family, ..VisionConfig::default() }
    }

    fn sizes(run: &Run) -> Vec<(usize, usize)> {
        run.windows.iter().map(|windows| (windows.count, windows.patches)).collect()
    }

    #[test]
    fn patches_are_listed_block_by_block() {
        let order: Vec<_> = merge_block_order((2, 4), 2).collect();
        assert_eq!(order, [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3), (1, 2), (1, 3)]);
    }

    #[test]
    fn neighbours_of_equal_patch_count_share_a_run() {
        let layout = Layout::new(&[(2, 4), (4, 2), (2, 2), (2, 4)], &VisionConfig::default());
        let runs: Vec<_> = layout.whole.iter().map(|run| (run.images, run.patches)).collect();
        assert_eq!(runs, [(2, 8), (1, 4), (1, 8)]);
        assert!(layout.windowed.is_empty() && layout.order().is_none());
    }

    #[test]
    fn windows_at_the_edges_are_smaller_and_equal_ones_stand_together() {
        // 3 x 5 merge blocks in windows of 2 x 2: two full, one at the right, two at the bottom, a corner.
        let layout = Layout::new(&[(6, 10)], &windowed(56));
        assert_eq!(
            layout.order().unwrap(),
            [
                0, 1, 5, 6, 2, 3, 7, 8, /* 2 x 1 */ 4, 9, /* 1 x 2 */ 10, 11, 12, 13,
                /* 1 x 1 */ 14
            ]
        );
        assert_eq!(layout.windowed.len(), 1);
        assert_eq!(sizes(&layout.windowed[0]), [(2, 16), (3, 8), (1, 4)]);
        let places = layout.places().unwrap();
        assert!(layout.order().unwrap().iter().zip(0..).all(|(&block, at)| places[block as usize] == at));
    }

    #[test]
    fn images_cut_alike_share_a_run_and_keep_to_their_own_blocks() {
        let layout = Layout::new(&[(4, 6), (4, 6), (6, 4)], &windowed(56));
        let runs: Vec<_> = layout.windowed.iter().map(|run| (run.images, sizes(run))).collect();
        assert_eq!(runs, [(3, vec![(1, 16), (1, 8)])]);
        assert!(layout.order().unwrap()[6..12].iter().all(|block| (6..12).contains(block)));
    }

    #[test]
    fn an_image_inside_one_window_stays_as_listed() {
        let layout = Layout::new(&[(6, 8), (2, 2)], &windowed(112));
        assert!(layout.order().is_none() && layout.places().is_none());
        assert_eq!(layout.windowed, layout.whole);
    }
}
