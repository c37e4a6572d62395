//! Good schemas of each era, and what introspection and documentation make of them.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{load_files, load_text};
use crate::introspect::{compact, introspect, pretty};
use crate::markdown::markdown;
use crate::{Pending, Schema};

/// Today's language.
pub(super) const MODERN: &str = "\
##
# = Shapes
#
# Things to draw.
##

{ 'pragma': { 'doc-required': true, 'command-returns-exceptions': [ 'count-shapes' ],
              'documentation-exceptions': [ 'Circle' ] } }

##
# @ShapeKind:
#
# Kinds of shapes.
#
# @point: no extent
#
# @circle: round
#
# @blob: whatever
#
# Features:
#
# @deprecated: @blob will go
##
{ 'enum': 'ShapeKind',
  'data': [ 'point', 'circle', { 'name': 'blob', 'if': 'CONFIG_BLOB', 'features': [ 'deprecated' ] } ] }

##
# @Circle:
#
# A circle.
##
{ 'struct': 'Circle', 'data': { 'radius': 'number' } }

##
# @Shape:
#
# A shape.
#
# @name: its name, see @ShapeKind
#
# @kind: what it is
#
# @parent: the shape it is in
##
{ 'union': 'Shape', 'base': { 'name': 'str', 'kind': 'ShapeKind', '*parent': 'ShapeRef' },
  'discriminator': 'kind', 'data': { 'circle': 'Circle' } }

##
# @ShapeRef:
#
# A shape or its name.
#
# @inline: the shape
#
# @name: its name
##
{ 'alternate': 'ShapeRef', 'data': { 'inline': 'Shape', 'name': 'str' } }

##
# @draw:
#
# Draws shapes.
#
# @shapes: what to draw
#     and how
#
# @scale: factor (default: 1)
#
# Features:
#
# @fast: draws fast
#
# @unstable: @scale may change
#
# Returns: what was drawn
#
# Errors:
#     - GenericError when it cannot
#
# Since: 1.0
##
{ 'command': 'draw', 'data': { 'shapes': [ 'Shape' ], '*scale': { 'type': 'uint8', 'features': [ 'unstable' ] } },
  'returns': [ 'Shape' ], 'allow-oob': true, 'features': [ { 'name': 'fast', 'if': { 'not': 'SLOW' } } ] }

##
# @count-shapes:
#
# Counts.
##
{ 'command': 'count-shapes', 'returns': 'int', 'if': { 'any': [ 'CONFIG_COUNT', { 'all': [ 'AA', 'BB' ] } ] } }

##
# @DRAWN:
#
# Something was drawn.
##
{ 'event': 'DRAWN' }
";

/// About 2.11.
pub(super) const ERA_2_11: &str = "\
{ 'pragma': { 'doc-required': true, 'returns-whitelist': [ 'query-width' ], 'name-case-whitelist': [ 'Box' ] } }
##
# @Box:
# @Width: #optional how wide
# Since: 1.3
##
{ 'struct': 'Box', 'data': { '*Width': 'int' } }
{ 'union': 'Thing', 'data': { 'box': 'Box', 'text': 'str', 'numbers': [ 'int' ] } }
{ 'command': 'query-width', 'returns': 'int' }
{ 'command': 'put_thing', 'data': { 'thing': 'Thing' } }
";

/// About 1.2.
pub(super) const ERA_1_2: &str = "\
# -*- Mode: Python -*-
##
# @VersionInfo:
#
# @qemu.major:  a number
#
# @package:     #optional text
{ 'type': 'VersionInfo', 'data': { 'qemu': { 'major': 'int', 'micro': 'int' }, '*package': 'str' } }
{ 'command': 'query-version', 'returns': 'VersionInfo' }
{ 'command': 'netdev_add', 'data': { 'type': 'str', '*props': '**' }, 'gen': 'no' }
{ 'command': 'qom-get', 'data': { 'path': 'str' }, 'returns': 'visitor', 'gen': 'no' }
{ 'union': 'Thing', 'data': { 'version': 'VersionInfo' } }
{ 'command': 'put', 'data': { 'thing': 'Thing' } }
";

fn restricted(text: &str, config: &[&str]) -> Schema {
    let config: BTreeSet<String> = config.iter().map(|name| (*name).to_owned()).collect();
    load_text(text)
        .unwrap()
        .restrict(&config, &Pending::default())
        .unwrap()
}

