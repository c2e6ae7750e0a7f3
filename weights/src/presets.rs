//! Models by name: two small ones for tests and benchmarks, and the published ones.
//!
//! Published block lists are written in a compact notation: `16/5376` is attention with 16 query
//! heads to a key/value head and a SwiGLU of width 5376; `-` is an absent sub-block, `linear` a
//! linear replacement, `2w8` a window of 8 tokens; `4*` repeats.

use crate::spec::{AttentionSpec, BlockSpec, FfnSpec, MixerSpec, ModelSpec, RopeScaling, RopeSpec};

/// The names that [`preset`] knows.
pub fn preset_names() -> impl Iterator<Item = &'static str> {
    PRESETS.iter().map(|preset| preset.name)
}

/// The model of that name.
///
/// - `tiny`: 223,552 parameters; all four combinations of sub-blocks, two group sizes, both
///   linear replacements, a window, and a vocabulary that two ranks cannot share evenly. Eight
///   ranks can share it.
/// - `bench-0.6b`: 606.1 million parameters (67.1 each in embedding and head, 390.1 in FFNs, 81.8
///   in attention); two group sizes, five FFN widths, two empty blocks, one block without FFN and
///   two without attention.
/// - `ultra-253b`, `super-49b`, `nano-8b`: NVIDIA's Llama-Nemotron models as published.
pub fn preset(name: &str) -> Option<ModelSpec> {
    PRESETS.iter().find(|preset| preset.name == name).map(Preset::expand)
}

struct Preset {
    name: &'static str,
    hidden_size: usize,
    vocab_size: usize,
    n_positions_max: usize,
    n_q_heads: usize,
    head_dim: usize,
    rope: RopeSpec,
    bos_token: u32,
    eos_tokens: &'static [u32],
    blocks: &'static str,
}

const PRESETS: [Preset; 5] = [
    Preset {
        name: "tiny",
        hidden_size: 64,
        vocab_size: 301,
        n_positions_max: 512,
        n_q_heads: 8,
        head_dim: 16,
        rope: llama3(10_000.0, 4.0, 128),
        bos_token: 256,
        eos_tokens: SMALL_EOS,
        blocks: "2/96 -/160 -/- 4/- linear/64 2w8/linear -/- 4/128",
    },
    Preset {
        name: "bench-0.6b",
        hidden_size: 2048,
        vocab_size: 32_768,
        n_positions_max: 8192,
        n_q_heads: 32,
        head_dim: 64,
        rope: llama3(500_000.0, 8.0, 2048),
        bos_token: 256,
        eos_tokens: SMALL_EOS,
        blocks: "4/5632 4/8192 -/- 8/5632 -/16384 4/- 4/8192 -/- -/5632 8/6144 4/2048 4/5632",
    },
    Preset {
        name: "ultra-253b",
        hidden_size: 16_384,
        vocab_size: 128_256,
        n_positions_max: 131_072,
        n_q_heads: 128,
        head_dim: 128,
        rope: llama3(500_000.0, 16.0, 8192),
        bos_token: 128_000,
        eos_tokens: LLAMA3_EOS,
        blocks: "16/5376 16/10752 6*16/16128 16/21504 4*-/- 3*16/21504 2*16/53248 6*-/- \
                 3*16/53248 5*-/- 3*16/53248 16/26624 3*-/- 3*16/21504 -/21504 16/53248 -/53248 \
                 5*-/- 4*16/53248 5*-/- 4*16/53248 5*-/- 4*16/53248 5*-/- 4*16/53248 5*-/- \
                 16/53248 3*16/37376 2*-/- 16/32000 3*16/26624 2*-/26624 16/26624 -/- 7*-/26624 \
                 16/26624 5*-/- 16/32000 16/53248 -/53248 16/53248 8*-/- -/399360 8*-/- -/425984 \
                 8*-/- -/343040 5*-/- -/301056 -/21504 16/21504 16/26624 -/- 2*16/26624 16/37376 \
                 4*16/53248 16/26624",
    },
    Preset {
        name: "super-49b",
        hidden_size: 8192,
        vocab_size: 128_256,
        n_positions_max: 131_072,
        n_q_heads: 64,
        head_dim: 128,
        rope: llama3(500_000.0, 8.0, 8192),
        bos_token: 128_000,
        eos_tokens: LLAMA3_EOS,
        blocks: "8/14336 5*8/28672 2*-/14336 3*8/28672 -/17920 30*8/28672 -/7168 2*-/14336 \
                 -/7168 -/28672 -/7168 -/14336 3*-/7168 8/28672 -/7168 2*-/5632 -/7168 3*-/5632 \
                 2*-/7168 2*-/2816 2*-/5632 2*-/2816 -/5632 2*-/2816 9*8/28672",
    },
    Preset {
        name: "nano-8b",
        hidden_size: 4096,
        vocab_size: 128_256,
        n_positions_max: 131_072,
        n_q_heads: 32,
        head_dim: 128,
        rope: llama3(500_000.0, 8.0, 8192),
        bos_token: 128_000,
        eos_tokens: LLAMA3_EOS,
        blocks: "32*4/14336",
    },
];

