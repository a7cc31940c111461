//! What `adaptis run` and ranks are told by variables of ours.

use super::Finding;
use super::Verdict::{Fine, Fix};
use crate::run::is_mode;
use std::path::Path;

const ABOUT: &str = "variables";

pub(super) fn look(variable: &dyn Fn(&str) -> Option<String>) -> Finding {
    let set = |name: &'static str| variable(name).filter(|value| !value.is_empty()).map(|value| (name, value));
    let (mode, keys) = (set("ADAPTIS_MODE"), set("ADAPTIS_KEYS"));
    if let Some((name, value)) = mode.as_ref().filter(|(_, value)| !is_mode(value)) {
        return Finding::new(ABOUT, Fix, format!("{name}={value}: observe, advise or adapt"));
    }
    if let Some((name, value)) = keys.as_ref().filter(|(_, value)| !Path::new(value).is_dir()) {
        return Finding::new(ABOUT, Fix, format!("{name}={value}: no folder there; `adaptis keys` makes one"));
    }
    let found = [mode, keys, set("ADAPTIS_COORDINATOR")].into_iter().flatten();
    let told: Vec<String> = found.map(|(name, value)| format!("{name}={value}")).collect();
    let text = if told.is_empty() { "none of ours is set".to_owned() } else { told.join(", ") };
    Finding::new(ABOUT, Fine, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_run_would_refuse_is_told() {
        for (set, verdict, word) in [
            (None, Fine, "none of ours"),
            (Some(("ADAPTIS_MODE", "advise")), Fine, "ADAPTIS_MODE=advise"),
            (Some(("ADAPTIS_MODE", "fast")), Fix, "ADAPTIS_MODE=fast"),
            (Some(("ADAPTIS_KEYS", "/nowhere")), Fix, "ADAPTIS_KEYS=/nowhere"),
        ] {
            let variable = |name: &str| set.filter(|(known, _)| *known == name).map(|(_, value)| value.to_owned());
            let found = look(&variable);
            assert!(found.verdict == verdict && found.text.contains(word), "{set:?}: {found:?}");
        }
    }
}
