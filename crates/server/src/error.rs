//! Why a process could not start or had to end, as one sentence for the person who started it.

use std::fmt;

/// A chain of causes, outermost first. There is nothing to match on: every one of them ends the
/// command with its text on stderr and exit code 1.
#[derive(Debug)]
pub struct Fatal(String);

/// The result of everything that can only fail by ending the command.
pub type Outcome<T> = Result<T, Fatal>;

impl Fatal {
    pub fn new(text: impl Into<String>) -> Fatal {
        Fatal(text.into())
    }
}

impl fmt::Display for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Fatal {}

/// Says what was being attempted when something failed.
pub trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Outcome<T>;
}

impl<T, E: fmt::Display> Context<T> for Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Outcome<T> {
        self.map_err(|error| Fatal(format!("{}: {error}", what())))
    }
}
