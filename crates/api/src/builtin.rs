//! The builtin types of the language.

use serde_json::{Map, Value};

use crate::error::QmpError;
use crate::visit::{FromQapi, Input, Members, QapiObject, ToQapi};

/// The value `null`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Null;

/// The arguments of a command that takes none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NoArguments;

impl QapiObject for NoArguments {
    fn read_members(_: &mut Members<'_>) -> Result<Self, QmpError> {
        Ok(Self)
    }

    fn write_members(&self, _: &mut Map<String, Value>) {}
}

/// What a command returns that returns nothing: an object without members.
impl QapiObject for () {
    fn read_members(_: &mut Members<'_>) -> Result<Self, QmpError> {
        Ok(())
    }

    fn write_members(&self, _: &mut Map<String, Value>) {}
}

impl FromQapi for Null {
    fn from_qapi(input: Input<'_>) -> Result<Self, QmpError> {
        input.into_null().map(|()| Self)
    }
}

impl ToQapi for Null {
    fn to_qapi(&self) -> Value {
        Value::Null
    }
}

impl FromQapi for Value {
    fn from_qapi(input: Input<'_>) -> Result<Self, QmpError> {
        Ok(input.into_value())
    }
}

impl ToQapi for Value {
    fn to_qapi(&self) -> Value {
        self.clone()
    }
}

impl<T: FromQapi> FromQapi for Vec<T> {
    fn from_qapi(input: Input<'_>) -> Result<Self, QmpError> {
        input.into_list()
    }
}

impl<T: ToQapi> ToQapi for Vec<T> {
    fn to_qapi(&self) -> Value {
        Value::Array(self.iter().map(ToQapi::to_qapi).collect())
    }
}

impl<T: QapiObject> QapiObject for Box<T> {
    fn read_members(members: &mut Members<'_>) -> Result<Self, QmpError> {
        T::read_members(members).map(Self::new)
    }

    fn write_members(&self, out: &mut Map<String, Value>) {
        T::write_members(self, out);
    }
}

/// A type that has its own reading method and whose JSON value `Value::from` makes.
macro_rules! scalar {
    ($($ty:ty => $read:expr;)*) => {
        $(
            impl FromQapi for $ty {
                fn from_qapi(input: Input<'_>) -> Result<Self, QmpError> {
                    $read(input)
                }
            }

            impl ToQapi for $ty {
                fn to_qapi(&self) -> Value {
                    Value::from(self.clone())
                }
            }
        )*
    };
}

scalar! {
    String => Input::into_string;
    bool => Input::into_bool;
    f64 => Input::into_f64;
    i64 => Input::into_i64;
    u64 => Input::into_u64;
    i8 => |input: Input<'_>| input.into_narrow("int8_t", Input::into_i64);
    i16 => |input: Input<'_>| input.into_narrow("int16_t", Input::into_i64);
    i32 => |input: Input<'_>| input.into_narrow("int32_t", Input::into_i64);
    u8 => |input: Input<'_>| input.into_narrow("uint8_t", Input::into_u64);
    u16 => |input: Input<'_>| input.into_narrow("uint16_t", Input::into_u64);
    u32 => |input: Input<'_>| input.into_narrow("uint32_t", Input::into_u64);
}

/// A `size` while it is read; generated structs hold it as `u64`.
pub(crate) struct Size(pub u64);

impl FromQapi for Size {
    fn from_qapi(input: Input<'_>) -> Result<Self, QmpError> {
        input.into_size().map(Self)
    }
}
