//! The daemon's memory on the node: the highest generation accepted, the faults under way, and what was carried out.
//!
//! One writer, by a lock that the kernel takes back from a dead one. The file is replaced as a whole, so it is always
//! either the old or the new; it is not synced, because it lies on tmpfs and nothing that it speaks of outlives a
//! reboot. Refuses a file of a format that it does not know: forgetting what was carried out could hit a container
//! twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::{
    report::{FaultReport, Generation},
    setting::Undo,
};

/// The format that this daemon reads and writes.
pub const FORMAT: u32 = 1;

/// What can go wrong with the journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The directory could not be made.
    #[error("making {}: {source}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another daemon has it.
    #[error("another daemon holds the journal {}", path.display())]
    Held {
        /// The lock file.
        path: PathBuf,
    },
    /// The lock could not be had.
    #[error("locking {}: {source}", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It could not be read.
    #[error("reading {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is of another format, or damaged.
    #[error("{} is of a format that this daemon does not know (it knows {FORMAT}): {why}; remove it when no fault is active", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// More on that.
        why: String,
    },
    /// It could not be written.
    #[error("writing {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// How far a fault had come when this was written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Progress {
    /// The signal is about to be sent, to this container's first process.
    Intended {
        /// Its PID.
        pid: i32,
        /// When it started, in ticks since boot.
        start: u64,
    },
    /// The signal was sent.
    Fired {
        /// The PID of the container's first process.
        pid: i32,
        /// When it started, in ticks since boot.
        start: u64,
        /// What was known then.
        report: FaultReport,
    },
    /// A lasting fault stands, or is about to. A fault with this is not forgotten before it is put back.
    Standing {
        /// How every value of its cgroups is put back.
        undos: Vec<Undo>,
        /// How often it was interrupted before.
        interruptions: u32,
    },
    /// A lasting fault was put back before its time; when it is ordered again, it is injected again.
    Interrupted {
        /// How often, this time included.
        interruptions: u32,
    },
    /// Nothing will follow.
    Final(FaultReport),
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Contents {
    format: u32,
    generation: Generation,
    faults: BTreeMap<String, Progress>,
}

/// The open journal.
#[derive(Debug)]
pub struct Journal {
    file: PathBuf,
    /// Held as long as the journal is.
    _lock: File,
    contents: Contents,
    unwritten: bool,
}

impl Journal {
    /// Takes the lock and reads what is there.
    pub fn open(dir: &Path) -> Result<Self, JournalError> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|source| JournalError::Directory { path: dir.to_owned(), source })?;
        let path = dir.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let lock = lock.map_err(|source| JournalError::Lock { path: path.clone(), source })?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(JournalError::Held { path }),
            Err(errno) => return Err(JournalError::Lock { path, source: errno.into() }),
        }
        let file = dir.join("journal");
        let contents = match fs::read(&file) {
            Ok(bytes) => parse(&bytes).map_err(|why| JournalError::Format { path: file.clone(), why })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Contents { format: FORMAT, ..Contents::default() }
            }
            Err(source) => return Err(JournalError::Read { path: file, source }),
        };
        Ok(Self { file, _lock: lock, contents, unwritten: false })
    }

    /// The highest generation accepted so far.
    pub fn generation(&self) -> Generation {
        self.contents.generation
    }

    /// How far `id` had come, if it is known.
    pub fn progress(&self, id: &str) -> Option<&Progress> {
        self.contents.faults.get(id)
    }

    /// Every fault that it knows of.
    pub fn faults(&self) -> impl Iterator<Item = (&String, &Progress)> {
        self.contents.faults.iter()
    }

    /// Accepts a generation, and forgets the faults that it does not list any more. Written when it returns.
    pub fn accept(&mut self, generation: Generation, listed: &BTreeSet<&str>) -> Result<(), JournalError> {
        let before = self.contents.clone();
        self.contents.generation = generation;
        self.contents.faults.retain(|id, progress| {
            listed.contains(id.as_str()) || matches!(progress, Progress::Standing { .. })
        });
        if self.contents == before {
            return Ok(());
        }
        self.write().inspect_err(|_| self.contents = before)
    }

    /// Notes how far a fault has come. Written when it returns.
    pub fn note(&mut self, id: &str, progress: Progress) -> Result<(), JournalError> {
        self.note_soon(id, progress);
        self.write()
    }

    /// Notes how far a fault has come, to be written with the next [`Journal::write`]. Only for what would be found
    /// out again after a restart.
    pub fn note_soon(&mut self, id: &str, progress: Progress) {
        self.contents.faults.insert(id.to_owned(), progress);
        self.unwritten = true;
    }

    /// Forgets a fault, with the next [`Journal::write`]. Says whether it was known.
    pub fn forget(&mut self, id: &str) -> bool {
        let known = self.contents.faults.remove(id).is_some();
        self.unwritten |= known;
        known
    }

    /// Whether something waits to be written.
    pub fn is_unwritten(&self) -> bool {
        self.unwritten
    }

    /// Replaces the file.
    pub fn write(&mut self) -> Result<(), JournalError> {
        let path = self.file.with_extension("new");
        let write = |source| JournalError::Write { path: self.file.clone(), source };
        let bytes = serde_json::to_vec(&self.contents).map_err(|error| write(error.into()))?;
        let mut new = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(write)?;
        new.write_all(&bytes).map_err(write)?;
        fs::rename(&path, &self.file).map_err(write)?;
        self.unwritten = false;
        Ok(())
    }
}

