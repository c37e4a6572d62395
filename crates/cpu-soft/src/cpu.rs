//! The state of one software CPU, in the form that instructions work on.

use std::sync::Arc;
use std::time::Instant;

use guest_memory::{Attention, GuestMemory};
use vcpu::{CpuidTable, DescriptorTable, Event, Exit, Segment, SystemRegisters};

use crate::domain::{Flags, Op, Stop};
use crate::flags::{self, bit};
use crate::fpu::Fpu;
use crate::tlb::{Kind, Tlb};

/// Bits of the control registers and of EFER that more than one file looks at.
pub(crate) mod cr {
    pub(crate) const CR0_PE: u64 = 1;
    pub(crate) const CR0_MP: u64 = 1 << 1;
    pub(crate) const CR0_EM: u64 = 1 << 2;
    pub(crate) const CR0_TS: u64 = 1 << 3;
    pub(crate) const CR0_ET: u64 = 1 << 4;
    pub(crate) const CR0_NE: u64 = 1 << 5;
    pub(crate) const CR0_WP: u64 = 1 << 16;
    pub(crate) const CR0_AM: u64 = 1 << 18;
    pub(crate) const CR0_NW: u64 = 1 << 29;
    pub(crate) const CR0_CD: u64 = 1 << 30;
    pub(crate) const CR0_PG: u64 = 1 << 31;
    pub(crate) const CR4_TSD: u64 = 1 << 2;
    pub(crate) const CR4_DE: u64 = 1 << 3;
    pub(crate) const CR4_PSE: u64 = 1 << 4;
    pub(crate) const CR4_PAE: u64 = 1 << 5;
    pub(crate) const CR4_PGE: u64 = 1 << 7;
    pub(crate) const CR4_PCE: u64 = 1 << 8;
    pub(crate) const CR4_OSFXSR: u64 = 1 << 9;
    pub(crate) const CR4_OSXMMEXCPT: u64 = 1 << 10;
    pub(crate) const CR4_UMIP: u64 = 1 << 11;
    pub(crate) const CR4_LA57: u64 = 1 << 12;
    pub(crate) const CR4_FSGSBASE: u64 = 1 << 16;
    pub(crate) const CR4_PCIDE: u64 = 1 << 17;
    pub(crate) const CR4_OSXSAVE: u64 = 1 << 18;
    pub(crate) const CR4_SMEP: u64 = 1 << 20;
    pub(crate) const CR4_SMAP: u64 = 1 << 21;
    pub(crate) const EFER_SCE: u64 = 1;
    pub(crate) const EFER_LME: u64 = 1 << 8;
    pub(crate) const EFER_LMA: u64 = 1 << 10;
    pub(crate) const EFER_NXE: u64 = 1 << 11;
}

/// Exception vectors.
pub(crate) mod vector {
    pub(crate) const DE: u8 = 0;
    pub(crate) const DB: u8 = 1;
    pub(crate) const NMI: u8 = 2;
    pub(crate) const BP: u8 = 3;
    pub(crate) const OF: u8 = 4;
    pub(crate) const BR: u8 = 5;
    pub(crate) const UD: u8 = 6;
    pub(crate) const NM: u8 = 7;
    pub(crate) const DF: u8 = 8;
    pub(crate) const TS: u8 = 10;
    pub(crate) const NP: u8 = 11;
    pub(crate) const SS: u8 = 12;
    pub(crate) const GP: u8 = 13;
    pub(crate) const PF: u8 = 14;
    pub(crate) const MF: u8 = 16;
    pub(crate) const MC: u8 = 18;
    pub(crate) const XM: u8 = 19;
}

/// Indexes of the segment registers.
pub(crate) const ES: u8 = 0;
pub(crate) const CS: u8 = 1;
pub(crate) const SS: u8 = 2;
pub(crate) const DS: u8 = 3;
pub(crate) const FS: u8 = 4;
pub(crate) const GS: u8 = 5;

/// Indexes of general registers.
pub(crate) const RAX: u8 = 0;
pub(crate) const RCX: u8 = 1;
pub(crate) const RDX: u8 = 2;
pub(crate) const RBX: u8 = 3;
pub(crate) const RSP: u8 = 4;
pub(crate) const RBP: u8 = 5;
pub(crate) const RSI: u8 = 6;
pub(crate) const RDI: u8 = 7;

/// An exception on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    pub vector: u8,
    pub error: Option<u32>,
}

