//! Whether one selector selects a subset of what another does, for certain: told from the selectors alone,
//! whatever pods and nodes there are. In doubt it does not.

use std::collections::{BTreeMap, BTreeSet};

use super::{Expression, PARTS, Part, Selector, contains};

impl Selector {
    /// Whether this selects a subset of what `old` selects, for certain, whatever pods and nodes there are.
    /// If not: the fields that could select more.
    pub fn narrows(&self, old: &Self) -> Result<(), Vec<&'static str>> {
        match (&self.pods, &old.pods) {
            (Some(new), Some(old)) => {
                let within = |namespace: &String, names: &BTreeSet<String>| {
                    old.get(namespace).is_some_and(|old| names.is_subset(old))
                };
                let narrowed = new.iter().all(|(namespace, names)| within(namespace, names));
                return if narrowed { Ok(()) } else { Err(vec!["pods"]) };
            }
            (Some(_), None) => {
                let within = old.is_everything() && self.namespaces.is_subset(&old.namespaces);
                return if within { Ok(()) } else { Err(vec!["pods"]) };
            }
            (None, Some(_)) => return Err(vec!["pods"]),
            (None, None) => {}
        }
        let widened: Vec<&'static str> = PARTS
            .into_iter()
            .filter(|part| !self.part_narrows(*part, old))
            .flat_map(|part| part.fields())
            .copied()
            .collect();
        if widened.is_empty() { Ok(()) } else { Err(widened) }
    }

    fn part_narrows(&self, part: Part, old: &Self) -> bool {
        match part {
            Part::Namespaces => self.namespaces.is_subset(&old.namespaces),
            Part::Pods => true,
            Part::Labels => contains(&self.labels, &old.labels),
            Part::Expressions => old.expressions.iter().all(|old| {
                old.follows_from(&self.labels) || self.expressions.iter().any(|new| new.implies(old))
            }),
            Part::Annotations => contains(&self.annotations, &old.annotations),
            Part::Fields => old.fields.iter().all(|(field, value)| self.fields.get(field) == Some(value)),
            // A union: each half must be within the old one, and an empty half adds nothing.
            Part::Nodes => {
                !old.constrains(part)
                    || (self.constrains(part)
                        && self.nodes.is_subset(&old.nodes)
                        && (self.node_labels.is_empty()
                            || (!old.node_labels.is_empty()
                                && contains(&self.node_labels, &old.node_labels))))
            }
            Part::Only => true,
            Part::Phases => {
                !old.constrains(part) || (self.constrains(part) && self.phases.is_subset(&old.phases))
            }
        }
    }
}

impl Expression {
    /// Whether every set of labels that has `labels` (and maybe more) answers this.
    fn follows_from(&self, labels: &BTreeMap<String, String>) -> bool {
        match self {
            Self::In(key, _) | Self::NotIn(key, _) | Self::Exists(key) => {
                labels.contains_key(key) && self.matches(labels)
            }
            Self::DoesNotExist(_) => false,
        }
    }

    /// Whether everything that answers this answers `other`.
    fn implies(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::In(key, values), Self::In(other, others)) => key == other && values.is_subset(others),
            (Self::In(key, values), Self::NotIn(other, others)) => key == other && values.is_disjoint(others),
            (Self::In(key, _) | Self::Exists(key), Self::Exists(other)) => key == other,
            (Self::NotIn(key, values), Self::NotIn(other, others)) => {
                key == other && values.is_superset(others)
            }
            (Self::DoesNotExist(key), Self::NotIn(other, _) | Self::DoesNotExist(other)) => key == other,
            (Self::In(..), Self::DoesNotExist(_))
            | (Self::NotIn(..), Self::In(..) | Self::Exists(_) | Self::DoesNotExist(_))
            | (Self::Exists(_), Self::In(..) | Self::NotIn(..) | Self::DoesNotExist(_))
            | (Self::DoesNotExist(_), Self::In(..) | Self::Exists(_)) => false,
        }
    }
}
