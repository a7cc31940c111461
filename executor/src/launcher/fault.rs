//! Faults of a demo, as a person writes them: `40:throttle:gpu1:1.8`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// What goes wrong, and at which iteration.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// Iteration at whose start it happens.
    pub iteration: u64,
    /// What happens.
    pub what: What,
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// A device takes `factor` times as long; 1.0 ends it.
    Throttle {
        /// Which one.
        device: String,
        /// At least 0.01.
        factor: f64,
    },
    /// The link between two devices takes `factor` times as long, both ways; 1.0 ends it.
    SlowLink {
        /// Which ones.
        between: [String; 2],
        /// At least 0.01.
        factor: f64,
    },
    /// A rank's process is killed.
    KillRank {
        /// Of which device.
        device: String,
    },
    /// The coordinator is killed, and started again.
    KillCoordinator,
    /// An agent is killed, and started again.
    KillAgent {
        /// Of which device.
        device: String,
    },
    /// A rank's process is stopped for a while.
    Pause {
        /// Of which device.
        device: String,
        /// How long.
        duration: Duration,
    },
}

/// What is wrong with a fault's text.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum FaultError {
    /// Not of the shape.
    #[error(
        "--fault `{0}`: write ITERATION:WHAT, as in 40:throttle:gpu1:1.8, 40:slowlink:gpu0-gpu1:4, 30:kill:gpu2, \
         75:kill:coordinator, 20:kill:agent:gpu0 or 50:pause:gpu3:10s"
    )]
    Shape(String),
    /// A known fault that this version can't make.
    #[error("--fault `{0}`: replacing a device needs a restart from replicas, which this version does not have yet")]
    NotYet(String),
    /// No such device.
    #[error("--fault `{fault}`: there is no device `{device}`; there are {known}")]
    Device {
        /// The fault.
        fault: String,
        /// The device it names.
        device: String,
        /// The devices there are.
        known: String,
    },
    /// A part of it is out of range, or lacks its unit.
    #[error("--fault `{fault}`: {field} is `{value}`; write {right}")]
    Value {
        /// The fault.
        fault: String,
        /// Which part.
        field: &'static str,
        /// What it is.
        value: String,
        /// What would be right.
        right: &'static str,
    },
    /// The names of two devices can be read in more than one way.
    #[error("--fault `{fault}`: `{pair}` names two devices in more than one way; rename one of them")]
    Ambiguous {
        /// The fault.
        fault: String,
        /// The two names.
        pair: String,
    },
    /// It would never happen.
    #[error("--fault `{fault}`: the run ends after {iterations} iterations")]
    TooLate {
        /// The fault.
        fault: String,
        /// The run's length.
        iterations: u64,
    },
}

/// Slower than this and the run would not end in a day.
const FACTORS: std::ops::RangeInclusive<f64> = 0.01..=1000.0;
const FACTORS_TEXT: &str = "a number from 0.01 to 1000";
/// A peer waits 30 s for a rank, and then gives the run up.
const PAUSE_SECONDS: std::ops::RangeInclusive<f64> = 0.0..=25.0;
const PAUSE_TEXT: &str = "seconds from 0s to 25s, as in 10s: a rank that is away for 30 s is given up by its peers";
/// Between the two devices of a link.
const JOINT: char = '-';

impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Fault, FaultError> {
        let shape = || FaultError::Shape(text.to_owned());
        let wrong = |field, value: &str, right| {
            let (fault, value) = (text.to_owned(), value.to_owned());
            FaultError::Value { fault, field, value, right }
        };
        let factor = |text: &str| {
            let factor = text.parse::<f64>().ok().filter(|factor| FACTORS.contains(factor));
            factor.ok_or_else(|| wrong("the factor", text, FACTORS_TEXT))
        };
        let parts: Vec<&str> = text.split(':').collect();
        let (first, rest) = parts.split_first().ok_or_else(shape)?;
        let iteration = match (first.parse(), rest) {
            (Ok(iteration), _) => iteration,
            (Err(_), []) => return Err(shape()),
            (Err(_), _) => return Err(wrong("the iteration", first, "a whole number that is not negative")),
        };
        let what = match *rest {
            ["throttle", device, by] => What::Throttle { device: device.to_owned(), factor: factor(by)? },
            ["slowlink", pair, by] => {
                let (a, b) = pair.split_once(JOINT).ok_or_else(shape)?;
                What::SlowLink { between: [a.to_owned(), b.to_owned()], factor: factor(by)? }
            }
            ["kill", "agent"] => return Err(shape()),
            ["kill", "coordinator"] => What::KillCoordinator,
            ["kill", "agent", device] => What::KillAgent { device: device.to_owned() },
            ["kill", device] => What::KillRank { device: device.to_owned() },
            ["pause", device, time] => {
                let seconds = time.strip_suffix('s').and_then(|number| number.parse::<f64>().ok());
                let seconds = seconds.filter(|seconds| PAUSE_SECONDS.contains(seconds));
                let seconds = seconds.ok_or_else(|| wrong("the time", time, PAUSE_TEXT))?;
                What::Pause { device: device.to_owned(), duration: Duration::from_secs_f64(seconds) }
            }
            ["replace", ..] => return Err(FaultError::NotYet(text.to_owned())),
            _ => return Err(shape()),
        };
        Ok(Fault { iteration, what })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.iteration)?;
        match &self.what {
            What::Throttle { device, factor } => write!(f, "throttle:{device}:{factor}"),
            What::SlowLink { between: [a, b], factor } => write!(f, "slowlink:{a}-{b}:{factor}"),
            What::KillRank { device } => write!(f, "kill:{device}"),
            What::KillCoordinator => write!(f, "kill:coordinator"),
            What::KillAgent { device } => write!(f, "kill:agent:{device}"),
            What::Pause { device, duration } => write!(f, "pause:{device}:{}s", duration.as_secs_f64()),
        }
    }
}

