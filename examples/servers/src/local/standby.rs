//! A server that follows another: copying it, waiting until it streams, and taking over.

use std::path::Path;

use super::{LocalError, LocalServer};

impl LocalServer {
    /// Copies this server into a folder that does not exist yet, and starts the copy as a streaming standby with a
    /// replication slot of its own; returns when it streams. The name consists of `a-z`, `0-9` and `_`.
    ///
    /// # Errors
    /// When it cannot be copied, does not become ready, or does not stream.
    pub fn standby(&self, folder: &Path, name: &str) -> Result<Self, LocalError> {
        let mut standby = Self::in_folder(&self.programs, folder, name, &self.password)?;
        // Not by its name: commits that wait for the standby would be acknowledged by a copy that may never be one. The
        // standby itself takes its name from the cluster's.
        let mut copy = self.client("pg_basebackup", "postgres");
        copy.args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync", "--wal-method=stream"]);
        copy.args(["--create-slot", "--slot", name, "-D"]).arg(standby.data());
        standby.run(&mut copy)?;
        // What the primary waits for is none of its standby's business.
        standby.append(&[("synchronous_standby_names", "")])?;
        standby.start_on_free_port()?;
        self.wait_until_streaming(name)?;
        Ok(standby)
    }

    /// Waits until a standby of this name streams from this server.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn wait_until_streaming(&self, standby: &str) -> Result<(), LocalError> {
        let question = format!(
            "SELECT count(*) FROM pg_stat_replication WHERE application_name = '{standby}' AND state = 'streaming'"
        );
        self.wait_until("streaming", || self.sql("postgres", &question).is_ok_and(|count| count != "0"))
    }

    /// Makes commits wait for standbys, in the notation of `synchronous_standby_names`; empty for nobody. Returns when
    /// every commit that begins from now on does so, and the standbys that stream have been told.
    ///
    /// # Errors
    /// When it does not run.
    pub fn require_synchronous(&self, standbys: &str) -> Result<(), LocalError> {
        self.configure(&[("synchronous_standby_names", standbys)])?;
        let quoted = standbys.replace('\'', "''");
        // A reload only sends a signal. A new session's setting is that of the server's first process, which has sent
        // the signal on by then; the process that tells commits whether to wait is the one that makes checkpoints, and
        // it looks at its signals before each.
        let question = format!("SELECT current_setting('synchronous_standby_names') = '{quoted}'");
        self.wait_until("reloaded", || self.sql("postgres", &question).is_ok_and(|it| it == "t"))?;
        self.sql("postgres", "CHECKPOINT")?;
        let question = format!(
            "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = 'async'
                AND '{quoted}' ~ ('\\m' || application_name || '\\M')"
        );
        self.wait_until("synchronous", || self.sql("postgres", &question).is_ok_and(|count| count == "0"))
    }

    /// Waits until a standby has confirmed all that was acknowledged before, also to whoever did not wait for it.
    pub(crate) fn wait_until_confirmed_by(&self, standby: &str) -> Result<(), LocalError> {
        let place = self.sql("postgres", "SELECT pg_current_wal_flush_lsn()")?;
        let question = format!(
            "SELECT count(*) FROM pg_stat_replication WHERE application_name = '{standby}' AND flush_lsn >= '{place}'"
        );
        self.wait_until("followed", || self.sql("postgres", &question).is_ok_and(|count| count != "0"))
    }

    /// Whether a standby of this name streams and commits wait for it, by its own account.
    ///
    /// # Errors
    /// When it does not answer.
    pub(crate) fn is_synchronous_with(&self, standby: &str) -> Result<bool, LocalError> {
        let question = format!(
            "SELECT count(*) FROM pg_stat_replication
                WHERE application_name = '{standby}' AND state = 'streaming' AND sync_state = 'sync'"
        );
        Ok(self.sql("postgres", &question)? == "1")
    }

    /// Whether commits wait for this standby alone, or waited when it last ran: by its settings, which also tell of a server
    /// that is dead or answers nobody, and by its own account where it gives one.
    pub(crate) fn waits_for(&self, standby: &str) -> bool {
        self.is_set_to_wait_for(standby) && (!self.is_running() || self.is_synchronous_with(standby).unwrap_or(true))
    }

    /// The same, also while the standby does not stream, and nothing is acknowledged therefore.
    pub(crate) fn insists_on(&self, standby: &str) -> bool {
        let is_told = || self.sql("postgres", "SHOW synchronous_standby_names").is_ok_and(|names| names == standby);
        self.is_set_to_wait_for(standby) && (!self.is_running() || is_told())
    }

    fn is_set_to_wait_for(&self, standby: &str) -> bool {
        let mut look = self.programs.command("postgres");
        let told = self.run_apart(look.args(["-C", "synchronous_standby_names", "-D"]).arg(self.data()));
        told.is_ok_and(|names| names == standby)
    }

    /// Makes a standby a primary and returns when it takes writes. It waits for no standby of its own: one that is
    /// not there would keep its first commit waiting for ever.
    ///
    /// # Errors
    /// When it does not run, is a primary already, or does not take over.
    pub fn promote(&self) -> Result<(), LocalError> {
        self.configure(&[("synchronous_standby_names", "")])?;
        self.run(&mut self.control("promote"))
    }

    /// Whether it is a standby.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn is_standby(&self) -> Result<bool, LocalError> {
        Ok(self.sql("postgres", "SELECT pg_is_in_recovery()")? == "t")
    }

    /// Which history its log continues; each promotion begins another one. Of a server that is stopped, or answers nobody, it
    /// is what its files say, which may be an earlier one and is never a later one.
    pub(crate) fn timeline(&self) -> Result<u32, LocalError> {
        let question = "SELECT ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int";
        let told = if self.is_running() { self.sql("postgres", question).ok() } else { None };
        let timeline = match told {
            Some(told) => told.parse().ok(),
            None => {
                newest_timeline(&self.run_apart(self.programs.command("pg_controldata").arg("-D").arg(self.data()))?)
            }
        };
        timeline.ok_or_else(|| self.waited("told of its timeline"))
    }
}

/// Of what `pg_controldata` tells: a promotion comes before the first checkpoint of its history.
fn newest_timeline(told: &str) -> Option<u32> {
    let names = ["Latest checkpoint's TimeLineID:", "Min recovery ending loc's timeline:"];
    let number = |line: &str| names.iter().find_map(|name| line.strip_prefix(name)?.trim().parse().ok());
    told.lines().filter_map(number).max()
}

#[cfg(test)]
mod tests {
    use super::newest_timeline;

    /// Guard: who was stopped at once behind a promotion is known by what that wrote down first.
    #[test]
    fn a_history_is_known_before_its_first_checkpoint() {
        let told = |checkpoint: u32, recovery: u32| {
            newest_timeline(&format!(
                "Latest checkpoint's TimeLineID:       {checkpoint}\nLatest checkpoint's PrevTimeLineID:   9\n\
                 Min recovery ending loc's timeline:   {recovery}\n"
            ))
        };
        assert_eq!((told(1, 2), told(2, 0), newest_timeline("")), (Some(2), Some(2), None));
    }
}
