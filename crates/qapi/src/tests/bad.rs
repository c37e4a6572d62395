//! Wrong schemas and exactly what is said about them.

use super::{load_files, load_text};

/// The diagnostics of a schema, one per line.
fn complaint(text: &str) -> String {
    match load_text(text) {
        Ok(_) => "nothing is wrong".to_owned(),
        Err(error) => error.to_string(),
    }
}

macro_rules! bad {
    ($($text:expr => $expected:expr;)*) => {
        $(assert_eq!(complaint($text), $expected, "{}", $text);)*
    };
}

const NAME_HINT: &str =
    "a name begins with a letter and has only ASCII letters, digits, '-' and '_'";
const MEMBER_HINT: &str = "names are lower case with words separated by '-', unless pragma 'member-name-exceptions' lists the definition";

#[test]
fn syntax() {
    bad! {
        "x" => "s.json:1:1: stray \"x\"; expected a string, 'true' or 'false'";
        "\n  12" => "s.json:2:3: stray \"12\"; QAPI has no numbers";
        "{ 'a': null }" => "s.json:1:8: stray \"null\"; expected a string, 'true' or 'false'";
        "é" => "s.json:1:1: stray \"\\u{e9}\"";
        "'a'" => "s.json:1:1: expected '{', got string 'a'; the top level consists of objects";
        "{" => "s.json:1:2: expected string or '}', got the end of the file";
        "{ 'a' }" => "s.json:1:7: expected ':', got '}'";
        "{ 'a': }" => "s.json:1:8: expected '{', '[', string, or boolean, got '}'";
        "{ 'a': 'b', }" => "s.json:1:13: expected string, got '}'";
        "{ 'a': 'b' 'c' }" => "s.json:1:12: expected ',' or '}', got string 'c'";
        "{ 'a': [ 'b' }" => "s.json:1:14: expected ',' or ']', got '}'";
        "{ 'a': ['b',] }" => "s.json:1:13: expected '{', '[', string, or boolean, got ']'";
        "{ 'a': 'b', 'a': 'c' }" => "s.json:1:13: duplicate key 'a'";
        "{ \"a\": 'b' }" => "s.json:1:3: string in double quotes; QAPI strings are in 'single quotes'";
        "{ 'a\n': 'b' }" => "s.json:1:3: missing terminating \"'\"";
        "{ 'a\\n': 'b' }" => "s.json:1:5: unknown escape '\\n'; the only escape is '\\\\'";
        "{ 'é': 'b' }" => "s.json:1:4: character U+00E9 in a string; strings are printable ASCII";
        "## junk" => "s.json:1:1: junk after '##'; a documentation comment begins and ends with a line of '##' alone";
        "##\n#x\n##" => "s.json:2:1: expected a space after '#'";
        "{}" => "s.json:1:1: expression is missing its kind; expected one of 'enum', 'struct', 'union', 'alternate', 'command', 'event', 'include', 'pragma'";
    }
    let deep = format!("{{ 'enum': {}{} }}", "[".repeat(100), "]".repeat(100));
    assert_eq!(
        complaint(&deep),
        "s.json:1:43: nested deeper than 32 levels"
    );
}

