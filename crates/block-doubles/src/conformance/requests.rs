//! Requests one after the other.

use std::sync::Arc;

use block_graph::{BlockErrorKind, GraphError, Permission, Permissions, Preallocation, WriteFlags};
use host_io::{IoBuf, IoBytes};

use super::trial::{Trial, kind_of, noise};
use super::{Case, DISK_BYTES, DiskMaker};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "a fresh disk reads as fresh",
        run: |maker| Box::pin(fresh(maker)),
    },
    Case {
        name: "odd offsets, odd lengths and all borders",
        run: |maker| Box::pin(borders(maker)),
    },
    Case {
        name: "a whole disk in one request",
        run: |maker| Box::pin(whole(maker)),
    },
    Case {
        name: "disks of few bytes",
        run: |maker| Box::pin(small(maker)),
    },
    Case {
        name: "requests of no bytes",
        run: |maker| Box::pin(nothing(maker)),
    },
    Case {
        name: "out of range is refused",
        run: |maker| Box::pin(out_of_range(maker)),
    },
    Case {
        name: "zeroes with every flag",
        run: |maker| Box::pin(zeroes(maker)),
    },
    Case {
        name: "discards change nothing outside",
        run: |maker| Box::pin(discards(maker)),
    },
    Case {
        name: "a read-only node refuses changes",
        run: |maker| Box::pin(read_only(maker)),
    },
    Case {
        name: "flushed, closed and opened again",
        run: |maker| Box::pin(opened_again(maker)),
    },
    Case {
        name: "a random run against a model",
        run: |maker| Box::pin(random(maker)),
    },
];

async fn fresh(maker: Arc<dyn DiskMaker>) {
    let trial = Trial::begin(maker, DISK_BYTES).await;
    for at in (0..trial.len()).step_by(333_333) {
        let len = (trial.len() - at).min(100_001);
        trial.compare(at, &trial.read(at, len).await);
    }
    trial.end().await;
}

/// Ranges that begin or end at, right before or right behind a border.
fn ranges_at(border: u64, len: u64) -> Vec<(u64, u64)> {
    let mut ranges = Vec::new();
    for start in [-513i64, -1, 0, 1] {
        for end in [-1i64, 0, 1, 4097] {
            let start = border.checked_add_signed(start);
            let end = border.checked_add_signed(end);
            if let (Some(start), Some(end)) = (start, end)
                && start < end
                && end <= len
            {
                ranges.push((start, end - start));
            }
        }
    }
    ranges
}

async fn borders(maker: Arc<dyn DiskMaker>) {
    let mut trial = Trial::begin(maker, DISK_BYTES).await;
    let len = trial.len();
    for border in [0, 512, 4096, 65_536, 2 << 20, 4 << 20, len] {
        for (number, (at, len)) in ranges_at(border, len).into_iter().enumerate() {
            if number % 5 == 4 {
                trial.zero(at, len, WriteFlags::empty()).await;
            } else {
                trial.write_noise(at, len).await;
            }
            trial.check_around(at, len).await;
            trial.compare(at, &trial.read(at, len).await);
        }
    }
    trial.end().await;
}

async fn whole(maker: Arc<dyn DiskMaker>) {
    let mut trial = Trial::begin(maker, DISK_BYTES).await;
    let len = trial.len();
    trial.write_noise(0, len).await;
    trial.check_all().await;
    trial.reopen(false).await;
    trial.write_noise(0, len).await;
    trial.check_all().await;
    trial.discard(0, len).await;
    trial.write_noise(1, len - 2).await;
    trial.check_all().await;
    trial.zero(0, len, WriteFlags::MAY_UNMAP).await;
    trial.end().await;
}

async fn small(maker: Arc<dyn DiskMaker>) {
    let unit = maker.abilities().length_unit;
    let mut trial = Trial::begin(maker, unit).await;
    for size in [unit, unit * 3, 512, 1536, 65_536 + 512] {
        trial = trial.start_over(size).await;
        trial.write_noise(size - 1, 1).await;
        trial.write_noise(0, 1).await;
        trial.check_all().await;
        trial.write_noise(0, size).await;
    }
    trial = trial.start_over(0).await;
    let beyond = trial.backend().read(0, IoBuf::with_len(1)).await;
    assert_eq!(kind_of(beyond), Some(BlockErrorKind::OutOfRange));
    trial.end().await;
}

