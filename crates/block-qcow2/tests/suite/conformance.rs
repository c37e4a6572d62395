//! The table of cases that every driver passes, on images of every kind.

use std::sync::Arc;

use block_doubles::Faults;
use block_doubles::conformance::{Abilities, DiskMaker, MadeDisk, check};
use block_graph::{BlockFuture, Node};
use block_qcow2::OpenOptions;
use host_io::Engine;

use crate::model::check_reference;
use crate::support::{Disk, Variant, small_caches};

struct Images {
    variant: Variant,
    options: OpenOptions,
    yielding: Option<u64>,
}

struct ClosedImage {
    disk: Disk,
    raw_data: bool,
    cluster_size: usize,
    options: OpenOptions,
}

impl DiskMaker for Images {
    fn abilities(&self) -> Abilities {
        Abilities::default()
    }

    fn fresh_content(&self, size: u64) -> Vec<u8> {
        let variant = Variant {
            size,
            ..self.variant.clone()
        };
        variant.fresh_content()
    }

    fn make(&self, size: u64) -> BlockFuture<'_, Box<dyn MadeDisk>> {
        let variant = Variant {
            size,
            ..self.variant.clone()
        };
        Box::pin(async move {
            let disk = variant.create().await;
            for storage in [Some(&disk.file), disk.data.as_ref()].into_iter().flatten() {
                storage.set_faults(Faults {
                    yielding: self.yielding,
                    ..Faults::default()
                });
            }
            let made = ClosedImage {
                disk,
                raw_data: variant.data_file == Some(true),
                cluster_size: variant.cluster_size as usize,
                options: self.options.clone(),
            };
            Ok(Box::new(made) as Box<dyn MadeDisk>)
        })
    }
}

impl MadeDisk for ClosedImage {
    fn open(&self, read_only: bool) -> BlockFuture<'_, Arc<Node>> {
        Box::pin(async move {
            let options = OpenOptions {
                read_only,
                ..self.options.clone()
            };
            self.disk.open_inactive(options, Arc::default()).await
        })
    }

    fn verify(&self, content: &[u8]) {
        check_reference(&self.disk, content, false);
        if let (Some(data), true) = (&self.disk.data, self.raw_data) {
            // It may be filled up to the end of the last cluster.
            let mut data = data.content();
            let most = content.len().next_multiple_of(self.cluster_size);
            assert!((content.len()..=most).contains(&data.len()), "its length");
            let behind = data.split_off(content.len());
            assert!(behind.iter().all(|byte| *byte == 0), "behind its end");
            let wrong = data.iter().zip(content).position(|(a, b)| a != b);
            assert_eq!(wrong, None, "the raw data file");
        }
    }
}

/// With caches that hold everything, and with such that hold hardly anything.
fn passes(name: &str, variant: Variant) {
    check(
        name,
        Engine::Threads,
        Images {
            variant: variant.clone(),
            options: OpenOptions::default(),
            yielding: None,
        },
    );
    check(
        &format!("{name} with small caches"),
        Engine::Threads,
        Images {
            variant,
            options: small_caches(),
            yielding: Some(3),
        },
    );
}

fn plain() -> Variant {
    Variant {
        cluster_size: 65_536,
        ..Variant::default()
    }
}

#[test]
fn version_2_passes() {
    let version = 2;
    passes("version 2", Variant { version, ..plain() });
}

#[test]
fn version_2_over_a_backing_file_passes() {
    let variant = Variant {
        version: 2,
        backing_len: Some(1_000_000),
        ..plain()
    };
    passes("version 2 with backing", variant);
}

#[test]
fn version_3_passes() {
    passes("version 3", plain());
}

#[test]
fn clusters_of_512_bytes_pass() {
    let cluster_size = 512;
    let variant = Variant {
        cluster_size,
        ..plain()
    };
    passes("clusters of 512 bytes", variant);
}

#[test]
fn clusters_of_2_mib_pass() {
    let cluster_size = 2 << 20;
    let variant = Variant {
        cluster_size,
        ..plain()
    };
    passes("clusters of 2 MiB", variant);
}

#[test]
fn extended_l2_passes() {
    let extended_l2 = true;
    let variant = Variant {
        extended_l2,
        ..plain()
    };
    passes("extended L2", variant);
    let variant = Variant {
        extended_l2,
        cluster_size: 16_384,
        backing_len: Some(3_000_001),
        ..plain()
    };
    passes("extended L2 with backing", variant);
}

#[test]
fn data_files_pass() {
    for raw in [false, true] {
        let variant = Variant {
            data_file: Some(raw),
            ..plain()
        };
        passes(&format!("data file, raw: {raw}"), variant);
    }
    let variant = Variant {
        data_file: Some(false),
        backing_len: Some(2_000_000),
        ..plain()
    };
    passes("data file and backing", variant);
}

#[test]
fn overlays_pass() {
    for len in [100_001, 2_000_000, 6 << 20] {
        let variant = Variant {
            backing_len: Some(len),
            ..plain()
        };
        passes(&format!("backing of {len}"), variant);
    }
}

#[test]
fn lazy_refcounts_pass() {
    let lazy = true;
    passes("lazy refcounts", Variant { lazy, ..plain() });
}
