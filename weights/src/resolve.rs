//! The parameters that the configuration asks for, matched with the tensors that there are.
//!
//! Everything about tensors is decided here, once, when a checkpoint is opened: missing, misshapen,
//! wrongly typed, given twice, left over, and every scale's value. Cutting slices cannot fail later
//! but for a number of ranks that does not fit.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use crate::catalog::{Catalog, TensorInfo};
use crate::error::LoadError;
use crate::loaded::{Dtype, InputScale, WeightScale};
use crate::parameters::{ParameterSpec, Role};
use crate::quantization::{Fp8Scheme, InputQuantization, Quantization, WeightGranularity};
use crate::spec::ModelSpec;
use crate::verify::{Half, Place, place_of};

/// Projections that take the same input, and so quantize it with the same factor.
const SHARED_INPUTS: [&[Role]; 2] =
    [&[Role::Query, Role::Key, Role::Value], &[Role::Gate, Role::Up]];

/// Names, after `self_attn.`, of the key scale and of the value scale beside it.
const KV_SCALE_NAMES: [(&str, &str); 5] = [
    ("k_proj.k_scale", "v_proj.v_scale"),
    ("k_scale", "v_scale"),
    ("attn.k_scale", "attn.v_scale"),
    ("qkv_proj.k_scale", "qkv_proj.v_scale"),
    // Deprecated: one factor for both.
    ("kv_scale", "kv_scale"),
];

/// A parameter with its tensor and its scales, whole.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) spec: ParameterSpec,
    pub(crate) tensor: TensorInfo,
    pub(crate) scale: WeightScale,
    pub(crate) input: InputScale,
    /// A norm's gains, once somebody wanted them: ranks share them.
    gains: OnceLock<Arc<[f32]>>,
}

impl Stored {
    /// Its values as f32, read once. For norms, of which every rank holds all.
    pub(crate) fn gains(&self) -> Arc<[f32]> {
        Arc::clone(self.gains.get_or_init(|| self.tensor.to_f32().into()))
    }
}

/// Factors of keys and values in an FP8 cache.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct KvScales {
    pub(crate) k: f32,
    pub(crate) v: f32,
}

/// A block's parameters; none if it is empty.
#[derive(Clone, Debug)]
pub(crate) struct StoredBlock {
    pub(crate) parameters: Vec<Stored>,
    pub(crate) kv_scales: Option<KvScales>,
}

/// A model's parameters.
#[derive(Debug)]
pub(crate) struct StoredModel {
    pub(crate) embedding: Stored,
    pub(crate) blocks: Vec<StoredBlock>,
    pub(crate) final_norm: Stored,
    /// `None` where the head shares the embedding's tensor.
    pub(crate) head: Option<Stored>,
    /// Every tensor in use, by name.
    pub(crate) tensors: Vec<TensorInfo>,
}

/// Whether a tensor of this name can matter to the model: old checkpoints carry RoPE's frequencies,
/// and models with tied embeddings sometimes a second copy of them.
pub(crate) fn is_wanted(spec: &ModelSpec, name: &str) -> bool {
    let is_second_copy = spec.ties_embeddings && name == "lm_head.weight";
    !is_second_copy && !name.ends_with(".rotary_emb.inv_freq")
}

/// Matches all parameters of `spec` with the tensors of `catalog`.
pub(crate) fn resolve(
    spec: &ModelSpec,
    quantization: &Quantization,
    catalog: Catalog,
) -> Result<StoredModel, LoadError> {
    if let Some((_, error)) = split_inputs(spec, quantization).next() {
        return Err(error);
    }
    let mut resolver = Resolver { quantization, left: catalog.tensors, used: Vec::new() };
    let embedding = resolver.parameter(spec.embedding())?;
    let mut blocks = Vec::with_capacity(spec.blocks.len());
    for (block_idx, block) in spec.blocks.iter().enumerate() {
        let parameters = block.parameters(block_idx, spec.hidden_size);
        let parameters = parameters.into_iter().map(|parameter| resolver.parameter(parameter));
        let mut parameters = parameters.collect::<Result<Vec<Stored>, LoadError>>()?;
        share_input_scales(&mut parameters);
        let kv_scales = match block.attention() {
            Some(_) => resolver.kv_scales(block_idx)?,
            None => None,
        };
        blocks.push(StoredBlock { parameters, kv_scales });
    }
    let final_norm = resolver.parameter(spec.final_norm())?;
    let head = spec.head().map(|parameter| resolver.parameter(parameter)).transpose()?;
    check_kv_scales(spec, &blocks)?;
    if let Some(first) = resolver.left.keys().next() {
        let n_tensors = resolver.left.len();
        return Err(LoadError::UnusedTensors { n_tensors, first: first.clone() });
    }
    let mut tensors = resolver.used;
    tensors.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(StoredModel { embedding, blocks, final_norm, head, tensors })
}

