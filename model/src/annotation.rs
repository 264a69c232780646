//! Small faults without YAML: `kubectl annotate deployment web squall.dev/pod-kill=one`.
//!
//! - [`parse`] reads what is asked for; an item that isn't known is refused by name.
//! - [`review`] is what admission makes of a changed annotation: it is checked, and who asked is written beside it.
//! - [`turn`] is what the controller makes of an annotated object: an experiment of its own for each annotation.
//!
//! An annotation counts only with the [ticket](Tickets) that admission wrote for it in the request that added it. So
//! copies (a template, a ReplicaSet, a rollback, a manifest that was saved) ask for nothing.

mod made;
mod review;
mod subject;
mod ticket;
mod turn;

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use squall_api::names;

pub use self::made::{Experiment, Made, experiment, name_of};
pub use self::review::{Asker, Reviewed, review};
pub use self::subject::{Kind, Subject};
pub use self::ticket::{Ticket, Tickets, forget};
pub use self::turn::{Known, New, Parent, Turn, turn};

use crate::error::FieldError;
use crate::spec::{Mode, Signal};
use crate::syntax;
use crate::time::parse_duration;

/// How long a lasting fault lasts if the annotation doesn't say.
pub const DEFAULT_DURATION: Duration = Duration::from_secs(300);
/// As much as an experiment takes.
const LONGEST_GRACE: u64 = 86_400;

/// What an annotation asks for, by its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// Pods fail for a while.
    PodFailure,
    /// Pods are deleted, once.
    PodKill,
    /// Containers are signalled, once.
    ContainerKill,
    /// Containers compute for a while.
    StressCpu,
    /// Containers hold memory for a while.
    StressMemory,
}

impl Fault {
    /// Every one.
    pub const ALL: [Self; names::SMALL_FAULTS.len()] =
        [Self::PodFailure, Self::PodKill, Self::ContainerKill, Self::StressCpu, Self::StressMemory];

    /// The annotation's key.
    pub fn key(self) -> &'static str {
        match self {
            Self::PodFailure => names::ASK_POD_FAILURE,
            Self::PodKill => names::ASK_POD_KILL,
            Self::ContainerKill => names::ASK_CONTAINER_KILL,
            Self::StressCpu => names::ASK_STRESS_CPU,
            Self::StressMemory => names::ASK_STRESS_MEMORY,
        }
    }

    /// The key without its prefix.
    pub fn word(self) -> &'static str {
        self.key().split_once('/').map_or("", |(_, word)| word)
    }

    /// Whether it lasts and is recovered (true), or happens once (false).
    pub fn lasting(self) -> bool {
        match self {
            Self::PodFailure | Self::StressCpu | Self::StressMemory => true,
            Self::PodKill | Self::ContainerKill => false,
        }
    }

    /// The kind of experiment that it becomes.
    pub fn becomes(self) -> &'static str {
        match self {
            Self::PodFailure | Self::PodKill | Self::ContainerKill => "PodChaos",
            Self::StressCpu | Self::StressMemory => "StressChaos",
        }
    }

    /// The right that one needs to do it by hand: the verb on pods.
    pub fn verb(self) -> &'static str {
        match self {
            Self::PodKill => "delete",
            Self::PodFailure | Self::ContainerKill | Self::StressCpu | Self::StressMemory => "patch",
        }
    }

    /// The path of the annotation, as errors name it.
    pub fn field(self) -> String {
        format!("metadata.annotations[{}]", self.key())
    }

    fn allowed(self, on: Kind) -> String {
        let count = if on == Kind::Pod { "" } else { "a count (one, all, 3, 50%), " };
        let own = match self {
            Self::PodFailure | Self::StressCpu => "a duration (30s, 1h5m; unset: 5m)",
            Self::StressMemory => "a size (256Mi, 1GB), a duration (30s, 1h5m; unset: 5m)",
            Self::PodKill => "grace=30s (unset: the pod's own)",
            Self::ContainerKill => "container or container:SIGNAL (unset: the first, SIGKILL)",
        };
        format!("allowed are, separated by commas: {count}{own}")
    }
}

/// What one annotation asks for, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// What.
    pub fault: Fault,
    /// To how many of the object's pods.
    pub mode: Mode,
    /// For how long; of a lasting fault only.
    pub duration: Option<Duration>,
    /// pod-kill: seconds; `None` means the pod's own.
    pub grace: Option<u32>,
    /// container-kill: which; `None` means the first.
    pub container: Option<String>,
    /// container-kill: what with; `None` means SIGKILL.
    pub signal: Option<Signal>,
    /// stress-memory: how much; set there, and only there.
    pub size: Option<String>,
}

