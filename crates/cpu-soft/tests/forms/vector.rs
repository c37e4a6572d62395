//! MMX; and AVX, AVX2, FMA and F16C: every encoding that the decoder knows.

use exec_memory::{DATA_ADDRESS, NativeState};
use iced_x86::{Code, CpuidFeature, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind};

use super::{Form, none, nothing, xmm_forms};

fn decoded(code: &[u8]) -> Option<Instruction> {
    let instruction = Decoder::new(64, code, DecoderOptions::NONE).decode();
    (!instruction.is_invalid() && instruction.len() == code.len()).then_some(instruction)
}

fn uses_mmx(i: &Instruction) -> bool {
    (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && i.op_register(n).is_mm())
        || matches!(i.mnemonic(), Mnemonic::Cvtpi2ps | Mnemonic::Cvtpi2pd)
}

/// Every instruction on MMX registers, behind one that fills the registers from memory.
pub fn mmx() -> Vec<Form> {
    // movq mm1, [rbx + 0x20]; movq mm2, [rbx + 0x28]; mm5 too
    let fill = [
        0x0f, 0x6f, 0x4b, 0x20, 0x0f, 0x6f, 0x53, 0x28, 0x0f, 0x6f, 0x6b, 0x30,
    ];
    let mut forms = Vec::new();
    let prefixes: [&[u8]; 5] = [&[], &[0x66], &[0xf2], &[0xf3], &[0x48]];
    let maps: [(&[u8], bool); 3] = [(&[], false), (&[0x38], false), (&[0x3a], true)];
    for before in prefixes {
        for (map, always) in maps {
            for opcode in 0..=0xff_u8 {
                let immediate = always || matches!(opcode, 0x70..=0x73 | 0xc4 | 0xc5);
                let fields: &[u8] = match (map, opcode) {
                    ([], 0x71..=0x73) => &[2, 4, 6],
                    _ => &[1],
                };
                for field in fields {
                    for operand in [&[0xc2 | (field << 3)][..], &[0x43 | (field << 3), 0x10]] {
                        for count in [0x0b, 0x47] {
                            let tail: &[u8] = if immediate { &[count] } else { &[] };
                            let code = [before, &[0x0f], map, &[opcode], operand, tail].concat();
                            let known = decoded(&code).filter(uses_mmx);
                            if let Some(i) = known {
                                forms.push(mmx_form(&i, [&fill[..], &code].concat()));
                            }
                            if !immediate {
                                break;
                            }
                        }
                    }
                }
            }
        }
    }
    // The x87 stands anywhere before: fld1 (twice), an instruction; emms, and what it leaves.
    for more in [&[0x0f, 0xfc, 0xca][..], &[0x0f, 0x77], &[0x0f, 0x7e, 0xca]] {
        let code = [&[0xd9, 0xe8, 0xd9, 0xeb], more].concat();
        let mut form = Form::new("mmx behind x87", code);
        form.x87 = true;
        forms.push(form);
    }
    forms
}

fn mmx_form(i: &Instruction, code: Vec<u8>) -> Form {
    let rdi = |case: &mut NativeState, n: u64| case.general[7] = DATA_ADDRESS + 64 + (n & 15);
    let shift = |case: &mut NativeState, n: u64| {
        if n & 3 != 0 {
            // Counts that are not always too large: in mm2 and in memory.
            case.data[168..176].fill(0);
            case.data[168] = (n >> 8) as u8 & 0x3f;
            case.data[144..152].copy_from_slice(&u64::from((n >> 16) as u8 & 0x3f).to_le_bytes());
        }
    };
    let name = format!("{:?}", i.mnemonic());
    let is_shift = name.starts_with("Psl") || name.starts_with("Psr");
    let floats = name.starts_with("Cvt");
    let form = Form::new(format!("mmx {name}"), code).prepare(match i.mnemonic() {
        Mnemonic::Maskmovq => rdi,
        _ if is_shift => shift,
        _ => nothing,
    });
    Form {
        x87: true,
        floats,
        ..form
    }
}

/// RCPPS and its relatives: within twice the error that the architecture allows each of two
/// processors.
pub fn estimates() -> Vec<Form> {
    let mut forms = Vec::new();
    for before in [&[][..], &[0xf3]] {
        for opcode in [0x52, 0x53] {
            for form in xmm_forms("estimate", before, &[opcode], &[]) {
                // Not the upper registers: XMM1 is looked at.
                if form.code.iter().all(|byte| *byte != 0x45) {
                    forms.push(Form {
                        floats: true,
                        tolerance: 3.0 / 4096.0,
                        ..form
                    });
                }
            }
        }
    }
    forms
}

const FEATURES: [CpuidFeature; 4] = [
    CpuidFeature::AVX,
    CpuidFeature::AVX2,
    CpuidFeature::FMA,
    CpuidFeature::F16C,
];

/// Loads YMM1 to YMM4 from the data: what the cases have there is what the registers hold.
const FILL: [u8; 20] = [
    0xc5, 0xfe, 0x6f, 0x4b, 0x80, 0xc5, 0xfe, 0x6f, 0x53, 0xa0, 0xc5, 0xfe, 0x6f, 0x5b, 0xc0, 0xc5,
    0xfe, 0x6f, 0x63, 0xe0,
];
/// Stores YMM1, YMM2 and YMM3 behind what the cases look at.
const SPILL: [u8; 24] = [
    0xc5, 0xfe, 0x7f, 0x8b, 0x00, 0x01, 0x00, 0x00, 0xc5, 0xfe, 0x7f, 0x93, 0x20, 0x01, 0x00, 0x00,
    0xc5, 0xfe, 0x7f, 0x9b, 0x40, 0x01, 0x00, 0x00,
];