#[test]
fn names() {
    bad! {
        "{ 'enum': 'foo', 'data': [] }" => "s.json:1:11: type name 'foo' is not in CamelCase";
        "{ 'enum': 'FooList', 'data': [] }" => "s.json:1:11: type name 'FooList' is reserved; names ending in 'List' are those of array types";
        "{ 'enum': 'Foo', 'data': [ 'Bar' ] }" => format!("s.json:1:28: enum value name 'Bar' must not have 'B'; {MEMBER_HINT}");
        "{ 'enum': 'Foo', 'data': [ 'a b' ] }" => format!("s.json:1:28: enum value name 'a b' is invalid; {NAME_HINT}");
        "{ 'struct': 'Foo', 'data': { '1a': 'int' } }" => format!("s.json:1:30: member name '1a' is invalid; {NAME_HINT}");
        "{ 'struct': 'Foo', 'data': { 'a_b': 'int' } }" => format!("s.json:1:30: member name 'a_b' must not have '_'; {MEMBER_HINT}");
        "{ 'struct': 'Foo', 'data': { '*has-a': 'int' } }" => "s.json:1:30: member name 'has-a' is reserved; 'u' and names beginning with 'has-' belong to the generator";
        "{ 'struct': 'Foo', 'data': { 'q_a': 'int' } }" => "s.json:1:30: member name 'q_a' is reserved; names beginning with 'q_' belong to the generator";
        "{ 'struct': 'Foo', 'data': { '**a': 'int' } }" => format!("s.json:1:30: member name '*a' is invalid; {NAME_HINT}");
        "{ 'command': 'a_b' }" => "s.json:1:14: command name 'a_b' must not have '_'; names are lower case with words separated by '-', unless pragma 'command-name-exceptions' lists the definition";
        "{ 'event': 'lower' }" => "s.json:1:12: event name 'lower' is not in upper case; event names are ALL_CAPS with words separated by '_'";
        "{ 'command': '__com.x-no' }" => format!("s.json:1:14: command name '__com.x-no' is invalid; {NAME_HINT}");
        "{ 'command': '__com.red-hat_drive-x' }" => "nothing is wrong";
        "{ 'struct': 'Foo', 'data': { 'a-b': 'int', 'a_b': 'int' } }" => format!("s.json:1:44: member name 'a_b' must not have '_'; {MEMBER_HINT}\ns.json:1:44: member 'a_b' collides with 'a-b'");
        "{ 'struct': 'Foo', 'data': { 'a': 'int', '*a': 'int' } }" => "s.json:1:42: member 'a' is defined twice";
        "{ 'enum': 'Foo', 'data': [ 'a', 'a' ] }" => "s.json:1:33: enum value 'a' is defined twice";
        "{ 'enum': 'Foo', 'data': [] }\n{ 'enum': 'Foo', 'data': [] }" => "s.json:2:11: 'Foo' is defined twice; the first definition is at line 1";
        "{ 'struct': 'int', 'data': {} }" => "s.json:1:13: type name 'int' is not in CamelCase\ns.json:1:13: built-in type 'int' cannot be defined";
        "{ 'command': 'a', 'features': [ 'A', 'b', 'b' ] }" => "s.json:1:33: feature name 'A' must not have 'A'; names are lower case with words separated by '-'\ns.json:1:43: feature 'b' is defined twice";
    }
}

#[test]
fn types() {
    bad! {
        "{ 'struct': 'Foo', 'data': { 'a': 'Bar' } }" => "s.json:1:35: type 'Bar' is not defined";
        "{ 'struct': 'Foo', 'data': { 'a': true } }" => "s.json:1:35: type of member 'a' must be a string or an array, not a boolean";
        "{ 'struct': 'Foo', 'data': { 'a': [ 'int', 'str' ] } }" => "s.json:1:35: array type of member 'a' must contain a single type name";
        "{ 'struct': 'Foo', 'data': { 'a': [ [ 'int' ] ] } }" => "s.json:1:35: array type of member 'a' must contain a single type name";
        "{ 'struct': 'Foo', 'data': { 'a': { 'typ': 'int' } } }" => "s.json:1:35: member 'a' is missing key 'type'\ns.json:1:37: unknown key 'typ' in member 'a'; expected 'type', 'if', 'features'";
        "{ 'struct': 'Foo', 'data': { 'a': 'go' } }\n{ 'command': 'go' }" => "s.json:1:35: 'go' is not a type";
        "{ 'struct': 'Foo' }" => "s.json:1:1: 'Foo' is missing key 'data'";
        "{ 'struct': 'Foo', 'data': [] }" => "s.json:1:28: 'data' of a struct must be an object";
        "{ 'struct': 'Foo', 'data': {}, 'extra': true }" => "s.json:1:32: unknown key 'extra' in a struct; expected 'struct', 'type', 'data', 'base', 'if', 'features'";
        "{ 'struct': 'Foo', 'base': 'int', 'data': {} }" => "s.json:1:28: 'base' requires a struct type, 'int' is not one";
        "{ 'struct': 'Foo', 'base': 'Bar', 'data': {} }\n{ 'struct': 'Bar', 'base': 'Foo', 'data': {} }" => "s.json:1:1: struct 'Foo' is its own base\ns.json:2:1: struct 'Bar' is its own base";
        "{ 'struct': 'Foo', 'data': { 'a': 'int' } }\n{ 'struct': 'Bar', 'base': 'Foo', 'data': { 'a': 'str' } }" => "s.json:2:45: member 'a' is defined twice";
        "{ 'enum': 'Foo', 'data': [ { 'nam': 'a' } ] }" => "s.json:1:28: an enum value needs a 'name' that is a string\ns.json:1:30: unknown key 'nam' in an enum value; expected 'name', 'if', 'features'";
        "{ 'alternate': 'Foo', 'data': {} }" => "s.json:1:31: an alternate needs at least one alternative";
        "{ 'alternate': 'Foo', 'data': { 'a': 'int', 'b': 'number' } }" => "s.json:1:45: alternative 'b' cannot be told from 'a'";
        "{ 'alternate': 'Foo', 'data': { 'a': 'any' } }" => "s.json:1:33: alternative 'a' cannot use type 'any'";
        "{ 'alternate': 'Foo', 'data': { 'a': 'str', 'b': 'Foo' } }" => "s.json:1:45: alternative 'b' cannot use type 'Foo'";
    }
}

