//! The daemon's heart: what it owns, and how it begins and ends.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use api::{BlockImageCorruptedEvent, CommandTable, Event, EventSink, Interface, QmpError};
use block_drivers::FileOpener;
use block_graph::{BlockEvents, Graph, ImageCorrupted};
use chardev::ChardevRegistry;
use chardev_backends::Surroundings;
use host_io::{Engine, Executor, ExecutorHandle, File, OpenMode};
use job::JobRegistry;
use monitor::{Caller, ControlHandlers, EventBus, FdHandlers, FdSets, fdset_number};
use objects::{ObjectHandlers, ObjectTree, ObjectTypes, standard_types};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::chardev_objects::{self, ChardevObjects};
use crate::sequence::Sequence;

/// What all handlers share.
pub(crate) struct Inner {
    pub(crate) graph: Arc<Graph>,
    /// The nodes that clients added themselves; others belong to their parents.
    pub(crate) owned: Mutex<BTreeSet<String>>,
    pub(crate) sequence: Sequence,
    pub(crate) data_side: ExecutorHandle,
    pub(crate) files: Arc<dyn FileOpener>,
    pub(crate) block_events: Arc<dyn BlockEvents>,
    pub(crate) jobs: Arc<JobRegistry>,
    pub(crate) objects: Arc<ObjectTree>,
    pub(crate) chardevs: Arc<ChardevRegistry>,
    pub(crate) surroundings: Arc<Surroundings>,
    pub(crate) exports: crate::exports::Exports,
}

/// Opens host files, and `/dev/fdset/N` from the sets of passed descriptors.
struct FdsetOpener {
    sets: Arc<FdSets>,
}

impl FileOpener for FdsetOpener {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<File> {
        match path.to_str().and_then(fdset_number) {
            Some(number) => self.sets.open(number, mode.writable).map(File::from_fd),
            None => File::open(path, mode),
        }
    }
}

/// Carries the block layer's events to the clients.
struct BlockEventBridge {
    events: Arc<dyn EventSink>,
}

impl BlockEvents for BlockEventBridge {
    fn image_corrupted(&self, event: ImageCorrupted) {
        let number = |value: Option<u64>| value.and_then(|value| i64::try_from(value).ok());
        self.events
            .emit(Event::BlockImageCorrupted(BlockImageCorruptedEvent {
                // Nodes of a daemon without a machine have no device.
                device: String::new(),
                node_name: Some(event.node_name),
                msg: event.message,
                offset: number(event.offset),
                size: number(event.size),
                fatal: event.fatal,
            }));
    }
}

/// Nodes, jobs, exports, objects and chardevs of one daemon, behind one table of commands.
pub struct StorageService {
    pub(crate) inner: Arc<Inner>,
    fd_sets: Arc<FdSets>,
    bus: Arc<EventBus>,
    // Dropped last: everything above may still have work on it.
    _data_side: Executor,
}

impl StorageService {
    /// A service whose control side runs on `runtime`.
    ///
    /// # Errors
    /// When the data side's thread cannot be started.
    pub fn new(runtime: Handle) -> io::Result<Self> {
        Self::with_types(runtime, |_| ())
    }

    /// As [`StorageService::new`], with more types of objects: those of a machine around it.
    ///
    /// # Errors
    /// When the data side's thread cannot be started.
    pub fn with_types(
        runtime: Handle,
        register_types: impl FnOnce(&mut ObjectTypes),
    ) -> io::Result<Self> {
        let bus = EventBus::new(runtime.clone());
        let events: Arc<dyn EventSink> = Arc::clone(&bus) as Arc<dyn EventSink>;
        let data_side = Executor::start("data", Engine::Uring)?;
        let fd_sets = Arc::<FdSets>::default();
        let mut object_types = standard_types();
        chardev_objects::register(&mut object_types);
        register_types(&mut object_types);
        let inner = Arc::new(Inner {
            graph: Arc::default(),
            owned: Mutex::default(),
            sequence: Sequence::start(&runtime),
            data_side: data_side.handle(),
            files: Arc::new(FdsetOpener {
                sets: Arc::clone(&fd_sets),
            }),
            block_events: Arc::new(BlockEventBridge {
                events: Arc::clone(&events),
            }),
            jobs: JobRegistry::new(Arc::clone(&events)),
            objects: Arc::new(ObjectTree::new(object_types)),
            chardevs: Arc::default(),
            surroundings: Arc::new(Surroundings::new(runtime.clone())),
            exports: crate::exports::Exports::new(events),
        });
        let chardevs = ChardevObjects {
            registry: Arc::clone(&inner.chardevs),
        };
        let mounted = inner.objects.mount("/chardevs", Arc::new(chardevs));
        mounted.map_err(|error| io::Error::other(error.to_string()))?;
        Ok(Self {
            inner,
            fd_sets,
            bus,
            _data_side: data_side,
        })
    }

