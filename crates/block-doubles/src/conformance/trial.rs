//! A disk under trial, and a model of what it must hold.

use std::sync::Arc;

use block_graph::{
    BlockBackend, BlockError, BlockErrorKind, Graph, Node, Permission, Permissions, Preallocation,
    WriteFlags,
};
use host_io::{IoBuf, IoBytes};

use super::{Abilities, DiskMaker, MadeDisk};
use crate::Rng;

/// An open disk with a user on top.
pub(super) struct Opened {
    graph: Graph,
    pub node: Arc<Node>,
    pub backend: Arc<BlockBackend>,
}

impl Opened {
    async fn new(disk: &dyn MadeDisk, read_only: bool) -> Self {
        let node = disk.open(read_only).await.unwrap();
        assert_eq!(node.is_read_only(), read_only);
        let mut required = Permission::CONSISTENT_READ;
        if !read_only {
            required |= Permission::WRITE | Permission::RESIZE;
        }
        let asked = Permissions {
            required,
            shared: Permission::CONSISTENT_READ,
        };
        let graph = Graph::default();
        let backend = graph.attach_backend("the trial", &node, asked).unwrap();
        if !read_only {
            node.driver().activate().await.unwrap();
        }
        Self {
            graph,
            node,
            backend,
        }
    }

    async fn close(self) {
        self.backend.idle().await;
        self.graph.detach_backend(&self.backend);
        close_with_all_below(&self.graph, &self.node).await;
    }
}

/// Parents before their children.
async fn close_with_all_below(graph: &Graph, node: &Arc<Node>) {
    node.in_flight().idle().await;
    node.driver().close().await.unwrap();
    for edge in node.driver().children() {
        let below = edge.node_arc();
        graph.detach(&edge);
        Box::pin(close_with_all_below(graph, &below)).await;
    }
}

/// A disk, open, and what it must hold.
pub(super) struct Trial {
    pub abilities: Abilities,
    maker: Arc<dyn DiskMaker>,
    disk: Box<dyn MadeDisk>,
    open: Option<Opened>,
    /// What a reader must find.
    pub content: Vec<u8>,
    pub rng: Rng,
}

impl Trial {
    /// A fresh disk of `size` bytes, open for writing.
    pub async fn begin(maker: Arc<dyn DiskMaker>, size: u64) -> Self {
        let disk = maker.make(size).await.unwrap();
        let mut content = maker.fresh_content(size);
        content.truncate(size as usize);
        assert_eq!(content.len() as u64, size);
        let open = Opened::new(&*disk, false).await;
        let abilities = maker.abilities();
        assert_eq!(open.backend.length(), size, "length of a fresh disk");
        Self {
            abilities,
            maker,
            disk,
            open: Some(open),
            content,
            rng: Rng::new(1),
        }
    }

    pub fn opened(&self) -> &Opened {
        self.open.as_ref().unwrap()
    }

    pub fn node(&self) -> &Arc<Node> {
        &self.opened().node
    }

    pub fn backend(&self) -> &Arc<BlockBackend> {
        &self.opened().backend
    }

    pub fn len(&self) -> u64 {
        self.content.len() as u64
    }

    /// Closes the disk, looks behind it, and opens it again.
    pub async fn reopen(&mut self, read_only: bool) {
        self.close().await;
        self.open = Some(Opened::new(&*self.disk, read_only).await);
        self.check_all().await;
    }

    async fn close(&mut self) {
        let open = self.open.take().unwrap();
        open.close().await;
        self.disk.verify(&self.content);
    }

    /// The last look: at the whole disk, and once more after closing and opening.
    pub async fn end(mut self) {
        self.check_all().await;
        self.reopen(true).await;
        self.close().await;
    }

    /// What is written stays, or not, as the disk is.
    fn keep(&mut self, at: u64, data: &[u8]) {
        if self.abilities.keeps_data {
            let at = at as usize;
            self.content[at..at + data.len()].copy_from_slice(data);
        }
    }

    /// Takes what was found in a range of which more than one content would be right.
    pub async fn adopt(&mut self, at: u64, len: u64) -> Vec<u8> {
        let found = self.read(at, len).await;
        let again = self.read(at, len).await;
        assert!(found == again, "{len} bytes at {at} do not hold still");
        if self.abilities.keeps_data {
            self.keep(at, &found);
        } else {
            self.compare(at, &found);
        }
        found
    }

    pub async fn read(&self, at: u64, len: u64) -> Vec<u8> {
        read(self.backend(), at, len).await
    }

    pub fn compare(&self, at: u64, found: &[u8]) {
        let expected = &self.content[at as usize..][..found.len()];
        if found == expected {
            return;
        }
        let first = found.iter().zip(expected).position(|(f, e)| f != e);
        let first = first.unwrap();
        let wrong = found.iter().zip(expected).filter(|(f, e)| f != e).count();
        panic!(
            "reading {} bytes at {at:#x}: {wrong} are wrong, the first at {:#x}: {:#04x} and not \
             {:#04x}",
            found.len(),
            at as usize + first,
            found[first],
            expected[first]
        );
    }

