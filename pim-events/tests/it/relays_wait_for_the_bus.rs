//! A bus that is slow or away costs a relay time and nothing else: no event, no lease, and no thousand attempts.

use pim_events::{Relay, RelaySettings};

use super::rig::{Folder, Rig};

/// Guard: `RelaySettings::check`. A batch of none looks like an empty outbox, and the cursor would pass what was never sent.
#[tokio::test]
async fn settings_out_of_bounds_are_named() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let refused =
        |settings: RelaySettings| Relay::new(&rig.cluster, &rig.publisher(), &settings).unwrap_err().to_string();
    assert_eq!(
        refused(RelaySettings { batch_max: 0, ..RelaySettings::default() }),
        "relay setting batch_max must be between 1 and 10000, not 0"
    );
    for (key, settings) in [
        ("pause_max_ms", RelaySettings { pause_max_ms: 0, ..RelaySettings::default() }),
        ("lease_ms", RelaySettings { lease_ms: 0, ..RelaySettings::default() }),
        ("cursor_delay_ms", RelaySettings { cursor_delay_ms: u64::MAX, ..RelaySettings::default() }),
    ] {
        let told = refused(settings);
        assert!(told.starts_with(&format!("relay setting {key} must be between ")), "{told}");
    }
}
