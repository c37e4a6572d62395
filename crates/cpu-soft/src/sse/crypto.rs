//! AES (FIPS 197) and SHA (FIPS 180-4).

use iced_x86::{Instruction, Mnemonic as M};

use crate::domain::{Domain, helper, helpers};
use crate::lower::{Lowered, go};
use crate::sse::{build, lane, map, packed};

/// Times x in GF(2^8).
const fn doubled(a: u8) -> u8 {
    (a << 1) ^ if a & 0x80 != 0 { 0x1b } else { 0 }
}

const fn product(a: u8, b: u8) -> u8 {
    let (mut r, mut a, mut bit) = (0, a, 0);
    while bit < 8 {
        if b >> bit & 1 != 0 {
            r ^= a;
        }
        a = doubled(a);
        bit += 1;
    }
    r
}

/// The S-box, or its inverse: the inverse element, and an affine map.
#[expect(clippy::indexing_slicing, reason = "evaluated by the compiler")]
const fn s_box(inverse: bool) -> [u8; 256] {
    let mut table = [0; 256];
    let mut x = 0;
    while x < 256 {
        // x^254 = x^2 * x^4 * ... * x^128 is the inverse element.
        let (mut r, mut power, mut n) = (1, x as u8, 1);
        while n < 8 {
            power = product(power, power);
            r = product(r, power);
            n += 1;
        }
        let r = if x == 0 { 0 } else { r };
        let turned = r ^ r.rotate_left(1) ^ r.rotate_left(2) ^ r.rotate_left(3);
        let y = turned ^ r.rotate_left(4) ^ 0x63;
        if inverse {
            table[y as usize] = x as u8;
        } else {
            table[x] = y;
        }
        x += 1;
    }
    table
}

static S_BOX: [u8; 256] = s_box(false);
static INVERSE: [u8; 256] = s_box(true);

fn substitute(table: &[u8; 256], a: u128) -> u128 {
    map::<8>(a, |x| table.get(x as usize).copied().map_or(0, u64::from))
}

/// Each row turned by its number of columns: to the left, or (`back`) to the right.
fn shift_rows(a: u128, back: bool) -> u128 {
    build::<8>(|n| {
        let (column, row) = (n / 4, n % 4);
        let from = if back { column + 4 - row } else { column + row };
        lane::<8>(a, from % 4 * 4 + row)
    })
}

/// Each column times a circulant matrix.
fn mix_columns(a: u128, factors: [u8; 4]) -> u128 {
    build::<8>(|n| {
        let (column, row) = (n / 4, n % 4);
        let terms = (0_u32..).zip(factors);
        let r = terms.fold(0, |r, (k, factor)| {
            r ^ product(lane::<8>(a, column * 4 + (row + k) % 4) as u8, factor)
        });
        u64::from(r)
    })
}

const MIX: [u8; 4] = [2, 3, 1, 1];
const UNMIX: [u8; 4] = [14, 11, 13, 9];

fn rotate(x: u64, by: u32) -> u64 {
    u64::from((x as u32).rotate_right(by))
}

fn add(x: u64, y: u64) -> u64 {
    u64::from((x as u32).wrapping_add(y as u32))
}

fn small_sigma(x: u64, a: u32, b: u32, shift: u32) -> u64 {
    rotate(x, a) ^ rotate(x, b) ^ (x >> shift)
}

/// Lanes from the highest down, as the manual writes them.
fn words(a: u128) -> [u64; 4] {
    [3, 2, 1, 0].map(|n| lane::<32>(a, n))
}

fn of_words(words: [u64; 4]) -> u128 {
    words
        .into_iter()
        .fold(0, |r, word| (r << 32) | u128::from(word & 0xffff_ffff))
}

