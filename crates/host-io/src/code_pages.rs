//! Giving back pages of the program's file that only start-up needed.
//!
//! The kernel maps 64 KiB around each page of code that is touched, and start-up touches code all
//! over a large program: option tables, relocation, the making of registries. A daemon that then
//! rests for weeks keeps all of that mapped. What is needed again comes back from the page cache
//! with a minor fault.

use std::io;

use rustix::mm::{Advice, madvise};

/// Unmaps the pages of machine code, and of the constants before it, of this program and its
/// libraries. They are mapped again as they are used.
///
/// # Errors
/// The host's: there is no `/proc`, or the kernel refuses.
pub fn give_back_code() -> io::Result<()> {
    for line in std::fs::read_to_string("/proc/self/maps")?.lines() {
        let Some((start, len)) = untouched_file_part(line) else {
            continue;
        };
        let start = std::ptr::with_exposed_provenance_mut(start);
        // SAFETY: the range is a private mapping of a file that nothing in this process can write
        // to and nothing has written to (see `untouched_file_part`), so what a later access finds
        // there is what it holds now.
        unsafe { madvise(start, len, Advice::LinuxDontNeed) }?;
    }
    Ok(())
}

/// Start and length of a mapping that holds nothing but what its file holds, from a line of
/// `/proc/self/maps` (proc_pid_maps(5)).
///
/// Code is never written to. Constants may have been, by relocation before they were made
/// read-only; those at a file's beginning, where its headers are, have not.
fn untouched_file_part(line: &str) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (range, permissions, offset) = (words.next()?, words.next()?, words.next()?);
    let path = words.nth(2)?;
    let is_code = permissions == "r-xp";
    let is_beginning = permissions == "r--p" && u64::from_str_radix(offset, 16) == Ok(0);
    if !path.starts_with('/') || !(is_code || is_beginning) {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let start = usize::from_str_radix(start, 16).ok()?;
    let end = usize::from_str_radix(end, 16).ok()?;
    Some((start, end.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nothing_wrote_to_is_given_back() {
        let line = |permissions: &str, offset: &str, path: &str| {
            untouched_file_part(&format!("1000-3000 {permissions} {offset} 08:01 12 {path}"))
        };
        assert_eq!(
            line("r-xp", "00001000", "/usr/bin/ratite"),
            Some((0x1000, 0x2000))
        );
        assert_eq!(
            line("r--p", "00000000", "/usr/bin/ratite"),
            Some((0x1000, 0x2000))
        );
        // Constants that were relocated, data, code of the kernel, memory without a file.
        assert_eq!(line("r--p", "00004000", "/usr/bin/ratite"), None);
        assert_eq!(line("rw-p", "00000000", "/usr/bin/ratite"), None);
        assert_eq!(line("r-xp", "00000000", "[vdso]"), None);
        assert_eq!(line("r-xp", "00000000", ""), None);
        assert_eq!(untouched_file_part("nonsense"), None);
    }

    #[test]
    fn the_program_goes_on() {
        give_back_code().unwrap();
        let text = format!("{:?}", std::time::Instant::now());
        assert!(!text.is_empty());
    }
}
