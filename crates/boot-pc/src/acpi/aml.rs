//! AML that owns its bytes, so that a table can be put together from what functions return.

use acpi_tables::aml::{Device, Method, Name, Path, ResourceTemplate, Scope};
use acpi_tables::{Aml, AmlSink};

/// A term of AML, encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Code(pub(super) Vec<u8>);

impl Aml for Code {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

pub(super) fn code(term: &dyn Aml) -> Code {
    let mut bytes = Vec::new();
    term.to_aml_bytes(&mut bytes);
    Code(bytes)
}

/// Terms as other terms take them.
pub(super) fn terms(list: &[Code]) -> Vec<&dyn Aml> {
    list.iter().map(|term| term as &dyn Aml).collect()
}

/// A name; its parts have four characters each.
pub(super) fn path(name: &str) -> Code {
    code(&Path::new(name))
}

pub(super) fn name(path: &str, value: &dyn Aml) -> Code {
    code(&Name::new(path.into(), value))
}

pub(super) fn device(path: &str, inside: &[Code]) -> Code {
    code(&Device::new(path.into(), terms(inside)))
}

pub(super) fn scope(path: &str, inside: &[Code]) -> Code {
    code(&Scope::new(path.into(), terms(inside)))
}

/// A method with this many arguments, one caller at a time.
pub(super) fn method(path: &str, arguments: u8, inside: &[Code]) -> Code {
    code(&Method::new(path.into(), arguments, true, terms(inside)))
}

pub(super) fn resources(list: &[Code]) -> Code {
    code(&ResourceTemplate::new(terms(list)))
}

/// An ISA interrupt: the small IRQ descriptor (ACPI 6.3, 6.4.2.1), edge-triggered.
pub(super) fn isa_irq(irq: u8) -> Code {
    let mask = 1_u16.checked_shl(irq.into()).unwrap_or(0);
    let [low, high] = mask.to_le_bytes();
    Code(vec![0x22, low, high])
}

/// Ports, all sixteen bits decoded (6.4.2.5).
pub(super) fn ports(base: u16, count: u8) -> Code {
    code(&acpi_tables::aml::IO::new(base, base, 1, count))
}

/// Level-triggered interrupts to choose from, active high, shared (6.4.3.6).
pub(super) fn level_interrupts(numbers: &[u32]) -> Code {
    let count = u8::try_from(numbers.len()).unwrap_or(u8::MAX);
    let [low, high] = (2 + 4 * u16::from(count)).to_le_bytes();
    let head = [0x89, low, high, 0x09, count];
    let list = numbers
        .iter()
        .take(count.into())
        .flat_map(|n| n.to_le_bytes());
    Code(head.into_iter().chain(list).collect())
}
