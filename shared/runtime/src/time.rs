/// Reads a time as RFC 3339 has it (`2026-03-01T08:30:00.250+01:00`) as milliseconds since 1970-01-01 UTC.
///
/// What is finer than a millisecond is cut off; the second 60 is the first of the next minute. `None` for anything that
/// is no such time: a day that the month has not, an offset of 24 hours, a space for the T.
pub fn unix_ms(text: &str) -> Option<i64> {
    let (date, rest) = text.split_once(['T', 't'])?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let offset_at = rest.find(['Z', 'z', '+', '-'])?;
    let (time, offset) = rest.split_at(offset_at);
    let (time, fraction) = match time.split_once('.') {
        Some((time, fraction)) => (time, milliseconds(fraction)?),
        None => (time, 0),
    };
    let [hour, minute, second] = numbers(time, ':', [2, 2, 2])?;
    let fits = (1..=12).contains(&month)
        && (1..=days_in(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    let seconds = days_since_1970(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
    fits.then_some((seconds - offset_seconds(offset)?) * 1000 + fraction)
}

/// Numbers of so many digits each, separated.
fn numbers<const N: usize>(text: &str, separator: char, digits: [usize; N]) -> Option<[i64; N]> {
    let mut parts = text.split(separator);
    let mut numbers = [0; N];
    for (number, digits) in numbers.iter_mut().zip(digits) {
        let part = parts.next().filter(|part| part.len() == digits)?;
        *number = digits_of(part)?;
    }
    parts.next().is_none().then_some(numbers)
}

/// A number without sign; `None` for anything but digits.
fn digits_of(text: &str) -> Option<i64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

fn milliseconds(fraction: &str) -> Option<i64> {
    let digits = fraction.bytes().all(|byte| byte.is_ascii_digit()) && !fraction.is_empty();
    digits.then(|| format!("{fraction:0<3}")[..3].parse().ok())?
}

fn offset_seconds(offset: &str) -> Option<i64> {
    let sign = match offset.as_bytes() {
        [b'Z' | b'z'] => return Some(0),
        [b'+', ..] => 1,
        [b'-', ..] => -1,
        _ => return None,
    };
    let [hours, minutes] = numbers(&offset[1..], ':', [2, 2])?;
    (hours < 24 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60))
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days of the proleptic Gregorian calendar from 1970-01-01 to a date.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    // Leap days before a year, counted from year 1.
    let leap_days = |year: i64| {
        let before = year - 1;
        before.div_euclid(4) - before.div_euclid(100) + before.div_euclid(400)
    };
    let years = (year - 1970) * 365 + leap_days(year) - leap_days(1970);
    let months: i64 = (1..month).map(|month| days_in(year, month)).sum();
    years + months + day - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read_to_the_millisecond() {
        // Seconds as `date -u -d TIME +%s` has them.
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:00:00Z", 951_825_600),
            ("2026-03-01T08:30:00+01:00", 1_772_350_200),
            ("2026-03-01t07:30:00z", 1_772_350_200),
            ("2026-03-01T02:00:00-05:30", 1_772_350_200),
            ("1969-12-31T23:59:59Z", -1),
            ("1900-03-01T00:00:00Z", -2_203_891_200),
            ("0001-01-01T00:00:00Z", -62_135_596_800),
            ("9999-12-31T23:59:59Z", 253_402_300_799),
            ("2016-12-31T23:59:60Z", 1_483_228_800),
        ] {
            assert_eq!(unix_ms(text), Some(seconds * 1000), "{text}");
        }
        assert_eq!(unix_ms("1970-01-01T00:00:00.25Z"), Some(250));
        assert_eq!(unix_ms("1970-01-01T00:00:00.0019999Z"), Some(1));
    }

    #[test]
    fn what_is_no_time_is_none() {
        for text in [
            "",
            "yesterday",
            "2026-03-01",
            "2026-03-01T08:30:00",
            "2026-03-01 08:30:00Z",
            "2026-3-01T08:30:00Z",
            "2026-02-29T00:00:00Z",
            "1900-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-00-01T00:00:00Z",
            "2026-04-31T00:00:00Z",
            "2026-04-00T00:00:00Z",
            "2026-03-01T24:00:00Z",
            "2026-03-01T08:60:00Z",
            "2026-03-01T08:30:61Z",
            "2026-03-01T08:30Z",
            "2026-03-01T08:30:00.Z",
            "2026-03-01T08:30:00.5.5Z",
            "2026-03-01T08:30:00+24:00",
            "2026-03-01T08:30:00+01",
            "2026-03-01T08:30:00+1:000",
            "2026-03-01T08:30:00Zulu",
            "+026-03-01T08:30:00Z",
            "２０２６-03-01T08:30:00Z",
            "-2026-03-01T08:30:00Z",
        ] {
            assert_eq!(unix_ms(text), None, "{text}");
        }
    }
}
