//! The servers of a lab: a primary with a synchronous standby for each shard, and one for what is not sharded.
//!
//! Everything is in a folder, so that another process can go on with it: a folder for each server, the connection
//! strings as files in `secrets`, and the `shard-map.toml` that names them.

mod backup;
mod behind;
mod growth;
mod instant;
mod restore;
mod succession;

pub use backup::{BackupError, ServersBackup, backups_of};
pub use instant::Instant;
pub use restore::RestoredServers;

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::guard::{Guard, SERVERS};
use crate::local::{LocalError, LocalServer};
use crate::programs::{Programs, ProgramsError};
use crate::wait::pause;

/// Most shards of a fleet: each has two servers.
pub const SHARDS_MAX: u16 = 16;
/// How long somebody else is waited for who changes what servers there are: copying one takes a while.
const LOCK_PATIENCE: Duration = Duration::from_secs(120);

const BUCKETS: u32 = 4096;
const UNSHARDED: &str = "unsharded";
const SERVICE_SECRETS: &str = "service-secrets";
const LOCK: &str = "lock";
/// Databases of the server for what is not sharded, which are also the names of their secrets.
const UNSHARDED_DATABASES: [&str; 2] = ["control", "read-store"];

/// Logins whose password is that of the superuser.
const ROLES: &str = "
DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'pim_app') THEN
    CREATE ROLE pim_app NOLOGIN;
    EXECUTE format('CREATE ROLE pim_lab_owner LOGIN CREATEROLE PASSWORD %L', current_setting('lab.password'));
    EXECUTE format('CREATE ROLE pim_lab_app LOGIN PASSWORD %L IN ROLE pim_app', current_setting('lab.password'));
END IF; END $$";

/// Why a fleet cannot be what it should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FleetError {
    /// PostgreSQL cannot be run here.
    #[error(transparent)]
    Programs(#[from] ProgramsError),
    /// One of its servers.
    #[error(transparent)]
    Server(#[from] LocalError),
    /// A folder or a file of it.
    #[error("cannot use {}", path.display())]
    Path {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There are servers already, or there were.
    #[error("{} is there already: stop its servers first", folder.display())]
    Exists {
        /// Where.
        folder: PathBuf,
    },
    /// There are no servers.
    #[error("no servers have been started in {}", folder.display())]
    Absent {
        /// Where.
        folder: PathBuf,
    },
    /// A number of shards that cannot be.
    #[error("{shards} shards: there must be 1 to {SHARDS_MAX}")]
    Shards {
        /// What was asked for.
        shards: u16,
    },
    /// The archive has the log of a shard with the same number that was taken away.
    #[error("{} has the log of a shard of that number that is gone: move it away, with the backups that need it", folder.display())]
    Archived {
        /// Where.
        folder: PathBuf,
    },
    /// Somebody else begins an archive, adds a shard or takes one away.
    #[error("{} is held by somebody who begins an archive, adds a shard or takes one away, for {} s now", path.display(), LOCK_PATIENCE.as_secs())]
    Locked {
        /// What is held.
        path: PathBuf,
    },
    /// Somebody else has added shards, or taken some away.
    #[error("there are {found} shards by now, and were {known} a moment ago: look again, and say it again")]
    Changed {
        /// How many there are.
        found: u16,
        /// How many there were.
        known: u16,
    },
    /// A shard that is not there.
    #[error("there is no shard {shard}: the last one is {}", shards - 1)]
    NoShard {
        /// What was asked for.
        shard: u16,
        /// How many there are.
        shards: u16,
    },
    /// A shard whose standby cannot take over.
    #[error("shard {shard} has no running standby that could take over: {server} is {found}")]
    NoStandby {
        /// Which shard.
        shard: u16,
        /// The server that should be one.
        server: String,
        /// What it is instead.
        found: &'static str,
    },
    /// A shard whose primary cannot be copied.
    #[error("shard {shard} has no running primary that could be copied: {server} is {found}")]
    NoPrimary {
        /// Which shard.
        shard: u16,
        /// The server that should be one.
        server: String,
        /// What it is instead.
        found: &'static str,
    },
    /// A shard whose other server has taken over, and nobody was told.
    #[error(
        "{server} has taken over shard {shard}, and nobody was told: a copy would remove what it has acknowledged since"
    )]
    Succeeded {
        /// Which shard.
        shard: u16,
        /// Who has taken over.
        server: String,
    },
    /// A shard whose standby is as it should be.
    #[error("{server} follows the primary of shard {shard} already, and commits wait for it")]
    Follows {
        /// Which shard.
        shard: u16,
        /// Its standby.
        server: String,
    },
}

