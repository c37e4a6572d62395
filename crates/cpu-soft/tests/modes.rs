//! Modes and instructions that operating systems use seldom, and faults in the middle of things.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic; that is how it fails"
)]

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[allow(dead_code, reason = "a part of the forms is used here")]
mod forms;
mod guest;

use guest::{
    CODE, DATA, GDT, HANDLERS, STACK, TABLES, TSS, assemble, caught, caught32, long, protected,
    put, reg, word,
};
use iced_x86::code_asm::*;
use vcpu::Exit;

/// A page table under the first 2 MiB, so that single pages can be taken away: its address.
fn small_pages(memory: &guest_memory::GuestMemory) -> u64 {
    let (directory, table) = (0x9_0000, 0x9_1000);
    put(memory, TABLES + 0x1000, &(directory + 7_u64).to_le_bytes());
    put(memory, directory, &(table + 7_u64).to_le_bytes());
    for page in 0..512_u64 {
        put(memory, table + page * 8, &((page << 12) | 7).to_le_bytes());
    }
    table
}

/// Virtual-8086 code at 0x1000:0x400, entered by IRET with this IOPL and GS, FS, DS, ES; its
/// stack is at 0x3000:0x100.
fn v86(
    iopl: u32,
    segments: [u32; 4],
    write: impl FnOnce(&mut guest::Asm) -> Result<(), iced_x86::IcedError>,
) -> (
    std::sync::Arc<guest_memory::GuestMemory>,
    Box<dyn vcpu::Vcpu>,
) {
    let tss = (TSS << 16) | 0x8900_0000_0067;
    let (memory, vcpu) = protected(&[tss], |a| {
        a.mov(eax, 0x28)?;
        a.ltr(ax)?;
        for value in segments {
            a.push(value as i32)?;
        }
        a.push(0x3000)?;
        a.push(0x100)?;
        a.push((0x2_0002 | iopl << 12) as i32)?;
        a.push(0x1000)?;
        a.push(0x400)?;
        a.iretd()
    });
    // The stack of ring 0.
    put(&memory, TSS + 4, &(STACK as u32).to_le_bytes());
    put(&memory, TSS + 8, &0x10_u32.to_le_bytes());
    // The permission map begins behind the limit: no ports.
    put(&memory, TSS + 0x66, &0x68_u16.to_le_bytes());
    put(&memory, 0x1_0400, &assemble(16, 0x400, write));
    (memory, vcpu)
}

/// What the handler of ring 0 was given: error code if there is one, then EIP, CS, EFLAGS, ESP,
/// SS, ES, DS, FS, GS.
fn frame(memory: &guest_memory::GuestMemory, vcpu: &dyn vcpu::Vcpu, skip: u64) -> Vec<u32> {
    let top = reg(vcpu, 4) + skip;
    (0..9).map(|n| word(memory, top + n * 4) as u32).collect()
}

#[test]
fn virtual_8086_code_runs_and_is_stopped() {
    for (iopl, vector) in [(3, 0x21), (0, 13)] {
        let (memory, mut vcpu) = v86(iopl, [0x5000, 0x4000, 0x2000, 0x6000], |a| {
            a.mov(ax, 0x1234)?;
            a.mov(word_ptr(0x10), ax)?;
            a.mov(bx, ds)?;
            a.mov(cx, 0x7000)?;
            a.mov(es, cx)?;
            a.mov(byte_ptr(0x20).es(), 0x5a)?;
            a.int(0x21)
        });
        let fault = vcpu.run().unwrap();
        assert_eq!(fault, Exit::Halt);
        let state = vcpu.state().unwrap();
        assert_eq!(state.registers.rip - HANDLERS - 1, vector, "IOPL {iopl}");
        assert_eq!(state.system.segments[1].selector, 8);
        assert_eq!(word(&memory, 0x2_0010) as u16, 0x1234);
        assert_eq!(word(&memory, 0x7_0020) as u8, 0x5a);
        assert_eq!(reg(&*vcpu, 3) as u16, 0x2000);
        let error = if vector == 13 { 4 } else { 0 };
        let frame = frame(&memory, &*vcpu, error);
        assert_eq!(frame[1], 0x1000);
        assert_eq!(frame[2] & 0x2_3000, 0x2_0000 | iopl << 12);
        assert_eq!(frame[3..], [0x100, 0x3000, 0x7000, 0x2000, 0x4000, 0x5000]);
        if vector == 13 {
            // The error code, and EIP at the INT itself.
            let code = word(&memory, reg(&*vcpu, 4)) as u32;
            assert_eq!(code, 0);
        }
    }
}

