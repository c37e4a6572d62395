//! x87, SSE and AVX state; its saving and restoring; the control instructions of the x87.

use iced_x86::{Instruction, Mnemonic};
use vcpu::{XSAVE_AREA_BYTES, XsaveArea};

use crate::cpu::{Cpu, RAX, RDX, cr, vector};
use crate::domain::{Domain, Flow, Op, Stop, W16, W32, W64, helper, helpers};
use crate::lower::{Lowered, go};

/// Components of XCR0 and of XSAVE areas.
const X87: u64 = 1;
const SSE: u64 = 2;
const AVX: u64 = 4;
/// The bit of an area's header that says it is compact.
const COMPACT: u64 = 1 << 63;
/// MXCSR after reset.
const MXCSR_INITIAL: u32 = 0x1f80;
/// Bits of MXCSR that may be set.
pub(crate) const MXCSR_MASK: u32 = 0xffff;
/// Where the upper halves of the YMM registers are in an XSAVE area.
const YMM_AT: usize = 576;
/// Where the header is.
const HEADER_AT: usize = 512;

/// The registers.
#[derive(Debug, Clone)]
pub(crate) struct Fpu {
    /// YMM0 to YMM15, low half first.
    pub vector: [[u128; 2]; 16],
    pub mxcsr: u32,
    /// ST0 to ST7 (relative to the top) as 80 bits.
    pub st: [u128; 8],
    pub control: u16,
    /// The status word with the top of the stack in bits 13:11.
    pub status: u16,
    /// One bit for each physical register that holds something.
    pub tags: u8,
    pub opcode: u16,
    pub ip: u64,
    pub dp: u64,
}

impl Default for Fpu {
    /// After reset.
    fn default() -> Self {
        Self {
            vector: [[0; 2]; 16],
            mxcsr: MXCSR_INITIAL,
            st: [0; 8],
            control: 0x40,
            status: 0,
            tags: 0xff,
            opcode: 0,
            ip: 0,
            dp: 0,
        }
    }
}

fn put(area: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(slot) = area.get_mut(at..at + bytes.len()) {
        slot.copy_from_slice(bytes);
    }
}

fn get<const N: usize>(area: &[u8], at: usize) -> [u8; N] {
    area.get(at..at + N)
        .and_then(|bytes| bytes.try_into().ok())
        .unwrap_or([0; N])
}

impl Fpu {
    pub(crate) fn init_x87(&mut self) {
        (self.control, self.status, self.tags) = (0x37f, 0, 0);
        (self.opcode, self.ip, self.dp) = (0, 0, 0);
    }

    /// The control word; bits that do not exist read as they must.
    pub(crate) fn set_control(&mut self, value: u16) {
        self.control = (value & 0x1f3f) | 0x40;
    }

    /// The first 512 bytes: FXSAVE64's format.
    pub(crate) fn legacy_area(&self) -> [u8; 512] {
        let mut area = [0; 512];
        self.put_x87(&mut area);
        put(&mut area, 24, &self.mxcsr.to_le_bytes());
        put(&mut area, 28, &MXCSR_MASK.to_le_bytes());
        for (index, [low, _]) in self.vector.iter().enumerate() {
            put(&mut area, 160 + index * 16, &low.to_le_bytes());
        }
        area
    }

    fn put_x87(&self, area: &mut [u8]) {
        put(area, 0, &self.control.to_le_bytes());
        put(area, 2, &self.status.to_le_bytes());
        put(area, 4, &[self.tags]);
        put(area, 6, &self.opcode.to_le_bytes());
        put(area, 8, &self.ip.to_le_bytes());
        put(area, 16, &self.dp.to_le_bytes());
        for (index, value) in self.st.iter().enumerate() {
            put(area, 32 + index * 16, &value.to_le_bytes());
        }
    }

    fn take_x87(&mut self, area: &[u8]) {
        self.set_control(u16::from_le_bytes(get(area, 0)));
        self.status = u16::from_le_bytes(get(area, 2));
        let [tags] = get(area, 4);
        self.tags = tags;
        self.opcode = u16::from_le_bytes(get(area, 6)) & 0x7ff;
        self.ip = u64::from_le_bytes(get(area, 8));
        self.dp = u64::from_le_bytes(get(area, 16));
        for (index, value) in self.st.iter_mut().enumerate() {
            *value = u128::from_le_bytes(get(area, 32 + index * 16)) & ((1 << 80) - 1);
        }
    }

    fn take_sse(&mut self, area: &[u8], count: usize) {
        for (index, [low, _]) in self.vector.iter_mut().take(count).enumerate() {
            *low = u128::from_le_bytes(get(area, 160 + index * 16));
        }
    }