    /// The table of the storage daemon's commands, to which a program may add its own; `interface` is
    /// what the program lists, and `quit` is rung when a client asks it to end.
    pub fn commands(&self, interface: Interface, quit: Arc<Notify>) -> CommandTable<Caller> {
        let mut table = CommandTable::new();
        let control = ControlHandlers::new(interface, quit);
        api::register_control(&mut table, Arc::clone(&control));
        api::register_introspect(&mut table, control);
        api::register_fdset(&mut table, FdHandlers::new(Arc::clone(&self.fd_sets)));
        let handlers = Arc::new(Handlers {
            inner: Arc::clone(&self.inner),
        });
        api::register_block_core(&mut table, Arc::clone(&handlers));
        api::register_blockdev(&mut table, Arc::clone(&handlers));
        api::register_block_create(&mut table, Arc::clone(&handlers));
        api::register_block_export(&mut table, Arc::clone(&handlers));
        api::register_job(&mut table, Arc::clone(&handlers));
        api::register_char(&mut table, handlers);
        api::register_qom(
            &mut table,
            ObjectHandlers::new(Arc::clone(&self.inner.objects)),
        );
        table
    }

    /// Where events go.
    pub fn event_bus(&self) -> &Arc<EventBus> {
        &self.bus
    }

    /// The chardevs.
    pub fn chardevs(&self) -> &Arc<ChardevRegistry> {
        &self.inner.chardevs
    }

    /// The graph of block nodes.
    pub fn graph(&self) -> &Arc<Graph> {
        &self.inner.graph
    }

    /// Where nodes' requests run that no iothread serves.
    pub fn data_side(&self) -> &ExecutorHandle {
        &self.inner.data_side
    }

    /// The object tree.
    pub fn objects(&self) -> &Arc<ObjectTree> {
        &self.inner.objects
    }

    /// Ends everything in good order: exports first, then jobs, then nodes from the top down,
    /// each flushed and closed.
    pub async fn close(&self) {
        self.inner.close_exports().await;
        self.inner.jobs.cancel_all().await;
        let inner = Arc::clone(&self.inner);
        let closed = self.inner.sequence.run(async move {
            inner.close_all_nodes().await;
            Ok(())
        });
        if let Err(error) = closed.await {
            tracing::error!(%error, "closing the nodes failed");
        }
    }
}

/// Implements the command traits over the shared state.
pub(crate) struct Handlers {
    pub(crate) inner: Arc<Inner>,
}

/// Finds the descriptors that the calling client named.
pub(crate) struct CallerFds<'a>(pub(crate) &'a Caller);

impl chardev::socket_address::FdLookup for CallerFds<'_> {
    fn named_fd(&self, name: &str) -> Result<OwnedFd, QmpError> {
        self.0.named_fds().take(name)
    }
}

/// What the command line sets up, by the same calls as clients' commands.
impl StorageService {
    /// Creates an object.
    ///
    /// # Errors
    /// Words for people.
    pub async fn add_object(&self, options: api::ObjectOptions) -> Result<(), QmpError> {
        let objects = Arc::clone(&self.inner.objects);
        let created = tokio::task::spawn_blocking(move || objects.create(options)).await;
        Ok(created.map_err(|error| QmpError::generic(error.to_string()))??)
    }

    /// Adds a block node.
    ///
    /// # Errors
    /// Words for people.
    pub async fn add_node(&self, options: api::BlockdevOptions) -> Result<(), QmpError> {
        self.inner.add_node(options).await
    }

    /// Adds a chardev; complaints come without the beginning that clients of QMP get.
    ///
    /// # Errors
    /// Words for people.
    pub async fn add_chardev(
        &self,
        arguments: api::ChardevAddArgs,
    ) -> Result<api::ChardevReturn, QmpError> {
        let id = arguments.id;
        let prefix = format!("Failed to add chardev '{id}': ");
        let added = self
            .inner
            .add_chardev(Caller::program(), &id, arguments.backend)
            .await;
        added.map_err(|error| match error.desc.strip_prefix(&prefix) {
            Some(rest) => QmpError::generic(rest),
            None if error.desc.ends_with("already exists") => QmpError::generic(format!(
                "attempt to add duplicate property '{id}' to object (type 'container')"
            )),
            None => error,
        })
    }

    /// Starts the NBD server.
    ///
    /// # Errors
    /// Words for people.
    pub async fn start_nbd_server(&self, options: api::NbdServerOptions) -> Result<(), QmpError> {
        self.inner.start_nbd(Caller::program(), options).await
    }

    /// Adds an export.
    ///
    /// # Errors
    /// Words for people.
    pub async fn add_export(&self, options: api::BlockExportOptions) -> Result<(), QmpError> {
        self.inner.add_export(options).await
    }
}

impl StorageService {
    /// Makes a sparse qcow2 image of `size` bytes at `path`.
    ///
    /// # Errors
    /// Words for people.
    pub async fn create_disk(&self, path: &str, size: u64) -> Result<(), QmpError> {
        crate::create::create_disk(&self.inner, path, size).await
    }
}