async fn nothing(maker: Arc<dyn DiskMaker>) {
    let mut trial = Trial::begin(maker, DISK_BYTES).await;
    for at in [0, 1, 65_536, trial.len()] {
        assert!(trial.read(at, 0).await.is_empty());
        trial.write(at, &[], WriteFlags::empty()).await;
        trial.write(at, &[], WriteFlags::FUA).await;
        assert!(trial.zero(at, 0, WriteFlags::empty()).await);
        trial.backend().discard(at, 0).await.unwrap();
    }
    trial.end().await;
}

async fn out_of_range(maker: Arc<dyn DiskMaker>) {
    let mut trial = Trial::begin(maker, DISK_BYTES).await;
    trial.furnish().await;
    let len = trial.len();
    let refused = Some(BlockErrorKind::OutOfRange);
    for (at, count) in [
        (len, 1),
        (len - 1, 2),
        (len + 1, 0),
        (0, len + 1),
        (u64::MAX, 1),
        (u64::MAX - 10, 20),
        (1 << 63, 512),
    ] {
        let backend = trial.backend();
        let status = backend.status(at, count).await;
        assert_eq!(kind_of(status), refused, "status of {count} at {at}");
        let discarded = backend.discard(at, count).await;
        assert_eq!(kind_of(discarded), refused, "discard of {count} at {at}");
        for flags in [WriteFlags::empty(), WriteFlags::MAY_UNMAP] {
            let zeroed = backend.write_zeroes(at, count, flags).await;
            assert_eq!(kind_of(zeroed), refused, "zeroes of {count} at {at}");
        }
        let bytes = vec![7; count as usize];
        let read = backend.read(at, IoBuf::copy_of(&bytes)).await;
        assert_eq!(kind_of(read), refused, "read of {count} at {at}");
        let data = IoBytes::copy_of(&bytes);
        let written = backend.write(at, data, WriteFlags::empty()).await;
        assert_eq!(kind_of(written), refused, "write of {count} at {at}");
    }
    trial.check_all().await;
    trial.end().await;
}

async fn zeroes(maker: Arc<dyn DiskMaker>) {
    let mut trial = Trial::begin(maker, DISK_BYTES).await;
    let all = [
        WriteFlags::FUA,
        WriteFlags::MAY_UNMAP,
        WriteFlags::NO_FALLBACK,
    ];
    for set in 0..1 << all.len() {
        let chosen = all
            .iter()
            .enumerate()
            .filter(|(bit, _)| set >> bit & 1 == 1);
        let flags = chosen.fold(WriteFlags::empty(), |sum, (_, flag)| sum | *flag);
        for (at, len) in [
            (65_536, 65_536),
            (4096, 512),
            (300_001, 77_777),
            ((2 << 20) - 3, 7),
            (trial.len() - 1000, 1000),
        ] {
            let from = at - 1000;
            let around = (len + 2000).min(trial.len() - from);
            trial.write_noise(from, around).await;
            // Refused or not, all else is as before.
            trial.zero(at, len, flags).await;
            trial.check_around(at, len).await;
            // And over what is zero already.
            trial.zero(at, len, flags).await;
            trial.check_around(at, len).await;
        }
        trial.zero(1 << 20, 2 << 20, flags).await;
    }
    trial.end().await;
}

async fn discards(maker: Arc<dyn DiskMaker>) {
    let mut trial = Trial::begin(maker, DISK_BYTES).await;
    let len = trial.len();
    trial.write_noise(0, len).await;
    for (at, count) in [
        (0, 1),
        (511, 2),
        (4096, 4096),
        (65_536 - 1, 65_538),
        (200_000, 300_000),
        (1 << 20, 2 << 20),
        (len - 700, 700),
    ] {
        trial.discard(at, count).await;
        trial.check_around(at, count).await;
        trial.discard(at, count).await;
    }
    trial.check_all().await;
    trial.write_noise(65_000, 140_000).await;
    trial.end().await;
}

