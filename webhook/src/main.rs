//! The webhook's process: flags in, parts wired, and an orderly end.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use clap::Parser;
use squall_model::substitute::FaultImages;
use squall_webhook::config::Config;
use squall_webhook::health::{self, Health};
use squall_webhook::tls::Certificates;
use squall_webhook::world::World;
use squall_webhook::{app, metrics::Metrics, pods::Pods, serve, watch};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tracing_subscriber::EnvFilter;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let config = Config::parse();
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_current_span(true)
        .with_span_list(false)
        .with_env_filter(EnvFilter::try_new(&config.log).context("--log")?)
        .init();
    // Somebody may have installed one before; it would be the same.
    let _ = rustls::crypto::ring::default_provider().install_default();

    let client = kube::Client::try_default().await.context("no way to the API server")?;
    let (world, certificates, metrics) =
        (Arc::new(World::default()), Arc::new(Certificates::default()), Arc::new(Metrics::default()));
    let health = Arc::new(Health {
        world: world.clone(),
        certificates: certificates.clone(),
        leaving: AtomicBool::new(false),
        metrics: metrics.clone(),
    });
    let reviews = app::router(app::App {
        pods: Pods {
            images: FaultImages { pause: config.pause_image, crash: config.crash_image },
            manual_limit: config.manual_limit,
        },
        world: world.clone(),
        client: client.clone(),
        metrics,
    });

    let listener = listen(config.address, config.port).await?;
    let health_listener = listen(config.address, config.health_port).await?;
    let tls = certificates.clone().server_config()?;
    let mut terminate = signal(SignalKind::terminate()).context("can't hear SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("can't hear SIGINT")?;
    tracing::info!(port = config.port, health_port = config.health_port, "up");

    let (stop, stopped) = oneshot::channel::<()>();
    let mut server = tokio::spawn(serve::serve(listener, tls, reviews, serve::PEER, async {
        let _ = stopped.await;
    }));
    tokio::select! {
        () = watch::world(client.clone(), world) => anyhow::bail!("the watches ended"),
        () = watch::certificate(client, &config.namespace, certificates) => anyhow::bail!("the watch of the certificate ended"),
        never = squall_health::serve(health_listener, health::router(health.clone())) => match never {},
        _ = &mut server => anyhow::bail!("the server ended"),
        () = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("told to leave");
            health.leaving.store(true, Ordering::Relaxed);
            // Until every API server has heard that we are going, it still sends us reviews.
            tokio::time::sleep(config.lame_duck).await;
        } => {}
    }
    let _ = stop.send(());
    server.await.context("the server broke")?;
    tracing::info!("gone");
    Ok(())
}

/// Both families where there are both.
async fn listen(address: IpAddr, port: u16) -> anyhow::Result<TcpListener> {
    match TcpListener::bind((address, port)).await {
        Ok(listener) => Ok(listener),
        Err(error)
            if address == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
                && error.kind() != std::io::ErrorKind::AddrInUse =>
        {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
                .await
                .with_context(|| format!("can't listen on port {port}"))
        }
        Err(error) => Err(error).with_context(|| format!("can't listen on {address} port {port}")),
    }
}
