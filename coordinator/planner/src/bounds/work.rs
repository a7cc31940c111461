//! Work packed by fractions of layers: the dual of that assignment, in which every set of prices w of the devices is sound.
//! No plan of time T exists if `sum over layers of min over devices of w x cost` exceeds
//! `sum over devices of w x capacity`. The prices are improved by subgradients.

use super::Bench;

/// Rounds of price improvement.
const PRICE_ROUNDS: usize = 200;
/// Price of a device that can run nothing, and the inverse of the highest to start from.
const PRICE_MIN: f64 = 1e-6;

impl Bench {
    /// Also the prices that it was shown by.
    pub(super) fn by_work(&self) -> (f64, Vec<f64>) {
        // By speed: right at once where kinds differ by a factor. Devices of equal times keep equal prices.
        let mean = |device: usize| -> Option<f64> {
            let whole = |layer| Some(self.at(layer, device).whole).filter(|whole| whole.is_finite());
            let (sum, count) = (0..self.layers)
                .filter_map(whole)
                .fold((0.0, 0.0), |(sum, count), whole: f64| (sum + whole, count + 1.0));
            (count > 0.0).then(|| sum / count)
        };
        let slowest = (0..self.devices).filter_map(mean).fold(0.0, f64::max);
        let by_speed = |device: usize| match mean(device) {
            None => PRICE_MIN,
            Some(_) if slowest == 0.0 => 1.0,
            Some(mean) => slowest / mean.max(slowest * PRICE_MIN),
        };
        let mut price: Vec<f64> = (0..self.devices).map(by_speed).collect();
        let group = self.groups();
        let mut best = (0.0, price.clone());
        for round in 0..PRICE_ROUNDS {
            let mut load = vec![0.0; self.devices];
            let mut packed = 0.0;
            for layer in 0..self.layers {
                let cost = |device: usize| price[device] * self.at(layer, device).whole;
                let cheapest = (0..self.devices).min_by(|&a, &b| cost(a).total_cmp(&cost(b))).unwrap_or(0);
                if cost(cheapest).is_finite() {
                    packed += cost(cheapest);
                    load[cheapest] += self.at(layer, cheapest).whole;
                }
            }
            let mut sorted = price.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let room = |time: f64| -> f64 {
                sorted.iter().zip(&self.idle).map(|(price, &idle)| price * self.capacity(time, idle)).sum()
            };
            let time = self.bisect(|time| room(time) >= packed);
            if time > best.0 {
                best = (time, price.clone());
            }
            // Dearer where more is packed than fits, cheaper elsewhere.
            let mean = load.iter().sum::<f64>() / self.devices as f64;
            let step = 0.5 / (round as f64 + 2.0).sqrt();
            for (device, price) in price.iter_mut().enumerate() {
                let alike = (0..self.devices).filter(|&other| group[other] == group[device]);
                let (sum, count) = alike.fold((0.0, 0.0), |(sum, count), other| (sum + load[other], count + 1.0));
                *price *= (step * (sum / count / mean.max(1e-9) - 1.0)).clamp(-1.0, 1.0).exp();
            }
        }
        best
    }
}