/// What a shard's servers are at present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardServers {
    /// Number of the shard.
    pub shard: u16,
    /// The one that its secret names.
    pub primary: ServerState,
    /// The other one.
    pub standby: ServerState,
    /// Whether each commit waits for the standby, by the primary's own account.
    pub is_synchronous: bool,
    /// Whether the other one has taken over, and no secret names it yet.
    pub is_succeeded: bool,
}

/// What a server is at present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerState {
    /// Its name.
    pub name: String,
    /// Where it listens on 127.0.0.1.
    pub port: u16,
    /// `primary`, `standby`, `stopped`, `silent` (it runs, but does not answer) or `missing` (it has no data, or half of them).
    pub role: &'static str,
}

/// The servers of a lab; the value is a handle, they outlive it.
#[derive(Debug)]
pub struct Fleet {
    programs: Programs,
    folder: PathBuf,
    password: String,
    shards: u16,
}

impl Fleet {
    /// Starts the servers of so many shards in a folder that does not exist yet. When that does not succeed, or this
    /// process ends meanwhile, nothing is left behind.
    ///
    /// # Errors
    /// When PostgreSQL is not installed, or a server does not become ready.
    pub fn create(folder: &Path, shards: u16) -> Result<Self, FleetError> {
        let (fleet, guard) = Self::guarded(folder, shards)?;
        guard.disarm().map_err(at(folder.to_owned()))?;
        Ok(fleet)
    }

    /// The same, but all of it goes with the guard.
    pub(crate) fn guarded(folder: &Path, shards: u16) -> Result<(Self, Guard), FleetError> {
        if shards == 0 || shards > SHARDS_MAX {
            return Err(FleetError::Shards { shards });
        }
        if folder.exists() {
            return Err(FleetError::Exists { folder: folder.to_owned() });
        }
        let at = |path: &Path| at(path.to_owned());
        let fleet = Self { programs: Programs::find()?, folder: folder.to_owned(), password: random()?, shards };
        if !is_made(folder)? {
            return Err(FleetError::Exists { folder: folder.to_owned() });
        }
        let guard = Guard::arm(SERVERS, &[folder.as_os_str()]).map_err(at(folder))?;
        fleet.make_secrets()?;
        for shard in 0..shards {
            fleet.create_shard(shard)?;
        }
        let server = LocalServer::create(&fleet.programs, &folder.join(UNSHARDED), UNSHARDED, &fleet.password)?;
        for database in UNSHARDED_DATABASES {
            fleet.provide(&server, database)?;
        }
        fleet.finish()?;
        Ok((fleet, guard))
    }

    fn make_secrets(&self) -> Result<(), FleetError> {
        let secrets = self.secrets();
        fs::DirBuilder::new().mode(0o700).create(&secrets).map_err(at(secrets.clone()))?;
        self.keep("fleet", &self.password)
    }

    /// What says to services where all of that is.
    fn finish(&self) -> Result<(), FleetError> {
        self.link_service_secrets()?;
        let map = self.shard_map();
        fs::write(&map, self.map()).map_err(at(map))
    }

    /// The servers that another process started.
    ///
    /// # Errors
    /// When there are none, or PostgreSQL is not installed any more.
    pub fn open(folder: &Path) -> Result<Self, FleetError> {
        let password = fs::read_to_string(folder.join("secrets/fleet"));
        let password = password.map_err(|_| FleetError::Absent { folder: folder.to_owned() })?;
        Ok(Self { programs: Programs::find()?, folder: folder.to_owned(), password, shards: shards_in(folder) })
    }

    /// The folder of the connection strings, one a file: `shard-0` (`-owner`, `-standby`, `-standby-owner`), `control` and
    /// `read-store` (`-owner`).
    #[must_use]
    pub fn secrets(&self) -> PathBuf {
        self.folder.join("secrets")
    }

    /// A folder with those of them that services need: no owner's but the read store's.
    #[must_use]
    pub fn service_secrets(&self) -> PathBuf {
        self.folder.join(SERVICE_SECRETS)
    }

    /// The map that names them.
    #[must_use]
    pub fn shard_map(&self) -> PathBuf {
        self.folder.join("shard-map.toml")
    }

    /// How many shards there are.
    #[must_use]
    pub const fn shards(&self) -> u16 {
        self.shards
    }

    /// What each shard's servers are at present.
    ///
    /// # Errors
    /// When a server's folder cannot be read.
    pub fn state(&self) -> Result<Vec<ShardServers>, FleetError> {
        (0..self.shards).map(|shard| self.state_of(shard)).collect()
    }

    /// What the server for control database and read store is at present.
    ///
    /// # Errors
    /// When its folder cannot be read.
    pub fn unsharded(&self) -> Result<ServerState, FleetError> {
        Ok(state_of(&self.server(UNSHARDED)?))
    }

