//! Small guests that do what operating systems do.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic; that is how it fails"
)]

mod guest;

use std::sync::Arc;

use guest::{
    CODE, DATA, GDT, HANDLERS, IDT, STACK, TABLES, TSS, assemble, caught, caught32, gate64, long,
    long_vcpu, protected, put, reg, word,
};
use guest_memory::GuestPhysAddr;
use iced_x86::code_asm::*;
use vcpu::{Completion, Exit};

#[test]
fn from_the_reset_vector_to_long_mode() {
    let memory = guest::memory();
    guest::prepare_long_mode(&memory);
    // The last 64 KiB under 4 GiB are ROM; the reset vector jumps to 0xf000:0xe000.
    let mut rom = vec![0x90; 0x1_0000];
    rom[0xfff0..0xfff5].copy_from_slice(&[0xea, 0x00, 0x80, 0x00, 0x00]);
    memory.add_rom(GuestPhysAddr(0xffff_0000), &rom).unwrap();
    let pointer = [&63_u16.to_le_bytes()[..], &(GDT as u32).to_le_bytes()].concat();
    put(&memory, 0x7000, &pointer);
    let real = assemble(16, 0x8000, |a| {
        a.cli()?;
        a.mov(ax, 0)?;
        a.mov(ds, ax)?;
        a.mov(al, i32::from(b'R'))?;
        a.out(0x42, al)?;
        a.lgdt(ptr(0x7000_u64))?;
        a.mov(eax, cr0)?;
        a.or(eax, 1)?;
        a.mov(cr0, eax)?;
        // jmp 0x38:0x9000 with a 32-bit code segment
        a.db(&[0x66, 0xea, 0x00, 0x90, 0x00, 0x00, 0x38, 0x00])
    });
    put(&memory, 0x8000, &real);
    put(
        &memory,
        GDT + 0x38,
        &0x00cf_9b00_0000_ffff_u64.to_le_bytes(),
    );
    let protected = assemble(32, 0x9000, |a| {
        a.mov(ax, 0x10)?;
        a.mov(ds, ax)?;
        a.mov(es, ax)?;
        a.mov(ss, ax)?;
        a.mov(esp, 0x3_0000)?;
        a.mov(al, i32::from(b'P'))?;
        a.out(0x42, al)?;
        a.mov(eax, TABLES as i32)?;
        a.mov(cr3, eax)?;
        a.mov(eax, 0x6b0)?;
        a.mov(cr4, eax)?;
        a.mov(ecx, 0xc000_0080_u32)?;
        a.rdmsr()?;
        a.or(eax, 0x901)?;
        a.wrmsr()?;
        a.mov(eax, cr0)?;
        a.or(eax, 0x8000_0000_u32 as i32)?;
        a.mov(cr0, eax)?;
        // jmp 8:CODE
        a.db(&[0xea, 0x00, 0x00, 0x01, 0x00, 0x08, 0x00])
    });
    put(&memory, 0x9000, &protected);
    let long = assemble(64, CODE, |a| {
        a.mov(rax, 0x1_0000_0004_u64)?;
        a.shr(rax, 32)?;
        a.add(al, i32::from(b'K'))?;
        a.out(0x42, al)?;
        a.push(rax)?;
        a.hlt()
    });
    put(&memory, CODE, &long);
    let mut vcpu = guest::vcpu(&memory, 0);
    let mut said = Vec::new();
    loop {
        match vcpu.run().unwrap() {
            Exit::PortOut {
                port: 0x42,
                size: 1,
                data,
            } => said.extend(data),
            Exit::Halt => break,
            other => panic!("{other:?} at {:x?}", vcpu.state().unwrap().registers),
        }
    }
    assert_eq!(String::from_utf8_lossy(&said), "RPL");
    let state = vcpu.state().unwrap();
    assert_eq!(state.system.efer & 0x500, 0x500);
    assert_eq!(word(&memory, 0x3_0000 - 8), u64::from(b'L'));
}

