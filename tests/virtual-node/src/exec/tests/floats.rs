//! Floating-point instructions and conversions.

use super::{Random, check, pairs};

fn f(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

fn bits(value: f32) -> u64 {
    u64::from(value.to_bits())
}

/// Bits of f32 values at which instructions break.
fn edges() -> Vec<u64> {
    let values = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        1.5,
        2.5,
        -2.5,
        448.0,
        464.0,
        465.0,
        -500.0,
        65504.0,
        65520.0,
        1e-3,
        f32::MAX,
        f32::MIN_POSITIVE,
        1e-40,
        -1e-40,
        f32::INFINITY,
        f32::NEG_INFINITY,
        3.0e9,
        -3.0e9,
        0.015_625,
        0.000_976_562_5,
        6.0e-8,
        2.5e-8,
        0.1,
        1.0 / 3.0,
        1.000_000_1,
    ];
    values.iter().map(|value| bits(*value)).chain([0x7fc0_0000, 0xffc0_0001]).collect()
}

/// Random numbers between about 2^-8 and 2^8, whose sums and products f64 holds exactly.
fn moderate() -> Vec<[u64; 4]> {
    let mut random = Random::new();
    let mut number = || {
        let mantissa = random.next() as u32 & 0x807f_ffff;
        u64::from(mantissa | (119 + (random.next() % 16) as u32) << 23)
    };
    (0..1024).map(|_| std::array::from_fn(|_| number())).collect()
}

/// The two f32 around an exact number, or twice itself.
fn around(exact: f64) -> (f32, f32) {
    let near = exact as f32;
    match f64::from(near).partial_cmp(&exact) {
        Some(std::cmp::Ordering::Less) => (near, near.next_up()),
        Some(std::cmp::Ordering::Greater) => (near.next_down(), near),
        _ => (near, near),
    }
}

/// NaN is any NaN.
fn check_floats(instruction: &str, inputs: &[[u64; 4]], expected: impl Fn(f32, f32, f32) -> f32) {
    for inputs in inputs.chunks(1024) {
        let found = super::evaluate(instruction, "%d32", inputs);
        for (input, found) in inputs.iter().zip(found) {
            let [a, b, c, _] = input.map(f);
            let expected = expected(a, b, c);
            let found = f(found);
            let is_same =
                found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan());
            assert!(is_same, "{instruction} of {a:e} {b:e} {c:e} is {found:e}, not {expected:e}");
        }
    }
}

#[test]
fn sums_and_products_round_in_every_direction() {
    for (name, exact) in [
        ("add", (|a, b, _| a + b) as fn(f64, f64, f64) -> f64),
        ("mul", |a, b, _| a * b),
        ("fma", |a, b, c| a * b + c),
    ] {
        let sources = if name == "fma" { "%a32, %b32, %c32" } else { "%a32, %b32" };
        for (mode, pick) in [
            ("rm", (|(below, _), _| below) as fn((f32, f32), f64) -> f32),
            ("rp", |(_, above), _| above),
            ("rz", |(below, above), exact| if exact > 0.0 { below } else { above }),
        ] {
            let instruction = format!("{name}.{mode}.f32 %d32, {sources};");
            // The product of two and the sum with a third need up to 50 bits here.
            let inputs: Vec<[u64; 4]> =
                moderate().iter().map(|row| row.map(|value| value & !0xfff)).collect();
            check_floats(&instruction, &inputs, |a, b, c| {
                let exact = exact(a.into(), b.into(), c.into());
                pick(around(exact), exact)
            });
        }
    }
}

#[test]
fn quotients_and_roots_round_in_every_direction() {
    // A quotient q of the right side satisfies q*b <= a < next(q)*b, which f64 decides exactly.
    for (instruction, upwards) in
        [("div.rm.f32 %d32, %a32, %b32;", false), ("div.rp.f32 %d32, %a32, %b32;", true)]
    {
        let inputs: Vec<[u64; 4]> =
            moderate().iter().map(|row| row.map(|value| value & 0x7fff_ffff)).collect();
        check_floats(instruction, &inputs, |a, b, _| {
            let (a, b) = (f64::from(a), f64::from(b));
            let mut q = (a / b) as f32;
            if upwards {
                while f64::from(q) * b < a {
                    q = q.next_up();
                }
                while f64::from(q.next_down()) * b >= a {
                    q = q.next_down();
                }
            } else {
                while f64::from(q) * b > a {
                    q = q.next_down();
                }
                while f64::from(q.next_up()) * b <= a {
                    q = q.next_up();
                }
            }
            q
        });
    }
    check_floats("sqrt.rz.f32 %d32, %a32;", &moderate(), |a, _, _| {
        if a < 0.0 {
            return f32::NAN;
        }
        let mut root = a.sqrt();
        while f64::from(root) * f64::from(root) > a.into() {
            root = root.next_down();
        }
        root
    });
    check_floats("div.rn.f32 %d32, %a32, %b32;", &pairs(&edges()), |a, b, _| a / b);
    check_floats("rcp.rn.f32 %d32, %a32;", &pairs(&edges()), |a, _, _| 1.0 / a);
}

