//! From options to nodes: `blockdev-add`, the command line, and what images name themselves.
//!
//! Opening runs on the data side, since formats read their metadata there. Whatever was made on
//! the way is taken back when a later part fails.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use api::{
    BlockdevDetectZeroesOptions, BlockdevDiscardOptions, BlockdevDriver, BlockdevOptions,
    BlockdevOptionsBranch, BlockdevOptionsFile, BlockdevOptionsNull, BlockdevOptionsQcow2,
    BlockdevOptionsRaw, BlockdevRef, BlockdevRefOrNull, OnOffAuto, QmpError, ToQapi,
};
use block_drivers::{
    FileDriver, FileOptions, HostProtocol, NullDriver, NullOptions, RawDriver, RawOptions,
};
use block_graph::{
    BlockError, ChildRole, DetectZeroes, Driver, Edge, GraphError, InFlight, Node, NodeOptions,
    ParentName, Permission, Permissions, beside,
};
use block_qcow2::{Children, ImageHeader, Qcow2};

use crate::image_name::{ImageName, options_for, read_name};
use crate::qcow2_options::open_options;
use crate::service::Inner;

type LocalFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, QmpError>> + 'a>>;

/// How deep nodes may lie upon each other; a chain of backing files counts.
const MAX_DEPTH: usize = 256;

/// What children take over from their parents unless told otherwise.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inherited {
    read_only: bool,
    auto_read_only: bool,
    direct: bool,
    no_flush: bool,
    discard_unmap: bool,
    depth: usize,
}

impl Inherited {
    /// For nodes at the top.
    pub(crate) const TOP: Self = Self {
        read_only: false,
        auto_read_only: false,
        direct: false,
        no_flush: false,
        discard_unmap: false,
        depth: 0,
    };
}

/// What has been made so far.
#[derive(Default)]
struct Made {
    edges: Vec<Arc<Edge>>,
    nodes: Vec<Arc<Node>>,
}

/// Opens one node and what lies below it.
pub(crate) struct Opener {
    inner: Arc<Inner>,
    made: RefCell<Made>,
}

/// Opens the node that `options` describe, on the data side.
///
/// # Errors
/// Words for the client; nothing is left behind then.
pub(crate) async fn open_node(
    inner: Arc<Inner>,
    options: BlockdevOptions,
) -> Result<Arc<Node>, QmpError> {
    let opener = Opener {
        inner,
        made: RefCell::default(),
    };
    match opener.open(options, Inherited::TOP).await {
        Ok(node) => Ok(node),
        Err(error) => {
            opener.take_back().await;
            Err(error)
        }
    }
}

/// What a client reads of a block error.
pub(crate) fn words(error: &BlockError) -> QmpError {
    QmpError::generic(error.message.clone())
}

/// The words for a node that a reference names and that is not there.
pub(crate) fn graph_words(error: &GraphError) -> QmpError {
    QmpError::generic(match error {
        GraphError::NoSuchNode(name) => {
            format!("Cannot find device='{name}' nor node-name='{name}'")
        }
        other => other.to_string(),
    })
}

impl Opener {
    async fn take_back(&self) {
        let made = self.made.take();
        for edge in made.edges.iter().rev() {
            self.inner.graph.detach(edge);
        }
        for node in made.nodes.iter().rev() {
            // It was put in by us and nobody else can have come to use it.
            let _ = self.inner.graph.remove(node.name());
            let _ = node.driver().close().await;
        }
    }

