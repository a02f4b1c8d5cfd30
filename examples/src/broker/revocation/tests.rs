use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::file::{BYTES_MAX, NAME};
use super::*;

const NOW: i64 = 1_800_000_000;
const ROOM: u64 = 4;

/// A data directory as the keys leave it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("pim-revocation-{}", Uuid::new_v4()));
        fs::create_dir_all(folder.join("keys")).expect("a folder");
        Self(folder)
    }

    fn file(&self) -> PathBuf {
        self.0.join("keys").join(NAME)
    }

    fn open(&self, now: i64) -> Revocations {
        Revocations::open(&self.0, now, ROOM).expect("opens")
    }

    /// Where a file is made that is to replace it.
    fn fresh(&self) -> PathBuf {
        self.file().with_extension("new")
    }

    fn grows_to(&self, bytes: u64) {
        OpenOptions::new().write(true).open(self.file()).and_then(|file| file.set_len(bytes)).expect("grows");
    }

    fn append(&self, bytes: &[u8]) {
        let mut file = OpenOptions::new().create(true).append(true).open(self.file()).expect("a file");
        file.write_all(bytes).expect("writes");
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _leftover = fs::remove_dir_all(&self.0);
    }
}

async fn has_ended(revocations: &Revocations, sid: Uuid) -> bool {
    revocations.have_ended(sid, "nobody", NOW).await.expect("reads")
}

async fn ends(revocations: &Revocations) -> Uuid {
    ends_at(revocations, NOW).await
}

async fn ends_at(revocations: &Revocations, now: i64) -> Uuid {
    let sid = Uuid::new_v4();
    revocations.end(&[Ended::Session(sid)], now).await.expect("is kept");
    sid
}

fn lifetime() -> i64 {
    i64::try_from(REVOKED_FOR.as_secs()).expect("short")
}

/// Guard: where there is room for few, the newest revocation is kept, not the first one.
#[tokio::test]
async fn the_newest_revocation_holds_where_many_came_before() {
    let folder = Folder::new();
    let revocations = folder.open(NOW);
    let one = || [Ended::Session(Uuid::new_v4()), Ended::subject(&Uuid::new_v4().to_string())];
    let many: Vec<_> = (0..50).flat_map(|_| one()).collect();
    revocations.end(&many, NOW).await.expect("is kept");
    let ended = Uuid::new_v4();
    revocations.end(&[Ended::Session(ended), Ended::subject("somebody")], NOW).await.expect("is kept");
    // Read from the file, and sorted out.
    assert!(!has_ended(&revocations, Uuid::new_v4()).await);
    revocations.settle().await;
    assert!(has_ended(&revocations, ended).await, "the session");
    let before = |at| revocations.have_ended(Uuid::new_v4(), "somebody", at);
    assert!(before(NOW).await.expect("reads"), "the subject");
    assert!(!before(NOW + 1).await.expect("reads"), "what began afterwards");
}

#[tokio::test]
async fn the_latest_word_on_a_subject_counts_whoever_is_heard_last() {
    let folder = Folder::new();
    let (one, other) = (folder.open(NOW), folder.open(NOW));
    one.end(&[Ended::subject("somebody")], NOW + 5).await.expect("is kept");
    other.end(&[Ended::subject("somebody")], NOW).await.expect("is kept");
    for revocations in [&one, &other, &folder.open(NOW)] {
        assert!(revocations.have_ended(Uuid::new_v4(), "somebody", NOW + 5).await.expect("reads"));
    }
}

#[tokio::test]
async fn what_another_broker_of_the_folder_ends_is_heard() {
    let folder = Folder::new();
    let leaves = folder.open(NOW);
    let first = ends(&leaves).await;
    assert!(has_ended(&leaves, first).await);
    let comes = folder.open(NOW);
    assert!(!has_ended(&comes, Uuid::new_v4()).await);
    let second = ends(&leaves).await;
    assert!(has_ended(&comes, first).await && has_ended(&comes, second).await);
    // Tidied, the file is another one.
    folder.append(b"\n17 sess");
    let last = folder.open(NOW);
    let third = ends(&last).await;
    assert!(has_ended(&leaves, third).await && has_ended(&comes, third).await);
}

#[tokio::test]
async fn a_line_that_was_torn_takes_nothing_with_it() {
    let folder = Folder::new();
    let revocations = folder.open(NOW);
    let first = ends(&revocations).await;
    folder.append(b"\n1800000000 session 6f0a");
    let second = ends(&revocations).await;
    folder.append(b"\n1800000000 session \xff\xfe");
    assert!(has_ended(&revocations, second).await, "torn by whoever goes on");
    let again = folder.open(NOW);
    assert!(has_ended(&again, first).await && has_ended(&again, second).await);
    let text = fs::read_to_string(folder.file()).expect("text alone");
    assert_eq!(text.matches("session").count(), 2, "{text}");
}

