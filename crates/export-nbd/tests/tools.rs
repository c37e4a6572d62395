//! The tools that people have, against the server.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod rig;

use std::time::Duration;

use export_nbd::NbdServerOptions;
use host_io::Engine;
use rig::{Rig, eventually, tool, tool_ok, write_pattern};

const MIB: u64 = 1 << 20;
const LIBNBD: &str = "libnbd-bin";
const QEMU: &str = "qemu-utils";

#[test]
fn nbdinfo_tells_what_the_export_can() {
    let rig = Rig::start(NbdServerOptions::default());
    let node = rig.raw_node("disk", 10 * MIB);
    rig.export_with(&node, true, |options| {
        options.description = Some("a disk for everybody".to_owned());
    });
    let read_only = rig.null_node("ro", MIB, Duration::ZERO);
    rig.export(&read_only, false);
    let told = tool_ok(LIBNBD, "nbdinfo", &[&rig.uri("disk")]);
    for line in [
        "protocol: newstyle-fixed without TLS, using structured packets",
        "export-size: 10485760 (10M)",
        "description: a disk for everybody",
        "base:allocation",
        "qemu:allocation-depth",
        "is_read_only: false",
        "can_cache: true",
        "can_df: true",
        "can_fast_zero: true",
        "can_flush: true",
        "can_fua: true",
        "can_multi_conn: true",
        "can_trim: true",
        "can_zero: true",
        "block_size_minimum: 1",
        "block_size_preferred: 4096",
        "block_size_maximum: 33554432",
    ] {
        assert!(told.contains(line), "{line} is not in\n{told}");
    }
    let listed = tool_ok(LIBNBD, "nbdinfo", &["--list", &rig.uri("")]);
    assert!(listed.contains("export=\"disk\":") && listed.contains("export=\"ro\":"));
    assert!(listed.contains("is_read_only: true"));
    let map = tool_ok(LIBNBD, "nbdinfo", &["--map", &rig.uri("disk")]);
    assert!(map.contains("hole,zero"), "{map}");
    let unknown = tool(LIBNBD, "nbdinfo", &[&rig.uri("nothing")]);
    assert!(!unknown.status.success());
}

#[test]
fn nbdcopy_copies_out_and_in_over_several_connections() {
    for engine in [Engine::Uring, Engine::Threads] {
        let rig = Rig::start_on(NbdServerOptions::default(), engine, 2);
        write_pattern(&rig.path("disk"), 40 << 20, 1);
        let node = rig.raw_node("disk", 40 * MIB);
        rig.export(&node, true);
        let target = rig.raw_node("target", 40 * MIB);
        rig.export(&target, true);
        let out = rig.path("out").to_str().unwrap().to_owned();
        tool_ok(LIBNBD, "nbdcopy", &[&rig.uri("disk"), &out]);
        let original = std::fs::read(rig.path("disk")).unwrap();
        assert_eq!(std::fs::read(&out).unwrap(), original);
        tool_ok(
            LIBNBD,
            "nbdcopy",
            &["--flush", &rig.uri("disk"), &rig.uri("target")],
        );
        assert_eq!(std::fs::read(rig.path("target")).unwrap(), original);
    }
}

#[test]
fn qemu_img_converts_and_compares_with_extended_headers() {
    let rig = Rig::start(NbdServerOptions::default());
    write_pattern(&rig.path("disk"), 40 << 20, 2);
    let node = rig.raw_node("disk", 40 * MIB);
    rig.export(&node, true);
    let target = rig.raw_node("target", 40 * MIB);
    let export = rig.export(&target, true);
    let (disk, uri) = (rig.path("disk"), rig.uri("disk"));
    let info = tool_ok(QEMU, "qemu-img", &["info", "--output=json", &uri]);
    assert!(info.contains("\"virtual-size\": 41943040"), "{info}");
    let copy = rig.path("copy.qcow2").to_str().unwrap().to_owned();
    tool_ok(
        QEMU,
        "qemu-img",
        &["convert", "-f", "raw", "-O", "qcow2", &uri, &copy],
    );
    let same = tool_ok(
        QEMU,
        "qemu-img",
        &["compare", "-U", disk.to_str().unwrap(), &copy],
    );
    assert!(same.contains("Images are identical."), "{same}");
    tool_ok(
        QEMU,
        "qemu-img",
        &["convert", "-n", "-O", "raw", &copy, &rig.uri("target")],
    );
    let same = tool_ok(
        QEMU,
        "qemu-img",
        &[
            "compare",
            "-f",
            "raw",
            "-F",
            "raw",
            &uri,
            &rig.uri("target"),
        ],
    );
    assert!(same.contains("Images are identical."), "{same}");
    let map = tool_ok(
        QEMU,
        "qemu-img",
        &["map", "-f", "raw", "--output=json", &uri],
    );
    assert!(
        map.contains("\"zero\": true") && map.contains("\"data\": true"),
        "{map}"
    );
    eventually("clients have gone", || export.client_count() == 0);
}

