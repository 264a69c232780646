//! Events: on the experiment and on each pod that was hit. Best effort, never in the way of a fault or of
//! recovery.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube_runtime::events::{Event, EventType, Recorder, Reporter};
use squall_api::names;
use squall_model::plan::{Note, NoteKind, PodRef};
use tokio::sync::mpsc;

use crate::chaos::Chaos;

/// How many events of one turn are told; an experiment with more targets has them in its status.
const AT_ONCE: usize = 100;

/// Publishes events in the background, in order.
#[derive(Clone)]
pub struct Teller(mpsc::UnboundedSender<(Event, ObjectReference)>);

impl Teller {
    /// Report as `instance`, the pod's name.
    pub fn start(client: Client, instance: String) -> Self {
        let reporter = Reporter { controller: names::CONTROLLER.to_owned(), instance: Some(instance) };
        let recorder = Recorder::new(client, reporter);
        let (sender, mut receiver) = mpsc::unbounded_channel::<(Event, ObjectReference)>();
        tokio::spawn(async move {
            while let Some((event, regarding)) = receiver.recv().await {
                if let Err(error) = recorder.publish(&event, &regarding).await {
                    // A namespace that is being deleted takes no events.
                    tracing::debug!(%error, reason = event.reason, "an event could not be published");
                }
            }
        });
        Self(sender)
    }

    /// Tell `notes` of `chaos`.
    pub fn tell<K: Chaos>(&self, chaos: &K, notes: Vec<Note>) {
        let experiment = chaos.object_ref(&());
        for note in notes.into_iter().take(AT_ONCE) {
            let regarding = note.pod.as_ref().map_or_else(|| experiment.clone(), pod_reference);
            self.publish(note, regarding);
        }
    }

    /// Tell something of a pod that no experiment is behind.
    pub fn tell_pod(&self, note: Note, pod: &PodRef) {
        self.publish(note, pod_reference(pod));
    }

    /// Tell something of an object that no experiment is behind.
    pub fn tell_object(&self, note: Note, regarding: ObjectReference) {
        self.publish(note, regarding);
    }

    fn publish(&self, note: Note, regarding: ObjectReference) {
        let event = Event {
            type_: match note.kind {
                NoteKind::Normal => EventType::Normal,
                NoteKind::Warning => EventType::Warning,
            },
            action: note.reason.clone(),
            reason: note.reason,
            note: Some(shortened(note.message)),
            secondary: None,
        };
        // The receiver goes only with the process.
        let _ = self.0.send((event, regarding));
    }
}

fn pod_reference(pod: &PodRef) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(pod.namespace.clone()),
        name: Some(pod.name.clone()),
        uid: Some(pod.uid.clone()),
        ..ObjectReference::default()
    }
}

/// The API server takes at most 1 kB.
fn shortened(message: String) -> String {
    if message.len() <= 1000 {
        return message;
    }
    let end = (0..=990).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
    format!("{}…", &message[..end])
}
