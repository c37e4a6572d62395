//! Accesses to memory: TLB hits, page-crossing accesses, the bus, segment limits, the stack.

use guest_memory::{GuestPhysAddr, RamOffset};
use vcpu::Exit;

use crate::cpu::{CodeMode, Cpu, RSP, ReplayKind, SS, vector};
use crate::domain::{AddressKind, Flow, Op, Stop, W64, Width};
use crate::paging::Place;
use crate::tlb::{Access, Kind};

impl Cpu {
    /// The offset of a memory operand, cut to its address size.
    #[inline(always)]
    pub(crate) fn offset_of(&self, op: &Op) -> u64 {
        let offset = self
            .get(op.base)
            .wrapping_add(self.get(op.index) << (op.scale & 3))
            .wrapping_add(op.disp as i64 as u64);
        match op.addr {
            AddressKind::Flat => offset,
            AddressKind::Flat32 | AddressKind::Legacy32 => offset & 0xffff_ffff,
            AddressKind::Legacy16 => offset & 0xffff,
        }
    }

    /// The linear address of a memory operand, `extra` bytes further on, after checking limits.
    #[inline(always)]
    pub(crate) fn linear_of(
        &mut self,
        op: &Op,
        extra: u64,
        bytes: u64,
        write: bool,
    ) -> Result<u64, Stop> {
        if op.addr == AddressKind::Flat {
            let offset = self
                .get(op.base)
                .wrapping_add(self.get(op.index) << (op.scale & 3))
                .wrapping_add(op.disp as i64 as u64);
            return Ok(offset
                .wrapping_add(extra)
                .wrapping_add(self.base_of(op.seg)));
        }
        self.linear_slow(op, extra, bytes, write)
    }

    #[inline(never)]
    fn linear_slow(&mut self, op: &Op, extra: u64, bytes: u64, write: bool) -> Result<u64, Stop> {
        let mut offset = self
            .get(op.base)
            .wrapping_add(self.get(op.index) << (op.scale & 3))
            .wrapping_add(op.disp as i64 as u64)
            .wrapping_add(extra);
        match op.addr {
            AddressKind::Flat => {}
            AddressKind::Flat32 => offset &= 0xffff_ffff,
            AddressKind::Legacy32 => {
                return self.segmented(op.seg, offset & 0xffff_ffff, bytes, write);
            }
            AddressKind::Legacy16 => return self.segmented(op.seg, offset & 0xffff, bytes, write),
        }
        Ok(offset.wrapping_add(self.base_of(op.seg)))
    }

    /// A linear address in a mode with segments; checks type and limit. In 64-bit mode there is
    /// nothing to check.
    pub(crate) fn segmented(
        &mut self,
        seg: u8,
        offset: u64,
        bytes: u64,
        write: bool,
    ) -> Result<u64, Stop> {
        if self.is64() {
            return Ok(offset.wrapping_add(self.base_of(seg)));
        }
        let segment = self.segment(seg);
        let last = offset.wrapping_add(bytes - 1);
        let limit = u64::from(segment.limit);
        let code = segment.kind & 8 != 0;
        let expand_down = !code && segment.kind & 4 != 0;
        let in_limit = if expand_down {
            let top = if segment.big { 0xffff_ffff } else { 0xffff };
            offset > limit && last <= top
        } else {
            last <= limit
        };
        let real = !self.protected() || self.v86();
        let typed = real
            || if write {
                !code && segment.kind & 2 != 0
            } else {
                !code || segment.kind & 2 != 0
            };
        if !in_limit || !typed || segment.unusable {
            let vector = if seg == SS { vector::SS } else { vector::GP };
            return Err(self.raise(vector, Some(0)));
        }
        Ok(segment.base.wrapping_add(offset) & 0xffff_ffff)
    }

    fn non_canonical(&mut self, linear: u64) -> Flow {
        if self.is64() && !self.canonical(linear) {
            let stop = self.gp(0);
            self.non_canonical = true;
            return Err(stop);
        }
        Ok(())
    }

    /// What an access through SS stops with: not #GP but #SS if its address is not canonical.
    #[cold]
    pub(crate) fn stack_stop(&mut self, stop: Stop) -> Stop {
        if stop == Stop::Fault && self.non_canonical {
            return self.raise(vector::SS, Some(0));
        }
        stop
    }

