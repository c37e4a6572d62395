//! Archives in cpio's "newc" form, as the kernel takes them for an initial RAM disk
//! (`Documentation/driver-api/early-userspace/buffer-format.rst` of the kernel).

/// Mode of a folder.
pub(crate) const FOLDER: u32 = 0o040_755;
/// Mode of a program.
pub(crate) const PROGRAM: u32 = 0o100_755;
/// Mode of any other file.
pub(crate) const PLAIN: u32 = 0o100_644;

/// An archive that is being written.
#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a file, or a folder without data. Files go into folders that are there already.
    pub(crate) fn add(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.entries += 1;
        let links = if mode == FOLDER { 2 } else { 1 };
        // i-node, mode, owner, group, links, time, length, device and the file's device, the
        // name's length with its zero, checksum.
        let fields = [
            self.entries as usize,
            mode as usize,
            0,
            0,
            links,
            0,
            data.len(),
            0,
            0,
            0,
            0,
            name.len() + 1,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        let length = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(length, 0);
    }

    /// All bytes, the end marker included.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}
