//! The x87: every instruction that the decoder knows, with an empty stack, one, two and eight
//! numbers on it, which are any 80 bits.

use exec_memory::NativeState;
use iced_x86::{Decoder, DecoderOptions, Mnemonic as M};

use super::Form;

fn decoded(code: &[u8]) -> Option<M> {
    let i = Decoder::new(64, code, DecoderOptions::NONE).decode();
    (!i.is_invalid() && i.len() == code.len()).then(|| i.mnemonic())
}

/// fld tbyte [rbx + 16]
const ONE: &[u8] = &[0xdb, 0x6b, 0x10];
/// fld tbyte [rbx + 16]; fld tbyte [rbx + 32]
const TWO: &[u8] = &[0xdb, 0x6b, 0x10, 0xdb, 0x6b, 0x20];
/// As TWO, from doubles and singles.
const SHORT: &[u8] = &[0xdd, 0x43, 0x10, 0xd9, 0x43, 0x08];

fn extended(n: u64, more: u64) -> u128 {
    const EDGES: [u128; 18] = [
        0,
        1 << 79,
        0x3fff_8000_0000_0000_0000,
        0xbfff_8000_0000_0000_0000,
        0x3ffe_8000_0000_0000_0000,
        0x7fff_8000_0000_0000_0000,
        0xffff_8000_0000_0000_0000,
        0x7fff_c000_0000_0000_1234,
        0x7fff_8000_0000_0000_4321,
        0xffff_c000_0000_0000_0000,
        1,
        0x8000_0000_0000_0000,
        0x0001_8000_0000_0000_0000,
        0x7ffe_ffff_ffff_ffff_ffff,
        0x4000_c90f_daa2_2168_c235,
        0x3fff_0000_0000_0000_0001,
        0x7fff_0000_0000_0000_0000,
        0x403e_8000_0000_0000_0001,
    ];
    let significand = u128::from(more | 1 << 63);
    let exponent = |around: u64, spread: u64| u128::from(around + n % spread) << 64;
    let sign = u128::from(n >> 20 & 1) << 79;
    match n >> 60 & 7 {
        0 => EDGES[(n >> 8) as usize % EDGES.len()],
        1 => u128::from(more) | exponent(0, 0x8000) | sign,
        2 => (u128::from(more >> 50) << 52) | 1 << 63 | exponent(0x3ff0, 32) | sign,
        3 => significand | exponent(0x3fff - 80, 160) | sign,
        4 => u128::from(more) & (u128::MAX >> 65) | sign,
        _ => significand | exponent(0x3fff - 8, 16) | sign,
    }
}

/// Fills the operands with 80-bit numbers, at 144 and 160, and eight more from 224.
fn operands(case: &mut NativeState, n: u64) {
    let mut n = n | 1;
    for at in (0..2)
        .map(|k| 144 + k * 16)
        .chain((0..8).map(|k| 224 + k * 16))
    {
        let mut next = || {
            n ^= n << 13;
            n ^= n >> 7;
            n ^= n << 17;
            n
        };
        let bits = extended(next(), next());
        case.data[at..at + 10].copy_from_slice(&bits.to_le_bytes()[..10]);
    }
}

/// As `operands`, of numbers that the transcendental functions take.
fn moderate(case: &mut NativeState, n: u64) {
    operands(case, n);
    if n & 7 != 0 {
        for at in [144, 160] {
            let exponent = 0x3fff - 12 + (n >> (at % 32) & 15) as u16;
            case.data[at + 7] |= 0x80;
            let sign = u16::from(case.data[at + 9]) << 8 & 0x8000;
            case.data[at + 8..at + 10].copy_from_slice(&(exponent | sign).to_le_bytes());
        }
    }
}

/// What FYL2XP1 and F2XM1 are defined for: ST0 below 0.29 in size.
fn small(case: &mut NativeState, n: u64) {
    moderate(case, n | 1);
    let exponent = 0x3fff - 3 - (n >> 8 & 15) as u16;
    let sign = u16::from(case.data[169]) << 8 & 0x8000;
    case.data[168..170].copy_from_slice(&(exponent | sign).to_le_bytes());
}

fn is_function(m: M) -> bool {
    matches!(
        m,
        M::Fsin | M::Fcos | M::Fsincos | M::Fptan | M::Fpatan | M::Fyl2x | M::Fyl2xp1 | M::F2xm1
    )
}

