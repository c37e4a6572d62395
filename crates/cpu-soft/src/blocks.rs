//! Decoded code: blocks of instructions, found by where they are in memory.
//!
//! A block is a run of instructions up to the first that goes elsewhere (but over [`MAX_FORKS`]
//! conditional branches), the end of its page, or [`MAX_BLOCK`] of them. It is found by linear address through the jump cache, and if that
//! misses by its place in the arena. Nothing in it depends on the linear address, so that code
//! mapped twice is decoded once.
//!
//! A block is good as long as its pages' generations are those it was decoded at. That is
//! checked when the jump cache misses; every [`Attention::CODE_CHANGED`] and every change of
//! translations makes it miss, by moving `Tlb::code_tag` on.
//!
//! [`Attention::CODE_CHANGED`]: guest_memory::Attention::CODE_CHANGED

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use guest_memory::RamOffset;
use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction};

use crate::cpu::{CS, CodeMode, Cpu, vector};
use crate::domain::{Domain, Flow, Handler, Op, Stop};
use crate::lower::{self, Behind};
use crate::paging::Place;
use crate::tlb::{Access, Kind};

/// The most instructions of a block.
const MAX_BLOCK: usize = 32;
/// The most conditional branches that a block goes on behind: what follows is decoded even if
/// it never runs.
const MAX_FORKS: usize = 2;
/// The most blocks and instructions that are kept: 1.6 MiB of blocks, 6 MiB of instructions. When
/// they are used up, all are dropped and decoding begins anew.
const MAX_BLOCKS: usize = 48 * 1024;
const MAX_STEPS: usize = 192 * 1024;
/// Entries of the jump cache.
const JUMPS: usize = 4096;
/// The longest an instruction may be.
const MAX_INSTRUCTION: usize = 15;

/// An instruction ready to run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    pub run: Handler<Cpu>,
    pub op: Op,
}

/// Bytes that a block came from.
#[derive(Debug, Clone, Copy)]
struct Origin {
    at: RamOffset,
    bytes: u64,
    generation: u32,
}

/// A run of instructions, just decoded.
#[derive(Debug)]
pub(crate) struct Block {
    pub steps: Vec<Step>,
    /// Bytes of all instructions.
    pub bytes: u64,
    /// One page, or two if its only instruction runs over the end of a page.
    origins: [Option<Origin>; 2],
}

/// A block that is kept: which of [`Blocks::steps`], and bytes of all its instructions.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Run {
    first: u32,
    count: u16,
    pub bytes: u16,
}

/// A block that lies in one page, and the generation of that page it is good for. One over two
/// pages is not kept: the other page may be another one the next time.
#[derive(Debug)]
struct Kept {
    run: Run,
    generation: u32,
}

/// Where a block is in the arena, and the mode it was decoded for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key(u64);

impl Key {
    fn new(at: RamOffset, mode: CodeMode) -> Self {
        // The arena is far smaller than 2 to the 62.
        Self(at.0 << 2 | mode as u64)
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Jump {
    linear: u64,
    tag: u64,
    run: Run,
}

/// Multiplies and folds: keys are addresses, not chosen to collide.
#[derive(Default)]
struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(23);
    }
    fn write_isize(&mut self, value: isize) {
        self.write_u64(value as u64);
    }
}

/// All blocks of one CPU.
#[derive(Debug)]
pub(crate) struct Blocks {
    /// The instructions of all blocks, one block behind the other; those of blocks that were
    /// decoded anew too, until all are dropped.
    steps: Vec<Step>,
    kept: HashMap<Key, Kept, BuildHasherDefault<AddressHasher>>,
    jumps: Box<[Jump]>,
    decoder_scratch: Instruction,
}

impl Blocks {
    pub(crate) fn new() -> Self {
        // All at once: the host gives memory as it is touched, and nothing is ever copied to make
        // room for more.
        Self {
            steps: Vec::with_capacity(MAX_STEPS),
            kept: HashMap::with_capacity_and_hasher(MAX_BLOCKS, BuildHasherDefault::default()),
            jumps: vec![Jump::default(); JUMPS].into_boxed_slice(),
            decoder_scratch: Instruction::default(),
        }
    }

    /// The instructions of a block.
    #[inline(always)]
    pub(crate) fn steps(&self, run: Run) -> &[Step] {
        let first = run.first as usize;
        self.steps
            .get(first..first + usize::from(run.count))
            .unwrap_or_default()
    }

    /// What must be the same for a linear address to mean the same code.
    #[inline(always)]
    pub(crate) fn tag(cpu: &Cpu) -> u64 {
        cpu.tlb.code_tag
    }

