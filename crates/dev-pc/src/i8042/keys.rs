//! Keys: their scan codes in set 1 and set 2.
//!
//! A key is named by its place on the XT keyboard (set 1) and whether its code has the prefix 0xe0. Its code in set 2 is
//! the one that the 8042's translation turns into the code of set 1: one table serves the keyboard and the translation.

/// Set 2 to set 1, for codes below 0x80, as the 8042 translates them.
const TRANSLATION: [u8; 128] = [
    0xff, 0x43, 0x41, 0x3f, 0x3d, 0x3b, 0x3c, 0x58, 0x64, 0x44, 0x42, 0x40, 0x3e, 0x0f, 0x29, 0x59,
    0x65, 0x38, 0x2a, 0x70, 0x1d, 0x10, 0x02, 0x5a, 0x66, 0x71, 0x2c, 0x1f, 0x1e, 0x11, 0x03, 0x5b,
    0x67, 0x2e, 0x2d, 0x20, 0x12, 0x05, 0x04, 0x5c, 0x68, 0x39, 0x2f, 0x21, 0x14, 0x13, 0x06, 0x5d,
    0x69, 0x31, 0x30, 0x23, 0x22, 0x15, 0x07, 0x5e, 0x6a, 0x72, 0x32, 0x24, 0x16, 0x08, 0x09, 0x5f,
    0x6b, 0x33, 0x25, 0x17, 0x18, 0x0b, 0x0a, 0x60, 0x6c, 0x34, 0x35, 0x26, 0x27, 0x19, 0x0c, 0x61,
    0x6d, 0x73, 0x28, 0x74, 0x1a, 0x0d, 0x62, 0x6e, 0x3a, 0x36, 0x1c, 0x1b, 0x75, 0x2b, 0x63, 0x76,
    0x55, 0x56, 0x77, 0x78, 0x79, 0x7a, 0x0e, 0x7b, 0x7c, 0x4f, 0x7d, 0x4b, 0x47, 0x7e, 0x7f, 0x6f,
    0x52, 0x53, 0x50, 0x4c, 0x4d, 0x48, 0x01, 0x45, 0x57, 0x4e, 0x51, 0x4a, 0x37, 0x49, 0x46, 0x54,
];

/// What the controller makes of a byte of the keyboard, besides the break prefix 0xf0.
pub(super) fn translate(byte: u8) -> u8 {
    match byte {
        // F7 and Alt-SysRq lie above the table.
        0x83 => 0x41,
        0x84 => 0x54,
        _ => TRANSLATION.get(usize::from(byte)).copied().unwrap_or(byte),
    }
}

/// The code in set 2 of a code in set 1.
fn set_2_of(set_1: u8) -> Option<u8> {
    if set_1 == 0x41 {
        return Some(0x83);
    }
    TRANSLATION
        .iter()
        .position(|code| *code == set_1)
        .and_then(|code| u8::try_from(code).ok())
}

/// A key of the keyboard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain(u8),
    Extended(u8),
    Print,
    Pause,
}

impl Key {
    /// By its number: the code in set 1, plus 0x80 for keys with the prefix 0xe0 (QEMU's `number` of a key value).
    /// `None` if no key has that number.
    pub fn from_number(number: u32) -> Option<Key> {
        let number = u8::try_from(number).ok()?;
        let code = number & 0x7f;
        if code == 0 || set_2_of(code).is_none() {
            return None;
        }
        Some(Key(match number {
            0xb7 => Kind::Print,
            0xc6 => Kind::Pause,
            0x80.. => Kind::Extended(code),
            _ => Kind::Plain(code),
        }))
    }

    /// By its QKeyCode name (`a`, `ret`, `ctrl_r`, ...). `None` for names of keys that a PS/2 keyboard does not have.
    pub fn from_qcode(name: &str) -> Option<Key> {
        NAMES
            .iter()
            .find(|(known, _)| *known == name)
            .and_then(|(_, number)| Key::from_number(u32::from(*number)))
    }

