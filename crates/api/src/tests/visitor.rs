//! The words of every visitor error, as qemu-storage-daemon 10.0.2 answers over QMP and on its
//! command line to the same arguments.

use serde_json::Value;

use super::generated::*;
use crate::keyval::Options;
use crate::{ErrorClass, FromQapi, NoArguments, UnknownMember, from_json, reply_from_json};

/// Reads arguments of a command and gives the error, or nothing.
fn error_of<T: FromQapi>(json: &str) -> Option<String> {
    let value: Value = serde_json::from_str(json).unwrap();
    from_json::<T>(value).err().map(|error| {
        assert_eq!(error.class, ErrorClass::GenericError);
        error.desc
    })
}

fn option_error_of<T: FromQapi>(text: &str) -> Option<String> {
    Options::parse(text, None)
        .and_then(Options::read::<T>)
        .err()
        .map(|error| error.desc)
}

macro_rules! errors {
    ($reader:ident, $($ty:ty, $input:expr => $expected:expr;)*) => {
        $(
            let expected: Option<&str> = $expected;
            assert_eq!($reader::<$ty>($input).as_deref(), expected, "{}", $input);
        )*
    };
}

#[test]
fn arguments_over_qmp() {
    errors! { error_of,
        BlockdevOptions, "{}" => Some("Parameter 'driver' is missing");
        BlockdevOptions, r#"{"driver":1}"# => Some("Invalid parameter type for 'driver', expected: string");
        BlockdevOptions, r#"{"driver":null}"# => Some("Invalid parameter type for 'driver', expected: string");
        BlockdevOptions, r#"{"driver":"foo"}"# => Some("Parameter 'driver' does not accept value 'foo'");
        BlockdevOptions, r#"{"driver":"null-co","node-name":1}"#
            => Some("Invalid parameter type for 'node-name', expected: string");
        BlockdevOptions, r#"{"driver":"null-co","node-name":"a","foo":1}"# => Some("Parameter 'foo' is unexpected");
        BlockdevOptions, r#"{"driver":"null-co","size":"1"}"#
            => Some("Invalid parameter type for 'size', expected: integer");
        BlockdevOptions, r#"{"driver":"null-co","size":1.0}"#
            => Some("Invalid parameter type for 'size', expected: integer");
        BlockdevOptions, r#"{"driver":"null-co","size":9223372036854775808}"#
            => Some("Invalid parameter type for 'size', expected: integer");
        BlockdevOptions, r#"{"driver":"null-co","latency-ns":-1}"# => None;
        BlockdevOptions, r#"{"driver":"null-co","latency-ns":1.5}"# => Some("Parameter 'latency-ns' expects uint64");
        BlockdevOptions, r#"{"driver":"raw","file":{"driver":"null-co","latency-ns":1.5}}"#
            => Some("Parameter 'file.latency-ns' expects uint64");
        BlockdevOptions, r#"{"driver":"null-co","read-zeroes":"on"}"#
            => Some("Invalid parameter type for 'read-zeroes', expected: boolean");
        BlockdevOptions, r#"{"driver":"null-co","cache":1}"# => Some("Invalid parameter type for 'cache', expected: object");
        BlockdevOptions, r#"{"driver":"null-co","cache":{"direct":1}}"#
            => Some("Invalid parameter type for 'cache.direct', expected: boolean");
        BlockdevOptions, r#"{"driver":"null-co","cache":{"foo":1}}"# => Some("Parameter 'cache.foo' is unexpected");
        BlockdevOptions, r#"{"driver":"raw"}"# => Some("Parameter 'file' is missing");
        BlockdevOptions, r#"{"driver":"raw","file":1}"# => Some("Invalid parameter type for 'file', expected: BlockdevRef");
        BlockdevOptions, r#"{"driver":"raw","file":[]}"# => Some("Invalid parameter type for 'file', expected: BlockdevRef");
        BlockdevOptions, r#"{"driver":"raw","file":{"driver":"raw","file":1}}"#
            => Some("Invalid parameter type for 'file', expected: BlockdevRef");
        BlockdevOptions, r#"{"driver":"raw","file":{}}"# => Some("Parameter 'file.driver' is missing");
        BlockdevOptions, r#"{"driver":"raw","file":{"driver":"file","filename":1}}"#
            => Some("Invalid parameter type for 'file.filename', expected: string");
        BlockdevOptions, r#"{"driver":"raw","file":{"driver":"null-co","x":1}}"# => Some("Parameter 'file.x' is unexpected");
        BlockdevOptions, r#"{"driver":"qcow2","file":"f","overlap-check":1}"#
            => Some("Invalid parameter type for 'overlap-check', expected: Qcow2OverlapChecks");
        BlockdevOptions, r#"{"driver":"qcow2","file":"f","overlap-check":"foo"}"#
            => Some("Parameter 'overlap-check' does not accept value 'foo'");
        BlockdevOptions, r#"{"driver":"qcow2","file":"f","overlap-check":{"template":"bar"}}"#
            => Some("Parameter 'template' does not accept value 'bar'");
        BlockdevOptions, r#"{"driver":"qcow2","file":"f","backing":1}"#
            => Some("Invalid parameter type for 'backing', expected: BlockdevRefOrNull");
        BlockdevOptions, r#"{"driver":"qcow2","file":"f","backing":null}"# => None;
        BlockdevOptions, r#"{"driver":"quorum","children":[1],"vote-threshold":1}"#
            => Some("Invalid parameter type for 'null', expected: BlockdevRef");
        BlockdevOptions, r#"{"driver":"quorum","children":1,"vote-threshold":1}"#
            => Some("Invalid parameter type for 'children', expected: array");
        BlockdevOptions, r#"{"driver":"quorum","children":[{"driver":"file"}],"vote-threshold":1}"#
            => Some("Parameter 'children[0].filename' is missing");
        BlockdevOptions, r#"{"driver":"quorum","children":["a",{"driver":"null-co","foo":3}],"vote-threshold":1}"#
            => Some("Parameter 'children[1].foo' is unexpected");
        BlockdevOptions, r#"{"driver":"quorum","children":["a",{"driver":"raw","file":{"driver":"file","filename":3}}],"vote-threshold":1}"#
            => Some("Invalid parameter type for 'children[1].file.filename', expected: string");
        NbdServerOptionsLegacy, r#"{"addr":{"type":"unix","data":{"path":"x"}},"max-connections":-1}"#
            => Some("Parameter 'max-connections' expects uint32_t");
        NbdServerOptionsLegacy, r#"{"addr":{"type":"unix","data":{"path":"x"}},"max-connections":4294967296}"#
            => Some("Parameter 'max-connections' expects uint32_t");
        NbdServerOptionsLegacy, r#"{"addr":{"type":"unix","data":{"path":"x"}},"max-connections":"1"}"#
            => Some("Parameter 'max-connections' expects uint64");
        NbdServerOptionsLegacy, r#"{"addr":{"type":"unix","data":{}}}"# => Some("Parameter 'addr.data.path' is missing");
        NbdServerOptionsLegacy, r#"{"addr":{"type":"unix"}}"# => Some("Parameter 'addr.data' is missing");
        NbdServerOptionsLegacy, r#"{"addr":{"type":"unix","data":{"path":"a","x":1}}}"#
            => Some("Parameter 'addr.data.x' is unexpected");
        NbdServerOptionsLegacy, r#"{"addr":{"type":"unix","data":{"path":"a"},"x":1}}"#
            => Some("Parameter 'addr.x' is unexpected");
        NbdServerOptionsLegacy, r#"{"addr":{"type":"zz"}}"# => Some("Parameter 'type' does not accept value 'zz'");
        UdpAddArgs, r#"{"remote":{"type":"inet","data":{"host":"a","port":"1","to":65536}}}"#
            => Some("Parameter 'to' expects uint16_t");
        UdpAddArgs, r#"{"remote":{"type":"inet","data":{"host":"a","port":"1","to":-1}}}"#
            => Some("Parameter 'to' expects uint16_t");
        JobPauseArgs, r#"{"id":1,"x":1}"# => Some("Invalid parameter type for 'id', expected: string");
        NoArguments, r#"{"x":1}"# => Some("Parameter 'x' is unexpected");
        QomSetArgs, r#"{"path":"/","property":"x"}"# => Some("Parameter 'value' is missing");
        QomSetArgs, r#"{"path":"/","property":"x","value":null}"# => None;
        QmpCapabilitiesArgs, r#"{"enable":["foo"]}"# => Some("Parameter 'null' does not accept value 'foo'");
        QmpCapabilitiesArgs, r#"{"enable":[1]}"# => Some("Invalid parameter type for 'enable[0]', expected: string");
        BlockDirtyBitmapMergeArgs, r#"{"node":"b","target":"a","bitmaps":["a",{"node":1,"name":"c"}]}"#
            => Some("Invalid parameter type for 'bitmaps[1].node', expected: string");
        TransactionArgs, r#"{"actions":[1]}"# => Some("Invalid parameter type for 'actions[0]', expected: object");
        TransactionArgs, r#"{"actions":[{"type":"abort"}]}"# => Some("Parameter 'actions[0].data' is missing");
        TransactionArgs, r#"{"actions":[{"type":"abort","data":{"x":1}}]}"#
            => Some("Parameter 'actions[0].data.x' is unexpected");
        BlockdevReopenArgs, r#"{"options":{}}"# => Some("Invalid parameter type for 'options', expected: array");
    }
}

