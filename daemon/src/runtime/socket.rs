//! Where a runtime's socket is: where it was said to be, or the first of the usual places.
//!
//! Looked for anew each time: a runtime that is restarted makes a new one, and one that is installed later is found.

use std::path::{Path, PathBuf};

use super::RuntimeError;

/// Candidates for one runtime's socket.
pub struct Socket {
    runtime: &'static str,
    candidates: Vec<PathBuf>,
}

impl Socket {
    /// The socket at `given`, or one of the `usual` ones under `root`.
    pub fn new(runtime: &'static str, given: Option<PathBuf>, root: &Path, usual: &[&str]) -> Self {
        let under = |path: &&str| root.join(path.trim_start_matches('/'));
        let candidates = given.map_or_else(|| usual.iter().map(under).collect(), |given| vec![given]);
        Self { runtime, candidates }
    }

    /// The one that is there.
    pub fn find(&self) -> Result<&Path, RuntimeError> {
        self.candidates.iter().find(|path| path.exists()).map(PathBuf::as_path).ok_or_else(|| {
            let tried = self.candidates.iter().map(|path| path.display().to_string()).collect();
            RuntimeError::NoSocket { runtime: self.runtime, tried }
        })
    }

    /// The one that is there, or else the first that was tried.
    pub fn shown(&self) -> String {
        let found = self.candidates.iter().find(|path| path.exists()).or(self.candidates.first());
        found.map(|path| path.display().to_string()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_is_there_is_taken_and_a_given_one_is_the_only_one() {
        let dir = tempfile::tempdir().unwrap();
        let usual = ["/run/a.sock", "/run/b.sock"];
        let socket = Socket::new("a runtime", None, dir.path(), &usual);
        let error = socket.find().unwrap_err().to_string();
        assert!(usual.iter().all(|path| error.contains(path)) && error.contains("a runtime"), "{error}");
        std::fs::create_dir(dir.path().join("run")).unwrap();
        std::fs::write(dir.path().join("run/b.sock"), "").unwrap();
        // Made after the first look.
        assert_eq!(socket.find().unwrap(), dir.path().join("run/b.sock"));
        let given = Socket::new("a runtime", Some("/nowhere".into()), dir.path(), &usual);
        let error = given.find().unwrap_err().to_string();
        assert!(error.contains("/nowhere") && !error.contains("b.sock"), "{error}");
    }
}