    /// All of it, as XSAVE writes it.
    pub(crate) fn area(&self) -> XsaveArea {
        let mut area = [0; XSAVE_AREA_BYTES];
        put(&mut area, 0, &self.legacy_area());
        put(&mut area, HEADER_AT, &(X87 | SSE | AVX).to_le_bytes());
        for (index, [_, high]) in self.vector.iter().enumerate() {
            put(&mut area, YMM_AT + index * 16, &high.to_le_bytes());
        }
        XsaveArea(area)
    }

    /// As XRSTOR of everything; components the header does not name are initialised.
    pub(crate) fn set_area(&mut self, area: &XsaveArea) {
        let bytes = &area.0;
        let header = u64::from_le_bytes(get(bytes, HEADER_AT));
        *self = Self::default();
        self.init_x87();
        if header & X87 != 0 {
            self.take_x87(bytes);
        }
        if header & (SSE | AVX) != 0 {
            self.mxcsr = u32::from_le_bytes(get(bytes, 24)) & MXCSR_MASK;
        }
        if header & SSE != 0 {
            self.take_sse(bytes, 16);
        }
        if header & AVX != 0 {
            for (index, [_, high]) in self.vector.iter_mut().enumerate() {
                *high = u128::from_le_bytes(get(bytes, YMM_AT + index * 16));
            }
        }
    }

    /// The components that are not in their initial state.
    fn in_use(&self) -> u64 {
        let mut used = 0;
        let idle = self.control == 0x37f && self.status == 0 && self.tags == 0 && self.st == [0; 8];
        if !idle {
            used |= X87;
        }
        if self.vector.iter().any(|[low, _]| *low != 0) {
            used |= SSE;
        }
        if self.vector.iter().any(|[_, high]| *high != 0) {
            used |= AVX;
        }
        used
    }
}

impl Cpu {
    /// x87: #NM if it is emulated or another task's.
    pub(crate) fn x87_ready(&mut self) -> Flow {
        if self.system.cr0 & (cr::CR0_EM | cr::CR0_TS) != 0 {
            return Err(self.raise(vector::NM, None));
        }
        Ok(())
    }

    fn save_ready(&mut self) -> Flow {
        self.x87_ready()
    }

    /// XMM registers FXSAVE covers: sixteen in 64-bit mode, else eight.
    pub(crate) fn visible(&self) -> usize {
        if self.is64() { 16 } else { 8 }
    }

    fn store_bytes(&mut self, linear: u64, bytes: &[u8]) -> Flow {
        let (words, _) = bytes.as_chunks::<8>();
        let mut at = linear;
        for word in words {
            self.store_linear::<W64>(at, u64::from_le_bytes(*word))?;
            at = at.wrapping_add(8);
        }
        Ok(())
    }

    fn load_bytes(&mut self, linear: u64, bytes: &mut [u8]) -> Flow {
        let (words, _) = bytes.as_chunks_mut::<8>();
        let mut at = linear;
        for word in words {
            *word = self.load_linear::<W64>(at)?.to_le_bytes();
            at = at.wrapping_add(8);
        }
        Ok(())
    }

    fn aligned(&mut self, op: &Op, align: u64, bytes: u64, write: bool) -> Result<u64, Stop> {
        let linear = self.linear_of(op, 0, bytes, write)?;
        if linear & (align - 1) != 0 {
            return Err(self.gp(0));
        }
        if write {
            self.probe_write(linear, bytes, self.data_kind)?;
        }
        Ok(linear)
    }

    fn fxsave(&mut self, op: &Op) -> Flow {
        self.save_ready()?;
        let linear = self.aligned(op, 16, 512, true)?;
        let area = self.fpu.legacy_area();
        let count = if self.system.cr4 & cr::CR4_OSFXSR != 0 {
            self.visible()
        } else {
            0
        };
        let end = 160 + count * 16;
        self.store_bytes(linear, area.get(..end).unwrap_or_default())
    }

    fn fxrstor(&mut self, op: &Op) -> Flow {
        self.save_ready()?;
        let linear = self.aligned(op, 16, 512, false)?;
        let mut area = [0; 512];
        self.load_bytes(linear, &mut area)?;
        let mxcsr = u32::from_le_bytes(get(&area, 24));
        let sse = self.system.cr4 & cr::CR4_OSFXSR != 0;
        if sse && mxcsr & !MXCSR_MASK != 0 {
            return Err(self.gp(0));
        }
        self.fpu.take_x87(&area);
        self.x87_summary();
        if sse {
            self.fpu.mxcsr = mxcsr;
            let count = self.visible();
            self.fpu.take_sse(&area, count);
        }
        Ok(())
    }