fn parse(bytes: &[u8]) -> Result<Contents, String> {
    /// Read first: the rest of another format may look different.
    #[derive(Deserialize)]
    struct Head {
        format: u32,
    }
    let head: Head = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if head.format != FORMAT {
        return Err(format!("it is of format {}", head.format));
    }
    serde_json::from_slice(bytes).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use proptest::prelude::*;

    use super::*;
    use crate::report::{Evidence, Reason, Receipt, State};

    fn report(id: &str, state: State) -> FaultReport {
        let receipt = Receipt {
            evidence: Evidence::Ebpf,
            evidence_error: String::new(),
            signal: 9,
            ordered: SystemTime::now(),
            fired: Some(SystemTime::now()),
            processes: vec![],
            total: 0,
            lost: 0,
            oom_kills: 0,
            fired_at_count: 0,
        };
        FaultReport { receipt: Some(receipt), ..FaultReport::new(id, state, "m".into()) }
    }

    fn generation(term: u64, counter: u64) -> Generation {
        Generation { term, counter }
    }

    #[test]
    fn what_was_noted_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let done = Progress::Final(report("b", State::Done));
        {
            let mut journal = Journal::open(dir.path()).unwrap();
            journal.accept(generation(2, 7), &BTreeSet::from(["a", "b"])).unwrap();
            journal.note("a", Progress::Intended { pid: 5, start: 9 }).unwrap();
            journal.note("b", done.clone()).unwrap();
        }
        let journal = Journal::open(dir.path()).unwrap();
        assert_eq!(journal.generation(), generation(2, 7));
        assert_eq!(journal.progress("a"), Some(&Progress::Intended { pid: 5, start: 9 }));
        assert_eq!(journal.progress("b"), Some(&done));
    }

    #[test]
    fn what_is_no_longer_listed_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        journal.note("a", Progress::Final(report("a", State::Refused(Reason::ContainerGone)))).unwrap();
        journal.accept(generation(1, 1), &BTreeSet::new()).unwrap();
        drop(journal);
        assert_eq!(Journal::open(dir.path()).unwrap().faults().count(), 0);
    }

    #[test]
    fn what_stands_is_not_forgotten_before_it_is_put_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        let standing = Progress::Standing { undos: vec![], interruptions: 0 };
        journal.note("a", standing.clone()).unwrap();
        journal.note("b", Progress::Interrupted { interruptions: 1 }).unwrap();
        journal.accept(generation(1, 1), &BTreeSet::new()).unwrap();
        assert_eq!((journal.progress("a"), journal.progress("b")), (Some(&standing), None));
        assert!(journal.forget("a") && journal.is_unwritten());
        journal.write().unwrap();
        drop(journal);
        assert_eq!(Journal::open(dir.path()).unwrap().faults().count(), 0);
    }

    #[test]
    fn there_is_one_writer() {
        let dir = tempfile::tempdir().unwrap();
        let _journal = Journal::open(dir.path()).unwrap();
        assert!(matches!(Journal::open(dir.path()), Err(JournalError::Held { .. })));
    }

    #[test]
    fn other_formats_and_damage_are_refused() {
        for text in ["{\"format\":2,\"future\":true}", "{\"format\":1}", "", "{}"] {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("journal"), text).unwrap();
            assert!(matches!(Journal::open(dir.path()), Err(JournalError::Format { .. })), "{text}");
        }
    }

    #[test]
    fn a_write_that_was_cut_off_leaves_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        Journal::open(dir.path()).unwrap().accept(generation(1, 1), &BTreeSet::new()).unwrap();
        fs::write(dir.path().join("journal.new"), "{\"form").unwrap();
        assert_eq!(Journal::open(dir.path()).unwrap().generation(), generation(1, 1));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn the_last_note_of_each_fault_stands(notes in prop::collection::vec(("[a-e]", 1i32..99, any::<u64>()), 0..20)) {
            let dir = tempfile::tempdir().unwrap();
            let mut last = BTreeMap::new();
            {
                let mut journal = Journal::open(dir.path()).unwrap();
                for (id, pid, start) in notes {
                    journal.note(&id, Progress::Intended { pid, start }).unwrap();
                    last.insert(id, Progress::Intended { pid, start });
                }
            }
            let journal = Journal::open(dir.path()).unwrap();
            let found: BTreeMap<_, _> = journal.faults().map(|(id, progress)| (id.clone(), progress.clone())).collect();
            prop_assert_eq!(found, last);
        }
    }
}
