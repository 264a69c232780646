//! When a schedule is due: cron in a time zone, every so often, or at random.
//!
//! Cron is croner's, daylight saving time included: a fixed time that the clocks skip runs right after the gap, one
//! that they repeat runs once, and what runs every so many minutes runs through both.

use std::time::Duration;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest, Sha256};

use super::SHORTEST;
use crate::error::FieldError;
use crate::time::{format_duration, parse_duration};

/// When a schedule is due.
#[derive(Clone, Debug)]
pub enum When {
    /// By the clock of a time zone.
    Cron(Box<Cron>, TimeZone),
    /// This far apart.
    Every(Duration),
    /// At random, this far apart on average.
    Mtbf(Duration),
}

/// Draws that come out the same whoever makes them.
#[derive(Clone, Copy, Debug)]
pub struct Draw<'a> {
    /// The object's UID.
    pub uid: &'a str,
    /// The seed that the user chose.
    pub seed: Option<i64>,
}

impl Draw<'_> {
    /// Above 0 and at most 1, for the run at `at`.
    fn unit(self, what: &str, at: Timestamp) -> f64 {
        let mut hash = Sha256::new();
        match self.seed {
            Some(seed) => hash.update(seed.to_be_bytes()),
            None => hash.update(self.uid.as_bytes()),
        }
        hash.update(what.as_bytes());
        hash.update(at.as_second().to_be_bytes());
        let digest = hash.finalize();
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&digest[..8]);
        // 53 bits: as many as a double has.
        ((u64::from_be_bytes(bytes) >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// How much later than `due` a run begins, at most `jitter`.
    pub fn delay(self, due: Timestamp, jitter: Duration) -> SignedDuration {
        let late = jitter.mul_f64(self.unit("jitter", due));
        SignedDuration::try_from(late).unwrap_or_default()
    }
}

impl When {
    /// Read `text`, in `zone`.
    pub fn parse(field: &str, text: &str, zone: TimeZone) -> Result<Self, FieldError> {
        let text = text.trim();
        let allowed = "write five cron fields (minute hour day month weekday, \"0 9 * * mon-fri\"), six with seconds \
                       first, @hourly, @daily, @weekly, @monthly, @yearly, or \"@every 90m\"";
        if let Some(every) = text.strip_prefix("@every") {
            let every = parse_duration(field, every.trim())
                .ok()
                .filter(|every| *every >= SHORTEST && every.subsec_nanos() == 0);
            return every
                .map(Self::Every)
                .ok_or_else(|| FieldError::new(field, text, "@every takes whole seconds, 1s to 720h"));
        }
        if text.starts_with("CRON_TZ=") || text.starts_with("TZ=") {
            return Err(FieldError::new(field, text, "the time zone has a field of its own: spec.timeZone"));
        }
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        let cron = parser
            .parse(text)
            .map_err(|error| FieldError::new(field, text, format!("{error}: {allowed}")))?;
        Ok(Self::Cron(Box::new(cron), zone))
    }

    /// The first run after `after`, in whole seconds; `None` if there is none.
    pub fn next(&self, after: Timestamp, anchor: Timestamp, draw: Draw<'_>) -> Option<Timestamp> {
        match self {
            Self::Cron(cron, zone) => {
                // A run is known by its second, and there is only one of each: never the same again.
                let mut from = after;
                for _ in 0..3 {
                    let found = cron.find_next_occurrence(&from.to_zoned(zone.clone()), false).ok()?;
                    let next = Timestamp::from_second(found.timestamp().as_second()).ok()?;
                    if next > after {
                        return Some(next);
                    }
                    from = from.checked_add(SignedDuration::from_secs(1)).ok()?;
                }
                None
            }
            Self::Every(every) => {
                let every = i64::try_from(every.as_secs()).ok()?.max(1);
                let gone = (after.as_second() - anchor.as_second()).max(0);
                let next = anchor.as_second().checked_add((gone / every + 1).checked_mul(every)?)?;
                Timestamp::from_second(next).ok()
            }
            Self::Mtbf(mean) => {
                let wait = mean.mul_f64(-draw.unit("mtbf", after).ln());
                let wait = i64::try_from(wait.as_secs()).ok()?.max(1);
                Timestamp::from_second(after.as_second().checked_add(wait)?).ok()
            }
        }
    }

    /// As the user reads it.
    pub fn said(&self) -> String {
        match self {
            Self::Cron(cron, zone) => {
                format!("{} ({})", cron.as_str(), zone.iana_name().unwrap_or("UTC"))
            }
            Self::Every(every) => format!("every {}", format_duration(*every)),
            Self::Mtbf(mean) => format!("at random, {} apart on average", format_duration(*mean)),
        }
    }
}
