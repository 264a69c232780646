//! Who asked for what: one ticket an annotation, kept together in [`names::REQUESTED_BY`] on the object.
//!
//! A ticket is good for one object (by UID), one value and [a minute](GOOD_FOR): a copy of it, or a late one, is worth
//! nothing.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use squall_api::names;

use super::{Fault, Subject};

/// How long after the request a fault may begin. As long as a one-shot is tried.
pub const GOOD_FOR: SignedDuration = SignedDuration::from_secs(60);
/// How far clocks of API clients of ours may be apart.
const SKEW: SignedDuration = SignedDuration::from_secs(30);

/// Written by admission for one annotation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ticket {
    /// The request, so that the same annotation set again is another one.
    pub id: String,
    /// The object's UID.
    pub uid: String,
    /// The annotation's value.
    pub value: String,
    /// When.
    pub at: Timestamp,
    /// Who: user name, UID, groups, extra.
    pub by: Value,
}

/// The tickets of one object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tickets(BTreeMap<String, Ticket>);

impl Tickets {
    /// Those among `annotations`. What can't be read is worth nothing.
    pub fn of(annotations: &BTreeMap<String, String>) -> Self {
        let text = annotations.get(names::REQUESTED_BY);
        let entries: BTreeMap<String, Value> =
            text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        Self(
            entries
                .into_iter()
                .filter_map(|(word, value)| Some((word, serde_json::from_value(value).ok()?)))
                .collect(),
        )
    }

    /// The one for `fault`.
    pub fn get(&self, fault: Fault) -> Option<&Ticket> {
        self.0.get(fault.word())
    }

    pub(super) fn put(&mut self, fault: Fault, ticket: Ticket) {
        self.0.insert(fault.word().to_owned(), ticket);
    }

    pub(super) fn remove(&mut self, fault: Fault) {
        self.0.remove(fault.word());
    }

    /// As written on the object; nothing where there is none.
    pub fn written(&self) -> Option<String> {
        if self.0.is_empty() {
            return None;
        }
        // Strings, times and JSON: this can't fail.
        serde_json::to_string(&self.0).ok()
    }
}

/// The ticket with which `fault` may happen to `subject`, as far as that is for the object itself to say.
pub(super) fn valid<'a>(subject: &Subject, fault: Fault, tickets: &'a Tickets) -> Option<&'a Ticket> {
    let value = subject.annotations.get(fault.key())?;
    tickets.get(fault).filter(|ticket| ticket.uid == subject.uid && ticket.value == *value)
}

/// It is too late, or too early, to begin.
pub(super) fn is_stale(ticket: &Ticket, now: Timestamp) -> bool {
    let age = now.duration_since(ticket.at);
    age > GOOD_FOR || age < -SKEW
}

/// Take the annotation for `fault` and its ticket away, if it has one: the fault is over. An annotation without a
/// ticket never did anything, and is its owner's.
pub fn forget(annotations: &mut Option<BTreeMap<String, String>>, fault: Fault) {
    let Some(map) = annotations else { return };
    let mut tickets = Tickets::of(map);
    if tickets.get(fault).is_none() {
        return;
    }
    tickets.remove(fault);
    map.remove(fault.key());
    match tickets.written() {
        Some(text) => map.insert(names::REQUESTED_BY.to_owned(), text),
        None => map.remove(names::REQUESTED_BY),
    };
}
