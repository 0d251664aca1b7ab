//! Filters as callers send them.

use thicket_proto::v1;

use crate::check::VALUE_BYTES;
use crate::error::GalleryError;
use crate::facets::Filter;

/// Most cameras of a filter.
const CAMERAS: usize = 256;
/// Most tags of each list of a filter.
const TAGS: usize = 64;

/// Checks a filter; `None` where it asks for nothing.
pub(crate) fn parse(filter: Option<v1::Filter>) -> Result<Option<Filter>, GalleryError> {
    let Some(filter) = filter else { return Ok(None) };
    names("filter.cameras", "FILTER_CAMERAS_INVALID", CAMERAS, &filter.cameras)?;
    for (field, tags) in [("filter.tags_all", &filter.tags_all), ("filter.tags_any", &filter.tags_any)] {
        names(field, "FILTER_TAGS_INVALID", TAGS, tags)?;
        for (i, tag) in tags.iter().enumerate() {
            if tag.trim() != tag || tag.contains(',') {
                let message = "a tag has no comma and no white space at its ends";
                return Err(GalleryError::invalid(format!("{field}[{i}]"), "FILTER_TAGS_INVALID", message));
            }
        }
    }
    if let (Some(from), Some(until)) = (filter.captured_from_unix_ms, filter.captured_until_unix_ms)
        && until <= from
    {
        let message = format!("later than captured_from_unix_ms, {from}; got {until}");
        return Err(GalleryError::invalid(
            "filter.captured_until_unix_ms",
            "FILTER_TIME_RANGE_EMPTY",
            message,
        ));
    }
    let filter = Filter {
        cameras: filter.cameras,
        captured_from: filter.captured_from_unix_ms,
        captured_until: filter.captured_until_unix_ms,
        tags_all: filter.tags_all,
        tags_any: filter.tags_any,
    };
    Ok(Some(filter).filter(|filter| *filter != Filter::default()))
}

fn names(field: &str, reason: &'static str, most: usize, names: &[String]) -> Result<(), GalleryError> {
    if names.len() > most {
        let message = format!("at most {most}, got {}", names.len());
        return Err(GalleryError::invalid(field, reason, message));
    }
    for (i, name) in names.iter().enumerate() {
        if name.is_empty() || name.len() > VALUE_BYTES {
            let message = format!("1 to {VALUE_BYTES} bytes, got {}", name.len());
            return Err(GalleryError::invalid(format!("{field}[{i}]"), reason, message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(filter: v1::Filter) -> (String, &'static str) {
        match parse(Some(filter)) {
            Err(GalleryError::Invalid { field, reason, .. }) => (field, reason),
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn each_bad_part_is_named() {
        let none = v1::Filter::default;
        for (filter, field) in [
            (v1::Filter { cameras: strings(&["1", ""]), ..none() }, "filter.cameras[1]"),
            (v1::Filter { cameras: strings(&[&"x".repeat(1025)]), ..none() }, "filter.cameras[0]"),
            (v1::Filter { cameras: vec!["1".to_owned(); 257], ..none() }, "filter.cameras"),
            (v1::Filter { tags_all: vec!["red".to_owned(); 65], ..none() }, "filter.tags_all"),
            (v1::Filter { tags_all: strings(&["red", "bag", ""]), ..none() }, "filter.tags_all[2]"),
            (v1::Filter { tags_all: strings(&["red,bag"]), ..none() }, "filter.tags_all[0]"),
            (v1::Filter { tags_any: strings(&["red", " bag"]), ..none() }, "filter.tags_any[1]"),
            (v1::Filter { tags_any: vec!["red".to_owned(); 65], ..none() }, "filter.tags_any"),
        ] {
            assert_eq!(refused(filter).0, field);
        }
        let backwards =
            v1::Filter { captured_from_unix_ms: Some(5), captured_until_unix_ms: Some(5), ..none() };
        let expected = ("filter.captured_until_unix_ms".to_owned(), "FILTER_TIME_RANGE_EMPTY");
        assert_eq!(refused(backwards), expected);
    }

    #[test]
    fn a_filter_of_nothing_is_none() {
        assert_eq!(parse(None).unwrap(), None);
        assert_eq!(parse(Some(v1::Filter::default())).unwrap(), None);
    }
}
