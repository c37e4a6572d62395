//! Between seconds and the clock's bytes: the Gregorian calendar, BCD and binary, 12 and 24 hours.

pub(super) const SECONDS_PER_DAY: i64 = 86_400;
/// 0000-01-01 00:00:00.
pub(super) const FIRST_SECOND: i64 = -62_167_219_200;
/// 9999-12-31 23:59:59.
pub(super) const LAST_SECOND: i64 = 253_402_300_799;

const B_BINARY: u8 = 0x04;
const B_24_HOURS: u8 = 0x02;
const AFTERNOON: u8 = 0x80;

/// The bytes of the time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Registers {
    pub(super) second: u8,
    pub(super) minute: u8,
    pub(super) hour: u8,
    pub(super) weekday: u8,
    pub(super) day: u8,
    pub(super) month: u8,
    pub(super) year: u8,
    pub(super) century: u8,
}

impl Registers {
    /// The bytes at a second since 1970, in the format that register B names.
    pub(super) fn of(second: i64, weekday_shift: i64, register_b: u8) -> Registers {
        let days = second.div_euclid(SECONDS_PER_DAY);
        let within = second.rem_euclid(SECONDS_PER_DAY);
        let (year, month, day) = date_of(days);
        let put = |value: i64| encode(value, register_b);
        let hour = within / 3600;
        let hour = if register_b & B_24_HOURS != 0 {
            put(hour)
        } else {
            let shown = if hour % 12 == 0 { 12 } else { hour % 12 };
            put(shown) | if hour >= 12 { AFTERNOON } else { 0 }
        };
        Registers {
            second: put(within % 60),
            minute: put(within / 60 % 60),
            hour,
            // 1970-01-01 was a Thursday, the fifth day of a week that begins with Sunday.
            weekday: put((days + 4 + weekday_shift).rem_euclid(7) + 1),
            day: put(day),
            month: put(month),
            year: put(year.rem_euclid(100)),
            century: put(year.div_euclid(100)),
        }
    }

    /// The second since 1970 that the bytes mean, and how far their day of week is ahead of the calendar's.
    ///
    /// Bytes that are no date (month 0, second 99) count on as far as they go; a guest that writes them gets a date.
    pub(super) fn second_of(&self, register_b: u8) -> (i64, i64) {
        let get = |byte: u8| decode(byte, register_b);
        let hour = if register_b & B_24_HOURS != 0 {
            get(self.hour)
        } else {
            let afternoon = if self.hour & AFTERNOON != 0 { 12 } else { 0 };
            get(self.hour & !AFTERNOON) % 12 + afternoon
        };
        let year = get(self.century) * 100 + get(self.year);
        let days = days_of(year, get(self.month).clamp(1, 12), 1) + get(self.day) - 1;
        let second =
            days * SECONDS_PER_DAY + hour * 3600 + get(self.minute) * 60 + get(self.second);
        let weekday = get(self.weekday) - 1;
        let shift = (weekday - days - 4).rem_euclid(7);
        (second.clamp(FIRST_SECOND, LAST_SECOND), shift)
    }
}

/// A number of 0 to 99.
fn encode(value: i64, register_b: u8) -> u8 {
    let value = u8::try_from(value.rem_euclid(100)).unwrap_or(0);
    if register_b & B_BINARY != 0 {
        value
    } else {
        ((value / 10) << 4) | (value % 10)
    }
}

fn decode(byte: u8, register_b: u8) -> i64 {
    if register_b & B_BINARY != 0 {
        i64::from(byte)
    } else {
        i64::from(byte >> 4) * 10 + i64::from(byte & 0xf)
    }
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

/// Days of the months before `month` (1 to 12) in a common year.
fn days_before(month: i64) -> i64 {
    // From March on, months have 30.6 days on average: the fifth of 153 days repeats.
    match month {
        1 => 0,
        2 => 31,
        _ => 59 + (153 * (month - 3) + 2) / 5,
    }
}

/// Days from 1970-01-01 to a date.
fn days_of(year: i64, month: i64, day: i64) -> i64 {
    let before = year - 1;
    let leap_days = before.div_euclid(4) - before.div_euclid(100) + before.div_euclid(400);
    let leap_day = i64::from(month > 2 && is_leap(year));
    // 719162 days lie between 0001-01-01 and 1970-01-01.
    before * 365 + leap_days - 719_162 + days_before(month) + leap_day + day - 1
}

/// Year, month and day, so many days after 1970-01-01.
fn date_of(days: i64) -> (i64, i64, i64) {
    // 400 years have 146097 days; the guess is off by one at most.
    let mut year = 1970 + (days * 400).div_euclid(146_097);
    while days < days_of(year, 1, 1) {
        year -= 1;
    }
    while days >= days_of(year + 1, 1, 1) {
        year += 1;
    }
    let month = (1..=12)
        .rev()
        .find(|month| days_of(year, *month, 1) <= days)
        .unwrap_or(1);
    (year, month, days - days_of(year, month, 1) + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_moments() {
        // `date -u -d @N`.
        let cases: [(i64, [u8; 8]); 4] = [
            (0, [0x00, 0x00, 0x00, 0x05, 0x01, 0x01, 0x70, 0x19]),
            (
                951_782_400,
                [0x00, 0x00, 0x00, 0x03, 0x29, 0x02, 0x00, 0x20],
            ),
            (
                1_700_000_000,
                [0x20, 0x13, 0x22, 0x03, 0x14, 0x11, 0x23, 0x20],
            ),
            (
                LAST_SECOND,
                [0x59, 0x59, 0x23, 0x06, 0x31, 0x12, 0x99, 0x99],
            ),
        ];
        for (second, [s, m, h, weekday, day, month, year, century]) in cases {
            let expected = Registers {
                second: s,
                minute: m,
                hour: h,
                weekday,
                day,
                month,
                year,
                century,
            };
            assert_eq!(Registers::of(second, 0, B_24_HOURS), expected);
        }
    }

    #[test]
    fn twelve_hours() {
        let hours = |second| Registers::of(second, 0, B_BINARY).hour;
        assert_eq!(
            [0, 3600, 11 * 3600, 12 * 3600, 23 * 3600].map(hours),
            [12, 1, 11, 0x8c, 0x8b]
        );
    }

    proptest! {
        #[test]
        fn every_second_comes_back(
            second in FIRST_SECOND..=LAST_SECOND,
            shift in 0_i64..7,
            format in prop::sample::select(vec![0_u8, 2, 4, 6]),
        ) {
            let registers = Registers::of(second, shift, format);
            prop_assert_eq!(registers.second_of(format), (second, shift));
        }

        #[test]
        fn days_follow_each_other(days in -700_000_i64..2_900_000) {
            let (year, month, day) = date_of(days);
            let next = date_of(days + 1);
            let last = match month {
                2 => 28 + i64::from(is_leap(year)),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            let expected = match (month, day) {
                (12, 31) => (year + 1, 1, 1),
                (_, day) if day == last => (year, month + 1, 1),
                _ => (year, month, day + 1),
            };
            prop_assert_eq!(next, expected);
        }
    }
}
