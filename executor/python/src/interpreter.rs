//! The interpreter over objects of Python: a backend that runs layers, a transport that carries their tensors.

use crate::plan::Row;
use adaptis_executor_core::{Backend, Stopped, Transport};
use adaptis_proto::message::{TensorKind, TensorTag};
use adaptis_proto::{DeviceIndex, Microbatch, StageIndex};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyString;
use pyo3::{intern, pyfunction};

type Object = Py<PyAny>;

/// Runs one iteration of a row. `backend` has `forward`, `input_gradient` and `backward` of `(stage, microbatch, input)`
/// and `weight_gradient` of `(stage, microbatch)`; `transport` has `post` and `take` of
/// `(device, is_gradient, stage, microbatch)` and `send` of the same and what to send.
#[pyfunction]
pub(crate) fn run(py: Python<'_>, row: &Row, backend: Bound<'_, PyAny>, transport: Bound<'_, PyAny>) -> PyResult<()> {
    let mut layers = Layers { py, object: backend };
    let mut wires = Wires { py, object: transport };
    adaptis_executor_core::run(&row.row, row.stages, &mut layers, &mut wires).map_err(|stopped| match stopped {
        Stopped::Backend { instruction, fault } => noted(py, fault, format!("while running {instruction}")),
        Stopped::Transport { tag, fault } => noted(py, fault, format!("while carrying {}", named(tag))),
        broken @ (Stopped::Missing { .. } | Stopped::LeftOver { .. }) => PyRuntimeError::new_err(broken.to_string()),
    })
}

fn named(tag: TensorTag) -> String {
    let kind = match tag.kind {
        TensorKind::Activation => "the input",
        TensorKind::Gradient => "the gradient",
    };
    format!("{kind} of stage {} for microbatch {}", tag.stage, tag.microbatch)
}

/// With a note that the traceback shows, where this Python has notes (3.11 and newer).
fn noted(py: Python<'_>, fault: PyErr, note: String) -> PyErr {
    // Without notes the exception is told as it is.
    let _ = fault.value(py).call_method1(intern!(py, "add_note"), (note,));
    fault
}

struct Layers<'py> {
    py: Python<'py>,
    object: Bound<'py, PyAny>,
}

impl Layers<'_> {
    fn call(
        &self,
        name: &Bound<'_, PyString>,
        stage: StageIndex,
        microbatch: Microbatch,
        input: Option<Object>,
    ) -> PyResult<Option<Object>> {
        let result = self.object.call_method1(name, (stage.0, microbatch.0, input))?;
        Ok((!result.is_none()).then(|| result.unbind()))
    }
}

impl Backend for Layers<'_> {
    type Tensor = Object;
    type Fault = PyErr;

    fn forward(
        &mut self,
        stage: StageIndex,
        microbatch: Microbatch,
        input: Option<Object>,
    ) -> PyResult<Option<Object>> {
        self.call(intern!(self.py, "forward"), stage, microbatch, input)
    }

    fn input_gradient(
        &mut self,
        stage: StageIndex,
        microbatch: Microbatch,
        output_gradient: Option<Object>,
    ) -> PyResult<Option<Object>> {
        self.call(intern!(self.py, "input_gradient"), stage, microbatch, output_gradient)
    }

    fn weight_gradient(&mut self, stage: StageIndex, microbatch: Microbatch) -> PyResult<()> {
        self.object.call_method1(intern!(self.py, "weight_gradient"), (stage.0, microbatch.0)).map(drop)
    }

    fn backward(
        &mut self,
        stage: StageIndex,
        microbatch: Microbatch,
        output_gradient: Option<Object>,
    ) -> PyResult<Option<Object>> {
        self.call(intern!(self.py, "backward"), stage, microbatch, output_gradient)
    }
}

struct Wires<'py> {
    py: Python<'py>,
    object: Bound<'py, PyAny>,
}

fn parts(device: DeviceIndex, tag: TensorTag) -> (u32, bool, u32, u32) {
    (device.0, tag.kind == TensorKind::Gradient, tag.stage.0, tag.microbatch.0)
}

impl Transport for Wires<'_> {
    type Tensor = Object;
    type Fault = PyErr;

    fn post(&mut self, from: DeviceIndex, tag: TensorTag) -> PyResult<()> {
        self.object.call_method1(intern!(self.py, "post"), parts(from, tag)).map(drop)
    }

    fn take(&mut self, from: DeviceIndex, tag: TensorTag) -> PyResult<Object> {
        self.object.call_method1(intern!(self.py, "take"), parts(from, tag)).map(Bound::unbind)
    }

    fn send(&mut self, to: DeviceIndex, tag: TensorTag, tensor: Object) -> PyResult<()> {
        let (device, is_gradient, stage, microbatch) = parts(to, tag);
        let arguments = (device, is_gradient, stage, microbatch, tensor);
        self.object.call_method1(intern!(self.py, "send"), arguments).map(drop)
    }
}
