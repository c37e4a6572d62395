//! 32-bit code (with operands and addresses of 16 bits too), which the host runs in a segment of
//! its own: forms that do not fault.
//!
//! There is no 16-bit code segment to be had from the host; what is the same but for the default
//! size is covered by prefixes here, the rest by guests in `system.rs`.

use exec_memory::{CODE_ADDRESS, DATA_ADDRESS, NativeState};

use super::{AF, CF, Form, OF, PF, SF, ZF, after_shift, none, nothing};

/// Selectors as Linux has them; the guest's table has segments of the same kind there.
const DATA: u8 = 0x2b;
const CODE_32: u16 = 0x23;
const CODE_64: u16 = 0x33;

type Undefined = fn(&NativeState) -> u64;
type Prepare = fn(&mut NativeState, u64);

/// 64-bit code that loads DS and ES and goes to 32-bit code, `code`, and back.
fn wrap(code: &[u8]) -> Vec<u8> {
    // push rax; mov eax, DATA; mov ds, eax; mov es, eax; pop rax; jmp far [rip]
    let mut all = vec![0x50, 0xb8, DATA, 0, 0, 0, 0x8e, 0xd8, 0x8e, 0xc0, 0x58];
    all.extend([0xff, 0x2d, 0, 0, 0, 0]);
    let here = CODE_ADDRESS as u32 + all.len() as u32 + 6;
    all.extend(here.to_le_bytes());
    all.extend(CODE_32.to_le_bytes());
    all.extend(code);
    let back = here + code.len() as u32 + 7;
    all.push(0xea);
    all.extend(back.to_le_bytes());
    all.extend(CODE_64.to_le_bytes());
    all
}

/// The same in a 16-bit code segment: the operand size prefix is turned around, and 32-bit
/// addresses are asked for. Only for what has a ModR/M byte, so that no length depends on it.
pub fn as_16_bit(code: &[u8]) -> Vec<u8> {
    match code {
        [0x66, rest @ ..] => [&[0x67], rest].concat(),
        code => [&[0x67, 0x66], code].concat(),
    }
}

/// The 32-bit instructions that can be said in 16-bit code too.
pub fn with_modrm() -> Vec<Vec<u8>> {
    let mut forms = Forms(Vec::new());
    arithmetic(&mut forms);
    shifts(&mut forms);
    let inner = |form: &Form| form.code[INNER..form.code.len() - 7].to_vec();
    let codes = forms.0.iter().map(inner);
    // Those of one byte are fine as well: INC and DEC.
    codes.collect()
}

/// Where the 32-bit code begins in what `wrap` makes.
const INNER: usize = 23;

struct Forms(Vec<Form>);

impl Forms {
    fn add(&mut self, code: &[u8], undefined: Undefined, prepare: Prepare) {
        let mut form = Form::new(format!("32-bit {code:02x?}"), wrap(code));
        form.undefined = undefined;
        form.prepare = prepare;
        form.narrow = true;
        self.0.push(form);
    }

    /// Registers, `[ebx + 8]`, `[ebx + esi * 4 + 16]`, `[disp32]`; as it is, and with 66.
    fn modrm(&mut self, opcode: &[u8], field: u8, tail: &[u8], undefined: Undefined) {
        self.modrm_with(opcode, field, [tail, tail], undefined, nothing);
    }

    fn modrm_with(
        &mut self,
        opcode: &[u8],
        field: u8,
        [tail, short]: [&[u8]; 2],
        undefined: Undefined,
        prepare: Prepare,
    ) {
        let absolute = (DATA_ADDRESS as u32 + 144).to_le_bytes();
        let direct = [&[0x05 | (field << 3)], &absolute[..]].concat();
        for operand in [
            &[0xc1 | (field << 3)][..],
            &[0xc5 | (field << 3)],
            &[0x43 | (field << 3), 8],
            &[0x44 | (field << 3), 0xb3, 16],
            &direct,
        ] {
            self.add(&[opcode, operand, tail].concat(), undefined, prepare);
            let with_66 = [&[0x66], opcode, operand, short].concat();
            self.add(&with_66, undefined, prepare);
        }
    }
}

