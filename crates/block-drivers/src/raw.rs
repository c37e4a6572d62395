//! `raw`: the child's bytes as they are, or a window of them.

use std::sync::Arc;

use block_graph::{
    Access, BlockError, BlockFuture, BlockOperation, Driver, DriverInfo, Edge, Extent, ExtentKind,
    JSON_PREFIX, Limits, Mapping, Permission, Permissions, Preallocation, WriteFlags, description,
};
use host_io::{IoBuf, IoBytes};

/// Which part of the child a raw node shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawOptions {
    /// First byte.
    pub offset: u64,
    /// Length in bytes; all that the child has where none is given.
    pub size: Option<u64>,
}

/// A raw node.
pub struct RawDriver {
    file: Arc<Edge>,
    options: RawOptions,
}

impl RawDriver {
    /// A raw node over `file`.
    ///
    /// # Errors
    /// When the window does not lie within the child.
    pub fn new(file: Arc<Edge>, options: RawOptions) -> Result<Self, BlockError> {
        let real = file.node().length();
        let invalid = |message: String| BlockError::invalid(BlockOperation::Open, message);
        if options.offset > real {
            return Err(invalid(format!(
                "Offset ({}) cannot be greater than size of the containing file ({real})",
                options.offset
            )));
        }
        if let Some(size) = options.size
            && size > real - options.offset
        {
            return Err(invalid(format!(
                "The sum of offset ({}) and size ({size}) has to be smaller or equal to the  \
                 actual size of the containing file ({real})",
                options.offset
            )));
        }
        Ok(Self { file, options })
    }

    fn shifted(&self, operation: BlockOperation, offset: u64) -> Result<u64, BlockError> {
        offset
            .checked_add(self.options.offset)
            .ok_or_else(|| BlockError::out_of_range(operation, offset, 0, self.length()))
    }

    /// Where a write of `len` bytes goes. With a window nothing is written behind its end.
    fn write_place(
        &self,
        operation: BlockOperation,
        offset: u64,
        len: u64,
    ) -> Result<u64, BlockError> {
        if let Some(size) = self.options.size {
            let fits = offset.checked_add(len).is_some_and(|end| end <= size);
            if !fits {
                let message = "the raw node's size limits what can be written".to_owned();
                return Err(BlockError::no_space(operation, message));
            }
        }
        self.shifted(operation, offset)
    }
}

impl Driver for RawDriver {
    fn name(&self) -> &'static str {
        "raw"
    }

    fn length(&self) -> u64 {
        let below = self
            .file
            .node()
            .length()
            .saturating_sub(self.options.offset);
        self.options.size.map_or(below, |size| size.min(below))
    }

    fn limits(&self) -> Limits {
        self.file.node().driver().limits()
    }

    fn filename(&self) -> String {
        let below = self.file.node();
        let name = below.driver().filename();
        let window = self.options != RawOptions::default();
        if !window && !name.starts_with(JSON_PREFIX) {
            return name;
        }
        let mut told = serde_json::json!({"driver": "raw", "file": description(&below)});
        if let Some(told) = told.as_object_mut() {
            if window && (self.options.offset != 0 || self.options.size.is_none()) {
                told.insert("offset".to_owned(), self.options.offset.into());
            }
            if let Some(size) = self.options.size {
                told.insert("size".to_owned(), size.into());
            }
        }
        format!("{JSON_PREFIX}{told}")
    }

    fn info(&self) -> DriverInfo {
        let below = self.file.node().driver().info();
        DriverInfo {
            dirty: below.dirty,
            allocated_bytes: below.allocated_bytes,
            ..DriverInfo::default()
        }
    }

    fn children(&self) -> Vec<Arc<Edge>> {
        vec![Arc::clone(&self.file)]
    }

    fn storage_edge(&self) -> Option<&Edge> {
        Some(&self.file)
    }

    fn mappings_are_fixed(&self) -> bool {
        true
    }

    fn child_permissions(&self, _edge: &Edge, asked: Permissions) -> Permissions {
        // Raw has no metadata: what its parents ask goes through as it is. A window must not
        // lose the ground below it.
        let mut asked = asked;
        if self.options != RawOptions::default() {
            asked.shared -= Permission::RESIZE;
        }
        asked
    }

    fn permissions_wanted(&self, _wanted: Permissions) -> Result<(), String> {
        Ok(())
    }

    fn permissions_settled(&self, _settled: Permissions) {}

    fn map_now(&self, _access: Access, offset: u64, len: u64) -> Mapping<'_> {
        let inside = offset
            .checked_add(len)
            .is_some_and(|end| end <= self.length());
        match offset.checked_add(self.options.offset) {
            Some(offset) if inside => Mapping::Child {
                edge: &self.file,
                offset,
                len,
            },
            _ => Mapping::Ask,
        }
    }

    fn read(&self, offset: u64, buf: IoBuf) -> BlockFuture<'_, IoBuf> {
        Box::pin(async move {
            let at = self.shifted(BlockOperation::Read, offset)?;
            self.file.node_arc().read(at, buf).await
        })
    }

    fn write(&self, offset: u64, data: IoBytes, flags: WriteFlags) -> BlockFuture<'_, ()> {
        Box::pin(async move {
            let at = self.write_place(BlockOperation::Write, offset, data.len() as u64)?;
            self.file.node_arc().write(at, data, flags).await
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, flags: WriteFlags) -> BlockFuture<'_, ()> {
        Box::pin(async move {
            let at = self.write_place(BlockOperation::WriteZeroes, offset, len)?;
            self.file.node_arc().write_zeroes(at, len, flags).await
        })
    }

    fn discard(&self, offset: u64, len: u64) -> BlockFuture<'_, ()> {
        Box::pin(async move {
            let at = self.write_place(BlockOperation::Discard, offset, len)?;
            self.file.node_arc().discard(at, len).await
        })
    }

    fn flush(&self) -> BlockFuture<'_, ()> {
        Box::pin(async move { self.file.node_arc().flush().await })
    }

    fn extent(&self, offset: u64, len: u64) -> BlockFuture<'_, Extent> {
        Box::pin(async move {
            let offset = self.shifted(BlockOperation::BlockStatus, offset)?;
            Ok(Extent {
                len,
                kind: ExtentKind::InChild { offset },
            })
        })
    }

    fn resize(&self, length: u64, exact: bool, how: Preallocation) -> BlockFuture<'_, ()> {
        Box::pin(async move {
            if self.options.size.is_some() {
                let message = "Cannot resize fixed-size raw disks";
                return Err(BlockError::not_supported(BlockOperation::Resize, message));
            }
            let Some(length) = length.checked_add(self.options.offset) else {
                let message = "Disk size too large for the chosen offset";
                return Err(BlockError::invalid(BlockOperation::Resize, message));
            };
            self.file.node_arc().resize(length, exact, how).await
        })
    }

    fn activate(&self) -> BlockFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn close(&self) -> BlockFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }
}
