//! All chardevs of one daemon or machine, by id.

use std::sync::Arc;

use api::{ChardevInfo, QmpError};
use indexmap::IndexMap;
use parking_lot::Mutex;

use crate::{Chardev, Connections};

/// The most chardevs that exist at a time.
pub const MAX_CHARDEVS: usize = 1024;

struct Entry {
    chardev: Arc<dyn Chardev>,
    claimed: bool,
}

/// All chardevs by id.
#[derive(Default)]
pub struct ChardevRegistry {
    entries: Mutex<IndexMap<String, Entry>>,
}

impl ChardevRegistry {
    /// Takes a chardev in.
    ///
    /// # Errors
    /// When the id is taken, or there are too many.
    pub fn add(&self, id: &str, chardev: Arc<dyn Chardev>) -> Result<(), QmpError> {
        let mut entries = self.entries.lock();
        if entries.contains_key(id) {
            return Err(QmpError::generic(format!(
                "Chardev with id '{id}' already exists"
            )));
        }
        if entries.len() >= MAX_CHARDEVS {
            return Err(QmpError::generic(format!(
                "There are {MAX_CHARDEVS} chardevs already"
            )));
        }
        entries.insert(
            id.to_owned(),
            Entry {
                chardev,
                claimed: false,
            },
        );
        Ok(())
    }

    /// Whether `id` may be given to a new chardev, before the work of making it.
    ///
    /// # Errors
    /// When it breaks the rules or is taken.
    pub fn check_new_id(&self, id: &str) -> Result<(), QmpError> {
        if self.entries.lock().contains_key(id) {
            return Err(QmpError::generic(format!(
                "Chardev with id '{id}' already exists"
            )));
        }
        Ok(())
    }

    /// Takes a chardev out that no frontend uses.
    ///
    /// # Errors
    /// No such chardev, or it is in use.
    pub fn remove(&self, id: &str) -> Result<Arc<dyn Chardev>, QmpError> {
        let mut entries = self.entries.lock();
        match entries.get(id) {
            None => Err(QmpError::generic(format!("Chardev '{id}' not found"))),
            Some(entry) if entry.claimed => {
                Err(QmpError::generic(format!("Chardev '{id}' is busy")))
            }
            Some(_) => match entries.shift_remove(id) {
                Some(entry) => Ok(entry.chardev),
                None => Err(QmpError::generic(format!("Chardev '{id}' not found"))),
            },
        }
    }

    /// Checks that the backend of `id` may be replaced, before the work of opening another.
    ///
    /// # Errors
    /// No such chardev, or it is in use.
    pub fn check_replaceable(&self, id: &str) -> Result<(), QmpError> {
        match self.entries.lock().get(id) {
            None => Err(QmpError::generic(format!("Chardev '{id}' does not exist"))),
            Some(entry) if entry.claimed => Err(QmpError::generic(
                "Chardev user does not support chardev hotswap",
            )),
            Some(_) => Ok(()),
        }
    }

    /// Puts another backend in the place of one that no frontend uses.
    ///
    /// # Errors
    /// As [`ChardevRegistry::check_replaceable`].
    pub fn replace(&self, id: &str, chardev: Arc<dyn Chardev>) -> Result<(), QmpError> {
        self.check_replaceable(id)?;
        if let Some(entry) = self.entries.lock().get_mut(id) {
            entry.chardev = chardev;
        }
        Ok(())
    }

    /// The chardev called `id`, for commands that name a chardev.
    ///
    /// # Errors
    /// No such chardev.
    pub fn find(&self, id: &str) -> Result<Arc<dyn Chardev>, QmpError> {
        let found = self
            .entries
            .lock()
            .get(id)
            .map(|entry| Arc::clone(&entry.chardev));
        found.ok_or_else(|| QmpError::generic(format!("Chardev '{id}' not found")))
    }

    /// The chardev called `id`, for commands that name a device.
    ///
    /// # Errors
    /// No such chardev.
    pub fn get(&self, id: &str) -> Result<Arc<dyn Chardev>, QmpError> {
        let entries = self.entries.lock();
        match entries.get(id) {
            Some(entry) => Ok(Arc::clone(&entry.chardev)),
            None => Err(QmpError::generic(format!("Device '{id}' not found"))),
        }
    }

    /// Claims a chardev for a frontend.
    ///
    /// # Errors
    /// No such chardev, or it has a frontend already.
    pub fn claim(self: &Arc<Self>, id: &str) -> Result<ChardevClaim, QmpError> {
        let mut entries = self.entries.lock();
        let Some(entry) = entries.get_mut(id) else {
            return Err(QmpError::generic(format!("chardev \"{id}\" not found")));
        };
        let connections = if entry.claimed {
            None
        } else {
            entry.chardev.take_connections()
        };
        let Some(connections) = connections else {
            return Err(QmpError::generic(format!(
                "chardev '{id}' is already in use"
            )));
        };
        entry.claimed = true;
        Ok(ChardevClaim {
            registry: Arc::clone(self),
            id: id.to_owned(),
            chardev: Arc::clone(&entry.chardev),
            connections: Some(connections),
        })
    }

    /// The ids with their types.
    pub fn types(&self) -> Vec<(String, &'static str)> {
        let entries = self.entries.lock();
        entries
            .iter()
            .map(|(id, entry)| (id.clone(), entry.chardev.type_name()))
            .collect()
    }

    /// What `query-chardev` answers.
    pub fn query(&self) -> Vec<ChardevInfo> {
        let entries = self.entries.lock();
        let info = |(id, entry): (&String, &Entry)| ChardevInfo {
            label: id.clone(),
            filename: entry.chardev.filename(),
            frontend_open: entry.claimed,
        };
        entries.iter().map(info).collect()
    }
}

/// A frontend's hold on a chardev; dropping it lets go.
pub struct ChardevClaim {
    registry: Arc<ChardevRegistry>,
    id: String,
    chardev: Arc<dyn Chardev>,
    connections: Option<Connections>,
}

impl ChardevClaim {
    /// The chardev's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The connections as they come.
    pub fn connections(&mut self) -> Option<&mut Connections> {
        self.connections.as_mut()
    }
}

impl Drop for ChardevClaim {
    fn drop(&mut self) {
        if let Some(connections) = self.connections.take() {
            self.chardev.return_connections(connections);
        }
        if let Some(entry) = self.registry.entries.lock().get_mut(&self.id) {
            entry.claimed = false;
        }
    }
}
