//! W3C Trace Context: the `traceparent` that joins a request's hops.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// 16 bytes that name a trace; never all zero.
///
/// ```
/// use pim_core::context::{TraceContext, TraceId};
///
/// let trace = TraceContext::root().trace_id();
/// assert_eq!(trace.to_string().parse::<TraceId>()?, trace);
/// assert!("0".repeat(32).parse::<TraceId>().is_err());
/// # Ok::<(), pim_core::context::ParseTraceIdError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TraceId(u128);
/// 8 bytes that name a span; never all zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpanId(u64);

impl TraceId {
    /// The number.
    #[must_use]
    pub const fn get(self) -> u128 {
        self.0
    }
}

impl SpanId {
    /// Mints a random one.
    #[must_use]
    pub fn mint() -> Self {
        loop {
            let (high, _) = Uuid::new_v4().as_u64_pair();
            if high != 0 {
                return Self(high);
            }
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// A text that is no trace id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("trace id is not 32 lower case hexadecimal digits, or all zero")]
pub struct ParseTraceIdError;

impl FromStr for TraceId {
    type Err = ParseTraceIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_hex = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let id = u128::from_str_radix(text, 16).ok().filter(|id| is_hex && *id != 0);
        id.map(Self).ok_or(ParseTraceIdError)
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}
impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Trace, span and sampling decision; the text form is W3C `traceparent` version 00.
///
/// The span's own parent is known to the hop that made it, and does not travel.
///
/// ```
/// use pim_core::context::TraceContext;
///
/// let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
/// let trace: TraceContext = text.parse()?;
/// assert!(trace.sampled());
/// assert_eq!(trace.to_string(), text);
/// # Ok::<(), pim_core::context::ParseTraceError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    trace: TraceId,
    span: SpanId,
    parent: Option<SpanId>,
    sampled: bool,
}

/// A text that is no `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a w3c traceparent")]
pub struct ParseTraceError;

impl TraceContext {
    /// A new, sampled trace.
    #[must_use]
    pub fn root() -> Self {
        Self { trace: TraceId(Uuid::now_v7().as_u128()), span: SpanId::mint(), parent: None, sampled: true }
    }

    /// From its parts; `None` when an id is all zero.
    #[must_use]
    pub const fn from_parts(trace: u128, span: u64, sampled: bool) -> Option<Self> {
        if trace == 0 || span == 0 {
            return None;
        }
        Some(Self { trace: TraceId(trace), span: SpanId(span), parent: None, sampled })
    }

    /// The same trace, one span further down.
    #[must_use]
    pub fn child(self) -> Self {
        Self { span: SpanId::mint(), parent: Some(self.span), ..self }
    }

    /// The same trace and span with another sampling decision.
    #[must_use]
    pub const fn with_sampled(self, sampled: bool) -> Self {
        Self { sampled, ..self }
    }

    /// Which trace.
    #[must_use]
    pub const fn trace_id(self) -> TraceId {
        self.trace
    }

    /// Which span is the parent of what follows.
    #[must_use]
    pub const fn span_id(self) -> SpanId {
        self.span
    }

    /// The span that this one is a child of; none for a root, and for one that came as text.
    #[must_use]
    pub const fn parent(self) -> Option<SpanId> {
        self.parent
    }

    /// Whether somebody upstream decided to keep it.
    #[must_use]
    pub const fn sampled(self) -> bool {
        self.sampled
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }
}

impl FromStr for TraceContext {
    type Err = ParseTraceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower_hex = |part: &str| part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let mut parts = text.split('-');
        let (Some(version), Some(trace), Some(span), Some(flags)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(ParseTraceError);
        };
        let lengths = (version.len(), trace.len(), span.len(), flags.len());
        // Later versions may append fields; version 00 may not, and ff is forbidden.
        let tail_allowed = version != "00" || parts.next().is_none();
        let hex = [version, trace, span, flags].into_iter().all(lower_hex);
        if lengths != (2, 32, 16, 2) || !tail_allowed || !hex || version == "ff" {
            return Err(ParseTraceError);
        }
        let trace = u128::from_str_radix(trace, 16).map_err(|_| ParseTraceError)?;
        let span = u64::from_str_radix(span, 16).map_err(|_| ParseTraceError)?;
        let flags = u8::from_str_radix(flags, 16).map_err(|_| ParseTraceError)?;
        Self::from_parts(trace, span, flags & 1 == 1).ok_or(ParseTraceError)
    }
}