#[test]
fn privileged_instructions_of_virtual_8086_code_fault() {
    for code in [
        &[0xf4][..],         // hlt
        &[0xfa],             // cli
        &[0x9c],             // pushf
        &[0x9d],             // popf
        &[0xcf],             // iret
        &[0x0f, 0x22, 0xc0], // mov cr0, eax
        &[0xe4, 0x60],       // in al, 0x60 (no permission map)
    ] {
        let (memory, mut vcpu) = v86(0, [0; 4], |a| a.db(code));
        assert_eq!(caught32(&memory, &mut *vcpu).0, 13, "{code:02x?}");
        assert_eq!(frame(&memory, &*vcpu, 4)[0], 0x400, "{code:02x?}");
    }
    // Instructions that do not exist in virtual-8086 mode.
    for code in [&[0x0f, 0x00, 0xd8][..], &[0x63, 0xc0]] {
        let (memory, mut vcpu) = v86(3, [0; 4], |a| a.db(code));
        assert_eq!(caught32(&memory, &mut *vcpu).0, 6, "{code:02x?}");
    }
}

fn sysenter_msrs(
    a: &mut guest::Asm,
    code: i32,
    stack: i32,
    entry: i32,
) -> Result<(), iced_x86::IcedError> {
    a.xor(edx, edx)?;
    for (msr, value) in [(0x174, code), (0x175, stack), (0x176, entry)] {
        a.mov(ecx, msr)?;
        a.mov(eax, value)?;
        a.wrmsr()?;
    }
    Ok(())
}

#[test]
fn sysenter_and_sysexit_in_32_bit_code() {
    let (memory, mut vcpu) = protected(&[], |a| {
        sysenter_msrs(a, 8, 0x2_8000, 0x1_2000)?;
        a.mov(edx, 0x1_1000)?;
        a.mov(ecx, 0x2_7000)?;
        a.sysexit()
    });
    put(
        &memory,
        0x1_1000,
        &assemble(32, 0x1_1000, |a| {
            a.mov(ebx, cs)?;
            a.mov(ebp, ss)?;
            a.mov(esi, esp)?;
            a.sysenter()
        }),
    );
    put(&memory, 0x1_2000, &assemble(32, 0x1_2000, |a| a.hlt()));
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    let state = vcpu.state().unwrap();
    assert_eq!(reg(&*vcpu, 3), 0x1b);
    assert_eq!(reg(&*vcpu, 5), 0x23);
    assert_eq!(reg(&*vcpu, 6), 0x2_7000);
    assert_eq!(reg(&*vcpu, 4), 0x2_8000);
    assert_eq!(state.registers.rip, 0x1_2001);
    assert_eq!(state.system.segments[1].selector, 8);
    assert_eq!(state.system.segments[2].selector, 0x10);
    // Without a segment: #GP.
    let (memory, mut vcpu) = protected(&[], |a| a.sysenter());
    assert_eq!(caught32(&memory, &mut *vcpu), (13, 0));
}

#[test]
fn sysenter_and_sysexit_in_64_bit_code() {
    let (memory, mut vcpu) = long(|a| {
        sysenter_msrs(a, 8, 0x2_8000, 0x1_2000)?;
        a.mov(edx, 0x1_1000)?;
        a.mov(ecx, 0x2_7000)?;
        a.db(&[0x48, 0x0f, 0x35])
    });
    put(
        &memory,
        0x1_1000,
        &assemble(64, 0x1_1000, |a| {
            a.mov(ebx, cs)?;
            a.mov(rsi, rsp)?;
            a.sysenter()
        }),
    );
    put(&memory, 0x1_2000, &assemble(64, 0x1_2000, |a| a.hlt()));
    // SYSEXIT with REX.W goes to the segment 32 on: 64-bit code of ring 3.
    put(&memory, GDT + 40, &0x00af_fb00_0000_ffff_u64.to_le_bytes());
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    assert_eq!(reg(&*vcpu, 3), 0x2b);
    assert_eq!(reg(&*vcpu, 6), 0x2_7000);
    assert_eq!(vcpu.state().unwrap().registers.rip, 0x1_2001);
}

