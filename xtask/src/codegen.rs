//! `cargo xtask codegen`: the schema's Rust text, written or compared.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use qapi::{Pending, Schema, SourceLoader};
use qapi_codegen::{GeneratedFile, WithoutFeature};

/// The cargo feature of the crate `api` that the schema has a condition for, and that condition.
const FEATURE: (&str, &str) = ("tls-anon-psk", "CONFIG_TLS_ANON_PSK");

/// Reads schema files from disk.
struct Files;

impl SourceLoader for Files {
    fn load(&self, path: &str) -> Result<Vec<u8>, String> {
        std::fs::read(path).map_err(|error| error.to_string())
    }
}

/// Runs the task.
pub fn run(arguments: &[String]) -> anyhow::Result<ExitCode> {
    let check = match arguments {
        [] => false,
        [flag] if flag == "--check" => true,
        _ => bail!("usage: cargo xtask codegen [--check]"),
    };
    let mut stale = false;
    for (folder, files) in targets()? {
        stale |= update(&folder, &files, check)?;
    }
    Ok(if check && stale {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Each generated folder with what belongs there: that of the protocol, and that of a schema with
/// every construct of the language, for the tests of the crate `api`.
fn targets() -> anyhow::Result<Vec<(PathBuf, Vec<GeneratedFile>)>> {
    let tests = api_folder().join("src/tests");
    let path = tests.join("schema/language.json");
    let language = qapi::load(&Files, &path.to_string_lossy(), &qapi::Options::default())?;
    let language = language.restrict(&BTreeSet::new(), &Pending::default())?;
    Ok(vec![
        (api_folder().join("src/generated"), served_files()?),
        (
            tests.join("generated"),
            qapi_codegen::generate(&language, None)?,
        ),
    ])
}

/// Writes what is stale in a folder, or only tells it; says whether there was any.
fn update(folder: &Path, files: &[GeneratedFile], check: bool) -> anyhow::Result<bool> {
    let stale = stale_files(folder, files);
    if check {
        for name in &stale {
            println!("{} is stale", folder.join(name).display());
        }
        return Ok(!stale.is_empty());
    }
    std::fs::create_dir_all(folder)?;
    for name in &stale {
        let path = folder.join(name);
        match files.iter().find(|file| file.name == *name) {
            Some(file) => std::fs::write(&path, &file.text),
            None => std::fs::remove_file(&path),
        }
        .with_context(|| format!("cannot update {}", path.display()))?;
        println!("{name}");
    }
    Ok(!stale.is_empty())
}

/// The names of files that differ from what is generated, are not there, or should not be.
fn stale_files(folder: &Path, files: &[GeneratedFile]) -> Vec<String> {
    let mut names: BTreeSet<String> = files
        .iter()
        .filter(|file| {
            std::fs::read_to_string(folder.join(&file.name))
                .ok()
                .as_ref()
                != Some(&file.text)
        })
        .map(|file| file.name.clone())
        .collect();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !files.iter().any(|file| file.name == name) {
            names.insert(name);
        }
    }
    names.into_iter().collect()
}

/// The folder of the crate `api`.
fn api_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/api")
}

/// The whole schema.
pub fn whole_schema() -> anyhow::Result<Schema> {
    let path = api_folder().join("schema/schema.json");
    Ok(qapi::load(
        &Files,
        &path.to_string_lossy(),
        &qapi::Options::default(),
    )?)
}

/// The schema without what is pending, as a build with every cargo feature serves it.
pub fn served_schema() -> anyhow::Result<Schema> {
    schema_served_with(&[FEATURE.1])
}

fn schema_served_with(config: &[&str]) -> anyhow::Result<Schema> {
    let path = api_folder().join("schema/pending.toml");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let config = config.iter().map(|name| (*name).to_owned()).collect();
    Ok(whole_schema()?.restrict(&config, &pending(&text)?)?)
}

/// The files of the crate `api`, for builds with and without the feature.
fn served_files() -> anyhow::Result<Vec<GeneratedFile>> {
    let (feature, _) = FEATURE;
    let without = WithoutFeature {
        feature,
        schema: &schema_served_with(&[])?,
    };
    Ok(qapi_codegen::generate(&served_schema()?, Some(&without))?)
}

fn pending(text: &str) -> anyhow::Result<Pending> {
    let mut tables: BTreeMap<String, BTreeMap<String, String>> =
        toml::from_str(text).context("schema/pending.toml")?;
    let pending = Pending {
        commands: tables.remove("command").unwrap_or_default(),
        events: tables.remove("event").unwrap_or_default(),
        members: tables.remove("member").unwrap_or_default(),
    };
    if let Some(table) = tables.keys().next() {
        bail!("schema/pending.toml: unknown table '{table}'");
    }
    Ok(pending)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is checked in is what the schema says.
    #[test]
    fn generated_files_are_fresh() {
        let files = served_files().unwrap();
        let stale = stale_files(&api_folder().join("src/generated"), &files);
        assert!(
            stale.is_empty(),
            "stale: {stale:?}; run cargo xtask codegen"
        );
    }

    #[test]
    fn pending_names_are_checked() {
        let schema = whole_schema().unwrap();
        let list = pending("[member]\n\"JobType.nothing\" = \"x\"\n").unwrap();
        let error = schema.restrict(&BTreeSet::new(), &list).unwrap_err();
        assert_eq!(
            error.to_string(),
            "pending member 'JobType.nothing' is not in the schema"
        );
        assert!(pending("[comand]\n").is_err());
    }
}
