//! Which shards were told to go on without a standby, beside the servers' data: a lab's programs may be started again while a
//! primary is dead, and then nobody else remembers.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

fn place_of(servers: &Path, shard: u16) -> PathBuf {
    servers.join(format!("shard-{shard}.degraded"))
}

/// Takes a note, before it is done; nothing where there are no servers.
pub(super) fn take(servers: &Path, shard: u16, reason: &str) -> Result<()> {
    if !servers.is_dir() {
        return Ok(());
    }
    let place = place_of(servers, shard);
    fs::write(&place, reason).with_context(|| format!("write {}", place.display()))
}

/// Whether there is one.
pub(super) fn is_there(servers: &Path, shard: u16) -> bool {
    place_of(servers, shard).exists()
}

/// Takes it away: a standby has confirmed everything, or it is known to be lost.
pub(super) fn remove(servers: &Path, shard: u16) {
    // One that stays makes somebody ask once more.
    let _gone = fs::remove_file(place_of(servers, shard));
}

#[cfg(test)]
mod tests {
    use super::{is_there, remove, take};

    #[test]
    fn a_note_is_of_one_shard_and_stays_until_it_is_removed() {
        let servers = std::env::temp_dir().join(format!("pim-note-{}", std::process::id()));
        take(&servers, 1, "drill").expect("no servers, no note");
        assert!(!is_there(&servers, 1));
        std::fs::create_dir_all(&servers).expect("a folder");
        take(&servers, 1, "drill").expect("is written");
        take(&servers, 1, "again").expect("is written again");
        assert_eq!((is_there(&servers, 0), is_there(&servers, 1)), (false, true));
        remove(&servers, 1);
        remove(&servers, 1);
        assert!(!is_there(&servers, 1));
        std::fs::remove_dir_all(&servers).expect("goes");
    }
}
