//! Names of operations.

use adaptis_coordinator_core::diagnose::{Direction, Exchange};

/// What a row's operation is to a pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Optype {
    /// F or B.
    Compute(Direction),
    /// Sends and receives.
    Exchange(Exchange),
    /// Outside of the pipeline.
    Other,
}

/// Operations outside of the pipeline.
const OTHERS: [&str; 8] = [
    "params-all-gather",
    "grads-reduce-scatter",
    "layernorm-grads-all-reduce",
    "embedding-grads-all-reduce",
    "separate-grads-all-reduce",
    "optimizer-clip-main-grad",
    "optimizer",
    "gc",
];

impl Optype {
    /// None of a name that is not known.
    pub fn parse(name: &[u8]) -> Option<Optype> {
        let name = std::str::from_utf8(name).ok()?;
        match name {
            "forward-compute" => return Some(Optype::Compute(Direction::Forward)),
            "backward-compute" => return Some(Optype::Compute(Direction::Backward)),
            _ if OTHERS.contains(&name) => return Some(Optype::Other),
            _ => {}
        }
        let mut exchange = Exchange::default();
        let mut words = name.split('-');
        while let Some(direction) = words.next() {
            let direction = match direction {
                "forward" => Direction::Forward,
                "backward" => Direction::Backward,
                _ => return None,
            };
            let side = match words.next()? {
                "send" => &mut exchange.sends[direction as usize],
                "recv" => &mut exchange.receives[direction as usize],
                _ => return None,
            };
            if std::mem::replace(side, true) {
                return None;
            }
        }
        Some(Optype::Exchange(exchange))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let exchange = |sends, receives| Some(Optype::Exchange(Exchange { sends, receives }));
        for (name, optype) in [
            ("forward-compute", Some(Optype::Compute(Direction::Forward))),
            ("backward-compute", Some(Optype::Compute(Direction::Backward))),
            ("optimizer", Some(Optype::Other)),
            ("forward-send", exchange([true, false], [false, false])),
            ("backward-recv", exchange([false, false], [false, true])),
            ("forward-send-backward-recv", exchange([true, false], [false, true])),
            ("backward-send-forward-recv", exchange([false, true], [true, false])),
            ("forward-send-forward-send", None),
            ("forward", None),
            ("forward-", None),
            ("", None),
            ("compute", None),
        ] {
            assert_eq!(Optype::parse(name.as_bytes()), optype, "{name}");
        }
        assert_eq!(Optype::parse(b"\xff"), None);
    }
}