#[test]
fn unions() {
    let with = |union: &str| {
        format!(
            "{union}\n{{ 'enum': 'Kind', 'data': [ 'a', 'b' ] }}\n{{ 'struct': 'A', 'data': {{ 'x': 'int' }} }}\n\
             {{ 'struct': 'Empty', 'data': {{}} }}"
        )
        .replace("'A'", "'Aa'")
    };
    let bad =
        |union: &str, expected: &str| assert_eq!(complaint(&with(union)), expected, "{union}");
    bad(
        "{ 'union': 'Un', 'base': { 'k': 'Kind' }, 'discriminator': 'k', 'data': { 'c': 'A' } }",
        "s.json:1:75: branch 'c' is not a value of the discriminator's enum",
    );
    bad(
        "{ 'union': 'Un', 'base': { 'k': 'Kind' }, 'discriminator': 'l', 'data': { 'a': 'A' } }",
        "s.json:1:60: discriminator 'l' is not a member of 'base'",
    );
    bad(
        "{ 'union': 'Un', 'base': { '*k': 'Kind' }, 'discriminator': 'k', 'data': { 'a': 'A' } }",
        "s.json:1:61: discriminator member 'k' must not be optional",
    );
    bad(
        "{ 'union': 'Un', 'base': { 'k': 'str' }, 'discriminator': 'k', 'data': { 'a': 'A' } }",
        "s.json:1:59: discriminator member 'k' must be of enum type",
    );
    bad(
        "{ 'union': 'Un', 'base': { 'k': { 'type': 'Kind', 'if': 'X' } }, 'discriminator': 'k', 'data': { 'a': 'A' } }",
        "s.json:1:83: discriminator member 'k' must not be conditional",
    );
    bad(
        "{ 'union': 'Un', 'base': { 'k': 'Kind', 'x': 'int' }, 'discriminator': 'k', 'data': { 'a': 'A' } }",
        "s.json:1:87: member 'x' of branch 'a' collides with the base",
    );
    bad(
        "{ 'union': 'Un', 'base': { 'k': 'Kind' }, 'discriminator': 'k', 'data': { 'a': 'int' } }",
        "s.json:1:80: branch 'a' of 'Un' cannot use type 'int'; expected a struct",
    );
    bad(
        "{ 'union': 'Un', 'base': { 'k': 'Kind' }, 'discriminator': 'k', 'data': {} }",
        "s.json:1:73: a union needs at least one branch",
    );
    bad(
        "{ 'union': 'Un', 'discriminator': 'k', 'data': { 'a': 'A' } }",
        "s.json:1:1: 'Un' is missing key 'base'",
    );
    bad(
        "{ 'union': 'Un', 'base': 'Kind', 'discriminator': 'k', 'data': { 'a': 'A' } }",
        "s.json:1:26: 'base' requires a struct type, 'Kind' is not one",
    );
    bad(
        "{ 'union': 'Un', 'base': 'A', 'discriminator': 'x', 'data': { 'a': 'Empty' } }",
        "s.json:1:49: discriminator member 'x' must be of enum type",
    );
}

