//! Options of the command line.
//!
//! The flat form of `--chardev` is read by the binary itself and cannot be reached from here.

use api::keyval::{OPTION_BYTES_MAX, Options, parse, parse_size};
use api::{
    BlockExportOptions, BlockdevOptions, ChardevAddArgs, FromQapi, MonitorOptions,
    NbdServerOptions, ObjectOptions, ToQapi, from_json,
};
use serde_json::Value;

/// The whole input is one option's text (and a size's).
pub fn option_text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    for implied in [None, Some("driver")] {
        if let Ok(tree) = parse(text, implied) {
            let written = write_out(&tree);
            if written.len() <= OPTION_BYTES_MAX {
                assert_eq!(
                    parse(&written, None),
                    Ok(tree),
                    "written out as '{written}'"
                );
            }
        }
    }
    read_as::<BlockdevOptions>(text, Some("driver"));
    read_as::<ObjectOptions>(text, Some("qom-type"));
    read_as::<MonitorOptions>(text, Some("chardev"));
    read_as::<BlockExportOptions>(text, Some("type"));
    read_as::<NbdServerOptions>(text, None);
    read_as::<ChardevAddArgs>(text, None);
    sizes(text);
}

/// The tree's leaves as `path=value`, with commas written twice.
fn write_out(tree: &Value) -> String {
    fn leaves(value: &Value, path: &str, out: &mut Vec<String>) {
        match value {
            Value::Object(members) => {
                for (key, inner) in members {
                    let path = if path.is_empty() {
                        key.clone()
                    } else {
                        format!("{path}.{key}")
                    };
                    leaves(inner, &path, out);
                }
            }
            Value::String(text) => out.push(format!("{path}={}", text.replace(',', ",,"))),
            other => panic!("a leaf is a string, not {other:?}"),
        }
    }
    let mut parts = Vec::new();
    leaves(tree, "", &mut parts);
    parts.join(",")
}

/// What can be read as a type can be written as JSON and read again as the same.
fn read_as<T: FromQapi + ToQapi + PartialEq + std::fmt::Debug>(
    text: &str,
    implied_key: Option<&str>,
) {
    let Ok(options) = Options::parse(text, implied_key) else {
        return;
    };
    if let Ok(read) = options.read::<T>() {
        let json = read.to_qapi();
        match from_json::<T>(json.clone()) {
            Ok(again) => assert_eq!(read, again, "through {json}"),
            Err(error) => panic!("{json} is refused: {error:?}"),
        }
    }
}

/// A size is what floating point makes of its number and suffix, to within its precision.
fn sizes(text: &str) {
    let Some(bytes) = parse_size(text) else {
        return;
    };
    let trimmed = text.trim_start_matches([' ', '\t']);
    let expected = match trimmed.strip_prefix("0x").or(trimmed.strip_prefix("0X")) {
        Some(digits) => digits.bytes().fold(0.0, |sum, digit| {
            sum * 16.0 + f64::from(char::from(digit).to_digit(16).expect("a hexadecimal digit"))
        }),
        None => {
            let number = trimmed.trim_end_matches(|c: char| c.is_ascii_alphabetic());
            let suffixes = ["b", "k", "m", "g", "t", "p", "e"];
            let suffix = trimmed[number.len()..].to_ascii_lowercase();
            let power = suffixes.iter().position(|&known| known == suffix);
            let power = power.unwrap_or_else(|| {
                assert!(suffix.is_empty(), "suffix '{suffix}' was taken");
                0
            });
            let factor = (0..power).fold(1.0, |unit, _| unit * 1024.0);
            number.parse::<f64>().expect("a decimal number") * factor
        }
    };
    let off = (bytes as f64 - expected).abs();
    assert!(off <= 1.0 + expected * 1e-15, "'{text}' gave {bytes}");
    assert_eq!(parse_size(&bytes.to_string()), Some(bytes));
}
