//! Small guests under KVM. They need `/dev/kvm`; RATITE_NO_KVM=1 says that this host has none, and skips them.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic; that is how it fails"
)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use guest_memory::{GuestPhysAddr, RegionKind};
use iced_x86::code_asm::*;
use support::*;
use vcpu::{Accelerator, Completion, DirtyLog, Event, Exit, SegmentRegister, VcpuError, VcpuState};

#[test]
fn from_the_reset_vector() {
    let Some(guest) = Guest::new() else { return };
    // The last 64 KiB under 4 GiB are ROM, added when the vCPU is there already.
    let mut vcpu = guest.vcpu(0);
    let mut rom = vec![0x90; 0x1_0000];
    rom[0xfff0..0xfff5].copy_from_slice(&[0xea, 0x00, 0x00, 0x00, 0x10]);
    guest
        .memory
        .add_rom(GuestPhysAddr(0xffff_0000), &rom)
        .unwrap();
    guest.assemble(16, CODE, |a| {
        a.mov(eax, edx)?;
        a.mov(dx, 0x402)?;
        a.out(dx, eax)?;
        a.hlt()
    });
    let signature = guest.kvm.host_cpuid(0).answer(1, 0).eax;
    for _ in 0..2 {
        let expected = Exit::PortOut {
            port: 0x402,
            size: 4,
            data: signature.to_le_bytes().to_vec(),
        };
        assert_eq!(vcpu.run().unwrap(), expected);
        assert!(matches!(vcpu.state(), Err(VcpuError::InFlight)));
        assert_eq!(vcpu.run().unwrap(), Exit::Halt);
        let state = vcpu.state().unwrap();
        assert_eq!(state.registers.rip, 9);
        assert_eq!(
            state.system.segments[SegmentRegister::Cs as usize].base,
            CODE
        );
        vcpu.reset().unwrap();
        assert_eq!(vcpu.state().unwrap().registers.rip, 0xfff0);
    }
}

