//! Monitors: what they share, and the serving of their chardevs.

use std::sync::Arc;

use api::{CommandTable, VersionInfo};
use chardev::{ByteStream, ChardevClaim};
use parking_lot::Mutex;
use qmp_wire::Style;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::caller::Caller;
use crate::client::Client;
use crate::events::EventBus;
use crate::human::{self, HumanCommands};

/// The most clients that all monitors of a program serve at a time.
pub const MAX_CLIENTS: usize = 1024;

/// What all clients share.
pub(crate) struct Shared {
    pub(crate) table: CommandTable<Caller>,
    pub(crate) events: Arc<EventBus>,
    pub(crate) version: Value,
}

/// How one monitor behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MonitorOptions {
    /// Its id, for messages.
    pub id: Option<String>,
    /// Whether output is spread over lines for people.
    pub pretty: bool,
}

/// The monitors of one daemon or machine.
pub struct MonitorServer {
    shared: Arc<Shared>,
    /// What people see first.
    banner: String,
    clients: Mutex<JoinSet<()>>,
    closing: watch::Sender<bool>,
    runtime: tokio::runtime::Handle,
}

impl MonitorServer {
    /// A server for the commands of `table`, on `runtime`.
    pub fn new(
        table: CommandTable<Caller>,
        events: Arc<EventBus>,
        version: &VersionInfo,
        runtime: tokio::runtime::Handle,
    ) -> Arc<Self> {
        let number = &version.qemu;
        let banner = format!(
            "QEMU {}.{}.{} monitor - type 'help' for more information",
            number.major, number.minor, number.micro
        );
        let version = api::ToQapi::to_qapi(version);
        let (closing, _) = watch::channel(false);
        Arc::new(Self {
            shared: Arc::new(Shared {
                table,
                events,
                version,
            }),
            banner,
            clients: Mutex::default(),
            closing,
            runtime,
        })
    }

    /// Serves every connection of a chardev, each as a client of its own, as long as the server
    /// lives.
    pub fn serve_chardev(self: &Arc<Self>, claim: ChardevClaim, options: &MonitorOptions) {
        let style = if options.pretty {
            Style::Pretty
        } else {
            Style::Compact
        };
        self.serve_connections(claim, move |server, stream| {
            server.serve_stream(stream, style);
        });
    }

    /// Serves every connection of a chardev, each as a person of its own, as long as the server lives.
    pub fn serve_people(self: &Arc<Self>, claim: ChardevClaim, commands: Arc<dyn HumanCommands>) {
        self.serve_connections(claim, move |server, stream| {
            let (commands, banner) = (Arc::clone(&commands), server.banner.clone());
            let closing = server.closing.subscribe();
            server.add_client(human::serve(stream, commands, banner, closing));
        });
    }

    fn serve_connections(
        self: &Arc<Self>,
        mut claim: ChardevClaim,
        serve: impl Fn(&Self, Box<dyn ByteStream>) + Send + 'static,
    ) {
        let server = Arc::clone(self);
        let mut closing = self.closing.subscribe();
        self.runtime.spawn(async move {
            while let Some(connections) = claim.connections() {
                tokio::select! {
                    connection = connections.recv() => match connection {
                        Some(stream) => serve(&server, stream),
                        // There will be no more, but the chardev stays this monitor's.
                        None => break,
                    },
                    _ = closing.wait_for(|closing| *closing) => return,
                }
            }
            drop(server);
            // Fails when the server is gone: then that is the end too.
            let _ = closing.wait_for(|closing| *closing).await;
        });
    }

    /// Serves one client.
    pub fn serve_stream(&self, stream: Box<dyn ByteStream>, style: Style) {
        let client = Client::new(Arc::clone(&self.shared), stream, style);
        self.add_client(client.serve(self.closing.subscribe()));
    }

    fn add_client(&self, serving: impl Future<Output = ()> + Send + 'static) {
        let mut clients = self.clients.lock();
        // Those that have gone make room.
        while clients.try_join_next().is_some() {}
        if clients.len() >= MAX_CLIENTS {
            tracing::warn!("{MAX_CLIENTS} clients are connected; another one is turned away");
            return;
        }
        clients.spawn_on(serving, &self.runtime);
    }

    /// Says farewell to all clients: commands under way end, their replies are sent.
    pub async fn close(&self) {
        self.closing.send_replace(true);
        let mut clients = std::mem::take(&mut *self.clients.lock());
        while clients.join_next().await.is_some() {}
    }
}
