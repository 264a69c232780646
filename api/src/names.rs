//! Names that more than one part uses. They are part of the contract with users and between versions:
//! change none without an upgrade path.

use sha2::{Digest, Sha256};

/// The API group of every kind of ours.
pub const GROUP: &str = "squall.dev";
/// The version of the kinds.
pub const VERSION: &str = "v1alpha1";
/// The namespace that Squall is installed in.
pub const NAMESPACE: &str = "squall-system";

/// Label on a Namespace, set by an administrator: with the value [`INJECT_ENABLED`] its pods may be hit.
pub const INJECT: &str = "squall.dev/inject";
/// The value of [`INJECT`] that opts in; any other value is no opt-in.
pub const INJECT_ENABLED: &str = "enabled";
/// Label on a Pod: the switch. Its one value is [`POD_FAILURE`].
pub const FAULT: &str = "squall.dev/fault";
/// The value of [`FAULT`] that fails a pod.
pub const POD_FAILURE: &str = "pod-failure";
/// Label or annotation on a Namespace, a workload or a Pod: `true` protects from every fault.
pub const PROTECT: &str = "squall.dev/protect";
/// Annotation on a Pod: which containers the label fails, comma-separated names.
pub const CONTAINERS: &str = "squall.dev/containers";
/// Annotation on a Pod: when the fault by label ends, a duration from now or an RFC 3339 time.
pub const UNTIL: &str = "squall.dev/until";
/// Annotation on a Pod: `pause` or `crash`.
pub const FAULT_STYLE: &str = "squall.dev/fault-style";
/// Annotation on a Pod, Squall's own: the saved images, a JSON object by container name.
pub const ORIGINAL_IMAGES: &str = "squall.dev/original-images";
/// Annotation on a Pod, Squall's own: who holds the fault, a JSON list.
pub const HELD_BY: &str = "squall.dev/held-by";
/// Annotation on a Pod, Squall's own: what went wrong with what the owner asked for.
pub const LAST_ERROR: &str = "squall.dev/last-error";
/// Annotation on an experiment: `true` recovers it for as long as it is there; on a Schedule: no run begins.
pub const PAUSE: &str = "squall.dev/pause";
/// Annotation on an experiment: `forced` lets the object go whatever could not be recovered.
pub const CLEANUP: &str = "squall.dev/cleanup";
/// The value of [`CLEANUP`].
pub const CLEANUP_FORCED: &str = "forced";
/// Annotation on an experiment, Squall's own: who created it. Access is checked for this user.
pub const REQUESTED_BY: &str = "squall.dev/requested-by";
/// Annotation on a Pod or workload: its pods fail for a while. One of [`SMALL_FAULTS`].
pub const ASK_POD_FAILURE: &str = "squall.dev/pod-failure";
/// Annotation on a Pod or workload: pods are deleted gracefully, once. One of [`SMALL_FAULTS`].
pub const ASK_POD_KILL: &str = "squall.dev/pod-kill";
/// Annotation on a Pod or workload: containers are signalled, once. One of [`SMALL_FAULTS`].
pub const ASK_CONTAINER_KILL: &str = "squall.dev/container-kill";
/// Annotation on a Pod or workload: containers compute for a while. One of [`SMALL_FAULTS`].
pub const ASK_STRESS_CPU: &str = "squall.dev/stress-cpu";
/// Annotation on a Pod or workload: containers hold memory for a while. One of [`SMALL_FAULTS`].
pub const ASK_STRESS_MEMORY: &str = "squall.dev/stress-memory";
/// The annotations that ask for a small fault without YAML.
pub const SMALL_FAULTS: [&str; 5] =
    [ASK_POD_FAILURE, ASK_POD_KILL, ASK_CONTAINER_KILL, ASK_STRESS_CPU, ASK_STRESS_MEMORY];
/// Annotation on an experiment, Squall's own: the annotation that it was made for, and which time.
pub const MADE_FOR: &str = "squall.dev/made-for";
/// Annotation on a Namespace: nothing is hit there, and what lasts is recovered; the value says why. On [`NAMESPACE`]
/// it means the whole cluster.
pub const HALT: &str = "squall.dev/halt";
/// Finalizer on experiments.
pub const FINALIZER: &str = "squall.dev/recover";

/// The CRDs of experiments, by name: plural and group. That one of them is deleted means that Squall is removed.
pub const CRDS: [&str; 2] = ["podchaos.squall.dev", "stresschaos.squall.dev"];
/// Namespaces that no label can open, beside [`NAMESPACE`].
pub const PROTECTED_NAMESPACES: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", NAMESPACE];

/// Whether no label can open `namespace`.
pub fn is_protected_namespace(namespace: &str) -> bool {
    PROTECTED_NAMESPACES.contains(&namespace)
}