    fn open<'a>(
        &'a self,
        options: BlockdevOptions,
        inherited: Inherited,
    ) -> LocalFuture<'a, Arc<Node>> {
        Box::pin(async move {
            if inherited.depth > MAX_DEPTH {
                return Err(QmpError::generic(format!(
                    "more than {MAX_DEPTH} images lie upon each other"
                )));
            }
            let graph = &self.inner.graph;
            let place = Cell::new(graph.reserve_place());
            let name = match &options.node_name {
                Some(name) => {
                    graph
                        .check_new_name(name)
                        .map_err(|error| graph_words(&error))?;
                    name.clone()
                }
                None => graph.auto_name(),
            };
            let settings = Settings::of(&options, inherited)?;
            let in_flight = Arc::<InFlight>::default();
            let driver = self
                .open_driver(&name, options, &settings, &in_flight, &place)
                .await?;
            let node = Node::new(
                name,
                driver,
                settings.node_options,
                settings.read_only,
                in_flight,
            );
            graph
                .insert(place.get(), Arc::clone(&node))
                .map_err(|error| graph_words(&error))?;
            self.made.borrow_mut().nodes.push(Arc::clone(&node));
            keep_caches_clean(&node, settings.clean_interval);
            if !node.is_read_only() {
                node.driver()
                    .activate()
                    .await
                    .map_err(|error| words(&error))?;
            }
            Ok(node)
        })
    }

    async fn open_driver(
        &self,
        name: &str,
        options: BlockdevOptions,
        settings: &Settings,
        in_flight: &Arc<InFlight>,
        place: &Cell<u64>,
    ) -> Result<Box<dyn Driver>, QmpError> {
        match options.driver {
            BlockdevOptionsBranch::File(file) => {
                self.open_file(HostProtocol::File, *file, settings).await
            }
            BlockdevOptionsBranch::HostDevice(file) => {
                self.open_file(HostProtocol::HostDevice, *file, settings)
                    .await
            }
            BlockdevOptionsBranch::NullCo(null) => open_null("null-co", &null),
            BlockdevOptionsBranch::NullAio(null) => open_null("null-aio", &null),
            BlockdevOptionsBranch::Raw(raw) => self.open_raw(name, *raw, settings, place).await,
            BlockdevOptionsBranch::Qcow2(qcow2) => {
                self.open_qcow2(name, *qcow2, settings, in_flight, place)
                    .await
            }
        }
    }

    /// Makes a node count as newer than its file, which was opened for it, and older than its data
    /// file and its backing: so QEMU lists them.
    fn come_after(&self, place: &Cell<u64>) {
        place.set(self.inner.graph.reserve_place());
    }

    async fn open_file(
        &self,
        protocol: HostProtocol,
        options: BlockdevOptionsFile,
        settings: &Settings,
    ) -> Result<Box<dyn Driver>, QmpError> {
        let file = file_options(protocol, options, settings)?;
        let files = Arc::clone(&self.inner.files);
        let opened = host_io::blocking(move || FileDriver::open(file, files)).await;
        let opened = opened.map_err(|error| QmpError::generic(error.to_string()))?;
        Ok(Box::new(opened.map_err(|error| words(&error))?))
    }

    async fn open_raw(
        &self,
        name: &str,
        options: BlockdevOptionsRaw,
        settings: &Settings,
        place: &Cell<u64>,
    ) -> Result<Box<dyn Driver>, QmpError> {
        let asked = Permissions::NONE;
        let file = self
            .open_child(
                name,
                "file",
                ChildRole::Image,
                options.file,
                settings.below(),
                asked,
            )
            .await?;
        self.come_after(place);
        let window = raw_window(options.offset, options.size)?;
        Ok(Box::new(
            RawDriver::new(file, window).map_err(|error| words(&error))?,
        ))
    }

    async fn open_qcow2(
        &self,
        name: &str,
        options: BlockdevOptionsQcow2,
        settings: &Settings,
        in_flight: &Arc<InFlight>,
        place: &Cell<u64>,
    ) -> Result<Box<dyn Driver>, QmpError> {
        let open = open_options(
            &options,
            settings.read_only,
            settings.node_options.discard_unmap,
        )?;
        let storage = settings.shared(Permissions::NONE.of_image_storage(!settings.read_only));
        let below = settings.below();
        let file = self
            .open_child(name, "file", ChildRole::Image, options.file, below, storage)
            .await?;
        self.come_after(place);
        let header = ImageHeader::read(&file)
            .await
            .map_err(|error| words(&error))?;
        let own_name = file.node().driver().filename();
        let data_file = self
            .open_data_file(name, options.data_file, &header, &own_name, settings)
            .await?;
        let backing = self
            .open_backing(name, options.backing, &header, &own_name, settings)
            .await
            .map_err(|error| {
                QmpError::generic(format!("Could not open backing file: {}", error.desc))
            })?;
        let children = Children {
            file,
            data_file,
            backing,
        };
        let events = Arc::clone(&self.inner.block_events);
        let opened = Qcow2::open(header, children, open, name, Arc::clone(in_flight), events).await;
        Ok(Box::new(opened.map_err(|error| words(&error))?))
    }

    async fn open_data_file(
        &self,
        name: &str,
        given: Option<BlockdevRef>,
        header: &ImageHeader,
        own_name: &str,
        settings: &Settings,
    ) -> Result<Option<Arc<Edge>>, QmpError> {
        if !header.needs_data_file() {
            return match given {
                Some(_) => Err(QmpError::generic(
                    "'data-file' can only be set for images with an external data file",
                )),
                None => Ok(None),
            };
        }
        let reference = match given {
            Some(reference) => reference,
            None => {
                let Some(stored) = header.data_file_name() else {
                    return Err(QmpError::generic("'data-file' is required for this image"));
                };
                let path = beside(stored, own_name);
                BlockdevRef::Definition(Box::new(options_for(BlockdevDriver::File, &path)?))
            }
        };
        let asked = settings.shared(Permissions::NONE.of_image_storage(!settings.read_only));
        let below = settings.below();
        self.open_child(name, "data-file", ChildRole::Data, reference, below, asked)
            .await
            .map(Some)
    }

    async fn open_backing(
        &self,
        name: &str,
        given: Option<BlockdevRefOrNull>,
        header: &ImageHeader,
        own_name: &str,
        settings: &Settings,
    ) -> Result<Option<Arc<Edge>>, QmpError> {
        let reference = match given {
            Some(BlockdevRefOrNull::Null(_)) => return Ok(None),
            Some(BlockdevRefOrNull::Reference(node)) if node.is_empty() => return Ok(None),
            Some(BlockdevRefOrNull::Reference(node)) => BlockdevRef::Reference(node),
            Some(BlockdevRefOrNull::Definition(options)) => BlockdevRef::Definition(options),
            None => {
                let Some(stored) = header.backing_file() else {
                    return Ok(None);
                };
                let options = self
                    .named_image(stored, header.backing_format(), own_name)
                    .await?;
                BlockdevRef::Definition(Box::new(options))
            }
        };
        let asked = settings.shared(Permissions::NONE.of_backing());
        let below = settings.below_backing();
        self.open_child(name, "backing", ChildRole::Backing, reference, below, asked)
            .await
            .map(Some)
    }

    /// The options for the image that another one names as its backing file.
    async fn named_image(
        &self,
        stored: &str,
        format: Option<&str>,
        own_name: &str,
    ) -> Result<BlockdevOptions, QmpError> {
        let path = match read_name(stored, own_name)? {
            ImageName::Options(options) => return Ok(*options),
            ImageName::File(path) => path,
        };
        let format = match format {
            Some(format) => format
                .parse::<BlockdevDriver>()
                .map_err(|_| QmpError::generic(format!("Unknown driver '{format}'")))?,
            None => self.probe(&path).await?,
        };
        options_for(format, &path)
    }

    /// Guesses the format of a backing file whose format the image does not tell.
    async fn probe(&self, path: &str) -> Result<BlockdevDriver, QmpError> {
        let file = FileOptions {
            protocol: HostProtocol::File,
            filename: path.to_owned(),
            read_only: true,
            auto_read_only: false,
            direct: false,
            locking: false,
        };
        let files = Arc::clone(&self.inner.files);
        let opened = host_io::blocking(move || FileDriver::open(file, files)).await;
        let opened = opened.map_err(|error| QmpError::generic(error.to_string()))?;
        let driver = opened.map_err(|error| words(&error))?;
        let start = driver.read(0, host_io::IoBuf::zeroed(4)).await;
        let start = start.map_err(|error| words(&error))?;
        Ok(if start.starts_with(b"QFI\xfb") {
            BlockdevDriver::Qcow2
        } else {
            BlockdevDriver::Raw
        })
    }

    /// Opens or finds a child and makes the edge to it.
    async fn open_child(
        &self,
        parent: &str,
        child: &str,
        role: ChildRole,
        reference: BlockdevRef,
        inherited: Inherited,
        asked: Permissions,
    ) -> Result<Arc<Edge>, QmpError> {
        let graph = &self.inner.graph;
        let node = match reference {
            BlockdevRef::Reference(name) => {
                graph.node(&name).map_err(|error| graph_words(&error))?
            }
            BlockdevRef::Definition(options) => self.open(*options, inherited).await?,
        };
        let parent = ParentName::Node(parent.to_owned());
        let edge = graph
            .attach(parent, child, role, &node, asked)
            .map_err(|error| graph_words(&error))?;
        self.made.borrow_mut().edges.push(Arc::clone(&edge));
        Ok(edge)
    }
}

