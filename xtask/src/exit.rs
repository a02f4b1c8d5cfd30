//! Exit codes that scripts can rely on.

use std::fmt;
use std::process::ExitCode;

/// Why a task did not end well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Failure {
    /// A bad flag or argument.
    Usage = 2,
    /// Something that must be there is not: a program, a server, a running lab.
    Precondition = 3,
    /// A threshold, a deviation or a broken invariant.
    Threshold = 4,
    /// A fault, or a backup, that could not be undone.
    Restore = 5,
    /// A traffic run that says nothing.
    RunInvalid = 6,
    /// The lab refused the operation.
    Refused = 7,
}

/// A failure with the sentence that a person needs.
#[derive(Debug)]
pub(crate) struct Failed {
    failure: Failure,
    sentence: String,
    /// The type of the problem that the lab answered with.
    problem: String,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl std::error::Error for Failed {}

impl Failure {
    /// Makes an error that ends the process with this code.
    pub(crate) fn because(self, sentence: impl Into<String>) -> anyhow::Error {
        self.because_of("", sentence)
    }

    /// The same, of a problem that the lab answered with.
    pub(crate) fn because_of(self, problem: impl Into<String>, sentence: impl Into<String>) -> anyhow::Error {
        Failed { failure: self, sentence: sentence.into(), problem: problem.into() }.into()
    }

    /// Whether an error is this failure.
    pub(crate) fn is(self, error: &anyhow::Error) -> bool {
        error.downcast_ref::<Failed>().is_some_and(|failed| failed.failure == self)
    }

    /// The failure that an exit code of a lab program stands for.
    pub(crate) fn of_code(code: i32) -> Self {
        match code {
            2 => Self::Usage,
            3 => Self::Precondition,
            5 => Self::Restore,
            6 => Self::RunInvalid,
            7 => Self::Refused,
            _ => Self::Threshold,
        }
    }
}

/// Whether an error is a problem of this name that the lab answered with.
pub(crate) fn is_problem(error: &anyhow::Error, name: &str) -> bool {
    let problem = error.downcast_ref::<Failed>().map(|failed| failed.problem.as_str());
    problem.and_then(|problem| problem.strip_prefix("urn:pim:problem:")) == Some(name)
}

/// Prints the error and turns it into the exit code.
pub(crate) fn code_of(outcome: anyhow::Result<()>) -> ExitCode {
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    eprintln!("error: {error:#}");
    let failure = error.downcast_ref::<Failed>().map_or(Failure::Threshold, |failed| failed.failure);
    ExitCode::from(failure as u8)
}

#[cfg(test)]
mod tests {
    use super::Failure;

    #[test]
    fn a_program_s_code_is_taken_over() {
        for code in 2..=7 {
            assert_eq!(Failure::of_code(code) as i32, code);
        }
        assert_eq!(Failure::of_code(101), Failure::Threshold, "a panic is a broken invariant");
    }
}