/// The controller's Deployment, Service and ServiceAccount.
pub const CONTROLLER: &str = "squall-controller";
/// The webhook's Deployment, Service and ServiceAccount.
pub const WEBHOOK: &str = "squall-webhook";
/// The daemon's DaemonSet and ServiceAccount.
pub const DAEMON: &str = "squall-daemon";
/// Label that names the component on each pod of ours: [`CONTROLLER`], [`WEBHOOK`] or [`DAEMON`].
pub const COMPONENT_LABEL: &str = "app.kubernetes.io/name";
/// The leader election's Lease, in [`NAMESPACE`].
pub const LEASE: &str = "squall-controller";

/// The user name with which the controller talks to the API server.
pub const CONTROLLER_USER: &str = "system:serviceaccount:squall-system:squall-controller";

/// Secret with the CA's key and certificate (`ca.key`, `ca.crt`); also the old certificate in a rotation.
pub const CA_SECRET: &str = "squall-ca";
/// Secret of type `kubernetes.io/tls` with the webhook's pair (`tls.key`, `tls.crt`).
pub const WEBHOOK_TLS_SECRET: &str = "squall-webhook-tls";
/// ConfigMap with the CA's certificates, old and new, under the key [`CA_BUNDLE_KEY`].
pub const CA_BUNDLE: &str = "squall-ca-bundle";
/// The key in [`CA_BUNDLE`].
pub const CA_BUNDLE_KEY: &str = "ca.crt";
/// The MutatingWebhookConfiguration for pods and experiments.
pub const MUTATING_WEBHOOKS: &str = "squall";
/// The ValidatingWebhookConfiguration for experiments.
pub const VALIDATING_WEBHOOKS: &str = "squall";
/// The audience of the daemon's projected ServiceAccount token.
pub const TOKEN_AUDIENCE: &str = "squall.dev";

/// Port of the webhook's TLS server in its pod (443 at its Service).
pub const WEBHOOK_PORT: u16 = 9443;
/// Port of the controller's enrolment server.
pub const ENROLMENT_PORT: u16 = 9444;
/// Port of the daemon's gRPC server.
pub const DAEMON_PORT: u16 = 9445;
/// Port of `/healthz`, `/readyz` and `/metrics` in every component, plain HTTP.
pub const HEALTH_PORT: u16 = 8081;

/// Path of the mutating review of pods.
pub const PATH_MUTATE_PODS: &str = "/mutate/pods";
/// Path of the mutating review of annotations on pods and workloads.
pub const PATH_MUTATE_ANNOTATIONS: &str = "/mutate/annotations";
/// Path of the mutating review of experiments.
pub const PATH_MUTATE_EXPERIMENTS: &str = "/mutate/experiments";
/// Path of the validating review of experiments.
pub const PATH_VALIDATE_EXPERIMENTS: &str = "/validate/experiments";
/// Path of the webhook that holds up Squall's own removal until nothing is failed.
pub const PATH_VALIDATE_REMOVAL: &str = "/validate/removal";
/// Path of the validating review of policies.
pub const PATH_VALIDATE_POLICIES: &str = "/validate/policies";

/// The DNS name for which the webhook's certificate is made.
pub const WEBHOOK_SERVER_NAME: &str = "squall-webhook.squall-system.svc";
/// The DNS name in the certificate of the controller's enrolment server (server usage only).
pub const CONTROLLER_SERVER_NAME: &str = "squall-controller.squall-system.svc";
/// The DNS name in the controller's client certificate (client usage only); a daemon obeys no other.
pub const CONTROLLER_CLIENT_NAME: &str = "controller.client.squall.dev";

/// The DNS name in the certificate of `node`'s daemon (server usage only).
///
/// A node's name may be as long as a DNS name may be, so a digest of it stands in for it.
pub fn daemon_server_name(node: &str) -> String {
    let digest = Sha256::digest(node.as_bytes());
    let hex: String = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{hex}.daemon.squall.dev")
}

/// The environment variables with the fault images' names, set in webhook and controller.
pub const ENV_PAUSE_IMAGE: &str = "SQUALL_PAUSE_IMAGE";
/// See [`ENV_PAUSE_IMAGE`].
pub const ENV_CRASH_IMAGE: &str = "SQUALL_CRASH_IMAGE";
/// The environment variable with the address of the CloudEvents sink, in the controller.
pub const ENV_EVENTS_SINK: &str = "SQUALL_EVENTS_SINK";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemons_name_is_a_dns_label_however_long_the_nodes_is() {
        let name = daemon_server_name(&"n".repeat(253));
        assert_eq!(name.len(), 32 + ".daemon.squall.dev".len());
        assert_ne!(name, daemon_server_name("n"));
    }
}
