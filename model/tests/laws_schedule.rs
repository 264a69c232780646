//! Laws of schedules: no run begins twice, none is forgotten silently, whatever dies when.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use proptest::sample::select;
use rstest::rstest;
use squall_api::podchaos::PodChaosSpec;
use squall_api::schedule::{ConcurrencyPolicy, ScheduleSpec, ScheduleStatus, ScheduleType};
use squall_model::schedule::{Child, Draw, Input, Schedule, Turn, When, name_of, turn, validate};
use squall_model::zone::time_zone;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn spec(change: impl FnOnce(&mut ScheduleSpec)) -> ScheduleSpec {
    let mut spec = ScheduleSpec {
        type_: ScheduleType::PodChaos,
        pod_chaos: Some(PodChaosSpec::default()),
        ..ScheduleSpec::default()
    };
    change(&mut spec);
    spec
}

fn cron(text: &str) -> ScheduleSpec {
    spec(|spec| spec.schedule = Some(text.to_owned()))
}

fn valid(spec: &ScheduleSpec) -> Schedule {
    validate(spec, "shop").map(|(schedule, _)| schedule).unwrap_or_else(|errors| panic!("{errors:?}"))
}

/// The first `count` runs after `from`.
fn runs(when: &When, from: &str, count: usize) -> Vec<String> {
    let (mut last, mut all) = (at(from), Vec::new());
    for _ in 0..count {
        last = when.next(last, at(from), Draw { uid: "u", seed: None }).expect("there is a next run");
        all.push(last.to_string());
    }
    all
}

#[rstest]
// Clocks go from 2 to 3 on 2026-03-29, and from 3 to 2 on 2026-10-25.
#[case("30 2 * * *", "2026-03-28T12:00:00Z", &["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"])]
#[case("30 2 * * *", "2026-10-24T12:00:00Z", &["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"])]
#[case("0 * * * *", "2026-03-29T00:30:00Z", &["2026-03-29T01:00:00Z", "2026-03-29T02:00:00Z"])]
#[case("*/30 * * * *", "2026-10-25T00:15:00Z",
       &["2026-10-25T00:30:00Z", "2026-10-25T01:00:00Z", "2026-10-25T01:30:00Z", "2026-10-25T02:00:00Z"])]
#[case("0 9 * * mon-fri", "2026-10-23T12:00:00Z", &["2026-10-26T08:00:00Z", "2026-10-27T08:00:00Z"])]
#[case("15 0 12 * * *", "2026-06-01T00:00:00Z", &["2026-06-01T10:00:15Z"])]
#[case("@daily", "2026-06-01T12:00:00Z", &["2026-06-01T22:00:00Z"])]
fn cron_knows_the_clocks_of_its_zone(#[case] text: &str, #[case] from: &str, #[case] expected: &[&str]) {
    let when = When::parse("spec.schedule", text, time_zone("", "Europe/Berlin").unwrap()).unwrap();
    assert_eq!(runs(&when, from, expected.len()), expected);
}

#[test]
fn every_counts_from_its_beginning() {
    let when = valid(&cron("@every 90m")).when;
    assert_eq!(
        runs(&when, "2026-01-01T00:00:05Z", 2),
        ["2026-01-01T01:30:05Z".to_owned(), "2026-01-01T03:00:05Z".to_owned()]
    );
}

#[rstest]
#[case("0 0 30 2 *", "spec.schedule")]
#[case("60 * * * *", "spec.schedule")]
#[case("* * *", "spec.schedule")]
#[case("* * * * * * 2030", "spec.schedule")]
#[case("@every 500ms", "spec.schedule")]
#[case("@every -1h", "spec.schedule")]
#[case("@every", "spec.schedule")]
#[case("@sometimes", "spec.schedule")]
#[case("TZ=UTC 0 0 * * *", "spec.schedule")]
#[case("", "spec.schedule")]
fn nonsense_is_refused_by_name(#[case] text: &str, #[case] field: &str) {
    let spec = cron(text);
    let error = match validate(&spec, "shop") {
        Ok((schedule, _)) => schedule.check(&spec, at("2026-01-01T00:00:00Z")).unwrap_err(),
        Err(errors) => errors[0].clone(),
    };
    assert_eq!((error.field.as_str(), error.found.as_str()), (field, text), "{error}");
}