#[test]
fn segments_of_the_local_table() {
    // 0x28: an LDT at 0x9_0000 of two descriptors; in it data at DATA, and one that is absent.
    let ldt = 0x0000_8209_0000_000f_u64;
    for (selector, expected) in [
        (0x4, None),
        (0xc, Some((11, 0xc))),
        (0x14, Some((13, 0x14))),
    ] {
        let (memory, mut vcpu) = protected(&[ldt], |a| {
            a.mov(eax, 0x28)?;
            a.lldt(ax)?;
            a.sldt(ebx)?;
            a.mov(eax, selector)?;
            a.mov(fs, ax)?;
            a.mov(ecx, dword_ptr(0x10).fs())?;
            a.hlt()
        });
        put(&memory, 0x9_0000, &0x0040_9302_0000_0fff_u64.to_le_bytes());
        put(&memory, 0x9_0008, &0x0040_1302_0000_0fff_u64.to_le_bytes());
        put(&memory, DATA + 0x10, &0xfeed_u32.to_le_bytes());
        if let Some(fault) = expected {
            assert_eq!(caught32(&memory, &mut *vcpu), fault);
        } else {
            assert_eq!(vcpu.run().unwrap(), Exit::Halt);
            assert_eq!(reg(&*vcpu, 1), 0xfeed);
            assert_eq!(reg(&*vcpu, 3), 0x28);
        }
    }
    // Without LLDT the local table is empty; and LLDT wants an LDT's descriptor.
    let (memory, mut vcpu) = protected(&[ldt], |a| {
        a.xor(eax, eax)?;
        a.lldt(ax)?;
        a.mov(eax, 4)?;
        a.mov(fs, ax)
    });
    assert_eq!(caught32(&memory, &mut *vcpu), (13, 4));
    let (memory, mut vcpu) = protected(&[], |a| {
        a.mov(eax, 0x10)?;
        a.lldt(ax)
    });
    assert_eq!(caught32(&memory, &mut *vcpu), (13, 0x10));
}

#[test]
fn invpcid_forgets_what_it_says() {
    // A page is read, its entry changed, invalidated in some way, and read again.
    for (kind, address, forgets) in [
        (0, 0x8_0000, true),
        (1, 0, true),
        (2, 0, true),
        (3, 0, true),
    ] {
        let (memory, mut vcpu) = long(|a| {
            a.mov(rax, TABLES)?;
            a.mov(cr3, rax)?;
            a.mov(rax, cr4)?;
            a.bts(rax, 17)?;
            a.mov(cr4, rax)?;
            a.mov(rsi, 0x8_0000_u64)?;
            a.mov(rbx, ptr(rsi))?;
            a.mov(rdi, 0x9_1000_u64 + 0x80 * 8)?;
            a.mov(qword_ptr(rdi), 0x8_1007)?;
            a.mov(rdi, DATA)?;
            a.mov(qword_ptr(rdi), 0)?;
            a.mov(qword_ptr(rdi + 8), address)?;
            a.mov(rcx, kind as u64)?;
            a.invpcid(rcx, xmmword_ptr(rdi))?;
            a.mov(rdx, ptr(rsi))?;
            a.hlt()
        });
        small_pages(&memory);
        put(&memory, 0x8_0000, &1_u64.to_le_bytes());
        put(&memory, 0x8_1000, &2_u64.to_le_bytes());
        assert_eq!(vcpu.run().unwrap(), Exit::Halt, "kind {kind}");
        assert_eq!(reg(&*vcpu, 3), 1);
        assert_eq!(reg(&*vcpu, 2), if forgets { 2 } else { 1 }, "kind {kind}");
    }
    // No such kind; a PCID without PCIDs; a reserved bit; an address that is not canonical.
    for (kind, first, second) in [
        (4_u64, 0_u64, 0_u64),
        (0, 5, 0),
        (1, 1 << 12, 0),
        (0, 0, 1 << 60),
    ] {
        let (memory, mut vcpu) = long(|a| {
            a.mov(rdi, DATA)?;
            a.mov(rax, first)?;
            a.mov(ptr(rdi), rax)?;
            a.mov(rax, second)?;
            a.mov(ptr(rdi + 8), rax)?;
            a.mov(rcx, kind)?;
            a.invpcid(rcx, xmmword_ptr(rdi))
        });
        assert_eq!(
            caught(&memory, &mut *vcpu).0,
            13,
            "{kind} {first:x} {second:x}"
        );
    }
}

