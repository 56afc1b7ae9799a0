//! Times in requests: relative or absolute, in seconds or milliseconds, and the options that give
//! them. A time that is refused is refused as in Redis, under the name of the command.

use holdfast_format::ClusterMs;

use super::RespError;
use crate::command::ExpiryChange;
use crate::resp::{Args, parse_integer};

/// What a number that means a time counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Seconds,
    Milliseconds,
}

/// From where it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counted {
    FromNow,
    FromEpoch,
}

/// The expiry option of SET or GETEX; at most one kind of them may be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExpiryOption {
    None,
    /// KEEPTTL or PERSIST.
    Alone(Alone),
    /// EX, PX, EXAT, PXAT with the index of its number.
    Time {
        unit: Unit,
        counted: Counted,
        number: usize,
    },
}

/// The option without a number that a command knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alone {
    KeepTtl,
    Persist,
}

impl ExpiryOption {
    /// Takes the option at `at`; the index of its last argument.
    pub(super) fn take(
        &mut self,
        args: &Args,
        at: usize,
        alone: Alone,
    ) -> Result<usize, RespError> {
        let word = match alone {
            Alone::KeepTtl => "keepttl",
            Alone::Persist => "persist",
        };
        if args.is(at, word) {
            return self.replace(ExpiryOption::Alone(alone)).map(|()| at);
        }
        let (unit, counted) = match () {
            () if args.is(at, "ex") => (Unit::Seconds, Counted::FromNow),
            () if args.is(at, "px") => (Unit::Milliseconds, Counted::FromNow),
            () if args.is(at, "exat") => (Unit::Seconds, Counted::FromEpoch),
            () if args.is(at, "pxat") => (Unit::Milliseconds, Counted::FromEpoch),
            () => return Err(RespError::Syntax),
        };
        let number = at + 1;
        if number == args.len() {
            return Err(RespError::Syntax);
        }
        self.replace(ExpiryOption::Time {
            unit,
            counted,
            number,
        })
        .map(|()| number)
    }

    /// The same kind may come again, and the last one counts, as in Redis.
    fn replace(&mut self, new: ExpiryOption) -> Result<(), RespError> {
        let kind = |option: ExpiryOption| match option {
            ExpiryOption::Time { unit, counted, .. } => ExpiryOption::Time {
                unit,
                counted,
                number: 0,
            },
            other => other,
        };
        if *self != ExpiryOption::None && kind(*self) != kind(new) {
            return Err(RespError::Syntax);
        }
        *self = new;
        Ok(())
    }

    /// The change that the option asks of `command`; `none` if it was not given.
    pub(super) fn change(
        self,
        args: &Args,
        none: ExpiryChange,
        command: &'static str,
    ) -> Result<ExpiryChange, RespError> {
        match self {
            ExpiryOption::None => Ok(none),
            ExpiryOption::Alone(Alone::KeepTtl) => Ok(ExpiryChange::Keep),
            ExpiryOption::Alone(Alone::Persist) => Ok(ExpiryChange::Clear),
            ExpiryOption::Time {
                unit,
                counted,
                number,
            } => positive_expiry(args.get(number), unit, counted, command),
        }
    }
}

/// A time for SET and its like, which must be positive.
pub(super) fn positive_expiry(
    text: &[u8],
    unit: Unit,
    counted: Counted,
    command: &'static str,
) -> Result<ExpiryChange, RespError> {
    if parse_integer(text).ok_or(RespError::NotAnInteger)? <= 0 {
        return Err(RespError::InvalidExpire { command });
    }
    match counted {
        Counted::FromNow => relative_expiry(text, unit, command),
        Counted::FromEpoch => absolute_expiry(text, unit, command),
    }
}

/// A time from now, possibly past.
pub(super) fn relative_expiry(
    text: &[u8],
    unit: Unit,
    command: &'static str,
) -> Result<ExpiryChange, RespError> {
    let ms = milliseconds(text, unit, command)?;
    if ms > i64::MAX - NOW_MS_MAX {
        return Err(RespError::InvalidExpire { command });
    }
    Ok(ExpiryChange::In { ms })
}

/// A moment, possibly past.
pub(super) fn absolute_expiry(
    text: &[u8],
    unit: Unit,
    command: &'static str,
) -> Result<ExpiryChange, RespError> {
    let ms = milliseconds(text, unit, command)?;
    Ok(ExpiryChange::At {
        deadline: ClusterMs(u64::try_from(ms).unwrap_or(0)),
    })
}

fn milliseconds(text: &[u8], unit: Unit, command: &'static str) -> Result<i64, RespError> {
    let number = parse_integer(text).ok_or(RespError::NotAnInteger)?;
    match unit {
        Unit::Milliseconds => Ok(number),
        Unit::Seconds => number
            .checked_mul(1000)
            .ok_or(RespError::InvalidExpire { command }),
    }
}

/// No clock stands at a later time than this (the year 2248), so a relative time that fits behind
/// it never overflows a deadline.
const NOW_MS_MAX: i64 = 1 << 43;
