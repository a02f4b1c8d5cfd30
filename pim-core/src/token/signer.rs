//! Signing tokens with one ES256 key.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// A key that cannot be used, or claims that cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot sign: {0}")]
#[non_exhaustive]
pub struct SignError(&'static str);

/// Signs with one P-256 key. The key itself is made and kept by the program that has the I/O.
pub struct Signer {
    key: EncodingKey,
    key_id: String,
    jwk: Value,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("key_id", &self.key_id).finish_non_exhaustive()
    }
}

impl Signer {
    /// From a PKCS #8 private key and its public point, uncompressed (65 bytes, beginning with 4).
    ///
    /// # Errors
    /// [`SignError`] when the point is of another form.
    pub fn es256(pkcs8: &[u8], public: &[u8]) -> Result<Self, SignError> {
        let [4, point @ ..] = public else { return Err(SignError("the public point is not uncompressed")) };
        if point.len() != 64 {
            return Err(SignError("the public point is not of P-256"));
        }
        let (x, y) = (URL_SAFE_NO_PAD.encode(&point[..32]), URL_SAFE_NO_PAD.encode(&point[32..]));
        // RFC 7638: the thumbprint names the key by what it is.
        let thumbprint = Sha256::digest(format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#).as_bytes());
        let key_id = URL_SAFE_NO_PAD.encode(thumbprint);
        let jwk = json!({"kty": "EC", "crv": "P-256", "x": x, "y": y, "alg": "ES256", "use": "sig", "kid": key_id});
        Ok(Self { key: EncodingKey::from_ec_der(pkcs8), key_id, jwk })
    }

    /// The id of its key.
    #[must_use]
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// Its public key, for a key set.
    #[must_use]
    pub const fn jwk(&self) -> &Value {
        &self.jwk
    }

    /// A compact token of the given media type.
    ///
    /// # Errors
    /// [`SignError`] when the claims are no JSON or the key does not sign.
    pub fn sign(&self, typ: &str, claims: &impl Serialize) -> Result<String, SignError> {
        let header = json!({"alg": "ES256", "kid": self.key_id, "typ": typ}).to_string();
        let claims = serde_json::to_vec(claims).map_err(|_| SignError("the claims are no JSON"))?;
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &self.key, Algorithm::ES256);
        let signature = signature.map_err(|_| SignError("the key does not sign"))?;
        Ok(format!("{message}.{signature}"))
    }
}
