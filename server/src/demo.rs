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

#[cfg(test)]
mod tests {
    use weights::Checkpoint;

    use super::*;
    use crate::text::{ChatMessage, TemplateOptions, TextModel, Thinking};

    fn model() -> TextModel {
        let checkpoint = Checkpoint::embedded("demo", DEMO_FILES).expect("the demo model opens");
        TextModel::from_checkpoint(&checkpoint).expect("its text files fit it")
    }

    #[test]
    fn every_file_of_the_folder_is_embedded() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/demo");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .expect("the folder is there")
            .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
            .collect();
        files.sort_unstable();
        let embedded: Vec<&str> = DEMO_FILES.iter().map(|(name, _)| *name).collect();
        assert_eq!(files, embedded);
    }

    #[test]
    fn a_question_becomes_the_family_s_prompt() {
        let model = model();
        let options =
            TemplateOptions { thinking: Some(Thinking::Off), ..TemplateOptions::answer() };
        let messages = [ChatMessage::new("user", "What is 27 + 58?")];
        let chat = model.render_chat(&messages, &options).expect("renders");
        assert_eq!(
            chat.text(),
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\ndetailed thinking off\
             <|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWhat is 27 + 58?<|eot_id|>\
             <|start_header_id|>assistant<|end_header_id|>\n\n"
        );
        let tokens = model.encode_chat(&chat).expect("encodes");
        assert_eq!(model.decode(&tokens, false), chat.text());
    }

    #[test]
    fn an_answer_ends_with_its_turn() {
        let model = model();
        let ends: Vec<String> =
            model.stop_tokens().iter().map(|&token| model.token_text(token)).collect();
        assert!(ends.contains(&"<|eot_id|>".to_owned()), "{ends:?}");
    }
}
