//! Random changes of the block graph by several clients at once: nothing hangs, nothing panics, and
//! the images are whole at the end. `RATITE_FULL=1` goes on for two minutes, `RATITE_SEED` repeats.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test"
)]

mod support;

use std::path::Path;

use support::tools::{create_image, qemu_img, run, tool};
use support::{Daemon, new_folder};

#[test]
fn random_changes_leave_everything_whole() {
    let folder = new_folder();
    let image = |number: u32| folder.path().join(format!("{number}.qcow2"));
    for number in 0..6 {
        let backing = match number % 2 {
            1 => format!(
                "backing_file={},backing_fmt=qcow2",
                image(number - 1).display()
            ),
            _ => String::new(),
        };
        create_image(&image(number), "qcow2", &backing, "8M");
    }
    let images: Vec<_> = (0..6).map(image).collect();
    let daemon = Daemon::start_in(
        folder,
        &[
            "--object",
            "iothread,id=thread",
            "--nbd-server",
            "addr.type=unix,addr.path={dir}/nbd.sock,max-connections=0",
        ],
    );
    let seed = support::seed();
    eprintln!("RATITE_SEED={seed}");
    let seconds = if support::is_full() { "100" } else { "5" };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts/random_operations.py");
    let counts = run(tool("python3")
        .arg(script)
        .arg(daemon.folder())
        .args([seconds, &seed.to_string()]));
    for command in [
        "blockdev-add",
        "blockdev-reopen",
        "blockdev-del",
        "block-export-add",
    ] {
        let line = format!("{command} succeeded");
        assert!(counts.contains(&line), "none {line}:\n{counts}");
    }
    let folder = daemon.quit();
    for image in &images {
        qemu_img(&["check", "-q", &image.display().to_string()]);
    }
    drop(folder);
}

/// Two nodes that would each come to lie below the other, in one call.
#[test]
fn a_cycle_of_several_steps_is_refused() {
    let folder = new_folder();
    for name in ["a", "b"] {
        create_image(&folder.path().join(name), "qcow2", "", "1M");
    }
    let daemon = Daemon::start_in(
        folder,
        &[
            "--blockdev",
            "driver=file,node-name=fa,filename={dir}/a",
            "--blockdev",
            "driver=file,node-name=fb,filename={dir}/b",
            "--blockdev",
            "driver=qcow2,node-name=a,file=fa",
            "--blockdev",
            "driver=qcow2,node-name=b,file=fb",
        ],
    );
    let node = |name: &str, file: &str, backing: &str| serde_json::json!({"driver": "qcow2", "node-name": name, "file": file, "backing": backing});
    let both = serde_json::json!({"options": [node("a", "fa", "b"), node("b", "fb", "a")]});
    assert_eq!(
        daemon.qmp().error("blockdev-reopen", &both),
        "Making 'b' a backing child of 'a' would create a cycle"
    );
    daemon.quit();
}
