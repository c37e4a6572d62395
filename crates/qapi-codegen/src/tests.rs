//! What cannot be generated, and what names become. That the text compiles and behaves is tested in
//! the crate `api`, with a schema that has every construct of the language.

use std::collections::BTreeMap;

use super::*;

fn generated(text: &str) -> Result<BTreeMap<String, String>, CodegenError> {
    let loader = BTreeMap::from([("s.json".to_owned(), text.to_owned())]);
    let schema = qapi::load(&loader, "s.json", &qapi::Options::default())?;
    Ok(generate(&schema, None, &[Interface::only(&schema)])?
        .into_iter()
        .map(|file| (file.name, file.text))
        .collect())
}

fn error_of(text: &str) -> String {
    generated(text).unwrap_err().to_string()
}

#[test]
fn names_follow_the_rules() {
    for (name, field, camel) in [
        ("node-name", "node_name", "NodeName"),
        ("type", "r#type", "Type"),
        ("self", "self_", "Self_"),
        ("CPU", "cpu", "CPU"),
        ("4k", "n4k", "N4k"),
        ("x-check.it", "x_check_it", "XCheckIt"),
    ] {
        assert_eq!(names::field(name), field);
        assert_eq!(names::camel(name, false), camel);
    }
    assert_eq!(names::camel("JOB_STATUS_CHANGE", true), "JobStatusChange");
    assert_eq!(names::module("block-core"), "block_core");
    assert_eq!(names::module("era.2"), "era_2");
}

#[test]
fn clashes_are_errors() {
    let pragma = "{ 'pragma': { 'member-name-exceptions': [ 'Cpu' ] } }\n";
    assert_eq!(
        error_of(&format!(
            "{pragma}{{ 'struct': 'Cpu', 'data': {{ 'pc': 'int', 'PC': 'int' }} }}"
        )),
        "'pc' and 'PC' would both be 'pc' in Rust; rename one"
    );
    assert_eq!(
        error_of("{ 'command': 'go', 'data': { 'a': 'int' } }\n{ 'struct': 'GoArgs', 'data': {} }"),
        "'GoArgs' and 'q_obj_go-arg' would both be 'GoArgs' in Rust; rename one"
    );
    assert!(error_of("{ 'command': 'x' ").starts_with("s.json:1:18: "));
}

#[test]
fn names_that_the_text_needs_are_avoided() {
    let files = generated(
        "{ 'struct': 'String', 'data': { 'str': 'str' } }\n{ 'command': 'c', 'returns': 'String' }",
    )
    .unwrap();
    assert!(files["s.rs"].contains("pub struct StringType {\n"));
    assert!(files["commands.rs"].contains("type Output = schema::StringType;"));
}

#[test]
fn the_same_schema_gives_the_same_text() {
    let text = "{ 'struct': 'Aa', 'data': { 'b': [ 'Bb' ] } }\n{ 'enum': 'Bb', 'data': [ 'x' ] }\n{ 'event': 'E', 'data': 'Aa' }";
    let files = generated(text).unwrap();
    assert_eq!(files, generated(text).unwrap());
    assert_eq!(
        files.keys().collect::<Vec<_>>(),
        [
            "commands.rs",
            "events.rs",
            "introspection.json",
            "mod.rs",
            "s.rs"
        ]
    );
    let loader = BTreeMap::from([("s.json".to_owned(), text.to_owned())]);
    assert!(
        rust_text(&loader, "s.json")
            .unwrap()
            .contains("// ===== s.rs\n")
    );
}

/// The text for builds with and without a feature that sets `X`.
fn generated_for_feature(text: &str) -> Result<BTreeMap<String, String>, CodegenError> {
    let loader = BTreeMap::from([("s.json".to_owned(), text.to_owned())]);
    let schema = qapi::load(&loader, "s.json", &qapi::Options::default())?;
    let restricted = |names: &[&str]| {
        let config = names.iter().map(|name| (*name).to_owned()).collect();
        schema.restrict(&config, &qapi::Pending::default())
    };
    let without = WithoutFeature {
        feature: "x-more",
        schema: &restricted(&[])?,
    };
    let with = restricted(&["X"])?;
    let interface = Interface {
        name: "",
        schema: &with,
        without: Some(without),
    };
    let files = generate(&with, Some(&without), &[interface])?;
    let texts = files.into_iter().map(|file| (file.name, file.text));
    Ok(texts.collect())
}

