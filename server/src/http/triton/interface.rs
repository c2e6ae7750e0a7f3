//! The model's one tensor interface: which inputs it takes under which names, and what it answers
//! with. TensorRT-LLM's ensemble gives the names, data types and shapes; the names of its older
//! versions and of vLLM's backend mean the same inputs.
//!
//! Both wires and the metadata read these tables.

use super::tensor::DataType;

use DataType::{Bool, Bytes, Fp32, Int32, Int64, Uint64};

/// An input as clients may name it.
#[derive(Clone, Copy, Debug)]
pub(super) struct InputSpec {
    /// The name on the wire.
    pub(super) name: &'static str,
    /// The input that it means: the name under which it is announced, and read.
    pub(super) input: &'static str,
    pub(super) data_type: DataType,
    /// Values a request may give; `None` takes any number.
    pub(super) n_values: Option<u64>,
}

/// An output.
#[derive(Clone, Copy, Debug)]
pub(super) struct OutputSpec {
    pub(super) name: &'static str,
    pub(super) data_type: DataType,
    /// Sizes after the batch; -1 is any.
    pub(super) dims: &'static [i64],
}

/// Inputs without which there is no answer.
pub(super) const REQUIRED: [&str; 2] = ["text_input", "max_tokens"];

const fn one(name: &'static str, data_type: DataType) -> InputSpec {
    InputSpec { name, input: name, data_type, n_values: Some(1) }
}

const fn many(name: &'static str, data_type: DataType) -> InputSpec {
    InputSpec { name, input: name, data_type, n_values: None }
}

const fn alias(name: &'static str, input: &'static str, data_type: DataType) -> InputSpec {
    InputSpec { name, input, data_type, n_values: Some(1) }
}

/// Every input under every name. Those that are announced come first.
const INPUTS: [InputSpec; 56] = [
    one("text_input", Bytes),
    one("max_tokens", Int32),
    one("num_return_sequences", Int32),
    many("bad_words", Bytes),
    many("stop_words", Bytes),
    one("exclude_input_in_output", Bool),
    one("end_id", Int32),
    one("pad_id", Int32),
    one("top_k", Int32),
    one("top_p", Fp32),
    one("min_p", Fp32),
    one("temperature", Fp32),
    one("length_penalty", Fp32),
    one("early_stopping", Bool),
    one("repetition_penalty", Fp32),
    one("min_tokens", Int32),
    one("presence_penalty", Fp32),
    one("frequency_penalty", Fp32),
    one("seed", Uint64),
    one("ignore_eos", Bool),
    one("return_log_probs", Bool),
    one("return_context_logits", Bool),
    one("return_generation_logits", Bool),
    one("return_perf_metrics", Bool),
    one("return_finish_reason", Bool),
    one("return_num_input_tokens", Bool),
    one("return_num_output_tokens", Bool),
    one("beam_width", Int32),
    one("stream", Bool),
    one("guided_decoding_guide_type", Bytes),
    one("guided_decoding_guide", Bytes),
    one("sampling_parameters", Bytes),
    alias("streaming", "stream", Bool),
    InputSpec { name: "stop", input: "stop_words", data_type: Bytes, n_values: None },
    alias("random_seed", "seed", Uint64),
    alias("min_length", "min_tokens", Int32),
    alias("return_logprobs", "return_log_probs", Bool),
    alias("sampling_param_max_tokens", "max_tokens", Int32),
    alias("sampling_param_min_tokens", "min_tokens", Int32),
    InputSpec {
        name: "sampling_param_stop",
        input: "stop_words",
        data_type: Bytes,
        n_values: None,
    },
    alias("sampling_param_seed", "seed", Uint64),
    alias("sampling_param_temperature", "temperature", Fp32),
    alias("sampling_param_top_k", "top_k", Int32),
    alias("sampling_param_top_p", "top_p", Fp32),
    alias("sampling_param_min_p", "min_p", Fp32),
    alias("sampling_param_repetition_penalty", "repetition_penalty", Fp32),
    alias("sampling_param_presence_penalty", "presence_penalty", Fp32),
    alias("sampling_param_frequency_penalty", "frequency_penalty", Fp32),
    alias("sampling_param_length_penalty", "length_penalty", Fp32),
    alias("sampling_param_early_stopping", "early_stopping", Bool),
    alias("sampling_param_best_of", "beam_width", Int32),
    alias("sampling_param_n", "num_return_sequences", Int32),
    alias("sampling_param_ignore_eos", "ignore_eos", Bool),
    alias("sampling_param_logprobs", "return_log_probs", Int32),
    alias("sampling_param_end_id", "end_id", Int32),
    alias("sampling_param_pad_id", "pad_id", Int32),
];

/// Every output, in the order of an answer. All but the first come only if they are asked for, by
/// the input that TensorRT-LLM has for it.
pub(super) const OUTPUTS: [OutputSpec; 13] = [
    OutputSpec { name: "text_output", data_type: Bytes, dims: &[-1] },
    OutputSpec { name: "cum_log_probs", data_type: Fp32, dims: &[-1] },
    OutputSpec { name: "output_log_probs", data_type: Fp32, dims: &[-1, -1] },
    OutputSpec { name: "finish_reason", data_type: Bytes, dims: &[-1] },
    OutputSpec { name: "num_input_tokens", data_type: Int32, dims: &[1] },
    OutputSpec { name: "num_output_tokens", data_type: Int32, dims: &[-1] },
    OutputSpec { name: "kv_cache_alloc_new_blocks", data_type: Int32, dims: &[-1] },
    OutputSpec { name: "kv_cache_reused_blocks", data_type: Int32, dims: &[-1] },
    OutputSpec { name: "kv_cache_alloc_total_blocks", data_type: Int32, dims: &[-1] },
    OutputSpec { name: "arrival_time_ns", data_type: Int64, dims: &[-1] },
    OutputSpec { name: "first_scheduled_time_ns", data_type: Int64, dims: &[-1] },
    OutputSpec { name: "first_token_time_ns", data_type: Int64, dims: &[-1] },
    OutputSpec { name: "last_token_time_ns", data_type: Int64, dims: &[-1] },
];

/// The inputs that are announced.
pub(super) fn announced() -> impl Iterator<Item = &'static InputSpec> {
    INPUTS.iter().filter(|spec| spec.name == spec.input)
}

/// The input of a name.
pub(super) fn input(name: &str) -> Option<&'static InputSpec> {
    INPUTS.iter().find(|spec| spec.name == name)
}

/// Whether there is an output of a name.
pub(super) fn is_output(name: &str) -> bool {
    OUTPUTS.iter().any(|spec| spec.name == name)
}

impl InputSpec {
    /// Sizes after the batch; -1 is any.
    pub(super) fn dims(&self) -> [i64; 1] {
        [self.n_values.map_or(-1, |n| n as i64)]
    }

    /// Whether every request must have it.
    pub(super) fn is_required(&self) -> bool {
        REQUIRED.contains(&self.input)
    }
}
