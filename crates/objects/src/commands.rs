//! The commands `qom-*`, `object-add` and `object-del`.

use std::sync::Arc;

use api::{
    ObjectDelArgs, ObjectOptions, ObjectPropertiesValues, ObjectPropertyInfo, ObjectTypeInfo,
    QmpError, QomCommands, QomGetArgs, QomListArgs, QomListGetArgs, QomListPropertiesArgs,
    QomListTypesArgs, QomSetArgs,
};
use serde_json::Value;

use crate::error::ObjectError;
use crate::tree::{ObjectTree, property_infos};

/// Answers the commands of the schema module `qom` from a tree.
///
/// The handlers run in a tokio runtime: what may block is done on its blocking threads.
pub struct ObjectHandlers {
    tree: Arc<ObjectTree>,
}

impl ObjectHandlers {
    /// Handlers over this tree.
    pub fn new(tree: Arc<ObjectTree>) -> Arc<Self> {
        Arc::new(Self { tree })
    }

    /// Does work that may block: reading files, starting or ending threads.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&ObjectTree) -> Result<T, ObjectError> + Send + 'static,
    ) -> Result<T, QmpError> {
        let tree = Arc::clone(&self.tree);
        let done = tokio::task::spawn_blocking(move || work(&tree)).await;
        let done = done.map_err(|error| QmpError::generic(format!("work on objects: {error}")))?;
        Ok(done?)
    }
}

impl<C: Send + Sync + 'static> QomCommands<C> for ObjectHandlers {
    async fn qom_list(
        &self,
        _caller: Arc<C>,
        arguments: QomListArgs,
    ) -> Result<Vec<ObjectPropertyInfo>, QmpError> {
        Ok(self.tree.list(&arguments.path)?)
    }

    async fn qom_list_get(
        &self,
        _caller: Arc<C>,
        arguments: QomListGetArgs,
    ) -> Result<Vec<ObjectPropertiesValues>, QmpError> {
        let paths = arguments.paths.iter();
        let values = paths.map(|path| {
            let properties = self.tree.list_values(path)?;
            Ok(ObjectPropertiesValues { properties })
        });
        values.collect()
    }

    async fn qom_get(&self, _caller: Arc<C>, arguments: QomGetArgs) -> Result<Value, QmpError> {
        Ok(self.tree.get(&arguments.path, &arguments.property)?)
    }

    async fn qom_set(&self, _caller: Arc<C>, arguments: QomSetArgs) -> Result<(), QmpError> {
        let QomSetArgs {
            path,
            property,
            value,
        } = arguments;
        self.blocking(move |tree| tree.set(&path, &property, value))
            .await
    }

    async fn qom_list_types(
        &self,
        _caller: Arc<C>,
        arguments: QomListTypesArgs,
    ) -> Result<Vec<ObjectTypeInfo>, QmpError> {
        let include_abstract = arguments.r#abstract.unwrap_or(false);
        let types = self.tree.types();
        Ok(types.list(arguments.implements.as_deref(), include_abstract))
    }

    async fn qom_list_properties(
        &self,
        _caller: Arc<C>,
        arguments: QomListPropertiesArgs,
    ) -> Result<Vec<ObjectPropertyInfo>, QmpError> {
        let types = self.tree.types();
        let properties = types.properties_of_class(&arguments.typename)?;
        Ok(property_infos(properties).collect())
    }

    async fn object_add(&self, _caller: Arc<C>, arguments: ObjectOptions) -> Result<(), QmpError> {
        self.blocking(|tree| tree.create(arguments)).await
    }

    async fn object_del(&self, _caller: Arc<C>, arguments: ObjectDelArgs) -> Result<(), QmpError> {
        self.blocking(move |tree| tree.delete(&arguments.id)).await
    }
}