    /// The server that a shard's secret names, and the other one.
    ///
    /// # Errors
    /// When there is no such shard, or a server's folder cannot be read.
    pub fn servers_of(&self, shard: u16) -> Result<(LocalServer, LocalServer), FleetError> {
        self.pair(shard)
    }

    /// The server of control database and read store.
    ///
    /// # Errors
    /// When its folder cannot be read.
    pub fn unsharded_server(&self) -> Result<LocalServer, FleetError> {
        self.server(UNSHARDED)
    }

    /// Stops all servers and removes the folder, also of a fleet that was not completed, or not removed to the end; and the
    /// archive of their logs, unless a backup beside the folder needs it.
    ///
    /// # Errors
    /// When there is none, or something is left.
    pub fn remove(folder: &Path) -> Result<(), FleetError> {
        if !folder.join("secrets").exists() && !is_remnant(folder) {
            return Err(FleetError::Absent { folder: folder.to_owned() });
        }
        backup::keep_needed_archive(folder);
        drop(Guard::arm(SERVERS, &[folder.as_os_str()]).map_err(at(folder.to_owned()))?);
        if folder.exists() {
            return Err(FleetError::Exists { folder: folder.to_owned() });
        }
        Ok(())
    }

    fn create_shard(&self, shard: u16) -> Result<(), FleetError> {
        let name = server_name(shard, 'a');
        let primary = LocalServer::create(&self.programs, &self.folder.join(&name), &name, &self.password)?;
        self.provide(&primary, &secret_of(shard))?;
        self.follow(&primary, shard, &server_name(shard, 'b'))
    }

    /// A database with an owner, who may change its schema, and a login for services, who owns nothing.
    fn provide(&self, server: &LocalServer, database: &str) -> Result<(), FleetError> {
        server.sql_with_password("postgres", ROLES)?;
        server.sql("postgres", &format!("CREATE DATABASE \"{database}\" OWNER pim_lab_owner"))?;
        self.tell(server, database)
    }

    /// Has the secrets of a database name this server. The last one is that by which the primary is known.
    fn tell(&self, server: &LocalServer, database: &str) -> Result<(), FleetError> {
        self.keep(&format!("{database}-owner"), &self.login(server, "owner", database))?;
        self.keep(database, &self.login(server, "app", database))
    }

    fn login(&self, server: &LocalServer, who: &str, database: &str) -> String {
        server.dsn_of(&format!("pim_lab_{who}"), &self.password, database)
    }

    /// Links, so that a secret that is told anew is told anew to services.
    fn link_service_secrets(&self) -> Result<(), FleetError> {
        let folder = self.service_secrets();
        fs::DirBuilder::new().mode(0o700).create(&folder).map_err(at(folder))?;
        (0..self.shards).try_for_each(|shard| self.link_secrets_of(shard))?;
        ["control", "read-store-owner"].into_iter().try_for_each(|name| self.link_secret(name))
    }

    fn link_secrets_of(&self, shard: u16) -> Result<(), FleetError> {
        let name = secret_of(shard);
        self.link_secret(&format!("{name}-standby"))?;
        self.link_secret(&name)
    }

    fn link_secret(&self, name: &str) -> Result<(), FleetError> {
        let link = self.service_secrets().join(name);
        symlink(Path::new("../secrets").join(name), &link).map_err(at(link))
    }

    /// Readers see the old secret or the new one.
    fn keep(&self, name: &str, secret: &str) -> Result<(), FleetError> {
        write_secret(&self.secrets().join(name), secret)
    }

    fn server(&self, name: &str) -> Result<LocalServer, FleetError> {
        Ok(LocalServer::open(&self.programs, &self.folder.join(name), name, &self.password)?)
    }

    /// One of a shard's two, also while it has no data: whoever copies it anew takes that away first.
    fn server_or_missing(&self, name: &str) -> Result<LocalServer, FleetError> {
        Ok(LocalServer::open_or_missing(&self.programs, &self.folder.join(name), name, &self.password)?)
    }

