//! What a change of plan made of an iteration, as far as the iterations around it tell.

/// Iterations right after a plan took effect, which are like none of the later ones.
const COLD: usize = 3;
/// Iterations on either side below which nothing is told, and the most that are looked at.
const LEAST: usize = 4;
const MOST: usize = 32;
/// Standard deviations that the two sides must be apart.
const SURE_SD: f64 = 2.0;
/// A median absolute deviation that is a standard deviation, and that of a median over that of one value.
const DEVIATION: f64 = 1.4826;
const OF_MEDIAN: f64 = 1.2533;

/// Two plans beside each other.
#[derive(Debug, PartialEq)]
pub struct Gain {
    /// What an iteration takes over what it took.
    pub ratio: f64,
    /// More than iterations differ by of themselves.
    pub is_sure: bool,
}

/// What iterations took under the plan before, since it last changed what they take, and under the one after it: of the first,
/// the later half, as a job begins slowly; of the others those that are warm. None where there are too few.
pub fn gain(before: &[u64], after: &[u64]) -> Option<Gain> {
    let before = &before[before.len().saturating_sub((before.len() / 2).clamp(LEAST, MOST))..];
    let after = if after.len() >= COLD + LEAST { &after[COLD..] } else { after };
    let after = &after[..after.len().min(MOST)];
    if before.len() < LEAST || after.len() < LEAST {
        return None;
    }
    let ((old, old_sd), (new, new_sd)) = (median(before)?, median(after)?);
    let ratio = new / old;
    Some(Gain { ratio, is_sure: ratio.ln().abs() > SURE_SD * old_sd.hypot(new_sd) })
}

/// The median, and by which share of it that may be off.
fn median(of: &[u64]) -> Option<(f64, f64)> {
    let middle = |mut of: Vec<f64>| {
        of.sort_unstable_by(f64::total_cmp);
        (of[of.len() / 2] + of[(of.len() - 1) / 2]) / 2.0
    };
    let of: Vec<f64> = of.iter().map(|&ns| ns as f64).collect();
    let median = middle(of.clone());
    let deviation = DEVIATION * middle(of.iter().map(|ns| (ns - median).abs()).collect());
    (median > 0.0).then(|| (median, OF_MEDIAN * deviation / (of.len() as f64).sqrt() / median))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_first_steps_and_cold_ones_are_left_out() {
        let before = [400, 300, 200, 100, 102, 98, 101, 99];
        let after = [250, 200, 90, 50, 51, 49, 50, 52];
        let found = gain(&before, &after).expect("there are enough");
        assert!((found.ratio - 0.5).abs() < 0.02 && found.is_sure, "{found:?}");
    }

    #[test]
    fn what_noise_would_give_is_not_sure_and_few_iterations_tell_nothing() {
        let wide = [80, 120, 90, 110, 100, 85, 115, 95];
        let found = gain(&wide, &[70, 130, 100, 78, 118, 92, 108, 97, 83, 112]).expect("there are enough");
        assert!(!found.is_sure, "{found:?}");
        assert!(gain(&[100; 40], &[97; 40]).is_some_and(|found| found.is_sure), "no noise at all");
        assert_eq!(gain(&[100; 3], &[50; 40]), None);
        assert_eq!(gain(&[100; 40], &[50; 3]), None);
    }
}
