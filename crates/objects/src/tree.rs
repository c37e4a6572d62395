//! The tree: where objects are, and how they are found.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use api::{ObjectOptions, ObjectPropertyInfo, ObjectPropertyValue};
use indexmap::IndexMap;
use parking_lot::Mutex;
use serde_json::Value;
use tls_session::{ClientTls, ServerTls};

use crate::authz::{self, Authorizer};
use crate::error::ObjectError;
use crate::iothread::IoThread;
use crate::object::{Container, Object, Property};
use crate::secret::Secret;
use crate::throttle::ThrottleGroup;
use crate::tls;
use crate::types::ObjectTypes;

/// The most objects that are in a tree at a time, containers included.
pub const MAX_OBJECTS: usize = 16_384;

/// The most components of a path.
pub const MAX_DEPTH: usize = 32;

/// The children of a container that another registry owns, such as the chardevs. They are asked
/// for whenever somebody looks, while the tree is locked: the source must not use the tree.
pub trait ChildSource: Send + Sync + 'static {
    /// Every child with its name.
    fn children(&self) -> Vec<(String, Arc<dyn Object>)>;
}

struct Node {
    object: Arc<dyn Object>,
    children: IndexMap<String, Node>,
    source: Option<Arc<dyn ChildSource>>,
    holds: Arc<AtomicUsize>,
}

impl Node {
    fn new(object: Arc<dyn Object>) -> Self {
        Self {
            object,
            children: IndexMap::new(),
            source: None,
            holds: Arc::default(),
        }
    }

    fn container() -> Self {
        Self::new(Arc::new(Container))
    }

    fn count(&self) -> usize {
        let children = self.children.values();
        children.fold(1, |sum, child| sum.saturating_add(child.count()))
    }

    fn sourced_children(&self) -> Vec<(String, Arc<dyn Object>)> {
        let source = self.source.as_ref();
        source.map(|source| source.children()).unwrap_or_default()
    }

    /// What the components lead to from here.
    fn find(&self, components: &[&str]) -> Option<Found> {
        let Some((first, rest)) = components.split_first() else {
            return Some(self.found());
        };
        if let Some(child) = self.children.get(*first) {
            return child.find(rest);
        }
        if !rest.is_empty() {
            return None;
        }
        let mut sourced = self.sourced_children().into_iter();
        let (_, object) = sourced.find(|(name, _)| name == first)?;
        Some(Found {
            object,
            children: Vec::new(),
        })
    }

    fn found(&self) -> Found {
        let own = self.children.iter();
        let own = own.map(|(name, child)| (name.clone(), child.object.type_name().to_owned()));
        let sourced = self.sourced_children().into_iter();
        let sourced = sourced.map(|(name, object)| (name, object.type_name().to_owned()));
        Found {
            object: Arc::clone(&self.object),
            children: own.chain(sourced).collect(),
        }
    }

    /// What the components lead to from here and from everything below.
    fn find_partial(&self, components: &[&str], out: &mut Vec<(String, Found)>, here: &str) {
        if let Some(found) = self.find(components) {
            out.push((here.to_owned(), found));
        }
        for (name, child) in &self.children {
            // Two are enough to know that a path is ambiguous.
            if out.len() > 1 {
                return;
            }
            child.find_partial(components, out, &format!("{here}/{name}"));
        }
        // The empty path fits these too; any other has found them through their container.
        if components.is_empty() {
            for (name, object) in self.sourced_children() {
                let children = Vec::new();
                out.push((format!("{here}/{name}"), Found { object, children }));
            }
        }
    }

    fn descend_mut(&mut self, components: &[&str]) -> Option<&mut Self> {
        let mut node = self;
        for name in components {
            node = node.children.get_mut(*name)?;
        }
        Some(node)
    }
}

/// An object with the names and types of its children.
struct Found {
    object: Arc<dyn Object>,
    children: Vec<(String, String)>,
}

/// Keeps an object from being deleted.
pub struct ObjectHold {
    object: Arc<dyn Object>,
    holds: Arc<AtomicUsize>,
}

impl ObjectHold {
    /// The object.
    pub fn object(&self) -> &Arc<dyn Object> {
        &self.object
    }
}

impl Drop for ObjectHold {
    fn drop(&mut self) {
        self.holds.fetch_sub(1, Ordering::AcqRel);
    }
}

/// All objects of a daemon or machine.
pub struct ObjectTree {
    types: ObjectTypes,
    root: Mutex<Node>,
}

fn components(path: &str) -> Vec<&str> {
    path.split('/').filter(|name| !name.is_empty()).collect()
}

