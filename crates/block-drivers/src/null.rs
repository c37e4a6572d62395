//! `null-co` and `null-aio`: nothing behind them. Reads give zeroes, writes vanish.

use std::sync::Arc;
use std::time::Duration;

use block_graph::{
    Access, BlockError, BlockFuture, BlockOperation, Driver, DriverInfo, Edge, Extent, ExtentKind,
    Limits, Mapping, Permissions, Preallocation, WriteFlags,
};
use host_io::{IoBuf, IoBytes};

/// How a null node behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NullOptions {
    /// `null-co` or `null-aio`; the two differ in name only.
    pub name: &'static str,
    /// Length in bytes; QEMU's default is 1 GiB.
    pub size: u64,
    /// How long each request takes, in nanoseconds.
    pub latency_ns: u64,
    /// Whether allocation queries say that all reads as zeroes.
    pub read_zeroes: bool,
}

impl NullOptions {
    /// Length in bytes where none is given: 1 GiB.
    pub const DEFAULT_SIZE: u64 = 1 << 30;
}

/// A null node. Unlike QEMU's, reads give zeroes whether or not `read-zeroes` is set: memory
/// that somebody else used never reaches a reader.
pub struct NullDriver {
    options: NullOptions,
}

impl NullDriver {
    /// A null node with these options.
    pub fn new(options: NullOptions) -> Self {
        Self { options }
    }

    async fn latency(&self) {
        if self.options.latency_ns > 0 {
            host_io::sleep(Duration::from_nanos(self.options.latency_ns)).await;
        }
    }

    fn take_time(&self) -> BlockFuture<'_, ()> {
        Box::pin(async {
            self.latency().await;
            Ok(())
        })
    }
}

impl Driver for NullDriver {
    fn name(&self) -> &'static str {
        self.options.name
    }

    fn length(&self) -> u64 {
        self.options.size
    }

    fn limits(&self) -> Limits {
        Limits::default()
    }

    fn filename(&self) -> String {
        let NullOptions {
            name,
            size,
            read_zeroes,
            ..
        } = &self.options;
        let mut told = serde_json::Map::new();
        if *size != NullOptions::DEFAULT_SIZE {
            told.insert("size".to_owned(), (*size).into());
        }
        if *read_zeroes {
            told.insert("read-zeroes".to_owned(), true.into());
        }
        if told.is_empty() {
            return format!("{name}://");
        }
        told.insert("driver".to_owned(), (*name).into());
        format!("json:{}", serde_json::Value::Object(told))
    }

    fn info(&self) -> DriverInfo {
        DriverInfo {
            allocated_bytes: Some(0),
            ..DriverInfo::default()
        }
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
        if access == Access::Read && self.options.latency_ns == 0 {
            Mapping::Zero { len }
        } else {
            Mapping::Ask
        }
    }

    fn read(&self, _offset: u64, mut buf: IoBuf) -> BlockFuture<'_, IoBuf> {
        Box::pin(async move {
            self.latency().await;
            buf.fill(0);
            Ok(buf)
        })
    }

    fn write(&self, _offset: u64, _data: IoBytes, _flags: WriteFlags) -> BlockFuture<'_, ()> {
        self.take_time()
    }

    fn write_zeroes(&self, _offset: u64, _len: u64, _flags: WriteFlags) -> BlockFuture<'_, ()> {
        self.take_time()
    }

    fn discard(&self, _offset: u64, _len: u64) -> BlockFuture<'_, ()> {
        self.take_time()
    }

    fn flush(&self) -> BlockFuture<'_, ()> {
        self.take_time()
    }

    fn extent(&self, offset: u64, len: u64) -> BlockFuture<'_, Extent> {
        let kind = if self.options.read_zeroes {
            ExtentKind::Zero {
                allocated: true,
                offset: Some(offset),
            }
        } else {
            ExtentKind::Data {
                offset: Some(offset),
                in_child: false,
                compressed: false,
            }
        };
        Box::pin(async move { Ok(Extent { len, kind }) })
    }

    fn resize(&self, _length: u64, _exact: bool, _how: Preallocation) -> BlockFuture<'_, ()> {
        Box::pin(async {
            let message = "Image format driver does not support resize";
            Err(BlockError::not_supported(BlockOperation::Resize, message))
        })
    }

    fn activate(&self) -> BlockFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn close(&self) -> BlockFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }
}
