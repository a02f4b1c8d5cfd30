//! From an access token to a session context: exchanged at the broker, once for each token, and kept while it is good.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{Extensions, HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use moka::future::Cache;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use pim_core::clock::Clock;
use pim_core::problem::{self, Problem};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;

use crate::client::Client;

const SESSIONS_MAX: u64 = 100_000;
/// A session context that ends sooner than this is fetched anew, so that it does not end on its way.
const MARGIN_SECS: i64 = 10;
const PATIENCE: Duration = Duration::from_secs(2);
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// The digest of an access token.
type Key = [u8; 32];

/// A session context as it is forwarded.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) token: HeaderValue,
    expires_at: i64,
}

/// Exchanges access tokens at the broker (RFC 8693).
#[derive(Clone, Debug)]
pub struct SessionExchange {
    client: Client,
    url: String,
    authorization: HeaderValue,
    held: Cache<Key, Arc<Held>>,
    /// Keeps nothing: of those who renew the same context at once it lets one ask, and the next when that one hangs up.
    renewing: Cache<Key, Arc<Held>>,
    /// Whether the broker does not take our secret, so that it is told once.
    is_shut_out: Arc<AtomicBool>,
    clock: Clock,
}

impl SessionExchange {
    /// An exchange with a broker, authenticated by the gateway's secret.
    #[must_use]
    pub fn new(client: Client, broker: &str, secret: &str, clock: Clock) -> Self {
        let credentials = STANDARD.encode(format!("gateway:{secret}"));
        let mut authorization = HeaderValue::from_str(&format!("Basic {credentials}"))
            // Base64 is always a header value.
            .unwrap_or_else(|_| HeaderValue::from_static(""));
        authorization.set_sensitive(true);
        let held = Cache::builder().max_capacity(SESSIONS_MAX).time_to_live(Duration::from_secs(60)).build();
        let renewing = Cache::new(0);
        let is_shut_out = Arc::new(AtomicBool::new(false));
        Self { client, url: format!("{broker}/oauth/token"), authorization, held, renewing, is_shut_out, clock }
    }

    /// The session context of an access token. Of many callers at once one asks the broker.
    ///
    /// A broker that does not answer leaves what is held in use until its end; after that nobody passes.
    pub(super) async fn context_of(&self, access_token: &str, request: &Extensions) -> Result<Arc<Held>, Problem> {
        let key: Key = Sha256::digest(access_token.as_bytes()).into();
        if let Some(fresh) = self.held.get(&key).await.filter(|held| self.is_fresh(held)) {
            return Ok(fresh);
        }
        let renewed = self.renew(&key, access_token, request);
        self.renewing.try_get_with(key, renewed).await.map_err(|problem| problem.as_ref().clone())
    }

    /// Whoever asks may hang up at any time: what is held stays for the others until the broker has answered.
    async fn renew(&self, key: &Key, access_token: &str, request: &Extensions) -> Result<Arc<Held>, Problem> {
        let known = self.held.get(key).await;
        // Renewed since this caller looked.
        if let Some(fresh) = known.as_ref().filter(|held| self.is_fresh(held)) {
            return Ok(Arc::clone(fresh));
        }
        match (self.exchange(access_token, request).await, known) {
            (Ok(renewed), _) => {
                self.held.insert(*key, Arc::clone(&renewed)).await;
                Ok(renewed)
            }
            (Err(problem), Some(known)) if problem.kind() == problem::UNAVAILABLE && self.is_good(&known) => Ok(known),
            (Err(problem), _) => {
                self.held.invalidate(key).await;
                Err(problem)
            }
        }
    }

    fn now(&self) -> i64 {
        self.clock.now().as_micros() / 1_000_000
    }

    fn is_fresh(&self, held: &Held) -> bool {
        held.expires_at - self.now() > MARGIN_SECS
    }

    fn is_good(&self, held: &Held) -> bool {
        held.expires_at > self.now()
    }

