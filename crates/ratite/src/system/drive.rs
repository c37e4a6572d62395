//! `-drive` and its short forms: a node, and a disk over it.

use std::io::Read;

use api::QmpError;
use serde_json::{Map, Value, json};

use crate::flat_options::Flat;

/// Which disk stands over a drive's node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interface {
    /// None: a `-device` names the drive.
    None,
    /// A virtio disk.
    Virtio,
    /// An IDE disk.
    IdeDisk,
    /// An IDE CD-ROM.
    IdeCdRom,
}

/// What a drive asks for.
#[derive(Debug, PartialEq)]
pub(crate) struct Drive {
    /// Its name.
    pub(crate) id: String,
    /// Its node's name.
    pub(crate) node_name: String,
    /// The node, as `blockdev-add` takes it.
    pub(crate) node: Value,
    /// The disk.
    pub(crate) interface: Interface,
    /// Properties for the disk: serial, policies for errors.
    pub(crate) properties: Map<String, Value>,
}

/// The first bytes of a qcow2 image.
const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";

/// The format of an image whose maker did not say: qcow2 by its first bytes, else raw.
fn probe(path: &str) -> &'static str {
    let mut magic = [0; 4];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    match read {
        Ok(()) if magic == QCOW2_MAGIC => "qcow2",
        _ => "raw",
    }
}

/// The format of an image whose maker did not say. A raw image that a guest may write could be made to look like another
/// format, whose header names files of the host: it is refused.
fn guess(path: &str, is_read_only: bool) -> Result<&'static str, QmpError> {
    match probe(path) {
        "raw" if !is_read_only => Err(QmpError::generic(format!(
            "the format of '{path}' is not specified, and it is no qcow2 image: a guest that may write to a raw image \
             could make it look like another; specify format=raw"
        ))),
        format => Ok(format),
    }
}

/// How `cache=` translates: whether writes wait for the host's cache, and whether flushes are left out.
fn cache(mode: &str) -> Result<(bool, bool), QmpError> {
    match mode {
        "writeback" | "writethrough" => Ok((false, false)),
        "none" | "directsync" => Ok((true, false)),
        "unsafe" => Ok((false, true)),
        _ => Err(QmpError::generic("invalid cache option")),
    }
}

/// Which disk, and whether its medium is a CD-ROM's.
fn interface(flat: &mut Flat) -> Result<(Interface, bool), QmpError> {
    let is_cdrom = match flat.take("media").as_deref() {
        None | Some("disk") => false,
        Some("cdrom") => true,
        Some(other) => return Err(QmpError::generic(format!("'{other}' invalid media"))),
    };
    let interface = match (flat.take("if").as_deref(), is_cdrom) {
        (Some("virtio"), _) => Interface::Virtio,
        (Some("none"), _) => Interface::None,
        (None | Some("ide"), false) => Interface::IdeDisk,
        (None | Some("ide"), true) => Interface::IdeCdRom,
        (Some(other), _) => {
            return Err(QmpError::generic(format!(
                "unsupported bus type '{other}': ide, virtio and none are there"
            )));
        }
    };
    Ok((interface, is_cdrom))
}

/// Reads the option; `number` is that of the drive on the command line.
///
/// # Errors
/// Words for people.
pub(crate) fn parse(text: &str, number: usize) -> Result<Drive, QmpError> {
    let mut flat = Flat::parse(text, "file")?;
    let (interface, is_cdrom) = interface(&mut flat)?;
    let file = flat
        .take("file")
        .ok_or_else(|| QmpError::generic("Device needs media, but drive is empty"))?;
    let id = flat.take("id").unwrap_or_else(|| match interface {
        Interface::None => format!("none{number}"),
        Interface::Virtio => format!("virtio{number}"),
        Interface::IdeDisk => format!("ide{}-hd{}", number / 2, number % 2),
        Interface::IdeCdRom => format!("ide{}-cd{}", number / 2, number % 2),
    });
    let node_name = flat
        .take("node-name")
        .unwrap_or_else(|| format!("drive-{id}"));
    let read_only = flat.switch("readonly")?.or(flat.switch("read-only")?);
    let read_only = read_only.unwrap_or(Value::Bool(is_cdrom));
    let format = match flat.take("format") {
        Some(format) => format,
        None => guess(&file, read_only == Value::Bool(true))?.to_owned(),
    };
    let cache_mode = flat.take("cache").unwrap_or_else(|| "writeback".to_owned());
    let (direct, no_flush) = cache(&cache_mode)?;
    let mut node = Map::new();
    let storage = json!({
        "driver": "file",
        "filename": file,
        "read-only": read_only,
        "cache": {"direct": direct, "no-flush": no_flush},
        "aio": flat.take("aio").unwrap_or_else(|| "threads".to_owned()),
    });
    node.insert("driver".to_owned(), format.into());
    node.insert("node-name".to_owned(), node_name.clone().into());
    node.insert("read-only".to_owned(), read_only);
    node.insert(
        "cache".to_owned(),
        json!({"direct": direct, "no-flush": no_flush}),
    );
    node.insert("file".to_owned(), storage);
    for name in ["discard", "detect-zeroes"] {
        if let Some(value) = flat.take(name) {
            let value = if value == "on" && name == "discard" {
                "unmap".to_owned()
            } else {
                value
            };
            node.insert(name.to_owned(), value.into());
        }
    }
    let mut properties = Map::new();
    for name in ["serial", "rerror", "werror"] {
        if let Some(value) = flat.take(name) {
            properties.insert(name.to_owned(), value.into());
        }
    }
    if matches!(&*cache_mode, "writethrough" | "directsync") {
        properties.insert("write-cache".to_owned(), "off".into());
    }
    // Drives sit in the order in which they are given.
    flat.take("index");
    flat.end()?;
    Ok(Drive {
        id,
        node_name,
        node: Value::Object(node),
        interface,
        properties,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drive_is_a_node_and_a_disk() {
        let drive = parse("file=/a,,b.img,format=raw,cache=none,id=d,serial=s", 0).unwrap();
        assert_eq!((&*drive.id, drive.interface), ("d", Interface::IdeDisk));
        let cd = parse("/x.iso,media=cdrom", 2).unwrap();
        assert_eq!((&*cd.id, cd.interface), ("ide1-cd0", Interface::IdeCdRom));
        assert_eq!(drive.node["file"]["filename"], "/a,b.img");
        assert_eq!(drive.node["file"]["cache"]["direct"], true);
        assert_eq!(drive.properties["serial"], "s");
        let none = parse("/nosuch,if=none,readonly=on", 3).unwrap();
        assert_eq!((&*none.id, &none.node["driver"]), ("none3", &"raw".into()));
    }

    #[test]
    fn a_raw_image_that_may_be_written_is_not_guessed() {
        let complaint = parse("/nosuch", 0).unwrap_err().desc;
        assert!(complaint.contains("specify format=raw"), "{complaint}");
        assert!(parse("/nosuch,media=cdrom", 0).is_ok());
    }

    #[test]
    fn complaints() {
        for (text, complaint) in [
            ("if=none", "Device needs media, but drive is empty"),
            ("file=x,format=raw,cache=wrong", "invalid cache option"),
            ("file=x,format=raw,nosuch=1", "Invalid parameter 'nosuch'"),
        ] {
            assert_eq!(parse(text, 0).unwrap_err().desc, complaint, "{text}");
        }
    }
}