#[test]
fn commands_and_events() {
    bad! {
        "{ 'command': 'c', 'data': 'int' }" => "s.json:1:27: 'data' cannot be of type 'int'; expected a struct or union";
        "{ 'command': 'c', 'data': [ 'int' ] }" => "s.json:1:27: 'data' must be an object or the name of a type";
        "{ 'command': 'c', 'boxed': true }" => "s.json:1:1: 'boxed': true requires 'data'";
        "{ 'command': 'c', 'boxed': true, 'data': {} }" => "s.json:1:42: 'boxed': true requires the name of a type as 'data'";
        "{ 'command': 'c', 'boxed': false }" => "s.json:1:28: flag 'boxed' may only use true value";
        "{ 'command': 'c', 'gen': true }" => "s.json:1:26: flag 'gen' may only use false value";
        "{ 'command': 'c', 'success-response': true }" => "s.json:1:39: flag 'success-response' may only use false value";
        "{ 'command': 'c', 'allow-oob': true, 'coroutine': true }" => "s.json:1:1: flags 'allow-oob' and 'coroutine' are incompatible";
        "{ 'command': 'c', 'returns': 'str' }" => "s.json:1:30: 'c' cannot return 'str'; commands return a struct, a union or an array of them, unless pragma 'command-returns-exceptions' lists them";
        "{ 'command': 'c', 'returns': [ 'int' ] }" => "s.json:1:30: 'c' cannot return '[int]'; commands return a struct, a union or an array of them, unless pragma 'command-returns-exceptions' lists them";
        "{ 'event': 'E', 'returns': 'str' }" => "s.json:1:17: unknown key 'returns' in an event; expected 'event', 'data', 'boxed', 'if', 'features'";
        "{ 'command': 'c', 'data': 'Un' }\n{ 'enum': 'Kind', 'data': [ 'a' ] }\n{ 'struct': 'Aa', 'data': {} }\n{ 'union': 'Un', 'base': { 'k': 'Kind' }, 'discriminator': 'k', 'data': { 'a': 'Aa' } }"
            => "s.json:1:27: union 'Un' as 'data' requires 'boxed': true";
    }
}

#[test]
fn conditions() {
    bad! {
        "{ 'command': 'c', 'if': 'a b' }" => "s.json:1:25: 'if' condition 'a b' is not a valid identifier; condition names are ALL_CAPS with words separated by '_'";
        "{ 'command': 'c', 'if': [] }" => "s.json:1:25: 'if' condition must be a string or an object";
        "{ 'command': 'c', 'if': {} }" => "s.json:1:25: 'if' condition object must have exactly one key; expected 'all', 'any' or 'not'";
        "{ 'command': 'c', 'if': { 'none': 'X' } }" => "s.json:1:27: unknown 'if' operator 'none'; expected 'all', 'any' or 'not'";
        "{ 'command': 'c', 'if': { 'any': [] } }" => "s.json:1:34: 'any' condition must be a non-empty array";
    }
}

#[test]
fn directives() {
    bad! {
        "{ 'include': true }" => "s.json:1:14: value of 'include' must be a string";
        "{ 'include': 'no.json' }" => "s.json:1:14: cannot read the included file 'no.json': no such file";
        "{ 'include': 's.json' }" => "s.json:1:14: inclusion loop for 's.json'";
        "{ 'include': './x/../s.json' }" => "s.json:1:14: inclusion loop for './x/../s.json'";
        "{ 'include': 'a', 'x': true }" => "s.json:1:14: cannot read the included file 'a': no such file\ns.json:1:19: unknown key 'x' in the 'include' directive";
        "{ 'pragma': [] }" => "s.json:1:13: value of 'pragma' must be an object";
        "{ 'pragma': { 'x': true } }" => "s.json:1:15: unknown pragma 'x'";
        "{ 'pragma': { 'doc-required': 'yes' } }" => "s.json:1:31: pragma 'doc-required' must be boolean";
        "{ 'pragma': { 'documentation-exceptions': 'yes' } }" => "s.json:1:43: pragma 'documentation-exceptions' must be an array of strings";
        "{ 'pragma': { 'doc-required': true } }\n{ 'pragma': { 'doc-required': false } }" => "s.json:2:31: pragma 'doc-required' is already set differently";
        "{ 'pragma': { 'doc-required': true } }\n{ 'command': 'c' }" => "s.json:2:1: documentation of 'c' is required; pragma 'doc-required' is set";
        "##\n# @x:\n##\n{ 'pragma': { 'doc-required': true } }" => "s.json:1:1: 'pragma' cannot be documented";
    }
    let loop_of_two = load_files(&[
        ("a.json", "{ 'include': 'd/b.json' }"),
        ("d/b.json", "\n{ 'include': '../a.json' }"),
    ]);
    assert_eq!(
        loop_of_two.unwrap_err().to_string(),
        "d/b.json:2:14: inclusion loop for '../a.json'"
    );
    let missing = load_files(&[
        ("a.json", "{ 'include': 'b.json' }"),
        ("b.json", "{ 'x': 1 }"),
    ]);
    assert_eq!(
        missing.unwrap_err().to_string(),
        "b.json:1:8: stray \"1\"; QAPI has no numbers"
    );
}

