//! Interrupt controllers in the kernel: small guests that are interrupted, in each mode that the kernel offers. They need
//! `/dev/kvm`; RATITE_NO_KVM=1 says that this host has none, and skips them.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic; that is how it fails"
)]

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use accel_kvm::IrqchipMode;
use guest_memory::{GuestPhysAddr, RegionKind};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use support::*;
use vcpu::{
    Accelerator, Activity, Exit, FullIrqchip, ISA_LINES, KernelIrqchip, Msi, SplitIrqchip, Vcpu,
    VcpuError,
};

const APIC: u64 = 0xfee0_0000;
const IOAPIC: u64 = 0xfec0_0000;
/// Where a handler says its vector.
const VECTOR_PORT: u16 = 0x80;
/// The guest is ready for interrupts.
const READY: u16 = 0x10;
/// Handlers with an end of interrupt: 64 bytes to each vector.
const ENDING_HANDLERS: u64 = 0x4_0000;
const PATIENCE: Duration = Duration::from_secs(20);
/// Long enough for an interrupt that must not come.
const WHILE: Duration = Duration::from_millis(200);

const MODES: [IrqchipMode; 2] = [IrqchipMode::Split, IrqchipMode::On];

/// Runs until an exit that is not a kick. `None` if there is none for this long: the vCPU is in the kernel, halted.
fn run_for(vcpu: &mut dyn Vcpu, long: Duration) -> Option<Exit> {
    let kicker = vcpu.kicker();
    let (done, is_done) = mpsc::channel();
    let timed_out = Arc::new(AtomicBool::new(false));
    let waits = std::thread::spawn({
        let timed_out = Arc::clone(&timed_out);
        move || {
            if is_done.recv_timeout(long).is_err() {
                timed_out.store(true, Ordering::SeqCst);
                kicker.kick();
            }
        }
    });
    let mut exit = vcpu.run().unwrap();
    // A processor that has been started comes back once.
    while exit == Exit::Kicked && !timed_out.load(Ordering::SeqCst) {
        exit = vcpu.run().unwrap();
    }
    // Who has timed out has hung up.
    let _ = done.send(());
    waits.join().unwrap();
    (exit != Exit::Kicked).then_some(exit)
}

fn run(vcpu: &mut dyn Vcpu) -> Exit {
    run_for(vcpu, PATIENCE).unwrap()
}

fn said(vector: u8) -> Exit {
    out(VECTOR_PORT, vector)
}

