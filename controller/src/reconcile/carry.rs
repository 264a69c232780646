//! Carries effects out, many at a time, for as long as nothing newer is known than what they were planned for.

use futures::StreamExt;
use jiff::Timestamp;
use squall_model::plan::{Effect, Outcome, Verb, may_begin};
use squall_model::spec::Spec;

use super::{Context, Memory};
use crate::apply::ApplyError;
use crate::chaos::Named;
use crate::world::Cluster;

/// How many effects of one experiment are under way at once.
const CONCURRENCY: usize = 64;

/// The effects as they are begun: nothing waits behind an injection to be put back, and none is begun once `goes_on` says
/// no.
fn begun(mut effects: Vec<Effect>, goes_on: impl Fn(&Effect) -> bool) -> impl Iterator<Item = Effect> {
    effects.sort_by_key(|effect| effect.verb() != Verb::Release);
    effects.into_iter().take_while(move |effect| goes_on(effect))
}

impl Context {
    /// Whether somebody has changed the object since `version`: it may be on its way out, or paused.
    pub(super) fn is_overtaken(&self, name: &Named, version: u64) -> bool {
        let newest = self.experiments.version(name).and_then(|text| text.parse::<u64>().ok());
        newest.is_some_and(|newest| newest > version)
    }

    /// Whether nothing has come up meanwhile that would have been planned for.
    fn goes_on(&self, name: &Named, spec: Option<&Spec>, version: u64, effect: &Effect) -> bool {
        let may_begin = |spec: &Spec| {
            let (index, book) = (self.observer.read(), self.guard.read());
            let world = Cluster { index: &index, nodes: &self.nodes, book: &book };
            may_begin(&world, spec, effect, Timestamp::now())
        };
        !self.is_overtaken(name, version) && spec.is_none_or(may_begin)
    }

    /// Carry the effects out, many at a time. Of thousands none is begun any more once it is overtaken: what else is to
    /// be done the next plan says.
    pub(super) async fn carry_out(
        &self,
        name: &Named,
        spec: Option<&Spec>,
        memory: &mut Memory,
        effects: Vec<Effect>,
    ) {
        let version = memory.version;
        let effects = begun(effects, |effect| self.goes_on(name, spec, version, effect));
        let mut results = futures::stream::iter(effects.map(|effect| async move {
            let view = {
                let index = self.observer.read();
                index.pod(&effect.pod().namespace, &effect.pod().name).cloned()
            };
            let result = self.applier.apply(&effect, view.as_ref()).await;
            (effect, result)
        }))
        .buffer_unordered(CONCURRENCY);
        while let Some((effect, result)) = results.next().await {
            let pod = effect.pod();
            let outcome = match result {
                Ok(outcome) => {
                    tracing::info!(
                        experiment = name.name,
                        experiment_namespace = name.namespace,
                        namespace = pod.namespace,
                        pod = pod.name,
                        uid = pod.uid,
                        verb = ?effect.verb(),
                        "done"
                    );
                    outcome
                }
                Err(ApplyError::Refused(refusal)) if effect.verb() != Verb::Release => {
                    Outcome::Refused { reason: "Refused".to_owned(), message: refusal.to_string() }
                }
                Err(error) => {
                    tracing::warn!(
                        experiment = name.name,
                        experiment_namespace = name.namespace,
                        namespace = pod.namespace,
                        pod = pod.name,
                        uid = pod.uid,
                        %error,
                        "will be tried again"
                    );
                    memory.outcomes.retry(&effect, Timestamp::now(), error.to_string());
                    continue;
                }
            };
            memory.outcomes.record(&effect, outcome);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use squall_model::plan::PodRef;
    use squall_model::substitute::Holder;

    use super::*;

    fn effect(verb: Verb, name: &str) -> Effect {
        let pod = PodRef { namespace: "ns".into(), name: name.into(), uid: name.into() };
        match verb {
            Verb::Delete => Effect::Delete { pod, grace: None },
            Verb::Inject => Effect::Inject { pod, holder: Holder::default() },
            Verb::Release => Effect::Release { pod, holder: "x".into() },
        }
    }

    #[tokio::test]
    async fn what_is_not_begun_yet_is_not_begun_once_it_is_overtaken() {
        let mut effects: Vec<Effect> =
            (0..1000).map(|index| effect(Verb::Inject, &index.to_string())).collect();
        effects.push(effect(Verb::Release, "first"));
        let done = Cell::new(0);
        let effects = begun(effects, |_| done.get() < 10);
        let carried_out: Vec<String> = futures::stream::iter(effects.map(|effect| {
            let done = &done;
            async move {
                tokio::task::yield_now().await;
                done.set(done.get() + 1);
                effect.pod().name.clone()
            }
        }))
        .buffer_unordered(CONCURRENCY)
        .collect()
        .await;
        assert!((10..=10 + CONCURRENCY).contains(&carried_out.len()), "{}", carried_out.len());
        assert!(carried_out[..CONCURRENCY].contains(&"first".to_owned()), "what is put back goes first");
    }
}
