//! `blockdev-reopen` of what is in use: nothing of a verified load is lost, whether the reopening
//! succeeds or fails.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test"
)]

mod support;

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use support::tools::{create_image, qemu_img, qemu_io, run, tool};
use support::{Daemon, Qmp, new_folder, wait_for_end};

const ONE_DISK: &[&str] = &[
    "--blockdev",
    "driver=file,node-name=file,filename={dir}/disk.qcow2,discard=unmap",
    "--blockdev",
    "driver=qcow2,node-name=disk,file=file,discard=unmap",
    "--nbd-server",
    "addr.type=unix,addr.path={dir}/nbd.sock",
    "--export",
    "type=nbd,id=disk,node-name=disk,name=disk,writable=on",
];

fn serve(options: &str) -> Daemon {
    let folder = new_folder();
    create_image(
        &folder.path().join("disk.qcow2"),
        "qcow2",
        options,
        &(64 << 20).to_string(),
    );
    Daemon::start_in(folder, ONE_DISK)
}

fn file_options(daemon: &Daemon, direct: bool) -> Value {
    json!({
        "driver": "file", "node-name": "file", "discard": "unmap",
        "filename": daemon.path("disk.qcow2"), "cache": {"direct": direct},
    })
}

fn reopen(qmp: &mut Qmp, nodes: &[Value]) {
    qmp.ok("blockdev-reopen", &json!({ "options": nodes }));
}

fn load_while_reopening(options: &str) {
    let daemon = serve(options);
    let uri = daemon.nbd_uri("disk");
    let mut load = tool("fio")
        .args([
            "--name=load",
            "--ioengine=nbd",
            "--rw=randrw",
            "--bsrange=512-64k",
        ])
        .args([
            "--iodepth=8",
            "--size=32m",
            "--verify=crc32c",
            "--verify_fatal=1",
        ])
        .args(["--randseed=7", "--do_verify=1", "--fsync=50"])
        .arg(format!("--uri={uri}"))
        .current_dir(daemon.folder())
        .stdout(Stdio::null())
        .spawn()
        .expect("fio starts");
    let mut qmp = daemon.qmp();
    let disk = |more: Value| {
        let mut disk =
            json!({"driver": "qcow2", "node-name": "disk", "file": "file", "discard": "unmap"});
        let all = disk.as_object_mut().unwrap();
        all.extend(more.as_object().unwrap().clone());
        disk
    };
    let mut rounds = 0;
    while load.try_wait().expect("fio to be asked").is_none() {
        let small = disk(json!({"l2-cache-size": 65536, "refcount-cache-size": 262_144}));
        reopen(&mut qmp, &[small, file_options(&daemon, true)]);
        let lazy = disk(json!({"lazy-refcounts": true, "overlap-check": "all"}));
        reopen(&mut qmp, &[file_options(&daemon, false), lazy]);
        // What cannot be has no effect: the export writes, no such node, no such size.
        let read_only = disk(json!({"read-only": true}));
        let refused = qmp.error("blockdev-reopen", &json!({"options": [read_only]}));
        assert_eq!(
            refused,
            "Read-only block node 'disk' cannot support read-write users"
        );
        let odd = disk(json!({"l2-cache-entry-size": 3000}));
        qmp.error(
            "blockdev-reopen",
            &json!({"options": [file_options(&daemon, true), odd]}),
        );
        reopen(&mut qmp, &[disk(json!({}))]);
        rounds += 1;
        std::thread::sleep(Duration::from_millis(3));
    }
    let status = wait_for_end(&mut load, "fio");
    assert!(status.success(), "fio ended with {status}");
    assert!(rounds > 3, "only {rounds} rounds of reopening under load");
    let folder = daemon.quit();
    let image = folder.path().join("disk.qcow2").display().to_string();
    qemu_img(&["check", "-q", &image]);
}

#[test]
fn a_load_goes_on_while_its_disk_is_reopened() {
    load_while_reopening("");
}

#[test]
fn a_load_goes_on_with_subclusters_and_lazy_refcounts() {
    load_while_reopening("extended_l2=on,lazy_refcounts=on");
}