    /// Loads from a linear address with the present privilege.
    #[inline(always)]
    pub(crate) fn load_linear<W: Width>(&mut self, linear: u64) -> Result<u64, Stop> {
        match self.tlb.hit(Access::Read, linear, W::BYTES, self.data_kind) {
            Some(at) => Ok(W::value(self.memory.arena().load::<W::Int>(at))),
            None => self.load_slow(linear, W::BYTES as u32, self.data_kind),
        }
    }

    /// Stores to a linear address with the present privilege.
    #[inline(always)]
    pub(crate) fn store_linear<W: Width>(&mut self, linear: u64, value: u64) -> Flow {
        match self
            .tlb
            .hit(Access::Write, linear, W::BYTES, self.data_kind)
        {
            Some(at) if !self.memory.code_marks().is_marked(at, W::BYTES) => {
                self.memory.arena().store(at, W::int(value));
                self.memory.code_marks().after_store(at, W::BYTES);
                Ok(())
            }
            _ => self.store_slow(linear, W::BYTES as u32, value, self.data_kind),
        }
    }

    /// A load of `size` bytes (1 to 8) by any kind of access.
    #[cold]
    #[inline(never)]
    pub(crate) fn load_slow(&mut self, linear: u64, size: u32, kind: u64) -> Result<u64, Stop> {
        self.non_canonical(linear)?;
        let left = 0x1000 - (linear & 0xfff) as u32;
        if size <= left {
            return self.load_part(linear, size, kind);
        }
        // Over the end of a page: first see that both are there, then read in two parts.
        let second = self.next_page(linear);
        self.non_canonical(second)?;
        self.translate(linear, Access::Read, kind)?;
        self.translate(second, Access::Read, kind)?;
        let low = self.load_part(linear, left, kind)?;
        let high = self.load_part(second, size - left, kind)?;
        Ok(low | (high << (left * 8)))
    }

    /// The first address of the page behind `linear`, wrapping where the mode does.
    fn next_page(&self, linear: u64) -> u64 {
        let next = (linear & !0xfff).wrapping_add(0x1000);
        if self.long_mode() {
            next
        } else {
            next & 0xffff_ffff
        }
    }

    fn load_part(&mut self, linear: u64, size: u32, kind: u64) -> Result<u64, Stop> {
        match self.place(linear, Access::Read, kind)? {
            Place::Memory(at) => Ok(self.read_arena(at, size)),
            Place::Bus(phys) => {
                let exit = || Exit::MmioRead {
                    addr: GuestPhysAddr(phys),
                    len: size as u8,
                };
                let data = self.bus(ReplayKind::MmioRead, phys, size, exit)?;
                Ok(data.unwrap_or(0) & mask_bytes(size))
            }
        }
    }

    fn read_arena(&self, at: RamOffset, size: u32) -> u64 {
        let arena = self.memory.arena();
        match size {
            1 => u64::from(arena.load::<u8>(at)),
            2 => u64::from(arena.load::<u16>(at)),
            4 => u64::from(arena.load::<u32>(at)),
            8 => arena.load::<u64>(at),
            _ => (0..u64::from(size)).fold(0, |value, byte| {
                let next: u8 = arena.load(RamOffset(at.0.wrapping_add(byte)));
                value | (u64::from(next) << (byte * 8))
            }),
        }
    }

    fn write_arena(&self, at: RamOffset, size: u32, value: u64) {
        let arena = self.memory.arena();
        match size {
            1 => arena.store(at, value as u8),
            2 => arena.store(at, value as u16),
            4 => arena.store(at, value as u32),
            8 => arena.store(at, value),
            _ => {
                for byte in 0..u64::from(size) {
                    let at = RamOffset(at.0.wrapping_add(byte));
                    arena.store(at, (value >> (byte * 8)) as u8);
                }
            }
        }
        self.memory.code_marks().after_store(at, u64::from(size));
    }

    /// Sees that `bytes` (less than a page) can be written: both pages, and no decoded code
    /// unless the instruction runs alone.
    pub(crate) fn probe_write(&mut self, linear: u64, bytes: u64, kind: u64) -> Flow {
        self.non_canonical(linear)?;
        let left = 0x1000 - (linear & 0xfff);
        let second = self.next_page(linear);
        if bytes > left {
            self.non_canonical(second)?;
        }
        self.probe_part(linear, bytes.min(left), kind)?;
        if bytes > left {
            self.probe_part(second, bytes - left, kind)?;
        }
        Ok(())
    }