#[test]
fn fields_that_contradict_each_other_are_refused() {
    let field = |spec: ScheduleSpec| -> Vec<String> {
        let errors = validate(&spec, "shop").map(drop).unwrap_err();
        errors.into_iter().map(|error| error.field).collect()
    };
    let both = spec(|spec| {
        (spec.schedule, spec.mtbf) = (Some("@daily".into()), Some("4h".into()));
        (spec.jitter, spec.time_zone) = (Some("1m".into()), Some("UTC".into()));
    });
    assert_eq!(field(both), ["spec.schedule", "spec.timeZone", "spec.jitter"]);
    assert_eq!(field(spec(|_| {})), ["spec.schedule"]);
    let other = |change: fn(&mut ScheduleSpec)| {
        field(spec(|spec| {
            spec.schedule = Some("@daily".into());
            change(spec);
        }))
    };
    assert_eq!(other(|spec| spec.time_zone = Some("Mars/Olympus".into())), ["spec.timeZone"]);
    assert_eq!(other(|spec| spec.history_limit = Some(0)), ["spec.historyLimit"]);
    assert_eq!(other(|spec| spec.starting_deadline_seconds = Some(0)), ["spec.startingDeadlineSeconds"]);
    assert_eq!(other(|spec| spec.pod_chaos = None), ["spec.type"]);
    let inside = |spec: &mut ScheduleSpec| {
        let chaos = spec.pod_chaos.get_or_insert_default();
        (chaos.duration, chaos.signal) = (Some("soon".into()), Some("KILL".to_owned().into_signal()));
    };
    assert_eq!(other(inside), ["spec.podChaos.signal", "spec.podChaos.duration"]);
    let hasty = spec(|spec| {
        (spec.schedule, spec.jitter) = (Some("@every 5m".into()), Some("5m".into()));
    });
    let error = valid(&hasty).check(&hasty, at("2026-01-01T00:00:00Z")).unwrap_err();
    assert_eq!(error.field, "spec.jitter");
}

trait IntoSignal {
    fn into_signal(self) -> k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
}

impl IntoSignal for String {
    fn into_signal(self) -> k8s_openapi::apimachinery::pkg::util::intstr::IntOrString {
        k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::String(self)
    }
}

#[test]
fn at_random_has_the_mean_that_was_asked_for_and_no_memory() {
    let when = When::Mtbf(Duration::from_secs(4 * 3600));
    let (mut last, mut gaps) = (at("2026-01-01T00:00:00Z"), Vec::new());
    for _ in 0..4000 {
        let next = when.next(last, last, Draw { uid: "", seed: Some(7) }).unwrap();
        gaps.push(next.duration_since(last).as_secs_f64());
        last = next;
    }
    let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
    assert!((mean / 14_400.0 - 1.0).abs() < 0.06, "{mean}");
    // Memoryless: who has waited for the mean waits as long again, on average.
    let over: Vec<f64> = gaps.iter().filter(|gap| **gap > 14_400.0).map(|gap| gap - 14_400.0).collect();
    let rest = over.iter().sum::<f64>() / over.len() as f64;
    assert!((rest / 14_400.0 - 1.0).abs() < 0.12, "{rest}");
    let other = when.next(at("2026-01-01T00:00:00Z"), last, Draw { uid: "", seed: Some(8) });
    assert_ne!(other, when.next(at("2026-01-01T00:00:00Z"), last, Draw { uid: "", seed: Some(7) }));
}

/// A schedule in a cluster that keeps what controllers do.
struct World {
    schedule: Schedule,
    generation: i64,
    paused: bool,
    status: ScheduleStatus,
    children: BTreeMap<String, Child>,
    /// How often each was made.
    made: BTreeMap<String, u32>,
}

const BORN: &str = "2026-01-01T00:00:00Z";

