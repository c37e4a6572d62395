use proptest::prelude::*;

use super::client::{ClientHandshake, ClientStatus, ClientWishes, Goal};
use super::server::{CloseReason, Exports, ServerHandshake, ServerStatus, Tls};
use super::*;

struct Two;

impl Exports for Two {
    fn find(&self, name: &str) -> Option<ExportInfo> {
        let (name, size_bytes) = match name {
            "" | "disk" => ("disk", 1 << 40),
            "aligned" => ("aligned", 1 << 20),
            _ => return None,
        };
        let minimum = if name == "aligned" { 4096 } else { 1 };
        let flags = TransmissionFlags::SEND_FLUSH | TransmissionFlags::BLOCK_STATUS_PAYLOAD;
        Some(ExportInfo {
            name: name.to_owned(),
            size_bytes,
            flags,
            description: (name == "disk").then(|| "a disk".to_owned()),
            block_size: BlockSize {
                minimum,
                ..BlockSize::default()
            },
            meta_contexts: vec![
                "base:allocation".to_owned(),
                "qemu:allocation-depth".to_owned(),
            ],
        })
    }

    fn list(&self) -> Vec<ListedExport> {
        let entry = |name: &str, description: &str| ListedExport {
            name: name.to_owned(),
            description: description.to_owned(),
        };
        vec![entry("disk", "a disk"), entry("aligned", "")]
    }
}

fn wishes(name: &str) -> ClientWishes {
    ClientWishes {
        goal: Goal::Transmission(name.to_owned()),
        tls: false,
        structured: true,
        extended: true,
        meta_contexts: vec!["base:allocation".to_owned(), "x-none:such".to_owned()],
    }
}

/// Lets both sides talk in blocks of the given sizes until nothing more happens.
fn converse(
    wishes: ClientWishes,
    tls: Tls,
    blocks: &[usize],
) -> (ClientStatus, ServerStatus, ServerHandshake) {
    let mut client = ClientHandshake::new(wishes);
    let mut server = ServerHandshake::new(tls);
    let mut at_client = ClientStatus::NeedMore;
    let mut at_server = ServerStatus::NeedMore;
    let mut blocks = blocks.iter().copied().cycle();
    loop {
        let to_client = server.take_output();
        let mut rest = &to_client[..];
        while !rest.is_empty() {
            let (block, left) = rest.split_at(blocks.next().unwrap().min(rest.len()));
            at_client = client.feed(block);
            rest = left;
        }
        let to_server = client.take_output();
        let mut rest = &to_server[..];
        while !rest.is_empty() {
            let (block, left) = rest.split_at(blocks.next().unwrap().min(rest.len()));
            at_server = server.feed(block, &Two);
            rest = left;
        }
        if (&at_client, &at_server) == (&ClientStatus::StartTls, &ServerStatus::StartTls) {
            client.tls_started();
            server.tls_started();
        } else if to_client.is_empty() && to_server.is_empty() {
            // What is left over belongs to the transmission phase, which nobody has begun.
            let over = !matches!(at_client, ClientStatus::Ready(_));
            assert!(over || client.take_input().is_empty() && server.take_input().is_empty());
            return (at_client, at_server, server);
        }
    }
}

fn both_ready(wishes: ClientWishes, tls: Tls, blocks: &[usize]) -> (Ready, Ready) {
    match converse(wishes, tls, blocks) {
        (ClientStatus::Ready(client), ServerStatus::Ready(server), _) => (*client, *server),
        (client, server, _) => panic!("client {client:?}, server {server:?}"),
    }
}

#[test]
fn both_sides_agree_on_everything() {
    let (client, server) = both_ready(wishes(""), Tls::Unavailable, &[4096]);
    assert_eq!(client.negotiated, server.negotiated);
    let negotiated = &server.negotiated;
    assert!(negotiated.extended && negotiated.structured && negotiated.no_zeroes);
    let context = MetaContext {
        id: 0,
        name: "base:allocation".to_owned(),
    };
    assert_eq!(negotiated.meta_contexts, [context]);
    assert_eq!(
        (client.requested_name.as_str(), client.export.name.as_str()),
        ("", "disk")
    );
    assert_eq!(client.export.flags, server.export.flags);
    let expected = TransmissionFlags::HAS_FLAGS
        | TransmissionFlags::SEND_FLUSH
        | TransmissionFlags::SEND_DF
        | TransmissionFlags::BLOCK_STATUS_PAYLOAD;
    assert_eq!(server.export.flags, expected);
    assert_eq!(client.export.description.as_deref(), Some("a disk"));
    assert_eq!(client.export.block_size, server.export.block_size);
}