/// What other processes may do follows what a node is now, not what it was opened as.
#[test]
fn locks_follow_the_mode() {
    let folder = new_folder();
    create_image(&folder.path().join("disk.qcow2"), "qcow2", "", "1M");
    let daemon = Daemon::start_in(folder, ONE_DISK.get(..4).unwrap());
    let image = daemon.path("disk.qcow2").display().to_string();
    let mut qmp = daemon.qmp();
    let locked = || {
        let write = tool("qemu-io").args(["-c", "write 0 512", &image]).output();
        !write.expect("qemu-io runs").status.success()
    };
    let mut file = file_options(&daemon, false);
    let mut disk = json!({"driver": "qcow2", "node-name": "disk", "file": "file"});
    assert!(locked());
    disk["read-only"] = true.into();
    file["read-only"] = true.into();
    reopen(&mut qmp, &[file.clone(), disk.clone()]);
    // A reader lets nobody write either, but others may read.
    assert!(locked());
    run(tool("qemu-io").args(["-r", "-c", "read 0 512", &image]));
    disk["read-only"] = false.into();
    file["read-only"] = false.into();
    reopen(&mut qmp, &[disk, file]);
    assert!(locked());
    let other_reader = tool("qemu-io")
        .args(["-r", "-c", "read 0 512", &image])
        .output();
    assert!(!other_reader.expect("qemu-io runs").status.success());
    daemon.quit();
}

/// A node that is taken out from under its parent is closed when nobody else has it, and kept
/// when a client opened it.
#[test]
fn children_that_are_replaced_are_let_go() {
    let folder = new_folder();
    let path = |name: &str| folder.path().join(name);
    create_image(&path("base.qcow2"), "qcow2", "", "1M");
    let backing = format!(
        "backing_file={},backing_fmt=qcow2",
        path("base.qcow2").display()
    );
    create_image(&path("disk.qcow2"), "qcow2", &backing, "1M");
    let base = path("base.qcow2").display().to_string();
    qemu_io("qcow2", &base, &["write -P 7 0 64k"]);
    let daemon = Daemon::start_in(folder, ONE_DISK);
    let mut qmp = daemon.qmp();
    let nodes = |qmp: &mut Qmp| {
        let nodes = qmp.ok("query-named-block-nodes", &json!({"flat": true}));
        nodes.as_array().unwrap().len()
    };
    let read = |byte: &str| {
        let command = format!("read -P {byte} 0 64k");
        qemu_io("raw", &daemon.nbd_uri("disk"), &[command]);
    };
    assert_eq!(nodes(&mut qmp), 4);
    read("7");
    let mut disk =
        json!({"driver": "qcow2", "node-name": "disk", "file": "file", "discard": "unmap"});
    disk["backing"] = Value::Null;
    reopen(&mut qmp, std::slice::from_ref(&disk));
    assert_eq!(nodes(&mut qmp), 2);
    read("0");
    let file = json!({"driver": "file", "filename": base});
    qmp.ok(
        "blockdev-add",
        &json!({"driver": "qcow2", "node-name": "base", "read-only": true, "file": file}),
    );
    disk["backing"] = "base".into();
    reopen(&mut qmp, std::slice::from_ref(&disk));
    read("7");
    disk["backing"] = Value::Null;
    reopen(&mut qmp, std::slice::from_ref(&disk));
    assert_eq!(nodes(&mut qmp), 4);
    qmp.ok("blockdev-del", &json!({"node-name": "base"}));
    read("0");
    daemon.quit();
}

/// Work that makes an image cannot be held off, so its node stays as it is until it has ended.
#[test]
fn an_image_in_the_making_is_left_alone() {
    let daemon = Daemon::start(&[
        "--blockdev",
        "driver=null-co,node-name=slow,size=1073741824,latency-ns=100000000",
    ]);
    let mut qmp = daemon.qmp();
    let options = json!({"driver": "qcow2", "file": "slow", "size": 1 << 20});
    qmp.ok(
        "blockdev-create",
        &json!({"job-id": "job", "options": options}),
    );
    let slow = json!({"driver": "null-co", "node-name": "slow", "size": 1 << 30, "latency-ns": 100_000_000});
    let nodes = json!({"options": [slow]});
    assert_eq!(
        qmp.error("blockdev-reopen", &nodes),
        "Node 'slow' is busy: block device is in use by block job: create"
    );
    while qmp.event("JOB_STATUS_CHANGE")["data"]["status"] != "concluded" {}
    qmp.ok("blockdev-reopen", &nodes);
    qmp.ok("job-dismiss", &json!({"id": "job"}));
    daemon.quit();
}
