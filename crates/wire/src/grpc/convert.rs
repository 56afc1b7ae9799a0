//! Requests as commands, outcomes as replies.

use bytes::Bytes;
use holdfast_format::{ClientId, ClusterMs, Namespace, Version};

use super::failure::CallError;
use super::v1;
use crate::command::{
    AbsoluteDeadline, Command, Condition, ExpiryChange, Meta, Once, Op, Outcome, TouchCondition,
};

/// A request understood: the command, and what its outcome is to be told as.
pub(super) struct Asked {
    pub command: Command,
    pub once: Option<Once>,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Create,
    Read,
    Write,
    Touch,
    Delete { must_exist: bool },
}

impl TryFrom<v1::CreateRequest> for Asked {
    type Error = CallError;
    fn try_from(request: v1::CreateRequest) -> Result<Asked, CallError> {
        let mut check = Checker::default();
        let op = Op::Put {
            value: request.value,
            condition: Condition::Absent,
            expiry: check.expiry(request.expiry, ExpiryChange::Clear),
            return_old: false,
        };
        check.asked(
            Kind::Create,
            request.namespace,
            request.key,
            op,
            request.idempotency,
        )
    }
}

impl TryFrom<v1::ReadRequest> for Asked {
    type Error = CallError;
    fn try_from(request: v1::ReadRequest) -> Result<Asked, CallError> {
        let mut check = Checker::default();
        if request.touch && request.times_only {
            check.fault("times_only", "cannot go with touch; call Touch");
        }
        let op = if request.touch {
            Op::Touch {
                condition: TouchCondition::Always,
                expiry: ExpiryChange::Slide,
                return_value: true,
            }
        } else {
            if request.idempotency.is_some() {
                check.fault("idempotency", "belongs to writes");
            }
            if request.times_only {
                Op::Stat
            } else {
                Op::Get
            }
        };
        check.asked(
            Kind::Read,
            request.namespace,
            request.key,
            op,
            request.idempotency,
        )
    }
}

impl TryFrom<v1::WriteRequest> for Asked {
    type Error = CallError;
    fn try_from(request: v1::WriteRequest) -> Result<Asked, CallError> {
        use v1::write_request::Condition as Given;
        let mut check = Checker::default();
        let condition = match request.condition {
            Some(Given::MustExist(true)) => Condition::Present,
            Some(Given::MustNotExist(true)) => Condition::Absent,
            Some(Given::Version(version)) => Condition::Version(Version(version)),
            Some(Given::MustExist(false) | Given::MustNotExist(false)) | None => Condition::Always,
        };
        let expiry = check.expiry(request.expiry, ExpiryChange::Keep);
        let op = Op::Put {
            value: request.value,
            condition,
            expiry,
            return_old: false,
        };
        check.asked(
            Kind::Write,
            request.namespace,
            request.key,
            op,
            request.idempotency,
        )
    }
}

impl TryFrom<v1::TouchRequest> for Asked {
    type Error = CallError;
    fn try_from(request: v1::TouchRequest) -> Result<Asked, CallError> {
        let mut check = Checker::default();
        let condition = match request.version {
            Some(version) => TouchCondition::Version(Version(version)),
            None => TouchCondition::Always,
        };
        let expiry = check.expiry(request.expiry, ExpiryChange::Slide);
        let op = Op::Touch {
            condition,
            expiry,
            return_value: false,
        };
        check.asked(
            Kind::Touch,
            request.namespace,
            request.key,
            op,
            request.idempotency,
        )
    }
}

impl TryFrom<v1::DeleteRequest> for Asked {
    type Error = CallError;
    fn try_from(request: v1::DeleteRequest) -> Result<Asked, CallError> {
        use v1::delete_request::Condition as Given;
        let condition = match request.condition {
            Some(Given::MustExist(true)) => Condition::Present,
            Some(Given::Version(version)) => Condition::Version(Version(version)),
            Some(Given::MustExist(false)) | None => Condition::Always,
        };
        let kind = Kind::Delete {
            must_exist: condition != Condition::Always,
        };
        let op = Op::Delete {
            condition,
            return_old: false,
        };
        Checker::default().asked(
            kind,
            request.namespace,
            request.key,
            op,
            request.idempotency,
        )
    }
}

impl TryFrom<v1::StreamRequest> for Asked {
    type Error = CallError;
    fn try_from(request: v1::StreamRequest) -> Result<Asked, CallError> {
        use v1::stream_request::Request as Given;
        match request.request {
            Some(Given::Create(request)) => request.try_into(),
            Some(Given::Read(request)) => request.try_into(),
            Some(Given::Write(request)) => request.try_into(),
            Some(Given::Touch(request)) => request.try_into(),
            Some(Given::Delete(request)) => request.try_into(),
            None => Err(CallError::invalid(vec![("request", "is empty".to_owned())])),
        }
    }
}

