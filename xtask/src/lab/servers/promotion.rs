//! Making a shard's standby its primary. Programs follow it long before the other server is copied: what they have to know of it
//! is said first, so that it is said also when the copy fails or is broken off.

use std::path::Path;

use anyhow::Result;
use pim_servers::fleet::{Fleet, FleetError};
use serde_json::{Value, json};

use super::super::{claim, degradation};
use super::{failed, place, print, say};
use crate::exit::Failure;

/// What came of the steps.
struct Promoted {
    primary: String,
    given_up: Result<Option<Value>>,
    followed: Result<String, FleetError>,
}

/// Makes a shard's standby its primary; where that may lose something, only when told that it may.
pub(in crate::lab) fn promote(shard: u16, accept_loss: Option<&str>, json: bool) -> Result<()> {
    let _claim = claim::to_promote(shard)?;
    let place = place()?;
    let fleet = Fleet::open(&place).map_err(failed)?;
    if accept_loss.is_none() {
        degradation::refuse_loss(&fleet, &place, shard)?;
    }
    if !json {
        say(&format!("shard {shard}: the standby takes over, then it is copied to the other one"));
    }
    let give_up = || accept_loss.map_or(Ok(None), |reason| degradation::give_up(shard, reason));
    let promoted = steps(&fleet, &place, shard, give_up).map_err(|error| not_begun(error, shard, accept_loss))?;
    let given_up = promoted.given_up.as_ref().ok().and_then(Option::as_ref);
    if json {
        let told = json!({"shard": shard, "primary": promoted.primary, "given_up": given_up});
        print("shard-promote", &told, true);
    } else {
        let other = if promoted.followed.is_ok() { "the other one follows" } else { "the other one does not follow" };
        say(&format!("shard {shard}: {} is the primary, {other}", promoted.primary));
        if let Some(given_up) = given_up {
            say(&format!("what it has lost is given up: checkpoint {}", given_up["checkpoint"]));
        }
    }
    outcome(shard, promoted)
}

fn steps(
    fleet: &Fleet,
    place: &Path,
    shard: u16,
    give_up: impl FnOnce() -> Result<Option<Value>>,
) -> Result<Promoted, FleetError> {
    let primary = fleet.take_over(shard)?;
    degradation::is_over(place, shard);
    // At once: what is written under a number that was lost is told apart only from then on.
    let given_up = give_up();
    Ok(Promoted { primary, given_up, followed: fleet.rejoin(shard) })
}

/// Whoever says it once more, because the first time was broken off, may have got farther than that.
fn not_begun(error: FleetError, shard: u16, accept_loss: Option<&str>) -> anyhow::Error {
    let next = match (&error, accept_loss) {
        (FleetError::NoStandby { .. }, Some(reason)) => format!(
            "; where a promotion was broken off behind that: `cargo xtask lab shard accept-loss {shard} --reason {reason}`"
        ),
        _ => return failed(error),
    };
    Failure::Refused.because(format!("{:#}{next}", failed(error)))
}

/// Every step that failed is named, with what completes it.
fn outcome(shard: u16, promoted: Promoted) -> Result<()> {
    let Err(error) = promoted.followed else { return promoted.given_up.map(drop) };
    let alone = format!(
        "{} is the primary of shard {shard} and acknowledges alone: {:#}; next: cargo xtask lab shard rejoin {shard}",
        promoted.primary,
        failed(error)
    );
    let sentence = match promoted.given_up {
        Ok(_) => alone,
        Err(error) => format!("{error:#}; {alone}"),
    };
    Err(Failure::Threshold.because(sentence))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use pim_servers::temporary::TemporaryFleet;

    use super::{Failure, FleetError, Promoted, degradation, not_begun, outcome, steps};

    #[test]
    fn each_step_that_failed_is_named_with_what_completes_it() {
        let lost = || Err(Failure::Threshold.because("next: lab shard accept-loss 3"));
        let apart = || Err(FleetError::NoShard { shard: 3, shards: 1 });
        let told = |given_up, followed| {
            let promoted = Promoted { primary: "shard_3_b".to_owned(), given_up, followed };
            outcome(3, promoted).map_err(|error| format!("{error:#}"))
        };
        assert_eq!(told(Ok(None), Ok("shard_3_a".to_owned())), Ok(()));
        assert_eq!(told(lost(), Ok("shard_3_a".to_owned())), Err("next: lab shard accept-loss 3".to_owned()));
        let alone = told(Ok(None), apart()).expect_err("it does not follow");
        assert!(alone.starts_with("shard_3_b is") && alone.ends_with("lab shard rejoin 3"), "{alone}");
        let both = told(lost(), apart()).expect_err("neither");
        assert!(both.contains("accept-loss 3") && both.ends_with("lab shard rejoin 3"), "{both}");
    }

    #[test]
    fn whoever_gave_up_and_says_it_again_is_told_how_to_go_on() {
        let none = || FleetError::NoStandby { shard: 3, server: "shard_3_a".to_owned(), found: "stopped" };
        let told = not_begun(none(), 3, Some("drill"));
        assert!(Failure::Refused.is(&told) && told.to_string().ends_with("accept-loss 3 --reason drill`"), "{told}");
        assert!(!not_begun(none(), 3, None).to_string().contains("accept-loss"));
    }

    /// Guards: what was lost is given up before the copy, which may fail.
    #[test]
    #[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
    fn what_programs_have_to_know_is_said_before_the_other_server_is_copied() {
        let fleet = TemporaryFleet::new(1).expect("starts");
        let place = fleet.secrets().with_file_name("");
        let note = place.join("shard-0.degraded");
        fs::write(&note, "drill").expect("is noted");
        // A directory in the place of a file: the standby's secret cannot be told, so that the copy fails.
        let in_the_way = fleet.secrets().join(".shard-0-standby.new");
        fs::create_dir(&in_the_way).expect("is made");
        let mut roles = None;
        let promoted = steps(&fleet, &place, 0, || {
            roles = fleet.state().ok().map(|mut state| state.remove(0)).map(|it| (it.primary, it.standby.role));
            assert!(!note.exists(), "the new primary is none that was degraded");
            Ok(None)
        });
        let promoted = promoted.expect("takes over");
        let (primary, other) = roles.expect("is asked to give up");
        assert_eq!((primary.name.as_str(), primary.role, other), ("shard_0_b", "primary", "stopped"));
        assert_eq!(promoted.primary, "shard_0_b");
        assert!(matches!(promoted.followed, Err(FleetError::Path { .. })), "the copy fails");
        // The other one streams by now; nobody waits for it.
        let refused = degradation::refuse_loss(&fleet, &place, 0).expect_err("loses what it acknowledges alone");
        assert!(Failure::Refused.is(&refused) && refused.to_string().contains("shard rejoin 0"), "{refused}");

        fs::remove_dir(&in_the_way).expect("goes");
        assert_eq!(fleet.rejoin(0).expect("goes on"), "shard_0_a");
        degradation::refuse_loss(&fleet, &place, 0).expect("loses nothing");
    }
}
