//! Times as text: RFC 3339 in records, HTTP dates and `Retry-After` on the wire.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A time as RFC 3339 text in UTC with milliseconds, such as `2026-01-31T09:05:00.250Z`: what
/// JavaScript's `toISOString` prints. Times before 1970 print as its first moment, those after the
/// year 9999 as its last second.
///
/// ```
/// use genesys_attributes::clock::rfc3339;
/// use std::time::{Duration, UNIX_EPOCH};
///
/// let time = UNIX_EPOCH + Duration::from_millis(1_767_225_600_250);
/// assert_eq!(rfc3339(time), "2026-01-01T00:00:00.250Z");
/// ```
pub fn rfc3339(time: SystemTime) -> String {
    Rfc3339::new(time).as_str().to_owned()
}

/// The last second of the year 9999: RFC 3339 has four digits for a year.
const LAST_SECOND: u64 = 253_402_300_799;

/// A time as text, without an allocation: every update writes some.
pub(crate) struct Rfc3339([u8; 24]);

impl Rfc3339 {
    pub(crate) fn new(time: SystemTime) -> Rfc3339 {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = since.as_secs().min(LAST_SECOND);
        let (year, month, day) = civil_from_days(seconds / 86_400);
        let of_day = seconds % 86_400;
        let mut out = *b"0000-00-00T00:00:00.000Z";
        let mut put = |digits: std::ops::Range<usize>, mut value: u64| {
            for digit in out[digits].iter_mut().rev() {
                *digit = b'0' + (value % 10) as u8;
                value /= 10;
            }
        };
        put(0..4, year);
        put(5..7, month);
        put(8..10, day);
        put(11..13, of_day / 3_600);
        put(14..16, of_day / 60 % 60);
        put(17..19, of_day % 60);
        put(20..23, since.subsec_millis().into());
        Rfc3339(out)
    }

    pub(crate) fn as_str(&self) -> &str {
        // All of it is ASCII.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// The longest wait that a `Retry-After` is taken for.
const DAY: Duration = Duration::from_secs(86_400);

/// The wait that a `Retry-After` field asks for: seconds or an HTTP date (RFC 9110 §10.2.3), a day
/// at most. `None` when it is neither; zero when the date has passed.
pub(crate) fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    let wait = if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        // More digits than fit mean longer than anybody waits.
        Duration::from_secs(text.parse().unwrap_or(u64::MAX))
    } else {
        let date = http_date(text, now)?;
        date.duration_since(now).unwrap_or_default()
    };
    // Safe to add to any time.
    Some(wait.min(DAY))
}

/// Reads the three forms of an HTTP date (RFC 9110 §5.6.7).
pub(crate) fn http_date(text: &str, now: SystemTime) -> Option<SystemTime> {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let (day, month, year, time) = match words.as_slice() {
        // Sun, 06 Nov 1994 08:49:37 GMT
        [weekday, day, month, year, time, "GMT"] if weekday.ends_with(',') => {
            (number(day)?, *month, number(year)?, *time)
        }
        // Sunday, 06-Nov-94 08:49:37 GMT
        [weekday, date, time, "GMT"] if weekday.ends_with(',') => {
            let mut parts = date.split('-');
            let (day, month, short) = (parts.next()?, parts.next()?, number(parts.next()?)?);
            if parts.next().is_some() || short > 99 {
                return None;
            }
            // A two-digit year more than 50 years ahead means the past century.
            let today = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / 86_400;
            let this_year = civil_from_days(today).0;
            let mut year = this_year - this_year % 100 + short;
            if year > this_year + 50 {
                year -= 100;
            }
            (number(day)?, month, year, *time)
        }
        // Sun Nov  6 08:49:37 1994
        [_, month, day, time, year] => (number(day)?, *month, number(year)?, *time),
        _ => return None,
    };
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let month = MONTHS.iter().position(|m| *m == month)? as u64 + 1;
    let mut parts = time.split(':');
    let (hour, minute, second) = (
        number(parts.next()?)?,
        number(parts.next()?)?,
        number(parts.next()?)?,
    );
    // 60 is a leap second.
    if parts.next().is_some() || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    if !(1970..=9999).contains(&year) || !(1..=31).contains(&day) {
        return None;
    }
    let days = days_from_civil(year, month, day);
    UNIX_EPOCH.checked_add(Duration::from_secs(
        days * 86_400 + hour * 3_600 + minute * 60 + second,
    ))
}

