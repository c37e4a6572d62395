//! The table of instruction forms that are compared with the host.

use exec_memory::{DATA_ADDRESS, NativeState};

/// One form.
pub struct Form {
    pub name: String,
    pub code: Vec<u8>,
    /// Flags that are undefined behind it, which may depend on the operands.
    pub undefined: fn(&NativeState) -> u64,
    /// Puts what it needs into registers; the number is random.
    pub prepare: fn(&mut NativeState, u64),
    /// Vector registers hold floats.
    pub floats: bool,
    /// x87 registers are compared too.
    pub x87: bool,
    /// Singles in the first vector register may differ by this share.
    pub tolerance: f32,
    /// x87 registers may differ by so many units in the last place, and C1 then.
    pub ulps: u64,
    /// Registers hold 32 bits.
    pub narrow: bool,
}

pub mod narrow;
pub mod vector;
pub mod x87;

const CF: u64 = 1;
const PF: u64 = 4;
const AF: u64 = 0x10;
const ZF: u64 = 0x40;
const SF: u64 = 0x80;
const OF: u64 = 0x800;
const ALL: u64 = CF | PF | AF | ZF | SF | OF;

fn none(_: &NativeState) -> u64 {
    0
}

fn nothing(_: &mut NativeState, _: u64) {}

impl Form {
    pub fn new(name: impl Into<String>, code: Vec<u8>) -> Self {
        Self {
            name: name.into(),
            code,
            undefined: none,
            prepare: nothing,
            floats: false,
            x87: false,
            tolerance: 0.0,
            ulps: 0,
            narrow: false,
        }
    }

    pub fn undefined(mut self, undefined: fn(&NativeState) -> u64) -> Self {
        self.undefined = undefined;
        self
    }