impl ObjectTree {
    /// A tree with the containers `/backend`, `/objects` and `/chardevs`, all empty.
    pub fn new(types: ObjectTypes) -> Self {
        let mut root = Node::container();
        for name in ["backend", "objects", "chardevs"] {
            root.children.insert(name.to_owned(), Node::container());
        }
        Self {
            types,
            root: Mutex::new(root),
        }
    }

    /// Its types.
    pub fn types(&self) -> &ObjectTypes {
        &self.types
    }

    /// Puts an object in at an absolute path; containers that are missing on the way are made.
    ///
    /// # Errors
    /// The object's type is not registered, its place is taken, the path is too long, or the tree
    /// is full.
    pub fn attach(&self, path: &str, object: Arc<dyn Object>) -> Result<(), ObjectError> {
        if !self.types.contains(object.type_name()) {
            return Err(ObjectError::TypeNotFound(object.type_name().to_owned()));
        }
        let components = components(path);
        if components.len() > MAX_DEPTH {
            return Err(ObjectError::TooDeep);
        }
        let mut root = self.root.lock();
        let new_nodes = components.len();
        if root.count().saturating_add(new_nodes) > MAX_OBJECTS {
            return Err(ObjectError::TooManyObjects);
        }
        let Some((name, parents)) = components.split_last() else {
            return Err(duplicate("", &*root.object));
        };
        let mut node = &mut *root;
        for parent in parents {
            let children = &mut node.children;
            node = children
                .entry((*parent).to_owned())
                .or_insert_with(Node::container);
        }
        if node.children.contains_key(*name) {
            return Err(duplicate(name, &*node.object));
        }
        node.children.insert((*name).to_owned(), Node::new(object));
        Ok(())
    }

    /// Takes an object out, with everything below it.
    ///
    /// # Errors
    /// There is nothing at this absolute path.
    pub fn detach(&self, path: &str) -> Result<Arc<dyn Object>, ObjectError> {
        let components = components(path);
        let not_found = || ObjectError::PathNotFound(path.to_owned());
        let (name, parents) = components.split_last().ok_or_else(not_found)?;
        let mut root = self.root.lock();
        let parent = root.descend_mut(parents).ok_or_else(not_found)?;
        let node = parent.children.shift_remove(*name).ok_or_else(not_found)?;
        drop(root);
        // What was below it is dropped here, when the tree is not locked any more.
        Ok(node.object)
    }

    /// Shows the objects of another registry as the children of what is at an absolute path.
    ///
    /// # Errors
    /// There is nothing at this path.
    pub fn mount(&self, path: &str, source: Arc<dyn ChildSource>) -> Result<(), ObjectError> {
        let mut root = self.root.lock();
        match root.descend_mut(&components(path)) {
            Some(node) => {
                node.source = Some(source);
                Ok(())
            }
            None => Err(ObjectError::PathNotFound(path.to_owned())),
        }
    }

    /// Makes an object below `/objects`. It may read files and start threads: not for the thread of
    /// an event loop.
    ///
    /// # Errors
    /// Its id breaks the rules or is taken, or why it cannot be made.
    pub fn create(&self, options: ObjectOptions) -> Result<(), ObjectError> {
        let ObjectOptions { qom_type, id } = options;
        if !api::is_well_formed_id(&id) {
            return Err(ObjectError::MalformedId);
        }
        self.check_new_id(&id)?;
        let factory = self.types.factory(qom_type.kind())?;
        let object = factory(self, &id, qom_type)?;
        self.attach(&format!("/objects/{id}"), object)
    }

    fn check_new_id(&self, id: &str) -> Result<(), ObjectError> {
        let root = self.root.lock();
        match root.children.get("objects") {
            Some(objects) if objects.children.contains_key(id) => {
                Err(duplicate(id, &*objects.object))
            }
            _ => Ok(()),
        }
    }

    /// Takes out an object that was created. Whoever uses it keeps it alive.
    ///
    /// # Errors
    /// There is none of this id, or somebody holds it.
    pub fn delete(&self, id: &str) -> Result<(), ObjectError> {
        let mut root = self.root.lock();
        let objects = root.children.get_mut("objects");
        let children = objects.map(|objects| &mut objects.children);
        let not_found = || ObjectError::NoSuchObject(id.to_owned());
        let children = children.ok_or_else(not_found)?;
        let node = children.get(id).ok_or_else(not_found)?;
        if node.holds.load(Ordering::Acquire) > 0 {
            return Err(ObjectError::InUse(id.to_owned()));
        }
        let node = children.shift_remove(id);
        // Dropping an object can take its time, as an iothread's thread ends: not under the lock.
        drop(root);
        drop(node);
        Ok(())
    }

