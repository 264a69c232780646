//! The controller: wires its parts, and nothing else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Parser;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};
use squall_api::{PodChaos, StressChaos, names};
use squall_controller::chaos::Chaos;
use squall_controller::lease::{Election, Leadership};
use squall_controller::{apply, ca, client, enrol, health, leader, metrics, nodes, observe, sink, tell};
use squall_model::substitute::FaultImages;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing_subscriber::EnvFilter;

/// Squall's controller: selects targets, deletes and fails pods, orders daemons, and reports.
#[derive(Parser)]
#[command(version)]
struct Options {
    /// The image that stands in for a container under pod-failure and sleeps.
    #[arg(long, env = names::ENV_PAUSE_IMAGE)]
    pause_image: String,
    /// The image that stands in for a container under pod-failure and exits at once.
    #[arg(long, env = names::ENV_CRASH_IMAGE)]
    crash_image: String,
    /// This replica's name in the leader election: its pod's.
    #[arg(long, env = "POD_NAME")]
    pod_name: String,
    /// Days that a CA is good for; it is rotated when two thirds of them are over.
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    ca_days: u32,
    /// Where everything that is told as an Event is sent too, as a CloudEvent: http://HOST[:PORT][/PATH].
    #[arg(long, env = names::ENV_EVENTS_SINK)]
    events_sink: Option<sink::Address>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = Options::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,kube_client=off")),
        )
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    // A task that died would leave a controller that looks alive and does half of its work.
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        told(panic);
        std::process::abort();
    }));
    run(options).await
}

async fn run(options: Options) -> Result<()> {
    let client = client::client().await?;
    let images = FaultImages { pause: options.pause_image, crash: options.crash_image };
    let figures = Arc::new(metrics::Metrics::new());

    let election = Election::start(client.clone(), options.pod_name.clone());
    let leadership = election.leadership.clone();
    let settings = ca::Settings {
        ca_life: std::time::Duration::from_secs(u64::from(options.ca_days) * 24 * 3600),
        ..ca::Settings::default()
    };
    let identity = ca::keep::start(client.clone(), leadership.clone(), settings);
    let reviewer = Arc::new(enrol::ApiReviewer::new(client.clone()));
    // A node may have no IPv6 at all.
    let address = match std::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)) {
        Ok(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        Err(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
    };
    let everywhere = |port| SocketAddr::from((address, port));
    let enrolment = enrol::serve(everywhere(names::ENROLMENT_PORT), identity.clone(), reviewer);

    let router = leader::Router::default();
    let (changes, mut changed) = mpsc::unbounded_channel();
    let observer = observe::Observer::start(&client, changes);
    let (reports, mut reported) = mpsc::unbounded_channel();
    let daemons = nodes::Nodes::start(client.clone(), identity.clone(), leadership.clone(), reports);
    let routing = {
        let router = router.clone();
        async move {
            loop {
                tokio::select! {
                    Some(change) = changed.recv() => router.change(change),
                    Some(event) = reported.recv() => router.node(event),
                    else => return,
                }
            }
        }
    };

    let checks = health::Checks::new()
        .add("certificates", {
            let identity = identity.clone();
            move || {
                identity
                    .borrow()
                    .as_ref()
                    .map(|_| ())
                    .ok_or_else(|| "waiting for the leader to make a CA".to_owned())
            }
        })
        .add("caches", {
            let observer = observer.clone();
            move || {
                if observer.is_synced() {
                    Ok(())
                } else {
                    Err("waiting for the first listing of pods".to_owned())
                }
            }
        });
    let health = health::serve(everywhere(names::HEALTH_PORT), checks, figures.clone());

    let (observer_of_the_end, api) = (observer.clone(), client.clone());
    let parts = leader::Parts {
        teller: {
            let sink = options.events_sink;
            let sink = sink.map(|address| sink::Sink::start(address, &options.pod_name, figures.clone()));
            tell::Teller::start(client.clone(), options.pod_name, sink)
        },
        applier: apply::Applier::new(client.clone(), images),
        client,
        observer,
        nodes: daemons,
        metrics: figures.clone(),
    };
    let terms = async {
        let mut leadership = leadership;
        loop {
            let term = *leadership.borrow_and_update();
            figures.leader(matches!(term, Leadership::Leader { .. }));
            match term {
                Leadership::Follower => {
                    if leadership.changed().await.is_err() {
                        return;
                    }
                }
                Leadership::Leader { term } => {
                    tracing::info!(term, "leading");
                    tokio::select! {
                        () = leader::lead(parts.clone(), router.clone()) => {}
                        changed = leadership.changed() => if changed.is_err() { return },
                    }
                    tracing::info!(term, "no longer leading");
                }
            }
        }
    };

    let mut terminated = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupted = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    tokio::select! {
        result = enrolment => result.context("serving enrolments")?,
        never = health => match never.context("serving health and metrics")? {},
        () = routing => {}
        () = terms => {}
        () = async { terminated.recv().await; farewell(&observer_of_the_end, &api).await } => {}
        _ = interrupted.recv() => tracing::info!("told to stop"),
    }
    election.release().await;
    Ok(())
}

/// Stop at once; but where Squall itself is being removed, put everything back first, for as long as a pod is given.
async fn farewell(observer: &observe::Observer, client: &Client) {
    tracing::info!("told to stop");
    let until = Instant::now() + Duration::from_secs(25);
    while observer.read().is_leaving() && Instant::now() < until {
        let held = observer.read().all_held().count();
        let waiting = waiting::<PodChaos>(client).await + waiting::<StressChaos>(client).await;
        if held == 0 && waiting == 0 {
            return;
        }
        tracing::info!(held, waiting, "Squall is being removed; putting everything back first");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// How many experiments of a kind still have our finalizer.
async fn waiting<K: Chaos>(client: &Client) -> usize {
    let experiments = Api::<K>::all(client.clone()).list_metadata(&ListParams::default()).await;
    let ours = |names: &[String]| names.iter().any(|name| name == names::FINALIZER);
    experiments.map_or(0, |list| list.iter().filter(|chaos| ours(chaos.finalizers())).count())
}