#[test]
fn ports_with_strings() {
    let Some(guest) = Guest::new() else { return };
    let mut vcpu = guest.real(|a| {
        a.cld()?;
        a.mov(dx, 0x60)?;
        a.in_(al, dx)?;
        a.mov(bl, al)?;
        a.mov(di, 0x2000)?;
        a.mov(cx, 3)?;
        a.mov(dx, 0x170)?;
        a.rep().insw()?;
        a.mov(si, 0x2000)?;
        a.mov(cx, 5)?;
        a.rep().outsb()?;
        a.hlt()
    });
    let one = Exit::PortIn {
        port: 0x60,
        size: 1,
        count: 1,
    };
    assert_eq!(vcpu.run().unwrap(), one);
    assert!(matches!(vcpu.run(), Err(VcpuError::NotCompleted)));
    assert!(matches!(
        vcpu.complete(Completion::Mmio(1)),
        Err(VcpuError::WrongCompletion(_))
    ));
    assert!(vcpu.complete(Completion::PortIn(vec![1, 2])).is_err());
    vcpu.complete(Completion::PortIn(vec![0x5a])).unwrap();
    let mut given: Vec<u8> = (1..=6).rev().collect();
    let mut said = Vec::new();
    loop {
        match vcpu.run().unwrap() {
            Exit::PortIn {
                port: 0x170,
                size: 2,
                count,
            } => {
                let bytes = (0..2 * count).map(|_| given.pop().unwrap()).collect();
                vcpu.complete(Completion::PortIn(bytes)).unwrap();
            }
            Exit::PortOut {
                port: 0x170,
                size: 1,
                data,
            } => said.extend(data),
            Exit::Halt => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(given.is_empty());
    assert_eq!(said, [1, 2, 3, 4, 5]);
    assert_eq!(guest.word(0x2000), 0x0605_0403_0201);
    assert_eq!(reg(&*vcpu, 3) & 0xff, 0x5a);
}

#[test]
fn protected_and_long_mode_with_port_output() {
    let Some(guest) = Guest::new() else { return };
    guest.prepare_long_mode();
    let pointer = [&63_u16.to_le_bytes()[..], &(GDT as u32).to_le_bytes()].concat();
    guest.put(0x7000, &pointer);
    let mut vcpu = guest.real(|a| {
        a.mov(al, i32::from(b'R'))?;
        a.out(0x42, al)?;
        a.lgdt(ptr(0x7000_u64))?;
        a.mov(eax, cr0)?;
        a.or(eax, 1)?;
        a.mov(cr0, eax)?;
        // jmp 0x18:0x9000 with a 32-bit code segment
        a.db(&[0x66, 0xea, 0x00, 0x90, 0x00, 0x00, 0x18, 0x00])
    });
    guest.assemble(32, 0x9000, |a| {
        a.mov(ax, 0x10)?;
        a.mov(ds, ax)?;
        a.mov(es, ax)?;
        a.mov(ss, ax)?;
        a.mov(esp, STACK as i32)?;
        a.mov(al, i32::from(b'P'))?;
        a.out(0x42, al)?;
        a.mov(eax, TABLES as i32)?;
        a.mov(cr3, eax)?;
        a.mov(eax, 0x6a0)?;
        a.mov(cr4, eax)?;
        a.mov(ecx, 0xc000_0080_u32)?;
        a.rdmsr()?;
        a.or(eax, 0x901)?;
        a.wrmsr()?;
        a.mov(eax, cr0)?;
        a.or(eax, 0x8000_0000_u32 as i32)?;
        a.mov(cr0, eax)?;
        // jmp 8:0xb000
        a.db(&[0xea, 0x00, 0xb0, 0x00, 0x00, 0x08, 0x00])
    });
    guest.assemble(64, 0xb000, |a| {
        let mut again = a.create_label();
        a.mov(rbx, 0x1_0000_0003_u64)?;
        a.set_label(&mut again)?;
        a.mov(al, bl)?;
        a.add(al, i32::from(b'0'))?;
        a.out(0x42, al)?;
        a.dec(ebx)?;
        a.jnz(again)?;
        a.push(rbx)?;
        a.hlt()
    });
    let mut said = Vec::new();
    loop {
        match vcpu.run().unwrap() {
            Exit::PortOut {
                port: 0x42, data, ..
            } => said.extend(data),
            Exit::Halt => break,
            other => panic!("{other:?} at {:x?}", vcpu.state().unwrap().registers),
        }
    }
    assert_eq!(String::from_utf8_lossy(&said), "RP321");
    assert_eq!(vcpu.state().unwrap().system.efer & 0x500, 0x500);
}

#[test]
fn memory_that_is_none() {
    let Some(guest) = Guest::new() else { return };
    let rom = guest
        .memory
        .add_rom(GuestPhysAddr(RAM_BYTES), &[0x77; 4096])
        .unwrap();
    let mut vcpu = guest.long(|a| {
        a.mov(rbx, 0xfec0_0000_u64)?;
        a.mov(eax, dword_ptr(rbx + 0x10))?;
        a.mov(rcx, qword_ptr(rbx + 0x20))?;
        a.mov(word_ptr(rbx + 4), ax)?;
        a.mov(rdi, RAM_BYTES)?;
        a.mov(dl, byte_ptr(rdi + 9))?;
        a.mov(byte_ptr(rdi + 9), 1)?;
        a.hlt()
    });
    let read = |offset: u64, len| Exit::MmioRead {
        addr: GuestPhysAddr(0xfec0_0000 + offset),
        len,
    };
    assert_eq!(vcpu.run().unwrap(), read(0x10, 4));
    vcpu.complete(Completion::Mmio(u64::MAX << 32 | 0x1234_5678))
        .unwrap();
    assert_eq!(vcpu.run().unwrap(), read(0x20, 8));
    vcpu.complete(Completion::Mmio(0x1122_3344_5566_7788))
        .unwrap();
    let write = Exit::MmioWrite {
        addr: GuestPhysAddr(0xfec0_0004),
        len: 2,
        data: 0x5678,
    };
    assert_eq!(vcpu.run().unwrap(), write);
    // A write to ROM goes to the bus, and the ROM stays.
    let write = Exit::MmioWrite {
        addr: GuestPhysAddr(RAM_BYTES + 9),
        len: 1,
        data: 1,
    };
    assert_eq!(vcpu.run().unwrap(), write);
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    assert_eq!(reg(&*vcpu, 0), 0x1234_5678);
    assert_eq!(reg(&*vcpu, 1), 0x1122_3344_5566_7788);
    assert_eq!(reg(&*vcpu, 2) & 0xff, 0x77);
    assert_eq!(guest.word(rom.start.0 + 8), 0x7777_7777_7777_7777);
}

#[test]
fn a_halted_guest_takes_an_interrupt() {
    let Some(guest) = Guest::new() else { return };
    let mut vcpu = guest.long(|a| {
        a.sti()?;
        a.hlt()?;
        a.mov(eax, 7)?;
        a.hlt()
    });
    guest.assemble(64, 0xc000, |a| {
        a.mov(ebx, 9)?;
        a.iretq()
    });
    guest.put(IDT + 0x31 * 16, &gate64(0xc000));
    assert!(!vcpu.can_take_interrupt(), "RFLAGS.IF is not set yet");
    assert!(matches!(
        vcpu.inject_interrupt(0x31),
        Err(VcpuError::CannotInject(0x31))
    ));
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    assert_eq!(vcpu.state().unwrap().registers.rip, CODE + 2);
    assert!(vcpu.can_take_interrupt());
    vcpu.inject_interrupt(0x31).unwrap();
    assert!(!vcpu.can_take_interrupt());
    assert_eq!(vcpu.state().unwrap().event, Some(Event::Interrupt(0x31)));
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    assert_eq!((reg(&*vcpu, 0), reg(&*vcpu, 3)), (7, 9));
}

#[test]
fn a_window_opens_when_interrupts_are_allowed() {
    let Some(guest) = Guest::new() else { return };
    let mut vcpu = guest.long(|a| {
        let mut again = a.create_label();
        a.out(0x42, al)?;
        a.sti()?;
        a.set_label(&mut again)?;
        a.inc(rax)?;
        a.jmp(again)
    });
    assert_eq!(vcpu.run().unwrap(), out(0x42, 0));
    vcpu.request_interrupt_window(true);
    assert_eq!(vcpu.run().unwrap(), Exit::InterruptWindow);
    // Again and again, without progress.
    let rip = vcpu.state().unwrap().registers.rip;
    assert_eq!(vcpu.run().unwrap(), Exit::InterruptWindow);
    assert_eq!(vcpu.state().unwrap().registers.rip, rip);
    assert!(rip > CODE + 2, "behind STI: {rip:#x}");
    vcpu.inject_interrupt(0x40).unwrap();
    vcpu.request_interrupt_window(false);
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    assert_eq!(vcpu.state().unwrap().registers.rip, HANDLERS + 0x40 + 1);
    assert_eq!(guest.word(reg(&*vcpu, 4)), rip);
}

#[test]
fn an_nmi_ends_a_halt() {
    let Some(guest) = Guest::new() else { return };
    let mut vcpu = guest.long(|a| a.hlt());
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    vcpu.inject_nmi().unwrap();
    assert!(vcpu.state().unwrap().nmi_pending);
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    let state = vcpu.state().unwrap();
    assert_eq!(state.registers.rip, HANDLERS + 2 + 1);
    assert!(state.nmi_masked && !state.nmi_pending);
}

#[test]
fn msrs_of_the_board_and_of_nobody() {
    let Some(guest) = Guest::new() else { return };
    let mut vcpu = guest.long(|a| {
        a.mov(ecx, 0x1b)?;
        a.rdmsr()?;
        a.mov(esi, eax)?;
        a.wrmsr()?;
        // The kernel keeps this one.
        a.mov(ecx, 0xc000_0082_u32)?;
        a.mov(eax, 0x1234)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.mov(ecx, 0x1234_5678)?;
        a.rdmsr()?;
        a.hlt()
    });
    assert_eq!(vcpu.run().unwrap(), Exit::MsrRead { index: 0x1b });
    vcpu.complete(Completion::Msr(0x1_fee0_0900)).unwrap();
    let write = Exit::MsrWrite {
        index: 0x1b,
        value: 0x1_fee0_0900,
    };
    assert_eq!(vcpu.run().unwrap(), write);
    assert!(matches!(
        vcpu.complete(Completion::Msr(1)),
        Err(VcpuError::WrongCompletion(_))
    ));
    vcpu.complete(Completion::MsrDone).unwrap();
    assert_eq!(vcpu.run().unwrap(), Exit::MsrRead { index: 0x1234_5678 });
    vcpu.complete(Completion::MsrFault).unwrap();
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    let state = vcpu.state().unwrap();
    assert_eq!(state.registers.rip, HANDLERS + 13 + 1, "#GP");
    assert_eq!(state.registers.general[6], 0xfee0_0900);
    let kept = state.msrs.iter().find(|msr| msr.index == 0xc000_0082);
    assert_eq!(kept.unwrap().value, 0x1234);
}

#[test]
fn the_task_priority_comes_before_the_exit() {
    let Some(guest) = Guest::new() else { return };
    let mut vcpu = guest.long(|a| {
        a.mov(eax, 9)?;
        a.mov(cr8, rax)?;
        a.in_(al, 0x42)?;
        a.mov(rbx, cr8)?;
        a.mov(eax, 2)?;
        a.mov(cr8, rax)?;
        a.hlt()
    });
    assert_eq!(vcpu.run().unwrap(), Exit::TaskPriority(9));
    assert!(!vcpu.can_take_interrupt());
    let read = Exit::PortIn {
        port: 0x42,
        size: 1,
        count: 1,
    };
    let mut next = vcpu.run().unwrap();
    assert_eq!(next, read);
    vcpu.complete(Completion::PortIn(vec![0])).unwrap();
    next = vcpu.run().unwrap();
    assert_eq!(next, Exit::TaskPriority(2));
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    assert_eq!((reg(&*vcpu, 3), vcpu.state().unwrap().system.cr8), (9, 2));
}

#[test]
fn a_triple_fault_and_a_reset() {
    let Some(guest) = Guest::new() else { return };
    let mut vcpu = guest.long(|a| {
        a.mov(word_ptr(0x7100_u64), 0)?;
        a.lidt(ptr(0x7100_u64))?;
        a.ud2()
    });
    assert_eq!(vcpu.run().unwrap(), Exit::Shutdown);
    vcpu.reset().unwrap();
    let state = vcpu.state().unwrap();
    assert_eq!(
        (state.registers.rip, state.system.cr0),
        (0xfff0, 0x6000_0010)
    );
    assert_eq!(state.system.efer, 0);
    let state = long_state(&*vcpu, CODE + 0x100);
    guest.put(CODE + 0x100, &[0xf4]);
    vcpu.set_state(&state).unwrap();
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
}

#[test]
fn a_kick_ends_an_endless_loop() {
    let Some(guest) = Guest::new() else { return };
    let mut vcpu = guest.long(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.inc(rax)?;
        a.jmp(again)
    });
    let kicker = vcpu.kicker();
    // Remembered while the vCPU is not running.
    kicker.kick();
    assert_eq!(vcpu.run().unwrap(), Exit::Kicked);
    let before = reg(&*vcpu, 0);
    for _ in 0..20 {
        let kicker = Arc::clone(&kicker);
        let began = Instant::now();
        let other = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(5));
            kicker.kick();
        });
        assert_eq!(vcpu.run().unwrap(), Exit::Kicked);
        other.join().unwrap();
        assert!(began.elapsed() < Duration::from_secs(5));
    }
    assert!(reg(&*vcpu, 0) > before, "the guest ran meanwhile");
    // A kicker may outlive its vCPU.
    drop(vcpu);
    kicker.kick();
}

