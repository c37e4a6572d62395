//! `throttle-group`: I/O limits that several block nodes share.

use std::any::Any;
use std::sync::Arc;

use api::{
    ObjectOptionsBranch, ObjectType, QapiObject, ThrottleGroupProperties, ThrottleLimits, ToQapi,
};
use parking_lot::Mutex;
use serde_json::{Map, Value};

use crate::error::ObjectError;
use crate::object::{Object, Property, as_options, property_not_found};
use crate::types::{ObjectTypes, TypeSpec, USER_CREATABLE};

/// The highest limit, in bytes or requests per second.
pub const LIMIT_MAX: i64 = 1_000_000_000_000_000;

/// The properties of single limits, in the order in which they are listed, and where `limits` stands
/// among them.
const PROPERTIES: [(&str, &str); 20] = [
    ("x-bps-write-max-length", "int"),
    ("x-iops-total-max-length", "int"),
    ("x-iops-size", "int"),
    ("limits", "ThrottleLimits"),
    ("x-bps-total", "int"),
    ("x-iops-read-max-length", "int"),
    ("x-bps-write", "int"),
    ("x-iops-write-max-length", "int"),
    ("x-bps-read-max", "int"),
    ("x-iops-read-max", "int"),
    ("x-bps-total-max", "int"),
    ("x-bps-read-max-length", "int"),
    ("x-iops-read", "int"),
    ("x-bps-read", "int"),
    ("x-bps-write-max", "int"),
    ("x-iops-total-max", "int"),
    ("x-iops-total", "int"),
    ("x-iops-write", "int"),
    ("x-bps-total-max-length", "int"),
    ("x-iops-write-max", "int"),
];

pub(crate) fn register(types: &mut ObjectTypes) {
    let properties = PROPERTIES
        .iter()
        .map(|(name, type_name)| Property::writable(name, type_name))
        .collect();
    types.register(
        TypeSpec::concrete("throttle-group", "object", properties).with_interface(USER_CREATABLE),
    );
    types.register_factory(
        ObjectType::ThrottleGroup,
        Box::new(|_tree, _id, options| match options {
            ObjectOptionsBranch::ThrottleGroup(options) => {
                Ok(Arc::new(ThrottleGroup::new(&options)?))
            }
            other => Err(ObjectError::NotCreatable(other.kind().to_string())),
        }),
    );
}

/// A group's limits. The limits are consistent at any time.
pub struct ThrottleGroup {
    // Every member is there.
    limits: Mutex<ThrottleLimits>,
}

/// A limit per second, its burst, and the burst's length, of one kind of requests.
struct Bucket {
    average: i64,
    burst: i64,
    burst_seconds: i64,
}

impl ThrottleGroup {
    fn new(options: &ThrottleGroupProperties) -> Result<Self, ObjectError> {
        let mut limits = overlay(&unlimited(), &single_limits(options)?)?;
        if let Some(given) = &options.limits {
            check_lengths(given)?;
            limits = overlay(&limits, given)?;
        }
        check(&limits)?;
        Ok(Self {
            limits: Mutex::new(limits),
        })
    }

    /// The limits as they are now; no member is absent.
    pub fn limits(&self) -> ThrottleLimits {
        self.limits.lock().clone()
    }
}

/// No limits at all, and bursts of a second.
fn unlimited() -> ThrottleLimits {
    ThrottleLimits {
        iops_total: Some(0),
        iops_total_max: Some(0),
        iops_total_max_length: Some(1),
        iops_read: Some(0),
        iops_read_max: Some(0),
        iops_read_max_length: Some(1),
        iops_write: Some(0),
        iops_write_max: Some(0),
        iops_write_max_length: Some(1),
        bps_total: Some(0),
        bps_total_max: Some(0),
        bps_total_max_length: Some(1),
        bps_read: Some(0),
        bps_read_max: Some(0),
        bps_read_max_length: Some(1),
        bps_write: Some(0),
        bps_write_max: Some(0),
        bps_write_max_length: Some(1),
        iops_size: Some(0),
    }
}

/// The members that are there, as JSON.
fn members(limits: &impl QapiObject) -> Map<String, Value> {
    let mut out = Map::new();
    limits.write_members(&mut out);
    out
}

/// These limits with the members of `given` in their place.
fn overlay(limits: &ThrottleLimits, given: &ThrottleLimits) -> Result<ThrottleLimits, ObjectError> {
    let mut all = members(limits);
    all.extend(members(given));
    Ok(api::from_json(Value::Object(all))?)
}