    /// The bytes that the keyboard sends in scan code set 1 or 2.
    pub(super) fn codes(self, set_2: bool, pressed: bool) -> Vec<u8> {
        match (self.0, set_2) {
            (Kind::Plain(code), false) => vec![code | break_bit(pressed)],
            (Kind::Extended(code), false) => vec![0xe0, code | break_bit(pressed)],
            (Kind::Plain(code), true) => set_2_codes(&[], code, pressed),
            (Kind::Extended(code), true) => set_2_codes(&[0xe0], code, pressed),
            (Kind::Print, false) if pressed => vec![0xe0, 0x2a, 0xe0, 0x37],
            (Kind::Print, false) => vec![0xe0, 0xb7, 0xe0, 0xaa],
            (Kind::Print, true) if pressed => vec![0xe0, 0x12, 0xe0, 0x7c],
            (Kind::Print, true) => vec![0xe0, 0xf0, 0x7c, 0xe0, 0xf0, 0x12],
            // Pause sends everything when it goes down, and nothing when it comes up.
            (Kind::Pause, _) if !pressed => Vec::new(),
            (Kind::Pause, false) => vec![0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5],
            (Kind::Pause, true) => vec![0xe1, 0x14, 0x77, 0xe1, 0xf0, 0x14, 0xf0, 0x77],
        }
    }
}

fn break_bit(pressed: bool) -> u8 {
    if pressed { 0 } else { 0x80 }
}

fn set_2_codes(prefix: &[u8], set_1: u8, pressed: bool) -> Vec<u8> {
    let mut codes = prefix.to_vec();
    if !pressed {
        codes.push(0xf0);
    }
    codes.extend(set_2_of(set_1));
    codes
}

