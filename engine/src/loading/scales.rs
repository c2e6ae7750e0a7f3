//! Who applies a projection's scales on a device.

use weights::{InputScale, LinearWeights, WeightScale};

use crate::device::{N_PARTS_MAX, Projection};

/// Who applies a projection's scales.
pub(super) struct Scales {
    /// The product: of the weights, and of the input.
    pub(super) of_product: Option<[f32; 2]>,
    pub(super) left_over: LeftOver,
}

/// What the consumer applies.
pub(super) enum LeftOver {
    Nothing,
    PerPart([f32; N_PARTS_MAX]),
    PerRow(Vec<f32>),
}

impl Scales {
    pub(super) const NONE: Scales = Scales { of_product: None, left_over: LeftOver::Nothing };

    /// Parts differ in their factors, so none can be the product's.
    pub(super) fn left_over(projection: &Projection, n_rows: &[usize]) -> Scales {
        let input = static_scale(projection);
        let is_per_row = |part: &LinearWeights| matches!(part.scale, WeightScale::PerRow(_));
        let left_over = if projection.parts.iter().any(is_per_row) {
            let rows = projection.parts.iter().zip(n_rows);
            LeftOver::PerRow(rows.flat_map(|(part, &n)| factors(part, n, input)).collect())
        } else {
            let mut of_parts = [1.0; N_PARTS_MAX];
            for (factor, part) in of_parts.iter_mut().zip(&projection.parts) {
                *factor = whole_scale(part) * input;
            }
            match of_parts == [1.0; N_PARTS_MAX] {
                true => LeftOver::Nothing,
                false => LeftOver::PerPart(of_parts),
            }
        };
        Scales { of_product: None, left_over }
    }

    /// What is one number the product applies. What differs by rows is applied to the ranks' sum:
    /// a rank holds some columns of every row, so it is the same on all ranks, and may follow it.
    pub(super) fn of_second(projection: &Projection) -> Scales {
        let input = static_scale(projection);
        let part = &projection.parts[0];
        let is_plain = whole_scale(part) == 1.0 && input == 1.0;
        match &part.scale {
            WeightScale::One | WeightScale::PerTensor(_) if is_plain => Scales::NONE,
            WeightScale::One | WeightScale::PerTensor(_) if projection.input().quantizes() => {
                let of_product = Some([whole_scale(part), input]);
                Scales { of_product, left_over: LeftOver::Nothing }
            }
            // A product of bf16 applies no factors.
            _ => {
                let factors = factors(part, part.matrix.n_rows, input).collect();
                Scales { of_product: None, left_over: LeftOver::PerRow(factors) }
            }
        }
    }
}

/// The factor of each of a part's rows, and of rows that were added up to `n_rows`.
fn factors(part: &LinearWeights, n_rows: usize, input: f32) -> impl Iterator<Item = f32> {
    let whole = whole_scale(part);
    let of_row = move |row_idx: usize| match &part.scale {
        WeightScale::PerRow(scales) => scales.get(row_idx).copied().unwrap_or(0.0) * input,
        WeightScale::One | WeightScale::PerTensor(_) => whole * input,
    };
    (0..n_rows).map(of_row)
}

fn whole_scale(part: &LinearWeights) -> f32 {
    match part.scale {
        WeightScale::PerTensor(scale) => scale,
        WeightScale::One | WeightScale::PerRow(_) => 1.0,
    }
}

fn static_scale(projection: &Projection) -> f32 {
    match projection.input() {
        InputScale::Static(scale) => scale,
        InputScale::None | InputScale::PerToken => 1.0,
    }
}
