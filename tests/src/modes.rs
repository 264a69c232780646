//! The modes, each tried on five pods of its own.

use std::ops::RangeInclusive;

use anyhow::Result;
use futures::future::try_join_all;
use squall_api::podchaos::{Action, Mode};

use crate::builders::unschedulable;
use crate::experiment::experiment;
use crate::namespace::Ns;

/// One mode, with how many of five pods it may choose.
pub struct ModeCase {
    /// The name of the experiment, and the `app` of its pods.
    pub name: &'static str,
    mode: Mode,
    value: Option<&'static str>,
    /// So many of the five.
    pub chosen: RangeInclusive<usize>,
}

const fn case(
    name: &'static str,
    mode: Mode,
    value: Option<&'static str>,
    chosen: RangeInclusive<usize>,
) -> ModeCase {
    ModeCase { name, mode, value, chosen }
}

/// How many pods each case has.
pub const OF: usize = 5;

static MODES: [ModeCase; 7] = [
    case("one", Mode::One, None, 1..=1),
    case("all", Mode::All, None, OF..=OF),
    case("two", Mode::Fixed, Some("2"), 2..=2),
    case("nine", Mode::Fixed, Some("9"), OF..=OF),
    case("half", Mode::FixedPercent, Some("50"), 3..=3),
    case("percent", Mode::FixedPercent, Some("1"), 1..=1),
    case("random", Mode::RandomMaxPercent, Some("60"), 1..=3),
];

/// Makes pods that nobody runs, and then an experiment in each mode on five of them, all together.
pub async fn in_each_mode(ns: &Ns, action: Action) -> Result<&'static [ModeCase]> {
    let pods: Vec<_> = MODES
        .iter()
        .flat_map(|case| (0..OF).map(|n| unschedulable(&format!("{}-{n}", case.name), case.name)))
        .collect();
    try_join_all(pods.iter().map(|pod| ns.create(pod))).await?;
    let chaos: Vec<_> = MODES
        .iter()
        .map(|case| {
            experiment(case.name, action, case.mode, |spec| {
                spec.selector.label_selectors.insert("app".to_owned(), case.name.to_owned());
                spec.value = case.value.map(str::to_owned);
            })
        })
        .collect();
    try_join_all(chaos.iter().map(|chaos| ns.create(chaos))).await?;
    Ok(&MODES)
}
