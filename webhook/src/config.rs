//! Flags and environment, parsed once.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use clap::Parser;
use squall_api::names;
use squall_model::time::parse_duration;

/// Squall's admission webhook.
#[derive(Clone, Debug, Parser)]
#[command(name = "squall-webhook", version)]
pub struct Config {
    /// The image that stands in and sleeps.
    #[arg(long, env = names::ENV_PAUSE_IMAGE, value_parser = image)]
    pub pause_image: String,
    /// The image that stands in and exits with 1 at once.
    #[arg(long, env = names::ENV_CRASH_IMAGE, value_parser = image)]
    pub crash_image: String,
    /// When a fault by label ends that doesn't say so itself; 0 means never.
    #[arg(long, env = "SQUALL_MANUAL_LIMIT", default_value = "1h", value_parser = limit)]
    pub manual_limit: Duration,
    /// Where to listen.
    #[arg(long, default_value_t = IpAddr::V6(Ipv6Addr::UNSPECIFIED))]
    pub address: IpAddr,
    /// Port for the API server (TLS).
    #[arg(long, default_value_t = names::WEBHOOK_PORT)]
    pub port: u16,
    /// Port for health and metrics (plain HTTP).
    #[arg(long, default_value_t = names::HEALTH_PORT)]
    pub health_port: u16,
    /// The namespace with the Secret that holds the certificate.
    #[arg(long, env = "POD_NAMESPACE", default_value = names::NAMESPACE)]
    pub namespace: String,
    /// What is logged, as tracing's filters say it.
    #[arg(long, env = "SQUALL_LOG", default_value = "info")]
    pub log: String,
    /// For how long we still answer after being told to leave, until nobody sends us anything any more.
    #[arg(long, default_value = "3s", value_parser = limit)]
    pub lame_duck: Duration,
}

fn limit(text: &str) -> Result<Duration, String> {
    if text.trim_end_matches(['s', 'm', 'h']) == "0" {
        return Ok(Duration::ZERO);
    }
    parse_duration("the duration", text).map_err(|error| error.to_string())
}

fn image(text: &str) -> Result<String, String> {
    if text.trim().is_empty() { Err("an image is needed".to_owned()) } else { Ok(text.trim().to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_are_consistent() {
        use clap::CommandFactory;
        Config::command().debug_assert();
    }

    #[test]
    fn zero_means_never() {
        for text in ["0", "0s", "0h"] {
            assert_eq!(limit(text), Ok(Duration::ZERO));
        }
        assert_eq!(limit("90m"), Ok(Duration::from_secs(5400)));
        assert!(limit("soon").is_err());
    }
}
