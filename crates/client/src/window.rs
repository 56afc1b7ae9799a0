//! How much a client asks of a shard that has enough to do: a window and a budget for repetitions.
//!
//! The window (SSM, NSDI 2004, section 8; TCP's): commands on their way to one shard. It grows by one for every
//! window's worth of answers and halves when the shard refuses for load, is silent, or lets a command's time pass. What does
//! not fit waits here, where it can still be answered at once (`Core::queue_wait_us`), and costs no repetition.
//!
//! The budget: a tenth of a repetition is earned by each answer and a few by waiting, so that clients of a shard that refuses
//! everybody cannot keep it busy by asking again. What was refused and finds the budget empty is answered `Busy`.
//!
//! W1. The window is never below `WINDOW_MIN` (or the maximum, if that is less) and never above the maximum.
//! W2. It is cut at most once for the commands that were under way together: a cut is answered to by those sent later.

const WINDOW_MIN: usize = 16;

/// Repetitions saved up at most. A shard that refuses for a moment, because its replicas lag behind, has 1,024 on their way
/// repeated, then 512 and so on: all of that is paid for by whoever has saved up, and nobody hears of it.
const BUDGET_MAX: u32 = 4_096;

/// Parts of a repetition that an answer earns, and a repetition costs.
const EARNED: u32 = 1;
const COST: u32 = 10;

/// What waiting for so long earns: 20 repetitions a second, so that one command at a time is repeated until its time passes.
const EARNED_US: u64 = 5_000;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    size: usize,
    max: usize,
    /// Answers since it last grew.
    answers: usize,
    cut_us: Option<u64>,
}

impl Window {
    /// Begins wide open: a shard that is idle should not be asked slowly, and the first refusal comes soon.
    pub(crate) fn new(max: usize) -> Window {
        Window {
            size: max,
            max,
            answers: 0,
            cut_us: None,
        }
    }

    pub(crate) fn size(&self) -> usize {
        self.size
    }

    pub(crate) fn answered(&mut self) {
        self.answers += 1;
        if self.answers >= self.size {
            self.answers = 0;
            self.size = (self.size + 1).min(self.max);
        }
    }

    /// A command that was sent at `sent_us` met with congestion; true if the window was cut for it.
    pub(crate) fn congested(&mut self, now_us: u64, sent_us: u64) -> bool {
        if self.cut_us.is_some_and(|cut_us| sent_us < cut_us) {
            return false;
        }
        self.cut_us = Some(now_us);
        self.answers = 0;
        let min = WINDOW_MIN.min(self.max);
        let cut = (self.size / 2).max(min);
        std::mem::replace(&mut self.size, cut) != cut
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    saved: u32,
    /// When it was last paid for waiting.
    paid_us: u64,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget {
            saved: BUDGET_MAX * COST,
            paid_us: 0,
        }
    }
}

impl Budget {
    pub(crate) fn earn(&mut self) {
        self.save(EARNED);
    }

    fn save(&mut self, parts: u32) {
        self.saved = self.saved.saturating_add(parts).min(BUDGET_MAX * COST);
    }

    /// Pays for a repetition, if there is enough.
    pub(crate) fn spend(&mut self, now_us: u64) -> bool {
        let waited = now_us.saturating_sub(self.paid_us) / EARNED_US;
        self.paid_us += waited * EARNED_US;
        self.save(u32::try_from(waited).unwrap_or(u32::MAX));
        let paid = self.saved >= COST;
        if paid {
            self.saved -= COST;
        }
        paid
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// W1 and W2 whatever comes: (what, how long after the last one, how long before it was sent).
        #[test]
        fn its_bounds_hold_and_one_cut_answers_to_all_that_was_under_way(
            max in 1_usize..200,
            events in vec((any::<bool>(), 0_u64..1_000, 0_u64..3_000), 0..300),
        ) {
            let mut window = Window::new(max);
            let (mut now_us, mut cut_us) = (0, None);
            for (answered, passed_us, under_way_us) in events {
                now_us += passed_us;
                let before = window.size();
                if answered {
                    window.answered();
                    prop_assert!(window.size() >= before && window.size() <= before + 1);
                } else {
                    let sent_us = now_us.saturating_sub(under_way_us);
                    let cut = window.congested(now_us, sent_us);
                    prop_assert_eq!(cut, window.size() < before);
                    if cut_us.is_some_and(|cut_us| sent_us < cut_us) {
                        prop_assert!(!cut);
                    } else {
                        cut_us = Some(now_us);
                        prop_assert_eq!(window.size(), (before / 2).max(WINDOW_MIN.min(max)));
                    }
                }
                prop_assert!((WINDOW_MIN.min(max)..=max).contains(&window.size()));
            }
        }

        /// However often a shard refuses, repetitions stay within what was saved and a tenth of the answers.
        #[test]
        fn repetitions_are_a_share_of_answers(asks in vec(any::<bool>(), 0..5_000)) {
            let mut budget = Budget::default();
            let (mut answers, mut repetitions) = (0, 0);
            for answered in asks {
                if answered {
                    answers += 1;
                    budget.earn();
                } else if budget.spend(0) {
                    repetitions += 1;
                }
                prop_assert!(repetitions * COST <= BUDGET_MAX * COST + answers * EARNED);
            }
        }
    }

    #[test]
    fn it_halves_once_for_what_was_under_way_together_and_grows_by_one_per_window() {
        let mut window = Window::new(100);
        assert!(window.congested(1_000, 500));
        assert_eq!(window.size(), 50);
        assert!(!window.congested(1_100, 999), "sent before the cut");
        assert_eq!(window.size(), 50);
        assert!(window.congested(2_000, 1_000));
        assert_eq!(window.size(), 25);
        for _ in 0..25 {
            assert_eq!(window.size(), 25);
            window.answered();
        }
        assert_eq!(window.size(), 26);
    }

    #[test]
    fn it_stays_between_its_bounds() {
        let mut window = Window::new(100);
        for n in 1..20 {
            window.congested(n * 1_000, n * 1_000);
        }
        assert_eq!(window.size(), WINDOW_MIN);
        for _ in 0..100_000 {
            window.answered();
        }
        assert_eq!(window.size(), 100);
        let mut small = Window::new(8);
        assert!(!small.congested(1, 1));
        assert_eq!(small.size(), 8);
    }

    #[test]
    fn ten_answers_pay_for_one_repetition() {
        let mut budget = Budget::default();
        for _ in 0..BUDGET_MAX {
            assert!(budget.spend(0));
        }
        assert!(!budget.spend(0));
        for _ in 0..9 {
            budget.earn();
            assert!(!budget.spend(0));
        }
        budget.earn();
        assert!(budget.spend(0));
        assert!(!budget.spend(0));
        // And so does waiting.
        assert!(!budget.spend(49_999));
        assert!(budget.spend(50_000));
        assert!(!budget.spend(50_000));
    }
}
