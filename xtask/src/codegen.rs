//! `cargo xtask codegen`: the schema's Rust text, written or compared.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use qapi::{Pending, Schema, SourceLoader};
use qapi_codegen::{GeneratedFile, Interface, WithoutFeature};

/// The cargo feature of the crate `api` that the schema has a condition for, and that condition.
const FEATURE: (&str, &str) = ("tls-anon-psk", "CONFIG_TLS_ANON_PSK");

/// A program that speaks QMP. Each has a root of the schema and an interface in the crate `api`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// The storage daemon.
    StorageDaemon,
    /// The machine: everything that the storage daemon has, and more. The Rust text is its.
    Machine,
}

impl Program {
    /// Its root file in the schema's folder.
    fn root(self) -> &'static str {
        match self {
            Self::StorageDaemon => "schema.json",
            Self::Machine => "machine.json",
        }
    }

    /// What its constants and files are called by, and its tables in `schema/pending.toml`. The
    /// storage daemon came first: its constants and files have the bare names.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::StorageDaemon => ("", "storage-daemon"),
            Self::Machine => ("machine", "machine"),
        }
    }
}

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
            qapi_codegen::generate(&language, None, &[Interface::only(&language)])?,
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

/// The whole schema of a program.
pub fn whole_schema(program: Program) -> anyhow::Result<Schema> {
    let path = api_folder().join("schema").join(program.root());
    Ok(qapi::load(
        &Files,
        &path.to_string_lossy(),
        &qapi::Options::default(),
    )?)
}

/// The schema without what is pending, as a build with every cargo feature serves it.
pub fn served_schema(program: Program) -> anyhow::Result<Schema> {
    schema_served_with(program, &[FEATURE.1])
}

fn schema_served_with(program: Program, config: &[&str]) -> anyhow::Result<Schema> {
    let path = api_folder().join("schema/pending.toml");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let config = config.iter().map(|name| (*name).to_owned()).collect();
    let schema = whole_schema(program)?;
    let pending = PendingList::parse(&text)?.of(program, &schema)?;
    Ok(schema.restrict(&config, &pending)?)
}

/// The files of the crate `api`, for builds with and without the feature.
fn served_files() -> anyhow::Result<Vec<GeneratedFile>> {
    let programs = [Program::StorageDaemon, Program::Machine];
    let with = programs.map(served_schema);
    let without = programs.map(|program| schema_served_with(program, &[]));
    let ([daemon, machine], [daemon_without, machine_without]) = (with, without);
    let (daemon, machine) = (daemon?, machine?);
    let (daemon_without, machine_without) = (daemon_without?, machine_without?);
    let (feature, _) = FEATURE;
    let interface = |program: Program, schema, without| Interface {
        name: program.names().0,
        schema,
        without: Some(WithoutFeature {
            feature,
            schema: without,
        }),
    };
    let machine_interface = interface(Program::Machine, &machine, &machine_without);
    let daemon_interface = interface(Program::StorageDaemon, &daemon, &daemon_without);
    Ok(qapi_codegen::generate(
        &machine,
        machine_interface.without.as_ref(),
        &[daemon_interface, machine_interface],
    )?)
}

/// `schema/pending.toml`.
#[derive(Debug, Default)]
struct PendingList {
    /// What is pending for every program.
    all: Pending,
    /// What is pending for one.
    by_program: BTreeMap<String, Pending>,
}

impl PendingList {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut tables: toml::Table = toml::from_str(text).context("schema/pending.toml")?;
        let mut list = Self::default();
        for program in [Program::StorageDaemon, Program::Machine] {
            let (_, name) = program.names();
            if let Some(own) = tables.remove(name) {
                let own = own.try_into().context("schema/pending.toml")?;
                list.by_program.insert(name.to_owned(), pending(own)?);
            }
        }
        list.all = pending(tables)?;
        Ok(list)
    }

    /// What is pending for a program whose whole schema this is. Of what is pending for all, a
    /// program has its part only.
    fn of(&self, program: Program, schema: &Schema) -> anyhow::Result<Pending> {
        let mut pending = self.all.clone();
        if program != Program::Machine {
            pending
                .commands
                .retain(|name, _| schema.find(name).is_some());
            pending.events.retain(|name, _| schema.find(name).is_some());
            pending.members.retain(|path, _| {
                let owner = path
                    .split_once('.')
                    .map_or(path.as_str(), |(owner, _)| owner);
                schema.find(owner).is_some()
            });
        }
        let (_, name) = program.names();
        if let Some(own) = self.by_program.get(name) {
            for (all, own) in [
                (&mut pending.commands, &own.commands),
                (&mut pending.events, &own.events),
                (&mut pending.members, &own.members),
            ] {
                for (name, reason) in own {
                    if all.insert(name.clone(), reason.clone()).is_some() {
                        bail!("schema/pending.toml: '{name}' is pending for all programs already");
                    }
                }
            }
        }
        Ok(pending)
    }
}

fn pending(mut tables: toml::Table) -> anyhow::Result<Pending> {
    let mut table = |name: &str| -> anyhow::Result<BTreeMap<String, String>> {
        let entries = tables.remove(name).map(toml::Value::try_into).transpose();
        Ok(entries.context("schema/pending.toml")?.unwrap_or_default())
    };
    let pending = Pending {
        commands: table("command")?,
        events: table("event")?,
        members: table("member")?,
    };
    if let Some(name) = tables.keys().next() {
        bail!("schema/pending.toml: unknown table '{name}'");
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
        let schema = whole_schema(Program::Machine).unwrap();
        let list = PendingList::parse("[member]\n\"JobType.nothing\" = \"x\"\n").unwrap();
        let pending = list.of(Program::Machine, &schema).unwrap();
        let error = schema.restrict(&BTreeSet::new(), &pending).unwrap_err();
        assert_eq!(
            error.to_string(),
            "pending member 'JobType.nothing' is not in the schema"
        );
        assert!(PendingList::parse("[comand]\n").is_err());
        assert!(PendingList::parse("[storage-daemon.comand]\n").is_err());
        assert!(PendingList::parse("[command]\nstop = 1\n").is_err());
    }

    #[test]
    fn a_program_may_have_a_list_of_its_own() {
        let text = "[command]\nstop = \"x\"\n[storage-daemon.event]\nBLOCK_IO_ERROR = \"y\"\n";
        let list = PendingList::parse(text).unwrap();
        let of = |program| {
            let pending = list.of(program, &whole_schema(program).unwrap()).unwrap();
            let keys = |table: BTreeMap<String, String>| table.into_keys().collect::<Vec<_>>();
            (keys(pending.commands), keys(pending.events))
        };
        assert_eq!(of(Program::Machine), (vec!["stop".to_owned()], vec![]));
        // The daemon has no command stop to be pending.
        assert_eq!(
            of(Program::StorageDaemon),
            (vec![], vec!["BLOCK_IO_ERROR".to_owned()])
        );
        let twice = format!(
            "{text}[storage-daemon.command]\nquit = \"z\"\n[event]\nBLOCK_IO_ERROR = \"y\"\n"
        );
        let daemon = whole_schema(Program::StorageDaemon).unwrap();
        let error = PendingList::parse(&twice)
            .unwrap()
            .of(Program::StorageDaemon, &daemon)
            .unwrap_err();
        assert!(
            error
                .to_string()
                .contains("'BLOCK_IO_ERROR' is pending for all")
        );
    }
}
