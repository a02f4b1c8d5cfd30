//! Lists in pages: `limit`, and a `cursor` that only this system makes.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pim_core::problem::{self, Problem};
use pim_data::repository::Page;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::IntoParams;
use uuid::Uuid;

use super::Failure;

const LIMIT_DEFAULT: u32 = 50;
const LIMIT_MAX: u32 = 200;

/// Query parameters of a list.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct PageQuery {
    /// How many items, 1 to 200
    limit: Option<u32>,
    /// The next_cursor of the page before
    cursor: Option<String>,
}

impl PageQuery {
    /// From two parameters of a larger query.
    #[must_use]
    pub const fn new(limit: Option<u32>, cursor: Option<String>) -> Self {
        Self { limit, cursor }
    }

    /// How many items.
    ///
    /// # Errors
    /// An `invalid-query` problem outside 1 to 200.
    pub fn limit(&self) -> Result<u32, Failure> {
        match self.limit.unwrap_or(LIMIT_DEFAULT) {
            limit @ 1..=LIMIT_MAX => Ok(limit),
            _ => Err(Problem::of(problem::INVALID_QUERY).detail("limit must be 1 to 200").into()),
        }
    }

    /// Where the page begins.
    ///
    /// # Errors
    /// An `invalid-cursor` problem.
    pub fn cursor(&self) -> Result<Option<Cursor>, Failure> {
        self.cursor.as_deref().map(Cursor::parse).transpose()
    }

    /// As a page of rows by id.
    ///
    /// # Errors
    /// An `invalid-query` or `invalid-cursor` problem.
    pub fn by_id(&self) -> Result<Page, Failure> {
        let after = match self.cursor()? {
            None => None,
            Some(cursor) => Some(cursor.uuid().ok_or_else(|| Problem::of(problem::INVALID_CURSOR))?),
        };
        Ok(Page { after, limit: self.limit()? })
    }
}

/// The place behind the last item of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor(String);

impl Cursor {
    /// Behind an item with this sort key.
    pub fn behind(key: impl Into<String>) -> Self {
        Self(key.into())
    }

    /// The sort key.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.0
    }

    fn uuid(&self) -> Option<Uuid> {
        Uuid::try_parse(&self.0).ok()
    }

    fn parse(text: &str) -> Result<Self, Failure> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok().filter(|bytes| bytes.len() <= 256);
        let key = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
        let key = key.and_then(|key| key.strip_prefix("1:").map(str::to_owned));
        // None of ours has one, and a server takes no U+0000.
        let key = key.filter(|key| !key.chars().any(char::is_control));
        key.map(Self).ok_or_else(|| Problem::of(problem::INVALID_CURSOR).into())
    }

    /// As it is shown to whoever is to give it back.
    #[must_use]
    pub fn text(&self) -> String {
        URL_SAFE_NO_PAD.encode(format!("1:{}", self.0))
    }
}

/// A page as a document; the cursor is there when the page is full.
pub fn page_of<T: Serialize>(items: &[T], limit: u32, key_of: impl Fn(&T) -> String) -> Value {
    let is_full = items.len() >= usize::try_from(limit).unwrap_or(usize::MAX);
    let next = items.last().filter(|_| is_full).map(|last| Cursor::behind(key_of(last)).text());
    json!({ "items": items, "next_cursor": next })
}
