//! `send-key`: keys pressed together on the PS/2 keyboard.

use std::sync::Arc;
use std::time::Duration;

use api::{KeyValue, KeyValueBranch, QmpError, SendKeyArgs, ToQapi, UiCommands};
use dev_pc::i8042::{I8042, Key};
use monitor::Caller;

use super::MachineHandlers;

/// How long keys are held if nobody says otherwise.
const HOLD_MS: i64 = 100;
/// The most keys at once.
const MAX_KEYS: usize = 16;

fn key(value: &KeyValue) -> Result<Key, QmpError> {
    match &value.r#type {
        KeyValueBranch::Number(number) => {
            let key = u32::try_from(number.data).ok().and_then(Key::from_number);
            key.ok_or_else(|| {
                QmpError::generic(format!("there is no key with number {}", number.data))
            })
        }
        KeyValueBranch::Qcode(code) => {
            let name = code.data.to_qapi();
            let name = name.as_str().unwrap_or_default();
            Key::from_qcode(name)
                .ok_or_else(|| QmpError::generic(format!("the keyboard has no key '{name}'")))
        }
    }
}

impl MachineHandlers {
    async fn keyboard(&self) -> Result<Arc<I8042>, QmpError> {
        let keyboard = self.ask(|control| {
            let pci = control.chips.as_ref()?.pci.as_ref()?;
            Some(Arc::clone(&pci.i8042))
        });
        let keyboard = keyboard.await?;
        keyboard.ok_or_else(|| QmpError::generic("this machine has no keyboard"))
    }
}

impl UiCommands<Caller> for MachineHandlers {
    async fn send_key(&self, _caller: Arc<Caller>, arguments: SendKeyArgs) -> Result<(), QmpError> {
        if arguments.keys.len() > MAX_KEYS {
            return Err(QmpError::generic(format!(
                "at most {MAX_KEYS} keys can be pressed at once"
            )));
        }
        let keys: Vec<Key> = arguments.keys.iter().map(key).collect::<Result<_, _>>()?;
        let keyboard = self.keyboard().await?;
        for key in &keys {
            keyboard.key(*key, true);
        }
        let hold = u64::try_from(arguments.hold_time.unwrap_or(HOLD_MS)).unwrap_or(0);
        // The keys go up later; the command does not wait for it.
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(hold)).await;
            for key in keys.iter().rev() {
                keyboard.key(*key, false);
            }
        });
        Ok(())
    }
}