#[test]
fn fused_products_round_once() {
    let inputs = [[bits(1.000_000_1), bits(1.000_000_1), bits(-1.000_000_2), 0]];
    check_floats("fma.rn.f32 %d32, %a32, %b32, %c32;", &inputs, |_, _, _| 1.421_085_5e-14);
    check_floats("fma.rn.f32 %d32, %a32, %b32, %c32;", &pairs(&edges()), f32::mul_add);
}

#[test]
fn subnormal_numbers_are_flushed_and_results_clamped() {
    let tiny = |v: f32| if v.is_subnormal() { 0.0f32.copysign(v) } else { v };
    check_floats("add.ftz.f32 %d32, %a32, %b32;", &pairs(&edges()), |a, b, _| {
        tiny(tiny(a) + tiny(b))
    });
    check_floats("mul.sat.f32 %d32, %a32, %b32;", &pairs(&edges()), |a, b, _| {
        let product = a * b;
        if product > 0.0 { product.min(1.0) } else { 0.0 }
    });
}

#[test]
fn extremes_know_nan_and_the_signs_of_zero() {
    check_floats("min.f32 %d32, %a32, %b32;", &pairs(&edges()), |a, b, _| {
        match (a.is_nan(), b.is_nan()) {
            (true, true) => f32::NAN,
            (true, false) => b,
            (false, true) => a,
            _ if a == 0.0 && b == 0.0 && a.is_sign_negative() => a,
            _ => {
                if b <= a {
                    b
                } else {
                    a
                }
            }
        }
    });
    check_floats("max.NaN.f32 %d32, %a32, %b32;", &pairs(&edges()), |a, b, _| match () {
        () if a.is_nan() || b.is_nan() => f32::NAN,
        () if a == 0.0 && b == 0.0 && a.is_sign_positive() => a,
        () => {
            if b >= a {
                b
            } else {
                a
            }
        }
    });
    let both_nan = [[0xffc0_0001, 0x7fc0_1234, 0, 0]];
    check("max.f32 %d32, %a32, %b32;", "%d32", &both_nan, |_| 0x7fff_ffff);
    check_floats("copysign.f32 %d32, %a32, %b32;", &pairs(&edges()), |a, b, _| {
        f32::from_bits(b.to_bits() & 0x7fff_ffff | a.to_bits() & 0x8000_0000)
    });
}

#[test]
fn comparisons_with_nan_are_ordered_or_not() {
    for (name, yes) in [
        ("lt", (|a, b| a < b) as fn(f32, f32) -> bool),
        ("ne", |a, b| a != b && !a.is_nan() && !b.is_nan()),
        ("geu", |a, b| a.is_nan() || b.is_nan() || a >= b),
        ("equ", |a, b| a.is_nan() || b.is_nan() || a == b),
        ("neu", |a, b| a != b),
        ("num", |a, b| !a.is_nan() && !b.is_nan()),
        ("nan", |a, b| a.is_nan() || b.is_nan()),
    ] {
        let instruction = format!("setp.{name}.f32 %q, %a32, %b32;");
        check(&instruction, "%q", &pairs(&edges()), |[a, b, ..]| u64::from(yes(f(a), f(b))));
    }
    check("testp.subnormal.f32 %q, %a32;", "%q", &pairs(&edges()), |[a, ..]| {
        u64::from(a & 0x7f80_0000 == 0 && a & 0x7f_ffff != 0)
    });
}