#[test]
fn flags_that_need_more_than_was_negotiated_are_not_told() {
    let plain = ClientWishes {
        structured: false,
        extended: false,
        ..wishes("disk")
    };
    let (client, server) = both_ready(plain, Tls::Unavailable, &[4096]);
    let expected = TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH;
    assert_eq!(
        (client.export.flags, server.export.flags),
        (expected, expected)
    );
    assert!(server.negotiated.meta_contexts.is_empty());
}

#[test]
fn an_unknown_export_is_refused_and_the_session_can_be_ended() {
    let (client, server, _) = converse(wishes("nope"), Tls::Unavailable, &[4096]);
    let ClientStatus::Failed(WireError::Refused { reason, .. }) = client else {
        panic!("{client:?}")
    };
    assert!(reason.contains("there is no export 'nope'"), "{reason}");
    assert_eq!(server, ServerStatus::Closed(CloseReason::Aborted));
}

#[test]
fn exports_are_listed() {
    let list = ClientWishes {
        goal: Goal::List,
        ..wishes("")
    };
    let (client, server, _) = converse(list, Tls::Unavailable, &[5]);
    assert_eq!(client, ClientStatus::Listed(Two.list()));
    assert_eq!(server, ServerStatus::Closed(CloseReason::Aborted));
}

#[test]
fn tls_is_started_where_it_is_wanted() {
    let secret = ClientWishes {
        tls: true,
        ..wishes("disk")
    };
    for tls in [Tls::Offered, Tls::Required] {
        let (client, _, server) = converse(secret.clone(), tls, &[3]);
        assert!(matches!(client, ClientStatus::Ready(_)), "{client:?}");
        assert!(server.is_in_tls());
    }
    let (client, _, _) = converse(secret, Tls::Unavailable, &[4096]);
    assert!(matches!(
        client,
        ClientStatus::Failed(WireError::Refused { option: 5, .. })
    ));
    let (client, _, _) = converse(wishes("disk"), Tls::Required, &[4096]);
    let ClientStatus::Failed(WireError::Refused { reason, .. }) = client else {
        panic!("{client:?}")
    };
    assert!(reason.starts_with("TlsRequired"), "{reason}");
}

/// Client flags and options, and what the server makes of them.
fn serve(tls: Tls, flags: u32, options: &[(OptionKind, &[u8])]) -> (ServerHandshake, ServerStatus) {
    let mut server = ServerHandshake::new(tls);
    server.take_output();
    let mut bytes = flags.to_be_bytes().to_vec();
    for (option, data) in options {
        push_option(&mut bytes, *option, data);
    }
    let status = server.feed(&bytes, &Two);
    (server, status)
}

/// Option, reply type and data of each reply.
fn replies(mut output: &[u8]) -> Vec<(OptionKind, OptionReply, Vec<u8>)> {
    let mut seen = Vec::new();
    while !output.is_empty() {
        let mut reader = Reader::new("reply", output);
        reader.magic64(MAGIC_OPTION_REPLY).unwrap();
        let option = OptionKind::from_number(reader.u32().unwrap());
        let reply = OptionReply::from_number(reader.u32().unwrap());
        let count = reader.u32().unwrap() as usize;
        seen.push((option, reply, reader.take(count).unwrap().to_vec()));
        output = &output[REPLY_HEADER_BYTES + count..];
    }
    seen
}

fn kinds(server: &mut ServerHandshake) -> Vec<OptionReply> {
    replies(&server.take_output())
        .into_iter()
        .map(|(_, reply, _)| reply)
        .collect()
}

#[test]
fn the_greeting_has_the_specified_bytes() {
    let greeting = ServerHandshake::new(Tls::Unavailable).take_output();
    assert_eq!(greeting, b"NBDMAGICIHAVEOPT\x00\x03");
}

