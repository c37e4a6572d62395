//! Writes the seeds that are not text: `cargo run -p fuzz-bodies --example write_seeds`.
//!
//! The images are made by `qemu-img` and `qemu-io`, the handshakes by our own client. What is in
//! the corpus already under other names stays.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a tool for developers may panic where its peers misbehave"
)]

use std::fs;
use std::path::Path;
use std::process::Command;

use fuzz_bodies::pack_image;
use nbd_wire::{
    ClientHandshake, ClientStatus, ClientWishes, CommandFlags, ExportInfo, Exports, Goal,
    ListedExport, MetaContext, Request, ServerHandshake, ServerStatus, StatusSelection, Tls,
    TransmissionFlags,
};

/// An image: its name, `-o` options of `qemu-img create`, its size, `qemu-io` commands.
type Image = (
    &'static str,
    &'static str,
    &'static str,
    &'static [&'static str],
);

const MIXED: &[&str] = &[
    "write -P 0x11 0 700",
    "write -P 0x22 9k 600",
    "write -z 16k 4k",
    "write -P 0x33 20k 100",
    "write -P 0x44 60k 300",
    "discard 9k 512",
];
const PACKED: &[&str] = &[
    "write -c -P 0x55 0 64k",
    "write -P 0x66 70k 200",
    "write -z 80k 8k",
];

const IMAGES: &[Image] = &[
    ("v2-512", "compat=0.10,cluster_size=512", "64k", MIXED),
    ("v3-512", "compat=1.1,cluster_size=512", "64k", MIXED),
    (
        "v3-1k-r1",
        "cluster_size=1k,refcount_bits=1",
        "100000",
        MIXED,
    ),
    (
        "v3-512-r8",
        "cluster_size=512,refcount_bits=8",
        "64k",
        MIXED,
    ),
    (
        "v3-512-r64",
        "cluster_size=512,refcount_bits=64",
        "64k",
        MIXED,
    ),
    ("v3-4k", "cluster_size=4k", "256k", MIXED),
    ("v3-64k", "cluster_size=64k", "1M", MIXED),
    ("wide-128k", "cluster_size=128k", "2M", MIXED),
    ("v3-512-large", "cluster_size=512", "64M", MIXED),
    (
        "extended-16k",
        "cluster_size=16k,extended_l2=on",
        "256k",
        MIXED,
    ),
    (
        "extended-64k",
        "cluster_size=64k,extended_l2=on",
        "1M",
        MIXED,
    ),
    ("zlib-4k", "cluster_size=4k", "256k", PACKED),
    ("zlib-512", "cluster_size=512", "100k", PACKED),
    (
        "zstd-4k",
        "cluster_size=4k,compression_type=zstd",
        "256k",
        PACKED,
    ),
    (
        "zstd-64k",
        "cluster_size=64k,compression_type=zstd",
        "512k",
        PACKED,
    ),
    (
        "lazy-4k",
        "cluster_size=4k,lazy_refcounts=on",
        "256k",
        MIXED,
    ),
    ("empty", "cluster_size=4k", "1G", &[]),
    (
        "preallocated",
        "cluster_size=4k,preallocation=metadata",
        "64k",
        MIXED,
    ),
];

fn main() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus");
    let scratch = tempfile::tempdir().expect("a temporary folder");
    let images = corpus.join("qcow2_image");
    fs::create_dir_all(&images).expect("the corpus can be written");
    for (name, options, size, commands) in IMAGES {
        let path = scratch.path().join(name);
        qemu_img(
            &["create", "-q", "-f", "qcow2", "-o", options],
            &path,
            &[size],
        );
        write(&path, commands);
        keep(&images, name, &path);
    }
    with_backing(&images, scratch.path());
    with_data_file(&images, scratch.path());
    with_snapshot(&images, scratch.path());
    let kernels = corpus.join("kernel_image");
    fs::create_dir_all(&kernels).expect("the corpus can be written");
    for (name, choice, kernel) in kernels_of_every_format() {
        let bytes = [vec![30, choice], kernel].concat();
        fs::write(kernels.join(name), bytes).expect("the corpus can be written");
    }
    let registers = corpus.join("pc_registers");
    fs::create_dir_all(&registers).expect("the corpus can be written");
    for number in 0..8_u8 {
        let mut rng = block_doubles::Rng::new(number.into());
        let mut bytes = vec![number];
        bytes.extend((0..1024).map(|_| rng.below(256) as u8));
        let name = format!("random-{number}");
        fs::write(registers.join(name), bytes).expect("the corpus can be written");
    }
    let handshakes = corpus.join("nbd_client_bytes");
    fs::create_dir_all(&handshakes).expect("the corpus can be written");
    for (name, choice, tls, wishes) in wishes() {
        let mut bytes = vec![choice];
        bytes.extend(conversation(tls, wishes));
        fs::write(handshakes.join(name), bytes).expect("the corpus can be written");
    }
}

fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

fn bzimage(version: u16, extended: u8, code: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 1024];
    put(&mut file, 0x1f1, &[1]);
    put(&mut file, 0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(&mut file, 0x202, b"HdrS");
    put(&mut file, 0x206, &version.to_le_bytes());
    put(&mut file, 0x211, &[1]);
    put(&mut file, 0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(&mut file, 0x230, &[0, 0, 0x10, 0, 1]);
    put(&mut file, 0x236, &[extended]);
    put(&mut file, 0x238, &[255, 7]);
    put(&mut file, 0x258, &(4_u64 << 20).to_le_bytes());
    put(&mut file, 0x260, &(1_u32 << 20).to_le_bytes());
    file.extend(code);
    file
}

/// An ELF image with a segment at 1 MiB and a note.
fn elf(is_64_bit: bool, segment: &[u8], note: &[u8]) -> Vec<u8> {
    let (header, entry) = if is_64_bit { (64, 56) } else { (52, 32) };
    let width = if is_64_bit { 8 } else { 4 };
    let mut file = vec![0x7f, b'E', b'L', b'F', width / 4, 1, 1];
    file.resize(16, 0);
    file.extend([2, 0, if is_64_bit { 62 } else { 3 }, 0, 1, 0, 0, 0]);
    let number = |file: &mut Vec<u8>, value: u64| {
        file.extend(&value.to_le_bytes()[..usize::from(width)]);
    };
    for value in [1 << 20, header, 0] {
        number(&mut file, value);
    }
    file.extend([
        0,
        0,
        0,
        0,
        header as u8,
        0,
        entry,
        0,
        2,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    ]);
    let contents = header + 2 * u64::from(entry);
    let after = contents + segment.len() as u64;
    for (kind, offset, bytes) in [(1, contents, segment), (4, after, note)] {
        let length = bytes.len() as u64;
        file.extend([kind, 0, 0, 0]);
        if is_64_bit {
            file.extend([7, 0, 0, 0]);
        }
        for value in [offset, 1 << 20, 1 << 20, length, length + 100] {
            number(&mut file, value);
        }
        if is_64_bit {
            number(&mut file, 4);
        } else {
            file.extend([7, 0, 0, 0, 4, 0, 0, 0]);
        }
    }
    file.extend(segment);
    file.extend(note);
    file
}

fn multiboot(flags: u32, fields: &[u32]) -> Vec<u8> {
    let magic = 0x1bad_b002_u32;
    let sum = 0_u32.wrapping_sub(magic).wrapping_sub(flags);
    let all = [magic, flags, sum]
        .into_iter()
        .chain(fields.iter().copied());
    all.flat_map(u32::to_le_bytes).chain([0xf4; 40]).collect()
}

/// Kernels: the name, the body's second byte, the file.
fn kernels_of_every_format() -> Vec<(&'static str, u8, Vec<u8>)> {
    let note = b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0\x10\0\x10\0";
    let start = 0x30_0000;
    let addresses = [start, start, 0, start + 9000, start + 32];
    vec![
        ("bzimage-64", 0x20, bzimage(0x20f, 3, &[0x90; 600])),
        ("bzimage-32", 0x21, bzimage(0x20a, 0, &[0x90; 64])),
        ("bzimage-old", 0x10, bzimage(0x202, 0, &[0x90; 64])),
        ("pvh-64", 0x24, elf(true, &[0x90; 64], note)),
        ("pvh-32", 0x24, elf(false, &[0x90; 64], note)),
        ("vmlinux", 0x22, elf(true, &[0x90; 64], &[])),
        ("multiboot-elf", 0x24, elf(false, &multiboot(3, &[]), &[])),
        ("multiboot-addresses", 0x14, multiboot(1 << 16, &addresses)),
    ]
}

fn run(command: &mut Command) {
    let status = command.status().expect("qemu-utils are installed");
    assert!(status.success(), "{command:?}");
}

fn qemu_img(before: &[&str], path: &Path, after: &[&str]) {
    let mut command = Command::new("qemu-img");
    // In the image's folder, so that names of other files are short and always the same.
    command.current_dir(path.parent().unwrap_or(path));
    run(command.args(before).arg(path).args(after));
}

fn write(path: &Path, commands: &[&str]) {
    if commands.is_empty() {
        return;
    }
    let mut command = Command::new("qemu-io");
    command
        .args(["-f", "qcow2", "-d", "unmap"])
        .stdout(std::process::Stdio::null());
    for text in commands {
        command.args(["-c", text]);
    }
    command.current_dir(path.parent().unwrap_or(path));
    run(command.arg(path));
}

fn keep(folder: &Path, name: &str, path: &Path) {
    let image = fs::read(path).expect("the image was made");
    let packed = pack_image(&image).expect("the image is small");
    fs::write(folder.join(name), packed).expect("the corpus can be written");
}

fn with_backing(folder: &Path, scratch: &Path) {
    let below = scratch.join("below");
    qemu_img(&["create", "-q", "-f", "raw"], &below, &["40000"]);
    for (name, options) in [
        ("backed-512", "cluster_size=512"),
        ("backed-v2-512", "cluster_size=512,compat=0.10"),
        ("backed-extended", "cluster_size=16k,extended_l2=on"),
    ] {
        let path = scratch.join(name);
        let create = [
            "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "below", "-o", options,
        ];
        qemu_img(&create, &path, &["64k"]);
        write(&path, MIXED);
        keep(folder, name, &path);
    }
}

fn with_data_file(folder: &Path, scratch: &Path) {
    for (name, more) in [("data-file", ""), ("data-file-raw", ",data_file_raw=on")] {
        let path = scratch.join(name);
        let options = format!("cluster_size=4k,data_file={name}.data{more}");
        qemu_img(
            &["create", "-q", "-f", "qcow2", "-o", &options],
            &path,
            &["64k"],
        );
        write(&path, MIXED);
        keep(folder, name, &path);
    }
}

/// An image with what cannot be written yet, and one whose counts are wrong.
fn with_snapshot(folder: &Path, scratch: &Path) {
    let path = scratch.join("wrong-snapshot");
    qemu_img(
        &["create", "-q", "-f", "qcow2", "-o", "cluster_size=512"],
        &path,
        &["64k"],
    );
    write(&path, MIXED);
    qemu_img(&["snapshot", "-c", "before"], &path, &[]);
    write(&path, &["write -P 0x77 0 600"]);
    keep(folder, "wrong-snapshot", &path);
    let path = scratch.join("dirty");
    let options = "cluster_size=512,lazy_refcounts=on";
    qemu_img(
        &["create", "-q", "-f", "qcow2", "-o", options],
        &path,
        &["64k"],
    );
    write(&path, &["write -P 0x88 0 1k"]);
    let mut image = fs::read(&path).expect("the image was made");
    // The dirty bit, and no counts at all but the first 4.
    image[79] |= 1;
    let table = usize::from_be_bytes(image[48..56].try_into().expect("8 bytes"));
    let block = usize::from_be_bytes(image[table..table + 8].try_into().expect("8 bytes"));
    image[block + 8..block + 512].fill(0);
    fs::write(&path, image).expect("the image can be written");
    keep(folder, "dirty", &path);
}

struct Disk;

impl Exports for Disk {
    fn find(&self, name: &str) -> Option<ExportInfo> {
        (name != "none").then(|| ExportInfo {
            name: name.to_owned(),
            size_bytes: 1 << 20,
            flags: TransmissionFlags::all() - TransmissionFlags::READ_ONLY,
            description: None,
            block_size: nbd_wire::BlockSize::default(),
            meta_contexts: vec!["base:allocation".to_owned()],
        })
    }

    fn list(&self) -> Vec<ListedExport> {
        Vec::new()
    }
}

fn wishes() -> Vec<(&'static str, u8, Tls, ClientWishes)> {
    let plain = ClientWishes {
        goal: Goal::Transmission("disk".to_owned()),
        tls: false,
        structured: false,
        extended: false,
        meta_contexts: Vec::new(),
    };
    let structured = ClientWishes {
        structured: true,
        meta_contexts: vec!["base:allocation".to_owned()],
        goal: Goal::Transmission("aligned".to_owned()),
        ..plain.clone()
    };
    let extended = ClientWishes {
        extended: true,
        goal: Goal::Transmission(String::new()),
        ..structured.clone()
    };
    let list = ClientWishes {
        goal: Goal::List,
        ..plain.clone()
    };
    let missing = ClientWishes {
        goal: Goal::Transmission("none".to_owned()),
        ..plain.clone()
    };
    let read_only = ClientWishes {
        goal: Goal::Transmission("empty".to_owned()),
        ..plain.clone()
    };
    let in_tls = ClientWishes {
        tls: true,
        ..extended.clone()
    };
    vec![
        ("plain", 0, Tls::Unavailable, plain),
        ("structured", 8, Tls::Unavailable, structured),
        ("extended", 16, Tls::Unavailable, extended),
        ("list", 24, Tls::Unavailable, list),
        ("missing", 32, Tls::Unavailable, missing),
        ("read-only", 40, Tls::Unavailable, read_only),
        ("tls", 4 + 3, Tls::Required, in_tls.clone()),
        ("plain-text-in-tls", 3, Tls::Required, in_tls),
    ]
}

/// What our client sends to a server, and a request of every kind.
fn conversation(tls: Tls, wishes: ClientWishes) -> Vec<u8> {
    let mut client = ClientHandshake::new(wishes);
    let mut server = ServerHandshake::new(tls);
    let mut sent = Vec::new();
    loop {
        let status = client.feed(&server.take_output());
        let block = client.take_output();
        sent.extend_from_slice(&block);
        let served = server.feed(&block, &Disk);
        match (status, served) {
            (ClientStatus::StartTls, _) => client.tls_started(),
            (ClientStatus::Ready(ready), _) => {
                sent.extend(requests(
                    ready.negotiated.request_format(),
                    &ready.negotiated,
                ));
                return sent;
            }
            (ClientStatus::Failed(_) | ClientStatus::Listed(_), _) => return sent,
            (_, ServerStatus::StartTls) => server.tls_started(),
            (ClientStatus::NeedMore, _) => {}
        }
    }
}

fn requests(format: nbd_wire::RequestFormat, negotiated: &nbd_wire::Negotiated) -> Vec<u8> {
    use nbd_wire::Command::{
        BlockStatus, Cache, Disconnect, Flush, Read, Trim, Write, WriteZeroes,
    };
    let none = CommandFlags::empty();
    let mut list = vec![
        (Read, none, 0, 4096, Vec::new()),
        (Write, CommandFlags::FUA, 4096, 16, vec![7; 16]),
        (
            WriteZeroes,
            CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO,
            8192,
            4096,
            Vec::new(),
        ),
        (Trim, none, 0, 1 << 19, Vec::new()),
        (Cache, none, 0, 4096, Vec::new()),
        (BlockStatus, CommandFlags::REQ_ONE, 0, 1 << 20, Vec::new()),
        (Flush, none, 0, 0, Vec::new()),
    ];
    if format == nbd_wire::RequestFormat::Extended {
        let ids = negotiated
            .meta_contexts
            .iter()
            .map(|MetaContext { id, .. }| *id);
        let mut payload = Vec::new();
        StatusSelection {
            length: 65536,
            context_ids: ids.collect(),
        }
        .encode(&mut payload);
        let len = payload.len() as u64;
        list.push((BlockStatus, CommandFlags::PAYLOAD_LEN, 512, len, payload));
    }
    list.push((Disconnect, none, 0, 0, Vec::new()));
    let mut out = Vec::new();
    for (cookie, (command, flags, offset, length, payload)) in list.into_iter().enumerate() {
        let request = Request::new(format, command, flags, cookie as u64, offset, length)
            .expect("the request is well formed");
        match format {
            nbd_wire::RequestFormat::Compact => out.extend(request.encode_compact()),
            nbd_wire::RequestFormat::Extended => out.extend(request.encode_extended()),
        }
        out.extend(payload);
    }
    out
}
