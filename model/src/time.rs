//! Durations as users write them, and the moment that an `until` means.
//!
//! Reads no clock: where "now" matters, it is an argument.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use squall_api::names;

use crate::error::FieldError;

/// The longest time that a fault may be asked for: 30 days. Beyond that a typo is likelier than a wish.
pub const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

const ALLOWED: &str = "write a duration above zero and at most 720h, such as \"30s\", \"1h5m\" or \"300ms\"";

/// Parse a duration as Go writes it (`30s`, `1h5m`, `1.5h`, `300ms`), above zero and at most 30 days.
pub fn parse_duration(field: &str, text: &str) -> Result<Duration, FieldError> {
    match go_nanos(text) {
        Some(nanos) if nanos > 0 && nanos <= LONGEST.as_nanos() => {
            // At most 30 days of nanoseconds: fits by far.
            Ok(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
        }
        Some(_) | None => Err(FieldError::new(field, text, ALLOWED)),
    }
}

/// The nanoseconds of `text`, or `None` if it isn't a duration without sign.
fn go_nanos(text: &str) -> Option<u128> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.is_empty() || text.len() > 64 {
        return None;
    }
    if rest == "0" {
        return Some(0);
    }
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let (whole, after) = digits(rest);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => digits(after),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let unit: u128 = match unit {
            "ns" => 1,
            // The micro sign and the Greek letter.
            "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        total = total.checked_add(whole.checked_mul(unit)?)?;
        // No unit has more than 13 digits of nanoseconds, so what comes later in a fraction counts for nothing.
        let fraction = &fraction[..fraction.len().min(18)];
        if !fraction.is_empty() {
            let value: u128 = fraction.parse().ok()?;
            total = total.checked_add(value * unit / 10u128.pow(u32::try_from(fraction.len()).ok()?))?;
        }
        rest = after;
    }
    Some(total)
}

fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// Write a duration as Go would: `1h5m0s` is shortened to `1h5m`.
pub fn format_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".to_owned();
    }
    if nanos < 1_000_000_000 {
        return match nanos {
            0..1_000 => format!("{nanos}ns"),
            1_000..1_000_000 => format!("{}\u{b5}s", decimal(nanos, 1_000, 3)),
            _ => format!("{}ms", decimal(nanos, 1_000_000, 6)),
        };
    }
    let (hours, rest) = (nanos / 3_600_000_000_000, nanos % 3_600_000_000_000);
    let (minutes, rest) = (rest / 60_000_000_000, rest % 60_000_000_000);
    let mut text = String::new();
    if hours > 0 {
        text.push_str(&format!("{hours}h"));
    }
    if minutes > 0 {
        text.push_str(&format!("{minutes}m"));
    }
    if rest > 0 {
        text.push_str(&decimal(rest, 1_000_000_000, 9));
        text.push('s');
    }
    text
}

/// `value / unit` with as many decimals as needed; `places` is the number of zeros of `unit`.
fn decimal(value: u128, unit: u128, places: usize) -> String {
    let (whole, fraction) = (value / unit, value % unit);
    if fraction == 0 {
        return whole.to_string();
    }
    format!("{whole}.{fraction:0places$}").trim_end_matches('0').to_owned()
}

/// The moment that the annotation [`names::UNTIL`] means: an RFC 3339 time, or a duration from `now`. It must
/// lie ahead, and at most 30 days.
pub fn parse_until(text: &str, now: Timestamp) -> Result<Timestamp, FieldError> {
    let field = || format!("metadata.annotations[{}]", names::UNTIL);
    let until = match text.parse::<Timestamp>() {
        Ok(until) => until,
        Err(_) => parse_duration(&field(), text)
            .ok()
            .and_then(|duration| SignedDuration::try_from(duration).ok())
            .and_then(|duration| now.checked_add(duration).ok())
            .ok_or_else(|| {
                let allowed = "write a duration from now (\"30m\", at most 720h) or an RFC 3339 time \
                               (\"2030-01-31T18:00:00Z\")";
                FieldError::new(field(), text, allowed)
            })?,
    };
    if until <= now {
        return Err(FieldError::new(field(), text, format!("must lie ahead; it is {now} now")));
    }
    if until.duration_since(now) > SignedDuration::try_from(LONGEST).unwrap_or(SignedDuration::MAX) {
        return Err(FieldError::new(field(), text, "must lie within the next 720h (30 days)"));
    }
    Ok(until)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("30s", 30_000_000_000)]
    #[case("1.5h", 5_400_000_000_000)]
    #[case("300ms", 300_000_000)]
    #[case("1h5m30s", 3_930_000_000_000)]
    #[case("+2m", 120_000_000_000)]
    #[case(".5s", 500_000_000)]
    #[case("5.s", 5_000_000_000)]
    #[case("1us", 1_000)]
    #[case("1\u{b5}s", 1_000)]
    #[case("720h", 2_592_000_000_000_000)]
    fn go_durations_are_understood(#[case] text: &str, #[case] nanos: u64) {
        assert_eq!(parse_duration("spec.duration", text), Ok(Duration::from_nanos(nanos)));
    }

    #[rstest]
    #[case("")]
    #[case("0")]
    #[case("0s")]
    #[case("-5s")]
    #[case("+")]
    #[case("5")]
    #[case("s")]
    #[case(".s")]
    #[case("1d")]
    #[case("1 h")]
    #[case("1h 5m")]
    #[case("5S")]
    #[case("720h1ns")]
    #[case("99999999999999999999999999999999999999999999h")]
    #[case("\u{665}s")]
    fn anything_else_is_refused_by_name(#[case] text: &str) {
        let error = parse_duration("spec.duration", text).unwrap_err();
        assert_eq!((error.field.as_str(), error.found.as_str()), ("spec.duration", text));
    }

    #[rstest]
    #[case(3_900_000_000_000, "1h5m")]
    #[case(3_600_000_000_000, "1h")]
    #[case(1_500_000_000, "1.5s")]
    #[case(300_000_000, "300ms")]
    #[case(1_500, "1.5\u{b5}s")]
    #[case(7, "7ns")]
    #[case(0, "0s")]
    fn durations_are_written_shortly(#[case] nanos: u64, #[case] text: &str) {
        assert_eq!(format_duration(Duration::from_nanos(nanos)), text);
    }

    #[test]
    fn until_is_a_duration_from_now_or_a_time_ahead() {
        let now: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        let half: Timestamp = "2030-01-01T00:30:00Z".parse().unwrap();
        assert_eq!(parse_until("30m", now), Ok(half));
        assert_eq!(parse_until("2030-01-01T01:30:00+01:00", now), Ok(half));
        for refused in
            ["2030-01-01T00:00:00Z", "2029-12-31T00:00:00Z", "2031-01-01T00:00:00Z", "-1h", "soon", "800h"]
        {
            assert_eq!(
                parse_until(refused, now).unwrap_err().field,
                "metadata.annotations[squall.dev/until]"
            );
        }
    }
}
