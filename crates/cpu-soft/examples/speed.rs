//! Prints how many guest instructions a second the software CPU runs, for a few loops.
//!
//! `cargo run --release -p cpu-soft --example speed [MILLIONS [WHICH]]`: of how many millions of
//! instructions (200), and of one loop only, by its number. With a few millions a tool that
//! counts the host's instructions (`valgrind --tool=callgrind`) tells more than a busy machine's
//! clock.

use std::sync::Arc;
use std::time::Instant;

use cpu_soft::{Model, SoftAccelerator, table};
use guest_memory::{GuestMemory, GuestPhysAddr};
use vcpu::{Accelerator, Exit, Segment, VcpuState};

/// A loop: its name, its bytes (ending with `dec rcx; jnz`), its instructions a turn.
struct Loop {
    name: &'static str,
    body: &'static [u8],
    instructions: u64,
}

const LOOPS: &[Loop] = &[
    // As a kernel's code is: short blocks, branches taken and not, a call, loads and stores.
    Loop {
        name: "mixed: lists, flags, branches, a call, byte and word memory",
        body: &[
            0x8b, 0x45, 0x08, 0xa8, 0x10, 0x75, 0x02, 0xff, 0xc2, 0x48, 0x83, 0xf8, 0x40, 0x77,
            0x05, 0xe8, 0x10, 0x00, 0x00, 0x00, 0x0f, 0xb6, 0x75, 0x03, 0x84, 0xf6, 0x74, 0x02,
            0xff, 0xc7, 0x48, 0x89, 0x75, 0x18, 0xeb, 0x0a, 0x53, 0x48, 0x8d, 0x5d, 0x08, 0x89,
            0x43, 0x04, 0x5b, 0xc3,
        ],
        instructions: 20,
    },
    Loop {
        name: "dec; jnz",
        body: &[],
        instructions: 2,
    },
    Loop {
        name: "registers: add, xor, lea, shl, sub, mov, and, inc",
        body: &[
            0x48, 0x01, 0xd8, 0x48, 0x31, 0xc2, 0x48, 0x8d, 0x74, 0x10, 0x08, 0x48, 0xc1, 0xe6,
            0x03, 0x48, 0x29, 0xf0, 0x48, 0x89, 0xc7, 0x48, 0x21, 0xd7, 0x48, 0xff, 0xc3,
        ],
        instructions: 10,
    },
    Loop {
        name: "memory: load, add, store, load, cmp, push, pop",
        body: &[
            0x48, 0x8b, 0x45, 0x08, 0x48, 0x01, 0xd8, 0x48, 0x89, 0x45, 0x10, 0x8b, 0x55, 0x10,
            0x48, 0x3b, 0x45, 0x08, 0x50, 0x5a,
        ],
        instructions: 9,
    },
    Loop {
        name: "calls: call, ret, test, jz over",
        body: &[
            0xe8, 0x02, 0x00, 0x00, 0x00, 0xeb, 0x01, 0xc3, 0x48, 0x85, 0xc9, 0x74, 0x00,
        ],
        instructions: 7,
    },
];

const CODE: u64 = 0x10_000;

fn start(state: &mut VcpuState, turns: u64) {
    let flat = |selector, kind, long| Segment {
        selector,
        limit: u32::MAX,
        kind,
        code_or_data: true,
        present: true,
        long,
        big: !long,
        granular: true,
        ..Segment::default()
    };
    state.system.cr0 = 0x8001_0033;
    state.system.cr3 = 0x1000;
    state.system.cr4 = 0x6b0;
    state.system.efer = 0xd01;
    state.system.segments = [flat(0x10, 3, false); 6];
    if let Some(code) = state.system.segments.get_mut(1) {
        *code = flat(8, 11, true);
    }
    state.registers.rip = CODE;
    for (register, value) in [(1, turns), (4, 0x30_000), (5, 0x20_000)] {
        if let Some(slot) = state.registers.general.get_mut(register) {
            *slot = value;
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let millions: u64 = arguments.next().map_or(Ok(200), |text| text.parse())?;
    let which: Option<usize> = arguments.next().map(|text| text.parse()).transpose()?;
    let memory = Arc::new(GuestMemory::new(4 << 20)?);
    memory.add_ram(GuestPhysAddr(0), 4 << 20)?;
    memory.write(GuestPhysAddr(0x1000), &0x2007_u64.to_le_bytes())?;
    memory.write(GuestPhysAddr(0x2000), &0x87_u64.to_le_bytes())?;
    let accelerator = SoftAccelerator::new(Arc::clone(&memory));
    for (number, entry) in LOOPS.iter().enumerate() {
        if which.is_some_and(|which| which != number) {
            continue;
        }
        let mut code = entry.body.to_vec();
        code.extend([0x48, 0xff, 0xc9]);
        let back = -i32::try_from(code.len() + 6)?;
        code.extend([0x0f, 0x85]);
        code.extend(back.to_le_bytes());
        code.push(0xf4);
        memory.write(GuestPhysAddr(CODE), &code)?;
        let turns = millions * 1_000_000 / entry.instructions;
        let mut vcpu = accelerator.create_vcpu(0, table(Model::Max, 0, 1))?;
        let mut state = vcpu.state()?;
        start(&mut state, turns);
        vcpu.set_state(&state)?;
        let before = Instant::now();
        let exit = vcpu.run()?;
        let seconds = before.elapsed().as_secs_f64();
        if exit != Exit::Halt {
            return Err(format!("{}: {exit:?}", entry.name).into());
        }
        let rate = (turns * entry.instructions) as f64 / seconds / 1e6;
        println!("{rate:8.1} million instructions a second  {}", entry.name);
    }
    Ok(())
}