#[test]
fn a_vcpu_moves_to_another_thread() {
    let Some(guest) = Guest::new() else { return };
    let mut vcpu = guest.long(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.jmp(again)
    });
    let kicker = vcpu.kicker();
    let stop = Arc::new(AtomicBool::new(false));
    let runner = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            let mut kicks = 0;
            while !stop.load(Ordering::SeqCst) {
                assert_eq!(vcpu.run().unwrap(), Exit::Kicked);
                kicks += 1;
            }
            kicks
        }
    });
    for _ in 0..100 {
        kicker.kick();
        std::thread::sleep(Duration::from_micros(300));
    }
    stop.store(true, Ordering::SeqCst);
    kicker.kick();
    assert!(runner.join().unwrap() > 1);
}

#[test]
fn all_state_goes_round() {
    let Some(guest) = Guest::new() else { return };
    let mut vcpu = guest.long(|a| {
        a.movups(xmm3, xmmword_ptr(DATA))?;
        a.hlt()
    });
    guest.put(DATA, &[0x11]);
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    let mut state = vcpu.state().unwrap();
    assert_eq!(state.xsave.0[160 + 48], 0x11, "XMM3");
    for (number, place) in (0x1000..).zip(&mut state.registers.general) {
        *place = number;
    }
    state.xsave.0[160 + 48] = 0x22;
    state.system.dr = [0x1000, 0x2000, 0x3000, 0x4000];
    state.system.cr2 = 0x5555_0000;
    state.system.cr8 = 5;
    state.nmi_masked = true;
    state.registers.rflags |= 0x200;
    state.interrupt_shadow = true;
    let pat = state.msrs.iter_mut().find(|msr| msr.index == 0x277);
    pat.unwrap().value = 0x0007_0406_0007_0401;
    vcpu.set_state(&state).unwrap();
    assert!(!vcpu.can_take_interrupt(), "the shadow holds it off");
    let mut back = vcpu.state().unwrap();
    // Time goes on.
    for one in [&mut state, &mut back] {
        one.msrs.retain(|msr| msr.index != 0x10);
    }
    assert_eq!(back, state);
    // Into another vCPU, too.
    let mut other = guest.vcpu(1);
    other.set_state(&state).unwrap();
    let mut there = other.state().unwrap();
    there.msrs.retain(|msr| msr.index != 0x10);
    assert_eq!(there, state);
}

