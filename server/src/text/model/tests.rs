//! Encoding, decoding, and every way in which a checkpoint's text files can be wrong.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::fixture;
use super::*;

fn texts(model: &TextModel, tokens: &[TokenId]) -> Vec<String> {
    tokens.iter().map(|&token| model.token_text(token)).collect()
}

fn encode(text: &str, special: SpecialTokens) -> Vec<String> {
    let model = fixture::model();
    texts(&model, &model.encode(text, special).expect("encodes"))
}

fn load(change: impl FnOnce(&mut TextSources)) -> Result<TextModel, TextLoadError> {
    let mut sources = fixture::sources();
    change(&mut sources);
    TextModel::new(&sources)
}

fn load_layout(change: impl FnOnce(&mut Value)) -> Result<TextModel, TextLoadError> {
    let mut layout = fixture::tokenizer_layout();
    change(&mut layout);
    load(|sources| sources.tokenizer = layout.to_string().into_bytes())
}

fn refusal(model: Result<TextModel, TextLoadError>) -> String {
    model.err().expect("refused").to_string()
}

fn json_bytes(value: &Value) -> Option<Vec<u8>> {
    Some(value.to_string().into_bytes())
}

#[test]
fn special_tokens_are_added_parsed_or_left_as_text() {
    let text = "the<|eot_id|>";
    assert_eq!(encode(text, SpecialTokens::Parse), ["the", "<|eot_id|>"]);
    assert_eq!(encode(text, SpecialTokens::Add), ["<|begin_of_text|>", "the", "<|eot_id|>"]);
    let literal = encode(text, SpecialTokens::Literal);
    assert_eq!(literal.concat(), text);
    assert_eq!(literal.len(), 11, "{literal:?}");
}

#[test]
fn a_beginning_of_sequence_that_the_text_brings_is_not_doubled() {
    let tokens = encode("<|begin_of_text|>the", SpecialTokens::Add);
    assert_eq!(tokens, ["<|begin_of_text|>", "the"]);
    assert_eq!(encode("", SpecialTokens::Add), ["<|begin_of_text|>"]);
    assert_eq!(encode("", SpecialTokens::Parse), [""; 0]);
}

#[test]
fn truncation_and_padding_of_the_file_are_not_obeyed() {
    assert_eq!(encode("a", SpecialTokens::Parse).len(), 1, "padded");
    let long = "a b ".repeat(400);
    let model = fixture::model();
    let tokens = model.encode(&long, SpecialTokens::Parse).expect("encodes");
    assert_eq!(model.decode(&tokens, true), long, "truncated");
}

#[test]
fn long_and_monotonous_texts_are_encoded_whole() {
    let model = fixture::model();
    for text in [" ".repeat(200_000), "a".repeat(200_000), "<|".repeat(50_000)] {
        let tokens = model.encode(&text, SpecialTokens::Parse).expect("encodes");
        assert_eq!(model.decode(&tokens, true), text);
    }
}

#[test]
fn stop_tokens_come_from_every_file_and_the_template() {
    let model = fixture::model();
    assert_eq!(texts(&model, model.stop_tokens()), ["<|end_of_text|>", "<|eot_id|>"]);
    let from_template = load(|sources| {
        sources.eos_tokens.clear();
        sources.generation_config = None;
        let mut config = fixture::config(fixture::CHAT_TEMPLATE);
        config["eos_token"] = Value::Null;
        sources.tokenizer_config = json_bytes(&config);
    })
    .expect("loads");
    assert_eq!(texts(&from_template, from_template.stop_tokens()), ["<|eot_id|>"]);
}

#[test]
fn the_special_tokens_map_stands_in_for_the_config() {
    let model = load(|sources| {
        sources.tokenizer_config = json_bytes(&json!({"chat_template": "{{ bos_token }}"}));
        sources.special_tokens_map =
            json_bytes(&json!({"bos_token": "<|begin_of_text|>", "eos_token": "<|python_tag|>"}));
    })
    .expect("loads");
    let chat = model.render_chat(&[], &TemplateOptions::answer()).expect("renders");
    assert_eq!(chat.text(), "<|begin_of_text|>");
    assert!(texts(&model, model.stop_tokens()).contains(&"<|python_tag|>".to_owned()));
}

