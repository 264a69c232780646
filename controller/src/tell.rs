//! What is told: Events on the experiment and on each pod that was hit, one line of the log each, and one message to
//! the [sink](crate::sink) if there is one. Best effort, never in the way of a fault or of recovery.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{Client, ResourceExt as _};
use kube_runtime::events::{Event, EventType, Recorder, Reporter};
use squall_api::names;
use squall_model::plan::{Note, NoteKind, PodRef};
use squall_model::policy::Who;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::chaos::Chaos;
use crate::sink::{Object, Sink, Told};

/// How many events of one turn are told; an experiment with more targets has them in its status.
const AT_ONCE: usize = 100;

/// How long an event waits, so that the API server does first what is told of: the pods of a fault come right after the
/// event that it begins.
const AFTER: Duration = Duration::from_millis(200);

/// Publishes events in the background, in order.
#[derive(Clone)]
pub struct Teller {
    events: mpsc::UnboundedSender<(Instant, Event, ObjectReference)>,
    sink: Option<Sink>,
}

impl Teller {
    /// Report as `instance`, the pod's name, and to `sink` too.
    pub fn start(client: Client, instance: String, sink: Option<Sink>) -> Self {
        let reporter = Reporter { controller: names::CONTROLLER.to_owned(), instance: Some(instance) };
        let (sender, mut receiver) = mpsc::unbounded_channel::<(Instant, Event, ObjectReference)>();
        tokio::spawn(async move {
            while let Some((at, event, regarding)) = receiver.recv().await {
                tokio::time::sleep_until(at + AFTER).await;
                // One recorder for all would count an event of the same reason into the first one of its kind, and drop
                // what it says: a pod that is let go for another reason would be told the old one.
                let recorder = Recorder::new(client.clone(), reporter.clone());
                if let Err(error) = recorder.publish(&event, &regarding).await {
                    // A namespace that is being deleted takes no events.
                    tracing::debug!(%error, reason = event.reason, "an event could not be published");
                }
            }
        });
        Self { events: sender, sink }
    }

    /// Tell `notes` of `chaos`.
    pub fn tell<K: Chaos>(&self, chaos: &K, notes: Vec<Note>) {
        let experiment = chaos.object_ref(&());
        let recorded = chaos.annotations().get(names::REQUESTED_BY).map(String::as_str);
        let user = Some(Who::recorded(recorded).user).filter(|user| !user.is_empty());
        for (number, note) in notes.into_iter().enumerate() {
            let pod = note.pod.as_ref().map(pod_reference);
            self.audit(&note, Some(&experiment), pod.as_ref(), user.as_deref());
            if number < AT_ONCE {
                self.publish(note, pod.unwrap_or_else(|| experiment.clone()));
            }
        }
    }

    /// Tell something of a pod that no experiment is behind.
    pub fn tell_pod(&self, note: Note, pod: &PodRef) {
        let pod = pod_reference(pod);
        self.audit(&note, None, Some(&pod), None);
        self.publish(note, pod);
    }

    /// Tell something of an object that no experiment is behind.
    pub fn tell_object(&self, note: Note, regarding: ObjectReference) {
        self.audit(&note, Some(&regarding), None, None);
        self.publish(note, regarding);
    }

    /// For the record: one line, and the sink.
    fn audit(
        &self,
        note: &Note,
        object: Option<&ObjectReference>,
        pod: Option<&ObjectReference>,
        user: Option<&str>,
    ) {
        let (object, pod) = (object.map(referred), pod.map(referred));
        let kind = match note.kind {
            NoteKind::Normal => "Normal",
            NoteKind::Warning => "Warning",
        };
        tracing::info!(
            reason = note.reason,
            object =
                object.as_ref().map(|object| format!("{} {}/{}", object.kind, object.namespace, object.name)),
            pod = pod.as_ref().map(|pod| format!("{}/{}", pod.namespace, pod.name)),
            uid = pod.as_ref().map(|pod| pod.uid.as_str()),
            requested_by = user,
            what = note.message,
            "told"
        );
        if let Some(sink) = &self.sink {
            sink.tell(Told {
                kind,
                reason: note.reason.clone(),
                message: note.message.clone(),
                object,
                pod,
                requested_by: user.map(str::to_owned),
            });
        }
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
        let _ = self.events.send((Instant::now(), event, regarding));
    }
}

fn referred(object: &ObjectReference) -> Object {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    Object {
        kind: text(&object.kind),
        namespace: text(&object.namespace),
        name: text(&object.name),
        uid: text(&object.uid),
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

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use squall_api::podchaos::{PodChaos, PodChaosSpec};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn one_line_says_who_asked_and_what_was_hit_and_why() {
        let lines = Lines::default();
        let writer = lines.clone();
        let log = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let (events, mut published) = mpsc::unbounded_channel();
        let teller = Teller { events, sink: None };
        let mut chaos = PodChaos::new("down", PodChaosSpec::default());
        chaos.metadata.namespace = Some("shop".to_owned());
        let who = r#"{"username":"ann","groups":["devs"]}"#.to_owned();
        chaos.metadata.annotations = Some([(names::REQUESTED_BY.to_owned(), who)].into());
        let pod = PodRef { namespace: "shop".into(), name: "web-1".into(), uid: "u-1".into() };
        let note =
            |reason: &str| Note::pod(NoteKind::Warning, pod.clone(), reason, "incident 4711".to_owned());
        tracing::subscriber::with_default(log, || {
            teller.tell(&chaos, vec![note("Halted")]);
            teller.tell_pod(note("Released"), &pod);
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let [halted, released] = text.lines().collect::<Vec<_>>()[..] else { panic!("{text}") };
        for part in [
            "told",
            "reason=\"Halted\"",
            "object=\"PodChaos shop/down\"",
            "pod=\"shop/web-1\"",
            "uid=\"u-1\"",
            "requested_by=\"ann\"",
            "what=\"incident 4711\"",
        ] {
            assert!(halted.contains(part), "{part}: {halted}");
        }
        // By hand: nobody is written down but in the audit of the API server.
        assert!(released.contains("pod=\"shop/web-1\"") && !released.contains("requested_by"), "{released}");
        // The same is told as Events.
        let reasons: Vec<String> =
            std::iter::from_fn(|| published.try_recv().ok()).map(|(_, event, _)| event.reason).collect();
        assert_eq!(reasons, ["Halted", "Released"]);
    }
}
