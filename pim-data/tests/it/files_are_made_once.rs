//! A new database file is made once, by however many connections at once.

use std::time::Duration;

use pim_data::backend::{Db, DbSettings};

use super::world::Folder;

/// Guard: the engine refuses one of two connections that bring a new file into WAL, without waiting; we wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn connections_that_make_a_file_at_once_wait_for_each_other() {
    let folder = Folder::new();
    // A disk that stands still for a while refuses nobody.
    let settings = DbSettings { busy_timeout: Duration::from_secs(60), ..DbSettings::default() };
    for round in 0..200 {
        let path = folder.path().join(format!("{round}.db"));
        let opening = (0..8).map(|_| {
            let (path, settings) = (path.clone(), settings.clone());
            tokio::spawn(async move { Db::open(&path, settings).await })
        });
        for opened in futures_util::future::join_all(opening).await {
            opened.expect("runs").expect("opens");
        }
    }
}
