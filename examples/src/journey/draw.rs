//! A journey for people: as text, and as a mermaid sequence.

use std::fmt::Write as _;

use super::{HopState, Journey, Stage};

const fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::Caller => "caller",
        Stage::Edge => "edge",
        Stage::Service => "service",
        Stage::Commit => "commit",
        Stage::Publish => "publish",
        Stage::Apply => "apply",
        Stage::Command => "command",
    }
}

const fn state_name(state: HopState) -> &'static str {
    match state {
        HopState::Ok => "ok",
        HopState::Pending => "pending",
        HopState::DeadLettered => "dead-lettered",
        HopState::Lost => "lost",
        HopState::Unknown => "unknown",
    }
}

/// One line a hop.
#[must_use]
pub fn as_text(journey: &Journey) -> String {
    let mut text = format!("request  {}\n", journey.request_id);
    if let Some(trace) = &journey.trace_id {
        let _infallible = writeln!(text, "trace    {trace}");
    }
    for hop in &journey.hops {
        let after = hop
            .after_us
            .map_or_else(|| "          –".to_owned(), |us| format!("{:>5}.{:02} ms", us / 1000, us % 1000 / 10));
        let bound = if hop.at_most { "≤" } else { " " };
        let by = hop.by.as_deref().map(|by| format!("  by {by}")).unwrap_or_default();
        let n = hop.n.map(|n| format!("  n={n}")).unwrap_or_default();
        let _infallible = writeln!(
            text,
            "{bound}{after}  {:<8} {:<14} {}{n}{by}",
            stage_name(hop.stage),
            state_name(hop.state),
            hop.what
        );
    }
    text.push_str(if journey.complete { "complete" } else { "not complete yet" });
    if !journey.unknown.is_empty() {
        let _infallible = write!(text, ", without a word from {}", journey.unknown.join(", "));
    }
    text.push('\n');
    text
}

/// A sequence diagram.
#[must_use]
pub fn as_mermaid(journey: &Journey) -> String {
    let mut text = String::from(
        "sequenceDiagram\n  participant C as caller\n  participant G as gateway\n  participant S as service and shard\n  participant B as bus\n  participant R as read models\n",
    );
    for hop in &journey.hops {
        let arrow = match hop.stage {
            Stage::Caller => "C->>G",
            Stage::Edge => "G->>G",
            Stage::Service => "G->>S",
            Stage::Commit => "S->>S",
            Stage::Publish => "S->>B",
            Stage::Apply => "B->>R",
            Stage::Command => "B->>S",
        };
        let _infallible = writeln!(text, "  {arrow}: {} ({})", hop.what, state_name(hop.state));
    }
    text
}
