use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

/// The print of a file's `content`th content.
fn print(content: u64) -> Print {
    Print(vec![(PathBuf::from("file"), [content; 5])])
}

fn prints(config: u64, versions: &[(u64, u64)]) -> Prints {
    let versions = versions.iter().map(|&(version, content)| (version, print(content)));
    Prints { config: print(config), versions: versions.collect() }
}

const LATEST: VersionPolicy = VersionPolicy::Latest { num_versions: 1 };
const ALL: VersionPolicy = VersionPolicy::All {};

fn change(load: &[u64], leave: &[u64]) -> Plan {
    Plan::Change { load: load.iter().copied().collect(), leave: leave.iter().copied().collect() }
}

/// What becomes of versions, each loaded in turn where it can be, as a swap does it. Returns what blame was heard.
fn carry_out(
    standing: &mut Standing,
    prints: &Prints,
    policy: &VersionPolicy,
    can_load: impl Fn(u64) -> bool,
) -> Vec<Blame> {
    let mut blames = Vec::new();
    while let Plan::Change { load, leave } = standing.plan(prints, policy) {
        match load.iter().find(|version| !can_load(**version)) {
            None => standing.changed(prints, &load, &leave),
            Some(&version) => {
                blames.push(standing.fail(prints, version));
                if blames.last() == Some(&Blame::Configuration) {
                    break;
                }
            }
        }
    }
    blames
}

#[test]
fn what_differs_is_loaded_and_what_is_chosen_no_more_leaves() {
    let one = Standing::of(&prints(0, &[(1, 0)]), [1]);
    for (seen, policy, wanted) in [
        (prints(0, &[(1, 0)]), LATEST, Plan::Nothing),
        (prints(0, &[(1, 0), (2, 0)]), LATEST, change(&[2], &[1])),
        (prints(0, &[(1, 0), (2, 0)]), ALL, change(&[2], &[])),
        (prints(0, &[(1, 7)]), LATEST, change(&[1], &[])),
        (prints(1, &[(1, 0)]), LATEST, change(&[1], &[])),
        (prints(1, &[(1, 0), (3, 0)]), VersionPolicy::Specific { versions: vec![1] }, change(&[1], &[])),
        (prints(0, &[(2, 0)]), LATEST, change(&[2], &[1])),
        (prints(0, &[]), LATEST, Plan::NoVersion),
        (prints(1, &[(1, 0)]), VersionPolicy::Specific { versions: vec![9] }, Plan::NoVersion),
    ] {
        assert_eq!(one.plan(&seen, &policy), wanted, "{seen:?}");
    }
}

#[test]
fn a_version_that_fails_is_as_if_it_were_not_there_until_it_changes() {
    let mut standing = Standing::of(&prints(0, &[(1, 0)]), [1]);
    let broken = prints(0, &[(1, 0), (2, 0)]);
    assert_eq!(standing.fail(&broken, 2), Blame::Version);
    assert_eq!(standing.plan(&broken, &LATEST), Plan::Nothing);
    assert_eq!(standing.plan(&prints(0, &[(1, 0), (2, 0), (3, 0)]), &LATEST), change(&[3], &[1]));
    assert_eq!(standing.plan(&prints(0, &[(1, 0), (2, 1)]), &LATEST), change(&[2], &[1]), "mended");
    assert_eq!(
        standing.plan(&prints(0, &[(2, 0)]), &LATEST),
        Plan::NoVersion,
        "the last one that works is gone"
    );
}

#[test]
fn one_that_is_replaced_by_what_fails_stays() {
    let mut standing = Standing::of(&prints(0, &[(1, 0), (2, 0)]), [2]);
    let broken = prints(0, &[(1, 0), (2, 1)]);
    assert_eq!(standing.fail(&broken, 2), Blame::Version);
    assert_eq!(standing.plan(&broken, &LATEST), Plan::Nothing, "and no older one takes its place");
}

#[test]
fn a_configuration_is_to_blame_where_what_is_loaded_fails_with_it() {
    let mut standing = Standing::of(&prints(0, &[(1, 0), (2, 0)]), [1, 2]);
    let before = format!("{:?}", standing.loaded);
    let reconfigured = prints(1, &[(1, 0), (2, 0), (3, 0)]);
    assert_eq!(standing.fail(&reconfigured, 3), Blame::Version, "it was never loaded");
    assert_eq!(
        carry_out(&mut standing, &reconfigured, &LATEST, |version| version != 2),
        [Blame::Configuration]
    );
    assert_eq!(
        format!("{:?}", standing.loaded),
        before,
        "version 1 has not left, although the new policy says so"
    );
}

fn any_prints() -> impl Strategy<Value = Prints> {
    (0u64..2, prop::collection::btree_map(1u64..5, 0u64..2, 0..4))
        .prop_map(|(config, versions)| prints(config, &versions.into_iter().collect::<Vec<_>>()))
}

fn any_policy() -> impl Strategy<Value = VersionPolicy> {
    let specific = prop::collection::vec(1u64..5, 1..3);
    prop_oneof![
        (1usize..3).prop_map(|num_versions| VersionPolicy::Latest { num_versions }),
        Just(ALL),
        specific.prop_map(|versions| VersionPolicy::Specific { versions }),
    ]
}

proptest! {
    /// Whatever the repository does and whichever versions cannot be loaded: there is always one to serve, nothing is tried twice, and
    /// where all can be loaded exactly what the policy chooses is served, from the files that are there.
    #[test]
    fn something_is_always_served_and_nothing_is_tried_twice(
        looks in prop::collection::vec((any_prints(), any_policy(), prop::collection::btree_set(1u64..5, 0..3)), 1..12),
    ) {
        let mut standing = Standing::of(&prints(0, &[(1, 0)]), [1]);
        for (seen, policy, broken) in looks {
            let before = standing.loaded.clone();
            let blames = carry_out(&mut standing, &seen, &policy, |version| !broken.contains(&version));
            prop_assert!(!standing.loaded.is_empty());
            if blames.contains(&Blame::Configuration) {
                prop_assert_eq!(&standing.loaded, &before, "refused whole");
                continue;
            }
            let again = standing.plan(&seen, &policy);
            prop_assert!(matches!(again, Plan::Nothing | Plan::NoVersion), "{:?}", again);
            let chosen = policy.choose(&seen.versions.keys().copied().collect());
            if standing.failed.is_empty() && !chosen.is_empty() {
                let served: BTreeMap<u64, Origin> =
                    chosen.iter().map(|&version| (version, origin(&seen, version))).collect();
                prop_assert_eq!(&standing.loaded, &served);
            }
        }
    }
}
