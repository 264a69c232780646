//! kubectl, for the local cluster or for one context of the user's kubeconfig. The user's current context is never
//! switched, and no request waits for ever.

use std::{
    env,
    ffi::OsString,
    io::Write as _,
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::de::DeserializeOwned;
use serde_json::Value;
use squall_api::names;

use crate::{cluster::Cluster, sh};

/// How long one request may take.
const REQUEST_TIMEOUT: &str = "--request-timeout=30s";
/// How often a predicate is looked at: kubectl is a large program to start.
const LOOK: Duration = Duration::from_millis(400);

/// Which cluster, and how it is reached.
pub struct Kubectl {
    program: OsString,
    context: Option<String>,
    cluster: Option<Cluster>,
}

impl Kubectl {
    /// That context of the user's kubeconfig, or the local cluster, brought up when it is not.
    pub fn up(context: Option<&str>) -> Result<Self> {
        let this = Self::of(context)?;
        if let Some(cluster) = &this.cluster {
            cluster.up()?;
        }
        Ok(this)
    }

    /// That context of the user's kubeconfig, or the local cluster, which need not be up.
    pub fn of(context: Option<&str>) -> Result<Self> {
        if let Some(context) = context {
            let program = env::var_os("SQUALL_KUBECTL").unwrap_or_else(|| "kubectl".into());
            return Ok(Self { program, context: Some(context.to_owned()), cluster: None });
        }
        let cluster = Cluster::of_this_checkout()?;
        Ok(Self { program: cluster.kubectl().into(), context: None, cluster: Some(cluster) })
    }

    /// The local cluster, if it is that.
    pub fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_ref()
    }

    /// How the user would begin a kubectl command for the same cluster.
    pub fn shown(&self) -> String {
        match (&self.context, &self.cluster) {
            (Some(context), _) => format!("kubectl --context {context}"),
            (None, Some(_)) => "cargo xtask cluster run kubectl".to_owned(),
            (None, None) => "kubectl".to_owned(),
        }
    }

    /// A kubectl command with these arguments.
    pub fn command<S: AsRef<str>>(&self, args: &[S]) -> Command {
        let words = args.iter().map(AsRef::as_ref);
        if let Some(cluster) = &self.cluster {
            return cluster.kubectl_command(&words.chain([REQUEST_TIMEOUT]).collect::<Vec<_>>());
        }
        let mut command = sh::command(&self.program, words);
        if let Some(context) = &self.context {
            command.args(["--context", context]);
        }
        command.arg(REQUEST_TIMEOUT);
        command
    }

    /// Tells a process (a test) by environment variables which cluster it is.
    pub fn export(&self, command: &mut Command) -> Result<()> {
        if let Some(cluster) = &self.cluster {
            cluster.export(command);
            return Ok(());
        }
        // A kubeconfig with that context alone, so that nobody's current context matters.
        let text = self.output(&["config", "view", "--minify", "--flatten", "--raw"])?;
        let path = crate::build::checkout()?.join("target/kubeconfig");
        std::fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))?;
        command.env("SQUALL_KUBECONFIG", &path).env("SQUALL_KUBECTL", &self.program);
        Ok(())
    }

    /// Runs it and gives back what it wrote.
    pub fn output<S: AsRef<str>>(&self, args: &[S]) -> Result<String> {
        sh::output(&mut self.command(args))
    }

    /// Runs it, whatever comes of it.
    pub fn attempt<S: AsRef<str>>(&self, args: &[S]) -> Result<Output> {
        let mut command = self.command(args);
        command.stdin(Stdio::null()).output().with_context(|| format!("can't start {}", sh::show(&command)))
    }

    /// Gets objects as JSON.
    pub fn get<T: DeserializeOwned>(&self, args: &[&str]) -> Result<T> {
        let words: Vec<_> = ["get"].iter().chain(args).chain(&["-o", "json"]).copied().collect();
        let text = self.output(&words)?;
        serde_json::from_str(&text)
            .with_context(|| format!("can't read the answer to kubectl get {}", args.join(" ")))
    }

    /// The items of a list as JSON; empty when the API server does not know the kind.
    pub fn items(&self, args: &[&str]) -> Result<Vec<Value>> {
        if !self.knows(args.first().copied().unwrap_or_default())? {
            return Ok(Vec::new());
        }
        let mut list: Value = self.get(args)?;
        match list["items"].take() {
            Value::Array(items) => Ok(items),
            _ => bail!("kubectl get {} gave no list", args.join(" ")),
        }
    }

    /// Whether the API server knows that resource: one of the core, or of a CRD of ours, by its full name.
    fn knows(&self, resource: &str) -> Result<bool> {
        if !names::CRDS.contains(&resource) {
            return Ok(true);
        }
        Ok(!self.output(&["get", "crd", resource, "--ignore-not-found", "-o", "name"])?.is_empty())
    }

    /// The object as JSON, if it is there.
    pub fn find(&self, args: &[&str]) -> Result<Option<Value>> {
        let words: Vec<_> =
            ["get"].iter().chain(args).chain(&["--ignore-not-found", "-o", "json"]).copied().collect();
        let text = self.output(&words)?;
        if text.is_empty() {
            return Ok(None);
        }
        serde_json::from_str(&text)
            .map(Some)
            .with_context(|| format!("can't read kubectl get {}", args.join(" ")))
    }

    /// Runs it with `input` on its standard input.
    pub fn feed<S: AsRef<str>>(&self, args: &[S], input: &str) -> Result<String> {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("can't start {}", sh::show(&command)))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin
                .write_all(input.as_bytes())
                .with_context(|| format!("can't write to {}", sh::show(&command)))?;
        }
        let done =
            child.wait_with_output().with_context(|| format!("can't wait for {}", sh::show(&command)))?;
        let said = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success(), "{} ended with {}: {}", sh::show(&command), done.status, said.trim());
        Ok(String::from_utf8_lossy(&done.stdout).trim_end().to_owned())
    }
}

/// Whether a node or a pod is Ready.
pub fn is_ready(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
}

/// Looks until there is something, or the time is over: then `None`. An error of a look ends it at once.
pub fn wait<T>(limit: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<Option<T>> {
    let began = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(Some(found));
        }
        if began.elapsed() >= limit {
            return Ok(None);
        }
        thread::sleep(LOOK);
    }
}
