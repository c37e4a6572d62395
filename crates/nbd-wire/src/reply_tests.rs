use proptest::prelude::*;

use super::*;

const WRITER: ChunkWriter = ChunkWriter {
    extended: false,
    cookie: 0x0102_0304_0506_0708,
    offset: 9,
};
const EXTENDED_WRITER: ChunkWriter = ChunkWriter {
    extended: true,
    ..WRITER
};

fn written(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out);
    out
}

/// Header and payload of the one chunk in `bytes`.
fn read(format: ReplyFormat, bytes: &[u8]) -> (ReplyHeader, Chunk<'_>) {
    let (header, used) = ReplyHeader::decode(format, bytes).unwrap().unwrap();
    let ReplyHeader::Chunk {
        kind,
        payload_bytes,
        cookie,
        ..
    } = header
    else {
        panic!("no chunk: {header:?}")
    };
    assert_eq!(cookie, WRITER.cookie);
    assert_eq!(used + payload_bytes as usize, bytes.len());
    (header, Chunk::decode(kind, &bytes[used..]).unwrap())
}

#[test]
fn headers_have_the_specified_layout() {
    let simple = encode_simple(WRITER.cookie, Some(ErrorCode::Invalid));
    assert_eq!(
        simple,
        [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 22, 1, 2, 3, 4, 5, 6, 7, 8]
    );
    let done = written(|out| WRITER.done(out));
    let expected = [
        0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0,
    ];
    assert_eq!(done, expected);
    let done = written(|out| EXTENDED_WRITER.done(out));
    let expected = [
        0x6e, 0x8a, 0x27, 0x8c, 0, 1, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0,
        0, 0, 0, 0, 0, 0,
    ];
    assert_eq!(done, expected);
}

#[test]
fn payloads_are_read_as_they_were_written() {
    for (writer, format) in [
        (WRITER, ReplyFormat::Structured),
        (EXTENDED_WRITER, ReplyFormat::Extended),
    ] {
        let none = ReplyFlags::empty();
        let data = written(|out| {
            writer.data(none, 77, 3, out);
            out.extend_from_slice(b"abc");
        });
        assert_eq!(
            read(format, &data).1,
            Chunk::Data {
                offset: 77,
                data: b"abc"
            }
        );

        let hole = written(|out| writer.hole(ReplyFlags::DONE, 78, 4096, out));
        let (header, chunk) = read(format, &hole);
        assert!(matches!(
            header,
            ReplyHeader::Chunk {
                flags: ReplyFlags::DONE,
                ..
            }
        ));
        assert_eq!(
            chunk,
            Chunk::Hole {
                offset: 78,
                length: 4096
            }
        );

        let error = written(|out| writer.error(ErrorCode::NoSpace, "full", out));
        let expected = Chunk::Error {
            code: ErrorCode::NoSpace,
            message: "full",
            offset: None,
        };
        assert_eq!(read(format, &error).1, expected);

        let error = written(|out| writer.error_at(ErrorCode::Io, "", 5, out));
        let expected = Chunk::Error {
            code: ErrorCode::Io,
            message: "",
            offset: Some(5),
        };
        assert_eq!(read(format, &error).1, expected);

        let extents = vec![
            Extent {
                length: 512,
                status: 3,
            },
            Extent {
                length: 1,
                status: 0,
            },
        ];
        let status = written(|out| writer.block_status(none, 2, &extents, out));
        assert_eq!(
            read(format, &status).1,
            Chunk::BlockStatus {
                context_id: 2,
                extents
            }
        );
    }
}

#[test]
fn long_extents_are_whole_only_with_extended_headers() {
    let extents = vec![Extent {
        length: 1 << 40,
        status: 0,
    }];
    let none = ReplyFlags::empty();
    let wide = written(|out| EXTENDED_WRITER.block_status(none, 0, &extents, out));
    let expected = Chunk::BlockStatus {
        context_id: 0,
        extents: extents.clone(),
    };
    assert_eq!(read(ReplyFormat::Extended, &wide).1, expected);
    let narrow = written(|out| WRITER.block_status(none, 0, &extents, out));
    let cut = vec![Extent {
        length: 0xffff_0000,
        status: 0,
    }];
    let expected = Chunk::BlockStatus {
        context_id: 0,
        extents: cut,
    };
    assert_eq!(read(ReplyFormat::Structured, &narrow).1, expected);
}

