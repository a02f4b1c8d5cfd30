//! Keys that signatures are checked against, each with the one algorithm that it is for.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::Value;

const KEYS_MAX: usize = 64;
const RSA_MODULUS_BYTES_MIN: usize = 256;

/// A key set that is refused as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("key set is refused: {0}")]
#[non_exhaustive]
pub struct KeyError(pub(super) &'static str);

/// A public key and its algorithm.
#[derive(Clone)]
pub struct VerifyKey {
    pub(super) algorithm: Algorithm,
    pub(super) decoding: DecodingKey,
}

impl std::fmt::Debug for VerifyKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VerifyKey({:?})", self.algorithm)
    }
}

impl VerifyKey {
    /// Whether tokens and key sets call its algorithm so. RFC 9864 gives EdDSA with this curve a name of its own.
    pub(super) fn is_of(&self, algorithm: &str) -> bool {
        match self.algorithm {
            Algorithm::ES256 => algorithm == "ES256",
            Algorithm::EdDSA => matches!(algorithm, "EdDSA" | "Ed25519"),
            Algorithm::RS256 => algorithm == "RS256",
            Algorithm::PS256 => algorithm == "PS256",
            // No key is ever made for another one.
            _ => false,
        }
    }
}

/// The keys of one issuer, by key id.
#[derive(Clone, Debug, Default)]
pub struct KeySet {
    keys: BTreeMap<String, Arc<VerifyKey>>,
    skipped: usize,
}

impl KeySet {
    /// Reads a JSON Web Key Set (RFC 7517). Keys for other uses, without an id, and of types or algorithms that are not
    /// known here, are passed over, so that an issuer may publish a new kind of key beside the old; one bad key of a known kind
    /// refuses the set.
    ///
    /// # Errors
    /// [`KeyError`] for more than 64 keys, a duplicate id, a weak or malformed key, or no usable key.
    pub fn from_jwks(text: &str) -> Result<Self, KeyError> {
        let document: Value = serde_json::from_str(text).map_err(|_| KeyError("no JSON"))?;
        let listed = document["keys"].as_array().ok_or(KeyError("no list of keys"))?;
        if listed.len() > KEYS_MAX {
            return Err(KeyError("more than 64 keys"));
        }
        let (mut keys, mut skipped) = (BTreeMap::new(), 0);
        for jwk in listed {
            if jwk.get("d").is_some() || jwk.get("k").is_some() {
                return Err(KeyError("a secret among the keys"));
            }
            if jwk.get("use").is_some_and(|usage| usage != "sig") {
                continue;
            }
            // Tokens without a key id are refused: a key without one verifies none.
            let Some(id) = jwk["kid"].as_str().filter(|_| is_known_kind(jwk)) else {
                skipped += 1;
                continue;
            };
            if keys.insert(id.to_owned(), Arc::new(key_of(jwk)?)).is_some() {
                return Err(KeyError("two keys with one kid"));
            }
        }
        if keys.is_empty() { Err(KeyError("no usable key")) } else { Ok(Self { keys, skipped }) }
    }

    /// How many keys were passed over because they have no id, or their type or algorithm is not known here.
    #[must_use]
    pub const fn skipped(&self) -> usize {
        self.skipped
    }

    /// The key of an id.
    #[must_use]
    pub fn get(&self, key_id: &str) -> Option<Arc<VerifyKey>> {
        self.keys.get(key_id).cloned()
    }
}

/// The algorithms that tokens are verified with here, by all of their names.
const ALGORITHMS: [&str; 5] = ["ES256", "EdDSA", "Ed25519", "RS256", "PS256"];

/// Whether tokens are verified here with keys of its type and algorithm. RFC 7517, section 5: one that is not should be ignored.
fn is_known_kind(jwk: &Value) -> bool {
    let text = |member: &str| jwk[member].as_str().unwrap_or_default();
    let is_known = jwk["alg"].as_str().is_none_or(|alg| ALGORITHMS.contains(&alg));
    is_known && matches!((text("kty"), text("crv")), ("EC", "P-256") | ("OKP", "Ed25519") | ("RSA", _))
}

fn key_of(jwk: &Value) -> Result<VerifyKey, KeyError> {
    let text = |member: &str| jwk[member].as_str().unwrap_or_default();
    let declared = jwk["alg"].as_str();
    let (algorithm, decoding) = match (text("kty"), text("crv")) {
        ("EC", "P-256") => (Algorithm::ES256, DecodingKey::from_ec_components(text("x"), text("y"))),
        ("OKP", "Ed25519") => (Algorithm::EdDSA, DecodingKey::from_ed_components(text("x"))),
        ("RSA", _) => {
            let modulus = URL_SAFE_NO_PAD.decode(text("n")).map_err(|_| KeyError("a malformed key"))?;
            let bytes = modulus.iter().skip_while(|byte| **byte == 0).count();
            if bytes < RSA_MODULUS_BYTES_MIN {
                return Err(KeyError("an RSA key of less than 2048 bits"));
            }
            let algorithm = if declared == Some("PS256") { Algorithm::PS256 } else { Algorithm::RS256 };
            (algorithm, DecodingKey::from_rsa_components(text("n"), text("e")))
        }
        _ => return Err(KeyError("a key of an unsupported type")),
    };
    let key = VerifyKey { algorithm, decoding: decoding.map_err(|_| KeyError("a malformed key"))? };
    if declared.is_some_and(|name| !key.is_of(name)) {
        return Err(KeyError("a key whose alg is not its own"));
    }
    Ok(key)
}
