//! Schedules: each takes its turn when it or one of its experiments changes, and when its next run is due.
//!
//! What is due is decided in `squall-model`. Here it is carried out in an order that no crash can turn into a run that
//! begins twice: the experiment first, by a name that is the run's, then the status.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client, Resource, ResourceExt};
use kube_runtime::controller::{Action, Config};
use kube_runtime::reflector::ObjectRef;
use kube_runtime::{Controller, watcher};
use squall_api::schedule::{Schedule, ScheduleSpec, ScheduleStatus, ScheduleType};
use squall_api::{PodChaos, StressChaos, names};
use squall_model::experiment::Kind;
use squall_model::plan::{Note, NoteKind};
use squall_model::schedule::{Child, Input, Said, Turn, turn, validate};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::chaos::{Experiments, Named};
use crate::client::{is_conflict, is_gone, is_there};
use crate::tell::Teller;

/// Schedules that take their turns at once.
const TOGETHER: u16 = 8;
/// Clocks may be set: however far off the next run is, it is looked at again after this long.
const LOOK_AGAIN: Duration = Duration::from_secs(600);

/// Why a turn ended early; it is taken again.
#[derive(Debug, thiserror::Error)]
#[error("{operation} schedule {namespace}/{name}: {source}")]
pub struct ScheduleError {
    operation: &'static str,
    namespace: String,
    name: String,
    source: Box<kube::Error>,
}

/// What the turns work with.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// The experiments that there are.
    pub experiments: Experiments,
    /// Events.
    pub teller: Teller,
}

/// The schedule that the experiment was made for, if it was made for one.
pub fn of_experiment(meta: &ObjectMeta) -> Option<ObjectRef<Schedule>> {
    let owner = meta.owner_references.iter().flatten().find(|owner| is_schedule(owner))?;
    Some(ObjectRef::new(&owner.name).within(meta.namespace.as_deref()?))
}

fn is_schedule(owner: &OwnerReference) -> bool {
    owner.kind == Schedule::kind(&()) && owner.api_version == Schedule::api_version(&())
}

/// Give every schedule its turns, for ever; `woken` names those whose experiments changed.
pub async fn run(context: Context, woken: mpsc::UnboundedReceiver<ObjectRef<Schedule>>) {
    let schedules: Api<Schedule> = Api::all(context.client.clone());
    Controller::new(schedules, watcher::Config::default())
        .with_config(Config::default().concurrency(TOGETHER))
        .reconcile_on(UnboundedReceiverStream::new(woken))
        .run(reconcile, after_error, Arc::new(context))
        .for_each(|result| async move {
            if let Err(error) = result {
                tracing::debug!(%error, "a schedule's turn ended early");
            }
        })
        .await;
}

fn after_error(_: Arc<Schedule>, error: &ScheduleError, _: Arc<Context>) -> Action {
    if is_conflict(&error.source) {
        // The watch is about to bring the newer object.
        return Action::requeue(Duration::from_millis(50));
    }
    tracing::warn!(%error, "will be tried again");
    Action::requeue(Duration::from_secs(1))
}

async fn reconcile(schedule: Arc<Schedule>, context: Arc<Context>) -> Result<Action, ScheduleError> {
    if schedule.metadata.deletion_timestamp.is_some() {
        // Its experiments go with it, and recover on their way.
        return Ok(Action::await_change());
    }
    context.turn(&schedule).await
}

