//! The QAPI schema language: parse, check, introspect, document.
//!
//! A schema is the text that says which commands, events and types a machine-protocol server has
//! (`docs/devel/qapi-code-gen.rst` defines the language). This crate turns such text into a checked
//! [`Schema`], and a schema into what `query-qmp-schema` answers or into reference documentation.
//! Rust code is made from a [`Schema`] by the crate `qapi-codegen`.
//!
//! # Phases
//!
//! bytes → `lexer` (tokens with positions) → `parser` (expressions, documentation comments) →
//! `load` (includes, pragmas, dialect of each file) → `check` (names, types, flags,
//! documentation) → [`Schema`] (an arena in source order) → [`Schema::restrict`] (a set of
//! configuration names and the pending list) → [`introspect`] or [`markdown`].
//!
//! # Invariants
//!
//! - Nothing here reads files: text comes through [`SourceLoader`].
//! - No input panics or recurses without bound; the limits are the constants of [`source`].
//! - A [`Schema`] is closed: every type it names is in it, every discriminator is an enum, and a
//!   [`DefinitionId`] is valid for the schema that gave it.
//!
//! # Where a new thing goes
//!
//! A new key of a definition: `check/definitions.rs` and the model in `schema.rs`. A new rule on
//! names: `check/names.rs`. A new documentation section: `documentation.rs`. A new dialect:
//! `dialect.rs`.

mod check;
mod dialect;
mod documentation;
pub mod introspect;
mod lexer;
mod load;
pub mod markdown;
mod parser;
mod restrict;
pub mod schema;
pub mod source;

pub use dialect::Dialect;
pub use documentation::{Documentation, DocumentedName, Section, SectionTag};
pub use load::{Options, load};
pub use restrict::Pending;
pub use schema::{Definition, DefinitionId, DefinitionKind, Schema};
pub use source::{Diagnostic, QapiError, SourceLoader};

/// Loads and checks the schema at `path`; the text says how many definitions of each kind it has.
///
/// # Errors
/// Every diagnostic of the schema, in order of position.
pub fn check_text(loader: &dyn SourceLoader, path: &str) -> Result<String, QapiError> {
    Ok(load(loader, path, &Options::default())?.summary())
}

/// Loads the schema at `path` and gives its introspection as indented JSON text.
///
/// # Errors
/// Every diagnostic of the schema.
pub fn introspect_text(loader: &dyn SourceLoader, path: &str) -> Result<String, QapiError> {
    let schema = load(loader, path, &Options::default())?;
    Ok(introspect::pretty(&introspect::introspect(&schema)))
}

/// Loads the schema at `path` and gives its reference documentation as Markdown.
///
/// # Errors
/// Every diagnostic of the schema.
pub fn document_text(loader: &dyn SourceLoader, path: &str) -> Result<String, QapiError> {
    Ok(markdown::markdown(&load(
        loader,
        path,
        &Options::default(),
    )?))
}

#[cfg(test)]
mod tests;