    /// Keeps an object below `/objects` from being deleted.
    ///
    /// # Errors
    /// There is none of this id.
    pub fn hold(&self, id: &str) -> Result<ObjectHold, ObjectError> {
        let root = self.root.lock();
        let objects = root.children.get("objects");
        let node = objects.and_then(|objects| objects.children.get(id));
        let node = node.ok_or_else(|| ObjectError::NoSuchObject(id.to_owned()))?;
        node.holds.fetch_add(1, Ordering::AcqRel);
        Ok(ObjectHold {
            object: Arc::clone(&node.object),
            holds: Arc::clone(&node.holds),
        })
    }

    /// The object below `/objects` that is called `id`.
    pub fn object(&self, id: &str) -> Option<Arc<dyn Object>> {
        let root = self.root.lock();
        let node = root.children.get("objects")?.children.get(id)?;
        Some(Arc::clone(&node.object))
    }

    /// The object below `/objects` that is called `id`, if it is a `T`.
    pub fn object_as<T: Any + Send + Sync>(&self, id: &str) -> Option<Arc<T>> {
        self.object(id)?.as_any().downcast().ok()
    }

    /// What a path leads to: absolute when it begins with a slash, else looked for everywhere.
    fn resolve(&self, path: &str) -> Result<(String, Found), ObjectError> {
        let components = components(path);
        if components.len() > MAX_DEPTH {
            return Err(ObjectError::PathNotFound(path.to_owned()));
        }
        let below = components.join("/");
        let root = self.root.lock();
        if path.starts_with('/') {
            let found = root.find(&components);
            let found = found.ok_or_else(|| ObjectError::PathNotFound(path.to_owned()))?;
            return Ok((format!("/{below}"), found));
        }
        let mut all = Vec::new();
        root.find_partial(&components, &mut all, "");
        if all.len() > 1 {
            return Err(ObjectError::AmbiguousPath(path.to_owned()));
        }
        match all.pop() {
            Some((above, found)) => Ok((format!("{above}/{below}"), found)),
            None => Err(ObjectError::PathNotFound(path.to_owned())),
        }
    }

    /// As [`Self::resolve`] for `qom-get` and `qom-set`, which call an ambiguous path unknown.
    fn resolve_one(&self, path: &str) -> Result<(String, Found), ObjectError> {
        self.resolve(path).map_err(|error| match error {
            ObjectError::AmbiguousPath(path) => ObjectError::PathNotFound(path),
            error => error,
        })
    }

    fn property(&self, type_name: &str, name: &str) -> Option<Property> {
        let mut properties = self.types.properties(type_name).into_iter();
        properties.find(|property| property.name == name)
    }

    /// The properties of an object: `type`, those of its type, its children.
    ///
    /// # Errors
    /// The path leads nowhere, or to several objects.
    pub fn list(&self, path: &str) -> Result<Vec<ObjectPropertyInfo>, ObjectError> {
        let (_, found) = self.resolve(path)?;
        let own = self.types.properties(found.object.type_name());
        Ok(property_infos(own)
            .chain(found.children.into_iter().map(child_info))
            .collect())
    }