/// All that [`resolve`] could refuse the catalog for, and where.
pub(crate) fn survey(
    spec: &ModelSpec,
    quantization: &Quantization,
    catalog: Catalog,
) -> Vec<(Place, LoadError)> {
    let mut resolver = Resolver { quantization, left: catalog.tensors, used: Vec::new() };
    let mut problems: Vec<(Place, LoadError)> = split_inputs(spec, quantization).collect();
    for parameter in spec.parameters() {
        let name = parameter.tensor_name();
        let error = resolver.parameter(parameter).err();
        problems.extend(error.map(|error| (place_of(&name), error)));
    }
    for (block_idx, block) in spec.blocks.iter().enumerate() {
        if block.attention().is_some()
            && let Err(error) = resolver.kv_scales(block_idx)
        {
            problems.push((Place::Block(block_idx, Half::Mixer), error));
        }
    }
    // What is left belongs to a parameter that was refused, or to none.
    let refused: Vec<Place> = problems.iter().map(|(place, _)| place.clone()).collect();
    let is_known = |name: &&String| !refused.contains(&place_of(name));
    let unused: Vec<&String> = resolver.left.keys().filter(is_known).collect();
    if let Some(first) = unused.first() {
        let (n_tensors, first) = (unused.len(), (*first).clone());
        problems.push((place_of(&first), LoadError::UnusedTensors { n_tensors, first }));
    }
    problems
}

struct Resolver<'a> {
    quantization: &'a Quantization,
    left: BTreeMap<String, TensorInfo>,
    used: Vec<TensorInfo>,
}

impl Resolver<'_> {
    fn parameter(&mut self, spec: ParameterSpec) -> Result<Stored, LoadError> {
        let name = spec.tensor_name();
        let Some(tensor) = self.take(&name) else {
            return Err(LoadError::MissingTensor { tensor: name, expected: spec.shape() });
        };
        check_shape(&tensor, &spec.shape())?;
        for (rank_idx, part) in tensor.parts.iter().enumerate() {
            let slice = spec.slice(rank_idx, tensor.parts.len())?;
            check_shape(part, &[slice.rows.len(), slice.cols.len()])?;
            if part.dtype != tensor.dtype {
                return Err(LoadError::WrongDtype {
                    tensor: name,
                    shard: part.shard.to_string(),
                    found: part.dtype.to_string(),
                    expected: format!("{}, as the other ranks have it", tensor.dtype),
                });
            }
        }
        let is_projection = spec.role.is_projection();
        let scheme = self.quantization.scheme_of(&spec.module).filter(|_| is_projection);
        self.check_dtype(&tensor, &spec, scheme)?;
        let (scale, input) = match scheme {
            None => (WeightScale::One, InputScale::None),
            Some(scheme) => {
                (self.weight_scale(&spec, scheme.weights)?, self.input_scale(&spec, scheme.input)?)
            }
        };
        Ok(Stored { spec, tensor, scale, input, gains: OnceLock::new() })
    }

    fn check_dtype(
        &self,
        tensor: &TensorInfo,
        spec: &ParameterSpec,
        scheme: Option<Fp8Scheme>,
    ) -> Result<(), LoadError> {
        if scheme.is_some() == (tensor.dtype == Dtype::F8E4m3) {
            return Ok(());
        }
        let expected = if scheme.is_some() {
            format!("F8_E4M3: the configuration does not exclude `{}`", spec.module)
        } else if spec.role.is_projection() && self.quantization.scheme.is_some() {
            format!("F32, F16 or BF16: the configuration excludes `{}`", spec.module)
        } else {
            "F32, F16 or BF16: no quantization is declared for it".to_owned()
        };
        Err(LoadError::WrongDtype {
            tensor: tensor.name.clone(),
            shard: tensor.shard.to_string(),
            found: tensor.dtype.to_string(),
            expected,
        })
    }

    fn weight_scale(
        &mut self,
        spec: &ParameterSpec,
        granularity: WeightGranularity,
    ) -> Result<WeightScale, LoadError> {
        let name = format!("{}.weight_scale", spec.module);
        match granularity {
            WeightGranularity::PerTensor => Ok(WeightScale::PerTensor(self.required_scale(&name)?)),
            WeightGranularity::PerRow => {
                let expected = vec![spec.n_rows, 1];
                let Some(tensor) = self.take(&name) else {
                    return Err(LoadError::MissingTensor { tensor: name, expected });
                };
                if tensor.shape != [spec.n_rows] {
                    check_shape(&tensor, &expected)?;
                }
                Ok(WeightScale::PerRow(scale_values(&tensor)?.into()))
            }
        }
    }

    fn input_scale(
        &mut self,
        spec: &ParameterSpec,
        input: InputQuantization,
    ) -> Result<InputScale, LoadError> {
        match input {
            InputQuantization::PerToken => Ok(InputScale::PerToken),
            InputQuantization::Static => {
                let name = format!("{}.input_scale", spec.module);
                Ok(InputScale::Static(self.required_scale(&name)?))
            }
        }
    }

    fn kv_scales(&mut self, block_idx: usize) -> Result<Option<KvScales>, LoadError> {
        let attention = format!("model.layers.{block_idx}.self_attn");
        let mut found: Option<(String, KvScales)> = None;
        for (k, v) in KV_SCALE_NAMES {
            let (k_name, v_name) = (format!("{attention}.{k}"), format!("{attention}.{v}"));
            if !self.left.contains_key(&k_name) && !self.left.contains_key(&v_name) {
                continue;
            }
            if let Some((first, _)) = found {
                let tensor = format!("{attention}'s key and value scales");
                return Err(LoadError::DuplicateTensor { tensor, first, second: k_name });
            }
            let k = self.required_scale(&k_name)?;
            let v = if k_name == v_name { k } else { self.required_scale(&v_name)? };
            found = Some((k_name, KvScales { k, v }));
        }
        Ok(found.map(|(_, scales)| scales))
    }

    /// The only value of a tensor of one element.
    fn required_scale(&mut self, name: &str) -> Result<f32, LoadError> {
        let expected = Vec::new();
        let Some(tensor) = self.take(name) else {
            return Err(LoadError::MissingTensor { tensor: name.to_owned(), expected });
        };
        if tensor.shape.iter().any(|&size| size != 1) {
            check_shape(&tensor, &expected)?;
        }
        Ok(scale_values(&tensor)?[0])
    }

    fn take(&mut self, name: &str) -> Option<TensorInfo> {
        let tensor = self.left.remove(name)?;
        self.used.push(tensor.clone());
        Some(tensor)
    }
}

