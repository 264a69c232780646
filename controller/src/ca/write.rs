//! Carries out the CA's steps. Every write is preconditioned by what was seen; a lost race is no error, since
//! the next plan sees what the other one wrote.

use std::collections::BTreeMap;

use jiff::Timestamp;
use json_patch::{AddOperation, Patch as JsonPatch, PatchOperation, TestOperation, jsonptr::PointerBuf};
use k8s_openapi::{
    ByteString,
    api::{
        admissionregistration::v1::{
            MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
        },
        core::v1::{ConfigMap, Secret},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use squall_api::names;
use tracing::{info, warn};

use super::{
    Authority, CA_CERT, CA_KEY, Hook, HookKind, NEXT_CERT, NEXT_KEY, OLD_CERT, Observed, Settings, Step,
    Stored,
};
use crate::certs::{Ca, CertError, Profile};

const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "squall");

/// Why a step could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A key or certificate.
    #[error("can't make what {object} needs: {source}")]
    Make {
        /// For what.
        object: &'static str,
        /// Why.
        source: CertError,
    },
    /// The API server refused, or did not answer.
    #[error("can't {verb} {object}: {source}")]
    Api {
        /// What was tried.
        verb: &'static str,
        /// On what.
        object: &'static str,
        /// Why.
        source: kube::Error,
    },
    /// Someone else was faster; plan again.
    #[error("{0} has changed meanwhile")]
    Raced(&'static str),
}

/// Writes to the cluster.
#[derive(Clone)]
pub struct Writer {
    client: Client,
    settings: Settings,
}

impl Writer {
    /// One that makes CAs as `settings` say.
    pub fn new(client: Client, settings: Settings) -> Writer {
        Writer { client, settings }
    }

    /// Carry out one step, and note its outcome in `seen`.
    pub async fn carry_out(&self, step: Step, seen: &mut Observed, now: Timestamp) -> Result<(), WriteError> {
        match step {
            Step::MakeCa { why, keep } => {
                warn!(%why, "making a new CA");
                let ca = self.make_ca(now)?;
                let mut data = BTreeMap::from([
                    (CA_KEY.to_owned(), ca.key_pem().into_bytes()),
                    (CA_CERT.to_owned(), ca.cert_pem.into_bytes()),
                ]);
                if let Some(keep) = keep {
                    data.insert(OLD_CERT.to_owned(), keep);
                }
                self.write_ca(data, seen).await
            }
            Step::StageCa => {
                info!("two thirds of the CA's time are over: making the next one");
                let next = self.make_ca(now)?;
                let mut data = ca_data(seen);
                data.insert(NEXT_KEY.to_owned(), next.key_pem().into_bytes());
                data.insert(NEXT_CERT.to_owned(), next.cert_pem.into_bytes());
                self.write_ca(data, seen).await
            }
            Step::PromoteCa => {
                info!("the next CA is known everywhere: it signs from now on");
                let mut data = ca_data(seen);
                if let (Some(key), Some(cert)) = (data.remove(NEXT_KEY), data.remove(NEXT_CERT)) {
                    data.insert(CA_KEY.to_owned(), key);
                    if let Some(old) = data.insert(CA_CERT.to_owned(), cert) {
                        data.insert(OLD_CERT.to_owned(), old);
                    }
                }
                self.write_ca(data, seen).await
            }
            Step::DropOld => {
                info!("the CA before is no longer trusted");
                let mut data = ca_data(seen);
                data.remove(OLD_CERT);
                self.write_ca(data, seen).await
            }
            Step::Publish { bundle } => {
                info!("publishing the CA bundle");
                let data = BTreeMap::from([(names::CA_BUNDLE_KEY.to_owned(), bundle)]);
                let version = seen.bundle.as_ref().map(|stored| stored.version.clone());
                let map = ConfigMap {
                    metadata: metadata(names::CA_BUNDLE, version),
                    data: Some(data),
                    ..ConfigMap::default()
                };
                seen.bundle = Some(put(&self.namespaced(), map, "ConfigMap squall-ca-bundle").await?.into());
                Ok(())
            }
            Step::PatchHooks { kind, hooks, bundle } => {
                info!(?kind, webhooks = hooks.len(), "writing the CA bundle into the webhooks");
                match kind {
                    HookKind::Mutating => {
                        let object = "MutatingWebhookConfiguration squall";
                        let api: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
                        let patched = patch(&api, names::MUTATING_WEBHOOKS, &hooks, &bundle, object).await?;
                        seen.mutating = mutating_hooks(&patched);
                    }
                    HookKind::Validating => {
                        let object = "ValidatingWebhookConfiguration squall";
                        let api: Api<ValidatingWebhookConfiguration> = Api::all(self.client.clone());
                        let patched =
                            patch(&api, names::VALIDATING_WEBHOOKS, &hooks, &bundle, object).await?;
                        seen.validating = validating_hooks(&patched);
                    }
                }
                Ok(())
            }
            Step::IssueWebhook { why, recreate } => self.issue_webhook(&why, recreate, seen, now).await,
        }
    }

    async fn issue_webhook(
        &self,
        why: &str,
        recreate: bool,
        seen: &mut Observed,
        now: Timestamp,
    ) -> Result<(), WriteError> {
        let object = "Secret squall-webhook-tls";
        info!(%why, "making the webhook's certificate");
        let make = |source| WriteError::Make { object, source };
        let Some(stored) = &seen.ca else { return Err(WriteError::Raced("Secret squall-ca")) };
        let ca = Authority::read(stored).map_err(make)?.ca;
        let pair = ca.issue(&Profile::Webhook, now).map_err(make)?;
        let api: Api<Secret> = self.namespaced();
        let mut version = seen.webhook.as_ref().map(|stored| stored.version.clone());
        if recreate {
            let only_this = Preconditions { resource_version: version.take(), uid: None };
            let params = DeleteParams { preconditions: Some(only_this), ..DeleteParams::default() };
            api.delete(names::WEBHOOK_TLS_SECRET, &params)
                .await
                .map_err(|error| api_error("delete", object, error))?;
        }
        let secret = Secret {
            metadata: metadata(names::WEBHOOK_TLS_SECRET, version),
            type_: Some("kubernetes.io/tls".into()),
            data: Some(BTreeMap::from([
                ("tls.key".to_owned(), ByteString(pair.key_pem.into_bytes())),
                ("tls.crt".to_owned(), ByteString(pair.cert_pem.into_bytes())),
            ])),
            ..Secret::default()
        };
        seen.webhook = Some(put(&api, secret, object).await?.into());
        Ok(())
    }

    fn make_ca(&self, now: Timestamp) -> Result<Ca, WriteError> {
        Ca::make(now, self.settings.ca_life)
            .map_err(|source| WriteError::Make { object: "Secret squall-ca", source })
    }

    async fn write_ca(&self, data: BTreeMap<String, Vec<u8>>, seen: &mut Observed) -> Result<(), WriteError> {
        let (version, kind) = match &seen.ca {
            Some(stored) => (Some(stored.version.clone()), stored.kind.clone()),
            None => (None, "Opaque".to_owned()),
        };
        let secret = Secret {
            metadata: metadata(names::CA_SECRET, version),
            // A type can't be changed, and ours does not matter.
            type_: Some(kind),
            data: Some(data.into_iter().map(|(key, value)| (key, ByteString(value))).collect()),
            ..Secret::default()
        };
        seen.ca = Some(put(&self.namespaced(), secret, "Secret squall-ca").await?.into());
        Ok(())
    }

    fn namespaced<K>(&self) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), names::NAMESPACE)
    }
}

