//! The host's clocks. Samples carry the monotonic one, and the offset between hosts is measured on the way; the time of
//! day stands in logs and reports alone.

use super::Finding;
use super::Verdict::{Fine, Fix, Note};
use adaptis_ring::now_ns;

const ABOUT: &str = "clock";
const READS: usize = 1000;

pub(super) fn look() -> Finding {
    let mut reads = (0..READS).map(|_| now_ns());
    let mut before = reads.next().unwrap_or_default();
    for now in reads {
        if now < before {
            let text = "CLOCK_MONOTONIC ran backwards: no time on this host can be trusted; look at its clock source";
            return Finding::new(ABOUT, Fix, text);
        }
        before = now;
    }
    told(synchronised())
}

/// Whether the kernel is told that its clock is in step, and how far off it may be.
fn synchronised() -> Option<(bool, u64)> {
    // SAFETY: all zeros are a valid timex that asks for no change.
    let mut found: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `found` is valid and writable for the duration of the call.
    let state = unsafe { libc::adjtimex(&mut found) };
    let is_in_step = state != libc::TIME_ERROR && found.status & libc::STA_UNSYNC == 0;
    (state >= 0).then_some((is_in_step, found.maxerror.unsigned_abs()))
}

fn told(synchronised: Option<(bool, u64)>) -> Finding {
    let (verdict, text) = match synchronised {
        Some((true, error_us)) => (Fine, format!("monotonic; in step by NTP within {:.1} ms", error_us as f64 / 1e3)),
        Some((false, _)) => (
            Note,
            "monotonic; nobody tells the kernel that NTP keeps it in step: logs of several hosts may be hard to compare"
                .to_owned(),
        ),
        None => (Note, "monotonic; whether NTP keeps it in step can't be asked here".to_owned()),
    };
    Finding::new(ABOUT, verdict, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_nobody_keeps_is_worth_a_note() {
        assert_eq!(told(Some((true, 1500))), Finding::new(ABOUT, Fine, "monotonic; in step by NTP within 1.5 ms"));
        assert_eq!([told(Some((false, 0))).verdict, told(None).verdict], [Note, Note]);
        assert_ne!(look().verdict, Fix);
    }
}
