//! Probes: parsed once, judged by what was seen. How anything is asked is the controller's to know.
//!
//! - [`Probe::parse`] says which addresses may be asked at all; [`is_forbidden`] which ones never, wherever a name
//!   leads to.
//! - [`Judge`] turns single observations into a verdict: so many failures in a row, or so long.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use squall_api::probe as api;

use crate::error::FieldError;
use crate::pod::PodView;
use crate::policy::Labels;
use crate::syntax;
use crate::time::{format_duration, parse_duration};

/// A valid probe.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    /// What it is called.
    pub name: String,
    /// What is looked at.
    pub kind: Kind,
}

/// What is looked at.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// Ready pods.
    Availability {
        /// `None`: each namespace of the policy by itself.
        namespace: Option<String>,
        /// Which pods.
        pods: Labels,
        /// The least that is well.
        least: Share,
        /// For how long it has to be less.
        lasting: Duration,
    },
    /// An answer over HTTP.
    Http {
        /// Where.
        of: Peer,
        /// The expected codes; empty means 200 to 299.
        expect: BTreeSet<u16>,
        /// How, and how often.
        asking: Asking,
    },
    /// A number of Prometheus.
    Prometheus {
        /// Where.
        address: Address,
        /// What.
        query: String,
        /// What is not well.
        threshold: Threshold,
        /// How, and how often.
        asking: Asking,
    },
    /// Nodes.
    Nodes {
        /// Which.
        selector: Labels,
        /// The conditions that are looked at.
        conditions: BTreeSet<String>,
        /// So many may be unwell.
        at_most: usize,
        /// For how long it has to be more.
        lasting: Duration,
    },
}

/// A number of pods, or a part of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// So many.
    Count(usize),
    /// So many percent.
    Percent(usize),
}

/// What is not well.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Threshold {
    /// More than this.
    Above(f64),
    /// Less than this.
    Below(f64),
}

/// How something is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asking {
    /// For how long an answer is waited for.
    pub timeout: Duration,
    /// How often.
    pub every: Duration,
    /// So many failures in a row count.
    pub failures: u32,
}

/// Who is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Whoever is at an address that an administrator wrote.
    Url(Address),
    /// A Service. Whoever asks looks up its own IP address: a Service that is but another name for something else would
    /// be a free address.
    Service {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The port, and the path with its query.
        port: u16,
        /// See `port`.
        path: String,
    },
}

/// Where something is asked, over plain HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// A name or an IP address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Path and query.
    pub path: String,
}

/// Where a probe is written.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// In a policy, by an administrator.
    Policy,
    /// In an experiment of this namespace that looks into those.
    Experiment {
        /// Its own namespace.
        own: &'a str,
        /// Where its targets are.
        namespaces: &'a BTreeSet<String>,
    },
}

/// The conditions of nodes that are known, and what they should be.
const CONDITIONS: [(&str, &str); 5] = [
    ("Ready", "True"),
    ("MemoryPressure", "False"),
    ("DiskPressure", "False"),
    ("PIDPressure", "False"),
    ("NetworkUnavailable", "False"),
];
const LONGEST_TIMEOUT: Duration = Duration::from_secs(30);

impl Probe {
    /// Parse the probe at `path`; every error at once.
    pub fn parse(path: &str, written: &api::Probe, place: Place<'_>) -> Result<Self, Vec<FieldError>> {
        let api::Probe { name, availability, http, prometheus, nodes } = written;
        let mut errors = Vec::new();
        let set = [availability.is_some(), http.is_some(), prometheus.is_some(), nodes.is_some()];
        let many = set.into_iter().filter(|set| *set).count();
        if many != 1 {
            let allowed = "exactly one of availability, http, prometheus and nodes is needed";
            return Err(vec![FieldError::new(path, format!("{many} of them"), allowed)]);
        }
        let mut context = Context { path, place, errors: &mut errors };
        let (kind, word) = if let Some(written) = availability {
            (context.availability(written), "availability")
        } else if let Some(written) = http {
            (context.http(written), "http")
        } else if let Some(written) = prometheus {
            (context.prometheus(written), "prometheus")
        } else if let Some(written) = nodes {
            (context.nodes(written), "nodes")
        } else {
            (None, "")
        };
        let name = name.clone().unwrap_or_else(|| format!("{}.{word}", path.trim_start_matches("spec.")));
        match kind {
            Some(kind) if errors.is_empty() => Ok(Self { name, kind }),
            Some(_) | None => Err(errors),
        }
    }