    pub fn prepare(mut self, prepare: fn(&mut NativeState, u64)) -> Self {
        self.prepare = prepare;
        self
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Size {
    Byte,
    Word,
    Long,
    Quad,
}
use Size::{Byte, Long, Quad, Word};

pub const WIDE: [Size; 3] = [Word, Long, Quad];
pub const EVERY: [Size; 4] = [Byte, Word, Long, Quad];

/// The ModR/M forms of an instruction: registers (also high bytes, also the upper eight),
/// `[rbx + 8]`, `[rbx + rsi * 4 + 16]`. `opcode` is for words; for bytes its last bit is
/// cleared if `byte_bit`. `field` is the reg field, or `None` for a register operand.
pub fn modrm(
    name: &str,
    before: &[u8],
    opcode: &[u8],
    sizes: &[Size],
    field: Option<u8>,
    tail: &[u8],
    memory_only: bool,
) -> Vec<Form> {
    let mut forms = Vec::new();
    for &size in sizes {
        let mut operands: Vec<(u8, Vec<u8>)> = Vec::new();
        let reg = field.unwrap_or(2);
        if !memory_only {
            operands.push((0, vec![0xc0 | (reg << 3) | 1]));
            operands.push((0, vec![0xc0 | (reg << 3) | field.map_or(2, |_| 0)]));
            let rex = if field.is_none() { 0x45 } else { 0x41 };
            operands.push((rex, vec![0xc0 | (reg << 3) | 1]));
            if size == Byte {
                operands.push((0, vec![0xc0 | (field.unwrap_or(4) << 3) | 5]));
                operands.push((0x40, vec![0xc0 | (field.unwrap_or(5) << 3) | 5]));
            }
        }
        operands.push((0, vec![0x40 | (reg << 3) | 3, 8]));
        operands.push((0, vec![0x44 | (reg << 3), 0xb3, 16]));
        for (rex, operand) in operands {
            let mut code = Vec::new();
            if size == Word {
                code.push(0x66);
            }
            code.extend(before);
            let rex = rex | if size == Quad { 0x48 } else { 0 };
            if rex != 0 {
                code.push(rex);
            }
            code.extend(opcode);
            if size == Byte
                && let Some(last) = code.last_mut()
            {
                *last &= !1;
            }
            code.extend(operand);
            code.extend(tail_for(tail, size));
            let name = format!("{name} {}", bits(size));
            forms.push(Form::new(name, code));
        }
    }
    forms
}

pub fn bits(size: Size) -> u32 {
    match size {
        Byte => 8,
        Word => 16,
        Long => 32,
        Quad => 64,
    }
}

/// An immediate marked by `[0xee]` is as long as the operand (4 for 8).
fn tail_for(tail: &[u8], size: Size) -> Vec<u8> {
    if tail != [0xee] {
        return tail.to_vec();
    }
    match size {
        Byte => vec![0x85],
        Word => vec![0x85, 0xff],
        _ => vec![0x85, 0x12, 0x34, 0xf5],
    }
}

pub fn arithmetic() -> Vec<Form> {
    let mut forms = Vec::new();
    let names = ["add", "or", "adc", "sbb", "and", "sub", "xor", "cmp"];
    for (number, name) in (0_u8..).zip(names) {
        let undefined = if matches!(name, "or" | "and" | "xor") {
            |_: &NativeState| AF
        } else {
            none
        };
        let mut these = modrm(name, &[], &[(number << 3) | 1], &EVERY, None, &[], false);
        these.extend(modrm(
            name,
            &[],
            &[(number << 3) | 3],
            &EVERY,
            None,
            &[],
            false,
        ));
        these.extend(modrm(
            name,
            &[],
            &[0x81],
            &EVERY,
            Some(number),
            &[0xee],
            false,
        ));
        these.extend(modrm(
            name,
            &[],
            &[0x83],
            &WIDE,
            Some(number),
            &[0xfb],
            false,
        ));
        if name != "cmp" {
            these.extend(modrm(
                name,
                &[0xf0],
                &[(number << 3) | 1],
                &EVERY,
                None,
                &[],
                true,
            ));
            these.extend(modrm(
                name,
                &[0xf0],
                &[0x81],
                &EVERY,
                Some(number),
                &[0xee],
                true,
            ));
        }
        these.push(Form::new(name, vec![(number << 3) | 4, 0x7f]));
        these.push(Form::new(
            name,
            vec![0x48, (number << 3) | 5, 1, 2, 3, 0x84],
        ));
        forms.extend(these.into_iter().map(|form| form.undefined(undefined)));
    }
    let logic = |forms: Vec<Form>| forms.into_iter().map(|form| form.undefined(|_| AF));
    forms.extend(logic(modrm("test", &[], &[0x85], &EVERY, None, &[], false)));
    forms.extend(logic(modrm(
        "test",
        &[],
        &[0xf7],
        &EVERY,
        Some(0),
        &[0xee],
        false,
    )));
    for lock in [&[][..], &[0xf0]] {
        let memory = !lock.is_empty();
        forms.extend(modrm("not", lock, &[0xf7], &EVERY, Some(2), &[], memory));
        forms.extend(modrm("neg", lock, &[0xf7], &EVERY, Some(3), &[], memory));
        forms.extend(modrm("inc", lock, &[0xff], &EVERY, Some(0), &[], memory));
        forms.extend(modrm("dec", lock, &[0xff], &EVERY, Some(1), &[], memory));
    }
    let long = [Long, Quad];
    forms.extend(modrm(
        "adcx",
        &[0x66],
        &[0x0f, 0x38, 0xf6],
        &long,
        None,
        &[],
        false,
    ));
    forms.extend(modrm(
        "adox",
        &[0xf3],
        &[0x0f, 0x38, 0xf6],
        &long,
        None,
        &[],
        false,
    ));
    for (name, byte) in [
        ("cmc", 0xf5),
        ("clc", 0xf8),
        ("stc", 0xf9),
        ("lahf", 0x9f),
        ("sahf", 0x9e),
        ("std", 0xfd),
    ] {
        forms.push(Form::new(name, vec![byte]));
    }
    forms
}

pub fn moves() -> Vec<Form> {
    let mut forms = Vec::new();
    forms.extend(modrm("mov", &[], &[0x89], &EVERY, None, &[], false));
    forms.extend(modrm("mov", &[], &[0x8b], &EVERY, None, &[], false));
    forms.extend(modrm("mov", &[], &[0xc7], &EVERY, Some(0), &[0xee], false));
    for (name, last) in [
        ("movzx 8", 0xb6),
        ("movzx 16", 0xb7),
        ("movsx 8", 0xbe),
        ("movsx 16", 0xbf),
    ] {
        forms.extend(modrm(name, &[], &[0x0f, last], &WIDE, None, &[], false));
    }
    forms.extend(modrm("movsxd", &[], &[0x63], &WIDE, None, &[], false));
    forms.extend(modrm("lea", &[], &[0x8d], &WIDE, None, &[], true));
    forms.push(Form::new(
        "lea 32 of 32",
        vec![0x67, 0x8d, 0x54, 0xb3, 0xf0],
    ));
    forms.push(Form::new(
        "lea 64 of 32",
        vec![0x67, 0x48, 0x8d, 0x54, 0x89, 0xf0],
    ));
    forms.push(Form::new("lea rip", vec![0x48, 0x8d, 0x15, 4, 3, 2, 1]));
    for cc in 0..16 {
        forms.extend(modrm(
            &format!("cmov{cc}"),
            &[],
            &[0x0f, 0x40 | cc],
            &WIDE,
            None,
            &[],
            false,
        ));
        forms.push(Form::new(format!("set{cc}"), vec![0x0f, 0x90 | cc, 0xc1]));
        forms.push(Form::new(format!("set{cc}"), vec![0x0f, 0x90 | cc, 0xc5]));
        forms.push(Form::new(
            format!("set{cc}"),
            vec![0x0f, 0x90 | cc, 0x43, 9],
        ));
        // A jump over an increment of r9.
        forms.push(Form::new(
            format!("j{cc}"),
            vec![0x70 | cc, 3, 0x49, 0xff, 0xc1, 0x90],
        ));
        forms.push(Form::new(
            format!("j{cc} far"),
            vec![0x0f, 0x80 | cc, 3, 0, 0, 0, 0x49, 0xff, 0xc1],
        ));
    }
    for register in [0xc8, 0xca, 0xcd] {
        forms.push(Form::new("bswap", vec![0x0f, register]));
        forms.push(Form::new("bswap", vec![0x49, 0x0f, register]));
    }
    forms.extend(modrm(
        "movbe",
        &[],
        &[0x0f, 0x38, 0xf0],
        &WIDE,
        None,
        &[],
        true,
    ));
    forms.extend(modrm(
        "movbe",
        &[],
        &[0x0f, 0x38, 0xf1],
        &WIDE,
        None,
        &[],
        true,
    ));
    for (name, code) in [
        ("cbw", vec![0x66, 0x98]),
        ("cwde", vec![0x98]),
        ("cdqe", vec![0x48, 0x98]),
        ("cwd", vec![0x66, 0x99]),
        ("cdq", vec![0x99]),
        ("cqo", vec![0x48, 0x99]),
        ("mov r8, imm64", vec![0x49, 0xb8, 1, 2, 3, 4, 5, 6, 7, 0x88]),
        ("mov ah, imm8", vec![0xb4, 0x77]),
        ("movnti", vec![0x48, 0x0f, 0xc3, 0x53, 8]),
        ("jmp", vec![0xeb, 3, 0x49, 0xff, 0xc1]),
    ] {
        forms.push(Form::new(name, code));
    }
    let near = |case: &mut NativeState, _: u64| case.general[0] &= 0x3f;
    forms.push(Form::new("xlat", vec![0xd7]).prepare(near));
    // Loops: three times at most, then out.
    for opcode in [0xe0, 0xe1, 0xe2] {
        let code = vec![0x49, 0xff, 0xc1, 0x4d, 0x39, 0xd1, opcode, 0xf8];
        forms.push(Form::new("loop", code).prepare(|case, n| case.general[1] = n % 5 + 1));
    }
    forms.push(
        Form::new("jrcxz", vec![0xe3, 3, 0x49, 0xff, 0xc1])
            .prepare(|case, n| case.general[1] = n & 1),
    );
    forms.push(Form::new("jecxz", vec![0x67, 0xe3, 3, 0x49, 0xff, 0xc1]));
    forms
}

/// Undefined behind a shift or rotation of `bits` by `count` (not yet masked).
fn after_shift(bits: u64, count: u64, rotates: bool) -> u64 {
    let count = count & if bits == 64 { 63 } else { 31 };
    if count == 0 {
        return 0;
    }
    let mut undefined = if count == 1 { 0 } else { OF };
    if !rotates {
        undefined |= AF;
        if count >= bits {
            undefined |= CF;
        }
    }
    undefined
}

pub fn shifts() -> Vec<Form> {
    let mut forms = Vec::new();
    let names = ["rol", "ror", "rcl", "rcr", "shl", "shr", "sal", "sar"];
    for (field, name) in (0_u8..).zip(names) {
        for size in EVERY {
            let rotates = field < 4;
            let by_cl: fn(&NativeState) -> u64 = match (size, rotates) {
                (Byte, true) => |case| after_shift(8, case.general[1], true),
                (Word, true) => |case| after_shift(16, case.general[1], true),
                (Long, true) => |case| after_shift(32, case.general[1], true),
                (Quad, true) => |case| after_shift(64, case.general[1], true),
                (Byte, false) => |case| after_shift(8, case.general[1], false),
                (Word, false) => |case| after_shift(16, case.general[1], false),
                (Long, false) => |case| after_shift(32, case.general[1], false),
                (Quad, false) => |case| after_shift(64, case.general[1], false),
            };
            let cl = modrm(
                &format!("{name} cl"),
                &[],
                &[0xd3],
                &[size],
                Some(field),
                &[],
                false,
            );
            forms.extend(cl.into_iter().map(|form| form.undefined(by_cl)));
            let one = modrm(
                &format!("{name} 1"),
                &[],
                &[0xd1],
                &[size],
                Some(field),
                &[],
                false,
            );
            forms.extend(one.into_iter().map(|form| form.undefined(|_| AF)));
            let many = modrm(
                &format!("{name} 5"),
                &[],
                &[0xc1],
                &[size],
                Some(field),
                &[5],
                false,
            );
            forms.extend(many.into_iter().map(|form| form.undefined(|_| AF | OF)));
            forms.extend(modrm(
                &format!("{name} 0"),
                &[],
                &[0xc1],
                &[size],
                Some(field),
                &[0],
                false,
            ));
        }
    }
    for (name, opcode) in [("shld", 0xa4), ("shrd", 0xac)] {
        for size in WIDE {
            let by_cl: fn(&NativeState) -> u64 = match size {
                Word => |case| after_shift(32, case.general[1], false),
                Long => |case| after_shift(32, case.general[1], false),
                _ => |case| after_shift(64, case.general[1], false),
            };
            let forms_cl = modrm(name, &[], &[0x0f, opcode + 1], &[size], None, &[], false);
            let small = size == Word;
            forms.extend(forms_cl.into_iter().map(|form| {
                let form = form.undefined(by_cl);
                if small {
                    // More than 16 is undefined, the result too.
                    form.prepare(|case, n| case.general[1] = n % 17)
                } else {
                    form
                }
            }));
            let by_seven = modrm(name, &[], &[0x0f, opcode], &[size], None, &[7], false);
            forms.extend(by_seven.into_iter().map(|form| form.undefined(|_| AF | OF)));
        }
    }
    // VEX: rorx edx, ecx, 7; shlx/shrx/sarx rdx, rcx, rax; and from memory.
    forms.push(Form::new("rorx", vec![0xc4, 0xe3, 0x7b, 0xf0, 0xd1, 7]));
    forms.push(Form::new("rorx", vec![0xc4, 0xe3, 0xfb, 0xf0, 0x53, 8, 33]));
    for (name, pp) in [("shlx", 1), ("sarx", 2), ("shrx", 3)] {
        forms.push(Form::new(name, vec![0xc4, 0xe2, 0x78 | pp, 0xf7, 0xd1]));
        forms.push(Form::new(name, vec![0xc4, 0xe2, 0xf8 | pp, 0xf7, 0xd1]));
        forms.push(Form::new(name, vec![0xc4, 0xe2, 0xf8 | pp, 0xf7, 0x53, 8]));
    }
    forms
}

pub fn multiplication() -> Vec<Form> {
    let mut forms = Vec::new();
    let rest: fn(&NativeState) -> u64 = |_| SF | ZF | AF | PF;
    let all: fn(&NativeState) -> u64 = |_| ALL;
    for (field, name, undefined) in [
        (4, "mul", rest),
        (5, "imul", rest),
        (6, "div", all),
        (7, "idiv", all),
    ] {
        let these = modrm(name, &[], &[0xf7], &EVERY, Some(field), &[], false);
        forms.extend(these.into_iter().map(|form| form.undefined(undefined)));
        if field >= 6 {
            // Dividends whose quotient often fits.
            let these = modrm(name, &[], &[0xf7], &EVERY, Some(field), &[], false);
            forms.extend(these.into_iter().map(|form| {
                form.undefined(undefined).prepare(|case, n| {
                    case.general[2] = match n % 4 {
                        0 => 0,
                        1 => u64::MAX,
                        _ => n >> 58,
                    };
                    if n & 16 == 0 {
                        case.general[0] = case.general[0] as i8 as i16 as u16 as u64;
                    }
                })
            }));
        }
    }
    let mut two = modrm("imul r, rm", &[], &[0x0f, 0xaf], &WIDE, None, &[], false);
    two.extend(modrm(
        "imul r, rm, imm",
        &[],
        &[0x69],
        &WIDE,
        None,
        &[0xee],
        false,
    ));
    two.extend(modrm(
        "imul r, rm, imm8",
        &[],
        &[0x6b],
        &WIDE,
        None,
        &[0xf9],
        false,
    ));
    forms.extend(
        two.into_iter()
            .map(|form| form.undefined(|_| SF | ZF | AF | PF)),
    );
    // mulx rax, r9, rcx / [rbx + 8]; eax, eax, ecx
    forms.push(Form::new("mulx", vec![0xc4, 0xe2, 0xb3, 0xf6, 0xc1]));
    forms.push(Form::new("mulx", vec![0xc4, 0xe2, 0xb3, 0xf6, 0x43, 8]));
    forms.push(Form::new("mulx", vec![0xc4, 0xe2, 0x7b, 0xf6, 0xc1]));
    forms
}

pub fn bit_forms() -> Vec<Form> {
    let mut forms = Vec::new();
    let bt: fn(&NativeState) -> u64 = |_| OF | SF | AF | PF;
    for (name, opcode, field) in [
        ("bt", 0xa3, 4),
        ("bts", 0xab, 5),
        ("btr", 0xb3, 6),
        ("btc", 0xbb, 7),
    ] {
        let mut these = modrm(name, &[], &[0x0f, opcode], &WIDE, None, &[], false);
        these.extend(modrm(
            name,
            &[],
            &[0x0f, 0xba],
            &WIDE,
            Some(field),
            &[77],
            false,
        ));
        if name != "bt" {
            these.extend(modrm(
                name,
                &[0xf0],
                &[0x0f, opcode],
                &WIDE,
                None,
                &[],
                true,
            ));
        }
        forms.extend(these.into_iter().map(|form| {
            // Bit offsets that stay in the data, negative ones too.
            form.undefined(bt).prepare(|case, n| {
                case.general[2] = ((n as i64 >> 32) % 900) as u64;
            })
        }));
    }
    let scan: fn(&NativeState) -> u64 = |_| CF | OF | SF | AF | PF;
    for (name, opcode) in [("bsf", 0xbc), ("bsr", 0xbd)] {
        let these = modrm(name, &[], &[0x0f, opcode], &WIDE, None, &[], false);
        forms.extend(these.into_iter().map(|form| form.undefined(scan)));
    }
    for (name, opcode, undefined) in [
        ("popcnt", 0xb8, none as fn(&NativeState) -> u64),
        ("tzcnt", 0xbc, |_| OF | SF | AF | PF),
        ("lzcnt", 0xbd, |_| OF | SF | AF | PF),
    ] {
        let these = modrm(name, &[0xf3], &[0x0f, opcode], &WIDE, None, &[], false);
        forms.extend(these.into_iter().map(|form| form.undefined(undefined)));
    }
    forms.extend(modrm(
        "crc32 8",
        &[0xf2],
        &[0x0f, 0x38, 0xf0],
        &[Long, Quad],
        None,
        &[],
        false,
    ));
    forms.extend(modrm(
        "crc32",
        &[0xf2],
        &[0x0f, 0x38, 0xf1],
        &WIDE,
        None,
        &[],
        false,
    ));
    // VEX.LZ map 2: register and [rbx + 8] forms, W0 and W1; vvvv is rax (inverted 1111).
    let vex = |name: &str, pp: u8, opcode: u8, modrm: u8, vvvv: u8| {
        [0_u8, 0x80]
            .into_iter()
            .flat_map(move |w| {
                let head = [0xc4, 0xe2, w | ((!vvvv & 15) << 3) | pp, opcode];
                let register = [&head[..], &[0xc0 | modrm]].concat();
                let memory = [&head[..], &[0x40 | (modrm & 0x38) | 3, 8]].concat();
                [Form::new(name, register), Form::new(name, memory)]
            })
            .collect::<Vec<_>>()
    };
    let logic: fn(&NativeState) -> u64 = |_| AF | PF;
    for form in vex("andn", 0, 0xf2, 0x11, 0) {
        forms.push(form.undefined(logic));
    }
    for (name, field) in [("blsr", 1), ("blsmsk", 2), ("blsi", 3)] {
        for form in vex(name, 0, 0xf3, (field << 3) | 1, 10) {
            forms.push(form.undefined(logic));
        }
    }
    for form in vex("bextr", 0, 0xf7, 0x11, 0) {
        forms.push(form.undefined(|_| AF | SF | PF).prepare(|case, n| {
            if n & 3 != 0 {
                case.general[0] = (n >> 20) & 0x3f3f;
            }
        }));
    }
    for form in vex("bzhi", 0, 0xf5, 0x11, 0) {
        forms.push(form.undefined(logic));
    }
    for pp in [2, 3] {
        forms.extend(vex("pext/pdep", pp, 0xf5, 0x11, 0));
    }
    forms
}

pub fn exchanges() -> Vec<Form> {
    let mut forms = Vec::new();
    forms.extend(modrm("xchg", &[], &[0x87], &EVERY, None, &[], false));
    for lock in [&[][..], &[0xf0]] {
        let memory = !lock.is_empty();
        forms.extend(modrm(
            "xadd",
            lock,
            &[0x0f, 0xc1],
            &EVERY,
            None,
            &[],
            memory,
        ));
        let compare = modrm("cmpxchg", lock, &[0x0f, 0xb1], &EVERY, None, &[], memory);
        forms.extend(compare.into_iter().map(|form| {
            form.prepare(|case, n| {
                if n & 1 == 0 {
                    case.general[0] = case.general[1];
                    let value = case.general[0].to_le_bytes();
                    case.data[136..144].copy_from_slice(&value);
                }
            })
        }));
    }
    let equal: fn(&mut NativeState, u64) = |case, n| {
        case.data[136..144].copy_from_slice(&case.general[0].to_le_bytes());
        if n & 1 == 0 {
            let low = case.general[0] as u32;
            let high = case.general[2] as u32;
            case.data[128..132].copy_from_slice(&low.to_le_bytes());
            case.data[132..136].copy_from_slice(&high.to_le_bytes());
        }
        if n & 2 == 0 {
            case.data[144..152].copy_from_slice(&case.general[0].to_le_bytes());
            case.data[152..160].copy_from_slice(&case.general[2].to_le_bytes());
        }
    };
    for lock in [&[][..], &[0xf0]] {
        forms.push(Form::new("cmpxchg8b", [lock, &[0x0f, 0xc7, 0x4b, 0]].concat()).prepare(equal));
        forms.push(
            Form::new("cmpxchg16b", [lock, &[0x48, 0x0f, 0xc7, 0x4b, 16]].concat()).prepare(equal),
        );
        forms.push(Form::new(
            "cmpxchg16b unaligned",
            [lock, &[0x48, 0x0f, 0xc7, 0x4b, 8]].concat(),
        ));
    }
    forms.push(Form::new("xchg rax, r9", vec![0x49, 0x91]));
    forms
}

pub fn strings() -> Vec<Form> {
    let mut forms = Vec::new();
    let prepare: fn(&mut NativeState, u64) = |case, n| {
        case.general[6] = DATA_ADDRESS + 200 + (n & 7);
        case.general[7] = DATA_ADDRESS + 230 + ((n >> 3) & 31);
        case.general[1] = (n >> 8) % 14;
        if n >> 16 & 1 == 0 {
            case.rflags |= 0x400;
        }
        if n >> 17 & 3 == 0 {
            let byte = case.data[200];
            case.data[190..280].fill(byte);
            case.general[0] = u64::from_le_bytes([byte; 8]);
        }
    };
    for (name, opcode) in [
        ("movs", 0xa4),
        ("cmps", 0xa6),
        ("stos", 0xaa),
        ("lods", 0xac),
        ("scas", 0xae),
    ] {
        for before in [&[][..], &[0xf3], &[0xf2]] {
            for (size, more) in [
                (&[][..], 0),
                (&[0x66][..], 1),
                (&[][..], 1),
                (&[0x48][..], 1),
            ] {
                let code = [before, size, &[opcode | more]].concat();
                forms.push(Form::new(format!("{name} {before:02x?}"), code).prepare(prepare));
            }
        }
        // With 32-bit addresses.
        let code = vec![0x67, 0xf3, opcode];
        forms.push(Form::new(format!("{name} addr32"), code).prepare(prepare));
    }
    forms
}

pub fn stack() -> Vec<Form> {
    let mut forms = Vec::new();
    for code in [
        vec![0x50],
        vec![0x54],
        vec![0x41, 0x51],
        vec![0x66, 0x51],
        vec![0x58],
        vec![0x5c],
        vec![0x41, 0x59],
        vec![0x66, 0x59],
        vec![0x6a, 0xf0],
        vec![0x68, 1, 2, 3, 0x84],
        vec![0x66, 0x6a, 0xf0],
        vec![0xff, 0x73, 8],
        vec![0x8f, 0x43, 8],
        vec![0x8f, 0x44, 0x24, 8],
        vec![0xff, 0x34, 0x24],
        vec![0xc8, 0x10, 0, 0],
        vec![0xc8, 0x10, 0, 1],
        // call over two bytes, pop the return address
        vec![0xe8, 2, 0, 0, 0, 0x90, 0x90, 0x59],
        // push a return address and return to it: lea, push, ret
        vec![0x48, 0x8d, 0x05, 2, 0, 0, 0, 0x50, 0xc3],
        vec![0x48, 0x8d, 0x05, 4, 0, 0, 0, 0x50, 0xc2, 8, 0],
        vec![0x48, 0x8d, 0x05, 2, 0, 0, 0, 0xff, 0xe0],
        // lea rax, here; call rax
        vec![0x48, 0x8d, 0x05, 2, 0, 0, 0, 0xff, 0xd0],
    ] {
        forms.push(Form::new(format!("stack {code:02x?}"), code));
    }
    let frame: fn(&mut NativeState, u64) = |case, _| case.general[5] = DATA_ADDRESS + 200;
    forms.push(Form::new("leave", vec![0xc9]).prepare(frame));
    forms.push(Form::new("enter 3", vec![0xc8, 0x20, 0, 3]).prepare(frame));
    // Flags through the stack: only the arithmetic ones are random.
    // pushfq; pop rax; and eax, 0x8d5; mov [rsp - 8], rax: IF differs at privilege 3 and is dropped.
    let code = vec![
        0x9c, 0x58, 0x25, 0xd5, 8, 0, 0, 0x48, 0x89, 0x44, 0x24, 0xf8,
    ];
    forms.push(Form::new("pushfq", code).undefined(|_| AF));
    forms.push(Form::new("popfq", vec![0x25, 0xd5, 8, 0, 0, 0x50, 0x9d]));
    forms
}

/// RDFSBASE, WRFSBASE and those of GS, which are put back behind. The host must allow them.
pub fn bases() -> Vec<Form> {
    let mut forms = Vec::new();
    for (read, write) in [(0xc0, 0xd0), (0xc8, 0xd8)] {
        for rex in [&[][..], &[0x48]] {
            // rdbase r11; wrbase rax (32 or 64 bits); rdbase rcx; wrbase r11; xor r11, r11
            let code = [
                &[0xf3, 0x49, 0x0f, 0xae, read | 3, 0xf3][..],
                rex,
                &[0x0f, 0xae, write, 0xf3],
                rex,
                &[0x0f, 0xae, read | 1],
                &[0xf3, 0x49, 0x0f, 0xae, write | 3, 0x4d, 0x31, 0xdb],
            ]
            .concat();
            forms.push(Form::new(format!("base {code:02x?}"), code).undefined(|_| AF));
        }
    }
    forms
}

/// An SSE instruction with registers (XMM1, XMM2), the upper ones, and memory.
pub fn xmm_forms(name: &str, before: &[u8], opcode: &[u8], tail: &[u8]) -> Vec<Form> {
    let form = |rex: &[u8], operand: &[u8]| {
        let code = [before, rex, &[0x0f], opcode, operand, tail].concat();
        Form::new(format!("{name} {before:02x?} 0f {opcode:02x?}"), code)
    };
    vec![
        form(&[], &[0xca]),
        form(&[0x45], &[0xca]),
        form(&[], &[0x4b, 0x10]),
    ]
}

pub fn sse_integer() -> Vec<Form> {
    let mut forms = Vec::new();
    // 66 0F 60 to FF: all that exist on XMM registers with two operands.
    let shifts = [0x71, 0x72, 0x73];
    for opcode in 0x60..=0xfe_u8 {
        let skip = shifts.contains(&opcode)
            || (0x77..=0x7f).contains(&opcode)
            || (0x80..=0xcf).contains(&opcode)
            || matches!(
                opcode,
                0x70 | 0x6e | 0x6f | 0xd0 | 0xd6 | 0xd7 | 0xe6 | 0xe7 | 0xf0 | 0xf7
            );
        if !skip {
            let small = opcode >= 0xd0 && opcode & 15 < 4;
            forms.extend(
                xmm_forms("packed", &[0x66], &[opcode], &[])
                    .into_iter()
                    .map(|form| {
                        if small {
                            // Shift counts that are not always too large.
                            form.prepare(|case, n| {
                                if n & 3 != 0 {
                                    case.fx[192..208].fill(0);
                                    case.fx[192] = (n >> 8) as u8 & 0x3f;
                                    case.data[144..160].fill(0);
                                    case.data[144] = (n >> 8) as u8 & 0x3f;
                                }
                            })
                        } else {
                            form
                        }
                    }),
            );
        }
    }
    for (opcode, fields) in [
        (0x71, &[2, 4, 6][..]),
        (0x72, &[2, 4, 6]),
        (0x73, &[2, 3, 6, 7]),
    ] {
        for field in fields {
            for count in [0, 3, 15, 17, 40, 200] {
                let code = vec![0x66, 0x0f, opcode, 0xc0 | (field << 3) | 1, count];
                forms.push(Form::new("shift by immediate", code));
            }
        }
    }
    for before in [0x66, 0xf2, 0xf3] {
        forms.extend(xmm_forms("pshuf", &[before], &[0x70], &[0x6c]));
    }
    for opcode in (0..=0x0b)
        .chain(0x1c..=0x1e)
        .chain(0x20..=0x25)
        .chain(0x28..=0x29)
        .chain([0x2b])
        .chain(0x30..=0x35)
        .chain(0x37..=0x41)
    {
        forms.extend(xmm_forms("map 38", &[0x66], &[0x38, opcode], &[]));
    }
    for opcode in 0xdb..=0xdf {
        forms.extend(xmm_forms("aes", &[0x66], &[0x38, opcode], &[]));
    }
    for imm in [0x00, 0x01, 0x36, 0xff] {
        forms.extend(xmm_forms("aeskeygenassist", &[0x66], &[0x3a, 0xdf], &[imm]));
    }
    for opcode in 0xc8..=0xcd {
        forms.extend(xmm_forms("sha", &[], &[0x38, opcode], &[]));
    }
    for imm in 0..4 {
        forms.extend(xmm_forms("sha1rnds4", &[], &[0x3a, 0xcc], &[imm]));
    }
    for opcode in [0x10, 0x14, 0x15, 0x17] {
        forms.extend(xmm_forms("blendv", &[0x66], &[0x38, opcode], &[]));
    }
    for (opcode, imm) in [
        (0x0c, 0x9),
        (0x0d, 2),
        (0x0e, 0xa5),
        (0x0f, 5),
        (0x0f, 21),
        (0x0f, 40),
        (0x42, 5),
        (0x42, 2),
        (0x44, 0),
        (0x44, 0x11),
        (0x44, 0x10),
    ] {
        forms.extend(xmm_forms("map 3a", &[0x66], &[0x3a, opcode], &[imm]));
    }
    for imm in [
        0x00, 0x0c, 0x1a, 0x44, 0x08, 0x18, 0x38, 0x4c, 0x05, 0x19, 0x4b, 0x72, 0x3a, 0x41,
    ] {
        for opcode in 0x60..=0x63 {
            let text = xmm_forms("pcmpxstrx", &[0x66], &[0x3a, opcode], &[imm]);
            forms.extend(text.into_iter().map(|form| {
                form.prepare(|case, n| {
                    // Few different bytes, so that strings match.
                    for byte in case.fx[176..208].iter_mut().chain(&mut case.data[144..160]) {
                        *byte %= 3;
                    }
                    if n & 7 != 0 {
                        case.general[0] = n >> 8 & 15;
                        case.general[2] = n >> 16 & 15;
                    }
                })
            }));
        }
    }
    forms
}

pub fn sse_moves() -> Vec<Form> {
    let mut forms = Vec::new();
    let prefixes: [&[u8]; 4] = [&[], &[0x66], &[0xf3], &[0xf2]];
    for before in prefixes {
        for opcode in [0x10, 0x11] {
            forms.extend(xmm_forms("mov", before, &[opcode], &[]));
        }
    }
    for before in [&[][..], &[0x66]] {
        for opcode in [0x28, 0x29, 0x14, 0x15] {
            forms.extend(xmm_forms("mova", before, &[opcode], &[]));
        }
        for opcode in [0x12, 0x13, 0x16, 0x17, 0x2b] {
            forms.push(Form::new(
                "mov half",
                [before, &[0x0f, opcode, 0x4b, 0x10]].concat(),
            ));
        }
        forms.push(Form::new("movmsk", [before, &[0x0f, 0x50, 0xc2]].concat()));
        forms.extend(xmm_forms("shuf", before, &[0xc6], &[0x1b]));
        forms.extend(xmm_forms("shuf", before, &[0xc6], &[0x6e]));
        // Unaligned operands fault.
        forms.push(Form::new(
            "mova unaligned",
            [before, &[0x0f, 0x28, 0x4b, 0x11]].concat(),
        ));
        forms.push(Form::new(
            "movu unaligned",
            [before, &[0x0f, 0x10, 0x4b, 0x11]].concat(),
        ));
    }
    for (before, opcode) in [
        (0xf3, 0x12),
        (0xf3, 0x16),
        (0xf2, 0x12),
        (0x66, 0x6f),
        (0xf3, 0x6f),
        (0x66, 0x7f),
        (0xf3, 0x7f),
        (0xf3, 0x7e),
        (0x66, 0xd6),
    ] {
        forms.extend(xmm_forms("mov", &[before], &[opcode], &[]));
    }
    for code in [
        vec![0x0f, 0x12, 0xca],
        vec![0x0f, 0x16, 0xca],
        vec![0x66, 0x0f, 0xe7, 0x4b, 0x10],
        vec![0xf2, 0x0f, 0xf0, 0x4b, 0x11],
        vec![0x66, 0x0f, 0x38, 0x2a, 0x4b, 0x10],
        vec![0x66, 0x0f, 0x6e, 0xca],
        vec![0x66, 0x48, 0x0f, 0x6e, 0xca],
        vec![0x66, 0x0f, 0x6e, 0x4b, 8],
        vec![0x66, 0x48, 0x0f, 0x6e, 0x4b, 8],
        vec![0x66, 0x0f, 0x7e, 0xca],
        vec![0x66, 0x48, 0x0f, 0x7e, 0xca],
        vec![0x66, 0x0f, 0x7e, 0x4b, 8],
        vec![0x66, 0x48, 0x0f, 0x7e, 0x4b, 8],
        vec![0x66, 0x0f, 0xd7, 0xc2],
        vec![0x66, 0x0f, 0xc5, 0xc2, 5],
        vec![0x66, 0x0f, 0xc4, 0xca, 3],
        vec![0x66, 0x0f, 0xc4, 0x4b, 9, 6],
    ] {
        forms.push(Form::new(format!("mov {code:02x?}"), code));
    }
    for opcode in [0x14, 0x15, 0x16, 0x17, 0x20, 0x22] {
        for rex in [&[][..], &[0x48]] {
            for operand in [&[0xca][..], &[0x4b, 9]] {
                let code = [&[0x66], rex, &[0x0f, 0x3a, opcode], operand, &[0xf6]].concat();
                forms.push(Form::new(format!("insert or extract {code:02x?}"), code));
            }
        }
    }
    let rdi: fn(&mut NativeState, u64) = |case, n| case.general[7] = DATA_ADDRESS + 64 + (n & 15);
    forms.push(Form::new("maskmovdqu", vec![0x66, 0x0f, 0xf7, 0xca]).prepare(rdi));
    forms
}

pub fn sse_float() -> Vec<Form> {
    let mut forms = Vec::new();
    let prefixes: [&[u8]; 4] = [&[], &[0x66], &[0xf3], &[0xf2]];
    for before in prefixes {
        for opcode in [0x51, 0x58, 0x59, 0x5a, 0x5c, 0x5d, 0x5e, 0x5f] {
            forms.extend(xmm_forms("float", before, &[opcode], &[]));
        }
        for predicate in 0..8 {
            forms.extend(xmm_forms("cmp", before, &[0xc2], &[predicate]));
        }
    }
    for before in [&[][..], &[0x66]] {
        for opcode in [0x2e, 0x2f, 0x54, 0x55, 0x56, 0x57] {
            forms.extend(xmm_forms("float", before, &[opcode], &[]));
        }
    }
    for before in [0x66, 0xf2] {
        for opcode in [0x7c, 0x7d, 0xd0] {
            forms.extend(xmm_forms("horizontal", &[before], &[opcode], &[]));
        }
    }
    for (before, opcode) in [
        (&[][..], 0x5b),
        (&[0x66], 0x5b),
        (&[0xf3], 0x5b),
        (&[0x66], 0xe6),
        (&[0xf3], 0xe6),
        (&[0xf2], 0xe6),
    ] {
        forms.extend(xmm_forms("cvt", before, &[opcode], &[]));
    }
    for before in [0xf3, 0xf2] {
        for rex in [&[][..], &[0x48]] {
            for opcode in [0x2a, 0x2c, 0x2d] {
                for operand in [&[0xca][..], &[0x4b, 8]] {
                    let code = [&[before], rex, &[0x0f, opcode], operand].concat();
                    forms.push(Form::new(format!("cvt {code:02x?}"), code));
                }
            }
        }
    }
    for opcode in 0x08..=0x0b {
        for mode in [0, 1, 2, 3, 4, 8, 11, 12] {
            forms.extend(xmm_forms("round", &[0x66], &[0x3a, opcode], &[mode]));
        }
    }
    for imm in [0xff, 0x31, 0x7a, 0xc3] {
        forms.extend(xmm_forms("dpps", &[0x66], &[0x3a, 0x40], &[imm]));
        forms.extend(xmm_forms("dppd", &[0x66], &[0x3a, 0x41], &[imm]));
    }
    for imm in [0x00, 0x98, 0x6f, 0xd1] {
        forms.extend(xmm_forms("insertps", &[0x66], &[0x3a, 0x21], &[imm]));
    }
    for form in &mut forms {
        form.floats = true;
    }
    forms
}
