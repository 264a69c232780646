//! What admission makes of annotations that change.
//!
//! Nothing is refused but what is added in this very request; removing always works. What is written beside the
//! annotations (who asked) is Squall's: whatever a request says there, it becomes what it was.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Value;
use squall_api::names;

use super::{Fault, Kind, Subject, Ticket, Tickets, Wish, parse};
use crate::error::FieldError;
use crate::pod::says_protect;
use crate::time::format_duration;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    /// The request.
    pub id: &'a str,
    /// The user.
    pub by: &'a Value,
    /// Now.
    pub now: Timestamp,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reviewed {
    /// The annotations as they are to be.
    pub annotations: BTreeMap<String, String>,
    /// The labels as they are to be.
    pub labels: BTreeMap<String, String>,
    /// What is newly asked for: the requester must have the right to it, and policy must allow it.
    pub wishes: Vec<Wish>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// `old` is changed to `new`.
pub fn review(old: &Subject, new: &Subject, asker: Asker<'_>) -> Result<Reviewed, Vec<FieldError>> {
    let mut reviewed =
        Reviewed { annotations: new.annotations.clone(), labels: new.labels.clone(), ..Reviewed::default() };
    if let Some(deployment) = new.copied_from() {
        // Not to be refused, and not to be touched: the Deployment's controller copies what stands there. The tickets in
        // it are for the Deployment; one for the copy itself would count as soon as it is nobody's copy any more.
        let (before, carried) = (Tickets::of(&old.annotations), Tickets::of(&new.annotations));
        let forged = |fault: &Fault| {
            let ticket = carried.get(*fault);
            ticket.is_some_and(|ticket| ticket.uid == new.uid) && ticket != before.get(*fault)
        };
        if Fault::ALL.iter().any(forged) {
            match old.annotations.get(names::REQUESTED_BY) {
                Some(was) => reviewed.annotations.insert(names::REQUESTED_BY.to_owned(), was.clone()),
                None => reviewed.annotations.remove(names::REQUESTED_BY),
            };
        }
        let copied = new.annotations.contains_key(names::REQUESTED_BY);
        if !copied && Fault::ALL.into_iter().any(|fault| is_new(old, new, fault)) {
            reviewed.warnings.push(format!(
                "squall: nothing is done here: annotate deployment {} instead, whose copy this is",
                deployment.name
            ));
        }
        return Ok(reviewed);
    }
    let (before, carried) = (Tickets::of(&old.annotations), Tickets::of(&new.annotations));
    let mut tickets = Tickets::default();
    let mut errors = Vec::new();
    let mut touched = false;
    for fault in Fault::ALL {
        let (was, is) = (old.annotations.get(fault.key()), new.annotations.get(fault.key()));
        touched |= was != is;
        match is {
            None => {
                if was.is_some() && ends_with_it(new, fault) {
                    reviewed.labels.remove(names::FAULT);
                }
            }
            Some(_) if was == is => {
                if let Some(ticket) = before.get(fault) {
                    tickets.put(fault, ticket.clone());
                }
            }
            Some(_) if is_copy(carried.get(fault), before.get(fault)) => {
                reviewed.warnings.push(format!(
                    "squall: {} comes from a copy (a rollback, a saved manifest) and is left out: annotate again to \
                     have it done again",
                    fault.key()
                ));
                match was {
                    Some(was) => reviewed.annotations.insert(fault.key().to_owned(), was.clone()),
                    None => reviewed.annotations.remove(fault.key()),
                };
                if let Some(ticket) = before.get(fault) {
                    tickets.put(fault, ticket.clone());
                }
            }
            Some(value) => match checked(new, fault, value) {
                Ok(wish) => {
                    if ends_with_it(new, fault) {
                        switch_on(&mut reviewed, &wish);
                    }
                    let ticket = Ticket {
                        id: asker.id.to_owned(),
                        uid: new.uid.clone(),
                        value: value.clone(),
                        at: asker.now,
                        by: asker.by.clone(),
                    };
                    tickets.put(fault, ticket);
                    reviewed.wishes.push(wish);
                }
                Err(error) => errors.push(error),
            },
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    match tickets.written() {
        Some(text) => reviewed.annotations.insert(names::REQUESTED_BY.to_owned(), text),
        None => reviewed.annotations.remove(names::REQUESTED_BY),
    };
    if touched {
        // It spoke of what was asked for before.
        reviewed.annotations.remove(names::LAST_ERROR);
    }
    Ok(reviewed)
}

fn is_new(old: &Subject, new: &Subject, fault: Fault) -> bool {
    let value = new.annotations.get(fault.key());
    value.is_some() && value != old.annotations.get(fault.key())
}

/// A ticket that comes along with the request, and isn't the object's, was copied with the annotation.
fn is_copy(carried: Option<&Ticket>, before: Option<&Ticket>) -> bool {
    match (carried, before) {
        (Some(carried), Some(before)) => carried.id != before.id,
        (Some(_), None) => true,
        (None, _) => false,
    }
}

/// On a pod, pod-failure is the switch itself.
fn ends_with_it(subject: &Subject, fault: Fault) -> bool {
    subject.kind == Kind::Pod && fault == Fault::PodFailure
}

fn switch_on(reviewed: &mut Reviewed, wish: &Wish) {
    reviewed.labels.insert(names::FAULT.to_owned(), names::POD_FAILURE.to_owned());
    if let Some(duration) = wish.duration {
        reviewed.annotations.insert(names::UNTIL.to_owned(), format_duration(duration));
    }
}

fn checked(subject: &Subject, fault: Fault, value: &str) -> Result<Wish, FieldError> {
    if says_protect(Some(&subject.labels), Some(&subject.annotations)) {
        let allowed = format!(
            "allowed is nothing, for the {} is protected: remove {} from it first",
            subject.kind.word(),
            names::PROTECT
        );
        return Err(FieldError::new(fault.field(), value, allowed));
    }
    let wish = parse(fault, value, subject.kind)?;
    if let Some(container) = &wish.container
        && !subject.containers.contains(container)
    {
        let allowed = format!("allowed are the names of its containers: {}", subject.containers.join(", "));
        return Err(FieldError::new(fault.field(), container, allowed));
    }
    Ok(wish)
}