/// Long mode with a local APIC that is on, and handlers that say their vector and end the interrupt; then `prepare`, a
/// word that it is ready, and a loop of HLT with interrupts on.
fn waiting(
    guest: &Guest,
    prepare: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Box<dyn Vcpu> {
    let vcpu = guest.long(|a| {
        a.mov(rbx, APIC)?;
        a.mov(dword_ptr(rbx + 0xf0), 0x1ff)?;
        // The kernel lets the boot processor listen to the 8259, which asks before it is initialised.
        a.mov(dword_ptr(rbx + 0x350), 0x1_0700)?;
        prepare(a)?;
        a.out(i32::from(READY), al)?;
        a.sti()?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.hlt()?;
        a.jmp(again)
    });
    for vector in 0x20..0x80_u64 {
        let at = ENDING_HANDLERS + vector * 64;
        guest.assemble(64, at, |a| {
            a.mov(al, vector as i32)?;
            a.out(i32::from(VECTOR_PORT), al)?;
            a.mov(dword_ptr(rbx + 0xb0), 0)?;
            a.iretq()
        });
        guest.put(IDT + vector * 16, &gate64(at));
    }
    vcpu
}

fn full(guest: &Guest) -> Arc<dyn FullIrqchip> {
    match guest.kvm.irqchip() {
        Some(KernelIrqchip::Full(chip)) => chip,
        other => panic!("{other:?}"),
    }
}

fn split(guest: &Guest) -> Arc<dyn SplitIrqchip> {
    match guest.kvm.irqchip() {
        Some(KernelIrqchip::Split(chip)) => chip,
        other => panic!("{other:?}"),
    }
}

fn send(guest: &Guest, data: u32) {
    let irqchip = guest.kvm.irqchip().unwrap();
    irqchip
        .apics()
        .send_msi(Msi {
            address: APIC,
            data,
        })
        .unwrap();
}

/// Nothing more comes than what is sent now.
fn check_quiet(guest: &Guest, vcpu: &mut dyn Vcpu) {
    assert_eq!(run_for(vcpu, WHILE), None);
    send(guest, 0x7f);
    assert_eq!(run(vcpu), said(0x7f));
}

#[test]
fn the_local_timer_ends_a_halt() {
    for guest in MODES.into_iter().filter_map(Guest::with) {
        let mut vcpu = waiting(&guest, |a| {
            // One shot of a million counts of 1 ns.
            a.mov(dword_ptr(rbx + 0x3e0), 0xb)?;
            a.mov(dword_ptr(rbx + 0x320), 0x40)?;
            a.mov(dword_ptr(rbx + 0x380), 1_000_000)
        });
        assert!(matches!(run(&mut *vcpu), Exit::PortOut { port: READY, .. }));
        assert_eq!(run(&mut *vcpu), said(0x40));
        assert_eq!(run_for(&mut *vcpu, WHILE), None);
        // The time goes on.
        let state = |vcpu: &dyn Vcpu| {
            let mut state = vcpu.state().unwrap();
            state.msrs.retain(|msr| msr.index != 0x10);
            state
        };
        let halted = state(&*vcpu);
        let apic = halted.local_apic.clone().unwrap();
        assert_eq!(apic.activity, Activity::Halted);
        assert_eq!((apic.register(0xf0), apic.register(0x320)), (0x1ff, 0x40));
        assert_eq!(apic.base, 0xfee0_0900);
        // The state of a halted processor is one that goes on.
        vcpu.reset().unwrap();
        let reset = vcpu.state().unwrap().local_apic.unwrap();
        assert_eq!(
            (reset.activity, reset.register(0xf0)),
            (Activity::Running, 0xff)
        );
        vcpu.set_state(&halted).unwrap();
        assert_eq!(state(&*vcpu), halted);
        // A one-shot timer that has expired expires again when the kernel is given its registers.
        if let Some(exit) = run_for(&mut *vcpu, WHILE) {
            assert_eq!(exit, said(0x40));
        }
        check_quiet(&guest, &mut *vcpu);
    }
}

#[test]
fn messages_of_devices() {
    for guest in MODES.into_iter().filter_map(Guest::with) {
        let mut vcpu = waiting(&guest, |_| Ok(()));
        // Before the APIC is on nobody listens; nor does another processor.
        send(&guest, 0x41);
        assert!(matches!(run(&mut *vcpu), Exit::PortOut { port: READY, .. }));
        let irqchip = guest.kvm.irqchip().unwrap();
        let elsewhere = Msi {
            address: APIC | 5 << 12,
            data: 0x41,
        };
        irqchip.apics().send_msi(elsewhere).unwrap();
        // The higher vector comes first.
        send(&guest, 0x41);
        send(&guest, 0x62);
        assert_eq!(run(&mut *vcpu), said(0x62));
        assert_eq!(run(&mut *vcpu), said(0x41));
        check_quiet(&guest, &mut *vcpu);
    }
}

#[test]
fn an_nmi_ends_a_halt() {
    for guest in MODES.into_iter().filter_map(Guest::with) {
        let mut vcpu = waiting(&guest, |_| Ok(()));
        guest.put(IDT + 2 * 16, &gate64(0xc000));
        guest.assemble(64, 0xc000, |a| {
            a.out(0x81, al)?;
            a.iretq()
        });
        assert!(matches!(run(&mut *vcpu), Exit::PortOut { port: READY, .. }));
        assert_eq!(run_for(&mut *vcpu, WHILE), None);
        vcpu.inject_nmi().unwrap();
        assert!(matches!(run(&mut *vcpu), Exit::PortOut { port: 0x81, .. }));
        check_quiet(&guest, &mut *vcpu);
    }
}

/// Writes a redirection of the I/O APIC.
fn redirect(a: &mut CodeAssembler, input: i32, value: i32) -> Result<(), IcedError> {
    a.mov(rcx, IOAPIC)?;
    a.mov(dword_ptr(rcx), 0x11 + 2 * input)?;
    a.mov(dword_ptr(rcx + 0x10), 0)?;
    a.mov(dword_ptr(rcx), 0x10 + 2 * input)?;
    a.mov(dword_ptr(rcx + 0x10), value)
}

#[test]
fn edges_and_levels_of_the_kernels_ioapic() {
    let Some(guest) = Guest::with(IrqchipMode::On) else {
        return;
    };
    let chip = full(&guest);
    let mut vcpu = waiting(&guest, |a| {
        redirect(a, 2, 0x50)?;
        redirect(a, 4, 0x51)?;
        redirect(a, 20, 0x8052)
    });
    assert!(matches!(run(&mut *vcpu), Exit::PortOut { port: READY, .. }));
    let line = |line: u32, high: bool| chip.set_line(line, high).unwrap();
    // IRQ 0 is input 2; the line's fall says nothing.
    for (irq, vector) in [(4, 0x51), (0, 0x50), (ISA_LINES + 4, 0x51)] {
        line(irq, true);
        assert_eq!(run(&mut *vcpu), said(vector));
        line(irq, true);
        line(irq, false);
        check_quiet(&guest, &mut *vcpu);
    }
    // A level asks again as long as it is high.
    line(ISA_LINES + 20, true);
    for _ in 0..3 {
        assert_eq!(run(&mut *vcpu), said(0x52));
    }
    line(ISA_LINES + 20, false);
    // One more may be on its way: kvm_pvm has been seen to bring it.
    if let Some(exit) = run_for(&mut *vcpu, WHILE) {
        assert_eq!(exit, said(0x52));
    }
    check_quiet(&guest, &mut *vcpu);
    // Its state goes round, and a reset forgets the redirections.
    let state = chip.state().unwrap();
    chip.reset().unwrap();
    line(4, true);
    line(4, false);
    check_quiet(&guest, &mut *vcpu);
    chip.set_state(&state).unwrap();
    assert_eq!(chip.state().unwrap(), state);
    line(4, true);
    assert_eq!(run(&mut *vcpu), said(0x51));
    let mut wrong = state;
    wrong[0].bytes.pop();
    assert!(matches!(
        chip.set_state(&wrong),
        Err(VcpuError::BadState(_))
    ));
}

#[test]
fn ends_of_level_messages_are_told() {
    let Some(guest) = Guest::with(IrqchipMode::Split) else {
        return;
    };
    let chip = split(&guest);
    let mut vcpu = waiting(&guest, |_| Ok(()));
    assert!(matches!(run(&mut *vcpu), Exit::PortOut { port: READY, .. }));
    let level = Msi {
        address: APIC,
        data: 0xc052,
    };
    chip.set_level_messages(&[level]).unwrap();
    for _ in 0..2 {
        chip.send_msi(level).unwrap();
        // kvm_pvm has been seen to tell of the last end twice, which does no harm: the I/O APIC
        // looks at its input again.
        let mut exit = run(&mut *vcpu);
        while exit == Exit::EndOfInterrupt(0x52) {
            exit = run(&mut *vcpu);
        }
        assert_eq!(exit, said(0x52));
        assert_eq!(run(&mut *vcpu), Exit::EndOfInterrupt(0x52));
    }
    send(&guest, 0x53);
    assert_eq!(run(&mut *vcpu), said(0x53));
    check_quiet(&guest, &mut *vcpu);
}

/// Lets external interrupts in at LINT0.
fn listen(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(dword_ptr(rbx + 0x350), 0x700)
}

#[test]
fn external_interrupts_of_the_kernels_pic() {
    let Some(guest) = Guest::with(IrqchipMode::On) else {
        return;
    };
    let chip = full(&guest);
    let initial = chip.state().unwrap();
    let mut vcpu = waiting(&guest, |a| {
        listen(a)?;
        // Vectors from 0x20 and 0x28; IRQ 4, 11 and the cascade.
        let writes = [
            (0x20, 0x11),
            (0xa0, 0x11),
            (0x21, 0x20),
            (0xa1, 0x28),
            (0x21, 4),
            (0xa1, 2),
            (0x21, 1),
            (0xa1, 1),
            (0x21, 0xeb),
            (0xa1, 0xf7),
        ];
        for (port, value) in writes {
            a.mov(al, value)?;
            a.out(port, al)?;
        }
        Ok(())
    });
    for vector in [0x24, 0x2b_u64] {
        guest.assemble(64, ENDING_HANDLERS + vector * 64, |a| {
            a.mov(al, vector as i32)?;
            a.out(i32::from(VECTOR_PORT), al)?;
            a.mov(al, 0x20)?;
            a.out(0xa0, al)?;
            a.out(0x20, al)?;
            a.iretq()
        });
    }
    assert!(matches!(run(&mut *vcpu), Exit::PortOut { port: READY, .. }));
    assert!(!vcpu.can_take_interrupt());
    assert!(matches!(
        vcpu.inject_interrupt(0x24),
        Err(VcpuError::CannotInject(0x24))
    ));
    chip.set_line(4, true).unwrap();
    assert_eq!(run(&mut *vcpu), said(0x24));
    check_quiet(&guest, &mut *vcpu);
    // By its edge/level register IRQ 11 is a level.
    chip.set_edge_level(1 << 11).unwrap();
    chip.set_line(11, true).unwrap();
    for _ in 0..3 {
        assert_eq!(run(&mut *vcpu), said(0x2b));
    }
    chip.set_line(11, false).unwrap();
    check_quiet(&guest, &mut *vcpu);
    chip.reset().unwrap();
    assert_eq!(chip.state().unwrap(), initial);
}

#[test]
fn external_interrupts_of_the_board() {
    let Some(guest) = Guest::with(IrqchipMode::Split) else {
        return;
    };
    let mut vcpu = waiting(&guest, listen);
    // Who does not listen has no window.
    vcpu.request_interrupt_window(true);
    assert!(matches!(run(&mut *vcpu), Exit::PortOut { port: READY, .. }));
    for vector in [0x24, 0x2b] {
        assert_eq!(run(&mut *vcpu), Exit::InterruptWindow);
        assert!(vcpu.can_take_interrupt());
        vcpu.inject_interrupt(vector).unwrap();
        assert!(!vcpu.can_take_interrupt());
        assert!(vcpu.inject_interrupt(vector).is_err());
        assert_eq!(run(&mut *vcpu), said(vector));
    }
    vcpu.request_interrupt_window(false);
    check_quiet(&guest, &mut *vcpu);
    // A halted processor takes one when it is kicked.
    assert_eq!(run_for(&mut *vcpu, WHILE), None);
    assert!(vcpu.can_take_interrupt());
    vcpu.inject_interrupt(0x25).unwrap();
    assert_eq!(run(&mut *vcpu), said(0x25));
}

#[test]
fn a_processor_starts_another_which_answers() {
    for guest in MODES.into_iter().filter_map(Guest::with) {
        if guest.kvm.host_cpuid(0).answer(1, 0).ecx & 1 << 21 == 0 {
            eprintln!("skipped: this host has no x2APIC");
            return;
        }
        let mut boots = waiting(&guest, |a| {
            // INIT, then start at 0x9000.
            a.mov(dword_ptr(rbx + 0x310), 1 << 24)?;
            a.mov(dword_ptr(rbx + 0x300), 0x4500)?;
            a.mov(dword_ptr(rbx + 0x300), 0x4609)
        });
        guest.assemble(16, 0x9000, |a| {
            a.mov(al, i32::from(b'2'))?;
            a.out(0x82, al)?;
            // x2APIC mode, on; an interrupt to processor 0.
            for (msr, value) in [(0x1b, 0xfee0_0c00_u32), (0x80f, 0x1ff), (0x830, 0x4061)] {
                a.mov(ecx, msr)?;
                a.mov(eax, value)?;
                a.xor(edx, edx)?;
                a.wrmsr()?;
            }
            a.cli()?;
            a.hlt()
        });
        let mut other = guest.vcpu(1);
        // Nobody is there to take it, now or when the processor has been started.
        other.inject_nmi().unwrap();
        for _ in 0..2 {
            let waits = other.state().unwrap().local_apic.unwrap().activity;
            assert_eq!(waits, Activity::WaitsForInit);
            assert_eq!(run_for(&mut *other, WHILE), None);
            let runs = std::thread::spawn(move || {
                assert_eq!(run(&mut *other), out(0x82, b'2'));
                assert_eq!(run_for(&mut *other, WHILE), None);
                other
            });
            assert!(matches!(
                run(&mut *boots),
                Exit::PortOut { port: READY, .. }
            ));
            assert_eq!(run(&mut *boots), said(0x61));
            other = runs.join().unwrap();
            let apic = other.state().unwrap().local_apic.unwrap();
            assert_eq!((apic.activity, apic.base), (Activity::Halted, 0xfee0_0c00));
            // And the same again after a reset.
            other.reset().unwrap();
            boots.reset().unwrap();
            let start = long_state(&*boots, CODE);
            boots.set_state(&start).unwrap();
        }
    }
}

#[test]
fn the_map_changes_under_halted_vcpus() {
    const MOVED: u64 = 0x20_0000;
    for guest in MODES.into_iter().filter_map(Guest::with) {
        let hidden = guest
            .memory
            .add_ram(GuestPhysAddr(0x30_0000), 0x1000)
            .unwrap();
        guest.memory.remove(hidden.start).unwrap();
        let mut halted = waiting(&guest, |_| Ok(()));
        assert!(matches!(
            run(&mut *halted),
            Exit::PortOut { port: READY, .. }
        ));
        guest.assemble(64, 0xd000, |a| {
            a.mov(rbx, MOVED)?;
            a.inc(qword_ptr(rbx))?;
            a.out(0x83, al)?;
            a.hlt()
        });
        let mut other = guest.vcpu(1);
        let mut start = long_state(&*other, 0xd000);
        start.local_apic = None;
        let stop = Arc::new(AtomicBool::new(false));
        let kicker = halted.kicker();
        let runner = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                // In the kernel, but for the time in which slots change.
                while !stop.load(Ordering::SeqCst) {
                    assert_eq!(halted.run().unwrap(), Exit::Kicked);
                }
                halted
            }
        });
        for round in 1..=20_u64 {
            let ram =
                guest
                    .memory
                    .add_alias(GuestPhysAddr(MOVED), 0x1000, hidden.ram, RegionKind::Ram);
            ram.unwrap();
            other.set_state(&start).unwrap();
            assert!(matches!(run(&mut *other), Exit::PortOut { port: 0x83, .. }));
            let mut bytes = [0; 8];
            guest.memory.read(GuestPhysAddr(MOVED), &mut bytes).unwrap();
            assert_eq!(u64::from_le_bytes(bytes), round);
            guest.memory.remove(GuestPhysAddr(MOVED)).unwrap();
            other.reset().unwrap();
        }
        stop.store(true, Ordering::SeqCst);
        kicker.kick();
        let mut halted = runner.join().unwrap();
        check_quiet(&guest, &mut *halted);
    }
}
