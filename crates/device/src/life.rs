//! The phases of a device's life.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::Error;

/// How deep a reset goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetKind {
    /// The power came on: everything but what a battery holds has its power-on value.
    PowerOn,
    /// The reset line of a running machine: as `PowerOn`, but for registers that the datasheet says only a lost power
    /// supply clears.
    System,
}

/// What every device can do, whatever its registers are.
///
/// No method has a default: a device that has nothing to save says so with an empty state.
pub trait Device: Send + Sync {
    /// Puts all registers to their reset values and drives outputs accordingly.
    fn reset(&self, kind: ResetKind);

    /// Everything the guest could tell apart, at this moment.
    ///
    /// # Errors
    /// [`Error::BadState`] if the state cannot be written down.
    fn save(&self) -> Result<SavedState, Error>;

    /// Takes over a saved state and drives outputs and timers accordingly. On an error the device is as before.
    ///
    /// # Errors
    /// [`Error::WrongDevice`], [`Error::WrongVersion`] or [`Error::BadState`]; the state may come from anywhere.
    fn restore(&self, state: &SavedState) -> Result<(), Error>;
}

/// A device's state, written down: a name, a version, and a value of the type that belongs to them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedState {
    /// The kind of device.
    pub device: String,
    /// The version of its state's type.
    pub version: u32,
    /// The state.
    pub data: serde_json::Value,
}

impl SavedState {
    /// Writes down a state.
    ///
    /// # Errors
    /// [`Error::BadState`] if it has no JSON form (a map with keys that are not strings, say).
    pub fn of<T: Serialize>(device: &str, version: u32, state: &T) -> Result<SavedState, Error> {
        let data = serde_json::to_value(state).map_err(|error| Error::BadState {
            device: device.to_owned(),
            reason: error.to_string(),
        })?;
        Ok(SavedState {
            device: device.to_owned(),
            version,
            data,
        })
    }

    /// Reads a state of this device and version.
    ///
    /// # Errors
    /// [`Error::WrongDevice`], [`Error::WrongVersion`] or [`Error::BadState`].
    pub fn read<T: DeserializeOwned>(&self, device: &str, version: u32) -> Result<T, Error> {
        if self.device != device {
            return Err(Error::WrongDevice {
                expected: device.to_owned(),
                found: self.device.clone(),
            });
        }
        if self.version != version {
            return Err(Error::WrongVersion {
                device: device.to_owned(),
                expected: version,
                found: self.version,
            });
        }
        T::deserialize(&self.data).map_err(|error| Error::BadState {
            device: device.to_owned(),
            reason: error.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_read_only_as_what_it_is() {
        let state = SavedState::of("pit", 1, &7_u8).unwrap();
        assert_eq!(state.read::<u8>("pit", 1), Ok(7));
        assert!(matches!(
            state.read::<u8>("rtc", 1),
            Err(Error::WrongDevice { .. })
        ));
        assert!(matches!(
            state.read::<u8>("pit", 2),
            Err(Error::WrongVersion { found: 1, .. })
        ));
        assert!(matches!(
            state.read::<String>("pit", 1),
            Err(Error::BadState { .. })
        ));
    }
}