impl From<Secret> for Stored {
    fn from(secret: Secret) -> Self {
        let data = secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0)).collect();
        let kind = secret.type_.unwrap_or_default();
        Stored { data, kind, ..of_metadata(secret.metadata) }
    }
}

impl From<ConfigMap> for Stored {
    fn from(map: ConfigMap) -> Self {
        let data =
            map.data.unwrap_or_default().into_iter().map(|(key, text)| (key, text.into_bytes())).collect();
        Stored { data, ..of_metadata(map.metadata) }
    }
}

/// The webhooks that call our Service.
pub fn mutating_hooks(configuration: &MutatingWebhookConfiguration) -> Vec<Hook> {
    let all = configuration.webhooks.iter().flatten();
    all.enumerate().filter_map(|(index, hook)| ours(index, &hook.name, &hook.client_config)).collect()
}

/// The webhooks that call our Service.
pub fn validating_hooks(configuration: &ValidatingWebhookConfiguration) -> Vec<Hook> {
    let all = configuration.webhooks.iter().flatten();
    all.enumerate().filter_map(|(index, hook)| ours(index, &hook.name, &hook.client_config)).collect()
}

fn ours(index: usize, name: &str, config: &WebhookClientConfig) -> Option<Hook> {
    let service = config.service.as_ref()?;
    let ours = service.namespace == names::NAMESPACE && service.name == names::WEBHOOK;
    let bundle = config.ca_bundle.as_ref().map(|bundle| bundle.0.clone()).unwrap_or_default();
    ours.then(|| Hook { index, name: name.to_owned(), bundle })
}