    /// Reads a range and what lies around it.
    pub async fn check_around(&self, at: u64, len: u64) {
        let from = at.saturating_sub(9000);
        let to = (at + len + 9000).min(self.len());
        self.compare(from, &self.read(from, to - from).await);
    }

    pub async fn check_all(&self) {
        assert_eq!(self.backend().length(), self.len(), "length");
        self.compare(0, &self.read(0, self.len()).await);
    }

    pub async fn write(&mut self, at: u64, data: &[u8], flags: WriteFlags) {
        let done = self.backend().write(at, IoBytes::copy_of(data), flags);
        done.await
            .unwrap_or_else(|error| panic!("write of {} at {at}: {error}", data.len()));
        self.keep(at, data);
    }

    /// Writes bytes that are found nowhere else.
    pub async fn write_noise(&mut self, at: u64, len: u64) {
        let data = noise(self.rng.next_u64(), len);
        self.write(at, &data, WriteFlags::empty()).await;
    }

    /// Says whether the disk did it: without a fallback it may say no.
    pub async fn zero(&mut self, at: u64, len: u64, flags: WriteFlags) -> bool {
        match self.backend().write_zeroes(at, len, flags).await {
            Ok(()) => {
                self.keep(at, &vec![0; len as usize]);
                true
            }
            Err(error) => {
                let may_refuse = flags.contains(WriteFlags::NO_FALLBACK);
                assert!(may_refuse, "zeroes of {len} at {at}: {error}");
                assert_eq!(error.kind, BlockErrorKind::NotSupported, "{error}");
                assert_eq!(error.errno, 95, "ENOTSUP");
                false
            }
        }
    }

    /// A discarded byte is as before, or zero.
    pub async fn discard(&mut self, at: u64, len: u64) {
        self.backend().discard(at, len).await.unwrap();
        let before = self.content[at as usize..][..len as usize].to_vec();
        let found = self.adopt(at, len).await;
        let good = |(found, before): (&u8, &u8)| *found == 0 || found == before;
        let wrong = found.iter().zip(&before).position(|pair| !good(pair));
        assert_eq!(wrong, None, "discard of {len} at {at} changed a byte");
    }

    /// Grown bytes are zero, also where there was something before.
    pub async fn resize(&mut self, length: u64) {
        let how = Preallocation::Off;
        let result = self.backend().resize(length, true, how).await;
        if self.abilities.resizable {
            result.unwrap_or_else(|error| panic!("resize to {length}: {error}"));
            self.content.resize(length as usize, 0);
        } else {
            let kind = result.map_err(|error| error.kind);
            assert_eq!(kind, Err(BlockErrorKind::NotSupported), "resize");
        }
        assert_eq!(self.backend().length(), self.len(), "length after resize");
    }

    /// Data, zeroes, holes and untouched ranges side by side, at even and odd places.
    pub async fn furnish(&mut self) {
        for (at, len) in [
            (0, 70_000),
            (100_001, 3),
            (131_072, 131_072),
            (1_000_000, 5_000),
            ((2 << 20) - 5_000, 10_000),
            (3 << 20, 300_000),
            (self.len() - 700, 700),
        ] {
            self.write_noise(at, len).await;
        }
        self.zero(8192, 4096, WriteFlags::empty()).await;
        self.zero(140_001, 30_000, WriteFlags::MAY_UNMAP).await;
        self.zero(1 << 20, 200_000, WriteFlags::empty()).await;
        self.discard(20_480, 16_384).await;
        self.discard((3 << 20) + 65_536, 131_072).await;
    }

    /// A fresh disk of the same kind and another size, in place of this one.
    pub async fn start_over(self, size: u64) -> Self {
        let maker = Arc::clone(&self.maker);
        self.end().await;
        Self::begin(maker, size).await
    }
}

pub(super) async fn read(backend: &BlockBackend, at: u64, len: u64) -> Vec<u8> {
    let buf = IoBuf::with_len(len as usize);
    let read = backend.read(at, buf).await;
    read.unwrap_or_else(|error| panic!("read of {len} at {at}: {error}"))
        .to_vec()
}

/// Bytes that are neither zero nor alike.
pub(super) fn noise(seed: u64, len: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let mut bytes = Vec::with_capacity(len as usize + 8);
    while (bytes.len() as u64) < len {
        let word = rng.next_u64() | 0x0101_0101_0101_0101;
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.truncate(len as usize);
    bytes
}

pub(super) fn kind_of<T>(result: Result<T, BlockError>) -> Option<BlockErrorKind> {
    result.err().map(|error| error.kind)
}
