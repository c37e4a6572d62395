//! Names of images inside images: backing files and data files.
//!
//! What an image's header names is opened only as a plain host file or by the options in a
//! `json:` name, and only by drivers that the schema knows.

use api::{
    BlockdevDriver, BlockdevOptions, BlockdevOptionsBranch, BlockdevOptionsFile,
    BlockdevOptionsQcow2, BlockdevOptionsRaw, BlockdevRef, QmpError,
};
use block_graph::beside;
use serde_json::Value;

/// The longest name that is taken from an image, in bytes.
const MAX_NAME: usize = 65_536;

/// What a name stands for.
#[derive(Debug, PartialEq)]
pub(crate) enum ImageName {
    /// The options that a `json:` name holds.
    Options(Box<BlockdevOptions>),
    /// A host file.
    File(String),
}

/// Reads a name that the image `of` (its own file name) gives.
///
/// # Errors
/// Words for the client.
pub(crate) fn read_name(name: &str, of: &str) -> Result<ImageName, QmpError> {
    if name.len() > MAX_NAME {
        return Err(QmpError::generic(
            "the name of an image in an image is too long",
        ));
    }
    if let Some(json) = name.strip_prefix("json:") {
        return read_json(json).map(|options| ImageName::Options(Box::new(options)));
    }
    if let Some(path) = name.strip_prefix("file:") {
        return Ok(ImageName::File(path.to_owned()));
    }
    if let Some(protocol) = protocol_of(name) {
        return Err(QmpError::generic(format!("Unknown protocol '{protocol}'")));
    }
    Ok(ImageName::File(beside(name, of)))
}

fn read_json(json: &str) -> Result<BlockdevOptions, QmpError> {
    let broken = |problem: &dyn std::fmt::Display| {
        QmpError::generic(format!("Could not parse the JSON options: {problem}"))
    };
    let mut parser = qmp_wire::json::StreamParser::new();
    parser.feed(json.as_bytes());
    let value = match parser.next_value() {
        Some(Ok(value)) => value,
        Some(Err(error)) => return Err(broken(&error)),
        None => return Err(broken(&"JSON parse error, premature EOI")),
    };
    if !matches!(value, Value::Object(_)) {
        return Err(QmpError::generic("Invalid JSON object given"));
    }
    let options: BlockdevOptions = api::from_json(value)?;
    check_file_names(&options)?;
    Ok(options)
}

fn check_file_names(options: &BlockdevOptions) -> Result<(), QmpError> {
    let file = match &options.driver {
        BlockdevOptionsBranch::Qcow2(qcow2) => Some(&qcow2.file),
        BlockdevOptionsBranch::Raw(raw) => Some(&raw.file),
        _ => None,
    };
    match file {
        Some(BlockdevRef::Reference(_)) => Err(QmpError::generic(
            "an image must not name a node of this program as its backing file",
        )),
        Some(BlockdevRef::Definition(below)) => check_file_names(below),
        None => Ok(()),
    }
}

/// The protocol before the first colon, if the name begins with one.
fn protocol_of(name: &str) -> Option<&str> {
    let colon = name.find(':')?;
    let slash = name.find('/').unwrap_or(usize::MAX);
    name.get(..colon).filter(|_| colon < slash)
}

/// The options for an image of `format` in a host file.
///
/// # Errors
/// A format that cannot be one.
pub(crate) fn options_for(
    format: BlockdevDriver,
    filename: &str,
) -> Result<BlockdevOptions, QmpError> {
    let file = BlockdevRef::Definition(Box::new(plain(BlockdevOptionsBranch::File(Box::new(
        BlockdevOptionsFile {
            filename: filename.to_owned(),
            pr_manager: None,
            locking: None,
            aio: None,
            aio_max_batch: None,
            drop_cache: None,
            x_check_cache_dropped: None,
        },
    )))));
    let branch = match format {
        BlockdevDriver::Qcow2 => BlockdevOptionsBranch::Qcow2(Box::new(BlockdevOptionsQcow2 {
            file,
            backing: None,
            lazy_refcounts: None,
            pass_discard_request: None,
            pass_discard_snapshot: None,
            discard_no_unref: None,
            overlap_check: None,
            cache_size: None,
            l2_cache_size: None,
            l2_cache_entry_size: None,
            refcount_cache_size: None,
            cache_clean_interval: None,
            data_file: None,
        })),
        BlockdevDriver::Raw => BlockdevOptionsBranch::Raw(Box::new(BlockdevOptionsRaw {
            file,
            offset: None,
            size: None,
        })),
        BlockdevDriver::File => {
            return match file {
                BlockdevRef::Definition(options) => Ok(*options),
                BlockdevRef::Reference(_) => Err(QmpError::generic("not a definition")),
            };
        }
        other => {
            return Err(QmpError::generic(format!(
                "The '{other}' driver cannot be the format of a backing file"
            )));
        }
    };
    Ok(plain(branch))
}

fn plain(driver: BlockdevOptionsBranch) -> BlockdevOptions {
    BlockdevOptions {
        driver,
        node_name: None,
        discard: None,
        cache: None,
        read_only: None,
        auto_read_only: None,
        force_share: None,
        detect_zeroes: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_protocols_are_refused_and_colons_in_paths_are_not() {
        let refused = read_name("nosuch:thing", "/t").unwrap_err();
        assert_eq!(refused.desc, "Unknown protocol 'nosuch'");
        let plain = read_name("./with:colon", "/d/t").unwrap();
        assert_eq!(plain, ImageName::File("/d/./with:colon".to_owned()));
    }

    #[test]
    fn json_names_must_not_reach_into_the_program() {
        let name = r#"json:{"driver":"raw","file":"secret-node"}"#;
        assert!(read_name(name, "/t").is_err());
        let name = r#"json:{"driver":"#;
        assert_eq!(
            read_name(name, "/t").unwrap_err().desc,
            "Could not parse the JSON options: JSON parse error, premature EOI"
        );
    }
}
