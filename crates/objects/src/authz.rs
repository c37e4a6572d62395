//! `authz-*`: who is let in.

mod glob;
mod list_file;

use std::any::Any;
use std::sync::Arc;

use api::{
    AuthZListProperties, AuthZSimpleProperties, ObjectOptionsBranch, ObjectType, QAuthZListFormat,
    QAuthZListPolicy, QAuthZListRule, ToQapi,
};
use parking_lot::Mutex;
use serde_json::Value;

use crate::error::ObjectError;
use crate::object::{Object, Property, as_options, property_not_found};
use crate::types::{ObjectTypes, TypeSpec, USER_CREATABLE};

pub use list_file::{AuthzListFile, LIST_FILE_BYTES_MAX};

/// Decides who is let in.
pub trait Authorizer: Send + Sync + 'static {
    /// Whether this identity is: with TLS the distinguished name of the peer's certificate, see
    /// [`crate::distinguished_name`]. It may look at a file: not for the thread of an event loop.
    fn is_allowed(&self, identity: &str) -> bool;
}

/// The object, if it decides who is let in.
pub(crate) fn as_authorizer(object: Arc<dyn Object>) -> Option<Arc<dyn Authorizer>> {
    let object = object.as_any();
    let object = match object.downcast::<AuthzSimple>() {
        Ok(simple) => return Some(simple),
        Err(object) => object,
    };
    let object = match object.downcast::<AuthzList>() {
        Ok(list) => return Some(list),
        Err(object) => object,
    };
    match object.downcast::<AuthzListFile>() {
        Ok(list) => Some(list),
        Err(_) => None,
    }
}

pub(crate) fn register(types: &mut ObjectTypes) {
    types.register(TypeSpec::abstract_type("authz", "object", Vec::new()));
    let concrete = |name, properties| {
        TypeSpec::concrete(name, "authz", properties).with_interface(USER_CREATABLE)
    };
    types.register(concrete(
        "authz-simple",
        vec![Property::writable("identity", "string")],
    ));
    types.register(concrete(
        "authz-list",
        vec![
            Property::writable("policy", "QAuthZListPolicy"),
            Property::writable("rules", "QAuthZListRule"),
        ],
    ));
    types.register(concrete(
        "authz-list-file",
        vec![
            Property::writable("filename", "string"),
            Property::writable("refresh", "bool"),
        ],
    ));
    types.register_factory(
        ObjectType::AuthzSimple,
        Box::new(|_tree, _id, options| match options {
            ObjectOptionsBranch::AuthzSimple(options) => Ok(Arc::new(AuthzSimple {
                identity: Mutex::new(options.identity),
            })),
            other => Err(ObjectError::NotCreatable(other.kind().to_string())),
        }),
    );
    types.register_factory(
        ObjectType::AuthzList,
        Box::new(|_tree, _id, options| match options {
            ObjectOptionsBranch::AuthzList(options) => Ok(Arc::new(AuthzList {
                list: Mutex::new(*options),
            })),
            other => Err(ObjectError::NotCreatable(other.kind().to_string())),
        }),
    );
    types.register_factory(
        ObjectType::AuthzListfile,
        Box::new(|_tree, _id, options| match options {
            ObjectOptionsBranch::AuthzListfile(options) => {
                Ok(Arc::new(AuthzListFile::load(*options)?))
            }
            other => Err(ObjectError::NotCreatable(other.kind().to_string())),
        }),
    );
}

/// Lets in one identity.
pub struct AuthzSimple {
    identity: Mutex<String>,
}

impl Authorizer for AuthzSimple {
    fn is_allowed(&self, identity: &str) -> bool {
        *self.identity.lock() == identity
    }
}

impl Object for AuthzSimple {
    fn type_name(&self) -> &str {
        "authz-simple"
    }

    fn get(&self, property: &str) -> Result<Value, ObjectError> {
        match property {
            "identity" => Ok(Value::from(self.identity.lock().as_str())),
            _ => Err(property_not_found(self, property)),
        }
    }

    fn set(&self, property: &str, value: Value) -> Result<(), ObjectError> {
        let new: AuthZSimpleProperties = api::from_json(as_options(property, value))?;
        *self.identity.lock() = new.identity;
        Ok(())
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// An access list that is given in place: the first rule that matches decides, else the policy.
pub struct AuthzList {
    list: Mutex<AuthZListProperties>,
}

impl Authorizer for AuthzList {
    fn is_allowed(&self, identity: &str) -> bool {
        decide(&self.list.lock(), identity)
    }
}

/// What a list says of an identity.
fn decide(list: &AuthZListProperties, identity: &str) -> bool {
    let rules = list.rules.as_deref().unwrap_or_default();
    let decisive = rules.iter().find(|rule| matches(rule, identity));
    let policy = decisive.map(|rule| rule.policy).or(list.policy);
    policy == Some(QAuthZListPolicy::Allow)
}

fn matches(rule: &QAuthZListRule, identity: &str) -> bool {
    match rule.format.unwrap_or(QAuthZListFormat::Exact) {
        QAuthZListFormat::Exact => rule.r#match == identity,
        QAuthZListFormat::Glob => glob::matches(&rule.r#match, identity),
    }
}

impl Object for AuthzList {
    fn type_name(&self) -> &str {
        "authz-list"
    }

    fn get(&self, property: &str) -> Result<Value, ObjectError> {
        let list = self.list.lock();
        match property {
            "policy" => Ok(list.policy.unwrap_or(QAuthZListPolicy::Deny).to_qapi()),
            "rules" => {
                let rules = list.rules.as_deref().unwrap_or_default();
                Ok(rules.iter().map(ToQapi::to_qapi).collect())
            }
            _ => Err(property_not_found(self, property)),
        }
    }

    fn set(&self, property: &str, value: Value) -> Result<(), ObjectError> {
        let new: AuthZListProperties = api::from_json(as_options(property, value))?;
        let mut list = self.list.lock();
        list.policy = new.policy.or(list.policy);
        if new.rules.is_some() {
            list.rules = new.rules;
        }
        Ok(())
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}