#[test]
fn a_list_has_the_specified_bytes() {
    let (mut server, status) = serve(Tls::Unavailable, 3, &[(OptionKind::List, b"")]);
    assert_eq!(status, ServerStatus::NeedMore);
    let magic = b"\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x03";
    let expected = [
        &magic[..],
        b"\x00\x00\x00\x02\x00\x00\x00\x0e\x00\x00\x00\x04diska disk",
        magic,
        b"\x00\x00\x00\x02\x00\x00\x00\x0b\x00\x00\x00\x07aligned",
        magic,
        b"\x00\x00\x00\x01\x00\x00\x00\x00",
    ]
    .concat();
    assert_eq!(server.take_output(), expected);
}

#[test]
fn export_name_has_the_specified_bytes() {
    for (flags, zeroes) in [(3, 0), (1, 124), (0, 124), (2, 0)] {
        let (mut server, status) = serve(
            Tls::Unavailable,
            flags,
            &[(OptionKind::ExportName, b"disk")],
        );
        assert!(matches!(status, ServerStatus::Ready(_)), "{status:?}");
        let fields = [0, 0, 1, 0, 0, 0, 0, 0, 0, 0b101];
        assert_eq!(
            server.take_output(),
            [&fields[..], &vec![0; zeroes]].concat()
        );
    }
    let (_, status) = serve(Tls::Unavailable, 3, &[(OptionKind::ExportName, b"nope")]);
    assert_eq!(
        status,
        ServerStatus::Closed(CloseReason::UnknownExport("nope".to_owned()))
    );
    let (_, status) = serve(Tls::Required, 3, &[(OptionKind::ExportName, b"disk")]);
    assert_eq!(status, ServerStatus::Closed(CloseReason::TlsRequired));
}

#[test]
fn malformed_options_are_refused_and_the_session_goes_on() {
    let invalid: [(OptionKind, &[u8]); 12] = [
        (OptionKind::List, b"x"),
        (OptionKind::StructuredReply, b"x"),
        (OptionKind::ExtendedHeaders, b"x"),
        (OptionKind::Info, b""),
        (OptionKind::Info, b"\x00\x00\x00\x05disk\x00\x00"),
        (OptionKind::Info, b"\x00\x00\x00\x04disk\x00\x01"),
        (OptionKind::Info, b"\x00\x00\x00\x04disk\x00\x00x"),
        (OptionKind::Info, b"\xff\xff\xff\xff"),
        (OptionKind::Info, b"\x00\x00\x00\x01\xff\x00\x00"),
        (OptionKind::Go, b"\x00\x00\x00\x01\x00\x00\x00"),
        (
            OptionKind::SetMetaContext,
            b"\x00\x00\x00\x00\x00\x00\x00\x00",
        ),
        (OptionKind::ListMetaContext, b""),
    ];
    for (option, data) in invalid {
        let (mut server, status) = serve(Tls::Unavailable, 3, &[(option, data)]);
        assert_eq!(status, ServerStatus::NeedMore);
        assert_eq!(
            kinds(&mut server),
            [OptionReply::Invalid],
            "{option:?} {data:?}"
        );
    }
    let (mut server, _) = serve(Tls::Unavailable, 3, &[(OptionKind::Unknown(99), b"abc")]);
    assert_eq!(kinds(&mut server), [OptionReply::Unsupported]);
    let (mut server, _) = serve(Tls::Unavailable, 3, &[(OptionKind::StartTls, b"")]);
    assert_eq!(kinds(&mut server), [OptionReply::Policy]);
}

#[test]
fn a_broken_query_is_invalid_and_unselects() {
    let good = MetaQuery {
        name: "",
        queries: vec!["base:allocation"],
    }
    .encode();
    let go = InfoRequest {
        name: "",
        kinds: Vec::new(),
    }
    .encode();
    let structured: (OptionKind, &[u8]) = (OptionKind::StructuredReply, b"");
    for broken in [
        &b"\0\0\0\0\xff\xff\xff\xff"[..],
        b"\0\0\0\0\0\0\0\x01\0\0\0\x05ab",
        b"\0",
    ] {
        let options = [
            structured,
            (OptionKind::SetMetaContext, &good),
            (OptionKind::SetMetaContext, broken),
            (OptionKind::Go, &go),
        ];
        let (mut server, status) = serve(Tls::Unavailable, 3, &options);
        assert!(kinds(&mut server).contains(&OptionReply::Invalid));
        let ServerStatus::Ready(ready) = status else {
            panic!("{status:?}")
        };
        assert!(ready.negotiated.meta_contexts.is_empty());
    }
}

