//! Which pod is looked after when: many at once, never one pod twice at a time. It knows nothing of pods.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use super::PodKey;

/// How many are looked after at once.
const TOGETHER: usize = 32;
/// What happened to a pod while it was looked after is looked at so much later: by then the watch has told what came of
/// that, and nothing is done, and told, twice.
const AFTERWARDS: Duration = Duration::from_millis(100);
/// At the latest then what waits for a time of day is looked at again: clocks are stepped, and this one isn't.
pub(super) const LONGEST: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Default)]
pub(super) struct Agenda {
    due: BTreeSet<(Instant, PodKey)>,
    /// The same by pod.
    at: HashMap<PodKey, Instant>,
    /// Looked after now, and whether that is to be done again at once.
    busy: HashMap<PodKey, bool>,
}

impl Agenda {
    /// Look after `key` then, whenever it was to be done before. One that is being looked after comes after that.
    pub(super) fn put(&mut self, key: PodKey, at: Instant) {
        if let Some(again) = self.busy.get_mut(&key) {
            *again = true;
            return;
        }
        if let Some(before) = self.at.insert(key.clone(), at) {
            self.due.remove(&(before, key.clone()));
        }
        self.due.insert((at, key));
    }

    /// The next that is due, unless so many are looked after that it has to wait.
    pub(super) fn begin(&mut self, now: Instant) -> Option<PodKey> {
        if self.busy.len() >= TOGETHER || self.due.first().is_none_or(|(at, _)| *at > now) {
            return None;
        }
        let (_, key) = self.due.pop_first()?;
        self.at.remove(&key);
        self.busy.insert(key.clone(), false);
        Some(key)
    }

    /// `key` has been looked after, and is to be again `next`.
    pub(super) fn end(&mut self, key: PodKey, next: Option<Instant>, now: Instant) {
        let again = self.busy.remove(&key).unwrap_or_default();
        if let Some(at) = if again { Some(now + AFTERWARDS) } else { next } {
            self.put(key, at);
        }
    }

    /// When [`Self::begin`] has something, if nothing else happens.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.first().filter(|_| self.busy.len() < TOGETHER).map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: usize) -> PodKey {
        ("shop".to_owned(), format!("web-{number}"))
    }

    #[test]
    fn many_at_once_and_never_one_pod_twice_at_a_time() {
        let (mut agenda, now) = (Agenda::default(), Instant::now());
        for number in 0..100 {
            agenda.put(key(number), now);
        }
        let begun: BTreeSet<PodKey> = std::iter::from_fn(|| agenda.begin(now)).collect();
        assert_eq!((begun.len(), agenda.next()), (TOGETHER, None));
        // Whatever is told of it meanwhile: it is looked after once more, and not before.
        let first = begun.first().unwrap().clone();
        agenda.put(first.clone(), now);
        agenda.put(first.clone(), now);
        assert_eq!(agenda.begin(now), None);
        agenda.end(first.clone(), None, now);
        let mut rest: Vec<PodKey> = Vec::new();
        while let Some(next) = agenda.begin(now) {
            rest.push(next.clone());
            agenda.end(next, None, now);
        }
        assert!(!rest.contains(&first));
        rest.extend(agenda.begin(now + AFTERWARDS));
        assert_eq!(rest.len(), 100 - TOGETHER + 1);
        assert_eq!(rest.iter().filter(|next| **next == first).count(), 1);
    }

    #[test]
    fn what_happens_counts_before_what_was_to_be_done_later() {
        let (mut agenda, now) = (Agenda::default(), Instant::now());
        agenda.put(key(1), now + LONGEST);
        assert_eq!((agenda.begin(now), agenda.next()), (None, Some(now + LONGEST)));
        agenda.put(key(1), now);
        assert_eq!(agenda.begin(now), Some(key(1)));
        agenda.end(key(1), Some(now + LONGEST), now);
        assert_eq!(agenda.begin(now), None);
        assert_eq!(agenda.begin(now + LONGEST), Some(key(1)));
        agenda.end(key(1), None, now);
        assert_eq!(agenda.next(), None);
    }
}