#[test]
fn documentation() {
    let on =
        |comment: &str, definition: &str| complaint(&format!("##\n{comment}\n##\n{definition}"));
    let command = "{ 'command': 'c', 'data': { 'a': 'int' }, 'features': [ 'f' ] }";
    let event = "{ 'event': 'E' }";
    for (comment, definition, expected) in [
        (
            "# @d:",
            event,
            "s.json:1:1: documentation is of 'd', but the definition is 'E'",
        ),
        (
            "# @E:\n#\n# @x: y",
            event,
            "s.json:4:3: described member 'x' does not exist",
        ),
        (
            "# @E:\n#\n# Returns: y",
            event,
            "s.json:4:3: 'Returns' section is only valid for commands",
        ),
        (
            "# @E:\n#\n# Errors: y",
            event,
            "s.json:4:3: 'Errors' section is only valid for commands",
        ),
        (
            "# @E:\n#\n# Since:",
            event,
            "s.json:4:3: text required after 'Since:'",
        ),
        (
            "# @E:\n#\n# Since: 1\n#\n# Since: 2",
            event,
            "s.json:6:3: second 'Since' section",
        ),
        (
            "# @E:\n#\n# Note: x",
            event,
            "s.json:4:3: 'Notes:' is not a section of today's dialect",
        ),
        (
            "# @c:\n#\n# @a: one\n#\n# @a: two",
            command,
            "s.json:6:3: 'a' is described twice",
        ),
        (
            "# @c:\n#\n# @a: one\n# two",
            command,
            "s.json:1:1: feature 'f' lacks documentation\ns.json:5:3: continuation line of a description is not indented; indent it by four spaces, or put a blank line before a new paragraph",
        ),
        (
            "# @c:\n#\n# Features:\n#\n# @f: x\n#\n# @g: y",
            command,
            "s.json:8:3: described feature 'g' does not exist",
        ),
        (
            "# @c:\n#\n# Features:\n#\n# @f: x\n#\n# Returns: y",
            command,
            "s.json:8:3: 'Returns' section, but command 'c' returns nothing",
        ),
        (
            "# @ c",
            event,
            "s.json:2:3: expected '@NAME:' on the first line",
        ),
    ] {
        assert_eq!(on(comment, definition), expected, "{comment}");
    }
    let required = "{ 'pragma': { 'doc-required': true } }\n##\n# @S:\n##\n";
    assert_eq!(
        complaint(
            &format!("{required}{{ 'struct': 'S', 'data': {{ 'a': 'int' }} }}").replace('S', "Ss")
        ),
        "s.json:2:1: member 'a' of 'Ss' lacks documentation"
    );
    assert_eq!(
        complaint("##\n# @E:\n##\n##\n# free\n##\n{ 'event': 'E' }"),
        "s.json:1:1: documentation of 'E' is not followed by its definition; the definition must come next"
    );
    assert_eq!(
        complaint("##\n# text\n{ 'event': 'E' }"),
        "s.json:1:1: documentation comment lacks the closing '##'"
    );
}

#[test]
fn everything_has_a_limit() {
    let members: String = (0..5000).map(|n| format!("'m{n}': 'int',")).collect();
    let many = format!(
        "{{ 'struct': 'Foo', 'data': {{ {} }} }}",
        members.trim_end_matches(',')
    );
    assert_eq!(complaint(&many), "s.json:1:30: more than 4096 members");
    let chain: String = (0..100)
        .map(|n| {
            format!(
                "{{ 'struct': 'Ss{}', 'base': 'Ss{n}', 'data': {{}} }}\n",
                n + 1
            )
        })
        .collect();
    let chain = format!("{{ 'struct': 'Ss0', 'data': {{}} }}\n{chain}");
    let first = complaint(&chain).lines().next().map(str::to_owned);
    assert_eq!(
        first.as_deref(),
        Some("s.json:66:1: struct 'Ss65' has more than 64 bases")
    );
}

#[test]
fn several_problems_are_told_at_once() {
    let text =
        "{ 'struct': 'Foo', 'data': { 'a': 'No', 'B': 'int' } }\n{ 'command': 'x', 'gen': true }";
    assert_eq!(complaint(text).lines().count(), 3);
    let many = "{ 'enum': 'x', 'data': [] }\n".repeat(500);
    assert_eq!(
        complaint(&many).lines().count(),
        crate::source::DIAGNOSTICS_MAX
    );
}