#[test]
fn contexts_count_for_the_export_they_were_selected_for() {
    let query = MetaQuery {
        name: "aligned",
        queries: vec!["base:allocation"],
    }
    .encode();
    let go = InfoRequest {
        name: "disk",
        kinds: Vec::new(),
    }
    .encode();
    let options: [(OptionKind, &[u8]); 3] = [
        (OptionKind::StructuredReply, b""),
        (OptionKind::SetMetaContext, &query),
        (OptionKind::Go, &go),
    ];
    let (_, status) = serve(Tls::Unavailable, 3, &options);
    let ServerStatus::Ready(ready) = status else {
        panic!("{status:?}")
    };
    assert!(ready.negotiated.meta_contexts.is_empty());
}

#[test]
fn contexts_are_listed_by_name_namespace_or_all() {
    let contexts = |queries: &[&str]| {
        let data = MetaQuery {
            name: "",
            queries: queries.to_vec(),
        }
        .encode();
        let options: [(OptionKind, &[u8]); 2] = [
            (OptionKind::StructuredReply, b""),
            (OptionKind::ListMetaContext, &data),
        ];
        let (mut server, _) = serve(Tls::Unavailable, 3, &options);
        replies(&server.take_output())
            .into_iter()
            .filter(|(_, reply, _)| *reply == OptionReply::MetaContext)
            .map(|(_, _, data)| String::from_utf8(data[4..].to_vec()).unwrap())
            .collect::<Vec<_>>()
    };
    let all = ["base:allocation", "qemu:allocation-depth"];
    assert_eq!(contexts(&[]), all);
    assert_eq!(contexts(&["qemu:", "base:allocation", "base:"]), all);
    assert_eq!(contexts(&["qemu:"]), all[1..]);
    assert!(contexts(&["base", "x:", ""]).is_empty());
}

#[test]
fn block_sizes_that_matter_have_to_be_asked_for() {
    for option in [OptionKind::Info, OptionKind::Go] {
        let data = InfoRequest {
            name: "aligned",
            kinds: Vec::new(),
        }
        .encode();
        let (mut server, status) = serve(Tls::Unavailable, 3, &[(option, &data)]);
        assert_eq!(status, ServerStatus::NeedMore);
        let last = *kinds(&mut server).last().unwrap();
        let go = option == OptionKind::Go;
        assert_eq!(
            last,
            if go {
                OptionReply::BlockSizeRequired
            } else {
                OptionReply::Ack
            }
        );
    }
    assert!(
        both_ready(wishes("aligned"), Tls::Unavailable, &[64])
            .1
            .negotiated
            .block_size_requested
    );
}

#[test]
fn headers_are_negotiated_once() {
    use OptionKind::{ExtendedHeaders, StructuredReply};
    use OptionReply::{Ack, ExtendedHeadersRequired, Invalid};
    for (options, expected) in [
        ([StructuredReply, StructuredReply], [Ack, Invalid]),
        ([StructuredReply, ExtendedHeaders], [Ack, Ack]),
        ([ExtendedHeaders, ExtendedHeaders], [Ack, Invalid]),
        (
            [ExtendedHeaders, StructuredReply],
            [Ack, ExtendedHeadersRequired],
        ),
    ] {
        let (mut server, _) = serve(
            Tls::Unavailable,
            3,
            &options.map(|option| (option, &b""[..])),
        );
        assert_eq!(kinds(&mut server), expected, "{options:?}");
    }
}

#[test]
fn what_came_before_tls_does_not_count_in_it() {
    let options: [(OptionKind, &[u8]); 2] = [
        (OptionKind::ExtendedHeaders, b""),
        (OptionKind::StartTls, b""),
    ];
    let (mut server, status) = serve(Tls::Offered, 3, &options);
    assert_eq!(status, ServerStatus::StartTls);
    server.tls_started();
    let mut bytes = Vec::new();
    let go = InfoRequest {
        name: "",
        kinds: Vec::new(),
    }
    .encode();
    push_option(&mut bytes, OptionKind::StartTls, b"");
    push_option(&mut bytes, OptionKind::Go, &go);
    server.take_output();
    let ServerStatus::Ready(ready) = server.feed(&bytes, &Two) else {
        panic!()
    };
    assert!(!ready.negotiated.extended && !ready.negotiated.structured);
    assert_eq!(kinds(&mut server)[0], OptionReply::Invalid);
}

