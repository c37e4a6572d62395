//! The commands on chardevs.

use std::sync::Arc;

use api::{
    CharCommands, ChardevAddArgs, ChardevBackend, ChardevBackendInfo, ChardevBackendKind,
    ChardevChangeArgs, ChardevInfo, ChardevRemoveArgs, ChardevReturn, ChardevSendBreakArgs,
    DataFormat, QmpError, RingbufReadArgs, RingbufWriteArgs,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chardev::Chardev;
use chardev_backends::Opened;
use monitor::Caller;

use crate::service::{CallerFds, Handlers, Inner};

impl Inner {
    /// Opens a backend where blocking is fine.
    async fn open_chardev(
        self: &Arc<Self>,
        caller: Arc<Caller>,
        id: &str,
        backend: ChardevBackend,
    ) -> Result<Opened, QmpError> {
        let surroundings = Arc::clone(&self.surroundings);
        let id = id.to_owned();
        let opening = tokio::task::spawn_blocking(move || {
            chardev_backends::open(&id, backend, &CallerFds(&caller), &surroundings)
        });
        opening
            .await
            .map_err(|error| QmpError::generic(error.to_string()))?
    }

    /// `chardev-add`, also for the command line.
    pub(crate) async fn add_chardev(
        self: &Arc<Self>,
        caller: Arc<Caller>,
        id: &str,
        backend: ChardevBackend,
    ) -> Result<ChardevReturn, QmpError> {
        self.chardevs.check_new_id(id)?;
        let opened = self.open_chardev(caller, id, backend).await?;
        self.chardevs.add(id, opened.chardev)?;
        Ok(ChardevReturn { pty: opened.pty })
    }
}

fn ring_write(chardev: &dyn Chardev, device: &str, data: &[u8]) -> Result<(), QmpError> {
    let ring = chardev.ring_buffer();
    let ring =
        ring.ok_or_else(|| QmpError::generic(format!("{device} is not a ringbuf device")))?;
    ring.write(data);
    Ok(())
}

impl CharCommands<Caller> for Handlers {
    async fn query_chardev(&self, _caller: Arc<Caller>) -> Result<Vec<ChardevInfo>, QmpError> {
        Ok(self.inner.chardevs.query())
    }

    async fn query_chardev_backends(
        &self,
        _caller: Arc<Caller>,
    ) -> Result<Vec<ChardevBackendInfo>, QmpError> {
        let info = |kind: &ChardevBackendKind| ChardevBackendInfo {
            name: kind.to_string(),
        };
        Ok(ChardevBackendKind::ALL.iter().map(info).collect())
    }

    async fn ringbuf_write(
        &self,
        _caller: Arc<Caller>,
        arguments: RingbufWriteArgs,
    ) -> Result<(), QmpError> {
        let chardev = self.inner.chardevs.get(&arguments.device)?;
        let data = match arguments.format {
            Some(DataFormat::Base64) => STANDARD
                .decode(&arguments.data)
                .map_err(|_| QmpError::generic("Base64 data contains invalid characters"))?,
            None | Some(DataFormat::Utf8) => arguments.data.into_bytes(),
        };
        ring_write(&*chardev, &arguments.device, &data)
    }

    async fn ringbuf_read(
        &self,
        _caller: Arc<Caller>,
        arguments: RingbufReadArgs,
    ) -> Result<String, QmpError> {
        let chardev = self.inner.chardevs.get(&arguments.device)?;
        let Some(ring) = chardev.ring_buffer() else {
            let device = arguments.device;
            return Err(QmpError::generic(format!(
                "{device} is not a ringbuf device"
            )));
        };
        let size = usize::try_from(arguments.size).unwrap_or(0);
        if size == 0 {
            return Err(QmpError::generic("size must be greater than zero"));
        }
        let data = ring.read(size);
        Ok(match arguments.format {
            Some(DataFormat::Base64) => STANDARD.encode(data),
            None | Some(DataFormat::Utf8) => {
                // As QEMU's C strings: a NUL ends the text.
                let end = data
                    .iter()
                    .position(|&byte| byte == 0)
                    .unwrap_or(data.len());
                String::from_utf8_lossy(data.get(..end).unwrap_or_default()).into_owned()
            }
        })
    }

    async fn chardev_add(
        &self,
        caller: Arc<Caller>,
        arguments: ChardevAddArgs,
    ) -> Result<ChardevReturn, QmpError> {
        self.inner
            .add_chardev(caller, &arguments.id, arguments.backend)
            .await
    }

    async fn chardev_change(
        &self,
        caller: Arc<Caller>,
        arguments: ChardevChangeArgs,
    ) -> Result<ChardevReturn, QmpError> {
        let id = arguments.id;
        self.inner.chardevs.check_replaceable(&id)?;
        let opened = self
            .inner
            .open_chardev(caller, &id, arguments.backend)
            .await?;
        self.inner.chardevs.replace(&id, opened.chardev)?;
        Ok(ChardevReturn { pty: opened.pty })
    }

    async fn chardev_remove(
        &self,
        _caller: Arc<Caller>,
        arguments: ChardevRemoveArgs,
    ) -> Result<(), QmpError> {
        self.inner.chardevs.remove(&arguments.id).map(drop)
    }

    async fn chardev_send_break(
        &self,
        _caller: Arc<Caller>,
        arguments: ChardevSendBreakArgs,
    ) -> Result<(), QmpError> {
        let chardev = self.inner.chardevs.find(&arguments.id)?;
        chardev.send_break();
        Ok(())
    }
}
