//! What a person sees while a chore takes its time: a spinner on a terminal, plain lines elsewhere. All on stderr.

use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

/// Elsewhere than on a terminal a running step says so this often.
const EVERY: Duration = Duration::from_secs(30);

/// One step that takes time. Dropped without `done`, it just goes away: the error says the rest.
pub struct Step {
    what: String,
    began: Instant,
    said: Instant,
    bar: Option<ProgressBar>,
}

impl Step {
    /// Begins a step; `what` is what a person reads.
    pub fn begin(what: impl Into<String>) -> Self {
        let what = what.into();
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} [{elapsed}] {wide_msg}") {
                bar.set_style(style);
            }
            bar.set_prefix(what.clone());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        if bar.is_none() {
            eprintln!("{what} ...");
        }
        Self { what, began: Instant::now(), said: Instant::now(), bar }
    }

    /// Says how far it is: at once on a terminal, every 30 s elsewhere.
    pub fn at(&mut self, detail: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(detail.to_owned());
        } else if self.said.elapsed() >= EVERY {
            self.said = Instant::now();
            eprintln!("{}: {} s, {detail}", self.what, self.began.elapsed().as_secs());
        }
    }

    /// Ends it, and says how long it took.
    pub fn done(self) {
        let took = self.began.elapsed();
        let line = format!("{} ... done in {:.1} s", self.what, took.as_secs_f64());
        match &self.bar {
            Some(bar) => {
                bar.finish_and_clear();
                eprintln!("{line}");
            }
            None if took >= Duration::from_secs(1) => eprintln!("{line}"),
            None => {}
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