impl Fault {
    /// From its text, for a run on these devices: where their names hold a `-`, it is clear which two a link joins.
    ///
    /// # Errors
    /// Not a fault, or one that these devices cannot have.
    pub fn read(text: &str, devices: &[String]) -> Result<Fault, FaultError> {
        let mut fault: Fault = text.parse()?;
        if let What::SlowLink { between, .. } = &mut fault.what {
            let pair = between.join(&JOINT.to_string());
            let known = |name: &str| devices.iter().any(|device| device == name);
            let splits = pair.match_indices(JOINT).map(|(at, joint)| [&pair[..at], &pair[at + joint.len()..]]);
            let mut splits = splits.filter(|[a, b]| a != b && known(a) && known(b));
            match (splits.next(), splits.next()) {
                (Some(names), None) => *between = names.map(str::to_owned),
                (Some(_), Some(_)) => return Err(FaultError::Ambiguous { fault: text.to_owned(), pair: pair.clone() }),
                (None, _) => {}
            }
        }
        Ok(fault)
    }

    /// Checks a fault against a run.
    pub fn check(&self, devices: &[String], iterations: u64) -> Result<(), FaultError> {
        let named: Vec<&String> = match &self.what {
            What::SlowLink { between, .. } => between.iter().collect(),
            What::KillCoordinator => Vec::new(),
            What::Throttle { device, .. }
            | What::KillRank { device }
            | What::KillAgent { device }
            | What::Pause { device, .. } => vec![device],
        };
        if let Some(device) = named.into_iter().find(|device| !devices.contains(device)) {
            let known = devices.join(", ");
            return Err(FaultError::Device { fault: self.to_string(), device: device.clone(), known });
        }
        if let What::SlowLink { between: [a, b], .. } = &self.what
            && a == b
        {
            return Err(FaultError::Shape(self.to_string()));
        }
        if iterations > 0 && self.iteration >= iterations {
            return Err(FaultError::TooLate { fault: self.to_string(), iterations });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_and_written_alike() {
        for text in [
            "40:throttle:gpu1:1.8",
            "40:slowlink:gpu0-gpu1:4",
            "30:kill:gpu2",
            "75:kill:coordinator",
            "20:kill:agent:gpu0",
            "50:pause:gpu3:10s",
        ] {
            assert_eq!(text.parse::<Fault>().expect(text).to_string(), text);
        }
    }

    #[test]
    fn what_is_not_a_fault_is_refused() {
        for text in ["", "40", "40:throttle:gpu1", "40:kill:agent"] {
            assert_eq!(text.parse::<Fault>(), Err(FaultError::Shape(text.to_owned())), "{text}");
        }
        for (text, part) in [
            ("x:throttle:gpu1:1.8", "the iteration is `x`"),
            ("-1:throttle:gpu1:1.8", "the iteration is `-1`"),
            ("40:throttle:gpu1:0", "the factor is `0`; write a number from 0.01 to 1000"),
            ("40:throttle:gpu1:nan", "the factor is `nan`"),
            ("40:throttle:gpu1:1e300", "the factor is `1e300`"),
            ("40:slowlink:gpu0-gpu1:much", "the factor is `much`"),
            ("50:pause:gpu3:10", "the time is `10`; write seconds from 0s to 25s, as in 10s"),
            ("50:pause:gpu3:40s", "the time is `40s`; write seconds from 0s to 25s"),
        ] {
            let error = text.parse::<Fault>().expect_err(text).to_string();
            assert!(error.contains(part), "{error}");
        }
        assert!(matches!("45:replace:gpu2:l40s-48g".parse::<Fault>(), Err(FaultError::NotYet(_))));
        let fault: Fault = "40:throttle:gpu9:1.8".parse().expect("it is well formed");
        assert!(matches!(fault.check(&["gpu0".to_owned()], 120), Err(FaultError::Device { .. })));
        let fault: Fault = "200:throttle:gpu0:1.8".parse().expect("it is well formed");
        assert!(matches!(fault.check(&["gpu0".to_owned()], 120), Err(FaultError::TooLate { .. })));
    }

    #[test]
    fn names_with_a_dash_are_told_apart_by_the_devices_there_are() {
        let devices = ["left-a", "gpu1", "x", "x-y", "y-z", "z", "left"].map(str::to_owned);
        let between = |pair: &str| match Fault::read(&format!("4:slowlink:{pair}:2"), &devices)?.what {
            What::SlowLink { between: [a, b], .. } => Ok((a, b)),
            other => panic!("{other:?}"),
        };
        let names = |a: &str, b: &str| Ok((a.to_owned(), b.to_owned()));
        assert_eq!(between("left-a-gpu1"), names("left-a", "gpu1"));
        assert_eq!(between("gpu1-left-a"), names("gpu1", "left-a"));
        assert_eq!(between("left-gpu1"), names("left", "gpu1"));
        assert!(matches!(between("x-y-z"), Err(FaultError::Ambiguous { .. })));
        let unknown = Fault::read("4:slowlink:left-b-gpu1:2", &devices).expect("it is well formed");
        assert!(matches!(unknown.check(&devices, 9), Err(FaultError::Device { .. })));
    }
}