    async fn exchange(&self, access_token: &str, asking: &Extensions) -> Result<Arc<Held>, Problem> {
        let now = self.now();
        let unavailable =
            || Problem::of(problem::UNAVAILABLE).detail("the session broker does not answer").retry_after_secs(1);
        let encode = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
        let form = format!(
            "grant_type={}&subject_token_type={}&subject_token={}",
            encode("urn:ietf:params:oauth:grant-type:token-exchange"),
            encode("urn:ietf:params:oauth:token-type:access_token"),
            encode(access_token),
        );
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(&self.url)
            .header(AUTHORIZATION, self.authorization.clone())
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Full::new(Bytes::from(form)))
            .map_err(|_| unavailable())?;
        super::forward::name_request(request.headers_mut(), asking);
        let answered = async {
            let (head, body) = self.client.send(request, PATIENCE).await.ok()?.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.ok()?;
            Some((head.status, body.to_bytes()))
        };
        // The body too: everybody with this token waits for it.
        let answered = timeout(PATIENCE, answered).await.ok().flatten();
        let (status, body) = answered.ok_or_else(unavailable)?;
        if status == StatusCode::UNAUTHORIZED {
            return Err(Problem::of(problem::UNAUTHENTICATED).detail("the session is not good any more"));
        }
        // A public answer says nothing of our secret; the log does, once.
        let is_shut_out = status == StatusCode::FORBIDDEN;
        if !self.is_shut_out.swap(is_shut_out, Ordering::Relaxed) && is_shut_out {
            pim_core::error!("gateway.secret_refused");
        }
        if !status.is_success() {
            return Err(unavailable());
        }
        let granted: Value = serde_json::from_slice(&body).map_err(|_| unavailable())?;
        let token = granted["access_token"].as_str().and_then(|text| HeaderValue::from_str(text).ok());
        let (Some(mut token), Some(life)) = (token, granted["expires_in"].as_i64()) else { return Err(unavailable()) };
        token.set_sensitive(true);
        Ok(Arc::new(Held { token, expires_at: now + life }))
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::atomic::AtomicI64;

    use axum::routing::post;
    use axum::{Json, Router};
    use pim_core::clock::Timestamp;
    use serde_json::json;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::sync::watch;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::rig::{Drain, ServeSettings, bind};

    const LIFE_SECS: i64 = 8;

    /// Grants a context that is soon over.
    struct Broker {
        url: String,
        drain: Drain,
        serving: JoinHandle<()>,
    }

    impl Broker {
        /// Whoever asks again is not let in any more.
        async fn start() -> Self {
            let is_granted = Arc::new(AtomicBool::new(false));
            let grant = move || {
                let is_again = is_granted.swap(true, Ordering::SeqCst);
                async move { if is_again { Err(StatusCode::UNAUTHORIZED) } else { Ok(context(LIFE_SECS)) } }
            };
            Self::serve(Router::new().route("/oauth/token", post(grant))).await
        }

        async fn serve(router: Router) -> Self {
            let bound = bind(ServeSettings::at(([127, 0, 0, 1], 0).into())).await.expect("a port");
            let (url, drain) = (bound.url(), Drain::new());
            let serving = tokio::spawn(bound.serve(router, drain.clone()));
            Self { url, drain, serving }
        }

        async fn close(self) {
            self.drain.begin();
            self.serving.await.expect("ends");
        }
    }

    fn context(life_secs: i64) -> Json<Value> {
        Json(json!({"access_token": "a.b.c", "expires_in": life_secs}))
    }

    fn exchange_with(broker: &str) -> (SessionExchange, Clock) {
        let clock = Clock::manual(Timestamp::from_micros(1_800_000_000_000_000));
        (SessionExchange::new(Client::new(), broker, "secret", clock.clone()), clock)
    }

