//! Images that lie: no panic, no hang, no write where metadata is, and the words clients know.

use std::sync::Arc;
use std::time::{Duration, Instant};

use block_doubles::{Change, Rng};
use block_graph::WriteFlags;
use block_qcow2::{OpenOptions, Repair};
use host_io::IoBuf;

use crate::support::{Disk, Events, Variant, bytes, noise, read, run, small_caches};

/// An image with one data cluster: header, refcount table, block, L1, L2, data in clusters 0 to 5.
async fn one_cluster(variant: &Variant) -> Disk {
    let disk = variant.create().await;
    let node = disk.open().await.unwrap();
    node.write(0, bytes(&[1; 4096]), WriteFlags::empty())
        .await
        .unwrap();
    node.driver().close().await.unwrap();
    disk
}

fn poked(image: &[u8], at: usize, with: &[u8]) -> Disk {
    let mut image = image.to_vec();
    image[at..at + with.len()].copy_from_slice(with);
    Disk::of(image)
}

#[test]
fn bad_headers_are_refused_in_known_words() {
    let image = run(|| async { one_cluster(&Variant::default()).await.file.content() });
    let cases: &[(usize, &[u8], &str)] = &[
        (0, b"XXXX", "Image is not in qcow2 format"),
        (4, &[0, 0, 0, 4], "Unsupported qcow2 version 4"),
        (20, &[0, 0, 0, 8], "Unsupported cluster size: 2^8"),
        (20, &[0, 0, 0, 22], "Unsupported cluster size: 2^22"),
        (100, &[0, 0, 0, 96], "qcow2 header too short"),
        (100, &[0, 16, 0, 0], "qcow2 header exceeds cluster size"),
        (
            96,
            &[0, 0, 0, 7],
            "Reference count entry width too large; may not exceed 64 bits",
        ),
        (
            32,
            &[0, 0, 0, 2],
            "Missing CRYPTO header for crypt method 2",
        ),
        (32, &[0, 0, 0, 3], "Unsupported encryption method 3"),
        (
            48,
            &[0, 0, 0, 0, 0, 1, 0, 1],
            "Reference count table offset invalid",
        ),
        (
            56,
            &[0; 4],
            "Image does not contain a reference count table",
        ),
        (56, &[0x7f; 4], "Reference count table too large"),
        (
            40,
            &[0, 0, 0, 0, 0, 3, 0, 1],
            "Active L1 table offset invalid",
        ),
        (36, &[0x7f; 4], "Active L1 table too large"),
        (36, &[0; 4], "L1 table is too small"),
        (60, &[0, 1, 0x86, 0xa0], "Snapshot table too large"),
        (
            72,
            &[0, 0, 0, 0, 0, 0, 4, 0],
            "Unsupported qcow2 feature(s): Unknown incompatible feature: 400",
        ),
        (
            72,
            &[0, 0, 0, 0, 0, 0, 0, 8],
            "qcow2: Compression type incompatible feature bit must not be set",
        ),
        (
            104,
            &[1],
            "qcow2: Compression type incompatible feature bit must be set",
        ),
        (104, &[9], "qcow2: unknown compression type: 9"),
        (8, &[0, 0, 1, 0, 0, 0, 0, 0], "Invalid backing file offset"),
        (24, &[0x80], "Image is too big"),
        (
            72,
            &[0, 0, 0, 0, 0, 0, 0, 2],
            "qcow2: Image is corrupt; cannot be opened read/write",
        ),
        (
            72,
            &[0, 0, 0, 0, 0, 0, 0, 4],
            "'data-file' is required for this image",
        ),
        (
            88,
            &[0, 0, 0, 0, 0, 0, 0, 2],
            "data-file-raw requires a data file",
        ),
        (116, &[0x7f; 4], "Header extension too large"),
    ];
    for (at, with, words) in cases {
        let disk = poked(&image, *at, with);
        let error = run(move || async move { disk.open().await.map(|_| ()).unwrap_err() });
        assert_eq!(error.message, *words, "poked at {at}");
    }
}

#[test]
fn a_feature_is_refused_by_the_name_that_the_image_gives_it() {
    let mut image = run(|| async { one_cluster(&Variant::default()).await.file.content() });
    // The first entry of the feature name table says "dirty bit": make it bit 42.
    image[121] = 42;
    let disk = poked(&image, 72, &(1u64 << 42).to_be_bytes());
    let error = run(move || async move { disk.open().await.map(|_| ()).unwrap_err() });
    assert_eq!(error.message, "Unsupported qcow2 feature(s): dirty bit");
}

