//! Infer messages of strangers: a million of them, most wrong somewhere, are read or refused, and
//! take no more memory than is in proportion to their bytes.

use std::collections::HashMap;

use prost::Message;

use super::super::check::{self, Batch, Given, Values};
use super::super::hostile::{below, in_proportion, n_reserved, next};
use super::super::tensor::{Tensor, n_values};
use super::convert::{self, Asked};
use super::protocol::infer_parameter::ParameterChoice;
use super::protocol::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use super::protocol::{InferParameter, InferTensorContents, ModelInferRequest};

/// Bytes of memory for each of a message's, at most: an empty string of a list is two bytes on the
/// wire and 24 in memory, and a list that grows has twice the room that it needs.
const N_RESERVED_MAX: usize = 32;

fn input(name: &str, data_type: &str, shape: &[i64]) -> InferInputTensor {
    InferInputTensor {
        name: name.to_owned(),
        datatype: data_type.to_owned(),
        shape: shape.to_vec(),
        ..InferInputTensor::default()
    }
}

/// Messages that are right, values behind them and in lists of their own; and two that ask for
/// too much: an input twice, and a batch of more rows than there may be.
fn messages() -> Vec<Vec<u8>> {
    let parameter = |choice| InferParameter { parameter_choice: Some(choice) };
    let raw = ModelInferRequest {
        model_name: "demo".to_owned(),
        id: "a".to_owned(),
        parameters: HashMap::from([
            ("priority".to_owned(), parameter(ParameterChoice::Int64Param(1))),
            ("timeout".to_owned(), parameter(ParameterChoice::Uint64Param(7))),
        ]),
        inputs: vec![input("text_input", "BYTES", &[1, 1]), input("max_tokens", "INT32", &[1, 1])],
        outputs: vec![InferRequestedOutputTensor {
            name: "text_output".to_owned(),
            ..InferRequestedOutputTensor::default()
        }],
        raw_input_contents: vec![b"\x01\0\0\0a".to_vec().into(), vec![7, 0, 0, 0].into()],
        ..ModelInferRequest::default()
    };
    let with = |name, data_type, contents| InferInputTensor {
        contents: Some(contents),
        ..input(name, data_type, &[2, 1])
    };
    let none = InferTensorContents::default;
    let texts = vec![b"a".to_vec().into(), b"b".to_vec().into()];
    let typed = ModelInferRequest {
        model_name: "demo".to_owned(),
        inputs: vec![
            with("text_input", "BYTES", InferTensorContents { bytes_contents: texts, ..none() }),
            with("max_tokens", "INT32", InferTensorContents { int_contents: vec![1, 2], ..none() }),
            with(
                "temperature",
                "FP32",
                InferTensorContents { fp32_contents: vec![0.0, 0.5], ..none() },
            ),
            with("seed", "UINT64", InferTensorContents { uint64_contents: vec![3, 4], ..none() }),
            with(
                "stream",
                "BOOL",
                InferTensorContents { bool_contents: vec![true, false], ..none() },
            ),
        ],
        ..ModelInferRequest::default()
    };
    let (mut twice, mut large) = (raw.clone(), raw.clone());
    twice.inputs.push(input("text_input", "BYTES", &[1, 1]));
    twice.raw_input_contents.push(b"\x01\0\0\0b".to_vec().into());
    large.inputs = vec![input("max_tokens", "INT32", &[17, 1])];
    large.raw_input_contents = vec![vec![0; 4 * 17].into()];
    [raw, typed, twice, large].map(|message| message.encode_to_vec()).into()
}

/// Up to three changes: a bit, a piece that is gone or doubled, a number that is enormous, an end.
fn break_some(bytes: &mut Vec<u8>, state: &mut u64) {
    for _ in 0..below(state, 4) {
        let at = below(state, bytes.len());
        let end = (at + 1 + below(state, 12)).min(bytes.len());
        match below(state, 6) {
            0 => bytes[at] ^= 1 << below(state, 8),
            1 => bytes[at] = next(state) as u8,
            2 if end - at < bytes.len() => drop(bytes.drain(at..end)),
            3 => {
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            // The largest number that a varint holds.
            4 => drop(bytes.splice(at..=at, [[0xff; 9].as_slice(), &[1]].concat())),
            _ => bytes.truncate(at + 1),
        }
    }
}

fn n_held(given: &[Given]) -> usize {
    let of = |given: &Given| match &given.values {
        Values::Binary(bytes) => bytes.capacity(),
        Values::Json(value) => unreachable!("no message holds {value}"),
        Values::Typed(data) => n_reserved(data),
    };
    given.iter().map(|one| one.name.capacity() + 8 * one.shape.capacity() + of(one)).sum()
}

fn holds_values(contents: &InferTensorContents) -> bool {
    *contents != InferTensorContents::default()
}

/// What passes as sound has as many values as its shape says, and each input once.
fn expect_whole(tensors: &[Tensor], case: u64) {
    for (idx, tensor) in tensors.iter().enumerate() {
        let n = n_values(&tensor.shape);
        assert_eq!(n, Some(tensor.data.len() as u64), "case {case}: {tensor:?}");
        let is_first = tensors[..idx].iter().all(|other| other.name != tensor.name);
        assert!(is_first, "case {case}: {} twice", tensor.name);
    }
}

/// What a message that can be read holds, if that is sound.
fn read(bytes: &[u8], case: u64) -> Option<Option<Batch>> {
    let message = ModelInferRequest::decode(bytes).ok()?;
    let n_inputs = message.inputs.len();
    let is_ambiguous = !message.raw_input_contents.is_empty()
        && message.inputs.iter().filter_map(|input| input.contents.as_ref()).any(holds_values);
    let Asked { caller, given, .. } = convert::read(message).ok()?;
    assert_eq!(given.len(), n_inputs, "case {case}");
    assert!(!is_ambiguous, "case {case}: values in two places, and which count? {given:?}");
    assert!(n_held(&given) <= N_RESERVED_MAX * bytes.len(), "case {case}: {given:?}");
    Some(check::batch(&caller, given, 16).ok())
}

#[test]
fn a_million_hostile_messages_are_read_or_refused() {
    let messages = messages();
    let mut state = 20_261_122;
    let (mut n_read, mut n_checked, mut n_refused) = (0, 0, 0);
    for case in 0..1_000_000_u64 {
        let mut bytes = messages[below(&mut state, messages.len())].clone();
        break_some(&mut bytes, &mut state);
        let Some(checked) = in_proportion(bytes.len(), case, || read(&bytes, case)) else {
            n_refused += 1;
            continue;
        };
        n_read += 1;
        if let Some(batch) = checked {
            n_checked += 1;
            assert!((1..=16).contains(&batch.n_rows), "case {case}");
            expect_whole(&batch.tensors, case);
        }
    }
    let told = format!("{n_read} read, {n_checked} of them sound, {n_refused} refused");
    assert!(n_read > 100_000 && n_checked > 100_000 && n_refused > 100_000, "{told}");
}
