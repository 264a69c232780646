//! What the tests said, and the table of kernel × feature.

use std::collections::{BTreeMap, BTreeSet};

use super::initramfs::{BEGIN, END};

/// What the tests on one kernel came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Results {
    /// The tests of each feature: passed, and the names of those that failed.
    features: BTreeMap<String, (u32, Vec<String>)>,
    /// Those that can't be on that kernel, each with what it lacks.
    not_here: Vec<String>,
    /// How the program itself ended: one that crashes half-way has no line for the rest.
    ended: Option<u32>,
    /// How many passed and how many failed by the program's own count.
    counted: Option<(u32, u32)>,
}

impl Results {
    /// Reads the machine's words. A test is a line `test FEATURE::NAME ... ok`, FAILED, or `ignored, WHY`; the last is
    /// `test result: … 3 passed; 0 failed; …`.
    pub fn read(text: &str) -> Self {
        let mut results = Self::default();
        let text = text.split_once(BEGIN).map_or(text, |(_, rest)| rest);
        for line in text.lines() {
            if let Some(code) = line.trim().strip_prefix(END) {
                results.ended = code.trim().parse().ok();
            }
            // The kernel may have put in a word of its own before it.
            let Some((_, rest)) = line.split_once("test ") else { continue };
            if let Some(counts) = rest.strip_prefix("result: ") {
                results.counted = number_before(counts, " passed").zip(number_before(counts, " failed"));
            }
            let Some((name, outcome)) = rest.split_once(" ... ") else { continue };
            if let Some(why) = outcome.strip_prefix("ignored, ") {
                results.not_here.push(format!("{name}: {}", why.trim_end()));
                continue;
            }
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
        self.problem().is_none()
            && !self.features.is_empty()
            && self.features.values().all(|(_, failed)| failed.is_empty())
    }

    /// What is wrong beside tests that failed.
    fn problem(&self) -> Option<String> {
        // The tests' program ends with 1 where one failed.
        if !matches!(self.ended, Some(0 | 1)) {
            return Some("the test program did not end well".to_owned());
        }
        let passed: u32 = self.features.values().map(|(passed, _)| passed).sum();
        let failed: u32 = self.features.values().map(|(_, failed)| failed.len() as u32).sum();
        match self.counted {
            Some(counted) if counted == (passed, failed) => None,
            Some((all_passed, all_failed)) => Some(format!(
                "{all_passed} passed and {all_failed} failed, but the lines of {passed} and {failed} were found"
            )),
            None => Some("the test program did not say how many passed".to_owned()),
        }
    }
}

/// The number right before `word`.
fn number_before(text: &str, word: &str) -> Option<u32> {
    text.split_once(word)?.0.rsplit(' ').next()?.parse().ok()
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
        lines.extend(results.not_here.iter().map(|name| format!("{version}: not there: {name}")));
        lines.extend(results.problem().map(|problem| format!("{version}: {problem}")));
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

    fn said(lines: &str, passed: u32, failed: u32) -> Results {
        let result = format!("test result: ok. {passed} passed; {failed} failed; 0 ignored; []");
        Results::read(&format!("boot\n{BEGIN}\n{lines}\n{result}\n{END} {}\n", i32::from(failed > 0)))
    }

    #[test]
    fn every_test_counts_for_its_feature_whatever_the_kernel_puts_in() {
        let results = said(
            "begin kill::a\ntest kill::a ... ok (0.1 s)\n[ 1.2] noise test kill::b ... FAILED (1 s)\ntest order::c ... ok",
            2,
            1,
        );
        assert_eq!(results.problem(), None);
        assert_eq!(results.features["kill"], (1, vec!["b".to_owned()]));
        assert!(!results.passed());
    }

    #[test]
    fn what_cant_be_on_a_kernel_has_neither_passed_nor_failed() {
        let results = said(
            "test freeze::a ... ok (0.1 s)\ntest freeze::b ... ignored, version 2 is all there is\r",
            1,
            0,
        );
        assert_eq!(results.features["freeze"], (1, Vec::new()));
        assert!(results.passed());
        let table = table(&[("6.1".to_owned(), results)]);
        assert!(table.contains("6.1: not there: freeze::b: version 2 is all there is\n"), "{table}");
    }

    #[test]
    fn what_did_not_end_well_or_ran_nothing_has_not_passed() {
        let ok = "test kill::a ... ok";
        assert!(said(ok, 1, 0).passed());
        assert!(!said("", 0, 0).passed());
        assert!(!Results::read(ok).passed());
        let crashed =
            Results::read(&format!("{BEGIN}\n{ok}\ntest result: ok. 1 passed; 0 failed\n{END} 101"));
        assert!(!crashed.passed());
        assert!(!Results::read(&format!("{BEGIN}\n{ok}\n{END} 0")).passed());
    }

    #[test]
    fn a_line_that_is_lost_is_missed() {
        let torn = said("test kill::a ... ok\ntest ki[ 1.2] noise\nll::b ... ok", 2, 0);
        assert!(!torn.passed());
        let table = table(&[("6.1".to_owned(), torn)]);
        assert!(table.contains("6.1: 2 passed and 0 failed, but the lines of 1 and 0 were found"), "{table}");
    }

    #[test]
    fn the_floor_is_the_oldest_from_which_on_everything_passed() {
        let kernel = |version: &str, ok: bool| {
            let line = if ok { "test kill::a ... ok" } else { "test kill::a ... FAILED" };
            (version.to_owned(), said(line, u32::from(ok), u32::from(!ok)))
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
