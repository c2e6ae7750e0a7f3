//! From the tensors of an infer request, as either wire gives them, to tensors that fit the
//! model's interface.

use serde_json::Value;

use super::access::array;
use super::error::Refusal;
use super::inputs::Caller;
use super::interface::{self, InputSpec};
use super::problem::Problem;
use super::tensor::{Data, DataType, Tensor, is_data_type, n_values};

/// A tensor as it was sent.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) name: String,
    pub(super) data_type: String,
    pub(super) shape: Vec<u64>,
    pub(super) values: Values,
}

/// Its values.
#[derive(Debug)]
pub(super) enum Values {
    Json(Value),
    Binary(Vec<u8>),
    /// gRPC has typed lists beside bytes.
    Typed(Data),
}

/// Checked tensors of one batch.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) tensors: Vec<Tensor>,
    pub(super) n_rows: usize,
}

/// Checks names, data types, shapes and values.
///
/// # Errors
/// The first thing that is wrong, by name.
pub(super) fn batch(caller: &Caller, given: Vec<Given>, n_max: usize) -> Result<Batch, Refusal> {
    let mut tensors: Vec<Tensor> = Vec::with_capacity(given.len());
    let mut n_rows_each = Vec::with_capacity(given.len());
    for Given { name, data_type, shape, values } in given {
        let refuse = |problem| caller.refuse_input(&name, problem);
        if !is_data_type(&data_type) {
            return Err(refuse(Problem::UnknownType));
        }
        let spec = interface::input(&name).ok_or_else(|| refuse(Problem::UnknownInput))?;
        if tensors.iter().any(|tensor| tensor.name == name) {
            return Err(refuse(Problem::InputTwice));
        }
        if data_type != spec.data_type.name() {
            let expected = spec.data_type.name();
            return Err(refuse(Problem::WrongType { given: data_type, expected }));
        }
        n_rows_each.push(check_shape(spec, &shape, n_max).map_err(refuse)?);
        let data = read(spec.data_type, &shape, values).map_err(refuse)?;
        tensors.push(Tensor { name, shape, data });
    }
    let n_rows = n_rows(caller, &tensors, &n_rows_each)?;
    Ok(Batch { tensors, n_rows })
}

/// Rows of a batch whose tensors have so many each.
///
/// # Errors
/// They differ, or there are none.
pub(super) fn n_rows(
    caller: &Caller,
    tensors: &[Tensor],
    n_rows_each: &[usize],
) -> Result<usize, Refusal> {
    let n_rows = n_rows_each.last().copied().unwrap_or(1);
    // From the last on, as Triton's map of inputs goes.
    let differs = n_rows_each.iter().rposition(|&n| n != n_rows);
    let none = || (n_rows == 0).then(|| tensors.len() - 1);
    match differs.or_else(none) {
        Some(idx) => Err(caller.refuse_input(&tensors[idx].name, Problem::BatchSize)),
        None => Ok(n_rows),
    }
}

/// The batch's size. vLLM's backend has no batches, so its clients leave that size away: then it
/// is one.
fn check_shape(spec: &InputSpec, shape: &[u64], n_max: usize) -> Result<usize, Problem> {
    let fits = |n: u64| spec.n_values.is_none_or(|wanted| wanted == n);
    let (n_batch, n) = match *shape {
        [n] => (1, n),
        [n_batch, n] => (n_batch, n),
        [] => return Err(Problem::NoShape),
        _ => return Err(wrong_shape(spec, shape)),
    };
    if !fits(n) {
        return Err(wrong_shape(spec, shape));
    }
    match usize::try_from(n_batch) {
        Ok(n_batch) if n_batch <= n_max => Ok(n_batch),
        _ => Err(Problem::BatchTooLarge { n_max }),
    }
}

fn wrong_shape(spec: &InputSpec, shape: &[u64]) -> Problem {
    let [dim] = spec.dims();
    let sizes: Vec<String> = shape.iter().map(u64::to_string).collect();
    Problem::Shape { expected: format!("[-1,{dim}]"), given: format!("[{}]", sizes.join(",")) }
}

fn read(data_type: DataType, shape: &[u64], values: Values) -> Result<Data, Problem> {
    let expected = n_values(shape).ok_or(Problem::ValueCount)?;
    let data = match values {
        Values::Binary(bytes) => return data_type.read(&bytes, expected),
        Values::Json(value) => {
            array(&value).map_err(|access| access.of("data"))?;
            data_type.read_json(&value)?
        }
        Values::Typed(data) => data,
    };
    let n = data.len() as u64;
    match data_type {
        _ if n == expected => Ok(data),
        // Triton counts no further than one too many.
        DataType::Bytes => Err(Problem::StringCount { n: n.min(expected + 1), expected }),
        _ => Err(Problem::ValueCount),
    }
}