impl World {
    fn new(spec: &ScheduleSpec) -> Self {
        Self {
            schedule: valid(spec),
            generation: 1,
            paused: false,
            status: ScheduleStatus::default(),
            children: BTreeMap::new(),
            made: BTreeMap::new(),
        }
    }

    fn plan(&self, now: Timestamp) -> Turn {
        let children: Vec<Child> = self.children.values().cloned().collect();
        turn(Input {
            now,
            name: "nightly",
            uid: "uid",
            created: at(BORN),
            generation: Some(self.generation),
            paused: self.paused,
            schedule: &self.schedule,
            status: &self.status,
            children: &children,
        })
    }

    /// A turn; with `crash` the status is not written any more, and nothing is ended.
    fn go(&mut self, now: Timestamp, crash: bool) -> Turn {
        let due = self.plan(now);
        if let Some(name) = &due.make
            && !self.children.contains_key(name)
        {
            let alone = self.children.values().all(|child| child.completed);
            assert!(alone || self.schedule.concurrency == ConcurrencyPolicy::Allow, "{name} is the second");
            let child = Child { name: name.clone(), created: Some(now), completed: false, deleting: false };
            self.children.insert(name.clone(), child);
            *self.made.entry(name.clone()).or_default() += 1;
        }
        if !crash {
            self.status = due.status.clone();
            for name in &due.delete {
                self.children.get_mut(name).unwrap().deleting = true;
            }
        }
        due
    }

    /// What was deleted has put everything back.
    fn all_gone(&mut self) {
        self.children.retain(|_, child| !child.deleting);
    }

    fn complete_all(&mut self) {
        self.children.values_mut().for_each(|child| child.completed = true);
    }
}

fn after(seconds: i64) -> Timestamp {
    at(BORN) + SignedDuration::from_secs(seconds)
}

#[test]
fn what_nobody_could_begin_is_skipped_and_told() {
    let mut world = World::new(&cron("*/10 * * * *"));
    assert_eq!(world.go(after(0), false).wake, Some(after(600)));
    // Three were due while nobody was there; the last of them a minute and a second ago.
    let due = world.go(after(1861), false);
    assert_eq!((due.make, world.status.missed), (None, Some(3)));
    assert!(due.said[0].warning && due.said[0].message.contains("3 missed"), "{:?}", due.said);
    // Of two that are due the newest begins.
    let due = world.go(after(3000), false);
    assert_eq!((due.make, world.status.missed), (Some(name_of("nightly", "uid", after(3000))), Some(4)));
    assert!(due.said[1].message.contains("the last due at 2026-01-01T00:40:00Z"), "{:?}", due.said);
    assert_eq!(world.status.last_schedule_time.as_ref().map(|time| time.0), Some(after(3000)));
    assert_eq!(world.status.next_schedule_time.as_ref().map(|time| time.0), Some(after(3600)));
    assert_eq!(world.go(after(3001), false).said, []);
}

#[test]
fn what_began_and_was_not_written_down_was_not_missed() {
    for later in [100, 150, 240] {
        let mut world = World::new(&spec(|spec| {
            (spec.schedule, spec.concurrency_policy) =
                (Some("* * * * *".into()), Some(ConcurrencyPolicy::Allow));
            spec.starting_deadline_seconds = Some(30);
        }));
        world.go(after(0), false);
        world.go(after(60), true);
        world.go(after(later), false);
        let again = i64::from(later == 150 || later == 240);
        assert_eq!(world.status.runs, Some(1 + again), "after {later}");
        assert_eq!(world.status.missed, (later == 240).then_some(2), "after {later}");
    }
}

#[test]
fn a_long_absence_is_counted_in_a_moment() {
    let mut world = World::new(&cron("* * * * * *"));
    world.go(after(0), false);
    let due = world.go(after(365 * 24 * 3600), false);
    assert!(due.make.is_some());
    assert!(world.status.missed.unwrap_or_default() >= 1000);
    assert!(due.said.iter().any(|said| said.message.contains("at least")), "{:?}", due.said);
}

