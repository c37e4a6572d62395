//! What a CD-ROM answers to packets that ask for data (MMC-5; SFF-8020i).

use crate::drive::{Drive, DriveState};

/// More sectors than any CD has: the medium is a DVD.
const MAX_CD_SECTORS: u64 = 450_000;
const PROFILE_CD: u16 = 0x0008;
const PROFILE_DVD: u16 = 0x0010;
/// The track behind the last one.
const LEAD_OUT: u8 = 0xaa;
/// Sectors before the first one, on a CD's own scale of time: two seconds.
const PREGAP: u64 = 150;
const FRAMES: u64 = 75;

fn be16(value: usize) -> [u8; 2] {
    u16::try_from(value).unwrap_or(u16::MAX).to_be_bytes()
}

fn field(text: &str, length: usize) -> impl Iterator<Item = u8> {
    let visible = text.bytes().filter(|byte| (0x20..0x7f).contains(byte));
    let visible: Vec<u8> = visible.collect();
    visible
        .into_iter()
        .chain(std::iter::repeat(b' '))
        .take(length)
}

/// INQUIRY.
pub(crate) fn inquiry(drive: &Drive) -> Vec<u8> {
    // A CD-ROM, removable, ATAPI version, response format of then, 31 bytes follow.
    let mut reply = vec![0x05, 0x80, 0x00, 0x21, 31, 0, 0, 0];
    let mut words = drive.options.model.splitn(2, ' ');
    let vendor = words.next().unwrap_or_default();
    reply.extend(field(vendor, 8));
    reply.extend(field(words.next().unwrap_or(vendor), 16));
    reply.extend(field(&drive.options.version, 4));
    reply
}

/// REQUEST SENSE.
pub(crate) fn sense((key, code, qualifier): (u8, u8, u8)) -> Vec<u8> {
    let mut reply = vec![0x70, 0, key, 0, 0, 0, 0, 10];
    reply.extend([0, 0, 0, 0, code, qualifier, 0, 0, 0, 0]);
    reply
}

/// READ CAPACITY.
pub(crate) fn capacity(sectors: u64) -> Vec<u8> {
    let last = u32::try_from(sectors.saturating_sub(1)).unwrap_or(u32::MAX);
    let mut reply = last.to_be_bytes().to_vec();
    reply.extend(2048_u32.to_be_bytes());
    reply
}

fn address(sector: u64, as_time: bool) -> [u8; 4] {
    if !as_time {
        return u32::try_from(sector).unwrap_or(u32::MAX).to_be_bytes();
    }
    let frames = sector + PREGAP;
    let seconds = frames / FRAMES;
    let minute = u8::try_from(seconds / 60).unwrap_or(u8::MAX);
    [0, minute, (seconds % 60) as u8, (frames % FRAMES) as u8]
}

/// READ TOC; `None` for what there is not.
pub(crate) fn table_of_contents(
    format: u8,
    track: u8,
    as_time: bool,
    sectors: u64,
) -> Option<Vec<u8>> {
    // One track of data that may be copied: control 4, ADR 1.
    const DATA_TRACK: u8 = 0x14;
    let mut body = vec![1, 1];
    match format {
        0 => {
            if track > 1 && track != LEAD_OUT {
                return None;
            }
            if track <= 1 {
                body.extend([0, DATA_TRACK, 1, 0]);
                body.extend(address(0, as_time));
            }
            body.extend([0, DATA_TRACK, LEAD_OUT, 0]);
            body.extend(address(sectors, as_time));
        }
        1 => {
            body.extend([0, DATA_TRACK, 1, 0]);
            body.extend(address(0, as_time));
        }
        2 => {
            // First and last track, lead-out, the track itself: as they stand in the lead-in.
            for (point, at) in [
                (0xa0, None),
                (0xa1, None),
                (0xa2, Some(sectors)),
                (1, Some(0)),
            ] {
                body.extend([1, DATA_TRACK, 0, point, 0, 0, 0, 0]);
                match at {
                    None => body.extend([1, 0, 0]),
                    Some(sector) => body.extend(address(sector, true).into_iter().skip(1)),
                }
            }
        }
        _ => return None,
    }
    let mut reply = be16(body.len()).to_vec();
    reply.extend(body);
    Some(reply)
}

