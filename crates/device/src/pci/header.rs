//! A function's configuration space.

use std::sync::Arc;

use crate::{
    Error, IoHandler, IoMap, IrqLine, MappingId, MsiMessage, MsiSink, Width, read_bytes,
    write_bytes,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::bus;
use super::bus::PciBus;
use super::msix::{Msix, MsixState};

const BYTES: usize = 256;
const COMMAND: u8 = 0x04;
const STATUS: u8 = 0x06;
const FIRST_BAR: u8 = 0x10;
const CAPABILITIES: u8 = 0x34;
const FIRST_CAPABILITY: u8 = 0x40;
const COMMAND_PORTS: u16 = 1;
const COMMAND_MEMORY: u16 = 2;
const COMMAND_MASTER: u16 = 4;
const COMMAND_NO_INTX: u16 = 0x400;
/// Ports, memory, master, parity response, SERR, INTx off.
const COMMAND_WRITABLE: u16 = 0x0547;
const STATUS_INTX: u8 = 0x08;
const STATUS_CAPABILITIES: u8 = 0x10;
/// Above 32-bit BARs' priorities nothing; registers of the chip set lie above those of functions.
const BAR_PRIORITY: i32 = 0;

/// What a function says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciIdentity {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Subsystem's vendor.
    pub subsystem_vendor: u16,
    /// Subsystem.
    pub subsystem: u16,
    /// Class, subclass and programming interface, in 24 bits.
    pub class: u32,
    /// Revision.
    pub revision: u8,
    /// Its interrupt pin: 1 is INTA, 0 is none.
    pub pin: u8,
    /// Whether other functions share its slot.
    pub multifunction: bool,
}

/// Where a base address register lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// Ports.
    Ports,
    /// Memory below 4 GiB.
    Memory,
    /// Memory anywhere; takes the next register too. Prefetchable.
    Memory64,
}

/// A base address register.
pub struct Bar {
    /// 0 to 5.
    pub index: u8,
    /// Where it lives.
    pub kind: BarKind,
    /// A power of two; at least 4 for ports and 16 for memory.
    pub length: u64,
    /// What answers there.
    pub handler: Arc<dyn IoHandler>,
    /// What it is, for people.
    pub name: String,
}

/// A base address register as the guest has programmed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarPlace {
    /// 0 to 5.
    pub index: u8,
    /// Where it lives.
    pub kind: BarKind,
    /// What it decodes, in bytes.
    pub length: u64,
    /// Its address, while it decodes.
    pub address: Option<u64>,
}

struct Mask {
    /// Bits the guest sets and clears.
    writable: [u8; BYTES],
    /// Bits the guest clears by writing ones.
    clearable: [u8; BYTES],
    /// Other bits that change while the function lives.
    own: [u8; BYTES],
    /// Values after reset.
    reset: [u8; BYTES],
}

struct Placed {
    bar: Bar,
    mapping: Option<(MappingId, u64)>,
}

struct Inner {
    config: [u8; BYTES],
    mask: Mask,
    bars: Vec<Placed>,
    next_capability: u8,
    last_capability: Option<u8>,
    msi: Option<u8>,
    msix: Option<(u8, Arc<Msix>)>,
    intx: bool,
}

/// The state of a [`PciHeader`], as part of its function's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderSaved {
    config: Vec<u8>,
    msix: Option<MsixState>,
    intx: bool,
}

/// Configuration space of type 0.
pub struct PciHeader {
    ports: Arc<IoMap>,
    memory: Arc<IoMap>,
    sink: Arc<dyn MsiSink>,
    line: IrqLine,
    inner: Mutex<Inner>,
}

fn put(bytes: &mut [u8; BYTES], offset: u8, value: &[u8]) {
    for (place, byte) in bytes.iter_mut().skip(usize::from(offset)).zip(value) {
        *place = *byte;
    }
}

