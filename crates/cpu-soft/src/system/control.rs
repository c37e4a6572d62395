//! Control and debug registers, descriptor-table registers, TLB instructions, and the rest of
//! what only supervisors may do.

use std::hash::{BuildHasher, RandomState};

use iced_x86::{Code, Instruction, Mnemonic, Register};
use vcpu::{DescriptorTable, Exit};

use crate::cpu::{CodeMode, Cpu, FS, GS, RAX, RBX, RCX, RDX, cr, vector};
use crate::domain::{Domain, Flags, Flow, Helper, Op, Stop, W16, W32, W64, Width, helper, helpers};
use crate::flags::bit;
use crate::lower::{Lowered, Shape, by_wide, end, go, prefix};

/// What CR0 has; other bits of its low half read as zero.
const CR0_KNOWN: u64 = cr::CR0_PE
    | cr::CR0_MP
    | cr::CR0_EM
    | cr::CR0_TS
    | cr::CR0_ET
    | cr::CR0_NE
    | cr::CR0_WP
    | cr::CR0_AM
    | cr::CR0_NW
    | cr::CR0_CD
    | cr::CR0_PG;

const CR4_KNOWN: u64 = cr::CR4_TSD
    | cr::CR4_DE
    | cr::CR4_PSE
    | cr::CR4_PAE
    | (1 << 6)
    | cr::CR4_PGE
    | cr::CR4_PCE
    | cr::CR4_OSFXSR
    | (1 << 10);

impl Cpu {
    fn supervisor(&mut self) -> Flow {
        if self.cpl != 0 {
            return Err(self.gp(0));
        }
        Ok(())
    }

    /// The bits of CR4 that this CPU's features allow.
    fn cr4_allowed(&self) -> u64 {
        let f = &self.features;
        let mut known = CR4_KNOWN;
        for (has, bit) in [
            (f.umip, cr::CR4_UMIP),
            (f.la57, cr::CR4_LA57),
            (f.fsgsbase, cr::CR4_FSGSBASE),
            (f.pcid, cr::CR4_PCIDE),
            (f.xsave, cr::CR4_OSXSAVE),
            (f.smep, cr::CR4_SMEP),
            (f.smap, cr::CR4_SMAP),
        ] {
            if has {
                known |= bit;
            }
        }
        known
    }

    pub(crate) fn set_cr0(&mut self, value: u64) -> Flow {
        if value >> 32 != 0 {
            return Err(self.gp(0));
        }
        let value = (value & CR0_KNOWN) | cr::CR0_ET;
        let changed = value ^ self.system.cr0;
        let paging = value & cr::CR0_PG != 0;
        if (paging && value & cr::CR0_PE == 0)
            || (value & cr::CR0_NW != 0 && value & cr::CR0_CD == 0)
        {
            return Err(self.gp(0));
        }
        let mut efer = self.system.efer;
        if paging && self.system.cr0 & cr::CR0_PG == 0 && efer & cr::EFER_LME != 0 {
            let is_16_bit_task = self.system.tr.kind & 8 == 0;
            if self.system.cr4 & cr::CR4_PAE == 0
                || self.segment(crate::cpu::CS).long
                || is_16_bit_task
            {
                return Err(self.gp(0));
            }
            efer |= cr::EFER_LMA;
        }
        if !paging {
            if self.is64()
                || (self.system.cr4 & cr::CR4_PCIDE != 0 && self.system.cr0 & cr::CR0_PG != 0)
            {
                return Err(self.gp(0));
            }
            efer &= !cr::EFER_LMA;
        }
        let reloads = cr::CR0_PG | cr::CR0_CD | cr::CR0_NW;
        if Self::is_pae(value, self.system.cr4, efer) && changed & reloads != 0 {
            self.load_pdptes(self.system.cr3)?;
        }
        self.system.cr0 = value;
        self.system.efer = efer;
        self.tlb.flush();
        self.refresh();
        Ok(())
    }