    /// The block at the CPU's RIP, decoded if need be. `Err`: fetching faulted.
    #[inline(always)]
    #[expect(
        clippy::indexing_slicing,
        reason = "the remainder is below JUMPS, the slice's length"
    )]
    pub(crate) fn find(&mut self, cpu: &mut Cpu) -> Result<Run, Stop> {
        let linear = linear_ip(cpu);
        let tag = Self::tag(cpu);
        let slot = (linear ^ (linear >> 12)) as usize % JUMPS;
        let jump = &self.jumps[slot];
        if jump.linear == linear && jump.tag == tag {
            return Ok(jump.run);
        }
        let run = self.find_slow(cpu, linear)?;
        self.jumps[slot] = Jump { linear, tag, run };
        Ok(run)
    }

    #[cold]
    #[inline(never)]
    fn find_slow(&mut self, cpu: &mut Cpu, linear: u64) -> Result<Run, Stop> {
        let Place::Memory(at) = fetch_place(cpu, linear)? else {
            // Code on the bus is not read: nothing sensible can be there.
            return Err(cpu.ud());
        };
        let key = Key::new(at, cpu.mode);
        if let Some(kept) = self.kept.get(&key)
            && cpu.memory.code_marks().generation(at) == kept.generation
        {
            return Ok(kept.run);
        }
        let block = decode(cpu, &mut self.decoder_scratch, linear, MAX_BLOCK)?;
        if self.kept.len() >= MAX_BLOCKS || self.steps.len() + block.steps.len() > MAX_STEPS {
            self.forget_all();
        }
        let run = Run {
            first: self.steps.len() as u32,
            count: block.steps.len() as u16,
            bytes: block.bytes as u16,
        };
        self.steps.extend_from_slice(&block.steps);
        if let [Some(origin), None] = block.origins {
            let generation = origin.generation;
            self.kept.insert(key, Kept { run, generation });
        }
        Ok(run)
    }

    fn forget_all(&mut self) {
        self.steps.clear();
        self.kept.clear();
        self.jumps.fill(Jump::default());
    }

    /// The one instruction at RIP, not kept.
    pub(crate) fn single(&mut self, cpu: &mut Cpu) -> Result<Block, Stop> {
        let linear = linear_ip(cpu);
        if let Place::Bus(_) = fetch_place(cpu, linear)? {
            return Err(cpu.ud());
        }
        let block = decode(cpu, &mut self.decoder_scratch, linear, 1)?;
        if block.bytes > cpu.code_left() {
            return Err(cpu.gp(0));
        }
        Ok(block)
    }
}

#[inline(always)]
fn linear_ip(cpu: &Cpu) -> u64 {
    cpu.rip.wrapping_add(cpu.base_of(CS)) & cpu.linear_mask
}

fn fetch_place(cpu: &mut Cpu, linear: u64) -> Result<Place, Stop> {
    let kind = if cpu.cpl == 3 {
        Kind::USER
    } else {
        Kind::SUPERVISOR
    };
    if let Some(at) = cpu.tlb.hit(Access::Fetch, linear, 1, kind) {
        return Ok(Place::Memory(at));
    }
    if cpu.mode == CodeMode::Bits64 && !cpu.canonical(linear) {
        return Err(cpu.gp(0));
    }
    cpu.translate(linear, Access::Fetch, kind)
}

/// Decodes until what was read is known to be what is there: see `CodeMarks`.
fn decode(
    cpu: &mut Cpu,
    scratch: &mut Instruction,
    linear: u64,
    limit: usize,
) -> Result<Block, Stop> {
    loop {
        let mut block = decode_once(cpu, scratch, linear, limit)?;
        let mut good = true;
        for origin in block.origins.iter_mut().flatten() {
            let marks = cpu.memory.code_marks();
            origin.generation = marks.mark(origin.at, origin.bytes);
        }
        // Now that writers are told apart, see that the bytes are still those.
        let again = decode_once(cpu, scratch, linear, limit)?;
        let same = again.bytes == block.bytes && again.origins_match(&block);
        for origin in block.origins.iter().flatten() {
            let marks = cpu.memory.code_marks();
            good &= marks.holds(origin.at, origin.bytes, origin.generation);
        }
        if same && good {
            return Ok(Block {
                origins: block.origins,
                ..again
            });
        }
    }
}

impl Block {
    fn origins_match(&self, other: &Self) -> bool {
        self.origins
            .iter()
            .zip(&other.origins)
            .all(|(a, b)| a.map(|o| (o.at, o.bytes)) == b.map(|o| (o.at, o.bytes)))
    }
}

