//! Which of a shard's two servers is the primary: the standby takes over, and the other one comes back as its standby. Each
//! step may be the last that a process does: saying the same again goes on.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::backup::group_of;
use super::{Fleet, FleetError, at, secret_of, server_name, state_of, write_secret};
use crate::local::{LocalServer, Stop};

impl Fleet {
    /// Makes a shard's standby its primary, and the old one, copied anew, its standby. Returns the name of the new primary.
    ///
    /// # Errors
    /// Those of [`Fleet::take_over`], and then those of [`Fleet::rejoin`].
    pub fn promote(&self, shard: u16) -> Result<String, FleetError> {
        let primary = self.take_over(shard)?;
        self.rejoin(shard)?;
        Ok(primary)
    }

    /// Makes a shard's standby its primary: the old one is stopped, if it still runs, and only then does the other
    /// take over; the shard's secrets name it from now on. It acknowledges alone until [`Fleet::rejoin`] has the old one
    /// follow. Returns its name.
    ///
    /// One that was broken off before the secrets named the new primary is gone on with, also when somebody has started
    /// the old one since, or both were stopped.
    ///
    /// # Errors
    /// When the standby does not run; then nothing was changed. When a server does not do as told.
    pub fn take_over(&self, shard: u16) -> Result<String, FleetError> {
        let (old, new) = self.pair(shard)?;
        if !new.is_running() && self.is_succeeded(&old, &new, shard) {
            new.start()?;
        }
        let found = state_of(&new).role;
        let has_taken_over = found == "primary" && self.has_taken_over(&new, &old, shard);
        if found != "standby" && !has_taken_over {
            return Err(FleetError::NoStandby { shard, server: new.name().to_owned(), found });
        }
        write_secret(&self.alone(shard), new.name())?;
        if old.is_running() {
            // A stop in order sends the standby all that there is; whoever does not stop must not go on writing.
            old.stop(Stop::Fast).or_else(|_| old.kill())?;
        }
        if !has_taken_over {
            new.promote()?;
        }
        self.tell(&new, &secret_of(shard))?;
        Ok(new.name().to_owned())
    }

    /// Copies the primary of a shard anew to the server that should follow it and does not, over whatever that one has. Commits
    /// wait for it from then on. Returns its name.
    ///
    /// # Errors
    /// When the primary does not run, or the other one follows it already, or has taken over; then nothing was changed. When a
    /// server does not do as told.
    pub fn rejoin(&self, shard: u16) -> Result<String, FleetError> {
        let (primary, standby) = self.pair(shard)?;
        let found = state_of(&primary).role;
        if found != "primary" {
            return Err(FleetError::NoPrimary { shard, server: primary.name().to_owned(), found });
        }
        if self.state_of(shard)?.is_synchronous {
            return Err(FleetError::Follows { shard, server: standby.name().to_owned() });
        }
        // Programs follow the newest history: what they have written since is there, and nowhere else.
        if self.is_succeeded(&primary, &standby, shard) {
            return Err(FleetError::Succeeded { shard, server: standby.name().to_owned() });
        }
        self.tell(&primary, &secret_of(shard))?;
        if standby.is_running() {
            standby.stop(Stop::Fast).or_else(|_| standby.kill())?;
        }
        // Left by one that was lost; the copy brings its own.
        let slot = format!(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{}'",
            standby.name()
        );
        primary.sql("postgres", &slot)?;
        self.copy_anew(&primary, &standby, shard)?;
        Ok(standby.name().to_owned())
    }

    /// Whether a shard's primary may have acknowledged commits that its standby has not, because they do not wait for it, or
    /// did not when the primary died.
    ///
    /// One whose data are gone cannot tell. Commits wait from the beginning of a shard on, and until they do again behind a
    /// promotion there is a note: without it they waited. What somebody else set at such a server is not known.
    ///
    /// # Errors
    /// When there is no such shard, or a server's folder cannot be read.
    pub fn acknowledges_alone(&self, shard: u16) -> Result<bool, FleetError> {
        let (primary, standby) = self.pair(shard)?;
        let waits = primary.is_missing()
            || primary.waits_for(standby.name())
            // Whoever has taken over streams from nobody; commits of the old one wait for it in vain.
            || (self.is_succeeded(&primary, &standby, shard) && primary.insists_on(standby.name()));
        Ok(self.is_alone(&primary, shard) || !waits)
    }

