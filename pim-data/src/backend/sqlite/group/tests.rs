use std::path::PathBuf;

use tokio::task::{JoinHandle, yield_now};

use super::*;
use crate::backend::DbSettings;

const PATIENCE: Duration = Duration::from_secs(20);

struct World {
    db: Db,
    folder: PathBuf,
}

impl Drop for World {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.folder);
    }
}

impl World {
    async fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("pim-group-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(&folder).unwrap();
        let db = Db::open(&folder.join("a.db"), DbSettings::default()).await.unwrap();
        let mut tx = db.begin_with(&[]).await.unwrap().0;
        tx.script("CREATE TABLE t (k INTEGER PRIMARY KEY, v BLOB)").await.unwrap();
        tx.commit().await.unwrap();
        Self { db, folder }
    }

    async fn count(&self) -> u64 {
        self.db.read().await.unwrap().query(Statement::sqlite("SELECT COUNT(*) FROM t")).await.unwrap()[0]
            .count(0)
            .unwrap()
    }

    /// Sends members in this order, to be served only when the returned transaction ends.
    async fn queue(&self, writes: impl IntoIterator<Item = Write>) -> (Transaction, Vec<JoinHandle<Outcome>>) {
        let held = self.db.begin_with(&[]).await.unwrap().0;
        let mut sent = Vec::new();
        for write in writes {
            sent.push(self.send(write, Instant::now() + PATIENCE));
            while self.db.line().lock().seats.len() < sent.len() {
                yield_now().await;
            }
        }
        (held, sent)
    }

    fn send(&self, write: Write, until: Instant) -> JoinHandle<Outcome> {
        let db = self.db.clone();
        tokio::spawn(async move { db.share(until, write).await.map(|(write, end)| (write.seen, end)) })
    }
}

/// How many rows a member saw when it decided, and how it ended.
type Outcome = Result<(u64, End), DbError>;

#[derive(Default)]
struct Write {
    key: i64,
    bytes: usize,
    /// Refuses when there are rows.
    is_shy: bool,
    panics: bool,
    /// Writes its row a second time, which fails.
    is_double: bool,
    takes: Duration,
    seen: u64,
    told: Option<Arc<AtomicBool>>,
}

impl Member for Write {
    fn look(&self) -> Statement {
        Statement::sqlite("SELECT COUNT(*) FROM t")
    }
    #[expect(clippy::disallowed_methods, reason = "deciding is not asynchronous, and this one is to be slow")]
    fn decide(&mut self, rows: &[Row]) -> Option<Vec<Statement>> {
        assert!(!self.panics, "a part that panics");
        std::thread::sleep(self.takes);
        self.seen = rows[0].count(0).unwrap();
        if self.is_shy && self.seen > 0 {
            return None;
        }
        let insert = Statement::sqlite("INSERT INTO t (k, v) VALUES (?, zeroblob(?))").bind(self.key);
        let again = insert.clone().bind(0_u64);
        let mut all = vec![insert.bind(self.bytes as u64)];
        if self.is_double {
            all.push(again);
        }
        Some(all)
    }
    fn committed(&self) {
        self.told.iter().for_each(|told| told.store(true, Ordering::SeqCst));
    }
}

fn write(key: i64) -> Write {
    Write { key, ..Write::default() }
}

fn shy(key: i64) -> Write {
    Write { is_shy: true, ..write(key) }
}

/// More than fits once [`limit`] holds.
fn huge(key: i64) -> Write {
    Write { bytes: 1 << 20, ..write(key) }
}

async fn limit(held: &mut Transaction) {
    held.script("PRAGMA max_page_count = 20").await.unwrap();
}

async fn ends(sent: Vec<JoinHandle<Outcome>>) -> Vec<(u64, End)> {
    let mut ends = Vec::new();
    for one in sent {
        ends.push(tokio::time::timeout(PATIENCE, one).await.expect("in time").unwrap().expect("was served"));
    }
    ends
}

/// How many commits the write-ahead log holds: the last frame of each carries the size of the database.
fn commits(world: &World) -> usize {
    let log = std::fs::read(world.db.path().with_extension("db-wal")).unwrap();
    let page = u32::from_be_bytes(log[8..12].try_into().unwrap()) as usize;
    log[32..].chunks(24 + page).filter(|frame| frame[4..8] != [0; 4]).count()
}

