//! The hand-written manifests against the code: names, ports, paths, environment and rights are the same in both, every
//! example is a PodChaos without a stray field, and another registry leaves no name of ours behind.
//!
//! Rendering takes kubectl: `SQUALL_KUBECTL` (set by `cargo xtask test`) or the one in the path.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};
use squall_api::{ChaosPolicy, PodChaos, Schedule, StressChaos, names};

const IMAGES: [&str; 5] = ["controller", "webhook", "daemon", "pause", "crash"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn kustomize(directory: &Path) -> String {
    let kubectl = env::var_os("SQUALL_KUBECTL").unwrap_or_else(|| "kubectl".into());
    let done = Command::new(&kubectl).arg("kustomize").arg(directory).output().unwrap_or_else(|error| {
        panic!("rendering needs kubectl (in the path, or named by SQUALL_KUBECTL): {kubectl:?}: {error}")
    });
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

fn documents(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn rendered() -> Vec<Value> {
    documents(&kustomize(&root().join("deploy")))
}

#[track_caller]
fn find(all: &[Value], kind: &str, name: &str) -> Value {
    let found = all.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name} in deploy/")).clone()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn by_name<'a>(values: &'a Value, name: &str) -> &'a Value {
    list(values).iter().find(|value| value["name"] == name).unwrap_or(&Value::Null)
}

fn strings(value: &Value) -> Vec<&str> {
    list(value).iter().filter_map(Value::as_str).collect()
}

/// Every string in it.
fn each_string(value: &Value, see: &mut impl FnMut(&str)) {
    match value {
        Value::String(text) => see(text),
        Value::Array(list) => list.iter().for_each(|value| each_string(value, see)),
        Value::Object(map) => map.values().for_each(|value| each_string(value, see)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Whether `part` says nothing that `whole` does not say too.
fn lost(part: &Value, whole: &Value, path: &str, found: &mut Vec<String>) {
    match (part, whole) {
        (Value::Object(part), Value::Object(whole)) => {
            for (key, value) in part {
                lost(value, whole.get(key).unwrap_or(&Value::Null), &format!("{path}.{key}"), found);
            }
        }
        (Value::Array(part), Value::Array(whole)) if part.len() == whole.len() => {
            for (index, (part, whole)) in part.iter().zip(whole).enumerate() {
                lost(part, whole, &format!("{path}[{index}]"), found);
            }
        }
        (part, whole) if part == whole => {}
        (part, whole) => found.push(format!("{path}: {part} became {whole}")),
    }
}

#[test]
fn rendering_twice_gives_the_same_bytes() {
    let directory = root().join("deploy");
    assert_eq!(kustomize(&directory), kustomize(&directory));
}

#[test]
fn another_registry_leaves_no_name_of_ours() {
    let scratch = root().join("target").join(format!("manifests-{}", std::process::id()));
    fs::create_dir_all(&scratch).unwrap();
    let images: Vec<_> = IMAGES
        .iter()
        .map(|image| {
            json!({"name": format!("localhost/squall-{image}"),
                   "newName": format!("registry.example/team/squall-{image}"), "newTag": "v1"})
        })
        .collect();
    let overlay = json!({"resources": ["../../deploy"], "images": images});
    fs::write(scratch.join("kustomization.yaml"), overlay.to_string()).unwrap();
    let text = kustomize(&scratch);
    fs::remove_dir_all(&scratch).unwrap();
    for object in documents(&text) {
        each_string(&object, &mut |text| {
            assert!(!text.contains("localhost"), "{} still names {text}", object["metadata"]["name"]);
        });
    }
    for image in IMAGES {
        assert!(text.contains(&format!("registry.example/team/squall-{image}:v1")), "{image}");
    }
}

/// `kubectl delete -k` goes from first to last, and waits for none.
#[test]
fn what_the_controller_needs_to_put_everything_back_is_deleted_last() {
    let all = rendered();
    let place = |kind: &str, name: &str| {
        let is = |object: &Value| object["kind"] == kind && object["metadata"]["name"] == name;
        all.iter().position(is).unwrap_or_else(|| panic!("no {kind} {name}"))
    };
    let namespace = place("Namespace", names::NAMESPACE);
    for crd in names::CRDS {
        assert!(
            place("CustomResourceDefinition", crd) < namespace,
            "{crd} is what has the controller end faults"
        );
    }
    // While this one is held up, everything else is still there.
    let before = |object: &Value| object["kind"] == "CustomResourceDefinition";
    assert!(all[..namespace].iter().all(before), "what goes before the namespace is gone too soon");
    let rights = ["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "ServiceAccount"];
    let first = rights.map(|kind| place(kind, names::CONTROLLER)).into_iter().min().unwrap();
    let last = place("DaemonSet", names::DAEMON)
        .max(place("ValidatingWebhookConfiguration", names::VALIDATING_WEBHOOKS));
    assert!(last < first, "rights and identity go last");
}

#[test]
fn every_object_carries_the_mark_and_is_in_our_namespace() {
    for object in rendered() {
        let (kind, metadata) = (&object["kind"], &object["metadata"]);
        assert_eq!(metadata["labels"]["app.kubernetes.io/part-of"], "squall", "{kind} {}", metadata["name"]);
        if let Some(namespace) = metadata.get("namespace") {
            assert_eq!(namespace, names::NAMESPACE, "{kind} {}", metadata["name"]);
        }
    }
    find(&rendered(), "Namespace", names::NAMESPACE);
}

#[test]
fn workloads_services_and_ports_are_those_of_the_code() {
    let all = rendered();
    let ports = [
        ("Deployment", names::CONTROLLER, "enrolment", names::ENROLMENT_PORT),
        ("Deployment", names::WEBHOOK, "https", names::WEBHOOK_PORT),
        ("DaemonSet", names::DAEMON, "grpc", names::DAEMON_PORT),
    ];
    for (kind, name, port, number) in ports {
        let spec = find(&all, kind, name)["spec"].clone();
        assert_eq!(spec["selector"]["matchLabels"], json!({names::COMPONENT_LABEL: name}));
        assert_eq!(spec["template"]["metadata"]["labels"][names::COMPONENT_LABEL], name);
        let pod = &spec["template"]["spec"];
        assert_eq!(pod["serviceAccountName"], name);
        find(&all, "ServiceAccount", name);
        let container = &pod["containers"][0];
        assert_eq!(by_name(&container["ports"], port)["containerPort"], number, "{name}");
        assert_eq!(by_name(&container["ports"], "health")["containerPort"], names::HEALTH_PORT, "{name}");
        assert_eq!(container["livenessProbe"]["httpGet"], json!({"path": "/healthz", "port": "health"}));
        assert_eq!(container["readinessProbe"]["httpGet"], json!({"path": "/readyz", "port": "health"}));
        assert_eq!(container["securityContext"]["capabilities"]["drop"], json!(["ALL"]), "{name}");
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true, "{name}");
        assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false, "{name}");
        assert_ne!(container["securityContext"]["privileged"], true, "{name}");
    }
    let service = find(&all, "Service", names::CONTROLLER);
    assert_eq!(service["spec"]["ports"][0]["port"], names::ENROLMENT_PORT);
    assert_eq!(service["spec"]["ports"][0]["targetPort"], "enrolment");
    let service = find(&all, "Service", names::WEBHOOK);
    assert_eq!(service["spec"]["ports"][0]["targetPort"], "https");
    for (name, server) in
        [(names::WEBHOOK, names::WEBHOOK_SERVER_NAME), (names::CONTROLLER, names::CONTROLLER_SERVER_NAME)]
    {
        assert_eq!(format!("{name}.{}.svc", names::NAMESPACE), server);
        let deployment = find(&all, "Deployment", name);
        assert_eq!(deployment["spec"]["replicas"], 2);
        assert_eq!(deployment["spec"]["template"]["spec"]["securityContext"]["runAsNonRoot"], true);
        find(&all, "PodDisruptionBudget", name);
    }
}

#[test]
fn webhook_and_controller_know_the_fault_images_that_the_daemonset_pulls() {
    let all = rendered();
    let daemon = find(&all, "DaemonSet", names::DAEMON)["spec"]["template"]["spec"].clone();
    for name in [names::WEBHOOK, names::CONTROLLER] {
        let env = find(&all, "Deployment", name)["spec"]["template"]["spec"]["containers"][0]["env"].clone();
        for (variable, image) in
            [(names::ENV_PAUSE_IMAGE, "pull-pause"), (names::ENV_CRASH_IMAGE, "pull-crash")]
        {
            let pulled = &by_name(&daemon["initContainers"], image)["image"];
            assert!(pulled.is_string(), "{image}");
            assert_eq!(&by_name(&env, variable)["value"], pulled, "{name} {variable}");
        }
        assert_eq!(by_name(&env, "POD_NAME")["valueFrom"]["fieldRef"]["fieldPath"], "metadata.name");
        assert_eq!(
            by_name(&env, "POD_NAMESPACE")["valueFrom"]["fieldRef"]["fieldPath"],
            "metadata.namespace"
        );
    }
}

#[test]
fn the_components_for_runtimes_add_one_socket_each_and_nothing_else() {
    for (component, path) in [("docker", "/run/docker.sock"), ("k3s", "/run/k3s/containerd")] {
        let directory = root().join(format!("target/manifests-{component}"));
        fs::create_dir_all(&directory).unwrap();
        let overlay = json!({
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": ["../../deploy"],
            "components": [format!("../../deploy/runtimes/{component}")],
        });
        fs::write(directory.join("kustomization.yaml"), overlay.to_string()).unwrap();
        let (with, without) = (documents(&kustomize(&directory)), rendered());
        let daemon = |all: &[Value]| find(all, "DaemonSet", "squall-daemon");
        let mut daemon_with = daemon(&with);
        let mounts = &mut daemon_with["spec"]["template"]["spec"]["containers"][0]["volumeMounts"];
        let mount = mounts.as_array_mut().and_then(Vec::pop).unwrap();
        assert_eq!((&mount["mountPath"], &mount["readOnly"]), (&json!(path), &json!(true)));
        let volumes = &mut daemon_with["spec"]["template"]["spec"]["volumes"];
        let volume = volumes.as_array_mut().and_then(Vec::pop).unwrap();
        assert_eq!((&volume["hostPath"]["path"], &volume["name"]), (&json!(path), &mount["name"]));
        assert_eq!(daemon_with, daemon(&without));
    }
}

/// Each with what fails without it. Who adds one here says so, too.
const DAEMONS_MOUNTS: [(&str, &str, bool, &str); 6] = [
    (
        "containerd",
        "/run/containerd",
        true,
        "which process a container's first is, where the runtime is containerd",
    ),
    ("crio", "/run/crio", true, "the same, where it is CRI-O"),
    (
        "cgroup",
        "/sys/fs/cgroup",
        false,
        "processes of a container, ids for the programs; freezing, limits, stressors",
    ),
    ("tracing", "/sys/kernel/tracing", true, "the numbers of tracepoints: triggers on system calls"),
    ("state", "/run/squall", false, "the journal: nothing is done twice, and a new daemon puts back"),
    ("enrolment", "/var/run/squall-enrolment", true, "token and CA bundle: no certificate without them"),
];

#[test]
fn the_daemon_mounts_what_it_needs_and_nothing_else() {
    let pod = find(&rendered(), "DaemonSet", names::DAEMON)["spec"]["template"]["spec"].clone();
    let mounts: Vec<_> = list(&pod["containers"][0]["volumeMounts"])
        .iter()
        .map(|mount| {
            let text = |key: &str| mount[key].as_str().unwrap_or_default();
            assert!(mount.get("mountPropagation").is_none() && mount.get("subPath").is_none(), "{mount}");
            (text("name"), text("mountPath"), mount["readOnly"] == true)
        })
        .collect();
    let needed: Vec<_> =
        DAEMONS_MOUNTS.iter().map(|(name, path, read_only, _)| (*name, *path, *read_only)).collect();
    for mount in &mounts {
        assert!(needed.contains(mount), "{mount:?}: nobody has said why the daemon needs it like this");
    }
    for (name, path, read_only, why) in DAEMONS_MOUNTS {
        assert!(mounts.contains(&(name, path, read_only)), "{name} at {path} is missing: {why}");
        let volume = by_name(&pod["volumes"], name);
        // Of the node nothing but what is seen at the same place.
        let shown = volume.get("hostPath").map_or(path, |host| host["path"].as_str().unwrap_or_default());
        assert_eq!(shown, path, "{name}");
    }
    assert_eq!(mounts.len(), DAEMONS_MOUNTS.len(), "one of them is there twice");
    assert_eq!(list(&pod["volumes"]).len(), DAEMONS_MOUNTS.len(), "a volume that nobody mounts");
    assert!(list(&pod["initContainers"]).iter().all(|pull| pull.get("volumeMounts").is_none()));
    // Where the binary looks by itself.
    let main = fs::read_to_string(root().join("daemon/src/main.rs")).unwrap();
    for path in ["/sys/fs/cgroup", "/run/squall/journal", "/var/run/squall-enrolment"] {
        assert!(main.contains(&format!("default_value = \"{path}\"")), "{path}");
    }
}

#[test]
fn the_daemon_has_no_token_but_the_one_for_enrolment() {
    let all = rendered();
    let pod = find(&all, "DaemonSet", names::DAEMON)["spec"]["template"]["spec"].clone();
    assert_eq!(pod["automountServiceAccountToken"], false);
    let sources = &by_name(&pod["volumes"], "enrolment")["projected"]["sources"];
    assert_eq!(sources[0]["serviceAccountToken"]["audience"], names::TOKEN_AUDIENCE);
    assert_eq!(sources[1]["configMap"]["name"], names::CA_BUNDLE);
    assert_eq!(sources[1]["configMap"]["items"][0]["key"], names::CA_BUNDLE_KEY);
    assert_ne!(sources[1]["configMap"]["optional"], true, "the kubelet waits for it");
    for object in &all {
        for subject in list(&object["subjects"]) {
            assert_ne!(subject["name"], names::DAEMON, "{} binds the daemon", object["metadata"]["name"]);
        }
    }
}

#[test]
fn the_webhooks_are_registered_as_the_design_says() {
    let all = rendered();
    let mutating = find(&all, "MutatingWebhookConfiguration", names::MUTATING_WEBHOOKS);
    let validating = find(&all, "ValidatingWebhookConfiguration", names::VALIDATING_WEBHOOKS);
    let pods = by_name(&mutating["webhooks"], "pods.mutate.squall.dev");
    let births = by_name(&mutating["webhooks"], "births.mutate.squall.dev");
    let annotations = by_name(&mutating["webhooks"], "annotations.mutate.squall.dev");
    let paths = [
        (births, names::PATH_MUTATE_PODS, "Ignore", 2),
        (pods, names::PATH_MUTATE_PODS, "Ignore", 2),
        (annotations, names::PATH_MUTATE_ANNOTATIONS, "Ignore", 5),
        (
            by_name(&mutating["webhooks"], "experiments.mutate.squall.dev"),
            names::PATH_MUTATE_EXPERIMENTS,
            "Fail",
            5,
        ),
        (&validating["webhooks"][0], names::PATH_VALIDATE_EXPERIMENTS, "Fail", 5),
        (by_name(&validating["webhooks"], "removal.squall.dev"), names::PATH_VALIDATE_REMOVAL, "Ignore", 30),
        (
            by_name(&validating["webhooks"], "policies.validate.squall.dev"),
            names::PATH_VALIDATE_POLICIES,
            "Ignore",
            5,
        ),
    ];
    for (webhook, path, policy, seconds) in paths {
        let service = &webhook["clientConfig"]["service"];
        assert_eq!(service["name"], names::WEBHOOK);
        assert_eq!(service["namespace"], names::NAMESPACE);
        assert_eq!(service["path"], path);
        assert_eq!(webhook["failurePolicy"], policy, "{path}");
        assert_eq!(webhook["timeoutSeconds"], seconds, "{path}");
        assert_eq!(webhook["sideEffects"], "None");
        assert!(webhook["clientConfig"].get("caBundle").is_none(), "the controller writes it");
        let rule = &webhook["rules"][0];
        let operations = match path {
            names::PATH_MUTATE_PODS if webhook == births => vec!["CREATE"],
            names::PATH_MUTATE_PODS | names::PATH_MUTATE_ANNOTATIONS => vec!["UPDATE"],
            names::PATH_VALIDATE_REMOVAL => vec!["DELETE"],
            _ => vec!["CREATE", "UPDATE"],
        };
        assert_eq!(strings(&rule["operations"]), operations, "{path}");
        if path == names::PATH_VALIDATE_REMOVAL {
            assert_eq!(strings(&rule["resources"]), ["namespaces"]);
            let ours = format!("request.name == '{}'", names::NAMESPACE);
            assert_eq!(webhook["matchConditions"][0]["expression"], ours, "nobody else's is held up");
        }
        if policy == "Fail" {
            assert_eq!(strings(&rule["apiGroups"]), [names::GROUP]);
            assert_eq!(strings(&rule["apiVersions"]), [names::VERSION]);
            assert!(
                webhook["matchConditions"][0]["expression"].as_str().unwrap().contains(names::REQUESTED_BY)
            );
        }
    }
    let selector = &pods["namespaceSelector"];
    assert_eq!(selector["matchLabels"], json!({names::INJECT: names::INJECT_ENABLED}));
    let mut never = strings(&selector["matchExpressions"][0]["values"]);
    never.sort_unstable();
    let mut protected = names::PROTECTED_NAMESPACES.to_vec();
    protected.sort_unstable();
    assert_eq!(never, protected);
    assert_eq!(selector["matchExpressions"][0]["operator"], "NotIn");
    for key in ["namespaceSelector", "clientConfig", "failurePolicy", "reinvocationPolicy"] {
        assert_eq!(births[key], pods[key], "{key}");
    }
    assert!(births.get("matchConditions").is_none(), "what a pod is born into is asked of each");
    let condition = pods["matchConditions"][0]["expression"].as_str().unwrap();
    for key in [names::FAULT, names::ORIGINAL_IMAGES, names::HELD_BY] {
        assert!(condition.contains(&format!("'{key}'")), "{key} is not in {condition}");
    }
}

#[test]
fn the_switch_is_warned_about_where_it_does_nothing_and_never_denied() {
    let all = rendered();
    let policy = find(&all, "ValidatingAdmissionPolicy", "squall-switch");
    let bindings = ["squall-switch", "squall-switch-protected"]
        .map(|name| find(&all, "ValidatingAdmissionPolicyBinding", name));
    for binding in &bindings {
        assert_eq!(strings(&binding["spec"]["validationActions"]), ["Warn", "Audit"]);
        assert_eq!(binding["spec"]["policyName"], policy["metadata"]["name"]);
    }
    // Together they are for every namespace in which the switch does nothing, and for no other.
    let [closed, protected] =
        bindings.each_ref().map(|binding| &binding["spec"]["matchResources"]["namespaceSelector"]);
    let opted_in = json!({"key": names::INJECT, "operator": "NotIn", "values": [names::INJECT_ENABLED]});
    assert_eq!(*closed, json!({"matchExpressions": [opted_in]}));
    assert_eq!(protected["matchLabels"], json!({names::INJECT: names::INJECT_ENABLED}));
    assert_eq!(protected["matchExpressions"][0]["operator"], "In");
    assert_eq!(strings(&protected["matchExpressions"][0]["values"]), names::PROTECTED_NAMESPACES);
    assert_eq!(policy["spec"]["failurePolicy"], "Ignore");
    let text = policy.to_string();
    for name in
        [names::FAULT, names::INJECT, names::INJECT_ENABLED].into_iter().chain(names::PROTECTED_NAMESPACES)
    {
        assert!(text.contains(name), "{name}");
    }
}

#[test]
fn policies_are_for_their_own_role_and_need_no_more_than_to_be_read() {
    let all = rendered();
    let admin = find(&all, "ClusterRole", "squall-policy-admin");
    assert_eq!(strings(&admin["rules"][0]["resources"]), ["chaospolicies"]);
    assert!(admin["metadata"]["labels"].as_object().unwrap().keys().all(|key| !key.contains("aggregate")));
    for (name, writes) in [(names::CONTROLLER, true), (names::WEBHOOK, false)] {
        let role = find(&all, "ClusterRole", name);
        let verbs = |resource: &str| {
            let rules =
                list(&role["rules"]).iter().filter(|rule| strings(&rule["resources"]).contains(&resource));
            rules.flat_map(|rule| strings(&rule["verbs"])).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(verbs("chaospolicies"), ["get", "list", "watch"], "{name}");
        assert_eq!(!verbs("chaospolicies/status").is_empty(), writes, "{name}");
    }
}

#[test]
fn annotations_are_reviewed_before_the_pods_they_fail() {
    let mutating = find(&rendered(), "MutatingWebhookConfiguration", names::MUTATING_WEBHOOKS);
    let place =
        |name: &str| list(&mutating["webhooks"]).iter().position(|webhook| webhook["name"] == name).unwrap();
    assert!(place("annotations.mutate.squall.dev") < place("pods.mutate.squall.dev"));
    let (pods, annotations) = (
        by_name(&mutating["webhooks"], "pods.mutate.squall.dev"),
        by_name(&mutating["webhooks"], "annotations.mutate.squall.dev"),
    );
    assert_eq!(annotations["namespaceSelector"], pods["namespaceSelector"]);
    // Our own answer would look like a copy.
    assert_eq!(annotations["reinvocationPolicy"], "Never");
    let conditions = &annotations["matchConditions"];
    assert!(
        by_name(conditions, "not-squall")["expression"].as_str().unwrap().contains(names::CONTROLLER_USER)
    );
    let asked = by_name(conditions, "a-fault-is-asked-for")["expression"].as_str().unwrap();
    for key in names::SMALL_FAULTS.iter().chain(&[names::REQUESTED_BY]) {
        assert!(asked.contains(&format!("'{key}'")), "{key} is not in {asked}");
    }
}

#[test]
fn nobody_may_exec_nor_read_other_secrets_nor_everything() {
    for object in rendered() {
        let (kind, name) = (object["kind"].as_str().unwrap(), &object["metadata"]["name"]);
        for rule in list(&object["rules"]) {
            let (resources, verbs) = (strings(&rule["resources"]), strings(&rule["verbs"]));
            for words in [&resources, &verbs, &strings(&rule["apiGroups"])] {
                assert!(!words.contains(&"*"), "{kind} {name} has a star");
            }
            assert!(!resources.iter().any(|resource| resource.starts_with("pods/exec")), "{kind} {name}");
            if resources.contains(&"secrets") {
                assert_eq!(kind, "Role", "{name} reads the cluster's secrets");
                let named = strings(&rule["resourceNames"]);
                let ours = [names::CA_SECRET, names::WEBHOOK_TLS_SECRET];
                let reads = verbs.iter().any(|verb| *verb != "create");
                assert!(
                    !reads || (!named.is_empty() && named.iter().all(|name| ours.contains(name))),
                    "{name}"
                );
            }
        }
    }
}

/// Resources of each rule of a role, and the verbs.
type Rules = &'static [(&'static str, &'static str)];

/// What each role may do, kind of role and name first. Who adds a right here says in `deploy/rbac.yaml` what it is for.
///
/// A status that is replaced takes `update` on it, one that is patched `patch`. Nobody needs `finalizers`: what owns
/// others does not block its own deletion until they are gone (`blockOwnerDeletion`).
const RIGHTS: [(&str, &str, Rules); 4] = [
    (
        "ClusterRole",
        names::CONTROLLER,
        &[
            ("pods", "get list watch patch delete"),
            ("pods/eviction", "create"),
            ("namespaces nodes", "get list watch"),
            ("podchaos stresschaos", "get list watch create patch delete"),
            ("podchaos/status stresschaos/status", "update"),
            ("schedules", "get list watch"),
            ("schedules/status", "update"),
            ("chaospolicies", "get list watch"),
            ("chaospolicies/status", "patch"),
            ("poddisruptionbudgets", "get list watch"),
            ("services", "get"),
            ("deployments statefulsets daemonsets replicasets", "get list watch patch"),
            ("jobs", "get list watch"),
            ("events", "create patch"),
            ("tokenreviews", "create"),
            ("mutatingwebhookconfigurations validatingwebhookconfigurations", "get list watch patch"),
            ("customresourcedefinitions", "get list watch"),
        ],
    ),
    (
        "ClusterRole",
        names::WEBHOOK,
        &[
            ("podchaos stresschaos", "get list watch"),
            ("chaospolicies", "get list watch"),
            ("deployments statefulsets daemonsets replicasets", "list watch"),
            ("jobs", "list watch"),
            ("namespaces", "get list watch"),
            ("customresourcedefinitions", "get"),
            ("pods", "list"),
            ("subjectaccessreviews", "create"),
        ],
    ),
    (
        "Role",
        names::CONTROLLER,
        &[
            ("secrets", "get list watch update"),
            ("secrets", "delete"),
            ("configmaps", "get list watch update"),
            ("secrets configmaps", "create"),
            ("leases", "get list watch update"),
            ("leases", "create"),
        ],
    ),
    ("Role", names::WEBHOOK, &[("secrets", "get list watch")]),
];

#[test]
fn no_role_has_a_right_that_nobody_uses() {
    let all = rendered();
    for (kind, name, rights) in RIGHTS {
        let role = find(&all, kind, name);
        let given: Vec<_> = list(&role["rules"])
            .iter()
            .map(|rule| (strings(&rule["resources"]).join(" "), strings(&rule["verbs"]).join(" ")))
            .collect();
        let used: Vec<_> =
            rights.iter().map(|(resources, verbs)| ((*resources).to_owned(), (*verbs).to_owned())).collect();
        assert_eq!(given, used, "{kind} {name}");
    }
}

#[test]
fn the_names_in_the_roles_are_those_of_the_code() {
    let all = rendered();
    let role = find(&all, "Role", names::CONTROLLER);
    let named: Vec<_> =
        list(&role["rules"]).iter().flat_map(|rule| strings(&rule["resourceNames"])).collect();
    let tls = names::WEBHOOK_TLS_SECRET;
    assert_eq!(named, [names::CA_SECRET, tls, tls, names::CA_BUNDLE, names::LEASE]);
    let delete = |rule: &&Value| strings(&rule["verbs"]).contains(&"delete");
    let deleted: Vec<_> =
        list(&role["rules"]).iter().filter(delete).flat_map(|rule| strings(&rule["resourceNames"])).collect();
    assert_eq!(deleted, [tls], "the CA's key is never deleted");
    let role = find(&all, "Role", names::WEBHOOK);
    assert_eq!(strings(&role["rules"][0]["resourceNames"]), [names::WEBHOOK_TLS_SECRET]);
    for name in [names::CONTROLLER, names::WEBHOOK] {
        for kind in ["RoleBinding", "ClusterRoleBinding"] {
            let binding = find(&all, kind, name);
            assert_eq!(binding["roleRef"]["name"], name);
            assert_eq!(
                binding["subjects"],
                json!([{"kind": "ServiceAccount", "name": name, "namespace": names::NAMESPACE}])
            );
        }
    }
    // Which of our CRDs are on their way out is to be seen by both, and of no others.
    for name in [names::CONTROLLER, names::WEBHOOK] {
        let role = find(&all, "ClusterRole", name);
        let crds = |rule: &&Value| strings(&rule["resources"]) == ["customresourcedefinitions"];
        let rule = list(&role["rules"]).iter().find(crds).unwrap();
        assert_eq!(strings(&rule["resourceNames"]), names::CRDS, "{name}");
    }
    let account = find(&all, "ServiceAccount", names::CONTROLLER);
    let user = format!(
        "system:serviceaccount:{}:{}",
        names::NAMESPACE,
        account["metadata"]["name"].as_str().unwrap()
    );
    assert_eq!(user, names::CONTROLLER_USER);
}

#[test]
fn every_example_is_what_it_says_it_is() {
    let mut seen = 0;
    for entry in fs::read_dir(root().join("deploy/examples")).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("# "), "{}: no comment on what it does", path.display());
        for document in documents(&text) {
            seen += 1;
            if document["kind"] == "Pod" {
                assert_eq!(document["metadata"]["labels"][names::FAULT], names::POD_FAILURE);
                let keys = document["metadata"]["annotations"].as_object().unwrap();
                let known = [names::UNTIL, names::CONTAINERS, names::FAULT_STYLE];
                assert!(keys.keys().all(|key| known.contains(&key.as_str())), "{keys:?}");
                continue;
            }
            let read = match document["kind"].as_str() {
                Some("Schedule") => {
                    serde_json::from_value::<Schedule>(document.clone()).map(|read| json!(read))
                }
                Some("StressChaos") => {
                    serde_json::from_value::<StressChaos>(document.clone()).map(|read| json!(read))
                }
                Some("ChaosPolicy") => {
                    serde_json::from_value::<ChaosPolicy>(document.clone()).map(|read| json!(read))
                }
                _ => serde_json::from_value::<PodChaos>(document.clone()).map(|read| json!(read)),
            };
            let read = read.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let mut stray = Vec::new();
            lost(&document, &read, "", &mut stray);
            assert!(stray.is_empty(), "{}: {stray:?}", path.display());
        }
    }
    assert!(seen >= 8);
}

#[test]
fn the_record_is_not_written_with_a_status() {
    let all = rendered();
    let policy = find(&all, "ValidatingAdmissionPolicy", "squall-record");
    let binding = find(&all, "ValidatingAdmissionPolicyBinding", "squall-record");
    assert_eq!(binding["spec"]["policyName"], policy["metadata"]["name"]);
    assert_eq!(strings(&binding["spec"]["validationActions"]), ["Deny"]);
    assert_eq!(policy["spec"]["failurePolicy"], "Ignore", "it would hold up the kubelet");
    let rules = list(&policy["spec"]["matchConstraints"]["resourceRules"]);
    let covered: Vec<&str> = rules.iter().flat_map(|rule| strings(&rule["resources"])).collect();
    for resource in ["pods", "namespaces", "deployments", "statefulsets", "daemonsets", "replicasets"] {
        assert!(covered.contains(&format!("{resource}/status").as_str()), "{resource}");
    }
    let keys = by_name(&policy["spec"]["variables"], "keys")["expression"].as_str().unwrap().to_owned();
    let decide = [
        names::FAULT,
        names::ORIGINAL_IMAGES,
        names::HELD_BY,
        names::REQUESTED_BY,
        names::CONTAINERS,
        names::UNTIL,
        names::FAULT_STYLE,
        names::INJECT,
        names::PROTECT,
        names::HALT,
    ];
    for key in decide.into_iter().chain(names::SMALL_FAULTS) {
        assert!(keys.contains(&format!("'{key}'")), "{key} is not in {keys}");
    }
}

#[test]
fn neither_pressure_nor_a_drain_nor_a_node_of_another_kind_is_in_the_way() {
    let all = rendered();
    let spec = |kind: &str, name: &str| find(&all, kind, name)["spec"]["template"]["spec"].clone();
    let daemon = spec("DaemonSet", names::DAEMON);
    // The kubelet evicts it last, and lets it in while it evicts others.
    let class = "system-node-critical";
    assert_eq!(daemon["priorityClassName"], class);
    // Where that class is limited to namespaces with a quota for it, ours has one; it is there first.
    let quota = find(&all, "ResourceQuota", names::DAEMON);
    let scope = json!([{"scopeName": "PriorityClass", "operator": "In", "values": [class]}]);
    assert_eq!(quota["spec"]["scopeSelector"]["matchExpressions"], scope);
    assert_eq!(quota["spec"]["hard"], json!({"pods": "1G"}), "it is to limit nothing");
    let place = |kind: &str| all.iter().position(|object| object["kind"] == kind);
    assert!(place("ResourceQuota") < place("DaemonSet"));
    let nodes = &daemon["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let machines = json!([
        {"key": "type", "operator": "NotIn", "values": ["virtual-kubelet"]},
        {"key": "eks.amazonaws.com/compute-type", "operator": "NotIn", "values": ["fargate"]},
    ]);
    assert_eq!(nodes["nodeSelectorTerms"], json!([{"matchExpressions": machines}]));
    for pod in [daemon, spec("Deployment", names::CONTROLLER), spec("Deployment", names::WEBHOOK)] {
        assert_eq!(pod["nodeSelector"], json!({"kubernetes.io/os": "linux"}));
    }
    for name in [names::CONTROLLER, names::WEBHOOK] {
        let budget = find(&all, "PodDisruptionBudget", name);
        assert_eq!(budget["spec"]["maxUnavailable"], 1);
        assert_eq!(budget["spec"]["unhealthyPodEvictionPolicy"], "AlwaysAllow");
    }
}
