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
        // By speed: right at once where kinds differ by a factor. Devices of equal times have one price.
        let mean = |group: &Vec<usize>| -> Option<f64> {
            let whole = |layer| Some(self.at(layer, group[0]).whole).filter(|whole| whole.is_finite());
            let (sum, count) = (0..self.layers)
                .filter_map(whole)
                .fold((0.0, 0.0), |(sum, count), whole: f64| (sum + whole, count + 1.0));
            (count > 0.0).then(|| sum / count)
        };
        let slowest = self.groups.iter().filter_map(mean).fold(0.0, f64::max);
        let by_speed = |group| match mean(group) {
            None => PRICE_MIN,
            Some(_) if slowest == 0.0 => 1.0,
            Some(mean) => slowest / mean.max(slowest * PRICE_MIN),
        };
        let mut price: Vec<f64> = self.groups.iter().map(by_speed).collect();
        let mut best = (0.0, price.clone());
        for round in 0..PRICE_ROUNDS {
            let (load, packed) = self.packed(&price);
            let mut sorted = self.per_device(&price);
            sorted.sort_by(|a, b| b.total_cmp(a));
            let room = |time: f64| -> f64 {
                sorted.iter().zip(&self.idle).map(|(price, &idle)| price * self.capacity(time, idle)).sum()
            };
            // Only a better one is worth its search.
            if room(best.0) < packed {
                best = (self.bisect(|time| room(time) >= packed), price.clone());
            }
            // Dearer where more is packed than fits, cheaper elsewhere.
            let mean = load.iter().sum::<f64>() / self.devices as f64;
            let step = 0.5 / (round as f64 + 2.0).sqrt();
            for ((price, load), group) in price.iter_mut().zip(&load).zip(&self.groups) {
                let load = load / group.len() as f64;
                *price *= (step * (load / mean.max(1e-9) - 1.0)).clamp(-1.0, 1.0).exp();
            }
        }
        (best.0, self.per_device(&best.1))
    }

    /// Where each layer, or those that stay together, are cheapest: the load of each group of devices, and the price of all.
    fn packed(&self, price: &[f64]) -> (Vec<f64>, f64) {
        let mut load = vec![0.0; self.groups.len()];
        let mut packed = 0.0;
        for unit in &self.units {
            let on = |device: usize| unit.iter().map(|&layer| self.at(layer, device).whole).sum::<f64>();
            let whole = |group: usize| on(self.groups[group][0]);
            let cost = |group: usize| price[group] * whole(group);
            let cheapest = (0..self.groups.len()).min_by(|&a, &b| cost(a).total_cmp(&cost(b))).unwrap_or(0);
            if cost(cheapest).is_finite() {
                packed += cost(cheapest);
                load[cheapest] += whole(cheapest);
            }
        }
        (load, packed)
    }

    fn per_device(&self, price: &[f64]) -> Vec<f64> {
        let mut of = vec![0.0; self.devices];
        for (group, &price) in self.groups.iter().zip(price) {
            group.iter().for_each(|&device| of[device] = price);
        }
        of
    }
}