/// Read the value `text` of the annotation for `fault` on an object of kind `on`.
pub fn parse(fault: Fault, text: &str, on: Kind) -> Result<Wish, FieldError> {
    let refused = |found: &str| FieldError::new(fault.field(), found, fault.allowed(on));
    let (mut mode, mut duration, mut grace) = (None, None, None);
    let (mut container, mut signal, mut size) = (None, None, None);
    // No value at all asks for what is usual.
    let items = if text.trim().is_empty() { Vec::new() } else { text.split(',').map(str::trim).collect() };
    for item in items {
        let twice = |what: &str| {
            FieldError::new(fault.field(), item, format!("{what} is there already: write it once"))
        };
        if let Some(asked) = count(item) {
            let whole = asked.ok_or_else(|| refused(item))?;
            if on == Kind::Pod && !matches!(whole, Mode::One | Mode::All) {
                let allowed = "a count is for workloads, this is one pod: leave it out";
                return Err(FieldError::new(fault.field(), item, allowed));
            }
            if mode.replace(whole).is_some() {
                return Err(twice("a count"));
            }
            continue;
        }
        match fault {
            Fault::StressMemory if is_size(item) => {
                if size.replace(item.to_owned()).is_some() {
                    return Err(twice("a size"));
                }
            }
            Fault::PodFailure | Fault::StressCpu | Fault::StressMemory => {
                let asked = parse_duration(&fault.field(), item).map_err(|_| refused(item))?;
                if duration.replace(asked).is_some() {
                    return Err(twice("a duration"));
                }
            }
            Fault::PodKill => {
                let asked = item.strip_prefix("grace=").ok_or_else(|| refused(item))?;
                if grace.replace(seconds(fault, asked)?).is_some() {
                    return Err(twice("grace"));
                }
            }
            Fault::ContainerKill => {
                let (name, with) = match item.split_once(':') {
                    Some((name, with)) => (name, Some(with)),
                    None => (item, None),
                };
                syntax::dns_label(name).map_err(|_| refused(item))?;
                if container.replace(name.to_owned()).is_some() {
                    return Err(twice("a container"));
                }
                signal = with
                    .map(|with| Signal::parse(&fault.field(), &IntOrString::String(with.to_owned())))
                    .transpose()?;
            }
        }
    }
    if fault == Fault::StressMemory && size.is_none() {
        return Err(FieldError::new(
            fault.field(),
            text,
            "a size is missing: write one, such as 256Mi or 1GB",
        ));
    }
    let duration = fault.lasting().then(|| duration.unwrap_or(DEFAULT_DURATION));
    Ok(Wish { fault, mode: mode.unwrap_or(Mode::One), duration, grace, container, signal, size })
}

/// `item` as a count; `None` if it is none, `Some(None)` if it is one that makes no sense.
fn count(item: &str) -> Option<Option<Mode>> {
    let number = |text: &str| {
        (!text.is_empty() && text.len() <= 9 && text.bytes().all(|byte| byte.is_ascii_digit()))
            .then(|| text.parse::<u32>().ok())
            .flatten()
    };
    match item {
        "one" => return Some(Some(Mode::One)),
        "all" => return Some(Some(Mode::All)),
        _ => {}
    }
    if let Some(share) = item.strip_suffix('%') {
        let share = number(share).and_then(|share| u8::try_from(share).ok());
        return Some(share.filter(|share| (1..=100).contains(share)).map(Mode::FixedPercent));
    }
    match number(item) {
        // One is one, however it is written.
        Some(1) => Some(Some(Mode::One)),
        Some(number) => Some((number > 0).then_some(Mode::Fixed(number))),
        None if !item.is_empty() && item.bytes().all(|byte| byte.is_ascii_digit()) => Some(None),
        None => None,
    }
}

/// Whether `item` is written as a size; how large it may be is for the experiment's own validation to say.
fn is_size(item: &str) -> bool {
    const UNITS: [&str; 15] =
        ["B", "k", "K", "M", "G", "T", "Ki", "Mi", "Gi", "Ti", "KB", "kB", "MB", "GB", "TB"];
    let end = item.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(item.len());
    let (number, unit) = item.split_at(end);
    number.len() <= 15 && number.parse::<f64>().is_ok_and(|number| number > 0.0) && UNITS.contains(&unit)
}