#[test]
fn modern_introspection() {
    assert_eq!(
        introspect(&restricted(MODERN, &[])),
        json!([
            { "name": "draw", "meta-type": "command", "arg-type": "0", "ret-type": "[1]",
              "allow-oob": true, "features": ["fast"] },
            { "name": "DRAWN", "meta-type": "event", "arg-type": "2" },
            { "name": "0", "meta-type": "object", "members": [
                { "name": "shapes", "type": "[1]" },
                { "name": "scale", "type": "int", "default": null, "features": ["unstable"] } ] },
            { "name": "[1]", "meta-type": "array", "element-type": "1" },
            { "name": "1", "meta-type": "object", "members": [
                { "name": "name", "type": "str" },
                { "name": "kind", "type": "3" },
                { "name": "parent", "type": "4", "default": null } ],
              "tag": "kind", "variants": [
                { "case": "circle", "type": "5" },
                { "case": "point", "type": "2" } ] },
            { "name": "2", "meta-type": "object", "members": [] },
            { "name": "int", "meta-type": "builtin", "json-type": "int" },
            { "name": "str", "meta-type": "builtin", "json-type": "string" },
            { "name": "3", "meta-type": "enum",
              "members": [{ "name": "point" }, { "name": "circle" }], "values": ["point", "circle"] },
            { "name": "4", "meta-type": "alternate", "members": [{ "type": "1" }, { "type": "str" }] },
            { "name": "5", "meta-type": "object", "members": [{ "name": "radius", "type": "number" }] },
            { "name": "number", "meta-type": "builtin", "json-type": "number" },
        ])
    );
}

