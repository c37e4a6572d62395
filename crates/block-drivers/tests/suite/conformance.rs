//! The table of cases that every driver passes, on files, on `raw` and on the null drivers.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use block_doubles::conformance::{Abilities, DiskMaker, MadeDisk, check};
use block_drivers::{
    FileDriver, FileOptions, HostOpener, HostProtocol, NullDriver, NullOptions, RawDriver,
    RawOptions,
};
use block_graph::{
    BlockError, BlockFuture, ChildRole, DetectZeroes, Driver, Graph, Node, NodeOptions, ParentName,
    Permission, Permissions,
};
use host_io::Engine;

/// What lies around the window of a raw node, in bytes before and behind it.
const BEFORE_WINDOW: u64 = 3 * 512;
const BEHIND_WINDOW: u64 = 700;
const AROUND: u8 = 0xa5;

/// What stands on the file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Over {
    Nothing,
    Raw,
    /// From an offset to the end.
    RawFrom,
    /// From an offset for a length.
    RawWindow,
}

#[derive(Clone, Copy)]
struct Files {
    direct: bool,
    over: Over,
    length_unit: u64,
    detect_zeroes: DetectZeroes,
}

impl Files {
    fn plain() -> Self {
        Self {
            direct: false,
            over: Over::Nothing,
            length_unit: 1,
            detect_zeroes: DetectZeroes::Off,
        }
    }
}

struct HostFile {
    kind: Files,
    size: u64,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl DiskMaker for Files {
    fn abilities(&self) -> Abilities {
        Abilities {
            resizable: self.over != Over::RawWindow,
            length_unit: self.length_unit,
            ..Abilities::default()
        }
    }

    fn make(&self, size: u64) -> BlockFuture<'_, Box<dyn MadeDisk>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let (before, behind) = self.around();
        let mut content = vec![AROUND; (before + size + behind) as usize];
        content[before as usize..][..size as usize].fill(0);
        std::fs::write(&path, content).unwrap();
        let disk = HostFile {
            kind: *self,
            size,
            path,
            _folder: folder,
        };
        Box::pin(async { Ok(Box::new(disk) as Box<dyn MadeDisk>) })
    }
}

impl Files {
    fn around(&self) -> (u64, u64) {
        match self.over {
            Over::Nothing | Over::Raw => (0, 0),
            Over::RawFrom => (BEFORE_WINDOW, 0),
            Over::RawWindow => (BEFORE_WINDOW, BEHIND_WINDOW),
        }
    }
}

fn node(name: &str, driver: impl Driver, read_only: bool, detect: DetectZeroes) -> Arc<Node> {
    let options = NodeOptions {
        discard_unmap: true,
        detect_zeroes: detect,
        ..NodeOptions::default()
    };
    let driver = Box::new(driver);
    Node::new(name.to_owned(), driver, options, read_only, Arc::default())
}

fn open_file(path: &Path, direct: bool, read_only: bool) -> Result<FileDriver, BlockError> {
    let options = FileOptions {
        protocol: HostProtocol::File,
        filename: path.display().to_string(),
        read_only,
        auto_read_only: false,
        direct,
        locking: true,
    };
    FileDriver::open(options, Arc::new(HostOpener))
}

impl MadeDisk for HostFile {
    fn open(&self, read_only: bool) -> BlockFuture<'_, Arc<Node>> {
        Box::pin(async move {
            let kind = self.kind;
            let driver = open_file(&self.path, kind.direct, read_only)?;
            if kind.over == Over::Nothing {
                return Ok(node("file", driver, read_only, kind.detect_zeroes));
            }
            let file = node("file", driver, read_only, DetectZeroes::Off);
            let parent = ParentName::Node("raw".to_owned());
            let asked = Permissions::NONE;
            let edge = Graph::default()
                .attach(parent, "file", ChildRole::Image, &file, asked)
                .unwrap();
            let (offset, _) = kind.around();
            let options = RawOptions {
                offset,
                size: (kind.over == Over::RawWindow).then_some(self.size),
            };
            let raw = RawDriver::new(edge, options)?;
            Ok(node("raw", raw, read_only, kind.detect_zeroes))
        })
    }

    fn verify(&self, content: &[u8]) {
        let found = std::fs::read(&self.path).unwrap();
        let (before, behind) = self.kind.around();
        let (head, rest) = found.split_at(before as usize);
        let (disk, tail) = rest.split_at(content.len());
        assert!(head.iter().all(|byte| *byte == AROUND), "before the window");
        assert!(disk == content, "the file does not hold what was written");
        assert_eq!(tail.len() as u64, behind, "length of the file");
        assert!(tail.iter().all(|byte| *byte == AROUND), "behind the window");
    }
}