    /// How often it has to be asked; `None` where it follows from what is watched anyway.
    pub fn asking(&self) -> Option<Asking> {
        match &self.kind {
            Kind::Http { asking, .. } | Kind::Prometheus { asking, .. } => Some(*asking),
            Kind::Availability { .. } | Kind::Nodes { .. } => None,
        }
    }
}

/// A probe in the making.
struct Context<'a> {
    path: &'a str,
    place: Place<'a>,
    errors: &'a mut Vec<FieldError>,
}

impl Context<'_> {
    fn fail(&mut self, field: &str, found: impl std::fmt::Display, allowed: impl Into<String>) {
        self.errors.push(FieldError::new(format!("{}.{field}", self.path), found, allowed));
    }

    fn keep<T>(&mut self, result: Result<T, FieldError>) -> Option<T> {
        result.map_err(|error| self.errors.push(error)).ok()
    }

    fn lasting(&mut self, field: &str, written: Option<&String>, default: Duration) -> Duration {
        let Some(text) = written else { return default };
        let parsed = parse_duration(&format!("{}.{field}", self.path), text);
        self.keep(parsed).unwrap_or(default)
    }

    fn labels(&mut self, field: &str, written: &LabelSelector) -> Labels {
        Labels::parse(&format!("{}.{field}", self.path), written, self.errors)
    }

    /// The namespace of something that a probe looks at.
    fn namespace(&mut self, field: &str, written: Option<&String>) -> Option<String> {
        if let Some(Err(allowed)) = written.map(|name| syntax::dns_label(name)) {
            self.fail(field, written.cloned().unwrap_or_default(), allowed);
            return None;
        }
        match self.place {
            Place::Policy => written.cloned(),
            Place::Experiment { own, namespaces } => {
                let name = written.map_or(own, String::as_str);
                if !namespaces.contains(name) {
                    let all: Vec<&str> = namespaces.iter().map(String::as_str).collect();
                    let allowed =
                        format!("allowed are namespaces that the experiment looks into: {}", all.join(", "));
                    self.fail(field, name, allowed);
                }
                Some(name.to_owned())
            }
        }
    }

    fn availability(&mut self, written: &api::AvailabilityProbe) -> Option<Kind> {
        let api::AvailabilityProbe { namespace, pod_selector, below, lasting } = written;
        let namespace = self.namespace("availability.namespace", namespace.as_ref());
        let pods = self.labels("availability.podSelector", pod_selector);
        let least = match below {
            IntOrString::Int(count) => {
                usize::try_from(*count).ok().filter(|count| *count > 0).map(Share::Count)
            }
            IntOrString::String(text) => text
                .strip_suffix('%')
                .and_then(|percent| percent.parse().ok())
                .filter(|percent| (1..=100).contains(percent))
                .map(Share::Percent),
        };
        if least.is_none() {
            let found = match below {
                IntOrString::Int(count) => count.to_string(),
                IntOrString::String(text) => text.clone(),
            };
            self.fail("availability.below", found, "write a number of pods from 1 on, or \"1%\" to \"100%\"");
        }
        let lasting = self.lasting("availability.for", lasting.as_ref(), Duration::ZERO);
        Some(Kind::Availability { namespace, pods, least: least?, lasting })
    }

    fn http(&mut self, written: &api::HttpProbe) -> Option<Kind> {
        let api::HttpProbe { url, service, expect_status, timeout, every, failures } = written;
        let of = match (url, service, self.place) {
            (Some(url), None, Place::Policy) => {
                let parsed = parse_url(&format!("{}.http.url", self.path), url);
                self.keep(parsed).map(Peer::Url)
            }
            (Some(url), None, Place::Experiment { .. }) => {
                let allowed =
                    "an experiment names a Service (http.service); free addresses belong to a ChaosPolicy";
                self.fail("http.url", url, allowed);
                None
            }
            (None, Some(service), _) => self.service(service),
            (Some(_), Some(_), _) | (None, None, _) => {
                self.fail("http", "", "exactly one of url and service is needed");
                None
            }
        };
        let mut expect = BTreeSet::new();
        for code in expect_status {
            match u16::try_from(*code) {
                Ok(code @ 100..=599) => {
                    expect.insert(code);
                }
                Ok(_) | Err(_) => self.fail("http.expectStatus", code, "write status codes from 100 to 599"),
            }
        }
        let asking = self.asking("http", timeout.as_ref(), every.as_ref(), *failures, (5, 3));
        Some(Kind::Http { of: of?, expect, asking })
    }

    fn service(&mut self, written: &api::ServiceRef) -> Option<Peer> {
        let api::ServiceRef { namespace, name, port, path } = written;
        let namespace = self.namespace("http.service.namespace", namespace.as_ref());
        if namespace.is_none() && matches!(self.place, Place::Policy) {
            self.fail("http.service.namespace", "", "in a policy the namespace of the Service is needed");
        }
        if let Err(allowed) = syntax::dns_label(name) {
            self.fail("http.service.name", name, allowed);
        }
        let port = u16::try_from(port.unwrap_or(80)).ok().filter(|port| *port > 0);
        if port.is_none() {
            self.fail("http.service.port", written.port.unwrap_or_default(), "write a port from 1 to 65535");
        }
        let path = path.clone().unwrap_or_else(|| "/".to_owned());
        if !is_path(&path) {
            self.fail("http.service.path", &path, "write a path that begins with / and has no spaces");
        }
        Some(Peer::Service { namespace: namespace?, name: name.clone(), port: port?, path })
    }

    fn prometheus(&mut self, written: &api::PrometheusProbe) -> Option<Kind> {
        let api::PrometheusProbe { url, query, above, below, timeout, every, failures } = written;
        if !matches!(self.place, Place::Policy) {
            self.fail(
                "prometheus",
                url,
                "Prometheus is asked by a ChaosPolicy only: write it to haltWhen there",
            );
            return None;
        }
        let parsed = parse_url(&format!("{}.prometheus.url", self.path), url);
        let address = self.keep(parsed);
        let threshold = match (above, below) {
            (Some(above), None) if above.is_finite() => Some(Threshold::Above(*above)),
            (None, Some(below)) if below.is_finite() => Some(Threshold::Below(*below)),
            (Some(_) | None, Some(_) | None) => {
                self.fail("prometheus", "", "exactly one of above and below is needed, a finite number");
                None
            }
        };
        let asking = self.asking("prometheus", timeout.as_ref(), every.as_ref(), *failures, (15, 2));
        Some(Kind::Prometheus { address: address?, query: query.clone(), threshold: threshold?, asking })
    }

    fn nodes(&mut self, written: &api::NodesProbe) -> Option<Kind> {
        let api::NodesProbe { selector, conditions, at_most, lasting } = written;
        let selector = self.labels("nodes.selector", &selector.clone().unwrap_or_default());
        for condition in conditions {
            if !CONDITIONS.iter().any(|(known, _)| known == condition) {
                let known: Vec<&str> = CONDITIONS.iter().map(|(known, _)| *known).collect();
                self.fail("nodes.conditions", condition, format!("allowed are: {}", known.join(", ")));
            }
        }
        let conditions: BTreeSet<String> = if conditions.is_empty() {
            BTreeSet::from(["Ready".to_owned()])
        } else {
            conditions.iter().cloned().collect()
        };
        let lasting = self.lasting("nodes.for", lasting.as_ref(), Duration::ZERO);
        let at_most = usize::try_from(at_most.unwrap_or(0)).unwrap_or_default();
        Some(Kind::Nodes { selector, conditions, at_most, lasting })
    }

    fn asking(
        &mut self,
        kind: &str,
        timeout: Option<&String>,
        every: Option<&String>,
        failures: Option<i32>,
        (seconds, in_a_row): (u64, u32),
    ) -> Asking {
        let timeout = self.lasting(&format!("{kind}.timeout"), timeout, Duration::from_secs(2));
        if timeout > LONGEST_TIMEOUT {
            self.fail(&format!("{kind}.timeout"), format_duration(timeout), "write at most 30s");
        }
        let every = self.lasting(&format!("{kind}.every"), every, Duration::from_secs(seconds));
        if every < Duration::from_secs(1) {
            self.fail(&format!("{kind}.every"), format_duration(every), "write at least 1s");
        }
        let failures = failures.map_or(in_a_row, |failures| u32::try_from(failures).unwrap_or_default());
        if failures == 0 {
            self.fail(&format!("{kind}.failures"), failures, "write a number from 1 on");
        }
        Asking { timeout, every, failures }
    }
}

