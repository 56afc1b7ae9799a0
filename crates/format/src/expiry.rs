//! When a session ends: its deadline, its idle time-to-live and its absolute deadline.

use crate::ClusterMs;

/// Deadlines are stored in 48 bits, good until the year 10889. Later ones are cut to this.
pub const DEADLINE_MAX: ClusterMs = ClusterMs((1 << 48) - 1);

/// When a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Expiry {
    /// Current deadline; `None` never.
    pub deadline: Option<ClusterMs>,
    /// How far a touch moves the deadline. Not zero where present.
    pub idle_ms: Option<u32>,
    /// No touch moves the deadline past this.
    pub absolute: Option<ClusterMs>,
}

impl Expiry {
    /// Ends at `deadline`, and that is all.
    pub fn at(deadline: ClusterMs) -> Expiry {
        Expiry {
            deadline: Some(deadline),
            ..Expiry::default()
        }
    }

    /// What a reader of the stored entry gets: the deadline cut to the absolute one and to 48 bits, the absolute
    /// one rounded up to whole seconds where its distance from the deadline needs more than 32 bits.
    pub fn stored(self) -> Expiry {
        let absolute = self.absolute.map(clamp);
        let deadline = match (self.deadline.map(clamp), absolute) {
            (Some(deadline), Some(absolute)) => Some(deadline.min(absolute)),
            (deadline, absolute) => deadline.or(absolute),
        };
        let idle_ms = self.idle_ms.filter(|&idle_ms| idle_ms > 0);
        let absolute = absolute.map(|absolute| {
            let base = deadline.expect("an absolute deadline implies a deadline");
            AbsoluteDelta::between(base, absolute).from(base)
        });
        Expiry {
            deadline,
            idle_ms,
            absolute,
        }
    }
}

/// A deadline that can be stored: 0 stands for "never" in an entry, so "at once" is 1.
pub(crate) fn clamp(deadline: ClusterMs) -> ClusterMs {
    ClusterMs(deadline.0.clamp(1, DEADLINE_MAX.0))
}

/// The distance from deadline to absolute deadline in 32 bits.
#[derive(Clone, Copy)]
pub(crate) struct AbsoluteDelta {
    pub value: u32,
    pub seconds: bool,
}

impl AbsoluteDelta {
    /// The value that says "no absolute deadline".
    pub const NONE: u32 = u32::MAX;

    pub fn between(base: ClusterMs, absolute: ClusterMs) -> AbsoluteDelta {
        let ms = absolute.0.saturating_sub(base.0);
        if ms < u64::from(Self::NONE) {
            return AbsoluteDelta {
                value: ms as u32,
                seconds: false,
            };
        }
        // 136 years and more are all the same.
        let seconds = ms.div_ceil(1000).min(u64::from(Self::NONE) - 1);
        AbsoluteDelta {
            value: seconds as u32,
            seconds: true,
        }
    }

    pub fn from(self, base: ClusterMs) -> ClusterMs {
        let unit_ms = if self.seconds { 1000 } else { 1 };
        clamp(base.plus_ms(u64::from(self.value) * unit_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storing_cuts_and_rounds() {
        let ms = |n| Some(ClusterMs(n));
        let check = |given: Expiry, stored: Expiry| {
            assert_eq!(given.stored(), stored);
            assert_eq!(
                stored.stored(),
                stored,
                "storing what was stored changes nothing"
            );
        };
        let none = Expiry::default();
        check(none, none);
        check(
            Expiry {
                deadline: ms(0),
                ..none
            },
            Expiry {
                deadline: ms(1),
                ..none
            },
        );
        check(
            Expiry {
                idle_ms: Some(0),
                ..none
            },
            none,
        );
        check(
            Expiry {
                absolute: ms(5),
                ..none
            },
            Expiry {
                deadline: ms(5),
                absolute: ms(5),
                ..none
            },
        );
        check(
            Expiry {
                deadline: ms(9),
                absolute: ms(5),
                ..none
            },
            Expiry {
                deadline: ms(5),
                absolute: ms(5),
                ..none
            },
        );
        let far = 7 + (1 << 33) + 1;
        check(
            Expiry {
                deadline: ms(7),
                absolute: ms(far),
                ..none
            },
            Expiry {
                deadline: ms(7),
                absolute: ms(7 + (far - 7).div_ceil(1000) * 1000),
                ..none
            },
        );
        check(Expiry::at(ClusterMs(u64::MAX)), Expiry::at(DEADLINE_MAX));
    }
}
