//! Keeps the pods' own records true where no experiment's turn does: the hand's time is over, a holder is no
//! more, an opt-in was withdrawn, the webhook could not be called. What is due is decided in `squall-model`.

mod agenda;

use std::collections::HashMap;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use jiff::Timestamp;
use kube_runtime::reflector::{ObjectRef, Store};
use squall_api::names;
use squall_api::podchaos::PodChaos;
use squall_model::plan::{Chore, Effect, Note, NoteKind, PodRef, chore};
use squall_model::substitute::{Holder, MANUAL};
use tokio::sync::mpsc;
use tokio::time::Instant;

use self::agenda::{Agenda, LONGEST};
use crate::apply::{Applier, ApplyError};
use crate::guard::Guard;
use crate::observe::Observer;
use crate::tell::Teller;

/// A pod by namespace and name.
pub type PodKey = (String, String);

/// What the janitor works with.
pub struct Janitor {
    /// What is known.
    pub observer: Observer,
    /// What changes pods.
    pub applier: Applier,
    /// The experiments that there are.
    pub experiments: Store<PodChaos>,
    /// Events.
    pub teller: Teller,
    /// What is hit now.
    pub guard: Guard,
}

impl Janitor {
    /// Look after every recorded pod there is, and then after every one that is sent, for ever.
    pub async fn run(self, mut changed: mpsc::UnboundedReceiver<PodKey>) {
        let mut agenda = Agenda::default();
        let mut attempts: HashMap<PodKey, u32> = HashMap::new();
        for pod in self.observer.read().all_held() {
            agenda.put((pod.namespace.clone(), pod.name.clone()), Instant::now());
        }
        let mut under_way = FuturesUnordered::new();
        loop {
            while let Some(key) = agenda.begin(Instant::now()) {
                under_way.push(async {
                    let result = self.look_after(&key).await;
                    (key, result)
                });
            }
            let next = agenda.next();
            tokio::select! {
                biased;
                Some((key, result)) = under_way.next() => {
                    let wait = match result {
                        Ok(next) => {
                            attempts.remove(&key);
                            next.map(|at| at.duration_since(Timestamp::now()))
                                .map(|wait| Duration::try_from(wait).unwrap_or_default().min(LONGEST))
                        }
                        Err(error) => {
                            let tried = attempts.entry(key.clone()).or_default();
                            *tried += 1;
                            tracing::warn!(namespace = key.0, pod = key.1, %error, "will be tried again");
                            Some(Duration::from_millis(100 << (*tried).min(7)))
                        }
                    };
                    let now = Instant::now();
                    agenda.end(key, wait.map(|wait| now + wait), now);
                }
                key = changed.recv() => match key {
                    Some(key) => agenda.put(key, Instant::now()),
                    None => return,
                },
                () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
        }
    }

    /// Do what is due on one pod; when to look again.
    async fn look_after(&self, key: &PodKey) -> Result<Option<Timestamp>, ApplyError> {
        let (view, due) = {
            let index = self.observer.read();
            let Some(pod) = index.pod(&key.0, &key.1) else { return Ok(None) };
            // Not listed yet: its own event will come.
            let Some(namespace) = index.namespace(&pod.namespace) else { return Ok(None) };
            let now = Timestamp::now();
            let (mut forbidden, mut turns) = (None, None);
            if pod.held_by.iter().any(|holder| holder.uid == MANUAL) {
                let system = index.namespace(names::NAMESPACE);
                forbidden = index.rules().stop(namespace, system, now).map(|stop| stop.to_string());
                turns = index.rules().turns(namespace, now);
                if forbidden.is_none() {
                    // The warden finds it, and has the pod looked at then.
                    forbidden = self.guard.read().excess.get(&pod.uid).map(ToString::to_string);
                }
            }
            let exists = |holder: &Holder| self.exists(holder);
            let due = match chore(pod, namespace, exists, index.is_leaving(), forbidden.as_deref(), now) {
                Chore::None => turns.map_or(Chore::None, Chore::Later),
                Chore::Later(at) => Chore::Later(turns.map_or(at, |turns| turns.min(at))),
                due @ (Chore::Release(_) | Chore::Forbidden(_) | Chore::Restore(_)) => due,
            };
            (pod.clone(), due)
        };
        let pod = PodRef::of_view(&view);
        match due {
            Chore::None => Ok(None),
            Chore::Later(at) => Ok(Some(at)),
            Chore::Release(holders) => {
                for holder in holders {
                    let release = Effect::Release { pod: pod.clone(), holder: holder.clone() };
                    self.applier.apply(&release, Some(&view)).await?;
                    tracing::info!(
                        namespace = pod.namespace,
                        pod = pod.name,
                        uid = pod.uid,
                        holder,
                        "released"
                    );
                    let message = format!("pod-failure ended: holder {holder} is over or no more");
                    self.teller.tell_pod(Note::pod(NoteKind::Normal, pod.clone(), "Released", message), &pod);
                }
                Ok(None)
            }
            Chore::Forbidden(why) => {
                let release = Effect::Release { pod: pod.clone(), holder: MANUAL.to_owned() };
                self.applier.apply(&release, Some(&view)).await?;
                tracing::info!(namespace = pod.namespace, pod = pod.name, uid = pod.uid, why, "released");
                let message = format!("the fault by label ended: {why}");
                self.teller.tell_pod(Note::pod(NoteKind::Warning, pod.clone(), "Released", message), &pod);
                Ok(None)
            }
            Chore::Restore(why) => {
                self.applier.restore(&pod, &view).await?;
                tracing::info!(namespace = pod.namespace, pod = pod.name, uid = pod.uid, why, "restored");
                let message = format!("pod-failure ended: {why}");
                self.teller.tell_pod(Note::pod(NoteKind::Normal, pod.clone(), "Restored", message), &pod);
                Ok(None)
            }
        }
    }

    /// Whether the experiment that holds a pod exists; while it does, its own turns release what is due.
    fn exists(&self, holder: &Holder) -> bool {
        let reference = ObjectRef::new(&holder.name).within(&holder.namespace);
        self.experiments.get(&reference).is_some_and(|chaos| chaos.metadata.uid.as_ref() == Some(&holder.uid))
    }
}
