//! Programs that somebody has started by hand on the servers of `lab servers up` are a lab too, of which the folder knows nothing.

use std::fs;

use super::led::Led;
use super::stand_in;

const DEGRADE: [&str; 5] = ["shard", "degrade", "0", "--reason", "drill"];

/// Guard: their gateway is the one that is meant, and a promotion knows afterwards what it may lose.
#[test]
fn and_a_promotion_knows_that_they_were_degraded() {
    let led = Led::new("exit 0");
    let told = led.run(&DEGRADE);
    assert_eq!((told.code, told.err.contains("--gateway URL")), (Some(3), true), "{told:?}");
    let note = led.servers().join("shard-0.degraded");
    assert!(!note.exists(), "nobody was told");

    let gateway = format!("http://{}", stand_in::gateway(200, r#"{"degraded": {"reason": "drill"}, "items": []}"#));
    let by_name = ["--gateway", &gateway];
    let degraded = led.run(&[&by_name[..], &DEGRADE].concat());
    assert_eq!((degraded.code, note.exists()), (Some(0), true), "{degraded:?}");
    for named in [&by_name[..0], &by_name] {
        let refused = led.run(&[named, &["shard", "promote", "0"]].concat());
        assert_eq!((refused.code, refused.err.contains("shard 0 is degraded")), (Some(7), true), "{refused:?}");
    }
    // A lab that was started here has a gateway of its own.
    fs::create_dir(led.folder.path().join("lab/process")).unwrap();
    let refused = led.run(&[&by_name[..], &DEGRADE].concat());
    assert_eq!((refused.code, refused.err.contains("name its --folder")), (Some(2), true), "{refused:?}");
}
