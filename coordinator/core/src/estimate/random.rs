//! Seeded normal draws: SplitMix64 (Steele, Lea, Flood 2014) and Box-Muller.

/// A stream of draws that its seed and index determine.
pub(crate) struct Random {
    state: u64,
}

impl Random {
    pub(crate) fn new(seed: u64, index: u64) -> Self {
        Self { state: seed ^ index.wrapping_add(1).wrapping_mul(0xd1b5_4a32_d192_ed03) }
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Uniform in (0, 1].
    pub(crate) fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal.
    pub(crate) fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// A factor whose logarithm is normal around 0.
    pub(crate) fn factor(&mut self, ln_sd: f64) -> f64 {
        (ln_sd * self.normal()).exp()
    }
}