packed! {
    Aesenc(a, b, _) => mix_columns(substitute(&S_BOX, shift_rows(a, false)), MIX) ^ b;
    Aesenclast(a, b, _) => substitute(&S_BOX, shift_rows(a, false)) ^ b;
    Aesdec(a, b, _) => mix_columns(substitute(&INVERSE, shift_rows(a, true)), UNMIX) ^ b;
    Aesdeclast(a, b, _) => substitute(&INVERSE, shift_rows(a, true)) ^ b;
    Aesimc(_, b, _) => mix_columns(b, UNMIX);
    Aeskeygenassist(_, b, imm) => {
        let s = substitute(&S_BOX, b);
        let turned = |n| rotate(lane::<32>(s, n), 8) ^ u64::from(imm);
        of_words([turned(3), lane::<32>(s, 3), turned(1), lane::<32>(s, 1)])
    };
    Sha1nexte(a, b, _) => {
        let [b3, b2, b1, b0] = words(b);
        of_words([add(b3, rotate(lane::<32>(a, 3), 2)), b2, b1, b0])
    };
    Sha1msg1(a, b, _) => {
        let ([w0, w1, w2, w3], [w4, w5, ..]) = (words(a), words(b));
        of_words([w2 ^ w0, w3 ^ w1, w4 ^ w2, w5 ^ w3])
    };
    Sha1msg2(a, b, _) => {
        let ([a3, a2, a1, a0], [_, w13, w14, w15]) = (words(a), words(b));
        let w16 = rotate(a3 ^ w13, 31);
        of_words([w16, rotate(a2 ^ w14, 31), rotate(a1 ^ w15, 31), rotate(a0 ^ w16, 31)])
    };
    Sha1rnds4(a, b, imm) => sha1_rounds(a, b, imm);
    Sha256msg1(a, b, _) => {
        let [w3, w2, w1, w0] = words(a);
        let sigma = |x| small_sigma(x, 7, 18, 3);
        let w4 = lane::<32>(b, 0);
        of_words([add(w3, sigma(w4)), add(w2, sigma(w3)), add(w1, sigma(w2)), add(w0, sigma(w1))])
    };
    Sha256msg2(a, b, _) => {
        let ([a3, a2, a1, a0], [w15, w14, ..]) = (words(a), words(b));
        let sigma = |x| small_sigma(x, 17, 19, 10);
        let (w16, w17) = (add(a0, sigma(w14)), add(a1, sigma(w15)));
        of_words([add(a3, sigma(w17)), add(a2, sigma(w16)), w17, w16])
    };
}

fn sha1_rounds(state: u128, messages: u128, imm: u8) -> u128 {
    let k = match imm & 3 {
        0 => 0x5a82_7999,
        1 => 0x6ed9_eba1,
        2 => 0x8f1b_bcdc,
        _ => 0xca62_c1d6,
    };
    let [mut a, mut b, mut c, mut d] = words(state);
    let mut e = 0;
    for w in words(messages) {
        let f = match imm & 3 {
            0 => (b & c) ^ (!b & d),
            2 => (b & c) ^ (b & d) ^ (c & d),
            _ => b ^ c ^ d,
        };
        let next = add(add(f, rotate(a, 27)), add(add(w, e), k));
        (a, b, c, d, e) = (next, a, rotate(b, 2), c, d);
    }
    of_words([a, b, c, d])
}

/// Two rounds; `keys` are the next two messages with their constants added.
fn sha256_rounds(cdgh: u128, abef: u128, keys: u128) -> u128 {
    let ([mut c, mut d, mut g, mut h], [mut a, mut b, mut e, mut f]) = (words(cdgh), words(abef));
    for n in 0..2 {
        let choice = (e & f) ^ (!e & g);
        let sigma1 = rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25);
        let one = add(add(choice, sigma1), add(lane::<32>(keys, n), h));
        let majority = (a & b) ^ (a & c) ^ (b & c);
        let sigma0 = rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22);
        let two = add(majority, sigma0);
        (a, b, c, d, e, f, g, h) = (add(one, two), a, b, c, add(one, d), e, f, g);
    }
    let _ = (c, d, g, h);
    of_words([a, b, e, f])
}

helpers! {
    Sha256rnds2 => |cpu, op| {
        cpu.vector_ready(op)?;
        let abef = cpu.vector_source(op, 16, true)?;
        let r = sha256_rounds(cpu.xmm(op.dst), abef, cpu.xmm(0));
        cpu.set_xmm(op.dst, r);
        Ok(())
    },
}

pub(crate) fn lower<D: Domain>(i: &Instruction, m: M) -> Option<Lowered<D>> {
    match m {
        M::Aesenc => super::operation::<D, Aesenc>(i),
        M::Aesenclast => super::operation::<D, Aesenclast>(i),
        M::Aesdec => super::operation::<D, Aesdec>(i),
        M::Aesdeclast => super::operation::<D, Aesdeclast>(i),
        M::Aesimc => super::operation::<D, Aesimc>(i),
        M::Aeskeygenassist => super::operation::<D, Aeskeygenassist>(i),
        M::Sha1nexte => super::operation::<D, Sha1nexte>(i),
        M::Sha1msg1 => super::operation::<D, Sha1msg1>(i),
        M::Sha1msg2 => super::operation::<D, Sha1msg2>(i),
        M::Sha1rnds4 => super::operation::<D, Sha1rnds4>(i),
        M::Sha256msg1 => super::operation::<D, Sha256msg1>(i),
        M::Sha256msg2 => super::operation::<D, Sha256msg2>(i),
        M::Sha256rnds2 => go(helper::<D, Sha256rnds2>),
        _ => None,
    }
}