fn non_negative(value: Option<i64>, name: &str) -> Result<Option<u64>, QmpError> {
    let Some(value) = value else { return Ok(None) };
    u64::try_from(value).map(Some).map_err(|_| {
        QmpError::generic(format!(
            "Value '{value}' is out of range for parameter '{name}'"
        ))
    })
}

/// How a host file is to be opened.
pub(crate) fn file_options(
    protocol: HostProtocol,
    options: BlockdevOptionsFile,
    settings: &Settings,
) -> Result<FileOptions, QmpError> {
    if options.filename.is_empty() {
        let driver = match protocol {
            HostProtocol::File => "file",
            HostProtocol::HostDevice => "host_device",
        };
        return Err(QmpError::generic(format!(
            "The '{driver}' block driver requires a file name"
        )));
    }
    let direct = settings.node_options.cache_direct;
    if options.aio == Some(api::BlockdevAioOptions::Native) && !direct {
        return Err(QmpError::generic(
            "aio=native was specified, but it requires cache.direct=on, which was not \
             specified.",
        ));
    }
    Ok(FileOptions {
        protocol,
        filename: options.filename,
        read_only: settings.read_only,
        auto_read_only: settings.auto_read_only,
        direct,
        locking: options.locking != Some(OnOffAuto::Off) && !settings.node_options.force_share,
    })
}

