//! What the daemon found on its node: which runtimes answer, whether eBPF works, how cgroups are mounted.
//! It finds out and tells; it changes nothing.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use squall_api::grpc;

use crate::{
    kill::Tools,
    privileges::{self, Privilege},
    runtime::RuntimeError,
};

/// A runtime that hangs does not hold up those who ask; they get what was known before.
const PATIENCE: Duration = Duration::from_millis(300);

/// The last that was found.
pub struct Readiness {
    tools: Tools,
    ebpf_error: String,
    runtimes: Mutex<Vec<grpc::RuntimeReadiness>>,
}

impl Readiness {
    /// Looks at everything.
    pub async fn find(tools: Tools) -> Arc<Self> {
        let engine = Arc::clone(&tools.engine);
        let ebpf_error = match tokio::task::spawn_blocking(move || engine.probe()).await {
            Ok(Ok(())) => String::new(),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        let lacks = privileges::missing(tools.cgroups.proc()).unwrap_or_default();
        let of_ebpf = |privilege: &Privilege| match privilege {
            Privilege::Kill | Privilege::SysPtrace | Privilege::SysAdmin => false,
            Privilege::Bpf | Privilege::Perfmon => true,
        };
        for privilege in &lacks {
            tracing::warn!("{privilege}");
        }
        let ebpf_error = match lacks.into_iter().find(of_ebpf) {
            Some(privilege) if !ebpf_error.is_empty() => format!("{privilege} ({ebpf_error})"),
            Some(_) | None => ebpf_error,
        };
        if !ebpf_error.is_empty() {
            tracing::warn!(error = ebpf_error, "eBPF does not work here: kills go through pidfds alone");
        }
        let found = Arc::new(Self { tools, ebpf_error, runtimes: Mutex::new(Vec::new()) });
        found.ask_runtimes().await;
        found
    }

    /// What is known now, after asking the runtimes again.
    pub async fn report(self: &Arc<Self>) -> grpc::Readiness {
        let asking = tokio::spawn({
            let this = Arc::clone(self);
            async move { this.ask_runtimes().await }
        });
        // Asking goes on by itself when it takes longer, and has a deadline of its own.
        let _ = tokio::time::timeout(PATIENCE, asking).await;
        grpc::Readiness {
            runtimes: self.runtimes.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            ebpf_error: self.ebpf_error.clone(),
            cgroups: self.tools.cgroups.layout().as_str().to_owned(),
        }
    }

    async fn ask_runtimes(&self) {
        let (mut found, mut absent) = (Vec::new(), Vec::new());
        for runtime in self.tools.runtimes.iter() {
            let checked = runtime.check().await;
            let of = |error: String| grpc::RuntimeReadiness {
                scheme: runtime.scheme().to_owned(),
                socket: runtime.socket(),
                error,
            };
            match checked {
                Ok(()) => found.push(of(String::new())),
                Err(error @ RuntimeError::NoSocket { .. }) => absent.push(of(error.to_string())),
                Err(error) => {
                    tracing::warn!(runtime = runtime.scheme(), %error, "the runtime can't be asked");
                    found.push(of(error.to_string()));
                }
            }
        }
        // Nobody misses Docker on a node of containerd; but a node has some runtime.
        if found.is_empty() {
            tracing::warn!("no runtime's socket was found: containers are looked for by their cgroups");
            found = absent;
        }
        *self.runtimes.lock().unwrap_or_else(PoisonError::into_inner) = found;
    }
}
