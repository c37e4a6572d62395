//! `cargo xtask tidy`: the rules of the house that a compiler does not check.
//!
//! Arrows between crates point down the table of layers; functions and files stay within their
//! room; crates and modules have names that say something; `unsafe` stays where it belongs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

/// Longest function, in lines.
const MAX_FUNCTION: usize = 70;
/// Longest file, in lines without its tests.
const MAX_FILE: usize = 800;

/// The layers, lowest first. Within layers 1 and 2 a crate may know those that stand before it.
const LAYERS: &[&[&str]] = &[
    &["host-io", "guest-memory", "exec-memory"],
    &[
        "qapi",
        "qapi-codegen",
        "qmp-wire",
        "api",
        "nbd-wire",
        "rfb-wire",
        "vhost-user-wire",
        "migration-wire",
    ],
    &[
        "block-graph",
        "job",
        "export",
        "device",
        "vcpu",
        "virtio-queue",
        "netdev",
        "chardev",
        "display",
        "tls-session",
        "objects",
        "monitor",
        "qmp-client",
    ],
    &[
        "block-doubles",
        "block-qcow2",
        "block-drivers",
        "block-formats",
        "block-jobs",
        "export-nbd",
        "chardev-backends",
        "boot-pc",
        "accel-kvm",
        "cpu-soft",
        "debian-guest",
        "dev-pc",
        "dev-storage",
        "dev-virtio",
        "guest-payload",
    ],
    &["storage-service", "machine-pc", "migration", "gateway"],
    &["ratite"],
];

/// Layers whose crates may know each other, downwards in the table's order.
const ORDERED_LAYERS: &[usize] = &[1, 2];

/// Crates in which `unsafe` may stand; and the source of the embedded guest, which runs on no host.
const UNSAFE_CRATES: &[&str] = &[
    "host-io",
    "guest-memory",
    "exec-memory",
    "accel-kvm",
    "guest-payload/guest",
];

/// Names that say nothing.
const EMPTY_NAMES: &[&str] = &[
    "base", "common", "util", "utils", "misc", "manager", "helper", "helpers",
];

