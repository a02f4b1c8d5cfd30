//! Numbers in JSON, written so that either engine gives back the same ones: the trail has digests of them.
//!
//! A server keeps JSON numbers as decimals. It writes `1e16` as `10000000000000000`, which reads as an integer, and knows no
//! negative zero; the digits behind the point it keeps.

use std::io;

use serde::Serialize as _;
use serde_json::ser::{CompactFormatter, Formatter};
use serde_json::{Serializer, Value as Json};

/// From here on a float is written with an exponent, which a server resolves.
const EXPONENT_FROM: f64 = 1e16;
/// 2^64: what is as large reads as a float however it is written.
const INTEGER_BELOW: f64 = 18_446_744_073_709_551_616.0;

/// Takes the sign from each negative zero, which is equal to zero.
pub(super) fn settle(json: &mut Json) {
    match json {
        Json::Number(number) if number.is_f64() && number.as_f64() == Some(0.0) => *json = Json::from(0.0),
        Json::Array(items) => items.iter_mut().for_each(settle),
        Json::Object(fields) => fields.values_mut().for_each(settle),
        _ => {}
    }
}

/// JSON text in which each float is one for every reader.
pub(super) fn text(json: &Json) -> String {
    let mut text = Vec::with_capacity(64);
    // What is written is a tree of plain values, and a vector takes all of it.
    let _infallible = json.serialize(&mut Serializer::with_formatter(&mut text, Floats));
    String::from_utf8(text).unwrap_or_default()
}

struct Floats;

impl Formatter for Floats {
    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        if (EXPONENT_FROM..INTEGER_BELOW).contains(&value.abs()) {
            return write!(writer, "{value:.1}");
        }
        CompactFormatter.write_f64(writer, value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Json {
        serde_json::from_str(text).expect("is JSON")
    }

    proptest! {
        /// Guard: what is read is what was written, digit by digit, also where somebody has written it out in full meanwhile.
        #[test]
        fn a_float_is_read_as_itself(number in any::<f64>(), exponent in -30_i32..30, fraction in 0.0..1.0_f64) {
            for number in [number, fraction, fraction * 10_f64.powi(exponent), (fraction * 10_f64.powi(exponent)).trunc()] {
                let mut json = Json::from(number);
                settle(&mut json);
                prop_assert_eq!(read(&text(&json)).to_string(), json.to_string());
                // As a server gives it back: without exponents, and with the digits behind the point that it was given.
                let given = text(&json);
                let point = if given.contains('e') || number.fract() != 0.0 { "" } else { ".0" };
                let in_full = format!("{}{point}", json.as_f64().unwrap_or_default());
                prop_assert_eq!(read(&in_full).to_string(), json.to_string(), "{}", given);
            }
        }
    }

    #[test]
    fn a_float_is_one_for_every_reader() {
        for (number, written) in [
            (1e15, "1000000000000000.0"),
            (1e16, "10000000000000000.0"),
            (-1e16, "-10000000000000000.0"),
            (9_223_372_036_854_775_808.0, "9223372036854775808.0"),
            (1e20, "1e+20"),
            (5e-324, "5e-324"),
        ] {
            assert_eq!(text(&Json::from(number)), written);
        }
        assert_eq!(text(&Json::from(u64::MAX)), u64::MAX.to_string(), "an integer is none");
    }

    #[test]
    fn nothing_has_no_sign_however_deep_it_stands() {
        let mut json = serde_json::json!({"a": [-0.0, {"b": -0.0}], "c": [-1, -0.5, "-0.0", 0]});
        settle(&mut json);
        assert_eq!(text(&json), r#"{"a":[0.0,{"b":0.0}],"c":[-1,-0.5,"-0.0",0]}"#);
    }
}
