//! What came of the effects that this process has carried out.
//!
//! It bridges the moment between an effect and the watch event that shows it, and remembers when to try again.
//! It may be lost at any time: everything that matters is in the pods' own records and in the status.

use std::collections::HashMap;

use jiff::Timestamp;

use super::{Effect, seconds};
use crate::pod::PodView;

/// Which effect an outcome is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Deletion or eviction.
    Delete,
    /// Injection.
    Inject,
    /// Release.
    Release,
}

/// What came of an effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done {
        /// When the API server's answer came.
        at: Timestamp,
        /// The pod's resource version afterwards; 0 if it is no more.
        version: u64,
    },
    /// It will never be.
    Refused {
        /// A stable word.
        reason: String,
        /// In words.
        message: String,
    },
    /// It isn't yet; try again at `at`.
    Retry {
        /// When.
        at: Timestamp,
        /// How often it was tried.
        attempts: u32,
        /// What went wrong.
        message: String,
    },
}

/// The outcomes of one experiment.
#[derive(Clone, Debug, Default)]
pub struct Outcomes(HashMap<(Verb, String), Outcome>);

impl Outcomes {
    /// The outcome of `verb` on the pod `uid`.
    pub fn get(&self, verb: Verb, uid: &str) -> Option<&Outcome> {
        self.0.get(&(verb, uid.to_owned()))
    }

    /// Record what came of `effect`.
    pub fn record(&mut self, effect: &Effect, outcome: Outcome) {
        let uid = &effect.pod().uid;
        if matches!(outcome, Outcome::Done { .. }) {
            match effect.verb() {
                Verb::Inject => self.0.remove(&(Verb::Release, uid.clone())),
                Verb::Release => self.0.remove(&(Verb::Inject, uid.clone())),
                Verb::Delete => None,
            };
        }
        self.0.insert((effect.verb(), uid.clone()), outcome);
    }

    /// Record that `effect` went wrong at `now`, and when to try again: after 100 ms, doubling, at most 10 s.
    pub fn retry(&mut self, effect: &Effect, now: Timestamp, message: String) {
        let attempts = match self.get(effect.verb(), &effect.pod().uid) {
            Some(Outcome::Retry { attempts, .. }) => attempts + 1,
            Some(Outcome::Done { .. } | Outcome::Refused { .. }) | None => 1,
        };
        let delay = std::time::Duration::from_millis(100 << attempts.saturating_sub(1).min(7));
        let at = super::later(now, delay.min(std::time::Duration::from_secs(10)));
        self.record(effect, Outcome::Retry { at, attempts, message });
    }

    /// Whether `view`'s pod is held for `holder`, going by the newer of the view and our own last patch.
    pub fn holds(&self, view: &PodView, holder: &str) -> bool {
        let seen: u64 = view.resource_version.parse().unwrap_or(u64::MAX);
        let newer = |verb| match self.get(verb, &view.uid) {
            Some(Outcome::Done { version, .. }) => *version > seen,
            Some(Outcome::Refused { .. } | Outcome::Retry { .. }) | None => false,
        };
        // Version 0: it was gone.
        let gone = matches!(self.get(Verb::Release, &view.uid), Some(Outcome::Done { version: 0, .. }));
        if gone || newer(Verb::Release) {
            return false;
        }
        newer(Verb::Inject) || view.held_by.iter().any(|held| held.uid == holder)
    }
}

/// For how long a pod may take to be failed, counted from the order.
pub(super) fn injection_limit() -> jiff::SignedDuration {
    seconds(60)
}