#[test]
fn a_clock_that_was_far_ahead_stalls_nothing() {
    let mut world = World::new(&cron("*/10 * * * *"));
    world.go(after(0), false);
    world.go(after(365 * 24 * 3600), false);
    let ahead = world.status.last_due_time.clone();
    world.complete_all();
    // A little: it waits until the time comes again.
    world.go(after(365 * 24 * 3600 - 1200), false);
    assert_eq!(world.status.last_due_time, ahead);
    // A year: it goes on, and says so.
    let due = world.go(after(700), false);
    assert!(
        due.said[0].warning && due.said[0].message.contains("runs are counted from now on"),
        "{:?}",
        due.said
    );
    assert_eq!((due.make, due.wake), (None, Some(after(1200))));
    assert_eq!(world.go(after(701), false).said, []);
    assert_eq!(world.go(after(1200), false).make, Some(name_of("nightly", "uid", after(1200))));
}

#[test]
fn while_one_is_active_the_policy_says_what_becomes_of_the_next() {
    let with = |policy| {
        World::new(&spec(|spec| {
            (spec.schedule, spec.concurrency_policy) = (Some("* * * * *".into()), Some(policy));
        }))
    };
    let mut world = with(ConcurrencyPolicy::Forbid);
    world.go(after(60), false);
    let due = world.go(after(120), false);
    assert_eq!((due.make, world.status.forbidden, world.children.len()), (None, Some(1), 1));
    world.complete_all();
    assert!(world.go(after(180), false).make.is_some());

    let mut world = with(ConcurrencyPolicy::Allow);
    world.go(after(60), false);
    world.go(after(120), false);
    assert_eq!((world.children.len(), world.status.active_count), (2, Some(2)));

    // One that somebody deleted is not over before it is gone.
    let mut world = with(ConcurrencyPolicy::Forbid);
    world.go(after(60), false);
    world.children.values_mut().for_each(|child| child.deleting = true);
    assert_eq!((world.go(after(120), false).make, world.status.forbidden), (None, Some(1)));
    world.all_gone();
    assert!(world.go(after(180), false).make.is_some());
}

/// A new one beside what still recovers would be more than a limit of one allows, and refused for good.
#[test]
fn what_replaces_another_begins_when_that_is_gone() {
    let mut world = World::new(&spec(|spec| {
        (spec.schedule, spec.jitter) = (Some("* * * * *".into()), Some("10s".into()));
        (spec.concurrency_policy, spec.seed) = (Some(ConcurrencyPolicy::Replace), Some(1));
        spec.starting_deadline_seconds = Some(30);
    }));
    let begins =
        |run| after(run) + Draw { uid: "uid", seed: Some(1) }.delay(after(run), Duration::from_secs(10));
    let first = world.go(begins(60), false).make.unwrap();
    let due = world.go(begins(120), false);
    assert_eq!((due.make, due.delete, world.status.active_count), (None, vec![first.clone()], Some(0)));
    assert!(world.status.message.as_deref().is_some_and(|text| text.contains(&first)), "{:?}", world.status);
    assert_eq!(world.status.last_due_time.as_ref().map(|time| time.0), Some(after(60)));
    assert_eq!(
        world.status.next_schedule_time.as_ref().map(|time| time.0.as_second()),
        Some(begins(180).as_second())
    );
    // It looks again when it would be too late, and says the same meanwhile.
    assert_eq!(due.wake, Some(begins(120) + SignedDuration::from_secs(30)));
    let again = world.go(begins(120) + SignedDuration::from_secs(1), false);
    assert_eq!((again.make, again.delete, again.said), (None, vec![], vec![]));
    assert_eq!(again.status, due.status);
    world.all_gone();
    let due = world.go(begins(120) + SignedDuration::from_secs(2), false);
    assert_eq!(due.make, Some(name_of("nightly", "uid", after(120))));
    assert_eq!((world.status.runs, world.status.missed), (Some(2), None));
    // One that does not go is waited for as long as a run may be late.
    world.go(begins(180), false);
    let due = world.go(begins(180) + SignedDuration::from_secs(31), false);
    assert_eq!((due.make, world.status.missed, due.wake), (None, Some(1), Some(begins(240))));
    assert_eq!(world.status.last_due_time.as_ref().map(|time| time.0), Some(after(180)));
    // Of runs that wait the newest begins, and each other is counted once.
    world.go(begins(300), false);
    world.go(begins(300) + SignedDuration::from_secs(1), false);
    assert_eq!((world.status.missed, world.status.runs), (Some(2), Some(2)));
    // Nothing is made up for after a suspension.
    world.paused = true;
    world.go(begins(300) + SignedDuration::from_secs(2), false);
    world.all_gone();
    world.paused = false;
    assert_eq!(world.go(begins(300) + SignedDuration::from_secs(3), false).make, None);
    assert_eq!(world.go(begins(360), false).make, Some(name_of("nightly", "uid", after(360))));
}

