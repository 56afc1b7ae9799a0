//! What namespaces may have on this shard: its share of the cluster's limits, and who makes room at them.
//!
//! L1. A share is the limit times the shard's part of the slots, rounded up. So the shares of all shards
//!     exceed the limit by less than one session (or byte) for each shard.
//! L2. Only a write that adds something is refused. Reads, deletes, touches and overwrites that do not grow
//!     never ask here.
//! L3. Sessions are evicted for a namespace that asked for it and for no other, and no more at a time than
//!     one write needs and a slice of work allows.

use holdfast_format::{ClusterMs, KeyHash, Namespace, Object, SLOTS, Slot, SlotRange};
use holdfast_log::{AppendError, Expiry, Log};
use holdfast_wire::{Eviction, Failure, NamespaceLimits, NamespacePolicy, Quota};

/// Sessions that one write may evict: at some 3 to 6 microseconds each, a slice of 0.2 ms. A write that needs more
/// is refused, and finds more room when it is repeated.
const EVICTIONS_PER_WRITE: usize = 32;

/// Index buckets that a refused write sweeps: expired sessions that nobody has met yet may be all that is
/// in the way.
const SWEEP_BUCKETS: u32 = 64;

/// One namespace's limits here.
#[derive(Clone, Copy, Debug)]
struct Share {
    policy: NamespacePolicy,
    sessions: u64,
    bytes: u64,
}

/// All limits that concern this shard.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    /// By namespace.
    shares: Vec<Share>,
    evicted: u64,
}

/// A session about to be written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish<'a> {
    pub namespace: Namespace,
    pub key: &'a [u8],
    pub value: &'a [u8],
    pub expiry: Expiry,
}

impl Limits {
    /// Takes over what a view says, for a shard that owns these ranges.
    pub fn set(&mut self, policies: &[NamespacePolicy], owned: &[SlotRange]) {
        let slots: u64 = owned.iter().map(|range| u64::from(range.slots())).sum();
        let share = |limit: Option<u64>| match limit {
            Some(limit) => {
                let share = u128::from(limit) * u128::from(slots);
                share.div_ceil(u128::from(SLOTS)) as u64
            }
            None => u64::MAX,
        };
        self.shares = (policies.iter())
            .map(|&policy| Share {
                policy,
                sessions: share(policy.limits.sessions),
                bytes: share(policy.limits.bytes),
            })
            .collect();
        self.shares.sort_by_key(|share| share.policy.namespace);
    }

    /// True if there are limits for a namespace.
    pub fn has(&self, namespace: Namespace) -> bool {
        self.shares
            .iter()
            .any(|it| it.policy.namespace == namespace)
    }

    /// Sessions evicted since start.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// True if some namespace has all that it may: then expired sessions are in somebody's way.
    pub fn any_full(&self, log: &Log) -> bool {
        self.shares.iter().any(|share| {
            let count = log.count(share.policy.namespace);
            count.sessions >= share.sessions || count.bytes >= share.bytes
        })
    }

    /// Makes sure that a session may be written, evicting others if the namespace asked for that; their
    /// hashes go to `evicted`, whatever becomes of the write. (L2, L3)
    pub fn admit(
        &mut self,
        log: &mut Log,
        wish: Wish<'_>,
        now: ClusterMs,
        owned: &dyn Fn(Slot) -> bool,
        evicted: &mut Vec<KeyHash>,
    ) -> Result<(), Failure> {
        let find = |share: &Share| share.policy.namespace.cmp(&wish.namespace);
        let Ok(at) = self.shares.binary_search_by(find) else {
            return Ok(());
        };
        let share = self.shares[at];
        let growth = Growth::of(log, wish);
        if growth.bytes == 0 {
            return Ok(());
        }
        let limits: &NamespaceLimits = &share.policy.limits;
        if let Some(limit) = limits.value_bytes
            && wish.value.len() as u64 > u64::from(limit)
        {
            return Err(Failure::NamespaceValueTooLarge {
                namespace: wish.namespace,
                bytes: wish.value.len() as u64,
                limit: u64::from(limit),
            });
        }
        if limits.evict == Eviction::OldestIdle {
            self.evict(log, share, wish, growth, now, owned, evicted);
        } else if share.lacks(log, growth).is_some() {
            log.sweep(now, SWEEP_BUCKETS);
        }
        match share.lacks(log, growth) {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }

    /// Evicts until the write fits its namespace and leaves memory no shorter than it was.
    #[allow(clippy::too_many_arguments, reason = "one caller, one loop")]
    fn evict(
        &mut self,
        log: &mut Log,
        share: Share,
        wish: Wish<'_>,
        growth: Growth,
        now: ClusterMs,
        owned: &dyn Fn(Slot) -> bool,
        evicted: &mut Vec<KeyHash>,
    ) {
        let own = KeyHash::of(wish.namespace, wish.key);
        let mut freed = 0;
        for _ in 0..EVICTIONS_PER_WRITE {
            let fits = share.lacks(log, growth).is_none();
            if fits && freed >= growth.bytes * log.shortage() {
                return;
            }
            match log.evict(wish.namespace, own, now, owned) {
                Ok(Some(gone)) => {
                    freed += gone.bytes;
                    self.evicted += 1;
                    evicted.push(gone.hash);
                }
                // Nobody else is there, or no memory even for a tombstone: then the write itself says so.
                Ok(None) | Err(AppendError::OutOfMemory) => return,
                Err(error) => unreachable!("a tombstone is never too large: {error}"),
            }
        }
    }
}

/// What a write adds to its namespace.
#[derive(Clone, Copy, Debug)]
struct Growth {
    sessions: u64,
    bytes: u64,
}

impl Growth {
    fn of(log: &Log, wish: Wish<'_>) -> Growth {
        let Wish {
            namespace,
            key,
            value,
            expiry,
        } = wish;
        let object = Object {
            namespace,
            key,
            value,
            version: log.next_version(),
            expiry,
            shadowing: false,
        };
        let bytes = object.encoded_len() as u64;
        match log.counted_bytes(namespace, key) {
            Some(before) => Growth {
                sessions: 0,
                bytes: bytes.saturating_sub(before),
            },
            None => Growth { sessions: 1, bytes },
        }
    }
}

impl Share {
    /// Why the namespace cannot grow so much.
    fn lacks(&self, log: &Log, growth: Growth) -> Option<Failure> {
        let NamespacePolicy { namespace, limits } = self.policy;
        let count = log.count(namespace);
        let full = |quota, limit: Option<u64>| {
            Some(Failure::NamespaceFull {
                namespace,
                quota,
                limit: limit.expect("only what is limited is full"),
            })
        };
        if growth.sessions > 0 && count.sessions + growth.sessions > self.sessions {
            full(Quota::Sessions, limits.sessions)
        } else if count.bytes + growth.bytes > self.bytes {
            full(Quota::Bytes, limits.bytes)
        } else {
            None
        }
    }
}