    fn copy_anew(&self, primary: &LocalServer, standby: &LocalServer, shard: u16) -> Result<(), FleetError> {
        let folder = self.folder.join(standby.name());
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(at(folder.clone()))?;
        }
        self.follow(primary, shard, standby.name())
    }

    /// A standby for which each commit of the primary waits from now on.
    pub(super) fn follow(&self, primary: &LocalServer, shard: u16, name: &str) -> Result<(), FleetError> {
        let standby = primary.standby(&self.folder.join(name), name)?;
        self.keep(&format!("{}-standby", secret_of(shard)), &self.login(&standby, "app", &secret_of(shard)))?;
        let owner = self.login(&standby, "owner", &secret_of(shard));
        self.keep(&format!("{}-standby-owner", secret_of(shard)), &owner)?;
        primary.require_synchronous(name)?;
        primary.wait_until_confirmed_by(name)?;
        self.forget_alone(shard)?;
        // It has the settings that the primary had when the copy came by them: the archive may have begun since. A shard that is
        // being added has none yet.
        match self.archive().map(|archive| archive.join(group_of(Some(shard)))).filter(|place| place.exists()) {
            Some(place) => Ok(standby.archive_into(&place)?),
            None => Ok(()),
        }
    }

    /// Whether a primary became it behind the other one. One that was the primary before the other is not such: where the
    /// data of either tell nothing any more, it is known by the note that was taken before it was told to.
    fn has_taken_over(&self, new: &LocalServer, old: &LocalServer, shard: u16) -> bool {
        match old.timeline().and_then(|before| Ok(new.timeline()? > before)) {
            Ok(it) => it,
            Err(_) => self.is_alone(new, shard),
        }
    }

    /// Whether the server that no secret names has taken over from the one that they name. It need not run.
    pub(super) fn is_succeeded(&self, named: &LocalServer, other: &LocalServer, shard: u16) -> bool {
        let is_none = other.is_missing() || other.is_standby().is_ok_and(|it| it);
        !is_none && self.has_taken_over(other, named, shard)
    }

    /// The note of who is told to take over, and acknowledges commits alone until the other one follows. Its name is one that
    /// goes with the shard's servers.
    fn alone(&self, shard: u16) -> PathBuf {
        self.folder.join(server_name(shard, 'a').trim_end_matches('a').to_owned() + "alone")
    }

    pub(super) fn is_alone(&self, server: &LocalServer, shard: u16) -> bool {
        fs::read_to_string(self.alone(shard)).is_ok_and(|name| name == server.name())
    }

    fn forget_alone(&self, shard: u16) -> Result<(), FleetError> {
        let note = self.alone(shard);
        match fs::remove_file(&note) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(FleetError::Path { path: note, source }),
            _ => Ok(()),
        }
    }

    /// The one that the shard's secret names, and the other one. One without data is at no address that a secret could name:
    /// it is the primary when the other one is not.
    pub(super) fn pair(&self, shard: u16) -> Result<(LocalServer, LocalServer), FleetError> {
        if shard >= self.shards {
            return Err(FleetError::NoShard { shard, shards: self.shards });
        }
        let path = self.secrets().join(secret_of(shard));
        let named = fs::read_to_string(&path).map_err(at(path))?;
        let (a, b) =
            (self.server_or_missing(&server_name(shard, 'a'))?, self.server_or_missing(&server_name(shard, 'b'))?);
        let is_named = |server: &LocalServer| self.login(server, "app", &secret_of(shard)) == named;
        let a_is_primary = is_named(&a) || (a.is_missing() && !is_named(&b));
        Ok(if a_is_primary { (a, b) } else { (b, a) })
    }
}
