//! Names and shapes of every kind of block, and how each placement is cut.

use super::*;
use crate::presets::preset;

fn parameter(placement: Placement, n_rows: usize, n_cols: usize) -> ParameterSpec {
    ParameterSpec { module: "m".to_owned(), role: Role::Query, n_rows, n_cols, placement }
}

fn rows(placement: Placement, n_rows: usize, n_ranks: usize) -> Vec<Range<usize>> {
    let parameter = parameter(placement, n_rows, 3);
    (0..n_ranks).map(|rank_idx| parameter.slice(rank_idx, n_ranks).unwrap().rows).collect()
}

#[test]
fn a_models_tensors_have_the_published_names_and_shapes() {
    let spec = preset("tiny").unwrap();
    let lines: Vec<String> = spec
        .parameters()
        .iter()
        .map(|p| format!("{} {:?}", p.tensor_name(), p.shape()))
        .filter(|line| {
            !line.contains("layers.")
                || ["0.", "4.", "5."].iter().any(|i| line.starts_with(&format!("model.layers.{i}")))
        })
        .collect();
    let expected = [
        "model.embed_tokens.weight [301, 64]",
        "model.layers.0.input_layernorm.weight [64]",
        "model.layers.0.self_attn.q_proj.weight [128, 64]",
        "model.layers.0.self_attn.k_proj.weight [64, 64]",
        "model.layers.0.self_attn.v_proj.weight [64, 64]",
        "model.layers.0.self_attn.o_proj.weight [64, 128]",
        "model.layers.0.post_attention_layernorm.weight [64]",
        "model.layers.0.mlp.gate_proj.weight [96, 64]",
        "model.layers.0.mlp.up_proj.weight [96, 64]",
        "model.layers.0.mlp.down_proj.weight [64, 96]",
        "model.layers.4.input_layernorm.weight [64]",
        "model.layers.4.self_attn.linear_attn.weight [64, 64]",
        "model.layers.4.post_attention_layernorm.weight [64]",
        "model.layers.4.mlp.gate_proj.weight [64, 64]",
        "model.layers.4.mlp.up_proj.weight [64, 64]",
        "model.layers.4.mlp.down_proj.weight [64, 64]",
        "model.layers.5.input_layernorm.weight [64]",
        "model.layers.5.self_attn.q_proj.weight [128, 64]",
        "model.layers.5.self_attn.k_proj.weight [64, 64]",
        "model.layers.5.self_attn.v_proj.weight [64, 64]",
        "model.layers.5.self_attn.o_proj.weight [64, 128]",
        "model.layers.5.post_attention_layernorm.weight [64]",
        "model.layers.5.mlp.linear_mlp.weight [64, 64]",
        "model.norm.weight [64]",
        "lm_head.weight [301, 64]",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn empty_blocks_have_no_tensors_and_tied_models_no_head() {
    let mut spec = preset("tiny").unwrap();
    assert!(spec.blocks[2].is_empty());
    assert!(spec.blocks[2].parameters(2, 64).is_empty());
    let n_untied = spec.parameters().len();
    spec.ties_embeddings = true;
    assert_eq!(spec.parameters().len(), n_untied - 1);
}

#[test]
fn vocabularies_are_cut_up_and_the_last_rank_is_short() {
    assert_eq!(rows(Placement::Vocabulary, 10, 4), [0..3, 3..6, 6..9, 9..10]);
    assert_eq!(rows(Placement::Vocabulary, 5, 4), [0..2, 2..4, 4..5, 5..5]);
}

#[test]
fn key_value_heads_are_cut_or_shared() {
    let heads = Placement::KvRows { unit_rows: 2 };
    assert_eq!(rows(heads, 8, 2), [0..4, 4..8]);
    assert_eq!(rows(heads, 4, 2), [0..2, 2..4]);
    assert_eq!(rows(heads, 4, 8), [0..2, 0..2, 0..2, 0..2, 2..4, 2..4, 2..4, 2..4]);
    assert_eq!(rows(heads, 2, 2), [0..2, 0..2]);
}

#[test]
fn rows_and_columns_are_cut_in_whole_units() {
    assert_eq!(rows(Placement::Rows { unit_rows: 4 }, 16, 4), [0..4, 4..8, 8..12, 12..16]);
    let slice = parameter(Placement::Cols { unit_cols: 2 }, 5, 12).slice(2, 3).unwrap();
    assert_eq!(slice, Slice { rows: 0..5, cols: 8..12 });
    let slice = parameter(Placement::Replicated, 5, 12).slice(2, 3).unwrap();
    assert_eq!((slice.clone(), slice.n_elements()), (Slice { rows: 0..5, cols: 0..12 }, 60));
}

#[test]
fn what_cannot_be_shared_is_refused_with_both_numbers() {
    for (placement, expected) in [
        (Placement::Rows { unit_rows: 1 }, "`m.weight` has 12 rows, which 8 ranks"),
        (Placement::Rows { unit_rows: 4 }, "`m.weight` has 3 heads, which 8 ranks"),
        (Placement::KvRows { unit_rows: 4 }, "`m.weight` has 3 heads, which 8 ranks"),
        (Placement::KvRows { unit_rows: 1 }, "`m.weight` has 12 heads, which 8 ranks"),
        (Placement::Cols { unit_cols: 1 }, "`m.weight` has 20 columns, which 8 ranks"),
        (Placement::Cols { unit_cols: 5 }, "`m.weight` has 4 heads, which 8 ranks"),
    ] {
        let message = parameter(placement, 12, 20).slice(0, 8).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
    let spec = preset("tiny").unwrap();
    let message = spec.check_sharding(3).unwrap_err().to_string();
    assert!(message.contains("model.layers.0.self_attn.q_proj.weight"), "{message}");
}