/// `http://HOST[:PORT][/PATH]`, and nothing that leads to ourselves or the node.
fn parse_url(field: &str, text: &str) -> Result<Address, FieldError> {
    let bad = |allowed: &str| FieldError::new(field, text, allowed);
    let rest = text
        .strip_prefix("http://")
        .ok_or_else(|| bad("write an address that begins with http:// (https is not asked)"))?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if authority.contains('@') || text.contains('#') {
        return Err(bad("an address has no user, password or fragment"));
    }
    let (host, port) = if let Some(bracketed) = authority.strip_prefix('[') {
        let (host, after) =
            bracketed.split_once(']').ok_or_else(|| bad("close the bracket of the IPv6 address"))?;
        host.parse::<std::net::Ipv6Addr>().map_err(|_| bad("write an IPv6 address in the brackets"))?;
        let port = match after {
            "" => None,
            after => Some(
                after.strip_prefix(':').ok_or_else(|| bad("after the bracket comes a colon and the port"))?,
            ),
        };
        (host, port)
    } else {
        match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    let port = match port {
        None => 80,
        Some(port) => {
            port.parse().ok().filter(|port| *port > 0).ok_or_else(|| bad("write a port from 1 to 65535"))?
        }
    };
    let address = host.parse::<IpAddr>();
    match address {
        Ok(address) if is_forbidden(address) => {
            return Err(bad("loopback, link-local and multicast addresses are never asked"));
        }
        Ok(_) => {}
        Err(_) if syntax::dns_subdomain(&host.to_ascii_lowercase()).is_err() => {
            return Err(bad("write the name of a host or its IP address"));
        }
        Err(_) if host.eq_ignore_ascii_case("localhost") => {
            return Err(bad("loopback addresses are never asked"));
        }
        Err(_) => {}
    }
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    if !is_path(&path) {
        return Err(bad("write a path without spaces; what isn't ASCII is written as %XX"));
    }
    Ok(Address { host: host.to_owned(), port, path })
}

fn is_path(path: &str) -> bool {
    path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic()) && !path.contains('#')
}

