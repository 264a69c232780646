//! The planner against a cluster that does what it is told.

use super::*;

const DAY: Duration = Duration::from_secs(86400);

fn start() -> Timestamp {
    "2026-11-22T12:00:00Z".parse().unwrap()
}

/// The cluster's side of each step, as `write` does it for real.
#[derive(Default)]
struct Cluster {
    seen: Observed,
    log: Vec<&'static str>,
    /// The CA that signed the webhook's certificate is lost.
    lost: bool,
}

impl Cluster {
    fn with_hooks() -> Cluster {
        let hook = |index| Hook { index, name: format!("h{index}"), bundle: b"foreign".to_vec() };
        let seen =
            Observed { mutating: vec![hook(0), hook(2)], validating: vec![hook(0)], ..Observed::default() };
        Cluster { seen, ..Cluster::default() }
    }

    fn settle(&mut self, now: Timestamp) -> Option<Timestamp> {
        let settings = Settings::default();
        for _ in 0..10 {
            let plan = plan(&self.seen, &settings, now);
            if plan.steps.is_empty() {
                return plan.due;
            }
            for step in plan.steps {
                self.carry_out(step, now);
            }
        }
        panic!("never settles: {:?}", self.log);
    }

    fn carry_out(&mut self, step: Step, now: Timestamp) {
        let stored = |data: BTreeMap<String, Vec<u8>>, kind: &str| {
            Some(Stored { version: "1".into(), data, kind: kind.into(), marked: true })
        };
        let make = || Ca::make(now, Settings::default().ca_life).unwrap();
        let mut ca = self.seen.ca.clone().map(|stored| stored.data).unwrap_or_default();
        let word = match step {
            Step::MakeCa { keep, .. } => {
                let made = make();
                ca.clear();
                ca.insert(CA_KEY.into(), made.key_pem().into());
                ca.insert(CA_CERT.into(), made.cert_pem.into());
                self.lost = keep.is_none();
                keep.map(|keep| ca.insert(OLD_CERT.into(), keep));
                self.seen.ca = stored(ca, "Opaque");
                "make"
            }
            Step::StageCa => {
                let made = make();
                ca.insert(NEXT_KEY.into(), made.key_pem().into());
                ca.insert(NEXT_CERT.into(), made.cert_pem.into());
                self.seen.ca = stored(ca, "Opaque");
                "stage"
            }
            Step::PromoteCa => {
                let old = ca.remove(CA_CERT).unwrap();
                ca.insert(OLD_CERT.into(), old);
                let (key, cert) = (ca.remove(NEXT_KEY).unwrap(), ca.remove(NEXT_CERT).unwrap());
                ca.insert(CA_KEY.into(), key);
                ca.insert(CA_CERT.into(), cert);
                self.seen.ca = stored(ca, "Opaque");
                "promote"
            }
            Step::DropOld => {
                ca.remove(OLD_CERT);
                self.seen.ca = stored(ca, "Opaque");
                "drop"
            }
            Step::Publish { bundle } => {
                self.seen.bundle = stored([(names::CA_BUNDLE_KEY.to_owned(), bundle.into())].into(), "");
                "publish"
            }
            Step::PatchHooks { kind, hooks, bundle } => {
                let all = match kind {
                    HookKind::Mutating => &mut self.seen.mutating,
                    HookKind::Validating => &mut self.seen.validating,
                };
                for hook in all.iter_mut().filter(|hook| hooks.iter().any(|h| h.index == hook.index)) {
                    hook.bundle = bundle.clone().into();
                }
                "hooks"
            }
            Step::IssueWebhook { .. } => {
                let pair =
                    Authority::read(self.seen.ca.as_ref().unwrap()).unwrap().ca.issue(&Profile::Webhook, now);
                let pair = pair.unwrap();
                let data = [
                    ("tls.key".to_owned(), pair.key_pem.into_bytes()),
                    ("tls.crt".to_owned(), pair.cert_pem.into_bytes()),
                ];
                self.seen.webhook = stored(data.into(), "kubernetes.io/tls");
                self.lost = false;
                "issue"
            }
        };
        self.log.push(word);
        self.trusts_its_webhook(now);
    }