pub fn all() -> Vec<Form> {
    let mut forms = Forms(Vec::new());
    arithmetic(&mut forms);
    shifts(&mut forms);
    moves(&mut forms);
    stack_and_branches(&mut forms);
    strings(&mut forms);
    decimal(&mut forms);
    vectors(&mut forms);
    forms.0
}

fn arithmetic(forms: &mut Forms) {
    let logic: Undefined = |_| AF;
    for number in 0..8_u8 {
        let undefined = if matches!(number, 1 | 4 | 6) {
            logic
        } else {
            none
        };
        for low in 0..4 {
            forms.modrm(&[(number << 3) | low], 2, &[], undefined);
        }
        forms.add(&[(number << 3) | 4, 0x85], undefined, nothing);
        forms.add(&[(number << 3) | 5, 0x85, 1, 2, 0x93], undefined, nothing);
        forms.add(&[0x66, (number << 3) | 5, 0x85, 0x91], undefined, nothing);
        forms.modrm(&[0x80], number, &[0x85], undefined);
        // Another encoding of the same, which 64-bit code has not.
        forms.modrm(&[0x82], number, &[0x85], undefined);
        let wide: [&[u8]; 2] = [&[1, 2, 3, 0x84], &[1, 0x82]];
        forms.modrm_with(&[0x81], number, wide, undefined, nothing);
        forms.modrm(&[0x83], number, &[0xf5], undefined);
    }
    for register in 0..8_u8 {
        if register != 4 {
            forms.add(&[0x40 | register], none, nothing);
            forms.add(&[0x66, 0x48 | register], none, nothing);
        }
    }
    forms.modrm(&[0xf7], 2, &[], none);
    forms.modrm(&[0xf7], 3, &[], none);
    forms.modrm(&[0xf6], 3, &[], none);
    forms.modrm(&[0xff], 0, &[], none);
    forms.modrm(&[0xfe], 1, &[], none);
    forms.modrm(&[0x85], 2, &[], logic);
    let rest: Undefined = |_| SF | ZF | AF | PF;
    for field in [4, 5] {
        forms.modrm(&[0xf7], field, &[], rest);
        forms.modrm(&[0xf6], field, &[], rest);
    }
    forms.modrm(&[0x0f, 0xaf], 2, &[], rest);
    forms.modrm(&[0x6b], 2, &[0xf9], rest);
    forms.modrm_with(&[0x69], 2, [&[1, 2, 3, 0x84], &[1, 0x82]], rest, nothing);
    forms.modrm(&[0x0f, 0xc1], 2, &[], none);
    forms.modrm(&[0x0f, 0xb1], 2, &[], none);
    // The privilege in a selector: arpl cx, dx
    forms.add(&[0x63, 0xd1], none, nothing);
    forms.add(&[0x63, 0x53, 8], none, nothing);
    for opcode in [0xbc, 0xbd] {
        forms.modrm(&[0x0f, opcode], 2, &[], |_| CF | OF | SF | AF | PF);
    }
    let offset: Prepare = |case, n| case.general[2] = ((n as i64 >> 32) % 900) as u32 as u64;
    for opcode in [0xa3, 0xab, 0xb3, 0xbb] {
        let bits: Undefined = |_| OF | SF | AF | PF;
        forms.modrm_with(&[0x0f, opcode], 2, [&[], &[]], bits, offset);
    }
}

