//! A byte-level tokenizer with a Llama-3 chat template, enough to serve a synthetic model.
//!
//! Every id has a token: the model's own special ids, 256 bytes, two header marks, and then words
//! like ` w300` that text is never split into but that make a random model's output visible.

use serde_json::{Map, Value, json};

use super::config_json::pretty;
use crate::spec::ModelSpec;

/// Vocabulary below which no tokenizer is written: bytes, marks and special tokens need room.
const VOCAB_MIN: usize = 300;

const BEGIN: &str = "<|begin_of_text|>";
const END: &str = "<|end_of_text|>";
const TURN_END: &str = "<|eot_id|>";
const HEADER_BEGIN: &str = "<|start_header_id|>";
const HEADER_END: &str = "<|end_header_id|>";

const CHAT_TEMPLATE: &str = "{{- bos_token }}\
{%- for message in messages %}\
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}\
{{- message['content'] | trim }}\
{{- '<|eot_id|>' }}\
{%- endfor %}\
{%- if add_generation_prompt %}\
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\
{%- endif %}";

/// Names and texts of the files; none where the vocabulary is too small.
pub(super) fn files(spec: &ModelSpec) -> Vec<(&'static str, String)> {
    if spec.vocab_size < VOCAB_MIN {
        return Vec::new();
    }
    let special = special_tokens(spec);
    vec![
        ("tokenizer.json", tokenizer(spec, &special)),
        ("tokenizer_config.json", tokenizer_config(spec)),
        ("generation_config.json", generation_config(spec)),
    ]
}

/// Special tokens with their ids, by id: those that the model names, then the missing ones at the
/// first ids after the bytes.
fn special_tokens(spec: &ModelSpec) -> Vec<(u32, String)> {
    let mut special: Vec<(u32, String)> = Vec::new();
    let mut add = |id: u32, name: String| {
        if special.iter().all(|(taken, other)| *taken != id && *other != name) {
            special.push((id, name));
        }
    };
    if let Some(bos) = spec.bos_token {
        add(bos, BEGIN.to_owned());
    }
    let n_eos = spec.eos_tokens.len();
    for (i, &id) in spec.eos_tokens.iter().enumerate() {
        let name = match i {
            // Llama 3's order: end of text, end of message, end of turn.
            _ if i + 1 == n_eos => TURN_END.to_owned(),
            0 => END.to_owned(),
            1 => "<|eom_id|>".to_owned(),
            _ => format!("<|reserved_special_token_{i}|>"),
        };
        add(id, name);
    }
    for name in [BEGIN, TURN_END, HEADER_BEGIN, HEADER_END] {
        let is_taken = |id: &u32| special.iter().any(|(taken, _)| taken == id);
        let free = (256..).find(|id| !is_taken(id)).expect("a vocabulary has finitely many ids");
        if special.iter().all(|(_, other)| other != name) {
            special.push((free, name.to_owned()));
        }
    }
    special.sort_unstable();
    special
}

fn tokenizer(spec: &ModelSpec, special: &[(u32, String)]) -> String {
    let mut vocab = Map::new();
    for (id, name) in special {
        vocab.insert(name.clone(), (*id).into());
    }
    let is_special = |id: &u32| special.binary_search_by_key(id, |(id, _)| *id).is_ok();
    let free = (0..spec.vocab_size as u32).filter(|id| !is_special(id));
    for (i, id) in free.enumerate() {
        let token = match u8::try_from(i) {
            Ok(byte) => byte_char(byte).to_string(),
            // The mark is the space's.
            Err(_) => format!("{}w{id}", byte_char(b' ')),
        };
        vocab.insert(token, id.into());
    }
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
    });
    let added: Vec<Value> = special.iter().map(|(id, name)| added_token(*id, name)).collect();
    let bos = special.iter().find(|(_, name)| name == BEGIN).map(|(id, _)| *id);
    let root = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                { "SpecialToken": { "id": BEGIN, "type_id": 0 } },
                { "Sequence": { "id": "A", "type_id": 0 } },
            ],
            "pair": [
                { "SpecialToken": { "id": BEGIN, "type_id": 0 } },
                { "Sequence": { "id": "A", "type_id": 0 } },
                { "Sequence": { "id": "B", "type_id": 1 } },
            ],
            "special_tokens": { BEGIN: { "id": BEGIN, "ids": [bos], "tokens": [BEGIN] } },
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
            "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": [],
        },
    });
    format!("{root}\n")
}

fn added_token(id: u32, name: &str) -> Value {
    json!({
        "id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true,
    })
}

fn tokenizer_config(spec: &ModelSpec) -> String {
    pretty(&json!({
        "bos_token": BEGIN,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": false,
        "eos_token": TURN_END,
        "model_max_length": spec.n_positions_max,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }))
}

fn generation_config(spec: &ModelSpec) -> String {
    pretty(&json!({
        "bos_token_id": spec.bos_token,
        "do_sample": true,
        "eos_token_id": spec.eos_tokens,
        "temperature": 0.6,
        "top_p": 0.95,
    }))
}

/// GPT-2's printable character for a byte: itself if it is one, else the next from U+0100 on.
fn byte_char(byte: u8) -> char {
    let is_printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if is_printable(byte) {
        return char::from(byte);
    }
    let n_before = (0..byte).filter(|&other| !is_printable(other)).count() as u32;
    char::from_u32(0x100 + n_before).expect("below U+0200 all are characters")
}
