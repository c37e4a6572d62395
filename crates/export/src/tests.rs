//! The registry with exports that end when they are told to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use api::{BlockExportRemoveMode, BlockExportType, Event, EventSink};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{Export, ExportError, ExportRegistry, ShutdownFuture};

struct Held {
    id: String,
    clients: AtomicBool,
    cut: AtomicBool,
    last_request: Notify,
}

impl Held {
    fn new(id: &str, clients: bool) -> Arc<Self> {
        Arc::new(Self {
            id: id.to_owned(),
            clients: AtomicBool::new(clients),
            cut: AtomicBool::new(false),
            last_request: Notify::new(),
        })
    }
}

impl Export for Held {
    fn id(&self) -> &str {
        &self.id
    }

    fn kind(&self) -> BlockExportType {
        BlockExportType::Nbd
    }

    fn node_name(&self) -> String {
        "disk".to_owned()
    }

    fn has_clients(&self) -> bool {
        self.clients.load(Ordering::SeqCst)
    }

    fn shutdown(self: Arc<Self>) -> ShutdownFuture {
        assert!(!self.cut.swap(true, Ordering::SeqCst), "shut down once");
        Box::pin(async move {
            if self.has_clients() {
                self.last_request.notified().await;
            }
        })
    }
}

#[derive(Default)]
struct Log(Mutex<Vec<String>>);

impl EventSink for Log {
    fn emit(&self, event: Event) {
        let line = format!("{} {}", event.name(), event.data());
        self.0.lock().push(line);
    }
}

fn registry() -> (Arc<ExportRegistry>, Arc<Log>) {
    let log = Arc::<Log>::default();
    (
        ExportRegistry::new(Arc::clone(&log) as Arc<dyn EventSink>),
        log,
    )
}

#[tokio::test]
async fn an_idle_export_is_gone_when_remove_returns() {
    let (registry, log) = registry();
    registry.add(Held::new("e0", false)).unwrap();
    registry.add(Held::new("e1", false)).unwrap();
    let ids: Vec<_> = registry.query().into_iter().map(|info| info.id).collect();
    assert_eq!(ids, ["e1", "e0"]);
    registry
        .remove("e0", BlockExportRemoveMode::Safe)
        .await
        .unwrap();
    assert_eq!(registry.query().len(), 1);
    assert_eq!(*log.0.lock(), [r#"BLOCK_EXPORT_DELETED {"id":"e0"}"#]);
}

#[tokio::test]
async fn clients_keep_an_export_until_their_requests_end() {
    use BlockExportRemoveMode::{Hard, Safe};
    let (registry, log) = registry();
    let export = Held::new("e0", true);
    registry.add(export.clone()).unwrap();
    let refused = registry.remove("e0", Safe).await.unwrap_err();
    assert_eq!(refused.to_string(), "export 'e0' still in use");
    assert!(!export.cut.load(Ordering::SeqCst));
    registry.remove("e0", Hard).await.unwrap();
    assert!(export.cut.load(Ordering::SeqCst));
    assert!(registry.query().first().unwrap().shutting_down);
    let again = registry.remove("e0", Safe).await.unwrap_err();
    assert_eq!(again.to_string(), "Export 'e0' is already shutting down");
    let taken = registry.check_new_id("e0").unwrap_err();
    assert_eq!(taken.to_string(), "Block export id 'e0' is already in use");
    assert!(log.0.lock().is_empty());
    export.last_request.notify_one();
    registry.close_all().await;
    assert!(registry.query().is_empty());
    assert_eq!(log.0.lock().len(), 1);
    registry.add(Held::new("e0", false)).unwrap();
}

#[tokio::test]
async fn closing_shuts_each_export_down_once() {
    let (registry, log) = registry();
    for id in ["a", "b", "c"] {
        let export = Held::new(id, true);
        export.last_request.notify_one();
        registry.add(export).unwrap();
    }
    tokio::join!(
        registry.close_kind(BlockExportType::Nbd),
        registry.close_all()
    );
    assert!(registry.query().is_empty());
    assert_eq!(log.0.lock().len(), 3);
}

#[tokio::test]
async fn wrong_ids_are_refused() {
    let (registry, _log) = registry();
    registry.add(Held::new("e0", false)).unwrap();
    let duplicate = registry.add(Held::new("e0", false)).unwrap_err();
    assert_eq!(duplicate, ExportError::DuplicateId("e0".to_owned()));
    assert_eq!(
        registry.add(Held::new("0bad", false)),
        Err(ExportError::InvalidId)
    );
    let unknown = registry.remove("zz", BlockExportRemoveMode::Hard).await;
    assert_eq!(unknown.unwrap_err().to_string(), "Export 'zz' is not found");
}
