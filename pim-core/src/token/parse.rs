//! The check before any cryptography.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::{TOKEN_BYTES_MAX, TokenError};

const DEPTH_MAX: u8 = 8;
const KEY_ID_MAX: usize = 128;
/// Members that would let a token choose its own key or meaning.
const REFUSED_MEMBERS: &[&str] = &["crit", "jku", "x5u", "jwk", "x5c", "x5t", "x5t#S256", "b64", "zip"];

/// A token in its parts; nothing in it is trusted yet.
pub(super) struct Parsed<'t> {
    /// What the signature is over.
    pub(super) message: &'t str,
    pub(super) signature: &'t str,
    pub(super) algorithm: String,
    pub(super) key_id: String,
    pub(super) claims: Map<String, Value>,
}

/// Takes a token apart.
pub(super) fn parse<'t>(token: &'t str, typ: &str) -> Result<Parsed<'t>, TokenError> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(TokenError::Malformed("longer than 8 KiB"));
    }
    let mut parts = token.split('.');
    let (Some(header), Some(claims), Some(signature), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(TokenError::Malformed("not three parts"));
    };
    let message = &token[..header.len() + 1 + claims.len()];
    if signature.is_empty() || URL_SAFE_NO_PAD.decode(signature).is_err() {
        return Err(TokenError::Malformed("no canonical signature"));
    }
    let header = object(header)?;
    if REFUSED_MEMBERS.iter().any(|member| header.contains_key(*member)) {
        return Err(TokenError::Header("a member that may not be there"));
    }
    let text = |member: &str| header.get(member).and_then(Value::as_str);
    if !text("typ").is_some_and(|found| found.eq_ignore_ascii_case(typ)) {
        return Err(TokenError::Header("another typ"));
    }
    let algorithm = text("alg").ok_or(TokenError::Header("no alg"))?.to_owned();
    let key_id = text("kid").ok_or(TokenError::Header("no kid"))?.to_owned();
    let is_plain = key_id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if key_id.is_empty() || key_id.len() > KEY_ID_MAX || !is_plain {
        return Err(TokenError::Header("a kid outside its form"));
    }
    Ok(Parsed { message, signature, algorithm, key_id, claims: object(claims)? })
}

/// A JSON object out of a base64url part: no padding, no stray bits, no duplicate member, not too deep.
fn object(part: &str) -> Result<Map<String, Value>, TokenError> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed("no canonical base64url"))?;
    let mut reader = serde_json::Deserializer::from_slice(&bytes);
    let value = Strict { depth: 0 }.deserialize(&mut reader);
    let value = value.map_err(|_| TokenError::Malformed("no strict JSON object"))?;
    reader.end().map_err(|_| TokenError::Malformed("no strict JSON object"))?;
    match value {
        Value::Object(members) => Ok(members),
        _ => Err(TokenError::Malformed("no strict JSON object")),
    }
}

/// Reads JSON, but refuses duplicate members and deep nesting, which parsers disagree about.
#[derive(Clone, Copy)]
struct Strict {
    depth: u8,
}

impl Strict {
    fn deeper<E: de::Error>(self) -> Result<Self, E> {
        if self.depth >= DEPTH_MAX { Err(E::custom("too deep")) } else { Ok(Self { depth: self.depth + 1 }) }
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E: de::Error>(self, flag: bool) -> Result<Value, E> {
        Ok(Value::from(flag))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Value, E> {
        Ok(Value::from(number))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Value, E> {
        Ok(Value::from(number))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Value, E> {
        Ok(Value::from(number))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Value, E> {
        Ok(Value::from(text))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(inner)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut object = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            let value = members.next_value_seed(inner)?;
            if object.insert(name, value).is_some() {
                return Err(de::Error::custom("duplicate member"));
            }
        }
        Ok(Value::Object(object))
    }
}