#[test]
fn plain_text_behind_starttls_ends_the_session() {
    let end = ServerStatus::Closed(CloseReason::PlainTextAfterStartTls);
    let options: [(OptionKind, &[u8]); 2] = [(OptionKind::StartTls, b""), (OptionKind::List, b"")];
    assert_eq!(serve(Tls::Offered, 3, &options).1, end);
    let (mut server, status) = serve(Tls::Offered, 3, &[(OptionKind::StartTls, b"")]);
    assert_eq!(status, ServerStatus::StartTls);
    assert_eq!(server.feed(b"x", &Two), end);
    server.tls_started();
    assert!(!server.is_in_tls());
}

#[test]
fn long_options_are_passed_over_or_end_the_session() {
    let long = vec![0; MAX_OPTION_BYTES as usize + 1];
    let options = [
        (OptionKind::Unknown(9), &long[..]),
        (OptionKind::StructuredReply, b""),
    ];
    let (mut server, status) = serve(Tls::Unavailable, 3, &options);
    assert_eq!(status, ServerStatus::NeedMore);
    assert_eq!(kinds(&mut server), [OptionReply::TooBig, OptionReply::Ack]);
    let status = serve(Tls::Unavailable, 3, &[(OptionKind::ExportName, &long)]).1;
    assert!(matches!(
        status,
        ServerStatus::Closed(CloseReason::OptionTooLong(_))
    ));

    let mut server = ServerHandshake::new(Tls::Unavailable);
    let bytes = [&[0, 0, 0, 3][..], b"IHAVEOPT", &[0, 0, 0, 9, 2, 0, 0, 1]].concat();
    let end = ServerStatus::Closed(CloseReason::OptionTooLong(MAX_SKIPPED_OPTION_BYTES + 1));
    assert_eq!(server.feed(&bytes, &Two), end);
}

#[test]
fn a_client_that_only_asks_is_sent_away() {
    let mut server = ServerHandshake::new(Tls::Unavailable);
    server.feed(&[0, 0, 0, 3], &Two);
    let mut list = Vec::new();
    push_option(&mut list, OptionKind::List, b"");
    for _ in 0..MAX_OPTIONS {
        server.take_output();
        assert_eq!(server.feed(&list, &Two), ServerStatus::NeedMore);
    }
    assert_eq!(
        server.feed(&list, &Two),
        ServerStatus::Closed(CloseReason::TooManyOptions)
    );
}

#[test]
fn a_client_that_does_not_read_is_sent_away() {
    struct Many;
    impl Exports for Many {
        fn find(&self, _: &str) -> Option<ExportInfo> {
            None
        }
        fn list(&self) -> Vec<ListedExport> {
            let entry = ListedExport {
                name: "n".repeat(4096),
                description: String::new(),
            };
            vec![entry; 500]
        }
    }
    let mut server = ServerHandshake::new(Tls::Unavailable);
    let mut bytes = vec![0, 0, 0, 3];
    push_option(&mut bytes, OptionKind::List, b"");
    assert_eq!(server.feed(&bytes, &Many), ServerStatus::NeedMore);
    let end = ServerStatus::Closed(CloseReason::NotReading);
    assert_eq!(server.feed(&bytes[4..], &Many), end);
}

#[test]
fn who_does_not_speak_the_protocol_is_sent_away() {
    let closed = |bytes: &[u8]| {
        let status = ServerHandshake::new(Tls::Unavailable).feed(bytes, &Two);
        matches!(status, ServerStatus::Closed(_))
    };
    assert!(closed(&[0, 0, 0, 4]));
    assert!(closed(b"GET / HTTP/1.1\r\n\r\n"));
    assert!(closed(&[&[0, 0, 0, 3][..], b"IHAVEOPX", &[0; 8]].concat()));
    let mut unfixed = vec![0; 4];
    push_option(&mut unfixed, OptionKind::List, b"");
    assert!(closed(&unfixed));
}

