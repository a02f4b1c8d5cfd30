//! Routes that describe themselves: what a document says that an operation takes is read off its handler's own arguments.

use axum::Json;
use axum::Router;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::handler::Handler;
use axum::routing::{MethodFilter, on};
use http::HeaderMap;
use pim_core::rbac::AccessKind;
use serde_json::{Value, json};
use utoipa::openapi::path::ParameterIn;
use utoipa::{IntoParams, ToSchema};

use super::openapi::{Schemas, reference};
use super::{Asked, Caller, Command, Conditional, May, Operation, PathId};

/// Routes over a state, and what the document of their service says of each.
#[derive(Debug)]
pub struct Endpoints<S> {
    routes: Router<S>,
    operations: Vec<Operation>,
}

impl<S: Clone + Send + Sync + 'static> Default for Endpoints<S> {
    fn default() -> Self {
        Self { routes: Router::new(), operations: Vec::new() }
    }
}

impl<S: Clone + Send + Sync + 'static> Endpoints<S> {
    /// None so far.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Serves an operation. Its body and parameters are those that the handler takes.
    #[must_use]
    pub fn serve<H: Handler<T, S>, T: Arguments + 'static>(mut self, operation: Operation, handler: H) -> Self {
        self.routes = self.routes.route(operation.template, on(operation.method.filter(), handler));
        self.operations.push(operation.taking(T::describe));
        self
    }

    /// These and those.
    #[must_use]
    pub fn merge(mut self, others: Self) -> Self {
        self.routes = self.routes.merge(others.routes);
        self.operations.extend(others.operations);
        self
    }

    /// What is served.
    #[must_use]
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// The routes.
    pub fn into_router(self) -> Router<S> {
        self.routes
    }
}

/// The methods that the lab's routes know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    Post,
    Put,
    Patch,
    Delete,
}

impl Verb {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }

    const fn filter(self) -> MethodFilter {
        match self {
            Self::Get => MethodFilter::GET,
            Self::Post => MethodFilter::POST,
            Self::Put => MethodFilter::PUT,
            Self::Patch => MethodFilter::PATCH,
            Self::Delete => MethodFilter::DELETE,
        }
    }
}

/// What an operation takes, beside what its path names.
#[derive(Debug, Default)]
pub struct Taken {
    pub(super) parameters: Vec<Value>,
    pub(super) body: Option<Value>,
}

impl Taken {
    fn header(&mut self, name: &str, required: bool, description: &str) {
        let schema = json!({"type": "string", "maxLength": 128});
        self.parameters.push(json!({
            "name": name, "in": "header", "required": required, "description": description, "schema": schema,
        }));
    }

    fn body<B: ToSchema>(&mut self, schemas: &mut Schemas, may_be_left_out: impl FnOnce(&Value) -> bool) {
        let schema = reference::<B>(schemas);
        let required = !schemas.get(B::name().as_ref()).is_some_and(may_be_left_out);
        self.body = Some(json!({"required": required, "content": {"application/json": {"schema": schema}}}));
    }
}

/// An argument of a handler, and what the document says of it.
pub trait Argument {
    /// Tells what it takes out of a request; nothing that a document speaks of, when nothing is said.
    fn describe(_taken: &mut Taken, _schemas: &mut Schemas) {}
}

/// All arguments of a handler.
pub trait Arguments {
    /// Tells what they take.
    fn describe(taken: &mut Taken, schemas: &mut Schemas);
}

impl<T: ToSchema> Argument for Command<T> {
    fn describe(taken: &mut Taken, schemas: &mut Schemas) {
        taken.header("Idempotency-Key", true, "makes a retry the same request");
        taken.header("x-pim-token", false, "what the caller has seen already");
        // No body at all is the empty object.
        taken.body::<T>(schemas, |schema| schema.get("required").is_none());
    }
}

impl<T: ToSchema> Argument for Conditional<T> {
    fn describe(taken: &mut Taken, schemas: &mut Schemas) {
        taken.header("If-Match", false, "the version that the caller has seen, as an ETag");
        Command::<T>::describe(taken, schemas);
    }
}

impl Argument for Caller {
    fn describe(taken: &mut Taken, _schemas: &mut Schemas) {
        taken.header("x-pim-token", false, "what the caller has seen already");
    }
}

impl<T: IntoParams> Argument for Asked<T> {
    fn describe(taken: &mut Taken, _schemas: &mut Schemas) {
        let parameters = T::into_params(|| Some(ParameterIn::Query));
        taken.parameters.extend(parameters.iter().map(|it| serde_json::to_value(it).unwrap_or_default()));
    }
}

impl<T: ToSchema> Argument for Result<Json<T>, JsonRejection> {
    fn describe(taken: &mut Taken, schemas: &mut Schemas) {
        taken.body::<T>(schemas, |_schema| false);
    }
}

impl<T> Argument for State<T> {}
impl<T> Argument for Path<T> {}
impl<T> Argument for PathId<T> {}
impl<A: AccessKind> Argument for May<A> {}
impl Argument for HeaderMap {}

macro_rules! arguments {
    ($($argument:ident)+) => {
        // The first member is axum's own mark.
        impl<M, $($argument: Argument),+> Arguments for (M, $($argument,)+) {
            fn describe(taken: &mut Taken, schemas: &mut Schemas) {
                $($argument::describe(taken, schemas);)+
            }
        }
    };
}

arguments!(A);
arguments!(A B);
arguments!(A B C);
arguments!(A B C D);
arguments!(A B C D E);
arguments!(A B C D E F);
