//! `blockdev-create`: a job that makes an image.

use std::fs::OpenOptions;
use std::path::Path;
use std::sync::Arc;

use api::{
    BlockCreateCommands, BlockdevCreateArgs, BlockdevCreateOptionsBranch,
    BlockdevCreateOptionsFile, BlockdevCreateOptionsQcow2, BlockdevQcow2Version, BlockdevRef,
    JobType, PreallocMode, Qcow2CompressionType, QmpError,
};
use block_drivers::{FileDriver, FileOptions, HostProtocol};
use block_graph::{
    BlockError, ChildRole, Driver, Edge, Node, ParentName, Permission, Permissions, Preallocation,
};
use block_qcow2::{CompressionType, CreateOptions};
use job::{JobContext, JobFailure, JobFuture, JobOptions, JobWork};
use monitor::Caller;

use crate::open::{graph_words, open_node};
use crate::service::{Handlers, Inner};

/// The cluster size where none is given, in bytes.
const DEFAULT_CLUSTER_SIZE: u64 = 65_536;

/// What is to be made.
enum Wanted {
    File(BlockdevCreateOptionsFile),
    Qcow2(Box<BlockdevCreateOptionsQcow2>),
}

struct CreateWork {
    inner: Arc<Inner>,
    wanted: Option<Wanted>,
}

impl JobWork for CreateWork {
    fn run<'a>(&'a mut self, context: &'a JobContext) -> JobFuture<'a, Result<(), JobFailure>> {
        Box::pin(async move {
            context.progress().set_remaining(1);
            let done = match self.wanted.take() {
                Some(Wanted::File(options)) => create_file(&self.inner, options).await,
                Some(Wanted::Qcow2(options)) => create_qcow2(&self.inner, *options).await,
                None => Ok(()),
            };
            context.progress().advance(1);
            done.map_err(|error| JobFailure::Failed(error.desc))
        })
    }

    fn commit(&mut self) -> JobFuture<'_, Result<(), JobFailure>> {
        Box::pin(async { Ok(()) })
    }

    fn abort(&mut self) -> JobFuture<'_, ()> {
        // What was written of an image that could not be finished stays, as QEMU leaves it.
        Box::pin(async {})
    }
}

fn words(error: &BlockError) -> QmpError {
    QmpError::generic(error.message.clone())
}

fn preallocation(mode: Option<PreallocMode>) -> Preallocation {
    match mode {
        None | Some(PreallocMode::Off) => Preallocation::Off,
        Some(PreallocMode::Metadata) => Preallocation::Metadata,
        Some(PreallocMode::Falloc) => Preallocation::Falloc,
        Some(PreallocMode::Full) => Preallocation::Full,
    }
}

/// Makes a host file of the wanted size, emptying one that is there unless somebody uses it.
async fn create_file(
    inner: &Arc<Inner>,
    options: BlockdevCreateOptionsFile,
) -> Result<(), QmpError> {
    let files = Arc::clone(&inner.files);
    let how = preallocation(options.preallocation);
    if how == Preallocation::Metadata {
        return Err(QmpError::generic(
            "Unsupported preallocation mode: metadata",
        ));
    }
    let path = options.filename;
    let size = options.size;
    let create = move || {
        let could_not = |error: &std::io::Error| {
            let words = host_io::strerror(error);
            QmpError::generic(format!("Could not create '{path}': {words}"))
        };
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(Path::new(&path))
            .map_err(|error| could_not(&error))?;
        let open = FileOptions {
            protocol: HostProtocol::File,
            filename: path,
            read_only: false,
            auto_read_only: false,
            direct: false,
            locking: true,
        };
        let driver = FileDriver::open(open, files).map_err(|error| words(&error))?;
        // Nobody else may be using what is about to be emptied.
        let asked = Permissions {
            required: Permission::WRITE | Permission::RESIZE,
            shared: Permission::all() - Permission::RESIZE - Permission::CONSISTENT_READ,
        };
        driver
            .permissions_wanted(asked)
            .map_err(QmpError::generic)?;
        Ok::<FileDriver, QmpError>(driver)
    };
    let sized = inner.data_side.spawn(move || async move {
        let created = host_io::blocking(create).await;
        let driver = created.map_err(|error| QmpError::generic(error.to_string()))??;
        let resize = |size, how| driver.resize(size, true, how);
        resize(0, Preallocation::Off)
            .await
            .map_err(|error| words(&error))?;
        let full = resize(size, how).await;
        full.map_err(|error| QmpError::generic(format!("Could not resize file: {}", error.message)))
    });
    sized
        .await
        .map_err(|error| QmpError::generic(error.to_string()))?
}

/// Whose use it is, in messages.
const USER: &str = "an unnamed block device";

/// A node that the work holds by an edge of its own, and owns if it was opened for it.
struct Held {
    edge: Arc<Edge>,
    opened: Option<Arc<Node>>,
}

/// Takes hold of a node when the graph's changes leave room for it.
async fn hold(inner: &Arc<Inner>, reference: BlockdevRef) -> Result<Held, QmpError> {
    let holding = Arc::clone(inner);
    let work = async move { hold_now(&holding, reference).await };
    inner.sequence.run(work).await
}

