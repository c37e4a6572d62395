//! `x` and `xp`: memory in hexadecimal, decimal or characters.

use std::fmt::Write;

use api::QmpError;
use guest_memory::GuestPhysAddr;

use super::{Answer, Complaint};
use crate::control::Control;
use crate::devices::unsigned;
use crate::guest_paging;

/// The most items of one dump.
const MAX_ITEMS: usize = 65_536;
const LINE_BYTES: usize = 16;

/// How items are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Format {
    count: usize,
    letter: char,
    bytes: usize,
}

/// `/COUNT LETTER SIZE`, each optional: 1, x, w.
fn parse_format(text: &str) -> Result<Format, Complaint> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (count, letters) = text.split_at(digits);
    let count = count.parse().unwrap_or(1);
    let mut format = Format {
        count,
        letter: 'x',
        bytes: 4,
    };
    for letter in letters.chars() {
        match letter {
            'b' => format.bytes = 1,
            'h' => format.bytes = 2,
            'w' => format.bytes = 4,
            'g' | 'L' => format.bytes = 8,
            'x' | 'd' | 'u' | 'o' => format.letter = letter,
            'c' => (format.letter, format.bytes) = ('c', 1),
            other => return Err(wrong(&format!("invalid char in format: '{other}'"))),
        }
    }
    if format.count > MAX_ITEMS {
        return Err(wrong(&format!("at most {MAX_ITEMS} items are shown")));
    }
    Ok(format)
}

fn item(bytes: &[u8], letter: char) -> String {
    let mut word = [0; 8];
    for (to, from) in word.iter_mut().zip(bytes) {
        *to = *from;
    }
    let value = u64::from_le_bytes(word);
    let unused = 64 - 8 * u32::try_from(bytes.len()).unwrap_or(8);
    match letter {
        'd' => ((value << unused).cast_signed() >> unused).to_string(),
        'u' => value.to_string(),
        'o' => format!("0{value:o}"),
        'c' => match char::from(word[0]) {
            shown @ ' '..='~' => format!("'{shown}'"),
            _ => format!("'\\x{value:02x}'"),
        },
        _ => format!("0x{value:0width$x}", width = bytes.len() * 2),
    }
}

/// A number, or `$REGISTER` and a number added to it.
fn address(control: &mut Control, text: &str, cpu: i64) -> Result<u64, Complaint> {
    let Some(register) = text.strip_prefix('$') else {
        return unsigned(text).ok_or_else(|| wrong(&format!("invalid expression '{text}'")));
    };
    let (name, add) = register.split_once('+').unwrap_or((register, "0"));
    let state = control.cpu_state(cpu);
    let state = state.ok_or_else(|| QmpError::generic("No CPU available"))?;
    let general = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12",
        "r13", "r14", "r15",
    ];
    let place = general.iter().position(|known| *known == name);
    let value = match (name, place) {
        ("rip" | "eip" | "pc", _) => Some(state.registers.rip),
        (_, Some(place)) => state.registers.general.get(place).copied(),
        _ => None,
    };
    match (value, unsigned(add)) {
        (Some(value), Some(add)) => Ok(value.wrapping_add(add)),
        _ => Err(wrong("unknown register")),
    }
}

fn dump(start: u64, format: Format, read: impl Fn(u64, &mut [u8]) -> bool) -> String {
    let mut text = String::new();
    let per_line = (LINE_BYTES / format.bytes).max(1);
    let mut at = start;
    for index in 0..format.count {
        if index % per_line == 0 {
            let _ = write!(text, "{at:016x}:");
        }
        let mut bytes = vec![0; format.bytes];
        if !read(at, &mut bytes) {
            text.push_str(" Cannot access memory\n");
            return text;
        }
        let _ = write!(text, " {}", item(&bytes, format.letter));
        at = at.wrapping_add(format.bytes as u64);
        if index % per_line == per_line - 1 || index + 1 == format.count {
            text.push('\n');
        }
    }
    text
}

fn arguments(
    control: &mut Control,
    words: &[String],
    cpu: i64,
) -> Result<(u64, Format), Complaint> {
    let (format, place) = match words {
        [first, rest @ ..] => match first.strip_prefix('/') {
            Some(format) => (format, rest),
            None => ("", words),
        },
        [] => ("", words),
    };
    let format = parse_format(format)?;
    match place {
        [place] => Ok((address(control, place, cpu)?, format)),
        [] => Err(wrong("unexpected end of expression")),
        [..] => {
            let many = "extraneous characters at the end of line";
            Err(Complaint::Written(many.to_owned()))
        }
    }
}

fn wrong(words: &str) -> Complaint {
    Complaint::Expression(words.to_owned())
}

/// `xp`.
pub(super) fn physical(control: &mut Control, words: &[String], cpu: i64) -> Answer {
    let (start, format) = arguments(control, words, cpu)?;
    let memory = control.memory.clone();
    let memory = memory.ok_or_else(|| QmpError::generic("this machine has no memory"))?;
    Ok(dump(start, format, |at, bytes| {
        memory.read(GuestPhysAddr(at), bytes).is_ok()
    }))
}

/// `x`.
pub(super) fn linear(control: &mut Control, words: &[String], cpu: i64) -> Answer {
    let (start, format) = arguments(control, words, cpu)?;
    let (Some(memory), Some(state)) = (control.memory.clone(), control.cpu_state(cpu)) else {
        return Err(QmpError::generic("No CPU available").into());
    };
    Ok(dump(start, format, |at, bytes| {
        // Byte by byte, since an item may lie across two pages.
        bytes.iter_mut().zip(0..).all(|(byte, offset)| {
            let physical = guest_paging::translate(&memory, &state, at.wrapping_add(offset));
            let one = std::slice::from_mut(byte);
            physical.is_some_and(|physical| memory.read(physical, one).is_ok())
        })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        let format = |count, letter, bytes| Format {
            count,
            letter,
            bytes,
        };
        assert_eq!(parse_format("").unwrap(), format(1, 'x', 4));
        assert_eq!(parse_format("4xg").unwrap(), format(4, 'x', 8));
        assert_eq!(parse_format("8c").unwrap(), format(8, 'c', 1));
        assert!(parse_format("1q").is_err());
        assert!(parse_format("9999999x").is_err());
    }

    #[test]
    fn lines_of_sixteen_bytes() {
        let read = |at: u64, bytes: &mut [u8]| {
            for (byte, offset) in bytes.iter_mut().zip(0..) {
                *byte = (at + offset) as u8;
            }
            at < 0x20
        };
        let format = parse_format("5xw").unwrap();
        let expected = "0000000000000000: 0x03020100 0x07060504 0x0b0a0908 0x0f0e0d0c\n\
                        0000000000000010: 0x13121110\n";
        assert_eq!(dump(0, format, read), expected);
        let chars = dump(0x1e, parse_format("3c").unwrap(), read);
        assert_eq!(
            chars,
            "000000000000001e: '\\x1e' '\\x1f' Cannot access memory\n"
        );
        assert_eq!(item(&[0xff, 0xff], 'd'), "-1");
    }
}