fn shifts(forms: &mut Forms) {
    for field in 0..8_u8 {
        let by_cl: [Undefined; 3] = if field < 4 {
            [
                |case| after_shift(8, case.general[1], true),
                |case| after_shift(16, case.general[1], true),
                |case| after_shift(32, case.general[1], true),
            ]
        } else {
            [
                |case| after_shift(8, case.general[1], false),
                |case| after_shift(16, case.general[1], false),
                |case| after_shift(32, case.general[1], false),
            ]
        };
        let [byte, word, long] = by_cl;
        forms.add(&[0xd2, 0xc2 | (field << 3)], byte, nothing);
        forms.add(&[0x66, 0xd3, 0xc2 | (field << 3)], word, nothing);
        forms.add(&[0xd3, 0xc2 | (field << 3)], long, nothing);
        forms.add(&[0xd3, 0x43 | (field << 3), 8], long, nothing);
        forms.modrm(&[0xd1], field, &[], |_| AF);
        forms.modrm(&[0xc1], field, &[5], |_| AF | OF);
    }
    for opcode in [0xa4, 0xac] {
        forms.modrm(&[0x0f, opcode], 2, &[7], |_| AF | OF);
    }
}

fn moves(forms: &mut Forms) {
    for opcode in [0x88, 0x89, 0x8a, 0x8b, 0x86, 0x87] {
        forms.modrm(&[opcode], 2, &[], none);
    }
    forms.modrm_with(&[0xc7], 0, [&[1, 2, 3, 0x84], &[1, 0x82]], none, nothing);
    for opcode in [0xb6, 0xb7, 0xbe, 0xbf] {
        forms.modrm(&[0x0f, opcode], 2, &[], none);
    }
    for cc in 0..16 {
        forms.modrm(&[0x0f, 0x40 | cc], 2, &[], none);
        forms.add(&[0x0f, 0x90 | cc, 0xc5], none, nothing);
        // Over an increment of edx.
        forms.add(&[0x70 | cc, 1, 0x42], none, nothing);
        forms.add(&[0x0f, 0x80 | cc, 1, 0, 0, 0, 0x42], none, nothing);
    }
    let absolute = (DATA_ADDRESS as u32 + 144).to_le_bytes();
    for opcode in 0xa0..=0xa3 {
        forms.add(&[&[opcode], &absolute[..]].concat(), none, nothing);
        forms.add(&[&[0x66, opcode], &absolute[..]].concat(), none, nothing);
    }
    // Addresses, of 32 bits and of 16.
    for operand in [
        &[0x54, 0xb3, 0xf0][..],
        &[0x94, 0x88, 1, 2, 3, 0x84],
        &[0x14, 0x24],
    ] {
        forms.add(&[&[0x8d], operand].concat(), none, nothing);
        forms.add(&[&[0x66, 0x8d], operand].concat(), none, nothing);
    }
    for operand in 0..8_u8 {
        forms.add(&[0x67, 0x8d, 0x50 | operand, 0xf0], none, nothing);
        forms.add(&[0x67, 0x8d, 0x90 | operand, 0x34, 0x92], none, nothing);
    }
    forms.add(&[0x67, 0x8d, 0x16, 0x34, 0x92], none, nothing);
    for code in [
        &[0x91][..],
        &[0x66, 0x92],
        &[0x98],
        &[0x66, 0x98],
        &[0x99],
        &[0x66, 0x99],
        &[0x9e],
        &[0x9f],
        &[0xb4, 0x77],
        &[0xba, 1, 2, 3, 0x84],
        &[0x66, 0xba, 1, 0x82],
        &[0x0f, 0xca],
        &[0xf5],
        &[0xf8],
        &[0xf9],
        // salc
        &[0xd6],
    ] {
        forms.add(code, none, nothing);
    }
    forms.add(&[0xd7], none, |case, _| case.general[0] &= 0x3f);
}

