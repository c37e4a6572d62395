//! Power failures while an image is made, and while a dirty one is mended.

use block_doubles::{Rng, Storage};
use block_graph::{ChildRole, Preallocation, WriteFlags};
use block_qcow2::{OpenOptions, create};

use crate::crash::{Content, History, Logs, crash_everywhere, reopen};
use crate::support::{Disk, Variant, bytes, edge, noise, run, small_caches};

/// What a file may hold before an image is made in it.
async fn old_contents(variant: &Variant) -> Vec<(Disk, Option<Vec<u8>>)> {
    let empty = |content: Vec<u8>| Disk {
        file: Storage::new(content),
        data: variant.data_file.map(|_| Storage::new(Vec::new())),
        backing: variant.backing_len.map(|len| Storage::new(noise(7, len))),
    };
    let older = Variant {
        size: 300 << 10,
        cluster_size: 512,
        data_file: None,
        ..Variant::default()
    };
    let image = older.create().await;
    let node = image.open().await.unwrap();
    let data = noise(1, 200_000);
    let flags = WriteFlags::empty();
    node.write(0, bytes(&data), flags).await.unwrap();
    node.driver().close().await.unwrap();
    let mut guest = data;
    guest.resize(300 << 10, 0);
    vec![
        (empty(Vec::new()), None),
        (empty(vec![0xee; 300_000]), None),
        (empty(image.file.content()), Some(guest)),
    ]
}

async fn record_creation(variant: &Variant, disk: &Disk) -> Logs {
    Logs::record(disk);
    let file = edge(&disk.file, "file", ChildRole::Image);
    let data = disk.data.as_ref();
    let data = data.map(|data| edge(data, "data-file", ChildRole::Data));
    let mut options = variant.options();
    // A name that leads the header over more than one sector.
    options.backing_file = options.backing_file.map(|_| "b".repeat(600));
    create(&file, data.as_ref(), &options).await.unwrap();
    Logs::take(disk)
}

/// No image, the new one, or the old one: whole in any case.
fn check_newborn(crashed: &Disk, variant: &Variant, old: Option<&Vec<u8>>, what: &str) -> bool {
    let content = Content::of(crashed);
    let Ok(reference) = content.reference() else {
        return false;
    };
    assert!(!reference.dirty && !reference.corrupt, "{what}");
    let leaks = reference.check();
    leaks.unwrap_or_else(|wrong| panic!("{what}: {wrong}"));
    let found = reference.read();
    let found = found.unwrap_or_else(|wrong| panic!("{what}: {wrong}"));
    let is_new = found == variant.fresh_content();
    assert!(is_new || Some(&found) == old, "{what}: neither old nor new");
    is_new
}

fn cut_off_creation(variant: &Variant) {
    println!("{variant:?}");
    let for_run = variant.clone();
    let made = run(move || async move {
        let mut made = Vec::new();
        for (disk, old) in old_contents(&for_run).await {
            let logs = record_creation(&for_run, &disk).await;
            made.push((disk, logs, old));
        }
        made
    });
    for (disk, logs, old) in made {
        let mut rng = Rng::new(5);
        let mut found = [0, 0];
        for time in logs.times() {
            for left in logs.kinds(logs.pending_at(time), &mut rng) {
                let crashed = logs.crash_at(time, left, &disk);
                let what = format!("crash at {time} with {left:?}");
                let is_new = check_newborn(&crashed, variant, old.as_ref(), &what);
                found[usize::from(is_new)] += 1;
                if is_new {
                    // Names and extensions lie behind the first sector.
                    let (found, whole) = (crashed.file.content(), disk.file.content());
                    assert!(
                        found[512..1024] == whole[512..1024],
                        "{what}: half a header"
                    );
                }
                if is_new && rng.one_in(8) {
                    reopen(crashed, &OpenOptions::default());
                }
            }
        }
        assert!(found.iter().all(|number| *number > 0), "{found:?}");
    }
}

#[test]
fn a_new_image_is_whole_or_not_there() {
    let plain = Variant::default;
    for variant in [
        plain(),
        Variant {
            version: 2,
            ..plain()
        },
        Variant {
            cluster_size: 512,
            refcount_bits: 64,
            ..plain()
        },
        Variant {
            backing_len: Some(100_000),
            ..plain()
        },
        Variant {
            lazy: true,
            extended_l2: true,
            cluster_size: 16384,
            ..plain()
        },
        Variant {
            preallocation: Preallocation::Metadata,
            ..plain()
        },
        Variant {
            preallocation: Preallocation::Full,
            cluster_size: 16384,
            ..plain()
        },
        Variant {
            data_file: Some(false),
            ..plain()
        },
        Variant {
            data_file: Some(true),
            cluster_size: 512,
            ..plain()
        },
    ] {
        cut_off_creation(&variant);
    }
}

/// A dirty image: its counts were left behind when the power failed.
async fn dirty_image(variant: &Variant) -> (Disk, Vec<u8>) {
    let disk = variant.create().await;
    let mut content = variant.fresh_content();
    let options = OpenOptions::default();
    let node = disk.open_with(options, Default::default()).await.unwrap();
    let flags = WriteFlags::empty();
    for (at, len) in [(3000, 60_000), (100_000, 20_000), (130_000, 3000)] {
        let data = noise(at as u64, len);
        node.write(at as u64, bytes(&data), flags).await.unwrap();
        content[at..at + len].copy_from_slice(&data);
    }
    node.discard(16384, 16384).await.unwrap();
    content[16384..32768].fill(0);
    node.flush().await.unwrap();
    let left = Disk {
        file: Storage::new(disk.file.content()),
        data: disk.data.as_ref().map(|data| Storage::new(data.content())),
        backing: disk.backing.clone(),
    };
    node.driver().close().await.unwrap();
    (left, content)
}

fn cut_off_repair(variant: Variant) {
    println!("{variant:?}");
    let (logs, disk, content) = run(move || async move {
        let (disk, content) = dirty_image(&variant).await;
        {
            let found = Content::of(&disk);
            let reference = found.reference().unwrap();
            assert!(reference.dirty, "there is nothing to mend");
            assert!(reference.check().is_err(), "the counts are good already");
            assert!(reference.read().unwrap() == content);
        }
        Logs::record(&disk);
        let node = disk
            .open_with(small_caches(), Default::default())
            .await
            .unwrap();
        node.flush().await.unwrap();
        let logs = Logs::take(&disk);
        {
            let found = Content::of(&disk);
            let reference = found.reference().unwrap();
            reference.check().unwrap();
        }
        node.driver().close().await.unwrap();
        (logs, disk, content)
    });
    let points = logs.times().len();
    println!("{points} points in time");
    assert!(points >= 3, "nothing was mended");
    let contents = vec![content];
    crash_everywhere(&logs, &History { contents }, &disk, &small_caches());
}

#[test]
fn mending_a_dirty_image_can_be_cut_off() {
    let lazy = || Variant {
        lazy: true,
        size: 160 << 10,
        ..Variant::default()
    };
    for variant in [
        lazy(),
        Variant {
            cluster_size: 512,
            ..lazy()
        },
        Variant {
            refcount_bits: 1,
            cluster_size: 512,
            ..lazy()
        },
        // Many blocks of counts, of which most are not there yet.
        Variant {
            refcount_bits: 64,
            cluster_size: 512,
            ..lazy()
        },
        Variant {
            extended_l2: true,
            cluster_size: 16384,
            backing_len: Some(100_000),
            ..lazy()
        },
    ] {
        cut_off_repair(variant);
    }
}
