//! Plans as Python sees them.

use adaptis_executor_core::Migration;
use adaptis_plan::problem::LAYERS_MAX;
use adaptis_plan::{Problem, audit, lower};
use adaptis_planner::schedule::{Name, UNFIT, even, named};
use adaptis_planner::search::{Control, Infeasible, Options, search};
use adaptis_proto::message::{Job, JobLayer};
use adaptis_proto::{Digest, Epoch, RunId};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::{create_exception, pyfunction};
use std::path::Path;

create_exception!(adaptis, PlanError, PyValueError, "A plan that can't be read, is not valid, or can't run here.");

/// What the search for a first plan may take: some milliseconds.
const START_EVALUATIONS: u64 = 2_000;

fn refused(error: impl std::fmt::Display) -> PyErr {
    PlanError::new_err(error.to_string())
}

/// A stage as Python has it: first layer, end of its layers, device, recomputed layers.
type Stage = (u32, u32, u32, Vec<u32>);

/// Who runs what, in which order: partition, placement, schedule and recomputation.
#[pyclass(frozen, module = "adaptis")]
pub(crate) struct Plan(pub(crate) adaptis_plan::Plan);

/// One device's program with its transfers.
#[pyclass(frozen, module = "adaptis")]
pub(crate) struct Row {
    pub(crate) row: adaptis_plan::Row,
    pub(crate) stages: usize,
}

#[pymethods]
impl Plan {
    /// Reads the text of an `adaptis.plan/1`.
    #[staticmethod]
    fn read(text: &str) -> PyResult<Plan> {
        if Path::new(text).is_file() {
            return Err(refused(format!(
                "text: the name of a file; Plan.read takes what stands in it: Path({text:?}).read_text()"
            )));
        }
        adaptis_plan::Plan::read(text).map(Plan).map_err(refused)
    }

    /// As many layers on each device as on any other, one more on the first ones, in order, under 1F1B; or a named
    /// schedule on layers that cost alike. Where layers must stay together, what a short search finds.
    #[staticmethod]
    #[pyo3(signature = (layers, devices, microbatches, schedule=None, together=Vec::new()))]
    fn even(
        py: Python<'_>,
        layers: usize,
        devices: Vec<String>,
        microbatches: u32,
        schedule: Option<&str>,
        together: Vec<Vec<u32>>,
    ) -> PyResult<Plan> {
        if layers > LAYERS_MAX {
            return Err(refused(format!("layers: {layers} of them; {LAYERS_MAX} is the most")));
        }
        let problem = structure(layers, &devices, microbatches, together);
        problem.check().map_err(refused)?;
        let name = schedule.map(str::parse::<Name>).transpose().map_err(refused)?;
        let plan = py.detach(|| match name {
            Some(name) => named(&problem, name),
            None if problem.constraints.together.is_empty() => Ok(even(&problem)),
            None => {
                let options = Options { evaluations: Some(START_EVALUATIONS), ..Options::default() };
                search(&problem, None, &options, &mut |_| Control::Go).map(|outcome| outcome.plan)
            }
        });
        let plan = plan.map_err(|why| match (&why, problem.constraints.together.as_slice()) {
            (Infeasible::Schedule { name, because }, groups @ [_, ..]) if *because == UNFIT => refused(format!(
                "plan: {name} on {} devices puts layers on different ones that share parameters, as of {groups:?} some do; \
                 without a name a plan is searched that keeps them together",
                devices.len()
            )),
            _ => refused(why),
        })?;
        Ok(Plan(adaptis_plan::Plan { epoch: Epoch(1), predicted: None, why: None, ..plan }))
    }

    /// As text.
    fn write(&self) -> String {
        self.0.write()
    }

    /// Its number.
    #[getter]
    fn epoch(&self) -> u64 {
        self.0.epoch.0
    }

    /// Number of layers of the model.
    #[getter]
    fn layers(&self) -> u32 {
        self.0.layers
    }

    /// Names of its devices.
    #[getter]
    fn devices(&self) -> Vec<String> {
        self.0.devices.clone()
    }