pub fn run() -> Result<ExitCode> {
    let root = crate::root()?;
    let mut complaints = Vec::new();
    let mut crates: Vec<PathBuf> = fs::read_dir(root.join("crates"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    crates.sort();
    for folder in &crates {
        check_crate(folder, &mut complaints)?;
    }
    let mut files = Vec::new();
    for folder in crates
        .iter()
        .chain([&root.join("xtask"), &root.join("benches")])
    {
        rust_files(folder, &mut files)?;
    }
    for file in &files {
        check_file(&root, file, &mut complaints)?;
    }
    if complaints.is_empty() {
        println!(
            "tidy: {} crates, {} files, nothing to say",
            crates.len(),
            files.len()
        );
        return Ok(ExitCode::SUCCESS);
    }
    for complaint in &complaints {
        eprintln!("{complaint}");
    }
    bail!("tidy has {} complaints", complaints.len())
}

fn place_of(name: &str) -> Option<(usize, usize)> {
    LAYERS.iter().enumerate().find_map(|(layer, crates)| {
        crates
            .iter()
            .position(|known| *known == name)
            .map(|index| (layer, index))
    })
}

fn may_know(from: (usize, usize), to: (usize, usize)) -> bool {
    to.0 < from.0 || (to.0 == from.0 && ORDERED_LAYERS.contains(&from.0) && to.1 < from.1)
}

fn check_crate(folder: &Path, complaints: &mut Vec<String>) -> Result<()> {
    let name = folder
        .file_name()
        .and_then(|name| name.to_str())
        .context("a crate has a name")?;
    let Some(place) = place_of(name) else {
        complaints.push(format!(
            "crates/{name}: not in the table of layers (xtask/src/tidy.rs)"
        ));
        return Ok(());
    };
    let manifest = fs::read_to_string(folder.join("Cargo.toml"))?;
    for dependency in dependencies(&manifest) {
        if let Some(other) = place_of(&dependency)
            && !may_know(place, other)
        {
            complaints.push(format!(
                "crates/{name}/Cargo.toml: {name} (layer {}) may not know {dependency} (layer {})",
                place.0, other.0
            ));
        }
    }
    let lib = ["src/lib.rs", "src/main.rs"].map(|path| folder.join(path));
    let documented = lib
        .iter()
        .any(|path| fs::read_to_string(path).is_ok_and(|text| text.starts_with("//!")));
    if !documented {
        complaints.push(format!("crates/{name}: its lib.rs does not say what it is"));
    }
    Ok(())
}

/// The names in the `[dependencies]` sections (not in `[dev-dependencies]`).
fn dependencies(manifest: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut inside = false;
    for line in manifest.lines() {
        if let Some(section) = line.strip_prefix('[') {
            inside = section.starts_with("dependencies]") || section.starts_with("target.");
        } else if inside && let Some(name) = line.split(['.', '=', ' ']).next() {
            names.push(name.to_owned());
        }
    }
    names
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    entries.sort();
    for entry in entries {
        let name = entry
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        if entry.is_dir() {
            if name != "target" && name != "generated" {
                rust_files(&entry, files)?;
            }
        } else if name.ends_with(".rs") {
            files.push(entry);
        }
    }
    Ok(())
}

fn is_test_file(path: &Path) -> bool {
    let text = path.to_string_lossy();
    text.contains("/tests/") || text.ends_with("tests.rs")
}

fn check_file(root: &Path, path: &Path, complaints: &mut Vec<String>) -> Result<()> {
    let shown = path
        .strip_prefix(root)
        .unwrap_or(path)
        .display()
        .to_string();
    let stem = path
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or_default();
    if EMPTY_NAMES.contains(&stem) {
        complaints.push(format!("{shown}: the name '{stem}' says nothing"));
    }
    let text = fs::read_to_string(path)?;
    let code = match text.find("#[cfg(test)]\nmod tests {") {
        Some(at) => &text[..at],
        None => &text,
    };
    check_unsafe(&shown, code, complaints);
    if is_test_file(path) {
        return Ok(());
    }
    let lines = code.lines().count();
    if lines > MAX_FILE {
        complaints.push(format!("{shown}: {lines} lines; {MAX_FILE} is the limit"));
    }
    for (name, line, length) in functions(code) {
        if length > MAX_FUNCTION {
            complaints.push(format!(
                "{shown}:{line}: fn {name} has {length} lines; {MAX_FUNCTION} is the limit"
            ));
        }
    }
    Ok(())
}

fn check_unsafe(shown: &str, code: &str, complaints: &mut Vec<String>) {
    let allowed = UNSAFE_CRATES
        .iter()
        .any(|name| shown.contains(&format!("crates/{name}/")));
    if allowed || shown.starts_with("xtask") {
        return;
    }
    for (index, line) in code.lines().enumerate() {
        let statement = line.split("//").next().unwrap_or_default();
        if statement.contains("unsafe {") || statement.contains("unsafe impl") {
            complaints.push(format!(
                "{shown}:{}: unsafe outside layer 0 and the shims",
                index + 1
            ));
        }
    }
}

/// The functions of formatted Rust text: name, first line, number of lines.
fn functions(code: &str) -> Vec<(String, usize, usize)> {
    let mut open: BTreeMap<usize, (String, usize)> = BTreeMap::new();
    let mut found = Vec::new();
    for (index, line) in code.lines().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let trimmed = line.trim_start();
        if trimmed == "}" {
            if let Some((name, start)) = open.remove(&indent) {
                found.push((name, start + 1, index - start + 1));
            }
        } else if let Some(name) = function_name(trimmed) {
            let one_line = line.ends_with('}') || line.ends_with(';');
            if !one_line {
                open.insert(indent, (name.to_owned(), index));
            }
        }
    }
    found
}

fn function_name(line: &str) -> Option<&str> {
    let at = line.find("fn ")?;
    let before = &line[..at];
    let plain = before.split_whitespace().all(|word| {
        word.starts_with("pub")
            || matches!(
                word,
                "async" | "const" | "unsafe" | "extern" | "\"C\"" | "crate)"
            )
    });
    if !plain {
        return None;
    }
    line[at + 3..].split(['(', '<']).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrows_point_down() {
        let place = |name| place_of(name).unwrap();
        assert!(may_know(place("monitor"), place("objects")));
        assert!(!may_know(place("objects"), place("monitor")));
        assert!(!may_know(place("export-nbd"), place("block-qcow2")));
        assert!(!may_know(place("api"), place("monitor")));
        assert!(may_know(place("ratite"), place("host-io")));
    }

    #[test]
    fn functions_are_measured() {
        let code = "impl X {\n    pub async fn long(\n        &self,\n    ) {\n        a();\n    }\n}\nfn short() {}\n";
        assert_eq!(functions(code), [("long".to_owned(), 2, 5)]);
    }

    #[test]
    fn only_real_dependencies_count() {
        let manifest = "[package]\nname = \"x\"\n[dependencies]\nhost-io.workspace = true\n[dev-dependencies]\nratite.workspace = true\n";
        assert_eq!(dependencies(manifest), ["host-io"]);
    }
}
