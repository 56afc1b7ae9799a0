//! Leases, and the end of a backup.

use holdfast_cluster::{Input, Node};
use holdfast_format::ServerId;
use holdfast_wire::{Append, HeartbeatReply, Message};

use crate::acks;
use crate::rig::{LEASE_MS, Rig, Segment};

/// Leases: a new owner waits for what this backup, or its last incarnation, may have granted.
#[test]
fn leases_are_remembered_and_assumed_after_a_restart() {
    let mut rig = Rig::new(8, false);
    let segment = Segment::head(1, 10);
    rig.acked(segment.append(0, segment.ends[0]));
    rig.pass_ms(300);
    assert_eq!(rig.fence(5).lease_remaining_ms, LEASE_MS - 300);
    rig.pass_ms(300);
    let refused = rig.append(segment.append(segment.ends[0], segment.ends[1]));
    assert_eq!(acks(&refused), [], "no lease for the fenced");
    assert_eq!(rig.fence(5).lease_remaining_ms, LEASE_MS - 600);
    rig.restart();
    assert_eq!(rig.fence(5).lease_remaining_ms, LEASE_MS);
    rig.pass_ms(u64::from(LEASE_MS));
    assert_eq!(rig.fence(5).lease_remaining_ms, 0);
}

#[test]
fn no_lease_is_longer_than_the_clusters() {
    let mut rig = Rig::new(8, false);
    let segment = Segment::head(1, 10);
    let greedy = Append {
        lease_ms: 3_600_000,
        ..segment.append(0, segment.ends[0])
    };
    assert_eq!(rig.acked(greedy).lease_ms, LEASE_MS);
}

#[test]
fn the_expelled_stop_at_once() {
    let mut rig = Rig::new(8, false);
    let segment = Segment::head(1, 5);
    let reply = HeartbeatReply {
        sent_us: 0,
        cluster_us: 0,
        view_version: 1,
        known: false,
    };
    rig.deliver(ServerId::COORDINATOR, Message::HeartbeatReply(reply));
    assert!(rig.stopped);
    assert_eq!(rig.append(segment.whole()), []);
    assert_eq!(rig.backup.wakeup(), None);
}

#[test]
fn a_shutdown_waits_for_the_disk() {
    let mut rig = Rig::new(8, false);
    let segment = Segment::head(1, 5);
    rig.append(segment.append(0, segment.ends[0]));
    rig.step(Input::Shutdown);
    assert!(!rig.stopped && !rig.pending.is_empty());
    assert_eq!(
        rig.append(segment.append(segment.ends[0], segment.ends[1])),
        []
    );
    rig.settle();
    assert!(rig.stopped);
}