fn number(text: &str) -> Option<u64> {
    (text.len() <= 4 && text.bytes().all(|b| b.is_ascii_digit()))
        .then(|| text.parse().ok())
        .flatten()
}

/// Days since 1970-01-01 to year, month and day, by counting in 400-year cycles that begin in
/// March, so that the leap day comes last.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let cycle = shifted / 146_097;
    let of_cycle = shifted % 146_097;
    let year_of_cycle =
        (of_cycle - of_cycle / 1_460 + of_cycle / 36_524 - of_cycle / 146_096) / 365;
    let of_year = of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = year_of_cycle + cycle * 400 + u64::from(month <= 2);
    (year, month, day)
}

fn days_from_civil(year: u64, month: u64, day: u64) -> u64 {
    let year = year - u64::from(month <= 2);
    let (cycle, year_of_cycle) = (year / 400, year % 400);
    let from_march = (month + 9) % 12;
    let of_year = (153 * from_march + 2) / 5 + day - 1;
    let of_cycle = year_of_cycle * 365 + year_of_cycle / 4 - year_of_cycle / 100 + of_year;
    cycle * 146_097 + of_cycle - 719_468
}

/// Reads what [`rfc3339`] writes, and other RFC 3339 times in UTC. `None` for anything else.
pub(crate) fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    let text = text.strip_suffix(['Z', 'z'])?;
    let (date, time) = text.split_once(['T', 't', ' '])?;
    let mut date = date.split('-').map(number);
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (time, fraction) = time.split_once('.').unwrap_or((time, ""));
    let mut time = time.split(':').map(number);
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    let in_range = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour <= 23
        && minute <= 59
        && second <= 60;
    let digits = fraction.bytes().all(|b| b.is_ascii_digit());
    if !in_range || !digits || date.next().is_some() || time.next().is_some() {
        return None;
    }
    let nanos = fraction
        .bytes()
        .chain(std::iter::repeat(b'0'))
        .take(9)
        .fold(0, |nanos, digit| nanos * 10 + u64::from(digit - b'0'));
    let seconds = days_from_civil(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second;
    if seconds > LAST_SECOND {
        // A leap second after the last one.
        return None;
    }
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds) + Duration::from_nanos(nanos))
}

/// A time in a record: RFC 3339 text. For `#[serde(with = "crate::util::date::text")]`.
pub(crate) mod text {
    use std::borrow::Cow;
    use std::time::SystemTime;

    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;

