//! For every tensor, in every format: the ranks' slices together are the whole, value for value.

use std::collections::BTreeMap;
use std::fs;

use crate::common::{StoredTensor, TestDir, read_shard};
use weights::synthetic::SyntheticFormat;
use weights::{
    BlockWeights, Checkpoint, Dtype, FfnWeights, InputScale, LinearWeights, Matrix, MixerWeights,
    WeightScale, e4m3_to_f32,
};

const FORMATS: [SyntheticFormat; 5] = [
    SyntheticFormat::F32,
    SyntheticFormat::F16,
    SyntheticFormat::Bf16,
    SyntheticFormat::ModelOptFp8,
    SyntheticFormat::Fp8Dynamic,
];

/// All tensors of a checkpoint directory, by the tests' own reader.
fn stored(dir: &TestDir) -> BTreeMap<String, StoredTensor> {
    let mut tensors = BTreeMap::new();
    for entry in fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            let shard = read_shard(&fs::read(path).unwrap());
            tensors.extend(shard.into_iter().map(|tensor| (tensor.name.clone(), tensor)));
        }
    }
    tensors
}

fn value(dtype: Dtype, bytes: &[u8]) -> f32 {
    match dtype {
        Dtype::F32 => f32::from_le_bytes(bytes.try_into().unwrap()),
        Dtype::F16 => half::f16::from_le_bytes(bytes.try_into().unwrap()).to_f32(),
        Dtype::Bf16 => half::bf16::from_le_bytes(bytes.try_into().unwrap()).to_f32(),
        Dtype::F8E4m3 => e4m3_to_f32(bytes[0]),
    }
}

fn dtype(name: &str) -> Dtype {
    let dtypes = [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::F8E4m3];
    dtypes.into_iter().find(|dtype| dtype.to_string() == name).unwrap()
}

fn whole(tensors: &BTreeMap<String, StoredTensor>, name: &str) -> Vec<f32> {
    let tensor = &tensors[name];
    let dtype = dtype(&tensor.dtype);
    tensor.bytes.chunks(dtype.n_bytes()).map(|bytes| value(dtype, bytes)).collect()
}

/// Where a rank's slice begins in the whole.
#[derive(Clone, Copy)]
struct Origin {
    row: usize,
    col: usize,
}

/// What the ranks have shown of one tensor.
struct Union {
    values: Vec<f32>,
    n_cols: usize,
    is_seen: Vec<bool>,
    row_scales: Vec<f32>,
}

/// Collects every rank's slices, checks each against the whole, and notes what was seen.
struct Checker<'a> {
    stored: &'a BTreeMap<String, StoredTensor>,
    unions: BTreeMap<String, Union>,
}