fn profile(drive: &Drive) -> u16 {
    match drive.sectors() {
        0 => 0,
        sectors if sectors > MAX_CD_SECTORS => PROFILE_DVD,
        _ => PROFILE_CD,
    }
}

/// GET CONFIGURATION: features from `first` on; `kind` 0 is all, 1 the current ones, 2 just that one.
pub(crate) fn configuration(drive: &Drive, kind: u8, first: u16) -> Vec<u8> {
    let now = profile(drive);
    let mut profiles = Vec::new();
    for profile in [PROFILE_DVD, PROFILE_CD] {
        profiles.extend(profile.to_be_bytes());
        profiles.extend([u8::from(profile == now), 0]);
    }
    // Number, version with persistent and current, body.
    let readable = u8::from(now != 0);
    let features: [(u16, u8, &[u8]); 6] = [
        (0x0000, 3, &profiles),
        // Core: ATAPI.
        (0x0001, 0x0b, &[0, 0, 0, 2, 1, 0, 0, 0]),
        // Removable medium: a tray that can be locked and ejected.
        (0x0003, 3, &[0x29, 0, 0, 0]),
        // Random reads: blocks of 2048 bytes, one at a time.
        (0x0010, readable, &[0, 0, 8, 0, 0, 1, 0, 0]),
        (0x001e, 8 | u8::from(now == PROFILE_CD), &[0, 0, 0, 0]),
        (0x001f, u8::from(now == PROFILE_DVD), &[]),
    ];
    let mut body = vec![0, 0];
    body.extend(now.to_be_bytes());
    for (number, version, bytes) in features {
        let is_wanted = match kind {
            2 => number == first,
            1 => number >= first && version & 1 != 0,
            _ => number >= first,
        };
        if is_wanted {
            body.extend(number.to_be_bytes());
            body.extend([version, u8::try_from(bytes.len()).unwrap_or(0)]);
            body.extend(bytes);
        }
    }
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let mut reply = length.to_be_bytes().to_vec();
    reply.extend(body);
    reply
}

/// GET EVENT STATUS NOTIFICATION for the classes asked for; the event has been told then.
pub(crate) fn event_status(drive: &Drive, state: &mut DriveState, classes: u8) -> Vec<u8> {
    const MEDIA: u8 = 1 << 4;
    if classes & MEDIA == 0 {
        // None of these classes is there.
        return vec![0, 2, 0x80, MEDIA];
    }
    let event = std::mem::take(&mut state.packet.event);
    let is_present = drive.medium().is_some() && !state.packet.is_open;
    let presence = u8::from(state.packet.is_open) | u8::from(is_present) << 1;
    vec![0, 6, 4, MEDIA, event, presence, 0, 0]
}

/// MODE SENSE(10); `None` for a page there is not.
pub(crate) fn mode_pages(state: &DriveState, page: u8) -> Option<Vec<u8>> {
    let locked = u8::from(state.packet.is_locked) << 1;
    // Read error recovery; capabilities: CD-R and DVD-ROM are read, a tray that locks and ejects, 706 KB/s.
    let recovery: &[u8] = &[0x01, 6, 0, 5, 0, 0, 0, 0];
    let capabilities: &[u8] = &[
        0x2a,
        18,
        0x3b,
        0,
        0x70,
        0x60,
        0x29 | locked,
        0,
        0x02,
        0xc2,
        0,
        2,
        0x02,
        0x00,
        0x02,
        0xc2,
        0,
        0,
        0,
        0,
    ];
    let mut reply = vec![0, 0, 0x01, 0, 0, 0, 0, 0];
    match page {
        0x01 => reply.extend(recovery),
        0x2a => reply.extend(capabilities),
        0x3f => {
            reply.extend(recovery);
            reply.extend(capabilities);
        }
        _ => return None,
    }
    let length = be16(reply.len() - 2);
    for (place, byte) in reply.iter_mut().zip(length) {
        *place = byte;
    }
    Some(reply)
}

/// READ DISC INFORMATION: one complete session of one track.
pub(crate) fn disc_information() -> Vec<u8> {
    let mut reply = be16(32).to_vec();
    reply.extend([0x0e, 1, 1, 1, 1, 0x20]);
    reply.resize(34, 0);
    reply
}

/// MECHANISM STATUS: a single tray.
pub(crate) fn mechanism(is_open: bool) -> Vec<u8> {
    vec![0, u8::from(is_open) << 4, 0, 0, 0, 1, 0, 0]
}