#[test]
fn suspended_nothing_begins_and_nothing_is_made_up_for() {
    for by_annotation in [true, false] {
        let mut world = World::new(&cron("* * * * *"));
        world.go(after(60), false);
        world.complete_all();
        world.paused = by_annotation;
        world.schedule.suspend = !by_annotation;
        assert_eq!(world.go(after(120), false).make, None);
        assert_eq!(world.go(after(600), false).wake, None);
        assert_eq!(world.status.next_schedule_time, None);
        (world.paused, world.schedule.suspend) = (false, false);
        let due = world.go(after(630), false);
        assert_eq!((due.make, due.wake, world.status.missed), (None, Some(after(660)), None));
        assert!(world.go(after(660), false).make.is_some());
    }
}

#[test]
fn another_spec_is_counted_from_now_on() {
    let mut world = World::new(&cron("0 * * * *"));
    world.go(after(10), false);
    world.schedule = valid(&cron("* * * * *"));
    world.generation = 2;
    let due = world.go(after(3000), false);
    assert_eq!((due.make, due.wake, world.status.missed), (None, Some(after(3060)), None));
    assert_eq!(world.status.message.as_deref(), Some("* * * * * (UTC)"));
}

fn schedules() -> impl Strategy<Value = ScheduleSpec> {
    let when =
        select(vec!["* * * * *", "*/20 * * * * *", "@every 45s", "mtbf", "0 * * * *", "7,8,9 * * * * *"]);
    let policy =
        select(vec![ConcurrencyPolicy::Forbid, ConcurrencyPolicy::Allow, ConcurrencyPolicy::Replace]);
    (when, policy, 1..4i32, any::<bool>(), 1..200i64).prop_map(|(when, policy, history, jitter, deadline)| {
        spec(|spec| {
            match when {
                "mtbf" => spec.mtbf = Some("40s".to_owned()),
                when => {
                    spec.schedule = Some(when.to_owned());
                    spec.jitter = jitter.then(|| "900ms".to_owned());
                }
            }
            spec.concurrency_policy = Some(policy);
            spec.history_limit = Some(history);
            spec.starting_deadline_seconds = Some(deadline);
        })
    })
}