    async fn asked(exchange: &SessionExchange) -> Result<HeaderValue, u16> {
        let context = exchange.context_of("token", &Extensions::new()).await;
        context.map(|held| held.token.clone()).map_err(|problem| problem.status().as_u16())
    }

    #[tokio::test]
    async fn what_is_held_is_good_to_its_end_while_the_broker_is_away() {
        let broker = Broker::start().await;
        let (exchange, clock) = exchange_with(&broker.url);
        let granted = asked(&exchange).await.expect("granted");
        broker.close().await;
        for _ in 0..3 {
            assert_eq!(asked(&exchange).await.as_ref(), Ok(&granted));
        }
        let (one, other) = tokio::join!(asked(&exchange), asked(&exchange));
        assert_eq!((one.as_ref(), other.as_ref()), (Ok(&granted), Ok(&granted)), "at the same time");
        clock.advance(Duration::from_secs(LIFE_SECS.unsigned_abs()));
        assert_eq!(asked(&exchange).await, Err(503), "nobody passes after the end");
    }

    #[tokio::test]
    async fn what_the_broker_has_ended_is_not_held_any_longer() {
        let broker = Broker::start().await;
        let (exchange, _clock) = exchange_with(&broker.url);
        assert!(asked(&exchange).await.is_ok());
        assert_eq!(asked(&exchange).await, Err(401));
        broker.close().await;
        assert_eq!(asked(&exchange).await, Err(503));
    }

    #[tokio::test]
    async fn whoever_hangs_up_takes_the_session_from_nobody() {
        let (hearing, mut heard) = watch::channel(0_u32);
        let hang = move || {
            hearing.send_modify(|count| *count += 1);
            let is_first = *hearing.borrow() == 1;
            async move { if is_first { context(LIFE_SECS) } else { pending().await } }
        };
        let broker = Broker::serve(Router::new().route("/oauth/token", post(hang))).await;
        let (exchange, _clock) = exchange_with(&broker.url);
        let granted = asked(&exchange).await;
        assert!(granted.is_ok());
        let mut first = Box::pin(asked(&exchange));
        tokio::select! {
            answer = &mut first => panic!("nobody has answered: {answer:?}"),
            asks = heard.wait_for(|count| *count == 2) => drop(asks.expect("the broker hears")),
        }
        let mut others = Box::pin(async { tokio::join!(asked(&exchange), asked(&exchange)) });
        let waiting = timeout(Duration::from_millis(50), &mut others).await;
        assert!(waiting.is_err(), "they wait for the first");
        drop(first);
        assert_eq!(others.await, (granted.clone(), granted));
        assert_eq!(*heard.borrow(), 3, "one of them has asked");
    }

    #[tokio::test]
    async fn what_is_renewed_is_held_in_place_of_the_old() {
        let count = Arc::new(AtomicI64::new(0));
        let counted = Arc::clone(&count);
        let longer = move || {
            let before = counted.fetch_add(1, Ordering::SeqCst);
            async move { context(LIFE_SECS + before * 60) }
        };
        let broker = Broker::serve(Router::new().route("/oauth/token", post(longer))).await;
        let (exchange, clock) = exchange_with(&broker.url);
        for _ in 0..2 {
            assert!(asked(&exchange).await.is_ok());
        }
        clock.advance(Duration::from_secs(LIFE_SECS.unsigned_abs()));
        broker.close().await;
        assert!(asked(&exchange).await.is_ok(), "nobody asks the broker for what is fresh");
        assert_eq!(count.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_broker_that_stops_in_the_middle_of_its_answer_holds_nobody() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let _stopped = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("somebody asks");
            // What comes unasked is no answer.
            stream.read_u8().await.expect("a request");
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{").await.expect("a beginning");
            pending::<()>().await;
        });
        let (exchange, _clock) = exchange_with(&url);
        let answer = timeout(PATIENCE * 5, asked(&exchange)).await.expect("long before this");
        assert_eq!(answer, Err(503));
    }
}