#[test]
fn snapshots_and_bitmaps_are_read_only() {
    let image = run(|| async { one_cluster(&Variant::default()).await.file.content() });
    let disk = poked(&image, 60, &[0, 0, 0, 1]);
    run(move || async move {
        let error = disk.open().await.map(|_| ()).unwrap_err();
        assert!(error.message.contains("internal snapshots"), "{error}");
        let options = OpenOptions {
            read_only: true,
            ..small_caches()
        };
        let node = disk.open_with(options, Arc::default()).await.unwrap();
        assert!(read(&node, 0, 4096).await == [1; 4096]);
    });
}

#[test]
fn unknown_autoclear_bits_are_cleared_by_the_first_writer_only() {
    let image = run(|| async { one_cluster(&Variant::default()).await.file.content() });
    let disk = poked(&image, 88, &(1u64 << 40).to_be_bytes());
    run(move || async move {
        let options = OpenOptions {
            read_only: true,
            ..small_caches()
        };
        let node = disk.open_with(options, Arc::default()).await.unwrap();
        node.driver().close().await.unwrap();
        assert_ne!(disk.file.content()[88..96], [0; 8]);
        let node = disk.open().await.unwrap();
        node.driver().close().await.unwrap();
        assert_eq!(disk.file.content()[88..96], [0; 8]);
    });
}

/// Reads and writes an image whose L2 entry for guest cluster 0 is `entry`; returns the event.
fn with_l2_entry(entry: u64) -> (Vec<String>, bool, bool, Vec<Change>) {
    let image = run(|| async { one_cluster(&Variant::default()).await.file.content() });
    let disk = poked(&image, 4 * 4096, &entry.to_be_bytes());
    run(move || async move {
        let events = Arc::new(Events::default());
        let node = disk
            .open_with(OpenOptions::default(), Arc::clone(&events))
            .await
            .unwrap();
        disk.file.record();
        let read = node.read(0, IoBuf::with_len(512)).await;
        let data = bytes(&[3; 512]);
        let written = node.write(0, data, WriteFlags::empty()).await;
        let corrupt = disk.file.content()[79] & 2 != 0;
        let told = events.0.lock().iter().map(|e| e.message.clone()).collect();
        assert_eq!(corrupt, events.0.lock().iter().any(|e| e.fatal));
        (
            told,
            read.is_ok(),
            written.is_ok(),
            disk.file.take_log().changes,
        )
    })
}

#[test]
fn wrong_entries_are_told_and_metadata_is_never_overwritten() {
    let copied = 1 << 63;
    let (told, read, written, _) = with_l2_entry(copied | 0x5200);
    assert_eq!(
        told,
        ["Cluster allocation offset 0x5200 unaligned (L2 offset: 0x4000, L2 index: 0x0)"]
    );
    assert!(!read && !written);
    for (cluster, name) in [
        (1, "refcount table"),
        (2, "refcount block"),
        (3, "active L1 table"),
        (4, "active L2 table"),
    ] {
        let (told, read, written, changes) = with_l2_entry(copied | cluster << 12);
        let words = format!("Preventing invalid write on metadata (overlaps with {name})");
        assert_eq!(told, [words]);
        assert!(read && !written);
        // The only write is the header's, which says that the image is corrupt.
        for change in changes {
            match change {
                Change::Write { offset: 0, .. } | Change::Flush => {}
                other => panic!("{other:?}"),
            }
        }
    }
    let (_, read, written, _) = with_l2_entry(1 << 62 | 0x5000);
    assert!(!read && !written);
}

#[test]
fn a_refcount_of_zero_in_use_is_found_before_it_is_overwritten() {
    let image = run(|| async { one_cluster(&Variant::default()).await.file.content() });
    let disk = poked(&image, 2 * 4096, &[0; 12]);
    run(move || async move {
        let events = Arc::new(Events::default());
        let node = disk
            .open_with(OpenOptions::default(), Arc::clone(&events))
            .await
            .unwrap();
        let data = bytes(&noise(1, 4096));
        node.write(400 << 10, data, WriteFlags::empty())
            .await
            .unwrap_err();
        assert_eq!(
            events.0.lock()[0].message,
            "Preventing invalid write on metadata (overlaps with qcow2_header)"
        );
        assert!(node.read(0, IoBuf::with_len(10)).await.is_err());
    });
}

#[test]
fn check_finds_and_mends() {
    let image = run(|| async { one_cluster(&Variant::default()).await.file.content() });
    // Data cluster 5: count 0; cluster 9: a leak.
    let mut image = poked(&image, 2 * 4096 + 10, &[0, 0]).file.content();
    image[2 * 4096 + 19] = 1;
    image[79] = 2;
    let disk = Disk::of(image);
    run(move || async move {
        let options = OpenOptions {
            for_check: true,
            ..small_caches()
        };
        let open = async || {
            disk.open_driver(options.clone(), Arc::default(), Arc::default())
                .await
                .unwrap()
        };
        let driver = open().await;
        let report = driver.check(Repair::default()).await.unwrap();
        assert_eq!((report.corruptions, report.leaks), (2, 1), "{report:?}");
        assert_eq!(report.allocated_clusters, 1);
        let all = Repair {
            leaks: true,
            corruptions: true,
        };
        let report = driver.check(all).await.unwrap();
        assert_eq!(disk.file.content()[72..80], [0; 8]);
        assert_eq!((report.corruptions, report.leaks), (0, 0), "{report:?}");
        assert_eq!((report.corruptions_fixed, report.leaks_fixed), (1, 1));
        let report = open().await.check(Repair::default()).await.unwrap();
        assert_eq!((report.corruptions, report.leaks), (0, 0), "{report:?}");
    });
}

