//! What an input contains, as far as the world cares: its hash for the trace, its size for the
//! network, its cost for the processor.

use std::hash::{Hash, Hasher};

use bytes::BytesMut;
use holdfast_cluster::{DiskDone, Input};
use holdfast_wire::codec::{FrameDecoder, encode_frame};
use holdfast_wire::{Message, Op, Outcome};

use crate::trace::TraceHash;

/// Folds an input into the trace.
pub fn fold_input(trace: &mut TraceHash, input: &Input) {
    std::mem::discriminant(input).hash(trace);
    match input {
        Input::Tick | Input::Shutdown => {}
        Input::Message { from, message } => (from, message).hash(trace),
        Input::PeerLost { peer, ended } => (peer, ended).hash(trace),
        Input::Disk(DiskDone::Synced { token, result }) => (token, result.is_ok()).hash(trace),
        Input::Disk(DiskDone::Read { token, result }) => (token, result.as_ref().ok()).hash(trace),
        Input::RecordsWritten { token } => token.hash(trace),
        Input::Connected { connection, .. } | Input::Disconnected { connection } => {
            connection.hash(trace);
        }
        Input::Received {
            connection, bytes, ..
        } => (connection, bytes).hash(trace),
        Input::Call { token, call, .. } => (token, &call.command).hash(trace),
        Input::Order { token, order } => (token, order).hash(trace),
    }
}

/// Folds an answer into the trace.
pub fn fold_outcome(trace: &mut TraceHash, outcome: &Outcome) {
    outcome.hash(trace);
}

/// A message as its receiver reads it out of the sender's bytes. The two must be equal: the codec is
/// ours on both sides, so anything else is a broken promise and not the world's doing.
pub fn through_the_codec(message: Message) -> Message {
    let mut bytes = BytesMut::new();
    encode_frame(&message, &mut bytes).expect("no role sends what a frame cannot carry");
    let decoded = FrameDecoder::new().decode(&mut bytes);
    // Long batches are split into several frames; the first is not the whole then.
    if bytes.is_empty() {
        let decoded = decoded.expect("our own bytes are well formed");
        let decoded = decoded.expect("a whole frame was written");
        assert_eq!(decoded, message, "the codec changed a message");
        return decoded;
    }
    message
}

/// About how many bytes a message is on the wire.
pub fn message_bytes(message: &Message) -> usize {
    const HEAD: usize = 64;
    HEAD + match message {
        Message::Append(append) => append.bytes.len(),
        Message::FetchPart(part) => part.entries.len(),
        Message::Requests(requests) => requests
            .items
            .iter()
            .map(|item| {
                let value = match &item.command.op {
                    Op::Put { value, .. } => value.len(),
                    _ => 0,
                };
                40 + item.command.key.len() + value
            })
            .sum(),
        Message::Responses(responses) => responses
            .items
            .iter()
            .map(|item| match &item.outcome {
                Outcome::Value { value, .. } => 40 + value.len(),
                _ => 40,
            })
            .sum(),
        Message::View(view) => 100 * view.members.len(),
        _ => 0,
    }
}

/// Microseconds of computing that an input costs: what the real roles cost, rounded up.
pub fn cost_us(input: &Input) -> u64 {
    match input {
        Input::Tick => 2,
        Input::Message { message, .. } => 3 + message_bytes(message) as u64 / 1_000,
        Input::Received { bytes, .. } => 3 + bytes.len() as u64 / 1_000,
        Input::Disk(DiskDone::Read {
            result: Ok(bytes), ..
        }) => 5 + bytes.len() as u64 / 500,
        _ => 3,
    }
}

impl Hasher for TraceHash {
    fn finish(&self) -> u64 {
        unreachable!("a trace is folded into, and printed")
    }
    fn write(&mut self, bytes: &[u8]) {
        self.bytes(bytes);
    }
    fn write_u8(&mut self, i: u8) {
        self.word(i.into());
    }
    fn write_u16(&mut self, i: u16) {
        self.word(i.into());
    }
    fn write_u32(&mut self, i: u32) {
        self.word(i.into());
    }
    fn write_u64(&mut self, i: u64) {
        self.word(i);
    }
    fn write_usize(&mut self, i: usize) {
        self.word(i as u64);
    }
    fn write_isize(&mut self, i: isize) {
        self.word(i as u64);
    }
}
