//! Introspection and visitors agree: a value made from what introspection says is read, and written
//! back the same; one with something wrong in it is refused or read, and never panics.

use std::collections::HashMap;

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::{Command, FromQapi, QmpError, ToQapi, commands, from_json, from_keyval};

/// Makes values of introspected types, choosing with a small generator of its own.
struct Maker {
    infos: HashMap<String, Value>,
    state: u64,
}

impl Maker {
    fn new(seed: u64) -> Self {
        let infos: Vec<Value> = serde_json::from_str(crate::MACHINE_INTROSPECTION).unwrap();
        let named = |info: Value| (info["name"].as_str().unwrap().to_owned(), info);
        Self {
            infos: infos.into_iter().map(named).collect(),
            state: seed | 1,
        }
    }

    /// A number below `limit`.
    fn below(&mut self, limit: usize) -> usize {
        // xorshift64
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        usize::try_from(self.state >> 33).unwrap() % limit.max(1)
    }

    fn value(&mut self, ty: &Value, depth: usize) -> Value {
        let info = self.infos[ty.as_str().unwrap()].clone();
        match info["meta-type"].as_str().unwrap() {
            "builtin" => self.builtin(info["json-type"].as_str().unwrap()),
            "array" => {
                let count = if depth > 6 { 0 } else { self.below(3) };
                (0..count)
                    .map(|_| self.value(&info["element-type"], depth + 1))
                    .collect()
            }
            "enum" => {
                let values = info["values"].as_array().unwrap();
                values[self.below(values.len())].clone()
            }
            "alternate" => {
                let members = info["members"].as_array().unwrap();
                // Deep down, a choice that ends.
                let scalar = members.iter().find(|member| {
                    self.infos[member["type"].as_str().unwrap()]["meta-type"] != "object"
                });
                let at = self.below(members.len());
                let chosen = scalar.filter(|_| depth > 4).unwrap_or(&members[at]);
                self.value(&chosen["type"].clone(), depth + 1)
            }
            _ => Value::Object(self.object(&info, depth)),
        }
    }

    fn builtin(&mut self, json_type: &str) -> Value {
        match json_type {
            "string" => json!(format!("s{}", self.below(1000))),
            "int" => json!(self.below(100)),
            "number" => json!(0.25 * f64::from(u32::try_from(self.below(100)).unwrap())),
            "boolean" => json!(self.below(2) == 1),
            "null" => Value::Null,
            _ => json!({ "any": [1, null] }),
        }
    }

    fn object(&mut self, info: &Value, depth: usize) -> Map<String, Value> {
        let mut out = Map::new();
        for member in info["members"].as_array().unwrap() {
            let optional = member.get("default").is_some();
            if optional && (depth > 3 || self.below(2) == 0) {
                continue;
            }
            let value = self.value(&member["type"], depth + 1);
            out.insert(member["name"].as_str().unwrap().to_owned(), value);
        }
        if let Some(tag) = info["tag"].as_str() {
            let variants = info["variants"].as_array().unwrap();
            let branch = variants
                .iter()
                .find(|variant| variant["case"] == out[tag])
                .unwrap();
            let branch = self.infos[branch["type"].as_str().unwrap()].clone();
            out.extend(self.object(&branch, depth));
        }
        out
    }

    /// Changes something in the value.
    fn spoil(&mut self, value: &mut Value) {
        let choice = self.below(4);
        match value {
            Value::Object(members) if !members.is_empty() && choice > 0 => {
                let at = self.below(members.len());
                if let Some((_, member)) = members.iter_mut().nth(at) {
                    self.spoil(member);
                }
            }
            Value::Array(elements) if !elements.is_empty() && choice > 0 => {
                let at = self.below(elements.len());
                self.spoil(&mut elements[at]);
            }
            other => {
                *other = match self.below(6) {
                    0 => Value::Null,
                    1 => json!("text"),
                    2 => json!(-1),
                    3 => json!({ "x": 1 }),
                    4 => json!([1]),
                    _ => json!(1.5),
                }
            }
        }
    }
}

fn reread<T: FromQapi + ToQapi>(value: Value) -> Result<Value, QmpError> {
    from_json::<T>(value).map(|read| read.to_qapi())
}

/// Checks one side of a command.
fn check<T: FromQapi + ToQapi>(maker: &mut Maker, command: &str, side: &str) {
    let ty = maker.infos[command][side].clone();
    let value = maker.value(&ty, 0);
    assert_eq!(
        reread::<T>(value.clone()),
        Ok(value.clone()),
        "{command} {side}"
    );
    let mut spoiled = value;
    maker.spoil(&mut spoiled);
    if let Ok(read) = reread::<T>(spoiled.clone()) {
        // What is taken anyway says the same again, but for numbers.
        assert_eq!(reread::<T>(read.clone()), Ok(read), "{command} {side}");
    }
    let _ = from_keyval::<T>(spoiled);
}

macro_rules! check_all {
    ($maker:ident, $($command:ident)*) => {
        $(
            check::<<commands::$command as Command>::Args>($maker, commands::$command::NAME, "arg-type");
            check::<<commands::$command as Command>::Output>($maker, commands::$command::NAME, "ret-type");
        )*
    };
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn introspection_and_visitors_agree(seed in any::<u64>()) {
        let maker = &mut Maker::new(seed);
        commands::for_each_command! { check_all, maker, }
    }
}
