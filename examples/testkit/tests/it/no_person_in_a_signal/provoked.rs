//! What goes wrong on purpose, each time with somebody's particulars in it.

use std::time::{Duration, Instant};

use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use pim_events::{Headers, NewRecord, Publisher as _, Subscriber as _};
use pim_lab::client::Client;
use pim_lab::ids::PatientId;
use pim_lab::workers::Stores;
use pim_testkit::caller::{Caller, fresh_key};
use pim_testkit::nine::Nine;
use serde_json::{Value, json};
use uuid::Uuid;

use super::particulars::Person;

const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);

pub(super) struct Provoker<'a> {
    pub(super) nine: &'a Nine,
    pub(super) sre: &'a Caller,
    pub(super) clinician: &'a Caller,
    pub(super) person: &'a Person,
}

impl Provoker<'_> {
    /// Sends what must be refused, and gives back the body of the refusal.
    async fn refused(&self, who: &Caller, method: &str, path: &str, more: &[(&str, &str)], body: &Value) -> String {
        let mut headers = HeaderMap::new();
        let bearer = format!("Bearer {}", who.token());
        for (name, value) in [("authorization", bearer.as_str()), ("idempotency-key", &fresh_key())].iter().chain(more)
        {
            headers.insert(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
        }
        let body = (*body != Value::Null).then_some(body);
        let (method, url) = (Method::from_bytes(method.as_bytes()).unwrap(), format!("{}{path}", self.nine.gateway));
        let (status, _, bytes) = Client::new().exchange(method, &url, headers, body, PATIENCE).await.unwrap();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        assert!(status.is_client_error(), "{path} {body:?}: {status} {text}");
        text
    }

    /// Refusals of every kind, with somebody in path, query, header and body.
    pub(super) async fn refusals(&self) -> String {
        let (family, id) = (self.person.family_name.as_str(), self.person.id);
        let mut told = String::new();
        for body in self.bodies() {
            told += &self.refused(self.clinician, "POST", "/v1/patients", &[], &body).await;
            told += &self.refused(self.clinician, "PATCH", &format!("/v1/patients/{id}"), &[], &body).await;
        }
        let unknown_state = json!({"to": family});
        let transitions = format!("/v1/patients/{id}/transitions");
        told += &self.refused(self.clinician, "POST", &transitions, &[], &unknown_state).await;
        for path in [
            format!("/v1/patients/{family}"),
            format!("/v1/{family}"),
            format!("/v1/patients?nobody={family}"),
            format!("/v1/patients?birth_date={family}"),
            format!("/v1/patients?name={family}&cursor={family}"),
            format!("/v1/patients/{id}/{family}"),
        ] {
            told += &self.refused(self.clinician, "GET", &path, &[], &Value::Null).await;
        }
        for (name, value) in self.headers() {
            told += &self
                .refused(self.clinician, "PATCH", &format!("/v1/patients/{id}"), &[(name, &value)], &json!({"mail": 1}))
                .await;
        }
        told += &self.refused(self.clinician, &family.to_uppercase(), "/v1/patients", &[], &Value::Null).await;
        told + &self.operations().await
    }

    fn bodies(&self) -> Vec<Value> {
        let Person { given_name, family_name, birth_date, syn_number, address, telephone, mail, .. } = self.person;
        vec![
            json!(family_name),
            json!([given_name, family_name]),
            json!({"given_name": given_name, "family_name": 7, "birth_date": birth_date}),
            json!({"given_name": given_name, "syn_number": format!("{syn_number} of {family_name}")}),
            json!({"family_name": {"is": family_name}, "address": [address], "telephone": [telephone]}),
            json!({"mail": format!("{mail} {address}"), "birth_date": format!("{birth_date} {given_name}")}),
            json!({family_name: given_name, "expected": address}),
        ]
    }

    fn headers(&self) -> Vec<(&'static str, String)> {
        let Person { family_name, mail, address, .. } = self.person;
        vec![
            ("authorization", format!("Bearer {family_name}")),
            ("if-match", family_name.clone()),
            ("idempotency-key", address.clone()),
            ("idempotency-key", family_name.clone()),
            ("x-pim-token", mail.clone()),
            ("x-pim-request-id", family_name.clone()),
            ("traceparent", family_name.clone()),
            ("tracestate", format!("x={family_name}")),
            ("user-agent", address.clone()),
        ]
    }

    /// Operations with somebody for a name.
    async fn operations(&self) -> String {
        let (family, id, person) = (self.person.family_name.as_str(), self.person.id, self.person);
        let mut told = String::new();
        let selection = json!({"selection": {"event_type": [family], "key": person.birth_date}});
        let fault = json!({"fault": family, "percent": 1, "seconds": 1});
        for (method, path, body) in [
            ("GET", format!("/v1/admin/journeys/{family}"), Value::Null),
            ("GET", format!("/v1/admin/lineage/{family}/{id}"), Value::Null),
            ("GET", format!("/v1/admin/lineage/patient/{id}?as_of={}", person.birth_date), Value::Null),
            ("POST", format!("/v1/admin/projections/{family}/rebuild"), json!({})),
            ("POST", format!("/v1/admin/dead-letters/{family}/{id}/unpark"), json!({})),
            ("POST", "/v1/admin/dead-letters/replay".to_owned(), selection),
            ("PUT", format!("/v1/admin/chaos/flags/{family}"), json!({"fault": "error", "percent": 1, "seconds": 1})),
            ("PUT", "/v1/admin/chaos/flags/gateway".to_owned(), fault),
            ("POST", "/v1/admin/shards/map".to_owned(), json!({"map": family})),
        ] {
            told += &self.refused(self.sre, method, &path, &[], &body).await;
        }
        told += &self.refused(self.sre, "POST", "/v1/patients", &[], &json!({"family_name": family})).await;
        told + &self.refused(self.sre, "POST", "/v1/dev/token", &[], &json!({"role": family})).await
    }

    /// Puts a record on the bus that no read model can decode, and waits until its key is parked and has failed once more.
    pub(super) async fn poison(&self, stores: &Stores) {
        let key = PatientId::random();
        let headers = self.healthy_headers(stores).await;
        let mut headers = headers;
        for (name, value) in [
            ("ce_id", Uuid::now_v7().to_string()),
            ("ce_subject", format!("patient/{key}")),
            ("ce_partitionkey", key.to_string()),
            ("pim-bucket", key.bucket().to_string()),
            ("pim-n", "1".to_owned()),
        ] {
            headers.set(name, value);
        }
        let Person { given_name, family_name, birth_date, address, .. } = self.person;
        let payload =
            json!({"given_name": [given_name], "family_name": family_name, "birth_date": [birth_date, address]});
        let poison =
            NewRecord { topic: "domain.v1".to_owned(), key: key.uuid(), headers, payload: payload.to_string() };
        let no_event = NewRecord { headers: Headers::default(), ..poison.clone() };
        stores.bus.publish(vec![no_event, poison]).await.unwrap();
        self.until(|held| held["events"][0]["event_type"] == "patient.registered", |held| held["tries"] == 0, key)
            .await;
        let unpark = format!("/v1/admin/dead-letters/patient_search/{key}/unpark");
        let (status, answer) = self.sre.post(&unpark, &fresh_key(), &json!({})).await.unwrap();
        assert_eq!(status, StatusCode::OK, "{answer:#}");
        self.until(|_| true, |held| held["tries"] == 1 && held["reason"] == "poison", key).await;
    }

    /// The headers of an event that the bus has.
    async fn healthy_headers(&self, stores: &Stores) -> Headers {
        for partition in 0..stores.bus.partitions("domain.v1").await.unwrap() {
            let records = stores.bus.fetch("domain.v1", partition, 0, 500).await.unwrap();
            let registered = |headers: &Headers| headers.get("ce_type") == Some("patient.registered");
            if let Some(found) = records.into_iter().map(|record| record.headers).find(registered) {
                return found;
            }
        }
        panic!("no patient has been registered");
    }

    async fn until(&self, item: impl Fn(&Value) -> bool, held: impl Fn(&Value) -> bool, key: PatientId) {
        let since = Instant::now();
        loop {
            let (status, letters) = self.sre.get("/v1/admin/dead-letters").await.unwrap();
            assert_eq!(status, StatusCode::OK, "{letters:#}");
            let of_search =
                |it: &&Value| it["held"]["key"] == key.to_string() && it["held"]["consumer"] == "patient_search";
            let found = letters["items"].as_array().unwrap().iter().find(of_search);
            let is_aside = !letters["unreadable"].as_array().unwrap().is_empty();
            if found.is_some_and(|found| item(found) && held(&found["held"])) && is_aside {
                return;
            }
            assert!(since.elapsed() < PATIENCE, "the key is not held as it should be: {letters:#}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Lets faults strike a service, the relay and the consumers; gives back what a caller was told meanwhile.
    pub(super) async fn faults(&self) -> String {
        let fault = json!({"fault": "error", "percent": 100, "seconds": 3});
        for point in ["patient-service", "outbox-relay", "consumer"] {
            let (status, armed) = self.sre.put(&format!("/v1/admin/chaos/flags/{point}"), &fault).await.unwrap();
            assert_eq!(status, StatusCode::OK, "{armed:#}");
        }
        let search = format!("{}/v1/patients?name={}", self.nine.gateway, self.person.family_name);
        let bearer = HeaderValue::from_str(&format!("Bearer {}", self.clinician.token())).unwrap();
        let headers = HeaderMap::from_iter([(AUTHORIZATION, bearer)]);
        let (client, since) = (Client::new(), Instant::now());
        let struck = loop {
            let asked = client.exchange(Method::GET, &search, headers.clone(), None, PATIENCE).await.unwrap();
            if asked.0 == StatusCode::SERVICE_UNAVAILABLE {
                break String::from_utf8(asked.2.to_vec()).unwrap();
            }
            assert!(since.elapsed() < PATIENCE, "the fault does not strike: {}", asked.0);
            tokio::time::sleep(LOOK_EVERY).await;
        };
        // Something to publish and to fold while it cannot be, and afterwards.
        let registered = json!({
            "facility_id": self.clinician.facility, "given_name": "Zora", "family_name": "Quillington",
            "birth_date": "1931-07-17", "sex": "unknown", "syn_number": "SYN-99770011",
        });
        let made = loop {
            let (status, made) = self.clinician.post("/v1/patients", &fresh_key(), &registered).await.unwrap();
            if status == StatusCode::CREATED {
                break made;
            }
            assert!(since.elapsed() < PATIENCE, "the fault does not end: {status} {made}");
            tokio::time::sleep(LOOK_EVERY).await;
        };
        loop {
            let (_, found) = self.clinician.get("/v1/patients?name=quillington").await.unwrap();
            if found["items"][0]["id"] == made["id"] {
                return struck;
            }
            assert!(since.elapsed() < PATIENCE, "the flow does not go on: {found}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