#[test]
fn a_client_falls_back_to_export_name() {
    let mut client = ClientHandshake::new(ClientWishes {
        extended: false,
        ..wishes("disk")
    });
    client.feed(b"NBDMAGICIHAVEOPT\x00\x01");
    let mut unsupported = Vec::new();
    for option in [OptionKind::StructuredReply, OptionKind::Go] {
        push_reply(&mut unsupported, option, OptionReply::Unsupported, b"");
    }
    assert_eq!(client.feed(&unsupported), ClientStatus::NeedMore);
    assert!(
        client
            .take_output()
            .ends_with(b"\x00\x00\x00\x01\x00\x00\x00\x04disk")
    );
    let answer = [&[0, 0, 0, 0, 0, 0, 4, 0, 0, 3][..], &[0; 124], b"rest"].concat();
    let ClientStatus::Ready(ready) = client.feed(&answer) else {
        panic!()
    };
    assert_eq!(
        (ready.export.size_bytes, ready.export.name.as_str()),
        (1024, "disk")
    );
    assert_eq!(client.take_input(), b"rest");
}

#[test]
fn a_client_does_not_take_everything() {
    let fails = |replies: &[u8]| {
        let mut client = ClientHandshake::new(ClientWishes {
            extended: false,
            ..wishes("disk")
        });
        client.feed(b"NBDMAGICIHAVEOPT\x00\x03");
        matches!(client.feed(replies), ClientStatus::Failed(_))
    };
    let reply = |option, kind, data: &[u8]| {
        let mut out = Vec::new();
        push_reply(&mut out, option, kind, data);
        out
    };
    assert!(fails(&[0; 20]));
    assert!(fails(&reply(OptionKind::Go, OptionReply::Ack, b"")));
    assert!(fails(&reply(
        OptionKind::StructuredReply,
        OptionReply::Info,
        b""
    )));
    assert!(fails(&reply(
        OptionKind::StructuredReply,
        OptionReply::Ack,
        &vec![0; 9000]
    )));
    let through = |option| reply(option, OptionReply::Ack, b"");
    let to_go = [
        through(OptionKind::StructuredReply),
        through(OptionKind::SetMetaContext),
    ]
    .concat();
    assert!(fails(&[&to_go[..], &through(OptionKind::Go)].concat()));
    let no_size = reply(
        OptionKind::Go,
        OptionReply::Info,
        b"\x00\x03\0\0\0\0\0\0\0\0\0\0\0\0",
    );
    assert!(fails(&[&to_go[..], &no_size].concat()));
    assert!(!fails(&to_go));
}

proptest! {
    #[test]
    fn splitting_changes_nothing(
        blocks in proptest::collection::vec(1_usize..40, 1..20),
        structured: bool,
        extended: bool,
        tls: bool,
        name in proptest::sample::select(vec!["", "disk", "aligned"]),
    ) {
        let wishes = ClientWishes { structured, extended, tls, ..wishes(name) };
        let offered = Tls::Offered;
        let whole = both_ready(wishes.clone(), offered, &[1 << 20]);
        prop_assert_eq!(both_ready(wishes, offered, &blocks), whole);
    }

    #[test]
    fn any_options_are_survived(
        flags in 0_u32..5,
        options in proptest::collection::vec(
            (0_u32..13, proptest::collection::vec(any::<u8>(), 0..24)), 0..12),
        tail in proptest::collection::vec(any::<u8>(), 0..40),
        tls in proptest::sample::select(vec![Tls::Unavailable, Tls::Offered, Tls::Required]),
        block in 1_usize..50,
    ) {
        let mut bytes = flags.to_be_bytes().to_vec();
        for (option, data) in &options {
            push_option(&mut bytes, OptionKind::from_number(*option), data);
        }
        bytes.extend(tail);
        let mut server = ServerHandshake::new(tls);
        for block in bytes.chunks(block) {
            server.feed(block, &Two);
        }
        let output = server.take_output();
        prop_assert!(output.starts_with(b"NBDMAGICIHAVEOPT"));
    }

    #[test]
    fn any_server_is_survived(
        replies in proptest::collection::vec(
            (0_u32..13, 0_u32..8, any::<bool>(), proptest::collection::vec(any::<u8>(), 0..24)), 0..12),
        tail in proptest::collection::vec(any::<u8>(), 0..40),
        block in 1_usize..50,
    ) {
        let mut bytes = b"NBDMAGICIHAVEOPT\x00\x03".to_vec();
        for (option, kind, error, data) in &replies {
            let kind = kind | if *error { 1 << 31 } else { 0 };
            let (option, kind) = (OptionKind::from_number(*option), OptionReply::from_number(kind));
            push_reply(&mut bytes, option, kind, data);
        }
        bytes.extend(tail);
        let mut client = ClientHandshake::new(wishes("disk"));
        for block in bytes.chunks(block) {
            client.feed(block);
        }
    }
}
