//! Tests of the whole language: good schemas of each era, wrong ones, and arbitrary bytes.

mod bad;
mod good;
mod hostile;

use std::collections::BTreeMap;

use crate::{Options, QapiError, Schema, load};

/// Loads files given as (path, text); the first one is the schema.
fn load_files(files: &[(&str, &str)]) -> Result<Schema, QapiError> {
    let loader: BTreeMap<String, String> = files
        .iter()
        .map(|(path, text)| ((*path).to_owned(), (*text).to_owned()))
        .collect();
    load(&loader, files[0].0, &Options::default())
}

/// Loads a schema of one file.
fn load_text(text: &str) -> Result<Schema, QapiError> {
    load_files(&[("s.json", text)])
}
