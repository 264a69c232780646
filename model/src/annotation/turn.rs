//! What the controller makes of an annotated object.
//!
//! A one-shot becomes an experiment and its annotation is taken away; a lasting fault becomes one that ends with its
//! annotation, and takes it along when it ends by itself. Called again at any moment it says the same: experiments
//! have names that say what they were made for.

use std::collections::BTreeMap;

use jiff::Timestamp;
use squall_api::names;

use super::ticket::{is_stale, valid};
use super::{Experiment, Fault, Kind, Made, Subject, Tickets, experiment, name_of, parse};

/// How many experiments that are over are kept of one object.
const HISTORY: usize = 5;
/// How much of an error is written on the object.
const LONGEST_ERROR: usize = 1 << 10;

/// An experiment that was made for the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its name.
    pub name: String,
    /// For what.
    pub made: Made,
    /// When.
    pub created: Option<Timestamp>,
    /// It is over.
    pub completed: bool,
    /// It is on its way out.
    pub deleting: bool,
}

/// The Deployment that a ReplicaSet belongs to: the keys that it carries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parent(pub Vec<Fault>);

/// An experiment to be made.
#[derive(Clone, Debug, PartialEq)]
pub struct New {
    /// Its name.
    pub name: String,
    /// For what.
    pub made: Made,
    /// What it is to do.
    pub spec: Experiment,
    /// For whom: the value of [`names::REQUESTED_BY`].
    pub requested_by: String,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Turn {
    /// Experiments to make; one that is there already is as good.
    pub make: Vec<New>,
    /// Experiments to delete.
    pub delete: Vec<(Fault, String)>,
    /// The hand's hold of the pod ends.
    pub let_go: bool,
    /// Annotations to change; `None` removes.
    pub annotations: BTreeMap<String, Option<String>>,
    /// What could not be done, and why: once, for an Event.
    pub complaint: Option<String>,
}

impl Turn {
    /// The same object without the annotation for `fault`, after an error that is for good.
    pub fn give_up(subject: &Subject, fault: Fault, why: &str) -> Self {
        let mut turn = Self { let_go: is_switch(subject, fault), ..Self::default() };
        let mut tickets = Tickets::of(&subject.annotations);
        turn.take(fault);
        tickets.remove(fault);
        turn.keep(subject, &tickets);
        turn.complain(subject, vec![format!("{}: {why}", fault.key())]);
        turn
    }

    fn take(&mut self, fault: Fault) {
        self.annotations.insert(fault.key().to_owned(), None);
    }

    fn keep(&mut self, subject: &Subject, tickets: &Tickets) {
        let written = tickets.written();
        if subject.annotations.get(names::REQUESTED_BY) != written.as_ref() {
            self.annotations.insert(names::REQUESTED_BY.to_owned(), written);
        }
    }

    fn complain(&mut self, subject: &Subject, about: Vec<String>) {
        let mut text = about.join("; ");
        let end = (0..=text.len().min(LONGEST_ERROR)).rev().find(|&at| text.is_char_boundary(at));
        text.truncate(end.unwrap_or_default());
        if !text.is_empty() && subject.annotations.get(names::LAST_ERROR) != Some(&text) {
            self.annotations.insert(names::LAST_ERROR.to_owned(), Some(text.clone()));
            self.complaint = Some(text);
        }
    }
}

/// What is to be done for `subject`. `parent` is given for a ReplicaSet of a Deployment; `opted_in` tells whether its
/// namespace takes part.
pub fn turn(
    subject: &Subject,
    parent: Option<&Parent>,
    known: &[Known],
    opted_in: bool,
    now: Timestamp,
) -> Turn {
    let mut turn = Turn::default();
    if let Some(parent) = parent {
        strip(&mut turn, subject, parent);
        return turn;
    }
    if subject.terminating {
        return turn;
    }
    let mut tickets = Tickets::of(&subject.annotations);
    let mut about = Vec::new();
    for fault in Fault::ALL {
        let current = valid(subject, fault, &tickets).cloned();
        let made = current.as_ref().map(|ticket| Made { fault, id: ticket.id.clone() });
        // A lasting fault that isn't asked for any more, or in other words.
        for other in known.iter().filter(|known| known.made.fault == fault && fault.lasting()) {
            if Some(&other.made) != made.as_ref() && !other.completed && !other.deleting {
                turn.delete.push((fault, other.name.clone()));
            }
        }
        let Some(value) = subject.annotations.get(fault.key()) else {
            if tickets.get(fault).is_some() {
                // Taken away while no webhook could do what goes with it.
                turn.let_go |= is_switch(subject, fault);
                tickets.remove(fault);
            }
            continue;
        };
        let (Some(ticket), Some(made)) = (current, made) else {
            tickets.remove(fault);
            about.push(not_asked(subject, fault, opted_in));
            continue;
        };
        let there = known.iter().find(|known| known.made == made);
        let over = match there {
            Some(there) => !fault.lasting() || there.completed || there.deleting,
            None if is_stale(&ticket, now) => {
                about.push(format!(
                    "{}: asked for at {}, which is too long ago to begin now; annotate again",
                    fault.key(),
                    ticket.at
                ));
                true
            }
            None => match parse(fault, value, subject.kind) {
                Ok(wish) => {
                    turn.make.push(New {
                        name: name_of(subject, &made),
                        spec: experiment(subject, &wish),
                        made,
                        requested_by: ticket.by.to_string(),
                    });
                    !fault.lasting()
                }
                Err(error) => {
                    about.push(error.to_string());
                    true
                }
            },
        };
        if over {
            turn.take(fault);
            tickets.remove(fault);
            turn.let_go |= is_switch(subject, fault);
        }
    }
    turn.keep(subject, &tickets);
    turn.complain(subject, about);
    let mut history: Vec<&Known> = known.iter().filter(|known| known.completed && !known.deleting).collect();
    history.sort_by(|a, b| (b.created, &b.name).cmp(&(a.created, &a.name)));
    turn.delete.extend(history.into_iter().skip(HISTORY).map(|known| (known.made.fault, known.name.clone())));
    turn
}

/// A copy keeps nothing that its original no longer has: `rollout undo` would bring it back.
fn strip(turn: &mut Turn, subject: &Subject, parent: &Parent) {
    let Parent(there) = parent;
    for fault in Fault::ALL {
        if subject.annotations.contains_key(fault.key()) && !there.contains(&fault) {
            turn.take(fault);
        }
    }
    if there.is_empty() {
        for key in [names::REQUESTED_BY, names::LAST_ERROR] {
            if subject.annotations.contains_key(key) {
                turn.annotations.insert(key.to_owned(), None);
            }
        }
    }
}

fn is_switch(subject: &Subject, fault: Fault) -> bool {
    subject.kind == Kind::Pod && fault == Fault::PodFailure
}

fn not_asked(subject: &Subject, fault: Fault, opted_in: bool) -> String {
    let key = fault.key();
    if !opted_in {
        return format!(
            "{key}: namespace {ns} does not take part; an administrator can change that: kubectl label namespace {ns} \
             {}={}; then annotate again",
            names::INJECT,
            names::INJECT_ENABLED,
            ns = subject.namespace
        );
    }
    format!(
        "{key}: nothing is done, since Squall's webhook did not see it being added to this {}: it came with the \
         object's creation or a template, or the webhook was down; remove it and annotate again",
        subject.kind.word()
    )
}
