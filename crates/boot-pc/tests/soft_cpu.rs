//! Kernels that start on the software CPU, as a board without firmware starts them: the state, the
//! tables and the lists are good enough for the embedded guest to find everything.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a panic is how a test fails"
)]

use std::sync::Arc;

use boot_pc::acpi::{AcpiDescription, AcpiTables};
use boot_pc::{BootOptions, EntryMode, MachineLayout, load};
use cpu_soft::{Model, SoftAccelerator};
use guest_memory::{GuestMemory, GuestPhysAddr};
use vcpu::{Accelerator, Completion, Exit, Vcpu};

const RAM_BYTES: u64 = 64 << 20;
const SERIAL: u16 = 0x3f8;
/// More exits than any of these guests makes.
const MAX_EXITS: usize = 200_000;

/// Runs a CPU among devices that are not there, but for a serial line that can always send; what
/// was sent until the CPU halts.
fn run(cpu: &mut dyn Vcpu) -> String {
    let mut said = String::new();
    for _ in 0..MAX_EXITS {
        match cpu.run().unwrap() {
            Exit::PortIn { port, size, count } => {
                let value = if port == SERIAL + 5 { 0x60 } else { 0xff };
                let bytes = usize::from(size) * usize::try_from(count).unwrap();
                cpu.complete(Completion::PortIn(vec![value; bytes]))
                    .unwrap();
            }
            Exit::PortOut { port, data, .. } if port == SERIAL => {
                said.extend(data.iter().map(|byte| char::from(*byte)));
            }
            Exit::MmioRead { .. } => cpu.complete(Completion::Mmio(0)).unwrap(),
            Exit::PortOut { .. } | Exit::MmioWrite { .. } | Exit::TaskPriority(_) => {}
            Exit::Halt => return said,
            other => panic!("{other:?} after:\n{said}"),
        }
    }
    panic!("too many exits after:\n{said}")
}

fn start(kernel: &[u8], entry: EntryMode) -> String {
    let mut layout = MachineLayout::new(RAM_BYTES).unwrap();
    let description = AcpiDescription::pc(vec![0, 1, 2], 0xc000_0000..0xfec0_0000);
    let acpi = AcpiTables::new(&description).unwrap();
    let acpi = acpi.place(&mut layout).unwrap();
    let options = BootOptions {
        command_line: b"first words",
        rsdp: Some(acpi.rsdp),
        entry,
        ..BootOptions::default()
    };
    let image = load(kernel, &options, &layout).unwrap();
    let memory = Arc::new(GuestMemory::new(RAM_BYTES).unwrap());
    for (start, bytes) in layout.ram() {
        memory.add_ram(start, bytes).unwrap();
    }
    image.write_to(&memory).unwrap();
    for piece in &acpi.pieces {
        piece.write_to(&memory).unwrap();
    }
    let accelerator = SoftAccelerator::new(Arc::clone(&memory));
    let table = cpu_soft::table(Model::Qemu64, 0, 3);
    let mut cpu = accelerator.create_vcpu(0, table).unwrap();
    cpu.set_state(&image.start.state).unwrap();
    assert_eq!(cpu.state().unwrap().system, image.start.state.system);
    let said = run(cpu.as_mut());
    let mut word = [0; 8];
    memory.read(GuestPhysAddr(0x9000), &mut word).unwrap();
    said + &String::from_utf8_lossy(&word)
}

#[test]
fn the_embedded_guest_says_hello() {
    let Some(guest) = guest_payload::image() else {
        return;
    };
    let said = start(guest, EntryMode::Best);
    let hello = "Ratite guest: 64 MiB, 3 CPUs, command line 'first words'\r\n";
    // The first byte is the serial line's divisor.
    let said = said.trim_start_matches('\u{1}');
    assert_eq!(said, format!("{hello}RATITEGP"));
}

/// Code that prints the text to which a pointer at `[register + offset]` points, and halts. It
/// means the same in 32-bit and 64-bit mode.
fn print_text(modrm: u8, offset: u32) -> Vec<u8> {
    // mov edi, [register + offset] ; mov edx, 0x3f8
    // next: mov al, [edi] ; test al, al ; jz end ; out dx, al ; inc edi ; jmp next ; end: hlt
    let head = [0x8b, modrm];
    let tail = [
        0xba, 0xf8, 0x03, 0, 0, 0x8a, 0x07, 0x84, 0xc0, 0x74, 0x05, 0xee, 0xff, 0xc7, 0xeb, 0xf5,
        0xf4,
    ];
    let offset = offset.to_le_bytes();
    head.into_iter().chain(offset).chain(tail).collect()
}

/// `[esi + disp32]` and `[ebx + disp32]`, to EDI.
const OF_RSI: u8 = 0xbe;
const OF_RBX: u8 = 0xbb;

fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    for (to, from) in file.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

fn bzimage(is_64_bit: bool) -> Vec<u8> {
    let mut file = vec![0; 1024];
    put(&mut file, 0x1f1, &[1]);
    put(&mut file, 0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(&mut file, 0x202, b"HdrS\x0c\x02");
    put(&mut file, 0x211, &[1]);
    put(&mut file, 0x230, &[0, 0, 0x20, 0, 1]);
    put(&mut file, 0x236, &[u8::from(is_64_bit)]);
    put(&mut file, 0x238, &[255, 7]);
    put(&mut file, 0x258, &(16_u64 << 20).to_le_bytes());
    if is_64_bit {
        file.resize(1024 + 0x200, 0xf4);
    }
    file.extend(print_text(OF_RSI, 0x228));
    file
}

#[test]
fn both_entries_of_linux_find_the_command_line() {
    for (is_64_bit, mode) in [(true, EntryMode::Bits64), (false, EntryMode::Bits32)] {
        let said = start(&bzimage(is_64_bit), mode);
        assert_eq!(said.trim_end_matches('\0'), "first words");
    }
}

#[test]
fn a_multiboot_kernel_finds_the_command_line() {
    let start_at = 0x20_0000_u32;
    let (magic, flags) = (0x1bad_b002_u32, 1_u32 << 16);
    let sum = 0_u32.wrapping_sub(magic).wrapping_sub(flags);
    let fields = [magic, flags, sum, start_at, start_at, 0, 0, start_at + 32];
    let mut file: Vec<u8> = fields
        .iter()
        .flat_map(|field| field.to_le_bytes())
        .collect();
    file.extend(print_text(OF_RBX, 16));
    let said = start(&file, EntryMode::Best);
    assert_eq!(said.trim_end_matches('\0'), "first words");
}

#[test]
fn a_vmlinux_finds_the_command_line() {
    let mut file = vec![0; 128];
    put(&mut file, 0, b"\x7fELF\x02\x01\x01");
    put(&mut file, 16, &[2, 0, 62, 0, 1, 0, 0, 0]);
    put(&mut file, 24, &(16_u64 << 20).to_le_bytes());
    put(&mut file, 32, &[64]);
    put(&mut file, 52, &[64, 0, 56, 0, 1, 0]);
    let code = print_text(OF_RSI, 0x228);
    put(&mut file, 64, &[1, 0, 0, 0, 7, 0, 0, 0, 128]);
    for at in [80, 88] {
        put(&mut file, at, &(16_u64 << 20).to_le_bytes());
    }
    let size = u8::try_from(code.len()).unwrap();
    put(&mut file, 96, &[size]);
    put(&mut file, 104, &[size]);
    file.extend(code);
    let said = start(&file, EntryMode::Best);
    assert_eq!(said.trim_end_matches('\0'), "first words");
}