/// Addresses that no probe asks, whatever name led to them: the controller itself, its node, the cloud's metadata.
pub fn is_forbidden(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            v4.is_loopback()
                || v4.is_link_local()
                || v4.is_unspecified()
                || v4.is_broadcast()
                || v4.is_multicast()
                || v4.octets()[0] == 0
        }
        IpAddr::V6(v6) => {
            if let Some(v4) = v6.to_ipv4_mapped() {
                return is_forbidden(IpAddr::V4(v4));
            }
            v6.is_loopback() || v6.is_unspecified() || v6.is_multicast() || (v6.segments()[0] & 0xffc0) == 0xfe80
                // The metadata of one cloud.
                || v6.segments() == [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]
        }
    }
}

/// What was seen once, with the evidence: never what was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// As it should be.
    Well(String),
    /// Not so.
    Unwell(String),
}

/// What is to be thought of a probe.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Health {
    /// Not seen yet.
    #[default]
    Unknown,
    /// All is well.
    Healthy(String),
    /// It is not, and that counts.
    Unhealthy(String),
}

/// How the probes of an experiment stand together.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Steady {
    /// What is to be thought of them.
    pub health: Health,
    /// No later than this every one of them was last looked at with a result that counts.
    pub settled: Option<Timestamp>,
}

