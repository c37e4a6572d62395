//! IN and OUT, and the permission to use them.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use vcpu::Exit;

use crate::cpu::{Cpu, RAX, RDX, ReplayKind};
use crate::domain::{Domain, Flow, Helper, Op, Stop, W8, W16, W32, Width, helper};
use crate::lower::{Lowered, go};

impl Cpu {
    /// Checks IOPL and the TSS's permission bitmap.
    pub(crate) fn check_port(&mut self, port: u16, size: u32) -> Flow {
        if !self.protected() || (self.cpl <= self.iopl() && !self.v86()) {
            return Ok(());
        }
        let limit = u64::from(self.system.tr.limit);
        if self.system.tr.kind & 8 == 0 || limit < 0x67 {
            return Err(self.gp(0));
        }
        let map = self.load_system(self.system.tr.base.wrapping_add(0x66), 2)?;
        let at = map + u64::from(port / 8);
        // Two bytes are read, whatever the port: both must be within the TSS.
        if at + 1 > limit {
            return Err(self.gp(0));
        }
        let bits = self.load_system(self.system.tr.base.wrapping_add(at), 2)?;
        let mask = ((1_u64 << size) - 1) << (port % 8);
        if bits & mask != 0 {
            return Err(self.gp(0));
        }
        Ok(())
    }

    pub(crate) fn port_in(&mut self, port: u16, size: u32) -> Result<u64, Stop> {
        let exit = || Exit::PortIn {
            port,
            size: size as u8,
            count: 1,
        };
        let data = self.bus(ReplayKind::PortIn, u64::from(port), size, exit)?;
        Ok(data.unwrap_or(u64::MAX))
    }

    pub(crate) fn port_out(&mut self, port: u16, size: u32, value: u64) -> Flow {
        let exit = || Exit::PortOut {
            port,
            size: size as u8,
            data: value
                .to_le_bytes()
                .into_iter()
                .take(size as usize)
                .collect(),
        };
        self.bus(ReplayKind::PortOut, u64::from(port), size, exit)?;
        Ok(())
    }
}

/// The port that an instruction names and may use. `DX`: it is in DX, else it is the immediate.
fn checked_port<W: Width, const DX: bool>(cpu: &mut Cpu, op: &Op) -> Result<u16, Stop> {
    let port = if DX {
        cpu.get(RDX) as u16
    } else {
        op.imm as u16 & 0xff
    };
    cpu.check_port(port, W::BYTES as u32)?;
    Ok(port)
}

struct In<W, const DX: bool>(std::marker::PhantomData<W>);
impl<W: Width, const DX: bool> Helper for In<W, DX> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        let port = checked_port::<W, DX>(cpu, op)?;
        let value = cpu.port_in(port, W::BYTES as u32)?;
        cpu.set_reg::<W>(RAX, value & W::MASK);
        Ok(())
    }
}

struct Out<W, const DX: bool>(std::marker::PhantomData<W>);
impl<W: Width, const DX: bool> Helper for Out<W, DX> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        let port = checked_port::<W, DX>(cpu, op)?;
        let value = cpu.reg::<W>(RAX);
        cpu.port_out(port, W::BYTES as u32, value)
    }
}

pub(crate) fn lower<D: Domain>(i: &Instruction) -> Option<Lowered<D>> {
    let (accumulator, port) = match i.mnemonic() {
        Mnemonic::In => (i.op0_register(), i.op1_kind()),
        Mnemonic::Out => (i.op1_register(), i.op0_kind()),
        _ => return None,
    };
    let dx = port == OpKind::Register;
    let input = i.mnemonic() == Mnemonic::In;
    go(match (accumulator, dx, input) {
        (Register::AL, false, true) => helper::<D, In<W8, false>>,
        (Register::AL, true, true) => helper::<D, In<W8, true>>,
        (Register::AX, false, true) => helper::<D, In<W16, false>>,
        (Register::AX, true, true) => helper::<D, In<W16, true>>,
        (_, false, true) => helper::<D, In<W32, false>>,
        (_, true, true) => helper::<D, In<W32, true>>,
        (Register::AL, false, false) => helper::<D, Out<W8, false>>,
        (Register::AL, true, false) => helper::<D, Out<W8, true>>,
        (Register::AX, false, false) => helper::<D, Out<W16, false>>,
        (Register::AX, true, false) => helper::<D, Out<W16, true>>,
        (_, false, false) => helper::<D, Out<W32, false>>,
        (_, true, false) => helper::<D, Out<W32, true>>,
    })
}
