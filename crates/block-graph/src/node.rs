//! A node of the block graph, and the shared layer that does the I/O its driver maps out.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use host_io::{File, IoBuf, IoBytes};
use parking_lot::Mutex;

use crate::driver::{Access, Driver, Extent, ExtentKind, Mapping, Preallocation, WriteFlags};
use crate::edge::Edge;
use crate::error::{BlockError, BlockOperation};
use crate::in_flight::InFlight;

/// The longest a node may become, in bytes, as in QEMU.
pub const MAX_LENGTH_BYTES: u64 = (1 << 63) - (1 << 30);

/// How many drivers may lie upon each other on the fast path; deeper chains go the slow way.
const MAX_MAPPED_DEPTH: usize = 16;

/// The options a node was opened with that queries show again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeOptions {
    /// Past the host's page cache.
    pub cache_direct: bool,
    /// Flushes are ignored.
    pub cache_no_flush: bool,
    /// `detect-zeroes`: zeroes that are written become write-zeroes, and with `unmap` holes.
    pub detect_zeroes: DetectZeroes,
    /// Lets others do what they like with the children; for reading only.
    pub force_share: bool,
    /// Whether discards are passed on.
    pub discard_unmap: bool,
    /// The options as the client gave them, for `x-debug-query-block-graph` and reopening.
    pub given: serde_json::Value,
}

/// What happens to writes of zeroes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DetectZeroes {
    /// They are written like anything else.
    #[default]
    Off,
    /// They become write-zeroes.
    On,
    /// They become write-zeroes that may leave holes.
    Unmap,
}

/// One node: a name, a driver, and the requests under way.
pub struct Node {
    name: String,
    driver: Box<dyn Driver>,
    options: NodeOptions,
    read_only: AtomicBool,
    in_flight: Arc<InFlight>,
    parents: Mutex<Vec<Arc<Edge>>>,
    highest_written: AtomicU64,
}

/// Where a whole range lives after all mappings have been followed.
enum Place {
    File(File, u64),
    Zero,
}

impl Node {
    /// Makes a node; [`crate::Graph::insert`] gives it to the graph.
    ///
    /// `in_flight` is the counter that the driver may have been given too, to wait for grace
    /// periods.
    pub fn new(
        name: String,
        driver: Box<dyn Driver>,
        options: NodeOptions,
        read_only: bool,
        in_flight: Arc<InFlight>,
    ) -> Arc<Self> {
        Arc::new(Self {
            name,
            driver,
            options,
            read_only: AtomicBool::new(read_only),
            in_flight,
            parents: Mutex::new(Vec::new()),
            highest_written: AtomicU64::new(0),
        })
    }

    /// Its node name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its driver.
    pub fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    /// The options it was opened with.
    pub fn options(&self) -> &NodeOptions {
        &self.options
    }

