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
    // Nobody was ever failed in a protected namespace: what stands there somebody else wrote.
    if !recorded || pod.terminating || names::is_protected_namespace(&pod.namespace) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_in_a_protected_namespace_is_somebody_elses_and_puts_no_image_anywhere() {
        let record = [(names::ORIGINAL_IMAGES.to_owned(), r#"{"app":"evil"}"#.to_owned())];
        let mut pod =
            PodView { namespace: "shop".to_owned(), annotations: record.into(), ..PodView::default() };
        let closed = NamespaceView::default();
        let due =
            |pod: &PodView, leaving| chore(pod, &closed, |_| false, leaving, None, Timestamp::UNIX_EPOCH);
        assert_eq!(due(&pod, false), Chore::Restore("the namespace isn't opted in any more"));
        for namespace in names::PROTECTED_NAMESPACES {
            pod.namespace = namespace.to_owned();
            assert_eq!((due(&pod, false), due(&pod, true)), (Chore::None, Chore::None), "{namespace}");
        }
    }
}