#[test]
fn a_long_message_is_cut_between_characters() {
    let message = "é".repeat(3000);
    let error = written(|out| WRITER.error(ErrorCode::Io, &format!("x{message}"), out));
    let (_, Chunk::Error { message, .. }) = read(ReplyFormat::Structured, &error) else {
        panic!()
    };
    assert_eq!(message.len(), 4095);
}

#[test]
fn only_negotiated_headers_are_read() {
    let simple = encode_simple(1, None);
    let structured = encode_structured(ReplyFlags::DONE, ChunkKind::None, 1, 0);
    let extended = encode_extended(ReplyFlags::DONE, ChunkKind::None, 1, 0, 0);
    let reads = |format, bytes: &[u8]| ReplyHeader::decode(format, bytes).is_ok();
    assert!(reads(ReplyFormat::Simple, &simple));
    assert!(!reads(ReplyFormat::Simple, &structured));
    assert!(reads(ReplyFormat::Structured, &simple));
    assert!(reads(ReplyFormat::Structured, &structured));
    assert!(!reads(ReplyFormat::Structured, &extended));
    assert!(!reads(ReplyFormat::Extended, &simple));
    assert!(reads(ReplyFormat::Extended, &extended));
    for short in 0..EXTENDED_BYTES {
        let header = ReplyHeader::decode(ReplyFormat::Extended, &extended[..short]);
        assert_eq!(header, Ok(None));
    }
}

#[test]
fn broken_payloads_are_errors() {
    let wrong = |kind, payload: &[u8]| Chunk::decode(kind, payload).is_err();
    assert!(wrong(ChunkKind::None, &[0]));
    assert!(wrong(ChunkKind::OffsetData, &[0; 8]));
    assert!(wrong(ChunkKind::OffsetHole, &[0; 12]));
    assert!(wrong(ChunkKind::OffsetHole, &[1; 13]));
    assert!(wrong(ChunkKind::BlockStatus, &[0; 4]));
    assert!(wrong(ChunkKind::BlockStatus, &[1; 13]));
    assert!(wrong(ChunkKind::BlockStatus, &[0; 12]));
    assert!(wrong(ChunkKind::BlockStatusExtended, &[1; 24]));
    assert!(wrong(ChunkKind::Error, &[0, 0, 0, 1, 0, 1]));
    assert!(wrong(ChunkKind::Unknown(77), &[]));
    let unknown_error = ChunkKind::from_number(0x8077);
    assert!(!wrong(unknown_error, &[0, 0, 0, 1, 0, 1, b'x', 1, 2, 3]));
}

proptest! {
    #[test]
    fn any_bytes_are_survived(
        bytes in proptest::collection::vec(any::<u8>(), 0..64),
        kind in 0_u16..10,
        error: bool,
        magic in proptest::sample::select(vec![
            MAGIC_SIMPLE_REPLY, MAGIC_STRUCTURED_REPLY, MAGIC_EXTENDED_REPLY,
        ]),
    ) {
        let kind = ChunkKind::from_number(kind | if error { 0x8000 } else { 0 });
        let _ = Chunk::decode(kind, &bytes);
        let header = [&magic.to_be_bytes()[..], &bytes].concat();
        for format in [ReplyFormat::Simple, ReplyFormat::Structured, ReplyFormat::Extended] {
            if let Ok(Some((ReplyHeader::Chunk { payload_bytes, .. }, _))) =
                ReplyHeader::decode(format, &header)
            {
                prop_assert!(u64::from(payload_bytes) <= MAX_CHUNK_BYTES);
            }
        }
    }
}
