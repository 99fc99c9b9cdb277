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
    assert_eq!(
        kept(&decisions),
        BTreeSet::from(["sound".to_owned(), "broken".to_owned()]),
        "what is newer than every sound dump stays, but it does not count"
    );
    assert!(reasons(&decisions, "broken").contains(&Reason::NewerThanSound));
}

#[test]
fn what_just_failed_its_test_stays_in_the_window_of_every_rule() {
    let broken = |name: &str, days| Candidate {
        sound: false,
        ..dump(name, days)
    };
    let candidates = [
        dump("new", 0),
        broken("yesterday", 2),
        broken("covered", 3),
        dump("three", 3),
        broken("week", 9),
        broken("old", 40),
        dump("oldest", 50),
    ];
    let keeps = |policy: Policy| {
        let policy = Policy {
            remove_recent: true,
            ..policy
        };
        let mut names: Vec<String> = kept(&plan(&candidates, &policy, now(), &TimeZone::UTC))
            .into_iter()
            .collect();
        names.sort();
        names
    };
    let nothing = Policy::NOTHING;
    assert_eq!(keeps(Policy { last: 1, ..nothing }), ["new"]);
    assert_eq!(
        keeps(Policy { last: 2, ..nothing }),
        ["covered", "new", "three", "yesterday"]
    );
    assert_eq!(
        keeps(Policy { daily: 2, ..nothing }),
        ["new", "three", "yesterday"],
        "of the third day a sound one is there"
    );
    assert_eq!(
        keeps(Policy {
            within: Some(Age(std::time::Duration::from_hours(24 * 30))),
            ..nothing
        }),
        ["covered", "new", "three", "week", "yesterday"]
    );
    assert_eq!(keeps(Policy { last: 9, ..nothing }).len(), candidates.len());
}

#[test]
fn a_dump_of_the_last_day_goes_only_when_that_is_asked_for() {
    let hours = |name: &str, hours: i64| Candidate {
        taken_at: Timestamp::from_second(now().as_second() - hours * 3600).expect("in range"),
        ..dump(name, 0)
    };
    let candidates = [hours("a", 1), hours("b", 2), hours("c", 25)];
    let policy = Policy {
        last: 1,
        ..Policy::NOTHING
    };
    let decisions = plan(&candidates, &policy, now(), &TimeZone::UTC);
    assert_eq!(kept(&decisions), BTreeSet::from(["a".to_owned(), "b".to_owned()]));
    assert_eq!(reasons(&decisions, "b"), vec![Reason::Recent]);
    let asked = Policy {
        remove_recent: true,
        ..policy
    };
    let decisions = plan(&candidates, &asked, now(), &TimeZone::UTC);
    assert_eq!(kept(&decisions), BTreeSet::from(["a".to_owned()]));
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
        any::<bool>(),
    )
        .prop_map(|(last, daily, weekly, monthly, within, remove_recent)| Policy {
            last,
            daily,
            weekly,
            monthly,
            within: within.map(|days| Age(std::time::Duration::from_secs(days * 86_400))),
            remove_recent,
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
    fn nothing_newer_than_the_newest_sound_dump_or_within_the_window_goes(
        candidates in candidates(), policy in policies()
    ) {
        let age = |candidate: &Candidate| now().as_second() - candidate.taken_at.as_second();
        for decision in plan(&candidates, &policy, now(), &TimeZone::UTC) {
            if !decision.is_removed() {
                continue;
            }
            let gone = &decision.candidate;
            let newer: Vec<&Candidate> = candidates.iter()
                .filter(|it| it.sound && it.series == gone.series && it.taken_at >= gone.taken_at
                    && it.name != gone.name).collect();
            prop_assert!(!newer.is_empty(), "it was the newest: {gone:?}");
            prop_assert!(newer.len() >= policy.last as usize, "among the last: {gone:?}");
            prop_assert!(policy.remove_recent || age(gone) >= DAY, "recent: {gone:?}");
            if let Some(Age(within)) = policy.within {
                prop_assert!(age(gone) > within.as_secs().cast_signed(), "within: {gone:?}");
            }
        }
    }

    #[test]
    fn a_false_verdict_never_costs_another_dump_its_place(
        candidates in candidates(), policy in policies(), which in any::<proptest::sample::Index>()
    ) {
        prop_assume!(!candidates.is_empty());
        let before = kept(&plan(&candidates, &policy, now(), &TimeZone::UTC));
        let index = which.index(candidates.len());
        let mut doubted = candidates.clone();
        doubted[index].sound = false;
        let after = kept(&plan(&doubted, &policy, now(), &TimeZone::UTC));
        let without: BTreeSet<String> = before.into_iter()
            .filter(|name| *name != candidates[index].name).collect();
        prop_assert!(without.is_subset(&after), "{without:?} {after:?}");
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
                    .filter(|it| it.candidate.sound && it.candidate.series == *series
                        && it.keep.contains(&reason)).count();
                prop_assert!(count <= limit as usize);
            }
        }
    }
}