#[test]
fn conditions_decide_what_is_there() {
    let names = |config: &[&str]| -> Vec<String> {
        let schema = restricted(MODERN, config);
        schema
            .definitions()
            .filter(|(_, d)| d.meta_type() == "command")
            .map(|(_, d)| d.name.clone())
            .collect()
    };
    assert_eq!(names(&[]), ["draw"]);
    assert_eq!(names(&["CONFIG_COUNT"]), ["draw", "count-shapes"]);
    assert_eq!(names(&["AA"]), ["draw"]);
    assert_eq!(names(&["AA", "BB"]), ["draw", "count-shapes"]);
    let text = compact(&introspect(&restricted(MODERN, &["CONFIG_BLOB", "SLOW"])));
    assert!(text.contains(r#"{"name":"blob","features":["deprecated"]}"#));
    assert!(!text.contains("fast"));
    let used = "{ 'command': 'c', 'data': 'Ss' }\n{ 'struct': 'Ss', 'data': {}, 'if': 'XX' }";
    let error = load_text(used)
        .unwrap()
        .restrict(&BTreeSet::new(), &Pending::default())
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "'c' uses 'Ss', whose condition does not hold"
    );
}

#[test]
fn what_is_pending_is_absent() {
    let schema = load_text(MODERN).unwrap();
    let list = |names: &[&str]| {
        names
            .iter()
            .map(|n| ((*n).to_owned(), "later".to_owned()))
            .collect()
    };
    let pending = Pending {
        commands: list(&["count-shapes"]),
        events: list(&["DRAWN"]),
        members: list(&["ShapeKind.circle", "draw.scale", "Shape.parent"]),
    };
    let text = compact(&introspect(
        &schema.restrict(&BTreeSet::new(), &pending).unwrap(),
    ));
    for gone in [
        "count-shapes",
        "DRAWN",
        "circle",
        "scale",
        "parent",
        "radius",
    ] {
        assert!(!text.contains(gone), "{gone} in {text}");
    }
    let with_member = |name: &str| {
        let pending = Pending {
            members: list(&[name]),
            ..Pending::default()
        };
        schema
            .restrict(&BTreeSet::new(), &pending)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        with_member("Shape.nothing"),
        "pending member 'Shape.nothing' is not in the schema"
    );
    assert_eq!(
        with_member("Shape.kind"),
        "discriminator 'kind' of 'Shape' cannot be pending"
    );
}

#[test]
fn era_2_11_introspection() {
    assert_eq!(
        introspect(&restricted(ERA_2_11, &[])),
        json!([
            { "name": "query-width", "meta-type": "command", "arg-type": "0", "ret-type": "int" },
            { "name": "put_thing", "meta-type": "command", "arg-type": "1", "ret-type": "0" },
            { "name": "0", "meta-type": "object", "members": [] },
            { "name": "int", "meta-type": "builtin", "json-type": "int" },
            { "name": "1", "meta-type": "object", "members": [{ "name": "thing", "type": "2" }] },
            { "name": "2", "meta-type": "object", "members": [{ "name": "type", "type": "3" }],
              "tag": "type", "variants": [
                { "case": "box", "type": "4" }, { "case": "text", "type": "5" },
                { "case": "numbers", "type": "6" } ] },
            { "name": "3", "meta-type": "enum",
              "members": [{ "name": "box" }, { "name": "text" }, { "name": "numbers" }],
              "values": ["box", "text", "numbers"] },
            { "name": "4", "meta-type": "object", "members": [{ "name": "data", "type": "7" }] },
            { "name": "5", "meta-type": "object", "members": [{ "name": "data", "type": "str" }] },
            { "name": "6", "meta-type": "object", "members": [{ "name": "data", "type": "[int]" }] },
            { "name": "7", "meta-type": "object", "members": [{ "name": "Width", "type": "int", "default": null }] },
            { "name": "str", "meta-type": "builtin", "json-type": "string" },
            { "name": "[int]", "meta-type": "array", "element-type": "int" },
        ])
    );
}

#[test]
fn era_1_2_introspection() {
    let infos = introspect(&restricted(ERA_1_2, &[]));
    assert_eq!(
        infos,
        json!([
            { "name": "query-version", "meta-type": "command", "arg-type": "0", "ret-type": "1" },
            { "name": "netdev_add", "meta-type": "command", "arg-type": "2", "ret-type": "0" },
            { "name": "qom-get", "meta-type": "command", "arg-type": "3", "ret-type": "any" },
            { "name": "put", "meta-type": "command", "arg-type": "4", "ret-type": "0" },
            { "name": "0", "meta-type": "object", "members": [] },
            { "name": "1", "meta-type": "object", "members": [
                { "name": "qemu", "type": "5" }, { "name": "package", "type": "str", "default": null } ] },
            { "name": "2", "meta-type": "object", "members": [{ "name": "type", "type": "str" }] },
            { "name": "3", "meta-type": "object", "members": [{ "name": "path", "type": "str" }] },
            { "name": "any", "meta-type": "builtin", "json-type": "value" },
            { "name": "4", "meta-type": "object", "members": [{ "name": "thing", "type": "6" }] },
            { "name": "5", "meta-type": "object", "members": [
                { "name": "major", "type": "int" }, { "name": "micro", "type": "int" } ] },
            { "name": "str", "meta-type": "builtin", "json-type": "string" },
            { "name": "6", "meta-type": "object", "members": [{ "name": "type", "type": "7" }],
              "tag": "type", "variants": [{ "case": "version", "type": "8" }] },
            { "name": "int", "meta-type": "builtin", "json-type": "int" },
            { "name": "7", "meta-type": "enum", "members": [{ "name": "version" }], "values": ["version"] },
            { "name": "8", "meta-type": "object", "members": [{ "name": "data", "type": "1" }] },
        ])
    );
    // Nothing but white space tells the two texts apart.
    let parsed: Value = serde_json::from_str(&pretty(&infos)).unwrap();
    assert_eq!(compact(&parsed), compact(&infos));
}

#[test]
fn files_are_included_once_and_keep_their_dialect() {
    let schema = load_files(&[
        ("top/schema.json", "{ 'include': 'a.json' }\n{ 'include': '../top/./a.json' }\n{ 'include': 'b.json' }\n{ 'event': 'LAST' }"),
        ("top/a.json", "{ 'include': 'b.json' }\n{ 'type': 'Old', 'data': { 'x': { 'y': 'int' } } }"),
        ("top/b.json", "{ 'event': 'FIRST' }"),
    ])
    .unwrap();
    let events: Vec<&str> = schema
        .definitions()
        .filter(|(_, d)| d.meta_type() == "event")
        .map(|(_, d)| d.name.as_str())
        .collect();
    assert_eq!(events, ["FIRST", "LAST"]);
    assert_eq!(
        schema
            .modules()
            .iter()
            .map(|m| m.name())
            .collect::<Vec<_>>(),
        ["schema", "a", "b"]
    );
    assert!(schema.summary().contains("event: 2\n"));
}

#[test]
fn documentation_becomes_markdown() {
    let expected = "\
# Module s

## Shapes

Things to draw.

### ShapeKind (enum)

Kinds of shapes.

**Values**

- `point`: no extent
- `circle`: round
- `blob` [deprecated] (if `CONFIG_BLOB`): whatever

**Features**

- `deprecated`: `blob` will go

### Circle (struct)

A circle.

**Members**

- `radius` (`number`)

### Shape (union)

A shape.

**Members**

- `name` (`str`): its name, see `ShapeKind`
- `kind` (`ShapeKind`): what it is
- `parent` (`ShapeRef`, optional): the shape it is in

**Branches**

- when `kind` is `circle`: the members of `Circle`

### ShapeRef (alternate)

A shape or its name.

**Alternatives**

- `inline`: `Shape`: the shape
- `name`: `str`: its name

### draw (command)

Draws shapes.

**Arguments**

- `shapes` (array of `Shape`): what to draw
  and how
- `scale` (`uint8`, optional) [unstable]: factor (default: 1)

**Result type:** `[Shape]`

**Features**

- `fast`: draws fast
- `unstable`: `scale` may change

**Returns:** what was drawn

**Errors:**

- GenericError when it cannot

**Since:** 1.0

";
    let text = markdown(&load_text(MODERN).unwrap());
    assert!(text.starts_with(expected), "{text}");
}
