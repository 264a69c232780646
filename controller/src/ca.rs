//! The CA of the house: what there should be in the cluster, given what there is.
//!
//! - Secret `squall-ca`: `ca.key` and `ca.crt` sign; while a rotation is prepared `next.key` and `next.crt` wait
//!   until everyone has heard of them; afterwards `old.crt` is trusted until its last leaf is gone.
//! - ConfigMap `squall-ca-bundle` and every `caBundle` of ours: all of these certificates.
//! - Secret `squall-webhook-tls`: the webhook's pair, only ever signed by a CA that is published everywhere.
//!
//! [`plan`] is pure. [`write`] carries its steps out, [`keep`] wakes it. Only the leader writes; every replica
//! reads the one Secret to make its own [`Identity`](crate::certs::Identity).

use std::{collections::BTreeMap, time::Duration};

use base64::Engine as _;
use jiff::Timestamp;
use squall_api::names;

use crate::certs::{Ca, CertError, Certificate, LEAF_LIFE, Profile};

pub mod keep;
pub mod write;

/// Keys in the CA's Secret.
pub const CA_KEY: &str = "ca.key";
/// See [`CA_KEY`].
pub const CA_CERT: &str = "ca.crt";
/// The CA to come, in a rotation.
pub const NEXT_KEY: &str = "next.key";
/// See [`NEXT_KEY`].
pub const NEXT_CERT: &str = "next.crt";
/// The certificate of the CA before.
pub const OLD_CERT: &str = "old.crt";

/// How the CA is kept.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How long a CA is good for; it is rotated when two thirds are over.
    pub ca_life: Duration,
    /// How long a new CA is published before it signs: kubelets take a minute to refresh a mounted ConfigMap.
    pub settle: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { ca_life: Duration::from_secs(365 * 86400), settle: Duration::from_secs(300) }
    }
}

/// A Secret or ConfigMap as it was seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stored {
    /// Its resourceVersion, the precondition of every change.
    pub version: String,
    /// Its data.
    pub data: BTreeMap<String, Vec<u8>>,
    /// A Secret's type.
    pub kind: String,
    /// Whether it carries our label.
    pub marked: bool,
}

/// The two kinds of webhook configurations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookKind {
    /// MutatingWebhookConfiguration
    Mutating,
    /// ValidatingWebhookConfiguration
    Validating,
}

/// A webhook of ours in a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// Its place in the list.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// The caBundle that it has.
    pub bundle: Vec<u8>,
}

/// Everything that the plan depends on.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// Secret `squall-ca`.
    pub ca: Option<Stored>,
    /// Secret `squall-webhook-tls`.
    pub webhook: Option<Stored>,
    /// ConfigMap `squall-ca-bundle`.
    pub bundle: Option<Stored>,
    /// The webhooks of ours in the MutatingWebhookConfiguration.
    pub mutating: Vec<Hook>,
    /// The webhooks of ours in the ValidatingWebhookConfiguration.
    pub validating: Vec<Hook>,
}

/// One thing to do. A step that needs a key has it made by who carries it out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make a CA that signs at once: there is none that could.
    MakeCa {
        /// Why.
        why: String,
        /// A certificate to trust until its leaves are gone, PEM.
        keep: Option<Vec<u8>>,
    },
    /// Make the CA to come, and let it wait.
    StageCa,
    /// The CA to come signs from now on; the one before is trusted for a while.
    PromoteCa,
    /// The CA before is no longer trusted.
    DropOld,
    /// Write the ConfigMap.
    Publish {
        /// The CAs' certificates, PEM.
        bundle: String,
    },
    /// Write the bundle into these webhooks.
    PatchHooks {
        /// Which configuration.
        kind: HookKind,
        /// Which of its webhooks.
        hooks: Vec<Hook>,
        /// The CAs' certificates, PEM.
        bundle: String,
    },
    /// Make the webhook's pair.
    IssueWebhook {
        /// Why.
        why: String,
        /// The Secret has the wrong type, which can't be changed: delete it first.
        recreate: bool,
    },
}

/// What to do now, and when to look again without being asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// In this order. Planning again after them is what completes them.
    pub steps: Vec<Step>,
    /// The next date at which something falls due.
    pub due: Option<Timestamp>,
}

