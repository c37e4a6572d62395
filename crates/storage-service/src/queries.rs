//! What clients ask about the graph.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use api::{
    BlockCoreCommands, BlockDeviceInfo, BlockDeviceStats, BlockInfo, BlockPermission,
    BlockResizeArgs, BlockStats, BlockdevCacheInfo, BlockdevDetectZeroesOptions, ImageInfo,
    QmpError, QueryBlockstatsArgs, QueryNamedBlockNodesArgs, XDbgBlockGraph, XDbgBlockGraphEdge,
    XDbgBlockGraphNode, XDbgBlockGraphNodeType,
};
use block_graph::{
    BlockBackend, DetectZeroes, DriverInfo, Edge, Node, OperationStats, Permission, stored_path,
};
use monitor::Caller;

use crate::service::Handlers;

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The name of the backing file that an image stores, as seen from here.
fn backing_name(node: &Node, info: &DriverInfo) -> Option<String> {
    let stored = info.backing_file.as_ref()?;
    let file = node.driver().children().into_iter().next()?;
    let own = file.node().driver().filename();
    Some(stored_path(stored, &own).unwrap_or_else(|| stored.clone()))
}

/// Lengths are told in whole sectors, as QEMU does.
const SECTOR: u64 = 512;

/// The bytes that the host has allocated for a node: its own word, or its storage's.
fn allocated(node: &Node) -> Option<u64> {
    let own = node.driver().info().allocated_bytes;
    own.or_else(|| allocated(&node.driver().storage_edge()?.node()))
}

fn image_info(node: &Node, with_backing: bool) -> ImageInfo {
    let info = node.driver().info();
    let format_specific = info.specific.clone().and_then(|specific| {
        // What a driver says of itself has the schema's shape; what has not is left out.
        api::from_json(specific).ok()
    });
    let backing_image = if with_backing {
        let below = node.driver().backing_edge().map(Edge::node_arc);
        below.map(|below| Box::new(image_info(&below, true)))
    } else {
        None
    };
    let full_backing_filename = backing_name(node, &info);
    ImageInfo {
        filename: node.driver().filename(),
        format: node.driver().name().to_owned(),
        dirty_flag: info.dirty,
        actual_size: allocated(node).map(signed),
        virtual_size: signed(node.length().div_ceil(SECTOR).saturating_mul(SECTOR)),
        cluster_size: info.cluster_size.map(signed),
        encrypted: info.encrypted.then_some(true),
        compressed: None,
        backing_filename: info.backing_file,
        full_backing_filename,
        backing_filename_format: info.backing_format,
        snapshots: None,
        format_specific,
        backing_image,
    }
}

fn device_info(node: &Node, flat: bool) -> BlockDeviceInfo {
    let options = node.options();
    let image = image_info(node, !flat);
    let mut depth = 0;
    // The depth of the chain that is told: a flat answer tells none.
    let mut below = node.driver().backing_edge().map(Edge::node_arc);
    while let Some(next) = below.filter(|_| !flat) {
        depth += 1;
        below = next.driver().backing_edge().map(Edge::node_arc);
    }
    BlockDeviceInfo {
        file: image.filename.clone(),
        node_name: Some(node.name().to_owned()),
        ro: node.is_read_only(),
        drv: node.driver().name().to_owned(),
        backing_file: node
            .driver()
            .backing_edge()
            .map(|edge| edge.node().driver().filename()),
        backing_file_depth: depth,
        active: true,
        encrypted: image.encrypted == Some(true),
        detect_zeroes: match options.detect_zeroes {
            DetectZeroes::Off => BlockdevDetectZeroesOptions::Off,
            DetectZeroes::On => BlockdevDetectZeroesOptions::On,
            DetectZeroes::Unmap => BlockdevDetectZeroesOptions::Unmap,
        },
        bps: 0,
        bps_rd: 0,
        bps_wr: 0,
        iops: 0,
        iops_rd: 0,
        iops_wr: 0,
        image,
        bps_max: None,
        bps_rd_max: None,
        bps_wr_max: None,
        iops_max: None,
        iops_rd_max: None,
        iops_wr_max: None,
        bps_max_length: None,
        bps_rd_max_length: None,
        bps_wr_max_length: None,
        iops_max_length: None,
        iops_rd_max_length: None,
        iops_wr_max_length: None,
        iops_size: None,
        group: None,
        cache: BlockdevCacheInfo {
            writeback: true,
            direct: options.cache_direct,
            no_flush: options.cache_no_flush,
        },
        write_threshold: 0,
        dirty_bitmaps: None,
    }
}

