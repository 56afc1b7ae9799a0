//! The way of every change into the records.
//!
//! J1. Nothing that follows from a change is done before the change is durable. `Journal::idle`
//!     says that everything is; the coordinator acts only then.
//! J2. All changes of one step become durable together or not at all.

use std::collections::BTreeMap;

use bytes::Bytes;
use holdfast_cluster::{Output, Outputs, RecordWrite};
use holdfast_format::{ClusterMs, LogId, Namespace, ServerId, SlotRange};
use holdfast_wire::{Member, NamespaceLimits};

use crate::records::{
    IDENTITY_KEY, Identity, LogRecord, Ownership, START_KEY, Start, Value, gone_key, log_key,
    namespace_key, server_key, tablet_key,
};

/// Collects the changes of each step and keeps one write under way at a time, so that a slow
/// store merges changes instead of queueing them: what waits is bounded by the number of records.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    staged: BTreeMap<String, Option<Bytes>>,
    in_flight: Option<u64>,
    last_token: u64,
    /// The newest ceiling staged, written and durable.
    ceiling_staged: ClusterMs,
    ceiling_in_flight: ClusterMs,
    ceiling_durable: ClusterMs,
}

impl Journal {
    /// Knowing what the records already hold.
    pub(crate) fn new(start: Start) -> Journal {
        Journal {
            ceiling_durable: start.clock_ceiling,
            ..Journal::default()
        }
    }

    pub(crate) fn put_identity(&mut self, identity: Identity) {
        let mut value = Value::new();
        value.u64(identity.cluster);
        value.u8(identity.replicas);
        if identity.ack_quorum != identity.replicas {
            value.u8(identity.ack_quorum);
        }
        self.put(IDENTITY_KEY.into(), value);
    }

    pub(crate) fn put_start(&mut self, start: Start) {
        let mut value = Value::new();
        value.u32(start.generation);
        value.u64(start.clock_ceiling.0);
        self.put(START_KEY.into(), value);
        self.ceiling_staged = start.clock_ceiling;
    }

    pub(crate) fn put_server(&mut self, member: &Member) {
        let mut value = Value::new();
        value.member(member);
        self.put(server_key(member.id), value);
    }

    pub(crate) fn remove_server(&mut self, id: ServerId) {
        self.staged.insert(server_key(id), None);
    }

    pub(crate) fn put_log(&mut self, log: LogId, record: &LogRecord) {
        let mut value = Value::new();
        value.log(record);
        self.put(log_key(log), value);
    }

    pub(crate) fn remove_log(&mut self, log: LogId) {
        self.staged.insert(log_key(log), None);
    }

    pub(crate) fn put_tablet(&mut self, tablet: &Ownership) {
        let mut value = Value::new();
        value.u16(tablet.range.last.0);
        value.u64(tablet.owner.0);
        value.u64(tablet.epoch.0);
        self.put(tablet_key(tablet.range), value);
    }

    pub(crate) fn remove_tablet(&mut self, range: SlotRange) {
        self.staged.insert(tablet_key(range), None);
    }

    pub(crate) fn put_namespace(&mut self, namespace: Namespace, limits: &NamespaceLimits) {
        let mut value = Value::new();
        value.limits(limits);
        self.put(namespace_key(namespace), value);
    }

    pub(crate) fn remove_namespace(&mut self, namespace: Namespace) {
        self.staged.insert(namespace_key(namespace), None);
    }

    pub(crate) fn put_gone(&mut self, id: ServerId, ordinal: u64) {
        let mut value = Value::new();
        value.u64(ordinal);
        self.put(gone_key(id), value);
    }

    pub(crate) fn remove_gone(&mut self, id: ServerId) {
        self.staged.insert(gone_key(id), None);
    }

    /// Begins to write what is staged, unless a write is under way (J2: then all of it goes next).
    pub(crate) fn commit(&mut self, out: &mut Outputs) {
        if self.in_flight.is_some() || self.staged.is_empty() {
            return;
        }
        self.last_token += 1;
        self.in_flight = Some(self.last_token);
        self.ceiling_in_flight = self.ceiling_staged;
        let writes = std::mem::take(&mut self.staged);
        out.push(Output::Records {
            token: self.last_token,
            writes: writes
                .into_iter()
                .map(|(key, value)| RecordWrite { key, value })
                .collect(),
        });
    }

    /// The driver says that a write is durable.
    pub(crate) fn written(&mut self, token: u64) {
        if self.in_flight == Some(token) {
            self.in_flight = None;
            self.ceiling_durable = self.ceiling_durable.max(self.ceiling_in_flight);
        }
    }

    /// J1: everything decided so far is durable.
    pub(crate) fn idle(&self) -> bool {
        self.in_flight.is_none() && self.staged.is_empty()
    }

    pub(crate) fn ceiling_durable(&self) -> ClusterMs {
        self.ceiling_durable
    }

    fn put(&mut self, key: String, value: Value) {
        self.staged.insert(key, Some(value.seal()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_store_gets_one_write_at_a_time() {
        let mut journal = Journal::default();
        let mut out = Outputs::default();
        journal.put_gone(ServerId(1), 1);
        journal.commit(&mut out);
        for ordinal in 2..100 {
            journal.put_gone(ServerId(1), ordinal);
            journal.commit(&mut out);
        }
        assert_eq!(out.list.len(), 1);
        assert!(!journal.idle());
        journal.written(7); // a token never given
        journal.commit(&mut out);
        assert_eq!(out.list.len(), 1);
        journal.written(1);
        assert!(!journal.idle());
        journal.commit(&mut out);
        let Some(Output::Records { token: 2, writes }) = out.list.pop() else {
            panic!()
        };
        assert_eq!(writes.len(), 1, "writes to one key merge");
        journal.written(2);
        assert!(journal.idle());
    }
}
