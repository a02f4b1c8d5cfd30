//! What was admitted by type is shown as it is; what came another way is redacted and counted; bursts are told by number.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pim_core::clock::Clock;
use pim_core::context::RequestId;
use pim_core::shard::ShardId;
use pim_core::token::{KeyRing, KeySource, KeySourceError, TokenVerifier, VerifierSettings};
use pim_telemetry::{LogSettings, Telemetry};
use serde_json::{Value, json};

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn all(&self) -> Vec<Value> {
        let bytes = self.0.lock().unwrap().clone();
        let text = String::from_utf8(bytes).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn members_keep_their_kind_and_absent_ones_are_left_out() {
    let (lines, request) = (Lines::default(), RequestId::mint());
    let telemetry = Telemetry::builder("shop").scoped(lines.clone()).unwrap();
    let nobody: Option<ShardId> = None;
    pim_core::warn!("shelf.empty", request_id = request, shard_id = ShardId(3), left = 0_u64, sold = true, by = nobody);
    assert_eq!(telemetry.shutdown().redacted, 0);
    let all = lines.all();
    let mut line = all[0].clone();
    let at = line.as_object_mut().unwrap().remove("at").unwrap();
    assert!(at.as_str().unwrap().ends_with('Z'));
    let target = "it::lines_show_what_was_admitted";
    assert_eq!(
        (all.len(), line),
        (
            1,
            json!({"level": "warn", "service": "shop", "target": target, "event": "shelf.empty",
                   "request_id": request.to_string(), "shard_id": 3, "left": 0, "sold": true})
        )
    );
}

/// Guard: `OWN`. A rule that looks for a level or a service must find it, whatever a field is called.
#[test]
fn what_is_the_line_s_own_stays() {
    let lines = Lines::default();
    let telemetry = Telemetry::builder("shop").scoped(lines.clone()).unwrap();
    pim_core::warn!("tank.low", level = 3_u64, service = "till", at = 7_u64, message = "low", suppressed = 9_u64);
    telemetry.shutdown();
    let line = &lines.all()[0];
    let told = ["level", "service", "event", "field.level", "field.service", "field.at", "field.message"];
    assert_eq!(
        told.map(|name| line[name].clone()),
        [json!("warn"), json!("shop"), json!("tank.low"), json!(3), json!("till"), json!(7), json!("low")]
    );
    assert_eq!((line.get("suppressed"), &line["field.suppressed"]), (None, &json!(9)), "{line}");
}

/// Guard: `LISTED`. What a pool or a driver tells of its time is shown, and nothing else of it.
#[test]
fn numbers_that_are_on_the_list_are_shown() {
    const LEVEL: tracing::Level = tracing::Level::WARN;
    let lines = Lines::default();
    let telemetry = Telemetry::builder("shop").scoped(lines.clone()).unwrap();
    tracing::event!(target: "sqlx::query", LEVEL, summary = "Quillfeather", elapsed_secs = 1.5, rows_returned = 3_u64);
    tracing::event!(target: "sqlx::pool::acquire", LEVEL, acquired_after_secs = 2.5, slow_acquire_threshold_secs = 2.0);
    assert_eq!(telemetry.shutdown().redacted, 1);
    let all = lines.all();
    assert_eq!((&all[0]["elapsed_secs"], &all[0]["rows_returned"]), (&json!(1.5), &json!(3)));
    assert_eq!(all[0]["summary"], "[redacted]");
    assert_eq!(all[1]["acquired_after_secs"], 2.5);
}

/// Guard: `KeyRing::fetch` tells why. Until the old set is too old nobody else notices, and then nobody gets in.
#[tokio::test]
async fn why_a_key_set_is_not_taken() {
    let lines = Lines::default();
    let telemetry = Telemetry::builder("shop").scoped(lines.clone()).unwrap();
    for source in [Shelf(Err(KeySourceError("the issuer refuses"))), Shelf(Ok("{\"keys\": []}"))] {
        let settings = VerifierSettings::access_token("urn:issuer", "urn:shop");
        let verifier = TokenVerifier::new(settings, KeyRing::new(source, Clock::system()), Clock::system());
        let token = ["{\"alg\":\"ES256\",\"typ\":\"at+jwt\",\"kid\":\"k\"}", "{\"iss\":\"urn:issuer\"}", "x"]
            .map(|part| URL_SAFE_NO_PAD.encode(part));
        verifier.verify(&token.join(".")).await.unwrap_err();
    }
    telemetry.shutdown();
    let told: Vec<_> = lines.all().iter().map(|line| (line["event"].clone(), line["reason"].clone())).collect();
    assert_eq!(
        told,
        [
            (json!("key_set.not_fetched"), json!("the issuer refuses")),
            (json!("key_set.refused"), json!("no usable key"))
        ]
    );
}

/// Where a program keeps its keys.
struct Shelf(Result<&'static str, KeySourceError>);

#[async_trait::async_trait]
impl KeySource for Shelf {
    async fn fetch(&self) -> Result<String, KeySourceError> {
        self.0.map(str::to_owned)
    }
}

#[test]
fn what_others_say_is_redacted_and_counted() {
    let lines = Lines::default();
    let telemetry = Telemetry::builder("shop").scoped(lines.clone()).unwrap();
    let name = "Quillfeather";
    // As a crate of somebody else's would; ours may not.
    const LEVEL: tracing::Level = tracing::Level::WARN;
    tracing::event!(target: "pim_shop::till", LEVEL, code = "Quillfeather", who = %name, born = 1980, "seen {name}");
    let report = telemetry.shutdown();
    let all = lines.all();
    assert_eq!(report.redacted, 4, "{all:?}");
    assert!(!all[0].to_string().contains("Quillfeather") && !all[0].to_string().contains("1980"), "{all:?}");
}

#[test]
fn a_burst_is_cut_and_its_rest_is_told() {
    let lines = Lines::default();
    let settings = LogSettings { info_per_second_max: 3, ..LogSettings::default() };
    let telemetry = Telemetry::builder("shop").logs(settings).scoped(lines.clone()).unwrap();
    // Fewer than a second's worth of seconds: whatever the machine does, a line is written or counted.
    for _ in 0..200 {
        pim_core::info!("bolt.sold");
    }
    pim_core::warn!("shelf.empty");
    let report = telemetry.shutdown();
    let all = lines.all();
    let told: u64 = all.iter().filter_map(|line| line["suppressed"].as_u64()).sum();
    let written = all.iter().filter(|line| line["event"] == "bolt.sold").count() as u64;
    assert_eq!((written + told, report.suppressed), (200, told), "{all:?}");
    assert!(told > 0 && all.iter().any(|line| line["event"] == "shelf.empty"), "warnings are always written");
}

/// Guard: an event that another thread reaches first, with nobody listening there, is heard all the same.
#[test]
fn a_thread_that_hears_nothing_silences_nobody() {
    let lines = Lines::default();
    let telemetry = Telemetry::builder("shop").scoped(lines.clone()).unwrap();
    let ring = || pim_core::warn!("bell.rung");
    std::thread::spawn(ring).join().unwrap();
    ring();
    telemetry.shutdown();
    assert_eq!(lines.all().len(), 1);
}
