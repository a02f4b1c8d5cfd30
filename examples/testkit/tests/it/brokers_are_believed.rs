//! The session broker as a program: what it has acknowledged holds after a power cut, and its tokens are good wherever it listens.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, HeaderMap};
use http::{HeaderValue, Method, StatusCode};
use pim_lab::broker::gateway_secret;
use pim_lab::client::Client;
use pim_servers::port;
use pim_testkit::disk::{Disk, Unsynced};
use pim_testkit::folder::Folder;
use pim_testkit::program::{Program, built};
use pim_testkit::session::session_of;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(10);

/// What the development identity provider gives a clinician.
async fn signed_in(broker: &str) -> Value {
    Client::new().post_json(&format!("{broker}/dev/token"), &json!({"role": "clinician"}), PATIENCE).await.unwrap()
}

fn access(token: &Value) -> &str {
    token["access_token"].as_str().unwrap()
}

/// Whether the broker still gives a session context for it.
async fn is_good(broker: &str, data_dir: &Path, token: &Value) -> bool {
    session_of(broker, &gateway_secret(data_dir).unwrap(), access(token)).await.is_ok()
}

async fn revoked(broker: &str, data_dir: &Path, what: &Value) -> StatusCode {
    let basic = format!("Basic {}", STANDARD.encode(format!("gateway:{}", gateway_secret(data_dir).unwrap())));
    let headers = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::try_from(basic).unwrap())]);
    let url = format!("{broker}/sessions/revoke");
    Client::new().exchange(Method::POST, &url, headers, Some(what), PATIENCE).await.unwrap().0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_brings_no_revoked_session_back() {
    let mut disk = Disk::new(0).unwrap();
    let data_dir = disk.root();
    let told = data_dir.display().to_string();
    // On another port each time, and the same broker.
    let arguments = ["--data-dir", &told, "--listen", "127.0.0.1:0", "--set", "public_url=http://session-broker:8081"];
    let broker = Program::start_on(&disk, "session-broker", &arguments).await.unwrap();
    let url = broker.told("url").to_owned();
    let (first, second, other) = (signed_in(&url).await, signed_in(&url).await, signed_in(&url).await);
    for ended in [&first, &second] {
        assert!(is_good(&url, &data_dir, ended).await);
        assert_eq!(revoked(&url, &data_dir, &json!({"sid": ended["sid"]})).await, StatusCode::NO_CONTENT);
    }
    broker.kill().await.unwrap();
    disk.lose_power(Unsynced::Lost).unwrap();
    let broker = Program::start_on(&disk, "session-broker", &arguments).await.unwrap();
    let url = broker.told("url").to_owned();
    assert!(!is_good(&url, &data_dir, &first).await);
    assert!(!is_good(&url, &data_dir, &second).await);
    assert!(is_good(&url, &data_dir, &other).await, "the keys are the same");
    assert_eq!(broker.stop().await.unwrap().0, Some(0));
}

/// Answers every request with 200.
fn upstream() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (mut stream, mut head) = (stream, Vec::new());
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
                head.push(byte[0]);
            }
            let _hung_up = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}");
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn wherever_it_listens_its_tokens_are_good_by_its_public_url() {
    let folder = Folder::new("public").unwrap();
    let data_dir = folder.path().display().to_string();
    let public = format!("http://{}", port::reserve().unwrap());
    let everywhere = public.replace("http://127.0.0.1", "0.0.0.0");
    let setting = format!("public_url={public}");
    let arguments = ["--data-dir", &data_dir, "--listen", &everywhere, "--set", &setting];
    let broker = Program::start("session-broker", &arguments).await.unwrap();
    let listens = format!("http://{everywhere}");
    assert_eq!((broker.told("url"), broker.told("issuer")), (listens.as_str(), public.as_str()));
    let (broker_url, patient_url) = (format!("broker_url={public}"), format!("patient_url={}", upstream()));
    let common = ["--data-dir", &data_dir, "--listen", "127.0.0.1:0", "--set", "internal_listen=127.0.0.1:0"];
    let arguments = [&common[..], &["--set", &broker_url, "--set", &patient_url]].concat();
    let gateway = Program::start("gateway", &arguments).await.unwrap();
    let token = signed_in(&public).await;
    let headers = HeaderMap::from_iter([(AUTHORIZATION, format!("Bearer {}", access(&token)).try_into().unwrap())]);
    let url = format!("{}/v1/patients", gateway.told("url"));
    let (status, ..) = Client::new().exchange(Method::GET, &url, headers, None, PATIENCE).await.unwrap();
    assert_eq!(status, StatusCode::OK);
    let url = format!("{public}/.well-known/openid-configuration");
    let (_, _, body) = Client::new().exchange(Method::GET, &url, HeaderMap::new(), None, PATIENCE).await.unwrap();
    let told: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((&told["issuer"], &told["jwks_uri"]), (&json!(public), &json!(format!("{public}/jwks.json"))));
}

#[test]
fn a_public_url_that_is_none_is_refused_by_name() {
    let broker = built("session-broker").unwrap();
    for url in ["session-broker:8081", "http://session-broker:8081/", "ftp://session-broker"] {
        let refused = Command::new(&broker).args(["--check-config", "--set", &format!("public_url={url}")]).output();
        let refused = refused.unwrap();
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(2), "{url}: {told}");
        assert!(told.contains("`public_url` in the settings does not fit: must be an http or https URL"), "{told}");
    }
}