/// Turns what is seen of one probe into what is to be thought of it.
#[derive(Clone, Debug, Default)]
pub struct Judge {
    failures: u32,
    since: Option<Timestamp>,
    /// When it was last looked at with a result that counts: well, or unwell for so often or so long.
    pub settled: Option<Timestamp>,
    /// What is thought of it now.
    pub health: Health,
}

impl Judge {
    /// One that begins with what was thought of it before.
    pub fn of(health: Health) -> Self {
        Self { health, ..Self::default() }
    }

    /// It was looked at, at `now`. When to look again, if nothing changes and it may yet count.
    pub fn see(&mut self, probe: &Probe, seen: Seen, now: Timestamp) -> Option<Timestamp> {
        match seen {
            Seen::Well(evidence) => {
                *self =
                    Self { failures: 0, since: None, settled: Some(now), health: Health::Healthy(evidence) };
                None
            }
            Seen::Unwell(evidence) => {
                self.failures = self.failures.saturating_add(1);
                // What lies ahead was seen before the clock was set back: it counts anew, not in an hour.
                let since = self.since.map_or(now, |since| since.min(now));
                self.since = Some(since);
                let (counts, again) = match &probe.kind {
                    Kind::Http { asking, .. } | Kind::Prometheus { asking, .. } => {
                        (self.failures >= asking.failures, None)
                    }
                    Kind::Availability { lasting, .. } | Kind::Nodes { lasting, .. } => {
                        let due = SignedDuration::try_from(*lasting)
                            .ok()
                            .and_then(|lasting| since.checked_add(lasting).ok())
                            .unwrap_or(Timestamp::MAX);
                        (due <= now, Some(due))
                    }
                };
                if counts {
                    self.health = Health::Unhealthy(evidence);
                    self.settled = Some(now);
                    return None;
                }
                // Not long enough to count: what was thought of it before stays.
                again
            }
        }
    }
}

/// How an availability probe finds `pods` (of one namespace): `None` if none of them is selected.
pub fn availability<'a>(
    labels: &Labels,
    least: Share,
    pods: impl Iterator<Item = &'a PodView>,
    now: Timestamp,
) -> Option<Seen> {
    let live = pods.filter(|pod| {
        labels.matches(&pod.labels) && !pod.terminating && pod.phase != "Succeeded" && pod.phase != "Failed"
    });
    let (mut ready, mut all) = (0usize, 0usize);
    for pod in live {
        all += 1;
        ready += usize::from(pod.ready);
    }
    if all == 0 {
        return None;
    }
    let (well, wanted) = match least {
        Share::Count(count) => (ready >= count, format!("{count}")),
        Share::Percent(percent) => (ready * 100 >= percent * all, format!("{percent} %")),
    };
    let evidence = format!("{ready} of {all} pods Ready at {}, at least {wanted} wanted", second(now));
    Some(if well { Seen::Well(evidence) } else { Seen::Unwell(evidence) })
}

/// How an HTTP probe finds the answer's status code.
pub fn status_code(expect: &BTreeSet<u16>, code: u16, now: Timestamp) -> Seen {
    let well = if expect.is_empty() { (200..300).contains(&code) } else { expect.contains(&code) };
    let wanted = if expect.is_empty() {
        "200 to 299".to_owned()
    } else {
        expect.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    let evidence = format!("status {code} at {}, wanted {wanted}", second(now));
    if well { Seen::Well(evidence) } else { Seen::Unwell(evidence) }
}

/// How a Prometheus probe finds a number.
pub fn number(threshold: Threshold, value: f64, now: Timestamp) -> Seen {
    let (well, wanted) = match threshold {
        // A number that is none is not well.
        Threshold::Above(most) => (value <= most, format!("at most {most}")),
        Threshold::Below(least) => (value >= least, format!("at least {least}")),
    };
    let evidence = format!("{value} at {}, {wanted} wanted", second(now));
    if well { Seen::Well(evidence) } else { Seen::Unwell(evidence) }
}

/// A node as probes see it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct NodeHealth {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The conditions that are not as they should be.
    pub unwell: BTreeSet<String>,
}

