//! Values in cgroup files that faults lower and put back: limits, and whether a cgroup is frozen.
//!
//! Several faults may hold the same value: the strictest holds, and each ends alone. Who ends last writes back exactly
//! what was there before the first. A value that is not one of ours any more was written by somebody else, and that
//! one stays. Nothing is written that was not told to the caller before, as an [`Undo`] for its journal. A limit is
//! never made laxer.

use std::{
    collections::BTreeMap,
    fs, io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};

/// One value in a cgroup.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Setting {
    /// The file.
    pub file: PathBuf,
    /// Which value of it.
    pub value: Value,
}

/// Which value of a file, and so how it is written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Value {
    /// A number, or `max`.
    Number,
    /// The quota in v1's `cpu.cfs_quota_us`: microseconds, -1 for none.
    CfsQuota,
    /// The quota in `cpu.max`: microseconds, or `max`; the period behind it stays.
    CpuMax,
    /// The number of one device in a file of v1's `blkio.throttle`; no line means none.
    Throttle {
        /// MAJOR:MINOR.
        device: String,
    },
    /// One number of one device in `io.max`.
    IoMax {
        /// MAJOR:MINOR.
        device: String,
        /// `rbps`, `wbps`, `riops` or `wiops`.
        key: String,
    },
    /// `cgroup.freeze`: 0 is frozen, no limit is thawed.
    CgroupFreeze,
    /// v1's `freezer.state`: 0 is frozen, no limit is thawed.
    FreezerState,
}

/// `None`: no limit.
pub type Limit = Option<u64>;

/// A value, and how strict it shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The value.
    pub setting: Setting,
    /// Not more than this.
    pub limit: u64,
}

/// How a value is put back. In the journal before anything is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undo {
    /// The value.
    pub setting: Setting,
    /// What it was before any fault of ours.
    pub original: Limit,
    /// What this fault asked for.
    pub wanted: u64,
}

/// A value could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{what} {}: {source}", file.display())]
pub struct SettingError {
    what: &'static str,
    file: PathBuf,
    source: io::Error,
}

impl SettingError {
    /// Whether the container uses more than it was to be left with.
    pub fn is_busy(&self) -> bool {
        self.source.raw_os_error() == Some(libc::EBUSY)
    }
}

impl Setting {
    /// A value of `file`.
    pub fn new(file: PathBuf, value: Value) -> Self {
        Self { file, value }
    }

    /// What it is now.
    pub fn read(&self) -> Result<Limit, SettingError> {
        let error = |source| SettingError { what: "reading", file: self.file.clone(), source };
        let text = fs::read_to_string(&self.file).map_err(error)?;
        parse(&self.value, &text).ok_or_else(|| error(io::ErrorKind::InvalidData.into()))
    }

    fn write(&self, limit: Limit) -> Result<(), SettingError> {
        let text = render(&self.value, limit);
        fs::write(&self.file, text).map_err(|source| SettingError {
            what: "writing",
            file: self.file.clone(),
            source,
        })
    }
}

fn parse(value: &Value, text: &str) -> Option<Limit> {
    let or_max = |text: &str| if text == "max" { Some(None) } else { text.parse().ok().map(Some) };
    let text = text.trim();
    match value {
        Value::Number => or_max(text),
        Value::CfsQuota if text.starts_with('-') => Some(None),
        Value::CfsQuota => text.parse().ok().map(Some),
        Value::CpuMax => or_max(text.split(' ').next()?),
        Value::Throttle { device } => match line_of(text, device) {
            None => Some(None),
            Some(number) => number.parse().ok().map(Some),
        },
        Value::IoMax { device, key } => match line_of(text, device) {
            None => Some(None),
            Some(line) => {
                or_max(line.split(' ').find_map(|part| part.strip_prefix(key.as_str())?.strip_prefix('='))?)
            }
        },
        Value::CgroupFreeze => Some((text == "1").then_some(0)),
        Value::FreezerState => Some((text != "THAWED").then_some(0)),
    }
}

