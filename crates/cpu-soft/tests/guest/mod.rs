//! A machine of memory and one vCPU, as tests need it.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "each test file uses a part of it, and may panic"
)]

pub mod gates;
pub mod machine;
pub mod random;

use std::sync::Arc;

use cpu_soft::{Model, SoftAccelerator, table};
use guest_memory::{GuestMemory, GuestPhysAddr};
use iced_x86::code_asm::CodeAssembler;
use vcpu::{Accelerator, DescriptorTable, Exit, Segment, Vcpu, VcpuState};

/// Where the handlers of exceptions are: one HLT each, so that RIP tells the vector.
pub const HANDLERS: u64 = 0x8000;
/// The page tables' root: 1 GiB pages, all of the first 512 GiB, to itself.
pub const TABLES: u64 = 0x1000;
pub const IDT: u64 = 0x4000;
pub const GDT: u64 = 0x5000;
pub const TSS: u64 = 0x6000;
pub const CODE: u64 = 0x1_0000;
pub const DATA: u64 = 0x2_0000;
pub const STACK: u64 = 0x3_0000;

/// A flat segment.
pub fn flat(selector: u16, kind: u8, long: bool, dpl: u8) -> Segment {
    Segment {
        selector,
        limit: u32::MAX,
        kind,
        code_or_data: true,
        dpl,
        present: true,
        long,
        big: !long,
        granular: true,
        ..Segment::default()
    }
}

/// A 64-bit gate.
pub fn gate64(offset: u64, selector: u16, ist: u8, dpl: u8, kind: u8) -> [u8; 16] {
    let mut gate = [0; 16];
    gate[0..2].copy_from_slice(&(offset as u16).to_le_bytes());
    gate[2..4].copy_from_slice(&selector.to_le_bytes());
    gate[4] = ist;
    gate[5] = 0x80 | (dpl << 5) | kind;
    gate[6..8].copy_from_slice(&((offset >> 16) as u16).to_le_bytes());
    gate[8..12].copy_from_slice(&((offset >> 32) as u32).to_le_bytes());
    gate
}

pub fn memory() -> Arc<GuestMemory> {
    let memory = GuestMemory::new(4 << 20).unwrap();
    memory.add_ram(GuestPhysAddr(0), 1 << 20).unwrap();
    Arc::new(memory)
}

/// Writes page tables, GDT and IDT for 64-bit mode.
pub fn prepare_long_mode(memory: &GuestMemory) {
    let put = |at: u64, bytes: &[u8]| memory.write(GuestPhysAddr(at), bytes).unwrap();
    put(TABLES, &(TABLES + 0x1000 + 7).to_le_bytes());
    for page in 0..512_u64 {
        put(
            TABLES + 0x1000 + page * 8,
            &((page << 30) | 0x87).to_le_bytes(),
        );
    }
    // null, code 0, data 0, code 3 (32-bit), data 3, code 3
    let gdt: [u64; 8] = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        0x0000_8900_6000_0067,
        0,
    ];
    for (index, entry) in (0..).zip(gdt) {
        put(GDT + index * 8, &entry.to_le_bytes());
    }
    for vector in 0..256_u64 {
        put(IDT + vector * 16, &gate64(HANDLERS + vector, 8, 0, 3, 14));
        put(HANDLERS + vector, &[0xf4]);
    }
}

/// 64-bit supervisor state with everything usual on.
pub fn long_state(vcpu: &dyn Vcpu, rip: u64) -> VcpuState {
    long_state_of(vcpu.state().unwrap(), rip)
}

/// The same from a state that was taken before.
pub fn long_state_of(mut state: VcpuState, rip: u64) -> VcpuState {
    state.system.cr0 = 0x8001_0033;
    state.system.cr3 = TABLES;
    state.system.cr4 = 0x4_06b0;
    state.system.xcr0 = 7;
    state.system.efer = 0xd01;
    state.system.segments = [flat(0x10, 3, false, 0); 6];
    state.system.segments[1] = flat(8, 11, true, 0);
    state.system.gdtr = DescriptorTable {
        base: GDT,
        limit: 63,
    };
    state.system.idtr = DescriptorTable {
        base: IDT,
        limit: 0xfff,
    };
    state.system.tr = Segment {
        selector: 0x30,
        base: TSS,
        limit: 0x67,
        kind: 11,
        present: true,
        ..Segment::default()
    };
    state.registers.rip = rip;
    state.registers.rflags = 2;
    state
}

