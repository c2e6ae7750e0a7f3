//! A small byte-level tokenizer with Llama 3's special tokens and a template of the family's
//! format, for tests. Its vocabulary has a gap at the end, as real ones do.

use std::sync::{Arc, LazyLock};

use engine::TokenId;
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use super::model::TextModel;
use super::sources::TextSources;
use super::vocabulary::byte_level_alphabet;

/// Entries of the model that the fixture pretends to belong to.
pub(crate) const VOCAB_SIZE: usize = 600;

/// In the order of their ids, which follow the text's tokens.
pub(crate) const SPECIAL_TOKENS: [&str; 6] = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
];

/// Pairs that are merged, in order; `Ġ` is a blank.
const MERGES: [(&str, &str); 8] = [
    ("t", "h"),
    ("th", "e"),
    ("Ġ", "the"),
    ("i", "n"),
    ("in", "k"),
    ("th", "ink"),
    ("ð", "Ł"),
    ("ðŁ", "ĺ"),
];

/// Llama 3's.
const PRE_TOKENIZER: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// Ultra v1's format: a system turn always, earlier reasoning cut, contents trimmed.
pub(crate) const CHAT_TEMPLATE: &str = "\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = 'detailed thinking on' %}
{%- endif %}
{%- if tools is not none %}
    {%- set system = system + '\\n<AVAILABLE_TOOLS>' + tools | tojson + '</AVAILABLE_TOOLS>' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' + system + '<|eot_id|>' }}
{%- for message in messages %}
    {%- if message['role'] not in ['user', 'assistant', 'tool'] %}
        {{- raise_exception('no role ' + message['role'] + ' here') }}
    {%- endif %}
    {%- if message['role'] == 'assistant' and '</think>' in message['content'] %}
        {%- set content = message['content'].split('</think>')[-1].lstrip() %}
    {%- else %}
        {%- set content = message['content'] %}
    {%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
";

/// The tokenizer.json.
pub(crate) fn tokenizer_layout() -> Value {
    let mut vocabulary = serde_json::Map::new();
    let mut alphabet: Vec<(u8, char)> =
        byte_level_alphabet().into_iter().map(|(character, byte)| (byte, character)).collect();
    alphabet.sort_unstable();
    for (byte, character) in alphabet {
        vocabulary.insert(character.to_string(), json!(byte));
    }
    for (left, right) in MERGES {
        let id = vocabulary.len();
        vocabulary.insert(format!("{left}{right}"), json!(id));
    }
    let n_text = vocabulary.len();
    let added: Vec<Value> = SPECIAL_TOKENS
        .iter()
        .enumerate()
        .map(|(idx, token)| {
            json!({
                "id": n_text + idx, "content": token, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true,
            })
        })
        .collect();
    let bos = SPECIAL_TOKENS[0];
    json!({
        "version": "1.0",
        // As the published FP8 checkpoint has it.
        "truncation": {
            "direction": "Right", "max_length": 512, "strategy": "LongestFirst", "stride": 0,
        },
        "padding": {
            "strategy": {"Fixed": 512}, "direction": "Left", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "!",
        },
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": PRE_TOKENIZER}, "behavior": "Isolated",
             "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
             "use_regex": false},
        ]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": bos, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {bos: {"id": bos, "ids": [n_text], "tokens": [bos]}},
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
                    "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": true, "vocab": vocabulary,
            "merges": MERGES.iter().map(|(left, right)| json!([left, right])).collect::<Vec<_>>(),
        },
    })
}

/// The tokenizer as the crate reads it, truncation and all.
pub(crate) fn tokenizer() -> Tokenizer {
    Tokenizer::from_bytes(tokenizer_layout().to_string()).expect("the fixture parses")
}

/// All files.
pub(crate) fn sources() -> TextSources {
    let eot = 256 + MERGES.len() + 4;
    TextSources {
        tokenizer: tokenizer_layout().to_string().into_bytes(),
        tokenizer_config: Some(config(CHAT_TEMPLATE).to_string().into_bytes()),
        special_tokens_map: None,
        generation_config: Some(json!({"eos_token_id": [eot - 3, eot]}).to_string().into_bytes()),
        chat_template: None,
        vocab_size: VOCAB_SIZE,
        eos_tokens: vec![eot as u32],
    }
}

/// A `tokenizer_config.json` with this template.
pub(crate) fn config(template: &str) -> Value {
    json!({
        "bos_token": {"content": "<|begin_of_text|>", "lstrip": false},
        "eos_token": "<|eot_id|>",
        "chat_template": template,
    })
}

/// The fixture, loaded once.
pub(crate) fn model() -> Arc<TextModel> {
    static MODEL: LazyLock<Arc<TextModel>> =
        LazyLock::new(|| Arc::new(TextModel::new(&sources()).expect("the fixture loads")));
    Arc::clone(&MODEL)
}

/// One token a byte: the first 256 ids are the bytes.
pub(crate) fn bytes_as_tokens(model: &TextModel, bytes: &[u8]) -> Vec<TokenId> {
    let tokens: Vec<TokenId> = bytes.iter().map(|&byte| TokenId(u32::from(byte))).collect();
    let back: Vec<u8> =
        tokens.iter().flat_map(|&token| model.token_bytes(token)).copied().collect();
    assert_eq!(back, bytes);
    tokens
}

/// A special token by its text.
pub(crate) fn special(model: &TextModel, text: &str) -> TokenId {
    let tokens = model.encode(text, super::SpecialTokens::Parse).expect("encodes");
    assert!(tokens.len() == 1 && model.is_special(tokens[0]), "{text} is {tokens:?}");
    tokens[0]
}

/// What the tokenizers crate itself decodes. Ids that it does not have are nothing to it too.
pub(crate) fn reference_decode(tokens: &[TokenId], skips_special: bool) -> String {
    static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(tokenizer);
    let ids: Vec<u32> = tokens.iter().map(|token| token.0).collect();
    TOKENIZER.decode(&ids, skips_special).expect("decodes")
}
