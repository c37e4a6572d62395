//! Cutting a stream into pieces, as a network would.

use block_doubles::Rng;

/// The bytes in pieces of random lengths: mostly a few bytes, sometimes hundreds.
pub(crate) fn pieces(bytes: &[u8], seed: u64) -> Vec<&[u8]> {
    let mut rng = Rng::new(seed);
    let mut rest = bytes;
    let mut pieces = Vec::new();
    while !rest.is_empty() {
        let longest = if rng.one_in(4) { 600 } else { 9 };
        let len = usize::try_from(1 + rng.below(longest)).unwrap_or(1);
        let (piece, left) = rest.split_at(len.min(rest.len()));
        pieces.push(piece);
        rest = left;
    }
    pieces
}