#[test]
fn page_faults_say_why() {
    // A page at 512 GiB with the bits of each case; user code is entered by IRET.
    const PAGE: u64 = 1 << 39;
    // entry bits, user, access (0 read, 1 write, 2 fetch), error code expected or none
    let cases: &[(u64, bool, u8, Option<u64>)] = &[
        (0, false, 0, Some(0)),
        (0, false, 1, Some(2)),
        (0, true, 0, Some(4)),
        (0, true, 1, Some(6)),
        (0, true, 2, Some(0x14)),
        (1, false, 0, None),
        (1, false, 1, Some(3)),
        (1, true, 0, Some(5)),
        (3, false, 1, None),
        (3, true, 1, Some(7)),
        (5, true, 0, None),
        (5, true, 1, Some(7)),
        (7, true, 1, None),
        (7, true, 2, None),
        (7 | 1 << 63, true, 2, Some(0x15)),
        (3 | 1 << 63, false, 2, Some(0x11)),
        (7 | 1 << 51, true, 0, Some(0xd)),
        (7, false, 2, Some(0x11)),
        (7, false, 0, Some(1)),
    ];
    for (number, &(bits, user, access, expected)) in cases.iter().enumerate() {
        let memory = guest::memory();
        guest::prepare_long_mode(&memory);
        // PML4[1] -> 0x50000 -> 0x51000 -> 0x52000 -> DATA
        put(&memory, TABLES + 8, &0x5_0007_u64.to_le_bytes());
        put(&memory, 0x5_0000, &0x5_1007_u64.to_le_bytes());
        put(&memory, 0x5_1000, &0x5_2007_u64.to_le_bytes());
        put(&memory, 0x5_2000, &(DATA | bits).to_le_bytes());
        put(&memory, DATA, &[0x0f, 0x0b]);
        let code = assemble(64, CODE, |a| {
            a.mov(rbx, PAGE)?;
            match access {
                0 => a.mov(rax, qword_ptr(rbx))?,
                1 => a.mov(qword_ptr(rbx), rax)?,
                _ => a.jmp(rbx)?,
            }
            a.ud2()
        });
        put(&memory, CODE, &code);
        let mut vcpu = long_vcpu(&memory, 0);
        let mut state = vcpu.state().unwrap();
        // SMEP and SMAP; supervisor pages of the identity map are user's too, so code runs
        // there only with CR4.SMEP off: a second map without the user bit is used.
        state.system.cr4 |= 1 << 20 | 1 << 21;
        for page in 0..4_u64 {
            let flags = if user { 0x87 } else { 0x83 };
            put(
                &memory,
                TABLES + 0x1000 + page * 8,
                &((page << 30) | flags).to_le_bytes(),
            );
        }
        if user {
            state.system.cr4 &= !(1 << 20 | 1 << 21);
            state.system.segments[1] = guest::flat(0x2b, 11, true, 3);
            state.system.segments[2] = guest::flat(0x23, 3, false, 3);
            put(&memory, TSS + 4, &STACK.to_le_bytes());
        }
        vcpu.set_state(&state).unwrap();
        let (vector, stack) = caught(&memory, &mut *vcpu);
        let state = vcpu.state().unwrap();
        match expected {
            Some(code) => {
                assert_eq!((vector, stack[0]), (14, code), "case {number}");
                assert_eq!(state.system.cr2, PAGE, "case {number}");
                assert_eq!(stack[2] & 3, if user { 3 } else { 0 });
            }
            None => {
                assert_eq!(vector, 6, "case {number}");
                let used = word(&memory, 0x5_2000) & 0x60;
                assert_eq!(used, if access == 1 { 0x60 } else { 0x20 }, "case {number}");
            }
        }
    }
}

#[test]
fn user_code_and_back_through_gates_and_ist() {
    let (memory, mut vcpu) = long(|a| {
        // To user code: SS, RSP, RFLAGS, CS, RIP.
        a.push(0x23)?;
        a.push(0x2_8000)?;
        a.push(0x202)?;
        a.push(0x2b)?;
        a.push(0x1_1000)?;
        a.iretq()
    });
    put(&memory, TSS + 4, &0x3_8000_u64.to_le_bytes());
    put(&memory, TSS + 0x24, &0x3_9008_u64.to_le_bytes());
    put(&memory, IDT + 0x80 * 16, &gate64(0x1_2000, 8, 0, 3, 14));
    put(&memory, IDT + 0x81 * 16, &gate64(0x1_3000, 8, 1, 3, 15));
    put(
        &memory,
        IDT + 0x82 * 16,
        &gate64(HANDLERS + 0x82, 8, 0, 0, 14),
    );
    let user = assemble(64, 0x1_1000, |a| {
        a.int(0x80)?;
        a.int(0x81)?;
        a.int(0x82)
    });
    put(&memory, 0x1_1000, &user);
    let first = assemble(64, 0x1_2000, |a| {
        a.mov(rsi, rsp)?;
        a.pushfq()?;
        a.pop(rdx)?;
        a.iretq()
    });
    put(&memory, 0x1_2000, &first);
    let second = assemble(64, 0x1_3000, |a| {
        a.mov(rdi, rsp)?;
        a.pushfq()?;
        a.pop(r8)?;
        a.mov(r9w, ss)?;
        a.iretq()
    });
    put(&memory, 0x1_3000, &second);
    let (vector, stack) = caught(&memory, &mut *vcpu);
    // The gate of 0x82 is not for user code: #GP with its index and the IDT bit.
    assert_eq!((vector, stack[0]), (13, 0x82 * 8 + 2));
    assert_eq!(
        (stack[1], stack[2], stack[4], stack[5]),
        (0x1_1004, 0x2b, 0x2_8000, 0x23)
    );
    assert_eq!(reg(&*vcpu, 6), 0x3_8000 - 40);
    assert_eq!(reg(&*vcpu, 7), 0x3_9000 - 40);
    assert_eq!(reg(&*vcpu, 2) & 0x200, 0, "an interrupt gate clears IF");
    assert_eq!(reg(&*vcpu, 8) & 0x200, 0x200, "a trap gate does not");
    assert_eq!(
        reg(&*vcpu, 9),
        0,
        "the stack segment of the new level is null"
    );
}