fn seconds(fault: Fault, text: &str) -> Result<u32, FieldError> {
    let error = || {
        let allowed = "write whole seconds up to a day, such as grace=30s; grace=0s ends the pod at once";
        FieldError::new(fault.field(), format!("grace={text}"), allowed)
    };
    if text == "0" || text == "0s" {
        return Ok(0);
    }
    let time = parse_duration("", text).map_err(|_| error())?;
    if time.subsec_nanos() != 0 || time.as_secs() > LONGEST_GRACE {
        return Err(error());
    }
    u32::try_from(time.as_secs()).map_err(|_| error())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn wish(fault: Fault, text: &str) -> Wish {
        parse(fault, text, Kind::Deployment).unwrap()
    }

    #[rstest]
    #[case("", Mode::One, 300)]
    #[case("  ", Mode::One, 300)]
    #[case("one", Mode::One, 300)]
    #[case("1", Mode::One, 300)]
    #[case("all", Mode::All, 300)]
    #[case("3", Mode::Fixed(3), 300)]
    #[case("50%", Mode::FixedPercent(50), 300)]
    #[case("10s", Mode::One, 10)]
    #[case("all,10s", Mode::All, 10)]
    #[case(" 1h5m , 50% ", Mode::FixedPercent(50), 3900)]
    fn counts_and_durations_come_in_any_order(#[case] text: &str, #[case] mode: Mode, #[case] seconds: u64) {
        let Wish { mode: found, duration, .. } = wish(Fault::PodFailure, text);
        assert_eq!((found, duration), (mode, Some(Duration::from_secs(seconds))));
    }

    #[rstest]
    #[case("", None)]
    #[case("grace=30s", Some(30))]
    #[case("grace=2m", Some(120))]
    #[case("grace=0s", Some(0))]
    #[case("grace=0", Some(0))]
    fn grace_is_pod_kills(#[case] text: &str, #[case] grace: Option<u32>) {
        let found = wish(Fault::PodKill, text);
        assert_eq!((found.grace, found.duration), (grace, None));
    }

    #[rstest]
    #[case("256Mi", Mode::One, 300, "256Mi")]
    #[case("1m,all,1.5GB", Mode::All, 60, "1.5GB")]
    #[case("50%,64M", Mode::FixedPercent(50), 300, "64M")]
    fn memory_has_a_size(#[case] text: &str, #[case] mode: Mode, #[case] seconds: u64, #[case] size: &str) {
        let found = wish(Fault::StressMemory, text);
        assert_eq!((found.mode, found.size.as_deref()), (mode, Some(size)));
        assert_eq!(found.duration, Some(Duration::from_secs(seconds)));
    }

    #[test]
    fn a_container_may_name_its_signal() {
        let found = wish(Fault::ContainerKill, "all,app:TERM");
        assert_eq!((found.mode, found.container.as_deref()), (Mode::All, Some("app")));
        assert_eq!(found.signal.map(|signal| signal.to_string()).as_deref(), Some("SIGTERM"));
        // A word of ours with a signal is a container after all.
        assert_eq!(wish(Fault::ContainerKill, "one:9").container.as_deref(), Some("one"));
        assert_eq!(wish(Fault::ContainerKill, "app").signal, None);
    }

    #[rstest]
    #[case(Fault::PodFailure, "true", "true")]
    #[case(Fault::PodFailure, "all,", "")]
    #[case(Fault::PodFailure, "0", "0")]
    #[case(Fault::PodFailure, "0%", "0%")]
    #[case(Fault::PodFailure, "101%", "101%")]
    #[case(Fault::PodFailure, "-1", "-1")]
    #[case(Fault::PodFailure, "9999999999", "9999999999")]
    #[case(Fault::PodFailure, "0s", "0s")]
    #[case(Fault::PodFailure, "800h", "800h")]
    #[case(Fault::PodFailure, "grace=30s", "grace=30s")]
    #[case(Fault::PodFailure, "one,all", "all")]
    #[case(Fault::PodFailure, "1m,2m", "2m")]
    #[case(Fault::PodKill, "1m", "1m")]
    #[case(Fault::PodKill, "grace=", "grace=")]
    #[case(Fault::PodKill, "grace=1500ms", "grace=1500ms")]
    #[case(Fault::PodKill, "grace=25h", "grace=25h")]
    #[case(Fault::PodKill, "grace=1s,grace=2s", "grace=2s")]
    #[case(Fault::PodKill, "app:TERM", "app:TERM")]
    #[case(Fault::StressMemory, "1m", "1m")]
    #[case(Fault::StressMemory, "", "")]
    #[case(Fault::StressMemory, "256", "256")]
    #[case(Fault::StressMemory, "256Mi,1Gi", "1Gi")]
    #[case(Fault::StressMemory, "0Mi", "0Mi")]
    #[case(Fault::StressMemory, "1Zi", "1Zi")]
    #[case(Fault::StressCpu, "256Mi", "256Mi")]
    #[case(Fault::ContainerKill, "app:BOGUS", "BOGUS")]
    #[case(Fault::ContainerKill, "app,other", "other")]
    #[case(Fault::ContainerKill, ":TERM", ":TERM")]
    #[case(Fault::ContainerKill, "App", "App")]
    fn what_is_not_known_is_refused_by_name(#[case] fault: Fault, #[case] text: &str, #[case] found: &str) {
        let error = parse(fault, text, Kind::Deployment).unwrap_err();
        assert_eq!((error.field, error.found.as_str()), (fault.field(), found));
        assert!(!error.allowed.is_empty());
    }

    #[test]
    fn a_pod_takes_no_count() {
        for good in ["one", "all", "1", "10s"] {
            assert!(parse(Fault::PodFailure, good, Kind::Pod).is_ok(), "{good}");
        }
        for bad in ["2", "50%"] {
            let error = parse(Fault::PodFailure, bad, Kind::Pod).unwrap_err();
            assert!(error.allowed.contains("workloads"), "{error}");
        }
    }

    #[test]
    fn every_key_is_known() {
        for (fault, key) in Fault::ALL.into_iter().zip(names::SMALL_FAULTS) {
            assert_eq!(fault.key(), key);
            assert!(!fault.word().is_empty());
        }
    }
}