#[tokio::test]
async fn those_who_wait_share_one_commit_and_see_each_other() {
    let world = World::new().await;
    let before = commits(&world);
    let (held, sent) = world.queue((0..8).map(write)).await;
    held.rollback().await.unwrap();
    let ends = ends(sent).await;
    assert!(ends.iter().all(|(_, end)| matches!(end, End::Committed)), "{ends:?}");
    assert_eq!(ends.iter().map(|(seen, _)| *seen).collect::<Vec<_>>(), (0..8).collect::<Vec<_>>());
    assert_eq!((world.count().await, commits(&world)), (8, before + 1));
}

#[tokio::test]
async fn a_member_that_fails_takes_back_its_own_writes_only() {
    let world = World::new().await;
    let (held, sent) = world.queue([write(1), Write { is_double: true, ..write(7) }, write(2)]).await;
    held.rollback().await.unwrap();
    let ends = ends(sent).await;
    assert!(matches!(ends[0].1, End::Committed), "{ends:?}");
    assert!(matches!(ends[1].1, End::Failed(DbError::Refused { unique: true, .. })), "{ends:?}");
    assert!(matches!(ends[2].1, End::Committed), "{ends:?}");
    assert_eq!(world.count().await, 2);
}

#[tokio::test]
async fn a_full_disk_takes_everything_back_and_nobody_is_told_otherwise() {
    let world = World::new().await;
    // The second refuses because of a row of the first that is never committed.
    let (mut held, sent) = world.queue([write(1), shy(2), huge(3), write(4)]).await;
    limit(&mut held).await;
    held.rollback().await.unwrap();
    let ends = ends(sent).await;
    assert!(matches!(ends[0].1, End::Failed(DbError::Undone)), "{ends:?}");
    assert!(matches!(ends[1].1, End::Failed(DbError::Undone)), "an answer from uncommitted rows: {ends:?}");
    let End::Failed(full) = &ends[2].1 else { panic!("{ends:?}") };
    assert!(full.is_retryable() && full.to_string().contains("has no room left"), "{full}");
    assert!(full.to_string().contains(world.db.path().to_str().unwrap()), "says where: {full}");
    // The last begins anew, on what is really there.
    assert!(matches!(ends[3], (0, End::Committed)), "{ends:?}");
    assert_eq!(world.count().await, 1);
}

#[tokio::test]
async fn a_commit_that_fails_fails_everybody() {
    let world = World::new().await;
    // A deferred reference is looked at by the commit and by nothing before it.
    let mut tx = world.db.begin_with(&[]).await.unwrap().0;
    tx.script(
        "CREATE TABLE child (k REFERENCES t (k) DEFERRABLE INITIALLY DEFERRED); \
         CREATE TRIGGER orphan AFTER INSERT ON t WHEN new.k = 3 BEGIN INSERT INTO child VALUES (99); END",
    )
    .await
    .unwrap();
    tx.commit().await.unwrap();
    let told = Arc::new(AtomicBool::new(false));
    let first = Write { told: Some(Arc::clone(&told)), ..write(1) };
    let (held, sent) = world.queue([first, shy(2), write(3)]).await;
    held.rollback().await.unwrap();
    let ends = ends(sent).await;
    assert!(ends.iter().all(|(_, end)| matches!(end, End::Failed(DbError::Commit(_)))), "{ends:?}");
    assert!(!told.load(Ordering::SeqCst), "nobody hears of a commit that was none");
    assert_eq!(world.count().await, 0);
}

/// Set in a process whose files may not grow.
#[cfg(unix)]
const SMALL: &str = "PIM_TEST_FILES_ARE_SMALL";

/// Guard: of a commit that the file system has failed nobody knows, also when it was a lone member's.
#[cfg(unix)]
#[tokio::test]
async fn a_commit_that_the_file_system_fails_is_in_doubt() {
    if std::env::var_os(SMALL).is_none() {
        // Shells count in 512 or 1,024 bytes: less than what is written in any case, and more than what is there before.
        let small = "trap '' XFSZ; ulimit -f 400; exec \"$0\" --exact \
            backend::sqlite::group::tests::a_commit_that_the_file_system_fails_is_in_doubt";
        let mut child = std::process::Command::new("sh");
        let child = child.args(["-c", small]).arg(std::env::current_exe().unwrap()).env(SMALL, "1").output().unwrap();
        assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
        return;
    }
    let world = World::new().await;
    let alone = ends(vec![world.send(huge(1), Instant::now() + PATIENCE)]).await;
    assert!(matches!(alone[0].1, End::Failed(DbError::Commit(_))), "{alone:?}");
    let next = ends(vec![world.send(write(2), Instant::now() + PATIENCE)]).await;
    assert!(matches!(next[0], (0, End::Committed)), "the writer is fit for the next: {next:?}");
}