fn check_shape(tensor: &TensorInfo, expected: &[usize]) -> Result<(), LoadError> {
    if tensor.shape == expected {
        return Ok(());
    }
    Err(LoadError::WrongShape {
        tensor: tensor.name.clone(),
        shard: tensor.shard.to_string(),
        found: tensor.shape.clone(),
        expected: expected.to_vec(),
    })
}

fn scale_values(tensor: &TensorInfo) -> Result<Vec<f32>, LoadError> {
    if tensor.dtype == Dtype::F8E4m3 {
        return Err(LoadError::WrongDtype {
            tensor: tensor.name.clone(),
            shard: tensor.shard.to_string(),
            found: tensor.dtype.to_string(),
            expected: "F32, F16 or BF16: it is a scale".to_owned(),
        });
    }
    let values = tensor.to_f32();
    // Written so that NaN fails.
    match values.iter().position(|&value| !(value > 0.0 && value.is_finite())) {
        None => Ok(values),
        Some(row_idx) => {
            let value = values[row_idx];
            Err(LoadError::BadScale { tensor: tensor.name.clone(), row_idx, value })
        }
    }
}

/// Groups of projections with one input of which some are quantized and some are not, as a pattern
/// that names one of them would have it, and where. Their input is quantized once, for all of them;
/// vLLM, which fuses them too, refuses the same.
fn split_inputs(
    spec: &ModelSpec,
    quantization: &Quantization,
) -> impl Iterator<Item = (Place, LoadError)> {
    let blocks = spec.blocks.iter().enumerate();
    blocks.flat_map(move |(block_idx, block)| {
        let parameters = block.parameters(block_idx, spec.hidden_size);
        SHARED_INPUTS.iter().filter_map(move |roles| {
            let group = parameters.iter().filter(|parameter| roles.contains(&parameter.role));
            let (quantized, excluded): (Vec<&str>, Vec<&str>) = group
                .map(|parameter| parameter.module.as_str())
                .partition(|module| quantization.scheme_of(module).is_some());
            let (first, other) = (quantized.first()?, excluded.first()?);
            let name = |module: &&str| format!("`{}`", module.rsplit('.').next().unwrap_or(module));
            let all: Vec<String> = quantized.iter().chain(&excluded).map(name).collect();
            let error = LoadError::SplitInput {
                block_idx,
                quantized: (*first).to_owned(),
                excluded: (*other).to_owned(),
                all: all.join(", "),
            };
            Some((place_of(first), error))
        })
    })
}

/// Projections of one input quantize it once: the largest of their factors loses no range.
fn share_input_scales(parameters: &mut [Stored]) {
    for roles in SHARED_INPUTS {
        let largest = parameters
            .iter()
            .filter(|stored| roles.contains(&stored.spec.role))
            .filter_map(|stored| match stored.input {
                InputScale::Static(scale) => Some(scale),
                _ => None,
            })
            .reduce(f32::max);
        for stored in parameters.iter_mut().filter(|stored| roles.contains(&stored.spec.role)) {
            if let (InputScale::Static(scale), Some(largest)) = (&mut stored.input, largest) {
                *scale = largest;
            }
        }
    }
}

/// Either every attention block has scales for its cache, or none has.
fn check_kv_scales(spec: &ModelSpec, blocks: &[StoredBlock]) -> Result<(), LoadError> {
    if blocks.iter().all(|block| block.kv_scales.is_none()) {
        return Ok(());
    }
    for (block_idx, (block, stored)) in spec.blocks.iter().zip(blocks).enumerate() {
        if block.attention().is_some() && stored.kv_scales.is_none() {
            let tensor = format!("model.layers.{block_idx}.self_attn.k_proj.k_scale");
            return Err(LoadError::MissingTensor { tensor, expected: Vec::new() });
        }
    }
    Ok(())
}
