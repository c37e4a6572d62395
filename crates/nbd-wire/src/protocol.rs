//! The protocol's numbers (proto.md, "Values").

use std::fmt;

use bitflags::bitflags;

/// The first eight bytes of a server.
pub const MAGIC_NBD: u64 = 0x4e42_444d_4147_4943;
/// The next eight bytes of a server, and the first of every option.
pub const MAGIC_OPTION: u64 = 0x4948_4156_454f_5054;
/// The first bytes of every reply to an option.
pub const MAGIC_OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
/// The first bytes of a request.
pub const MAGIC_REQUEST: u32 = 0x2560_9513;
/// The first bytes of a request with extended headers.
pub const MAGIC_EXTENDED_REQUEST: u32 = 0x21e4_1c71;
/// The first bytes of a simple reply.
pub const MAGIC_SIMPLE_REPLY: u32 = 0x6744_6698;
/// The first bytes of a structured reply chunk.
pub const MAGIC_STRUCTURED_REPLY: u32 = 0x668e_33ef;
/// The first bytes of a reply chunk with extended headers.
pub const MAGIC_EXTENDED_REPLY: u32 = 0x6e8a_278c;

/// How many zeroes follow the answer to `EXPORT_NAME` unless the client declined them.
pub const EXPORT_NAME_ZEROES_BYTES: usize = 124;

bitflags! {
    /// What a server says of itself first.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct HandshakeFlags: u16 {
        /// Options are answered.
        const FIXED_NEWSTYLE = 1 << 0;
        /// The zeroes after `EXPORT_NAME` can be left out.
        const NO_ZEROES = 1 << 1;
    }

    /// What a client answers.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct ClientFlags: u32 {
        /// The client understands answers to options.
        const FIXED_NEWSTYLE = 1 << 0;
        /// The zeroes after `EXPORT_NAME` are to be left out.
        const NO_ZEROES = 1 << 1;
    }

    /// What can be done with an export.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct TransmissionFlags: u16 {
        /// Always set.
        const HAS_FLAGS = 1 << 0;
        /// Writing is refused.
        const READ_ONLY = 1 << 1;
        /// `FLUSH` is understood.
        const SEND_FLUSH = 1 << 2;
        /// The `FUA` flag is understood.
        const SEND_FUA = 1 << 3;
        /// A rotating disk.
        const ROTATIONAL = 1 << 4;
        /// `TRIM` is understood.
        const SEND_TRIM = 1 << 5;
        /// `WRITE_ZEROES` is understood.
        const SEND_WRITE_ZEROES = 1 << 6;
        /// The `DF` flag is understood.
        const SEND_DF = 1 << 7;
        /// What one connection flushed, all connections see.
        const CAN_MULTI_CONN = 1 << 8;
        /// `RESIZE` is understood.
        const SEND_RESIZE = 1 << 9;
        /// `CACHE` is understood.
        const SEND_CACHE = 1 << 10;
        /// The `FAST_ZERO` flag is understood.
        const SEND_FAST_ZERO = 1 << 11;
        /// `BLOCK_STATUS` may name contexts in a payload (extended headers only).
        const BLOCK_STATUS_PAYLOAD = 1 << 12;
    }

    /// How a command is to be done.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct CommandFlags: u16 {
        /// What was written is to be on stable storage before the reply.
        const FUA = 1 << 0;
        /// Zeroes are to be allocated.
        const NO_HOLE = 1 << 1;
        /// The reply is to be one chunk.
        const DF = 1 << 2;
        /// One extent is enough.
        const REQ_ONE = 1 << 3;
        /// Zeroes only if that is faster than writing.
        const FAST_ZERO = 1 << 4;
        /// The length is that of a payload that follows (extended headers only).
        const PAYLOAD_LEN = 1 << 5;
    }

    /// Flags of a reply chunk.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct ReplyFlags: u16 {
        /// The last chunk of its request.
        const DONE = 1 << 0;
    }

    /// Status bits of the `base:allocation` context.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct AllocationFlags: u32 {
        /// Nothing is allocated there.
        const HOLE = 1 << 0;
        /// It reads as zeroes.
        const ZERO = 1 << 1;
    }
}

