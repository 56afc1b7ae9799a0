//! The rules of docs/design-notes.md and of the crate's invariants that a backup carries, one test each.

mod fences;
mod fetches;
mod life;
mod lookups;
mod replication;
#[path = "../rig/mod.rs"]
mod rig;
mod scrub;
mod store;

use holdfast_wire::{Appended, Message, Refusal};
use rig::Rig;

fn refusals(messages: &[Message]) -> Vec<Refusal> {
    let refused = messages.iter().filter_map(|message| match message {
        Message::AppendRefused(refused) => Some(refused.why),
        _ => None,
    });
    refused.collect()
}

fn acks(messages: &[Message]) -> Vec<Appended> {
    let acked = messages.iter().filter_map(|message| match message {
        Message::Appended(appended) => Some(*appended),
        _ => None,
    });
    acked.collect()
}

fn sent_refusals(rig: &mut Rig) -> Vec<Refusal> {
    let sent = rig.take_sent();
    refusals(
        &sent
            .into_iter()
            .map(|(_, message)| message)
            .collect::<Vec<_>>(),
    )
}