#[test]
fn a_string_stops_at_the_page_that_is_not_there() {
    let (memory, mut vcpu) = long(|a| {
        a.mov(rsi, DATA)?;
        a.mov(rdi, 0x8_1000_u64 - 24)?;
        a.mov(ecx, 10)?;
        a.rep().movsq()
    });
    let table = small_pages(&memory);
    for n in 0..10_u64 {
        put(&memory, DATA + n * 8, &(0x100 + n).to_le_bytes());
    }
    put(&memory, table + 0x81 * 8, &0_u64.to_le_bytes());
    let (vector, stack) = caught(&memory, &mut *vcpu);
    assert_eq!((vector, stack[0]), (14, 2));
    // Three went through, the fourth did not.
    assert_eq!(reg(&*vcpu, 1), 7);
    assert_eq!(reg(&*vcpu, 6), DATA + 24);
    assert_eq!(reg(&*vcpu, 7), 0x8_1000);
    assert_eq!(vcpu.state().unwrap().system.cr2, 0x8_1000);
    assert_eq!(word(&memory, 0x8_1000 - 8), 0x102);
    // The handler maps the page, and it goes on where it was.
    put(&memory, table + 0x81 * 8, &0x8_1007_u64.to_le_bytes());
    let mut state = vcpu.state().unwrap();
    state.registers.rip = stack[1];
    vcpu.set_state(&state).unwrap();
    put(&memory, stack[1] + 3, &[0xf4]);
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    assert_eq!(reg(&*vcpu, 1), 0);
    assert_eq!(word(&memory, 0x8_1000 + 6 * 8), 0x109);
}

#[test]
fn vectors_over_two_pages_are_all_or_nothing() {
    for present in [true, false] {
        for bytes in [16_u64, 32] {
            let (memory, mut vcpu) = long(|a| {
                a.mov(rsi, DATA)?;
                a.mov(rdi, 0x8_1000_u64 - 8)?;
                if bytes == 16 {
                    a.movdqu(xmm1, xmmword_ptr(rsi))?;
                    a.movdqu(xmmword_ptr(rdi), xmm1)?;
                    a.movdqu(xmm2, xmmword_ptr(rdi))?;
                    a.movdqu(xmmword_ptr(rsi + 64), xmm2)?;
                } else {
                    a.vmovdqu(ymm1, ymmword_ptr(rsi))?;
                    a.vmovdqu(ymmword_ptr(rdi), ymm1)?;
                    a.vmovdqu(ymm2, ymmword_ptr(rdi))?;
                    a.vmovdqu(ymmword_ptr(rsi + 64), ymm2)?;
                }
                a.hlt()
            });
            let table = small_pages(&memory);
            for n in 0..4_u64 {
                put(&memory, DATA + n * 8, &(0x100 + n).to_le_bytes());
            }
            if !present {
                put(&memory, table + 0x81 * 8, &0_u64.to_le_bytes());
                assert_eq!(caught(&memory, &mut *vcpu).0, 14);
                assert_eq!(vcpu.state().unwrap().system.cr2, 0x8_1000);
                assert_eq!(word(&memory, 0x8_1000 - 8), 0);
                continue;
            }
            assert_eq!(vcpu.run().unwrap(), Exit::Halt);
            for n in 0..bytes / 8 {
                assert_eq!(word(&memory, DATA + 64 + n * 8), 0x100 + n);
            }
        }
    }
}