#[test]
fn options_of_the_command_line() {
    errors! { option_error_of,
        BlockdevOptions, "driver=foo" => Some("Parameter 'driver' does not accept value 'foo'");
        BlockdevOptions, "driver=null-co,node-name=a,foo=1" => Some("Parameter 'foo' is unexpected");
        BlockdevOptions, "driver=null-co,size=1.5" => Some("Parameter 'size' expects integer");
        BlockdevOptions, "driver=null-co,size=x" => Some("Parameter 'size' expects integer");
        BlockdevOptions, "driver=null-co,size=18446744073709551616" => Some("Parameter 'size' expects integer");
        BlockdevOptions, "driver=null-co,latency-ns=0x10z" => Some("Parameter 'latency-ns' expects integer");
        BlockdevOptions, "driver=null-co,latency-ns=-1" => None;
        BlockdevOptions, "driver=null-co,read-only=yup" => Some("Parameter 'read-only' expects 'on' or 'off'");
        BlockdevOptions, "driver=null-co,cache=1" => Some("Invalid parameter type for 'cache', expected: object");
        BlockdevOptions, "driver=null-co,cache.direct=1" => Some("Parameter 'cache.direct' expects 'on' or 'off'");
        BlockdevOptions, "driver=null-co,cache.x=on" => Some("Parameter 'cache.x' is unexpected");
        BlockdevOptions, "driver=null-co,x.y=1,x.z=2" => Some("Parameter 'x' is unexpected");
        BlockdevOptions, "driver=null-co,node-name.x=3" => Some("Parameters 'node-name.*' are unexpected");
        BlockdevOptions, "driver=raw,file.driver=file" => Some("Parameter 'file.filename' is missing");
        BlockdevOptions, "driver=raw,file.driver=null-co,file.x.y=1" => Some("Parameter 'file.x' is unexpected");
        BlockdevOptions, "driver=raw,file=" => None;
        BlockdevOptions, "driver=quorum,children.0=x,children.2=y,vote-threshold=1" => Some("Parameter 'children.1' missing");
        BlockdevOptions, "driver=quorum,children=x,vote-threshold=1"
            => Some("Invalid parameter type for 'children', expected: array");
        BlockdevOptions, "driver=quorum,children.a=1,vote-threshold=1"
            => Some("Invalid parameter type for 'children', expected: array");
        BlockdevOptions, "driver=quorum,children.0.driver=file,vote-threshold=1"
            => Some("Parameter 'children.0.filename' is missing");
        BlockdevOptions, "driver=quorum,children.0.driver=foo,vote-threshold=1"
            => Some("Parameter 'driver' does not accept value 'foo'");
        BlockdevOptions, "driver=qcow2,file=f,overlap-check.template=foo" => Some("Parameter 'template' does not accept value 'foo'");
        NbdServerOptions, "addr.type=unix" => Some("Parameter 'addr.path' is missing");
        NbdServerOptions, "addr.type=unix,addr.path=y,max-connections=-1" => Some("Parameter 'max-connections' expects uint32_t");
        NbdServerOptions, "addr.type=unix,addr.path=y,max-connections=1k" => Some("Parameter 'max-connections' expects integer");
        NbdServerOptions, "addr.type=inet,addr.host=::1,addr.port=1,addr.to=70000" => Some("Parameter 'to' expects uint16_t");
        NbdServerOptions, "addr.type=inet,addr.host=::1,addr.port=1,addr.to=x" => Some("Parameter 'addr.to' expects integer");
        ObjectOptions, "qom-type=throttle-group,id=x,limits.iops-total=x" => Some("Parameter 'limits.iops-total' expects integer");
        ObjectOptions, "qom-type=authz-list,id=x,rules.0.match=a,rules.0.policy=foo"
            => Some("Parameter 'policy' does not accept value 'foo'");
        ObjectOptions, "qom-type=authz-simple,id=x,identity.x=foo" => Some("Parameters 'identity.*' are unexpected");
        BlockExportOptions, "type=nbd,id=x,node-name=y,writable=2" => Some("Parameter 'writable' expects 'on' or 'off'");
        BlockExportOptions, "type=nbd,id=x,node-name=y,bitmaps.0=a,bitmaps.1.node=1,bitmaps.1.nme=2"
            => Some("Parameter 'bitmaps.1.name' is missing");
        BlockExportOptions, "type=nbd,id=x,node-name=y,bitmaps.00=a,bitmaps.1=3" => None;
        BlockExportOptions, "type=nbd,id=x,node-name=y,bitmaps.0=a,bitmaps.x=3" => Some("Parameters 'bitmaps.*' used inconsistently");
        MonitorOptions, "chardev=x,mode=foo" => Some("Parameter 'mode' does not accept value 'foo'");
    }
    for (size, fits) in [
        ("x", None),
        ("-1", None),
        ("1.5", None),
        ("1Z", None),
        ("", None),
        ("99999999999999999999", None),
        ("1.5k", Some(1536)),
        ("512b", Some(512)),
        ("0x200", Some(512)),
        (" 5", Some(5)),
    ] {
        let text = format!(
            "type=vhost-user-blk,id=x,node-name=z,addr.type=unix,addr.path=v,logical-block-size={size}"
        );
        let read = Options::parse(&text, None).and_then(Options::read::<BlockExportOptions>);
        match (read, fits) {
            (Ok(options), Some(size)) => {
                let BlockExportOptionsBranch::VhostUserBlk(options) = options.r#type else {
                    panic!("wrong branch")
                };
                assert_eq!(options.logical_block_size, Some(size));
            }
            (Err(error), None) => {
                assert_eq!(error.desc, "Parameter 'logical-block-size' expects size");
            }
            (read, fits) => panic!("{text}: {read:?} instead of {fits:?}"),
        }
    }
}