fn decode_once(
    cpu: &mut Cpu,
    scratch: &mut Instruction,
    linear: u64,
    limit: usize,
) -> Result<Block, Stop> {
    let Place::Memory(at) = fetch_place(cpu, linear)? else {
        return Err(cpu.ud());
    };
    let left = (0x1000 - (linear & 0xfff)) as usize;
    let mut bytes = [0_u8; MAX_BLOCK * MAX_INSTRUCTION];
    let wanted = left.min(bytes.len());
    let got = cpu
        .memory
        .arena()
        .read(at, bytes.get_mut(..wanted).unwrap_or_default());
    let window = bytes.get(..got.min(wanted)).unwrap_or_default();
    let (steps, used, cut) = decode_window(cpu, scratch, window, limit);
    if !steps.is_empty() || !cut {
        return Ok(finish(steps, used, at, None));
    }
    // The first instruction runs over the end of the page.
    let second = linear.wrapping_add(left as u64);
    let second = if cpu.long_mode() {
        second
    } else {
        second & 0xffff_ffff
    };
    let Place::Memory(next) = fetch_place(cpu, second)? else {
        return Err(cpu.ud());
    };
    let mut both = [0_u8; 2 * MAX_INSTRUCTION];
    let (low, high) = both.split_at_mut(left.min(MAX_INSTRUCTION));
    cpu.memory.arena().read(at, low);
    cpu.memory.arena().read(next, high);
    let (steps, used, _) = decode_window(cpu, scratch, &both, 1);
    Ok(finish(steps, used, at, Some((next, left as u64))))
}

fn finish(steps: Vec<Step>, used: u64, at: RamOffset, next: Option<(RamOffset, u64)>) -> Block {
    let origin = |at, bytes| {
        Some(Origin {
            at,
            bytes,
            generation: 0,
        })
    };
    let first = next.map_or(used, |(_, left)| used.min(left));
    Block {
        steps,
        bytes: used,
        origins: [
            origin(at, first.max(1)),
            next.and_then(|(next, left)| origin(next, used.saturating_sub(left).max(1))),
        ],
    }
}

/// Decodes what is wholly in `window`: the instructions, their bytes, and whether the next one
/// was cut off by the window's end.
fn decode_window(
    cpu: &Cpu,
    scratch: &mut Instruction,
    window: &[u8],
    limit: usize,
) -> (Vec<Step>, u64, bool) {
    let bitness = match cpu.mode {
        CodeMode::Bits16 => 16,
        CodeMode::Bits32 => 32,
        CodeMode::Bits64 => 64,
    };
    let mut decoder = Decoder::with_ip(bitness, window, cpu.rip, DecoderOptions::NONE);
    let mut steps = Vec::with_capacity(limit.min(8));
    let mut used = 0;
    let mut forks = 0;
    while steps.len() < limit && decoder.can_decode() {
        decoder.decode_out(scratch);
        if decoder.last_error() == DecoderError::NoMoreBytes {
            return (steps, used, true);
        }
        let mut op = lower::operands(scratch, cpu.mode, cpu.rip);
        op.offset = used as u16;
        used += scratch.len() as u64;
        let lowered = if scratch.is_invalid() {
            None
        } else {
            lower::lower::<Cpu>(scratch)
        };
        let Some(lowered) = lowered else {
            // Whatever more than 15 bytes would be, it is #GP (Intel SDM 2, "Instruction Length").
            let is_long = scratch.is_invalid() && scratch.len() >= MAX_INSTRUCTION;
            let run = if is_long {
                too_long::<Cpu>
            } else {
                undefined::<Cpu>
            };
            steps.push(Step { run, op });
            return (steps, used, false);
        };
        steps.push(Step {
            run: lowered.run,
            op,
        });
        forks += usize::from(lowered.behind == Behind::Fork);
        if lowered.behind == Behind::End || forks > MAX_FORKS {
            return (steps, used, false);
        }
    }
    // The page may end exactly here.
    (steps, used, false)
}

struct Undefined;
impl crate::domain::Helper for Undefined {
    fn run(cpu: &mut Cpu, _: &Op) -> Flow {
        Err(cpu.raise(vector::UD, None))
    }
}

struct TooLong;
impl crate::domain::Helper for TooLong {
    fn run(cpu: &mut Cpu, _: &Op) -> Flow {
        Err(cpu.gp(0))
    }
}

/// An instruction of more than 15 bytes: #GP.
fn too_long<D: Domain>(d: &mut D, op: &Op) -> Flow {
    d.call::<TooLong>(op)
}

/// What is not an instruction, or not built: #UD.
fn undefined<D: Domain>(d: &mut D, op: &Op) -> Flow {
    d.call::<Undefined>(op)
}
