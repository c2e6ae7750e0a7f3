//! Which lane and register hold which element of a matrix, for `mma.sync` and `wgmma`.
//!
//! The tables of the PTX ISA (sections "Matrix fragments for mma.m16n8k…") all follow one rule in
//! the size of an element; the tests below hold it against the tables as they are printed.

/// A place in a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Counted from the first row of the warp's tile.
    pub row: usize,
    /// Counted from its first column.
    pub col: usize,
}

/// Element `part` (0 is in the lowest bits) of register `register` of operand A, whose registers
/// hold `n_per_register` elements each.
pub fn a_place(lane: usize, register: usize, part: usize, n_per_register: usize) -> Place {
    let (group, in_group) = (lane / 4, lane % 4);
    Place {
        row: group + 8 * (register % 2),
        col: in_group * n_per_register + part + (register / 2) * 4 * n_per_register,
    }
}

/// The same for operand A of the shapes with 8 rows, whose registers all lie in one row.
pub fn a_place_of_8(lane: usize, register: usize, part: usize, n_per_register: usize) -> Place {
    let place = b_place(lane, register, part, n_per_register);
    Place { row: place.col, col: place.row }
}

/// Element `part` of register `register` of operand B, which has K rows and 8 columns.
pub fn b_place(lane: usize, register: usize, part: usize, n_per_register: usize) -> Place {
    let (group, in_group) = (lane / 4, lane % 4);
    Place { row: in_group * n_per_register + part + register * 4 * n_per_register, col: group }
}

/// Value `value_idx` that a lane holds of an accumulator of any width: 4 values for each 8 columns.
/// Two f16 values share a register, the even one in the lower half.
pub fn accumulator_place(lane: usize, value_idx: usize) -> Place {
    let (group, in_group) = (lane / 4, lane % 4);
    Place {
        row: group + 8 * (value_idx / 2 % 2),
        col: value_idx / 4 * 8 + in_group * 2 + value_idx % 2,
    }
}

/// The register and part of A that hold element `i` of a lane, as the ISA counts them.
#[cfg(test)]
fn element(i: usize, n_per_register: usize) -> (usize, usize) {
    (i / n_per_register, i % n_per_register)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Rule = fn(i: usize, group: usize, in_group: usize) -> (usize, usize);

    /// Each row is one table of the ISA: name, elements in a register, elements that a lane holds,
    /// and the formulas for row and column as the ISA prints them.
    const A_TABLES: &[(&str, usize, usize, Rule)] = &[
        ("m16n8k4.tf32", 1, 2, |i, g, t| (if i == 0 { g } else { g + 8 }, t)),
        ("m16n8k8.tf32", 1, 4, |i, g, t| {
            (if i == 0 || i == 2 { g } else { g + 8 }, if i < 2 { t } else { t + 4 })
        }),
        ("m16n8k8.f16", 2, 4, |i, g, t| (if i < 2 { g } else { g + 8 }, t * 2 + (i & 1))),
        ("m16n8k16.f16", 2, 8, |i, g, t| {
            let row = if i < 2 || (4..6).contains(&i) { g } else { g + 8 };
            (row, if i < 4 { t * 2 + (i & 1) } else { t * 2 + (i & 1) + 8 })
        }),
        ("m16n8k16.s8", 4, 8, |i, g, t| (if i < 4 { g } else { g + 8 }, t * 4 + (i & 3))),
        ("m16n8k32.s8", 4, 16, |i, g, t| {
            let row = if i < 4 || (8..12).contains(&i) { g } else { g + 8 };
            (row, if i < 8 { t * 4 + (i & 3) } else { t * 4 + (i & 3) + 16 })
        }),
    ];

    const B_TABLES: &[(&str, usize, usize, Rule)] = &[
        ("m16n8k4.tf32", 1, 1, |_, g, t| (t, g)),
        ("m16n8k8.tf32", 1, 2, |i, g, t| (if i == 0 { t } else { t + 4 }, g)),
        ("m16n8k8.f16", 2, 2, |i, g, t| (t * 2 + i, g)),
        ("m16n8k16.f16", 2, 4, |i, g, t| {
            (if i < 2 { t * 2 + (i & 1) } else { t * 2 + (i & 1) + 8 }, g)
        }),
        ("m16n8k16.s8", 4, 4, |i, g, t| (t * 4 + i, g)),
        ("m16n8k32.s8", 4, 8, |i, g, t| {
            (if i < 4 { t * 4 + (i & 3) } else { t * 4 + (i & 3) + 16 }, g)
        }),
    ];

    #[test]
    fn operand_a_follows_the_tables() {
        for (name, n_per_register, n_elements, rule) in A_TABLES {
            for lane in 0..32 {
                for i in 0..*n_elements {
                    let (register, part) = element(i, *n_per_register);
                    let place = a_place(lane, register, part, *n_per_register);
                    let expected = rule(i, lane / 4, lane % 4);
                    assert_eq!((place.row, place.col), expected, "{name} lane {lane} a{i}");
                }
            }
        }
    }

    #[test]
    fn operand_b_follows_the_tables() {
        for (name, n_per_register, n_elements, rule) in B_TABLES {
            for lane in 0..32 {
                for i in 0..*n_elements {
                    let (register, part) = element(i, *n_per_register);
                    let place = b_place(lane, register, part, *n_per_register);
                    let expected = rule(i, lane / 4, lane % 4);
                    assert_eq!((place.row, place.col), expected, "{name} lane {lane} b{i}");
                }
            }
        }
    }

    /// m16n8: `row = groupID for ci where i < 2, else groupID + 8; col = t * 2 + (i & 1)`.
    /// wgmma m64nN (figure "D fragment"): d0, d1 in row g, d2, d3 in row g + 8, d4 at column 8.
    #[test]
    fn accumulators_follow_the_tables() {
        for lane in 0..32 {
            let (group, in_group) = (lane / 4, lane % 4);
            for i in 0..4 {
                let row = if i < 2 { group } else { group + 8 };
                let place = Place { row, col: in_group * 2 + (i & 1) };
                assert_eq!(accumulator_place(lane, i), place);
                let next = Place { col: place.col + 8, ..place };
                assert_eq!(accumulator_place(lane, i + 4), next);
            }
        }
    }

    /// m8n8k4.f64: `a: row = lane >> 2, col = lane % 4; b: row = lane % 4, col = lane >> 2`.
    #[test]
    fn eight_rows_of_doubles() {
        for lane in 0..32 {
            assert_eq!(a_place_of_8(lane, 0, 0, 1), Place { row: lane >> 2, col: lane % 4 });
            assert_eq!(b_place(lane, 0, 0, 1), Place { row: lane % 4, col: lane >> 2 });
        }
    }
}
