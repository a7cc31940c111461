//! From one plan to the next: which layers change device.
//!
//! 1. Moves stand in layer order, so that every rank sends and receives in one order.
//! 2. A layer that stays on its device does not move, even if its stage changes.
//!
//! Left out on purpose: how state travels, and how it is checked on arrival.

use adaptis_plan::Plan;
use adaptis_proto::{DeviceIndex, LayerIndex};

/// A layer's change of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Which layer.
    pub layer: LayerIndex,
    /// Its device under the old plan.
    pub from: DeviceIndex,
    /// Its device under the new one.
    pub to: DeviceIndex,
}

/// All moves between two plans, in layer order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Migration {
    /// In layer order.
    pub moves: Vec<Move>,
}

impl Migration {
    /// What changes from `old` to `new`, two plans for the same layers and devices.
    ///
    /// # Panics
    /// If they are plans for different models.
    pub fn between(old: &Plan, new: &Plan) -> Migration {
        assert_eq!(old.layers, new.layers, "two plans of one model have its layers");
        let moves = old
            .device_of_layers()
            .into_iter()
            .zip(new.device_of_layers())
            .enumerate()
            .filter(|(_, (from, to))| from != to)
            .map(|(layer, (from, to))| Move { layer: layer.into(), from: DeviceIndex(from), to: DeviceIndex(to) })
            .collect();
        Migration { moves }
    }

    /// Moves away from a device.
    pub fn leaving(&self, device: DeviceIndex) -> impl Iterator<Item = Move> + '_ {
        self.moves.iter().copied().filter(move |one| one.from == device)
    }

    /// Moves to a device.
    pub fn arriving(&self, device: DeviceIndex) -> impl Iterator<Item = Move> + '_ {
        self.moves.iter().copied().filter(move |one| one.to == device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use adaptis_plan::{Stage, plan};
    use adaptis_proto::Epoch;

    fn placed(stages: &[(u32, u32, u32)]) -> Plan {
        Plan {
            format: plan::FORMAT.into(),
            note: None,
            epoch: Epoch(1),
            parent: Epoch(0),
            layers: stages.iter().map(|stage| stage.1).max().unwrap_or(0),
            devices: vec!["a".into(), "b".into(), "c".into()],
            stages: stages
                .iter()
                .map(|&(from, to, device)| Stage { layers: [from, to], device, recompute: vec![], note: None })
                .collect(),
            programs: vec![vec![]; 3],
            predicted: None,
            why: None,
        }
    }

    #[test]
    fn only_layers_on_another_device_move() {
        let old = placed(&[(0, 2, 0), (2, 4, 1), (4, 6, 2)]);
        let new = placed(&[(0, 1, 0), (1, 3, 1), (3, 4, 1), (4, 5, 0), (5, 6, 2)]);
        let migration = Migration::between(&old, &new);
        let text: Vec<_> =
            migration.moves.iter().map(|one| format!("{}:{}->{}", one.layer, one.from, one.to)).collect();
        assert_eq!(text, ["1:0->1", "4:2->0"]);
        assert_eq!(migration.leaving(DeviceIndex(0)).count(), 1);
        assert_eq!(migration.arriving(DeviceIndex(0)).map(|one| one.layer.0).collect::<Vec<_>>(), [4]);
        assert_eq!(Migration::between(&old, &old), Migration::default());
    }
}
