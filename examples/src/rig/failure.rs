//! What a handler gives back when it cannot give an answer.

use std::error::Error;

use axum::response::{IntoResponse, Response};
use pim_core::problem::{ILLEGAL_TRANSITION, IntoProblem, Problem, response_of};
use pim_data::entity::Entity;
use pim_data::unit::UnitError;
use pim_events::AppendError;

/// An error with what is behind it, in one line.
#[must_use]
pub fn reasons(error: &dyn Error) -> String {
    error.source().map_or_else(|| error.to_string(), |behind| format!("{error}: {}", reasons(behind)))
}

/// A failure on its way to becoming a problem document.
#[derive(Debug)]
pub enum Failure {
    /// Known by its type already.
    Problem(Box<Problem>),
    /// A unit of work that did not commit; may be worth another run, or hold the answer of an earlier one.
    Unit(UnitError),
}

impl Failure {
    /// The state machine of `E` does not lead from here to there.
    #[must_use]
    pub fn illegal_transition<E: Entity>(from: &'static str, to: &'static str) -> Self {
        let illegal = Problem::of(ILLEGAL_TRANSITION).with("entity", E::TABLE.name);
        illegal.with("from", from).with("to", to).into()
    }

    /// What the caller is told.
    #[must_use]
    pub fn into_problem(self) -> Problem {
        match self {
            Self::Problem(problem) => *problem,
            Self::Unit(error) => error.into_problem(),
        }
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::Problem(Box::new(problem))
    }
}

impl From<UnitError> for Failure {
    fn from(error: UnitError) -> Self {
        Self::Unit(error)
    }
}

impl From<AppendError> for Failure {
    fn from(error: AppendError) -> Self {
        error.into_problem().into()
    }
}

impl From<pim_data::repository::ReadError> for Failure {
    fn from(error: pim_data::repository::ReadError) -> Self {
        error.into_problem().into()
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        response_of(self.into_problem())
    }
}