#[test]
fn syscall_and_sysret() {
    let (memory, mut vcpu) = long(|a| {
        a.mov(ecx, 0xc000_0081_u32)?;
        a.mov(edx, 0x0018_0008)?;
        a.xor(eax, eax)?;
        a.wrmsr()?;
        a.mov(ecx, 0xc000_0082_u32)?;
        a.xor(edx, edx)?;
        a.mov(eax, 0x1_2000)?;
        a.wrmsr()?;
        a.mov(ecx, 0xc000_0084_u32)?;
        a.mov(eax, 0x200)?;
        a.wrmsr()?;
        a.mov(rcx, 0x1_1000_u64)?;
        a.mov(r11, 0x202_u64)?;
        a.sysretq()
    });
    put(
        &memory,
        0x1_1000,
        &assemble(64, 0x1_1000, |a| {
            a.syscall()?;
            a.hlt()
        }),
    );
    put(
        &memory,
        0x1_2000,
        &assemble(64, 0x1_2000, |a| {
            a.mov(rbx, rcx)?;
            a.mov(rdx, r11)?;
            a.hlt()
        }),
    );
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    let state = vcpu.state().unwrap();
    assert_eq!(state.registers.general[3], 0x1_1002);
    assert_eq!(state.registers.general[2] & 0x200, 0x200);
    assert_eq!(state.registers.rflags & 0x200, 0);
    assert_eq!(
        (
            state.system.segments[1].selector,
            state.system.segments[2].selector
        ),
        (8, 16)
    );
}

#[test]
fn code_that_changes_itself() {
    // The store changes the instruction behind it, in the same block.
    let (_, mut vcpu) = long(|a| {
        let mut target = a.create_label();
        a.lea(rbx, qword_ptr(target))?;
        a.mov(byte_ptr(rbx + 1), 7)?;
        a.set_label(&mut target)?;
        a.mov(al, 1)?;
        a.hlt()
    });
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    assert_eq!(reg(&*vcpu, 0) & 0xff, 7);
    // A loop whose body is changed each time; then a string that writes code.
    let (_, mut vcpu) = long(|a| {
        let mut again = a.create_label();
        let mut target = a.create_label();
        a.xor(edx, edx)?;
        a.mov(ecx, 50)?;
        a.lea(rbx, qword_ptr(target))?;
        a.set_label(&mut again)?;
        a.mov(byte_ptr(rbx + 2), cl)?;
        a.set_label(&mut target)?;
        a.add(edx, 0x11)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.hlt()
    });
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    assert_eq!(reg(&*vcpu, 2), (1..=50).sum::<u64>());
}

#[test]
fn code_changed_by_a_device_while_it_runs() {
    let (memory, mut vcpu) = long(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.inc(rax)?;
        a.jmp(again)
    });
    let other = Arc::clone(&memory);
    let thread = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(50));
        // inc rax; hlt
        put(&other, CODE + 3, &[0xf4]);
    });
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    thread.join().unwrap();
    assert!(reg(&*vcpu, 0) > 1000);
}

fn count_together(at: u64) {
    const TURNS: u64 = 20_000;
    let memory = guest::memory();
    guest::prepare_long_mode(&memory);
    let code = assemble(64, CODE, |a| {
        let mut again = a.create_label();
        a.mov(rbx, at)?;
        a.mov(ecx, TURNS as u32)?;
        a.set_label(&mut again)?;
        a.lock().inc(dword_ptr(rbx))?;
        a.mov(eax, 1)?;
        a.lock().xadd(dword_ptr(rbx + 16), eax)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.hlt()
    });
    put(&memory, CODE, &code);
    std::thread::scope(|scope| {
        for index in 0..2 {
            let mut vcpu = long_vcpu(&memory, index);
            scope.spawn(move || assert_eq!(vcpu.run().unwrap(), Exit::Halt));
        }
    });
    assert_eq!(word(&memory, at) as u32, 2 * TURNS as u32);
    assert_eq!(word(&memory, at + 16) as u32, 2 * TURNS as u32);
}