    /// The law: whatever has been done, the webhook's certificate is trusted wherever a bundle of ours is used.
    fn trusts_its_webhook(&self, now: Timestamp) {
        let Some(pair) = &self.seen.webhook else { return };
        let Ok(leaf) = Certificate::parse(&pair.data["tls.crt"]) else { return };
        if leaf.validity.ends <= now || self.lost {
            return;
        }
        for hook in self.seen.mutating.iter().chain(&self.seen.validating) {
            assert!(certificates(&hook.bundle).iter().any(|ca| leaf.is_signed_by(ca)), "{:?}", self.log);
        }
    }

    fn take_log(&mut self) -> Vec<&'static str> {
        std::mem::take(&mut self.log)
    }

    fn ca(&mut self) -> &mut BTreeMap<String, Vec<u8>> {
        &mut self.seen.ca.as_mut().unwrap().data
    }
}

fn certificates(bundle: &[u8]) -> Vec<Certificate> {
    let text = String::from_utf8(bundle.to_vec()).unwrap();
    text.split_inclusive("-----END CERTIFICATE-----\n")
        .map(|pem| Certificate::parse(pem.as_bytes()).unwrap())
        .collect()
}

#[test]
fn from_nothing_to_everything_and_then_nothing() {
    let mut cluster = Cluster::with_hooks();
    let due = cluster.settle(start());
    assert_eq!(cluster.take_log(), ["make", "publish", "hooks", "hooks", "issue"]);
    assert_eq!(due, Some(start() + DAY * 60), "two thirds of the webhook's 90 days");
    assert_eq!(cluster.settle(start() + DAY), due);
    assert!(cluster.take_log().is_empty());
}

#[test]
fn the_webhooks_pair_is_renewed_at_two_thirds() {
    let mut cluster = Cluster::with_hooks();
    let due = cluster.settle(start()).unwrap();
    cluster.take_log();
    let next = cluster.settle(due);
    assert_eq!(cluster.take_log(), ["issue"]);
    assert_eq!(next, Some(due + DAY * 60));
}

#[test]
fn a_rotation_publishes_first_switches_then_and_forgets_last() {
    let mut cluster = Cluster::with_hooks();
    cluster.settle(start());
    let due = start() + Duration::from_secs(365 * 86400 * 2 / 3);
    cluster.settle(due - Duration::from_secs(1));
    cluster.take_log();
    let promote_at = cluster.settle(due).unwrap();
    assert_eq!(cluster.take_log(), ["stage", "publish", "hooks", "hooks"]);
    assert_eq!(certificates(&cluster.seen.mutating[0].bundle).len(), 2);
    assert_eq!(promote_at, due + Duration::from_secs(300));
    let drop_at = cluster.settle(promote_at).unwrap();
    assert_eq!(cluster.take_log(), ["promote", "publish", "hooks", "hooks", "issue"]);
    assert_eq!(drop_at, promote_at + LEAF_LIFE + Duration::from_secs(3600));
    cluster.settle(drop_at);
    assert_eq!(cluster.take_log(), ["drop", "publish", "hooks", "hooks"]);
    assert_eq!(certificates(&cluster.seen.mutating[0].bundle).len(), 1);
}

#[test]
fn walking_from_due_date_to_due_date_for_years_never_breaks_trust() {
    let mut cluster = Cluster::with_hooks();
    let mut now = start();
    for _ in 0..60 {
        let next = cluster.settle(now).expect("something is always due");
        assert!(next > now);
        now = next;
    }
    assert!(now > start() + DAY * 1000);
    assert_eq!(cluster.log.iter().filter(|word| **word == "make").count(), 1);
}

