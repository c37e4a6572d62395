//! Constructs that the protocol's own schema does not have, and round trips.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::generated::*;
use crate::{FromQapi, ToQapi, from_json};

fn round_trip<T: FromQapi + ToQapi>(value: Value) {
    let read: T = from_json(value.clone()).unwrap();
    assert_eq!(read.to_qapi(), value);
}

#[test]
fn every_construct_reads_and_writes() {
    round_trip::<Numbers>(json!({ "int8": -1, "uint64": u64::MAX, "size": 5, "number": 1.5 }));
    round_trip::<Scalars>(
        json!({ "str": "é", "bool": true, "null": null, "any": { "x": [1] }, "size": 0 }),
    );
    round_trip::<Oddities>(
        json!({ "CPU_id": 1, "type": "t", "self": false, "a-list": ["3-green", "self"] }),
    );
    round_trip::<Tree>(
        json!({ "name": "a", "left": { "name": "b" }, "other": { "trees": [{ "name": "c" }] } }),
    );
    round_trip::<Derived>(json!({ "id": "i", "note": "n", "value": 1 }));
    round_trip::<Shape>(json!({ "name": "p", "kind": "point", "visible": true }));
    round_trip::<Shape>(json!({ "name": "g", "kind": "group", "parts": [
        { "name": "b", "kind": "box", "width": 1, "height": 2 },
        { "name": "c", "kind": "circle", "radius": 0.5 } ] }));
    for value in [
        json!("red"),
        json!(3),
        json!(null),
        json!(true),
        json!([1, 255]),
        json!({ "name": "p", "kind": "point" }),
    ] {
        round_trip::<Ref>(value);
    }
    round_trip::<Address>(json!({ "type": "inet", "data": { "host": "h" } }));
    round_trip::<Address>(json!({ "type": "unix", "data": "path" }));
    round_trip::<Address>(json!({ "type": "fds", "data": [1, 2] }));
    round_trip::<VersionNumbers>(json!({ "qemu": { "major": 1, "minor": 2 } }));
}

#[test]
fn defaults_exist_where_everything_is_optional() {
    assert_eq!(Numbers::default().to_qapi(), json!({}));
}

#[test]
fn branches_know_their_kind() {
    let shape: Shape = from_json(json!({ "name": "c", "kind": "circle", "radius": 1 })).unwrap();
    assert_eq!(shape.kind.kind(), ShapeKind::Circle);
    assert_eq!(
        shape.kind,
        ShapeBranch::Circle(Box::new(Circle { radius: 1.0 }))
    );
    let wrong = from_json::<Shape>(json!({ "name": "c", "kind": "point", "radius": 1 }));
    assert_eq!(wrong.unwrap_err().desc, "Parameter 'radius' is unexpected");
}

#[test]
fn enums_know_their_strings() {
    for value in Colour::ALL {
        assert_eq!(value.as_str().parse::<Colour>().unwrap(), *value);
        assert_eq!(value.to_string(), value.as_str());
    }
    assert!("blue".parse::<Colour>().is_err());
}

#[test]
fn events_have_names_and_data() {
    let data = json!({ "shape": { "name": "p", "kind": "point" }, "count": 2 });
    let event = Event::from_parts("SHAPE_DRAWN", data.clone())
        .unwrap()
        .unwrap();
    assert_eq!((event.name(), event.data()), ("SHAPE_DRAWN", data));
    assert_eq!(Event::Done.data(), json!({}));
    assert_eq!(
        Event::from_parts("DONE", json!({ "new": 1 })).unwrap(),
        Some(Event::Done)
    );
    assert_eq!(Event::from_parts("OTHER", json!({})).unwrap(), None);
    assert!(Event::from_parts("TREE_GROWN", json!({})).is_err());
    assert_eq!(EVENT_NAMES, ["SHAPE_DRAWN", "TREE_GROWN", "DONE"]);
}

/// Any shape, three levels deep.
fn shape() -> impl Strategy<Value = Shape> {
    let leaf = (
        ".{0,5}",
        proptest::option::of(any::<bool>()),
        any::<f64>(),
        any::<(u32, u32)>(),
        0..3,
    )
        .prop_map(|(name, visible, radius, (width, height), which)| {
            let radius = if radius.is_finite() { radius } else { 0.0 };
            let kind = match which {
                0 => ShapeBranch::Point,
                1 => ShapeBranch::Circle(Box::new(Circle { radius })),
                _ => ShapeBranch::Box(Box::new(Rectangle { width, height })),
            };
            Shape {
                name,
                kind,
                visible,
            }
        });
    leaf.prop_recursive(3, 16, 4, |inner| {
        (".{0,5}", proptest::collection::vec(inner, 0..4)).prop_map(|(name, parts)| Shape {
            name,
            kind: ShapeBranch::Group(Box::new(Group { parts })),
            visible: None,
        })
    })
}

proptest! {
    /// What is written, through JSON text, is read back the same.
    #[test]
    fn shapes_survive(shape in shape()) {
        let text = shape.to_qapi().to_string();
        let value: Value = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(from_json::<Shape>(value).unwrap(), shape);
    }

    #[test]
    fn numbers_survive(
        int in any::<i64>(), uint64 in any::<u64>(), int8 in any::<i8>(), size in any::<u64>(),
    ) {
        let numbers = Numbers {
            int: Some(int), uint64: Some(uint64), int8: Some(int8), size: Some(size), ..Numbers::default()
        };
        let value: Value = serde_json::from_str(&numbers.to_qapi().to_string()).unwrap();
        prop_assert_eq!(from_json::<Numbers>(value).unwrap(), numbers);
    }
}
