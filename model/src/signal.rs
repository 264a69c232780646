//! Signals of Linux by number and name.

use std::fmt;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::error::FieldError;

/// A signal of Linux, 1 to 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal(i32);

/// The names by number from 1; the second name, where there is one, is an alias.
const NAMES: [(&str, Option<&str>); 31] = [
    ("HUP", None),
    ("INT", None),
    ("QUIT", None),
    ("ILL", None),
    ("TRAP", None),
    ("ABRT", Some("IOT")),
    ("BUS", None),
    ("FPE", None),
    ("KILL", None),
    ("USR1", None),
    ("SEGV", None),
    ("USR2", None),
    ("PIPE", None),
    ("ALRM", None),
    ("TERM", None),
    ("STKFLT", None),
    ("CHLD", Some("CLD")),
    ("CONT", None),
    ("STOP", None),
    ("TSTP", None),
    ("TTIN", None),
    ("TTOU", None),
    ("URG", None),
    ("XCPU", None),
    ("XFSZ", None),
    ("VTALRM", None),
    ("PROF", None),
    ("WINCH", None),
    ("IO", Some("POLL")),
    ("PWR", None),
    ("SYS", None),
];

/// As every libc numbers them: 32 and 33 belong to the libc's threads.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

impl Signal {
    /// What container-kill sends if nothing else is asked for.
    pub const KILL: Self = Self(9);

    /// Its number.
    pub fn number(self) -> i32 {
        self.0
    }

    /// Whether a process that neither handles nor ignores it ends by it.
    pub fn ends_by_default(self) -> bool {
        // CHLD, CONT, STOP, TSTP, TTIN, TTOU, URG, WINCH
        !matches!(self.0, 17..=23 | 28)
    }

    /// Parse what a user wrote in the field `field`.
    pub fn parse(field: &str, written: &IntOrString) -> Result<Self, FieldError> {
        let (found, number) = match written {
            IntOrString::Int(number) => (number.to_string(), Some(*number)),
            IntOrString::String(text) => (text.clone(), number_of(text)),
        };
        match number {
            Some(number) if (1..=RTMAX).contains(&number) => Ok(Self(number)),
            Some(_) | None => Err(FieldError::new(field, found, allowed())),
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = usize::try_from(self.0 - 1).ok().and_then(|index| NAMES.get(index));
        match name {
            Some((name, _)) => write!(f, "SIG{name}"),
            None if self.0 == RTMIN => f.write_str("SIGRTMIN"),
            None if self.0 > RTMIN => write!(f, "SIGRTMIN+{}", self.0 - RTMIN),
            None => write!(f, "{}", self.0),
        }
    }
}

/// The name of a signal by its number; one that is none is named by the number.
pub(crate) fn name(number: i32) -> String {
    Signal(number).to_string()
}

fn number_of(text: &str) -> Option<i32> {
    if !text.is_empty() && text.len() <= 2 && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok();
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        return real_time(offset, '+').map(|offset| RTMIN + offset);
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        return real_time(offset, '-').map(|offset| RTMAX - offset);
    }
    let index = NAMES.iter().position(|(main, alias)| *main == name || *alias == Some(name))?;
    i32::try_from(index + 1).ok()
}

/// The offset in `+3` or `-3`, at most as far as real-time signals go; nothing is 0.
fn real_time(offset: &str, sign: char) -> Option<i32> {
    if offset.is_empty() {
        return Some(0);
    }
    let digits = offset.strip_prefix(sign)?;
    if digits.is_empty() || digits.len() > 2 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().filter(|offset| *offset <= RTMAX - RTMIN)
}

fn allowed() -> String {
    let names: Vec<&str> = NAMES.iter().flat_map(|(name, alias)| [Some(*name), *alias]).flatten().collect();
    format!(
        "write a number from 1 to 64 or a name, with or without SIG: {}, RTMIN to RTMIN+30, RTMAX-30 to RTMAX",
        names.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("9", 9)]
    #[case("SIGTERM", 15)]
    #[case("term", 15)]
    #[case("IOT", 6)]
    #[case("SIGPOLL", 29)]
    #[case("RTMIN", 34)]
    #[case("SIGRTMIN+3", 37)]
    #[case("RTMAX-1", 63)]
    #[case("RTMAX", 64)]
    #[case("64", 64)]
    fn names_and_numbers_are_understood(#[case] text: &str, #[case] number: i32) {
        assert_eq!(Signal::parse("spec.signal", &IntOrString::String(text.into())).unwrap().number(), number);
    }

    #[rstest]
    #[case("0")]
    #[case("")]
    #[case("65")]
    #[case("-9")]
    #[case("+9")]
    #[case("SIG")]
    #[case("SIG9")]
    #[case("BOGUS")]
    #[case("RTMIN+31")]
    #[case("RTMIN-1")]
    #[case("RTMAX+1")]
    #[case("9999999999")]
    fn anything_else_is_refused_with_the_list(#[case] text: &str) {
        let error = Signal::parse("spec.signal", &IntOrString::String(text.into())).unwrap_err();
        assert_eq!(error.field, "spec.signal");
        assert!(error.allowed.contains("HUP, INT, QUIT"), "{error}");
    }

    #[rstest]
    #[case(0)]
    #[case(65)]
    #[case(-1)]
    #[case(i32::MIN)]
    fn numbers_out_of_range_are_refused(#[case] number: i32) {
        assert!(Signal::parse("spec.signal", &IntOrString::Int(number)).is_err());
    }

    #[test]
    fn every_signal_is_parsed_back_from_its_name() {
        for number in 1..=64 {
            let signal = Signal::parse("spec.signal", &IntOrString::Int(number)).unwrap();
            let name = IntOrString::String(signal.to_string());
            assert_eq!(Signal::parse("spec.signal", &name), Ok(signal), "{signal}");
        }
    }
}
