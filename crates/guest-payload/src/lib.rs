//! Ratite's embedded guest: a few KiB that say hello, count, and answer, so that every command of
//! a machine can be tried and tested in milliseconds.
//!
//! Its source is the folder `guest/`; `build.rs` compiles it for this host's processor with the
//! compiler and linker that are there anyway. On hosts that are not x86-64 Linux there is none.
//!
//! # How it starts
//!
//! An ELF image of 64 bits at 1 MiB with a PVH note: 32-bit protected mode, EBX with the start
//! info. It takes the command line, the memory map and the ACPI root pointer from there.
//!
//! # What it does
//!
//! It prints on the serial line at 0x3f8, once at the start:
//!
//! ```text
//! Ratite guest: 128 MiB, 4 CPUs, command line 'disk=write'
//! balloon: up to 95 MiB
//! rng: 8 bytes, [1c, a5, ae, d6, cd, c9, ca, 5c]
//! console: greeted
//! port 1: 'org.ratite.test' opened
//! disk: 32768 sectors (16 MiB), sector 0 begins [00, 00, 00, 00, 00, 00, 00, 00]
//! ```
//!
//! and then, once a second, `tick N` with the ticks (of 250 ms) so far, having read sector 0 of the
//! first disk. With `disk=write` in the command line it also counts in the disk's last sector
//! (`RATITEDC`, then the count, eight bytes) and prints `disk counter N`.
//!
//! | it notices | and |
//! |---|---|
//! | the ACPI power button, of the fixed hardware or told by a Generic Event Device | prints `power button` and switches off (S5) |
//! | the balloon's target | gives pages above 32 MiB away or takes them back, and prints how many |
//! | a named virtio port | opens it, and sends back what comes in |
//! | an NMI | prints `NMI` |
//! | an exception | prints it and stops |
//!
//! | a line typed to it | does |
//! |---|---|
//! | `help` | lists these |
//! | `reboot` | resets by the FADT's reset register, 0xcf9, or what else works |
//! | `poweroff` | S5 |
//! | `sleep` | S3; after waking it prints `awake` and goes on |
//! | `panic` | tells pvpanic at port 0x505 that it has panicked, and goes on |
//! | `triple` | a triple fault |
//! | `halt` | HLT with interrupts off |
//! | `spin` | keeps the CPU busy until a key comes |
//! | `cpus` | starts the other CPUs, each of which prints a line and halts |
//! | `disk` | looks at the disk again, also at its size |
//! | `mem` | prints the memory map |
//! | `watchdog` | starts an i6300esb with about 2 s of patience, and feeds it |
//! | `starve` | feeds it no more |
//! | `read DISK N`, `write DISK N` | does it with a sector of the disk `virtio` or `ide` (the first drive, by PIO); prints the first bytes, or the device's status if it failed |
//!
//! It finds modern virtio devices (block, balloon, entropy, console; the first of each, and four
//! ports of the console) on
//! PCI bus 0, in the DSDT (`LNRO0005`) and by `virtio_mmio.device=512@0xADDRESS:IRQ` in the command
//! line. Memory of PCI devices that nobody has placed goes to 0xd000_0000 upwards.
//!
//! # The page at 0x9000
//!
//! For who reads its memory from outside, all numbers little-endian:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | `RATITEGP` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | length of a tick in ms, 250 |
//! | 16 | 8 | ticks, counted by the timer's interrupt even while a disk keeps the guest waiting |
//! | 24 | 8 | the disk's counter, as last written |
//! | 32 | 4 | pages given to the balloon |
//! | 36 | 4 | CPUs |
//!
//! # Where a new thing goes
//!
//! A command: `guest/shell.rs` and the table above. A device: a module of `guest/`, with its type
//! in `Guest::find_devices`. The guest uses nothing but `core`, no floating-point number, and no
//! instruction of x87, MMX, SSE or AVX: some hosts' KVM emulates all of a guest, and knows none of
//! those.

/// Where the page with the guest's counters is, in guest-physical memory.
pub const TICK_PAGE: u64 = 0x9000;
/// The first bytes of that page.
pub const TICK_PAGE_MAGIC: [u8; 8] = *b"RATITEGP";

