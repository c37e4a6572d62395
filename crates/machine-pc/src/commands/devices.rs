//! `device_add`, `device_del`, `device-list-properties`.

use std::sync::Arc;

use api::{
    DeviceDelArgs, DeviceListPropertiesArgs, ObjectPropertyInfo, QdevCommands, QmpError, Return,
};
use monitor::Caller;
use serde_json::Value;

use super::MachineHandlers;
use crate::devices::{DeviceKind, split_arguments};

impl QdevCommands<Caller> for MachineHandlers {
    async fn device_list_properties(
        &self,
        _caller: Arc<Caller>,
        arguments: DeviceListPropertiesArgs,
    ) -> Result<Vec<ObjectPropertyInfo>, QmpError> {
        let Some(kind) = DeviceKind::find(&arguments.typename) else {
            let mut error = QmpError::generic(format!("Device '{}' not found", arguments.typename));
            error.class = api::ErrorClass::DeviceNotFound;
            return Err(error);
        };
        let property = |spec: &crate::devices::PropertySpec| ObjectPropertyInfo {
            name: spec.name.to_owned(),
            r#type: spec.type_name.to_owned(),
            description: Some(spec.description.to_owned()),
            default_value: None,
        };
        Ok(kind.properties.iter().map(property).collect())
    }

    async fn device_add(&self, _caller: Arc<Caller>, arguments: Value) -> Result<Return, QmpError> {
        let Value::Object(members) = arguments else {
            return Err(QmpError::missing_parameter("driver"));
        };
        let (driver, id, properties) = split_arguments(members)?;
        self.ask(move |control| control.add_device(&driver, id, properties))
            .await??;
        Ok(Return::empty())
    }

    async fn device_del(
        &self,
        _caller: Arc<Caller>,
        arguments: DeviceDelArgs,
    ) -> Result<(), QmpError> {
        self.ask(move |control| control.remove_device(&arguments.id))
            .await?
    }
}
