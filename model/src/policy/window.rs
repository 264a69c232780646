//! When something may be hit: days, hours, time zone, excepted dates.
//!
//! A window belongs to the day on which it opens. Its ends are local times, so that on the days of a clock change
//! it is an hour shorter or longer; a local time that doesn't exist on a day means the moment after the gap.

use std::collections::BTreeSet;

use jiff::civil::{Date, Time, Weekday};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use squall_api::chaospolicy::{self, Day};

use crate::error::FieldError;
use crate::zone::time_zone;

/// How many days ahead an opening is looked for.
const HORIZON: usize = 400;

/// A valid window.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    days: BTreeSet<Day>,
    from: Time,
    /// `None`: midnight at the end of the day.
    to: Option<Time>,
    zone: TimeZone,
    except: BTreeSet<Date>,
}

const DAYS: [(Day, Weekday); 7] = [
    (Day::Mon, Weekday::Monday),
    (Day::Tue, Weekday::Tuesday),
    (Day::Wed, Weekday::Wednesday),
    (Day::Thu, Weekday::Thursday),
    (Day::Fri, Weekday::Friday),
    (Day::Sat, Weekday::Saturday),
    (Day::Sun, Weekday::Sunday),
];

impl Window {
    /// Parse the window at `path`; every error at once.
    pub(super) fn parse(
        path: &str,
        written: &chaospolicy::Window,
        errors: &mut Vec<FieldError>,
    ) -> Option<Self> {
        let chaospolicy::Window { days, from, to, time_zone: zone, except } = written;
        let before = errors.len();
        let mut keep = |result: Result<Time, FieldError>| result.map_err(|error| errors.push(error)).ok();
        let opens = keep(clock(&format!("{path}.from"), from));
        let closes = if to == "24:00" { None } else { keep(clock(&format!("{path}.to"), to)) };
        if opens.is_some() && opens == closes {
            let allowed = "opens and closes at the same time: for a whole day write from 00:00 to 24:00";
            errors.push(FieldError::new(format!("{path}.to"), to, allowed));
        }
        let zone = match zone {
            None => Some(TimeZone::UTC),
            Some(name) => match time_zone(&format!("{path}.timeZone"), name) {
                Ok(zone) => Some(zone),
                Err(error) => {
                    errors.push(error);
                    None
                }
            },
        };
        let mut dates = BTreeSet::new();
        for (index, text) in except.iter().enumerate() {
            match text.parse::<Date>() {
                Ok(date) if text.len() == 10 => {
                    dates.insert(date);
                }
                Ok(_) | Err(_) => {
                    let allowed = "write a date that there is, such as \"2026-12-24\"";
                    errors.push(FieldError::new(format!("{path}.except[{index}]"), text, allowed));
                }
            }
        }
        let days = match days {
            None => DAYS.iter().map(|(day, _)| *day).collect(),
            Some(days) => days.iter().copied().collect(),
        };
        if errors.len() > before {
            return None;
        }
        Some(Self { days, from: opens?, to: closes, zone: zone?, except: dates })
    }

    /// Whether it is open at `now`: then until when.
    pub fn open_until(&self, now: Timestamp) -> Option<Timestamp> {
        let today = now.to_zoned(self.zone.clone()).date();
        if self.except.contains(&today) {
            return None;
        }
        let yesterday = today.yesterday().ok()?;
        [yesterday, today]
            .into_iter()
            .filter_map(|day| self.on(day))
            .filter(|(opens, closes)| *opens <= now && now < *closes)
            .map(|(_, closes)| closes)
            .max()
    }

    /// When it opens next after `now`; `None` if it does not within a year.
    pub fn opens_after(&self, now: Timestamp) -> Option<Timestamp> {
        let today = now.to_zoned(self.zone.clone()).date();
        today
            .yesterday()
            .ok()?
            .series(1.day())
            .take(HORIZON)
            // Where midnight cuts off an excepted day, the rest of the window before it opens then.
            .flat_map(|day| [self.on(day).map(|(opens, _)| opens), self.midnight(day)])
            .flatten()
            .filter(|at| *at > now && self.open_until(*at).is_some())
            .min_by_key(|at| *at)
    }

