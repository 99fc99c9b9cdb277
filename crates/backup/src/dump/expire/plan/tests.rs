use proptest::prelude::*;

use super::*;

const DAY: i64 = 86_400;

fn now() -> Timestamp {
    "2026-11-21T12:00:00Z".parse().expect("a timestamp")
}

fn dump(name: &str, days_ago: i64) -> Candidate {
    Candidate {
        name: name.to_owned(),
        series: "shop, full".to_owned(),
        taken_at: Timestamp::from_second(now().as_second() - days_ago * DAY).expect("in range"),
        sound: true,
        covers: BTreeSet::from([DatabaseKey {
            system_identifier: None,
            name: "shop".to_owned(),
        }]),
    }
}

fn kept(decisions: &[Decision]) -> BTreeSet<String> {
    decisions
        .iter()
        .filter(|it| !it.is_removed())
        .map(|it| it.candidate.name.clone())
        .collect()
}

fn reasons(decisions: &[Decision], name: &str) -> Vec<Reason> {
    let decision = decisions
        .iter()
        .find(|it| it.candidate.name == name)
        .expect("decided");
    decision.keep.iter().copied().collect()
}

#[test]
fn a_year_of_daily_dumps_shrinks_to_seven_days_four_weeks_and_twelve_months() {
    let candidates: Vec<Candidate> = (0..400).map(|day| dump(&format!("d{day:03}"), day)).collect();
    let decisions = plan(&candidates, &Policy::default(), now(), &TimeZone::UTC);
    let count = |reason| decisions.iter().filter(|it| it.keep.contains(&reason)).count();
    assert_eq!(
        (
            count(Reason::Daily),
            count(Reason::Weekly),
            count(Reason::Monthly)
        ),
        (7, 4, 12)
    );
    // 21 November 2026 is a Saturday: its week began on the 16th; the one before ended on the 15th.
    assert_eq!(reasons(&decisions, "d006"), vec![Reason::Daily, Reason::Weekly]);
    assert_eq!(reasons(&decisions, "d007"), vec![]);
    // 31 October, 21 days before.
    assert_eq!(reasons(&decisions, "d021"), vec![Reason::Monthly]);
    // Two of the weeks and one of the months are among the seven days.
    assert_eq!(kept(&decisions).len(), 7 + 2 + 11);
}

#[test]
fn a_day_belongs_to_the_time_zone_of_the_operator() {
    let mut late = dump("late", 0);
    late.taken_at = "2026-11-20T23:30:00Z".parse().expect("a timestamp");
    let mut early = dump("early", 0);
    early.taken_at = "2026-11-20T12:00:00Z".parse().expect("a timestamp");
    let policy = Policy {
        daily: 2,
        ..Policy::NOTHING
    };
    let utc = plan(&[late.clone(), early.clone()], &policy, now(), &TimeZone::UTC);
    assert_eq!(kept(&utc).len(), 1, "one day in UTC");
    let berlin = TimeZone::fixed(jiff::tz::offset(1));
    assert_eq!(
        kept(&plan(&[late, early], &policy, now(), &berlin)).len(),
        2,
        "two days further east"
    );
}

#[test]
fn a_broken_dump_takes_no_place_of_a_sound_one() {
    let broken = Candidate {
        sound: false,
        ..dump("broken", 0)
    };
    let policy = Policy {
        last: 1,
        ..Policy::NOTHING
    };
    let decisions = plan(
        &[broken, dump("sound", 1), dump("older", 2)],
        &policy,
        now(),
        &TimeZone::UTC,
    );
    assert_eq!(kept(&decisions), BTreeSet::from(["sound".to_owned()]));
}

#[test]
fn nothing_is_removed_where_nothing_is_sound() {
    let candidates: Vec<Candidate> = (0..5)
        .map(|day| Candidate {
            sound: false,
            ..dump(&format!("d{day}"), day)
        })
        .collect();
    let policy = Policy {
        last: 1,
        ..Policy::NOTHING
    };
    let decisions = plan(&candidates, &policy, now(), &TimeZone::UTC);
    assert_eq!(kept(&decisions).len(), 5);
    assert_eq!(reasons(&decisions, "d4"), vec![Reason::NoneSound]);
}

#[test]
fn the_last_bundle_that_holds_a_dropped_database_stays() {
    let bundle = |name: &str, days: i64, databases: &[&str]| Candidate {
        series: "all databases".to_owned(),
        covers: databases
            .iter()
            .map(|name| DatabaseKey {
                system_identifier: None,
                name: (*name).to_owned(),
            })
            .collect(),
        ..dump(name, days)
    };
    let candidates = [
        bundle("new", 0, &["shop"]),
        bundle("middle", 100, &["shop", "dropped"]),
        bundle("old", 200, &["shop", "dropped"]),
    ];
    let policy = Policy {
        last: 1,
        ..Policy::NOTHING
    };
    let decisions = plan(&candidates, &policy, now(), &TimeZone::UTC);
    assert_eq!(
        kept(&decisions),
        BTreeSet::from(["new".to_owned(), "middle".to_owned()])
    );
    assert_eq!(reasons(&decisions, "middle"), vec![Reason::OnlySoundOfDatabase]);
}

fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
    let one = (
        0..3_u8,
        0..500 * DAY,
        any::<bool>(),
        proptest::collection::btree_set(0..3_u8, 0..3),
    );
    proptest::collection::vec(one, 0..60).prop_map(|rows| {
        rows.into_iter()
            .enumerate()
            .map(|(index, (series, seconds_ago, sound, covers))| Candidate {
                name: format!("dump-{index}"),
                series: format!("series-{series}"),
                taken_at: Timestamp::from_second(now().as_second() - seconds_ago).expect("in range"),
                sound,
                covers: covers
                    .into_iter()
                    .map(|name| DatabaseKey {
                        system_identifier: None,
                        name: format!("db{name}"),
                    })
                    .collect(),
            })
            .collect()
    })
}

fn policies() -> impl Strategy<Value = Policy> {
    (
        0..6_u32,
        0..9_u32,
        0..6_u32,
        0..14_u32,
        proptest::option::of(0..60_u64),
    )
        .prop_map(|(last, daily, weekly, monthly, within)| Policy {
            last,
            daily,
            weekly,
            monthly,
            within: within.map(|days| Age(std::time::Duration::from_secs(days * 86_400))),
        })
}

proptest! {
    #[test]
    fn every_candidate_is_decided_once(candidates in candidates(), policy in policies()) {
        let decisions = plan(&candidates, &policy, now(), &TimeZone::UTC);
        let mut names: Vec<_> = decisions.iter().map(|it| it.candidate.name.clone()).collect();
        names.sort();
        let mut wanted: Vec<_> = candidates.iter().map(|it| it.name.clone()).collect();
        wanted.sort();
        prop_assert_eq!(names, wanted);
    }

    #[test]
    fn a_database_that_has_a_sound_dump_keeps_one(candidates in candidates(), policy in policies()) {
        let decisions = plan(&candidates, &policy, now(), &TimeZone::UTC);
        let databases = |decisions: Vec<&Decision>| -> BTreeSet<DatabaseKey> {
            decisions.into_iter().filter(|it| it.candidate.sound)
                .flat_map(|it| it.candidate.covers.clone()).collect()
        };
        let before = databases(decisions.iter().collect());
        let after = databases(decisions.iter().filter(|it| !it.is_removed()).collect());
        prop_assert_eq!(before, after);
    }

    #[test]
    fn the_newest_sound_dump_of_every_series_stays(candidates in candidates(), policy in policies()) {
        let decisions = plan(&candidates, &policy, now(), &TimeZone::UTC);
        for series in candidates.iter().map(|it| &it.series).collect::<BTreeSet<_>>() {
            let newest = candidates.iter().filter(|it| it.sound && it.series == *series)
                .map(|it| it.taken_at).max();
            if let Some(newest) = newest {
                prop_assert!(decisions.iter().any(|it| !it.is_removed() && it.candidate.sound
                    && it.candidate.series == *series && it.candidate.taken_at == newest));
            } else {
                prop_assert!(decisions.iter().filter(|it| it.candidate.series == *series)
                    .all(|it| !it.is_removed()));
            }
        }
    }

    #[test]
    fn a_second_run_removes_nothing_more(candidates in candidates(), policy in policies()) {
        let decisions = plan(&candidates, &policy, now(), &TimeZone::UTC);
        let survivors: Vec<Candidate> = decisions.iter().filter(|it| !it.is_removed())
            .map(|it| it.candidate.clone()).collect();
        let again = plan(&survivors, &policy, now(), &TimeZone::UTC);
        prop_assert!(again.iter().all(|it| !it.is_removed()));
    }

    #[test]
    fn a_more_generous_policy_never_removes_more(candidates in candidates(), policy in policies()) {
        let before = kept(&plan(&candidates, &policy, now(), &TimeZone::UTC));
        for generous in [
            Policy { last: policy.last + 1, ..policy },
            Policy { daily: policy.daily + 1, ..policy },
            Policy { weekly: policy.weekly + 1, ..policy },
            Policy { monthly: policy.monthly + 1, ..policy },
        ] {
            let after = kept(&plan(&candidates, &generous, now(), &TimeZone::UTC));
            prop_assert!(before.is_subset(&after));
        }
    }

    #[test]
    fn the_order_of_the_input_does_not_matter(candidates in candidates(), policy in policies()) {
        let mut reversed = candidates.clone();
        reversed.reverse();
        prop_assert_eq!(
            plan(&candidates, &policy, now(), &TimeZone::UTC),
            plan(&reversed, &policy, now(), &TimeZone::UTC)
        );
    }

    #[test]
    fn no_rule_keeps_more_than_it_says(candidates in candidates(), policy in policies()) {
        let decisions = plan(&candidates, &policy, now(), &TimeZone::UTC);
        for series in candidates.iter().map(|it| &it.series).collect::<BTreeSet<_>>() {
            for (reason, limit) in [
                (Reason::Last, policy.last), (Reason::Daily, policy.daily),
                (Reason::Weekly, policy.weekly), (Reason::Monthly, policy.monthly),
            ] {
                let count = decisions.iter()
                    .filter(|it| it.candidate.series == *series && it.keep.contains(&reason)).count();
                prop_assert!(count <= limit as usize);
            }
        }
    }
}
