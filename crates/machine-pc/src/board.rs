//! The boards, as data.

/// Which chips a board has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chips {
    /// i440FX, PIIX3 and all that belongs to them.
    Pc,
    /// Interrupt controllers, timers, a serial port; virtio by MMIO.
    Microvm,
    /// Nothing at all.
    None,
}

/// A board, as `query-machines` and `-machine help` tell it.
#[derive(Debug, PartialEq, Eq)]
pub struct Board {
    /// Its name.
    pub name: &'static str,
    /// Other names it answers to.
    pub aliases: &'static [&'static str],
    /// What people read.
    pub description: &'static str,
    /// Whether it is the default.
    pub is_default: bool,
    /// The most processors.
    pub max_cpus: u32,
    /// RAM if nobody says how much.
    pub default_ram_bytes: u64,
    /// The id of its RAM.
    pub default_ram_id: &'static str,
    /// The CPU model if nobody says which, as a type.
    pub default_cpu_type: Option<&'static str>,
    /// Its chips.
    pub chips: Chips,
}

const DEFAULT_RAM: u64 = 128 << 20;
/// xAPIC identities are 8 bits wide, of which 0xff means all.
const MAX_CPUS: u32 = 255;

/// The board that scripts mean if they say nothing.
const PC: Board = Board {
    name: "pc-i440fx-10.0",
    aliases: &["pc"],
    description: "Standard PC (i440FX + PIIX, 1996)",
    is_default: true,
    max_cpus: MAX_CPUS,
    default_ram_bytes: DEFAULT_RAM,
    default_ram_id: "pc.ram",
    default_cpu_type: Some("max-x86_64-cpu"),
    chips: Chips::Pc,
};

/// All boards.
pub const BOARDS: &[Board] = &[
    PC,
    Board {
        name: "microvm",
        aliases: &[],
        description: "microvm (i386)",
        is_default: false,
        max_cpus: MAX_CPUS,
        default_ram_bytes: DEFAULT_RAM,
        default_ram_id: "microvm.ram",
        default_cpu_type: Some("max-x86_64-cpu"),
        chips: Chips::Microvm,
    },
    Board {
        name: "none",
        aliases: &[],
        description: "empty machine",
        is_default: false,
        max_cpus: 1,
        default_ram_bytes: 0,
        default_ram_id: "ram",
        default_cpu_type: None,
        chips: Chips::None,
    },
];

impl Board {
    /// The board that this name means. Names of the same board in other releases (`pc-i440fx-2.11`) mean ours.
    #[must_use]
    pub fn find(name: &str) -> Option<&'static Self> {
        BOARDS.iter().find(|board| {
            board.name == name
                || board.aliases.contains(&name)
                || (board.chips == Chips::Pc && is_version_of("pc-i440fx-", name))
        })
    }

    /// The board if nobody says which.
    #[must_use]
    pub fn default_board() -> &'static Self {
        &PC
    }
}

/// Whether `name` is `prefix` and a version of two numbers.
fn is_version_of(prefix: &str, name: &str) -> bool {
    let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    name.strip_prefix(prefix)
        .and_then(|version| version.split_once('.'))
        .is_some_and(|(major, minor)| number(major) && number(minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_all_ages_are_found() {
        for name in ["pc", "pc-i440fx-10.0", "pc-i440fx-1.4", "pc-i440fx-2.11"] {
            assert_eq!(Board::find(name).unwrap().chips, Chips::Pc, "{name}");
        }
        assert_eq!(Board::find("microvm").unwrap().chips, Chips::Microvm);
        for name in ["", "pc-i440fx-", "pc-i440fx-x.1", "q35", "PC"] {
            assert_eq!(Board::find(name), None, "{name}");
        }
        assert!(Board::default_board().is_default);
        let defaults = BOARDS.iter().filter(|board| board.is_default);
        assert_eq!(defaults.count(), 1);
    }
}