    pub(crate) fn set_cr3(&mut self, value: u64) -> Flow {
        let pcids = self.system.cr4 & cr::CR4_PCIDE != 0;
        let keep = pcids && value >> 63 != 0;
        let value = if pcids { value & !(1 << 63) } else { value };
        if self.long_mode() && value >> crate::paging::PHYS_BITS != 0 {
            return Err(self.gp(0));
        }
        if Self::is_pae(self.system.cr0, self.system.cr4, self.system.efer) {
            self.load_pdptes(value)?;
        }
        self.system.cr3 = value;
        if pcids {
            self.tlb.switch((value & 0xfff) as u16, keep);
        } else {
            self.tlb.flush();
        }
        Ok(())
    }

    pub(crate) fn set_cr4(&mut self, value: u64) -> Flow {
        let changed = value ^ self.system.cr4;
        let bad = value & !self.cr4_allowed() != 0
            || (self.long_mode() && value & cr::CR4_PAE == 0)
            || (self.long_mode() && changed & cr::CR4_LA57 != 0)
            || (changed & value & cr::CR4_PCIDE != 0
                && (!self.long_mode() || self.system.cr3 & 0xfff != 0));
        if bad {
            return Err(self.gp(0));
        }
        let reloads = cr::CR4_PAE | cr::CR4_PGE | cr::CR4_PSE | cr::CR4_SMEP;
        if Self::is_pae(self.system.cr0, value, self.system.efer) && changed & reloads != 0 {
            self.load_pdptes(self.system.cr3)?;
        }
        self.system.cr4 = value;
        self.tlb.flush();
        self.refresh();
        Ok(())
    }

    /// #UD for control registers that do not exist, whoever asks.
    fn known_cr(&mut self, number: u8) -> Flow {
        match number {
            0 | 2 | 3 | 4 | 8 => Ok(()),
            _ => Err(self.ud()),
        }
    }

    fn read_cr(&mut self, number: u8) -> Result<u64, Stop> {
        Ok(match number {
            0 => self.system.cr0,
            2 => self.system.cr2,
            3 => self.system.cr3,
            4 => self.system.cr4,
            8 => self.system.cr8,
            _ => return Err(self.ud()),
        })
    }

    fn write_cr(&mut self, number: u8, value: u64, op: &Op) -> Flow {
        match number {
            0 => self.set_cr0(value)?,
            2 => self.system.cr2 = value,
            3 => self.set_cr3(value)?,
            4 => self.set_cr4(value)?,
            8 => {
                if value > 15 {
                    return Err(self.gp(0));
                }
                self.system.cr8 = value;
                self.rip = self.next_ip_of(op);
                self.exit = Exit::TaskPriority(value as u8);
                return Err(Stop::ExitAfter);
            }
            _ => return Err(self.ud()),
        }
        self.branch_on(op)
    }

    /// Ends the block behind an instruction that changes how the next are understood.
    pub(crate) fn branch_on(&mut self, op: &Op) -> Flow {
        // Mode changes do not change how wide RIP was when this instruction was fetched.
        let ip = self.regs.get(usize::from(crate::domain::BLOCK_IP)).copied();
        let next = ip
            .unwrap_or(0)
            .wrapping_add(u64::from(op.offset))
            .wrapping_add(u64::from(op.len));
        self.rip = if self.mode == CodeMode::Bits64 {
            next
        } else {
            next & 0xffff_ffff
        };
        Err(Stop::Branch)
    }

    fn debug_register(&mut self, number: u8) -> Result<u8, Stop> {
        self.supervisor()?;
        if self.system.dr7 & (1 << 13) != 0 {
            self.system.dr6 |= 1 << 13;
            return Err(self.raise(vector::DB, None));
        }
        match number {
            4 | 5 if self.system.cr4 & cr::CR4_DE != 0 => Err(self.ud()),
            4 | 5 => Ok(number + 2),
            n if n > 7 => Err(self.ud()),
            n => Ok(n),
        }
    }