    fn probe_part(&mut self, linear: u64, bytes: u64, kind: u64) -> Flow {
        if let Place::Memory(at) = self.place(linear, Access::Write, kind)?
            && !self.alone
            && self.memory.code_marks().is_marked(at, bytes)
        {
            return Err(Stop::CodeWrite);
        }
        Ok(())
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn store_slow(&mut self, linear: u64, size: u32, value: u64, kind: u64) -> Flow {
        self.probe_write(linear, u64::from(size), kind)?;
        let left = 0x1000 - (linear & 0xfff) as u32;
        if size <= left {
            return self.store_part(linear, size, value, kind);
        }
        let second = self.next_page(linear);
        self.store_part(linear, left, value & mask_bytes(left), kind)?;
        self.store_part(second, size - left, value >> (left * 8), kind)
    }

    fn store_part(&mut self, linear: u64, size: u32, value: u64, kind: u64) -> Flow {
        match self.place(linear, Access::Write, kind)? {
            Place::Memory(at) => {
                self.write_arena(at, size, value);
                Ok(())
            }
            Place::Bus(phys) => {
                let exit = || Exit::MmioWrite {
                    addr: GuestPhysAddr(phys),
                    len: size as u8,
                    data: value & mask_bytes(size),
                };
                self.bus(ReplayKind::MmioWrite, phys, size, exit)?;
                Ok(())
            }
        }
    }

    /// Replaces what is at a linear address. `change` must not touch state.
    #[inline(always)]
    pub(crate) fn update_linear<W: Width, R>(
        &mut self,
        linear: u64,
        locked: bool,
        mut change: impl FnMut(&mut Self, u64) -> (u64, R),
    ) -> Result<R, Stop> {
        if locked {
            return self.update_locked::<W, R>(linear, change);
        }
        if let Some(at) = self
            .tlb
            .hit(Access::Write, linear, W::BYTES, self.data_kind)
            && !self.memory.code_marks().is_marked(at, W::BYTES)
        {
            let old = W::value(self.memory.arena().load::<W::Int>(at));
            let (new, result) = change(self, old);
            self.memory.arena().store(at, W::int(new));
            self.memory.code_marks().after_store(at, W::BYTES);
            return Ok(result);
        }
        self.probe_write(linear, W::BYTES, self.data_kind)?;
        let old = self.load_linear::<W>(linear)?;
        let (new, result) = change(self, old);
        self.store_linear::<W>(linear, new)?;
        Ok(result)
    }

    fn update_locked<W: Width, R>(
        &mut self,
        linear: u64,
        mut change: impl FnMut(&mut Self, u64) -> (u64, R),
    ) -> Result<R, Stop> {
        self.probe_write(linear, W::BYTES, self.data_kind)?;
        let crossing = (linear & 0xfff) + W::BYTES > 0x1000;
        let place = self.place(linear, Access::Write, self.data_kind)?;
        let (Place::Memory(at), false) = (place, crossing) else {
            // Two pages cannot be changed as one, and a device is not asked to: run alone.
            if crossing && !self.exclusive {
                return Err(Stop::Exclusive);
            }
            let old = self.load_linear::<W>(linear)?;
            let (new, result) = change(self, old);
            self.store_linear::<W>(linear, new)?;
            return Ok(result);
        };
        if !at.0.is_multiple_of(W::BYTES) {
            if !self.exclusive {
                return Err(Stop::Exclusive);
            }
            let old = W::value(self.memory.arena().load::<W::Int>(at));
            let (new, result) = change(self, old);
            self.memory.arena().store(at, W::int(new));
            self.memory.code_marks().after_store(at, W::BYTES);
            return Ok(result);
        }
        let memory = std::sync::Arc::clone(&self.memory);
        let mut old = memory.arena().load::<W::Int>(at);
        loop {
            let (new, result) = change(self, W::value(old));
            match memory.arena().compare_exchange(at, old, W::int(new)) {
                Some(Err(seen)) => old = seen,
                _ => {
                    memory.code_marks().after_store(at, W::BYTES);
                    return Ok(result);
                }
            }
        }
    }

    /// 16 bytes at a linear address.
    pub(crate) fn load_16(&mut self, linear: u64) -> Result<u128, Stop> {
        if let Some(at) = self.tlb.hit(Access::Read, linear, 16, self.data_kind) {
            return Ok(self.memory.arena().load_16(at));
        }
        self.non_canonical(linear)?;
        self.non_canonical(linear.wrapping_add(15))?;
        let low = self.load_linear::<W64>(linear)?;
        let high = self.load_linear::<W64>(linear.wrapping_add(8))?;
        Ok(u128::from(low) | (u128::from(high) << 64))
    }

    pub(crate) fn store_16(&mut self, linear: u64, value: u128) -> Flow {
        self.probe_write(linear, 16, self.data_kind)?;
        self.store_linear::<W64>(linear, value as u64)?;
        self.store_linear::<W64>(linear.wrapping_add(8), (value >> 64) as u64)
    }

    /// A load with supervisor rights whatever the privilege: descriptor tables, TSS.
    pub(crate) fn load_system(&mut self, linear: u64, size: u32) -> Result<u64, Stop> {
        let linear = if self.long_mode() {
            linear
        } else {
            linear & 0xffff_ffff
        };
        let hit = self
            .tlb
            .hit(Access::Read, linear, u64::from(size), Kind::SUPERVISOR);
        match hit {
            Some(at) => Ok(self.read_arena(at, size)),
            None => self.load_slow(linear, size, Kind::SUPERVISOR),
        }
    }

    /// A store with supervisor rights whatever the privilege.
    pub(crate) fn store_system(&mut self, linear: u64, size: u32, value: u64) -> Flow {
        let linear = if self.long_mode() {
            linear
        } else {
            linear & 0xffff_ffff
        };
        self.store_slow(linear, size, value, Kind::SUPERVISOR)
    }

    /// The stack pointer's mask: 64, 32 or 16 bits.
    pub(crate) fn stack_mask(&self) -> u64 {
        if self.flat_stack {
            u64::MAX
        } else if self.segment(SS).big {
            0xffff_ffff
        } else {
            0xffff
        }
    }

    /// Sets the stack pointer, of the present stack size; other bits stay (16-bit stacks) or are
    /// cleared (32-bit ones).
    pub(crate) fn set_stack(&mut self, value: u64) {
        let mask = self.stack_mask();
        let new = if mask == 0xffff {
            (self.get(RSP) & !mask) | (value & mask)
        } else {
            value & mask
        };
        self.put(RSP, new);
    }

    /// The linear address of `bytes` on the stack at a stack pointer.
    #[inline(always)]
    pub(crate) fn stack_linear(&mut self, sp: u64, bytes: u64, write: bool) -> Result<u64, Stop> {
        if self.flat_stack {
            return Ok(sp);
        }
        let sp = sp & self.stack_mask();
        self.segmented(SS, sp, bytes, write)
    }

    #[inline(always)]
    pub(crate) fn push_value<W: Width>(&mut self, value: u64) -> Flow {
        let sp = self.get(RSP).wrapping_sub(W::BYTES);
        let linear = self.stack_linear(sp, W::BYTES, true)?;
        if let Err(stop) = self.store_linear::<W>(linear, value) {
            return Err(self.stack_stop(stop));
        }
        if self.flat_stack {
            self.put(RSP, sp);
        } else {
            self.set_stack(sp);
        }
        Ok(())
    }

    /// What is on the stack `above` bytes over its top.
    #[inline(always)]
    pub(crate) fn peek_value<W: Width>(&mut self, above: u64) -> Result<u64, Stop> {
        let sp = self.get(RSP).wrapping_add(above);
        let linear = self.stack_linear(sp, W::BYTES, false)?;
        match self.load_linear::<W>(linear) {
            Ok(value) => Ok(value),
            Err(stop) => Err(self.stack_stop(stop)),
        }
    }

    /// The address mask of string instructions and the like.
    pub(crate) fn address_mask(kind: AddressKind) -> u64 {
        match kind {
            AddressKind::Flat => u64::MAX,
            AddressKind::Flat32 | AddressKind::Legacy32 => 0xffff_ffff,
            AddressKind::Legacy16 => 0xffff,
        }
    }

    /// The linear address of an offset in a segment, for instructions with implied operands.
    pub(crate) fn implied_linear(
        &mut self,
        seg: u8,
        offset: u64,
        bytes: u64,
        write: bool,
    ) -> Result<u64, Stop> {
        if self.mode == CodeMode::Bits64 {
            Ok(offset.wrapping_add(self.base_of(seg)))
        } else {
            self.segmented(seg, offset, bytes, write)
        }
    }
}

/// The mask of the low `size` bytes.
pub(crate) fn mask_bytes(size: u32) -> u64 {
    if size >= 8 {
        u64::MAX
    } else {
        (1_u64 << (size * 8)) - 1
    }
}
