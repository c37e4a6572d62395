//! The schema's options for qcow2 as the format's own.

use api::{
    BlockdevOptionsQcow2, Qcow2OverlapCheckFlags, Qcow2OverlapCheckMode, Qcow2OverlapChecks,
    QmpError,
};
use block_qcow2::{OpenOptions, OverlapChecks};

/// The options to open an image with.
///
/// # Errors
/// Sizes that are negative.
pub(crate) fn open_options(
    options: &BlockdevOptionsQcow2,
    read_only: bool,
    discard_unmap: bool,
) -> Result<OpenOptions, QmpError> {
    let size = |value: Option<i64>, name: &str| match value {
        None => Ok(None),
        Some(value) => u64::try_from(value)
            .map(Some)
            .map_err(|_| QmpError::generic(format!("Parameter '{name}' expects a size"))),
    };
    Ok(OpenOptions {
        read_only,
        lazy_refcounts: options.lazy_refcounts,
        cache_size: size(options.cache_size, "cache-size")?,
        l2_cache_size: size(options.l2_cache_size, "l2-cache-size")?,
        l2_cache_entry_size: size(options.l2_cache_entry_size, "l2-cache-entry-size")?,
        refcount_cache_size: size(options.refcount_cache_size, "refcount-cache-size")?,
        pass_discard_request: options.pass_discard_request.unwrap_or(discard_unmap),
        pass_discard_snapshot: options.pass_discard_snapshot.unwrap_or(true),
        pass_discard_other: false,
        for_check: false,
        discard_no_unref: options.discard_no_unref.unwrap_or(false),
        overlap_checks: overlap_checks(options.overlap_check.as_ref()),
    })
}

/// The structures that are guarded: a template, with exceptions by name.
fn overlap_checks(given: Option<&Qcow2OverlapChecks>) -> OverlapChecks {
    let template = |mode: Qcow2OverlapCheckMode| match mode {
        Qcow2OverlapCheckMode::None => OverlapChecks::NONE,
        Qcow2OverlapCheckMode::Constant => OverlapChecks::CONSTANT,
        Qcow2OverlapCheckMode::Cached | Qcow2OverlapCheckMode::All => OverlapChecks::CACHED,
    };
    match given {
        None => OverlapChecks::CACHED,
        Some(Qcow2OverlapChecks::Mode(mode)) => template(*mode),
        Some(Qcow2OverlapChecks::Flags(flags)) => {
            let start = flags.template.map_or(OverlapChecks::CACHED, template);
            with_exceptions(start, flags)
        }
    }
}

fn with_exceptions(start: OverlapChecks, flags: &Qcow2OverlapCheckFlags) -> OverlapChecks {
    OverlapChecks {
        main_header: flags.main_header.unwrap_or(start.main_header),
        active_l1: flags.active_l1.unwrap_or(start.active_l1),
        active_l2: flags.active_l2.unwrap_or(start.active_l2),
        refcount_table: flags.refcount_table.unwrap_or(start.refcount_table),
        refcount_block: flags.refcount_block.unwrap_or(start.refcount_block),
    }
}
