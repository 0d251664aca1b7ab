/// A number as a span carries it: what is unsigned reaches the collector as text.
pub(crate) fn number(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}
