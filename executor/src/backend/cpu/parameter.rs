//! A parameter with all that belongs to it, and the numbers it starts from.

/// One named tensor of a layer: value, gradient and AdamW's moments, all of one length.
#[derive(Clone, Debug)]
pub(super) struct Parameter {
    /// Unique within its layer.
    pub(super) name: &'static str,
    /// Row-major.
    pub(super) value: Vec<f32>,
    /// Sum over the microbatches of this iteration so far.
    pub(super) gradient: Vec<f32>,
    /// AdamW's mean of gradients.
    pub(super) first_moment: Vec<f32>,
    /// AdamW's mean of squared gradients.
    pub(super) second_moment: Vec<f32>,
    /// Whether weight decay pulls it to zero.
    pub(super) decay: Decay,
}

/// Weight decay is for matrices; gains and decay rates rest at values that are not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decay {
    Decayed,
    Free,
}

impl Parameter {
    pub(super) fn new(name: &'static str, value: Vec<f32>, decay: Decay) -> Parameter {
        let zeros = vec![0.0; value.len()];
        Parameter { name, value, gradient: zeros.clone(), first_moment: zeros.clone(), second_moment: zeros, decay }
    }

    /// A gain that starts at one.
    pub(super) fn gain(width: usize) -> Parameter {
        Parameter::new("gain", vec![1.0; width], Decay::Free)
    }
}

/// A stream of numbers that is a pure function of (seed, index).
///
/// Uniform rather than normal: it needs no function whose last bit depends on the machine's library.
#[derive(Debug)]
pub(super) struct Draws {
    state: u64,
}

impl Draws {
    /// The stream of the layer at `index` of the model with `seed`.
    pub(super) fn new(seed: u64, index: usize) -> Draws {
        Draws { state: mix(mix(seed) ^ (index as u64)) }
    }

    /// `count` numbers of mean zero and the given standard deviation.
    pub(super) fn take(&mut self, count: usize, deviation: f32) -> Vec<f32> {
        let bound = deviation * 3.0_f32.sqrt();
        (0..count).map(|_| (self.unit() * 2.0 - 1.0) * bound).collect()
    }

    /// A matrix of `rows` inputs, scaled so that inputs of unit variance give outputs of variance `deviation^2`.
    pub(super) fn projection(
        &mut self,
        name: &'static str,
        rows: usize,
        columns: usize,
        copies: usize,
        deviation: f32,
    ) -> Parameter {
        let scaled = deviation / (rows as f32).sqrt();
        Parameter::new(name, self.take(copies * rows * columns, scaled), Decay::Decayed)
    }

    /// In `[0, 1)`, a multiple of `2^-24`.
    fn unit(&mut self) -> f32 {
        self.state = self.state.wrapping_add(GOLDEN);
        (mix(self.state) >> 40) as f32 / (1_u32 << 24) as f32
    }
}

/// `2^64` over the golden ratio, the increment of splitmix64.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finalizer of splitmix64 (Steele, Lea, Flood, 2014), with its increment.
pub(super) fn mix(value: u64) -> u64 {
    let mut mixed = value.wrapping_add(GOLDEN);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