/// Declares a set of numbers with names, and a way to get from one to the other.
macro_rules! numbers {
    ($(#[$doc:meta])* $name:ident: $number:ty {
        $($(#[$entry_doc:meta])* $entry:ident = $value:expr,)*
    }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$entry_doc])* $entry,)*
            /// A number that this crate has no name for.
            Unknown($number),
        }

        impl $name {
            /// What the number stands for.
            pub const fn from_number(number: $number) -> Self {
                $(if number == $value { return Self::$entry; })*
                Self::Unknown(number)
            }

            /// The number on the wire.
            pub const fn number(self) -> $number {
                match self {
                    $(Self::$entry => $value,)*
                    Self::Unknown(number) => number,
                }
            }
        }
    };
}

numbers! {
    /// What a client asks for during the handshake.
    OptionKind: u32 {
        /// Enter transmission, without a way to be refused politely.
        ExportName = 1,
        /// End the session.
        Abort = 2,
        /// List the exports.
        List = 3,
        /// Go on in TLS.
        StartTls = 5,
        /// Tell about an export.
        Info = 6,
        /// Tell about an export and enter transmission.
        Go = 7,
        /// Use structured replies.
        StructuredReply = 8,
        /// List the metadata contexts of an export.
        ListMetaContext = 9,
        /// Select metadata contexts of an export.
        SetMetaContext = 10,
        /// Use extended headers.
        ExtendedHeaders = 11,
    }
}

numbers! {
    /// How a server answers an option.
    OptionReply: u32 {
        /// Done.
        Ack = 1,
        /// An export.
        Server = 2,
        /// Something about an export.
        Info = 3,
        /// A metadata context.
        MetaContext = 4,
        /// The option is not known.
        Unsupported = (1 << 31) + 1,
        /// The option is forbidden.
        Policy = (1 << 31) + 2,
        /// The option makes no sense.
        Invalid = (1 << 31) + 3,
        /// The option is not possible on this host.
        Platform = (1 << 31) + 4,
        /// TLS comes first.
        TlsRequired = (1 << 31) + 5,
        /// There is no such export.
        UnknownExport = (1 << 31) + 6,
        /// The server is going down.
        Shutdown = (1 << 31) + 7,
        /// The client has to ask for block sizes.
        BlockSizeRequired = (1 << 31) + 8,
        /// The option, or its answer, is too large.
        TooBig = (1 << 31) + 9,
        /// Extended headers have to be negotiated.
        ExtendedHeadersRequired = (1 << 31) + 10,
    }
}

impl OptionReply {
    /// Whether the option failed.
    pub const fn is_error(self) -> bool {
        self.number() & (1 << 31) != 0
    }
}

numbers! {
    /// What an INFO reply is about.
    InfoKind: u16 {
        /// Size and flags.
        Export = 0,
        /// The canonical name.
        Name = 1,
        /// A description for people.
        Description = 2,
        /// Block size constraints.
        BlockSize = 3,
    }
}

numbers! {
    /// What a request asks for.
    Command: u16 {
        /// Read data.
        Read = 0,
        /// Write data.
        Write = 1,
        /// End the session when all requests are done; has no reply.
        Disconnect = 2,
        /// Bring what was written to stable storage.
        Flush = 3,
        /// Forget data.
        Trim = 4,
        /// Get data ready.
        Cache = 5,
        /// Write zeroes.
        WriteZeroes = 6,
        /// Tell about extents.
        BlockStatus = 7,
        /// Change the size (an extension nobody has).
        Resize = 8,
    }
}

numbers! {
    /// What a structured or extended reply chunk carries.
    ChunkKind: u16 {
        /// Nothing.
        None = 0,
        /// Data with its offset.
        OffsetData = 1,
        /// A hole.
        OffsetHole = 2,
        /// Extents with 32-bit lengths.
        BlockStatus = 5,
        /// Extents with 64-bit lengths.
        BlockStatusExtended = 6,
        /// An error.
        Error = (1 << 15) + 1,
        /// An error at an offset.
        ErrorOffset = (1 << 15) + 2,
    }
}

