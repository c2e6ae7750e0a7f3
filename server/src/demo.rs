//! The model that is part of the program: a small trained reasoner with the family's block
//! variants, its chat format and its weight format. `tests/demo-model` says how it was made.

/// Its files, as they lie in `server/demo`.
pub const DEMO_FILES: &[(&str, &[u8])] = &[
    ("config.json", include_bytes!("../demo/config.json")),
    ("generation_config.json", include_bytes!("../demo/generation_config.json")),
    ("hf_quant_config.json", include_bytes!("../demo/hf_quant_config.json")),
    (
        "model-00001-of-00002.safetensors",
        include_bytes!("../demo/model-00001-of-00002.safetensors"),
    ),
    (
        "model-00002-of-00002.safetensors",
        include_bytes!("../demo/model-00002-of-00002.safetensors"),
    ),
    ("model.safetensors.index.json", include_bytes!("../demo/model.safetensors.index.json")),
    ("special_tokens_map.json", include_bytes!("../demo/special_tokens_map.json")),
    ("tokenizer.json", include_bytes!("../demo/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../demo/tokenizer_config.json")),
];