#[test]
fn mutated_images_never_panic_or_hang() {
    let variants = [
        Variant::default(),
        Variant {
            cluster_size: 512,
            refcount_bits: 1,
            size: 100 << 10,
            ..Variant::default()
        },
        Variant {
            extended_l2: true,
            cluster_size: 16384,
            ..Variant::default()
        },
        Variant {
            version: 2,
            ..Variant::default()
        },
    ];
    let began = Instant::now();
    for (number, variant) in variants.into_iter().enumerate() {
        let base = run(move || async move {
            let disk = variant.create().await;
            let node = disk.open().await.unwrap();
            let data = bytes(&noise(1, 50_000));
            node.write(1000, data, WriteFlags::empty()).await.unwrap();
            let data = bytes(&[5; 32768]);
            node.write(65536, data, WriteFlags::COMPRESSED)
                .await
                .unwrap();
            node.driver().close().await.unwrap();
            disk.file.content()
        });
        for seed in 0..150 {
            let image = mutated(&base, number as u64 * 1000 + seed);
            run(move || async move { abuse(image).await });
        }
    }
    // A single image that sends it round in circles takes for ever; a busy machine does not.
    assert!(began.elapsed() < Duration::from_secs(600));
}

/// Changes some bytes of the metadata.
fn mutated(base: &[u8], seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let mut image = base.to_vec();
    let cluster = 1usize << image[23];
    for _ in 0..1 + rng.below(4) {
        let at = match rng.below(4) {
            0 => rng.below(112) as usize,
            // Each later cluster begins with the entries that are used.
            1 => cluster * (1 + rng.below(6) as usize) + rng.below(24) as usize,
            2 => cluster * (1 + rng.below(6) as usize) + rng.below(cluster as u64) as usize,
            _ => rng.below(image.len() as u64) as usize,
        };
        let at = at.min(image.len() - 1);
        image[at] = match rng.below(3) {
            0 => rng.next_u64() as u8,
            1 => image[at] ^ (1 << rng.below(8)),
            _ => [0, 0xff, 0x80, 1][rng.below(4) as usize],
        };
    }
    image
}

/// Every kind of request; errors are fine.
async fn abuse(image: Vec<u8>) {
    let disk = Disk::of(image);
    let read_only = OpenOptions {
        read_only: true,
        ..small_caches()
    };
    if let Ok(node) = disk.open_with(read_only, Arc::default()).await {
        let len = node.length().min(300 << 10) as usize;
        let _ = node.read(0, IoBuf::with_len(len)).await;
        let _ = node.status(0, node.length().max(1)).await;
    }
    let Ok(node) = disk.open().await else {
        return;
    };
    let size = node.length().min(300 << 10);
    for step in 0..6 {
        let at = step * size / 7;
        let len = (size / 7) as usize;
        let _ = node.read(at, IoBuf::with_len(len)).await;
        let data = bytes(&noise(step, len));
        let _ = node.write(at, data, WriteFlags::empty()).await;
        let data = bytes(&vec![1; len]);
        let _ = node.write(at, data, WriteFlags::COMPRESSED).await;
        let _ = node
            .write_zeroes(at / 2, len as u64, WriteFlags::MAY_UNMAP)
            .await;
        let _ = node.discard(at / 3, len as u64).await;
        let _ = node.flush().await;
    }
    let _ = node.driver().close().await;
    if let Ok(driver) = disk
        .open_driver(small_caches(), Arc::default(), Arc::default())
        .await
    {
        let all = Repair {
            leaks: true,
            corruptions: true,
        };
        let _ = driver.check(all).await;
    }
}

#[test]
fn a_dirty_image_stays_dirty_until_its_counts_are_mended() {
    let image = run(|| async { one_cluster(&Variant::default()).await.file.content() });
    let disk = poked(&image, 79, &[1]);
    run(move || async move {
        let driver = disk
            .open_driver(small_caches(), Arc::default(), Arc::default())
            .await
            .unwrap();
        block_graph::Driver::close(&driver).await.unwrap();
        assert_eq!(disk.file.content()[79], 1);
        let node = disk.open().await.unwrap();
        assert_eq!(disk.file.content()[79], 0);
        node.driver().close().await.unwrap();
    });
}