    /// Nobody else begins an archive, adds a shard or takes one away while this is held.
    fn lock(&self) -> Result<fs::File, FleetError> {
        let path = self.folder.join(LOCK);
        let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = opened.map_err(at(path.clone()))?;
        let give_up = std::time::Instant::now() + LOCK_PATIENCE;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(fs::TryLockError::WouldBlock) if std::time::Instant::now() < give_up => pause(),
                Err(fs::TryLockError::WouldBlock) => return Err(FleetError::Locked { path }),
                Err(fs::TryLockError::Error(source)) => return Err(FleetError::Path { path, source }),
            }
        }
    }

    fn state_of(&self, shard: u16) -> Result<ShardServers, FleetError> {
        let (primary, standby) = self.pair(shard)?;
        let is_synchronous = !self.is_alone(&primary, shard)
            && primary.is_running()
            && primary.is_synchronous_with(standby.name()).is_ok_and(|it| it);
        let is_succeeded = !is_synchronous && self.is_succeeded(&primary, &standby, shard);
        let (primary, standby) = (state_of(&primary), state_of(&standby));
        Ok(ShardServers { shard, primary, standby, is_synchronous, is_succeeded })
    }

    /// A shard as a map tells of it, in TOML: its number, its name, and its servers by the names of their secrets.
    #[must_use]
    pub fn entry_of(shard: u16) -> String {
        let name = secret_of(shard);
        let mut entry = format!("\n[[shards]]\nid = {shard}\nname = \"{name}\"\nstate = \"live\"\n");
        for (end, role) in [("", "primary"), ("-standby", "replica")] {
            let endpoint = format!("id = \"{name}{end}\"\nrole = \"{role}\"\ndsn_ref = \"{name}{end}\"");
            entry.push_str(&format!("[[shards.endpoints]]\n{endpoint}\n"));
        }
        entry
    }

    /// A map with even runs of buckets.
    fn map(&self) -> String {
        let mut map = "format = 1\nkeyspace = \"pim\"\nversion = 1\n".to_owned();
        (0..self.shards).for_each(|shard| map.push_str(&Self::entry_of(shard)));
        let first = |shard: u16| u32::from(shard) * BUCKETS / u32::from(self.shards);
        for shard in 0..self.shards {
            let (first, last) = (first(shard), first(shard + 1) - 1);
            map.push_str(&format!("\n[[ranges]]\nfirst = {first}\nlast = {last}\nshard = {shard}\nepoch = 1\n"));
        }
        map
    }
}

/// Makes a folder; `false` when somebody else has. What a guard is to remove must be one's own.
fn is_made(folder: &Path) -> Result<bool, FleetError> {
    let parent = folder.parent().unwrap_or(folder);
    fs::create_dir_all(parent).map_err(at(parent.to_owned()))?;
    match fs::create_dir(folder) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(source) => Err(FleetError::Path { path: folder.to_owned(), source }),
    }
}

/// Whether nothing but what servers leave is in a folder.
fn is_remnant(folder: &Path) -> bool {
    let is_ours = |name: &str| {
        [UNSHARDED, SERVICE_SECRETS, LOCK, "archive"].contains(&name)
            || name.starts_with("shard_")
            || name.starts_with("shard-")
    };
    let all_are = |entries: fs::ReadDir| entries.flatten().all(|it| it.file_name().to_str().is_some_and(is_ours));
    fs::read_dir(folder).is_ok_and(all_are)
}

/// A file that only its owner may read; readers see the old one or the new one, also after a power cut.
fn write_secret(path: &Path, secret: &str) -> Result<(), FleetError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let fresh = path.with_file_name(format!(".{name}.new"));
    let written = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&fresh);
    let written = written.and_then(|mut file| file.write_all(secret.as_bytes()).and_then(|()| file.sync_all()));
    written.and_then(|()| fs::rename(&fresh, path)).map_err(at(path.to_owned()))
}

/// How many shards there are in a folder: their secrets are linked last, when the servers are there.
fn shards_in(folder: &Path) -> u16 {
    let secrets = folder.join(SERVICE_SECRETS);
    let shards = (0..SHARDS_MAX).take_while(|shard| secrets.join(secret_of(*shard)).exists()).count();
    u16::try_from(shards).unwrap_or(SHARDS_MAX)
}

fn secret_of(shard: u16) -> String {
    format!("shard-{shard}")
}

/// Also a name of a replication slot, which takes no hyphen.
fn server_name(shard: u16, letter: char) -> String {
    format!("shard_{shard}_{letter}")
}

fn state_of(server: &LocalServer) -> ServerState {
    let role = match server.is_running() {
        false if server.is_missing() => "missing",
        false => "stopped",
        true => server.is_standby().map_or("silent", |it| if it { "standby" } else { "primary" }),
    };
    ServerState { name: server.name().to_owned(), port: server.port(), role }
}

fn random() -> Result<String, FleetError> {
    let path = PathBuf::from("/dev/urandom");
    let mut bytes = [0; 16];
    fs::File::open(&path).and_then(|mut file| file.read_exact(&mut bytes)).map_err(at(path))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn at(path: PathBuf) -> impl FnOnce(io::Error) -> FleetError {
    move |source| FleetError::Path { path, source }
}
