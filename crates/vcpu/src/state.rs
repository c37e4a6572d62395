//! The architectural state of an x86-64 processor.

use crate::LocalApicState;

/// Bytes of an XSAVE area in standard format with x87, SSE and AVX: 512 + 64 + 256.
pub const XSAVE_AREA_BYTES: usize = 832;

/// The general registers, RIP and RFLAGS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Registers {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15: the order of the encoding.
    pub general: [u64; 16],
    /// RIP.
    pub rip: u64,
    /// RFLAGS; bit 1 reads as one.
    pub rflags: u64,
}

/// A segment register with its hidden part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Segment {
    /// The visible part.
    pub selector: u16,
    /// Base address.
    pub base: u64,
    /// Limit in bytes, with granularity applied.
    pub limit: u32,
    /// The type field of the descriptor, 0 to 15.
    pub kind: u8,
    /// The S bit: code or data (true), or a system segment.
    pub code_or_data: bool,
    /// Descriptor privilege level.
    pub dpl: u8,
    /// Present.
    pub present: bool,
    /// Available to software.
    pub available: bool,
    /// The L bit: 64-bit code.
    pub long: bool,
    /// The D/B bit: 32-bit code, stack or expand-down limit.
    pub big: bool,
    /// The G bit.
    pub granular: bool,
    /// No segment is loaded (a null selector): accesses fault outside 64-bit mode.
    pub unusable: bool,
}

/// Which segment register, in the order of the encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "the architecture's names")]
pub enum SegmentRegister {
    Es = 0,
    Cs = 1,
    Ss = 2,
    Ds = 3,
    Fs = 4,
    Gs = 5,
}

/// GDTR or IDTR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DescriptorTable {
    /// Linear address.
    pub base: u64,
    /// Last valid byte.
    pub limit: u16,
}

/// Segments, tables, control and debug registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SystemRegisters {
    /// ES, CS, SS, DS, FS, GS: indexed by [`SegmentRegister`].
    pub segments: [Segment; 6],
    /// The local descriptor table.
    pub ldtr: Segment,
    /// The task register.
    pub tr: Segment,
    /// The global descriptor table.
    pub gdtr: DescriptorTable,
    /// The interrupt descriptor table.
    pub idtr: DescriptorTable,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// CR8.
    pub cr8: u64,
    /// XCR0.
    pub xcr0: u64,
    /// DR0 to DR3.
    pub dr: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
    /// IA32_EFER.
    pub efer: u64,
}

/// An MSR and its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsrValue {
    /// ECX of RDMSR.
    pub index: u32,
    /// Its value.
    pub value: u64,
}

/// What waits to be delivered before the next instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// An exception.
    Exception {
        /// Its vector.
        vector: u8,
        /// Its error code, if it has one.
        error: Option<u32>,
    },
    /// An external interrupt.
    Interrupt(u8),
}

/// x87, SSE and AVX state as XSAVE writes it in standard format.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct XsaveArea(pub [u8; XSAVE_AREA_BYTES]);

impl Default for XsaveArea {
    fn default() -> Self {
        Self([0; XSAVE_AREA_BYTES])
    }
}

impl std::fmt::Debug for XsaveArea {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let used = self.0.iter().filter(|byte| **byte != 0).count();
        write!(f, "XsaveArea({used} bytes not zero)")
    }
}

/// All of it. What migration carries and what a debugger shows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VcpuState {
    /// General registers.
    pub registers: Registers,
    /// System registers.
    pub system: SystemRegisters,
    /// MSRs that the CPU keeps, besides those that have a place above.
    pub msrs: Vec<MsrValue>,
    /// x87, SSE, AVX.
    pub xsave: XsaveArea,
    /// What is to be delivered next.
    pub event: Option<Event>,
    /// An NMI waits.
    pub nmi_pending: bool,
    /// An NMI is being handled, until the next IRET.
    pub nmi_masked: bool,
    /// Interrupts are held off for one instruction, by STI or MOV SS.
    pub interrupt_shadow: bool,
    /// The local APIC, if the accelerator keeps it. Without it in a state that is set, the APIC stays as it is and the
    /// processor runs.
    pub local_apic: Option<LocalApicState>,
}