#[test]
fn what_a_feature_adds_is_compiled_with_it_only() {
    let files = generated_for_feature(
        "{ 'enum': 'Kind', 'data': [ 'a', { 'name': 'b', 'if': 'X' } ] }\n\
         { 'struct': 'Bb', 'data': { 'n': 'int' } }\n\
         { 'union': 'Uu', 'base': { 'kind': 'Kind' }, 'discriminator': 'kind',\n\
           'data': { 'b': { 'type': 'Bb', 'if': 'X' } } }\n\
         { 'command': 'c', 'data': 'Uu', 'boxed': true }",
    )
    .unwrap();
    let text = &files["s.rs"];
    for line in [
        "        A = \"a\",\n",
        "        B = \"b\" if \"x-more\",\n",
        "    A,\n",
        "    #[cfg(feature = \"x-more\")] B(Box<Bb>),\n",
        "            Self::A => Kind::A,\n",
        "            #[cfg(feature = \"x-more\")] Self::B(_) => Kind::B,\n",
        "            #[cfg(feature = \"x-more\")] Kind::B => UuBranch::B(",
        "            #[cfg(feature = \"x-more\")] UuBranch::B(branch) => ",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    assert!(files["introspection-x-more.json"].contains("\"b\""));
    assert!(!files["introspection.json"].contains("\"b\""));
}

#[test]
fn a_feature_adds_nothing_but_enum_values() {
    let command = "{ 'command': 'c', 'data': 'Ss' }\n";
    for (text, name) in [
        (
            "{ 'struct': 'Ss', 'data': { 'm': { 'type': 'int', 'if': 'X' } } }",
            "Ss",
        ),
        (
            "{ 'struct': 'Ss', 'data': {} }\n{ 'event': 'E', 'if': 'X' }",
            "E",
        ),
    ] {
        let error = generated_for_feature(&format!("{command}{text}")).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "'{name}': the cargo feature 'x-more' may add nothing but enum values and their branches"
            )
        );
    }
}

#[test]
fn each_program_has_its_own_names_and_introspection() {
    let loader = BTreeMap::from([
        (
            "all.json".to_owned(),
            "{ 'include': 'some.json' }\n{ 'command': 'halt' }\n{ 'event': 'HALTED' }".to_owned(),
        ),
        (
            "some.json".to_owned(),
            "{ 'command': 'go' }\n{ 'event': 'GONE' }".to_owned(),
        ),
    ]);
    let load = |path| qapi::load(&loader, path, &qapi::Options::default()).unwrap();
    let (all, some) = (load("all.json"), load("some.json"));
    let machine = Interface {
        name: "big-one",
        schema: &all,
        without: None,
    };
    let interfaces = [Interface::only(&some), machine];
    let files: BTreeMap<String, String> = generate(&all, None, &interfaces)
        .unwrap()
        .into_iter()
        .map(|file| (file.name, file.text))
        .collect();
    let commands = &files["commands.rs"];
    assert!(commands.contains("pub const COMMAND_NAMES: &[&str] = &[\n    \"go\",\n];"));
    assert!(
        commands.contains(
            "pub const BIG_ONE_COMMAND_NAMES: &[&str] = &[\n    \"go\",\n    \"halt\",\n];"
        )
    );
    assert!(files["events.rs"].contains("pub const EVENT_NAMES: &[&str] = &[\n    \"GONE\",\n];"));
    assert!(files["mod.rs"].contains("pub use events::BIG_ONE_EVENT_NAMES;"));
    assert!(files["big-one-introspection.json"].contains("HALTED"));
    assert!(!files["introspection.json"].contains("HALTED"));
    // The text has both programs' commands, and has to.
    assert!(files["all.rs"].contains("fn halt(") && files["some.rs"].contains("fn go("));
    let error = generate(&some, None, &[Interface::only(&all)]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "'halt': the interface '' has it, and the whole schema does not"
    );
}
