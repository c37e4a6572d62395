//! The NBD clients people have, against our export: libnbd's tools, QEMU's tools and fio.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test"
)]

mod support;

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};

use serde_json::Value;
use support::tools::{self, create_image, qemu_img, qemu_io, run, tool};
use support::{Daemon, Random, new_folder};

/// Size of the disks here, in bytes.
const SIZE: u64 = 64 << 20;

/// The options for one qcow2 image `{dir}/disk.qcow2`, served as `disk`.
const ONE_DISK: &[&str] = &[
    "--blockdev",
    "driver=file,node-name=file,filename={dir}/disk.qcow2,discard=unmap",
    "--blockdev",
    "driver=qcow2,node-name=disk,file=file,discard=unmap",
    "--nbd-server",
    "addr.type=unix,addr.path={dir}/nbd.sock",
    "--export",
    "type=nbd,id=disk,node-name=disk,name=disk,description=a disk,writable=on,allocation-depth=on",
];

fn serve_new_disk() -> Daemon {
    let folder = new_folder();
    create_image(
        &folder.path().join("disk.qcow2"),
        "qcow2",
        "",
        &SIZE.to_string(),
    );
    Daemon::start_in(folder, ONE_DISK)
}

/// Ends the daemon and checks the image.
fn quit_and_check(daemon: Daemon) {
    let folder = daemon.quit();
    qemu_img(&[
        "check",
        "-q",
        &folder.path().join("disk.qcow2").display().to_string(),
    ]);
}

/// A file of bytes that do not repeat, with a hole in the middle.
fn write_random_file(path: &Path, size: u64) {
    let mut random = Random(support::seed());
    eprintln!("RATITE_SEED={}", random.0);
    let words = usize::try_from(size / 8).expect("a small size");
    let hole = words / 3..words / 2;
    let bytes: Vec<u8> = (0..words)
        .flat_map(|index| {
            if hole.contains(&index) {
                [0; 8]
            } else {
                random.next().to_le_bytes()
            }
        })
        .collect();
    fs::write(path, bytes).expect("a file to write");
}

