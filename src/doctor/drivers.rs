//! NVIDIA's driver and the GPUs that it names.

use super::Verdict::{Fine, Fix, Note};
use super::{Finding, Gpu};
use adaptis_agent::{Inventory, Library};

const DRIVER: &str = "driver";
const GPUS: &str = "gpus";

/// What the drivers answered; none if they did not in time.
pub(super) fn look(inventory: Option<&Inventory>, gpus: &[Gpu], visible: Option<&str>) -> Vec<Finding> {
    let Some(found) = inventory else {
        let text = "it does not answer: see what `dmesg` and `nvidia-smi` say; a reboot may be needed";
        return vec![Finding::new(DRIVER, Fix, text)];
    };
    let mut findings = vec![driver(found)];
    if gpus.is_empty() && found.nvml_count == 0 {
        findings.push(Finding::new(GPUS, Fine, "none: ranks here train on the host's processor"));
        return findings;
    }
    findings.extend(gpus.iter().enumerate().map(|(index, gpu)| card(index, gpu)));
    let lost = found.nvml_count as usize - gpus.len();
    if lost > 0 {
        let text = format!("{lost} of {} do not answer: reset them (`nvidia-smi -r`) or reboot", found.nvml_count);
        findings.push(Finding::new(GPUS, Fix, text));
    }
    if matches!(found.cuda, Library::Answers(_)) && found.cuda_count != found.nvml_count {
        let why = visible.map_or(String::new(), |visible| format!(" (CUDA_VISIBLE_DEVICES={visible})"));
        let text = format!("CUDA shows {} of {} to this process{why}", found.cuda_count, found.nvml_count);
        findings.push(Finding::new(GPUS, Note, text));
    }
    findings
}

fn driver(found: &Inventory) -> Finding {
    let (verdict, text) = match (&found.nvml, &found.cuda) {
        (Library::Answers(driver), Library::Answers(cuda)) => (Fine, format!("NVIDIA {driver}, CUDA {cuda}")),
        (Library::Absent, Library::Absent) => (Fine, "none of NVIDIA: needed where GPUs train only".to_owned()),
        (Library::Absent | Library::Idle, Library::Absent | Library::Idle) => {
            (Note, "NVIDIA's libraries are here, and no driver is loaded: needed where GPUs train only".to_owned())
        }
        (Library::Refuses(why), _) => {
            (Fix, format!("libnvidia-ml refuses: {why}: reload the driver or reboot, so that both are of one version"))
        }
        (_, Library::Refuses(why)) => {
            (Fix, format!("libcuda refuses: {why}: reload the driver or reboot, so that both are of one version"))
        }
        (Library::Answers(driver), Library::Idle) => {
            let text = format!("NVIDIA {driver}, and CUDA finds no GPU: does CUDA_VISIBLE_DEVICES hide them all?");
            (if found.nvml_count == 0 { Note } else { Fix }, text)
        }
        (Library::Answers(driver), Library::Absent) => (
            Fix,
            format!(
                "NVIDIA {driver}, and libcuda.so.1 can't be loaded: install the driver's compute part; in a container, \
                 set NVIDIA_DRIVER_CAPABILITIES=compute,utility"
            ),
        ),
        (Library::Absent | Library::Idle, Library::Answers(cuda)) => (
            Fix,
            format!(
                "CUDA {cuda}, and libnvidia-ml.so.1 can't be used: GPUs are not probed; in a container, set \
                 NVIDIA_DRIVER_CAPABILITIES=compute,utility"
            ),
        ),
    };
    Finding::new(DRIVER, verdict, text)
}

fn card(index: usize, gpu: &Gpu) -> Finding {
    let gibibytes = gpu.memory_bytes as f64 / (1_u64 << 30) as f64;
    let (verdict, kind) = match gpu.kind {
        Some(kind) => (Fine, kind.to_owned()),
        None => (Note, "of no kind in the table: its costs are known once it was measured".to_owned()),
    };
    let text = format!("{}, {kind}, {gibibytes:.1} GiB, {}", gpu.name, gpu.uuid);
    Finding::new(&format!("gpu {index}"), verdict, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libraries_answer_decides() {
        let answers = |text: &str| Library::Answers(text.to_owned());
        let refuses = || Library::Refuses("version mismatch".to_owned());
        for (nvml, cuda, count, verdict, word) in [
            (Library::Absent, Library::Absent, 0, Fine, "none"),
            (answers("550.54"), answers("12.4"), 1, Fine, "NVIDIA 550.54, CUDA 12.4"),
            (Library::Idle, Library::Absent, 0, Note, "no driver is loaded"),
            (Library::Idle, Library::Idle, 0, Note, "no driver is loaded"),
            (answers("550.54"), Library::Absent, 1, Fix, "compute,utility"),
            (Library::Absent, answers("12.4"), 0, Fix, "compute,utility"),
            (answers("550.54"), Library::Idle, 0, Note, "no GPU"),
            (answers("550.54"), Library::Idle, 2, Fix, "CUDA_VISIBLE_DEVICES"),
            (refuses(), answers("12.4"), 0, Fix, "libnvidia-ml refuses: version mismatch"),
            (answers("550.54"), refuses(), 1, Fix, "libcuda refuses: version mismatch"),
        ] {
            let found = driver(&Inventory { nvml, cuda, nvml_count: count, ..Inventory::default() });
            assert_eq!(found.verdict, verdict, "{found:?}");
            assert!(found.text.contains(word), "{found:?}");
        }
    }

    #[test]
    fn gpus_that_are_lost_or_hidden_are_told() {
        let answers = |text: &str| Library::Answers(text.to_owned());
        let inventory = Inventory {
            nvml: answers("1"),
            cuda: answers("12.4"),
            nvml_count: 3,
            cuda_count: 1,
            ..Inventory::default()
        };
        let card = |kind| Gpu { name: "NVIDIA".into(), kind, memory_bytes: 1 << 30, uuid: "GPU-1".into() };
        let found = look(Some(&inventory), &[card(Some("h100-80g")), card(None)], Some("0"));
        let verdicts: Vec<_> = found.iter().map(|finding| (finding.about.as_str(), finding.verdict)).collect();
        assert_eq!(verdicts, [("driver", Fine), ("gpu 0", Fine), ("gpu 1", Note), ("gpus", Fix), ("gpus", Note)]);
        assert!(found[1].text.contains("h100-80g, 1.0 GiB, GPU-1"), "{found:?}");
        assert!(found[4].text.contains("1 of 3") && found[4].text.contains("CUDA_VISIBLE_DEVICES=0"), "{found:?}");
        assert_eq!(look(None, &[], None)[0].verdict, Fix);
    }
}
