//! Enums, structs, unions and alternates with the code that reads and writes them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use qapi::schema::{
    Alternative, Branch, Builtin, DefinitionId, DefinitionKind, EMPTY_OBJECT, EnumValue, Member,
    NamedType, TypeRef,
};
use qapi::{Definition, Documentation, Schema};

use crate::names::{Names, claim, field, variant};
use crate::recursion::needs_box;
use crate::{CodegenError, WithoutFeature};

/// What generated text needs of the schema while one type is written.
struct Writer<'a> {
    schema: &'a Schema,
    names: &'a Names,
    without: Option<&'a WithoutFeature<'a>>,
    out: String,
}

/// A value of a union's discriminator, and what it selects.
struct Case {
    variant: String,
    ty: Option<String>,
    /// What stands before the variant wherever it is named; see [`guard`].
    guard: String,
}

/// The types of one schema module.
pub fn module(
    schema: &Schema,
    names: &Names,
    index: usize,
    without: Option<&WithoutFeature<'_>>,
) -> Result<String, CodegenError> {
    let mut writer = Writer {
        schema,
        names,
        without,
        out: String::new(),
    };
    for (id, definition) in schema.definitions() {
        if definition.module != index || definition.name == EMPTY_OBJECT {
            continue;
        }
        match &definition.kind {
            DefinitionKind::Enum { values, .. } => writer.enumeration(id, definition, values)?,
            // A base written in place is part of its union.
            DefinitionKind::Struct { .. }
                if definition.implicit && definition.name.ends_with("-base") => {}
            DefinitionKind::Struct { .. } => writer.structure(id, definition)?,
            DefinitionKind::Union {
                discriminator,
                branches,
                ..
            } => {
                writer.union(id, definition, discriminator, branches)?;
            }
            DefinitionKind::Alternate { alternatives } => {
                writer.alternate(id, definition, alternatives)?;
            }
            DefinitionKind::Command(_) | DefinitionKind::Event { .. } => {}
        }
    }
    Ok(writer.out)
}

/// The Rust type of a named type.
pub fn named_type(names: &Names, named: NamedType) -> String {
    let builtin = match named {
        NamedType::Defined(id) => return names.ty(id).to_owned(),
        NamedType::Builtin(builtin) => builtin,
    };
    match builtin {
        Builtin::Str | Builtin::QType => "String",
        Builtin::Number => "f64",
        Builtin::Int | Builtin::Int64 => "i64",
        Builtin::Int8 => "i8",
        Builtin::Int16 => "i16",
        Builtin::Int32 => "i32",
        Builtin::Uint8 => "u8",
        Builtin::Uint16 => "u16",
        Builtin::Uint32 => "u32",
        Builtin::Uint64 | Builtin::Size => "u64",
        Builtin::Bool => "bool",
        Builtin::Null => "Null",
        Builtin::Any => "Value",
    }
    .to_owned()
}

/// The Rust type of a use of a type.
pub fn type_ref(names: &Names, ty: TypeRef) -> String {
    match ty {
        TypeRef::One(named) => named_type(names, named),
        TypeRef::Array(named) => format!("Vec<{}>", named_type(names, named)),
    }
}

/// Documentation text as lines of a Rust comment. Indentation goes: rustdoc would take it for code.
pub fn doc_lines(out: &mut String, indent: &str, text: &str) {
    for line in text.lines() {
        let line = backticks(line.trim());
        let space = if line.is_empty() { "" } else { " " };
        let _ = writeln!(out, "{indent}///{space}{line}");
    }
}

/// `@name` as code, and what rustdoc would take for links or tags escaped.
fn backticks(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once('@') {
        out.push_str(&escape(before));
        let end = after
            .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_')))
            .unwrap_or(after.len());
        let (name, tail) = after.split_at(end);
        if name.is_empty() {
            out.push('@');
        } else {
            let _ = write!(out, "`{name}`");
        }
        rest = tail;
    }
    out + &escape(rest)
}