impl NodeHealth {
    /// Of the conditions of a node, by type and status.
    pub fn of<'a>(
        labels: BTreeMap<String, String>,
        conditions: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> Self {
        let unwell = conditions
            .filter(|(kind, status)| {
                CONDITIONS.iter().any(|(known, wanted)| known == kind && wanted != status)
            })
            .map(|(kind, _)| kind.to_owned())
            .collect();
        Self { labels, unwell }
    }
}

/// How a probe of nodes finds them.
pub fn nodes<'a>(
    selector: &Labels,
    conditions: &BTreeSet<String>,
    at_most: usize,
    nodes: impl Iterator<Item = &'a NodeHealth>,
    now: Timestamp,
) -> Seen {
    let unwell =
        nodes.filter(|node| selector.matches(&node.labels) && !node.unwell.is_disjoint(conditions)).count();
    let all: Vec<&str> = conditions.iter().map(String::as_str).collect();
    let evidence =
        format!("{unwell} nodes unwell by {} at {}, at most {at_most} wanted", all.join(", "), second(now));
    if unwell <= at_most { Seen::Well(evidence) } else { Seen::Unwell(evidence) }
}

/// What kept anything from being seen.
pub fn unanswered(why: &str, now: Timestamp) -> Seen {
    Seen::Unwell(format!("{why} at {}", second(now)))
}