#[test]
fn avx_is_the_operating_systems_to_switch_on() {
    // vpxor ymm1, ymm1, ymm1 without CR4.OSXSAVE, without XCR0, with a task switch pending; and
    // what needs no XCR0: andn.
    for (control4, xcr0, control0, code, vector) in [
        (
            0x4_06b0_u64,
            7_u64,
            0x8001_0033_u64,
            &[0xc5, 0xf5, 0xef, 0xc9, 0xf4][..],
            None,
        ),
        (0x6b0, 7, 0x8001_0033, &[0xc5, 0xf5, 0xef, 0xc9], Some(6)),
        (0x4_06b0, 3, 0x8001_0033, &[0xc5, 0xf5, 0xef, 0xc9], Some(6)),
        (0x4_06b0, 7, 0x8001_003b, &[0xc5, 0xf5, 0xef, 0xc9], Some(7)),
        (
            0x6b0,
            1,
            0x8001_0033,
            &[0xc4, 0xe2, 0x78, 0xf2, 0xc0, 0xf4],
            None,
        ),
        (0x6b0, 1, 0x8001_003b, &[0x0f, 0x6f, 0xc1], Some(7)),
        (0x6b0, 1, 0x8001_0037, &[0x0f, 0x6f, 0xc1], Some(6)),
        (0x6b0, 1, 0x8001_0037, &[0xd9, 0xe8], Some(7)),
        (0x4b0, 1, 0x8001_0033, &[0x0f, 0x58, 0xc1], Some(6)),
    ] {
        let (memory, mut vcpu) = long(|a| a.db(code));
        let mut state = vcpu.state().unwrap();
        state.system.cr4 = control4;
        state.system.xcr0 = xcr0;
        state.system.cr0 = control0;
        vcpu.set_state(&state).unwrap();
        match vector {
            Some(vector) => assert_eq!(caught(&memory, &mut *vcpu).0, vector, "{code:02x?}"),
            None => {
                assert_eq!(vcpu.run().unwrap(), Exit::Halt);
                assert_eq!(
                    vcpu.state().unwrap().registers.rip,
                    CODE + code.len() as u64
                );
            }
        }
    }
    // XCR0 with AVX but not SSE, without x87, with what is not there.
    for value in [5_u32, 6, 0xf, 0] {
        let (memory, mut vcpu) = long(|a| {
            a.xor(ecx, ecx)?;
            a.xor(edx, edx)?;
            a.mov(eax, value)?;
            a.xsetbv()
        });
        assert_eq!(caught(&memory, &mut *vcpu).0, 13, "{value:x}");
    }
}

#[test]
fn upper_halves_are_saved_and_restored() {
    for compact in [false, true] {
        let (memory, mut vcpu) = long(|a| {
            a.fninit()?;
            a.mov(rbx, DATA)?;
            a.mov(rax, 0x1122_3344_5566_7788_u64)?;
            a.vmovq(xmm3, rax)?;
            a.vpermq(ymm3, ymm3, 0)?;
            a.xor(edx, edx)?;
            a.mov(eax, 7)?;
            if compact {
                a.xsavec64(ptr(rbx + 0x400))?;
            } else {
                a.xsave64(ptr(rbx + 0x400))?;
            }
            a.mov(ecx, 1)?;
            a.xgetbv()?;
            a.mov(r9, rax)?;
            a.vzeroall()?;
            a.xgetbv()?;
            a.mov(r10, rax)?;
            a.mov(eax, 7)?;
            a.xor(edx, edx)?;
            a.xrstor64(ptr(rbx + 0x400))?;
            a.vextracti128(xmmword_ptr(rbx), ymm3, 1)?;
            a.hlt()
        });
        assert_eq!(vcpu.run().unwrap(), Exit::Halt);
        assert_eq!(word(&memory, DATA), 0x1122_3344_5566_7788);
        assert_eq!(
            word(&memory, DATA + 0x400 + 576 + 48),
            0x1122_3344_5566_7788
        );
        assert_eq!(word(&memory, DATA + 0x400 + 512), 6);
        let header = word(&memory, DATA + 0x400 + 520);
        assert_eq!(header, if compact { 1 << 63 | 7 } else { 0 });
        assert_eq!((reg(&*vcpu, 9), reg(&*vcpu, 10)), (6, 0));
    }
}

#[test]
fn random_numbers_say_that_they_are() {
    let (_, mut vcpu) = long(|a| {
        a.mov(rbx, u64::MAX)?;
        a.stc()?;
        a.rdrand(rax)?;
        a.pushfq()?;
        a.pop(rsi)?;
        a.rdseed(rcx)?;
        a.rdrand(bx)?;
        a.hlt()
    });
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    assert_ne!(reg(&*vcpu, 0), reg(&*vcpu, 1));
    assert_eq!(reg(&*vcpu, 3) >> 16, u64::MAX >> 16);
    // CF, and none of the others.
    assert_eq!(reg(&*vcpu, 6) & 0x8d5, 1);
}

