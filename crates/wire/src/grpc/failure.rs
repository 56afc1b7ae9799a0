//! Which gRPC status says what.
//!
//! | status | meaning | what to do |
//! |---|---|---|
//! | NOT_FOUND | no such session | create one, or let the user log in |
//! | ALREADY_EXISTS | it must not exist and does | read it |
//! | ABORTED | it has another version | read it and decide again |
//! | INVALID_ARGUMENT | the request makes no sense (BadRequest names the fields) | fix the program |
//! | FAILED_PRECONDITION | the retry came after its lease; or an operator's order makes no sense now | find out by reading |
//! | RESOURCE_EXHAUSTED | memory is full, a namespace has all it may (QuotaFailure), or too much is queued (then with RetryInfo) | back off |
//! | UNAVAILABLE | nothing was executed (RetryInfo) | try again |
//! | DEADLINE_EXCEEDED | it may or may not have been executed; with reason TOO_LATE it was not | retry with the same idempotency |
//! | UNAUTHENTICATED | no or wrong password | |

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::v1;
use crate::command::Failure;

/// `ErrorInfo.domain`.
pub(super) const DOMAIN: &str = "holdfast.v1";
/// `ErrorInfo.metadata` key of the version that every answer carries.
pub(super) const VERSION: &str = "version";

/// After how long to try again when an owner is being replaced: a recovery takes about a second.
const RETRY_OWNER_MS: u32 = 200;
/// After how long when a queue is full: it drains within milliseconds.
const RETRY_QUEUE_MS: u32 = 50;

/// Why a request has no answer, before it becomes a status or an item of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CallError {
    pub code: Code,
    pub reason: &'static str,
    pub message: String,
    pub version: Option<u64>,
    pub retry_after_ms: Option<u32>,
    /// Field and what is wrong with it.
    pub violations: Vec<(&'static str, String)>,
    /// Whose quota is used up.
    pub quota_of: Option<String>,
}

impl CallError {
    fn new(code: Code, reason: &'static str, message: impl Into<String>) -> CallError {
        CallError {
            code,
            reason,
            message: message.into(),
            version: None,
            retry_after_ms: None,
            violations: Vec::new(),
            quota_of: None,
        }
    }

    pub(super) fn not_found(version: u64) -> CallError {
        let error = CallError::new(Code::NotFound, "NO_SESSION", "there is no such session");
        CallError {
            version: Some(version),
            ..error
        }
    }

    pub(super) fn already_exists(version: u64) -> CallError {
        let error = CallError::new(Code::AlreadyExists, "SESSION_EXISTS", "the session exists");
        CallError {
            version: Some(version),
            ..error
        }
    }

    pub(super) fn other_version(version: u64) -> CallError {
        let message = format!("the session has version {version}");
        let error = CallError::new(Code::Aborted, "OTHER_VERSION", message);
        CallError {
            version: Some(version),
            ..error
        }
    }

    pub(super) fn invalid(violations: Vec<(&'static str, String)>) -> CallError {
        let faults: Vec<String> = violations
            .iter()
            .map(|(field, what)| format!("{field} {what}"))
            .collect();
        let error = CallError::new(Code::InvalidArgument, "INVALID", faults.join("; "));
        CallError {
            violations,
            ..error
        }
    }

    /// An outcome that its command cannot have: another member's fault.
    pub(super) fn mismatch() -> CallError {
        CallError::new(
            Code::Internal,
            "MISMATCH",
            "the owner gave an answer that does not fit the command",
        )
    }

    /// An operator's order that makes no sense as things are.
    pub(super) fn refused(why: String) -> CallError {
        CallError::new(Code::FailedPrecondition, "REFUSED", why)
    }

    /// A result that does not fit into the reply of its batch any more.
    pub(super) fn reply_too_long(limit: usize) -> CallError {
        CallError::new(
            Code::ResourceExhausted,
            "REPLY_TOO_LONG",
            format!(
                "the reply would be longer than {limit} bytes; ask for fewer sessions at a time"
            ),
        )
    }

    pub(super) fn unauthenticated() -> CallError {
        CallError::new(
            Code::Unauthenticated,
            "PASSWORD",
            "send the password as metadata `authorization: Bearer <password>`",
        )
    }

    /// For a call of its own.
    pub(super) fn into_status(self) -> Status {
        let mut details = ErrorDetails::new();
        let version = self
            .version
            .map(|version| (VERSION.to_owned(), version.to_string()));
        details.set_error_info(
            self.reason,
            DOMAIN,
            version.into_iter().collect::<Metadata>(),
        );
        if let Some(ms) = self.retry_after_ms {
            details.set_retry_info(Some(Duration::from_millis(u64::from(ms))));
        }
        for (field, what) in self.violations {
            details.add_bad_request_violation(field, what);
        }
        if let Some(subject) = self.quota_of {
            details.add_quota_failure_violation(subject, self.message.clone());
        }
        if self.code == Code::Aborted {
            details.add_precondition_failure_violation("VERSION", "session", self.message.clone());
        }
        Status::with_error_details(self.code, self.message, details)
    }

    /// For an item of a batch.
    pub(super) fn into_item(self) -> v1::Error {
        v1::Error {
            code: self.code.into(),
            message: self.message,
            reason: self.reason.to_owned(),
            version: self.version,
            retry_after_ms: self.retry_after_ms,
        }
    }
}

/// What `tonic_types` takes metadata as; nobody iterates over it here.
#[allow(clippy::disallowed_types)]
type Metadata = std::collections::HashMap<String, String>;

impl From<Failure> for CallError {
    fn from(failure: Failure) -> CallError {
        let message = failure.to_string();
        let (code, reason, retry_after_ms) = match &failure {
            Failure::NotOwner | Failure::NotReady | Failure::Unreachable => {
                (Code::Unavailable, "NO_OWNER", Some(RETRY_OWNER_MS))
            }
            Failure::Busy => (Code::ResourceExhausted, "BUSY", Some(RETRY_QUEUE_MS)),
            // Without RetryInfo: memory does not come back by waiting.
            Failure::OutOfMemory => (Code::ResourceExhausted, "OUT_OF_MEMORY", None),
            Failure::NamespaceFull { namespace, .. } => {
                return CallError {
                    quota_of: Some(format!("namespace:{}", namespace.0)),
                    ..CallError::new(Code::ResourceExhausted, "NAMESPACE_FULL", message)
                };
            }
            Failure::StaleClient => (Code::FailedPrecondition, "STALE_CLIENT", None),
            Failure::TooLate => (Code::DeadlineExceeded, "TOO_LATE", None),
            Failure::OutcomeUnknown => (Code::DeadlineExceeded, "OUTCOME_UNKNOWN", None),
            // These messages name their field themselves.
            Failure::ValueTooLarge { .. }
            | Failure::NamespaceValueTooLarge { .. }
            | Failure::KeyTooLarge { .. } => {
                let field = match failure {
                    Failure::KeyTooLarge { .. } => "key",
                    _ => "value",
                };
                return CallError {
                    message: message.clone(),
                    ..CallError::invalid(vec![(field, message)])
                };
            }
            Failure::Invalid(_) => (Code::InvalidArgument, "INVALID", None),
        };
        CallError {
            retry_after_ms,
            ..CallError::new(code, reason, message)
        }
    }
}
