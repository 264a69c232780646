//! What everything looked like when a test failed, on standard error.

use crate::cluster::kubectl;

/// Pods, experiments and events of `namespaces`, and what Squall said last.
pub fn everything(namespaces: &[String]) {
    for namespace in namespaces {
        let get = |args: &[&str]| show(&[&["-n", namespace.as_str()], args].concat());
        get(&["get", "pods,deployments,statefulsets,jobs", "-o", "wide"]);
        get(&[
            "get",
            "pods",
            "-o",
            "jsonpath={range .items[*]}{.metadata.name}{\"\\t\"}{.metadata.labels}{\"\\t\"}{.metadata.annotations}{\"\\t\"}{.spec.initContainers[*].image} {.spec.containers[*].image}{\"\\n\"}{end}",
        ]);
        get(&["get", "podchaos", "-o", "yaml", "--show-managed-fields=false"]);
        get(&["get", "events", "--sort-by=.lastTimestamp"]);
    }
    show(&["-n", "squall-system", "get", "pods", "-o", "wide"]);
    for component in ["squall-controller", "squall-webhook", "squall-daemon"] {
        let selector = format!("app.kubernetes.io/name={component}");
        show(&["-n", "squall-system", "logs", "-l", &selector, "--tail=60", "--prefix", "--since=3m"]);
    }
}

fn show(args: &[&str]) {
    eprintln!("$ kubectl {}", args.join(" "));
    match kubectl(args) {
        Ok(ran) => eprintln!("{}", ran.text),
        Err(error) => eprintln!("{error:#}"),
    }
}