const SMALL_EOS: &[u32] = &[257, 258];
const LLAMA3_EOS: &[u32] = &[128_001, 128_008, 128_009];

const fn llama3(theta: f64, factor: f64, n_positions_original: usize) -> RopeSpec {
    let (low_freq_factor, high_freq_factor) = (1.0, 4.0);
    let scaling =
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, n_positions_original };
    RopeSpec { theta, scaling }
}

impl Preset {
    fn expand(&self) -> ModelSpec {
        let mut blocks = Vec::new();
        for entry in self.blocks.split_whitespace() {
            let (n, block) = entry.split_once('*').unwrap_or(("1", entry));
            blocks.extend(vec![self.block(block); number(n)]);
        }
        ModelSpec {
            hidden_size: self.hidden_size,
            vocab_size: self.vocab_size,
            n_positions_max: self.n_positions_max,
            norm_eps: 1e-5,
            rope: self.rope.clone(),
            ties_embeddings: false,
            bos_token: Some(self.bos_token),
            eos_tokens: self.eos_tokens.to_vec(),
            blocks,
        }
    }

    fn block(&self, notation: &str) -> BlockSpec {
        let (mixer, ffn) = notation.split_once('/').expect("a preset's block has two halves");
        BlockSpec {
            mixer: match mixer {
                "-" => None,
                "linear" => Some(MixerSpec::Linear),
                _ => Some(MixerSpec::Attention(self.attention(mixer))),
            },
            ffn: match ffn {
                "-" => None,
                "linear" => Some(FfnSpec::Linear),
                width => Some(FfnSpec::SwiGlu { width: number(width) }),
            },
        }
    }

    fn attention(&self, notation: &str) -> AttentionSpec {
        let (group, window) = match notation.split_once('w') {
            Some((group, window)) => (group, Some(number(window))),
            None => (notation, None),
        };
        AttentionSpec {
            n_q_heads: self.n_q_heads,
            n_kv_heads: self.n_q_heads / number(group),
            head_dim: self.head_dim,
            window,
        }
    }
}

