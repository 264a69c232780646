//! One turn of the controller: plan, carry out, write; it may die between any two steps.

use std::collections::BTreeSet;

use squall_api::podchaos::{Action, PodChaosSpec};
use squall_model::experiment::Experiment;
use squall_model::plan::{Effect, Input, Order, Outcome, Outcomes, Plan, Stage, plan};
use squall_model::substitute;
use squall_model::validate::validate;

use crate::sim::{Sim, images};

impl Sim {
    pub fn plan(&self) -> Plan {
        let spec = validate(&self.chaos.spec, "ns");
        plan(Input {
            now: self.now,
            experiment: Experiment::new::<PodChaosSpec>(&self.chaos.metadata, &spec),
            status: &self.status,
            world: self,
            outcomes: &self.outcomes,
            images: &images(),
        })
    }

    /// The containers that run.
    pub fn containers(&self) -> BTreeSet<String> {
        let statuses = self.pods.values().filter_map(|pod| pod.status.as_ref()?.container_statuses.as_ref());
        statuses.flatten().filter_map(|status| status.container_id.clone()).collect()
    }

    /// The controller would have the node have this; `whole` if nothing else.
    pub fn order(&mut self, orders: &[Order], whole: bool) {
        for order in orders.iter().filter(|order| order.stage == Stage::Fire) {
            let known = self.status.targets.iter().any(|target| {
                target.uid == order.pod.uid
                    && target.container_id.as_ref() == Some(&order.container_id)
                    && order.id.ends_with(&match target.attempt {
                        Some(attempt) => format!("/{attempt}"),
                        None => order.container_id.trim_start_matches("containerd://").to_owned(),
                    })
            });
            assert!(known, "ordered before the intent was written: {order:?}");
        }
        if whole {
            self.desired.clear();
        }
        self.led = true;
        self.desired.extend(orders.iter().map(|order| (order.id.clone(), order.clone())));
        self.news();
    }

    /// The node's daemon hears and tells, where it can.
    pub fn news(&mut self) {
        let containers = self.containers();
        self.node.look(&containers, self.now);
        if self.node.away || !self.led {
            return;
        }
        self.unheard = None;
        if self.on_the_node() {
            self.node.apply(&self.desired, &containers, self.now);
            self.reports = self.node.told.clone();
        }
    }

    fn on_the_node(&self) -> bool {
        self.chaos.spec.action == Action::ContainerFreeze || self.kills
    }

    /// One turn, as the controller takes it; `crash_after` effects or writes the process dies.
    pub fn turn(&mut self, crash_after: Option<u32>) {
        let mut left = crash_after;
        let mut survives = || match &mut left {
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
            None => true,
        };
        for _ in 0..20 {
            if self.gone {
                return;
            }
            let plan = self.plan();
            assert!(
                plan.effects.is_empty()
                    || self.status.selected_at.is_some()
                    || self.chaos.metadata.deletion_timestamp.is_some(),
                "an effect before the intent was written: {:?}",
                plan.effects
            );
            self.order(&plan.orders, false);
            if plan.effects.is_empty() {
                if !survives() {
                    return self.crash();
                }
                let changed = self.status != plan.status;
                self.status = plan.status;
                if plan.drop_finalizer {
                    self.gone = true;
                    self.order(&[], true);
                    return;
                }
                self.order(&plan.orders, true);
                if !changed {
                    return;
                }
                continue;
            }
            for effect in plan.effects {
                if !survives() {
                    return self.crash();
                }
                self.carry_out(&effect);
            }
            if self.status != plan.status {
                if !survives() {
                    return self.crash();
                }
                self.status = plan.status;
            }
            self.order(&plan.orders, true);
        }
        panic!("a turn does not come to rest: {:?}", self.plan().effects);
    }

    /// What wasn't written is forgotten.
    pub fn crash(&mut self) {
        self.outcomes = Outcomes::default();
        self.desired.clear();
        self.led = false;
        self.unheard = Some(self.now);
        if self.on_the_node() {
            self.reports.clear();
        }
    }

    pub fn carry_out(&mut self, effect: &Effect) {
        if self.failing > 0 {
            self.failing -= 1;
            self.outcomes.retry(effect, self.now, "the API server is away".into());
            return;
        }
        let target = effect.pod();
        let there =
            self.pods.get(&target.name).is_some_and(|pod| pod.metadata.uid.as_ref() == Some(&target.uid));
        if !there {
            self.outcomes.record(effect, Outcome::Done { at: self.now, version: 0 });
            return;
        }
        self.version += 1;
        let version = self.version;
        match effect {
            Effect::Delete { .. } | Effect::Evict { .. } => {
                self.killed.push(target.uid.clone());
                self.pods.remove(&target.name);
                self.birth();
            }
            Effect::Inject { holder, .. } => {
                let pod = self.pods.get_mut(&target.name).unwrap();
                substitute::inject(pod, holder, &images()).unwrap();
                pod.metadata.resource_version = Some(version.to_string());
            }
            Effect::Release { holder, .. } => {
                let pod = self.pods.get_mut(&target.name).unwrap();
                substitute::release(pod, holder, &images()).unwrap();
                pod.metadata.resource_version = Some(version.to_string());
            }
        }
        if self.lost > 0 {
            self.lost -= 1;
            self.outcomes.retry(effect, self.now, "the answer was lost".into());
            return;
        }
        self.outcomes.record(effect, Outcome::Done { at: self.now, version });
    }
}
