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

impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Fault, FaultError> {
        let shape = || FaultError::Shape(text.to_owned());
        let factor = |text: &str| text.parse::<f64>().ok().filter(|factor| FACTORS.contains(factor)).ok_or_else(shape);
        let parts: Vec<&str> = text.split(':').collect();
        let (first, rest) = parts.split_first().ok_or_else(shape)?;
        let iteration = first.parse().map_err(|_| shape())?;
        let what = match *rest {
            ["throttle", device, by] => What::Throttle { device: device.to_owned(), factor: factor(by)? },
            ["slowlink", pair, by] => {
                let (a, b) = pair.split_once('-').ok_or_else(shape)?;
                What::SlowLink { between: [a.to_owned(), b.to_owned()], factor: factor(by)? }
            }
            ["kill", "agent"] => return Err(shape()),
            ["kill", "coordinator"] => What::KillCoordinator,
            ["kill", "agent", device] => What::KillAgent { device: device.to_owned() },
            ["kill", device] => What::KillRank { device: device.to_owned() },
            ["pause", device, time] => {
                let seconds = time.strip_suffix('s').and_then(|number| number.parse::<f64>().ok());
                let seconds = seconds.filter(|seconds| (0.0..=3600.0).contains(seconds)).ok_or_else(shape)?;
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
        for text in ["", "40", "x:throttle:gpu1:1.8", "40:throttle:gpu1", "40:throttle:gpu1:0", "40:throttle:gpu1:nan"]
        {
            assert_eq!(text.parse::<Fault>(), Err(FaultError::Shape(text.to_owned())), "{text}");
        }
        assert!(matches!("45:replace:gpu2:l40s-48g".parse::<Fault>(), Err(FaultError::NotYet(_))));
        let fault: Fault = "40:throttle:gpu9:1.8".parse().expect("it is well formed");
        assert!(matches!(fault.check(&["gpu0".to_owned()], 120), Err(FaultError::Device { .. })));
        let fault: Fault = "200:throttle:gpu0:1.8".parse().expect("it is well formed");
        assert!(matches!(fault.check(&["gpu0".to_owned()], 120), Err(FaultError::TooLate { .. })));
    }
}
