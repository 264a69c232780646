//! What the tests said, and the table of kernel × feature.

use std::collections::{BTreeMap, BTreeSet};

use super::initramfs::{BEGIN, END};

/// What the tests on one kernel came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Results {
    /// The tests of each feature: passed, and the names of those that failed.
    features: BTreeMap<String, (u32, Vec<String>)>,
    /// Whether the program itself ended well: one that crashes half-way has no line for the rest.
    complete: bool,
}

impl Results {
    /// Reads the machine's words. A test is a line `test FEATURE::NAME ... ok`, or FAILED.
    pub fn read(text: &str) -> Self {
        let mut results = Self::default();
        let text = text.split_once(BEGIN).map_or(text, |(_, rest)| rest);
        for line in text.lines() {
            if let Some(code) = line.trim().strip_prefix(END) {
                results.complete = code.trim() == "0";
            }
            // The kernel may have put in a word of its own before it.
            let Some((_, rest)) = line.split_once("test ") else { continue };
            let Some((name, outcome)) = rest.split_once(" ... ") else { continue };
            let Some((feature, name)) = name.split_once("::") else { continue };
            let (passed, failed) = results.features.entry(feature.to_owned()).or_default();
            if outcome.starts_with("ok") {
                *passed += 1;
            } else {
                failed.push(name.to_owned());
            }
        }
        results
    }

    /// Whether all of it passed, and there was something.
    pub fn passed(&self) -> bool {
        self.complete
            && !self.features.is_empty()
            && self.features.values().all(|(_, failed)| failed.is_empty())
    }
}

/// The table: a line a feature, a column a kernel; below it what failed, and the floor.
pub fn table(kernels: &[(String, Results)]) -> String {
    let features: BTreeSet<&String> =
        kernels.iter().flat_map(|(_, results)| results.features.keys()).collect();
    let mut rows = vec![vec!["feature".to_owned()]];
    rows[0].extend(kernels.iter().map(|(version, _)| version.clone()));
    for feature in features {
        let cell = |results: &Results| match results.features.get(feature) {
            None => "-".to_owned(),
            Some((passed, failed)) if failed.is_empty() => format!("{passed} ok"),
            Some((passed, failed)) => format!("{} of {} FAILED", failed.len(), passed + failed.len() as u32),
        };
        rows.push([feature.clone()].into_iter().chain(kernels.iter().map(|(_, r)| cell(r))).collect());
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..=kernels.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("| {} |", cells.join(" | "))
    };
    let mut lines: Vec<String> = rows.iter().map(line).collect();
    let rule: Vec<_> = widths.iter().map(|width| "-".repeat(*width)).collect();
    lines.insert(1, format!("| {} |", rule.join(" | ")));
    for (version, results) in kernels {
        for (feature, (_, failed)) in &results.features {
            lines.extend(failed.iter().map(|name| format!("{version}: {feature}::{name} failed")));
        }
        if !results.complete {
            lines.push(format!("{version}: the test program did not end well"));
        }
    }
    // From the newest down: the oldest below which nothing newer failed.
    let floor = kernels.iter().rev().take_while(|(_, results)| results.passed()).last();
    lines.push(match floor {
        Some((version, _)) => format!("floor: {version}"),
        None => "floor: none".to_owned(),
    });
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(lines: &str, code: i32) -> Results {
        Results::read(&format!("boot\n{BEGIN}\n{lines}\n{END} {code}\n"))
    }

    #[test]
    fn every_test_counts_for_its_feature_whatever_the_kernel_puts_in() {
        let results = said(
            "test kill::a ... ok (0.1 s)\n[ 1.2] noise test kill::b ... FAILED (1 s)\ntest order::c ... ok",
            1,
        );
        assert_eq!(results.features["kill"], (1, vec!["b".to_owned()]));
        assert!(!results.passed());
    }

    #[test]
    fn what_did_not_end_well_or_ran_nothing_has_not_passed() {
        assert!(said("test kill::a ... ok", 0).passed());
        assert!(!said("test kill::a ... ok", 101).passed());
        assert!(!said("", 0).passed());
        assert!(!Results::read("test kill::a ... ok").passed());
    }

    #[test]
    fn the_floor_is_the_oldest_from_which_on_everything_passed() {
        let kernel = |version: &str, ok: bool| {
            let line = if ok { "test kill::a ... ok" } else { "test kill::a ... FAILED" };
            (version.to_owned(), said(line, i32::from(!ok)))
        };
        let table_of = |oks: [bool; 3]| {
            table(
                &["5.10", "6.1", "7.2"].into_iter().zip(oks).map(|(v, ok)| kernel(v, ok)).collect::<Vec<_>>(),
            )
        };
        assert!(table_of([true, true, true]).ends_with("floor: 5.10"));
        assert!(table_of([true, false, true]).ends_with("floor: 7.2"));
        let none = table_of([true, true, false]);
        assert!(none.ends_with("floor: none") && none.contains("7.2: kill::a failed"), "{none}");
        assert!(none.starts_with("| feature | 5.10 | 6.1  | 7.2"), "{none}");
    }
}