#[tokio::test]
async fn what_is_of_no_token_any_more_goes() {
    let folder = Folder::new();
    let ended = ends(&folder.open(NOW)).await;
    assert!(has_ended(&folder.open(NOW + lifetime()), ended).await, "just good");
    assert!(!has_ended(&folder.open(NOW + lifetime() + 1), ended).await);
    assert_eq!(fs::metadata(folder.file()).expect("a file").len(), 0);
}

#[tokio::test]
async fn the_file_is_bounded() {
    let folder = Folder::new();
    let revocations = folder.open(NOW);
    let first = ends(&revocations).await;
    folder.grows_to(BYTES_MAX + 1);
    let second = ends(&revocations).await;
    assert!(fs::metadata(folder.file()).expect("a file").len() < 200);
    let again = folder.open(NOW);
    assert!(has_ended(&again, first).await && has_ended(&again, second).await);
    folder.grows_to(3 * BYTES_MAX);
    let refused = Revocations::open(&folder.0, NOW, ROOM);
    assert!(matches!(refused, Err(RevocationError::TooLarge { .. })), "not a file of ours");
}

/// Guard: a full disk, or a folder that nothing can be made in, must not keep a broker from starting.
#[tokio::test]
async fn a_file_that_cannot_be_tidied_is_used_as_it_is() {
    let folder = Folder::new();
    let first = ends(&folder.open(NOW)).await;
    fs::create_dir(folder.fresh()).expect("in the way");
    let later = NOW + lifetime() + 1;
    let broker = folder.open(later);
    assert!(has_ended(&broker, first).await, "it is over, and could not be taken out");
    let second = ends_at(&broker, later).await;
    assert!(has_ended(&folder.open(later), second).await);
    fs::remove_dir(folder.fresh()).expect("out of the way");
    let tidied = folder.open(later);
    assert!(!has_ended(&tidied, first).await && has_ended(&tidied, second).await);
}

/// Guard: no file is made that no broker would read.
#[tokio::test]
async fn and_goes_on_growing_for_as_long_as_it_can_be_read() {
    let folder = Folder::new();
    let broker = folder.open(NOW);
    let first = ends(&broker).await;
    fs::create_dir(folder.fresh()).expect("in the way");
    folder.grows_to(BYTES_MAX + 1);
    let second = ends(&broker).await;
    folder.grows_to(2 * BYTES_MAX - 9);
    assert!(broker.end(&[Ended::Session(Uuid::new_v4())], NOW).await.is_err(), "it is full");
    let again = folder.open(NOW);
    assert!(has_ended(&again, first).await && has_ended(&again, second).await);
}

/// Guard: a broker that has been stopped while it wrote holds up no other for ever.
#[tokio::test]
async fn whoever_has_the_folder_is_waited_for_and_not_without_end() {
    let folder = Folder::new();
    let first = ends(&folder.open(NOW)).await;
    let frozen = File::open(folder.0.join("keys")).expect("opens");
    frozen.lock().expect("is free");
    let (data_dir, (opened, is_open)) = (folder.0.clone(), mpsc::channel());
    // Not of the runtime, which waits for its own.
    thread::spawn(move || opened.send(Revocations::open(&data_dir, NOW + lifetime() + 1, ROOM)).is_ok());
    let broker = is_open.recv_timeout(Duration::from_secs(20)).expect("in bounded time").expect("opens");
    assert!(has_ended(&broker, first).await);
    let later = NOW + lifetime() + 1;
    let sid = Uuid::new_v4();
    let kept = broker.end(&[Ended::Session(sid)], later).await;
    assert!(matches!(kept, Err(RevocationError::Io { doing: "lock", .. })), "{kept:?}");
    assert!(has_ended(&broker, sid).await && !has_ended(&folder.open(later), sid).await, "here alone");
    frozen.unlock().expect("is held");
    let second = ends_at(&broker, later).await;
    assert!(has_ended(&folder.open(later), second).await);
}

/// Guard: what cannot be kept is not acknowledged; what cannot be read lets nobody pass.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_full_disk_acknowledges_nothing_and_ends_it_all_the_same() {
    let folder = Folder::new();
    let revocations = folder.open(NOW);
    std::os::unix::fs::symlink("/dev/full", folder.file()).expect("a link");
    let sid = Uuid::new_v4();
    let kept = revocations.end(&[Ended::Session(sid)], NOW).await;
    assert_eq!(kept.expect_err("no room").os_error(), Some(28), "ENOSPC");
    assert!(has_ended(&revocations, sid).await);
    fs::remove_file(folder.file()).expect("goes");
    fs::create_dir(folder.file()).expect("a folder in its place");
    assert!(revocations.have_ended(Uuid::new_v4(), "nobody", NOW).await.is_err());
}