#[test]
fn states_that_cannot_be() {
    let Some(guest) = Guest::new() else { return };
    let mut vcpu = guest.vcpu(0);
    let good = vcpu.state().unwrap();
    let with = |change: fn(&mut VcpuState)| {
        let mut state = good.clone();
        change(&mut state);
        state
    };
    for bad in [
        with(|s| s.system.cr0 |= 1 << 31),
        with(|s| s.system.efer = 0x500),
        with(|s| s.system.xcr0 = 0),
        with(|s| s.system.xcr0 = 0xff),
        with(|s| s.system.cr4 = 1 << 63),
    ] {
        assert!(matches!(vcpu.set_state(&bad), Err(VcpuError::BadState(_))));
    }
    let unknown = with(|s| s.msrs[0].index = 0xdead_beef);
    assert!(matches!(
        vcpu.set_state(&unknown),
        Err(VcpuError::UnknownMsr(0xdead_beef))
    ));
    vcpu.set_state(&good).unwrap();
}

#[test]
fn an_instruction_in_flight_is_dropped_by_a_reset() {
    let Some(guest) = Guest::new() else { return };
    let mut vcpu = guest.long(|a| {
        a.mov(rbx, 0xfec0_0000_u64)?;
        a.mov(rax, qword_ptr(rbx))?;
        a.hlt()
    });
    assert!(matches!(vcpu.run().unwrap(), Exit::MmioRead { .. }));
    assert!(matches!(
        vcpu.set_state(&VcpuState::default()),
        Err(VcpuError::InFlight)
    ));
    vcpu.reset().unwrap();
    let state = vcpu.state().unwrap();
    assert_eq!(
        (state.registers.rip, state.registers.general[0]),
        (0xfff0, 0)
    );
    let state = long_state(&*vcpu, CODE + 0x100);
    guest.put(CODE + 0x100, &[0x90, 0xf4]);
    vcpu.set_state(&state).unwrap();
    loop {
        match vcpu.run().unwrap() {
            Exit::Kicked => {}
            Exit::Halt => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(vcpu.state().unwrap().registers.rip, CODE + 0x102);
}

#[test]
fn the_map_changes_under_running_vcpus() {
    let Some(guest) = Guest::new() else { return };
    const MOVED: u64 = 0x20_0000;
    let hidden = guest
        .memory
        .add_ram(GuestPhysAddr(0x30_0000), 0x1000)
        .unwrap();
    guest.memory.remove(hidden.start).unwrap();
    let mut first = guest.long(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.jmp(again)
    });
    guest.assemble(64, 0xd000, |a| {
        a.mov(rbx, MOVED)?;
        a.mov(rax, qword_ptr(rbx))?;
        a.inc(rax)?;
        a.mov(qword_ptr(rbx), rax)?;
        a.hlt()
    });
    let mut second = guest.vcpu(1);
    let start = long_state(&*second, 0xd000);
    second.set_state(&start).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let kicker = first.kicker();
    let runner = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            while !stop.load(Ordering::SeqCst) {
                assert_eq!(first.run().unwrap(), Exit::Kicked);
            }
        }
    });
    for round in 1..=20_u64 {
        let kind = match round % 2 {
            0 => RegionKind::Rom,
            _ => RegionKind::Ram,
        };
        let map = guest
            .memory
            .add_alias(GuestPhysAddr(MOVED), 0x1000, hidden.ram, kind);
        map.unwrap();
        let written = round.div_ceil(2);
        let mut to_the_bus = 0;
        loop {
            match second.run().unwrap() {
                Exit::Kicked => {}
                Exit::Halt => break,
                Exit::MmioWrite { addr, data, .. } => {
                    assert_eq!((addr.0, data), (MOVED, written + 1));
                    to_the_bus += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(to_the_bus, i32::from(kind == RegionKind::Rom));
        let mut bytes = [0; 8];
        guest.memory.read(GuestPhysAddr(MOVED), &mut bytes).unwrap();
        assert_eq!(u64::from_le_bytes(bytes), written);
        guest.memory.remove(GuestPhysAddr(MOVED)).unwrap();
        second.set_state(&start).unwrap();
        // Where nothing is, the bus answers.
        let exit = loop {
            match second.run().unwrap() {
                Exit::Kicked => {}
                other => break other,
            }
        };
        assert!(matches!(exit, Exit::MmioRead { .. }), "{exit:?}");
        second.reset().unwrap();
        second.set_state(&start).unwrap();
    }
    stop.store(true, Ordering::SeqCst);
    kicker.kick();
    runner.join().unwrap();
}

#[test]
fn written_pages_are_logged() {
    let Some(guest) = Guest::new() else { return };
    let mut vcpu = guest.long(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.mov(rbx, DATA)?;
        a.mov(byte_ptr(rbx), 1)?;
        a.mov(byte_ptr(rbx + 0x1000), 1)?;
        a.mov(byte_ptr(rbx + 0x8fff), 1)?;
        a.hlt()?;
        a.jmp(again)
    });
    assert!(guest.kvm.take_dirty_log().unwrap().is_empty());
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    guest.kvm.start_dirty_log().unwrap();
    guest.kvm.take_dirty_log().unwrap();
    let mut run = |times: u32| {
        let mut halts = 0;
        while halts < times {
            match vcpu.run().unwrap() {
                Exit::Halt => halts += 1,
                Exit::Kicked => {}
                other => panic!("{other:?}"),
            }
        }
    };
    let logged = || -> Vec<(u64, u64)> {
        let log = guest.kvm.take_dirty_log().unwrap();
        log.iter()
            .map(|range| (range.start.0, range.bytes))
            // The guest's page tables get accessed bits.
            .filter(|(start, _)| (DATA..STACK).contains(start))
            .collect()
    };
    run(1);
    let expected = [(DATA, 0x2000), (DATA + 0x8000, 0x1000)];
    assert_eq!(logged(), expected);
    assert!(logged().is_empty());
    run(1);
    // What a slot has logged is not lost with it.
    let ram = guest.memory.remove(GuestPhysAddr(0)).unwrap();
    guest
        .memory
        .add_alias(
            GuestPhysAddr(0),
            RAM_BYTES - 0x1_0000,
            ram.ram,
            RegionKind::Ram,
        )
        .unwrap();
    run(1);
    assert_eq!(logged(), expected);
    guest.kvm.stop_dirty_log().unwrap();
    run(1);
    assert!(logged().is_empty());
}

#[test]
fn cpuid_is_what_the_table_says() {
    let Some(guest) = Guest::new() else { return };
    guest.prepare_long_mode();
    // Leaves that each kernel takes as they are; kvm_pvm shows the processor's own feature words to its guests, who run
    // beside the host's programs.
    guest.assemble(64, CODE, |a| {
        a.mov(eax, 1)?;
        a.cpuid()?;
        a.mov(esi, ebx)?;
        a.mov(eax, 0x8000_0001_u32)?;
        a.cpuid()?;
        a.mov(edi, edx)?;
        a.mov(eax, 0xb)?;
        a.mov(ecx, 1)?;
        a.cpuid()?;
        a.mov(ebp, edx)?;
        a.mov(eax, 0x4000_0001)?;
        a.cpuid()?;
        a.hlt()
    });
    let table = guest.kvm.host_cpuid(2);
    let mut vcpu = guest.kvm.create_vcpu(2, table.clone()).unwrap();
    let state = long_state(&*vcpu, CODE);
    vcpu.set_state(&state).unwrap();
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    let got = |number| reg(&*vcpu, number) as u32;
    assert_eq!(got(6), table.answer(1, 0).ebx);
    assert_eq!(got(6) >> 24, 2);
    assert_eq!(got(7), table.answer(0x8000_0001, 0).edx);
    assert_eq!(got(5), table.answer(0xb, 1).edx);
    assert_eq!(got(0), table.answer(0x4000_0001, 0).eax);
    // A model that asks for all there is gets what the host has.
    let narrowed = guest.kvm.narrow(&table);
    assert_eq!(narrowed.answer(7, 0), table.answer(7, 0));
}
