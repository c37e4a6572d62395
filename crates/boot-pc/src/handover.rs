//! What PVH and multiboot have in common: lists in low memory that point to texts and modules.

use std::ops::Range;

use crate::linux::check_command_line;
use crate::{BootImage, BootOptions, Error, MAX_MODULES, MachineLayout, low_memory};

/// A module with addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PlacedModule {
    pub(crate) start: u64,
    pub(crate) bytes: u64,
    /// Its text, with a zero at the end.
    pub(crate) text: u64,
}

/// The command line and the modules' texts, one after the other from
/// [`low_memory::COMMAND_LINE`] on.
struct Texts(Vec<u8>);

impl Texts {
    fn add(&mut self, text: &[u8]) -> Result<u64, Error> {
        let at = self.0.len();
        check_command_line(text, low_memory::MAX_COMMAND_LINE_BYTES)?;
        if let Some(at) = text.iter().position(|byte| *byte == 0) {
            return Err(Error::CommandLineZero(at));
        }
        self.0.extend_from_slice(text);
        self.0.push(0);
        let room = low_memory::LOW_END - low_memory::COMMAND_LINE;
        if self.0.len() as u64 > room {
            return Err(Error::CommandLineTooLong {
                bytes: self.0.len(),
                max: usize::try_from(room).unwrap_or(usize::MAX),
            });
        }
        Ok(low_memory::COMMAND_LINE + at as u64)
    }
}

/// Places the command line, the initial RAM disk and the modules into an image, beside what is
/// `taken`. The RAM disk is the first module.
pub(crate) fn place<'a>(
    image: &mut BootImage<'a>,
    options: &BootOptions<'a>,
    layout: &MachineLayout,
    mut taken: Vec<Range<u64>>,
) -> Result<Vec<PlacedModule>, Error> {
    const LIMIT: u64 = 1 << 32;
    let count = options.modules.len();
    if count > MAX_MODULES {
        return Err(Error::TooManyModules(count));
    }
    let mut texts = Texts(Vec::new());
    texts.add(options.command_line)?;
    let initrd = options
        .initrd
        .map(|bytes| crate::Module { bytes, text: b"" });
    let mut placed = Vec::new();
    for module in initrd.into_iter().chain(options.modules.iter().copied()) {
        let bytes = module.bytes.len() as u64;
        let start = layout.find_top("a module", bytes, LIMIT, &taken)?;
        taken.push(start..start.saturating_add(bytes));
        image.push(start, module.bytes);
        let text = texts.add(module.text)?;
        placed.push(PlacedModule { start, bytes, text });
    }
    image.push(low_memory::COMMAND_LINE, texts.0);
    Ok(placed)
}