fn second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("http://web.shop.svc:8080/healthz?deep=1", "web.shop.svc", 8080, "/healthz?deep=1")]
    #[case("http://10.0.0.7", "10.0.0.7", 80, "/")]
    #[case("http://[2001:db8::1]:9090/a", "2001:db8::1", 9090, "/a")]
    #[case("http://h?x=1", "h", 80, "/?x=1")]
    fn addresses_are_taken_apart(
        #[case] url: &str,
        #[case] host: &str,
        #[case] port: u16,
        #[case] path: &str,
    ) {
        let expected = Address { host: host.into(), port, path: path.into() };
        assert_eq!(parse_url("f", url), Ok(expected));
    }

    #[rstest]
    #[case("https://web")]
    #[case("file:///etc/passwd")]
    #[case("http://")]
    #[case("http://localhost/")]
    #[case("http://127.0.0.1/")]
    #[case("http://127.1.2.3:8080/")]
    #[case("http://[::1]/")]
    #[case("http://[::ffff:127.0.0.1]/")]
    #[case("http://169.254.169.254/latest/meta-data")]
    #[case("http://[fe80::1]/")]
    #[case("http://0.0.0.0/")]
    #[case("http://user:secret@web/")]
    #[case("http://web:0/")]
    #[case("http://web:99999/")]
    #[case("http://web/a b")]
    #[case("http://web/\r\nHost: other")]
    #[case("http://we b/")]
    fn what_must_not_be_asked_is_refused(#[case] url: &str) {
        assert_eq!(
            parse_url("spec.haltWhen[0].http.url", url).unwrap_err().field,
            "spec.haltWhen[0].http.url"
        );
    }

    fn service(namespace: Option<&str>) -> api::Probe {
        let service = api::ServiceRef {
            namespace: namespace.map(Into::into),
            name: "web".into(),
            ..Default::default()
        };
        api::Probe {
            http: Some(api::HttpProbe { service: Some(service), ..Default::default() }),
            ..Default::default()
        }
    }

    #[test]
    fn an_experiment_asks_services_where_its_targets_are_and_nothing_else() {
        let namespaces = BTreeSet::from(["shop".to_owned()]);
        let place = Place::Experiment { own: "shop", namespaces: &namespaces };
        let probe = Probe::parse("spec.steadyState[0]", &service(None), place).unwrap();
        let Kind::Http { of: Peer::Service { namespace, name, port, path }, .. } = &probe.kind else {
            panic!("{probe:?}")
        };
        assert_eq!((namespace.as_str(), name.as_str(), *port, path.as_str()), ("shop", "web", 80, "/"));
        let errors = Probe::parse("spec.steadyState[0]", &service(Some("bank")), place).unwrap_err();
        assert_eq!(errors[0].field, "spec.steadyState[0].http.service.namespace");
        let free = api::Probe {
            http: Some(api::HttpProbe { url: Some("http://web.shop.svc".into()), ..Default::default() }),
            ..Default::default()
        };
        let errors = Probe::parse("spec.steadyState[0]", &free, place).unwrap_err();
        assert_eq!(errors[0].field, "spec.steadyState[0].http.url");
        assert!(Probe::parse("spec.haltWhen[0]", &free, Place::Policy).is_ok());
    }

    #[test]
    fn so_many_failures_in_a_row_and_one_success_begins_anew() {
        let probe = Probe::parse("p", &service(Some("shop")), Place::Policy).unwrap();
        let mut judge = Judge::default();
        let now = Timestamp::UNIX_EPOCH;
        for (seen, unhealthy) in [
            (500, false),
            (500, false),
            (200, false),
            (500, false),
            (503, false),
            (500, true),
            (500, true),
            (200, false),
        ] {
            judge.see(&probe, status_code(&BTreeSet::new(), seen, now), now);
            assert_eq!(matches!(judge.health, Health::Unhealthy(_)), unhealthy, "{seen}: {:?}", judge.health);
        }
    }

    #[test]
    fn too_few_pods_count_after_a_while() {
        let written = api::Probe {
            availability: Some(api::AvailabilityProbe {
                namespace: Some("shop".into()),
                below: IntOrString::String("50%".into()),
                lasting: Some("10s".into()),
                ..Default::default()
            }),
            ..Default::default()
        };
        let probe = Probe::parse("p", &written, Place::Policy).unwrap();
        let Kind::Availability { pods: labels, least, .. } = &probe.kind else { panic!() };
        let pods: Vec<PodView> =
            [true, false, false].map(|ready| PodView { ready, ..PodView::default() }).to_vec();
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let seen = |now| availability(labels, *least, pods.iter(), now).unwrap();
        let mut judge = Judge::default();
        assert_eq!(judge.see(&probe, seen(at(100)), at(100)), Some(at(110)));
        assert_eq!(judge.health, Health::Unknown);
        judge.see(&probe, seen(at(109)), at(109));
        assert_eq!(judge.health, Health::Unknown);
        judge.see(&probe, seen(at(110)), at(110));
        assert!(matches!(&judge.health, Health::Unhealthy(why) if why.starts_with("1 of 3 pods Ready at")));
        assert_eq!(availability(labels, *least, [].iter(), at(0)), None);
    }

    /// Looked at every second, what is unwell counts after `lasting` seconds, and so it does after each time that the
    /// clock was set back: never later.
    #[rstest]
    #[case::an_hour_back(&[-3600])]
    #[case::twice(&[-3600, -1])]
    #[case::forth_and_back(&[3, -3])]
    #[case::a_day_ahead(&[86_400])]
    fn a_clock_that_jumps_blinds_no_probe(#[case] jumps: &[i64]) {
        let lasting = 10;
        let written = api::Probe {
            nodes: Some(api::NodesProbe { lasting: Some(format!("{lasting}s")), ..Default::default() }),
            ..Default::default()
        };
        let probe = Probe::parse("p", &written, Place::Policy).unwrap();
        let (mut judge, mut clock, mut jumps) = (Judge::default(), 1_000_000, jumps.iter());
        let most = lasting * (1 + i64::try_from(jumps.len()).unwrap());
        for second in 0..=most {
            let now = Timestamp::from_second(clock).unwrap();
            judge.see(&probe, Seen::Unwell("1 node unwell".into()), now);
            if matches!(judge.health, Health::Unhealthy(_)) {
                return;
            }
            clock += 1 + if second % 4 == 3 { jumps.next().copied().unwrap_or_default() } else { 0 };
        }
        panic!("blind for {most} s: {judge:?}");
    }

    #[rstest]
    #[case(Threshold::Above(0.05), 0.05, true)]
    #[case(Threshold::Above(0.05), 0.06, false)]
    #[case(Threshold::Below(10.0), 9.0, false)]
    #[case(Threshold::Above(1.0), f64::NAN, false)]
    #[case(Threshold::Below(1.0), f64::NAN, false)]
    fn thresholds(#[case] threshold: Threshold, #[case] value: f64, #[case] well: bool) {
        assert_eq!(matches!(number(threshold, value, Timestamp::UNIX_EPOCH), Seen::Well(_)), well);
    }
}
