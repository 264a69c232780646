//! What a pod's own record asks for, whatever experiments there are: a hold that has run out, a holder that is
//! no more, an opt-in that was withdrawn, a record that was left behind when the webhook couldn't be called.

use jiff::Timestamp;
use squall_api::names;

use crate::pod::{NamespaceView, PodView};
use crate::substitute::{Holder, MANUAL};

/// What is to be done about one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chore {
    /// Nothing.
    None,
    /// Nothing before then.
    Later(Timestamp),
    /// Let these holders go.
    Release(Vec<String>),
    /// The hand's fault may not be any more: let it go, and say why.
    Forbidden(String),
    /// Put everything back, whoever holds it.
    Restore(&'static str),
}

/// What is to be done about `pod`. `active` tells whether the experiment that holds it
/// exists, by UID. `leaving`: Squall itself is being removed. `forbidden`: why the hand may not fail it any more, by a
/// halt, a window or a limit.
pub fn chore(
    pod: &PodView,
    namespace: &NamespaceView,
    active: impl Fn(&Holder) -> bool,
    leaving: bool,
    forbidden: Option<&str>,
    now: Timestamp,
) -> Chore {
    let recorded =
        pod.annotations.contains_key(names::HELD_BY) || pod.annotations.contains_key(names::ORIGINAL_IMAGES);
    if !recorded || pod.terminating {
        return Chore::None;
    }
    let labelled = pod.labels.get(names::FAULT).map(String::as_str) == Some(names::POD_FAILURE);
    if leaving {
        return Chore::Restore("Squall is being removed");
    }
    if !namespace.opted_in {
        return Chore::Restore("the namespace isn't opted in any more");
    }
    if namespace.protect || pod.shielded || pod.is_protected() {
        return Chore::Restore("it is protected now");
    }
    if !labelled {
        return Chore::Restore("the fault label was removed");
    }
    if pod.held_by.is_empty() {
        return Chore::Restore("nobody holds it");
    }
    if let Some(why) = forbidden
        && pod.held_by.iter().any(|holder| holder.uid == MANUAL)
    {
        return Chore::Forbidden(why.to_owned());
    }
    let mut next: Option<Timestamp> = None;
    let mut over = Vec::new();
    for holder in &pod.held_by {
        if holder.uid == MANUAL {
            match holder.until {
                Some(until) if until <= now => over.push(holder.uid.clone()),
                Some(until) => next = Some(next.map_or(until, |next| next.min(until))),
                None => {}
            }
        } else if !active(holder) {
            over.push(holder.uid.clone());
        }
    }
    if !over.is_empty() { Chore::Release(over) } else { next.map_or(Chore::None, Chore::Later) }
}