#[test]
fn approximations_are_close() {
    for (name, function) in [
        ("ex2", f64::exp2 as fn(f64) -> f64),
        ("lg2", f64::log2),
        ("rsqrt", |a| 1.0 / a.sqrt()),
        ("sqrt", f64::sqrt),
        ("rcp", |a| 1.0 / a),
        ("tanh", f64::tanh),
        ("sin", f64::sin),
    ] {
        let inputs: Vec<[u64; 4]> =
            moderate().iter().map(|row| row.map(|v| v & !(1 << 31))).collect();
        let inputs: Vec<[u64; 4]> =
            inputs.into_iter().filter(|row| name != "ex2" || f(row[0]) < 127.0).collect();
        let found = super::evaluate(&format!("{name}.approx.f32 %d32, %a32;"), "%d32", &inputs);
        for (input, found) in inputs.iter().zip(found) {
            let expected = function(f(input[0]).into());
            let error = (f64::from(f(found)) - expected).abs();
            // NaN would fail: its comparison is false.
            assert!(error <= 2e-7 * expected.abs().max(0.1), "{name} of {:e}", f(input[0]));
        }
    }
    let special = [[bits(f32::NEG_INFINITY), 0, 0, 0], [bits(-200.0), 0, 0, 0]];
    check("ex2.approx.ftz.f32 %d32, %a32;", "%d32", &special, |_| 0);
}

#[test]
fn halves_round_as_an_independent_library_does() {
    let mut inputs = pairs(&edges());
    inputs.extend(
        (0..0x800u64).map(|n| [bits(f32::from_bits(0x3300_0000 + n as u32 * 0x8000)), 0, 0, 0]),
    );
    let is_nan = |v: u64| f(v).is_nan();
    check("cvt.rn.f16.f32 %d16, %a32;", "%d16", &inputs, |[a, ..]| {
        if is_nan(a) { 0x7fff } else { half::f16::from_f32(f(a)).to_bits().into() }
    });
    check("cvt.rn.bf16.f32 %d16, %a32;", "%d16", &inputs, |[a, ..]| {
        if is_nan(a) { 0x7fff } else { half::bf16::from_f32(f(a)).to_bits().into() }
    });
    let pair = "cvt.rn.bf16x2.f32 %d32, %a32, %b32;";
    check(pair, "%d32", &moderate(), |[a, b, ..]| {
        let [a, b] = [a, b].map(|v| u64::from(half::bf16::from_f32(f(v)).to_bits()));
        a << 16 | b
    });
    let all: Vec<[u64; 4]> = (0..0x1_0000u64).map(|v| [v, 0, 0, 0]).collect();
    for inputs in all.chunks(1024) {
        let found = super::evaluate("cvt.f32.f16 %d32, %a16;", "%d32", inputs);
        for (input, found) in inputs.iter().zip(found) {
            let expected = half::f16::from_bits(input[0] as u16).to_f32();
            assert!(f(found) == expected || (f(found).is_nan() && expected.is_nan()));
        }
    }
}

#[test]
fn half_arithmetic_rounds_once() {
    let halves: Vec<[u64; 4]> = moderate()
        .iter()
        .map(|row| row.map(|v| u64::from(half::bf16::from_f32(f(v)).to_bits())))
        .collect();
    check("fma.rn.bf16 %d16, %a16, %b16, %c16;", "%d16", &halves, |[a, b, c, _]| {
        let [a, b, c] = [a, b, c].map(|v| half::bf16::from_bits(v as u16).to_f64());
        // Exact in f64 for numbers of this size.
        u64::from(half::bf16::from_f64(a * b + c).to_bits())
    });
    check(
        "add.rn.f16x2 %d32, %a32, %b32;",
        "%d32",
        &pairs(&[0x3c00_4000, 0x7bff_0001]),
        |[a, b, ..]| {
            let sum = |at: u32| {
                let [a, b] = [a, b].map(|v| half::f16::from_bits((v >> at) as u16).to_f32());
                let sum = half::f16::from_f32(a + b);
                if sum.is_nan() { 0x7fff } else { u64::from(sum.to_bits()) }
            };
            sum(0) | sum(16) << 16
        },
    );
}

/// The value of an 8-bit format with so many mantissa bits, from its definition.
fn value8(bits: u8, n_mantissa_bits: i32, bias: i32) -> f64 {
    let exponent = i32::from(bits & 0x7f) >> n_mantissa_bits;
    let mantissa = f64::from(bits & ((1 << n_mantissa_bits) - 1)) / 2f64.powi(n_mantissa_bits);
    let magnitude = if exponent == 0 {
        mantissa * 2f64.powi(1 - bias)
    } else {
        (1.0 + mantissa) * 2f64.powi(exponent - bias)
    };
    if bits & 0x80 != 0 { -magnitude } else { magnitude }
}