    /// From when to when the window of `day` is open.
    fn on(&self, day: Date) -> Option<(Timestamp, Timestamp)> {
        let weekday = DAYS.iter().find(|(_, weekday)| *weekday == day.weekday()).map(|(day, _)| day)?;
        if !self.days.contains(weekday) || self.except.contains(&day) {
            return None;
        }
        let tomorrow = day.tomorrow().ok()?;
        let opens = self.at(day, self.from)?;
        let closes = match self.to {
            None => self.midnight(tomorrow)?,
            Some(to) if to > self.from => self.at(day, to)?,
            Some(to) => {
                // It reaches into the next day, unless that is excepted.
                let end = self.at(tomorrow, to)?;
                if self.except.contains(&tomorrow) { self.midnight(tomorrow)? } else { end }
            }
        };
        Some((opens, closes))
    }

    fn at(&self, day: Date, time: Time) -> Option<Timestamp> {
        self.zone.to_zoned(day.to_datetime(time)).ok().map(|zoned| zoned.timestamp())
    }

    fn midnight(&self, day: Date) -> Option<Timestamp> {
        self.at(day, Time::midnight())
    }
}

fn clock(field: &str, text: &str) -> Result<Time, FieldError> {
    let parsed = text.split_once(':').and_then(|(hour, minute)| {
        let two = |part: &str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_digit());
        if !two(hour) || !two(minute) {
            return None;
        }
        Time::new(hour.parse().ok()?, minute.parse().ok()?, 0, 0).ok()
    });
    parsed.ok_or_else(|| {
        FieldError::new(field, text, "write a time of day with two digits each, such as \"09:00\"")
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn window(days: Option<&[Day]>, from: &str, to: &str, zone: &str, except: &[&str]) -> Window {
        let written = chaospolicy::Window {
            days: days.map(<[Day]>::to_vec),
            from: from.into(),
            to: to.into(),
            time_zone: Some(zone.into()),
            except: except.iter().map(|date| (*date).to_owned()).collect(),
        };
        let mut errors = Vec::new();
        let window = Window::parse("spec.windows[0]", &written, &mut errors);
        assert_eq!(errors, []);
        window.unwrap()
    }

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    const OFFICE: &[Day] = &[Day::Mon, Day::Tue, Day::Wed, Day::Thu, Day::Fri];

    // 2026-11-23 is a Monday; Berlin is at UTC+1 then.
    #[rstest]
    #[case("2026-11-23T07:59:59Z", None, "2026-11-23T08:00:00Z")]
    #[case("2026-11-23T08:00:00Z", Some("2026-11-23T16:00:00Z"), "2026-11-24T08:00:00Z")]
    #[case("2026-11-23T15:59:59Z", Some("2026-11-23T16:00:00Z"), "2026-11-24T08:00:00Z")]
    #[case("2026-11-23T16:00:00Z", None, "2026-11-24T08:00:00Z")]
    #[case("2026-11-27T16:00:00Z", None, "2026-11-30T08:00:00Z")]
    #[case("2026-12-24T12:00:00Z", None, "2026-12-25T08:00:00Z")]
    fn office_hours(#[case] now: &str, #[case] until: Option<&str>, #[case] next: &str) {
        let window = window(Some(OFFICE), "09:00", "17:00", "Europe/Berlin", &["2026-12-24"]);
        assert_eq!(window.open_until(time(now)), until.map(time));
        assert_eq!(window.opens_after(time(now)), Some(time(next)));
    }

    #[rstest]
    // It belongs to the Friday on which it opens.
    #[case("2026-11-28T03:59:00Z", Some("2026-11-28T04:00:00Z"))]
    #[case("2026-11-28T23:00:00Z", None)]
    #[case("2026-11-27T22:00:00Z", Some("2026-11-28T04:00:00Z"))]
    // The Saturday is excepted: it closes at midnight.
    #[case("2026-12-04T23:59:00Z", Some("2026-12-05T00:00:00Z"))]
    #[case("2026-12-05T00:00:00Z", None)]
    fn over_midnight(#[case] now: &str, #[case] until: Option<&str>) {
        let window = window(Some(&[Day::Fri]), "22:00", "04:00", "UTC", &["2026-12-05"]);
        assert_eq!(window.open_until(time(now)), until.map(time));
    }

    #[rstest]
    // In spring 02:00 to 03:00 does not exist, in autumn it comes twice.
    #[case("2026-03-29", "2026-03-29T00:30:00Z", "2026-03-29T02:00:00Z")]
    #[case("2026-10-25", "2026-10-24T23:30:00Z", "2026-10-25T03:00:00Z")]
    fn clock_changes(#[case] day: &str, #[case] opens: &str, #[case] closes: &str) {
        let window = window(None, "01:30", "04:00", "Europe/Berlin", &[]);
        assert_eq!(window.on(day.parse().unwrap()), Some((time(opens), time(closes))));
    }

    #[test]
    fn a_window_whose_start_does_not_exist_opens_after_the_gap() {
        let window = window(None, "02:30", "04:00", "Europe/Berlin", &[]);
        let (opens, closes) = window.on("2026-03-29".parse().unwrap()).unwrap();
        assert_eq!((opens, closes), (time("2026-03-29T01:30:00Z"), time("2026-03-29T02:00:00Z")));
    }

    #[test]
    fn whole_days_and_never() {
        let always = window(None, "00:00", "24:00", "UTC", &[]);
        assert_eq!(always.open_until(time("2026-11-23T00:00:00Z")), Some(time("2026-11-24T00:00:00Z")));
        let never = window(Some(&[]), "00:00", "24:00", "UTC", &[]);
        assert_eq!(never.open_until(time("2026-11-23T12:00:00Z")), None);
        assert_eq!(never.opens_after(time("2026-11-23T12:00:00Z")), None);
    }

    #[rstest]
    #[case("9:00", "17:00", "UTC", &[], "spec.windows[0].from")]
    #[case("09:00", "25:00", "UTC", &[], "spec.windows[0].to")]
    #[case("09:00", "09:00", "UTC", &[], "spec.windows[0].to")]
    #[case("09:00", "17:00", "Europe/Berln", &[], "spec.windows[0].timeZone")]
    #[case("09:00", "17:00", "UTC", &["2026-02-30"], "spec.windows[0].except[0]")]
    fn nonsense_is_refused_by_its_field(
        #[case] from: &str,
        #[case] to: &str,
        #[case] zone: &str,
        #[case] except: &[&str],
        #[case] field: &str,
    ) {
        let written = chaospolicy::Window {
            days: None,
            from: from.into(),
            to: to.into(),
            time_zone: Some(zone.into()),
            except: except.iter().map(|date| (*date).to_owned()).collect(),
        };
        let mut errors = Vec::new();
        assert_eq!(Window::parse("spec.windows[0]", &written, &mut errors), None);
        assert_eq!(errors.iter().map(|error| error.field.as_str()).collect::<Vec<_>>(), [field]);
    }

    proptest! {
        /// Where it is open it closes ahead, and is not open at that moment unless the next one begins there;
        /// where it is closed it opens ahead, and is open at that moment.
        #[test]
        fn ends_and_openings_lie_ahead(
            seconds in 1_700_000_000i64..1_900_000_000,
            from in 0u8..24,
            length in 1u8..24,
            zone in prop::sample::select(vec!["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]),
            days in 1u8..128,
        ) {
            let days: Vec<Day> =
                DAYS.iter().enumerate().filter(|(bit, _)| days >> bit & 1 == 1).map(|(_, (day, _))| *day).collect();
            let to = (from + length) % 24;
            let window = window(Some(&days), &format!("{from:02}:00"), &format!("{to:02}:00"), zone, &[]);
            let now = Timestamp::from_second(seconds).unwrap();
            if let Some(until) = window.open_until(now) {
                prop_assert!(until > now);
            } else {
                let next = window.opens_after(now).unwrap();
                prop_assert!(next > now);
                prop_assert!(window.open_until(next).is_some());
                let middle = Timestamp::from_second((now.as_second() + next.as_second()) / 2).unwrap();
                prop_assert!(middle == next || window.open_until(middle).is_none());
            }
        }
    }
}
