//! Outcomes of writes that must be executed exactly once, kept until the client has them.
//!
//! The records themselves are entries of the log; here is where they stand. Ordered by client and
//! sequence number, because an acknowledgement ends all of a client's records below a number, and
//! numbers have gaps: a client's other writes went to other shards.

use std::collections::BTreeMap;

use holdfast_format::{
    ClientId, ClusterMs, CompletionRecord, Entry, SEGMENT_HEADER_BYTES, VALUE_BYTES_MAX,
};

use crate::log::Log;
use crate::space::Class;
use crate::{AppendError, Completion};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Recorded {
    pub offset: u64,
    pub lease_until: ClusterMs,
}

pub(crate) type Completions = BTreeMap<(ClientId, u64), Recorded>;

/// Memory charged for one: key and value are 32 bytes, and nodes are at least half full.
pub(crate) const RECORD_CHARGE_BYTES: u64 = 64;

impl Completion<'_> {
    pub(crate) fn entry(&self) -> CompletionRecord<'_> {
        CompletionRecord {
            client: self.client,
            sequence: self.sequence,
            lease_until: self.lease_until,
            slot: self.slot,
            outcome: self.outcome,
        }
    }
}

impl Log {
    /// Appends a completion record by itself: the write changed nothing, and yet its outcome must
    /// be the same when it is asked for again.
    pub fn record(&mut self, completion: Completion<'_>) -> Result<(), AppendError> {
        let bytes = self.admit_completion(Some(&completion))?;
        self.make_space(bytes, Class::Small)?;
        self.append_completion(Some(completion));
        Ok(())
    }

    /// The recorded outcome of a client's write.
    pub fn completion(&self, client: ClientId, sequence: u64) -> Option<&[u8]> {
        let recorded = self.completions.get(&(client, sequence))?;
        match self.entry(recorded.offset) {
            Entry::Completion(record) => Some(record.outcome),
            other => panic!("a completion record is due at this place, not {other:?}"),
        }
    }

    /// Forgets the outcomes of a client's writes with sequence numbers below `below`: it has them.
    pub fn acknowledge(&mut self, client: ClientId, below: u64) {
        let records = self.completions.range((client, 0)..(client, below));
        let ended: Vec<u64> = records.map(|(&(_, sequence), _)| sequence).collect();
        for sequence in ended {
            let recorded = self.completions.remove(&(client, sequence));
            let recorded = recorded.expect("just looked at");
            self.kill(recorded.offset);
        }
    }

    /// Bytes that a completion adds to an append.
    pub(crate) fn admit_completion(
        &self,
        completion: Option<&Completion<'_>>,
    ) -> Result<usize, AppendError> {
        let Some(completion) = completion else {
            return Ok(0);
        };
        let largest = VALUE_BYTES_MAX.min(self.config.segment_bytes as usize / 2);
        if completion.outcome.len() > largest - SEGMENT_HEADER_BYTES {
            return Err(AppendError::ValueTooLarge);
        }
        Ok(completion.entry().encoded_len())
    }

    /// Space has been made.
    pub(crate) fn append_completion(&mut self, completion: Option<Completion<'_>>) {
        let Some(completion) = completion else { return };
        let entry = completion.entry();
        let offset = self.append(self.head, entry.encoded_len(), |out| entry.encode(out));
        let key = (completion.client, completion.sequence);
        let recorded = Recorded {
            offset,
            lease_until: completion.lease_until,
        };
        self.note_lifetime(
            offset,
            Some(completion.lease_until),
            entry.encoded_len() as u32,
            true,
        );
        if let Some(old) = self.completions.insert(key, recorded) {
            self.kill(old.offset);
        }
    }
}