fn byte(bytes: &[u8; BYTES], offset: u8) -> u8 {
    bytes.get(usize::from(offset)).copied().unwrap_or(0)
}

fn dword(bytes: &[u8; BYTES], offset: u8) -> u32 {
    let at = |index: u8| byte(bytes, offset.wrapping_add(index));
    u32::from_le_bytes([at(0), at(1), at(2), at(3)])
}

fn word(bytes: &[u8; BYTES], offset: u8) -> u16 {
    u16::from_le_bytes([byte(bytes, offset), byte(bytes, offset.wrapping_add(1))])
}

impl PciHeader {
    /// The header of a function that will sit at `address` of `bus`.
    pub fn new(identity: &PciIdentity, bus: &PciBus, address: bus::PciAddress) -> PciHeader {
        let mut mask = Mask {
            writable: [0; BYTES],
            clearable: [0; BYTES],
            own: [0; BYTES],
            reset: [0; BYTES],
        };
        let reset = &mut mask.reset;
        put(reset, 0x00, &identity.vendor.to_le_bytes());
        put(reset, 0x02, &identity.device.to_le_bytes());
        let [interface, subclass, class, _] = identity.class.to_le_bytes();
        put(
            reset,
            0x08,
            &[identity.revision, interface, subclass, class],
        );
        put(
            reset,
            0x0e,
            &[if identity.multifunction { 0x80 } else { 0 }],
        );
        put(reset, 0x2c, &identity.subsystem_vendor.to_le_bytes());
        put(reset, 0x2e, &identity.subsystem.to_le_bytes());
        put(reset, 0x3d, &[identity.pin]);
        put(&mut mask.writable, COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        // Cache line size, latency timer, interrupt line.
        put(&mut mask.writable, 0x0c, &[0xff, 0xff]);
        put(&mut mask.writable, 0x3c, &[0xff]);
        put(&mut mask.clearable, STATUS + 1, &[0xf9]);
        put(&mut mask.own, STATUS, &[STATUS_INTX]);
        PciHeader {
            ports: bus.ports().clone(),
            memory: bus.memory().clone(),
            sink: bus.msi().clone(),
            line: bus.line(address, identity.pin),
            inner: Mutex::new(Inner {
                config: mask.reset,
                mask,
                bars: Vec::new(),
                next_capability: FIRST_CAPABILITY,
                last_capability: None,
                msi: None,
                msix: None,
                intx: false,
            }),
        }
    }

    /// Adds a base address register. While being made only; a length that is no power of two, or is too small, is rounded
    /// up to one that is.
    pub fn add_bar(&self, mut bar: Bar) {
        let (least, flags) = match bar.kind {
            BarKind::Ports => (4, 1),
            BarKind::Memory => (16, 0),
            BarKind::Memory64 => (16, 0x0c_u64),
        };
        bar.length = bar
            .length
            .max(least)
            .checked_next_power_of_two()
            .unwrap_or(1 << 63);
        let offset = FIRST_BAR + 4 * bar.index.min(5);
        let addresses = !(bar.length - 1);
        let bytes = if bar.kind == BarKind::Memory64 { 8 } else { 4 };
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        put(
            &mut inner.mask.writable,
            offset,
            addresses.to_le_bytes().get(..bytes).unwrap_or(&[]),
        );
        put(&mut inner.mask.reset, offset, &flags.to_le_bytes()[..1]);
        put(&mut inner.config, offset, &flags.to_le_bytes()[..1]);
        inner.bars.push(Placed { bar, mapping: None });
    }

    /// Sets bytes of the function's own registers: their values after reset and which bits the guest may write.
    pub fn set_register(&self, offset: u8, reset: &[u8], writable: &[u8]) {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        put(&mut inner.mask.reset, offset, reset);
        put(&mut inner.config, offset, reset);
        put(&mut inner.mask.writable, offset, writable);
    }

    /// Adds a capability whose body (what follows its identity and link) is `body`; gives its offset, or `None` when the
    /// space is full.
    pub fn add_capability(&self, identity: u8, body: &[u8], writable: &[u8]) -> Option<u8> {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let offset = inner.next_capability;
        let length = u8::try_from(body.len()).ok()?.checked_add(2)?;
        // Capabilities begin at multiples of four.
        let next = offset.checked_add(length)?.checked_next_multiple_of(4)?;
        inner.next_capability = next;
        let link = inner.last_capability.map_or(CAPABILITIES, |last| last + 1);
        inner.last_capability = Some(offset);
        for bytes in [&mut inner.mask.reset, &mut inner.config] {
            put(bytes, link, &[offset]);
            put(bytes, offset, &[identity, 0]);
            put(bytes, offset + 2, body);
            let status = byte(bytes, STATUS) | STATUS_CAPABILITIES;
            put(bytes, STATUS, &[status]);
        }
        put(&mut inner.mask.writable, offset + 2, writable);
        Some(offset)
    }

    /// Adds the MSI capability for one vector, with 64-bit address and mask (PCI 3.0, 6.8.1); gives its offset.
    pub fn add_msi(&self) -> Option<u8> {
        let mut body = [0; 0x16];
        let mut writable = [0; 0x16];
        put_slice(&mut body, 0, &[0x80, 0x01]);
        put_slice(
            &mut writable,
            0,
            &[
                0x01, 0x00, 0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
            ],
        );
        // The mask bit; the pending bit is the function's.
        put_slice(&mut writable, 0x0e, &[0x01]);
        let offset = self.add_capability(5, &body, &writable)?;
        let mut inner = self.inner.lock();
        inner.msi = Some(offset);
        put(&mut inner.mask.own, offset.checked_add(0x14)?, &[0x01]);
        Some(offset)
    }

    /// Adds the MSI-X capability with its table in the base address register `bar`, alone there; gives the vectors.
    pub fn add_msix(&self, vectors: u16, bar: u8) -> Option<Arc<Msix>> {
        let msix = Msix::new(vectors, self.sink.clone());
        let (length, pending) = msix.layout();
        let last = u16::try_from(msix.vectors().checked_sub(1)?).ok()?;
        let bir = u32::from(bar.min(5));
        let pending = u32::try_from(pending).ok()? | bir;
        let mut body = [0; 10];
        put_slice(&mut body, 0, &last.to_le_bytes());
        put_slice(&mut body, 2, &bir.to_le_bytes());
        put_slice(&mut body, 6, &pending.to_le_bytes());
        let offset = self.add_capability(0x11, &body, &[0x00, 0xc0])?;
        self.inner.lock().msix = Some((offset, msix.clone()));
        self.add_bar(Bar {
            index: bar,
            kind: BarKind::Memory,
            length,
            handler: msix.clone(),
            name: "msix".to_owned(),
        });
        Some(msix)
    }

    /// Reads configuration bytes.
    pub fn read(&self, offset: u8, width: Width) -> u64 {
        let inner = self.inner.lock();
        read_bytes(u64::from(offset), width, |at| {
            u8::try_from(at).map_or(0xff, |at| byte(&inner.config, at))
        })
    }

    /// Writes configuration bytes, as far as the guest may.
    pub fn write(&self, offset: u8, width: Width, value: u64) {
        let mut inner = self.inner.lock();
        write_bytes(u64::from(offset), width, value, |at, written| {
            let Ok(at) = u8::try_from(at) else { return };
            let writable = byte(&inner.mask.writable, at);
            let cleared = byte(&inner.mask.clearable, at) & written;
            let old = byte(&inner.config, at);
            put(
                &mut inner.config,
                at,
                &[(old & !writable | written & writable) & !cleared],
            );
        });
        self.apply(&mut inner);
    }

    /// The function sets its own bytes (status bits, registers that only it writes).
    pub fn set_bytes(&self, offset: u8, value: &[u8]) {
        put(&mut self.inner.lock().config, offset, value);
    }

    /// Takes bits of a register away from the guest, or gives them back: a register that locks itself.
    pub fn set_locked(&self, offset: u8, bits: u8, locked: bool) {
        let mut inner = self.inner.lock();
        let mask = &mut inner.mask;
        let writable = byte(&mask.writable, offset);
        let own = byte(&mask.own, offset);
        let (writable, own) = if locked {
            (writable & !bits, own | bits)
        } else {
            (writable | bits, own & !bits)
        };
        put(&mut mask.writable, offset, &[writable]);
        put(&mut mask.own, offset, &[own]);
    }

    /// Whether the function may reach memory on its own.
    pub fn is_master(&self) -> bool {
        word(&self.inner.lock().config, COMMAND) & COMMAND_MASTER != 0
    }

    /// Drives the function's interrupt pin.
    pub fn set_intx(&self, high: bool) {
        let mut inner = self.inner.lock();
        inner.intx = high;
        self.drive(&mut inner);
    }

    /// Sends the function's MSI, or notes it as pending while it is masked; false if the guest does not use MSI.
    pub fn send_msi(&self) -> bool {
        let mut inner = self.inner.lock();
        let Some(offset) = inner.msi else {
            return false;
        };
        if byte(&inner.config, offset + 2) & 1 == 0 {
            return false;
        }
        put(&mut inner.config, offset + 0x14, &[1]);
        self.send_pending(&mut inner);
        true
    }

    /// The value of a byte, as a register of the function.
    pub fn byte(&self, offset: u8) -> u8 {
        byte(&self.inner.lock().config, offset)
    }

    /// Where a base address register's handler answers now.
    pub fn bar_address(&self, index: u8) -> Option<u64> {
        let inner = self.inner.lock();
        let placed = inner.bars.iter().find(|placed| placed.bar.index == index)?;
        placed.mapping.map(|(_, address)| address)
    }

    /// The base address registers, and where those that decode do.
    pub fn bars(&self) -> Vec<BarPlace> {
        let inner = self.inner.lock();
        let place = |placed: &Placed| BarPlace {
            index: placed.bar.index,
            kind: placed.bar.kind,
            length: placed.bar.length,
            address: placed.mapping.map(|(_, address)| address),
        };
        inner.bars.iter().map(place).collect()
    }

    /// Values after reset; handlers disappear from the spaces.
    pub fn reset(&self) {
        let mut inner = self.inner.lock();
        inner.config = inner.mask.reset;
        inner.intx = false;
        if let Some((_, msix)) = &inner.msix {
            msix.reset();
        }
        self.apply(&mut inner);
    }

    /// Takes the function's registers out of the spaces and lets go of its pin.
    pub fn unmap(&self) {
        let mut inner = self.inner.lock();
        put(&mut inner.config, COMMAND, &[0, 0]);
        inner.intx = false;
        self.apply(&mut inner);
    }

    /// The state.
    pub fn save(&self) -> HeaderSaved {
        let inner = self.inner.lock();
        HeaderSaved {
            config: inner.config.to_vec(),
            msix: inner.msix.as_ref().map(|(_, msix)| msix.save()),
            intx: inner.intx,
        }
    }

    /// Takes over a state.
    ///
    /// # Errors
    /// [`Error::BadState`] if it is the state of another kind of function, named `device`.
    pub fn restore(&self, device: &str, saved: HeaderSaved) -> Result<(), Error> {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let config = <[u8; BYTES]>::try_from(saved.config).map_err(|_| {
            Error::bad_state(device, "the configuration space does not have 256 bytes")
        })?;
        let mask = &inner.mask;
        let changes = config
            .iter()
            .zip(&mask.reset)
            .map(|(now, reset)| now ^ reset);
        let allowed = mask.writable.iter().zip(&mask.clearable).zip(&mask.own);
        let foreign = changes
            .zip(allowed)
            .any(|(change, ((writable, clearable), own))| {
                change & !(writable | clearable | own) != 0
            });
        if foreign {
            return Err(Error::bad_state(
                device,
                "a read-only configuration byte has another value",
            ));
        }
        match (&inner.msix, saved.msix) {
            (None, None) => {}
            (Some((_, msix)), Some(state)) if msix.fits(&state) => msix.restore(state),
            _ => return Err(Error::bad_state(device, "the MSI-X table has another size")),
        }
        inner.config = config;
        inner.intx = saved.intx;
        self.apply(inner);
        Ok(())
    }

    /// Lets everything follow the configuration bytes.
    fn apply(&self, inner: &mut Inner) {
        let command = word(&inner.config, COMMAND);
        for placed in &mut inner.bars {
            self.place(placed, &inner.config, command);
        }
        self.drive(inner);
        self.send_pending(inner);
        if let Some((offset, msix)) = &inner.msix {
            msix.set_control(word(&inner.config, offset + 2));
        }
    }

    fn place(&self, placed: &mut Placed, config: &[u8; BYTES], command: u16) {
        let bar = &placed.bar;
        let offset = FIRST_BAR + 4 * bar.index.min(5);
        let (map, on) = match bar.kind {
            BarKind::Ports => (&self.ports, command & COMMAND_PORTS != 0),
            BarKind::Memory | BarKind::Memory64 => (&self.memory, command & COMMAND_MEMORY != 0),
        };
        let high = match bar.kind {
            BarKind::Memory64 => u64::from(dword(config, offset.wrapping_add(4))) << 32,
            BarKind::Ports | BarKind::Memory => 0,
        };
        let address = (high | u64::from(dword(config, offset))) & !(bar.length - 1);
        // Zero is "not assigned" by convention.
        let wanted = (on && address != 0).then_some(address);
        match (placed.mapping, wanted) {
            (Some((_, now)), Some(wanted)) if now == wanted => {}
            (Some((id, _)), Some(wanted)) if map.move_to(id, wanted).is_ok() => {
                placed.mapping = Some((id, wanted));
            }
            (old, wanted) => {
                if let Some((id, _)) = old {
                    // The mapping is ours, so it is there.
                    let _ = map.unmap(id);
                }
                // An address beyond the space (all ones while its size is asked) is not mapped.
                placed.mapping = wanted.and_then(|wanted| {
                    map.map(
                        &bar.name,
                        wanted,
                        bar.length,
                        BAR_PRIORITY,
                        bar.handler.clone(),
                    )
                    .ok()
                    .map(|id| (id, wanted))
                });
            }
        }
    }

    fn drive(&self, inner: &mut Inner) {
        let status = byte(&inner.config, STATUS) & !STATUS_INTX;
        let bit = if inner.intx { STATUS_INTX } else { 0 };
        put(&mut inner.config, STATUS, &[status | bit]);
        let off = word(&inner.config, COMMAND) & COMMAND_NO_INTX != 0;
        self.line.set(inner.intx && !off);
    }

    fn send_pending(&self, inner: &mut Inner) {
        let Some(offset) = inner.msi else { return };
        let config = &mut inner.config;
        let on = byte(config, offset + 2) & 1 != 0;
        let masked = byte(config, offset + 0x10) & 1 != 0;
        if !on || masked || byte(config, offset + 0x14) & 1 == 0 {
            return;
        }
        put(config, offset + 0x14, &[0]);
        self.sink.send(MsiMessage {
            address: u64::from(dword(config, offset + 8)) << 32
                | u64::from(dword(config, offset + 4)),
            data: u32::from(word(config, offset + 12)),
        });
    }
}

impl Drop for PciHeader {
    fn drop(&mut self) {
        self.unmap();
    }
}

fn put_slice(bytes: &mut [u8], offset: usize, value: &[u8]) {
    for (place, byte) in bytes.iter_mut().skip(offset).zip(value) {
        *place = *byte;
    }
}
