//! `memsave` and `pmemsave`: guest memory into files.

use std::fs::OpenOptions;
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use api::{MemsaveArgs, PmemsaveArgs, QmpError};
use guest_memory::{GuestMemory, GuestPhysAddr, PAGE_BYTES};
use vcpu::VcpuState;

use super::MachineHandlers;
use crate::guest_paging;

/// Who may read a file that holds a guest's memory: its owner.
const FILE_MODE: u32 = 0o600;

fn create(path: &str) -> Result<BufWriter<std::fs::File>, QmpError> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(FILE_MODE)
        .open(path);
    let file = file.map_err(|error| {
        let words = host_io::strerror(&error);
        QmpError::generic(format!("Could not open '{path}': {words}"))
    })?;
    Ok(BufWriter::new(file))
}

fn write_failed(path: &str, error: &std::io::Error) -> QmpError {
    QmpError::generic(format!(
        "writing memory to '{path}' failed: {}",
        host_io::strerror(error)
    ))
}

/// Pieces of `size` bytes from `start`, none of which crosses a page.
fn pieces(start: u64, size: u64) -> impl Iterator<Item = (u64, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let left = size.checked_sub(done).filter(|left| *left > 0)?;
        let at = start.wrapping_add(done);
        let here = left.min(PAGE_BYTES - at % PAGE_BYTES);
        done += here;
        Some((at, usize::try_from(here).ok()?))
    })
}

/// Runs what blocks away from the runtime's threads.
async fn blocking(
    work: impl FnOnce() -> Result<(), QmpError> + Send + 'static,
) -> Result<(), QmpError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| QmpError::generic(error.to_string()))?
}

async fn memory_of(handlers: &MachineHandlers) -> Result<Arc<GuestMemory>, QmpError> {
    let memory = handlers.ask(|control| control.memory.clone()).await?;
    memory.ok_or_else(|| QmpError::generic("this machine has no memory"))
}

/// Saves physical memory; what is no memory reads as zeroes.
pub(super) async fn pmemsave(
    handlers: &MachineHandlers,
    arguments: PmemsaveArgs,
) -> Result<(), QmpError> {
    let memory = memory_of(handlers).await?;
    blocking(move || {
        let path = arguments.filename;
        let mut file = create(&path)?;
        for (at, length) in pieces(arguments.val, arguments.size) {
            let mut page = vec![0; length];
            if memory.read(GuestPhysAddr(at), &mut page).is_err() {
                page.fill(0);
            }
            file.write_all(&page)
                .map_err(|error| write_failed(&path, &error))?;
        }
        file.flush().map_err(|error| write_failed(&path, &error))
    })
    .await
}

/// Saves memory as a processor sees it.
pub(super) async fn memsave(
    handlers: &MachineHandlers,
    arguments: MemsaveArgs,
) -> Result<(), QmpError> {
    let memory = memory_of(handlers).await?;
    let index = arguments.cpu_index.unwrap_or(0);
    let state: Option<VcpuState> = handlers
        .ask(move |control| control.cpu_state(index))
        .await?;
    let state =
        state.ok_or_else(|| QmpError::invalid_parameter_value("cpu-index", "a CPU number"))?;
    blocking(move || {
        let path = arguments.filename;
        let mut file = create(&path)?;
        for (at, length) in pieces(arguments.val, arguments.size) {
            let mut page = vec![0; length];
            let physical = guest_paging::translate(&memory, &state, at);
            let read = physical.map(|physical| memory.read(physical, &mut page));
            if !matches!(read, Some(Ok(()))) {
                return Err(QmpError::generic(format!(
                    "Invalid addr 0x{at:016x}/size {length} specified"
                )));
            }
            file.write_all(&page)
                .map_err(|error| write_failed(&path, &error))?;
        }
        file.flush().map_err(|error| write_failed(&path, &error))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_do_not_cross_pages() {
        let all: Vec<_> = pieces(0xffe, 0x1004).collect();
        assert_eq!(all, [(0xffe, 2), (0x1000, 0x1000), (0x2000, 2)]);
        assert_eq!(pieces(5, 0).count(), 0);
        assert_eq!(
            pieces(u64::MAX, 2).collect::<Vec<_>>(),
            [(u64::MAX, 1), (0, 1)]
        );
    }
}