#[derive(Clone, Debug)]
enum Step {
    Wait(u16),
    Crash,
    Complete,
    /// What was deleted is gone.
    Gone,
    Pause(bool),
    Edit,
    /// Another controller, that still has an older status.
    Stale,
    /// The clock is put back.
    Back(u16),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..300u16).prop_map(Step::Wait),
        2 => Just(Step::Crash),
        3 => Just(Step::Complete),
        3 => Just(Step::Gone),
        1 => any::<bool>().prop_map(Step::Pause),
        1 => Just(Step::Edit),
        2 => Just(Step::Stale),
        1 => (0..60u16).prop_map(Step::Back),
    ];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    #[test]
    fn no_run_begins_twice_and_history_is_bounded(spec in schedules(), steps in steps()) {
        let mut world = World::new(&spec);
        let limit = world.schedule.history;
        let mut clock = 0;
        let mut older = ScheduleStatus::default();
        for step in steps {
            let before = world.status.clone();
            match step {
                Step::Wait(seconds) => {
                    clock += i64::from(seconds);
                    world.go(after(clock), false);
                }
                Step::Crash => {
                    clock += 1;
                    world.go(after(clock), true);
                }
                Step::Complete => world.complete_all(),
                Step::Gone => world.all_gone(),
                Step::Pause(paused) => world.paused = paused,
                Step::Edit => world.generation += 1,
                Step::Stale => {
                    // It can do what it likes but write: the API server knows the newer version.
                    let newer = std::mem::replace(&mut world.status, older.clone());
                    world.go(after(clock), true);
                    world.status = newer;
                }
                Step::Back(seconds) => {
                    clock -= i64::from(seconds);
                    world.go(after(clock), false);
                }
            }
            older = before;
            let last = (&world.status.last_due_time, &older.last_due_time);
            if let (Some(now), Some(before)) = last {
                prop_assert!(now.0 >= before.0);
            }
            let over = world.children.values().filter(|child| child.completed && !child.deleting).count();
            let settled = world.plan(after(clock));
            prop_assert!(over <= limit + 1 || settled.delete.len() + limit + 1 >= over);
        }
        for (name, count) in &world.made {
            prop_assert_eq!(*count, 1, "{} was made twice", name);
        }
    }

    #[test]
    fn every_run_is_begun_missed_or_forbidden(spec in schedules(),
        waits in proptest::collection::vec((0..400u16, any::<bool>(), any::<bool>(), any::<bool>()), 1..40)) {
        let mut world = World::new(&spec);
        let (mut clock, mut begun) = (0, BTreeSet::new());
        for (wait, completes, goes, crash) in waits {
            clock += i64::from(wait);
            begun.extend(world.go(after(clock), crash).make);
            if completes {
                world.complete_all();
            }
            if goes {
                world.all_gone();
            }
        }
        begun.extend(world.go(after(clock), false).make);
        let ScheduleStatus { runs, forbidden, missed, last_due_time, counted_from, .. } = &world.status;
        let told = runs.unwrap_or_default() + forbidden.unwrap_or_default() + missed.unwrap_or_default();
        prop_assert_eq!(usize::try_from(runs.unwrap_or_default()).unwrap(), begun.len());
        let (mut all, mut last) = (0, counted_from.as_ref().unwrap().0);
        if let Some(end) = last_due_time {
            while last < end.0 {
                last = world.schedule.when.next(last, after(0), Draw { uid: "uid", seed: None }).unwrap();
                all += 1;
            }
        }
        prop_assert_eq!(told, all);
    }

    #[test]
    fn a_second_turn_at_the_same_time_changes_nothing(spec in schedules(), wait in 0..5000i64) {
        let mut world = World::new(&spec);
        world.go(after(0), false);
        world.go(after(wait), false);
        let again = world.plan(after(wait));
        prop_assert_eq!((again.make, again.said), (None, Vec::new()));
        prop_assert_eq!(&again.status, &world.status);
    }

    #[test]
    fn runs_go_on_for_ever_and_only_forward(text in select(vec!["30 2 * * *", "*/7 * * * *", "0 0 29 2 *", "* * * * * *"]),
        zone in select(vec!["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "Africa/Casablanca", "UTC"]),
        from in 1_700_000_000i64..1_900_000_000) {
        let when = When::parse("spec.schedule", text, time_zone("", zone).unwrap()).unwrap();
        let mut last = Timestamp::from_second(from).unwrap();
        for _ in 0..20 {
            let next = when.next(last, last, Draw { uid: "", seed: None });
            prop_assert!(next.is_some_and(|next| next > last), "{:?} after {}", next, last);
            last = next.unwrap();
        }
    }

    #[test]
    fn a_name_is_of_one_run(stem in "[a-z]([-a-z0-9]{0,250}[a-z0-9])?", a in 0..2_000_000_000i64, b in 0..2_000_000_000i64) {
        let (at_a, at_b) = (Timestamp::from_second(a).unwrap(), Timestamp::from_second(b).unwrap());
        let name = name_of(&stem, "uid", at_a);
        prop_assert!(name.len() <= 253);
        prop_assert_eq!(name == name_of(&stem, "uid", at_b), a == b);
        prop_assert_ne!(name, name_of(&stem, "other", at_a));
    }
}