fn escape(text: &str) -> String {
    text.replace('[', "\\[")
        .replace(']', "\\]")
        .replace('<', "\\<")
        .replace('>', "\\>")
}

/// The documentation of a definition, with its deprecation or instability said at the end.
pub fn definition_doc(definition: &Definition) -> String {
    let mut out = String::new();
    let overview = definition
        .documentation
        .as_ref()
        .map_or("", |d| d.overview.as_str());
    if overview.is_empty() {
        let _ = writeln!(out, "/// `{}` of the schema.", definition.name);
    } else {
        doc_lines(&mut out, "", overview);
    }
    for feature in &definition.features {
        let _ = writeln!(out, "///\n/// Feature: `{}`.", feature.name);
    }
    out
}

impl Writer<'_> {
    fn member_doc(&mut self, documentation: Option<&Documentation>, name: &str) {
        let text = documentation
            .and_then(|d| d.member(name))
            .filter(|text| !text.is_empty());
        match text {
            Some(text) => doc_lines(&mut self.out, "    ", text),
            None => {
                let _ = writeln!(self.out, "    /// Member `{name}`.");
            }
        }
    }

    fn enumeration(
        &mut self,
        id: DefinitionId,
        definition: &Definition,
        values: &[EnumValue],
    ) -> Result<(), CodegenError> {
        let mut taken = BTreeMap::new();
        let _ = write!(self.out, "\nqapi_enum! {{\n");
        for line in definition_doc(definition).lines() {
            let _ = writeln!(self.out, "    {line}");
        }
        let _ = writeln!(self.out, "    {} {{", self.names.ty(id));
        for value in values {
            let name = variant(&value.name);
            claim(&mut taken, &name, &value.name)?;
            let text = definition
                .documentation
                .as_ref()
                .and_then(|d| d.member(&value.name));
            match text.filter(|text| !text.is_empty()) {
                Some(text) => doc_lines(&mut self.out, "        ", text),
                None => {
                    let _ = writeln!(self.out, "        /// `{}`.", value.name);
                }
            }
            let feature = self.without.and_then(|w| w.adds(&definition.name, value));
            let condition = feature.map_or(String::new(), |f| format!(" if \"{f}\""));
            let _ = writeln!(self.out, "        {name} = \"{}\"{condition},", value.name);
        }
        self.out.push_str("    }\n}\n");
        Ok(())
    }

    /// The documentation of members: of the definition, its owner or its bases, whoever has it.
    fn documentation_of(&self, id: DefinitionId, name: &str) -> Option<String> {
        let mut next = Some(id);
        while let Some(id) = next {
            let definition = self.schema.get(id);
            if let Some(text) = definition
                .documentation
                .as_ref()
                .and_then(|d| d.member(name))
            {
                return Some(text.to_owned());
            }
            next = match &definition.kind {
                DefinitionKind::Struct { base, .. } => *base,
                DefinitionKind::Union { base, .. } => Some(*base),
                _ => None,
            };
        }
        self.schema
            .find(&self.owner_of(id)?)?
            .documentation
            .as_ref()?
            .member(name)
            .map(str::to_owned)
    }

    /// The command or event whose arguments an implicit type is.
    fn owner_of(&self, id: DefinitionId) -> Option<String> {
        let owner = self
            .schema
            .definitions()
            .map(|(_, definition)| definition)
            .find(|definition| match &definition.kind {
                DefinitionKind::Command(command) => command.arguments == Some(id),
                DefinitionKind::Event { arguments, .. } => *arguments == Some(id),
                _ => false,
            });
        owner.map(|definition| definition.name.clone())
    }

    fn structure(&mut self, id: DefinitionId, definition: &Definition) -> Result<(), CodegenError> {
        let members = self.schema.all_members(id);
        let name = self.names.ty(id).to_owned();
        self.out.push('\n');
        match self.owner_of(id).filter(|_| definition.implicit) {
            Some(owner) => {
                let what = if name.ends_with("Args") {
                    "Arguments"
                } else {
                    "Data"
                };
                let _ = writeln!(self.out, "/// {what} of `{owner}`.");
            }
            None => self.out.push_str(&definition_doc(definition)),
        }
        let default = if members.iter().all(|member| member.optional) {
            ", Default"
        } else {
            ""
        };
        let _ = writeln!(
            self.out,
            "#[derive(Debug, Clone, PartialEq{default})]\npub struct {name} {{"
        );
        self.fields(id, &members, None)?;
        let _ = writeln!(self.out, "}}\n\nimpl QapiObject for {name} {{");
        if members.is_empty() {
            let _ = writeln!(
                self.out,
                "    fn read_members(_: &mut Members<'_>) -> Result<Self, QmpError> {{\n        Ok(Self {{}})\n    }}"
            );
            let _ = writeln!(
                self.out,
                "\n    fn write_members(&self, _: &mut Map<String, Value>) {{}}\n}}"
            );
            return Ok(());
        }
        let _ = writeln!(
            self.out,
            "    fn read_members(members: &mut Members<'_>) -> Result<Self, QmpError> {{\n        Ok(Self {{"
        );
        for member in &members {
            let _ = writeln!(
                self.out,
                "            {}: {},",
                field(&member.name),
                read(member)
            );
        }
        let _ = writeln!(
            self.out,
            "        }})\n    }}\n\n    fn write_members(&self, out: &mut Map<String, Value>) {{"
        );
        for member in &members {
            let _ = writeln!(self.out, "        {}", write(member));
        }
        self.out.push_str("    }\n}\n");
        Ok(())
    }

    /// The fields of a struct; the discriminator's place holds the branch.
    fn fields(
        &mut self,
        id: DefinitionId,
        members: &[&Member],
        branch: Option<&str>,
    ) -> Result<(), CodegenError> {
        let mut taken = BTreeMap::new();
        for member in members {
            let name = field(&member.name);
            claim(&mut taken, &name, &member.name)?;
            match self
                .documentation_of(id, &member.name)
                .filter(|text| !text.is_empty())
            {
                Some(text) => doc_lines(&mut self.out, "    ", &text),
                None => {
                    let _ = writeln!(self.out, "    /// Member `{}`.", member.name);
                }
            }
            if branch == Some(member.name.as_str()) {
                let _ = writeln!(self.out, "    pub {name}: {}Branch,", self.names.ty(id));
                continue;
            }
            let mut ty = type_ref(self.names, member.ty);
            if needs_box(self.schema, id, member) {
                ty = format!("Box<{ty}>");
            }
            if member.optional {
                ty = format!("Option<{ty}>");
            }
            let _ = writeln!(self.out, "    pub {name}: {ty},");
        }
        Ok(())
    }

    fn union(
        &mut self,
        id: DefinitionId,
        definition: &Definition,
        discriminator: &str,
        branches: &[Branch],
    ) -> Result<(), CodegenError> {
        let unsupported = |reason: &str| CodegenError::Unsupported {
            definition: definition.name.clone(),
            reason: reason.to_owned(),
        };
        let members = self.schema.all_members(id);
        if members
            .iter()
            .any(|member| member.name == discriminator && member.optional)
        {
            return Err(unsupported("an optional discriminator"));
        }
        let tag = self
            .schema
            .discriminator_enum(id)
            .ok_or_else(|| unsupported("no discriminator"))?;
        let DefinitionKind::Enum { values, .. } = &self.schema.get(tag).kind else {
            return Err(unsupported("a discriminator that is no enum"));
        };
        if values.is_empty() {
            return Err(unsupported("a discriminator without values"));
        }
        let name = self.names.ty(id).to_owned();
        let tag_name = &self.schema.get(tag).name;
        let cases: Vec<Case> = values
            .iter()
            .map(|value| {
                let branch = branches.iter().find(|branch| branch.case == value.name);
                let ty = branch
                    .map(|branch| branch.ty)
                    .filter(|ty| self.has_members(*ty));
                Case {
                    variant: variant(&value.name),
                    ty: ty.map(|ty| self.names.ty(ty).to_owned()),
                    guard: guard(self.without.and_then(|w| w.adds(tag_name, value))),
                }
            })
            .collect();
        let tag = self.names.ty(tag).to_owned();
        self.out.push('\n');
        self.out.push_str(&definition_doc(definition));
        let _ = writeln!(
            self.out,
            "#[derive(Debug, Clone, PartialEq)]\npub struct {name} {{"
        );
        self.fields(id, &members, Some(discriminator))?;
        self.out.push_str("}\n");
        self.branch_enum(&name, &tag, discriminator, &cases);
        self.union_visitor(&name, &tag, discriminator, &members, &cases);
        Ok(())
    }

    fn has_members(&self, id: DefinitionId) -> bool {
        let is_union = matches!(self.schema.get(id).kind, DefinitionKind::Union { .. });
        is_union || !self.schema.all_members(id).is_empty()
    }

    fn branch_enum(&mut self, name: &str, tag: &str, discriminator: &str, cases: &[Case]) {
        let _ = writeln!(
            self.out,
            "\n/// What `{discriminator}` of [`{name}`] selects.\n#[derive(Debug, Clone, PartialEq)]\npub enum {name}Branch {{"
        );
        for Case { variant, ty, guard } in cases {
            let data = ty
                .as_ref()
                .map_or(String::new(), |ty| format!("(Box<{ty}>)"));
            let _ = writeln!(
                self.out,
                "    /// [`{tag}::{variant}`].\n    {guard}{variant}{data},"
            );
        }
        let _ = writeln!(
            self.out,
            "}}\n\nimpl {name}Branch {{\n    /// The value of the discriminator.\n    pub fn kind(&self) -> {tag} {{\n        match self {{"
        );
        for Case { variant, ty, guard } in cases {
            let pattern = if ty.is_some() { "(_)" } else { "" };
            let _ = writeln!(
                self.out,
                "            {guard}Self::{variant}{pattern} => {tag}::{variant},"
            );
        }
        self.out.push_str("        }\n    }\n}\n");
    }

    fn union_visitor(
        &mut self,
        name: &str,
        tag: &str,
        discriminator: &str,
        members: &[&Member],
        cases: &[Case],
    ) {
        let local = field(discriminator);
        let _ = writeln!(
            self.out,
            "\nimpl QapiObject for {name} {{\n    fn read_members(members: &mut Members<'_>) -> Result<Self, QmpError> {{"
        );
        for member in members {
            let ty = if member.name == discriminator {
                format!(": {tag}")
            } else {
                String::new()
            };
            let _ = writeln!(
                self.out,
                "        let {}{ty} = {};",
                field(&member.name),
                read(member)
            );
        }
        let _ = writeln!(self.out, "        let {local} = match {local} {{");
        for Case { variant, ty, guard } in cases {
            let data = if ty.is_some() {
                "(Box::new(QapiObject::read_members(members)?))"
            } else {
                ""
            };
            let _ = writeln!(
                self.out,
                "            {guard}{tag}::{variant} => {name}Branch::{variant}{data},"
            );
        }
        let fields: Vec<String> = members.iter().map(|member| field(&member.name)).collect();
        let _ = writeln!(
            self.out,
            "        }};\n        Ok(Self {{ {} }})\n    }}\n\n    fn write_members(&self, out: &mut Map<String, Value>) {{",
            fields.join(", ")
        );
        for member in members {
            let line = if member.name == discriminator {
                format!("put(out, \"{discriminator}\", &self.{local}.kind());")
            } else {
                write(member)
            };
            let _ = writeln!(self.out, "        {line}");
        }
        let _ = writeln!(self.out, "        match &self.{local} {{");
        for Case { variant, guard, .. } in cases.iter().filter(|case| case.ty.is_some()) {
            let _ = writeln!(
                self.out,
                "            {guard}{name}Branch::{variant}(branch) => branch.write_members(out),"
            );
        }
        if cases.iter().any(|case| case.ty.is_none()) {
            self.out.push_str("            _ => {}\n");
        }
        self.out.push_str("        }\n    }\n}\n");
    }

    fn alternate(
        &mut self,
        id: DefinitionId,
        definition: &Definition,
        alternatives: &[Alternative],
    ) -> Result<(), CodegenError> {
        let name = self.names.ty(id).to_owned();
        let mut taken = BTreeMap::new();
        self.out.push('\n');
        self.out.push_str(&definition_doc(definition));
        let _ = writeln!(
            self.out,
            "#[derive(Debug, Clone, PartialEq)]\npub enum {name} {{"
        );
        for alternative in alternatives {
            let variant = variant(&alternative.name);
            claim(&mut taken, &variant, &alternative.name)?;
            self.member_doc(definition.documentation.as_ref(), &alternative.name);
            let _ = writeln!(
                self.out,
                "    {variant}({}),",
                self.alternative_type(alternative)
            );
        }
        let _ = writeln!(
            self.out,
            "}}\n\nimpl FromQapi for {name} {{\n    fn from_qapi(input: Input<'_>) -> Result<Self, QmpError> {{\n        match input.kind() {{"
        );
        for alternative in alternatives {
            let kind = self.value_kind(alternative.ty);
            let variant = variant(&alternative.name);
            let _ = writeln!(
                self.out,
                "            ValueKind::{kind} => FromQapi::from_qapi(input).map(Self::{variant}),"
            );
        }
        let _ = writeln!(
            self.out,
            "            _ => Err(input.wrong_alternative(\"{}\")),\n        }}\n    }}\n}}\n\nimpl ToQapi for {name} {{\n    fn to_qapi(&self) -> Value {{\n        match self {{",
            definition.name
        );
        for alternative in alternatives {
            let variant = variant(&alternative.name);
            let _ = writeln!(
                self.out,
                "            Self::{variant}(value) => value.to_qapi(),"
            );
        }
        self.out.push_str("        }\n    }\n}\n");
        Ok(())
    }

    /// Objects are boxed, so that alternates stay small and may be recursive.
    fn alternative_type(&self, alternative: &Alternative) -> String {
        let ty = type_ref(self.names, alternative.ty);
        match self.value_kind(alternative.ty) {
            "Object" => format!("Box<{ty}>"),
            _ => ty,
        }
    }

    fn value_kind(&self, ty: TypeRef) -> &'static str {
        use qapi::schema::JsonKind;
        let TypeRef::One(named) = ty else {
            return "Array";
        };
        match self.schema.json_kind(named) {
            Some(JsonKind::String) => "String",
            Some(JsonKind::Number) => "Number",
            Some(JsonKind::Boolean) => "Bool",
            Some(JsonKind::Null) => "Null",
            _ => "Object",
        }
    }
}

/// The attribute of what is only there with a cargo feature; nothing for what is always there.
fn guard(feature: Option<&str>) -> String {
    feature.map_or(String::new(), |name| {
        format!("#[cfg(feature = \"{name}\")] ")
    })
}

/// The expression that reads a member.
fn read(member: &Member) -> String {
    let how = if member.optional {
        "optional"
    } else {
        "required"
    };
    let size = matches!(member.ty, TypeRef::One(NamedType::Builtin(Builtin::Size)));
    let suffix = if size { "_size" } else { "" };
    format!("members.{how}{suffix}(\"{}\")?", member.name)
}

/// The statement that writes a member.
fn write(member: &Member) -> String {
    let how = if member.optional {
        "put_optional"
    } else {
        "put"
    };
    format!(
        "{how}(out, \"{}\", &self.{});",
        member.name,
        field(&member.name)
    )
}
