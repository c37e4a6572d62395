//! Opening images over doubles.

use std::sync::Arc;

use block_doubles::{Rng, Storage};
use block_graph::{
    BlockError, BlockEvents, ChildRole, Edge, Graph, ImageCorrupted, InFlight, Node, NodeOptions,
    ParentName, Permissions, Preallocation,
};
use block_qcow2::{
    Children, CompressionType, CreateOptions, ImageHeader, OpenOptions, Qcow2, create,
};
use host_io::{Engine, Executor, IoBuf, IoBytes};
use parking_lot::Mutex;

/// Runs a future to its end on an executor of its own.
pub fn run<T: Send + 'static, F: Future<Output = T> + 'static>(
    make: impl FnOnce() -> F + Send + 'static,
) -> T {
    let executor = Executor::start("test", Engine::Threads).unwrap();
    executor.handle().spawn(make).wait().unwrap()
}

/// Keeps the events.
#[derive(Default)]
pub struct Events(pub Mutex<Vec<ImageCorrupted>>);

impl BlockEvents for Events {
    fn image_corrupted(&self, event: ImageCorrupted) {
        self.0.lock().push(event);
    }
}

pub fn edge(storage: &Storage, name: &str, role: ChildRole) -> Arc<Edge> {
    let options = NodeOptions {
        discard_unmap: true,
        ..NodeOptions::default()
    };
    let driver = Box::new(storage.clone());
    let node = Node::new(name.into(), driver, options, false, Arc::default());
    let parent = ParentName::Node("image".into());
    Graph::default()
        .attach(parent, name, role, &node, Permissions::NONE)
        .unwrap()
}

/// Where an image's parts are.
#[derive(Clone)]
pub struct Disk {
    pub file: Storage,
    pub data: Option<Storage>,
    pub backing: Option<Storage>,
}

impl Disk {
    pub fn of(image: Vec<u8>) -> Self {
        Self {
            file: Storage::new(image),
            data: None,
            backing: None,
        }
    }

    pub async fn open_driver(
        &self,
        options: OpenOptions,
        events: Arc<Events>,
        in_flight: Arc<InFlight>,
    ) -> Result<Qcow2, BlockError> {
        let file = edge(&self.file, "file", ChildRole::Image);
        let header = ImageHeader::read(&file).await?;
        let children = Children {
            file,
            data_file: self
                .data
                .as_ref()
                .filter(|_| header.needs_data_file())
                .map(|data| edge(data, "data-file", ChildRole::Data)),
            backing: self
                .backing
                .as_ref()
                .map(|backing| edge(backing, "backing", ChildRole::Backing)),
        };
        Qcow2::open(header, children, options, "image", in_flight, events).await
    }

    pub async fn open_with(
        &self,
        options: OpenOptions,
        events: Arc<Events>,
    ) -> Result<Arc<Node>, BlockError> {
        let node = self.open_inactive(options, events).await?;
        if !node.is_read_only() {
            node.driver().activate().await?;
        }
        Ok(node)
    }

    /// Opens the image without marking it as in use.
    pub async fn open_inactive(
        &self,
        options: OpenOptions,
        events: Arc<Events>,
    ) -> Result<Arc<Node>, BlockError> {
        let in_flight = Arc::new(InFlight::default());
        let read_only = options.read_only;
        let driver = self
            .open_driver(options, events, Arc::clone(&in_flight))
            .await?;
        let node_options = NodeOptions {
            discard_unmap: true,
            ..NodeOptions::default()
        };
        let node = Node::new(
            "image".into(),
            Box::new(driver),
            node_options,
            read_only,
            in_flight,
        );
        Ok(node)
    }

    /// Opens the image over a node.
    pub async fn open_over(&self, below: Arc<Node>) -> Arc<Node> {
        let file = edge(&self.file, "file", ChildRole::Image);
        let header = ImageHeader::read(&file).await.unwrap();
        let backing = Graph::default()
            .attach(
                ParentName::Node("image".into()),
                "backing",
                ChildRole::Backing,
                &below,
                Permissions::NONE,
            )
            .unwrap();
        let children = Children {
            file,
            data_file: None,
            backing: Some(backing),
        };
        let in_flight = Arc::new(InFlight::default());
        let events = Arc::new(Events::default());
        let (shared, options) = (Arc::clone(&in_flight), small_caches());
        let driver = Qcow2::open(header, children, options, "over", shared, events)
            .await
            .unwrap();
        let options = NodeOptions::default();
        let node = Node::new("over".into(), Box::new(driver), options, false, in_flight);
        node.driver().activate().await.unwrap();
        node
    }

    pub async fn open(&self) -> Result<Arc<Node>, BlockError> {
        self.open_with(small_caches(), Arc::default()).await
    }
}