#[test]
fn two_cpus_count_together() {
    count_together(DATA);
}

#[test]
fn two_cpus_count_together_unaligned() {
    count_together(DATA + 3);
}

#[test]
fn two_cpus_count_together_over_a_page() {
    count_together(DATA + 0xffe);
}

#[test]
fn a_store_over_two_pages_is_all_or_nothing() {
    let memory = guest::memory();
    guest::prepare_long_mode(&memory);
    put(&memory, TABLES + 8, &0x5_0007_u64.to_le_bytes());
    put(&memory, 0x5_0000, &0x5_1007_u64.to_le_bytes());
    put(&memory, 0x5_1000, &0x5_2007_u64.to_le_bytes());
    put(&memory, 0x5_2000, &(DATA | 7).to_le_bytes());
    let code = assemble(64, CODE, |a| {
        a.mov(rbx, (1_u64 << 39) + 0xffc)?;
        a.mov(rax, u64::MAX)?;
        a.mov(qword_ptr(rbx), rax)?;
        a.hlt()
    });
    put(&memory, CODE, &code);
    let mut vcpu = long_vcpu(&memory, 0);
    let (vector, stack) = caught(&memory, &mut *vcpu);
    assert_eq!((vector, stack[0]), (14, 2));
    assert_eq!(vcpu.state().unwrap().system.cr2, (1 << 39) + 0x1000);
    assert_eq!(word(&memory, DATA + 0xff8), 0);
    // With the second page elsewhere, both halves arrive.
    put(&memory, 0x5_2008, &((DATA + 0x5000) | 7).to_le_bytes());
    let mut vcpu = long_vcpu(&memory, 0);
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    assert_eq!(word(&memory, DATA + 0xff8), 0xffff_ffff_0000_0000);
    assert_eq!(word(&memory, DATA + 0x5000), 0xffff_ffff);
}

#[test]
fn addresses_must_be_canonical() {
    for (stack_access, vector) in [(false, 13), (true, 13)] {
        let (memory, mut vcpu) = long(|a| {
            a.mov(rax, 0x8000_0000_0000_u64)?;
            if stack_access {
                a.mov(rax, qword_ptr(rax + 8))?;
            } else {
                a.jmp(rax)?;
            }
            a.hlt()
        });
        assert_eq!(caught(&memory, &mut *vcpu).0, vector);
    }
}

#[test]
fn faults_double_and_triple() {
    let (memory, mut vcpu) = long(|a| a.ud2());
    // The handler of #UD is not present: #NP on the way of #UD is taken for itself.
    put(&memory, IDT + 6 * 16 + 5, &[0x0e]);
    let (vector, stack) = caught(&memory, &mut *vcpu);
    assert_eq!((vector, stack[0]), (11, 6 * 8 + 3));
    // #GP whose handler is not there: a double fault, error code 0.
    let (memory, mut vcpu) = long(|a| {
        a.mov(rax, 1_u64 << 50)?;
        a.mov(rax, qword_ptr(rax))
    });
    put(&memory, IDT + 13 * 16 + 5, &[0x0e]);
    let (vector, stack) = caught(&memory, &mut *vcpu);
    assert_eq!((vector, stack[0]), (8, 0));
    // And a double fault whose handler is not there either.
    let (memory, mut vcpu) = long(|a| {
        a.mov(rax, 1_u64 << 50)?;
        a.mov(rax, qword_ptr(rax))
    });
    put(&memory, IDT + 13 * 16 + 5, &[0x0e]);
    put(&memory, IDT + 8 * 16 + 5, &[0x0e]);
    assert_eq!(vcpu.run().unwrap(), Exit::Shutdown);
}