impl Asked {
    /// The answer, given the outcome of the command.
    pub(super) fn answer(kind: Answers, outcome: Outcome) -> Result<v1::result::Result, CallError> {
        use v1::result::Result as Told;
        match (kind.0, outcome) {
            (_, Outcome::Failed(failure)) => Err(failure.into()),
            (Kind::Create, Outcome::Done { meta, .. }) => {
                let (version, times) = told(&meta);
                Ok(Told::Create(v1::CreateReply { version, times }))
            }
            (Kind::Write, Outcome::Done { meta, .. }) => {
                let (version, times) = told(&meta);
                Ok(Told::Write(v1::WriteReply { version, times }))
            }
            (Kind::Touch, Outcome::Done { meta, .. }) => {
                let (version, times) = told(&meta);
                Ok(Told::Touch(v1::TouchReply { version, times }))
            }
            (Kind::Delete { .. }, Outcome::Done { meta, .. }) => {
                Ok(Told::Delete(v1::DeleteReply {
                    version: meta.version.0,
                    existed: true,
                }))
            }
            (Kind::Read, Outcome::Value { value, meta }) => {
                let (version, times) = told(&meta);
                Ok(Told::Read(v1::ReadReply {
                    version,
                    times,
                    value,
                }))
            }
            (Kind::Delete { must_exist: false }, Outcome::Absent { version }) => {
                Ok(Told::Delete(v1::DeleteReply {
                    version: version.0,
                    existed: false,
                }))
            }
            (
                Kind::Read | Kind::Touch | Kind::Write | Kind::Delete { .. },
                Outcome::Absent { version },
            ) => Err(CallError::not_found(version.0)),
            (
                Kind::Create,
                Outcome::Refused {
                    version, current, ..
                },
            ) => Err(CallError::already_exists(
                current.map_or(version, |meta| meta.version).0,
            )),
            (Kind::Read, Outcome::Refused { .. }) => Err(CallError::mismatch()),
            (
                _,
                Outcome::Refused {
                    version,
                    current: None,
                    ..
                },
            ) => Err(CallError::not_found(version.0)),
            (
                _,
                Outcome::Refused {
                    current: Some(meta),
                    ..
                },
            ) => Err(if kind.1 {
                CallError::already_exists(meta.version.0)
            } else {
                CallError::other_version(meta.version.0)
            }),
            _ => Err(CallError::mismatch()),
        }
    }

    /// What of the request decides how its outcome is told.
    pub(super) fn answers(&self) -> Answers {
        let absent = matches!(
            self.command.op,
            Op::Put {
                condition: Condition::Absent,
                ..
            }
        );
        Answers(self.kind, absent)
    }
}

/// The kind of request, and whether its session must not exist.
#[derive(Clone, Copy)]
pub(super) struct Answers(Kind, bool);

/// Times of a session as replies tell them.
fn told(meta: &Meta) -> (u64, Option<v1::Times>) {
    let times = v1::Times {
        deadline_unix_ms: meta.deadline.map(|at| at.0),
        remaining_ms: meta.remaining_ms,
        idle_ms: meta.idle_ms,
        absolute_unix_ms: meta.absolute.map(|at| at.0),
    };
    (meta.version.0, Some(times))
}

/// Collects what is wrong with a request, so that a caller learns all of it at once.
#[derive(Default)]
struct Checker {
    violations: Vec<(&'static str, String)>,
}

impl Checker {
    fn fault(&mut self, field: &'static str, what: impl Into<String>) {
        self.violations.push((field, what.into()));
    }

    fn expiry(&mut self, given: Option<v1::Expiry>, absent: ExpiryChange) -> ExpiryChange {
        use v1::expiry::Absolute as Given;
        let Some(v1::Expiry { idle_ms, absolute }) = given else {
            return absent;
        };
        if idle_ms == Some(0) {
            self.fault("expiry.idle_ms", "must be positive");
        }
        let absolute = match absolute {
            Some(Given::AbsoluteInMs(0)) => {
                self.fault("expiry.absolute_in_ms", "must be positive");
                None
            }
            Some(Given::AbsoluteInMs(ms)) => Some(AbsoluteDeadline::InMs(ms)),
            Some(Given::AbsoluteUnixMs(ms)) => Some(AbsoluteDeadline::At(ClusterMs(ms))),
            None => None,
        };
        match (idle_ms, absolute) {
            (None, None) => ExpiryChange::Clear,
            (idle_ms, absolute) => ExpiryChange::Session { idle_ms, absolute },
        }
    }

    fn asked(
        mut self,
        kind: Kind,
        namespace: u32,
        key: Bytes,
        op: Op,
        idempotency: Option<v1::Idempotency>,
    ) -> Result<Asked, CallError> {
        let namespace = u8::try_from(namespace).unwrap_or_else(|_| {
            self.fault("namespace", "must be below 256");
            0
        });
        if key.is_empty() {
            self.fault("key", "must not be empty");
        }
        let once = idempotency.map(|given| {
            if given.client_id == 0 {
                self.fault(
                    "idempotency.client_id",
                    "comes from OpenClient and is not 0",
                );
            }
            if given.sequence == 0 {
                self.fault("idempotency.sequence", "counts from 1");
            }
            if given.acknowledged_below > given.sequence {
                self.fault("idempotency.acknowledged_below", "must not exceed sequence");
            }
            if given.lease_until_unix_ms == 0 {
                self.fault("idempotency.lease_until_unix_ms", "must be given");
            }
            Once {
                client: ClientId(given.client_id),
                sequence: given.sequence,
                acknowledged: given.acknowledged_below,
                lease_until: ClusterMs(given.lease_until_unix_ms),
            }
        });
        if self.violations.is_empty() {
            let command = Command {
                namespace: Namespace(namespace),
                key,
                op,
            };
            Ok(Asked {
                command,
                once,
                kind,
            })
        } else {
            Err(CallError::invalid(self.violations))
        }
    }
}