#[test]
fn unmasked_float_exceptions_trap_as_control_registers_say() {
    for (control4, vector) in [(0x4_06b0_u64, 19), (0x4_02b0, 6)] {
        let (memory, mut vcpu) = long(|a| {
            a.mov(rbx, DATA)?;
            a.mov(dword_ptr(rbx), 0x1d80)?;
            a.ldmxcsr(dword_ptr(rbx))?;
            a.pcmpeqd(xmm1, xmm1)?;
            a.pslld(xmm1, 25)?;
            a.psrld(xmm1, 2)?;
            a.xorps(xmm2, xmm2)?;
            a.divps(xmm1, xmm2)
        });
        let mut state = vcpu.state().unwrap();
        state.system.cr4 = control4;
        vcpu.set_state(&state).unwrap();
        assert_eq!(caught(&memory, &mut *vcpu).0, vector);
        // The flag is there, the quotient is not.
        let state = vcpu.state().unwrap();
        assert_eq!(state.xsave.0[24] & 0x3f, 4);
        assert_eq!(state.xsave.0[176..180], 0x3f80_0000_u32.to_le_bytes());
    }
    // The x87's wait for the next instruction that asks.
    let (memory, mut vcpu) = long(|a| {
        a.mov(rbx, DATA)?;
        a.fninit()?;
        a.mov(word_ptr(rbx), 0x37b)?;
        a.fldcw(word_ptr(rbx))?;
        a.fld1()?;
        a.fldz()?;
        a.fdivp(st1, st0)?;
        a.fnstsw(ax)?;
        a.mov(edi, 0x77)?;
        a.fld1()
    });
    assert_eq!(caught(&memory, &mut *vcpu).0, 16);
    assert_eq!(reg(&*vcpu, 7), 0x77);
    assert_eq!(reg(&*vcpu, 0) & 0x80bf, 0x8084);
}

/// 16-bit code does what 32-bit code does with the prefixes turned around; that one is compared
/// with the host in `differential.rs`.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[test]
fn code_of_16_bits_is_code_of_32_bits_with_other_prefixes() {
    let run = |bits_16: bool, code: &[u8], seed: u64| {
        let (memory, mut vcpu) = protected(&[], |a| a.hlt());
        put(&memory, CODE, &[code, &[0xf4]].concat());
        let mut state = vcpu.state().unwrap();
        state.system.segments[1].big = !bits_16;
        state.system.segments[1].base = CODE;
        state.registers.rip = 0;
        // The data that the forms look at are far up, where this guest has nothing: its data
        // segment begins so that they are at DATA.
        for segment in [0, 2, 3] {
            state.system.segments[segment].base = DATA.wrapping_sub(0x2002_0000) & 0xffff_ffff;
        }
        let mut random = seed | 1;
        let mut next = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        for register in &mut state.registers.general[..8] {
            *register = next() >> (32 + (next() & 31));
        }
        state.registers.general[3] = 0x2002_0080;
        state.registers.general[4] = 0x2002_0100;
        state.registers.general[6] = next() & 7;
        state.registers.general[2] &= 0xff;
        state.registers.rflags = 2 | (next() & 0x8d5);
        for at in (0..512).step_by(8) {
            put(&memory, DATA + at, &next().to_le_bytes());
        }
        vcpu.set_state(&state).unwrap();
        assert_eq!(vcpu.run().unwrap(), Exit::Halt, "{code:02x?}");
        let after = vcpu.state().unwrap().registers;
        assert_eq!(after.rip, code.len() as u64 + 1, "{code:02x?}");
        let data: Vec<u64> = (0..512)
            .step_by(8)
            .map(|at| word(&memory, DATA + at))
            .collect();
        (after.general, after.rflags, data)
    };
    let codes = forms::narrow::with_modrm();
    assert!(codes.len() > 500, "{}", codes.len());
    for (seed, code) in (1_u64..).zip(&codes) {
        let seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let short = forms::narrow::as_16_bit(code);
        let (long, short) = (run(false, code, seed), run(true, &short, seed));
        assert_eq!(
            (long.0, long.1, long.2),
            (short.0, short.1, short.2),
            "{code:02x?}"
        );
    }
}
