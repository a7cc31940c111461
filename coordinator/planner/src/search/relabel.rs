//! Which of several devices that no plan can tell apart does what: as a plan from nothing has it, layers may move for
//! nothing.

use super::judge::Candidate;
use crate::costs::Costs;
use crate::program::Programs;
use crate::rules::Rules;

/// Rounds of exchanges between two devices each; a round without one is the last.
const ROUNDS_MAX: usize = 16;

/// Exchanges devices that are alike so that many of the bytes that would move stay where they are. False if it is best as
/// it is.
pub(super) fn settle(costs: &Costs, rules: &Rules, homes: &[u32], candidate: &mut Candidate) -> bool {
    if !rules.free {
        // A pin tells any two apart.
        return false;
    }
    let class = costs.classes();
    let devices = class.len();
    // By device in the plan and device in the running one.
    let mut kept = vec![0_u64; devices * devices];
    for slot in &candidate.shape.stages {
        for layer in slot.range().filter(|&layer| (homes[layer] as usize) < devices) {
            let at = &mut kept[slot.device as usize * devices + homes[layer] as usize];
            *at = at.saturating_add(costs.moved_bytes[layer].max(1));
        }
    }
    let mut to: Vec<usize> = (0..devices).collect();
    let gain = |to: &[usize], a: usize, b: usize| {
        let now = kept[a * devices + to[a]].saturating_add(kept[b * devices + to[b]]);
        kept[a * devices + to[b]].saturating_add(kept[b * devices + to[a]]) > now
    };
    let mut is_changed = false;
    for _ in 0..ROUNDS_MAX {
        let mut is_settled = true;
        for a in 0..devices {
            for b in (0..a).filter(|&b| class[b] == class[a]) {
                if gain(&to, a, b) {
                    to.swap(a, b);
                    (is_settled, is_changed) = (false, true);
                }
            }
        }
        if is_settled {
            break;
        }
    }
    if is_changed {
        candidate.shape.stages.iter_mut().for_each(|slot| slot.device = to[slot.device as usize] as u32);
        let mut programs: Programs = vec![Vec::new(); devices];
        for (program, &to) in std::mem::take(&mut candidate.programs).into_iter().zip(&to) {
            programs[to] = program;
        }
        candidate.programs = programs;
    }
    is_changed
}