#[test]
fn a_ca_that_ran_out_is_made_anew_or_its_successor_taken() {
    let mut cluster = Cluster::with_hooks();
    cluster.settle(start());
    cluster.take_log();
    cluster.settle(start() + DAY * 400);
    assert_eq!(cluster.take_log(), ["make", "publish", "hooks", "hooks", "issue"]);

    let mut cluster = Cluster::with_hooks();
    cluster.settle(start());
    cluster.settle(start() + DAY * 250);
    cluster.take_log();
    cluster.settle(start() + DAY * 400);
    assert!(!cluster.log.contains(&"make") && cluster.log.contains(&"promote"), "{:?}", cluster.log);
}

#[test]
fn garbage_is_replaced_and_said() {
    let mut cluster = Cluster::with_hooks();
    cluster.settle(start());
    let old = cluster.ca().insert(CA_KEY.into(), b"garbage".to_vec());
    assert!(old.is_some());
    let Step::MakeCa { why, keep } = &plan(&cluster.seen, &Settings::default(), start()).steps[0] else {
        panic!("no new CA");
    };
    assert!(why.contains("key"), "{why}");
    assert!(keep.is_some(), "what it signed is trusted until it is gone");
    cluster.take_log();
    cluster.settle(start());
    assert_eq!(cluster.take_log(), ["make", "publish", "hooks", "hooks", "issue"]);

    cluster.ca().insert(CA_CERT.into(), vec![0xff; 10]);
    cluster.settle(start());
    cluster.ca().clear();
    cluster.settle(start());
    cluster.ca().insert(OLD_CERT.into(), b"garbage".to_vec());
    cluster.take_log();
    cluster.settle(start());
    assert_eq!(cluster.take_log(), ["drop"]);
}

#[test]
fn each_missing_or_altered_piece_comes_back_alone() {
    let mut cluster = Cluster::with_hooks();
    cluster.settle(start());
    cluster.take_log();
    cluster.seen.bundle = None;
    cluster.settle(start());
    assert_eq!(cluster.take_log(), ["publish"]);
    cluster.seen.bundle.as_mut().unwrap().marked = false;
    cluster.settle(start());
    assert_eq!(cluster.take_log(), ["publish"]);
    cluster.seen.validating[0].bundle.clear();
    cluster.settle(start());
    assert_eq!(cluster.take_log(), ["hooks"]);
    cluster.seen.webhook = None;
    cluster.settle(start());
    assert_eq!(cluster.take_log(), ["issue"]);
    let key = cluster.seen.webhook.clone().unwrap().data["tls.key"].clone();
    cluster.settle(start());
    cluster.seen.webhook = None;
    cluster.settle(start());
    cluster.seen.webhook.as_mut().unwrap().data.insert("tls.key".into(), key);
    cluster.take_log();
    cluster.settle(start());
    assert_eq!(cluster.take_log(), ["issue"]);
}

#[test]
fn a_secret_of_the_wrong_type_goes_first() {
    let mut cluster = Cluster::with_hooks();
    cluster.settle(start());
    cluster.seen.webhook.as_mut().unwrap().kind = "Opaque".into();
    let plan = plan(&cluster.seen, &Settings::default(), start());
    assert!(matches!(plan.steps[..], [Step::IssueWebhook { recreate: true, .. }]));
}

#[test]
fn without_webhook_configurations_the_rest_is_still_made() {
    let mut cluster = Cluster::default();
    cluster.settle(start());
    assert_eq!(cluster.take_log(), ["make", "publish", "issue"]);
}

#[test]
fn a_ca_in_its_last_second_makes_nobody_go_round_in_circles() {
    let mut cluster = Cluster::default();
    cluster.settle(start());
    let ends = start() + DAY * 365;
    cluster.seen.webhook = None;
    // Nothing was rotated in time: nobody led.
    let staged = cluster.settle(ends - Duration::from_secs(1));
    assert_eq!(staged, Some(ends));
    cluster.settle(ends);
    assert!(cluster.log.contains(&"promote"));
}