#[tokio::test]
async fn callers_that_leave_while_they_wait_write_nothing_and_keep_nobody() {
    let world = World::new().await;
    let (held, mut sent) = world.queue([write(1), write(2), write(3)]).await;
    // The first had begun to serve the line for the others.
    for gone in sent.drain(..2) {
        gone.abort();
        assert!(gone.await.unwrap_err().is_cancelled());
    }
    held.rollback().await.unwrap();
    let ends = ends(sent).await;
    assert!(matches!(ends[0], (0, End::Committed)), "{ends:?}");
    assert_eq!(world.count().await, 1);
}

#[tokio::test]
async fn a_caller_that_leaves_in_the_middle_takes_nobody_along() {
    let world = World::new().await;
    let told = Arc::new(AtomicBool::new(false));
    let slow = Write { takes: Duration::from_millis(400), told: Some(Arc::clone(&told)), ..write(1) };
    let leaving = world.send(slow, Instant::now() + PATIENCE);
    while !world.db.line().is_empty() || !world.db.line().lock().is_served {
        yield_now().await;
    }
    let other = world.send(write(2), Instant::now() + PATIENCE);
    leaving.abort();
    let ends = ends(vec![other]).await;
    assert!(matches!(ends[0], (1, End::Committed)), "{ends:?}");
    assert!(told.load(Ordering::SeqCst), "a commit is made known also when its caller is gone");
    assert_eq!(world.count().await, 2);
}

#[tokio::test]
async fn a_panic_is_its_callers_own() {
    let world = World::new().await;
    let (held, sent) = world.queue([write(1), Write { panics: true, ..write(2) }, write(3)]).await;
    held.rollback().await.unwrap();
    let ends = ends(sent).await;
    assert!(matches!(ends[0].1, End::Committed), "{ends:?}");
    assert!(matches!(ends[1].1, End::Panicked(_)), "{ends:?}");
    assert!(matches!(ends[2].1, End::Committed), "{ends:?}");
}

#[tokio::test]
async fn a_member_whose_turn_does_not_come_leaves_at_its_deadline() {
    let world = World::new().await;
    let held = world.db.begin_with(&[]).await.unwrap().0;
    let late = world.send(write(1), Instant::now() + Duration::from_millis(20));
    let late = tokio::time::timeout(PATIENCE, late).await.expect("it does not wait for the writer").unwrap();
    assert!(matches!(late, Err(DbError::Late)), "{late:?}");
    held.rollback().await.unwrap();
    let ends = ends(vec![world.send(write(2), Instant::now() + PATIENCE)]).await;
    assert!(matches!(ends[0], (0, End::Committed)), "{ends:?}");
}

#[tokio::test]
async fn a_transaction_of_its_own_is_not_kept_waiting_by_a_stream_of_members() {
    let world = World::new().await;
    let (held, sent) = world.queue((0..MEMBERS_MAX as i64 + 8).map(write)).await;
    let own = tokio::spawn({
        let db = world.db.clone();
        async move {
            let mut tx = db.begin_with(&[]).await.unwrap().0;
            tx.query(Statement::sqlite("SELECT COUNT(*) FROM t")).await.unwrap()[0].count(0).unwrap()
        }
    });
    // It waits behind the one group that was there before it.
    for _ in 0..10 {
        yield_now().await;
    }
    held.rollback().await.unwrap();
    let seen = tokio::time::timeout(PATIENCE, own).await.expect("in time").unwrap();
    assert!((1..=MEMBERS_MAX as u64).contains(&seen), "it came after {seen} members");
    assert_eq!(ends(sent).await.len(), MEMBERS_MAX + 8);
}

#[tokio::test]
async fn nobody_enters_a_transaction_that_is_old() {
    let world = World::new().await;
    let before = commits(&world);
    let slow = |key| Write { takes: AGE_MAX, ..write(key) };
    let (held, sent) = world.queue((0..3).map(slow)).await;
    held.rollback().await.unwrap();
    assert_eq!(ends(sent).await.len(), 3);
    assert_eq!(commits(&world), before + 3, "each was as old as may be when the next could have entered");
}

#[tokio::test]
async fn a_line_that_is_full_says_so() {
    let world = World::new().await;
    let (held, sent) = world.queue((0..WAITING_MAX as i64).map(write)).await;
    let one_more = world.send(write(-1), Instant::now() + PATIENCE).await.unwrap();
    assert!(matches!(one_more, Err(DbError::Busy)), "{one_more:?}");
    sent.iter().for_each(JoinHandle::abort);
    held.rollback().await.unwrap();
}
