//! What user programs run: the integer instructions, each defined once over a domain.

pub(crate) mod alu;
pub(crate) mod bcd;
pub(crate) mod bits;
pub(crate) mod branch;
pub(crate) mod exchange;
pub(crate) mod flag_ops;
pub(crate) mod moves;
pub(crate) mod muldiv;
pub(crate) mod shift;
pub(crate) mod stack;
pub(crate) mod string;
