//! Whatever a member has borrowed is on some page of the list.

use std::collections::BTreeSet;

use http::StatusCode;
use pim_core::id::Id;
use pim_core::signal::SignalRegistry;
use pim_lending::desk;
use pim_lending::house::{House, Signals};
use pim_lending::loan::{Member, Role, policy};
use pim_lending::sign_in::SignIn;
use pim_telemetry::trace::TraceStore;
use serde_json::{Value, json};

use crate::a_book_is_lent::{Folder, call, json_of};

#[tokio::test]
async fn page_by_page() {
    let (mut registry, traces, folder) = (SignalRegistry::new(), TraceStore::new(100), Folder::new());
    let signals = Signals::bind(&mut registry, &traces).unwrap();
    let (house, _works) = House::open(&folder.0, None, &signals).await.unwrap();
    let sign_in = SignIn::new().unwrap();
    let desk = desk::routes(house, &policy().unwrap().into(), sign_in.verifier());
    let token = sign_in.token("u-1", Role::Librarian, None).unwrap();
    let loans = format!("/members/{}/loans", Id::<Member>::random());

    let mut lent = BTreeSet::new();
    for number in 0..101 {
        let order = json!({"title": format!("Volume {number}")});
        let answer = json_of(call(&desk, &token, ("POST", &loans), &format!("k-{number}"), &order).await).await;
        lent.insert(answer["id"].as_str().unwrap().to_owned());
    }
    assert_eq!(lent.len(), 101);

    let (mut listed, mut path, mut pages) = (Vec::new(), loans.clone(), 0);
    while pages < 10 {
        let page = json_of(call(&desk, &token, ("GET", &path), "", &Value::Null).await).await;
        pages += 1;
        listed.extend(page["items"].as_array().unwrap().iter().map(|loan| loan["id"].as_str().unwrap().to_owned()));
        let Some(next) = page["next_cursor"].as_str() else { break };
        path = format!("{loans}?cursor={next}");
    }
    assert_eq!((pages, listed.len()), (2, 101), "each once");
    assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), lent);

    let refused = call(&desk, &token, ("GET", &format!("{loans}?cursor=far")), "", &Value::Null).await;
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
    assert_eq!(json_of(refused).await["type"], "urn:pim:problem:invalid-query");
    let refused = call(&desk, &token, ("POST", &loans), "k", &json!({"title": "x".repeat(20_000)})).await;
    assert_eq!(refused.status(), StatusCode::PAYLOAD_TOO_LARGE);
}
