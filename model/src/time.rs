//! Durations as users write them.

use std::time::Duration;

use crate::error::FieldError;

/// Parse a duration as Go writes it (`30s`, `1h5m`, `1.5h`, `300ms`), above zero and at most 30 days.
pub fn parse_duration(field: &str, text: &str) -> Result<Duration, FieldError> {
    let _ = (field, text);
    todo!("helper: model core")
}

/// Write a duration as Go would: `1h5m0s` is shortened to `1h5m`.
pub fn format_duration(duration: Duration) -> String {
    let _ = duration;
    todo!("helper: model core")
}
