use crate::ImagingError;

/// Longest allowed side over shortest, as in the published pre-processing of Qwen2-VL.
const MAX_ASPECT_RATIO: u32 = 200;

/// The size to which Qwen2-VL's pre-processing resizes an image.
///
/// Both sides become multiples of `factor` (rounded ties to even, as Python does), the area is brought between
/// `min_pixels` and `max_pixels`, and the aspect ratio is kept as well as that allows. A side shorter than half a
/// `factor` is enlarged, as the current Hugging Face code does.
///
/// Takes and returns pixels, `(height, width)`.
///
/// # Errors
/// [`ImagingError::ZeroArea`], [`ImagingError::AspectRatio`] for more than 200 to 1, and
/// [`ImagingError::PixelBounds`] where `factor` is 0 or the bounds leave no size to choose.
pub fn smart_resize(
    height: u32,
    width: u32,
    factor: u32,
    min_pixels: u32,
    max_pixels: u32,
) -> Result<(u32, u32), ImagingError> {
    if height == 0 || width == 0 {
        return Err(ImagingError::ZeroArea { width, height });
    }
    let (long, short) = (height.max(width), height.min(width));
    if u64::from(long) > u64::from(MAX_ASPECT_RATIO) * u64::from(short) {
        return Err(ImagingError::AspectRatio { width, height, limit: MAX_ASPECT_RATIO });
    }
    if factor == 0
        || min_pixels == 0
        || min_pixels > max_pixels
        || u64::from(max_pixels) < u64::from(factor) * u64::from(factor)
    {
        return Err(ImagingError::PixelBounds { factor, min_pixels, max_pixels });
    }

    let unit = f64::from(factor);
    let (exact_height, exact_width) = (f64::from(height), f64::from(width));
    let mut new_height = (exact_height / unit).round_ties_even() * unit;
    let mut new_width = (exact_width / unit).round_ties_even() * unit;
    if new_height * new_width > f64::from(max_pixels) {
        let shrink = (exact_height * exact_width / f64::from(max_pixels)).sqrt();
        new_height = ((exact_height / shrink / unit).floor() * unit).max(unit);
        new_width = ((exact_width / shrink / unit).floor() * unit).max(unit);
    } else if new_height * new_width < f64::from(min_pixels) {
        let enlarge = (f64::from(min_pixels) / (exact_height * exact_width)).sqrt();
        new_height = (exact_height * enlarge / unit).ceil() * unit;
        new_width = (exact_width * enlarge / unit).ceil() * unit;
    }
    Ok((new_height as u32, new_width as u32))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_pedestrian_crop_keeps_its_shape() {
        assert_eq!(smart_resize(384, 128, 28, 3136, 12_845_056).unwrap(), (392, 140));
    }

    #[test]
    fn both_bounds_equal_gives_the_size_of_the_published_evaluation() {
        assert_eq!(smart_resize(384, 128, 28, 50_176, 50_176).unwrap(), (364, 112));
        assert_eq!(smart_resize(168, 84, 28, 50_176, 50_176).unwrap(), (336, 168));
    }

    #[test]
    fn half_a_factor_rounds_to_the_even_multiple() {
        assert_eq!(smart_resize(70, 98, 28, 1, 1_000_000).unwrap(), (56, 112));
    }

    #[test]
    fn one_pixel_is_enlarged() {
        assert_eq!(smart_resize(1, 1, 28, 3136, 12_845_056).unwrap(), (56, 56));
    }

    #[test]
    fn a_strip_of_more_than_200_to_1_is_refused() {
        assert!(smart_resize(200, 1, 28, 3136, 100_000).is_ok());
        assert!(matches!(
            smart_resize(201, 1, 28, 3136, 100_000),
            Err(ImagingError::AspectRatio { height: 201, width: 1, limit: 200 })
        ));
    }

    #[test]
    fn bounds_without_room_are_refused() {
        assert!(matches!(smart_resize(10, 10, 28, 100, 50), Err(ImagingError::PixelBounds { .. })));
        assert!(matches!(smart_resize(10, 10, 0, 1, 50), Err(ImagingError::PixelBounds { .. })));
        assert!(matches!(smart_resize(0, 10, 28, 1, 5000), Err(ImagingError::ZeroArea { .. })));
    }

    proptest! {
        #[test]
        fn sides_are_positive_multiples_of_the_factor(
            height in 1_u32..5000, width in 1_u32..5000, factor in 1_u32..64, min in 1_u32..1_000_000, room in 0_u32..1_000_000,
        ) {
            let max = (min + room).max(factor * factor);
            if let Ok((new_height, new_width)) = smart_resize(height, width, factor, min, max) {
                prop_assert!(new_height > 0 && new_height % factor == 0);
                prop_assert!(new_width > 0 && new_width % factor == 0);
            }
        }
    }
}