/// The guest, an ELF image with a PVH note, if this host can build it.
#[must_use]
pub fn image() -> Option<&'static [u8]> {
    #[cfg(has_guest)]
    {
        Some(include_bytes!(concat!(env!("OUT_DIR"), "/guest.elf")))
    }
    #[cfg(not(has_guest))]
    None
}

#[cfg(all(test, has_guest))]
mod tests {
    use iced_x86::{Decoder, DecoderOptions, InstructionInfoFactory, Register};

    use super::*;

    fn number(bytes: &[u8]) -> u64 {
        bytes
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    /// The code sections: each with its address.
    #[expect(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        reason = "a panic is how a test fails"
    )]
    fn code(image: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
        const EXECUTABLE: u64 = 4;
        let at = |place: &[u8]| usize::try_from(number(place)).unwrap();
        let (table, count) = (at(&image[40..48]), at(&image[60..62]));
        let headers = image[table..].chunks(64).take(count);
        headers
            .filter(|header| number(&header[8..16]) & EXECUTABLE != 0)
            .map(move |header| {
                let (offset, bytes) = (at(&header[24..32]), at(&header[32..40]));
                (number(&header[16..24]), &image[offset..offset + bytes])
            })
    }

    /// The instructions in `code` that only a processor with vectors or floating-point numbers has.
    fn vector_instructions(address: u64, code: &[u8]) -> Vec<String> {
        let is_vector = |register: Register| {
            register.is_xmm() || register.is_ymm() || register.is_mm() || register.is_st()
        };
        let mut factory = InstructionInfoFactory::new();
        Decoder::with_ip(64, code, address, DecoderOptions::NONE)
            .into_iter()
            .filter(|instruction| {
                let known = !instruction.is_invalid();
                let used = factory.info(instruction).used_registers().iter();
                let mut features = instruction.cpuid_features().iter();
                let named = features.any(|feature| {
                    let name = format!("{feature:?}");
                    ["SSE", "AVX", "MMX", "FPU", "FXSR", "XSAVE"]
                        .iter()
                        .any(|part| name.contains(part))
                });
                known && (named || used.map(|used| used.register()).any(is_vector))
            })
            .map(|instruction| format!("{:?} at {:#x}", instruction.code(), instruction.ip()))
            .collect()
    }

    #[test]
    fn it_has_no_instruction_of_x87_mmx_sse_or_avx() {
        // xorps xmm0, xmm0; fninit; nop
        let vectors = vector_instructions(0, &[0x0f, 0x57, 0xc0, 0xdb, 0xe3, 0x90]);
        assert_eq!(vectors, ["Xorps_xmm_xmmm128 at 0x0", "Fninit at 0x3"]);
        let sections: Vec<_> = code(image().unwrap()).collect();
        let bytes: usize = sections.iter().map(|(_, code)| code.len()).sum();
        assert!(bytes > 10_000, "{bytes} bytes of code");
        for (address, code) in sections {
            let vectors = vector_instructions(address, code);
            assert!(vectors.is_empty(), "{vectors:#?}");
        }
    }

    #[test]
    fn the_image_is_small_and_has_a_pvh_note() {
        let image = image().unwrap();
        assert!(image.len() < 64 << 10, "{} bytes", image.len());
        assert_eq!(image[..6], [0x7f, b'E', b'L', b'F', 2, 1]);
        let (table, count) = (number(&image[32..40]), number(&image[56..58]));
        let headers = image[usize::try_from(table).unwrap()..].chunks(56);
        let headers: Vec<_> = headers.take(usize::try_from(count).unwrap()).collect();
        let loads: Vec<_> = headers.iter().filter(|h| number(&h[..4]) == 1).collect();
        // One segment from 1 MiB on, which leaves the pages above 32 MiB to the balloon.
        let [load] = loads[..] else {
            panic!("{} segments", loads.len());
        };
        let (start, bytes) = (number(&load[24..32]), number(&load[40..48]));
        assert_eq!(start, 1 << 20);
        assert!(bytes < 1 << 20, "{bytes} bytes in memory");
        let note = headers.iter().find(|h| number(&h[..4]) == 4).unwrap();
        let (offset, length) = (number(&note[8..16]), number(&note[32..40]));
        let place = usize::try_from(offset).unwrap()..usize::try_from(offset + length).unwrap();
        let note = &image[place];
        assert_eq!(note[..16], *b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0");
        let entry = number(&note[16..20]);
        assert!(start <= entry && entry < start + bytes);
    }
}