/// The part of its child that a raw node shows.
pub(crate) fn raw_window(offset: Option<i64>, size: Option<i64>) -> Result<RawOptions, QmpError> {
    Ok(RawOptions {
        offset: non_negative(offset, "offset")?.unwrap_or(0),
        size: non_negative(size, "size")?,
    })
}

pub(crate) fn open_null(
    name: &'static str,
    options: &BlockdevOptionsNull,
) -> Result<Box<dyn Driver>, QmpError> {
    let size = non_negative(options.size, "size")?.unwrap_or(NullOptions::DEFAULT_SIZE);
    Ok(Box::new(NullDriver::new(NullOptions {
        name,
        size,
        latency_ns: options.latency_ns.unwrap_or(0),
        read_zeroes: options.read_zeroes == Some(true),
    })))
}

/// How often a format's caches are to be cleaned.
fn clean_interval(options: &BlockdevOptions) -> Result<Option<Duration>, QmpError> {
    /// QEMU's interval where none is given, in seconds.
    const DEFAULT_SECONDS: u32 = 600;
    let BlockdevOptionsBranch::Qcow2(qcow2) = &options.driver else {
        return Ok(None);
    };
    let seconds = match qcow2.cache_clean_interval {
        None => DEFAULT_SECONDS,
        Some(seconds) => {
            u32::try_from(seconds).map_err(|_| QmpError::generic("Cache clean interval too big"))?
        }
    };
    Ok((seconds > 0).then(|| Duration::from_secs(seconds.into())))
}

