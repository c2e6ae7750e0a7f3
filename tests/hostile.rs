//! Files of strangers: a million of them, each wrong in some way, are refused or mean what they
//! say, and nothing panics. `SEED` replays a run.

use std::time::Instant;

use harness::mutation::mutated;
use harness::random::Random;
use server::text::{SpecialTokens, TextModel, TextSources};
use weights::presets::preset;
use weights::synthetic::{SyntheticConfig, SyntheticFormat, write_synthetic};
use weights::{ModelSpec, untrusted};

/// What was accepted of so many, for which each is made from one of `sound`.
fn accepted(n: usize, sound: &[Vec<u8>], accepts: impl Fn(&[u8]) -> bool) -> usize {
    let seed = harness::seed_or(0x5eed);
    println!("SEED={seed}");
    let mut random = Random::new(seed);
    assert!(sound.iter().all(|sound| accepts(sound)), "what they are made from is sound");
    let mut n_accepted = 0;
    for _ in 0..n {
        let sound = &sound[random.below(sound.len())];
        n_accepted += usize::from(accepts(&mutated(&mut random, sound)));
    }
    println!("{n_accepted} of {n} are accepted");
    assert!(n_accepted > n / 1000 && n_accepted < n * 9 / 10, "both happen, seed {seed}");
    n_accepted
}

fn file(header: &str, n_data_bytes: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + n_data_bytes, 0);
    bytes
}

#[test]
fn headers() {
    let sound = [
        file(
            r#"{"__metadata__":{"format":"pt"},
            "a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
            "b":{"dtype":"BF16","shape":[3,1],"data_offsets":[8,14]},
            "c":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[14,16]}}"#,
            16,
        ),
        file(r#"{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#, 4),
        file("{}", 0),
    ];
    accepted(600_000, &sound, |bytes| {
        let Ok(tensors) = untrusted::header(bytes) else { return false };
        let mut end = 0;
        for (begin, next) in tensors {
            assert!(begin <= next && next <= bytes.len() as u64, "outside of the file");
            assert!(end <= begin, "two tensors share bytes");
            end = next;
        }
        true
    });
}

#[test]
fn indexes() {
    let map: Vec<String> = (0..8).map(|i| format!(r#""t{i}":"model-{i}.safetensors""#)).collect();
    let text = format!(r#"{{"metadata":{{"total_size":12}},"weight_map":{{{}}}}}"#, map.join(","));
    accepted(160_000, &[text.into_bytes()], |bytes| untrusted::index(bytes).is_ok());
}

/// A configuration as it is written beside a checkpoint of the tiny model, and what else is.
fn written(file: &str, format: SyntheticFormat) -> Vec<u8> {
    let name = format!("hostile-{format}-{file}-{:?}", std::thread::current().id());
    let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    // What an earlier run left is no reason to fail, nor is what this one leaves.
    let _ = std::fs::remove_dir_all(&dir);
    let spec = preset("tiny").expect("a preset");
    let config = SyntheticConfig { spec, format, n_shards: 1, seed: 1 };
    write_synthetic(&dir, &config, &mut |_, _| {}).expect("it can be written");
    let bytes = std::fs::read(dir.join(file)).expect("it was written");
    let _ = std::fs::remove_dir_all(&dir);
    bytes
}

#[test]
fn configurations() {
    let llama = br#"{"model_type":"llama","hidden_size":576,"vocab_size":49152,"rope_theta":1e5,
        "max_position_embeddings":8192,"num_hidden_layers":30,"num_attention_heads":9,
        "num_key_value_heads":3,"intermediate_size":1536,"rms_norm_eps":1e-5,
        "tie_word_embeddings":true,"hidden_act":"silu","bos_token_id":1,"eos_token_id":2}"#;
    let sound = [llama.to_vec(), written("config.json", SyntheticFormat::Bf16)];
    accepted(100_000, &sound, |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return false };
        let Ok(spec) = ModelSpec::from_config_json(text) else { return false };
        // Whatever is accepted can be reckoned with.
        assert!(spec.n_parameters() > 0 && spec.n_parameters() < 1 << 62);
        for n_ranks in [1, 3, 8] {
            // Most cannot be shared by three.
            let _ = spec.check_sharding(n_ranks);
        }
        true
    });
}

#[test]
fn quantizations() {
    let sound = [written("config.json", SyntheticFormat::Fp8Dynamic)];
    accepted(60_000, &sound, |bytes| untrusted::quantization(bytes).is_ok());
    let sound = [written("hf_quant_config.json", SyntheticFormat::ModelOptFp8)];
    accepted(60_000, &sound, |bytes| untrusted::hf_quant_config(bytes).is_ok());
}

#[test]
fn tokenizers() {
    let tiny = preset("tiny").expect("a preset");
    let sources = TextSources {
        tokenizer: written("tokenizer.json", SyntheticFormat::Bf16),
        tokenizer_config: Some(written("tokenizer_config.json", SyntheticFormat::Bf16)),
        special_tokens_map: Some(b"{\"eos_token\":\"<|eot_id|>\"}".to_vec()),
        generation_config: Some(b"{\"eos_token_id\":[257,258]}".to_vec()),
        chat_template: None,
        vocab_size: tiny.vocab_size,
        eos_tokens: tiny.eos_tokens,
    };
    let parts: [fn(&mut TextSources) -> &mut Vec<u8>; 4] = [
        |sources| &mut sources.tokenizer,
        |sources| sources.tokenizer_config.get_or_insert_default(),
        |sources| sources.special_tokens_map.get_or_insert_default(),
        |sources| sources.generation_config.get_or_insert_default(),
    ];
    for part in parts {
        let sound = part(&mut sources.clone()).clone();
        accepted(5000, &[sound], |bytes| {
            let mut sources = sources.clone();
            *part(&mut sources) = bytes.to_vec();
            let Ok(model) = TextModel::new(&sources) else { return false };
            // What it makes of a text may be an error, but is none of ours.
            let _ = model.encode("hello <|eot_id|> \u{1f600}", SpecialTokens::Add);
            true
        });
    }
}

/// The longest header that the format allows, of what costs a parser most.
#[test]
fn headers_of_a_hundred_megabytes_end_soon() {
    const N: usize = 100_000_000;
    let refused = |what: &str, bytes: Vec<u8>| {
        let began = Instant::now();
        let error = untrusted::header(&bytes).expect_err(what).to_string();
        println!("{what}: {:?}, {}", began.elapsed(), &error[..error.len().min(100)]);
        error
    };
    let mut claims = file("{}", 0);
    claims[..8].copy_from_slice(&(N as u64 + 1).to_le_bytes());
    assert!(refused("a byte too many", claims).contains("limit of 100000000"));
    refused("brackets", file(&"[".repeat(N), 0));
    refused("objects", file(&"{\"a\":".repeat(N / 5), 0));
    let one = r#""a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"#;
    let twice =
        refused("a name again and again", file(&format!("{{{}", one.repeat(N / one.len())), 4));
    assert!(twice.contains("duplicate key `a`"), "{twice}");
    let spaces = format!("{}{{}}", " ".repeat(N - 2));
    assert_eq!(untrusted::header(&file(&spaces, 0)).expect("an empty file"), []);
}