/// QKeyCode names and key numbers.
#[rustfmt::skip]
const NAMES: &[(&str, u8)] = &[
    ("esc", 0x01), ("1", 0x02), ("2", 0x03), ("3", 0x04), ("4", 0x05), ("5", 0x06), ("6", 0x07),
    ("7", 0x08), ("8", 0x09), ("9", 0x0a), ("0", 0x0b), ("minus", 0x0c), ("equal", 0x0d),
    ("backspace", 0x0e), ("tab", 0x0f), ("q", 0x10), ("w", 0x11), ("e", 0x12), ("r", 0x13),
    ("t", 0x14), ("y", 0x15), ("u", 0x16), ("i", 0x17), ("o", 0x18), ("p", 0x19),
    ("bracket_left", 0x1a), ("bracket_right", 0x1b), ("ret", 0x1c), ("ctrl", 0x1d), ("a", 0x1e),
    ("s", 0x1f), ("d", 0x20), ("f", 0x21), ("g", 0x22), ("h", 0x23), ("j", 0x24), ("k", 0x25),
    ("l", 0x26), ("semicolon", 0x27), ("apostrophe", 0x28), ("grave_accent", 0x29),
    ("shift", 0x2a), ("backslash", 0x2b), ("z", 0x2c), ("x", 0x2d), ("c", 0x2e), ("v", 0x2f),
    ("b", 0x30), ("n", 0x31), ("m", 0x32), ("comma", 0x33), ("dot", 0x34), ("slash", 0x35),
    ("shift_r", 0x36), ("asterisk", 0x37), ("kp_multiply", 0x37), ("alt", 0x38), ("spc", 0x39),
    ("caps_lock", 0x3a), ("f1", 0x3b), ("f2", 0x3c), ("f3", 0x3d), ("f4", 0x3e), ("f5", 0x3f),
    ("f6", 0x40), ("f7", 0x41), ("f8", 0x42), ("f9", 0x43), ("f10", 0x44), ("num_lock", 0x45),
    ("scroll_lock", 0x46), ("kp_7", 0x47), ("kp_8", 0x48), ("kp_9", 0x49), ("kp_subtract", 0x4a),
    ("kp_4", 0x4b), ("kp_5", 0x4c), ("kp_6", 0x4d), ("kp_add", 0x4e), ("kp_1", 0x4f),
    ("kp_2", 0x50), ("kp_3", 0x51), ("kp_0", 0x52), ("kp_decimal", 0x53), ("sysrq", 0x54),
    ("less", 0x56), ("f11", 0x57), ("f12", 0x58), ("kp_equals", 0x59), ("ro", 0x73),
    ("henkan", 0x79), ("muhenkan", 0x7b), ("yen", 0x7d), ("kp_comma", 0x7e),
    ("hiragana", 0x70), ("katakanahiragana", 0x70),
    ("audioprev", 0x90), ("audionext", 0x99), ("kp_enter", 0x9c), ("ctrl_r", 0x9d),
    ("audiomute", 0xa0), ("calculator", 0xa1), ("audioplay", 0xa2), ("audiostop", 0xa4),
    ("volumedown", 0xae), ("volumeup", 0xb0), ("ac_home", 0xb2), ("kp_divide", 0xb5),
    ("print", 0xb7), ("alt_r", 0xb8), ("pause", 0xc6), ("home", 0xc7), ("up", 0xc8),
    ("pgup", 0xc9), ("left", 0xcb), ("right", 0xcd), ("end", 0xcf), ("down", 0xd0),
    ("pgdn", 0xd1), ("insert", 0xd2), ("delete", 0xd3), ("meta_l", 0xdb), ("meta_r", 0xdc),
    ("menu", 0xdd), ("compose", 0xdd), ("power", 0xde), ("sleep", 0xdf), ("wake", 0xe3),
    ("ac_bookmarks", 0xe6), ("ac_refresh", 0xe7), ("ac_forward", 0xe9), ("ac_back", 0xea),
    ("computer", 0xeb), ("mail", 0xec), ("mediaselect", 0xed),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_codes() {
        // Set 2 from the table of the IBM enhanced keyboard.
        let cases: [(&str, &[u8], &[u8]); 8] = [
            ("a", &[0x1e], &[0x1c]),
            ("ret", &[0x1c], &[0x5a]),
            ("f7", &[0x41], &[0x83]),
            ("f12", &[0x58], &[0x07]),
            ("ctrl_r", &[0xe0, 0x1d], &[0xe0, 0x14]),
            ("delete", &[0xe0, 0x53], &[0xe0, 0x71]),
            ("kp_enter", &[0xe0, 0x1c], &[0xe0, 0x5a]),
            ("less", &[0x56], &[0x61]),
        ];
        for (name, set_1, set_2) in cases {
            let key = Key::from_qcode(name).unwrap();
            assert_eq!(key.codes(false, true), set_1, "{name}");
            assert_eq!(key.codes(true, true), set_2, "{name}");
        }
        let left = Key::from_qcode("left").unwrap();
        assert_eq!(left.codes(true, false), [0xe0, 0xf0, 0x6b]);
        assert_eq!(left.codes(false, false), [0xe0, 0xcb]);
    }

    #[test]
    fn translating_set_2_gives_set_1() {
        for (name, _) in NAMES {
            let key = Key::from_qcode(name).unwrap();
            for pressed in [true, false] {
                let mut released = false;
                let mut translated = Vec::new();
                for byte in key.codes(true, pressed) {
                    if byte == 0xf0 {
                        released = true;
                    } else {
                        translated.push(translate(byte) | if released { 0x80 } else { 0 });
                        released = false;
                    }
                }
                assert_eq!(translated, key.codes(false, pressed), "{name}");
            }
        }
    }

    #[test]
    fn every_code_but_two_is_translated_to_one_place() {
        let mut seen = [0_u8; 256];
        for code in TRANSLATION {
            seen[usize::from(code)] += 1;
        }
        assert!(seen.iter().all(|count| *count <= 1));
    }

    #[test]
    fn what_is_no_key() {
        assert_eq!(Key::from_qcode("unmapped"), None);
        assert_eq!(Key::from_qcode("lang1"), None);
        assert_eq!(Key::from_number(0), None);
        assert_eq!(Key::from_number(0x80), None);
        assert_eq!(Key::from_number(0x100), None);
    }
}
