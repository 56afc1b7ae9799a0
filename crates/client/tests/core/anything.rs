//! Everything at once: random acts of users, network and owners.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use holdfast_client::OrderKey;
use holdfast_cluster::Dice;
use holdfast_wire::{Failure, Op, Outcome};
use proptest::prelude::*;

use crate::failures::lacks_of_room;
use crate::world::*;

#[derive(Clone, Debug)]
enum Act {
    Submit { line: u64, key: u8, op: u8 },
    Request,
    Response,
    LoseRequest,
    LoseResponse,
    DoubleRequest,
    Swap,
    PeerLost(bool),
    Refuse(bool, u8),
    Full(bool, u8),
    Deal(u8),
    Pass(u16),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => (0u64..3, 0u8..4, 0u8..8).prop_map(|(line, key, op)| Act::Submit { line, key, op }),
        6 => Just(Act::Request),
        6 => Just(Act::Response),
        1 => Just(Act::LoseRequest),
        1 => Just(Act::LoseResponse),
        1 => Just(Act::DoubleRequest),
        1 => Just(Act::Swap),
        1 => any::<bool>().prop_map(Act::PeerLost),
        1 => (any::<bool>(), 0u8..4).prop_map(|(a, why)| Act::Refuse(a, why)),
        1 => (any::<bool>(), 0u8..4).prop_map(|(a, why)| Act::Full(a, why)),
        1 => (0u8..6).prop_map(Act::Deal),
        2 => (0u16..400).prop_map(Act::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Over a network that loses, doubles and swaps messages, with shards that refuse or are full and
    /// owners that change: every command is answered once, no write is executed twice or after its
    /// writer was told that it was not, and the writes of one connection to one key are executed in order,
    /// but for those that failed before.
    #[test]
    fn writes_happen_once_and_in_order_over_a_bad_network(
        acts in prop::collection::vec(act(), 1..120),
        seed in any::<u64>(),
    ) {
        let mut world = World::new();
        let mut dice = Dice::new(seed);
        let mut submitted = Vec::new();
        let mut asked = BTreeMap::new();
        for act in acts {
            match act {
                Act::Submit { line, key, op } => {
                    let key = ["bar", "foo", "a", "b"][key as usize];
                    let number = submitted.len();
                    let command = match op {
                        0..=2 => get(key),
                        7 => command("", Op::Count),
                        _ => put(key, &format!("{line}:{number:05}")),
                    };
                    let op = command.op.clone();
                    let token = world.submit(command, Some(OrderKey(line)), None);
                    submitted.push(token);
                    asked.insert(token, op);
                    world.flush();
                }
                Act::Request => { world.deliver_request(); }
                Act::Response => { world.deliver_response(); }
                Act::LoseRequest => { world.requests.pop_front(); }
                Act::LoseResponse => { world.responses.pop_front(); }
                Act::DoubleRequest => {
                    if let Some(request) = world.requests.front().cloned() {
                        world.requests.push_back(request);
                    }
                }
                Act::Swap => {
                    let len = world.requests.len();
                    if len > 1 {
                        world.requests.swap(0, dice.below(len as u64) as usize);
                    }
                }
                Act::PeerLost(a) => world.core.peer_lost(world.now, if a { A } else { B }),
                Act::Refuse(a, why) => {
                    world.shards.get_mut(if a { &A } else { &B }).expect("up").refuse =
                        [None, Some(Failure::Busy), Some(Failure::NotReady), Some(Failure::NotOwner)]
                            [why as usize].clone();
                }
                Act::Full(a, why) => {
                    world.shard(if a { A } else { B }).full =
                        lacks_of_room().get(usize::from(why)).cloned();
                }
                Act::Deal(how) => {
                    let (low, high) = [(A, B), (B, A), (A, A), (B, B), (A, B), (B, A)][how as usize];
                    let tablets = [(0, 8191, low, true), (8192, 16383, high, true)];
                    world.give(&tablets);
                    if how < 4 {
                        world.publish(&tablets);
                    }
                }
                Act::Pass(ms) => world.run(u64::from(ms)),
            }
            world.flush();
        }
        for shard in world.shards.values_mut() {
            shard.refuse = None;
            shard.full = None;
        }
        let tablets = [(0, 8191, A, true), (8192, 16383, B, true)];
        world.deal(&tablets);
        world.run(2_500);
        for token in &submitted {
            prop_assert!(world.outcomes.contains_key(token), "C1: {token} was never answered");
        }
        prop_assert_eq!(world.core.figures().pending, 0);
        prop_assert_eq!(world.core.figures().pending_bytes, 0);
        prop_assert_eq!(world.core.wakeup(), None);
        for (token, op) in &asked {
            let outcome = world.outcome(*token);
            let untold = matches!(
                outcome,
                Outcome::Failed(Failure::OutcomeUnknown | Failure::StaleClient)
            );
            if op.is_write() && matches!(outcome, Outcome::Failed(_)) && !untold {
                prop_assert!(
                    world.store.executed.iter().all(|command| command.op != *op),
                    "{op:?} was executed, and its writer told {outcome:?}"
                );
            }
        }
        for key in ["bar", "foo", "a", "b"] {
            for line in 0..3 {
                let mine: Vec<Bytes> = world.executed(key).into_iter().filter_map(|op| match op {
                    Op::Put { value, .. } if value.starts_with(format!("{line}:").as_bytes()) => Some(value),
                    _ => None,
                }).collect();
                let unique: BTreeSet<&Bytes> = mine.iter().collect();
                prop_assert_eq!(unique.len(), mine.len(), "executed twice");
                // Failures are not on record: a repetition may be executed after what followed it.
                let failed = |value: &Bytes| world.store.failed.iter().any(|command| {
                    matches!(&command.op, Op::Put { value: other, .. } if other == value)
                });
                let mine: Vec<&Bytes> = mine.iter().filter(|value| !failed(value)).collect();
                prop_assert!(mine.windows(2).all(|two| two[0] < two[1]), "{mine:?}");
            }
        }
    }
}
