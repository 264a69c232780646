//! The components' command lines. Pure: nothing is started here.

use std::path::Path;

use super::config::{IP, NODE, PODS, SERVICES};

/// Components in the order in which they are started; each is also the name of its log.
pub const ALL: [&str; 8] = [
    "forward",
    "etcd",
    "kube-apiserver",
    "containerd",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
];

/// Programs that are links to the one Go program.
pub const LINKS: [&str; 7] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "kubelet",
    "kubectl",
];

/// The words that start this one, on the node; all paths are below the state directory.
pub fn words(component: &str, cluster: &str, state: &Path) -> Vec<String> {
    let s = state.display();
    let p = format!("{s}/pki");
    let client = || {
        let conf = format!("{s}/{component}.conf");
        vec![
            format!("--kubeconfig={conf}"),
            format!("--authentication-kubeconfig={conf}"),
            format!("--authorization-kubeconfig={conf}"),
            "--bind-address=127.0.0.1".to_owned(),
            "--leader-elect=false".to_owned(),
            // With the usual limits pods are made at 20 a second.
            "--kube-api-qps=1000".to_owned(),
            "--kube-api-burst=2000".to_owned(),
        ]
    };
    let flags: Vec<String> = match component {
        "etcd" => vec![
            format!("--name={cluster}"),
            format!("--data-dir={s}/etcd"),
            // The cluster is thrown away after a crash of the machine anyway.
            "--unsafe-no-fsync".to_owned(),
            "--log-level=warn".to_owned(),
            "--listen-client-urls=http://127.0.0.1:2379".to_owned(),
            "--advertise-client-urls=http://127.0.0.1:2379".to_owned(),
            "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
            "--initial-advertise-peer-urls=http://127.0.0.1:2380".to_owned(),
            format!("--initial-cluster={cluster}=http://127.0.0.1:2380"),
        ],
        "kube-apiserver" => vec![
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            format!("--bind-address={IP}"),
            format!("--advertise-address={IP}"),
            format!("--service-cluster-ip-range={SERVICES}"),
            "--allow-privileged=true".to_owned(),
            format!("--tls-cert-file={p}/kube-apiserver.crt"),
            format!("--tls-private-key-file={p}/kube-apiserver.key"),
            format!("--client-ca-file={p}/ca.crt"),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
            format!("--service-account-key-file={p}/sa.pub"),
            format!("--service-account-signing-key-file={p}/sa.key"),
            format!("--kubelet-client-certificate={p}/admin.crt"),
            format!("--kubelet-client-key={p}/admin.key"),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
            format!("--requestheader-client-ca-file={p}/ca.crt"),
            "--requestheader-allowed-names=front-proxy".to_owned(),
            "--requestheader-username-headers=X-Remote-User".to_owned(),
            "--requestheader-group-headers=X-Remote-Group".to_owned(),
            "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
            format!("--proxy-client-cert-file={p}/front-proxy.crt"),
            format!("--proxy-client-key-file={p}/front-proxy.key"),
        ],
        "kube-controller-manager" => {
            let mut flags = client();
            flags.extend([
                "--use-service-account-credentials".to_owned(),
                format!("--service-account-private-key-file={p}/sa.key"),
                format!("--root-ca-file={p}/ca.crt"),
                format!("--cluster-signing-cert-file={p}/ca.crt"),
                format!("--cluster-signing-key-file={p}/ca.key"),
            ]);
            flags
        }
        "kube-scheduler" => client(),
        "kubelet" => vec![
            format!("--config={s}/kubelet.yaml"),
            format!("--kubeconfig={s}/kubelet.conf"),
            format!("--hostname-override={NODE}"),
            format!("--node-ip={IP}"),
        ],
        "kube-proxy" => vec![
            format!("--kubeconfig={s}/kube-proxy.conf"),
            format!("--hostname-override={NODE}"),
            format!("--bind-address={IP}"),
            format!("--cluster-cidr={PODS}"),
            "--proxy-mode=nftables".to_owned(),
            "--healthz-bind-address=127.0.0.1".to_owned(),
            "--metrics-bind-address=127.0.0.1".to_owned(),
            "--oom-score-adj=0".to_owned(),
            // Zero means: leave the kernel's own values alone.
            "--conntrack-max-per-core=0".to_owned(),
            "--conntrack-tcp-timeout-established=0".to_owned(),
            "--conntrack-tcp-timeout-close-wait=0".to_owned(),
        ],
        "containerd" => {
            return vec!["containerd".to_owned(), "-c".to_owned(), format!("{s}/containerd.toml")];
        }
        other => unreachable!("no component is called {other}"),
    };
    std::iter::once(format!("{s}/bin/{component}")).chain(flags).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_carries_the_state_directory_by_which_it_is_known() {
        for component in ALL.into_iter().filter(|component| *component != "forward") {
            let words = words(component, "squall-x", Path::new("/var/lib/squall-x"));
            assert!(words.iter().any(|word| word.contains("/var/lib/squall-x/")), "{component}: {words:?}");
        }
    }

    #[test]
    fn clients_that_make_pods_are_not_throttled() {
        for component in ["kube-controller-manager", "kube-scheduler"] {
            let words = words(component, "squall-x", Path::new("/s"));
            assert!(words.contains(&"--kube-api-qps=1000".to_owned()), "{component}: {words:?}");
        }
    }
}
