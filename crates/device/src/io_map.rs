//! Which registers lie where.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::{Error, IoHandler, Width};

/// Names a mapping in its [`IoMap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappingId(u64);

/// A mapping, for people who look at the map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappedRange {
    /// What lies there.
    pub name: String,
    /// First address.
    pub start: u64,
    /// Last address.
    pub last: u64,
    /// Higher ones hide lower ones.
    pub priority: i32,
}

struct Mapping {
    id: MappingId,
    range: MappedRange,
    handler: Arc<dyn IoHandler>,
}

/// A piece of the address space as accesses see it: no two overlap.
struct Span {
    start: u64,
    last: u64,
    /// Where the mapping that shows here begins.
    origin: u64,
    handler: Arc<dyn IoHandler>,
}

#[derive(Default)]
struct Mappings {
    next_id: u64,
    /// In the order in which they were made.
    list: Vec<Mapping>,
}

/// An address space of registers: ports, or memory-mapped ones.
///
/// Mappings may overlap: the higher priority shows; among equals the newer one. They can move while vCPUs run (PCI BARs):
/// accesses look at a snapshot, without locks, and a handler may still be called by an access that began before its
/// mapping was removed.
///
/// An access that does not lie in one span as a whole is split in halves until its parts do. Where nothing is mapped,
/// reads are all ones and writes go nowhere.
pub struct IoMap {
    last: u64,
    mappings: Mutex<Mappings>,
    spans: ArcSwap<Vec<Span>>,
}

impl IoMap {
    /// The last port of a PC.
    pub const LAST_PORT: u64 = 0xffff;

    /// An empty space of addresses from 0 to `last`.
    pub fn new(last: u64) -> IoMap {
        IoMap {
            last,
            mappings: Mutex::default(),
            spans: ArcSwap::default(),
        }
    }

    /// Puts a handler at a range.
    ///
    /// # Errors
    /// [`Error::BadRange`] if the range is empty or ends beyond the space.
    pub fn map(
        &self,
        name: &str,
        start: u64,
        length: u64,
        priority: i32,
        handler: Arc<dyn IoHandler>,
    ) -> Result<MappingId, Error> {
        let range = MappedRange {
            name: name.to_owned(),
            start,
            last: self.last_of(name, start, length)?,
            priority,
        };
        let mut mappings = self.mappings.lock();
        let id = MappingId(mappings.next_id);
        mappings.next_id = mappings.next_id.wrapping_add(1);
        mappings.list.push(Mapping { id, range, handler });
        self.publish(&mappings.list);
        Ok(id)
    }

    /// Takes a mapping away.
    ///
    /// # Errors
    /// [`Error::NoSuchMapping`].
    pub fn unmap(&self, id: MappingId) -> Result<(), Error> {
        let mut mappings = self.mappings.lock();
        let at = position(&mappings.list, id)?;
        mappings.list.remove(at);
        self.publish(&mappings.list);
        Ok(())
    }

    /// Moves a mapping to another place.
    ///
    /// # Errors
    /// [`Error::NoSuchMapping`], or [`Error::BadRange`] if it would not fit there; then it stays where it was.
    pub fn move_to(&self, id: MappingId, start: u64) -> Result<(), Error> {
        let mut mappings = self.mappings.lock();
        let at = position(&mappings.list, id)?;
        let mapping = mappings.list.get_mut(at).ok_or(Error::NoSuchMapping)?;
        let old = &mapping.range;
        // The range was made from a start and a length, so this does not wrap.
        let beyond_first = old.last.saturating_sub(old.start);
        let last = start
            .checked_add(beyond_first)
            .filter(|last| *last <= self.last)
            .ok_or_else(|| Error::BadRange {
                name: old.name.clone(),
                start,
                length: beyond_first.saturating_add(1),
                last: self.last,
            })?;
        mapping.range.start = start;
        mapping.range.last = last;
        self.publish(&mappings.list);
        Ok(())
    }

    /// All mappings, by address; hidden ones too.
    pub fn ranges(&self) -> Vec<MappedRange> {
        let mappings = self.mappings.lock();
        let mut ranges: Vec<MappedRange> =
            mappings.list.iter().map(|one| one.range.clone()).collect();
        ranges.sort_by_key(|range| (range.start, -i64::from(range.priority)));
        ranges
    }