    /// LGDT and LIDT: limit and base in memory.
    fn load_table(&mut self, op: &Op, narrow: bool) -> Result<DescriptorTable, Stop> {
        self.supervisor()?;
        let limit = self.load_at::<W16>(op, 0)? as u16;
        let base = if self.is64() {
            self.load_at::<W64>(op, 2)?
        } else {
            let base = self.load_at::<W32>(op, 2)?;
            if narrow { base & 0xff_ffff } else { base }
        };
        if self.is64() && !self.canonical(base) {
            return Err(self.gp(0));
        }
        Ok(DescriptorTable { base, limit })
    }

    fn store_table(&mut self, op: &Op, table: DescriptorTable) -> Flow {
        if self.system.cr4 & cr::CR4_UMIP != 0 && self.cpl > 0 {
            return Err(self.gp(0));
        }
        let size = if self.is64() { 8 } else { 4 };
        let linear = self.linear_of(op, 0, 2 + size, true)?;
        self.probe_write(linear, 2 + size, self.data_kind)?;
        self.store_linear::<W16>(linear, u64::from(table.limit))?;
        let at = linear.wrapping_add(2);
        if size == 8 {
            self.store_linear::<W64>(at, table.base)
        } else {
            self.store_linear::<W32>(at, table.base & 0xffff_ffff)
        }
    }

    fn invpcid(&mut self, op: &Op) -> Flow {
        if !self.features.invpcid {
            return Err(self.ud());
        }
        self.supervisor()?;
        let what = native(self, self.get(op.dst));
        let pcid = self.load_at::<W64>(op, 0)?;
        let linear = self.load_at::<W64>(op, 8)?;
        let without = what < 2 && pcid != 0 && self.system.cr4 & cr::CR4_PCIDE == 0;
        if what > 3 || pcid >> 12 != 0 || without || (what == 0 && !self.canonical(linear)) {
            return Err(self.gp(0));
        }
        // Without PCIDs there is but one, and these bits of CR3 are something else.
        let pcids = self.system.cr4 & cr::CR4_PCIDE != 0;
        let present = !pcids || self.system.cr3 & 0xfff == pcid;
        match what {
            0 if present => self.tlb.forget_page(linear),
            0 | 1 if !present => self.tlb.forget_pcid(pcid as u16),
            1 if pcids => self.tlb.switch(pcid as u16, false),
            _ => {
                self.tlb.flush();
                if pcids {
                    self.tlb.switch((self.system.cr3 & 0xfff) as u16, false);
                }
            }
        }
        self.branch_on(op)
    }

    fn timestamp(&mut self) -> Flow {
        if self.system.cr4 & cr::CR4_TSD != 0 && self.cpl > 0 {
            return Err(self.gp(0));
        }
        let now = self.tsc();
        self.put(RAX, now & 0xffff_ffff);
        self.put(RDX, now >> 32);
        Ok(())
    }

    fn interrupts(&mut self, on: bool, op: &Op) -> Flow {
        if self.protected() && self.iopl() < self.cpl {
            return Err(self.gp(0));
        }
        if on {
            if self.sysflags & bit::IF == 0 {
                self.shadow = true;
            }
            self.sysflags |= bit::IF;
        } else {
            self.sysflags &= !bit::IF;
        }
        self.branch_on(op)
    }

    /// RDRAND and RDSEED: SipHash of a counter under a key the host made.
    fn random<W: Width>(&mut self, op: &Op) -> Flow {
        if !self.features.rdrand {
            return Err(self.ud());
        }
        let value = RandomState::new().hash_one(self.tsc());
        self.set_reg::<W>(op.dst, value & W::MASK);
        self.flags = Flags {
            zr: 1,
            sr: 1,
            cv: (1 << 63) | (1 << 62),
        };
        Ok(())
    }