#[test]
fn devices_are_asked_once_for_each_access() {
    let (memory, mut vcpu) = long(|a| {
        a.mov(rbx, 0xd000_0000_u64)?;
        a.add(dword_ptr(rbx + 4), 5)?;
        a.mov(rsi, 0xd000_0010_u64)?;
        a.mov(rdi, DATA)?;
        a.mov(ecx, 3)?;
        a.cld()?;
        a.rep().movsb()?;
        a.mov(rax, qword_ptr(rbx + 0xffc))?;
        a.in_(eax, dx)?;
        a.hlt()
    });
    let read = |addr, len| Exit::MmioRead {
        addr: GuestPhysAddr(addr),
        len,
    };
    assert_eq!(vcpu.run().unwrap(), read(0xd000_0004, 4));
    assert!(vcpu.run().is_err(), "the data is missing");
    assert!(vcpu.complete(Completion::PortIn(vec![1])).is_err());
    assert!(vcpu.state().is_err(), "an instruction is in flight");
    vcpu.complete(Completion::Mmio(0x1_0000_0037)).unwrap();
    let write = Exit::MmioWrite {
        addr: GuestPhysAddr(0xd000_0004),
        len: 4,
        data: 0x3c,
    };
    assert_eq!(vcpu.run().unwrap(), write);
    for byte in 0..3 {
        assert_eq!(vcpu.run().unwrap(), read(0xd000_0010 + byte, 1));
        vcpu.complete(Completion::Mmio(0xa0 + byte)).unwrap();
    }
    // Over two pages: two accesses.
    assert_eq!(vcpu.run().unwrap(), read(0xd000_0ffc, 4));
    vcpu.complete(Completion::Mmio(0x1111_1111)).unwrap();
    assert_eq!(vcpu.run().unwrap(), read(0xd000_1000, 4));
    vcpu.complete(Completion::Mmio(0x2222_2222)).unwrap();
    let Exit::PortIn {
        size: 4, count: 1, ..
    } = vcpu.run().unwrap()
    else {
        panic!("IN expected");
    };
    vcpu.complete(Completion::PortIn(vec![1, 2, 3, 4])).unwrap();
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    assert_eq!(word(&memory, DATA), 0x00a2_a1a0);
    assert_eq!(reg(&*vcpu, 0), 0x0403_0201);
}