impl Checker<'_> {
    fn matrix(&mut self, name: &str, matrix: &Matrix, origin: Origin) {
        let union = self.unions.entry(name.to_owned()).or_insert_with(|| {
            let values = whole(self.stored, &format!("{name}.weight"));
            let is_seen = vec![false; values.len()];
            let n_cols = self.stored[&format!("{name}.weight")].shape[1];
            Union { values, n_cols, is_seen, row_scales: Vec::new() }
        });
        for row in 0..matrix.n_rows {
            let elements = matrix.row(row).chunks(matrix.dtype.n_bytes());
            for (col, bytes) in elements.enumerate() {
                let at = (origin.row + row) * union.n_cols + origin.col + col;
                assert_eq!(value(matrix.dtype, bytes), union.values[at], "{name} {row} {col}");
                union.is_seen[at] = true;
            }
        }
    }

    fn linear(&mut self, name: &str, linear: &LinearWeights, origin: Origin) {
        self.matrix(name, &linear.matrix, origin);
        match &linear.scale {
            WeightScale::One => assert_ne!(linear.matrix.dtype, Dtype::F8E4m3, "{name}"),
            WeightScale::PerTensor(scale) => {
                assert_eq!(
                    [*scale],
                    *whole(self.stored, &format!("{name}.weight_scale")),
                    "{name}"
                );
            }
            WeightScale::PerRow(scales) => {
                let all = whole(self.stored, &format!("{name}.weight_scale"));
                let rows = origin.row..origin.row + linear.matrix.n_rows;
                assert_eq!(**scales, all[rows], "{name}");
                self.unions.get_mut(name).unwrap().row_scales.extend(scales.iter());
            }
        }
    }

    fn block(&mut self, block: &BlockWeights, rank_idx: usize, n_ranks: usize) {
        let name = format!("model.layers.{}", block.block_idx);
        match &block.mixer {
            None => {}
            Some(MixerWeights::Linear(linear)) => {
                self.norm(&format!("{name}.input_layernorm"), &linear.norm);
                let origin = Origin { row: 0, col: linear.col_begin };
                self.linear(&format!("{name}.self_attn.linear_attn"), &linear.projection, origin);
            }
            Some(MixerWeights::Attention(attention)) => {
                self.norm(&format!("{name}.input_layernorm"), &attention.norm);
                let name = format!("{name}.self_attn");
                let (spec, share) = (&attention.spec, &attention.share);
                assert_eq!(share.n_q_heads * n_ranks, spec.n_q_heads);
                let q_row = rank_idx * share.n_q_heads * spec.head_dim;
                // The first query head of the rank decides which key/value head comes first.
                let group = spec.n_q_heads / spec.n_kv_heads;
                let kv_row = rank_idx * share.n_q_heads / group * spec.head_dim;
                let (q, kv) = (Origin { row: q_row, col: 0 }, Origin { row: kv_row, col: 0 });
                self.linear(&format!("{name}.q_proj"), &attention.q, q);
                self.linear(&format!("{name}.k_proj"), &attention.k, kv);
                self.linear(&format!("{name}.v_proj"), &attention.v, kv);
                let o = Origin { row: 0, col: q_row };
                self.linear(&format!("{name}.o_proj"), &attention.o, o);
            }
        }
        match &block.ffn {
            None => {}
            Some(FfnWeights::Linear(linear)) => {
                self.norm(&format!("{name}.post_attention_layernorm"), &linear.norm);
                let origin = Origin { row: 0, col: linear.col_begin };
                self.linear(&format!("{name}.mlp.linear_mlp"), &linear.projection, origin);
            }
            Some(FfnWeights::SwiGlu(swiglu)) => {
                self.norm(&format!("{name}.post_attention_layernorm"), &swiglu.norm);
                let begin = rank_idx * swiglu.gate.matrix.n_rows;
                let (row, col) = (Origin { row: begin, col: 0 }, Origin { row: 0, col: begin });
                self.linear(&format!("{name}.mlp.gate_proj"), &swiglu.gate, row);
                self.linear(&format!("{name}.mlp.up_proj"), &swiglu.up, row);
                self.linear(&format!("{name}.mlp.down_proj"), &swiglu.down, col);
            }
        }
    }

    fn norm(&mut self, name: &str, norm: &[f32]) {
        assert_eq!(norm, whole(self.stored, &format!("{name}.weight")), "{name}");
    }
}

fn check(format: SyntheticFormat, n_ranks: usize) {
    let dir = TestDir::tiny(format, 2);
    let checkpoint = dir.open().unwrap();
    let stored = stored(&dir);
    let mut checker = Checker { stored: &stored, unions: BTreeMap::new() };
    for rank_idx in 0..n_ranks {
        let rank = checkpoint.load_rank(rank_idx, n_ranks).unwrap();
        let origin = Origin { row: rank.vocab_begin, col: 0 };
        checker.matrix("model.embed_tokens", &rank.embedding, origin);
        checker.linear("lm_head", &rank.head, origin);
        checker.norm("model.norm", &rank.final_norm);
        assert_eq!(rank.blocks.len(), 6, "empty blocks are left out");
        for block in &rank.blocks {
            checker.block(block, rank_idx, n_ranks);
        }
    }
    let n_matrices = stored
        .values()
        .filter(|tensor| tensor.name.ends_with(".weight") && tensor.shape.len() == 2);
    assert_eq!(checker.unions.len(), n_matrices.count(), "every matrix was checked");
    for (name, union) in &checker.unions {
        assert!(union.is_seen.iter().all(|&is_seen| is_seen), "{format:?} {n_ranks} {name}");
    }
}

#[test]
fn slices_together_are_the_whole() {
    for format in FORMATS {
        for n_ranks in [1, 2, 4, 8] {
            check(format, n_ranks);
        }
    }
}