    fn base_register<W: Width>(&mut self, op: &Op, seg: u8, write: bool) -> Flow {
        if !self.is64() || self.system.cr4 & cr::CR4_FSGSBASE == 0 {
            return Err(self.ud());
        }
        if !write {
            let base = self.segment(seg).base;
            self.set_reg::<W>(op.dst, base & W::MASK);
            return Ok(());
        }
        let base = self.reg::<W>(op.dst);
        if !self.canonical(base) {
            return Err(self.gp(0));
        }
        self.set_base(seg, base);
        Ok(())
    }
}

struct Random<W>(std::marker::PhantomData<W>);
impl<W: Width> Helper for Random<W> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.random::<W>(op)
    }
}

struct Base<W, const SEG: u8, const WRITE: bool>(std::marker::PhantomData<W>);
impl<W: Width, const SEG: u8, const WRITE: bool> Helper for Base<W, SEG, WRITE> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.base_register::<W>(op, SEG, WRITE)
    }
}

/// What a 64-bit register holds as 32-bit code sees it.
fn native(cpu: &Cpu, value: u64) -> u64 {
    if cpu.is64() {
        value
    } else {
        value & 0xffff_ffff
    }
}

helpers! {
    ReadCr => |cpu, op| {
        cpu.known_cr(op.src)?;
        cpu.supervisor()?;
        let value = cpu.read_cr(op.src)?;
        let value = native(cpu, value);
        cpu.put(op.dst, value);
        Ok(())
    },
    WriteCr => |cpu, op| {
        cpu.known_cr(op.dst)?;
        cpu.supervisor()?;
        let value = native(cpu, cpu.get(op.src));
        cpu.write_cr(op.dst, value, op)
    },
    ReadDr => |cpu, op| {
        let number = cpu.debug_register(op.src)?;
        let value = match number {
            6 => cpu.system.dr6,
            7 => cpu.system.dr7,
            n => cpu.system.dr.get(usize::from(n)).copied().unwrap_or(0),
        };
        let value = native(cpu, value);
        cpu.put(op.dst, value);
        Ok(())
    },
    WriteDr => |cpu, op| {
        let number = cpu.debug_register(op.dst)?;
        let value = native(cpu, cpu.get(op.src));
        if number > 5 && value >> 32 != 0 {
            return Err(cpu.gp(0));
        }
        match number {
            6 => cpu.system.dr6 = (value & 0xe00f) | 0xffff_0ff0,
            7 => cpu.system.dr7 = (value & 0xffff_23ff) | 0x400,
            n => if let Some(slot) = cpu.system.dr.get_mut(usize::from(n)) {
                *slot = value;
            },
        }
        Ok(())
    },
    Clts => |cpu, op| {
        cpu.supervisor()?;
        cpu.system.cr0 &= !cr::CR0_TS;
        cpu.branch_on(op)
    },
    Lmsw => |cpu, op| {
        cpu.supervisor()?;
        let value = if op.prefix & prefix::MEMORY != 0 {
            cpu.load::<W16>(op)?
        } else {
            cpu.reg::<W16>(op.dst)
        };
        // PE can be set but not cleared.
        let kept = cpu.system.cr0 & !0xe;
        cpu.set_cr0(kept | (value & 0xf))?;
        cpu.branch_on(op)
    },
    Smsw => |cpu, op| {
        if cpu.system.cr4 & cr::CR4_UMIP != 0 && cpu.cpl > 0 {
            return Err(cpu.gp(0));
        }
        let value = cpu.system.cr0;
        if op.prefix & prefix::MEMORY != 0 {
            return cpu.store::<W16>(op, value & 0xffff);
        }
        match op.prefix >> prefix::SIZE_SHIFT {
            2 => cpu.set_reg::<W16>(op.dst, value),
            4 => cpu.set_reg::<W32>(op.dst, value),
            _ => cpu.set_reg::<W64>(op.dst, value),
        }
        Ok(())
    },
    LgdtNarrow => |cpu, op| { cpu.system.gdtr = cpu.load_table(op, true)?; Ok(()) },
    Lgdt => |cpu, op| { cpu.system.gdtr = cpu.load_table(op, false)?; Ok(()) },
    LidtNarrow => |cpu, op| { cpu.system.idtr = cpu.load_table(op, true)?; Ok(()) },
    Lidt => |cpu, op| { cpu.system.idtr = cpu.load_table(op, false)?; Ok(()) },
    Sgdt => |cpu, op| cpu.store_table(op, cpu.system.gdtr),
    Sidt => |cpu, op| cpu.store_table(op, cpu.system.idtr),
    Invlpg => |cpu, op| {
        cpu.supervisor()?;
        let linear = cpu.offset_of(op).wrapping_add(cpu.base_of(op.seg)) & cpu.linear_mask;
        cpu.tlb.forget_page(linear);
        cpu.branch_on(op)
    },
    Invpcid => |cpu, op| cpu.invpcid(op),
    Hlt => |cpu, op| {
        cpu.supervisor()?;
        cpu.rip = cpu.next_ip_of(op);
        cpu.exit = Exit::Halt;
        Err(Stop::ExitAfter)
    },
    Supervised => |cpu, _| cpu.supervisor(),
    Rdtsc => |cpu, _| cpu.timestamp(),
    Rdtscp => |cpu, _| {
        cpu.timestamp()?;
        cpu.put(RCX, cpu.msrs.tsc_aux);
        Ok(())
    },
    Rdpid => |cpu, op| {
        let value = cpu.msrs.tsc_aux;
        cpu.put(op.dst, value);
        Ok(())
    },
    Rdpmc => |cpu, _| Err(cpu.gp(0)),
    Cpuid => |cpu, _| {
        let entry = cpu.cpuid_answer();
        for (number, value) in [(RAX, entry.eax), (RBX, entry.ebx), (RCX, entry.ecx), (RDX, entry.edx)] {
            cpu.put(number, u64::from(value));
        }
        Ok(())
    },
    Rdmsr => |cpu, _| {
        cpu.supervisor()?;
        let index = cpu.get(RCX) as u32;
        let value = cpu.read_msr(index)?;
        cpu.put(RAX, value & 0xffff_ffff);
        cpu.put(RDX, value >> 32);
        Ok(())
    },
    Wrmsr => |cpu, op| {
        cpu.supervisor()?;
        let index = cpu.get(RCX) as u32;
        let value = (cpu.get(RDX) << 32) | (cpu.get(RAX) & 0xffff_ffff);
        cpu.write_msr(index, value)?;
        cpu.branch_on(op)
    },
    Swapgs => |cpu, _| {
        cpu.supervisor()?;
        let base = cpu.segment(GS).base;
        let other = std::mem::replace(&mut cpu.msrs.kernel_gs_base, base);
        cpu.set_base(GS, other);
        Ok(())
    },
    Cli => |cpu, op| cpu.interrupts(false, op),
    Sti => |cpu, op| cpu.interrupts(true, op),
    Fence => |_, _| {
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        Ok(())
    },
    Ud => |cpu, _| Err(cpu.ud()),
    Xgetbv => |cpu, _| {
        if cpu.system.cr4 & cr::CR4_OSXSAVE == 0 {
            return Err(cpu.ud());
        }
        let value = match cpu.get(RCX) as u32 {
            0 => cpu.system.xcr0,
            1 => cpu.components_in_use(),
            _ => return Err(cpu.gp(0)),
        };
        cpu.put(RAX, value & 0xffff_ffff);
        cpu.put(RDX, value >> 32);
        Ok(())
    },
    Xsetbv => |cpu, _| {
        if cpu.system.cr4 & cr::CR4_OSXSAVE == 0 {
            return Err(cpu.ud());
        }
        cpu.supervisor()?;
        let value = (cpu.get(RDX) << 32) | (cpu.get(RAX) & 0xffff_ffff);
        let allowed = cpu.xcr0_allowed();
        let avx_alone = value & 6 == 4;
        if cpu.get(RCX) as u32 != 0 || value & 1 == 0 || value & !allowed != 0 || avx_alone {
            return Err(cpu.gp(0));
        }
        cpu.system.xcr0 = value;
        Ok(())
    },
}

