//! Every file of the seed corpora through its body, and mutations of them.
//!
//! The mutations are the same in every run. `cargo xtask soak` looks further.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a panic is how a test fails"
)]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use block_doubles::Rng;
use fuzz_bodies::{
    compare_and_write, kernel_image, nbd_client_bytes, option_text, pack_image, pc_registers,
    qapi_text, qcow2_image, qmp_bytes, unpack_image, virtio_driver,
};

/// Longest mutated input.
const MUTATED_BYTES_MAX: usize = 128 << 10;

fn seeds(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../corpus")
        .join(target);
    let mut files: Vec<PathBuf> = fs::read_dir(&folder)
        .expect("the corpus is there")
        .map(|entry| entry.expect("the corpus can be listed").path())
        .collect();
    files.sort();
    assert!(files.len() >= 5, "{} has few seeds", folder.display());
    files
        .into_iter()
        .map(|path| {
            let bytes = fs::read(&path).expect("a seed can be read");
            (path, bytes)
        })
        .collect()
}

/// Runs the body over its seeds, then over `mutations` inputs that are made of them.
fn run(target: &str, body: fn(&[u8]), mutations: u64) {
    let seeds = seeds(target);
    for (path, bytes) in &seeds {
        attempt(body, bytes, &path.display().to_string());
    }
    for number in 0..mutations {
        let mut rng = Rng::new(number);
        let input = mutated(&seeds, &mut rng);
        attempt(body, &input, &format!("mutation {number} of {target}"));
    }
}

fn attempt(body: fn(&[u8]), input: &[u8], name: &str) {
    if catch_unwind(AssertUnwindSafe(|| body(input))).is_err() {
        let path = std::env::temp_dir().join(format!("{}.input", name.replace(['/', ' '], "-")));
        let kept = fs::write(&path, input).map(|()| path.display().to_string());
        panic!("{name} failed; its input is in {kept:?}");
    }
}

/// A seed with a few changes: bits, numbers at their limits, pieces of itself or of another seed.
fn mutated(seeds: &[(PathBuf, Vec<u8>)], rng: &mut Rng) -> Vec<u8> {
    let pick = |rng: &mut Rng, len: usize| rng.below(len as u64) as usize;
    let mut input = seeds[pick(rng, seeds.len())].1.clone();
    for _ in 0..=rng.below(6) {
        if input.is_empty() {
            input.push(rng.next_u64() as u8);
        }
        let at = pick(rng, input.len());
        let len = (1 + pick(rng, 16)).min(input.len() - at);
        match rng.below(7) {
            0 => input[at] ^= 1 << rng.below(8),
            1 => input[at] = rng.next_u64() as u8,
            2 => {
                let numbers = [0, u64::MAX, 1, 1 << 63, 0x7fff_ffff, 0x200, 0xffff_fe00];
                let number = numbers[pick(rng, numbers.len())].to_be_bytes();
                let width = [1, 2, 4, 8][pick(rng, 4)].min(input.len() - at);
                input[at..at + width].copy_from_slice(&number[8 - width..]);
            }
            3 => drop(input.drain(at..at + len)),
            4 => {
                let piece = input[at..at + len].to_vec();
                let to = pick(rng, input.len());
                input.splice(to..to, piece);
            }
            5 => {
                let other = &seeds[pick(rng, seeds.len())].1;
                if !other.is_empty() {
                    let from = pick(rng, other.len());
                    let len = (1 + pick(rng, 64)).min(other.len() - from);
                    input.splice(at..at, other[from..from + len].iter().copied());
                }
            }
            _ => input.truncate(at),
        }
    }
    input.truncate(MUTATED_BYTES_MAX);
    input
}

#[test]
fn qapi_text_holds() {
    run("qapi_text", qapi_text, 2000);
}

#[test]
fn qmp_bytes_hold() {
    run("qmp_bytes", qmp_bytes, 2000);
}

#[test]
fn qcow2_images_hold() {
    run("qcow2_image", qcow2_image, 500);
}

#[test]
fn nbd_client_bytes_hold() {
    run("nbd_client_bytes", nbd_client_bytes, 2000);
}

#[test]
fn kernel_images_hold() {
    run("kernel_image", kernel_image, 2000);
}

#[test]
fn option_text_holds() {
    run("option_text", option_text, 2000);
}

#[test]
fn pc_registers_hold() {
    run("pc_registers", pc_registers, 500);
}

#[test]
fn virtio_drivers_hold() {
    run("virtio_driver", virtio_driver, 3000);
}

/// The oracles have something to compare: QEMU's images are accepted by both readers.
#[test]
fn seed_images_are_read_and_written() {
    let (mut sound, mut modelled) = (0, 0);
    let seeds = seeds("qcow2_image");
    for (path, bytes) in &seeds {
        let compared = compare_and_write(&unpack_image(bytes));
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        if name.starts_with("wrong-") {
            assert!(!compared.was_sound, "{name} is sound");
            continue;
        }
        assert!(compared.bytes_read > 4096, "{name}: {compared:?}");
        // Too many counts for a check: only read.
        if name.starts_with("wide-") {
            continue;
        }
        assert!(compared.was_sound, "{name}: {compared:?}");
        sound += 1;
        modelled += usize::from(compared.bytes_written > 0);
    }
    assert!(sound >= 12, "{sound} sound seeds");
    assert!(
        modelled * 3 >= sound * 2,
        "{modelled} of {sound} were modelled"
    );
}

#[test]
fn packed_images_are_the_same_after_unpacking() {
    for (path, bytes) in seeds("qcow2_image") {
        let image = unpack_image(&bytes);
        let again = pack_image(&image).map(|packed| unpack_image(&packed));
        assert!(again.as_ref() == Some(&image), "{}", path.display());
    }
}
