/// What part of a file a partial answer holds: the `Content-Range` header, `bytes FIRST-LAST/TOTAL`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentRange {
    /// Place of the first byte.
    pub first: u64,
    /// Place of the last byte, not before the first.
    pub last: u64,
    /// Bytes of the whole file, where the server tells.
    pub total: Option<u64>,
}

impl ContentRange {
    /// Reads the header; `None` where it is malformed or contradicts itself.
    #[must_use]
    pub fn parse(header: &str) -> Option<Self> {
        let (range, total) = header.trim().strip_prefix("bytes ")?.trim().split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (first, last) = (number(first)?, number(last)?);
        let total = if total == "*" { None } else { Some(number(total)?) };
        let fits = first <= last && total.is_none_or(|total| last < total);
        fits.then_some(Self { first, last, total })
    }
}

/// Digits alone: `parse` would take a sign.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn headers_that_contradict_themselves_are_refused() {
        assert_eq!(
            ContentRange::parse("bytes 5-9/10"),
            Some(ContentRange { first: 5, last: 9, total: Some(10) })
        );
        assert_eq!(ContentRange::parse("bytes 5-9/*").unwrap().total, None);
        for header in [
            "",
            "bytes",
            "bytes 5-9",
            "5-9/10",
            "bytes 9-5/10",
            "bytes 5-10/10",
            "bytes +5-9/10",
            "bytes */10",
        ] {
            assert_eq!(ContentRange::parse(header), None, "{header}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_lies_within_the_file(header in "bytes [0-9*+ -]{0,24}/[0-9*]{0,22}|\\PC{0,40}") {
            if let Some(range) = ContentRange::parse(&header) {
                prop_assert!(range.first <= range.last);
                prop_assert!(range.total.is_none_or(|total| range.last < total));
            }
        }
    }
}