impl Context {
    async fn turn(&self, schedule: &Schedule) -> Result<Action, ScheduleError> {
        let before = schedule.status.clone().unwrap_or_default();
        let namespace = schedule.namespace().unwrap_or_default();
        let parsed = match validate(&schedule.spec, &namespace) {
            Ok((parsed, _)) => parsed,
            Err(errors) => {
                // Admitted by another version; whoever changes it is told more.
                let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
                let message = format!("no run begins: {}", errors.join("; "));
                let status = ScheduleStatus {
                    message: Some(message),
                    observed_generation: schedule.metadata.generation,
                    next_schedule_time: None,
                    ..before.clone()
                };
                self.write(schedule, &before, status).await?;
                return Ok(Action::await_change());
            }
        };
        let children = self.children(schedule);
        let now = Timestamp::now();
        let Turn { make, mut status, delete, mut said, wake } = turn(Input {
            now,
            name: &schedule.name_any(),
            uid: schedule.metadata.uid.as_deref().unwrap_or_default(),
            created: schedule.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0),
            generation: schedule.metadata.generation,
            paused: schedule.annotations().get(names::PAUSE).map(String::as_str) == Some("true"),
            schedule: &parsed,
            status: &before,
            children: &children,
        });
        if let Some(name) = make
            && let Err(why) = self.make(schedule, &name).await?
        {
            // The run is over before it began; nobody tries again what was refused for good.
            let message = format!("{name} was refused: {why}");
            status.runs = before.runs;
            status.last_schedule_time.clone_from(&before.last_schedule_time);
            status.active.retain(|active| *active != name);
            status.active_count = i32::try_from(status.active.len()).ok();
            status.message = Some(message.clone());
            said = vec![Said { warning: true, reason: "Refused", message }];
        }
        self.write(schedule, &before, status).await?;
        for Said { warning, reason, message } in said {
            tracing::info!(namespace, schedule = schedule.name_any(), reason, message, "a schedule's run");
            let kind = if warning { NoteKind::Warning } else { NoteKind::Normal };
            self.teller.tell_object(Note::experiment(kind, reason, message), schedule.object_ref(&()));
        }
        for name in &delete {
            self.delete(schedule, name).await?;
        }
        Ok(match wake {
            Some(at) => {
                let wait = Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default();
                Action::requeue(wait.min(LOOK_AGAIN))
            }
            None => Action::await_change(),
        })
    }

    fn children(&self, schedule: &Schedule) -> Vec<Child> {
        let Some(uid) = &schedule.metadata.uid else { return Vec::new() };
        self.experiments.filter_map(|meta, _, status| {
            let ours = meta.owner_references.iter().flatten().any(|owner| &owner.uid == uid);
            ours.then(|| Child {
                name: meta.name.clone().unwrap_or_default(),
                created: meta.creation_timestamp.as_ref().map(|time| time.0),
                completed: status.is_some_and(|status| status.completed_at.is_some()),
                deleting: meta.deletion_timestamp.is_some(),
            })
        })
    }

    async fn delete(&self, schedule: &Schedule, name: &str) -> Result<(), ScheduleError> {
        let namespace = schedule.namespace().unwrap_or_default();
        let (client, params) = (self.client.clone(), DeleteParams::default());
        // The schedule may have been of another type when it was made.
        let named = |kind| Named { kind, namespace: namespace.clone(), name: name.to_owned() };
        let is = |kind: &Kind| self.experiments.version(&named(*kind)).is_some();
        let deleted = match Kind::ALL.into_iter().find(is) {
            Some(Kind::PodChaos) => {
                Api::<PodChaos>::namespaced(client, &namespace).delete(name, &params).await.map(drop)
            }
            Some(Kind::StressChaos) => {
                Api::<StressChaos>::namespaced(client, &namespace).delete(name, &params).await.map(drop)
            }
            None => Ok(()),
        };
        match deleted {
            Ok(()) => Ok(()),
            Err(error) if is_gone(&error) => Ok(()),
            Err(error) => Err(failed(schedule, "end an experiment of", error)),
        }
    }

    /// Make the experiment `name`; why that is refused for good, if it is.
    async fn make(&self, schedule: &Schedule, name: &str) -> Result<Result<(), String>, ScheduleError> {
        let Some(requested_by) = schedule.annotations().get(names::REQUESTED_BY) else {
            let why = "nobody is written on the schedule as having asked for it: make it again";
            return Ok(Err(why.to_owned()));
        };
        let namespace = schedule.namespace().unwrap_or_default();
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.clone()),
            annotations: Some([(names::REQUESTED_BY.to_owned(), requested_by.clone())].into()),
            owner_references: Some(vec![OwnerReference {
                api_version: Schedule::api_version(&()).into_owned(),
                kind: Schedule::kind(&()).into_owned(),
                name: schedule.name_any(),
                uid: schedule.metadata.uid.clone().unwrap_or_default(),
                controller: Some(true),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        };
        let ScheduleSpec { type_, pod_chaos, stress_chaos, .. } = &schedule.spec;
        let (client, params) = (self.client.clone(), PostParams::default());
        let created = match (type_, pod_chaos, stress_chaos) {
            (ScheduleType::PodChaos, Some(spec), _) => {
                let chaos = PodChaos { metadata, spec: spec.clone(), status: None };
                Api::<PodChaos>::namespaced(client, &namespace).create(&params, &chaos).await.map(drop)
            }
            (ScheduleType::StressChaos, _, Some(spec)) => {
                let chaos = StressChaos { metadata, spec: spec.clone(), status: None };
                Api::<StressChaos>::namespaced(client, &namespace).create(&params, &chaos).await.map(drop)
            }
            (ScheduleType::PodChaos | ScheduleType::StressChaos, _, _) => {
                return Ok(Err("the schedule has no experiment of its type".to_owned()));
            }
        };
        match created {
            Ok(()) => {
                tracing::info!(
                    namespace,
                    schedule = schedule.name_any(),
                    experiment = name,
                    requested_by,
                    "asked for by schedule"
                );
                Ok(Ok(()))
            }
            // Made before, and what came after was cut short.
            Err(error) if is_there(&error) => Ok(Ok(())),
            Err(kube::Error::Api(status)) if matches!(status.code, 400 | 403 | 404 | 422) => {
                Ok(Err(status.message.clone()))
            }
            Err(error) => Err(failed(schedule, "make an experiment for", error)),
        }
    }

    async fn write(
        &self,
        schedule: &Schedule,
        before: &ScheduleStatus,
        status: ScheduleStatus,
    ) -> Result<(), ScheduleError> {
        if status == *before {
            return Ok(());
        }
        let name = schedule.name_any();
        let mut object = schedule.clone();
        object.metadata.managed_fields = None;
        object.status = Some(status);
        let api: Api<Schedule> =
            Api::namespaced(self.client.clone(), &schedule.namespace().unwrap_or_default());
        match api.replace_status(&name, &PostParams::default(), &object).await {
            Ok(_) => Ok(()),
            Err(error) if is_gone(&error) => Ok(()),
            Err(error) => Err(failed(schedule, "write the status of", error)),
        }
    }
}

