//! Range tombstones in force: what FLUSHDB has removed and replicas may still hold.

use holdfast_format::{Namespace, RangeTombstone, Version};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Flush {
    pub tombstone: RangeTombstone,
    pub offset: u64,
}

/// A short list: a flush takes the place of earlier ones of the same ranges.
#[derive(Debug)]
pub(crate) struct Flushes {
    pub list: Vec<Flush>,
    /// Per namespace the newest `up_to`, so that almost every look-up is one comparison.
    newest: Vec<Version>,
}

/// Beyond so many, flushing is refused. A shard flushes all it owns, so there is one per namespace
/// and piece of its slots.
pub(crate) const FLUSHES_MAX: usize = 65_536;

impl Flushes {
    pub fn new() -> Flushes {
        Flushes {
            list: Vec::new(),
            newest: vec![Version(0); 256],
        }
    }

    /// True if an entry of the key with this version is gone.
    #[inline]
    pub fn cover(&self, namespace: Namespace, key: &[u8], version: Version) -> bool {
        self.may_cover(namespace, version)
            && self
                .list
                .iter()
                .any(|it| it.tombstone.covers(namespace, key, version))
    }

    /// False if nothing of this version can be gone, whatever its key.
    #[inline]
    pub fn may_cover(&self, namespace: Namespace, version: Version) -> bool {
        version <= self.newest[usize::from(namespace.0)]
    }

    pub fn add(&mut self, flush: Flush) {
        self.list.push(flush);
        let newest = &mut self.newest[usize::from(flush.tombstone.namespace.0)];
        *newest = flush.tombstone.up_to.max(*newest);
    }

    /// Takes out those that `gone` says, and returns them.
    pub fn take(&mut self, mut gone: impl FnMut(&Flush) -> bool) -> Vec<Flush> {
        if !self.list.iter().any(&mut gone) {
            return Vec::new();
        }
        let (taken, kept) = self.list.drain(..).partition(|flush| gone(flush));
        self.list = kept;
        self.newest.fill(Version(0));
        for flush in &self.list {
            let newest = &mut self.newest[usize::from(flush.tombstone.namespace.0)];
            *newest = flush.tombstone.up_to.max(*newest);
        }
        taken
    }

    pub fn at_mut(&mut self, offset: u64) -> Option<&mut Flush> {
        self.list.iter_mut().find(|flush| flush.offset == offset)
    }
}

/// True if `a` makes `b` superfluous.
pub(crate) fn supersedes(a: &RangeTombstone, b: &RangeTombstone) -> bool {
    a.namespace == b.namespace
        && a.up_to >= b.up_to
        && a.range.first <= b.range.first
        && b.range.last <= a.range.last
}