    /// The properties of an object with their values.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub fn list_values(&self, path: &str) -> Result<Vec<ObjectPropertyValue>, ObjectError> {
        let (absolute, found) = self.resolve(path)?;
        let own = self.types.properties(found.object.type_name());
        let own = property_infos(own).map(|info| ObjectPropertyValue {
            value: match info.name.as_str() {
                "type" => Some(Value::from(found.object.type_name())),
                name => found.object.get(name).ok(),
            },
            name: info.name,
            r#type: info.r#type,
        });
        let children = found.children.iter().map(|child| {
            let info = child_info(child.clone());
            ObjectPropertyValue {
                value: Some(Value::from(join(&absolute, &child.0))),
                name: info.name,
                r#type: info.r#type,
            }
        });
        Ok(own.chain(children).collect())
    }

    /// A property's value. For a child it is the child's path.
    ///
    /// # Errors
    /// No such object or property.
    pub fn get(&self, path: &str, property: &str) -> Result<Value, ObjectError> {
        let (absolute, found) = self.resolve_one(path)?;
        let type_name = found.object.type_name();
        if property == "type" {
            return Ok(Value::from(type_name));
        }
        if self.property(type_name, property).is_some() {
            return found.object.get(property);
        }
        if found.children.iter().any(|(name, _)| name == property) {
            return Ok(Value::from(join(&absolute, property)));
        }
        Err(crate::object::property_not_found(&*found.object, property))
    }

    /// Changes a property.
    ///
    /// # Errors
    /// No such object or property, it is not writable, or the value does not fit.
    pub fn set(&self, path: &str, property: &str, value: Value) -> Result<(), ObjectError> {
        let (_, found) = self.resolve_one(path)?;
        let type_name = found.object.type_name();
        match self.property(type_name, property) {
            Some(known) if known.writable => found.object.set(property, value),
            None if property != "type"
                && found.children.iter().all(|child| child.0 != property) =>
            {
                Err(crate::object::property_not_found(&*found.object, property))
            }
            _ => Err(ObjectError::PropertyNotWritable {
                type_name: type_name.to_owned(),
                property: property.to_owned(),
            }),
        }
    }

    /// The secret called `id`.
    ///
    /// # Errors
    /// In QEMU's words that there is none, or that it is something else.
    pub fn secret(&self, id: &str) -> Result<Arc<Secret>, ObjectError> {
        let object = self.object(id);
        let object = object.ok_or_else(|| ObjectError::NoSecret(id.to_owned()))?;
        let secret = object.as_any().downcast();
        secret.map_err(|_| ObjectError::NotASecret(id.to_owned()))
    }

    /// The iothread called `id`.
    ///
    /// # Errors
    /// In QEMU's words that there is none.
    pub fn iothread(&self, id: &str) -> Result<Arc<IoThread>, ObjectError> {
        let iothread = self.object_as(id);
        iothread.ok_or_else(|| ObjectError::NoIoThread(id.to_owned()))
    }

    /// The throttle group called `id`, and a hold on it.
    ///
    /// # Errors
    /// In QEMU's words that there is none.
    pub fn throttle_group(
        &self,
        id: &str,
    ) -> Result<(Arc<ThrottleGroup>, ObjectHold), ObjectError> {
        let not_found = || ObjectError::NoThrottleGroup(id.to_owned());
        let hold = self.hold(id).map_err(|_| not_found())?;
        let group = Arc::clone(hold.object()).as_any().downcast();
        Ok((group.map_err(|_| not_found())?, hold))
    }

    fn tls_end(&self, id: &str) -> Result<tls::End, ObjectError> {
        let object = self.object(id);
        let object = object.ok_or_else(|| ObjectError::NoTlsCreds(id.to_owned()))?;
        tls::end_of(object).ok_or_else(|| ObjectError::NotTlsCreds(id.to_owned()))
    }

    /// What a TLS server needs, from the credentials called `id`.
    ///
    /// # Errors
    /// In QEMU's words that there are none, or that they are for a client.
    pub fn tls_server(&self, id: &str) -> Result<ServerTls, ObjectError> {
        self.tls_end(id)?.server()
    }

    /// What a TLS client needs, from the credentials called `id`.
    ///
    /// # Errors
    /// In QEMU's words that there are none, or that they are for a server.
    pub fn tls_client(&self, id: &str) -> Result<ClientTls, ObjectError> {
        self.tls_end(id)?.client()
    }

    /// The object called `id` that decides who is let in.
    ///
    /// # Errors
    /// There is none, or it decides nothing.
    pub fn authorizer(&self, id: &str) -> Result<Arc<dyn Authorizer>, ObjectError> {
        let object = self.object(id);
        let object = object.ok_or_else(|| ObjectError::NoAuthz(id.to_owned()))?;
        authz::as_authorizer(object).ok_or_else(|| ObjectError::NotAuthz(id.to_owned()))
    }
}

fn duplicate(name: &str, parent: &dyn Object) -> ObjectError {
    ObjectError::Duplicate {
        name: name.to_owned(),
        parent_type: parent.type_name().to_owned(),
    }
}

fn join(parent: &str, name: &str) -> String {
    format!("{}/{name}", parent.trim_end_matches('/'))
}

fn property_info(name: String, type_name: String) -> ObjectPropertyInfo {
    ObjectPropertyInfo {
        name,
        r#type: type_name,
        description: None,
        default_value: None,
    }
}

/// `type`, then these.
pub(crate) fn property_infos(
    properties: Vec<Property>,
) -> impl Iterator<Item = ObjectPropertyInfo> {
    let first = property_info("type".to_owned(), "string".to_owned());
    let rest = properties.into_iter();
    let rest = rest.map(|own| property_info(own.name.into_owned(), own.type_name.into_owned()));
    std::iter::once(first).chain(rest)
}

fn child_info((name, type_name): (String, String)) -> ObjectPropertyInfo {
    property_info(name, format!("child<{type_name}>"))
}
