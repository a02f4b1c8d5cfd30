//! One line of the table: a request, who sends it, and what they are told.

use serde_json::Value;

/// Who sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Who {
    Nobody,
    Patient,
    Clinician,
    Admin,
    Sre,
}

/// A request that is refused.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) who: Who,
    pub(super) method: &'static str,
    pub(super) path: String,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Vec<u8>,
    pub(super) expected: (u16, &'static str),
}

impl Case {
    fn new(name: &'static str, method: &'static str, path: impl Into<String>, expected: (u16, &'static str)) -> Self {
        let (headers, body) = (Vec::new(), Vec::new());
        Self { name, who: Who::Clinician, method, path: path.into(), headers, body, expected }
    }

    /// A read.
    pub(super) fn get(name: &'static str, path: impl Into<String>, status: u16, problem: &'static str) -> Self {
        Self::new(name, "GET", path, (status, problem))
    }

    /// A write with everything that a good one has.
    pub(super) fn post(
        name: &'static str,
        path: impl Into<String>,
        body: &Value,
        status: u16,
        problem: &'static str,
    ) -> Self {
        Self::write(name, "POST", path, body, (status, problem))
    }

    pub(super) fn write(
        name: &'static str,
        method: &'static str,
        path: impl Into<String>,
        body: &Value,
        expected: (u16, &'static str),
    ) -> Self {
        let headers =
            vec![("idempotency-key", name.replace(' ', "-")), ("content-type", "application/json".to_owned())];
        Self { headers, body: body.to_string().into_bytes(), ..Self::new(name, method, path, expected) }
    }

    pub(super) fn by(self, who: Who) -> Self {
        Self { who, ..self }
    }

    pub(super) fn body(self, body: impl Into<Vec<u8>>) -> Self {
        Self { body: body.into(), ..self }
    }

    /// With a header more, or another value of one that is there.
    pub(super) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.retain(|(known, _)| *known != name);
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(known, _)| *known != name);
        self
    }

    /// The request as bytes.
    pub(super) fn bytes(&self, token: Option<&str>) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\nhost: lab\r\nconnection: close\r\n", self.method, self.path);
        let has = |name: &str| self.headers.iter().any(|(known, _)| *known == name);
        if let Some(token) = token.filter(|_| !has("authorization")) {
            head.push_str(&format!("authorization: Bearer {token}\r\n"));
        }
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !self.body.is_empty() && !has("content-length") && !has("transfer-encoding") {
            head.push_str(&format!("content-length: {}\r\n", self.body.len()));
        }
        head.push_str("\r\n");
        [head.as_bytes(), &self.body].concat()
    }
}