fn lower_registers<D: Domain>(i: &Instruction) -> Option<Lowered<D>> {
    let is_cr = |r: Register| r.is_cr();
    let is_dr = |r: Register| r.is_dr();
    match (i.op0_register(), i.op1_register()) {
        (r, _) if is_cr(r) => end(helper::<D, WriteCr>),
        (_, r) if is_cr(r) => go(helper::<D, ReadCr>),
        (r, _) if is_dr(r) => end(helper::<D, WriteDr>),
        (_, r) if is_dr(r) => go(helper::<D, ReadDr>),
        _ => None,
    }
}

fn lower_bases<D: Domain>(i: &Instruction, s: &Shape) -> Option<Lowered<D>> {
    go(by_wide!(s.bits, W => match i.mnemonic() {
        Mnemonic::Rdfsbase => helper::<D, Base<W, FS, false>>,
        Mnemonic::Rdgsbase => helper::<D, Base<W, GS, false>>,
        Mnemonic::Wrfsbase => helper::<D, Base<W, FS, true>>,
        Mnemonic::Wrgsbase => helper::<D, Base<W, GS, true>>,
        _ => helper::<D, Random<W>>,
    }))
}

pub(crate) fn lower<D: Domain>(i: &Instruction, s: &Shape) -> Option<Lowered<D>> {
    match i.mnemonic() {
        Mnemonic::Mov => lower_registers(i),
        Mnemonic::Clts => end(helper::<D, Clts>),
        Mnemonic::Lmsw => end(helper::<D, Lmsw>),
        Mnemonic::Smsw => go(helper::<D, Smsw>),
        Mnemonic::Lgdt if i.code() == Code::Lgdt_m1632_16 => go(helper::<D, LgdtNarrow>),
        Mnemonic::Lgdt => go(helper::<D, Lgdt>),
        Mnemonic::Lidt if i.code() == Code::Lidt_m1632_16 => go(helper::<D, LidtNarrow>),
        Mnemonic::Lidt => go(helper::<D, Lidt>),
        Mnemonic::Sgdt => go(helper::<D, Sgdt>),
        Mnemonic::Sidt => go(helper::<D, Sidt>),
        Mnemonic::Invlpg => end(helper::<D, Invlpg>),
        Mnemonic::Invpcid => end(helper::<D, Invpcid>),
        Mnemonic::Hlt => end(helper::<D, Hlt>),
        Mnemonic::Invd | Mnemonic::Wbinvd | Mnemonic::Wbnoinvd => go(helper::<D, Supervised>),
        Mnemonic::Rdtsc => go(helper::<D, Rdtsc>),
        Mnemonic::Rdtscp => go(helper::<D, Rdtscp>),
        Mnemonic::Rdpid => go(helper::<D, Rdpid>),
        Mnemonic::Rdpmc => go(helper::<D, Rdpmc>),
        Mnemonic::Cpuid => go(helper::<D, Cpuid>),
        Mnemonic::Rdmsr => end(helper::<D, Rdmsr>),
        Mnemonic::Wrmsr => end(helper::<D, Wrmsr>),
        Mnemonic::Swapgs => go(helper::<D, Swapgs>),
        Mnemonic::Cli => end(helper::<D, Cli>),
        Mnemonic::Sti => end(helper::<D, Sti>),
        Mnemonic::Mfence | Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb => {
            go(helper::<D, Fence>)
        }
        Mnemonic::Ud2 | Mnemonic::Ud0 | Mnemonic::Ud1 => end(helper::<D, Ud>),
        Mnemonic::Xgetbv => go(helper::<D, Xgetbv>),
        Mnemonic::Xsetbv => end(helper::<D, Xsetbv>),
        Mnemonic::Rdfsbase
        | Mnemonic::Rdgsbase
        | Mnemonic::Wrfsbase
        | Mnemonic::Wrgsbase
        | Mnemonic::Rdrand
        | Mnemonic::Rdseed => lower_bases(i, s),
        _ => None,
    }
}