/// How code is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum CodeMode {
    Bits16,
    Bits32,
    Bits64,
}

/// Machine-specific registers the CPU keeps, besides EFER and the segment bases.
#[derive(Debug, Clone, Default)]
pub(crate) struct Msrs {
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub tsc_aux: u64,
    pub pat: u64,
    pub misc_enable: u64,
    pub mtrr_def_type: u64,
    pub mtrr_fixed: [u64; 11],
    pub mtrr_variable: [u64; 16],
    pub tsc_adjust: u64,
    pub spec_ctrl: u64,
}

/// Bus accesses of the instruction in flight that the board has already done: when the
/// instruction runs again they are answered from here.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Replay {
    pub kind: ReplayKind,
    pub addr: u64,
    pub size: u32,
    /// `None`: an MSR access the board refuses.
    pub data: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReplayKind {
    MmioRead,
    MmioWrite,
    PortIn,
    PortOut,
    MsrRead,
    MsrWrite,
}

/// The most bus accesses one instruction may have in flight (FXSAVE to a device has 64).
const MAX_REPLAY: usize = 128;

/// One CPU. Fields used by every instruction come first.
pub(crate) struct Cpu {
    pub regs: [u64; 32],
    pub flags: Flags<u64>,
    /// Bases by segment number; zero where 64-bit mode ignores them; number 7 is "none".
    pub seg_base: [u64; 8],
    /// The privilege of data accesses, as the TLB tags it.
    pub data_kind: u64,
    /// The stack is addressed by 64 bits without limits.
    pub flat_stack: bool,
    pub mode: CodeMode,
    pub cpl: u8,
    /// The last byte that code may be at, and the bits of linear addresses that count: all in
    /// 64-bit mode.
    pub code_limit: u64,
    pub linear_mask: u64,
    /// Writes to decoded code may go through: the instruction runs alone in its block.
    pub alone: bool,
    /// No other vCPU runs.
    pub exclusive: bool,
    pub tlb: Box<Tlb>,
    pub memory: Arc<GuestMemory>,
    /// The RAM region that the last walk found: start, size, place. Dropped when the map changes.
    pub region: (u64, u64, u64),
    pub attention: Arc<Attention>,
    pub rip: u64,
    /// RFLAGS but for the arithmetic flags.
    pub sysflags: u64,
    pub fault: Fault,
    /// The fault is an access to an address that is not canonical.
    pub non_canonical: bool,
    pub exit: Exit,
    pub replay: Vec<Replay>,
    pub replay_at: usize,

    pub system: SystemRegisters,
    pub msrs: Msrs,
    pub fpu: Fpu,
    /// The four page-directory pointers that PAE paging loads with CR3.
    pub pdptes: [u64; 4],

    pub event: Option<Event>,
    pub nmi_pending: bool,
    pub nmi_masked: bool,
    /// Interrupts wait until one more instruction has run.
    pub shadow: bool,
    pub window_wanted: bool,

    pub cpuid: CpuidTable,
    pub features: crate::system::cpuid::Features,
    started: Instant,
    tsc_offset: u64,
}

impl Cpu {
    pub(crate) fn new(memory: Arc<GuestMemory>, cpuid: CpuidTable) -> Self {
        let attention = Arc::new(Attention::default());
        memory.code_marks().watch(&attention);
        let features = crate::system::cpuid::Features::of(&cpuid);
        let mut cpu = Self {
            regs: [0; 32],
            flags: Flags::default(),
            seg_base: [0; 8],
            data_kind: 0,
            flat_stack: false,
            mode: CodeMode::Bits16,
            cpl: 0,
            code_limit: 0,
            linear_mask: 0,
            alone: false,
            exclusive: false,
            tlb: Box::default(),
            memory,
            region: (0, 0, 0),
            attention,
            rip: 0,
            sysflags: 2,
            fault: Fault {
                vector: 0,
                error: None,
            },
            non_canonical: false,
            exit: Exit::Halt,
            replay: Vec::with_capacity(4),
            replay_at: 0,
            system: SystemRegisters::default(),
            msrs: Msrs::default(),
            fpu: Fpu::default(),
            pdptes: [0; 4],
            event: None,
            nmi_pending: false,
            nmi_masked: false,
            shadow: false,
            window_wanted: false,
            cpuid,
            features,
            started: Instant::now(),
            tsc_offset: 0,
        };
        cpu.reset();
        cpu
    }

