//! Random numbers with a seed that can be given again.

/// Xorshift.
pub struct Random(u64);

impl Random {
    /// `RATITE_SEED` (decimal), else a fixed seed. It is printed, which the harness shows when a
    /// test fails.
    pub fn new(what: &str) -> Self {
        let given = std::env::var("RATITE_SEED").ok();
        let seed = given
            .and_then(|text| text.parse().ok())
            .unwrap_or(20_261_120);
        println!("{what}: RATITE_SEED={seed}");
        let mut random = Self(u64::wrapping_mul(seed, 0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..8 {
            random.next();
        }
        random
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// 0 to `end` - 1.
    pub fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 16) % end
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    pub fn flip(&mut self) -> bool {
        self.below(2) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// The number of cases: more of them with `RATITE_FULL=1`.
pub fn cases(usual: u64, full: u64) -> u64 {
    let is_full = std::env::var_os("RATITE_FULL").is_some_and(|value| value != "0");
    if is_full { full } else { usual }
}
