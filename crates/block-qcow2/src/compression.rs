//! Compressing and decompressing one cluster.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};
use zstd::zstd_safe::DParameter;

use crate::header::CompressionType;

/// The window of deflate as the format has it, as a power of two.
const DEFLATE_WINDOW_BITS: u8 = 12;
/// The zstd level for writing.
const ZSTD_LEVEL: i32 = 3;
/// The largest zstd window that is accepted, as a power of two: what a hostile image can make us
/// allocate for one cluster (8 MiB).
const MAX_ZSTD_WINDOW_BITS: u32 = 23;

/// Fills `out` from the compressed `input`, which may be followed by bytes that are not its own.
///
/// # Errors
/// When `input` is broken or makes less than a whole cluster.
pub(crate) fn decompress(kind: CompressionType, input: &[u8], out: &mut [u8]) -> Result<(), ()> {
    match kind {
        CompressionType::Zlib => inflate(input, out),
        CompressionType::Zstd => unzstd(input, out),
    }
}

fn inflate(input: &[u8], out: &mut [u8]) -> Result<(), ()> {
    let mut state = Decompress::new(false);
    let wanted = out.len() as u64;
    let status = state
        .decompress(input, out, FlushDecompress::Finish)
        .map_err(|_| ())?;
    match status {
        Status::StreamEnd | Status::Ok | Status::BufError if state.total_out() == wanted => Ok(()),
        _ => Err(()),
    }
}

fn unzstd(input: &[u8], out: &mut [u8]) -> Result<(), ()> {
    let mut state = Decoder::new().map_err(|_| ())?;
    state
        .set_parameter(DParameter::WindowLogMax(MAX_ZSTD_WINDOW_BITS))
        .map_err(|_| ())?;
    let wanted = out.len();
    let mut source = InBuffer::around(input);
    let mut target = OutBuffer::around(out);
    loop {
        let before = (source.pos(), target.pos());
        let hint = state.run(&mut source, &mut target).map_err(|_| ())?;
        if target.pos() == wanted {
            return Ok(());
        }
        if hint == 0 || before == (source.pos(), target.pos()) {
            return Err(());
        }
    }
}

/// Compresses a cluster. `None` when that would not make it smaller.
pub(crate) fn compress(kind: CompressionType, input: &[u8]) -> Option<Vec<u8>> {
    let limit = input.len().checked_sub(1)?;
    match kind {
        CompressionType::Zlib => {
            let mut out = vec![0; limit];
            let level = Compression::default();
            let mut state = Compress::new_with_window_bits(level, false, DEFLATE_WINDOW_BITS);
            let status = state
                .compress(input, &mut out, FlushCompress::Finish)
                .ok()?;
            if status != Status::StreamEnd {
                return None;
            }
            out.truncate(usize::try_from(state.total_out()).ok()?);
            Some(out)
        }
        CompressionType::Zstd => {
            let out = zstd::bulk::compress(input, ZSTD_LEVEL).ok()?;
            (out.len() <= limit).then_some(out)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_go_both_ways_with_garbage_behind() {
        let cluster: Vec<u8> = (0..65536u32).map(|i| (i / 97) as u8).collect();
        for kind in [CompressionType::Zlib, CompressionType::Zstd] {
            let mut packed = compress(kind, &cluster).unwrap();
            assert!(packed.len() < 8192);
            packed.extend_from_slice(&[0xa5; 300]);
            let mut out = vec![0; cluster.len()];
            decompress(kind, &packed, &mut out).unwrap();
            assert!(out == cluster);
            assert!(decompress(kind, &packed[..100], &mut out).is_err());
            assert!(decompress(kind, &[0xff; 1000], &mut out).is_err());
        }
    }

    #[test]
    fn what_does_not_shrink_is_not_compressed() {
        let mut seed = 1u64;
        let noise: Vec<u8> = (0..4096)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (seed >> 56) as u8
            })
            .collect();
        assert!(compress(CompressionType::Zlib, &noise).is_none());
        assert!(compress(CompressionType::Zstd, &noise).is_none());
    }
}
