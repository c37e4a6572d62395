use proptest::prelude::*;

use super::*;
use crate::{BlockSize, MetaContext};

const MIB: u64 = 1 << 20;

fn export(flags: TransmissionFlags) -> ExportInfo {
    ExportInfo {
        name: String::new(),
        size_bytes: MIB,
        flags: flags | TransmissionFlags::HAS_FLAGS,
        description: None,
        block_size: BlockSize::default(),
        meta_contexts: Vec::new(),
    }
}

fn all_flags() -> TransmissionFlags {
    TransmissionFlags::all() - TransmissionFlags::READ_ONLY
}

fn negotiated(extended: bool) -> Negotiated {
    let context = MetaContext {
        id: 7,
        name: "base:allocation".to_owned(),
    };
    Negotiated {
        structured: true,
        extended,
        meta_contexts: vec![context],
        ..Default::default()
    }
}

fn compact(command: Command, flags: CommandFlags, offset: u64, length: u64) -> Request {
    Request::new(RequestFormat::Compact, command, flags, 1, offset, length).unwrap()
}

#[test]
fn a_compact_header_has_the_specified_layout() {
    let request = compact(Command::Write, CommandFlags::FUA, 0x0102, 0x0304);
    let bytes = request.encode_compact();
    let expected = [
        0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0,
        3, 4,
    ];
    assert_eq!(bytes, expected);
    assert_eq!(Request::decode(RequestFormat::Compact, &bytes), Ok(request));
    assert_eq!(request.payload_bytes(), 0x0304);
}

#[test]
fn an_extended_header_has_the_specified_layout() {
    let format = RequestFormat::Extended;
    let none = CommandFlags::empty();
    let request = Request::new(format, Command::Write, none, 5, 6, 7).unwrap();
    let bytes = request.encode_extended();
    let expected = [
        0x21, 0xe4, 0x1c, 0x71, 0, 0x20, 0, 1, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 6, 0,
        0, 0, 0, 0, 0, 0, 7,
    ];
    assert_eq!(bytes, expected);
    assert_eq!(Request::decode(format, &bytes), Ok(request));
    assert_eq!(request.payload_bytes(), 7);
}

#[test]
fn a_wrong_magic_length_or_payload_is_fatal() {
    let bytes = compact(Command::Read, CommandFlags::empty(), 0, 1).encode_compact();
    let wrong = Request::decode(RequestFormat::Extended, &bytes);
    assert!(matches!(
        wrong,
        Err(WireError::BadMagic {
            found: 0x2560_9513,
            ..
        })
    ));
    let short = Request::decode(RequestFormat::Compact, &bytes[..27]);
    assert_eq!(short, Err(WireError::BadLength("request")));
    let long = Request::decode(RequestFormat::Compact, &[&bytes[..], &[0]].concat());
    assert_eq!(long, Err(WireError::BadLength("request")));

    let too_much = u64::from(MAX_PAYLOAD_BYTES) + 1;
    let mut bytes = compact(Command::Read, CommandFlags::empty(), 0, too_much).encode_compact();
    assert!(Request::decode(RequestFormat::Compact, &bytes).is_ok());
    bytes[7] = 1;
    let write = Request::decode(RequestFormat::Compact, &bytes);
    assert!(matches!(write, Err(WireError::TooLong { bytes, .. }) if bytes == too_much));
}

#[test]
fn the_range_has_to_lie_within_the_export() {
    let fixed = export(all_flags() - TransmissionFlags::SEND_RESIZE);
    let resizable = export(all_flags());
    let check_on = |export: &_, command, offset, length| {
        validate(
            &compact(command, CommandFlags::empty(), offset, length),
            export,
            &negotiated(false),
        )
    };
    for command in [
        Command::Read,
        Command::Trim,
        Command::Cache,
        Command::BlockStatus,
    ] {
        // Where clients resize, what lies beyond may have been there: the extension's code.
        for (export, code) in [
            (&fixed, ErrorCode::Invalid),
            (&resizable, ErrorCode::NoSpace),
        ] {
            assert_eq!(check_on(export, command, MIB - 1, 1), Ok(()));
            assert_eq!(check_on(export, command, MIB, 0), Ok(()));
            assert_eq!(check_on(export, command, MIB - 1, 2), Err(code));
            assert_eq!(check_on(export, command, u64::MAX, 1), Err(code));
        }
    }
    let check = |command, offset, length| check_on(&fixed, command, offset, length);
    assert_eq!(check_on(&resizable, Command::Resize, u64::MAX, 0), Ok(()));
    for command in [Command::Write, Command::WriteZeroes] {
        assert_eq!(check(command, 0, MIB), Ok(()));
        assert_eq!(check(command, 0, MIB + 1), Err(ErrorCode::NoSpace));
        assert_eq!(check(command, u64::MAX, 2), Err(ErrorCode::NoSpace));
    }
}