/// Every VEX encoding of the features, on YMM1, YMM3, YMM2 or memory.
pub fn avx() -> Vec<Form> {
    let mut forms = Vec::new();
    for map in 1..=3_u8 {
        for opcode in 0..=0xff_u8 {
            for bits in 0..32_u8 {
                let (pp, wide, w) = (bits & 3, bits >> 2 & 1, bits >> 3 & 1);
                let third = if bits & 16 == 0 { 3 } else { 0 };
                encodings(map, opcode, [pp, wide, w, third], &mut forms);
            }
        }
    }
    forms
}

fn encodings(map: u8, opcode: u8, [pp, wide, w, third]: [u8; 4], forms: &mut Vec<Form>) {
    let head = [
        0xc4,
        0xe0 | map,
        (w << 7) | ((!third & 15) << 3) | (wide << 2) | pp,
        opcode,
    ];
    let immediates: &[u8] = match (map, opcode) {
        (3, 0x02..=0x0f | 0x40..=0x42 | 0xdf) => &[0x1b, 0xa6],
        (3, _) => &[0x41, 0x1a],
        (1, 0x70) => &[0x6c],
        (1, 0x71..=0x73) => &[3, 17, 200],
        (1, 0xc2) => &[0, 1, 2, 3, 7, 9, 10, 12, 13, 14, 15, 16, 17, 19, 26, 27, 31],
        (1, 0xc4..=0xc6) => &[0x1b, 0x6e],
        _ => &[],
    };
    let fields: &[u8] = match (map, opcode) {
        (1, 0x71..=0x73) => &[2, 3, 4, 6, 7],
        (1, 0xae) => &[2, 3],
        _ => &[1],
    };
    for field in fields {
        let gather: &[u8] = &[0x44 | (field << 3), 0x13, 0x10];
        for operand in [
            &[0xc2 | (field << 3)][..],
            &[0x43 | (field << 3), 0x10],
            &[0x43 | (field << 3), 0x11],
            gather,
            // No operands at all: VZEROUPPER and VZEROALL.
            &[],
        ] {
            let mut tails: Vec<&[u8]> = immediates.iter().map(std::slice::from_ref).collect();
            if tails.is_empty() {
                tails.push(&[]);
            }
            for tail in tails {
                let code = [&head[..], operand, tail].concat();
                let Some(i) = decoded(&code) else { continue };
                let known = i.cpuid_features().iter().all(|f| FEATURES.contains(f))
                    || matches!(i.code(), Code::VEX_Vaesenc_xmm_xmm_xmmm128);
                if known && (operand != gather || i.is_vsib()) {
                    forms.push(avx_form(&i, &code));
                }
            }
        }
    }
}

fn avx_form(i: &Instruction, code: &[u8]) -> Form {
    let name = format!("{:?}", i.mnemonic());
    let rdi = |case: &mut NativeState, n: u64| case.general[7] = DATA_ADDRESS + 64 + (n & 15);
    let small = |case: &mut NativeState, n: u64| {
        // YMM2: indexes, counts.
        for (at, word) in (0..).zip(case.data[32..64].chunks_exact_mut(4)) {
            let value = if at % 2 == 0 || n & 1 == 0 {
                (n >> at & 63) as u32
            } else {
                0
            };
            word.copy_from_slice(&value.to_le_bytes());
        }
        for (at, word) in (0..).zip(case.data[144..176].chunks_exact_mut(8)) {
            if n & 2 == 0 {
                word.copy_from_slice(&(n >> at & 63).to_le_bytes());
            }
        }
    };
    let pairs = |case: &mut NativeState, n: u64| {
        // YMM2: 64-bit indexes.
        for (at, word) in (0..).zip(case.data[32..64].chunks_exact_mut(8)) {
            word.copy_from_slice(&((n >> (at * 7)) & 63).to_le_bytes());
        }
    };
    let moves = ["ps", "pd", "ss", "sd", "si", "dq"];
    let floats = !name.starts_with("Vp") && moves.iter().any(|end| name.ends_with(end))
        || ["Vcvt", "Vfm", "Vfn", "Vround"]
            .iter()
            .any(|begin| name.starts_with(begin));
    let estimate = name.starts_with("Vrcp") || name.starts_with("Vrsqrt");
    let counts = name.starts_with("Vpsl") || name.starts_with("Vpsr");
    let full = [&FILL[..], code, if estimate { &[] } else { &SPILL }].concat();
    let form = Form::new(format!("{name} {code:02x?}"), full).undefined(none);
    Form {
        floats,
        tolerance: if estimate { 3.0 / 4096.0 } else { 0.0 },
        ..form.prepare(match i.mnemonic() {
            Mnemonic::Vmaskmovdqu => rdi,
            _ if name.contains("gatherq") => pairs,
            _ if i.is_vsib() || counts => small,
            _ => nothing,
        })
    }
}
