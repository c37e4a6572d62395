//! A guest of a few instructions.
#![allow(dead_code, reason = "each test uses some of it")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic; that is how it fails"
)]

use std::sync::Arc;

use accel_kvm::{IrqchipMode, KvmAccelerator, KvmError};
use guest_memory::{GuestMemory, GuestPhysAddr};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use vcpu::{Accelerator, DescriptorTable, Exit, Segment, SegmentRegister, Vcpu, VcpuState};

pub const CODE: u64 = 0x1_0000;
pub const DATA: u64 = 0x2_0000;
pub const STACK: u64 = 0x3_0000;
/// One HLT for each vector, so that RIP tells which was taken.
pub const HANDLERS: u64 = 0x8000;
pub const TABLES: u64 = 0x1000;
pub const IDT: u64 = 0x4000;
pub const GDT: u64 = 0x5000;
pub const TSS: u64 = 0x6000;
pub const RAM_BYTES: u64 = 1 << 20;

pub struct Guest {
    pub memory: Arc<GuestMemory>,
    pub kvm: KvmAccelerator,
}

impl Guest {
    /// With the interrupt controllers of a board. `None`: this host is said to have no KVM.
    pub fn new() -> Option<Self> {
        Self::with(IrqchipMode::Off)
    }

    /// `None`: this host is said to have no KVM, or its kernel does not offer this.
    pub fn with(mode: IrqchipMode) -> Option<Self> {
        if std::env::var_os("RATITE_NO_KVM").is_some_and(|value| value == "1") {
            eprintln!("skipped: RATITE_NO_KVM=1 says that this host has no /dev/kvm");
            return None;
        }
        let memory = Arc::new(GuestMemory::new(4 << 20).unwrap());
        memory.add_ram(GuestPhysAddr(0), RAM_BYTES).unwrap();
        match KvmAccelerator::new(Arc::clone(&memory), mode) {
            Ok(kvm) => Some(Self { memory, kvm }),
            Err(error @ KvmError::Irqchip { .. }) => {
                eprintln!("skipped: {error}");
                None
            }
            Err(error) => panic!("{error} (or say RATITE_NO_KVM=1 where there is no /dev/kvm)"),
        }
    }

    pub fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write(GuestPhysAddr(at), bytes).unwrap();
    }

    pub fn word(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.memory.read(GuestPhysAddr(at), &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    pub fn assemble(
        &self,
        bits: u32,
        at: u64,
        write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) {
        let mut a = CodeAssembler::new(bits).unwrap();
        write(&mut a).unwrap();
        self.put(at, &a.assemble(at).unwrap());
    }

    pub fn vcpu(&self, index: u32) -> Box<dyn Vcpu> {
        let table = self.kvm.host_cpuid(index);
        self.kvm.create_vcpu(index, table).unwrap()
    }

    /// Real mode at `CODE`, with DS, ES and SS at 0.
    pub fn real(
        &self,
        write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Box<dyn Vcpu> {
        self.assemble(16, CODE, write);
        let mut vcpu = self.vcpu(0);
        let mut state = vcpu.state().unwrap();
        let code = &mut state.system.segments[SegmentRegister::Cs as usize];
        (code.selector, code.base) = (0x1000, CODE);
        state.registers.rip = 0;
        state.registers.general[4] = 0x7000;
        vcpu.set_state(&state).unwrap();
        vcpu
    }

    /// 64-bit supervisor mode at `CODE`.
    pub fn long(
        &self,
        write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Box<dyn Vcpu> {
        self.prepare_long_mode();
        self.assemble(64, CODE, write);
        let mut vcpu = self.vcpu(0);
        let state = long_state(&*vcpu, CODE);
        vcpu.set_state(&state).unwrap();
        vcpu
    }

    pub fn prepare_long_mode(&self) {
        // The first 4 GiB to themselves, in pages of 2 MiB.
        self.put(TABLES, &(0xa_0000_u64 + 7).to_le_bytes());
        for gib in 0..4_u64 {
            self.put(
                0xa_0000 + gib * 8,
                &(0xa_1000 + gib * 0x1000 + 7).to_le_bytes(),
            );
            for page in 0..512_u64 {
                let entry = (gib << 30) | (page << 21) | 0x87;
                self.put(0xa_1000 + gib * 0x1000 + page * 8, &entry.to_le_bytes());
            }
        }
        let gdt: [u64; 5] = [
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_9b00_0000_ffff,
            0,
        ];
        for (index, entry) in (0..).zip(gdt) {
            self.put(GDT + index * 8, &entry.to_le_bytes());
        }
        self.put(GDT + 0x30, &0x0000_8900_6000_0067_u64.to_le_bytes());
        for vector in 0..256_u64 {
            self.put(IDT + vector * 16, &gate64(HANDLERS + vector));
            self.put(HANDLERS + vector, &[0xf4]);
        }
    }
}

pub fn gate64(offset: u64) -> [u8; 16] {
    let mut gate = [0; 16];
    gate[0..2].copy_from_slice(&(offset as u16).to_le_bytes());
    gate[2..4].copy_from_slice(&8_u16.to_le_bytes());
    gate[5] = 0x8e;
    gate[6..8].copy_from_slice(&((offset >> 16) as u16).to_le_bytes());
    gate
}

pub fn flat(selector: u16, kind: u8, long: bool) -> Segment {
    Segment {
        selector,
        limit: u32::MAX,
        kind,
        code_or_data: true,
        present: true,
        long,
        big: !long,
        granular: true,
        ..Segment::default()
    }
}

pub fn long_state(vcpu: &dyn Vcpu, rip: u64) -> VcpuState {
    let mut state = vcpu.state().unwrap();
    state.system.cr0 = 0x8001_0033;
    state.system.cr3 = TABLES;
    state.system.cr4 = 0x6a0;
    state.system.efer = 0xd01;
    state.system.segments = [flat(0x10, 3, false); 6];
    state.system.segments[SegmentRegister::Cs as usize] = flat(8, 11, true);
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
    state.system.ldtr = Segment {
        unusable: true,
        ..Segment::default()
    };
    state.registers.rip = rip;
    state.registers.rflags = 2;
    state.registers.general[4] = STACK;
    state
}

pub fn reg(vcpu: &dyn Vcpu, number: usize) -> u64 {
    vcpu.state().unwrap().registers.general[number]
}

pub fn out(port: u16, byte: u8) -> Exit {
    Exit::PortOut {
        port,
        size: 1,
        data: vec![byte],
    }
}
