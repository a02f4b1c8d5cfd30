//! What whoever opened a request learns of it, also when it gets no answer.

use std::sync::{Arc, OnceLock};

use super::RequestContext;

/// Goes along in a request's extensions, and holds its context as soon as there is one. Clones share it.
///
/// An answer says for whom and where it was; a request whose time is over, or whose caller has gone, has none.
#[derive(Clone, Debug, Default)]
pub struct ContextNote(Arc<OnceLock<RequestContext>>);

impl ContextNote {
    /// Notes it. The first one counts: whoever opens a context inside of another works for that one.
    pub(super) fn take(&self, cx: &RequestContext) {
        self.0.get_or_init(|| cx.clone());
    }

    /// The context, once somebody has been let in.
    #[must_use]
    pub fn context(&self) -> Option<&RequestContext> {
        self.0.get()
    }
}