/// Plan.
///
/// # Guarantees
/// Nothing is planned that is already so. No leaf is switched to a CA that isn't published everywhere.
pub fn plan(state: &Observed, settings: &Settings, now: Timestamp) -> Plan {
    let Some(stored) = &state.ca else {
        return only(Step::MakeCa { why: "there is none yet".into(), keep: None });
    };
    let authority = match Authority::read(stored) {
        Ok(authority) => authority,
        Err(error) => {
            let keep = stored.data.get(CA_CERT).filter(|pem| {
                Certificate::parse(pem).is_ok_and(|cert| cert.is_ca && cert.validity.ends > now)
            });
            return only(Step::MakeCa { why: error.to_string(), keep: keep.cloned() });
        }
    };
    let signing = &authority.ca.cert;
    let next = authority.next.as_ref().map(|next| &next.cert).filter(|cert| cert.validity.ends > now);
    if signing.validity.ends <= now && next.is_none() {
        return only(Step::MakeCa { why: format!("it ran out on {}", signing.validity.ends), keep: None });
    }

    let mut steps = Vec::new();
    let mut due = vec![signing.validity.ends];
    if next.is_none() {
        due.push(signing.validity.renew_at());
        if now >= signing.validity.renew_at() {
            steps.push(Step::StageCa);
            return Plan { steps, due: None };
        }
    }

    let bundle = authority.bundle(now);
    let published = |stored: &Stored| {
        stored.marked && stored.data.get(names::CA_BUNDLE_KEY).map(Vec::as_slice) == Some(bundle.as_bytes())
    };
    if !state.bundle.as_ref().is_some_and(published) {
        steps.push(Step::Publish { bundle: bundle.clone() });
    }
    for (kind, all) in [(HookKind::Mutating, &state.mutating), (HookKind::Validating, &state.validating)] {
        let stale: Vec<Hook> = all.iter().filter(|hook| hook.bundle != bundle.as_bytes()).cloned().collect();
        if !stale.is_empty() {
            steps.push(Step::PatchHooks { kind, hooks: stale, bundle: bundle.clone() });
        }
    }
    if !steps.is_empty() {
        // Everything else waits until everyone can have heard of it.
        return Plan { steps, due: None };
    }

    if let Some(next) = next {
        let at = next.validity.made + settings.settle;
        if now >= at || signing.validity.ends <= now {
            return only(Step::PromoteCa);
        }
        due.push(at);
    }

    match webhook_pair(state.webhook.as_ref(), signing, now) {
        Ok(renew_at) => {
            due.push(renew_at);
            if let Some(old) = &authority.old {
                // Daemons' certificates of the CA before live this long at most, and an hour for their clocks.
                let at = signing.validity.made + settings.settle + LEAF_LIFE + Duration::from_secs(3600);
                let at = at.min(old.validity.ends);
                if now >= at {
                    steps.push(Step::DropOld);
                }
                due.push(at);
            } else if stored.data.contains_key(OLD_CERT) {
                steps.push(Step::DropOld);
            }
        }
        Err((why, recreate)) => steps.push(Step::IssueWebhook { why, recreate }),
    }
    let due = due.into_iter().filter(|at| *at > now).min();
    Plan { steps, due }
}

/// What the CA's Secret says.
#[derive(Debug)]
pub struct Authority {
    /// The one that signs.
    pub ca: Ca,
    /// The one to come. Garbage counts as none.
    pub next: Option<Ca>,
    /// The one before. Garbage counts as none.
    pub old: Option<Certificate>,
}

impl Authority {
    /// Parse the Secret.
    pub fn read(stored: &Stored) -> Result<Authority, CertError> {
        let get = |key: &str| stored.data.get(key).map(Vec::as_slice).unwrap_or_default();
        let ca = Ca::parse(get(CA_KEY), get(CA_CERT))?;
        let next = Ca::parse(get(NEXT_KEY), get(NEXT_CERT)).ok();
        let old = Certificate::parse(get(OLD_CERT)).ok().filter(|cert| cert.is_ca);
        Ok(Authority { ca, next, old })
    }

    /// The certificates to trust beside the signing one's.
    pub fn trusted(&self, now: Timestamp) -> Vec<Certificate> {
        let next = self.next.as_ref().map(|next| &next.cert);
        next.into_iter().chain(&self.old).filter(|cert| cert.validity.ends > now).cloned().collect()
    }

    fn bundle(&self, now: Timestamp) -> String {
        let mut bundle = pem(&self.ca.cert);
        self.trusted(now).iter().for_each(|cert| bundle.push_str(&pem(cert)));
        bundle
    }
}

/// When the webhook's pair is due, or why it must be made now and whether its Secret must go first.
fn webhook_pair(
    stored: Option<&Stored>,
    signing: &Certificate,
    now: Timestamp,
) -> Result<Timestamp, (String, bool)> {
    let Some(stored) = stored else { return Err(("there is none yet".into(), false)) };
    if stored.kind != "kubernetes.io/tls" {
        return Err((format!("its Secret is of the type {:?}", stored.kind), true));
    }
    let get = |key: &str| stored.data.get(key).map(Vec::as_slice).unwrap_or_default();
    let cert = Certificate::parse(get("tls.crt")).map_err(|error| (error.to_string(), false))?;
    let fault = if !cert.has_key(get("tls.key")) {
        "its key isn't its certificate's"
    } else if cert.names != Profile::Webhook.names() {
        "it is for other names"
    } else if !cert.is_signed_by(signing) {
        "it isn't signed by the CA that signs now"
    } else if now >= cert.validity.renew_at() && cert.validity.ends < signing.validity.ends {
        // One that ends with its CA is made anew by the CA after it.
        "two thirds of its time are over"
    } else if !stored.marked {
        "its Secret lacks our label"
    } else {
        return Ok(cert.validity.renew_at());
    };
    Err((fault.into(), false))
}

fn only(step: Step) -> Plan {
    Plan { steps: vec![step], due: None }
}

/// A certificate as PEM, always with the same bytes however it was stored.
fn pem(cert: &Certificate) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(&cert.der);
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        out.push_str(&String::from_utf8_lossy(line));
        out.push('\n');
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out
}

#[cfg(test)]
mod tests;