#[test]
fn byte_counts_are_those_of_the_slices() {
    for format in FORMATS {
        let checkpoint = TestDir::tiny(format, 1).open().unwrap();
        let total = |n_ranks: usize| -> u64 {
            (0..n_ranks).map(|r| checkpoint.rank_bytes(r, n_ranks).unwrap().total()).sum()
        };
        // What is shared is counted by every rank: norms, scales, heads of keys and values.
        assert!(total(8) > total(1), "{format:?}");
        for n_ranks in [1, 2, 8] {
            for rank_idx in 0..n_ranks {
                let rank = checkpoint.load_rank(rank_idx, n_ranks).unwrap();
                let bytes = checkpoint.rank_bytes(rank_idx, n_ranks).unwrap();
                assert_eq!(bytes.embedding, rank.embedding.n_bytes() as u64);
                assert_eq!(bytes.head, rank.head.matrix.n_bytes() as u64);
                let (mut attention, mut ffn, mut n_norms) = (0, 0, 1);
                for block in &rank.blocks {
                    n_norms += usize::from(block.mixer.is_some());
                    n_norms += usize::from(block.ffn.is_some());
                    attention += match &block.mixer {
                        None => 0,
                        Some(MixerWeights::Linear(l)) => l.projection.matrix.n_bytes(),
                        Some(MixerWeights::Attention(a)) => {
                            [&a.q, &a.k, &a.v, &a.o].map(|l| l.matrix.n_bytes()).iter().sum()
                        }
                    };
                    ffn += match &block.ffn {
                        None => 0,
                        Some(FfnWeights::Linear(l)) => l.projection.matrix.n_bytes(),
                        Some(FfnWeights::SwiGlu(s)) => {
                            [&s.gate, &s.up, &s.down].map(|l| l.matrix.n_bytes()).iter().sum()
                        }
                    };
                }
                assert_eq!((bytes.attention, bytes.ffn), (attention as u64, ffn as u64));
                assert_eq!(bytes.norms, (n_norms * 64 * 4) as u64);
            }
        }
    }
}

#[test]
fn a_tied_head_is_the_embedding() {
    let mut spec = weights::presets::preset("tiny").unwrap();
    spec.ties_embeddings = true;
    let dir = TestDir::synthetic(spec, SyntheticFormat::Bf16, 1);
    let checkpoint = dir.open().unwrap();
    let rank = checkpoint.load_rank(1, 2).unwrap();
    assert_eq!(rank.vocab_begin, 151);
    assert_eq!(rank.head.matrix.row(3), rank.embedding.row(3));
    assert_eq!(rank.head.scale, WeightScale::One);
    assert_eq!(rank.head.input, InputScale::None);
    assert_eq!(checkpoint.rank_bytes(1, 2).unwrap().head, 0);
}

/// Projections that share an input quantize it with the largest of their factors.
#[test]
fn input_scales_of_fused_projections_are_shared() {
    let dir = TestDir::tiny(SyntheticFormat::ModelOptFp8, 1);
    dir.edit_shard("model.safetensors", |tensors| {
        let scale_of = |module: &str| format!("model.layers.0.{module}.input_scale");
        for (module, scale) in [("self_attn.v_proj", 0.5f32), ("mlp.gate_proj", 0.25)] {
            crate::common::find(tensors, &scale_of(module)).bytes = scale.to_le_bytes().to_vec();
        }
    });
    let rank = dir.open().unwrap().load_rank(0, 1).unwrap();
    let Some(MixerWeights::Attention(attention)) = &rank.blocks[0].mixer else { panic!() };
    let Some(FfnWeights::SwiGlu(swiglu)) = &rank.blocks[0].ffn else { panic!() };
    for linear in [&attention.q, &attention.k, &attention.v] {
        assert_eq!(linear.input, InputScale::Static(0.5));
    }
    for linear in [&swiglu.gate, &swiglu.up] {
        assert_eq!(linear.input, InputScale::Static(0.25));
    }
    assert_eq!(attention.o.input, InputScale::Static(8.0 / 448.0));
    assert_eq!(swiglu.down.input, InputScale::Static(24.0 / 448.0));
}