    /// The state after RESET# (Intel SDM 3, "Processor State After Reset").
    pub(crate) fn reset(&mut self) {
        self.regs = [0; 32];
        let signature = self.cpuid.answer(1, 0).eax;
        self.put(RDX, u64::from(signature));
        self.flags = flags::from_bits(0);
        self.sysflags = 2;
        self.rip = 0xfff0;
        let data = Segment {
            limit: 0xffff,
            kind: 3,
            code_or_data: true,
            present: true,
            ..Segment::default()
        };
        self.system.segments = [data; 6];
        self.set_segment(
            CS,
            Segment {
                selector: 0xf000,
                base: 0xffff_0000,
                kind: 0xb,
                ..data
            },
        );
        let system = |kind| Segment {
            limit: 0xffff,
            kind,
            present: true,
            ..Segment::default()
        };
        self.system.ldtr = system(2);
        self.system.tr = system(0xb);
        let table = DescriptorTable {
            base: 0,
            limit: 0xffff,
        };
        self.system.gdtr = table;
        self.system.idtr = table;
        self.system.cr0 = cr::CR0_ET | cr::CR0_NW | cr::CR0_CD;
        (
            self.system.cr2,
            self.system.cr3,
            self.system.cr4,
            self.system.cr8,
        ) = (0, 0, 0, 0);
        (self.system.xcr0, self.system.efer) = (1, 0);
        self.system.dr = [0; 4];
        (self.system.dr6, self.system.dr7) = (0xffff_0ff0, 0x400);
        self.msrs = Msrs {
            pat: 0x0007_0406_0007_0406,
            misc_enable: 1,
            ..Msrs::default()
        };
        self.fpu = Fpu::default();
        self.pdptes = [0; 4];
        self.event = None;
        (self.nmi_pending, self.nmi_masked, self.shadow) = (false, false, false);
        self.window_wanted = false;
        self.drop_replay();
        self.set_tsc(0);
        self.tlb.flush();
        self.refresh();
    }