impl ChunkKind {
    /// Whether the request failed.
    pub const fn is_error(self) -> bool {
        self.number() & (1 << 15) != 0
    }
}

/// The error values that may be sent (proto.md, "Error values"). They are not the host's `errno`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum ErrorCode {
    /// Not permitted.
    Permission = 1,
    /// Input or output failed.
    Io = 5,
    /// No memory.
    NoMemory = 12,
    /// The request makes no sense.
    Invalid = 22,
    /// No space, or beyond the end.
    NoSpace = 28,
    /// Too much at once.
    Overflow = 75,
    /// Not possible, or not fast.
    NotSupported = 95,
    /// The server is going down.
    Shutdown = 108,
}

impl ErrorCode {
    /// The number on the wire, never 0.
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// A peer's number; unknown ones count as [`Self::Invalid`], as the specification asks.
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Permission,
            5 => Self::Io,
            12 => Self::NoMemory,
            28 => Self::NoSpace,
            75 => Self::Overflow,
            95 => Self::NotSupported,
            108 => Self::Shutdown,
            _ => Self::Invalid,
        }
    }

    /// What is sent for a Linux `errno`: the nearest of the few allowed.
    pub const fn from_linux_errno(errno: i32) -> Self {
        match errno {
            // EPERM, EACCES, EROFS
            1 | 13 | 30 => Self::Permission,
            // EIO
            5 => Self::Io,
            // ENOMEM
            12 => Self::NoMemory,
            // ENOSPC, EFBIG, EDQUOT
            28 | 27 | 122 => Self::NoSpace,
            // EOVERFLOW
            75 => Self::Overflow,
            // EOPNOTSUPP (ENOTSUP is the same)
            95 => Self::NotSupported,
            // ESHUTDOWN
            108 => Self::Shutdown,
            // EINVAL and whatever the protocol has no word for
            _ => Self::Invalid,
        }
    }

    /// The Linux `errno` of the same meaning.
    pub const fn linux_errno(self) -> i32 {
        match self {
            Self::Permission => 1,
            Self::Io => 5,
            Self::NoMemory => 12,
            Self::Invalid => 22,
            Self::NoSpace => 28,
            Self::Overflow => 75,
            Self::NotSupported => 95,
            Self::Shutdown => 108,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Permission => "operation not permitted",
            Self::Io => "input/output error",
            Self::NoMemory => "cannot allocate memory",
            Self::Invalid => "invalid argument",
            Self::NoSpace => "no space left on device",
            Self::Overflow => "value too large",
            Self::NotSupported => "operation not supported",
            Self::Shutdown => "the server is shutting down",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_magics_are_the_letters_that_the_specification_says() {
        assert_eq!(&MAGIC_NBD.to_be_bytes(), b"NBDMAGIC");
        assert_eq!(&MAGIC_OPTION.to_be_bytes(), b"IHAVEOPT");
    }

    #[test]
    fn numbers_go_there_and_back() {
        for number in 0..20 {
            assert_eq!(Command::from_number(number).number(), number);
            assert_eq!(
                OptionKind::from_number(number.into()).number(),
                number.into()
            );
            assert_eq!(
                ChunkKind::from_number(number | 1 << 15).number(),
                number | 1 << 15
            );
        }
        assert!(OptionReply::TooBig.is_error() && !OptionReply::MetaContext.is_error());
        assert!(ChunkKind::from_number(0x8007).is_error() && !ChunkKind::None.is_error());
        assert_eq!(Command::from_number(77), Command::Unknown(77));
    }

    #[test]
    fn errors_go_there_and_back_and_unknown_ones_are_invalid() {
        for number in [1, 5, 12, 22, 28, 75, 95, 108] {
            let code = ErrorCode::from_number(number);
            assert_eq!(code.number(), number);
            assert_eq!(ErrorCode::from_linux_errno(code.linux_errno()), code);
        }
        assert_eq!(ErrorCode::from_number(4711), ErrorCode::Invalid);
        assert_eq!(ErrorCode::from_linux_errno(122), ErrorCode::NoSpace);
    }
}
