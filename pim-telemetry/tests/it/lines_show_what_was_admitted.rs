//! What was admitted by type is shown as it is; what came another way is redacted and counted; bursts are told by number.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use pim_core::context::RequestId;
use pim_core::shard::ShardId;
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