fn json_of(command: &mut std::process::Command) -> Value {
    let text = run(command);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn nbdinfo_sees_what_was_written() {
    let daemon = serve_new_disk();
    let uri = daemon.nbd_uri("disk");
    qemu_io(
        "raw",
        &uri,
        &["write -P 1 1M 128k", "write -z 4M 64k", "flush"],
    );

    let info = json_of(tool("nbdinfo").args(["--json", &uri]));
    assert_eq!(info["protocol"], "newstyle-fixed");
    assert_eq!(info["TLS"], false);
    assert_eq!(info["structured"], true);
    let export = &info["exports"][0];
    assert_eq!(export["export-name"], "disk");
    assert_eq!(export["description"], "a disk");
    assert_eq!(export["export-size"], SIZE);
    assert_eq!(export["is_read_only"], false);
    for ability in [
        "can_cache",
        "can_df",
        "can_fast_zero",
        "can_flush",
        "can_fua",
    ] {
        assert_eq!(export[ability], true, "{ability}: {export}");
    }
    for ability in ["can_multi_conn", "can_trim", "can_zero"] {
        assert_eq!(export[ability], true, "{ability}: {export}");
    }
    assert_eq!(
        export["contexts"],
        serde_json::json!(["base:allocation", "qemu:allocation-depth"])
    );

    let map = json_of(tool("nbdinfo").args(["--json", "--map", &uri]));
    let ranges: Vec<(u64, u64, u64)> = map
        .as_array()
        .expect("an array")
        .iter()
        .map(|range| {
            let number = |name: &str| range[name].as_u64().expect("a number");
            (number("offset"), number("length"), number("type"))
        })
        .collect();
    let (mib, kib) = (1 << 20, 1 << 10);
    assert_eq!(
        ranges,
        [
            (0, mib, 3),
            (mib, 128 * kib, 0),
            (mib + 128 * kib, SIZE - mib - 128 * kib, 3)
        ]
    );
    quit_and_check(daemon);
}

/// What `qemu-storage-daemon` of QEMU says about an equal image, nbdinfo hears from us.
#[test]
fn nbdinfo_sees_no_difference_to_qemu() {
    let ours = serve_new_disk();
    qemu_io(
        "raw",
        &ours.nbd_uri("disk"),
        &["write -P 1 3M 1M", "discard 3200k 512k", "flush"],
    );
    let folder = new_folder();
    let dir = folder.path().display().to_string();
    let image = folder.path().join("disk.qcow2");
    create_image(&image, "qcow2", "", &SIZE.to_string());
    qemu_io(
        "qcow2",
        &image.display().to_string(),
        &["write -P 1 3M 1M", "discard 3200k 512k", "flush"],
    );
    let mut peer = Peer::start(folder.path());
    let uri = format!("nbd+unix:///disk?socket={dir}/nbd.sock");
    for arguments in [&["--json"][..], &["--json", "--list"], &["--json", "--map"]] {
        let mut answers = [ours.nbd_uri("disk"), uri.clone()].map(|uri| {
            let mut answer = json_of(tool("nbdinfo").args(arguments).arg(uri));
            if let Some(Value::Array(exports)) = answer.get_mut("exports") {
                for export in exports {
                    export["uri"] = Value::Null;
                    // Ours is the cluster size: writing whole clusters copies nothing.
                    export["block_size_preferred"] = Value::Null;
                    // What file(1) says, and without that program whatever was in memory.
                    export["content"] = Value::Null;
                }
            }
            answer
        });
        let [ours, theirs] = &mut answers;
        assert_eq!(ours, theirs, "nbdinfo {arguments:?}");
    }
    let map = "--map=qemu:allocation-depth";
    let [ours_says, theirs] =
        [ours.nbd_uri("disk"), uri].map(|uri| run(tool("nbdinfo").args([map, &uri])));
    assert_eq!(ours_says, theirs);
    peer.end();
    quit_and_check(ours);
}

/// QEMU's own daemon with the same disk.
struct Peer(Child);

impl Peer {
    fn start(folder: &Path) -> Self {
        let dir = folder.display().to_string();
        let child = std::process::Command::new("qemu-storage-daemon")
            .args(ONE_DISK.iter().map(|word| word.replace("{dir}", &dir)))
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-storage-daemon is missing: apt-get install -y qemu-utils");
        let socket = folder.join("nbd.sock");
        support::wait_until("QEMU's daemon serves", || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
        Self(child)
    }

    fn end(&mut self) {
        // It may have ended by itself, which the test has noticed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.end();
    }
}

#[test]
fn nbdcopy_goes_both_ways_with_four_connections() {
    let daemon = serve_new_disk();
    let uri = daemon.nbd_uri("disk");
    let [from, back] = ["from", "back"].map(|name| daemon.path(name).display().to_string());
    write_random_file(Path::new(&from), SIZE);
    run(tool("nbdcopy").args(["--connections=4", "--requests=16", "--flush", &from, &uri]));
    run(tool("nbdcopy").args(["--connections=4", "--requests=16", &uri, &back]));
    assert!(
        fs::read(&from).unwrap() == fs::read(&back).unwrap(),
        "what came back is otherwise"
    );
    quit_and_check(daemon);
}

#[test]
fn nbdcopy_goes_from_one_export_to_another() {
    let daemon = serve_new_disk();
    create_image(
        &daemon.path("other.qcow2"),
        "qcow2",
        "cluster_size=4k",
        &SIZE.to_string(),
    );
    let mut qmp = daemon.qmp();
    qmp.ok(
        "blockdev-add",
        &serde_json::json!({"driver": "qcow2", "node-name": "other", "file": {
            "driver": "file", "filename": daemon.path("other.qcow2").display().to_string()}}),
    );
    qmp.ok(
        "block-export-add",
        &serde_json::json!({"type": "nbd", "id": "other", "node-name": "other", "writable": true}),
    );
    let [from, back] = ["from", "back"].map(|name| daemon.path(name).display().to_string());
    write_random_file(Path::new(&from), SIZE);
    let (one, other) = (daemon.nbd_uri("disk"), daemon.nbd_uri("other"));
    run(tool("nbdcopy").args(["--connections=4", &from, &one]));
    run(tool("nbdcopy").args(["--connections=4", "--flush", &one, &other]));
    run(tool("nbdcopy").args([&other, &back]));
    assert!(
        fs::read(&from).unwrap() == fs::read(&back).unwrap(),
        "what came back is otherwise"
    );
    qemu_img(&["compare", "-q", &one, &other]);
    let other_image = daemon.path("other.qcow2").display().to_string();
    let folder = daemon.quit();
    qemu_img(&["check", "-q", &other_image]);
    qemu_img(&[
        "check",
        "-q",
        &folder.path().join("disk.qcow2").display().to_string(),
    ]);
}

#[test]
fn qemu_img_converts_and_compares() {
    let daemon = serve_new_disk();
    let uri = daemon.nbd_uri("disk");
    let [from, back] = ["from", "back"].map(|name| daemon.path(name).display().to_string());
    write_random_file(Path::new(&from), SIZE);
    qemu_img(&[
        "convert", "-n", "-W", "-m", "8", "-f", "raw", "-O", "raw", &from, &uri,
    ]);
    qemu_img(&["compare", "-q", "-f", "raw", "-F", "raw", &from, &uri]);
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", "-c", &uri, &back]);
    qemu_img(&["compare", "-q", "-f", "raw", "-F", "qcow2", &from, &back]);

    let info = json_of(tool("qemu-img").args(["info", "--output=json", "-f", "raw", &uri]));
    assert_eq!(info["virtual-size"], SIZE);
    let map = json_of(tool("qemu-img").args(["map", "--output=json", "-f", "raw", &uri]));
    let zeroes: u64 = map
        .as_array()
        .expect("an array")
        .iter()
        .filter(|range| range["zero"] == true)
        .filter_map(|range| range["length"].as_u64())
        .sum();
    assert!(zeroes > SIZE / 8, "the hole is lost: {map}");
    quit_and_check(daemon);
}

/// Four connections at once, each with verified random reads and writes of its own range.
#[test]
fn fio_verifies_four_connections_at_once() {
    let daemon = serve_new_disk();
    let uri = daemon.nbd_uri("disk");
    let common = [
        "--ioengine=nbd",
        &format!("--uri={uri}"),
        "--numjobs=4",
        "--size=8M",
        "--offset_increment=16M",
        "--iodepth=16",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--do_verify=1",
        "--group_reporting=1",
        "--thread=1",
        "--output-format=terse",
    ];
    let loads: &[&[&str]] = &[
        &["--name=small", "--rw=randrw", "--bs=4k"],
        &[
            "--name=odd",
            "--rw=randrw",
            "--bsrange=512-64k",
            "--blockalign=512",
        ],
        &["--name=large", "--rw=randwrite", "--bs=256k", "--fsync=8"],
    ];
    for load in loads {
        run(tool("fio")
            .current_dir(daemon.folder())
            .args(common)
            .args(*load));
    }
    quit_and_check(daemon);
}

/// One range, written by four connections with depth, block sizes that share clusters.
#[test]
fn fio_shares_clusters_among_connections() {
    let daemon = serve_new_disk();
    let uri = daemon.nbd_uri("disk");
    let uri_option = format!("--uri={uri}");
    let mut command = tool("fio");
    command
        .current_dir(daemon.folder())
        .args(["--ioengine=nbd", &uri_option, "--thread=1"]);
    command.args([
        "--verify=crc32c",
        "--verify_fatal=1",
        "--iodepth=8",
        "--bs=4k",
    ]);
    // Each job writes every fourth block of the same 16 MiB.
    for job in 0..4u32 {
        let name = format!("--name=job{job}");
        let offset = format!("--offset={}k", job * 4);
        command.args([
            &name,
            "--rw=write:12k",
            &offset,
            "--size=16M",
            "--io_size=4M",
        ]);
    }
    run(&mut command);
    quit_and_check(daemon);
}

#[test]
fn a_client_changes_the_length_where_it_may() {
    let daemon = serve_new_disk();
    let mut qmp = daemon.qmp();
    let export = |id: &str, writable: bool, resizable: bool| {
        serde_json::json!({"type": "nbd", "id": id, "node-name": "disk", "name": "elastic",
            "writable": writable, "resizable": resizable})
    };
    // The export that is there shares everything but the length.
    let refused = qmp.error("block-export-add", &export("elastic", true, true));
    assert!(refused.contains("'resize'"), "{refused}");
    qmp.ok("block-export-del", &serde_json::json!({"id": "disk"}));
    qmp.event("BLOCK_EXPORT_DELETED");
    let refused = qmp.error("block-export-add", &export("elastic", false, true));
    assert_eq!(refused, "Parameter 'resizable' needs parameter 'writable'");
    qmp.ok("block-export-add", &export("elastic", true, true));
    let refused = qmp.error(
        "block_resize",
        &serde_json::json!({"node-name": "disk", "size": SIZE}),
    );
    assert!(refused.contains("'resize'"), "{refused}");

    let printed = run(tool("python3")
        .arg(tools::script("resize.py"))
        .arg(daemon.path("nbd.sock"))
        .arg("elastic"));
    let length: u64 = printed.trim().parse().expect("a length");
    let nodes = qmp.ok("query-named-block-nodes", &serde_json::json!({}));
    let disk = nodes
        .as_array()
        .expect("nodes")
        .iter()
        .find(|node| node["node-name"] == "disk")
        .expect("the disk");
    assert_eq!(disk["image"]["virtual-size"], length);
    quit_and_check(daemon);
}

#[test]
fn libnbd_tries_every_request_and_error() {
    let daemon = serve_new_disk();
    let mut qmp = daemon.qmp();
    qmp.ok(
        "blockdev-add",
        &serde_json::json!({"driver": "null-co", "node-name": "null", "size": 1 << 20,
            "read-zeroes": true, "read-only": true}),
    );
    qmp.ok(
        "block-export-add",
        &serde_json::json!({"type": "nbd", "id": "null", "node-name": "null"}),
    );
    let script = tools::script("requests.py");
    run(tools::python_with_nbd()
        .arg(script)
        .arg(daemon.path("nbd.sock")));
    quit_and_check(daemon);
}