    /// `(first layer, end of its layers, device, recomputed layers)` of each stage.
    #[getter]
    fn stages(&self) -> Vec<Stage> {
        let stage =
            |stage: &adaptis_plan::Stage| (stage.layers[0], stage.layers[1], stage.device, stage.recompute.clone());
        self.0.stages.iter().map(stage).collect()
    }

    /// The device of each layer.
    fn device_of_layers(&self) -> Vec<u32> {
        self.0.device_of_layers()
    }

    /// What is wrong with it for so many microbatches and layers that must stay together; nothing, if it can run.
    #[pyo3(signature = (microbatches, together=Vec::new()))]
    fn findings(&self, microbatches: u32, together: Vec<Vec<u32>>) -> PyResult<Vec<String>> {
        let problem = structure(self.0.layers as usize, &self.0.devices, microbatches, together);
        problem.check().map_err(refused)?;
        Ok(audit(&problem, &self.0).iter().map(ToString::to_string).collect())
    }

    /// Whether both have the same stages and programs, whatever their numbers.
    fn is_alike(&self, other: &Plan) -> bool {
        let Plan(this) = self;
        let Plan(other) = other;
        let place = |stage: &adaptis_plan::Stage| (stage.layers, stage.device, stage.recompute.clone());
        let alike = this.stages.iter().map(place).eq(other.stages.iter().map(place));
        alike && this.devices == other.devices && this.programs == other.programs
    }

    /// The row of a device.
    fn row(&self, device: usize) -> PyResult<Row> {
        let rows = lower(&self.0).map_err(refused)?;
        let count = rows.len();
        let row = rows.into_iter().nth(device);
        let row = row.ok_or_else(|| refused(format!("device {device} is not one of the plan's {count}")))?;
        Ok(Row { row, stages: self.0.stages.len() })
    }

    /// `(layer, from, to)` of each layer that changes device on the way to another plan, in layer order.
    fn moves(&self, next: &Plan) -> PyResult<Vec<(u32, u32, u32)>> {
        let (layers, others) = (self.0.layers, next.0.layers);
        if layers != others {
            return Err(refused(format!("a plan for {layers} layers is followed by one for {others}")));
        }
        let migration = Migration::between(&self.0, &next.0);
        Ok(migration.moves.iter().map(|one| (one.layer.0, one.from.0, one.to.0)).collect())
    }

    fn __repr__(&self) -> String {
        let Plan(plan) = self;
        let stages: Vec<String> = plan
            .stages
            .iter()
            .map(|stage| format!("{}..{} on {}", stage.layers[0], stage.layers[1], stage.device))
            .collect();
        format!("<adaptis.Plan {}: {}>", plan.epoch, stages.join(", "))
    }

    fn __eq__(&self, other: &Plan) -> bool {
        self.0 == other.0
    }
}

#[pymethods]
impl Row {
    fn __len__(&self) -> usize {
        self.row.len()
    }
}

/// The digest of a state's bytes, by which both ends of a move are compared.
#[pyfunction]
pub(crate) fn digest(py: Python<'_>, bytes: &[u8]) -> String {
    py.detach(|| Digest(*blake3::hash(bytes).as_bytes()).to_string())
}

/// A job whose costs nobody knows: what the audit of a plan's structure needs.
fn structure(layers: usize, devices: &[String], microbatches: u32, together: Vec<Vec<u32>>) -> Problem {
    let layer = |at| JobLayer {
        name: format!("layers.{at}"),
        signature: "layer".to_owned(),
        parameter_bytes: 0,
        state_bytes: 0,
        output_bytes: 0,
        moved_bytes: 0,
    };
    let job = Job {
        run: RunId("job".to_owned()),
        devices: devices.to_vec(),
        layers: (0..layers).map(layer).collect(),
        microbatches,
        iterations: 0,
        start_plan: None,
    };
    let mut problem = Problem::structure(&job);
    problem.constraints.together = together;
    problem
}