#[test]
fn qemu_io_writes_zeroes_discards_and_verifies() {
    let rig = Rig::start(NbdServerOptions::default());
    let node = rig.raw_node("disk", 8 * MIB);
    rig.export_with(&node, true, |options| options.writethrough = true);
    let uri = rig.uri("disk");
    let mut arguments = vec!["-f", "raw", "-d", "unmap"];
    for command in [
        "write -P 0xa5 0 2M",
        "write -f -P 0x5a 2M 64k",
        "write -z 1M 512k",
        "write -z -u 1536k 64k",
        "aio_write -P 0x11 4M 1M",
        "aio_write -P 0x22 5M 1M",
        "aio_flush",
        "discard 5M 512k",
        "flush",
        "read -P 0xa5 0 1M",
        "read -P 0 1M 576k",
        "read -P 0xa5 1600k 400k",
        "read -P 0x5a 2M 64k",
        "read -P 0x11 4M 1M",
        "read -P 0 5M 512k",
        "read -P 0x22 5632k 512k",
    ] {
        arguments.extend(["-c", command]);
    }
    arguments.push(&uri);
    let said = tool_ok(QEMU, "qemu-io", &arguments);
    assert!(!said.contains("failed"), "{said}");
    let file = std::fs::read(rig.path("disk")).unwrap();
    assert!(file[..1 << 20].iter().all(|byte| *byte == 0xa5));
}

#[test]
fn nbdsh_sees_errors_as_they_are() {
    let rig = Rig::start(NbdServerOptions::default());
    let node = rig.raw_node("disk", MIB);
    rig.export(&node, true);
    let script = "
import errno
h.set_strict_mode(0)
def fails(call, number):
    try:
        call()
    except nbd.Error as error:
        assert error.errnum == number, error
        return
    raise AssertionError('it went well')
h.pwrite(b'hello', 100)
assert h.pread(5, 100) == b'hello'
fails(lambda: h.pread(512, 1 << 20), errno.EINVAL)
fails(lambda: h.pwrite(b'x' * 512, (1 << 20) - 1), errno.ENOSPC)
fails(lambda: h.trim(512, 1 << 20), errno.EINVAL)
h.zero(4096, 0)
h.cache(4096, 0)
h.flush()
seen = []
h.block_status(1 << 20, 0, lambda context, at, extents, error: seen.append(context))
assert sorted(seen) == ['base:allocation', 'qemu:allocation-depth'], seen
h.shutdown()
print('well')
";
    let meta = "h.add_meta_context('base:allocation'); h.add_meta_context('qemu:allocation-depth')";
    let connect = format!("h.connect_uri('{}')", rig.uri("disk"));
    let arguments = ["-m", "nbd", "-c", meta, "-c", &connect, "-c", script];
    let said = tool_ok("python3-libnbd", "/usr/bin/python3", &arguments);
    assert_eq!(said.trim(), "well");
}

#[test]
fn fio_verifies_what_it_wrote_over_four_connections() {
    let rig = Rig::start_on(NbdServerOptions::default(), Engine::Uring, 2);
    let node = rig.raw_node("disk", 16 * MIB);
    rig.export(&node, true);
    let uri = format!("--uri={}", rig.uri("disk"));
    let said = tool_ok(
        "fio",
        "fio",
        &[
            "--name=verify",
            "--ioengine=nbd",
            &uri,
            "--rw=randwrite",
            "--bsrange=512-64k",
            "--size=4M",
            "--offset_increment=4M",
            "--numjobs=4",
            "--iodepth=16",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--group_reporting",
        ],
    );
    assert!(said.contains("err= 0"), "{said}");
}

#[test]
fn two_clients_that_overlap_leave_one_of_their_writes_in_each_block() {
    let rig = Rig::start_on(NbdServerOptions::default(), Engine::Uring, 2);
    let node = rig.raw_node("disk", MIB);
    rig.export(&node, true);
    let write = |letter: u8| {
        let mut client = rig.client("disk", nbd_wire::reply::ReplyFormat::Structured);
        for round in 0..50_u64 {
            let offset = round * 7 % 100 * 4096;
            client.write(offset, &[letter; 3 * 4096]).unwrap();
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| write(b'a'));
        scope.spawn(|| write(b'b'));
    });
    let file = std::fs::read(rig.path("disk")).unwrap();
    for block in file.chunks(4096) {
        assert!(block.iter().all(|byte| *byte == block[0]));
        assert!(matches!(block[0], 0 | b'a' | b'b'));
    }
}