    pub(crate) fn serialize<S: Serializer>(
        time: &SystemTime,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(super::Rfc3339::new(*time).as_str())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<SystemTime, D::Error> {
        let text = Cow::<'_, str>::deserialize(deserializer)?;
        super::parse_rfc3339(&text).ok_or_else(|| Error::custom("not an RFC 3339 time in UTC"))
    }
}

/// As [`text`], where there may be no time: null.
pub(crate) mod text_or_null {
    use std::time::SystemTime;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Text(#[serde(with = "super::text")] SystemTime);

    pub(crate) fn serialize<S: Serializer>(
        time: &Option<SystemTime>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        time.map(Text).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<SystemTime>, D::Error> {
        Ok(Option::<Text>::deserialize(deserializer)?.map(|text| text.0))
    }
}

/// A duration in a record: whole milliseconds. For `#[serde(with = "crate::util::date::millis")]`.
pub(crate) mod millis {
    use std::time::Duration;

    use serde::de::{Deserialize, Deserializer};
    use serde::ser::Serializer;

    pub(crate) fn serialize<S: Serializer>(
        duration: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(super::whole_millis(*duration))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

/// A duration for a message, in three digits at most: `41 ms`, `1.3 s`, `20 min`, `2.5 h`.
pub fn short(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    for (unit, size, next) in [
        ("ms", 0.001, 999.5),
        ("s", 1.0, 999.5),
        ("min", 60.0, 99.95),
        ("h", 3_600.0, 99.95),
    ] {
        let amount = seconds / size;
        if amount < next {
            // Of a tenth that is none, nothing is shown.
            let text = match amount < 99.95 {
                true => format!("{amount:.1}"),
                false => format!("{amount:.0}"),
            };
            return format!("{} {unit}", text.trim_end_matches(".0"));
        }
    }
    format!("{:.0} d", seconds / 86_400.0)
}

/// A duration as records write it: in whole milliseconds.
pub(crate) fn whole_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_durations_have_three_digits_at_most() {
        for (micros, text) in [
            (0, "0 ms"),
            (420, "0.4 ms"),
            (1_000, "1 ms"),
            (41_234, "41.2 ms"),
            (99_940, "99.9 ms"),
            (99_960, "100 ms"),
            (999_400, "999 ms"),
            (999_600, "1 s"),
            (1_312_345, "1.3 s"),
            (300_000_000, "300 s"),
            (999_600_000, "16.7 min"),
            (3_600_000_000, "60 min"),
            (9_000_000_000, "2.5 h"),
            (864_000_000_000, "10 d"),
        ] {
            assert_eq!(short(Duration::from_micros(micros)), text, "{micros}");
        }
        assert!(short(Duration::MAX).ends_with(" d"));
    }
    use proptest::prelude::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn rfc3339_table() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (784_111_777, "1994-11-06T08:49:37.000Z"),
            (1_767_225_599, "2025-12-31T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(at(seconds)), text);
            assert_eq!(parse_rfc3339(text), Some(at(seconds)));
        }
        let time = at(1) + Duration::from_millis(7);
        assert_eq!(rfc3339(time), "1970-01-01T00:00:01.007Z");
    }

    #[test]
    fn retry_after_table() {
        let now = at(784_111_777);
        let seconds = |s| Some(Duration::from_secs(s));
        for (text, wait) in [
            ("0", seconds(0)),
            (" 7 ", seconds(7)),
            ("180", seconds(180)),
            ("86401", seconds(86_400)),
            ("99999999999999999999999", seconds(86_400)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", seconds(10)),
            ("Sunday, 06-Nov-94 08:49:47 GMT", seconds(10)),
            ("Sun Nov  6 08:49:47 1994", seconds(10)),
            ("Sun, 06 Nov 1994 08:49:07 GMT", seconds(0)),
            ("", None),
            ("-1", None),
            ("+1", None),
            ("1.5", None),
            ("soon", None),
            ("Sun, 06 Nov 1994 08:49:47 CET", None),
            ("Sun, 06 Nov 1994 25:00:00 GMT", None),
            ("Sun, 06 Foo 1994 08:49:47 GMT", None),
            ("Sun, 00 Nov 1994 08:49:47 GMT", None),
            ("Sun, 06 Nov 0001 08:49:47 GMT", None),
        ] {
            assert_eq!(retry_after(text, now), wait, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn civil_days_round_trip(days in 0u64..3_000_000) {
            let (year, month, day) = civil_from_days(days);
            prop_assert_eq!(days_from_civil(year, month, day), days);
            prop_assert!((1..=12).contains(&month) && (1..=31).contains(&day));
        }

        #[test]
        fn retry_after_arbitrary_text_never_panics(text in "\\PC{0,60}") {
            let _ = retry_after(&text, at(1_767_225_600));
        }
    }

    #[test]
    fn parse_rfc3339_bad_text_is_none() {
        for text in [
            "",
            "Z",
            "2026-01-01",
            "2026-01-01T00:00:00",
            "2026-01-01T00:00:00+01:00",
            "2026-13-01T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:00:00.x1Z",
            "2026-01-01-01T00:00:00Z",
        ] {
            assert_eq!(parse_rfc3339(text), None, "{text:?}");
        }
    }
}
