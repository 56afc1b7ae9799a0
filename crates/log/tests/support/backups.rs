//! R replicas of every segment, each at its own pace and each with the bytes of its own time: made before
//! a compaction, or after it. And what a recovery can find of them.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_format::{Digest, Entries, HeaderKind, Opening, Position, SegmentId, Version};
use holdfast_log::{Log, SegmentGoal, SegmentKind};

use super::Dice;

#[derive(Clone, Default)]
pub struct Copy {
    pub bytes: Vec<u8>,
    pub closed: bool,
    /// `SegmentGoal::rewrite` of its bytes.
    rewrite: u32,
    /// Its backup was lost; it is no copy before it is closed.
    remade: bool,
}

impl Copy {
    fn counts(&self) -> bool {
        self.closed || !self.remade
    }
}

#[derive(Clone)]
pub struct Backups {
    replicas: usize,
    pub held: BTreeMap<SegmentId, Vec<Copy>>,
    /// Closed on all backups once.
    settled: BTreeSet<SegmentId>,
    /// What the log has not heard yet, of length and closing.
    untold: BTreeMap<SegmentId, (u32, bool)>,
    /// What may have been answered for.
    pub acknowledged: Position,
    /// Closed copies that were made of compacted bytes.
    pub remade_from_compacted: u64,
}

/// What one recovery works with.
pub struct Seal {
    pub head: Position,
    /// Per segment all usable copies, of which each is sufficient.
    pub segments: Vec<Vec<Vec<u8>>>,
    pub ceiling: Version,
}

impl Backups {
    pub fn new(replicas: usize) -> Backups {
        Backups {
            replicas,
            held: BTreeMap::new(),
            settled: BTreeSet::new(),
            untold: BTreeMap::new(),
            acknowledged: Position::default(),
            remade_from_compacted: 0,
        }
    }

    fn all(&self, id: SegmentId, holds: impl Fn(&Copy) -> bool) -> bool {
        self.settled.contains(&id) || self.held.get(&id).is_some_and(|it| it.iter().all(holds))
    }

    /// How far a copy may be filled, and whether it may be closed (R2).
    fn allowed(&self, goal: &SegmentGoal, goals: &[SegmentGoal]) -> (u32, bool) {
        let SegmentKind::Head { opening, follows } = goal.kind else {
            return (goal.length, true);
        };
        let next_is_open = goals.iter().any(|next| match next.kind {
            SegmentKind::Head { opening, follows } if follows == Some(goal.id) => {
                self.all(next.id, |copy| copy.bytes.len() >= opening as usize)
            }
            _ => false,
        });
        // A closed segment whose successor has gone is followed by what was opened after it.
        let may_close = next_is_open || self.settled.contains(&goal.id);
        let Some(before) = follows else {
            return (goal.length, may_close);
        };
        let opened = goals.iter().find(|it| it.id == before).is_none_or(|it| {
            let SegmentKind::Head { opening, .. } = it.kind else {
                panic!("{before:?} is followed by a head and is none")
            };
            self.all(before, |copy| copy.bytes.len() >= opening as usize)
        });
        match (opened, self.all(before, |copy| copy.closed)) {
            (false, _) => (0, false),
            (true, false) => (opening, may_close),
            (true, true) => (goal.length, may_close),
        }
    }

    fn forget_freed(&mut self, log: &mut Log) {
        for freed in log.take_freed() {
            self.held.remove(&freed);
            self.settled.remove(&freed);
            self.untold.remove(&freed);
        }
    }

    /// One thing happens to one copy, or the log hears of some. False if nothing is left to do.
    pub fn ship_one(&mut self, log: &mut Log, dice: &mut Dice) -> bool {
        self.forget_freed(log);
        let untold = self.untold.len();
        if untold > 0 && dice.below(2) == 0 {
            return self.tell_one(log, dice.below(untold));
        }
        let goals: Vec<_> = log.goals().collect();
        let mut steps = Vec::new();
        for goal in &goals {
            let (allowed, may_close) = self.allowed(goal, &goals);
            let copies = self.replicas;
            let list = (self.held.entry(goal.id)).or_insert_with(|| vec![Copy::default(); copies]);
            for (n, copy) in list.iter_mut().enumerate().filter(|(_, it)| !it.closed) {
                if copy.rewrite != goal.rewrite {
                    assert!(copy.remade, "{:?} was compacted too early", goal.id);
                    copy.bytes.clear();
                    copy.rewrite = goal.rewrite;
                }
                let length = copy.bytes.len() as u32;
                if length < allowed {
                    steps.push((*goal, n, allowed, false));
                } else if goal.closed && length == goal.length && may_close {
                    steps.push((*goal, n, length, true));
                }
            }
        }
        if steps.is_empty() {
            return untold > 0 && self.tell_one(log, dice.below(untold));
        }
        let (goal, n, to, closed) = steps[dice.below(steps.len())];
        let copies = self.held.get_mut(&goal.id).expect("just made");
        let copy = &mut copies[n];
        let from = copy.bytes.len() as u32;
        for piece in log.bytes(goal.id, from, to) {
            copy.bytes.extend_from_slice(piece);
        }
        assert_eq!(copy.bytes.len(), to as usize, "pieces make up the range");
        copy.closed = closed;
        self.remade_from_compacted += u64::from(closed && goal.rewrite > 0);
        if self.settled.contains(&goal.id) {
            return true; // A lost copy was made again.
        }
        let length = copies.iter().map(|it| it.bytes.len()).min();
        let length = length.expect("there are replicas") as u32;
        let closed = copies.iter().all(|it| it.closed);
        if closed {
            self.settled.insert(goal.id);
        }
        self.untold.insert(goal.id, (length, closed));
        // R3: bytes past an opening are only sent when all before them is closed.
        if matches!(goal.kind, SegmentKind::Head { opening, .. } if length > opening) {
            let at = Position {
                segment: goal.id,
                offset: length,
            };
            self.acknowledged = self.acknowledged.max(at);
        }
        true
    }

