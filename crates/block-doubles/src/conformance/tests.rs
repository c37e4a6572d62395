//! The table on the double itself; and that the table finds what is wrong.

use std::sync::Arc;

use block_graph::{
    Access, BlockError, BlockFuture, BlockOperation, Driver, DriverInfo, Edge, Extent, ExtentKind,
    InFlight, Limits, Mapping, Node, NodeOptions, Permissions, Preallocation, WriteFlags,
};
use host_io::{Engine, IoBuf, IoBytes};

use super::{Abilities, DiskMaker, MadeDisk, cases, check, passes};
use crate::{Faults, Storage};

struct Doubles {
    yielding: Option<u64>,
}

struct Double(Storage);

impl DiskMaker for Doubles {
    fn abilities(&self) -> Abilities {
        Abilities {
            length_unit: 1,
            ..Abilities::default()
        }
    }

    fn make(&self, size: u64) -> BlockFuture<'_, Box<dyn MadeDisk>> {
        let storage = Storage::new(vec![0; size as usize]);
        storage.set_faults(Faults {
            yielding: self.yielding,
            ..Faults::default()
        });
        Box::pin(async { Ok(Box::new(Double(storage)) as Box<dyn MadeDisk>) })
    }
}

impl MadeDisk for Double {
    fn open(&self, read_only: bool) -> BlockFuture<'_, Arc<Node>> {
        let options = NodeOptions {
            discard_unmap: true,
            ..NodeOptions::default()
        };
        let driver = Box::new(self.0.clone());
        let in_flight = Arc::<InFlight>::default();
        let node = Node::new("double".to_owned(), driver, options, read_only, in_flight);
        Box::pin(async { Ok(node) })
    }

    fn verify(&self, content: &[u8]) {
        assert!(self.0.content() == content);
    }
}

#[test]
fn the_double_passes() {
    check("double", Engine::Threads, Doubles { yielding: None });
}

#[test]
fn the_double_that_gives_way_passes() {
    let yielding = Some(5);
    check(
        "double that gives way",
        Engine::Threads,
        Doubles { yielding },
    );
}

/// What a faulty driver does wrong, and the case that must find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    FreshNoise,
    LosesTheLastByte,
    ReadsAtMostAMebibyte,
    ZeroesHalfAndRefuses,
    DiscardsWholePages,
    ForgetsWhenClosed,
    SaysAllIsZero,
    MapsWritesToZeroes,
    ShowsWhatWasCutOff,
    TearsBlocks,
    ReadsModifiesWrites,
    ZeroesBeforeItWrites,
    ResizesInTwoSteps,
}

const FOUND_BY: [(Fault, &str); 15] = [
    (Fault::FreshNoise, "a fresh disk reads as fresh"),
    (
        Fault::LosesTheLastByte,
        "odd offsets, odd lengths and all borders",
    ),
    (Fault::LosesTheLastByte, "a random run against a model"),
    (Fault::ReadsAtMostAMebibyte, "a whole disk in one request"),
    (Fault::ZeroesHalfAndRefuses, "zeroes with every flag"),
    (Fault::DiscardsWholePages, "discards change nothing outside"),
    (Fault::ForgetsWhenClosed, "flushed, closed and opened again"),
    (
        Fault::SaysAllIsZero,
        "the status covers the disk and tells the truth",
    ),
    (Fault::SaysAllIsZero, "extents tell the truth"),
    (Fault::MapsWritesToZeroes, "mappings lead to what is read"),
    (Fault::ShowsWhatWasCutOff, "resizing both ways"),
    (Fault::TearsBlocks, "overlapping writes end as one of them"),
    (
        Fault::ReadsModifiesWrites,
        "neighbouring writes do not lose each other's bytes",
    ),
    (
        Fault::ZeroesBeforeItWrites,
        "dropped requests change nothing but their range",
    ),
    (
        Fault::ResizesInTwoSteps,
        "dropped resizes leave one of the two lengths",
    ),
];

#[test]
fn the_table_finds_what_is_wrong() {
    for (fault, name) in FOUND_BY {
        let case = cases().into_iter().find(|case| case.name == name).unwrap();
        let maker: Arc<dyn DiskMaker> = Arc::new(FaultyDisks(fault));
        let disk = format!("{fault:?}, which is to fail");
        assert!(
            !passes(case, &disk, Engine::Threads, &maker),
            "{name} does not find {fault:?}"
        );
    }
}

struct FaultyDisks(Fault);

struct FaultyDisk(Faulty);

#[derive(Clone)]
struct Faulty {
    inner: Storage,
    fault: Fault,
}

impl DiskMaker for FaultyDisks {
    fn make(&self, size: u64) -> BlockFuture<'_, Box<dyn MadeDisk>> {
        let byte = u8::from(self.0 == Fault::FreshNoise);
        let inner = Storage::new(vec![byte; size as usize]);
        let disk = FaultyDisk(Faulty {
            inner,
            fault: self.0,
        });
        Box::pin(async { Ok(Box::new(disk) as Box<dyn MadeDisk>) })
    }
}

impl MadeDisk for FaultyDisk {
    fn open(&self, read_only: bool) -> BlockFuture<'_, Arc<Node>> {
        let options = NodeOptions {
            discard_unmap: true,
            ..NodeOptions::default()
        };
        let driver = Box::new(self.0.clone());
        let in_flight = Arc::<InFlight>::default();
        let node = Node::new("faulty".to_owned(), driver, options, read_only, in_flight);
        Box::pin(async { Ok(node) })
    }
}