async fn hold_now(inner: &Arc<Inner>, reference: BlockdevRef) -> Result<Held, QmpError> {
    let (node, opened) = match reference {
        BlockdevRef::Reference(name) => {
            let found = inner.graph.node(&name);
            (found.map_err(|error| graph_words(&error))?, None)
        }
        BlockdevRef::Definition(options) => {
            let opening = Arc::clone(inner);
            let node = inner
                .data_side
                .spawn(move || open_node(opening, *options))
                .await;
            let node = node.map_err(|error| QmpError::generic(error.to_string()))??;
            (Arc::clone(&node), Some(node))
        }
    };
    let asked = Permissions {
        required: Permission::WRITE | Permission::RESIZE,
        shared: Permission::WRITE_UNCHANGED,
    };
    let parent = ParentName::User(USER.to_owned());
    let edge = inner
        .graph
        .attach(parent, "root", ChildRole::Root, &node, asked);
    match edge {
        Ok(edge) => Ok(Held { edge, opened }),
        Err(error) => {
            if let Some(node) = opened {
                inner.release(node).await;
            }
            Err(graph_words(&error))
        }
    }
}

async fn let_go(inner: &Arc<Inner>, held: Held) {
    let letting_go = Arc::clone(inner);
    let work = async move {
        letting_go.graph.detach(&held.edge);
        if let Some(node) = held.opened {
            letting_go.release(node).await;
        }
        Ok(())
    };
    if let Err(error) = inner.sequence.run(work).await {
        tracing::error!(error = error.desc, "cannot let go of a node");
    }
}

async fn create_qcow2(
    inner: &Arc<Inner>,
    mut options: BlockdevCreateOptionsQcow2,
) -> Result<(), QmpError> {
    let data_reference = options.data_file.take();
    let file = hold(inner, options.file.clone()).await?;
    let data_file = match data_reference {
        Some(reference) => match hold(inner, reference).await {
            Ok(held) => Some(held),
            Err(error) => {
                let_go(inner, file).await;
                return Err(error);
            }
        },
        None => None,
    };
    let create = create_options(&options, data_file.as_ref());
    let (edge, data_edge) = (
        Arc::clone(&file.edge),
        data_file.as_ref().map(|held| Arc::clone(&held.edge)),
    );
    let made = inner
        .data_side
        .spawn(move || async move {
            block_qcow2::create(&edge, data_edge.as_ref(), &create?)
                .await
                .map_err(|e| words(&e))
        })
        .await;
    if let Some(held) = data_file {
        let_go(inner, held).await;
    }
    let_go(inner, file).await;
    made.map_err(|error| QmpError::generic(error.to_string()))?
}

fn create_options(
    options: &BlockdevCreateOptionsQcow2,
    data_file: Option<&Held>,
) -> Result<CreateOptions, QmpError> {
    let version = match options.version {
        Some(BlockdevQcow2Version::V2) => 2,
        None | Some(BlockdevQcow2Version::V3) => 3,
    };
    let refcount_bits = options.refcount_bits.unwrap_or(16);
    let refcount_bits = u64::try_from(refcount_bits).map_err(|_| {
        QmpError::generic("Refcount width must be a power of two and may not exceed 64 bits")
    })?;
    Ok(CreateOptions {
        size: options.size,
        version,
        cluster_size: options.cluster_size.unwrap_or(DEFAULT_CLUSTER_SIZE),
        refcount_bits,
        extended_l2: options.extended_l2 == Some(true),
        compression_type: match options.compression_type {
            Some(Qcow2CompressionType::Zstd) => CompressionType::Zstd,
            None | Some(Qcow2CompressionType::Zlib) => CompressionType::Zlib,
        },
        data_file_name: data_file.map(|held| held.edge.node().driver().filename()),
        data_file_raw: options.data_file_raw == Some(true),
        backing_file: options.backing_file.clone(),
        backing_format: options.backing_fmt.map(|format| format.to_string()),
        preallocation: preallocation(options.preallocation),
        lazy_refcounts: options.lazy_refcounts == Some(true),
    })
}

impl BlockCreateCommands<Caller> for Handlers {
    async fn blockdev_create(
        &self,
        _caller: Arc<Caller>,
        arguments: BlockdevCreateArgs,
    ) -> Result<(), QmpError> {
        let wanted = match arguments.options.driver {
            BlockdevCreateOptionsBranch::File(options) => Wanted::File(*options),
            BlockdevCreateOptionsBranch::Qcow2(options) => Wanted::Qcow2(options),
            BlockdevCreateOptionsBranch::HostDevice
            | BlockdevCreateOptionsBranch::NullAio
            | BlockdevCreateOptionsBranch::NullCo
            | BlockdevCreateOptionsBranch::Raw => {
                return Err(QmpError::generic("Driver does not support blockdev-create"));
            }
        };
        let work = CreateWork {
            inner: Arc::clone(&self.inner),
            wanted: Some(wanted),
        };
        let options = JobOptions {
            auto_finalize: true,
            auto_dismiss: false,
        };
        let job_id = &arguments.job_id;
        self.inner
            .jobs
            .start(job_id, JobType::Create, options, Box::new(work))
            .map(drop)
    }
}

/// Makes a sparse qcow2 image in a new host file.
pub(crate) async fn create_disk(inner: &Arc<Inner>, path: &str, size: u64) -> Result<(), QmpError> {
    let file = BlockdevCreateOptionsFile {
        filename: path.to_owned(),
        size: 0,
        preallocation: None,
        nocow: None,
        extent_size_hint: None,
    };
    create_file(inner, file).await?;
    let below = crate::image_name::options_for(api::BlockdevDriver::File, path)?;
    let options = BlockdevCreateOptionsQcow2 {
        file: BlockdevRef::Definition(Box::new(below)),
        data_file: None,
        data_file_raw: None,
        extended_l2: None,
        size,
        version: None,
        backing_file: None,
        backing_fmt: None,
        cluster_size: None,
        preallocation: None,
        lazy_refcounts: None,
        refcount_bits: None,
        compression_type: None,
    };
    create_qcow2(inner, options).await
}