pub fn vcpu(memory: &Arc<GuestMemory>, index: u32) -> Box<dyn Vcpu> {
    vcpu_of(Model::Max, memory, index)
}

pub fn vcpu_of(model: Model, memory: &Arc<GuestMemory>, index: u32) -> Box<dyn Vcpu> {
    SoftAccelerator::new(Arc::clone(memory))
        .create_vcpu(index, table(model, index, 2))
        .unwrap()
}

pub type Asm = CodeAssembler;

pub fn assemble(
    bits: u32,
    at: u64,
    write: impl FnOnce(&mut Asm) -> Result<(), iced_x86::IcedError>,
) -> Vec<u8> {
    let mut a = CodeAssembler::new(bits).unwrap();
    write(&mut a).unwrap();
    a.assemble(at).unwrap()
}

pub fn put(memory: &GuestMemory, at: u64, bytes: &[u8]) {
    memory.write(GuestPhysAddr(at), bytes).unwrap();
}

pub fn word(memory: &GuestMemory, at: u64) -> u64 {
    let mut bytes = [0; 8];
    memory.read(GuestPhysAddr(at), &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

/// A machine in long mode at `CODE`, RSP at `STACK`.
pub fn long(
    write: impl FnOnce(&mut Asm) -> Result<(), iced_x86::IcedError>,
) -> (Arc<GuestMemory>, Box<dyn Vcpu>) {
    let memory = memory();
    prepare_long_mode(&memory);
    put(&memory, CODE, &assemble(64, CODE, write));
    let vcpu = long_vcpu(&memory, 0);
    (memory, vcpu)
}

pub fn long_vcpu(memory: &Arc<GuestMemory>, index: u32) -> Box<dyn Vcpu> {
    let mut vcpu = vcpu(memory, index);
    let mut state = long_state(&*vcpu, CODE);
    state.registers.general[4] = STACK - u64::from(index) * 0x1000;
    vcpu.set_state(&state).unwrap();
    vcpu
}

pub fn reg(vcpu: &dyn Vcpu, number: usize) -> u64 {
    vcpu.state().unwrap().registers.general[number]
}

/// The vector whose handler the guest halted in, and the top of its stack.
pub fn caught(memory: &GuestMemory, vcpu: &mut dyn Vcpu) -> (u64, Vec<u64>) {
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    let state = vcpu.state().unwrap();
    let top = state.registers.general[4];
    let stack = (0..6).map(|slot| word(memory, top + slot * 8)).collect();
    (state.registers.rip.wrapping_sub(HANDLERS + 1), stack)
}

/// 32-bit protected mode without paging, with these descriptors behind the usual ones.
pub fn protected(
    descriptors: &[u64],
    write: impl FnOnce(&mut Asm) -> Result<(), iced_x86::IcedError>,
) -> (Arc<GuestMemory>, Box<dyn Vcpu>) {
    let memory = memory();
    prepare_long_mode(&memory);
    let usual = [
        0,
        0x00cf_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
    ];
    for (slot, value) in (0..).zip(usual.iter().chain(descriptors)) {
        put(&memory, GDT + slot * 8, &value.to_le_bytes());
    }
    for vector in 0..256_u64 {
        let at = (HANDLERS + vector) as u32;
        let gate = u64::from(at & 0xffff) | 8 << 16 | 0xee00 << 32 | u64::from(at >> 16) << 48;
        put(&memory, IDT + vector * 8, &gate.to_le_bytes());
    }
    put(&memory, CODE, &assemble(32, CODE, write));
    let mut vcpu = vcpu(&memory, 0);
    let mut state = long_state(&*vcpu, CODE);
    state.system.cr0 = 0x11;
    state.system.cr4 = 0x600;
    state.system.efer = 0;
    state.system.segments = [flat(0x10, 3, false, 0); 6];
    state.system.segments[1] = flat(8, 11, false, 0);
    state.system.gdtr.limit = 0xff;
    state.registers.general[4] = STACK;
    vcpu.set_state(&state).unwrap();
    (memory, vcpu)
}

pub fn caught32(memory: &GuestMemory, vcpu: &mut dyn Vcpu) -> (u64, u32) {
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    let state = vcpu.state().unwrap();
    let error = word(memory, state.registers.general[4]) as u32;
    (state.registers.rip.wrapping_sub(HANDLERS + 1), error)
}
