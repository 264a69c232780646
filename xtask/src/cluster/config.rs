//! What the components read: addresses and configuration files, rendered. Pure: nothing is read or written here.

use std::path::Path;

use base64::{Engine as _, engine::general_purpose::STANDARD};

/// The node's name.
pub const NODE: &str = "node1";
/// The pods' bridge; this address is also the node's and the API server's.
pub const IP: &str = "10.244.0.1";
/// The pods' network.
pub const PODS: &str = "10.244.0.0/24";
/// The services' network.
pub const SERVICES: &str = "10.96.0.0/16";
/// The service `kubernetes`.
pub const API_SERVICE: &str = "10.96.0.1";
/// Where the forwarder first tries to listen on 127.0.0.1.
pub const PORT: u16 = 6443;
/// The sandbox's image: our own `pause`.
pub const SANDBOX_IMAGE: &str = "localhost/pause:1";
/// An image with a shell, for pods in tests and the demo: nothing can be pulled from outside.
pub const BUSYBOX_IMAGE: &str = "localhost/busybox:1";

/// Who connects, and how much the file itself carries.
pub enum Identity<'a> {
    /// By the paths of certificates, as components do.
    Paths(&'a str),
    /// With everything in the file, so that it can be copied: CA, certificate, key.
    Inline(&'a [u8], &'a [u8], &'a [u8]),
}

/// A kubeconfig (JSON is YAML) for one user.
pub fn kubeconfig(cluster: &str, server: &str, pki: &Path, identity: &Identity<'_>) -> String {
    let (user, authority, credentials) = match identity {
        Identity::Paths(user) => (
            *user,
            format!("certificate-authority: {}/ca.crt", pki.display()),
            format!("client-certificate: {0}/{user}.crt, client-key: {0}/{user}.key", pki.display()),
        ),
        Identity::Inline(ca, certificate, key) => (
            "admin",
            format!("certificate-authority-data: {}", STANDARD.encode(ca)),
            format!(
                "client-certificate-data: {}, client-key-data: {}",
                STANDARD.encode(certificate),
                STANDARD.encode(key)
            ),
        ),
    };
    format!(
        "apiVersion: v1
kind: Config
clusters: [{{name: {cluster}, cluster: {{server: \"{server}\", {authority}}}}}]
users: [{{name: {user}, user: {{{credentials}}}}}]
contexts: [{{name: {cluster}, context: {{cluster: {cluster}, user: {user}}}}}]
current-context: {cluster}
"
    )
}

/// containerd's configuration. Its root is in the state directory; the rest is at the usual paths on the node.
pub fn containerd(node: &Path, cni_plugins: &Path, snapshotter: &str) -> String {
    format!(
        r#"version = 2
root = "{node}/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{SANDBOX_IMAGE}"
  # Without CAP_SYS_RESOURCE runc dies on the -998 that is asked for.
  restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "{snapshotter}"
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{plugins}"
  conf_dir = "{node}/cni"
[plugins."io.containerd.internal.v1.opt"]
  path = "{node}/opt"
"#,
        node = node.display(),
        plugins = cni_plugins.display(),
    )
}

/// The pods' network: one bridge, and a route to the services.
pub fn cni() -> String {
    format!(
        r#"{{"cniVersion": "0.4.0", "name": "cni0", "plugins": [
  {{"type": "bridge", "bridge": "cni0", "hairpinMode": true, "ipam": {{"type": "host-local", "dataDir": "/run/netns/ipam",
   "ranges": [[{{"subnet": "{PODS}", "gateway": "{IP}"}}]], "routes": [{{"dst": "{SERVICES}"}}]}}}}]}}
"#
    )
}

/// The kubelet's configuration.
pub fn kubelet(pki: &Path, cgroup: &str, open_files: u64) -> String {
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: {IP}
authentication: {{anonymous: {{enabled: false}}, webhook: {{enabled: true}}, x509: {{clientCAFile: {pki}/ca.crt}}}}
authorization: {{mode: Webhook}}
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: /{cgroup}
failCgroupV1: false
failSwapOn: false
makeIPTablesUtilChains: false
protectKernelDefaults: true
resolvConf: \"\"
oomScoreAdj: 0
maxOpenFiles: {open_files}
volumePluginDir: /var/lib/kubelet/volume-plugins
imageGCHighThresholdPercent: 100
evictionHard: {{memory.available: 100Mi, nodefs.available: 1%, nodefs.inodesFree: 1%, imagefs.available: 1%}}
",
        pki = pki.display(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_administrators_kubeconfig_needs_no_other_file() {
        let identity = Identity::Inline(b"ca", b"certificate", b"key");
        let text = kubeconfig("squall-x", "https://127.0.0.1:6443", Path::new("/s/pki"), &identity);
        assert!(!text.contains("/s/pki"), "{text}");
        assert!(text.contains("certificate-authority-data: Y2E="), "{text}");
        assert!(text.contains("current-context: squall-x"), "{text}");
    }

    #[test]
    fn a_components_kubeconfig_names_its_own_certificate() {
        let text = kubeconfig(
            "squall-x",
            "https://10.244.0.1:6443",
            Path::new("/s/pki"),
            &Identity::Paths("kubelet"),
        );
        assert!(
            text.contains("client-certificate: /s/pki/kubelet.crt, client-key: /s/pki/kubelet.key"),
            "{text}"
        );
    }

    #[test]
    fn pods_go_below_the_clusters_own_cgroup() {
        assert!(
            kubelet(Path::new("/s/pki"), "kube-squall-x", 1024).contains("\ncgroupRoot: /kube-squall-x\n")
        );
    }

    #[test]
    fn the_cni_configuration_is_json() {
        serde_json::from_str::<serde_json::Value>(&cni()).unwrap();
    }
}