async fn read_only(maker: Arc<dyn DiskMaker>) {
    let mut trial = Trial::begin(maker, DISK_BYTES).await;
    trial.furnish().await;
    trial.reopen(true).await;
    let refused = Some(BlockErrorKind::ReadOnly);
    let none = WriteFlags::empty();
    let data = || IoBytes::copy_of(&[9; 4096]);
    {
        let (node, backend) = (trial.node(), trial.backend());
        assert!(!backend.is_writable());
        assert_eq!(kind_of(backend.write(0, data(), none).await), refused);
        assert_eq!(kind_of(backend.write_zeroes(0, 4096, none).await), refused);
        assert_eq!(kind_of(backend.discard(0, 4096).await), refused);
        assert_eq!(kind_of(node.write(0, data(), none).await), refused);
        assert_eq!(kind_of(node.write_zeroes(0, 4096, none).await), refused);
        assert_eq!(kind_of(node.discard(0, 4096).await), refused);
        for length in [512, DISK_BYTES * 2] {
            let how = Preallocation::Off;
            assert_eq!(kind_of(node.resize(length, true, how).await), refused);
            assert_eq!(kind_of(backend.resize(length, true, how).await), refused);
        }
        let asked = Permissions {
            required: Permission::WRITE,
            shared: Permission::all(),
        };
        let graph = block_graph::Graph::default();
        let attached = graph.attach_backend("a writer", node, asked);
        let refusal = attached.err();
        let good = matches!(
            refusal,
            Some(GraphError::ReadOnly | GraphError::Conflict { .. })
        );
        assert!(good, "{refusal:?}");
        backend.flush().await.unwrap();
    }
    trial.check_all().await;
    trial.end().await;
}

async fn opened_again(maker: Arc<dyn DiskMaker>) {
    let mut trial = Trial::begin(maker, DISK_BYTES).await;
    trial.backend().flush().await.unwrap();
    trial.furnish().await;
    trial.backend().flush().await.unwrap();
    trial.reopen(false).await;
    let data = noise(4, 12_345);
    trial.write(54_321, &data, WriteFlags::FUA).await;
    trial.reopen(true).await;
    trial.reopen(false).await;
    // The same instance closed, and brought back into use.
    trial.node().driver().close().await.unwrap();
    trial.node().driver().activate().await.unwrap();
    trial.check_all().await;
    trial.write_noise(2_000_000, 200_000).await;
    trial.node().driver().close().await.unwrap();
    trial.node().driver().activate().await.unwrap();
    trial.zero(2_050_000, 1000, WriteFlags::empty()).await;
    trial.end().await;
}

async fn random(maker: Arc<dyn DiskMaker>) {
    for seed in 1..=3 {
        println!("seed {seed}");
        let mut trial = Trial::begin(Arc::clone(&maker), DISK_BYTES).await;
        trial.rng = crate::Rng::new(seed);
        for _ in 0..250 {
            random_step(&mut trial).await;
        }
        trial.end().await;
    }
}

async fn random_step(trial: &mut Trial) {
    let unit = trial.abilities.length_unit;
    let at = trial.rng.below(trial.len());
    let most = [600, 9000, 200_000][trial.rng.below(3) as usize];
    let len = (1 + trial.rng.below(most)).min(trial.len() - at);
    let (at, len) = if trial.rng.one_in(3) {
        (at / 4096 * 4096, len.min(trial.len() - at))
    } else {
        (at, len)
    };
    match trial.rng.below(16) {
        0..=5 => trial.write_noise(at, len).await,
        6..=7 => {
            let bits = trial.rng.next_u64() as u32 & 7;
            trial
                .zero(at, len, WriteFlags::from_bits_truncate(bits))
                .await;
        }
        8 => trial.discard(at, len).await,
        9 => trial.backend().flush().await.unwrap(),
        10 if trial.rng.one_in(4) => {
            let least = DISK_BYTES / 2 / unit;
            let length = (least + trial.rng.below(DISK_BYTES / unit)) * unit;
            trial.resize(length).await;
        }
        11 if trial.rng.one_in(4) => trial.reopen(false).await,
        12 => trial.check_all().await,
        _ => trial.compare(at, &trial.read(at, len).await),
    }
}
