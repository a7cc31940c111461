//! The host, and what the agent itself costs it.

use super::Readings;
use adaptis_ring::now_ns;

/// Reads the host. Remembers the last look, since CPU use is a difference.
pub(crate) struct Host {
    at_ns: u64,
    cpu_ns: Option<u64>,
}

impl Host {
    pub(crate) fn new() -> Self {
        Self { at_ns: now_ns(), cpu_ns: cpu_ns() }
    }

    /// `agent_cpu_share` (of one core, since the last look), `agent_rss_bytes`, `host_load_1min`.
    pub(crate) fn readings(&mut self) -> Readings {
        let before = std::mem::replace(self, Self::new());
        let elapsed_ns = self.at_ns.saturating_sub(before.at_ns);
        let share = self.cpu_ns.zip(before.cpu_ns).filter(|_| elapsed_ns > 0);
        let share = share.map(|(now, then)| now.saturating_sub(then) as f64 / elapsed_ns as f64);
        [("agent_cpu_share", share), ("agent_rss_bytes", rss_bytes()), ("host_load_1min", load())]
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)))
            .collect()
    }
}

/// CPU time of this process, of user and system.
fn cpu_ns() -> Option<u64> {
    // SAFETY: all-zero bytes are a value of this plain struct.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is valid and writable for the duration of the call.
    let status = unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) };
    let ns = |time: libc::timeval| time.tv_sec as u64 * 1_000_000_000 + time.tv_usec as u64 * 1_000;
    (status == 0).then(|| ns(usage.ru_utime) + ns(usage.ru_stime))
}

fn rss_bytes() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: f64 = text.split_whitespace().nth(1)?.parse().ok()?;
    // SAFETY: has no preconditions.
    let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    (page_bytes > 0).then_some(pages * page_bytes as f64)
}

fn load() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_reads_itself() {
        const SPUN_NS: u64 = 30_000_000;
        let start_ns = now_ns();
        let mut host = Host::new();
        let before_ns = cpu_ns().unwrap();
        while cpu_ns().unwrap() - before_ns < SPUN_NS {
            std::hint::spin_loop();
        }
        let readings = host.readings();
        // Of however long that took on a busy machine.
        let share = SPUN_NS as f64 / (now_ns() - start_ns) as f64;
        let names: Vec<_> = readings.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["agent_cpu_share", "agent_rss_bytes", "host_load_1min"]);
        assert!(readings[0].1 >= share, "we have just spun: {} {share}", readings[0].1);
        assert!(readings[1].1 > 100_000.0);
    }
}