#[test]
fn the_range_has_to_be_aligned_but_for_the_end() {
    let mut export = export(all_flags());
    export.block_size.minimum = 512;
    export.size_bytes = 1000;
    let check = |offset, length| {
        let read = compact(Command::Read, CommandFlags::empty(), offset, length);
        validate(&read, &export, &negotiated(false))
    };
    assert_eq!(check(0, 512), Ok(()));
    assert_eq!(check(512, 488), Ok(()));
    assert_eq!(check(1, 512), Err(ErrorCode::Invalid));
    assert_eq!(check(0, 511), Err(ErrorCode::Invalid));
}

#[test]
fn a_read_only_export_is_not_changed() {
    let export = export(TransmissionFlags::all());
    let check = |command| {
        validate(
            &compact(command, CommandFlags::empty(), 0, 512),
            &export,
            &negotiated(false),
        )
    };
    for command in [
        Command::Write,
        Command::WriteZeroes,
        Command::Trim,
        Command::Resize,
    ] {
        assert_eq!(check(command), Err(ErrorCode::Permission));
    }
    for command in [Command::Read, Command::Cache, Command::BlockStatus] {
        assert_eq!(check(command), Ok(()));
    }
    let flush = compact(Command::Flush, CommandFlags::empty(), 0, 0);
    assert_eq!(validate(&flush, &export, &negotiated(false)), Ok(()));
}

#[test]
fn what_was_not_advertised_is_refused() {
    let bare = export(TransmissionFlags::empty());
    let nothing = Negotiated::default();
    for command in [
        Command::Flush,
        Command::Trim,
        Command::Cache,
        Command::WriteZeroes,
        Command::BlockStatus,
        Command::Resize,
        Command::Unknown(99),
    ] {
        let request = compact(command, CommandFlags::empty(), 0, 0);
        assert_eq!(
            validate(&request, &bare, &nothing),
            Err(ErrorCode::Invalid),
            "{command:?}"
        );
    }
    for command in [Command::Read, Command::Write, Command::Disconnect] {
        let request = compact(command, CommandFlags::empty(), 0, 0);
        assert_eq!(validate(&request, &bare, &nothing), Ok(()), "{command:?}");
        let request = compact(command, CommandFlags::FUA, 0, 0);
        assert_eq!(
            validate(&request, &bare, &nothing),
            Err(ErrorCode::Invalid),
            "{command:?}"
        );
    }
}

#[test]
fn flags_go_with_their_commands_only() {
    let fits = [
        (CommandFlags::DF, Command::Read),
        (CommandFlags::NO_HOLE, Command::WriteZeroes),
        (CommandFlags::FAST_ZERO, Command::WriteZeroes),
        (CommandFlags::REQ_ONE, Command::BlockStatus),
    ];
    let commands = [
        Command::Read,
        Command::Write,
        Command::Flush,
        Command::Trim,
        Command::Cache,
        Command::WriteZeroes,
        Command::BlockStatus,
    ];
    for (flag, home) in fits {
        for command in commands {
            let request = compact(command, flag | CommandFlags::FUA, 0, 0);
            let allowed = validate(&request, &export(all_flags()), &negotiated(false));
            assert_eq!(allowed.is_ok(), command == home, "{flag:?} {command:?}");
        }
    }
    let unknown = CommandFlags::from_bits_retain(1 << 9);
    let request = compact(Command::Read, unknown, 0, 0);
    let refused = validate(&request, &export(all_flags()), &negotiated(false));
    assert_eq!(refused, Err(ErrorCode::Invalid));
}