    /// Whether anything answers at an address.
    pub fn is_mapped(&self, address: u64) -> bool {
        find(&self.spans.load(), address).is_ok()
    }

    /// Reads.
    pub fn read(&self, address: u64, width: Width) -> u64 {
        read_spans(&self.spans.load(), address, width)
    }

    /// Writes.
    pub fn write(&self, address: u64, width: Width, value: u64) {
        write_spans(&self.spans.load(), address, width, value & width.ones());
    }

    fn last_of(&self, name: &str, start: u64, length: u64) -> Result<u64, Error> {
        length
            .checked_sub(1)
            .and_then(|beyond_first| start.checked_add(beyond_first))
            .filter(|last| *last <= self.last)
            .ok_or_else(|| Error::BadRange {
                name: name.to_owned(),
                start,
                length,
                last: self.last,
            })
    }

    fn publish(&self, list: &[Mapping]) {
        self.spans.store(Arc::new(flatten(list)));
    }
}

impl fmt::Debug for IoMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ranges()).finish()
    }
}

fn position(list: &[Mapping], id: MappingId) -> Result<usize, Error> {
    list.iter()
        .position(|mapping| mapping.id == id)
        .ok_or(Error::NoSuchMapping)
}

/// Cuts the space at every boundary and keeps, for each piece, the mapping that shows.
fn flatten(list: &[Mapping]) -> Vec<Span> {
    let mut cuts: Vec<u64> = list
        .iter()
        .flat_map(|one| [Some(one.range.start), one.range.last.checked_add(1)])
        .flatten()
        .collect();
    cuts.sort_unstable();
    cuts.dedup();
    let mut spans: Vec<Span> = Vec::new();
    for (index, start) in cuts.iter().enumerate() {
        let last = cuts.get(index + 1).map_or(u64::MAX, |next| next - 1);
        let shown = list
            .iter()
            .filter(|one| one.range.start <= *start && *start <= one.range.last)
            // Of equal priorities `max_by_key` gives the last, which is the newest.
            .max_by_key(|one| one.range.priority);
        let Some(shown) = shown else { continue };
        match spans.last_mut() {
            Some(before)
                if Arc::ptr_eq(&before.handler, &shown.handler)
                    && before.origin == shown.range.start
                    && before.last.checked_add(1) == Some(*start) =>
            {
                before.last = last;
            }
            _ => spans.push(Span {
                start: *start,
                last,
                origin: shown.range.start,
                handler: shown.handler.clone(),
            }),
        }
    }
    spans
}

/// The span at an address, or the last address of the hole there.
fn find(spans: &[Span], address: u64) -> Result<&Span, u64> {
    let after = spans.partition_point(|span| span.start <= address);
    let hole_ends = spans
        .get(after)
        .map_or(u64::MAX, |next| next.start.saturating_sub(1));
    after
        .checked_sub(1)
        .and_then(|index| spans.get(index))
        .filter(|span| address <= span.last)
        .ok_or(hole_ends)
}

fn read_spans(spans: &[Span], address: u64, width: Width) -> u64 {
    let last = address.saturating_add(width.bytes() - 1);
    match find(spans, address) {
        Ok(span) if last <= span.last => {
            span.handler.read(address - span.origin, width) & width.ones()
        }
        Err(hole_ends) if last <= hole_ends => width.ones(),
        Ok(_) | Err(_) => match width.half() {
            // A single byte lies in a span or in a hole as a whole.
            None => width.ones(),
            Some(half) => {
                let low = read_spans(spans, address, half);
                let high = address
                    .checked_add(half.bytes())
                    .map_or(half.ones(), |next| read_spans(spans, next, half));
                low | high << (8 * half.bytes())
            }
        },
    }
}

fn write_spans(spans: &[Span], address: u64, width: Width, value: u64) {
    let last = address.saturating_add(width.bytes() - 1);
    match find(spans, address) {
        Ok(span) if last <= span.last => span.handler.write(address - span.origin, width, value),
        Err(hole_ends) if last <= hole_ends => {}
        Ok(_) | Err(_) => {
            if let Some(half) = width.half() {
                write_spans(spans, address, half, value & half.ones());
                if let Some(next) = address.checked_add(half.bytes()) {
                    write_spans(spans, next, half, value >> (8 * half.bytes()));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
