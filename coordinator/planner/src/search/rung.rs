//! Kinds of change to a running plan, cheapest first.

use crate::moves::GONE;
use crate::shape::Shape;
use adaptis_plan::Plan;

/// A kind of change to the running plan; cheapest first. Each allows what those before it allow, except that
/// boundaries move under the old sequence of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RungKind {
    /// Only the order of instructions.
    Order,
    /// Also which layers are recomputed.
    Recompute,
    /// Also which device runs which stage; the stages stay.
    Relabel,
    /// Also where stages begin and end; their devices stay in sequence, without those that are gone. (As
    /// [`RungKind::Recompute`] otherwise.)
    Boundary,
    /// Anything.
    Full,
    /// Anything, and as far from the running plan as one likes: what moves bears its price and no more.
    Anew,
}

impl RungKind {
    /// From the cheapest on.
    pub const ALL: [RungKind; 6] =
        [RungKind::Order, RungKind::Recompute, RungKind::Relabel, RungKind::Boundary, RungKind::Full, RungKind::Anew];

    /// What a shape changes of the running one.
    pub(crate) fn of(running: &Shape, shape: &Shape) -> Self {
        let (old, new) = (&running.stages, &shape.stages);
        let here = old.iter().map(|slot| slot.device).filter(|&device| device != GONE);
        let devices = here.eq(new.iter().map(|slot| slot.device));
        let ranges = old.iter().map(|slot| slot.range()).eq(new.iter().map(|slot| slot.range()));
        match (devices, ranges) {
            (true, true) if running.recompute == shape.recompute => RungKind::Order,
            (true, true) => RungKind::Recompute,
            (false, true) => RungKind::Relabel,
            (true, false) => RungKind::Boundary,
            (false, false) => RungKind::Full,
        }
    }

    /// A plan of the other kind is one of this kind, too.
    pub(crate) fn allows(self, other: Self) -> bool {
        other <= self && !(self == RungKind::Boundary && other == RungKind::Relabel)
    }
}

/// The best plan of a kind of change.
#[derive(Clone, Debug, PartialEq)]
pub struct Rung {
    /// What was allowed to change.
    pub kind: RungKind,
    /// The plan.
    pub plan: Plan,
    /// Its time.
    pub iteration_ns: u64,
    /// Its time and the charge for its stages and for what moves, in nanoseconds an iteration: no more than that of the
    /// kinds that this one allows. A layer that moves bears a toll beside its price, but not in [`RungKind::Anew`].
    pub value_ns: u64,
    /// Layers that change device.
    pub moved_layers: u32,
    /// Those among them whose old device is gone: they move in every plan.
    pub unavoidable_layers: u32,
    /// What the layers that move weigh.
    pub moved_bytes: u64,
}