    fn xsave_mask(&mut self) -> Result<u64, Stop> {
        if self.system.cr4 & cr::CR4_OSXSAVE == 0 {
            return Err(self.ud());
        }
        if self.system.cr0 & cr::CR0_TS != 0 {
            return Err(self.raise(vector::NM, None));
        }
        let wanted = (self.get(RDX) << 32) | (self.get(RAX) & 0xffff_ffff);
        Ok(wanted & self.system.xcr0)
    }

    /// The components of XCR0 that are in use.
    pub(crate) fn components_in_use(&self) -> u64 {
        self.fpu.in_use() & self.system.xcr0
    }

    /// XSAVE, XSAVEOPT (`optimised`: only what is in use) and XSAVEC (`compact`: and the header
    /// says what there is room for; AVX's place is the same, nothing being before it).
    fn xsave(&mut self, op: &Op, optimised: bool, compact: bool) -> Flow {
        let mask = self.xsave_mask()?;
        let size = if mask & AVX != 0 { 832 } else { 576 };
        let linear = self.aligned(op, 64, size, true)?;
        let area = self.fpu.area();
        let part = |from: usize, to: usize| area.0.get(from..to).unwrap_or_default();
        let mut used = self.fpu.in_use();
        if compact && self.fpu.mxcsr != MXCSR_INITIAL {
            used |= SSE;
        }
        let write = if optimised { mask & used } else { mask };
        if write & X87 != 0 {
            self.store_bytes(linear, part(0, 24))?;
            self.store_bytes(linear.wrapping_add(32), part(32, 160))?;
        }
        let control = if compact {
            write & SSE
        } else {
            mask & (SSE | AVX)
        };
        if control != 0 {
            self.store_bytes(linear.wrapping_add(24), part(24, 32))?;
        }
        if write & SSE != 0 {
            let end = 160 + self.visible() * 16;
            self.store_bytes(linear.wrapping_add(160), part(160, end))?;
        }
        if write & AVX != 0 {
            let end = YMM_AT + self.visible() * 16;
            self.store_bytes(linear.wrapping_add(YMM_AT as u64), part(YMM_AT, end))?;
        }
        let at = linear.wrapping_add(HEADER_AT as u64);
        if compact {
            self.store_linear::<W64>(at, used & mask)?;
            return self.store_linear::<W64>(at.wrapping_add(8), COMPACT | mask);
        }
        let old = self.load_linear::<W64>(at)?;
        self.store_linear::<W64>(at, (old & !mask) | (used & mask))
    }

    fn xrstor(&mut self, op: &Op) -> Flow {
        let mask = self.xsave_mask()?;
        let linear = self.aligned(op, 64, 576, false)?;
        let mut area = [0; XSAVE_AREA_BYTES];
        let (legacy, upper) = area.split_at_mut(YMM_AT);
        self.load_bytes(linear, legacy)?;
        let header = u64::from_le_bytes(get(legacy, HEADER_AT));
        let compact = u64::from_le_bytes(get(legacy, HEADER_AT + 8));
        let room = if compact == 0 {
            self.system.xcr0
        } else {
            compact & !COMPACT
        };
        let reserved = legacy.get(HEADER_AT + 16..).unwrap_or_default();
        let reserved = if compact == 0 {
            reserved.get(..8).unwrap_or_default()
        } else {
            reserved
        };
        if header & !room != 0
            || room & !self.system.xcr0 != 0
            || (compact != 0 && compact & COMPACT == 0)
            || reserved.iter().any(|byte| *byte != 0)
        {
            return Err(self.gp(0));
        }
        if mask & header & AVX != 0 {
            self.load_bytes(linear.wrapping_add(YMM_AT as u64), upper)?;
        }
        let mut mxcsr = u32::from_le_bytes(get(legacy, 24));
        let mut control = mask & (SSE | AVX);
        if compact != 0 {
            control = mask & SSE;
            if header & SSE == 0 {
                mxcsr = MXCSR_INITIAL;
            }
        }
        if control != 0 && mxcsr & !MXCSR_MASK != 0 {
            return Err(self.gp(0));
        }
        let count = self.visible();
        if mask & X87 != 0 {
            if header & X87 != 0 {
                self.fpu.take_x87(legacy);
            } else {
                self.fpu.init_x87();
                self.fpu.st = [0; 8];
            }
            self.x87_summary();
        }
        if control != 0 {
            self.fpu.mxcsr = mxcsr;
        }
        if mask & SSE != 0 {
            if header & SSE == 0 {
                legacy.fill(0);
            }
            self.fpu.take_sse(legacy, count);
        }
        if mask & AVX != 0 {
            for (index, [_, high]) in self.fpu.vector.iter_mut().take(count).enumerate() {
                *high = u128::from_le_bytes(get(upper, index * 16));
            }
        }
        Ok(())
    }
}

