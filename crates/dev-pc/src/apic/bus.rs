//! Messages between interrupt controllers.

use std::sync::{Arc, Weak};

use parking_lot::RwLock;

use super::LocalApic;

/// Which local APICs a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// All.
    All,
    /// All but the one with this identity.
    AllBut(u32),
    /// The one with this identity.
    Physical(u32),
    /// Those that the logical destination register selects.
    Logical(u32),
}

impl Destination {
    /// From the eight bits of an I/O APIC, an MSI or an xAPIC's command register.
    pub fn from_field(field: u32, logical: bool) -> Destination {
        match (field, logical) {
            (_, true) => Destination::Logical(field),
            (0xff, false) => Destination::All,
            (_, false) => Destination::Physical(field),
        }
    }
}

/// How an interrupt is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Its vector, to all destinations.
    Fixed,
    /// Its vector, to the destination with the lowest priority.
    LowestPriority,
    /// System management interrupt.
    Smi,
    /// Non-maskable interrupt.
    Nmi,
    /// Initialisation.
    Init,
    /// Start of an application processor; the vector is its page.
    StartUp,
    /// The vector comes from the 8259.
    ExtInt,
}

impl Delivery {
    /// From the three bits of a redirection, a message or a local vector; `None` for reserved ones.
    pub fn from_bits(bits: u8) -> Option<Delivery> {
        match bits {
            0 => Some(Delivery::Fixed),
            1 => Some(Delivery::LowestPriority),
            2 => Some(Delivery::Smi),
            4 => Some(Delivery::Nmi),
            5 => Some(Delivery::Init),
            7 => Some(Delivery::ExtInt),
            _ => None,
        }
    }

    /// From the three bits of the interrupt command register, which can start processors and has no ExtINT.
    pub fn from_command_bits(bits: u8) -> Option<Delivery> {
        match bits {
            6 => Some(Delivery::StartUp),
            7 => None,
            _ => Delivery::from_bits(bits),
        }
    }
}

/// An interrupt on its way to local APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterruptMessage {
    /// For whom.
    pub destination: Destination,
    /// How.
    pub delivery: Delivery,
    /// Which vector, where the delivery has one.
    pub vector: u8,
    /// Whether it is level-triggered: its end is told to the I/O APICs.
    pub level: bool,
}

/// Hears of the ends of level-triggered interrupts.
pub trait EoiListener: Send + Sync {
    /// A processor has ended this vector. Called without any APIC's lock.
    fn end_of_interrupt(&self, vector: u8);
}

/// Where an I/O APIC's messages go: local APICs, on an [`ApicBus`] or elsewhere.
pub trait MessageBus: Send + Sync {
    /// Brings a message to its destinations; one that names nobody is lost.
    fn deliver(&self, message: &InterruptMessage);

    /// What the I/O APIC's level inputs send, masked ones too, has become this: whoever is not on an [`ApicBus`] needs it
    /// to tell of the ends of these interrupts.
    fn set_level_messages(&self, _messages: &[InterruptMessage]) {}
}

impl MessageBus for ApicBus {
    fn deliver(&self, message: &InterruptMessage) {
        ApicBus::deliver(self, message);
    }
}

/// The bus. Whoever sits on it leaves it by being dropped.
#[derive(Default)]
pub struct ApicBus {
    locals: RwLock<Vec<Weak<LocalApic>>>,
    listeners: RwLock<Vec<Weak<dyn EoiListener>>>,
}

impl ApicBus {
    /// An empty bus.
    pub fn new() -> Arc<ApicBus> {
        Arc::new(ApicBus::default())
    }

    /// Adds an I/O APIC.
    pub fn add_eoi_listener(&self, listener: Weak<dyn EoiListener>) {
        let mut listeners = self.listeners.write();
        listeners.retain(|known| known.strong_count() > 0);
        listeners.push(listener);
    }

    pub(super) fn add_local(&self, local: Weak<LocalApic>) {
        let mut locals = self.locals.write();
        locals.retain(|known| known.strong_count() > 0);
        locals.push(local);
    }

    /// Brings a message to its destinations; one that names nobody is lost.
    pub fn deliver(&self, message: &InterruptMessage) {
        let locals: Vec<Arc<LocalApic>> = self
            .locals
            .read()
            .iter()
            .filter_map(Weak::upgrade)
            .filter(|local| local.is_addressed(message.destination))
            .collect();
        if message.delivery == Delivery::LowestPriority {
            let able = locals.iter().filter(|local| local.is_enabled());
            if let Some(lowest) = able.min_by_key(|local| local.processor_priority()) {
                lowest.receive(message);
            }
            return;
        }
        for local in locals {
            local.receive(message);
        }
    }

    pub(super) fn end_of_interrupt(&self, vector: u8) {
        let listeners: Vec<Arc<dyn EoiListener>> = self
            .listeners
            .read()
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        for listener in listeners {
            listener.end_of_interrupt(vector);
        }
    }
}