#[test]
fn a_missing_token_is_named_with_what_needs_it() {
    let python_tag = 256 + 8 + 5;
    let message = refusal(load(|sources| {
        let mut layout = fixture::tokenizer_layout();
        layout["added_tokens"].as_array_mut().expect("a list").pop();
        sources.tokenizer = layout.to_string().into_bytes();
        sources.eos_tokens = vec![python_tag];
    }));
    assert!(message.contains("id 269, which eos_token_id of config.json"), "{message}");

    let message =
        refusal(load_layout(|layout| layout["added_tokens"][4]["content"] = "<x>".into()));
    assert!(message.contains("<|eot_id|>, which eos_token of tokenizer_config.json"), "{message}");

    let message = refusal(load(|sources| {
        let template = "<|start_header_id|>{{ '<|im_start|>' }}";
        sources.tokenizer_config = json_bytes(&fixture::config(template));
    }));
    assert!(message.contains("no token <|im_start|>, which the chat template"), "{message}");

    let message = refusal(load(|sources| {
        let mut config = fixture::config("{{ bos_token }}");
        config["bos_token"] = "<s>".into();
        sources.tokenizer_config = json_bytes(&config);
    }));
    assert!(message.contains("no token <s>, which the chat template"), "{message}");

    let message = refusal(load(|sources| {
        let mut config = fixture::config("");
        config["eos_token"] = "</s>".into();
        sources.tokenizer_config = json_bytes(&config);
    }));
    assert!(message.contains("</s>, which eos_token of tokenizer_config.json"), "{message}");

    let message = refusal(load(|sources| {
        sources.eos_tokens.clear();
        sources.generation_config = None;
        sources.tokenizer_config = None;
    }));
    assert!(message.contains("add eos_token_id to config.json"), "{message}");
}

#[test]
fn a_token_beyond_the_model_is_refused_and_a_small_vocabulary_is_fine() {
    let n_tokens = 256 + 8 + 6;
    assert!(load(|sources| sources.vocab_size = n_tokens).is_ok());
    let message = refusal(load(|sources| sources.vocab_size = n_tokens - 1));
    assert!(message.contains("\"<|python_tag|>\" the id 269"), "{message}");
    assert!(message.contains("vocab_size 269"), "{message}");
}

#[test]
fn special_tokens_that_the_crate_would_renumber_are_refused() {
    let message = refusal(load_layout(|layout| {
        layout["added_tokens"].as_array_mut().expect("a list").remove(3);
    }));
    assert!(message.contains("\"<|eot_id|>\" the id 268"), "{message}");
    assert!(message.contains("would number it 267"), "{message}");
}

#[test]
fn malformed_files_are_named() {
    let message = refusal(load(|sources| sources.tokenizer = b"{".to_vec()));
    assert!(message.starts_with("tokenizer.json cannot be parsed"), "{message}");
    let message = refusal(load(|sources| sources.tokenizer_config = Some(b"[]x".to_vec())));
    assert!(message.starts_with("tokenizer_config.json cannot be parsed"), "{message}");
    let message = refusal(load(|sources| sources.generation_config = Some(b"{\"a\"".to_vec())));
    assert!(message.starts_with("generation_config.json cannot be parsed"), "{message}");
    let message = refusal(load(|sources| sources.chat_template = Some(b"\xFF".to_vec())));
    assert!(message.starts_with("chat_template.jinja cannot be parsed"), "{message}");
    let message = refusal(load(|sources| sources.chat_template = Some(b"{% if %}".to_vec())));
    assert!(message.starts_with("the chat template cannot be parsed"), "{message}");
    let message = refusal(load_layout(|layout| layout["decoder"] = Value::Null));
    assert!(message.contains("the decoder none"), "{message}");
}

proptest! {
    #[test]
    fn any_text_comes_back_from_its_tokens(text in "(\\PC|the|<\\|eot_id\\|>|[ \n\t]){0,40}") {
        let model = fixture::model();
        for special in [SpecialTokens::Literal, SpecialTokens::Parse] {
            let tokens = model.encode(&text, special).expect("encodes");
            prop_assert_eq!(&model.decode(&tokens, false), &text);
        }
    }

    #[test]
    fn parsing_special_tokens_is_what_the_tokenizers_crate_does(
        text in "(the|think|[a-c 😀.\n]|<\\|eot_id\\|>|<\\|){0,30}",
    ) {
        let mut reference = fixture::tokenizer();
        reference.with_truncation(None).expect("no truncation");
        reference.with_padding(None);
        let expected = reference.encode(text.as_str(), true).expect("encodes");
        let tokens = fixture::model().encode(&text, SpecialTokens::Add).expect("encodes");
        let ids: Vec<u32> = tokens.into_iter().map(|token| token.0).collect();
        prop_assert_eq!(ids, expected.get_ids());
    }
}
