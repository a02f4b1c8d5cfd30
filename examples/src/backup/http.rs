//! Taking and listing backups, by an operator's word.

use axum::extract::State;
use pim_core::problem::{self, IntoProblem, Problem};
use pim_core::rbac::{Read, Write};
use serde::Deserialize;
use serde_json::json;
use utoipa::ToSchema;

use super::{is_name, list, take};
use crate::operations::{Intent, operate_to_its_end};
use crate::rig::{Answer, Command, Endpoints, Failure, May, Operation};
use crate::workers::Stores;

/// For the admin service.
pub(crate) fn endpoints() -> Endpoints<Stores> {
    Endpoints::new()
        .serve(Operation::tell("/v1/admin/backups", "Lists backups"), show)
        .serve(Operation::operate("/v1/admin/backups", "Takes a backup while everything serves"), make)
}

/// Body of a backup.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Making {
    /// What it is called: small letters, digits, `-`, `_` and `.`; the time when absent.
    #[schema(example = "before-the-drill")]
    name: Option<String>,
    /// Leaves out the databases that are on servers, for whoever takes base backups of these afterwards.
    #[serde(default)]
    files_only: bool,
}

async fn show(State(stores): State<Stores>, May(_permit): May<Read>) -> Result<Answer, Failure> {
    Answer::ok(&json!({"items": list(stores.cluster.data_dir()), "next_cursor": null}))
}

async fn make(
    State(stores): State<Stores>,
    May(permit): May<Write>,
    command: Command<Making>,
) -> Result<Answer, Failure> {
    let asked = command.body.name.clone();
    if asked.as_deref().is_some_and(|name| !is_name(name)) {
        let rule = "a name has 1 to 64 small letters, digits, `-`, `_` and `.`, and does not begin with `.`";
        return Err(Problem::of(problem::INVALID_BODY).detail(rule).into());
    }
    let (cluster, files_only) = (stores.cluster.clone(), command.body.files_only);
    let intent = Intent::new("backup.take", asked.clone().unwrap_or_default(), json!({"files_only": files_only}));
    let effect = async move {
        let name = asked.unwrap_or_else(|| named_after(&stores.cluster.clock().now().to_string()));
        let (place, report) = take(&stores, &name, files_only).await.map_err(IntoProblem::into_problem)?;
        Answer::ok(&json!({"name": name, "place": place, "report": report}))
    };
    // It goes on when the caller's time is over, and says in the operation's row what came of it.
    operate_to_its_end(cluster, &permit, command.cx, intent, effect).await
}

/// A time as a name: `20260302t090000.5z`.
fn named_after(time: &str) -> String {
    time.to_ascii_lowercase().chars().filter(|c| c.is_ascii_alphanumeric() || *c == '.').collect()
}

#[cfg(test)]
mod tests {
    use super::{is_name, named_after};

    #[test]
    fn a_time_is_a_name() {
        let name = named_after("2026-03-02T09:00:00.123456Z");
        assert_eq!(name, "20260302t090000.123456z");
        assert!(is_name(&name));
    }
}
