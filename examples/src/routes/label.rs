//! Routes as a closed set of labels.

use http::Method;
use pim_core::role::ClosedEnum;

use super::{Match, ROUTES, find};

/// A route, or everything else, as a label of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteLabel(u8);

const COUNT: usize = ROUTES.len() + 1;

const ALL: [RouteLabel; COUNT] = {
    let mut all = [RouteLabel(0); COUNT];
    let mut index = 0;
    while index < COUNT {
        // The table has fewer than 255 routes, or this constant would not fit.
        all[index] = RouteLabel(index as u8);
        index += 1;
    }
    all
};

const NAMES: [&str; COUNT] = {
    let mut names = ["other"; COUNT];
    let mut index = 0;
    while index < ROUTES.len() {
        names[index] = ROUTES[index].label;
        index += 1;
    }
    names
};

/// Every label value: the routes in the order of the table, then `other`.
pub const ROUTE_LABELS: &[&str] = &NAMES;

impl ClosedEnum for RouteLabel {
    const ALL: &'static [Self] = &ALL;

    fn code(self) -> u8 {
        self.0
    }

    fn name(self) -> &'static str {
        NAMES[usize::from(self.0)]
    }
}

impl RouteLabel {
    /// The label of a request.
    #[must_use]
    pub fn of(method: &Method, path: &str) -> Self {
        let position = match find(method, path) {
            Match::Found(route) => ROUTES.iter().position(|known| known.label == route.label),
            Match::OtherMethods(_) | Match::Unknown => None,
        };
        ALL[position.unwrap_or(ROUTES.len())]
    }
}