    /// Whether writing is refused.
    pub fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Acquire)
    }

    /// The requests under way at this node.
    pub fn in_flight(&self) -> &Arc<InFlight> {
        &self.in_flight
    }

    /// Length in bytes.
    pub fn length(&self) -> u64 {
        self.driver.length()
    }

    /// One past the highest byte that was written since it was opened.
    pub fn highest_written(&self) -> u64 {
        self.highest_written.load(Ordering::Relaxed)
    }

    /// The edges that lead here.
    pub fn parents(&self) -> Vec<Arc<Edge>> {
        self.parents.lock().clone()
    }

    /// Whether `target` is this node or lies below it.
    pub fn reaches(&self, target: &Arc<Self>) -> bool {
        std::ptr::eq(self, &**target)
            || self
                .driver
                .children()
                .iter()
                .any(|edge| edge.node_arc().reaches(target))
    }

    /// Takes over what is told of the node that this one replaces.
    pub fn follow(&self, before: &Self) {
        self.highest_written
            .fetch_max(before.highest_written(), Ordering::Relaxed);
    }

    pub(crate) fn add_parent(&self, edge: Arc<Edge>) {
        self.parents.lock().push(edge);
    }

    pub(crate) fn take_parents(&self) -> Vec<Arc<Edge>> {
        std::mem::take(&mut *self.parents.lock())
    }

    pub(crate) fn set_parents(&self, parents: Vec<Arc<Edge>>) {
        *self.parents.lock() = parents;
    }

    pub(crate) fn remove_parent(&self, edge: &Edge) {
        self.parents
            .lock()
            .retain(|known| !std::ptr::eq(&**known, edge));
    }

    /// Fills `buf` with what lies at `offset`. Bytes behind the node's end read as zeroes.
    ///
    /// # Errors
    /// The host's, or the image's.
    pub async fn read(&self, offset: u64, buf: IoBuf) -> Result<IoBuf, BlockError> {
        if buf.is_empty() {
            return Ok(buf);
        }
        let under_way = self.in_flight.request();
        let result = match self.place_now(Access::Read, offset, buf.len() as u64) {
            Some(Place::File(file, at)) => read_file(&file, at, buf).await,
            Some(Place::Zero) => {
                let mut buf = buf;
                buf.fill(0);
                Ok(buf)
            }
            None => self.driver.read(offset, buf).await,
        };
        under_way.end();
        result
    }

    /// Stores `data` at `offset`.
    ///
    /// # Errors
    /// The host's, or the image's; what part of the data was stored is unknown then.
    pub async fn write(
        &self,
        offset: u64,
        data: IoBytes,
        flags: WriteFlags,
    ) -> Result<(), BlockError> {
        if self.is_read_only() {
            return Err(BlockError::read_only(BlockOperation::Write));
        }
        let under_way = self.in_flight.request();
        let end = offset.saturating_add(data.len() as u64);
        let written = self.write_counted(offset, data, flags).await;
        under_way.end();
        written?;
        self.highest_written.fetch_max(end, Ordering::Relaxed);
        if flags.contains(WriteFlags::FUA) {
            self.flush().await
        } else {
            Ok(())
        }
    }

    async fn write_counted(
        &self,
        offset: u64,
        data: IoBytes,
        flags: WriteFlags,
    ) -> Result<(), BlockError> {
        if data.is_empty() {
            return Ok(());
        }
        if self.options.detect_zeroes != DetectZeroes::Off && is_zero(&data) {
            let mut zero_flags = flags - WriteFlags::FUA;
            if self.options.detect_zeroes == DetectZeroes::Unmap {
                zero_flags |= WriteFlags::MAY_UNMAP;
            }
            return self
                .driver
                .write_zeroes(offset, data.len() as u64, zero_flags)
                .await;
        }
        let plain = !flags.intersects(WriteFlags::COMPRESSED);
        let place = if plain {
            self.place_now(Access::Write, offset, data.len() as u64)
        } else {
            None
        };
        match place {
            Some(Place::File(file, at)) => file
                .write_at(data, at)
                .await
                .map_err(|error| BlockError::host(BlockOperation::Write, &error)),
            _ => {
                self.driver
                    .write(offset, data, flags - WriteFlags::FUA)
                    .await
            }
        }
    }

    /// Makes `len` bytes from `offset` read as zeroes.
    ///
    /// # Errors
    /// As [`Node::write`]; `ENOTSUP` with `NO_FALLBACK` where that would mean writing them.
    pub async fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        flags: WriteFlags,
    ) -> Result<(), BlockError> {
        if self.is_read_only() {
            return Err(BlockError::read_only(BlockOperation::WriteZeroes));
        }
        if len > 0 {
            let _under_way = self.in_flight.request();
            let flags = if self.options.discard_unmap {
                flags
            } else {
                flags - WriteFlags::MAY_UNMAP
            };
            self.driver
                .write_zeroes(offset, len, flags - WriteFlags::FUA)
                .await?;
        }
        if flags.contains(WriteFlags::FUA) {
            self.flush().await
        } else {
            Ok(())
        }
    }

    /// Says that `len` bytes from `offset` are not needed any more. Does nothing on nodes that
    /// were opened without `discard=unmap`.
    ///
    /// # Errors
    /// The host's, or the image's.
    pub async fn discard(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        if self.is_read_only() {
            return Err(BlockError::read_only(BlockOperation::Discard));
        }
        if len == 0 || !self.options.discard_unmap {
            return Ok(());
        }
        let _under_way = self.in_flight.request();
        self.driver.discard(offset, len).await
    }

    /// Makes everything that was written durable.
    ///
    /// # Errors
    /// The host's. What was written since the last good flush must be taken as lost then.
    pub async fn flush(&self) -> Result<(), BlockError> {
        if self.options.cache_no_flush {
            return Ok(());
        }
        let _under_way = self.in_flight.request();
        self.driver.flush().await
    }

    /// Changes the length in bytes.
    ///
    /// # Errors
    /// The host's, or the image's; the length is as before then.
    pub async fn resize(
        &self,
        length: u64,
        exact: bool,
        how: Preallocation,
    ) -> Result<(), BlockError> {
        if self.is_read_only() {
            return Err(BlockError::read_only(BlockOperation::Resize));
        }
        let _under_way = self.in_flight.request();
        self.driver.resize(length, exact, how).await
    }

    /// What this layer says about a range that begins at `offset`, for at most `len` bytes.
    ///
    /// # Errors
    /// The host's, or the image's.
    pub async fn extent(&self, offset: u64, len: u64) -> Result<Extent, BlockError> {
        let _under_way = self.in_flight.request();
        self.driver.extent(offset, len).await
    }

    /// What a reader finds at `offset`, through all layers, for at most `len` bytes (at least 1).
    ///
    /// # Errors
    /// The host's, or the image's.
    pub async fn status(&self, offset: u64, len: u64) -> Result<BlockStatus, BlockError> {
        let mut held = None::<Arc<Node>>;
        let (mut offset, mut len, mut depth) = (offset, len, 1);
        loop {
            let node = held.as_deref().unwrap_or(self);
            let length = node.length();
            if offset >= length {
                return Ok(BlockStatus {
                    len,
                    data: false,
                    zero: true,
                    depth: 0,
                });
            }
            let asked = len.min(length - offset);
            let extent = node.extent(offset, asked).await?;
            len = extent.len.min(asked).max(1);
            let below = match extent.kind {
                ExtentKind::Zero { .. } => {
                    return Ok(BlockStatus {
                        len,
                        data: false,
                        zero: true,
                        depth,
                    });
                }
                ExtentKind::Data {
                    offset: at,
                    in_child,
                    ..
                } => {
                    return node.data_status(at.filter(|_| in_child), len, depth).await;
                }
                ExtentKind::InChild { offset: at } => {
                    offset = at;
                    node.driver.storage_edge()
                }
                ExtentKind::Unallocated => {
                    depth += 1;
                    node.driver.backing_edge()
                }
            };
            match below.map(Edge::node_arc) {
                Some(below) => held = Some(below),
                None => {
                    return Ok(BlockStatus {
                        len,
                        data: false,
                        zero: true,
                        depth: 0,
                    });
                }
            }
        }
    }

    /// Data of this layer: a hole in the child that stores it still reads as zeroes.
    async fn data_status(
        &self,
        at: Option<u64>,
        len: u64,
        depth: u32,
    ) -> Result<BlockStatus, BlockError> {
        let (Some(at), Some(edge)) = (at, self.driver.storage_edge()) else {
            return Ok(BlockStatus {
                len,
                data: true,
                zero: false,
                depth,
            });
        };
        let child = edge.node_arc();
        if at >= child.length() {
            return Ok(BlockStatus {
                len,
                data: true,
                zero: true,
                depth,
            });
        }
        let below = Box::pin(child.status(at, len)).await?;
        let len = below.len.min(len).max(1);
        Ok(BlockStatus {
            len,
            data: true,
            zero: below.zero,
            depth,
        })
    }

    /// Follows the mappings of all drivers down to a host file, if each answers at once and for
    /// the whole range.
    fn place_now(&self, access: Access, offset: u64, len: u64) -> Option<Place> {
        let mut held: Option<Arc<Node>> = None;
        let mut offset = offset;
        for _ in 0..MAX_MAPPED_DEPTH {
            let node = held.as_deref().unwrap_or(self);
            if access == Access::Write && node.is_read_only() {
                return None;
            }
            // What a lower format maps may move under this request, which only its own counter of
            // requests would hold off: it is asked through its own `read` and `write`.
            if held.is_some() && !node.driver.mappings_are_fixed() {
                return None;
            }
            let next = match node.driver.map_now(access, offset, len) {
                Mapping::Child {
                    edge,
                    offset: at,
                    len: covered,
                } if covered >= len => {
                    offset = at;
                    edge.node_arc()
                }
                Mapping::File {
                    file,
                    offset: at,
                    len: covered,
                } if covered >= len => {
                    return Some(Place::File(file.clone(), at));
                }
                Mapping::Zero { len: covered } if covered >= len && access == Access::Read => {
                    return Some(Place::Zero);
                }
                _ => return None,
            };
            held = Some(next);
        }
        None
    }
}

/// What a reader finds in a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockStatus {
    /// How many bytes from the asked offset this holds for.
    pub len: u64,
    /// Whether some layer stores data for it.
    pub data: bool,
    /// Whether it reads as zeroes.
    pub zero: bool,
    /// Which layer answers: 1 for the node itself, 2 for its backing node, ...; 0 for none.
    pub depth: u32,
}

/// Reads from a host file; what lies behind its end is zeroes.
async fn read_file(file: &File, offset: u64, buf: IoBuf) -> Result<IoBuf, BlockError> {
    let (result, mut buf) = file.read_at(buf, offset).await;
    match result {
        Ok(count) => {
            buf.zero_from(count);
            Ok(buf)
        }
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            buf.fill(0);
            Ok(buf)
        }
        Err(error) => Err(BlockError::host(BlockOperation::Read, &error)),
    }
}

/// Whether all bytes are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    let chunks = bytes.chunks_exact(32);
    chunks.remainder().iter().all(|&byte| byte == 0) && chunks.into_iter().all(|c| c == [0; 32])
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("name", &self.name)
            .field("driver", &self.driver.name())
            .finish_non_exhaustive()
    }
}