#[test]
fn files_pass_on_the_ring() {
    check("file", Engine::Uring, Files::plain());
}

#[test]
fn files_pass_on_threads() {
    check("file on threads", Engine::Threads, Files::plain());
}

fn direct() -> Files {
    Files {
        direct: true,
        length_unit: 512,
        ..Files::plain()
    }
}

#[test]
fn direct_files_pass_on_the_ring() {
    check("direct file", Engine::Uring, direct());
}

#[test]
fn direct_files_pass_on_threads() {
    check("direct file on threads", Engine::Threads, direct());
}

#[test]
fn files_that_look_for_zeroes_pass() {
    for detect_zeroes in [DetectZeroes::On, DetectZeroes::Unmap] {
        let kind = Files {
            detect_zeroes,
            ..Files::plain()
        };
        check("file that looks for zeroes", Engine::Uring, kind);
    }
}

#[test]
fn raw_passes() {
    let over = Over::Raw;
    check(
        "raw",
        Engine::Uring,
        Files {
            over,
            ..Files::plain()
        },
    );
    check(
        "raw on a direct file",
        Engine::Uring,
        Files { over, ..direct() },
    );
}

#[test]
fn raw_from_an_offset_passes() {
    let over = Over::RawFrom;
    let name = "raw with an offset";
    check(
        name,
        Engine::Uring,
        Files {
            over,
            ..Files::plain()
        },
    );
}

#[test]
fn raw_windows_pass() {
    let over = Over::RawWindow;
    let name = "raw with offset and size";
    check(
        name,
        Engine::Uring,
        Files {
            over,
            ..Files::plain()
        },
    );
    check(name, Engine::Threads, Files { over, ..direct() });
}

#[derive(Clone, Copy)]
struct Nulls {
    name: &'static str,
    read_zeroes: bool,
    latency_ns: u64,
}

struct Null {
    kind: Nulls,
    size: u64,
}

impl DiskMaker for Nulls {
    fn abilities(&self) -> Abilities {
        Abilities {
            keeps_data: false,
            resizable: false,
            length_unit: 1,
        }
    }

    fn make(&self, size: u64) -> BlockFuture<'_, Box<dyn MadeDisk>> {
        let disk = Null { kind: *self, size };
        Box::pin(async { Ok(Box::new(disk) as Box<dyn MadeDisk>) })
    }
}

impl MadeDisk for Null {
    fn open(&self, read_only: bool) -> BlockFuture<'_, Arc<Node>> {
        let driver = NullDriver::new(NullOptions {
            name: self.kind.name,
            size: self.size,
            latency_ns: self.kind.latency_ns,
            read_zeroes: self.kind.read_zeroes,
        });
        let opened = node("null", driver, read_only, DetectZeroes::Off);
        Box::pin(async { Ok(opened) })
    }
}

#[test]
fn null_drivers_pass() {
    for (name, read_zeroes, latency_ns) in [
        ("null-co", true, 0),
        ("null-co", false, 0),
        ("null-aio", true, 1000),
    ] {
        let kind = Nulls {
            name,
            read_zeroes,
            latency_ns,
        };
        check(name, Engine::Uring, kind);
    }
}

/// The locks of a file under a graph are there while somebody uses it, and not longer.
#[test]
fn the_table_opens_files_with_locks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    std::fs::write(&path, [0; 512]).unwrap();
    let first = node(
        "a",
        open_file(&path, false, false).unwrap(),
        false,
        DetectZeroes::Off,
    );
    let second = node(
        "b",
        open_file(&path, false, false).unwrap(),
        false,
        DetectZeroes::Off,
    );
    let asked = Permissions {
        required: Permission::WRITE,
        shared: Permission::CONSISTENT_READ,
    };
    let graph = Graph::default();
    let one = graph.attach_backend("one", &first, asked).unwrap();
    let refused = graph.attach_backend("two", &second, asked).err().unwrap();
    assert_eq!(refused.to_string(), "Failed to get \"write\" lock");
    graph.detach_backend(&one);
    graph.attach_backend("two", &second, asked).unwrap();
}
