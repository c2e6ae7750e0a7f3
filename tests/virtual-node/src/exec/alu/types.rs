//! PTX's scalar types.

use crate::exec::alu::lane::Slot;

/// A type as an instruction names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    Pred,
    B8,
    B16,
    B32,
    B64,
    B128,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    U16x2,
    S16x2,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    Tf32,
    F32,
    F64,
    E4m3x2,
    E5m2x2,
}

const NAMES: &[(&str, Type)] = &[
    ("pred", Type::Pred),
    ("b8", Type::B8),
    ("b16", Type::B16),
    ("b32", Type::B32),
    ("b64", Type::B64),
    ("b128", Type::B128),
    ("u8", Type::U8),
    ("u16", Type::U16),
    ("u32", Type::U32),
    ("u64", Type::U64),
    ("s8", Type::S8),
    ("s16", Type::S16),
    ("s32", Type::S32),
    ("s64", Type::S64),
    ("u16x2", Type::U16x2),
    ("s16x2", Type::S16x2),
    ("f16", Type::F16),
    ("f16x2", Type::F16x2),
    ("bf16", Type::Bf16),
    ("bf16x2", Type::Bf16x2),
    ("tf32", Type::Tf32),
    ("f32", Type::F32),
    ("f64", Type::F64),
    ("e4m3x2", Type::E4m3x2),
    ("e5m2x2", Type::E5m2x2),
];

impl Type {
    /// The type of that name, without a dot.
    pub fn parse(name: &str) -> Option<Type> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, ty)| *ty)
    }

    /// Size in memory; a predicate has none.
    pub fn n_bytes(self) -> usize {
        match self {
            Type::Pred => 0,
            Type::B8 | Type::U8 | Type::S8 => 1,
            Type::B16 | Type::U16 | Type::S16 | Type::F16 | Type::Bf16 => 2,
            Type::E4m3x2 | Type::E5m2x2 => 2,
            Type::B64 | Type::U64 | Type::S64 | Type::F64 => 8,
            Type::B128 => 16,
            _ => 4,
        }
    }

    /// The register file that holds it.
    pub fn slot(self) -> Slot {
        match self.n_bytes() {
            0 => Slot::Pred,
            8 => Slot::R64,
            _ => Slot::R32,
        }
    }

    /// Whether a narrow value is sign-extended when it is loaded into a wider register.
    pub fn is_signed(self) -> bool {
        matches!(self, Type::S8 | Type::S16 | Type::S32 | Type::S64)
    }

    /// `b16`, `b32` and `b64` as unsigned integers.
    pub fn as_unsigned(self) -> Type {
        match self {
            Type::B8 => Type::U8,
            Type::B16 => Type::U16,
            Type::B32 => Type::U32,
            Type::B64 => Type::U64,
            other => other,
        }
    }
}
