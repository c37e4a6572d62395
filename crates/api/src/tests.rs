//! Tests of what the generated code does, with the protocol's own types and with those of a schema
//! that has every construct of the language (`tests/schema/language.json`).

#[rustfmt::skip]
#[allow(missing_docs, dead_code, unused_imports, unused_macros, unreachable_patterns, clippy::all, reason = "generated")]
mod generated;

mod agreement;
mod feature;
mod keyval;
mod language;
mod table;
mod visitor;