impl Faulty {
    async fn put(&self, offset: u64, data: &[u8]) -> Result<(), BlockError> {
        let data = IoBytes::copy_of(data);
        self.inner.write(offset, data, WriteFlags::empty()).await
    }

    async fn write_wrongly(&self, offset: u64, data: IoBytes) -> Result<(), BlockError> {
        match self.fault {
            Fault::LosesTheLastByte if data.len() % 2 == 1 => {
                self.put(offset, &data[..data.len() - 1]).await
            }
            Fault::TearsBlocks => {
                for (number, part) in data.chunks(100).enumerate() {
                    self.put(offset + number as u64 * 100, part).await?;
                    host_io::yield_now().await;
                }
                Ok(())
            }
            Fault::ReadsModifiesWrites | Fault::ZeroesBeforeItWrites => {
                let end = offset + data.len() as u64;
                let start = offset / 512 * 512;
                let stop = end.next_multiple_of(512).min(self.inner.length());
                let buf = IoBuf::with_len((stop - start) as usize);
                let mut whole = self.inner.read(start, buf).await?.to_vec();
                if self.fault == Fault::ZeroesBeforeItWrites {
                    self.put(start, &vec![0; whole.len()]).await?;
                }
                host_io::yield_now().await;
                whole[(offset - start) as usize..][..data.len()].copy_from_slice(&data);
                self.put(start, &whole).await
            }
            _ => self.inner.write(offset, data, WriteFlags::empty()).await,
        }
    }
}

impl Driver for Faulty {
    fn name(&self) -> &'static str {
        "faulty"
    }

    fn length(&self) -> u64 {
        self.inner.length()
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn filename(&self) -> String {
        self.inner.filename()
    }

    fn info(&self) -> DriverInfo {
        self.inner.info()
    }

    fn children(&self) -> Vec<Arc<Edge>> {
        Vec::new()
    }

    fn storage_edge(&self) -> Option<&Edge> {
        None
    }

    fn mappings_are_fixed(&self) -> bool {
        true
    }

    fn child_permissions(&self, _edge: &Edge, asked: Permissions) -> Permissions {
        asked
    }

    fn permissions_wanted(&self, _wanted: Permissions) -> Result<(), String> {
        Ok(())
    }

    fn permissions_settled(&self, _settled: Permissions) {}

    fn map_now(&self, access: Access, _offset: u64, len: u64) -> Mapping<'_> {
        // Only a driver that is asked to write directly would notice.
        if self.fault == Fault::MapsWritesToZeroes && access == Access::Write {
            return Mapping::Zero { len };
        }
        Mapping::Ask
    }

    fn read(&self, offset: u64, buf: IoBuf) -> BlockFuture<'_, IoBuf> {
        Box::pin(async move {
            let mut buf = self.inner.read(offset, buf).await?;
            if self.fault == Fault::ReadsAtMostAMebibyte && buf.len() > 1 << 20 {
                buf[1 << 20..].fill(0);
            }
            Ok(buf)
        })
    }

    fn write(&self, offset: u64, data: IoBytes, _flags: WriteFlags) -> BlockFuture<'_, ()> {
        Box::pin(self.write_wrongly(offset, data))
    }

    fn write_zeroes(&self, offset: u64, len: u64, flags: WriteFlags) -> BlockFuture<'_, ()> {
        Box::pin(async move {
            let refuses = flags.contains(WriteFlags::NO_FALLBACK);
            if self.fault == Fault::ZeroesHalfAndRefuses && refuses {
                self.inner.write_zeroes(offset, len / 2, flags).await?;
                let operation = BlockOperation::WriteZeroes;
                return Err(BlockError::not_supported(operation, "too slow"));
            }
            self.inner.write_zeroes(offset, len, flags).await
        })
    }

    fn discard(&self, offset: u64, len: u64) -> BlockFuture<'_, ()> {
        let (mut start, mut end) = (offset, offset + len);
        if self.fault == Fault::DiscardsWholePages {
            start = start / 4096 * 4096;
            end = end.next_multiple_of(4096).min(self.length());
        }
        self.inner.discard(start, end - start)
    }

    fn flush(&self) -> BlockFuture<'_, ()> {
        self.inner.flush()
    }

    fn extent(&self, offset: u64, len: u64) -> BlockFuture<'_, Extent> {
        Box::pin(async move {
            let mut extent = self.inner.extent(offset, len).await?;
            if self.fault == Fault::SaysAllIsZero {
                extent.kind = ExtentKind::Zero {
                    allocated: true,
                    offset: None,
                };
            }
            Ok(extent)
        })
    }

    fn resize(&self, length: u64, exact: bool, how: Preallocation) -> BlockFuture<'_, ()> {
        Box::pin(async move {
            let before = self.inner.content();
            if self.fault == Fault::ResizesInTwoSteps {
                self.inner.resize(0, exact, how).await?;
                host_io::yield_now().await;
            }
            self.inner.resize(length, exact, how).await?;
            if self.fault == Fault::ResizesInTwoSteps {
                let kept = before.len().min(length as usize);
                self.put(0, &before[..kept]).await?;
            }
            if self.fault == Fault::ShowsWhatWasCutOff && length > before.len() as u64 {
                self.put(before.len() as u64, &[7]).await?;
            }
            Ok(())
        })
    }

    fn activate(&self) -> BlockFuture<'_, ()> {
        self.inner.activate()
    }

    fn close(&self) -> BlockFuture<'_, ()> {
        Box::pin(async move {
            if self.fault == Fault::ForgetsWhenClosed {
                self.put(0, &[0]).await?;
            }
            Ok(())
        })
    }
}
