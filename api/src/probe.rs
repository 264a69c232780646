//! Probes: what has to hold while something is hit. In a policy as `haltWhen`, in an experiment as `steadyState`.
//! And what becomes of an experiment when it doesn't.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One thing that is looked at before, during and after; exactly one of its kinds is set.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.availability), has(self.http), has(self.prometheus), has(self.nodes)].filter(set, set).size() == 1")
        .message("exactly one of availability, http, prometheus and nodes is needed")
)]
pub struct Probe {
    /// What it is called in messages. Unset: by its kind and place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub name: Option<String>,
    /// Ready pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub availability: Option<AvailabilityProbe>,
    /// An answer over HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpProbe>,
    /// A number from Prometheus.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prometheus: Option<PrometheusProbe>,
    /// The state of nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodesProbe>,
}

/// Unhealthy when fewer than `below` of the selected pods are Ready for as long as `for`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AvailabilityProbe {
    /// The pods' namespace. Unset: in a policy each of its namespaces by itself, in an experiment its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub namespace: Option<String>,
    /// Which pods.
    pub pod_selector: LabelSelector,
    /// A number of pods, or a percentage of them such as `"50%"`.
    pub below: IntOrString,
    /// For how long before it counts. Unset: at once.
    #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub lasting: Option<String>,
}

/// Unhealthy when `failures` requests in a row are not answered as expected. Redirects are not followed, addresses
/// of the loopback and link-local ones are not asked, and at most 64 KiB of an answer are read.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.url) != has(self.service)").message("exactly one of url and service is needed")
)]
pub struct HttpProbe {
    /// The address, `http://…`; in a policy only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub url: Option<String>,
    /// A Service in the cluster, over plain HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceRef>,
    /// The status codes that are expected. Unset: 200 to 299.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20), inner(range(min = 100, max = 599)))]
    pub expect_status: Vec<i32>,
    /// For how long an answer is waited for. Unset: 2s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub timeout: Option<String>,
    /// How often it is asked. Unset: 5s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub every: Option<String>,
    /// After how many failures in a row it counts. Unset: 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub failures: Option<i32>,
}

/// A port of a Service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRef {
    /// Its namespace. Unset: the experiment's own; in a policy it is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub namespace: Option<String>,
    /// Its name.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// The Service's port. Unset: 80.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
    /// The path. Unset: `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub path: Option<String>,
}

/// Unhealthy when the query's number is above or below a threshold, `failures` times in a row; in a policy only. No
/// number at all, or no answer, counts as well.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.above) != has(self.below)").message("exactly one of above and below is needed")
)]
pub struct PrometheusProbe {
    /// Where Prometheus is, such as `http://prometheus.monitoring.svc:9090`.
    #[schemars(length(min = 1, max = 2048))]
    pub url: String,
    /// The query; it gives one number, or one time series.
    #[schemars(length(min = 1, max = 4096))]
    pub query: String,
    /// Unhealthy above this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub above: Option<f64>,
    /// Unhealthy below this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub below: Option<f64>,
    /// For how long an answer is waited for. Unset: 2s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub timeout: Option<String>,
    /// How often it is asked. Unset: 15s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub every: Option<String>,
    /// After how many failures in a row it counts. Unset: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub failures: Option<i32>,
}

/// Unhealthy when more than `atMost` of the selected nodes have a condition that they should not have.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodesProbe {
    /// Which nodes, by their labels. Unset: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
    /// The conditions that are looked at: `Ready` (should be True), or `MemoryPressure`, `DiskPressure`,
    /// `PIDPressure`, `NetworkUnavailable` (should not). Unset: `Ready`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub conditions: Vec<String>,
    /// So many may. Unset: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 5000))]
    pub at_most: Option<i32>,
    /// For how long before it counts. Unset: at once.
    #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub lasting: Option<String>,
}

/// What becomes of the experiment when it is halted. `end`: it is over. `resume`: what lasts is recovered, and injected
/// again when the halt is lifted. Unset: `end`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnHalt {
    /// It is over.
    #[default]
    End,
    /// What lasts is recovered, and injected again when the halt is lifted.
    Resume,
}