/// Lets a node's caches be cleaned from time to time. On the data side.
pub(crate) fn keep_caches_clean(node: &Arc<Node>, interval: Option<Duration>) {
    if let Some(interval) = interval {
        host_io::spawn_local(clean_caches(Arc::downgrade(node), interval)).detach();
    }
}

/// Drops what a node's caches have not used for an interval, as long as the node lives.
async fn clean_caches(node: Weak<Node>, interval: Duration) {
    loop {
        host_io::sleep(interval).await;
        let Some(node) = node.upgrade() else { return };
        let driver: &dyn Any = node.driver();
        match driver.downcast_ref::<Qcow2>() {
            Some(image) => image.clean_caches(),
            None => return,
        }
    }
}

/// The options that all drivers share, with what the parents hand down worked in.
pub(crate) struct Settings {
    pub(crate) read_only: bool,
    auto_read_only: bool,
    pub(crate) node_options: NodeOptions,
    /// How often unused cache entries are dropped.
    pub(crate) clean_interval: Option<Duration>,
    depth: usize,
}

impl Settings {
    pub(crate) fn of(options: &BlockdevOptions, inherited: Inherited) -> Result<Self, QmpError> {
        let read_only = options.read_only.unwrap_or(inherited.read_only);
        let cache = options.cache.as_ref();
        let discard_unmap = match options.discard {
            Some(discard) => discard == BlockdevDiscardOptions::Unmap,
            None => inherited.discard_unmap,
        };
        let detect_zeroes = match options.detect_zeroes {
            None | Some(BlockdevDetectZeroesOptions::Off) => DetectZeroes::Off,
            Some(BlockdevDetectZeroesOptions::On) => DetectZeroes::On,
            Some(BlockdevDetectZeroesOptions::Unmap) => DetectZeroes::Unmap,
        };
        if detect_zeroes == DetectZeroes::Unmap && !discard_unmap {
            return Err(QmpError::generic(
                "setting detect-zeroes to unmap is not allowed without setting discard \
                 operation to unmap",
            ));
        }
        let force_share = options.force_share == Some(true);
        if force_share && !read_only {
            return Err(QmpError::generic(
                "force-share=on can only be used with read-only images",
            ));
        }
        let node_options = NodeOptions {
            cache_direct: cache
                .and_then(|cache| cache.direct)
                .unwrap_or(inherited.direct),
            cache_no_flush: cache
                .and_then(|cache| cache.no_flush)
                .unwrap_or(inherited.no_flush),
            detect_zeroes,
            force_share,
            discard_unmap,
            given: options.to_qapi(),
        };
        Ok(Self {
            read_only,
            auto_read_only: options.auto_read_only.unwrap_or(inherited.auto_read_only),
            node_options,
            clean_interval: clean_interval(options)?,
            depth: inherited.depth,
        })
    }

    /// What storage children take over.
    pub(crate) fn below(&self) -> Inherited {
        Inherited {
            read_only: self.read_only,
            auto_read_only: self.auto_read_only,
            direct: self.node_options.cache_direct,
            no_flush: self.node_options.cache_no_flush,
            // Formats decide themselves what to pass on.
            discard_unmap: true,
            depth: self.depth + 1,
        }
    }

    /// What backing children take over: they are only read.
    pub(crate) fn below_backing(&self) -> Inherited {
        Inherited {
            read_only: true,
            auto_read_only: false,
            discard_unmap: false,
            ..self.below()
        }
    }

    fn shared(&self, mut asked: Permissions) -> Permissions {
        if self.node_options.force_share {
            asked.shared = Permission::all();
        }
        asked
    }
}