fn number(digits: &str) -> usize {
    digits.parse().expect("a preset's notation has numbers where they belong")
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::CacheSpec;
    use crate::parameters::Role;

    fn n_linear(spec: &ModelSpec) -> u64 {
        let in_block = |role: Role| role.is_projection() && role != Role::Head;
        let parameters = spec.parameters();
        parameters.iter().filter(|p| in_block(p.role)).map(|p| p.n_elements()).sum()
    }

    fn kv_elements(spec: &ModelSpec, n_ranks: usize) -> usize {
        let elements = |block: &BlockSpec| match block.cache(n_ranks) {
            CacheSpec::None => 0,
            CacheSpec::Full { n_elements_per_token } => n_elements_per_token,
            CacheSpec::Window { n_elements_per_token, .. } => n_elements_per_token,
        };
        spec.blocks.iter().map(elements).sum()
    }

    fn count(spec: &ModelSpec, has_mixer: bool, has_ffn: bool) -> usize {
        let matches = |b: &&BlockSpec| (b.mixer.is_some(), b.ffn.is_some()) == (has_mixer, has_ffn);
        spec.blocks.iter().filter(matches).count()
    }

    /// SHA-256 of the block list, a line a block: query heads to a key/value head or `-`, a slash,
    /// the FFN's width or `-`.
    fn digest(spec: &ModelSpec) -> String {
        let mut hash = Sha256::new();
        for block in &spec.blocks {
            let mixer = block.attention().map(|a| (a.n_q_heads / a.n_kv_heads).to_string());
            let ffn = match block.ffn {
                Some(FfnSpec::SwiGlu { width }) => Some(width.to_string()),
                _ => None,
            };
            let [mixer, ffn] = [mixer, ffn].map(|half| half.unwrap_or("-".to_owned()));
            hash.update(format!("{mixer}/{ffn}\n"));
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Digests of the block lists that `config.json` of the published models describes, worked out
    /// from those files by a program that shares nothing with this one; widths follow from
    /// `ffn_mult` as the published `modeling_decilm.py` has it.
    #[test]
    fn block_lists_are_the_published_ones() {
        for (name, hidden_size, n_q_heads, factor, expected) in [
            (
                "ultra-253b",
                16_384,
                128,
                16.0,
                "d7b10f2d2021aef78cacad669b6ab7fd2337109af6dfcc176edea5af2e966505",
            ),
            (
                "super-49b",
                8192,
                64,
                8.0,
                "18210cd74adf3cd3d274e4468bb53348f8f48505fc1c5919135497984cc5a31b",
            ),
        ] {
            let spec = preset(name).unwrap();
            assert_eq!(digest(&spec), expected, "{name}");
            assert_eq!(spec.hidden_size, hidden_size, "{name}");
            assert_eq!((spec.vocab_size, spec.n_positions_max), (128_256, 131_072), "{name}");
            assert_eq!((spec.norm_eps, spec.ties_embeddings), (1e-5, false), "{name}");
            assert_eq!(spec.rope, llama3(500_000.0, factor, 8192), "{name}");
            assert_eq!(spec.bos_token, Some(128_000), "{name}");
            assert_eq!(spec.eos_tokens, [128_001, 128_008, 128_009], "{name}");
            let mut attention = spec.blocks.iter().filter_map(BlockSpec::attention);
            assert!(attention.all(|a| (a.n_q_heads, a.head_dim) == (n_q_heads, 128)), "{name}");
        }
    }

    /// The aggregates of the published model, none of which is written in the notation.
    #[test]
    fn ultra_is_the_published_model() {
        let spec = preset("ultra-253b").unwrap();
        assert_eq!(spec.blocks.len(), 162);
        assert_eq!(count(&spec, true, true), 64);
        assert_eq!(count(&spec, false, true), 17);
        assert_eq!(count(&spec, false, false), 81);
        assert_eq!(n_linear(&spec), 249_196_183_552);
        assert_eq!(spec.n_parameters(), 253_401_268_224);
        assert_eq!((kv_elements(&spec, 1), kv_elements(&spec, 8)), (131_072, 16_384));
        // Embedding, head and final norm; a norm with four projections; a norm with three.
        assert_eq!(spec.parameters().len(), 3 + 5 * 64 + 4 * 81);
        let fused: Vec<(usize, usize)> = spec
            .blocks
            .iter()
            .enumerate()
            .filter_map(|(i, block)| match block.ffn {
                Some(FfnSpec::SwiGlu { width }) if width > 53_248 => Some((i, width)),
                _ => None,
            })
            .collect();
        assert_eq!(fused, [(125, 399_360), (134, 425_984), (143, 343_040), (149, 301_056)]);
        spec.check_sharding(8).unwrap();
    }

    #[test]
    fn super_is_the_published_model() {
        let spec = preset("super-49b").unwrap();
        assert_eq!(spec.blocks.len(), 80);
        assert_eq!((count(&spec, true, true), count(&spec, false, true)), (49, 31));
        assert_eq!(kv_elements(&spec, 1), 100_352);
        assert_eq!(spec.n_parameters(), 49_867_145_216);
        spec.check_sharding(4).unwrap();
    }

    #[test]
    fn nano_is_llama_8b() {
        let spec = preset("nano-8b").unwrap();
        assert_eq!(spec.n_parameters(), 8_030_261_248);
        assert_eq!(spec.blocks.len(), 32);
    }

    #[test]
    fn small_presets_are_what_their_descriptions_say() {
        let tiny = preset("tiny").unwrap();
        for (has_mixer, has_ffn) in [(true, true), (true, false), (false, true), (false, false)] {
            assert!(count(&tiny, has_mixer, has_ffn) > 0, "{has_mixer} {has_ffn}");
        }
        tiny.check_sharding(8).unwrap();
        let bench = preset("bench-0.6b").unwrap();
        bench.check_sharding(8).unwrap();
        assert_eq!(tiny.n_parameters(), 223_552);
        assert_eq!(bench.n_parameters(), 606_113_792);
        assert_eq!(n_linear(&bench), 390_070_272 + 81_788_928);
    }

    #[test]
    fn every_name_is_known_and_no_other() {
        for name in preset_names() {
            assert!(preset(name).is_some(), "{name}");
        }
        assert!(preset("ultra").is_none());
    }
}
