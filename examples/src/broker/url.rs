//! URLs: where a code may be sent to, and what a broker may be called.

use http::Uri;
use http::uri::Authority;

/// Where native programs listen for their code (RFC 8252, 7.3).
const LOOPBACK: [&str; 3] = ["127.0.0.1", "[::1]", "localhost"];

/// Whether a code that is sent there stays on the caller's own machine: plain HTTP, a host of loopback, a port.
///
/// By its parts, not by how it begins: what looks like host and port may be a name and a password, and the host another one.
pub(super) fn is_on_loopback(redirect_uri: &str) -> bool {
    // A fragment would swallow the code; the parser drops it without a word.
    let Some(uri) = redirect_uri.parse::<Uri>().ok().filter(|_| !redirect_uri.contains('#')) else { return false };
    let place = uri.authority().and_then(host_and_port);
    uri.scheme_str() == Some("http") && place.is_some_and(|(host, port)| LOOPBACK.contains(&host) && port.is_some())
}

/// What a base URL is, for whoever has set another one.
pub(super) const RULE: &str = "an http or https URL without a slash at its end, such as http://session-broker:8081";

/// Whether others can put paths behind it: a scheme and a host, maybe a port and a path, and nothing else.
pub(super) fn is_base_url(url: &str) -> bool {
    let Some(uri) = url.parse::<Uri>().ok().filter(|_| !url.contains(['?', '#']) && !url.ends_with('/')) else {
        return false;
    };
    matches!(uri.scheme_str(), Some("http" | "https")) && uri.authority().and_then(host_and_port).is_some()
}

/// Host and port of an authority that has nothing else: no user, and no port that is none.
fn host_and_port(authority: &Authority) -> Option<(&str, Option<u16>)> {
    let host = authority.host();
    if host.is_empty() {
        return None;
    }
    match authority.as_str().strip_prefix(host)? {
        "" => Some((host, None)),
        port => {
            let digits = port.strip_prefix(':').filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
            Some((host, Some(digits.parse().ok().filter(|port| *port > 0)?)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_stays_on_the_machine() {
        for good in ["http://127.0.0.1:9/cb", "http://localhost:65535", "http://[::1]:9/cb?x=1"] {
            assert!(is_on_loopback(good), "{good}");
        }
        let table = [
            "http://127.0.0.1:x@evil.example/cb",
            "http://localhost:x@evil.example/cb",
            "http://127.0.0.1:80@evil.example:80/cb",
            "http://evil.example@127.0.0.1:9/cb",
            "http://127.0.0.1:9\\@evil.example/cb",
            "http://127.0.0.1:/cb",
            "http://127.0.0.1:0/cb",
            "http://127.0.0.1:65536/cb",
            "http://127.0.0.1:+9/cb",
            "http://127.0.0.1:9x/cb",
            "http://127.0.0.1/cb",
            "http://127.0.0.1.evil.example:9/cb",
            "http://localhost.evil.example:9/cb",
            "http://127.0.0.2:9/cb",
            "https://127.0.0.1:9/cb",
            "//127.0.0.1:9/cb",
            "127.0.0.1:9",
            "/cb",
            "",
            "http://127.0.0.1:9/cb#f",
            "http://127.0.0.1:9/cb\r\nx: y",
        ];
        for bad in table {
            assert!(!is_on_loopback(bad), "{bad}");
        }
    }

    #[test]
    fn a_broker_is_called_by_a_url_that_paths_can_follow() {
        for good in
            ["http://session-broker:8081", "https://login.example", "http://[::]:8081", "https://edge.example/broker"]
        {
            assert!(is_base_url(good), "{good}");
        }
        let table = [
            "",
            "session-broker",
            "session-broker:8081",
            "http://",
            "http://:8081",
            "http://session-broker:",
            "http://session-broker:99999",
            "http://session-broker:8081/",
            "http://session-broker?x",
            "http://session-broker#x",
            "http://user@session-broker",
            "ftp://session-broker",
            "http://session broker",
        ];
        for bad in table {
            assert!(!is_base_url(bad), "{bad}");
        }
    }
}
