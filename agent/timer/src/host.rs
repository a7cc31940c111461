//! The same for a host that is its own device: products and copies of its processor.

use crate::calibrate::Measured;
use adaptis_ring::now_ns;

/// Sides of the square matrices that are multiplied.
const SIDES: [usize; 2] = [256, 512];
/// Bytes copied: beyond the caches of most processors.
const COPY_BYTES: usize = 64 << 20;
/// Of each; the first one warms up and is left out.
const REPETITIONS: usize = 6;

/// Measures this host's processor, on the calling thread: some 50 ms. Before each kernel it asks whether to go on; told not
/// to, it gives what it has.
pub fn calibrate_host(go_on: &dyn Fn() -> bool) -> Vec<Measured> {
    let mut measured = vec![copies(go_on)];
    measured.extend(SIDES.map(|side| products(side, go_on)));
    measured
}

fn copies(go_on: &dyn Fn() -> bool) -> Measured {
    let from = vec![1_u8; COPY_BYTES];
    let mut to = vec![2_u8; COPY_BYTES];
    measure(format!("copy_{}MiB", COPY_BYTES >> 20), COPY_BYTES as f64, go_on, || {
        to.copy_from_slice(std::hint::black_box(&from));
        std::hint::black_box(&mut to);
    })
}

fn products(side: usize, go_on: &dyn Fn() -> bool) -> Measured {
    let numbers = |seed: usize| (0..side * side).map(|at| ((at * 7 + seed) % 13) as f32 / 13.0).collect::<Vec<_>>();
    let (a, b, mut c) = (numbers(1), numbers(5), vec![0.0_f32; side * side]);
    measure(format!("product_fp32_{side}"), 2.0 * (side as f64).powi(3), go_on, || {
        let (row, column) = (side as isize, 1);
        // SAFETY: all three matrices hold `side` rows of `side` numbers, and `c` is nobody else's.
        unsafe {
            matrixmultiply::sgemm(
                side,
                side,
                side,
                1.0,
                a.as_ptr(),
                row,
                column,
                b.as_ptr(),
                row,
                column,
                0.0,
                c.as_mut_ptr(),
                row,
                column,
            );
        }
        std::hint::black_box(&mut c);
    })
}

fn measure(name: String, work: f64, go_on: &dyn Fn() -> bool, mut run: impl FnMut()) -> Measured {
    let mut durations_ns = Vec::new();
    for repetition in (0..REPETITIONS).take_while(|_| go_on()) {
        let from_ns = now_ns();
        run();
        if repetition > 0 {
            durations_ns.push(now_ns() - from_ns);
        }
    }
    Measured { name, work, durations_ns }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::rates;

    #[test]
    fn a_host_says_what_it_can_do() {
        let measured = calibrate_host(&|| true);
        let names: Vec<&str> = measured.iter().map(|measured| measured.name.as_str()).collect();
        assert_eq!(names, ["copy_64MiB", "product_fp32_256", "product_fp32_512"]);
        for measured in &measured {
            assert_eq!(measured.durations_ns.len(), REPETITIONS - 1);
            // A processor does between a hundred million and a hundred trillion of anything a second.
            let rate = measured.per_second().unwrap();
            assert!((1e8..1e14).contains(&rate), "{}: {rate}", measured.name);
        }
        assert_eq!(measured[1].work, 2.0 * 256.0 * 256.0 * 256.0);
        let found = rates(&measured);
        let rate = |at: usize| measured[at].per_second().map(|rate| rate.round() as u64);
        assert_eq!((found.operations_per_s, found.bytes_per_s), (rate(2), rate(0)), "of the larger product");
    }

    #[test]
    fn told_to_stop_it_gives_what_it_has() {
        let left = std::cell::Cell::new(8);
        let measured = calibrate_host(&|| left.replace(left.get().max(1) - 1) > 0);
        let counts: Vec<usize> = measured.iter().map(|measured| measured.durations_ns.len()).collect();
        assert_eq!(counts, [5, 1, 0]);
        assert_eq!(rates(&measured).operations_per_s, measured[1].per_second().map(|rate| rate.round() as u64));
        assert!(rates(&calibrate_host(&|| false)).is_empty());
    }
}