fn ca_data(seen: &Observed) -> BTreeMap<String, Vec<u8>> {
    seen.ca.as_ref().map(|stored| stored.data.clone()).unwrap_or_default()
}

fn metadata(name: &str, version: Option<String>) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(names::NAMESPACE.to_owned()),
        resource_version: version,
        labels: Some([(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned())].into()),
        ..ObjectMeta::default()
    }
}

fn of_metadata(metadata: ObjectMeta) -> Stored {
    let label = metadata.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY.0));
    let marked = label.is_some_and(|value| value == MANAGED_BY.1);
    Stored { version: metadata.resource_version.unwrap_or_default(), marked, ..Stored::default() }
}

/// Create it, or replace the version that it names.
async fn put<K>(api: &Api<K>, wanted: K, object: &'static str) -> Result<K, WriteError>
where
    K: Resource + Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    let params = PostParams::default();
    match wanted.resource_version() {
        None => api.create(&params, &wanted).await.map_err(|error| api_error("create", object, error)),
        Some(_) => api
            .replace(&wanted.name_any(), &params, &wanted)
            .await
            .map_err(|error| api_error("replace", object, error)),
    }
}

async fn patch<K>(
    api: &Api<K>,
    name: &str,
    hooks: &[Hook],
    bundle: &str,
    object: &'static str,
) -> Result<K, WriteError>
where
    K: Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let encoded = serde_json::to_value(ByteString(bundle.as_bytes().to_vec())).unwrap_or_default();
    let mut operations = Vec::new();
    for hook in hooks {
        let index = hook.index.to_string();
        // The place in the list may have changed meanwhile: then nothing is done.
        operations.push(PatchOperation::Test(TestOperation {
            path: PointerBuf::from_tokens(["webhooks", &index, "name"]),
            value: hook.name.clone().into(),
        }));
        operations.push(PatchOperation::Add(AddOperation {
            path: PointerBuf::from_tokens(["webhooks", &index, "clientConfig", "caBundle"]),
            value: encoded.clone(),
        }));
    }
    let patch: Patch<()> = Patch::Json(JsonPatch(operations));
    api.patch(name, &PatchParams::default(), &patch).await.map_err(|error| api_error("patch", object, error))
}

fn api_error(verb: &'static str, object: &'static str, source: kube::Error) -> WriteError {
    match &source {
        kube::Error::Api(status) if matches!(status.code, 404 | 409) => WriteError::Raced(object),
        kube::Error::Api(status) if status.code == 422 && verb == "patch" => WriteError::Raced(object),
        _ => WriteError::Api { verb, object, source },
    }
}