fn form(name: &str, m: M, code: Vec<u8>) -> Form {
    let mut form = Form::new(format!("x87 {name} {m:?}"), code).prepare(match m {
        M::Fyl2xp1 | M::F2xm1 => small,
        m if is_function(m) => moderate,
        _ => operands,
    });
    form.x87 = true;
    form.ulps = if is_function(m) { 2 } else { 0 };
    form
}

pub fn all() -> Vec<Form> {
    let full = (0..8_u8).flat_map(|n| [0xdb, 0x6b, 0x60 - 0x10 + 0x10 * (n & 1)]);
    let full: Vec<u8> = full.collect();
    let stacks = [
        ("empty", &[][..]),
        ("one", ONE),
        ("two", TWO),
        ("short", SHORT),
        ("full", &full),
    ];
    let mut forms = Vec::new();
    for (name, stack) in stacks {
        for first in 0xd8..=0xdf_u8 {
            for operand in 0xc0..=0xff_u8 {
                let near = operand & 7 < 3;
                let code = [first, operand];
                let single = (first == 0xd9 && operand >= 0xd0) || code == [0xda, 0xe9];
                let single = single || code == [0xde, 0xd9] || first == 0xdb && operand >= 0xe0;
                if let (Some(m), true) = (decoded(&code), near || single) {
                    forms.push(form(name, m, [stack, &code[..]].concat()));
                }
            }
            for field in 0..8_u8 {
                let code = [first, 0x43 | (field << 3), 0x40];
                match decoded(&code) {
                    // Apart, below.
                    Some(M::Fldenv | M::Fnstenv | M::Fnsave | M::Frstor) | None => {}
                    Some(m) => forms.push(form(name, m, [stack, &code[..]].concat())),
                }
            }
        }
    }
    environments(&mut forms);
    traps(&mut forms);
    forms
}

fn environments(forms: &mut Vec<Form>) {
    // mov qword [rbx + 0x4c], 0; the same at 0x54: where the last instruction was.
    let wipe: &[u8] = &[
        0x48, 0xc7, 0x43, 0x4c, 0, 0, 0, 0, 0x48, 0xc7, 0x43, 0x54, 0, 0, 0, 0,
    ];
    let wipe_short: &[u8] = &[0x48, 0xc7, 0x43, 0x46, 0, 0, 0, 0];
    let save: &[u8] = &[0xdd, 0x73, 0x40];
    let store: &[u8] = &[0xd9, 0x73, 0x40];
    for stack in [&[][..], ONE, TWO] {
        for (m, code) in [(M::Fnsave, save), (M::Fnstenv, store)] {
            forms.push(form("wide", m, [stack, code, wipe].concat()));
            forms.push(form(
                "narrow",
                m,
                [stack, &[0x66], code, wipe_short].concat(),
            ));
        }
        // Saved, pushed on, and back.
        let back: &[u8] = &[0xd9, 0xeb, 0xdd, 0x63, 0x40];
        forms.push(form("round", M::Frstor, [stack, save, back, wipe].concat()));
        // Any environment: control, status and tags of the case's own.
        let load: &[u8] = &[0xd9, 0x63, 0x40];
        let mut loaded = form("load", M::Fldenv, [stack, load].concat());
        loaded.prepare = |case, n| {
            operands(case, n);
            for (at, shift) in [(192, 0), (196, 16), (200, 32)] {
                case.data[at..at + 2].copy_from_slice(&((n >> shift) as u16).to_le_bytes());
            }
        };
        forms.push(loaded);
    }
}

/// An unmasked exception stops the next instruction that waits, and not one that does not.
fn traps(forms: &mut Vec<Form>) {
    for operation in [
        &[0xde, 0xc1][..],
        &[0xd9, 0xfa],
        &[0xde, 0xf9],
        &[0xd9, 0x5b, 0x40],
    ] {
        for next in [
            &[0x9b][..],
            &[0xd9, 0xe8],
            &[0xdb, 0xe2],
            &[0xdf, 0xe0],
            &[0xdb, 0xe3],
            &[0x0f, 0x77],
            &[0x0f, 0x6f, 0x4b, 0x20],
            &[0xd9, 0x7b, 0x40],
        ] {
            let code = [TWO, operation, next].concat();
            forms.push(form("waits", M::Wait, code));
        }
    }
}