    /// In any order, and at times of something that was so a while ago.
    fn tell_one(&mut self, log: &mut Log, n: usize) -> bool {
        let (&id, &(length, closed)) = (self.untold.iter().nth(n)).expect("something is untold");
        if !closed && length > 1 && n % 2 == 1 {
            log.set_durable(id, length / 2, false);
        }
        log.set_durable(id, length, closed);
        self.untold.remove(&id);
        self.forget_freed(log);
        true
    }

    /// Ships until nothing is left.
    pub fn ship(&mut self, log: &mut Log, dice: &mut Dice) {
        while self.ship_one(log, dice) {}
    }

    /// A backup dies that held a closed copy; another will hold it, made of what memory has by then.
    pub fn lose_one(&mut self, dice: &mut Dice) {
        if self.replicas == 1 {
            return;
        }
        let whole: Vec<SegmentId> = (self.settled.iter().copied())
            .filter(|id| self.held[id].iter().all(|it| it.closed))
            .collect();
        if let Some(id) = whole.get(dice.below(whole.len().max(1))) {
            let n = dice.below(self.replicas);
            self.held.get_mut(id).expect("held")[n] = Copy {
                remade: true,
                ..Copy::default()
            };
        }
    }

    /// The log dies, and with it some copies, but of no segment all. The head as recovery finds it and
    /// everything it names (`docs/design-notes.md`, "Fence, seal, recover", step 2). `None`: nothing was
    /// ever written.
    pub fn seal(&self, dice: &mut Dice) -> Option<Seal> {
        let mut found: BTreeMap<SegmentId, Vec<&Copy>> = BTreeMap::new();
        for (&id, copies) in &self.held {
            let counting: Vec<&Copy> = copies.iter().filter(|copy| copy.counts()).collect();
            let kept = dice.below(counting.len());
            let some = (counting.iter().enumerate())
                .filter(|(n, _)| *n == kept || dice.below(2) == 0)
                .map(|(_, &copy)| copy);
            found.insert(id, some.collect());
        }
        let closed = |id: SegmentId| {
            found
                .get(&id)
                .is_some_and(|it| it.iter().any(|it| it.closed))
        };
        let mut heads = Vec::new();
        for (&id, copies) in found.iter().rev() {
            let longest = copies.iter().max_by_key(|copy| copy.bytes.len());
            let bytes = &longest.expect("one is kept").bytes;
            let Ok(opening) = Opening::parse(bytes) else {
                assert!(bytes.is_empty(), "an opening is shipped as a whole");
                continue;
            };
            if let (false, Some(digest)) = (closed(id), opening.digest) {
                assert_eq!(opening.header.kind, HeaderKind::Head);
                heads.push((id, bytes, digest));
            }
        }
        // The highest; but those with nothing past their opening are passed over for the first of them, the
        // one whose predecessor is closed. Nothing after its own end was ever acknowledged.
        let (id, bytes, digest) = heads.pop()?;
        for (later, bytes, digest) in heads {
            let opening = holdfast_format::SEGMENT_HEADER_BYTES + Digest::encoded_len(digest.len());
            assert_eq!(
                bytes.len(),
                opening,
                "R2: {later:?} has more than its opening"
            );
        }
        let head = Position {
            segment: id,
            offset: bytes.len() as u32,
        };
        assert!(
            head >= self.acknowledged,
            "an answer depends on what is lost"
        );
        let mut ceiling = Version(0);
        let mut segments = Vec::new();
        for segment in digest {
            let copies: Vec<Vec<u8>> = match segment == id {
                true => vec![bytes.clone()],
                false => (found.get(&segment).into_iter().flatten())
                    .filter(|copy| copy.closed)
                    .map(|copy| copy.bytes.clone())
                    .collect(),
            };
            assert!(
                !copies.is_empty(),
                "{segment:?} is in the digest of {id:?} and nowhere closed"
            );
            let opening = Opening::parse(&copies[0]).expect("closed copies are whole");
            ceiling = ceiling.max(opening.header.version_ceiling);
            segments.push(copies);
        }
        Some(Seal {
            head,
            segments,
            ceiling,
        })
    }
}

impl Seal {
    /// Everything to be replayed, cut into pieces at entries and shuffled: of each segment one copy, or
    /// several of different times, as when a fetch is repeated with another backup.
    pub fn pieces(&self, dice: &mut Dice) -> Vec<&[u8]> {
        let mut pieces = Vec::new();
        for copies in &self.segments {
            let chosen = dice.below(copies.len());
            for (n, bytes) in copies.iter().enumerate() {
                if n != chosen && dice.below(4) > 0 {
                    continue;
                }
                let mut start = 0;
                for entry in Entries::new(bytes) {
                    let entry = entry.expect("what was appended is whole");
                    let end = entry.offset + entry.length;
                    if dice.below(3) == 0 || end == bytes.len() {
                        pieces.push(&bytes[start..end]);
                        if dice.below(8) == 0 {
                            pieces.push(&bytes[start..end]);
                        }
                        start = end;
                    }
                }
            }
        }
        dice.shuffle(&mut pieces);
        pieces
    }
}