fn line_of<'a>(text: &'a str, device: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(device)?.strip_prefix(' '))
}

fn render(value: &Value, limit: Limit) -> String {
    let or_max = limit.map_or_else(|| "max".to_owned(), |limit| limit.to_string());
    match value {
        Value::Number | Value::CpuMax => or_max,
        Value::CfsQuota => limit.map_or_else(|| "-1".to_owned(), |limit| limit.to_string()),
        Value::Throttle { device } => format!("{device} {}", limit.unwrap_or(0)),
        Value::IoMax { device, key } => format!("{device} {key}={or_max}"),
        Value::CgroupFreeze => if limit.is_some() { "1" } else { "0" }.to_owned(),
        Value::FreezerState => if limit.is_some() { "FROZEN" } else { "THAWED" }.to_owned(),
    }
}

/// The stricter of two.
fn stricter(one: Limit, other: Limit) -> Limit {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, None) => one,
        (None, other) => other,
    }
}

/// Every value that a fault holds now.
#[derive(Clone, Debug, Default)]
pub struct Settings(Arc<Mutex<BTreeMap<Setting, Known>>>);

#[derive(Debug)]
struct Known {
    original: Limit,
    /// With a lock of its own, for the kernel may take its time over a value. Whoever changes it has a clone, which is
    /// made under the lock of all.
    held: Arc<Mutex<Held>>,
}

#[derive(Debug, Default)]
struct Held {
    original: Limit,
    /// What each fault asked for.
    holders: BTreeMap<String, u64>,
    /// Whether somebody else has written it since.
    foreign: bool,
}

impl Held {
    fn effective(&self) -> Limit {
        self.holders.values().fold(self.original, |strictest, limit| stricter(strictest, Some(*limit)))
    }

    /// Whether `limit` may be what we wrote.
    fn is_ours(&self, limit: Limit) -> bool {
        limit == self.original || limit.is_some_and(|limit| self.holders.values().any(|own| *own == limit))
    }
}

impl Settings {
    /// How `wanted` would be put back. Reads only.
    pub fn intend(&self, wanted: &Wanted) -> Result<Undo, SettingError> {
        let known = lock(&self.0).get(&wanted.setting).map(|known| known.original);
        let original = match known {
            Some(original) => original,
            None => wanted.setting.read()?,
        };
        Ok(Undo { setting: wanted.setting.clone(), original, wanted: wanted.limit })
    }

    /// Makes the value as strict as `undo` says, for the fault `id`. Returns a warning when that changes nothing.
    /// Blocks for as long as the kernel takes: before a limit of memory is lower, the memory has been taken back.
    pub fn hold(&self, id: &str, undo: &Undo) -> Result<Option<String>, SettingError> {
        let Undo { setting, original, wanted } = undo;
        let held = {
            let mut all = lock(&self.0);
            let known = all.entry(setting.clone()).or_insert_with(|| Known {
                original: *original,
                held: Arc::new(Mutex::new(Held { original: *original, ..Held::default() })),
            });
            Arc::clone(&known.held)
        };
        let mut held = lock(&held);
        // What is lowered further would hide that somebody else has changed it since.
        if !held.holders.is_empty() && !held.foreign {
            held.foreign = !held.is_ours(setting.read()?);
        }
        held.holders.insert(id.to_owned(), *wanted);
        if held.foreign {
            return Ok(Some(foreign(setting, None)));
        }
        // Every time, also where it says so already: what the kernel refuses is to be known now.
        setting.write(held.effective())?;
        let found = setting.read()?;
        if found.is_none_or(|found| found > *wanted) {
            let file = setting.file.clone();
            let source = io::Error::other(format!(
                "{} was written, {} is there",
                wanted,
                render(&setting.value, found)
            ));
            return Err(SettingError { what: "lowering", file, source });
        }
        Ok(original.filter(|original| original < wanted).map(|original| {
            let file = setting.file.display();
            format!("{file} stays {original}, which is stricter than the {wanted} that was asked for")
        }))
    }