/// Caches so small that everything is evicted all the time.
pub fn small_caches() -> OpenOptions {
    OpenOptions {
        l2_cache_size: Some(4096),
        l2_cache_entry_size: Some(512),
        refcount_cache_size: Some(1024),
        ..OpenOptions::default()
    }
}

pub async fn read(node: &Node, offset: u64, len: usize) -> Vec<u8> {
    node.read(offset, IoBuf::with_len(len))
        .await
        .unwrap()
        .to_vec()
}

pub fn bytes(content: &[u8]) -> IoBytes {
    IoBytes::copy_of(content)
}

/// One kind of image.
#[derive(Clone, Debug)]
pub struct Variant {
    pub version: u32,
    pub cluster_size: u64,
    pub refcount_bits: u64,
    pub extended_l2: bool,
    pub compression: CompressionType,
    pub data_file: Option<bool>,
    pub backing_len: Option<usize>,
    pub lazy: bool,
    pub preallocation: Preallocation,
    pub size: u64,
}

impl Default for Variant {
    fn default() -> Self {
        Self {
            version: 3,
            cluster_size: 4096,
            refcount_bits: 16,
            extended_l2: false,
            compression: CompressionType::Zlib,
            data_file: None,
            backing_len: None,
            lazy: false,
            preallocation: Preallocation::Off,
            size: 600 << 10,
        }
    }
}

impl Variant {
    pub fn options(&self) -> CreateOptions {
        CreateOptions {
            version: self.version,
            cluster_size: self.cluster_size,
            refcount_bits: self.refcount_bits,
            extended_l2: self.extended_l2,
            compression_type: self.compression,
            data_file_name: self.data_file.map(|_| "data.raw".to_owned()),
            data_file_raw: self.data_file == Some(true),
            backing_file: self.backing_len.map(|_| "backing.raw".to_owned()),
            backing_format: self.backing_len.map(|_| "raw".to_owned()),
            lazy_refcounts: self.lazy,
            preallocation: self.preallocation,
            ..CreateOptions::new(self.size)
        }
    }

    pub async fn create(&self) -> Disk {
        let disk = Disk {
            file: Storage::new(vec![0xee; 3000]),
            data: self.data_file.map(|_| Storage::new(Vec::new())),
            backing: self.backing_len.map(|len| Storage::new(noise(7, len))),
        };
        let file = edge(&disk.file, "file", ChildRole::Image);
        let data = disk
            .data
            .as_ref()
            .map(|data| edge(data, "data-file", ChildRole::Data));
        create(&file, data.as_ref(), &self.options()).await.unwrap();
        disk
    }

    /// What a guest reads of a new image.
    pub fn fresh_content(&self) -> Vec<u8> {
        let mut content = vec![0; self.size as usize];
        if let Some(len) = self.backing_len {
            let backing = noise(7, len);
            let there = backing.len().min(content.len());
            content[..there].copy_from_slice(&backing[..there]);
        }
        content
    }
}

/// Every kind of image that differs in a way that matters, small.
pub fn variants() -> Vec<Variant> {
    let base = Variant::default;
    let mut list = vec![
        base(),
        Variant {
            version: 2,
            ..base()
        },
        Variant {
            version: 2,
            backing_len: Some(300_000),
            ..base()
        },
        Variant {
            backing_len: Some(300_000),
            ..base()
        },
        Variant {
            backing_len: Some(900_000),
            cluster_size: 65536,
            ..base()
        },
        Variant {
            extended_l2: true,
            cluster_size: 16384,
            ..base()
        },
        Variant {
            extended_l2: true,
            cluster_size: 65536,
            backing_len: Some(400_000),
            compression: CompressionType::Zstd,
            ..base()
        },
        Variant {
            compression: CompressionType::Zstd,
            cluster_size: 8192,
            ..base()
        },
        Variant {
            data_file: Some(false),
            ..base()
        },
        Variant {
            data_file: Some(true),
            extended_l2: true,
            cluster_size: 16384,
            ..base()
        },
        Variant {
            data_file: Some(false),
            backing_len: Some(500_000),
            ..base()
        },
        Variant {
            lazy: true,
            ..base()
        },
        Variant {
            preallocation: Preallocation::Metadata,
            ..base()
        },
        Variant {
            cluster_size: 2 << 20,
            size: 5 << 20,
            ..base()
        },
    ];
    for refcount_bits in [1, 2, 4, 8, 32, 64] {
        list.push(Variant {
            refcount_bits,
            cluster_size: 512,
            ..base()
        });
    }
    list
}

/// Bytes that do not compress.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    (0..len).map(|_| rng.next_u64() as u8 | 1).collect()
}
