//! Fused multiplication and addition: one rounding.

use iced_x86::{Instruction, Mnemonic as M};

use crate::cpu::Cpu;
use crate::domain::{Domain, Flow, Helper, Op, helper};
use crate::ieee::Number;
use crate::lower::{Lowered, go};
use crate::sse::float::{Float, every, lowest, product, sum};
use crate::sse::{Env, is_wide};

/// What becomes of the product and the third operand.
const ADD: u8 = 0;
const SUB: u8 = 1;
const NEGATED_ADD: u8 = 2;
const NEGATED_SUB: u8 = 3;
/// Even lanes are subtracted, odd ones added; and the opposite.
const ADD_SUB: u8 = 4;
const SUB_ADD: u8 = 5;

fn fused<F: Float>(env: &mut Env, [x, y, z]: [u64; 3], what: u8) -> u64 {
    let [a, b, c] = [x, y, z].map(|bits| env.unpack::<F>(bits));
    let multiplied = if a.is_nan() || b.is_nan() {
        None
    } else {
        product(a, b)
    };
    if let Some(nan) = env.nan::<F>(&[a, b, c]) {
        return nan;
    }
    let negate_product = matches!(what, NEGATED_ADD | NEGATED_SUB);
    let negate_third = matches!(what, SUB | NEGATED_SUB);
    let third = c.negated(negate_third);
    let r: Option<Number> = multiplied
        .map(|n| n.negated(negate_product))
        .and_then(|n| sum(n, third, env.context.rounding));
    match r {
        None => env.invalid::<F>(),
        Some(r) => {
            env.denormals(&[a, b, c]);
            env.round::<F>(r)
        }
    }
}

/// One half of a YMM register. The numbers of `x`, `y` and `z` are lanes of the operands.
fn half<F: Float>(env: &mut Env, [x, y, z]: [u128; 3], what: u8, all: bool, kept: u128) -> u128 {
    let mut lane = 0;
    let mut one = |at: u32| {
        let bits = [x, y, z].map(|v| (v >> at) as u64 & (u64::MAX >> (64 - F::BITS)));
        let even = (at / F::BITS).is_multiple_of(2);
        let what = match what {
            ADD_SUB if even => SUB,
            SUB_ADD if !even => SUB,
            ADD_SUB | SUB_ADD => ADD,
            what => what,
        };
        fused::<F>(env, bits, what)
    };
    if !all {
        return lowest::<F>(kept, 0, |_, _| one(0));
    }
    every::<F>(0, 0, |_, _| {
        let r = one(lane);
        lane += F::BITS;
        r
    })
}

/// `ORDER`: which operands (by number) are multiplied: 132, 213 or 231.
struct Fma<F, const ORDER: u8, const WHAT: u8, const ALL: bool, const WIDE: bool>(
    std::marker::PhantomData<F>,
);
impl<F: Float, const ORDER: u8, const WHAT: u8, const ALL: bool, const WIDE: bool> Helper
    for Fma<F, ORDER, WHAT, ALL, WIDE>
{
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        run::<F>(cpu, op, (ORDER, WHAT), ALL, WIDE)
    }
}

#[inline(never)]
fn run<F: Float>(cpu: &mut Cpu, op: &Op, kind: (u8, u8), all: bool, wide: bool) -> Flow {
    let (order, what) = kind;
    cpu.avx_ready()?;
    let bytes = match (all, wide) {
        (false, _) => F::BYTES,
        (true, false) => 16,
        (true, true) => 32,
    };
    let three = cpu.wide_source(op, op.aux, bytes)?;
    let (one, two) = (cpu.ymm(op.dst), cpu.ymm(op.src));
    let mut env = cpu.float_env();
    let mut of = |one: u128, two: u128, three: u128| {
        let operands = match order {
            132 => [one, three, two],
            213 => [two, one, three],
            _ => [two, three, one],
        };
        half::<F>(&mut env, operands, what, all, one)
    };
    let ([a0, a1], [b0, b1], [c0, c1]) = (one, two, three);
    let low = of(a0, b0, c0);
    let high = if wide { of(a1, b1, c1) } else { 0 };
    cpu.float_done(&env)?;
    cpu.set_ymm(op.dst, [low, high]);
    Ok(())
}

fn form<D: Domain, F: Float, const ORDER: u8, const WHAT: u8, const ALL: bool>(
    i: &Instruction,
) -> Option<Lowered<D>> {
    go(if is_wide(i) {
        helper::<D, Fma<F, ORDER, WHAT, ALL, true>>
    } else {
        helper::<D, Fma<F, ORDER, WHAT, ALL, false>>
    })
}

macro_rules! forms {
    ($i:expr; $($what:ident $order:literal: $ps:ident $pd:ident $($ss:ident $sd:ident)?;)*) => {
        match $i.mnemonic() {
            $(
                M::$ps => form::<D, f32, $order, $what, true>($i),
                M::$pd => form::<D, f64, $order, $what, true>($i),
                $(
                    M::$ss => form::<D, f32, $order, $what, false>($i),
                    M::$sd => form::<D, f64, $order, $what, false>($i),
                )?
            )*
            _ => None,
        }
    };
}

pub(crate) fn lower<D: Domain>(i: &Instruction) -> Option<Lowered<D>> {
    forms!(i;
        ADD 132: Vfmadd132ps Vfmadd132pd Vfmadd132ss Vfmadd132sd;
        ADD 213: Vfmadd213ps Vfmadd213pd Vfmadd213ss Vfmadd213sd;
        ADD 231: Vfmadd231ps Vfmadd231pd Vfmadd231ss Vfmadd231sd;
        SUB 132: Vfmsub132ps Vfmsub132pd Vfmsub132ss Vfmsub132sd;
        SUB 213: Vfmsub213ps Vfmsub213pd Vfmsub213ss Vfmsub213sd;
        SUB 231: Vfmsub231ps Vfmsub231pd Vfmsub231ss Vfmsub231sd;
        NEGATED_ADD 132: Vfnmadd132ps Vfnmadd132pd Vfnmadd132ss Vfnmadd132sd;
        NEGATED_ADD 213: Vfnmadd213ps Vfnmadd213pd Vfnmadd213ss Vfnmadd213sd;
        NEGATED_ADD 231: Vfnmadd231ps Vfnmadd231pd Vfnmadd231ss Vfnmadd231sd;
        NEGATED_SUB 132: Vfnmsub132ps Vfnmsub132pd Vfnmsub132ss Vfnmsub132sd;
        NEGATED_SUB 213: Vfnmsub213ps Vfnmsub213pd Vfnmsub213ss Vfnmsub213sd;
        NEGATED_SUB 231: Vfnmsub231ps Vfnmsub231pd Vfnmsub231ss Vfnmsub231sd;
        ADD_SUB 132: Vfmaddsub132ps Vfmaddsub132pd;
        ADD_SUB 213: Vfmaddsub213ps Vfmaddsub213pd;
        ADD_SUB 231: Vfmaddsub231ps Vfmaddsub231pd;
        SUB_ADD 132: Vfmsubadd132ps Vfmsubadd132pd;
        SUB_ADD 213: Vfmsubadd213ps Vfmsubadd213pd;
        SUB_ADD 231: Vfmsubadd231ps Vfmsubadd231pd;
    )
}
