//! Header extensions: typed where this crate knows them, kept as they are where it does not.

use block_graph::{BlockError, BlockOperation};

/// The most extensions an image may have.
pub(crate) const MAX_EXTENSIONS: usize = 256;
/// Bytes of one entry of the feature name table.
const FEATURE_ENTRY_LEN: usize = 48;

const TYPE_END: u32 = 0;
const TYPE_BACKING_FORMAT: u32 = 0xe279_2aca;
const TYPE_FEATURE_NAMES: u32 = 0x6803_f857;
const TYPE_BITMAPS: u32 = 0x2385_2875;
const TYPE_CRYPTO: u32 = 0x0537_be77;
const TYPE_DATA_FILE: u32 = 0x4441_5441;

/// One header extension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extension {
    /// The format of the backing file.
    BackingFormat(String),
    /// Names for feature bits: (which of the three bitmaps, bit number, name).
    FeatureNames(Vec<FeatureName>),
    /// Persistent bitmaps: the extension's 24 bytes.
    Bitmaps(Vec<u8>),
    /// Where the LUKS header is: the extension's 16 bytes.
    Crypto(Vec<u8>),
    /// The name of the external data file.
    DataFile(String),
    /// Something newer than this crate.
    Unknown {
        /// Its type.
        kind: u32,
        /// Its data.
        data: Vec<u8>,
    },
}

/// One entry of the feature name table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureName {
    /// 0 incompatible, 1 compatible, 2 autoclear.
    pub bitmap: u8,
    /// Bit number, 0 to 63.
    pub bit: u8,
    /// What the feature is called.
    pub name: String,
}

impl FeatureName {
    /// The names that this crate and QEMU write into new images.
    pub(crate) fn known() -> Vec<Self> {
        [
            (0, 0, "dirty bit"),
            (0, 1, "corrupt bit"),
            (0, 2, "external data file"),
            (0, 3, "compression type"),
            (0, 4, "extended L2 entries"),
            (1, 0, "lazy refcounts"),
            (2, 0, "bitmaps"),
            (2, 1, "raw external data"),
        ]
        .into_iter()
        .map(|(bitmap, bit, name)| Self {
            bitmap,
            bit,
            name: name.to_owned(),
        })
        .collect()
    }
}

/// Reads the extensions in `area`, which begins right behind the header and ends where nothing
/// of theirs can be any more.
///
/// # Errors
/// An extension that runs out of the area, or a name that is no text.
pub(crate) fn parse(area: &[u8]) -> Result<Vec<Extension>, BlockError> {
    let mut found = Vec::new();
    let mut rest = area;
    loop {
        let (Some(kind), Some(len)) = (be_u32(rest, 0), be_u32(rest, 4)) else {
            return Ok(found);
        };
        if kind == TYPE_END {
            return Ok(found);
        }
        if found.len() == MAX_EXTENSIONS {
            return Err(BlockError::invalid(
                BlockOperation::Open,
                "Too many header extensions",
            ));
        }
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let data = len
            .checked_add(8)
            .and_then(|end| rest.get(8..end))
            .ok_or_else(|| {
                BlockError::invalid(BlockOperation::Open, "Header extension too large")
            })?;
        found.push(typed(kind, data)?);
        rest = rest.get(8 + len.next_multiple_of(8)..).unwrap_or_default();
    }
}

fn typed(kind: u32, data: &[u8]) -> Result<Extension, BlockError> {
    Ok(match kind {
        TYPE_BACKING_FORMAT => Extension::BackingFormat(text(data, "Backing format name")?),
        TYPE_DATA_FILE => Extension::DataFile(text(data, "External data file name")?),
        TYPE_FEATURE_NAMES => Extension::FeatureNames(feature_names(data)),
        TYPE_BITMAPS => Extension::Bitmaps(data.to_vec()),
        TYPE_CRYPTO => Extension::Crypto(data.to_vec()),
        _ => Extension::Unknown {
            kind,
            data: data.to_vec(),
        },
    })
}

fn text(data: &[u8], what: &str) -> Result<String, BlockError> {
    String::from_utf8(data.to_vec())
        .map_err(|_| BlockError::invalid(BlockOperation::Open, format!("{what} is not UTF-8 text")))
}

fn feature_names(data: &[u8]) -> Vec<FeatureName> {
    let mut names = Vec::new();
    for entry in data.chunks_exact(FEATURE_ENTRY_LEN) {
        if let [bitmap, bit, name @ ..] = entry {
            let end = name.iter().position(|&b| b == 0).unwrap_or(name.len());
            names.push(FeatureName {
                bitmap: *bitmap,
                bit: *bit,
                name: String::from_utf8_lossy(name.get(..end).unwrap_or_default()).into_owned(),
            });
        }
    }
    names
}

/// The bytes of a list of extensions, with the end mark.
pub(crate) fn serialize(extensions: &[Extension]) -> Vec<u8> {
    let mut out = Vec::new();
    for extension in extensions {
        let (kind, data) = match extension {
            Extension::BackingFormat(name) => (TYPE_BACKING_FORMAT, name.as_bytes().to_vec()),
            Extension::DataFile(name) => (TYPE_DATA_FILE, name.as_bytes().to_vec()),
            Extension::Bitmaps(data) => (TYPE_BITMAPS, data.clone()),
            Extension::Crypto(data) => (TYPE_CRYPTO, data.clone()),
            Extension::Unknown { kind, data } => (*kind, data.clone()),
            Extension::FeatureNames(names) => (TYPE_FEATURE_NAMES, feature_name_bytes(names)),
        };
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes());
        out.extend_from_slice(&data);
        out.resize(out.len().next_multiple_of(8), 0);
    }
    out.extend_from_slice(&[0; 8]);
    out
}

fn feature_name_bytes(names: &[FeatureName]) -> Vec<u8> {
    let mut data = Vec::with_capacity(names.len() * FEATURE_ENTRY_LEN);
    for name in names {
        data.push(name.bitmap);
        data.push(name.bit);
        let text = name.name.as_bytes();
        data.extend(text.iter().take(FEATURE_ENTRY_LEN - 2));
        data.resize(data.len().next_multiple_of(FEATURE_ENTRY_LEN), 0);
    }
    data
}

fn be_u32(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extensions_go_both_ways_and_unknown_ones_are_kept() {
        let list = vec![
            Extension::BackingFormat("raw".into()),
            Extension::Unknown {
                kind: 0x1234_5678,
                data: vec![1, 2, 3],
            },
            Extension::FeatureNames(FeatureName::known()),
            Extension::DataFile("d.raw".into()),
        ];
        let bytes = serialize(&list);
        assert_eq!(bytes.len() % 8, 0);
        assert_eq!(parse(&bytes).unwrap(), list);
    }

    #[test]
    fn an_extension_that_runs_out_of_its_area_is_refused() {
        let mut bytes = serialize(&[Extension::BackingFormat("qcow2".into())]);
        bytes[7] = 200;
        assert_eq!(
            parse(&bytes).unwrap_err().message,
            "Header extension too large"
        );
        bytes[4] = 0xff;
        assert!(parse(&bytes).is_err());
        assert_eq!(parse(&[]).unwrap(), vec![]);
    }
}
