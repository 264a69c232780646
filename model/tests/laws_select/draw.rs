//! The draw and the arithmetic of the modes.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::sample::subsequence;
use squall_model::select::{count, draw};
use squall_model::spec::Mode;

fn uids() -> impl Strategy<Value = Vec<String>> {
    proptest::collection::btree_set("[a-f0-9]{1,6}", 0..40).prop_map(|set| set.into_iter().collect())
}

proptest! {
    #[test]
    fn a_draw_depends_on_the_seed_and_the_set_not_on_the_order(
        (uids, shuffled) in uids().prop_flat_map(|uids| (Just(uids.clone()), Just(uids).prop_shuffle())),
        n in 0_usize..50,
        seed: u64,
    ) {
        let one = draw(uids.iter().map(String::as_str), n, seed);
        prop_assert_eq!(&one, &draw(shuffled.iter().map(String::as_str), n, seed));
        prop_assert_eq!(one.len(), n.min(uids.len()));
        let drawn: BTreeSet<&str> = one.iter().copied().collect();
        prop_assert_eq!(drawn.len(), one.len(), "each once");
        prop_assert!(one.iter().all(|uid| uids.iter().any(|there| there == uid)));
    }

    #[test]
    fn drawing_more_keeps_those_drawn_before(uids in uids(), few in 0_usize..50, more in 0_usize..50, seed: u64) {
        let (few, more) = (few.min(more), few.max(more));
        let few = draw(uids.iter().map(String::as_str), few, seed);
        let more = draw(uids.iter().map(String::as_str), more, seed);
        prop_assert_eq!(&more[..few.len()], &few[..]);
    }

    #[test]
    fn a_pod_that_goes_changes_nothing_among_the_others(
        (uids, left) in uids().prop_flat_map(|uids| {
            let all = uids.len();
            (Just(uids.clone()), subsequence(uids, 0..=all))
        }),
        seed: u64,
    ) {
        let mut ranked = draw(uids.iter().map(String::as_str), usize::MAX, seed);
        ranked.retain(|uid| left.iter().any(|there| there == uid));
        prop_assert_eq!(ranked, draw(left.iter().map(String::as_str), usize::MAX, seed));
    }

    #[test]
    fn every_mode_stays_within_what_is_found(found in 0_usize..10_000, n: u32, share in 1_u8..=100, seed: u64) {
        prop_assert_eq!(count(Mode::One, found, seed), found.min(1));
        prop_assert_eq!(count(Mode::All, found, seed), found);
        prop_assert_eq!(count(Mode::Fixed(n), found, seed), found.min(n as usize));
        let exact = count(Mode::FixedPercent(share), found, seed);
        // Rounded up: the least whole number that is not below the share.
        prop_assert!(exact * 100 >= found * usize::from(share));
        prop_assert!(exact == 0 || (exact - 1) * 100 < found * usize::from(share));
        let random = count(Mode::RandomMaxPercent(share), found, seed);
        prop_assert!(random <= exact);
        prop_assert_eq!(random == 0, found == 0, "somebody is hit if there is anybody");
        prop_assert_eq!(random, count(Mode::RandomMaxPercent(share), found, seed), "the seed decides");
    }
}

#[test]
fn a_random_percentage_takes_every_value_up_to_its_maximum() {
    let drawn: BTreeSet<usize> =
        (0..2_000).map(|seed| count(Mode::RandomMaxPercent(10), 100, seed)).collect();
    assert_eq!(drawn, (1..=10).collect());
}

#[test]
fn seeds_draw_differently_and_evenly() {
    let uids: Vec<String> = (0..10).map(|index| format!("uid-{index}")).collect();
    let mut hits = [0_usize; 10];
    for seed in 0..10_000 {
        let drawn = draw(uids.iter().map(String::as_str), 1, seed);
        let index: usize = drawn[0].trim_start_matches("uid-").parse().unwrap();
        hits[index] += 1;
    }
    assert!(hits.iter().all(|hits| (850..1150).contains(hits)), "{hits:?}");
}
