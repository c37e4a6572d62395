//! The local APICs, one per processor, and the bus between them and the I/O APICs.
//!
//! Source: Intel SDM volume 3, chapter "Advanced Programmable Interrupt Controller" (xAPIC and x2APIC).
//!
//! ```text
//!   IOAPIC, MSI ──> ApicBus ──> LocalApic ──> CpuPort (wake, NMI, INIT, start-up)
//!                      ^            │ IPIs, ends of level interrupts
//!                      └────────────┘
//! ```
//!
//! A vCPU asks its [`LocalApic`] with [`LocalApic::pending`] what to take, and says with [`LocalApic::accept`] that it has
//! taken a vector; for [`Pending::External`] it asks the 8259 instead. It routes accesses to its page of registers to the
//! handler, the MSRs 0x800 to 0x8ff and IA32_APIC_BASE and IA32_TSC_DEADLINE to the methods of these names, and CR8 to the
//! task priority.
//!
//! Not there: CMCI, and the lowest-priority mode's focus processor.

mod bus;
mod local;
mod registers;
mod timer;

pub use bus::{ApicBus, Delivery, Destination, EoiListener, InterruptMessage, MessageBus};
pub use local::{ApicPlace, CpuPort, CpuSignal, GeneralProtection, LocalApic, Pending, TscClock};

#[cfg(test)]
mod tests;
