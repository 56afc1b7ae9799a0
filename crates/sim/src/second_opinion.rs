//! A general linearizability checker's view of some keys: knows neither versions nor our checker.
//!
//! Its search is exponential at worst, so it gets keys of few clients and few operations, without
//! expiry, and a time limit; running into the limit is reported, not judged.

use std::collections::BTreeSet;
use std::time::Duration;

use porcupine_rs::{CheckResult, Model, check_operations_timeout};

use crate::history::{Asked, History, KeyClass, NEVER, Operation, Saw, ValueId, When};

const OPERATIONS_MAX: usize = 1_000;
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// What came of asking.
#[derive(Clone, Debug, Default)]
pub struct SecondOpinion {
    pub keys: u64,
    pub operations: u64,
    /// Keys on which the search ran out of time.
    pub unknown: u64,
    pub violations: Vec<String>,
}

/// A register that holds a value or nothing.
#[derive(Clone, Debug)]
struct Register;

#[derive(Clone, Copy, Debug)]
struct Step {
    asked: Asked,
    saw: Saw,
}

impl Model for Register {
    type State = Option<ValueId>;
    type Op = Step;
    type Metadata = ();

    fn init() -> Option<ValueId> {
        None
    }

    fn step(state: &Option<ValueId>, step: &Step) -> (bool, Option<ValueId>) {
        let holds = |when| match when {
            When::Always => true,
            When::Absent => state.is_none(),
            When::Present => state.is_some(),
            When::Value(value) => *state == Some(value),
            When::Version(_) => unreachable!("registers are used by clients that see no versions"),
        };
        let old_fits = |old: Option<Option<ValueId>>| old.is_none_or(|old| old == *state);
        let (when, written) = match step.asked {
            Asked::Read => {
                return match step.saw {
                    Saw::Present {
                        value: Some(value), ..
                    } => (*state == Some(value), *state),
                    Saw::Present { value: None, .. } => (state.is_some(), *state),
                    Saw::Absent { .. } => (state.is_none(), *state),
                    _ => (true, *state),
                };
            }
            Asked::Put { value, when, .. } => (when, Some(value)),
            Asked::Delete { when } => (when, None),
            Asked::Touch { .. } | Asked::Flush => return (true, *state),
        };
        match step.saw {
            Saw::Done { old, .. } => (holds(when) && old_fits(old), written),
            Saw::Absent { .. } => (state.is_none(), *state),
            Saw::Refused { .. } => (state.is_some() && !holds(when), *state),
            Saw::RefusedOrAbsent => (!holds(when), *state),
            // It may have happened or not; where it comes last, that makes no difference.
            Saw::Unknown | Saw::Present { .. } if holds(when) => (true, written),
            Saw::Unknown | Saw::Present { .. } => (true, *state),
        }
    }
}

/// Asks about every register key of a history.
pub fn ask(history: &History) -> SecondOpinion {
    let mut opinion = SecondOpinion::default();
    for (key, operations) in history.by_key() {
        if history.keys.class(key) != KeyClass::Register || operations.len() > OPERATIONS_MAX {
            continue;
        }
        opinion.keys += 1;
        opinion.operations += operations.len() as u64;
        match judge(&operations) {
            CheckResult::Ok => {}
            CheckResult::Unknown => opinion.unknown += 1,
            CheckResult::Illegal => {
                let name = history.keys.name(key);
                let text = format!("{name}: not linearizable (second opinion)");
                opinion.violations.push(text);
            }
        }
    }
    opinion
}

/// Every write of unknown outcome doubles the search. One that nobody saw may never have happened:
/// if the history is linearizable without such writes, it is with them, at the very end. Only
/// otherwise must they be considered.
fn judge(operations: &[&Operation]) -> CheckResult {
    let mut seen: BTreeSet<ValueId> = BTreeSet::new();
    for operation in operations {
        match operation.saw {
            Saw::Present { value, .. } => seen.extend(value),
            Saw::Done { old, .. } => seen.extend(old.flatten()),
            _ => {}
        }
    }
    let was_seen = |operation: &Operation| match (operation.saw, operation.asked) {
        (Saw::Unknown, Asked::Put { value, .. }) => seen.contains(&value),
        (saw, _) => saw != Saw::Unknown,
    };
    let known: Vec<_> = operations
        .iter()
        .filter(|o| was_seen(o))
        .map(|o| step(o))
        .collect();
    if check_operations_timeout::<Register>(&known, TIME_LIMIT) == CheckResult::Ok {
        return CheckResult::Ok;
    }
    let all: Vec<_> = operations.iter().map(|operation| step(operation)).collect();
    check_operations_timeout::<Register>(&all, TIME_LIMIT)
}

fn step(operation: &Operation) -> porcupine_rs::Operation<Register> {
    porcupine_rs::Operation {
        client_id: Some(operation.client),
        call_time: operation.invoked_us as i64,
        return_time: match operation.returned_us {
            NEVER => i64::MAX,
            returned_us => returned_us as i64,
        },
        op: Step {
            asked: operation.asked,
            saw: operation.saw,
        },
        metadata: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Deadline, Expiry};

    fn history(steps: &[(u64, u64, Asked, Saw)]) -> History {
        let mut history = History::default();
        let key = history.keys.add("r".to_owned(), KeyClass::Register);
        for (client, &(invoked_us, returned_us, asked, saw)) in steps.iter().enumerate() {
            let client = client as u32;
            let operation = Operation {
                client,
                key,
                invoked_us,
                returned_us,
                asked,
                saw,
            };
            history.operations.push(operation);
        }
        history
    }

    #[test]
    fn it_agrees_about_stale_reads_and_unknown_writes() {
        let put = |value| Asked::Put {
            value: ValueId(value),
            when: When::Always,
            expiry: Expiry::Never,
        };
        let ok = Saw::Done {
            version: None,
            deadline: Deadline::NotSaid,
            old: None,
        };
        let got = |value| Saw::Present {
            value: Some(ValueId(value)),
            version: None,
            deadline: Deadline::NotSaid,
        };
        let good = history(&[
            (0, 1, put(1), ok),
            (2, NEVER, put(2), Saw::Unknown),
            (3, 4, Asked::Read, got(1)),
            (5, 6, Asked::Read, got(2)),
        ]);
        assert!(ask(&good).violations.is_empty());
        let bad = history(&[
            (0, 1, put(1), ok),
            (2, 3, put(2), ok),
            (4, 5, Asked::Read, got(1)),
        ]);
        assert_eq!(ask(&bad).violations.len(), 1);
    }
}