    /// Lets go of the value. Returns a warning when somebody else has changed it meanwhile; then it stays. Blocks as
    /// [`Self::hold`] does.
    pub fn release(&self, id: &str, undo: &Undo) -> Result<Option<String>, SettingError> {
        let setting = &undo.setting;
        let Some(held) = lock(&self.0).get(setting).map(|known| Arc::clone(&known.held)) else {
            return Ok(None);
        };
        let outcome = {
            let mut held = lock(&held);
            if held.holders.contains_key(id) { put_back(setting, &mut held, id) } else { Ok(None) }
        };
        drop(held);
        let mut all = lock(&self.0);
        // Whoever else has it in hand is about to hold it, or to do the same.
        if all
            .get(setting)
            .is_some_and(|known| Arc::strong_count(&known.held) == 1 && lock(&known.held).holders.is_empty())
        {
            all.remove(setting);
        }
        outcome
    }

    /// Puts back what could not be put back the last time. What the fault still holds it lets go of, since others may
    /// hold it, too; else a daemon before this one left it.
    pub fn put_back(&self, id: &str, undo: &Undo) -> Result<Option<String>, SettingError> {
        let held = lock(&self.0).get(&undo.setting).map(|known| Arc::clone(&known.held));
        if held.is_some_and(|held| lock(&held).holders.contains_key(id)) {
            return self.release(id, undo);
        }
        let holders = BTreeMap::from([(id.to_owned(), undo.wanted)]);
        put_back(&undo.setting, &mut Held { original: undo.original, holders, foreign: false }, id)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn put_back(setting: &Setting, held: &mut Held, id: &str) -> Result<Option<String>, SettingError> {
    let found = match setting.read() {
        Ok(found) => found,
        Err(error) if is_gone(&error.source) => {
            held.holders.remove(id);
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    if held.foreign || !held.is_ours(found) {
        held.foreign = true;
        held.holders.remove(id);
        return Ok(Some(foreign(setting, found)));
    }
    let own = held.holders.remove(id);
    let value = held.effective();
    if value == found {
        return Ok(None);
    }
    match setting.write(value) {
        Ok(()) => Ok(None),
        Err(error) if is_gone(&error.source) => Ok(None),
        Err(error) => {
            // It is tried again.
            held.holders.extend(own.map(|own| (id.to_owned(), own)));
            Err(error)
        }
    }
}

/// The cgroup was removed, and the value with it.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

fn foreign(setting: &Setting, found: Limit) -> String {
    let file = setting.file.display();
    let now = found.map(|found| format!(" to {found}")).unwrap_or_default();
    format!("{file} was changed{now} by somebody else meanwhile; that value stays")
}

/// What a daemon that is no more left behind: puts every value back. Returns the warnings of each fault, and those
/// whose values could not be put back.
pub fn put_back_all<'a>(
    undos: impl IntoIterator<Item = (&'a str, &'a Undo)>,
) -> Vec<(&'a str, Result<Option<String>, SettingError>)> {
    let mut all: BTreeMap<&Setting, (Held, Vec<&str>)> = BTreeMap::new();
    for (id, undo) in undos {
        let (held, ids) = all.entry(&undo.setting).or_default();
        held.original = undo.original;
        held.holders.insert(id.to_owned(), undo.wanted);
        ids.push(id);
    }
    let mut outcomes = Vec::new();
    for (setting, (mut held, ids)) in all {
        for id in ids {
            outcomes.push((id, put_back(setting, &mut held, id)));
        }
    }
    outcomes
}

/// The number of memory pages' bytes that the kernel will keep of `bytes`.
pub fn whole_pages(bytes: u64) -> u64 {
    let page = rustix::param::page_size() as u64;
    bytes / page * page
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use proptest::prelude::*;

    fn number(file: &Path) -> Setting {
        Setting::new(file.to_owned(), Value::Number)
    }

    #[test]
    fn values_are_read_and_written() {
        let device = || "8:0".to_owned();
        let max = |key: &str| Value::IoMax { device: device(), key: key.into() };
        let io = "8:16 rbps=1 wbps=2 riops=3 wiops=4\n8:0 rbps=max wbps=7 riops=max wiops=max\n";
        for (value, text, limit, written) in [
            (Value::Number, "max\n", None, "max"),
            (Value::Number, "4096\n", Some(4096), "4096"),
            (Value::CfsQuota, "-1\n", None, "-1"),
            (Value::CfsQuota, "50000\n", Some(50000), "50000"),
            (Value::CpuMax, "max 100000\n", None, "max"),
            (Value::CpuMax, "20000 50000\n", Some(20000), "20000"),
            (Value::Throttle { device: device() }, "8:16 5\n", None, "8:0 0"),
            (Value::Throttle { device: device() }, "8:16 5\n8:0 9\n", Some(9), "8:0 9"),
            (max("wbps"), io, Some(7), "8:0 wbps=7"),
            (max("rbps"), io, None, "8:0 rbps=max"),
            (max("rbps"), "", None, "8:0 rbps=max"),
            (Value::CgroupFreeze, "0\n", None, "0"),
            (Value::CgroupFreeze, "1\n", Some(0), "1"),
            (Value::FreezerState, "THAWED\n", None, "THAWED"),
            (Value::FreezerState, "FREEZING\n", Some(0), "FROZEN"),
        ] {
            assert_eq!(parse(&value, text), Some(limit), "{value:?} {text:?}");
            assert_eq!(render(&value, limit), written);
        }
        assert_eq!(parse(&Value::Number, "x"), None);
    }

    #[test]
    fn somebody_elses_value_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pids.max");
        fs::write(&file, "max").unwrap();
        let settings = Settings::default();
        let hold = |id, limit| {
            let undo = settings.intend(&Wanted { setting: number(&file), limit }).unwrap();
            settings.hold(id, &undo).unwrap();
            undo
        };
        let (a, b) = (hold("a", 10), hold("b", 5));
        fs::write(&file, "77").unwrap();
        assert!(settings.release("b", &b).unwrap().unwrap().contains("77"));
        assert!(settings.release("a", &a).unwrap().is_some());
        assert_eq!(fs::read_to_string(&file).unwrap(), "77");
        // Nothing of it is remembered.
        let again = hold("c", 5);
        assert_eq!(again.original, Some(77));
        assert_eq!(settings.release("c", &again).unwrap(), None);
        assert_eq!(fs::read_to_string(&file).unwrap(), "77");
    }

    #[test]
    fn a_value_that_takes_its_time_holds_up_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let (slow, quick) = (dir.path().join("memory.high"), dir.path().join("pids.max"));
        // Whoever opens it waits for the other side.
        rustix::fs::mknodat(rustix::fs::CWD, &slow, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        fs::write(&quick, "max").unwrap();
        let settings = Settings::default();
        let undo = |file: &Path| Undo { setting: number(file), original: None, wanted: 5 };
        let holding = std::thread::spawn({
            let (settings, undo) = (settings.clone(), undo(&slow));
            move || settings.hold("slow", &undo)
        });
        while !lock(&settings.0).contains_key(&number(&slow)) {
            std::thread::yield_now();
        }
        for id in ["a", "b"] {
            assert_eq!(settings.hold(id, &undo(&quick)).unwrap(), None);
            assert_eq!(settings.release(id, &undo(&quick)).unwrap(), None);
        }
        // What was there before is known meanwhile, too.
        let wanted = Wanted { setting: number(&slow), limit: 3 };
        assert_eq!(settings.intend(&wanted).unwrap().original, None);
        assert!(!holding.is_finished());
        // It is written, and read again: by us.
        let written = fs::read_to_string(&slow).unwrap();
        fs::write(&slow, &written).unwrap();
        assert_eq!((written.as_str(), holding.join().unwrap().unwrap()), ("5", None));
        assert_eq!(lock(&settings.0).keys().collect::<Vec<_>>(), [&number(&slow)]);
    }

    #[test]
    fn somebody_elses_value_is_not_lowered_by_the_next_fault_either() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pids.max");
        fs::write(&file, "max").unwrap();
        let settings = Settings::default();
        let intend = |limit| settings.intend(&Wanted { setting: number(&file), limit }).unwrap();
        let a = intend(10);
        assert_eq!(settings.hold("a", &a).unwrap(), None);
        fs::write(&file, "77").unwrap();
        let b = intend(5);
        assert!(settings.hold("b", &b).unwrap().unwrap().contains("somebody else"));
        assert_eq!(fs::read_to_string(&file).unwrap(), "77");
        for (id, undo) in [("b", &b), ("a", &a)] {
            assert!(settings.release(id, undo).unwrap().unwrap().contains("77"));
            assert_eq!(fs::read_to_string(&file).unwrap(), "77");
        }
    }

    #[test]
    fn a_limit_is_never_made_laxer() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("memory.high");
        fs::write(&file, "100").unwrap();
        let settings = Settings::default();
        let undo = settings.intend(&Wanted { setting: number(&file), limit: 200 }).unwrap();
        assert!(settings.hold("a", &undo).unwrap().unwrap().contains("stricter"));
        assert_eq!(fs::read_to_string(&file).unwrap(), "100");
        settings.release("a", &undo).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "100");
    }

    #[test]
    fn what_is_put_back_later_is_not_taken_from_another() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pids.max");
        fs::write(&file, "max").unwrap();
        let settings = Settings::default();
        let hold = |id| {
            let undo = settings.intend(&Wanted { setting: number(&file), limit: 5 }).unwrap();
            settings.hold(id, &undo).unwrap();
            undo
        };
        let (a, b) = (hold("a"), hold("b"));
        for (id, undo, after) in [("a", &a, "5"), ("b", &b, "max")] {
            assert_eq!(settings.put_back(id, undo).unwrap(), None);
            assert_eq!(fs::read_to_string(&file).unwrap(), after);
        }
        // What a daemon before this one left.
        fs::write(&file, "5").unwrap();
        assert_eq!(settings.put_back("a", &a).unwrap(), None);
        assert_eq!(fs::read_to_string(&file).unwrap(), "max");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Faults come and go in any order; at any moment the daemon may die, between its journal and its write, too.
        #[test]
        fn the_strictest_holds_and_the_last_puts_back(
            original in prop::option::of(1u64..100),
            steps in prop::collection::vec((0usize..4, 1u64..100), 0..24),
            cut in any::<bool>(),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("value");
            let before = render(&Value::Number, original);
            fs::write(&file, &before).unwrap();
            let settings = Settings::default();
            let mut journal: BTreeMap<String, Undo> = BTreeMap::new();
            for (fault, limit) in steps {
                let id = fault.to_string();
                match journal.remove(&id) {
                    Some(undo) => {
                        prop_assert_eq!(settings.release(&id, &undo).unwrap(), None);
                    }
                    None => {
                        let undo = settings.intend(&Wanted { setting: number(&file), limit }).unwrap();
                        prop_assert_eq!(undo.original, original);
                        settings.hold(&id, &undo).unwrap();
                        journal.insert(id, undo);
                    }
                }
                let strictest = journal.values().fold(original, |limit, undo| stricter(limit, Some(undo.wanted)));
                prop_assert_eq!(fs::read_to_string(&file).unwrap(), render(&Value::Number, strictest));
            }
            if cut {
                let undo = settings.intend(&Wanted { setting: number(&file), limit: 1 }).unwrap();
                journal.insert("cut off".into(), undo);
            }
            for (_, outcome) in put_back_all(journal.iter().map(|(id, undo)| (id.as_str(), undo))) {
                prop_assert_eq!(outcome.unwrap(), None);
            }
            prop_assert_eq!(fs::read_to_string(&file).unwrap(), before);
        }
    }
}