fn node_stats(node: &Node, backends: &[Arc<BlockBackend>]) -> BlockStats {
    let child = node.driver().storage_edge().map(Edge::node_arc);
    BlockStats {
        device: None,
        qdev: None,
        node_name: Some(node.name().to_owned()),
        stats: device_stats(node, backends),
        driver_specific: node
            .driver()
            .info()
            .statistics
            .and_then(|own| api::from_json(own).ok()),
        parent: child.map(|child| Box::new(node_stats(&child, backends))),
        backing: None,
    }
}

/// A machine's device with its disk.
fn block_info(backend: &Arc<BlockBackend>) -> Option<BlockInfo> {
    let frontend = backend.frontend()?;
    Some(BlockInfo {
        device: frontend.device_name(),
        qdev: Some(frontend.qdev()),
        r#type: "unknown".to_owned(),
        removable: false,
        locked: false,
        inserted: Some(device_info(&backend.edge().node(), false)),
        tray_open: None,
        io_status: Some(frontend.io_status()),
    })
}

/// The numbers of a machine's device.
fn frontend_stats(backend: &Arc<BlockBackend>) -> Option<BlockStats> {
    let frontend = backend.frontend()?;
    let stats = node_stats(&backend.edge().node(), std::slice::from_ref(backend));
    Some(BlockStats {
        device: Some(frontend.device_name()),
        qdev: Some(frontend.qdev()),
        ..stats
    })
}

/// A sum over the users of a node.
#[derive(Default)]
struct Sum {
    completed: u64,
    bytes: u64,
    failed: u64,
    invalid: u64,
}

impl Sum {
    fn over<'a>(all: impl Iterator<Item = &'a OperationStats>) -> Self {
        all.fold(Self::default(), |sum, stats| Self {
            completed: sum
                .completed
                .saturating_add(stats.completed.load(Ordering::Relaxed)),
            bytes: sum
                .bytes
                .saturating_add(stats.bytes.load(Ordering::Relaxed)),
            failed: sum
                .failed
                .saturating_add(stats.failed.load(Ordering::Relaxed)),
            invalid: sum
                .invalid
                .saturating_add(stats.invalid.load(Ordering::Relaxed)),
        })
    }
}

/// Numbers of a node: those of its users (exports, devices, jobs) together. QEMU counts only
/// devices. Times and merges are not measured, zone appends do not exist.
fn device_stats(node: &Node, backends: &[Arc<BlockBackend>]) -> BlockDeviceStats {
    let users: Vec<_> = backends
        .iter()
        .filter(|backend| std::ptr::eq(&**backend.edge().node(), node))
        .map(|backend| backend.stats())
        .collect();
    let read = Sum::over(users.iter().map(|stats| &stats.read));
    let write = Sum::over(users.iter().map(|stats| &stats.write));
    let unmap = Sum::over(users.iter().map(|stats| &stats.discard));
    let flush = Sum::over(users.iter().map(|stats| &stats.flush));
    BlockDeviceStats {
        rd_bytes: signed(read.bytes),
        wr_bytes: signed(write.bytes),
        zone_append_bytes: 0,
        unmap_bytes: signed(unmap.bytes),
        rd_operations: signed(read.completed),
        wr_operations: signed(write.completed),
        zone_append_operations: 0,
        flush_operations: signed(flush.completed),
        unmap_operations: signed(unmap.completed),
        rd_total_time_ns: 0,
        wr_total_time_ns: 0,
        zone_append_total_time_ns: 0,
        flush_total_time_ns: 0,
        unmap_total_time_ns: 0,
        wr_highest_offset: signed(node.highest_written()),
        rd_merged: 0,
        wr_merged: 0,
        zone_append_merged: 0,
        unmap_merged: 0,
        idle_time_ns: None,
        failed_rd_operations: signed(read.failed),
        failed_wr_operations: signed(write.failed),
        failed_zone_append_operations: 0,
        failed_flush_operations: signed(flush.failed),
        failed_unmap_operations: signed(unmap.failed),
        invalid_rd_operations: signed(read.invalid),
        invalid_wr_operations: signed(write.invalid),
        invalid_zone_append_operations: 0,
        invalid_flush_operations: signed(flush.invalid),
        invalid_unmap_operations: signed(unmap.invalid),
        account_invalid: false,
        account_failed: false,
        timed_stats: Vec::new(),
        rd_latency_histogram: None,
        wr_latency_histogram: None,
        zone_append_latency_histogram: None,
        flush_latency_histogram: None,
    }
}

