use std::sync::Arc;

use device::conformance::{Subject, check};
use device::pci::PciFunction;
use device::{Clock, Device, Error, IoHandler, ResetKind, SavedState, Width};

use super::{PRIMARY, Rig};
use crate::{DriveKind, IdePlace};

/// The device, as it is when the machine stands and nothing is under way.
struct Quiet(Rig);

impl Device for Quiet {
    fn reset(&self, kind: ResetKind) {
        self.0.ide.reset(kind);
        self.0.quiet();
    }

    fn save(&self) -> Result<SavedState, Error> {
        self.0.quiet();
        self.0.ide.save()
    }

    fn restore(&self, state: &SavedState) -> Result<(), Error> {
        let restored = self.0.ide.restore(state);
        self.0.quiet();
        restored
    }
}

/// The bus master's ports, wherever the function says they are.
struct Masters(Arc<Quiet>);

impl IoHandler for Masters {
    fn read(&self, offset: u64, width: Width) -> u64 {
        if offset < 16 {
            self.0.0.ports.read(0xc000 + offset, width)
        } else {
            width.ones()
        }
    }

    fn write(&self, offset: u64, width: Width, value: u64) {
        if offset < 16 {
            self.0.0.ports.write(0xc000 + offset, width, value);
        }
    }
}

fn subject(rig: Rig) -> Subject {
    let ranges = vec![
        (rig.command.clone(), 8),
        (rig.control.clone(), 1),
        (rig.ide.handler(1, crate::IdePart::Command).unwrap(), 8),
    ];
    let device = Arc::new(Quiet(rig));
    let mut subject = Subject {
        device: device.clone(),
        ranges,
        clock: Clock::stepped(),
        kept_by_reset: &[],
    };
    subject.ranges.push((Arc::new(Masters(device)), 16));
    subject
}

#[test]
fn a_disk_conforms() {
    check(|| subject(Rig::disk(300)));
}

#[test]
fn a_cdrom_conforms() {
    check(|| subject(Rig::cdrom(100)));
}

#[test]
fn an_empty_cdrom_conforms() {
    check(|| subject(Rig::cdrom(0)));
}

#[test]
fn nothing_happens_during_a_pause() {
    let rig = Rig::disk(100);
    rig.storage.hold_at_offset(512);
    rig.start_dma(&[(0x1_0000, 0x200)], true);
    rig.issue(0xc8, 1, 1);
    while !rig.storage.is_holding() {
        std::thread::yield_now();
    }
    rig.ide.pause();
    let saved = rig.ide.save().unwrap();
    rig.storage.release();
    rig.quiet();
    assert_eq!(rig.in_memory(0x1_0000, 0x200), [0; 0x200]);
    assert!(!rig.pins.level(14));
    rig.ide.resume();
    assert_eq!(rig.interrupted(), 0x50);
    let content = rig.storage.content();
    assert_eq!(rig.in_memory(0x1_0000, 0x200), content[512..1024]);
    // What was under way is part of the state, and is done where that is restored.
    let other = Rig::disk(100);
    other.start_dma(&[(0x1_0000, 0x200)], true);
    other.ide.restore(&saved).unwrap();
    assert_eq!(other.interrupted(), 0x50);
    assert_eq!(other.in_memory(0x1_0000, 0x200), content[512..1024]);
}

#[test]
fn a_reset_forgets_what_is_under_way() {
    let rig = Rig::disk(100);
    let content = rig.storage.content();
    rig.storage.hold_at_offset(512);
    rig.issue(0x20, 1, 1);
    while !rig.storage.is_holding() {
        std::thread::yield_now();
    }
    rig.control.write(0, Width::Byte, 4);
    rig.control.write(0, Width::Byte, 0);
    assert_eq!(rig.settled(), 0x50);
    // The next request begins when the last one has ended at the node.
    rig.issue(0x20, 7, 1);
    assert_eq!(rig.control.read(0, Width::Byte), 0xd0);
    rig.storage.release();
    assert_eq!(rig.interrupted(), 0x58);
    assert_eq!(rig.words(512), content[7 * 512..][..512]);
}

#[test]
fn places_and_the_end() {
    let rig = Rig::disk(100);
    let options = |kind| crate::DriveOptions {
        kind,
        medium: None,
        executor: rig._executor.handle(),
        serial: String::new(),
        model: String::new(),
        version: String::new(),
        write_cache: true,
        rerror: api::BlockdevOnError::Auto,
        werror: api::BlockdevOnError::Auto,
        events: rig.events.clone(),
    };
    let place = |channel, unit| IdePlace { channel, unit };
    let attach = |place, kind| rig.ide.attach(place, options(kind));
    assert!(matches!(
        attach(PRIMARY, DriveKind::CdRom),
        Err(crate::Error::Taken { unit: 0 })
    ));
    assert!(matches!(
        attach(place(0, 1), DriveKind::Disk),
        Err(crate::Error::NoMedium)
    ));
    for nowhere in [place(2, 0), place(0, 2)] {
        let refused = attach(nowhere, DriveKind::CdRom);
        assert!(matches!(refused, Err(crate::Error::NoSuchPlace { .. })));
    }
    attach(place(1, 1), DriveKind::CdRom).unwrap();
    assert!(rig.ide.handler(2, crate::IdePart::Command).is_none());
    assert_eq!(rig.ide.header().read(8, Width::Dword) >> 8, 0x01_0180);
    let executor = rig._executor.handle();
    let ide = Arc::clone(&rig.ide);
    let (done, waits) = std::sync::mpsc::channel();
    executor
        .spawn(move || async move {
            ide.shutdown().await;
            let _ = done.send(());
        })
        .detach();
    waits.recv().unwrap();
    rig.issue(0x20, 0, 1);
    assert_eq!(
        rig.control.read(0, Width::Byte),
        0xd0,
        "nobody serves it any more"
    );
}