#[test]
fn a_long_string_can_be_interrupted() {
    let (_, mut vcpu) = long(|a| {
        a.mov(rdi, DATA)?;
        a.mov(rcx, u64::MAX)?;
        a.xor(eax, eax)?;
        // The same byte for ever: the direction is turned by a 16-bit... each store goes to
        // the next address; scanning reads it back.
        a.repe().scasb()?;
        a.hlt()
    });
    let kicker = vcpu.kicker();
    kicker.kick();
    assert_eq!(vcpu.run().unwrap(), Exit::Kicked);
    let handle = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(5));
        kicker.kick();
    });
    let exit = vcpu.run().unwrap();
    handle.join().unwrap();
    // Either it met what is not zero (and halted), or a hole, or it was kicked in the middle.
    let state = vcpu.state();
    match exit {
        Exit::Kicked => {
            let state = state.unwrap();
            let done = u64::MAX - state.registers.general[1];
            assert_eq!(state.registers.general[7], DATA + done);
        }
        Exit::MmioRead { .. } | Exit::Halt => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_window_of_one_instruction_is_enough() {
    let (_memory, mut vcpu) = long(|a| {
        a.sti()?;
        a.nop()?;
        a.cli()?;
        a.hlt()
    });
    vcpu.request_interrupt_window(true);
    assert_eq!(vcpu.run().unwrap(), Exit::InterruptWindow);
    assert!(vcpu.can_take_interrupt());
    assert_eq!(vcpu.state().unwrap().registers.rip, CODE + 2);
    vcpu.request_interrupt_window(false);
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    assert!(!vcpu.can_take_interrupt());
}

#[test]
fn interrupts_windows_and_nmis() {
    let (memory, mut vcpu) = long(|a| {
        a.inc(rbx)?;
        a.sti()?;
        a.hlt()?;
        a.inc(rbx)?;
        a.cli()?;
        a.hlt()
    });
    let handler = assemble(64, 0x1_2000, |a| {
        a.inc(rsi)?;
        a.iretq()
    });
    put(&memory, 0x1_2000, &handler);
    put(&memory, IDT + 0x40 * 16, &gate64(0x1_2000, 8, 0, 0, 14));
    put(&memory, IDT + 2 * 16, &gate64(0x1_2000, 8, 0, 0, 14));
    assert!(!vcpu.can_take_interrupt());
    assert!(vcpu.inject_interrupt(0x40).is_err());
    vcpu.request_interrupt_window(true);
    assert_eq!(
        vcpu.run().unwrap(),
        Exit::Halt,
        "the shadow of STI covers HLT"
    );
    assert_eq!(vcpu.run().unwrap(), Exit::InterruptWindow);
    vcpu.request_interrupt_window(false);
    vcpu.inject_interrupt(0x40).unwrap();
    assert!(!vcpu.can_take_interrupt(), "one at a time");
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    assert_eq!((reg(&*vcpu, 3), reg(&*vcpu, 6)), (2, 1));
    vcpu.inject_nmi().unwrap();
    let mut state = vcpu.state().unwrap();
    assert!(state.nmi_pending);
    state.nmi_masked = true;
    state.registers.rip = CODE;
    vcpu.set_state(&state).unwrap();
    assert_eq!(vcpu.run().unwrap(), Exit::Halt, "an NMI in an NMI waits");
    assert_eq!(reg(&*vcpu, 6), 1);
    let mut state = vcpu.state().unwrap();
    state.nmi_masked = false;
    state.registers.rip = CODE;
    vcpu.set_state(&state).unwrap();
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    assert_eq!(reg(&*vcpu, 6), 2);
    assert!(!vcpu.state().unwrap().nmi_masked, "IRET unmasks");
}

#[test]
fn registers_of_the_board_and_unknown_instructions() {
    let (memory, mut vcpu) = long(|a| {
        a.mov(ecx, 0x1b)?;
        a.rdmsr()?;
        a.mov(ebx, eax)?;
        a.mov(ecx, 0x1234)?;
        a.wrmsr()?;
        a.hlt()
    });
    assert_eq!(vcpu.run().unwrap(), Exit::MsrRead { index: 0x1b });
    vcpu.complete(Completion::Msr(0xfee0_0900)).unwrap();
    let Exit::MsrWrite { index: 0x1234, .. } = vcpu.run().unwrap() else {
        panic!("WRMSR expected");
    };
    vcpu.complete(Completion::MsrFault).unwrap();
    let (vector, stack) = caught(&memory, &mut *vcpu);
    assert_eq!((vector, stack[0]), (13, 0));
    assert_eq!(reg(&*vcpu, 3), 0xfee0_0900);
    // VMXON is not built.
    let (memory, mut vcpu) = long(|a| a.db(&[0xf3, 0x0f, 0xc7, 0x33]));
    assert_eq!(caught(&memory, &mut *vcpu).0, 6);
    let (_, mut vcpu) = long(|a| {
        a.mov(eax, 5)?;
        a.mov(cr8, rax)?;
        a.hlt()
    });
    assert_eq!(vcpu.run().unwrap(), Exit::TaskPriority(5));
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
}

#[test]
fn segments_have_limits() {
    // 0x28: data, limit 0xfff, base DATA; 0x30: the same, expand-down; 0x38: read-only; 0x40: absent
    let descriptors = [
        0x0040_9302_0000_0fff,
        0x0040_9702_0000_0fff,
        0x0040_9102_0000_0fff,
        0x0040_1302_0000_0fff,
    ];
    type Case = (i32, u32, bool, Option<(u64, u32)>);
    // selector, offset, write, fault
    let cases: &[Case] = &[
        (0x28, 0xffc, true, None),
        (0x28, 0xffd, false, Some((13, 0))),
        (0x28, 0xffff_fffe, false, Some((13, 0))),
        (0x30, 0xfff, false, Some((13, 0))),
        (0x30, 0x1000, true, None),
        (0x38, 0, false, None),
        (0x38, 0, true, Some((13, 0))),
        (0x40, 0, false, Some((11, 0x40))),
        (0, 0, false, Some((13, 0))),
        (0x100, 0, false, Some((13, 0x100))),
    ];
    for &(selector, offset, write, expected) in cases {
        let (memory, mut vcpu) = protected(&descriptors, |a| {
            a.mov(eax, selector)?;
            a.mov(fs, ax)?;
            a.mov(ebx, offset)?;
            if write {
                a.mov(dword_ptr(ebx).fs(), eax)?;
            } else {
                a.mov(eax, dword_ptr(ebx).fs())?;
            }
            a.mov(edi, 0x77)?;
            a.hlt()
        });
        match expected {
            Some(fault) => assert_eq!(
                caught32(&memory, &mut *vcpu),
                fault,
                "{selector:x}:{offset:x}"
            ),
            None => {
                assert_eq!(vcpu.run().unwrap(), Exit::Halt);
                assert_eq!(reg(&*vcpu, 7), 0x77, "{selector:x}:{offset:x}");
            }
        }
    }
}

#[test]
fn through_a_call_gate_and_back() {
    // 0x28: a gate to 8:0x12000 for user code with two parameters.
    let gate = 0x2000 | 8 << 16 | 0xec02 << 32 | 1 << 48;
    let (memory, mut vcpu) = protected(&[gate], |a| {
        a.push(0x23)?;
        a.push(0x2_8000)?;
        a.push(0x2)?;
        a.push(0x1b)?;
        a.push(0x1_1000)?;
        a.iretd()
    });
    put(&memory, TSS + 4, &0x0003_8000_u32.to_le_bytes());
    put(&memory, TSS + 8, &0x10_u32.to_le_bytes());
    put(
        &memory,
        0x1_1000,
        &assemble(32, 0x1_1000, |a| {
            a.push(0x1111)?;
            a.push(0x2222)?;
            a.db(&[0x9a, 0, 0, 0, 0, 0x28, 0])?;
            a.mov(esi, esp)?;
            a.ud2()
        }),
    );
    put(
        &memory,
        0x1_2000,
        &assemble(32, 0x1_2000, |a| {
            a.mov(eax, dword_ptr(esp + 8))?;
            a.mov(ebx, dword_ptr(esp + 12))?;
            a.mov(edx, esp)?;
            a.retf_1(8)
        }),
    );
    let (vector, _) = caught32(&memory, &mut *vcpu);
    assert_eq!(vector, 6);
    let state = vcpu.state().unwrap();
    let general = state.registers.general;
    assert_eq!((general[0], general[3]), (0x2222, 0x1111));
    assert_eq!((general[2], general[6]), (0x3_8000 - 24, 0x2_8000));
}

#[test]
fn task_switches_are_refused() {
    // 0x28: an available 32-bit TSS.
    let (memory, mut vcpu) = protected(&[0x0000_8900_6000_0067], |a| {
        a.db(&[0xea, 0, 0, 0, 0, 0x28, 0])
    });
    assert_eq!(caught32(&memory, &mut *vcpu), (13, 0x28));
    // A task gate in the IDT.
    let (memory, mut vcpu) = protected(&[], |a| a.int(0x50));
    put(
        &memory,
        IDT + 0x50 * 8,
        &(0x28_u64 << 16 | 0xe500 << 32).to_le_bytes(),
    );
    assert_eq!(caught32(&memory, &mut *vcpu), (13, 0x50 * 8 + 2));
}

#[test]
fn paging_of_two_and_three_levels() {
    for pae in [false, true] {
        let (memory, mut vcpu) = protected(&[], |a| {
            a.mov(eax, dword_ptr(0x0040_0010))?;
            a.mov(dword_ptr(0x0040_0014), eax)?;
            a.mov(eax, dword_ptr(0x0040_1000))?;
            a.hlt()
        });
        put(&memory, DATA + 0x10, &0x1234_5678_u32.to_le_bytes());
        let entry = |at: u64, value: u64| {
            let bytes = value.to_le_bytes();
            put(&memory, at, if pae { &bytes } else { &bytes[..4] });
        };
        if pae {
            entry(0x5_0000, 0x5_1001);
            entry(0x5_1000, 0x87);
            entry(0x5_1010, 0x5_2007);
            entry(0x5_2000, DATA | 3);
        } else {
            entry(0x5_0000, 0x87);
            entry(0x5_0004, 0x5_2007);
            entry(0x5_2000, DATA | 3);
        }
        let mut state = vcpu.state().unwrap();
        state.system.cr3 = 0x5_0000;
        state.system.cr4 |= if pae { 0x30 } else { 0x10 };
        state.system.cr0 |= 1 << 31;
        vcpu.set_state(&state).unwrap();
        assert_eq!(caught32(&memory, &mut *vcpu), (14, 0));
        assert_eq!(vcpu.state().unwrap().system.cr2, 0x0040_1000);
        assert_eq!(word(&memory, DATA + 0x10), 0x1234_5678_1234_5678);
        assert_eq!(word(&memory, 0x5_2000) & 0x60, 0x60);
    }
}

#[test]
fn single_steps() {
    let (memory, mut vcpu) = long(|a| {
        a.inc(rax)?;
        a.inc(rax)?;
        a.inc(rax)?;
        a.hlt()
    });
    put(&memory, IDT + 16, &gate64(0x1_2000, 8, 0, 0, 14));
    put(
        &memory,
        0x1_2000,
        &assemble(64, 0x1_2000, |a| {
            a.inc(rdi)?;
            a.iretq()
        }),
    );
    let mut state = vcpu.state().unwrap();
    state.registers.rflags |= 0x100;
    vcpu.set_state(&state).unwrap();
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    assert_eq!((reg(&*vcpu, 0), reg(&*vcpu, 7)), (3, 3));
}

#[test]
fn decimal_arithmetic_and_what_else_only_32_bit_code_has() {
    // AL, AH, flags before; opcode; AX, CF and AF behind it: by the manual's definitions.
    let cases: &[(u16, u64, &[u8], u16, u64)] = &[
        (0xae, 0, &[0x27], 0x14, 0x11),
        (0x12, 0, &[0x27], 0x12, 0),
        (0x2e, 0x10, &[0x2f], 0x28, 0x10),
        (0x47, 0x01, &[0x2f], 0xe7, 0x01),
        (0x030b, 0, &[0x37], 0x0401, 0x11),
        (0x0304, 0x10, &[0x37], 0x040a, 0x11),
        (0x03fc, 0x10, &[0x3f], 0x0206, 0x11),
        (0x0047, 0, &[0xd4, 0x0a], 0x0701, 0),
        (0x0701, 0, &[0xd5, 0x0a], 0x0047, 0),
    ];
    for &(ax_before, flags, code, ax_after, flags_after) in cases {
        let (_, mut vcpu) = protected(&[], |a| {
            a.db(code)?;
            a.hlt()
        });
        let mut state = vcpu.state().unwrap();
        state.registers.general[0] = u64::from(ax_before);
        state.registers.rflags = 2 | flags;
        vcpu.set_state(&state).unwrap();
        assert_eq!(vcpu.run().unwrap(), Exit::Halt);
        let state = vcpu.state().unwrap();
        let seen = (state.registers.general[0], state.registers.rflags & 0x11);
        assert_eq!(
            seen,
            (u64::from(ax_after), flags_after),
            "{code:x?} of {ax_before:x}"
        );
    }
    // BOUND within and without; PUSHAD and POPAD put everything back.
    for (index, vector) in [(5, None), (11, Some(5))] {
        let (memory, mut vcpu) = protected(&[], |a| {
            a.mov(dword_ptr(DATA), 3)?;
            a.mov(dword_ptr(DATA + 4), 10)?;
            a.mov(eax, index)?;
            a.bound(eax, qword_ptr(DATA))?;
            a.pushad()?;
            a.xor(ebx, ebx)?;
            a.xor(edi, edi)?;
            a.popad()?;
            a.hlt()
        });
        let mut state = vcpu.state().unwrap();
        state.registers.general[3] = 0x33;
        state.registers.general[7] = 0x77;
        vcpu.set_state(&state).unwrap();
        match vector {
            Some(vector) => assert_eq!(caught32(&memory, &mut *vcpu).0, vector),
            None => {
                assert_eq!(vcpu.run().unwrap(), Exit::Halt);
                assert_eq!((reg(&*vcpu, 3), reg(&*vcpu, 7)), (0x33, 0x77));
                assert_eq!(reg(&*vcpu, 4), STACK);
            }
        }
    }
}

#[test]
fn vector_registers_are_saved_and_restored() {
    let (memory, mut vcpu) = long(|a| {
        // After reset the x87 is not in the state that FNINIT makes and XSAVE calls initial.
        a.fninit()?;
        a.mov(rbx, DATA)?;
        a.mov(rax, 0x1122_3344_5566_7788_u64)?;
        a.movq(xmm3, rax)?;
        a.fxsave64(ptr(rbx))?;
        a.mov(rcx, cr4)?;
        a.bts(rcx, 18)?;
        a.mov(cr4, rcx)?;
        a.xor(ecx, ecx)?;
        a.xor(edx, edx)?;
        a.mov(eax, 3)?;
        a.xsetbv()?;
        a.xsave64(ptr(rbx + 0x400))?;
        a.pxor(xmm3, xmm3)?;
        a.fxrstor64(ptr(rbx))?;
        a.movq(rsi, xmm3)?;
        a.pxor(xmm3, xmm3)?;
        a.xrstor64(ptr(rbx + 0x400))?;
        a.movq(rdi, xmm3)?;
        // An area that is not aligned: #GP.
        a.fxsave64(ptr(rbx + 8))
    });
    let (vector, stack) = caught(&memory, &mut *vcpu);
    assert_eq!((vector, stack[0]), (13, 0));
    let state = vcpu.state().unwrap();
    assert_eq!(state.registers.general[6], 0x1122_3344_5566_7788);
    assert_eq!(state.registers.general[7], 0x1122_3344_5566_7788);
    assert_eq!(word(&memory, DATA + 0x400 + 512), 2);
    // All of the state goes out and in.
    let mut other = guest::vcpu(&memory, 1);
    other.set_state(&state).unwrap();
    let mut again = other.state().unwrap();
    again.msrs.clear();
    let mut first = state.clone();
    first.msrs.clear();
    assert_eq!(again, first);
}
