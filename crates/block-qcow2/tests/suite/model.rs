//! Random operations against a model in memory.

use std::sync::Arc;

use block_doubles::Rng;
use block_graph::{Node, Preallocation, WriteFlags};

use crate::reference;
use crate::support::{Disk, Variant, bytes, noise, read, run, variants};

/// A guest's view that is kept in step with an image.
pub struct Model {
    pub content: Vec<u8>,
    pub cluster: usize,
    pub rng: Rng,
    pub external: bool,
}

impl Model {
    fn range(&mut self) -> (usize, usize) {
        let size = self.content.len();
        let cluster = self.cluster.min(64 << 10);
        let aligned = self.rng.one_in(3);
        let at = self.rng.below(size as u64) as usize;
        let len = match self.rng.below(3) {
            0 => 1 + self.rng.below(600) as usize,
            1 => 1 + self.rng.below(3 * cluster as u64) as usize,
            _ => 512 * (1 + self.rng.below(40) as usize),
        };
        if aligned {
            let at = at / self.cluster * self.cluster;
            let len = len.next_multiple_of(self.cluster);
            (at, len.min(size - at))
        } else {
            (at, len.min(size - at))
        }
    }

    /// One random operation, done to both.
    pub async fn step(&mut self, node: &Node) {
        let (at, len) = self.range();
        let offset = at as u64;
        match self.rng.below(12) {
            0..=3 => {
                let data = noise(self.rng.next_u64(), len);
                node.write(offset, bytes(&data), WriteFlags::empty())
                    .await
                    .unwrap();
                self.content[at..at + len].copy_from_slice(&data);
            }
            4..=5 => {
                let flags = if self.rng.one_in(2) {
                    WriteFlags::MAY_UNMAP
                } else {
                    WriteFlags::empty()
                };
                node.write_zeroes(offset, len as u64, flags).await.unwrap();
                self.content[at..at + len].fill(0);
            }
            6 => {
                node.discard(offset, len as u64).await.unwrap();
                self.after_discard(node, at, len).await;
            }
            7..=8 if !self.external => {
                // Compressible, and with an end that is not.
                let mut data = vec![self.rng.next_u64() as u8; len];
                let end = noise(self.rng.next_u64(), len.min(100));
                data[..end.len()].copy_from_slice(&end);
                node.write(offset, bytes(&data), WriteFlags::COMPRESSED)
                    .await
                    .unwrap();
                self.content[at..at + len].copy_from_slice(&data);
            }
            9 => node.flush().await.unwrap(),
            _ => {
                let found = read(node, offset, len).await;
                assert!(found == self.content[at..at + len], "read of {len} at {at}");
            }
        }
    }

    /// A discarded cluster reads as before or as zeroes.
    async fn after_discard(&mut self, node: &Node, at: usize, len: usize) {
        let mut from = at;
        while from < at + len {
            let to = ((from / self.cluster + 1) * self.cluster).min(at + len);
            let found = read(node, from as u64, to - from).await;
            let before = &mut self.content[from..to];
            assert!(found == before || found.iter().all(|&b| b == 0));
            before.copy_from_slice(&found);
            from = to;
        }
    }

    pub async fn compare_all(&self, node: &Node) {
        let found = read(node, 0, self.content.len()).await;
        if let Some(at) = found.iter().zip(&self.content).position(|(a, b)| a != b) {
            panic!(
                "differs at {at:#x}: {} is not {}",
                found[at], self.content[at]
            );
        }
    }
}

pub fn check_reference(disk: &Disk, content: &[u8], leaks_allowed: bool) {
    let file = disk.file.content();
    let data = disk.data.as_ref().map(|data| data.content());
    let backing = disk.backing.as_ref().map(|b| b.content());
    let image = reference::Image::new(
        &file,
        data.as_deref(),
        backing.as_deref().unwrap_or_default(),
    )
    .unwrap();
    let found = image.read().unwrap();
    assert_eq!(found.len(), content.len());
    if let Some(at) = found.iter().zip(content).position(|(a, b)| a != b) {
        panic!(
            "reference differs at {at:#x}: {} is not {}",
            found[at], content[at]
        );
    }
    if !image.dirty {
        let leaks = image.check().unwrap();
        assert!(leaks_allowed || leaks == 0, "{leaks} leaked clusters");
    }
    assert!(!image.corrupt);
}

async fn operations(variant: Variant, seed: u64, steps: usize) {
    let disk = variant.create().await;
    let mut model = Model {
        content: variant.fresh_content(),
        cluster: variant.cluster_size as usize,
        rng: Rng::new(seed),
        external: variant.data_file.is_some(),
    };
    check_reference(&disk, &model.content, false);
    let mut node: Arc<Node> = disk.open().await.unwrap();
    for step in 0..steps {
        model.step(&node).await;
        if model.rng.one_in(40) {
            resize(&mut model, &node).await;
        }
        if step % 60 == 59 {
            model.compare_all(&node).await;
            node.driver().close().await.unwrap();
            check_reference(&disk, &model.content, false);
            node = disk.open().await.unwrap();
        }
    }
    node.driver().close().await.unwrap();
    check_reference(&disk, &model.content, false);
}

async fn resize(model: &mut Model, node: &Node) {
    let old = model.content.len();
    let new = if model.rng.one_in(2) {
        old + 512 * model.rng.below(300) as usize
    } else {
        (old / 2 + 512 * model.rng.below(old as u64 / 1024) as usize) / 512 * 512
    };
    let how = if new > old && model.rng.one_in(4) {
        Preallocation::Metadata
    } else {
        Preallocation::Off
    };
    node.resize(new as u64, true, how).await.unwrap();
    assert_eq!(node.length(), new as u64);
    model.content.resize(new, 0);
}

#[test]
fn random_operations_match_the_model_in_every_variant() {
    for (number, variant) in variants().into_iter().enumerate() {
        println!("{variant:?}");
        run(move || operations(variant, number as u64, 300));
    }
}