/// The code with the nearest value, the even one of two; finite codes end at `last`.
fn nearest8(value: f64, last: u8, n_mantissa_bits: i32, bias: i32) -> u64 {
    if value.is_nan() {
        return 0x7f;
    }
    // Far beyond all codes, f64 would not tell their distances apart.
    let magnitude = value.abs().min(1e6);
    let distance = |code: u8| (value8(code, n_mantissa_bits, bias) - magnitude).abs();
    let code = (0..=last)
        .min_by(|a, b| distance(*a).total_cmp(&distance(*b)).then_with(|| (a & 1).cmp(&(b & 1))))
        .unwrap();
    u64::from(code) | if value.is_sign_negative() { 0x80 } else { 0 }
}

#[test]
fn eight_bit_floats_round_to_the_nearest_code_and_saturate() {
    let mut inputs = pairs(&edges());
    inputs.extend(moderate());
    inputs.extend((0..=255u8).map(|code| {
        let midpoint = (value8(code, 3, 7) + value8(code.wrapping_add(1), 3, 7)) / 2.0;
        [bits(midpoint as f32), bits(value8(code, 2, 15) as f32 * 1.125), 0, 0]
    }));
    check("cvt.rn.satfinite.e4m3x2.f32 %d16, %a32, %b32;", "%d16", &inputs, |[a, b, ..]| {
        let code = |v: u64| nearest8(f(v).into(), 0x7e, 3, 7);
        code(a) << 8 | code(b)
    });
    check("cvt.rn.satfinite.e5m2x2.f32 %d16, %a32, %b32;", "%d16", &inputs, |[a, b, ..]| {
        let code = |v: u64| nearest8(f(v).into(), 0x7b, 2, 15);
        code(a) << 8 | code(b)
    });
    let codes: Vec<[u64; 4]> = (0..256).map(|code| [code | code << 8, 0, 0, 0]).collect();
    check("cvt.rn.f16x2.e4m3x2 %d32, %a16;", "%d32", &codes, |[code, ..]| {
        let code = code as u8;
        let half = if code & 0x7f == 0x7f {
            0x7fff
        } else {
            half::f16::from_f64(value8(code, 3, 7)).to_bits()
        };
        u64::from(half) << 16 | u64::from(half)
    });
}

#[test]
fn conversions_to_integers_clamp_and_nan_is_zero() {
    check("cvt.rzi.s32.f32 %d32, %a32;", "%d32", &pairs(&edges()), |[a, ..]| {
        u64::from(f(a) as i32 as u32)
    });
    check("cvt.rni.u32.f32 %d32, %a32;", "%d32", &pairs(&edges()), |[a, ..]| {
        u64::from(f(a).round_ties_even() as u32)
    });
    check("cvt.rmi.s64.f32 %d64, %a32;", "%d64", &pairs(&edges()), |[a, ..]| {
        f(a).floor() as i64 as u64
    });
    check("cvt.rpi.f32.f32 %d32, %b32;", "%d32", &moderate(), |[_, b, ..]| bits(f(b).ceil()));
    check("cvt.rn.f32.s64 %d32, %a64;", "%d32", &pairs(&[1, 1 << 53, (1 << 24) + 1]), |[a, ..]| {
        bits(a as i64 as f32)
    });
    check(
        "cvt.rz.f32.u32 %d32, %a32;",
        "%d32",
        &pairs(&[0xffff_ffff, (1 << 24) + 1]),
        |[a, ..]| {
            let a = f64::from(a as u32);
            let (below, _) = around(a);
            bits(below)
        },
    );
    check("cvt.rna.tf32.f32 %d32, %a32;", "%d32", &moderate(), |[a, ..]| {
        (a + 0x1000) & 0xffff_e000
    });
}

#[test]
fn doubles_are_ieee() {
    let inputs: Vec<[u64; 4]> =
        moderate().iter().map(|row| row.map(|v| f64::from(f(v)).to_bits() ^ 0x1234_5678)).collect();
    check("fma.rn.f64 %d64, %a64, %b64, %c64;", "%d64", &inputs, |row| {
        let [a, b, c, _] = row.map(f64::from_bits);
        a.mul_add(b, c).to_bits()
    });
    check("cvt.rz.f32.f64 %d32, %a64;", "%d32", &inputs, |[a, ..]| {
        let exact = f64::from_bits(a);
        let (below, above) = around(exact);
        bits(if exact > 0.0 { below } else { above })
    });
}
