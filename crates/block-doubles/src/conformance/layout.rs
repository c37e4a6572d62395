//! What a disk says of itself, and changes of its length.

use std::sync::Arc;

use block_graph::{Access, BlockErrorKind, Edge, ExtentKind, Mapping, Node, WriteFlags};
use host_io::{File, IoBuf};

use super::trial::{Trial, kind_of};
use super::{Case, DISK_BYTES, DiskMaker};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "the status covers the disk and tells the truth",
        run: |maker| Box::pin(status(maker)),
    },
    Case {
        name: "extents tell the truth",
        run: |maker| Box::pin(extents(maker)),
    },
    Case {
        name: "mappings lead to what is read",
        run: |maker| Box::pin(mappings(maker)),
    },
    Case {
        name: "resizing both ways",
        run: |maker| Box::pin(resizes(maker)),
    },
];

/// Two disks: fresh, and furnished.
async fn furnished(maker: Arc<dyn DiskMaker>) -> Trial {
    let mut trial = Trial::begin(maker, DISK_BYTES).await;
    trial.furnish().await;
    trial.check_all().await;
    trial
}

async fn status(maker: Arc<dyn DiskMaker>) {
    check_status(Trial::begin(Arc::clone(&maker), DISK_BYTES).await).await;
    check_status(furnished(maker).await).await;
}

async fn check_status(trial: Trial) {
    let len = trial.len();
    for most in [len, 100_001, 65_536] {
        let mut at = 0;
        while at < len {
            let asked = most.min(len - at);
            let status = trial.backend().status(at, asked).await.unwrap();
            let what = format!("{asked} at {at}: {status:?}");
            assert!((1..=asked).contains(&status.len), "{what}");
            assert!(status.data || status.zero, "{what}");
            if status.zero {
                let found = trial.read(at, status.len).await;
                assert!(block_graph::is_zero(&found), "{what}");
            }
            at += status.len;
        }
    }
    let last = trial.backend().status(len - 1, 1).await.unwrap();
    assert_eq!(last.len, 1);
    let behind = trial.backend().status(len - 1, 2).await;
    assert_eq!(kind_of(behind), Some(BlockErrorKind::OutOfRange));
    trial.end().await;
}

async fn extents(maker: Arc<dyn DiskMaker>) {
    check_extents(Trial::begin(Arc::clone(&maker), DISK_BYTES).await).await;
    check_extents(furnished(maker).await).await;
}

async fn check_extents(trial: Trial) {
    let len = trial.len();
    for first in [0, 777] {
        let mut at = first;
        while at < len {
            let asked = len - at;
            let extent = trial.node().extent(at, asked).await.unwrap();
            let what = format!("{asked} at {at}: {extent:?}");
            assert!(extent.len >= 1, "{what}");
            let told = extent.len.min(asked);
            check_extent(&trial, at, told, &extent.kind, &what).await;
            at += told;
        }
    }
    trial.end().await;
}

async fn check_extent(trial: &Trial, at: u64, len: u64, kind: &ExtentKind, what: &str) {
    let found = trial.read(at, len).await;
    let driver = trial.node().driver();
    match kind {
        ExtentKind::Zero { .. } => assert!(block_graph::is_zero(&found), "{what}"),
        ExtentKind::Data {
            offset: Some(offset),
            in_child: true,
            compressed,
        } => {
            assert!(!compressed, "{what}: a place for what does not lie plainly");
            let child = driver.storage_edge().unwrap().node_arc();
            assert!(read_node(&child, *offset, len).await == found, "{what}");
        }
        ExtentKind::Data { .. } => {}
        ExtentKind::InChild { offset } => {
            let child = driver.storage_edge().unwrap().node_arc();
            assert!(read_node(&child, *offset, len).await == found, "{what}");
        }
        ExtentKind::Unallocated => match driver.backing_edge().map(Edge::node_arc) {
            Some(backing) => assert!(read_node(&backing, at, len).await == found, "{what}"),
            None => assert!(block_graph::is_zero(&found), "{what}"),
        },
    }
}

/// Bytes of a lower node; behind its end there are zeroes.
async fn read_node(node: &Arc<Node>, at: u64, len: u64) -> Vec<u8> {
    let buf = IoBuf::with_len(len as usize);
    node.read(at, buf).await.unwrap().to_vec()
}

/// Bytes of a host file; behind its end there are zeroes.
async fn read_file(file: &File, at: u64, len: u64) -> Vec<u8> {
    let (result, mut buf) = file.read_at(IoBuf::with_len(len as usize), at).await;
    buf.zero_from(result.unwrap());
    buf.to_vec()
}

async fn mappings(maker: Arc<dyn DiskMaker>) {
    check_mappings(Trial::begin(Arc::clone(&maker), DISK_BYTES).await).await;
    check_mappings(furnished(maker).await).await;
}

async fn check_mappings(trial: Trial) {
    for access in [Access::Read, Access::Write] {
        for step in [4096, 65_536, 1_000_003] {
            let mut at = 0;
            while at < trial.len() {
                let asked = step.min(trial.len() - at);
                check_mapping(&trial, access, at, asked).await;
                at += asked;
            }
        }
        check_mapping(&trial, access, 0, trial.len()).await;
    }
    trial.end().await;
}

async fn check_mapping(trial: &Trial, access: Access, at: u64, asked: u64) {
    // What this loads, the driver may then answer from.
    let expected = trial.read(at, asked).await;
    let driver = trial.node().driver();
    let mapping = driver.map_now(access, at, asked);
    let what = format!("{access:?} of {asked} at {at}: {mapping:?}");
    let (found, len) = match mapping {
        Mapping::Ask => return,
        Mapping::Zero { len } => {
            assert_eq!(access, Access::Read, "{what}");
            let len = len.min(asked);
            (vec![0; len as usize], len)
        }
        Mapping::Child { edge, offset, len } => {
            let len = len.min(asked);
            (read_node(&edge.node_arc(), offset, len).await, len)
        }
        Mapping::File { file, offset, len } => {
            let len = len.min(asked);
            (read_file(file, offset, len).await, len)
        }
    };
    assert!(len >= 1, "{what}");
    assert!(found == expected[..len as usize], "{what}");
}

async fn resizes(maker: Arc<dyn DiskMaker>) {
    let mut trial = Trial::begin(maker, DISK_BYTES).await;
    trial.furnish().await;
    let unit = trial.abilities.length_unit;
    let len = trial.len();
    for length in [
        len + unit,
        len + 3 * 65_536,
        len,
        len - unit,
        len,
        (2 << 20) + unit,
        2 << 20,
        (2 << 20) - unit,
        9 << 20,
        unit,
        100 * unit,
        0,
        len,
    ] {
        trial.resize(length).await;
        trial.check_all().await;
        if trial.len() > 100_000 {
            trial.write_noise(trial.len() - 99_999, 99_999).await;
            trial.write_noise(70_000, 1).await;
        }
    }
    trial.reopen(false).await;
    // Written, cut off, opened again and grown: the bytes of old are not there any more.
    trial.write_noise(0, len).await;
    trial.resize(1 << 20).await;
    trial.reopen(false).await;
    trial.resize(len + (1 << 20)).await;
    trial.check_all().await;
    trial.zero(500_000, 1 << 20, WriteFlags::empty()).await;
    trial.end().await;
}
