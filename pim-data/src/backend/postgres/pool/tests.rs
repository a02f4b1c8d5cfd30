use tokio::net::TcpListener;

use super::*;
use crate::backend::{SecretError, Secrets, ServerSettings};

/// Longer than any test may take.
const LONG: Duration = Duration::from_secs(300);
const PATIENCE: Duration = Duration::from_secs(20);

/// Every name stands for the server at this port.
#[derive(Debug)]
struct At(u16);

impl Secrets for At {
    fn secret(&self, _name: &str) -> Result<String, SecretError> {
        Ok(format!("postgres://u@127.0.0.1:{}/d?sslmode=disable", self.0))
    }
}

/// Guard: a server that stands still keeps neither whoever would call it nor their place once another one is meant.
#[tokio::test]
async fn nobody_waits_for_a_connection_to_a_server_that_is_not_meant_any_more() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let port = silent.local_addr().expect("an address").port();
    let settings =
        ServerSettings { connections_max: 1, connect_timeout: LONG, call_max: LONG, ..ServerSettings::default() };
    let pool = Pool::new("a", Dial::new(Arc::new(At(port)), settings));
    let lending = tokio::spawn({
        let pool = pool.clone();
        async move { pool.lend(None, Errand::Read).await.map(drop) }
    });
    let (opened, _) = timeout(PATIENCE, silent.accept()).await.expect("in time").expect("comes");
    assert!(!pool.has_room());
    pool.turn_to("b", Demand { primary: true, term: 2 });
    let lent = timeout(PATIENCE, lending).await.expect("it waits for nobody").expect("runs");
    assert!(matches!(lent, Err(DbError::Closed)), "nothing was sent: {lent:?}");
    let has_room = async {
        while !pool.has_room() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, has_room).await.expect("its place is free");
    drop(opened);
}