fn stack_and_branches(forms: &mut Forms) {
    for code in [
        &[0x50][..],
        &[0x54],
        &[0x66, 0x51],
        &[0x58],
        &[0x66, 0x59],
        &[0x60],
        &[0x66, 0x60],
        &[0x61],
        &[0x66, 0x61],
        &[0x6a, 0xf0],
        &[0x66, 0x6a, 0xf0],
        &[0x68, 1, 2, 3, 0x84],
        &[0xff, 0x73, 8],
        &[0x8f, 0x43, 8],
        &[0x8f, 0x44, 0x24, 8],
        &[0xc8, 0x10, 0, 0],
        &[0xc8, 0x10, 0, 1],
        // push es; pop es; push ds
        &[0x06],
        &[0x1e, 0x07],
        &[0x66, 0x1e],
        // call over two bytes, pop the return address
        &[0xe8, 2, 0, 0, 0, 0x90, 0x90, 0x59],
        // call a return
        &[0xe8, 2, 0, 0, 0, 0xeb, 1, 0xc3],
        &[0xeb, 1, 0x42],
        &[0xe9, 1, 0, 0, 0, 0x42],
    ] {
        // POPA takes ESP from nowhere, but EBP and the like from the data: nothing faults.
        forms.add(code, none, nothing);
    }
    forms.add(&[0xc9], none, |case, _| {
        case.general[5] = DATA_ADDRESS + 200
    });
    forms.add(&[0xc8, 0x20, 0, 3], none, |case, _| {
        case.general[5] = DATA_ADDRESS + 200
    });
    let few: Prepare = |case, n| case.general[1] = n % 5 + 1;
    for opcode in [0xe0, 0xe1, 0xe2] {
        // inc edx; cmp edx, eax; loop
        forms.add(&[0x42, 0x39, 0xc2, opcode, 0xfb], none, few);
        forms.add(&[0x42, 0x39, 0xc2, 0x67, opcode, 0xfa], none, few);
    }
    forms.add(&[0xe3, 1, 0x42], none, |case, n| case.general[1] = n & 1);
    forms.add(&[0x67, 0xe3, 1, 0x42], none, |case, n| {
        case.general[1] = n & 0x1_0000
    });
}

fn strings(forms: &mut Forms) {
    let prepare: Prepare = |case, n| {
        case.general[6] = DATA_ADDRESS + 200 + (n & 7);
        case.general[7] = DATA_ADDRESS + 230 + ((n >> 3) & 31);
        case.general[1] = (n >> 8) % 14;
        if n >> 16 & 1 == 0 {
            case.rflags |= 0x400;
        }
    };
    for opcode in [0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf] {
        for before in [&[][..], &[0xf3], &[0xf2], &[0x66], &[0x66, 0xf3]] {
            forms.add(&[before, &[opcode]].concat(), none, prepare);
        }
    }
}

fn decimal(forms: &mut Forms) {
    let of: Undefined = |_| OF;
    forms.add(&[0x27], of, nothing);
    forms.add(&[0x2f], of, nothing);
    let adjust: Undefined = |_| OF | SF | ZF | PF;
    forms.add(&[0x37], adjust, nothing);
    forms.add(&[0x3f], adjust, nothing);
    for base in [10, 7, 255] {
        forms.add(&[0xd4, base], |_| OF | AF | CF, nothing);
        forms.add(&[0xd5, base], |_| OF | AF | CF, nothing);
    }
}

/// MMX, SSE and AVX, with the eight registers there are.
fn vectors(forms: &mut Forms) {
    for code in [
        &[0x0f, 0x58, 0xca][..],
        &[0x66, 0x0f, 0xfe, 0x4b, 0x10],
        &[0xf2, 0x0f, 0x59, 0x4b, 0x10],
        &[0xf3, 0x0f, 0x2d, 0xca],
        &[0xf3, 0x0f, 0x2a, 0xca],
        &[0x66, 0x0f, 0x7e, 0xca],
        &[0x66, 0x0f, 0xd7, 0xd1],
        &[0xc5, 0xf1, 0xfe, 0xca],
        &[0xc5, 0xf0, 0x58, 0x4b, 0x10],
        &[0xc4, 0xe2, 0x71, 0x00, 0x4b, 0x10],
        &[0xc4, 0xe2, 0x68, 0xf2, 0xc9],
        &[
            0x0f, 0x6f, 0x4b, 0x10, 0x0f, 0xfd, 0x4b, 0x18, 0x0f, 0x7f, 0x4b, 0x20,
        ],
    ] {
        forms.add(code, |_| AF | PF, nothing);
    }
}