fn permissions(set: Permission) -> Vec<BlockPermission> {
    let all = [
        (Permission::RESIZE, BlockPermission::Resize),
        (Permission::WRITE_UNCHANGED, BlockPermission::WriteUnchanged),
        (Permission::WRITE, BlockPermission::Write),
        (Permission::CONSISTENT_READ, BlockPermission::ConsistentRead),
    ];
    all.into_iter()
        .filter(|(one, _)| set.contains(*one))
        .map(|(_, name)| name)
        .collect()
}

/// Nodes and backends with numbers of their own, and the edges between them.
fn block_graph(nodes: &[Arc<Node>], backends: &[Arc<BlockBackend>]) -> XDbgBlockGraph {
    let mut graph = XDbgBlockGraph {
        nodes: Vec::new(),
        edges: Vec::new(),
    };
    let mut ids = HashMap::new();
    let mut next_id = 1;
    for node in nodes {
        ids.insert(node.name().to_owned(), next_id);
        graph.nodes.push(XDbgBlockGraphNode {
            id: next_id,
            r#type: XDbgBlockGraphNodeType::BlockDriver,
            name: node.name().to_owned(),
        });
        next_id += 1;
    }
    let edge_of = |edge: &Edge, parent: u64| {
        let child = *ids.get(edge.node().name())?;
        let asked = edge.permissions();
        Some(XDbgBlockGraphEdge {
            parent,
            child,
            name: edge.name().to_owned(),
            perm: permissions(asked.required),
            shared_perm: permissions(asked.shared),
        })
    };
    for node in nodes {
        let Some(parent) = ids.get(node.name()) else {
            continue;
        };
        let children = node.driver().children();
        graph
            .edges
            .extend(children.iter().filter_map(|edge| edge_of(edge, *parent)));
    }
    for backend in backends {
        graph.nodes.push(XDbgBlockGraphNode {
            id: next_id,
            r#type: XDbgBlockGraphNodeType::BlockBackend,
            name: String::new(),
        });
        graph.edges.extend(edge_of(backend.edge(), next_id));
        next_id += 1;
    }
    graph
}

impl BlockCoreCommands<Caller> for Handlers {
    async fn query_block(&self, _caller: Arc<Caller>) -> Result<Vec<BlockInfo>, QmpError> {
        let backends = self.inner.graph.backends();
        Ok(backends.iter().filter_map(block_info).collect())
    }

    async fn query_named_block_nodes(
        &self,
        _caller: Arc<Caller>,
        arguments: QueryNamedBlockNodesArgs,
    ) -> Result<Vec<BlockDeviceInfo>, QmpError> {
        let flat = arguments.flat == Some(true);
        Ok(self
            .inner
            .graph
            .nodes()
            .iter()
            .map(|node| device_info(node, flat))
            .collect())
    }

    async fn query_blockstats(
        &self,
        _caller: Arc<Caller>,
        arguments: QueryBlockstatsArgs,
    ) -> Result<Vec<BlockStats>, QmpError> {
        let backends = self.inner.graph.backends();
        if arguments.query_nodes != Some(true) {
            return Ok(backends.iter().filter_map(frontend_stats).collect());
        }
        Ok(self
            .inner
            .graph
            .nodes()
            .iter()
            // Oldest first, unlike the other queries.
            .rev()
            .map(|node| node_stats(node, &backends))
            .collect())
    }

    async fn x_debug_query_block_graph(
        &self,
        _caller: Arc<Caller>,
    ) -> Result<XDbgBlockGraph, QmpError> {
        Ok(block_graph(
            &self.inner.graph.nodes(),
            &self.inner.graph.backends(),
        ))
    }

    async fn block_resize(
        &self,
        _caller: Arc<Caller>,
        arguments: BlockResizeArgs,
    ) -> Result<(), QmpError> {
        self.inner.resize_in_turn(arguments).await
    }
}
