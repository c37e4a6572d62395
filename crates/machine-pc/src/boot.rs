//! From the configuration to what the first processor finds: kernel, tables, its own state.

use std::borrow::Cow;

use boot_pc::{BootOptions, MachineLayout};
use guest_memory::GuestMemory;
use vcpu::VcpuState;

use crate::config::MachineConfig;
use crate::error::MachineError;
use crate::guest_file::GuestFile;

/// Reads a file for the guest.
pub(crate) fn read(
    what: &'static str,
    file: &GuestFile,
) -> Result<Cow<'static, [u8]>, MachineError> {
    file.read().map_err(|error| MachineError::Image {
        what,
        path: file.path().to_owned(),
        reason: error.to_string(),
    })
}

/// Writes what the guest starts with, and gives the state in which its first processor begins; none with firmware, which
/// begins at the reset vector.
pub(crate) fn load(
    config: &MachineConfig,
    memory: &GuestMemory,
) -> Result<Option<VcpuState>, MachineError> {
    let payload = &config.payload;
    let Some(kernel_file) = payload
        .kernel
        .as_ref()
        .filter(|_| payload.firmware.is_none())
    else {
        return Ok(None);
    };
    let boot_error = |source| MachineError::Boot {
        path: kernel_file.path().to_owned(),
        source,
    };
    let kernel = read("kernel", kernel_file)?;
    let initrd = payload
        .initrd
        .as_ref()
        .map(|file| read("initial ram disk", file))
        .transpose()?;
    let layout = MachineLayout::new(config.ram_bytes).map_err(boot_error)?;
    let options = BootOptions {
        command_line: payload.command_line.as_bytes(),
        initrd: initrd.as_deref(),
        ..BootOptions::default()
    };
    let image = boot_pc::load(&kernel, &options, &layout).map_err(boot_error)?;
    image.write_to(memory)?;
    Ok(Some(image.start.state))
}

/// The state in which a guest that slept in memory goes on.
pub(crate) fn wake_state(_config: &MachineConfig, _memory: &GuestMemory) -> Option<VcpuState> {
    None
}
