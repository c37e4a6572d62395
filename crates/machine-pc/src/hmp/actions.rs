//! Commands that do what QMP commands do, by calling them.

use api::keyval::Options;
use api::{
    BalloonArgs, DeviceDelArgs, MachineCommands, MemsaveArgs, MiscCommands, PmemsaveArgs,
    QdevCommands, QmpError, RunStateCommands, SendKeyArgs, ShutdownCause, UiCommands,
    WatchdogSetActionArgs,
};
use monitor::Caller;
use serde_json::{Value, json};

use super::{Answer, Complaint, Pending, word};
use crate::commands::MachineHandlers;
use crate::control::Control;
use crate::devices::unsigned;

const MIB: i64 = 1 << 20;

/// A command without arguments and without an answer.
macro_rules! plain {
    ($name:ident, $method:ident) => {
        pub(super) fn $name<'a>(
            handlers: &'a MachineHandlers,
            _words: &'a [String],
            _cpu: i64,
        ) -> Pending<'a> {
            Box::pin(async move { done(handlers.$method(Caller::program()).await) })
        }
    };
}

plain!(stop, stop);
plain!(cont, cont);
plain!(nmi, inject_nmi);
plain!(system_powerdown, system_powerdown);
plain!(system_reset, system_reset);
plain!(system_wakeup, system_wakeup);

/// What is done prints nothing.
fn done<T>(result: Result<T, QmpError>) -> Answer {
    result.map(|_| String::new()).map_err(Complaint::Failed)
}

/// A number among the words.
fn number(words: &[String], at: usize) -> Result<u64, Complaint> {
    let end = || Complaint::Expression("unexpected end of expression".to_owned());
    let text = words.get(at).ok_or_else(end)?;
    unsigned(text).ok_or_else(|| Complaint::Expression(format!("invalid expression '{text}'")))
}

pub(super) fn quit(control: &mut Control, _words: &[String], _cpu: i64) -> Answer {
    control.shutdown(ShutdownCause::HostQmpQuit);
    Ok(String::new())
}

/// `balloon MIB`.
pub(super) fn balloon<'a>(
    handlers: &'a MachineHandlers,
    words: &'a [String],
    _cpu: i64,
) -> Pending<'a> {
    Box::pin(async move {
        let mib = i64::try_from(number(words, 0)?).unwrap_or(i64::MAX);
        let value = mib.saturating_mul(MIB);
        done(
            handlers
                .balloon(Caller::program(), BalloonArgs { value })
                .await,
        )
    })
}

/// `device_add DRIVER[,PROPERTY=VALUE...]`.
pub(super) fn device_add<'a>(
    handlers: &'a MachineHandlers,
    words: &'a [String],
    _cpu: i64,
) -> Pending<'a> {
    Box::pin(async move {
        let options = Options::parse(word(words, 0)?, Some("driver"))?;
        let (Options::Json(value) | Options::Keyval(value)) = options;
        done(handlers.device_add(Caller::program(), value).await)
    })
}

/// `device_del ID`.
pub(super) fn device_del<'a>(
    handlers: &'a MachineHandlers,
    words: &'a [String],
    _cpu: i64,
) -> Pending<'a> {
    Box::pin(async move {
        let id = word(words, 0)?.to_owned();
        done(
            handlers
                .device_del(Caller::program(), DeviceDelArgs { id })
                .await,
        )
    })
}

/// `memsave ADDRESS SIZE FILE`.
pub(super) fn memsave<'a>(
    handlers: &'a MachineHandlers,
    words: &'a [String],
    cpu: i64,
) -> Pending<'a> {
    Box::pin(async move {
        let arguments = MemsaveArgs {
            val: number(words, 0)?,
            size: number(words, 1)?,
            filename: word(words, 2)?.to_owned(),
            cpu_index: Some(cpu),
        };
        done(MachineCommands::memsave(handlers, Caller::program(), arguments).await)
    })
}

/// `pmemsave ADDRESS SIZE FILE`.
pub(super) fn pmemsave<'a>(
    handlers: &'a MachineHandlers,
    words: &'a [String],
    _cpu: i64,
) -> Pending<'a> {
    Box::pin(async move {
        let arguments = PmemsaveArgs {
            val: number(words, 0)?,
            size: number(words, 1)?,
            filename: word(words, 2)?.to_owned(),
        };
        done(MachineCommands::pmemsave(handlers, Caller::program(), arguments).await)
    })
}

/// `sendkey KEY[-KEY...] [MS]`: names as QMP has them, or numbers of keys in hexadecimal.
pub(super) fn sendkey<'a>(
    handlers: &'a MachineHandlers,
    words: &'a [String],
    _cpu: i64,
) -> Pending<'a> {
    Box::pin(async move {
        let mut keys = Vec::new();
        for name in word(words, 0)?.split('-') {
            let number = name.strip_prefix("0x");
            let key: Value = match number.map(|digits| i64::from_str_radix(digits, 16)) {
                Some(Ok(number)) => json!({"type": "number", "data": number}),
                _ => json!({"type": "qcode", "data": qcode(name)}),
            };
            match api::from_json(key) {
                Ok(key) => keys.push(key),
                Err(_) => return Ok(format!("invalid parameter: {name}\n")),
            }
        }
        let hold_time = match words.get(1) {
            Some(_) => Some(i64::try_from(number(words, 1)?).unwrap_or(i64::MAX)),
            None => None,
        };
        let arguments = SendKeyArgs { keys, hold_time };
        done(handlers.send_key(Caller::program(), arguments).await)
    })
}

/// The names of keys that people know by others.
fn qcode(name: &str) -> &str {
    match name {
        "enter" => "ret",
        "<" => "less",
        name => name,
    }
}

/// `watchdog_action ACTION`.
pub(super) fn watchdog_action<'a>(
    handlers: &'a MachineHandlers,
    words: &'a [String],
    _cpu: i64,
) -> Pending<'a> {
    Box::pin(async move {
        let name = word(words, 0)?;
        let action = api::from_json(json!(name))
            .map_err(|_| QmpError::generic(format!("invalid parameter value: {name}")))?;
        let arguments = WatchdogSetActionArgs { action };
        done(
            handlers
                .watchdog_set_action(Caller::program(), arguments)
                .await,
        )
    })
}
