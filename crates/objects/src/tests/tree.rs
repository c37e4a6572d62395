//! The tree beyond what the transcripts have.

use std::any::Any;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::Server;
use crate::{ChildSource, MAX_OBJECTS, Object, ObjectError, ObjectTree, Property, TypeSpec};

/// A device, as a machine would put it in.
struct Clock;

impl Object for Clock {
    fn type_name(&self) -> &str {
        "mc146818rtc"
    }

    fn get(&self, property: &str) -> Result<Value, ObjectError> {
        assert_eq!(property, "base_year");
        Ok(json!(1980))
    }

    fn set(&self, _property: &str, _value: Value) -> Result<(), ObjectError> {
        Err(ObjectError::invalid("too late"))
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

fn tree_with_clock() -> ObjectTree {
    let mut types = crate::standard_types();
    types.register(TypeSpec::abstract_type("device", "object", Vec::new()));
    let properties = vec![Property::writable("base_year", "int32")];
    types.register(TypeSpec::concrete("mc146818rtc", "device", properties));
    ObjectTree::new(types)
}

fn list_names(tree: &ObjectTree, path: &str) -> Vec<String> {
    let list = tree.list(path).unwrap();
    list.into_iter().map(|info| info.name).collect()
}

#[test]
fn a_machine_can_be_put_in() {
    let tree = tree_with_clock();
    tree.attach("/machine/unattached/rtc", Arc::new(Clock))
        .unwrap();
    assert_eq!(tree.get("rtc", "base_year").unwrap(), json!(1980));
    assert_eq!(
        tree.get("unattached", "rtc").unwrap(),
        json!("/machine/unattached/rtc")
    );
    assert_eq!(
        list_names(&tree, "/machine/unattached/rtc"),
        ["type", "base_year"]
    );
    assert_eq!(
        tree.set("rtc", "base_year", json!(1))
            .unwrap_err()
            .to_string(),
        "too late"
    );
    let twice = tree.attach("/machine/unattached/rtc", Arc::new(Clock));
    assert_eq!(
        twice.unwrap_err().to_string(),
        "attempt to add duplicate property 'rtc' to object (type 'container')"
    );
    let devices = tree.types().list(Some("device"), false);
    assert_eq!(devices.len(), 1);
    tree.detach("/machine/unattached").unwrap();
    assert!(tree.get("rtc", "base_year").is_err());
    assert!(tree.detach("/").is_err());
}

#[test]
fn an_unknown_type_is_refused() {
    let tree = ObjectTree::new(crate::standard_types());
    let refused = tree.attach("/x", Arc::new(Clock)).unwrap_err();
    assert!(matches!(refused, ObjectError::TypeNotFound(_)));
}

struct Clocks;

impl ChildSource for Clocks {
    fn children(&self) -> Vec<(String, Arc<dyn Object>)> {
        vec![("c 0".to_owned(), Arc::new(Clock))]
    }
}

#[test]
fn children_of_another_registry_are_shown() {
    let tree = tree_with_clock();
    tree.mount("/chardevs", Arc::new(Clocks)).unwrap();
    assert_eq!(list_names(&tree, "/chardevs"), ["type", "c 0"]);
    assert_eq!(tree.get("c 0", "type").unwrap(), json!("mc146818rtc"));
    assert_eq!(
        tree.get("/chardevs", "c 0").unwrap(),
        json!("/chardevs/c 0")
    );
    assert!(matches!(
        tree.set("/chardevs", "c 0", json!(1)),
        Err(ObjectError::PropertyNotWritable { .. })
    ));
    assert!(tree.mount("/none", Arc::new(Clocks)).is_err());
}

#[test]
fn what_is_held_cannot_be_deleted() {
    let server = Server::new();
    server
        .add(json!({"qom-type": "throttle-group", "id": "tg"}))
        .unwrap();
    let delete = || server.run("object-del", json!({"id": "tg"}));
    let first = server.tree.hold("tg").unwrap();
    let (group, second) = server.tree.throttle_group("tg").unwrap();
    assert_eq!(group.limits().iops_total, Some(0));
    let in_use = "object 'tg' is in use, can not be deleted";
    assert_eq!(delete().unwrap_err().desc, in_use);
    drop(first);
    assert_eq!(delete().unwrap_err().desc, in_use);
    drop(second);
    delete().unwrap();
    assert!(server.tree.hold("tg").is_err());
}

/// Answers of qemu-storage-daemon 10.0.2.
#[test]
fn ambiguous_names_are_unknown_to_get() {
    let server = Server::new();
    server
        .add(json!({"qom-type": "secret", "id": "backend", "data": "x"}))
        .unwrap();
    let list = server.run("qom-list", json!({"path": "backend"}));
    assert_eq!(list.unwrap_err().desc, "Path 'backend' is ambiguous");
    let get = |path| server.run("qom-get", json!({"path": path, "property": "type"}));
    assert_eq!(
        get("backend").unwrap_err().desc,
        "Device 'backend' not found"
    );
    assert_eq!(get("objects/backend").unwrap(), json!("secret"));
    assert_eq!(get("/backend").unwrap(), json!("container"));
}

#[test]
fn types_are_listed_with_what_they_implement() {
    let server = Server::new();
    let names = |arguments| {
        let list = server.run("qom-list-types", arguments).unwrap();
        let list = list.as_array().unwrap().clone();
        let mut names: Vec<_> = list
            .iter()
            .map(|info| info["name"].as_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    };
    assert_eq!(
        names(json!({"implements": "authz", "abstract": true})),
        ["authz", "authz-list", "authz-list-file", "authz-simple"]
    );
    let mut creatable = vec![
        "authz-list",
        "authz-list-file",
        "authz-simple",
        "iothread",
        "secret",
        "throttle-group",
    ];
    if cfg!(feature = "tls-anon-psk") {
        creatable.extend(["tls-creds-anon", "tls-creds-psk"]);
    }
    creatable.push("tls-creds-x509");
    assert_eq!(names(json!({"implements": "user-creatable"})), creatable);
    let interface = server.run("qom-list-properties", json!({"typename": "user-creatable"}));
    assert_eq!(
        interface.unwrap_err().desc,
        "Parameter 'typename' expects a QOM type"
    );
    // Each type that the schema has can be made.
    for kind in api::ObjectType::ALL {
        assert!(server.tree.types().factory(*kind).is_ok(), "{kind}");
    }
}

#[test]
fn all_values_are_read_at_once() {
    let server = Server::new();
    server
        .add(json!({"qom-type": "authz-simple", "id": "s", "identity": "fred"}))
        .unwrap();
    let got = server.run("qom-list-get", json!({"paths": ["/objects/s", "/objects"]}));
    let want = json!([
        {"properties": [
            {"name": "type", "type": "string", "value": "authz-simple"},
            {"name": "identity", "type": "string", "value": "fred"},
        ]},
        {"properties": [
            {"name": "type", "type": "string", "value": "container"},
            {"name": "s", "type": "child<authz-simple>", "value": "/objects/s"},
        ]},
    ]);
    assert_eq!(got.unwrap(), want);
    let none = server.run("qom-list-get", json!({"paths": ["/none"]}));
    assert_eq!(none.unwrap_err().desc, "Device '/none' not found");
}

#[test]
fn a_full_tree_says_so() {
    let tree = tree_with_clock();
    let mut added = 0;
    let full = loop {
        match tree.attach(&format!("/machine/{added}"), Arc::new(Clock)) {
            Ok(()) => added += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, ObjectError::TooManyObjects));
    // The root, three containers, and the machine stand beside the clocks.
    assert!(added + 5 >= MAX_OBJECTS - 1 && added + 5 <= MAX_OBJECTS);
    let deep = "/a".repeat(1_000_000);
    assert!(matches!(
        tree.attach(&deep, Arc::new(Clock)),
        Err(ObjectError::TooDeep)
    ));
    assert!(tree.list(&deep).is_err());
}

proptest! {
    #[test]
    fn absolute_paths_find_what_their_components_say(
        names in proptest::collection::vec("[a-c]", 1..5),
        slashes in proptest::collection::vec(1usize..3, 5),
    ) {
        let tree = tree_with_clock();
        let path = format!("/m/{}", names.join("/"));
        tree.attach(&path, Arc::new(Clock)).unwrap();
        let mut spelled = "/m".to_owned();
        for (name, count) in names.iter().zip(&slashes) {
            spelled.push_str(&"/".repeat(*count));
            spelled.push_str(name);
        }
        prop_assert_eq!(tree.get(&spelled, "base_year").unwrap(), json!(1980));
        let partial = format!("m/{}", names.join("/"));
        prop_assert_eq!(tree.get(&partial, "base_year").unwrap(), json!(1980));
    }

    #[test]
    fn no_path_harms(path in "[/a-c.]{0,20}", property in ".{0,5}") {
        let tree = tree_with_clock();
        tree.attach("/a/b/c", Arc::new(Clock)).unwrap();
        let _ = tree.list(&path);
        let _ = tree.list_values(&path);
        if property != "base_year" {
            let _ = tree.set(&path, &property, json!(1));
        }
    }
}