fn failed(schedule: &Schedule, operation: &'static str, source: kube::Error) -> ScheduleError {
    ScheduleError {
        operation,
        namespace: schedule.namespace().unwrap_or_default(),
        name: schedule.name_any(),
        source: Box::new(source),
    }
}

#[cfg(test)]
mod tests {
    use kube_runtime::reflector::store;
    use squall_api::PodChaosSpec;

    use super::*;
    use crate::scripted::{self, ApiServer};

    fn context(experiments: Experiments) -> (Context, ApiServer) {
        let (client, api) = scripted::client();
        let teller = Teller::start(client.clone(), String::new(), None);
        (Context { client, experiments, teller }, api)
    }

    fn nightly() -> Schedule {
        let mut schedule = Schedule::new("nightly", ScheduleSpec::default());
        schedule.metadata.namespace = Some("shop".to_owned());
        schedule.spec.pod_chaos = Some(PodChaosSpec::default());
        schedule.annotations_mut().insert(names::REQUESTED_BY.to_owned(), "{}".to_owned());
        schedule
    }

    /// Answers one request; which it was.
    async fn answer(api: ApiServer, reason: &str, code: u16) -> String {
        scripted::server(api, vec![scripted::refusal(code, reason)]).await.remove(0).0
    }

    /// What becomes of a run whose experiment the API server refuses with a 409 for this reason.
    async fn refused(reason: &str) -> Result<Result<(), String>, ScheduleError> {
        let (context, api) = context(Experiments { pods: store().0, stress: store().0 });
        let schedule = nightly();
        let (made, asked) = futures::join!(context.make(&schedule, "nightly-1"), answer(api, reason, 409));
        assert!(asked.starts_with("POST "), "{asked}");
        made
    }

    #[tokio::test]
    async fn a_run_has_begun_if_its_experiment_is_there_and_not_if_a_quota_was_busy() {
        assert_eq!(refused("AlreadyExists").await.unwrap(), Ok(()));
        assert!(is_conflict(&refused("Conflict").await.unwrap_err().source));
    }

    #[tokio::test]
    async fn what_was_made_under_another_type_is_ended_too() {
        let (pods, mut writer) = store();
        let mut chaos = PodChaos::new("nightly-1", PodChaosSpec::default());
        chaos.metadata.namespace = Some("shop".to_owned());
        chaos.metadata.resource_version = Some("1".to_owned());
        writer.apply_watcher_event(&watcher::Event::Apply(chaos));
        let (context, api) = context(Experiments { pods, stress: store().0 });
        let mut schedule = nightly();
        schedule.spec.type_ = ScheduleType::StressChaos;
        let (ended, asked) =
            futures::join!(context.delete(&schedule, "nightly-1"), answer(api, "NotFound", 404));
        ended.unwrap();
        assert_eq!(asked, "DELETE /apis/squall.dev/v1alpha1/namespaces/shop/podchaos/nightly-1");
    }
}