#[test]
fn integers_as_the_c_library_reads_them() {
    let read = |text: &str| {
        let options = Options::parse(&format!("int64={text},uint64={text}"), None);
        options
            .and_then(Options::read::<Numbers>)
            .map(|n| (n.int64, n.uint64))
    };
    assert_eq!(read("010").unwrap(), (Some(8), Some(8)));
    assert_eq!(read("0x1F").unwrap(), (Some(31), Some(31)));
    assert_eq!(read(" +7").unwrap(), (Some(7), Some(7)));
    assert_eq!(read("-1").unwrap(), (Some(-1), Some(u64::MAX)));
    for wrong in [
        "",
        "-",
        "0x",
        "08",
        "1 ",
        "9223372036854775808",
        "--1",
        "+-1",
    ] {
        assert!(read(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn every_width_has_its_range() {
    for (member, least, most, expected) in [
        ("int8", -128i128, 127i128, "int8_t"),
        ("int16", -32768, 32767, "int16_t"),
        (
            "int32",
            i128::from(i32::MIN),
            i128::from(i32::MAX),
            "int32_t",
        ),
        ("uint8", 0, 255, "uint8_t"),
        ("uint16", 0, 65535, "uint16_t"),
        ("uint32", 0, i128::from(u32::MAX), "uint32_t"),
    ] {
        for (value, fits) in [
            (least, true),
            (most, true),
            (least - 1, false),
            (most + 1, false),
        ] {
            let json = format!("{{\"{member}\":{value}}}");
            let expected = format!("Parameter '{member}' expects {expected}");
            assert_eq!(
                error_of::<Numbers>(&json),
                (!fits).then_some(expected),
                "{json}"
            );
        }
    }
    assert_eq!(
        error_of::<Numbers>(r#"{"number":"1"}"#).unwrap(),
        "Invalid parameter type for 'number', expected: number"
    );
}

#[test]
fn nesting_is_bounded() {
    let nested = |levels: usize| {
        let mut value = serde_json::json!({ "driver": "null-co" });
        for _ in 0..levels {
            value = serde_json::json!({ "driver": "raw", "file": value });
        }
        from_json::<BlockdevOptions>(value)
    };
    assert!(nested(100).is_ok());
    let error = nested(500).unwrap_err();
    assert_eq!(
        error.desc,
        "Parameter 'file' is nested deeper than 128 levels"
    );
}

#[test]
fn replies_keep_what_the_schema_does_not_know() {
    let reply = serde_json::json!([
        { "id": "j", "status": "running", "total-progress": 2, "mood": { "a": 1 } },
    ]);
    let (jobs, unknown) = reply_from_json::<Vec<JobInfo>>(reply.clone()).unwrap();
    assert_eq!(jobs[0].status, JobStatus::Running);
    assert_eq!(
        unknown,
        [UnknownMember {
            path: "[0].mood".into(),
            value: serde_json::json!({ "a": 1 })
        }]
    );
    let mut wrong = reply;
    wrong[0]["total-progress"] = Value::from("many");
    let error = reply_from_json::<Vec<JobInfo>>(wrong).unwrap_err();
    assert_eq!(
        error.desc,
        "Invalid parameter type for '[0].total-progress', expected: integer"
    );
}
