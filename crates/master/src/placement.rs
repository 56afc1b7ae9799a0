//! Chooses the backup for one replica.
//!
//! Random with refinement: of a few random candidates the one with the fewest replicas of this log
//! wins, so that recovery reads from all backups evenly, and yet no two masters agree on a favourite.
//! Failure domains come first: another machine than the segment's other replicas, and than the
//! master's own, as long as the cluster has such backups. Slow backups come last among equals: to lose a copy is worse
//! than to wait for one.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_cluster::{Dice, ViewExt};
use holdfast_format::ServerId;
use holdfast_wire::{Member, Role, View};

/// So many random candidates are compared. With 2 the fullest of n backups has O(log log n) more than the
/// mean, and 5 is what RAMCloud uses.
const CANDIDATES: usize = 5;

/// Which backups may not be used just now, or are used already.
pub(crate) struct Choice<'a> {
    pub view: &'a View,
    pub own: &'a Member,
    /// Backups that hold a replica of the segment.
    pub holders: &'a [ServerId],
    /// Backups that said they are full or broken, until when to avoid them.
    pub avoided: &'a BTreeMap<ServerId, u64>,
    /// Slow ones: they are taken if there are no others as far from the segment's other replicas.
    pub shunned: &'a BTreeSet<ServerId>,
    /// Replicas of this log on each backup.
    pub load: &'a BTreeMap<ServerId, u32>,
}

/// The backup for one more replica, or `None` if there is none.
pub(crate) fn choose(choice: &Choice<'_>, dice: &mut Dice) -> Option<ServerId> {
    let machine_of = |id: ServerId| choice.view.member(id).map_or("", |member| &member.machine);
    // An empty label is never shared.
    let same = |a: &str, b: &str| !a.is_empty() && a == b;
    let penalty = |member: &Member| {
        let shared = (choice.holders.iter()).any(|&id| same(machine_of(id), &member.machine));
        4 * u32::from(shared)
            + 2 * u32::from(same(&choice.own.machine, &member.machine))
            + u32::from(choice.shunned.contains(&member.id))
    };
    let mut candidates: Vec<(u32, ServerId)> = (choice.view.with_role(Role::Backup))
        .filter(|member| {
            !choice.holders.contains(&member.id) && !choice.avoided.contains_key(&member.id)
        })
        .map(|member| (penalty(member), member.id))
        .collect();
    let least = candidates.iter().map(|&(penalty, _)| penalty).min()?;
    candidates.retain(|&(penalty, _)| penalty == least);
    let load = |id: ServerId| choice.load.get(&id).copied().unwrap_or(0);
    (0..CANDIDATES)
        .map(|_| candidates[dice.below(candidates.len() as u64) as usize].1)
        .min_by_key(|&id| load(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backup(id: u64, machine: &str) -> Member {
        Member {
            id: ServerId(id),
            role: Role::Backup,
            address: String::new(),
            machine: machine.to_owned(),
            pid: 0,
            resp_cluster: String::new(),
            name: String::new(),
            store: 0,
        }
    }

    /// Every backup that can come out for a segment that is already on `holders`.
    fn outcomes(members: &[(u64, &str)], own: &str, holders: &[u64], avoided: &[u64]) -> Vec<u64> {
        shunning(members, own, holders, avoided, &[])
    }

    fn shunning(
        members: &[(u64, &str)],
        own: &str,
        holders: &[u64],
        avoided: &[u64],
        shunned: &[u64],
    ) -> Vec<u64> {
        let view = View {
            members: members
                .iter()
                .map(|&(id, machine)| backup(id, machine))
                .collect(),
            ..View::default()
        };
        let mut dice = Dice::new(7);
        let choice = Choice {
            view: &view,
            own: &backup(99, own),
            holders: &holders.iter().map(|&id| ServerId(id)).collect::<Vec<_>>(),
            avoided: &avoided.iter().map(|&id| (ServerId(id), u64::MAX)).collect(),
            shunned: &shunned.iter().map(|&id| ServerId(id)).collect(),
            load: &BTreeMap::new(),
        };
        let mut seen: Vec<u64> = (0..200)
            .filter_map(|_| choose(&choice, &mut dice))
            .map(|id| id.0)
            .collect();
        seen.sort_unstable();
        seen.dedup();
        seen
    }

    #[test]
    fn replicas_avoid_machines_already_used_and_the_masters_own() {
        let members = [(1, "a"), (2, "a"), (3, "b"), (4, "m")];
        assert_eq!(outcomes(&members, "m", &[], &[]), [1, 2, 3]);
        assert_eq!(outcomes(&members, "m", &[1], &[]), [3]);
        assert_eq!(
            outcomes(&members, "m", &[1, 3], &[]),
            [4],
            "own before shared"
        );
        assert_eq!(
            outcomes(&members, "m", &[1, 3, 4], &[]),
            [2],
            "shared before none"
        );
        assert_eq!(outcomes(&members, "m", &[1, 2, 3, 4], &[]), [0; 0]);
        assert_eq!(outcomes(&members, "m", &[1], &[3]), [4]);
    }

    #[test]
    fn a_slow_backup_is_better_than_a_shared_machine_and_worse_than_any_other() {
        let members = [(1, "a"), (2, "b"), (3, "c")];
        assert_eq!(shunning(&members, "m", &[], &[], &[2]), [1, 3]);
        assert_eq!(shunning(&members, "m", &[1, 3], &[], &[2]), [2]);
        let shared = [(1, "a"), (2, "b"), (3, "a"), (4, "m")];
        assert_eq!(shunning(&shared, "m", &[1], &[], &[2]), [2]);
        assert_eq!(shunning(&shared, "m", &[1], &[2], &[2]), [4]);
    }

    #[test]
    fn unlabelled_backups_are_all_different_machines() {
        assert_eq!(
            outcomes(&[(1, ""), (2, ""), (3, "")], "", &[1], &[]),
            [2, 3]
        );
    }

    #[test]
    fn the_least_loaded_of_a_few_wins() {
        let view = View {
            members: (1..=4).map(|id| backup(id, "")).collect(),
            ..View::default()
        };
        let mut dice = Dice::new(3);
        let mut load = BTreeMap::new();
        for _ in 0..4_000 {
            let choice = Choice {
                view: &view,
                own: &backup(99, ""),
                holders: &[],
                avoided: &BTreeMap::new(),
                shunned: &BTreeSet::new(),
                load: &load,
            };
            let id = choose(&choice, &mut dice).expect("four backups are there");
            *load.entry(id).or_default() += 1;
        }
        assert!(
            load.values().all(|&n| (990..=1_010).contains(&n)),
            "{load:?}"
        );
    }
}