/// Every name that producers have used for the cache's factors.
#[test]
fn cache_scales_are_found_under_all_their_names() {
    for (k, v) in [
        ("k_proj.k_scale", "v_proj.v_scale"),
        ("k_scale", "v_scale"),
        ("attn.k_scale", "attn.v_scale"),
        ("qkv_proj.k_scale", "qkv_proj.v_scale"),
        ("kv_scale", "kv_scale"),
    ] {
        let dir = TestDir::tiny(SyntheticFormat::ModelOptFp8, 1);
        dir.edit_shard("model.safetensors", |tensors| {
            let is_single = k == v;
            tensors.retain(|tensor| !(is_single && tensor.name.ends_with(".v_scale")));
            for tensor in tensors {
                if tensor.name.ends_with("k_proj.k_scale") {
                    tensor.name = tensor.name.replace("k_proj.k_scale", k);
                    tensor.bytes = 0.25f32.to_le_bytes().to_vec();
                    tensor.shape = vec![1];
                } else if tensor.name.ends_with("v_proj.v_scale") {
                    tensor.name = tensor.name.replace("v_proj.v_scale", v);
                    tensor.bytes = 0.125f32.to_le_bytes().to_vec();
                }
            }
        });
        let checkpoint = dir.open().unwrap();
        assert!(checkpoint.has_kv_scales(), "{k}");
        let expected = if k == v { (0.25, 0.25) } else { (0.25, 0.125) };
        for block in checkpoint.load_rank(0, 1).unwrap().blocks {
            if let Some(MixerWeights::Attention(attention)) = block.mixer {
                assert_eq!((attention.k_scale, attention.v_scale), expected, "{k}");
            }
        }
    }
}

#[test]
fn a_checkpoint_without_cache_scales_takes_one() {
    let dir = TestDir::tiny(SyntheticFormat::Bf16, 1);
    let checkpoint = dir.open().unwrap();
    assert!(!checkpoint.has_kv_scales());
    let Some(MixerWeights::Attention(attention)) =
        &checkpoint.load_rank(0, 1).unwrap().blocks[0].mixer
    else {
        panic!()
    };
    assert_eq!((attention.k_scale, attention.v_scale), (1.0, 1.0));
}

/// Tensors that carry nothing for us: RoPE's frequencies in old checkpoints, and the second copy of
/// a tied embedding.
#[test]
fn harmless_extras_are_ignored() {
    let mut spec = weights::presets::preset("tiny").unwrap();
    spec.ties_embeddings = true;
    let dir = TestDir::synthetic(spec, SyntheticFormat::Bf16, 1);
    dir.edit_shard("model.safetensors", |tensors| {
        let embedding = crate::common::find(tensors, "model.embed_tokens.weight").clone();
        tensors.push(StoredTensor { name: "lm_head.weight".to_owned(), ..embedding.clone() });
        let name = "model.layers.0.self_attn.rotary_emb.inv_freq".to_owned();
        tensors.push(StoredTensor { name, dtype: "I16".to_owned(), ..embedding });
    });
    let checkpoint = dir.open().unwrap();
    assert!(checkpoint.tensors().all(|tensor| tensor.name != "lm_head.weight"));
}

/// The same checks, from bytes that are part of the program.
#[test]
fn embedded_files_are_a_checkpoint() {
    let dir = TestDir::tiny(SyntheticFormat::Bf16, 2);
    let files: Vec<(&'static str, &'static [u8])> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let name: &'static str = path.file_name().unwrap().to_str().unwrap().to_owned().leak();
            let bytes: &'static [u8] = fs::read(path).unwrap().leak();
            (name, bytes)
        })
        .collect();
    let embedded = Checkpoint::embedded("demo", files.leak()).unwrap();
    let mapped = dir.open().unwrap();
    assert_eq!(embedded.spec(), mapped.spec());
    assert_eq!(embedded.file("config.json").unwrap(), mapped.file("config.json").unwrap());
    assert!(embedded.file("nothing.json").unwrap().is_none());
    let (a, b) = (embedded.load_rank(0, 2).unwrap(), mapped.load_rank(0, 2).unwrap());
    assert_eq!(a.embedding.row(5), b.embedding.row(5));
    assert_eq!(a.final_norm, b.final_norm);
    let error = Checkpoint::embedded("demo", &[]).unwrap_err().to_string();
    assert!(error.contains("demo holds no config.json"), "{error}");
}