/// The limits that are given in the `x-` form, checked one by one.
fn single_limits(options: &ThrottleGroupProperties) -> Result<ThrottleLimits, ObjectError> {
    let mut limits = Map::new();
    for (name, value) in members(options) {
        let Some(limit) = name.strip_prefix("x-") else {
            continue;
        };
        let number = value.as_i64().unwrap_or(0);
        if number < 0 {
            return Err(ObjectError::invalid("Property values cannot be negative"));
        }
        if limit.ends_with("-length") && number > i64::from(u32::MAX) {
            // The words run together with QEMU too.
            return Err(ObjectError::invalid(format!(
                "{name} value must be in therange [0, {}]",
                u32::MAX
            )));
        }
        limits.insert(limit.to_owned(), value);
    }
    Ok(api::from_json(Value::Object(limits))?)
}

fn check_lengths(given: &ThrottleLimits) -> Result<(), ObjectError> {
    for (name, value) in members(given) {
        let is_length = name.ends_with("-length");
        if is_length
            && value
                .as_i64()
                .is_some_and(|value| value > i64::from(u32::MAX))
        {
            return Err(ObjectError::invalid(format!(
                "{name} value must be in the range [0, {}]",
                u32::MAX
            )));
        }
    }
    Ok(())
}

/// Whether limits fit each other.
fn check(limits: &ThrottleLimits) -> Result<(), ObjectError> {
    let bucket = |average: Option<i64>, burst: Option<i64>, burst_seconds: Option<i64>| Bucket {
        average: average.unwrap_or(0),
        burst: burst.unwrap_or(0),
        burst_seconds: burst_seconds.unwrap_or(1),
    };
    let l = limits;
    let bps = [
        bucket(l.bps_total, l.bps_total_max, l.bps_total_max_length),
        bucket(l.bps_read, l.bps_read_max, l.bps_read_max_length),
        bucket(l.bps_write, l.bps_write_max, l.bps_write_max_length),
    ];
    let iops = [
        bucket(l.iops_total, l.iops_total_max, l.iops_total_max_length),
        bucket(l.iops_read, l.iops_read_max, l.iops_read_max_length),
        bucket(l.iops_write, l.iops_write_max, l.iops_write_max_length),
    ];
    for [total, read, write] in [&bps, &iops] {
        let both = |of: fn(&Bucket) -> i64| of(total) != 0 && (of(read) != 0 || of(write) != 0);
        if both(|bucket| bucket.average) || both(|bucket| bucket.burst) {
            return Err(ObjectError::invalid(
                "bps/iops/max total values and read/write values cannot be used at the same time",
            ));
        }
    }
    if l.iops_size.unwrap_or(0) != 0 && iops.iter().all(|bucket| bucket.average == 0) {
        return Err(ObjectError::invalid(
            "iops size requires an iops value to be set",
        ));
    }
    bps.iter().chain(&iops).try_for_each(check_bucket)
}

fn check_bucket(bucket: &Bucket) -> Result<(), ObjectError> {
    let &Bucket {
        average,
        burst,
        burst_seconds,
    } = bucket;
    let limit = 0..=LIMIT_MAX;
    if !limit.contains(&average) || !limit.contains(&burst) {
        return Err(ObjectError::invalid(format!(
            "bps/iops/max values must be within [0, {LIMIT_MAX}]"
        )));
    }
    let wrong = if burst_seconds == 0 {
        "the burst length cannot be 0"
    } else if burst_seconds != 1 && burst == 0 {
        "burst length set without burst rate"
    // A negative length is an endless one.
    } else if burst_seconds != 1
        && (burst_seconds < 0 || burst_seconds > LIMIT_MAX.checked_div(burst).unwrap_or(0))
    {
        "burst length too high for this burst rate"
    } else if burst != 0 && average == 0 {
        "bps_max/iops_max require corresponding bps/iops values"
    } else if burst != 0 && burst < average {
        "bps_max/iops_max cannot be lower than bps/iops"
    } else {
        return Ok(());
    };
    Err(ObjectError::invalid(wrong))
}

impl Object for ThrottleGroup {
    fn type_name(&self) -> &str {
        "throttle-group"
    }

    fn get(&self, property: &str) -> Result<Value, ObjectError> {
        let limits = self.limits();
        if property == "limits" {
            return Ok(limits.to_qapi());
        }
        let single = property.strip_prefix("x-");
        let value = single.and_then(|name| members(&limits).shift_remove(name));
        value.ok_or_else(|| property_not_found(self, property))
    }

    fn set(&self, property: &str, value: Value) -> Result<(), ObjectError> {
        if property != "limits" {
            return Err(ObjectError::invalid(
                "Property cannot be set after initialization",
            ));
        }
        let options: ThrottleGroupProperties = api::from_json(as_options(property, value))?;
        let given = options.limits.unwrap_or_default();
        check_lengths(&given)?;
        let mut limits = self.limits.lock();
        let new = overlay(&limits, &given)?;
        check(&new)?;
        *limits = new;
        Ok(())
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}