/// QEMU's client (10.0.2) sends extended writes without the flag.
#[test]
fn an_extended_write_has_its_payload_with_and_without_the_flag() {
    let format = RequestFormat::Extended;
    let none = CommandFlags::empty();
    let mut bytes = Request::new(format, Command::Write, none, 0, 0, 9)
        .unwrap()
        .encode_extended();
    for flags in [CommandFlags::PAYLOAD_LEN, none] {
        bytes[5] = flags.bits() as u8;
        let request = Request::decode(format, &bytes).unwrap();
        assert_eq!((request.flags, request.payload_bytes()), (flags, 9));
        assert_eq!(
            validate(&request, &export(all_flags()), &negotiated(true)),
            Ok(())
        );
    }
    let compact = compact(Command::Write, CommandFlags::PAYLOAD_LEN, 0, 9);
    let refused = validate(&compact, &export(all_flags()), &negotiated(false));
    assert_eq!(refused, Err(ErrorCode::Invalid));
}

#[test]
fn any_extended_request_with_the_flag_has_a_payload_to_pass_over() {
    let format = RequestFormat::Extended;
    let flags = CommandFlags::PAYLOAD_LEN;
    let request = Request::new(format, Command::Unknown(99), flags, 0, 0, 9).unwrap();
    let request = Request::decode(format, &request.encode_extended()).unwrap();
    assert_eq!(request.payload_bytes(), 9);
    let refused = validate(&request, &export(all_flags()), &negotiated(true));
    assert_eq!(refused, Err(ErrorCode::Invalid));
}

#[test]
fn an_empty_status_payload_selects_nothing() {
    let format = RequestFormat::Extended;
    let flags = CommandFlags::PAYLOAD_LEN;
    let request = Request::new(format, Command::BlockStatus, flags, 0, MIB + 1, 0).unwrap();
    assert_eq!(
        validate(&request, &export(all_flags()), &negotiated(true)),
        Ok(())
    );
    let selected = StatusSelection::decode(&request, &[], &export(all_flags()), &negotiated(true));
    assert_eq!(selected, Err(ErrorCode::Invalid));
}

#[test]
fn a_status_payload_selects_negotiated_contexts() {
    let request = Request::new(
        RequestFormat::Extended,
        Command::BlockStatus,
        CommandFlags::PAYLOAD_LEN,
        0,
        MIB - 10,
        12,
    )
    .unwrap();
    assert_eq!(
        validate(&request, &export(all_flags()), &negotiated(true)),
        Ok(())
    );
    let decode = |length: u64, context_ids: &[u32]| {
        let mut payload = Vec::new();
        let selection = StatusSelection {
            length,
            context_ids: context_ids.to_vec(),
        };
        selection.encode(&mut payload);
        let decoded =
            StatusSelection::decode(&request, &payload, &export(all_flags()), &negotiated(true));
        assert!(decoded.clone().is_err() || decoded == Ok(selection));
        decoded
    };
    assert!(decode(10, &[7]).is_ok());
    assert!(decode(11, &[7]).is_err());
    assert!(decode(10, &[]).is_err());
    assert!(decode(10, &[7, 7]).is_err());
    assert!(decode(10, &[8]).is_err());
    let odd = StatusSelection::decode(&request, &[0; 9], &export(all_flags()), &negotiated(true));
    assert_eq!(odd, Err(ErrorCode::Invalid));
}

proptest! {
    #[test]
    fn any_header_is_survived_and_written_back(
        mut header in proptest::array::uniform32(any::<u8>()),
        extended: bool,
        magic: bool,
        size: u64,
    ) {
        let format = if extended { RequestFormat::Extended } else { RequestFormat::Compact };
        if magic {
            let right = if extended { MAGIC_EXTENDED_REQUEST } else { MAGIC_REQUEST };
            header[..4].copy_from_slice(&right.to_be_bytes());
        }
        let header = &header[..format.header_bytes()];
        if let Ok(request) = Request::decode(format, header) {
            prop_assert!(request.payload_bytes() <= MAX_PAYLOAD_BYTES);
            let written = match format {
                RequestFormat::Compact => request.encode_compact().to_vec(),
                RequestFormat::Extended => request.encode_extended().to_vec(),
            };
            prop_assert_eq!(written, header);
            let export = ExportInfo { size_bytes: size, ..export(all_flags()) };
            let selects = request.command == Command::BlockStatus
                && request.flags.contains(CommandFlags::PAYLOAD_LEN);
            if validate(&request, &export, &negotiated(extended)).is_ok()
                && !selects
                && request.command != Command::Disconnect
            {
                prop_assert!(u128::from(request.offset) + u128::from(request.length) <= size.into());
            }
        }
    }
}
