//! A layer's state as bytes, for its digest and for a move to another process.
//!
//! ```text
//!   mark "ADLS" | version u32 | step u64 | parameter...
//!   parameter = name length u32 | name | count u64 | values | first moments | second moments     (count f32 each)
//! ```
//!
//! Little-endian throughout. Gradients are left out: between two iterations, the only time when a layer moves, they
//! are spent.

use super::{Layer, StateError, parameter::Parameter};
use adaptis_proto::Digest;

/// The first bytes of an exported layer.
const MARK: [u8; 4] = *b"ADLS";
const VERSION: u32 = 1;
/// Values, first and second moments.
const TENSORS: usize = 3;

impl Layer {
    /// BLAKE3 over the layer's state: parameters and both moments, each by name, and the step. Equal states have equal
    /// digests wherever they are.
    pub fn digest(&self) -> Digest {
        Digest(*blake3::hash(&self.export_state()).as_bytes())
    }

    /// Parameters, moments and step.
    pub fn export_state(&self) -> Vec<u8> {
        let parameters = self.parameters();
        let mut bytes = Vec::with_capacity(16 + parameters.iter().map(|p| encoded_bytes(p)).sum::<usize>());
        bytes.extend_from_slice(&MARK);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.step.to_le_bytes());
        for parameter in parameters {
            let name_bytes = u32::try_from(parameter.name.len()).expect("a parameter's name is a word");
            bytes.extend_from_slice(&name_bytes.to_le_bytes());
            bytes.extend_from_slice(parameter.name.as_bytes());
            bytes.extend_from_slice(&(parameter.value.len() as u64).to_le_bytes());
            for tensor in [&parameter.value, &parameter.first_moment, &parameter.second_moment] {
                tensor.iter().for_each(|element| bytes.extend_from_slice(&element.to_le_bytes()));
            }
        }
        bytes
    }

    /// Takes over what a layer of the same type and shape exported, and clears the gradients.
    ///
    /// # Errors
    /// If the bytes are not such an export; the layer is then unchanged.
    pub fn import_state(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let mut reader = Reader { rest: bytes };
        let found = reader.array::<4>()?;
        if found != MARK {
            return Err(StateError::Format { found });
        }
        let found = u32::from_le_bytes(reader.array()?);
        if found != VERSION {
            return Err(StateError::Version { found, expected: VERSION });
        }
        let step = u64::from_le_bytes(reader.array()?);
        let tensors = self.parameters().into_iter().map(|p| reader.tensors(p)).collect::<Result<Vec<_>, _>>()?;
        if !reader.rest.is_empty() {
            return Err(StateError::Trailing { bytes: reader.rest.len() });
        }
        for (parameter, [value, first_moment, second_moment]) in self.parameters_mut().into_iter().zip(tensors) {
            parameter.value = value;
            parameter.first_moment = first_moment;
            parameter.second_moment = second_moment;
        }
        self.step = step;
        self.clear_gradients();
        Ok(())
    }
}

fn encoded_bytes(parameter: &Parameter) -> usize {
    size_of::<u32>() + parameter.name.len() + size_of::<u64>() + TENSORS * size_of_val(&*parameter.value)
}

/// What is left to read.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, needed: usize) -> Result<&'a [u8], StateError> {
        let available = self.rest.len();
        let (taken, rest) = self.rest.split_at_checked(needed).ok_or(StateError::Truncated { needed, available })?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], StateError> {
        Ok(self.take(N)?.try_into().expect("N bytes were taken"))
    }

    /// The tensors of `parameter`, whose name and size must come next.
    fn tensors(&mut self, parameter: &Parameter) -> Result<[Vec<f32>; TENSORS], StateError> {
        let name_bytes = u32::from_le_bytes(self.array()?) as usize;
        let found = self.take(name_bytes)?;
        if found != parameter.name.as_bytes() {
            let found = String::from_utf8_lossy(found).into_owned();
            return Err(StateError::Name { found, expected: parameter.name });
        }
        let found = u64::from_le_bytes(self.array()?);
        let expected = parameter.value.len() as u64;
        if found != expected {
            return Err(StateError::Count { name: parameter.name, found, expected });
        }
        let mut tensor = || -> Result<Vec<f32>, StateError> {
            let bytes = self.take(size_of_val(&*parameter.value))?;
            let (elements, _) = bytes.as_chunks::<4>();
            Ok(elements.iter().map(|element| f32::from_le_bytes(*element)).collect())
        };
        Ok([tensor()?, tensor()?, tensor()?])
    }
}
