//! Group commit: whoever gets the log first writes everything that waits, in one transaction.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex as StdMutex, PoisonError};

use pim_core::clock::Timestamp;
use pim_data::backend::{DbError, SqlPair, Statement, Transaction, Value};
use tokio::sync::{Mutex, oneshot};

use super::{Inner, Log};
use crate::bus::{Ack, BusError, NewRecord, Refusal, partition_of};
use crate::event::HEADER_BYTES_MAX;

/// Rows of one INSERT; few sizes, so that the prepared statements are reused.
const CHUNKS: [usize; 3] = [64, 8, 1];

type Answer = Result<Vec<Ack>, BusError>;

struct Request {
    batch: Arc<Vec<NewRecord>>,
    answer: oneshot::Sender<Answer>,
}

/// What waits to be written; at most one batch a publisher.
#[derive(Default)]
pub(super) struct Queue {
    waiting: StdMutex<Vec<Request>>,
    leader: Mutex<()>,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Queue")
    }
}

/// Where the records of one batch go.
struct Placed<'a> {
    acks: Vec<Ack>,
    rows: Vec<(i64, &'a NewRecord)>,
    logs: BTreeSet<i64>,
}

impl Inner {
    pub(super) async fn publish(&self, batch: Vec<NewRecord>) -> Answer {
        let batch = Arc::new(batch);
        loop {
            let (answer, mut answered) = oneshot::channel();
            self.wait(Request { batch: Arc::clone(&batch), answer });
            let _leader = self.queue.leader.lock().await;
            match answered.try_recv() {
                Ok(answer) => return answer,
                // A leader that was dropped took the request with it: once more.
                Err(oneshot::error::TryRecvError::Closed) => continue,
                Err(oneshot::error::TryRecvError::Empty) => {}
            }
            let requests = std::mem::take(&mut *self.waiting());
            self.write_all(requests).await;
            match answered.try_recv() {
                Ok(answer) => return answer,
                Err(_) => return Err(BusError::Closed),
            }
        }
    }

    /// Joins those that wait. Whoever was dropped meanwhile leaves, so that giving up and asking again piles nothing up.
    fn wait(&self, request: Request) {
        let mut waiting = self.waiting();
        waiting.retain(|other| !other.answer.is_closed());
        waiting.push(request);
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Vec<Request>> {
        self.queue.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn write_all(&self, requests: Vec<Request>) {
        match self.write(&requests).await {
            Ok(answers) => {
                for (request, acks) in requests.into_iter().zip(answers) {
                    // Nobody waits any more when the publisher was dropped; the records are stored all the same.
                    let _unheard = request.answer.send(Ok(acks));
                }
            }
            Err(error) => {
                let retryable = error.is_retryable();
                let mut first = Some(error);
                for request in requests {
                    let error = first.take().unwrap_or(if retryable { DbError::Busy } else { DbError::Closed });
                    let _unheard = request.answer.send(Err(BusError::Log(error)));
                }
            }
        }
    }

    async fn write(&self, requests: &[Request]) -> Result<Vec<Vec<Ack>>, DbError> {
        let now = self.clock.now();
        let mut tx = self.db.begin().await?;
        let mut ends: Vec<(i64, u64)> = Vec::new();
        for row in tx.query(Statement::sqlite("SELECT id, next_offset FROM bus_log")).await? {
            ends.push((row.int(0)?, row.count(1)?));
        }
        let mut touched = BTreeSet::<i64>::new();
        let mut answers = Vec::with_capacity(requests.len());
        for request in requests {
            let placed = self.place(&request.batch, &mut ends);
            touched.extend(&placed.logs);
            insert(&mut tx, &placed.rows, now).await?;
            answers.push(placed.acks);
        }
        let last = ends
            .iter()
            .filter(|(log, _)| touched.contains(log))
            .map(|(log, end)| {
                Statement::sqlite("UPDATE bus_log SET next_offset = ? WHERE id = ?").bind(*end).bind(*log)
            })
            .collect();
        tx.commit_with(last).await?;
        for (log, end) in ends.iter().filter(|(log, _)| touched.contains(log)) {
            self.announce(*log, *end);
        }
        Ok(answers)
    }

    /// Gives each record its partition and offset, or says why not.
    fn place<'a>(&self, batch: &'a [NewRecord], ends: &mut [(i64, u64)]) -> Placed<'a> {
        let mut placed = Placed {
            acks: Vec::with_capacity(batch.len()),
            rows: Vec::with_capacity(batch.len()),
            logs: BTreeSet::new(),
        };
        let mut refused = BTreeSet::new();
        for record in batch {
            let logs = self.topics.get(&record.topic);
            let ack = match logs {
                // Order within a key: nothing overtakes a refused record.
                _ if refused.contains(&record.key) => Ack::Behind,
                None => Ack::Refused(Refusal::UnknownTopic),
                Some(_) if record.size() > self.record_bytes_max || record.headers.size() > HEADER_BYTES_MAX => {
                    Ack::Refused(Refusal::TooLarge)
                }
                Some(logs) => {
                    let partition = partition_of(record.key, u16::try_from(logs.len()).unwrap_or(u16::MAX));
                    stored(&logs[usize::from(partition)], partition, record, ends, &mut placed)
                }
            };
            if matches!(ack, Ack::Refused(_)) {
                refused.insert(record.key);
            }
            placed.acks.push(ack);
        }
        placed
    }

    fn announce(&self, log: i64, end: u64) {
        if let Some(log) = self.topics.values().flatten().find(|it| it.id == log) {
            log.end.send_replace(end);
        }
    }
}

fn stored<'a>(
    log: &Log,
    partition: u16,
    record: &'a NewRecord,
    ends: &mut [(i64, u64)],
    placed: &mut Placed<'a>,
) -> Ack {
    match ends.iter_mut().find(|(id, _)| *id == log.id) {
        Some((_, end)) => {
            let offset = *end;
            *end += 1;
            placed.rows.push((log.record_id(offset), record));
            placed.logs.insert(log.id);
            Ack::Stored { partition, offset }
        }
        None => Ack::Refused(Refusal::UnknownTopic),
    }
}

async fn insert(tx: &mut Transaction, rows: &[(i64, &NewRecord)], now: Timestamp) -> Result<(), DbError> {
    let mut rest = rows;
    for size in CHUNKS {
        while rest.len() >= size {
            let (chunk, more) = rest.split_at(size);
            tx.query(insert_chunk(chunk, now)).await?;
            rest = more;
        }
    }
    Ok(())
}

fn insert_chunk(chunk: &[(i64, &NewRecord)], now: Timestamp) -> Statement {
    let mut text = String::from("INSERT INTO bus_record (id, key, at, headers, payload) VALUES ");
    text.push_str(&vec!["(?, ?, ?, ?, ?)"; chunk.len()].join(", "));
    let mut statement = Statement::of(SqlPair::generated(text));
    for (id, record) in chunk {
        let headers = serde_json::to_string(&record.headers).unwrap_or_default();
        statement = statement.bind_all([
            Value::Int(*id),
            Value::from(record.key),
            Value::from(now),
            Value::from(headers),
            Value::from(record.payload.as_str()),
        ]);
    }
    statement
}