    /// A register by number (0 to 15), all 64 bits.
    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "masked to the array's size")]
    pub(crate) fn get(&self, number: u8) -> u64 {
        self.regs[(number & 31) as usize]
    }

    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "masked to the array's size")]
    pub(crate) fn put(&mut self, number: u8, value: u64) {
        self.regs[(number & 31) as usize] = value;
    }

    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "masked to the array's size")]
    pub(crate) fn base_of(&self, seg: u8) -> u64 {
        self.seg_base[(seg & 7) as usize]
    }

    pub(crate) fn segment(&self, seg: u8) -> Segment {
        self.system
            .segments
            .get(usize::from(seg))
            .copied()
            .unwrap_or_default()
    }

    /// Loads a segment register's hidden part. Follow with [`Cpu::refresh`].
    pub(crate) fn set_segment(&mut self, seg: u8, value: Segment) {
        if let Some(slot) = self.system.segments.get_mut(usize::from(seg)) {
            *slot = value;
        }
    }

    pub(crate) fn protected(&self) -> bool {
        self.system.cr0 & cr::CR0_PE != 0
    }

    pub(crate) fn long_mode(&self) -> bool {
        self.system.efer & cr::EFER_LMA != 0
    }

    pub(crate) fn is64(&self) -> bool {
        self.mode == CodeMode::Bits64
    }

    /// Virtual-8086 mode.
    pub(crate) fn v86(&self) -> bool {
        self.sysflags & bit::VM != 0
    }

    pub(crate) fn iopl(&self) -> u8 {
        ((self.sysflags & bit::IOPL) >> 12) as u8
    }

    /// Works out again what is kept from segments, control registers and privilege.
    pub(crate) fn refresh(&mut self) {
        let code = self.segment(CS);
        self.mode = if self.long_mode() && code.long {
            CodeMode::Bits64
        } else if code.big {
            CodeMode::Bits32
        } else {
            CodeMode::Bits16
        };
        self.cpl = if !self.protected() {
            0
        } else if self.v86() {
            3
        } else {
            self.segment(SS).dpl
        };
        let kind = (self.mode as u64) << 1 | u64::from(self.cpl == 3);
        self.tlb.code_tag = (self.tlb.code_tag & !0xff) | kind;
        let is64 = self.is64();
        (self.code_limit, self.linear_mask) = if is64 {
            (u64::MAX, u64::MAX)
        } else {
            (u64::from(code.limit), 0xffff_ffff)
        };
        for (number, (base, segment)) in self
            .seg_base
            .iter_mut()
            .zip(&self.system.segments)
            .enumerate()
        {
            let flat = is64 && number < usize::from(FS);
            *base = if flat { 0 } else { segment.base };
        }
        self.flat_stack = is64;
        let smap = self.system.cr4 & cr::CR4_SMAP != 0;
        self.data_kind = if self.cpl == 3 {
            Kind::USER
        } else if smap && self.sysflags & bit::AC != 0 {
            Kind::OVERRIDE
        } else {
            Kind::SUPERVISOR
        };
    }

    pub(crate) fn rflags(&self) -> u64 {
        self.sysflags | flags::to_bits(self.flags)
    }

    /// Replaces the bits of RFLAGS in `mask`.
    pub(crate) fn set_rflags(&mut self, value: u64, mask: u64) {
        let new = (self.rflags() & !mask) | (value & mask) | 2;
        self.flags = flags::from_bits(new);
        let before = self.sysflags;
        self.sysflags = new & !bit::ARITHMETIC;
        if (before ^ self.sysflags) & (bit::AC | bit::VM) != 0 {
            self.refresh();
        }
    }

    /// Describes an exception; `Err` for the handler to return.
    #[cold]
    pub(crate) fn raise(&mut self, vector: u8, error: Option<u32>) -> Stop {
        self.fault = Fault { vector, error };
        self.non_canonical = false;
        Stop::Fault
    }

    /// #GP with an error code.
    #[cold]
    pub(crate) fn gp(&mut self, error: u32) -> Stop {
        self.raise(vector::GP, Some(error))
    }

    /// #UD.
    #[cold]
    pub(crate) fn ud(&mut self) -> Stop {
        self.raise(vector::UD, None)
    }

    /// The address of the instruction behind `op`.
    #[inline(always)]
    pub(crate) fn next_ip_of(&self, op: &Op) -> u64 {
        self.cut_ip(
            self.get(crate::domain::BLOCK_IP)
                .wrapping_add(u64::from(op.offset))
                .wrapping_add(u64::from(op.len)),
        )
    }

    /// The address of `op` itself.
    #[inline(always)]
    pub(crate) fn ip_of(&self, op: &Op) -> u64 {
        self.cut_ip(
            self.get(crate::domain::BLOCK_IP)
                .wrapping_add(u64::from(op.offset)),
        )
    }

    /// An instruction pointer cut to what the mode has.
    #[inline(always)]
    pub(crate) fn cut_ip(&self, ip: u64) -> u64 {
        match self.mode {
            CodeMode::Bits64 => ip,
            CodeMode::Bits32 => ip & 0xffff_ffff,
            CodeMode::Bits16 => ip & 0xffff,
        }
    }

    /// Bytes from RIP to the end of the code segment; in 64-bit mode there is none.
    #[inline(always)]
    pub(crate) fn code_left(&self) -> u64 {
        if self.is64() {
            return u64::MAX;
        }
        (self.code_limit + 1).saturating_sub(self.rip)
    }

    /// The time-stamp counter: nanoseconds, that is a processor of 1 GHz.
    pub(crate) fn tsc(&self) -> u64 {
        let now = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        now.wrapping_add(self.tsc_offset)
    }

    pub(crate) fn set_tsc(&mut self, value: u64) {
        self.tsc_offset = value.wrapping_sub(self.tsc().wrapping_sub(self.tsc_offset));
    }

    /// A bus access: the answer if the board has given it already, else what to return.
    pub(crate) fn bus(
        &mut self,
        kind: ReplayKind,
        addr: u64,
        size: u32,
        exit: impl FnOnce() -> Exit,
    ) -> Result<Option<u64>, Stop> {
        if let Some(entry) = self.replay.get(self.replay_at)
            && entry.kind == kind
            && entry.addr == addr
            && entry.size == size
        {
            self.replay_at += 1;
            return Ok(entry.data);
        }
        if self.replay.len() >= MAX_REPLAY {
            return Err(self.gp(0));
        }
        // The instruction takes another way than before: what is left of the list is of no use.
        self.replay.truncate(self.replay_at);
        self.replay.push(Replay {
            kind,
            addr,
            size,
            data: None,
        });
        self.exit = exit();
        Err(Stop::Exit)
    }

    /// The instruction (or the iteration of a string) is complete: its accesses are history.
    pub(crate) fn drop_replay(&mut self) {
        self.replay.clear();
        self.replay_at = 0;
    }
}
