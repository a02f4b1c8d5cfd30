//! What is wrong with a map, for machines and for people.

use std::fmt;

use serde::Serialize;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth a look; the map can be used.
    Warning,
    /// The map is refused.
    Error,
}

/// The rule that a finding speaks of. Stable text forms, for scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FindingCode {
    /// The file is no TOML, or has unknown or missing members.
    Syntax,
    /// The file has a format that this program does not know.
    Format,
    /// No shards, or too many.
    ShardCount,
    /// Two shards or endpoints share a number, id or name.
    Duplicate,
    /// A name or reference is empty, too long or has characters outside the set.
    Name,
    /// A bucket has no owner.
    Gap,
    /// A bucket has two owners.
    Overlap,
    /// A range ends before it begins or leaves 0..=4095.
    Range,
    /// A range names a shard that is not there.
    UnknownShard,
    /// A shard has the number that is kept for what stands beside the shards.
    ReservedShard,
    /// A range gives buckets to a retired shard.
    RetiredOwner,
    /// A shard has no primary, or several.
    Primary,
    /// An endpoint carries a connection string instead of the name of a secret.
    InlineSecret,
    /// The version is zero, or does not follow.
    Version,
    /// The parent digest is malformed, missing, or names another map.
    Parent,
    /// An epoch is zero or beyond the last, fell, did not rise with a change of hands, or rose by more than one.
    Epoch,
    /// The key space is another.
    Keyspace,
    /// Too many buckets change hands in one step.
    StepSize,
    /// A draining shard is given buckets.
    DrainingOwner,
    /// Shards own very different numbers of buckets.
    Skew,
    /// All endpoints of a shard share one zone.
    Zone,
}

impl FindingCode {
    /// Stable text form.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Syntax => "syntax",
            Self::Format => "format",
            Self::ShardCount => "shard-count",
            Self::Duplicate => "duplicate",
            Self::Name => "name",
            Self::Gap => "gap",
            Self::Overlap => "overlap",
            Self::Range => "range",
            Self::UnknownShard => "unknown-shard",
            Self::ReservedShard => "reserved-shard",
            Self::RetiredOwner => "retired-owner",
            Self::Primary => "primary",
            Self::InlineSecret => "inline-secret",
            Self::Version => "version",
            Self::Parent => "parent",
            Self::Epoch => "epoch",
            Self::Keyspace => "keyspace",
            Self::StepSize => "step-size",
            Self::DrainingOwner => "draining-owner",
            Self::Skew => "skew",
            Self::Zone => "zone",
        }
    }
}

/// One broken rule: where, what, and how to mend it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The rule.
    pub code: FindingCode,
    /// How much it matters.
    pub severity: Severity,
    /// JSON pointer into the map file.
    pub pointer: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub fix: &'static str,
}

impl Finding {
    pub(super) fn error(
        code: FindingCode,
        pointer: impl Into<String>,
        message: impl Into<String>,
        fix: &'static str,
    ) -> Self {
        Self { code, severity: Severity::Error, pointer: pointer.into(), message: message.into(), fix }
    }

    pub(super) fn warning(
        code: FindingCode,
        pointer: impl Into<String>,
        message: impl Into<String>,
        fix: &'static str,
    ) -> Self {
        Self { severity: Severity::Warning, ..Self::error(code, pointer, message, fix) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}: {} ({})", self.code.name(), self.pointer, self.message, self.fix)
    }
}

/// A map that cannot be used, with every reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("shard map refused with {} findings, first: {}", findings.len(), first(findings))]
pub struct MapError {
    findings: Vec<Finding>,
}

impl MapError {
    pub(super) fn one(finding: Finding) -> Self {
        Self { findings: vec![finding] }
    }

    /// The errors among `findings`, if there are any.
    pub(super) fn of(findings: &[Finding]) -> Option<Self> {
        let errors = findings.iter().filter(|finding| finding.severity == Severity::Error);
        let findings: Vec<_> = errors.cloned().collect();
        (!findings.is_empty()).then_some(Self { findings })
    }

    /// Every finding of severity `error`.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }
}

fn first(findings: &[Finding]) -> String {
    findings.first().map(ToString::to_string).unwrap_or_default()
}
