//! All exports of one daemon or machine.

use std::sync::Arc;

use api::{
    BlockExportDeletedEvent, BlockExportInfo, BlockExportRemoveMode, BlockExportType, Event,
    EventSink,
};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{Export, ExportError};

struct Entry {
    export: Arc<dyn Export>,
    shutting_down: bool,
}

/// The exports by id.
pub struct ExportRegistry {
    /// Newest last.
    entries: Mutex<Vec<Entry>>,
    /// Changes when an export has gone.
    gone: watch::Sender<()>,
    events: Arc<dyn EventSink>,
}

impl ExportRegistry {
    /// An empty registry that tells `events` when an export has gone.
    pub fn new(events: Arc<dyn EventSink>) -> Arc<Self> {
        Arc::new(Self {
            entries: Mutex::default(),
            gone: watch::Sender::new(()),
            events,
        })
    }

    /// Checks that a new export may be called `id`, before anything is made for it.
    ///
    /// # Errors
    /// [`ExportError::InvalidId`], [`ExportError::DuplicateId`].
    pub fn check_new_id(&self, id: &str) -> Result<(), ExportError> {
        if !api::is_well_formed_id(id) {
            return Err(ExportError::InvalidId);
        }
        match self.find(id) {
            Some(_) => Err(ExportError::DuplicateId(id.to_owned())),
            None => Ok(()),
        }
    }

    /// Takes an export in.
    ///
    /// # Errors
    /// As [`Self::check_new_id`]; the caller shuts the export down then.
    pub fn add(&self, export: Arc<dyn Export>) -> Result<(), ExportError> {
        if !api::is_well_formed_id(export.id()) {
            return Err(ExportError::InvalidId);
        }
        let mut entries = self.entries.lock();
        if entries.iter().any(|entry| entry.export.id() == export.id()) {
            return Err(ExportError::DuplicateId(export.id().to_owned()));
        }
        entries.push(Entry {
            export,
            shutting_down: false,
        });
        Ok(())
    }

    /// The export called `id`, also while it is shutting down.
    pub fn find(&self, id: &str) -> Option<Arc<dyn Export>> {
        let entries = self.entries.lock();
        let found = entries.iter().find(|entry| entry.export.id() == id);
        found.map(|entry| Arc::clone(&entry.export))
    }

    /// All exports, newest first as queries list them.
    pub fn query(&self) -> Vec<BlockExportInfo> {
        let entries = self.entries.lock();
        let info = |entry: &Entry| BlockExportInfo {
            id: entry.export.id().to_owned(),
            r#type: entry.export.kind(),
            node_name: entry.export.node_name(),
            shutting_down: entry.shutting_down,
        };
        entries.iter().rev().map(info).collect()
    }

    /// Begins to remove an export. If no client uses it, it is gone when this returns; else its
    /// clients have been cut off, and it goes when their requests have ended.
    ///
    /// # Errors
    /// [`ExportError::NotFound`], [`ExportError::ShuttingDown`], and [`ExportError::InUse`] in
    /// mode `safe`.
    pub async fn remove(
        self: &Arc<Self>,
        id: &str,
        mode: BlockExportRemoveMode,
    ) -> Result<(), ExportError> {
        let (export, had_clients) = {
            let mut entries = self.entries.lock();
            let found = entries.iter_mut().find(|entry| entry.export.id() == id);
            let entry = found.ok_or_else(|| ExportError::NotFound(id.to_owned()))?;
            if entry.shutting_down {
                return Err(ExportError::ShuttingDown(id.to_owned()));
            }
            let has_clients = entry.export.has_clients();
            if has_clients && mode == BlockExportRemoveMode::Safe {
                return Err(ExportError::InUse(id.to_owned()));
            }
            self.begin_shutdown(entry);
            (Arc::clone(&entry.export), has_clients)
        };
        if !had_clients {
            // Ids are in use until their export is gone.
            self.wait_gone(|other| other.id() == export.id()).await;
        }
        Ok(())
    }

    /// Removes every export of one kind, whatever its clients do, and waits until they are gone.
    pub async fn close_kind(self: &Arc<Self>, kind: BlockExportType) {
        self.close(|export| export.kind() == kind).await;
    }

    /// Removes every export, whatever its clients do, and waits until they are gone.
    pub async fn close_all(self: &Arc<Self>) {
        self.close(|_| true).await;
    }

    async fn close(self: &Arc<Self>, which: impl Fn(&dyn Export) -> bool) {
        for entry in &mut *self.entries.lock() {
            if !entry.shutting_down && which(&*entry.export) {
                self.begin_shutdown(entry);
            }
        }
        self.wait_gone(which).await;
    }

    /// The rest happens in a task of its own, so that it ends even if the caller is dropped.
    fn begin_shutdown(self: &Arc<Self>, entry: &mut Entry) {
        entry.shutting_down = true;
        let export = Arc::clone(&entry.export);
        let ended = Arc::clone(&export).shutdown();
        let registry = Arc::clone(self);
        tokio::spawn(async move {
            ended.await;
            let id = export.id().to_owned();
            let event = Event::BlockExportDeleted(BlockExportDeletedEvent { id });
            {
                // Whoever sees the export gone has been sent the event before.
                let mut entries = registry.entries.lock();
                entries.retain(|entry| !Arc::ptr_eq(&entry.export, &export));
                registry.events.emit(event);
            }
            registry.gone.send_replace(());
        });
    }

    async fn wait_gone(&self, which: impl Fn(&dyn Export) -> bool) {
        let mut gone = self.gone.subscribe();
        loop {
            let left = {
                let entries = self.entries.lock();
                entries.iter().any(|entry| which(&*entry.export))
            };
            // The sender lives as long as `self`, so waiting does not fail.
            if !left || gone.changed().await.is_err() {
                return;
            }
        }
    }
}