helpers! {
    Fninit => |cpu, _| {
        cpu.x87_ready()?;
        cpu.top_to_zero();
        cpu.fpu.init_x87();
        Ok(())
    },
    Fnclex => |cpu, _| {
        cpu.x87_ready()?;
        cpu.fpu.status &= 0x7f00;
        Ok(())
    },
    Fwait => |cpu, _| {
        if cpu.system.cr0 & cr::CR0_MP != 0 && cpu.system.cr0 & cr::CR0_TS != 0 {
            return Err(cpu.raise(vector::NM, None));
        }
        cpu.x87_waits()
    },
    Fnstcw => |cpu, op| {
        cpu.x87_ready()?;
        let value = u64::from(cpu.fpu.control);
        cpu.store::<W16>(op, value)
    },
    Fldcw => |cpu, op| {
        cpu.x87_ready()?;
        cpu.x87_waits()?;
        let control = cpu.load::<W16>(op)? as u16;
        cpu.fpu.set_control(control);
        cpu.x87_summary();
        Ok(())
    },
    Fnstsw => |cpu, op| {
        cpu.x87_ready()?;
        let value = u64::from(cpu.fpu.status);
        if op.dst == RAX {
            cpu.set_reg::<W16>(RAX, value);
            return Ok(());
        }
        cpu.store::<W16>(op, value)
    },
    Emms => |cpu, _| {
        if cpu.system.cr0 & cr::CR0_EM != 0 {
            return Err(cpu.ud());
        }
        cpu.x87_ready()?;
        cpu.x87_waits()?;
        cpu.top_to_zero();
        cpu.fpu.tags = 0;
        Ok(())
    },
    Fxsave => |cpu, op| cpu.fxsave(op),
    Fxrstor => |cpu, op| cpu.fxrstor(op),
    Xsave => |cpu, op| cpu.xsave(op, false, false),
    Xsaveopt => |cpu, op| cpu.xsave(op, true, false),
    Xsavec => |cpu, op| cpu.xsave(op, true, true),
    Xrstor => |cpu, op| cpu.xrstor(op),
    Stmxcsr => |cpu, op| {
        cpu.vector_ready(op)?;
        let value = u64::from(cpu.fpu.mxcsr);
        cpu.store::<W32>(op, value)
    },
    Ldmxcsr => |cpu, op| {
        cpu.vector_ready(op)?;
        let value = cpu.load::<W32>(op)? as u32;
        if value & !MXCSR_MASK != 0 {
            return Err(cpu.gp(0));
        }
        cpu.fpu.mxcsr = value;
        Ok(())
    },
}

pub(crate) fn lower<D: Domain>(i: &Instruction) -> Option<Lowered<D>> {
    go(match i.mnemonic() {
        Mnemonic::Fninit => helper::<D, Fninit>,
        Mnemonic::Fnclex => helper::<D, Fnclex>,
        Mnemonic::Wait => helper::<D, Fwait>,
        Mnemonic::Fnstcw => helper::<D, Fnstcw>,
        Mnemonic::Fldcw => helper::<D, Fldcw>,
        Mnemonic::Fnstsw => helper::<D, Fnstsw>,
        Mnemonic::Emms => helper::<D, Emms>,
        Mnemonic::Fxsave | Mnemonic::Fxsave64 => helper::<D, Fxsave>,
        Mnemonic::Fxrstor | Mnemonic::Fxrstor64 => helper::<D, Fxrstor>,
        Mnemonic::Xsave | Mnemonic::Xsave64 => helper::<D, Xsave>,
        Mnemonic::Xsaveopt | Mnemonic::Xsaveopt64 => helper::<D, Xsaveopt>,
        Mnemonic::Xsavec | Mnemonic::Xsavec64 => helper::<D, Xsavec>,
        Mnemonic::Xrstor | Mnemonic::Xrstor64 => helper::<D, Xrstor>,
        Mnemonic::Stmxcsr | Mnemonic::Vstmxcsr => helper::<D, Stmxcsr>,
        Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr => helper::<D, Ldmxcsr>,
        _ => return None,
    })
}
