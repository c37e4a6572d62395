//! Errors as QMP clients see them.

use qmp_wire::ErrorClass;

/// The error of a command: what stands in `error` of its response.
///
/// It displays as its `desc`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{desc}")]
pub struct QmpError {
    /// For programs.
    pub class: ErrorClass,
    /// For people; clients should not parse it, and some do.
    pub desc: String,
}

impl QmpError {
    /// An error of class `GenericError`.
    pub fn generic(desc: impl Into<String>) -> Self {
        Self {
            class: ErrorClass::GenericError,
            desc: desc.into(),
        }
    }

    /// The command does not exist.
    pub fn command_not_found(name: &str) -> Self {
        Self {
            class: ErrorClass::CommandNotFound,
            desc: format!("The command {name} has not been found"),
        }
    }

    /// The device does not exist.
    pub fn device_not_found(device: &str) -> Self {
        Self {
            class: ErrorClass::DeviceNotFound,
            desc: format!("Device '{device}' not found"),
        }
    }

    /// The device is there and not active.
    pub fn device_not_active(device: &str) -> Self {
        Self {
            class: ErrorClass::DeviceNotActive,
            desc: format!("No {device} device has been activated"),
        }
    }

    /// A member that must be there is not; `path` leads to it.
    pub fn missing_parameter(path: &str) -> Self {
        Self::generic(format!("Parameter '{path}' is missing"))
    }

    /// A member that the type does not have.
    pub fn unexpected_parameter(path: &str) -> Self {
        Self::generic(format!("Parameter '{path}' is unexpected"))
    }

    /// A member of another JSON type than `expected`.
    pub fn invalid_parameter_type(path: &str, expected: &str) -> Self {
        Self::generic(format!(
            "Invalid parameter type for '{path}', expected: {expected}"
        ))
    }

    /// A value that does not fit `expected`.
    pub fn invalid_parameter_value(path: &str, expected: &str) -> Self {
        Self::generic(format!("Parameter '{path}' expects {expected}"))
    }
}
