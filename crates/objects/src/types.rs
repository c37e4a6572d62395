//! The types of objects.

use std::borrow::Cow;
use std::sync::Arc;

use api::{ObjectOptionsBranch, ObjectType, ObjectTypeInfo};
use indexmap::IndexMap;

use crate::error::ObjectError;
use crate::object::{Object, Property};
use crate::tree::ObjectTree;

/// Makes an object of one type: the tree to look other objects up in, its id, its options.
pub type Factory = Box<
    dyn Fn(&ObjectTree, &str, ObjectOptionsBranch) -> Result<Arc<dyn Object>, ObjectError>
        + Send
        + Sync,
>;

/// A type of objects.
#[derive(Debug, Clone)]
pub struct TypeSpec {
    /// Its name.
    pub name: Cow<'static, str>,
    /// The type it is derived from.
    pub parent: Option<Cow<'static, str>>,
    /// Whether there are no objects of just this type.
    pub is_abstract: bool,
    /// Interfaces that it has beside those of its parent.
    pub interfaces: Vec<Cow<'static, str>>,
    /// Properties that it has beside those of its parent.
    pub properties: Vec<Property>,
}

impl TypeSpec {
    /// A type that objects may have.
    pub fn concrete(name: &'static str, parent: &'static str, properties: Vec<Property>) -> Self {
        Self {
            name: Cow::Borrowed(name),
            parent: Some(Cow::Borrowed(parent)),
            is_abstract: false,
            interfaces: Vec::new(),
            properties,
        }
    }

    /// A type that others are derived from.
    pub fn abstract_type(
        name: &'static str,
        parent: &'static str,
        properties: Vec<Property>,
    ) -> Self {
        Self {
            is_abstract: true,
            ..Self::concrete(name, parent, properties)
        }
    }

    /// The same with an interface.
    #[must_use]
    pub fn with_interface(mut self, interface: &'static str) -> Self {
        self.interfaces.push(Cow::Borrowed(interface));
        self
    }
}

/// The interface of types that users create.
pub(crate) const USER_CREATABLE: &str = "user-creatable";

/// The name of the type that all interfaces are derived from.
const INTERFACE: &str = "interface";

/// All types of a tree.
pub struct ObjectTypes {
    types: IndexMap<Cow<'static, str>, TypeSpec>,
    factories: IndexMap<ObjectType, Factory>,
}

impl Default for ObjectTypes {
    fn default() -> Self {
        Self::new()
    }
}

impl ObjectTypes {
    /// `object`, `container` and `interface`, which every tree has.
    pub fn new() -> Self {
        let mut types = Self {
            types: IndexMap::new(),
            factories: IndexMap::new(),
        };
        let root = |name| TypeSpec {
            parent: None,
            ..TypeSpec::abstract_type(name, "", Vec::new())
        };
        types.register(root("object"));
        types.register(root(INTERFACE));
        types.register(TypeSpec::abstract_type(
            USER_CREATABLE,
            INTERFACE,
            Vec::new(),
        ));
        types.register(TypeSpec::concrete("container", "object", Vec::new()));
        types
    }

    /// Takes a type in. A later one of the same name replaces an earlier one.
    pub fn register(&mut self, spec: TypeSpec) {
        self.types.insert(spec.name.clone(), spec);
    }

    /// Says how objects of a schema type are made. A later factory replaces an earlier one.
    pub fn register_factory(&mut self, kind: ObjectType, factory: Factory) {
        self.factories.insert(kind, factory);
    }

    pub(crate) fn factory(&self, kind: ObjectType) -> Result<&Factory, ObjectError> {
        let factory = self.factories.get(&kind);
        factory.ok_or_else(|| ObjectError::NotCreatable(kind.to_string()))
    }

    /// Whether there is such a type.
    pub fn contains(&self, name: &str) -> bool {
        self.types.contains_key(name)
    }

    /// The type and those it is derived from, nearest first. Bounded, should a type be derived
    /// from itself.
    fn lineage(&self, name: &str) -> impl Iterator<Item = &TypeSpec> {
        let parent = |spec: &&TypeSpec| self.types.get(spec.parent.as_deref()?);
        std::iter::successors(self.types.get(name), parent).take(self.types.len())
    }

    /// Whether a type is derived from `other`, is it, or has it as an interface.
    pub fn implements(&self, name: &str, other: &str) -> bool {
        self.lineage(name).any(|spec| {
            spec.name == other
                || spec
                    .interfaces
                    .iter()
                    .any(|interface| self.is_derived(interface, other))
        })
    }

    fn is_derived(&self, name: &str, ancestor: &str) -> bool {
        self.lineage(name).any(|spec| spec.name == ancestor)
    }

    /// The properties of a type's objects without `type`, those of the outermost parent first.
    pub fn properties(&self, name: &str) -> Vec<Property> {
        let mut specs: Vec<_> = self.lineage(name).collect();
        specs.reverse();
        specs
            .into_iter()
            .flat_map(|spec| spec.properties.iter().cloned())
            .collect()
    }

    /// As [`Self::properties`], for a client that named the type.
    ///
    /// # Errors
    /// No such type, or it is an interface.
    pub fn properties_of_class(&self, name: &str) -> Result<Vec<Property>, ObjectError> {
        if !self.contains(name) {
            return Err(ObjectError::TypeNotFound(name.to_owned()));
        }
        if self.is_derived(name, INTERFACE) {
            return Err(ObjectError::NotAClass);
        }
        Ok(self.properties(name))
    }

    /// What `qom-list-types` answers.
    pub fn list(&self, implements: Option<&str>, include_abstract: bool) -> Vec<ObjectTypeInfo> {
        let wanted = |spec: &&TypeSpec| {
            (include_abstract || !spec.is_abstract)
                && implements.is_none_or(|other| self.implements(&spec.name, other))
        };
        let info = |spec: &TypeSpec| ObjectTypeInfo {
            name: spec.name.clone().into_owned(),
            r#abstract: spec.is_abstract.then_some(true),
            parent: spec.parent.clone().map(Cow::into_owned),
        };
        self.types.values().filter(wanted).map(info).collect()
    }
}
