//! Where a runtime's socket is: where it was said to be, or the first of the usual places.
//!
//! Looked for anew each time: a runtime that is restarted makes a new one, and one that is installed later is found. One
//! that was there and is gone belongs to a runtime that is away for a moment, not to a node that has none.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

use tonic::{Code, Status};

use super::RuntimeError;

/// Candidates for one runtime's socket.
pub struct Socket {
    runtime: &'static str,
    candidates: Vec<PathBuf>,
    seen: OnceLock<PathBuf>,
}

impl Socket {
    /// The socket at `given`, or one of the `usual` ones under `root`.
    pub fn new(runtime: &'static str, given: Option<PathBuf>, root: &Path, usual: &[&str]) -> Self {
        let under = |path: &&str| root.join(path.trim_start_matches('/'));
        let candidates = given.map_or_else(|| usual.iter().map(under).collect(), |given| vec![given]);
        Self { runtime, candidates, seen: OnceLock::new() }
    }

    /// The one that is there.
    pub fn find(&self) -> Result<&Path, RuntimeError> {
        if let Some(path) = self.candidates.iter().find(|path| path.exists()) {
            self.seen.get_or_init(|| path.clone());
            return Ok(path);
        }
        if self.seen.get().is_some() {
            return Err(self.lost("the socket is gone".into()));
        }
        let tried = self.candidates.iter().map(|path| path.display().to_string()).collect();
        Err(RuntimeError::NoSocket { runtime: self.runtime, tried })
    }

    /// Nobody answers there, and somebody may in a moment.
    pub fn lost(&self, source: Box<dyn std::error::Error + Send + Sync>) -> RuntimeError {
        let socket = self.seen.get().or(self.candidates.first()).cloned().unwrap_or_default();
        RuntimeError::Connect { runtime: self.runtime, socket, source }
    }

    /// What the runtime said no with, unless it was not the runtime: it is away, or about to be.
    pub fn refused(&self, call: &'static str, status: &Status) -> RuntimeError {
        let message = status.message().to_owned();
        // What comes from the other side has no cause on this one.
        if status.code() == Code::Unavailable || std::error::Error::source(status).is_some() {
            return self.lost(message.into());
        }
        RuntimeError::Refused { runtime: self.runtime, call, message }
    }

    /// As [`Socket::refused`], of a question about the container `id`.
    pub fn refused_of(&self, call: &'static str, id: &str, status: &Status) -> RuntimeError {
        match status.code() {
            Code::NotFound => RuntimeError::NotFound { id: id.to_owned() },
            _ => self.refused(call, status),
        }
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
        // It had one: its runtime is being restarted.
        std::fs::remove_file(dir.path().join("run/b.sock")).unwrap();
        let error = socket.find().unwrap_err();
        assert!(
            matches!(error, RuntimeError::Connect { .. }) && error.to_string().contains("b.sock"),
            "{error}"
        );
        let given = Socket::new("a runtime", Some("/nowhere".into()), dir.path(), &usual);
        let error = given.find().unwrap_err().to_string();
        assert!(error.contains("/nowhere") && !error.contains("b.sock"), "{error}");
    }
}
