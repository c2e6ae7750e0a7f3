//! Many ranks' messages into one, always in the order of ranks.
//!
//! F16, BF16 and FP8 are added up in single precision and rounded once, at the end. The real
//! library rounds at each hop of its ring or tree, or not at all in the switch, so its last bits
//! depend on the algorithm that it picks.

use super::types::{Element, Reduction};
use crate::cublaslt::element::Element as Float;

/// Writes the reduction of `messages`, all of `out`'s length, to `out`.
pub fn reduce(element: Element, reduction: Reduction, messages: &[&[u8]], out: &mut [u8]) {
    match element {
        Element::I8 => integers(reduction, messages, out, i8::from_le_bytes),
        Element::U8 => integers(reduction, messages, out, u8::from_le_bytes),
        Element::I32 => integers(reduction, messages, out, i32::from_le_bytes),
        Element::U32 => integers(reduction, messages, out, u32::from_le_bytes),
        Element::I64 => integers(reduction, messages, out, i64::from_le_bytes),
        Element::U64 => integers(reduction, messages, out, u64::from_le_bytes),
        Element::F64 => doubles(reduction, messages, out),
        Element::Float(float) => floats(float, reduction, messages, out),
    }
}

fn floats(element: Float, reduction: Reduction, messages: &[&[u8]], out: &mut [u8]) {
    let n_bytes = element.n_bytes();
    let mut values = Vec::with_capacity(messages.len());
    for (idx, out) in out.chunks_exact_mut(n_bytes).enumerate() {
        values.clear();
        values.extend(messages.iter().map(|message| element.read(&message[idx * n_bytes..])));
        element.write(one(reduction, &values, f32::from), out);
    }
}

fn doubles(reduction: Reduction, messages: &[&[u8]], out: &mut [u8]) {
    let mut values = Vec::with_capacity(messages.len());
    for (idx, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        values.clear();
        values.extend(
            messages.iter().map(|message| f64::from_le_bytes(message.as_chunks::<8>().0[idx])),
        );
        *out = one(reduction, &values, f64::from).to_le_bytes();
    }
}

/// One element of every rank. NaN stays NaN, also through max and min.
fn one<T>(reduction: Reduction, values: &[T], count: impl Fn(u8) -> T) -> T
where
    T: Copy
        + PartialOrd
        + std::ops::Add<Output = T>
        + std::ops::Mul<Output = T>
        + std::ops::Div<Output = T>,
{
    let mut ranks = values.iter().copied();
    let first = ranks.next().expect("a communicator has a rank");
    let is_nan = |value: T| value.partial_cmp(&value).is_none();
    let result = ranks.fold(first, |result, value| match reduction {
        Reduction::Sum | Reduction::Average => result + value,
        Reduction::Product => result * value,
        Reduction::Max if is_nan(value) || value > result => value,
        Reduction::Min if is_nan(value) || value < result => value,
        Reduction::Max | Reduction::Min => result,
    });
    if reduction == Reduction::Average { result / count(values.len() as u8) } else { result }
}

/// Integers wrap around, as they do on the device.
fn integers<T, const N: usize>(
    reduction: Reduction,
    messages: &[&[u8]],
    out: &mut [u8],
    read: impl Fn([u8; N]) -> T,
) where
    T: Into<i128> + Copy,
{
    for (idx, out) in out.as_chunks_mut::<N>().0.iter_mut().enumerate() {
        let mut ranks = messages.iter().map(|message| read(message.as_chunks::<N>().0[idx]).into());
        let first: i128 = ranks.next().expect("a communicator has a rank");
        let result = ranks.fold(first, |result, value| match reduction {
            Reduction::Sum | Reduction::Average => result + value,
            Reduction::Product => wrap::<N>(result * value),
            Reduction::Max => result.max(value),
            Reduction::Min => result.min(value),
        });
        let result =
            if reduction == Reduction::Average { result / messages.len() as i128 } else { result };
        out.copy_from_slice(&result.to_le_bytes()[..N]);
    }
}

/// Keeps the lowest `N` bytes: enough for the next product, and it cannot overflow.
fn wrap<const N: usize>(value: i128) -> i128 {
    value & ((1i128 << (8 * N)) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(element: Element, reduction: Reduction, messages: &[Vec<u8>]) -> Vec<u8> {
        let messages: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
        let mut out = vec![0xee; messages[0].len()];
        reduce(element, reduction, &messages, &mut out);
        out
    }

    fn f32s(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    #[test]
    fn floats_are_added_in_the_order_of_ranks() {
        let float = Element::Float(Float::F32);
        // 1e8 + 1 - 1e8 is 0 in this order, and 1 with the last two swapped.
        let messages = [f32s(&[1e8]), f32s(&[1.0]), f32s(&[-1e8])];
        assert_eq!(run(float, Reduction::Sum, &messages), f32s(&[0.0]));
        let [a, b, c] = messages;
        assert_eq!(run(float, Reduction::Sum, &[a, c, b]), f32s(&[1.0]));
    }

    #[test]
    fn bf16_is_rounded_once() {
        let bf16 = Element::Float(Float::Bf16);
        let message = |value: f32| {
            let mut bytes = vec![0; 2];
            Float::Bf16.write(value, &mut bytes);
            bytes
        };
        // Each half would be lost beside 256 if every step were rounded to 8 bits.
        let messages: Vec<Vec<u8>> = [256.0, 0.5, 0.5, 0.5, 0.5].into_iter().map(message).collect();
        assert_eq!(run(bf16, Reduction::Sum, &messages), message(258.0));
    }

    #[test]
    fn every_reduction_of_floats() {
        let messages = [f32s(&[1.0, -8.0]), f32s(&[2.0, 4.0]), f32s(&[6.0, 1.0])];
        for (reduction, expected) in [
            (Reduction::Sum, [9.0, -3.0]),
            (Reduction::Product, [12.0, -32.0]),
            (Reduction::Max, [6.0, 4.0]),
            (Reduction::Min, [1.0, -8.0]),
            (Reduction::Average, [3.0, -1.0]),
        ] {
            assert_eq!(run(Element::Float(Float::F32), reduction, &messages), f32s(&expected));
        }
        let nan = [f32s(&[1.0]), f32s(&[f32::NAN]), f32s(&[2.0])];
        for reduction in [Reduction::Max, Reduction::Min] {
            let out = run(Element::Float(Float::F32), reduction, &nan);
            let value = f32::from_le_bytes([out[0], out[1], out[2], out[3]]);
            assert!(value.is_nan(), "{reduction:?} made {value} of it");
        }
    }

    #[test]
    fn integers_wrap_and_keep_their_sign() {
        let bytes = |values: [i32; 2]| values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let messages: [Vec<u8>; 2] = [bytes([i32::MAX, -3]), bytes([1, 5])];
        for (reduction, expected) in [
            (Reduction::Sum, [i32::MIN, 2]),
            (Reduction::Product, [i32::MAX, -15]),
            (Reduction::Max, [i32::MAX, 5]),
            (Reduction::Min, [1, -3]),
        ] {
            let expected: Vec<u8> = bytes(expected);
            assert_eq!(run(Element::I32, reduction, &messages), expected, "{reduction:?}");
        }
        let bytes: [Vec<u8>; 2] = [vec![200], vec![100]];
        assert_eq!(run(Element::U8, Reduction::Sum, &bytes), [44]);
        assert_eq!(run(Element::U8, Reduction::Max, &bytes), [200]);
        assert_eq!(run(Element::I8, Reduction::Max, &bytes), [100]);
    }
}
