//! Who calls, with what permit, and which records the path names: what handlers take out of a request.

use axum::extract::{FromRequestParts, Path, Query};
use http::request::Parts;
use http::{Extensions, HeaderMap};
use pim_core::context::RequestContext;
use pim_core::id::{Id, IdKind};
use pim_core::problem::{self, Problem};
use pim_core::rbac::{AccessKind, Permit};
use pim_data::consistency::{Consistency, ConsistencyToken};
use serde::de::DeserializeOwned;
use utoipa::IntoParams;
use utoipa::openapi::path::ParameterIn;

use super::{CONSISTENCY_HEADER, Failure};

/// Who calls, and how fresh an answer must be.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The context.
    pub cx: RequestContext,
    /// What the caller has seen already.
    pub consistency: Consistency,
}

impl Caller {
    pub(super) fn of(extensions: &Extensions) -> Result<Self, Failure> {
        let cx = extensions.get::<RequestContext>().cloned();
        let cx = cx.ok_or_else(|| Problem::of(problem::UNAUTHENTICATED))?;
        Ok(Self { cx, consistency: Consistency::Strong })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Failure> {
        let mut caller = Self::of(&parts.extensions)?;
        if let Some(token) = seen_by(&parts.headers)? {
            caller.consistency = Consistency::ReadYourWrites(token);
        }
        Ok(caller)
    }
}

/// The token that the caller brings, if any.
pub(super) fn seen_by(headers: &HeaderMap) -> Result<Option<ConsistencyToken>, Failure> {
    let Some(value) = headers.get(CONSISTENCY_HEADER) else { return Ok(None) };
    let token = value.to_str().ok().and_then(|text| text.parse::<ConsistencyToken>().ok());
    let bad = || Problem::of(problem::BAD_REQUEST).detail("x-pim-token is no token");
    Ok(Some(token.ok_or_else(bad)?))
}

/// The permit that the policy granted for this route.
#[derive(Clone, Debug)]
pub struct May<A: AccessKind>(pub Permit<A>);

impl<S: Send + Sync, A: AccessKind> FromRequestParts<S> for May<A> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Failure> {
        let permit = parts.extensions.get::<Permit<A>>().cloned();
        permit.map(Self).ok_or_else(|| Problem::of(problem::FORBIDDEN).into())
    }
}

/// The query, whose parameters all fit.
#[derive(Clone, Copy, Debug)]
pub struct Asked<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + IntoParams> FromRequestParts<S> for Asked<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Failure> {
        let asked = Query::<T>::try_from_uri(&parts.uri);
        // What is taken is said, never what was sent.
        let refused = |_| Problem::of(problem::INVALID_QUERY).detail(taken_by::<T>()).into();
        asked.map(|Query(asked)| Self(asked)).map_err(refused)
    }
}

/// The parameters of a query in a sentence.
fn taken_by<T: IntoParams>() -> String {
    let parameters = T::into_params(|| Some(ParameterIn::Query));
    let told = parameters.iter().map(|it| match &it.description {
        Some(description) => format!("{} ({})", it.name, description.trim_end_matches('.')),
        None => it.name.clone(),
    });
    format!("takes {}", told.collect::<Vec<_>>().join(", "))
}

/// Ids out of the path, each of its kind.
#[derive(Clone, Copy, Debug)]
pub struct PathId<T>(pub T);

fn id_of<K: IdKind>(text: &str) -> Result<Id<K>, Failure> {
    text.parse()
        .map_err(|error: pim_core::id::ParseIdError| Problem::of(problem::INVALID_ID).detail(error.to_string()).into())
}

impl<S: Send + Sync, K: IdKind> FromRequestParts<S> for PathId<Id<K>> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        let Path(text) = path.map_err(|_| Problem::of(problem::INVALID_ID))?;
        id_of(&text).map(Self)
    }
}

impl<S: Send + Sync, K: IdKind, L: IdKind> FromRequestParts<S> for PathId<(Id<K>, Id<L>)> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let path = Path::<(String, String)>::from_request_parts(parts, state).await;
        let Path((home, child)) = path.map_err(|_| Problem::of(problem::INVALID_ID))?;
        let (home, child) = (id_of::<K>(&home)?, id_of::<L>(&child)?);
        if home.bucket() != child.bucket() {
            return Err(Problem::of(problem::WRONG_BUCKET).into());
        }
        Ok(Self((home, child)))
    }
}
