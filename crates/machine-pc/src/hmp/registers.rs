//! `info registers`: in the layout that scripts read.

use std::fmt::Write;

use vcpu::{Activity, DescriptorTable, Segment, VcpuState};

use crate::control::Control;

const GENERAL: [&str; 16] = [
    "RAX", "RBX", "RCX", "RDX", "RSI", "RDI", "RBP", "RSP", "R8 ", "R9 ", "R10", "R11", "R12",
    "R13", "R14", "R15",
];
/// Where each of those stands in the encoding's order.
const PLACES: [usize; 16] = [0, 3, 1, 2, 6, 7, 5, 4, 8, 9, 10, 11, 12, 13, 14, 15];
const SEGMENTS: [&str; 6] = ["ES", "CS", "SS", "DS", "FS", "GS"];
/// Flags from the direction flag down, with the letters that stand for them.
const FLAGS: [(u64, char); 7] = [
    (1 << 10, 'D'),
    (1 << 11, 'O'),
    (1 << 7, 'S'),
    (1 << 6, 'Z'),
    (1 << 4, 'A'),
    (1 << 2, 'P'),
    (1, 'C'),
];

pub(super) fn show(control: &mut Control, cpu: i64) -> String {
    let halted = control.is_halted(cpu);
    match control.cpu_state(cpu) {
        Some(state) => {
            let apic = state.local_apic.as_ref();
            let in_run = apic.is_some_and(|apic| apic.activity == Activity::Halted);
            format(&state, cpu, halted || in_run)
        }
        None => "no CPU available\n".to_owned(),
    }
}

fn segment(text: &mut String, name: &str, segment: &Segment) {
    let attributes = u32::from(segment.kind)
        | u32::from(segment.code_or_data) << 4
        | u32::from(segment.dpl) << 5
        | u32::from(segment.present) << 7
        | u32::from(segment.available) << 12
        | u32::from(segment.long) << 13
        | u32::from(segment.big) << 14
        | u32::from(segment.granular) << 15;
    let _ = writeln!(
        text,
        "{name:3}={:04x} {:016x} {:08x} {:08x}",
        segment.selector,
        segment.base,
        segment.limit,
        attributes << 8
    );
}

fn table(text: &mut String, name: &str, table: &DescriptorTable) {
    let _ = writeln!(text, "{name}=     {:016x} {:08x}", table.base, table.limit);
}

fn format(state: &VcpuState, cpu: i64, halted: bool) -> String {
    let mut text = format!("\nCPU#{cpu}\n");
    let (registers, system) = (&state.registers, &state.system);
    for (index, (name, place)) in GENERAL.iter().zip(PLACES).enumerate() {
        let value = registers.general.get(place).copied().unwrap_or(0);
        let end = if index % 4 == 3 { "\n" } else { " " };
        let _ = write!(text, "{name}={value:016x}{end}");
    }
    let flags: String = FLAGS
        .iter()
        .map(|(bit, letter)| {
            if registers.rflags & bit == 0 {
                '-'
            } else {
                *letter
            }
        })
        .collect();
    let privilege = system.segments.get(2).map_or(0, |stack| stack.dpl);
    let _ = writeln!(
        text,
        "RIP={:016x} RFL={:08x} [{flags}] CPL={privilege} II={} A20=1 SMM=0 HLT={}",
        registers.rip,
        registers.rflags,
        u8::from(state.interrupt_shadow),
        u8::from(halted)
    );
    for (name, one) in SEGMENTS.iter().zip(&system.segments) {
        segment(&mut text, name, one);
    }
    segment(&mut text, "LDT", &system.ldtr);
    segment(&mut text, "TR", &system.tr);
    table(&mut text, "GDT", &system.gdtr);
    table(&mut text, "IDT", &system.idtr);
    let _ = writeln!(
        text,
        "CR0={:08x} CR2={:016x} CR3={:016x} CR4={:08x}",
        system.cr0, system.cr2, system.cr3, system.cr4
    );
    for (index, value) in system.dr.iter().enumerate() {
        let end = if index == 3 { "\n" } else { " " };
        let _ = write!(text, "DR{index}={value:016x}{end}");
    }
    let _ = writeln!(text, "DR6={:016x} DR7={:016x}", system.dr6, system.dr7);
    let _ = writeln!(text, "EFER={:016x}", system.efer);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_stand_where_scripts_look() {
        let mut state = VcpuState::default();
        state.registers.general[4] = 0x1234;
        state.registers.rip = 0xfff0;
        state.registers.rflags = 0x46;
        let text = format(&state, 1, true);
        assert!(text.starts_with("\nCPU#1\nRAX=0000000000000000 RBX="));
        assert!(text.contains(" RSP=0000000000001234\n"), "{text}");
        assert!(text.contains("RIP=000000000000fff0 RFL=00000046 [---Z-P-] CPL=0 II=0"));
        assert!(text.contains("HLT=1\nES =0000 0000000000000000 00000000 00000000\n"));
    }
}
