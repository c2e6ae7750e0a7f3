//! Integer, bit and predicate instructions.

use super::{check, pairs};

/// Values at which integer instructions break.
const EDGES: &[u64] = &[
    0,
    1,
    2,
    31,
    32,
    33,
    63,
    64,
    255,
    0x7fff,
    0x8000,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0xffff_ffff_ffff_ffff,
];

/// As signed 32 bits.
fn s(value: u64) -> i64 {
    i64::from(value as i32)
}

fn u(value: u64) -> u64 {
    value & 0xffff_ffff
}

fn check32(instruction: &str, expected: impl Fn(u64, u64, u64) -> u64) {
    let instruction = format!("{instruction} %d32, %a32, %b32;");
    check(&instruction, "%d32", &pairs(EDGES), |[a, b, c, _]| u(expected(a, b, c)));
}

#[test]
fn sums_and_products() {
    check32("add.s32", |a, b, _| a.wrapping_add(b));
    check32("sub.u32", |a, b, _| a.wrapping_sub(b));
    check32("add.sat.s32", |a, b, _| (s(a) + s(b)).clamp(i32::MIN.into(), i32::MAX.into()) as u64);
    check32("mul.lo.s32", |a, b, _| u(a).wrapping_mul(u(b)));
    check32("mul.hi.u32", |a, b, _| (u(a) * u(b)) >> 32);
    check32("mul.hi.s32", |a, b, _| ((s(a) * s(b)) >> 32) as u64);
    check32("mul24.lo.u32", |a, b, _| (a & 0xff_ffff) * (b & 0xff_ffff));
    check("mul.wide.s32 %d64, %a32, %b32;", "%d64", &pairs(EDGES), |[a, b, ..]| {
        (s(a) * s(b)) as u64
    });
    check("mul.wide.u16 %d32, %a16, %b16;", "%d32", &pairs(EDGES), |[a, b, ..]| {
        (a & 0xffff) * (b & 0xffff)
    });
    check("mul.hi.u64 %d64, %a64, %b64;", "%d64", &pairs(EDGES), |[a, b, ..]| {
        ((u128::from(a) * u128::from(b)) >> 64) as u64
    });
    check("mad.wide.s32 %d64, %a32, %b32, %c64;", "%d64", &pairs(EDGES), |[a, b, c, _]| {
        ((s(a) * s(b)) as u64).wrapping_add(c)
    });
    check("mad.lo.s64 %d64, %a64, %b64, %c64;", "%d64", &pairs(EDGES), |[a, b, c, _]| {
        a.wrapping_mul(b).wrapping_add(c)
    });
    check("mad.hi.u32 %d32, %a32, %b32, %c32;", "%d32", &pairs(EDGES), |[a, b, c, _]| {
        u(((u(a) * u(b)) >> 32) + u(c))
    });
    check("sad.s32 %d32, %a32, %b32, %c32;", "%d32", &pairs(EDGES), |[a, b, c, _]| {
        u(c.wrapping_add((s(a) - s(b)).unsigned_abs()))
    });
}

#[test]
fn carries_run_through_wide_sums() {
    let sum = "{ .reg .b32 %x<6>; mov.b64 {%x0, %x1}, %a64; mov.b64 {%x2, %x3}, %b64;\n\
               add.cc.u32 %x4, %x0, %x2; addc.u32 %x5, %x1, %x3; mov.b64 %d64, {%x4, %x5}; }";
    check(sum, "%d64", &pairs(EDGES), |[a, b, ..]| a.wrapping_add(b));
    let difference = sum.replace("add.cc", "sub.cc").replace("addc", "subc");
    check(&difference, "%d64", &pairs(EDGES), |[a, b, ..]| a.wrapping_sub(b));
    let product = "{ .reg .b32 %x<4>; mov.b64 {%x0, %x1}, %c64;\n\
                   mad.lo.cc.u32 %x2, %a32, %b32, %x0; madc.hi.u32 %x3, %a32, %b32, %x1;\n\
                   mov.b64 %d64, {%x2, %x3}; }";
    check(product, "%d64", &pairs(EDGES), |[a, b, c, _]| (u(a) * u(b)).wrapping_add(c));
}

#[test]
fn quotients_and_remainders_of_zero_are_defined() {
    check32("div.u32", |a, b, _| if u(b) == 0 { !0 } else { u(a) / u(b) });
    check32("rem.u32", |a, b, _| if u(b) == 0 { a } else { u(a) % u(b) });
    check32("div.s32", |a, b, _| if s(b) == 0 { !0 } else { s(a).wrapping_div(s(b)) as u64 });
    check32("rem.s32", |a, b, _| if s(b) == 0 { a } else { (s(a) % s(b)) as u64 });
}

#[test]
fn extremes_and_magnitudes() {
    check32("min.s32", |a, b, _| s(a).min(s(b)) as u64);
    check32("max.u32", |a, b, _| u(a).max(u(b)));
    check("abs.s32 %d32, %a32;", "%d32", &pairs(EDGES), |[a, ..]| u(s(a).unsigned_abs()));
    check("neg.s16 %d16, %a16;", "%d16", &pairs(EDGES), |[a, ..]| {
        u64::from((a as u16).wrapping_neg())
    });
    check("min.s16x2 %d32, %a32, %b32;", "%d32", &pairs(EDGES), |[a, b, ..]| {
        let half = |at: u32| {
            let (a, b) = ((a >> at) as i16, (b >> at) as i16);
            u64::from(a.min(b) as u16) << at
        };
        half(0) | half(16)
    });
}

#[test]
fn shifts_clamp() {
    check32("shl.b32", |a, b, _| if u(b) > 31 { 0 } else { a << u(b) });
    check32("shr.u32", |a, b, _| if u(b) > 31 { 0 } else { u(a) >> u(b) });
    check32("shr.s32", |a, b, _| (s(a) >> u(b).min(31)) as u64);
    check("shr.s64 %d64, %a64, %b32;", "%d64", &pairs(EDGES), |[a, b, ..]| {
        (a as i64 >> u(b).min(63)) as u64
    });
    check("shl.b16 %d16, %a16, %b32;", "%d16", &pairs(EDGES), |[a, b, ..]| {
        if u(b) > 15 { 0 } else { a << u(b) & 0xffff }
    });
    let pair = |a: u64, b: u64| u(b) << 32 | u(a);
    check("shf.l.wrap.b32 %d32, %a32, %b32, %c32;", "%d32", &pairs(EDGES), |[a, b, c, _]| {
        u(pair(a, b) << (c & 31) >> 32)
    });
    check("shf.r.clamp.b32 %d32, %a32, %b32, %c32;", "%d32", &pairs(EDGES), |[a, b, c, _]| {
        u(pair(a, b) >> u(c).min(32))
    });
}

#[test]
fn bits_are_counted_and_found() {
    check("popc.b64 %d32, %a64;", "%d32", &pairs(EDGES), |[a, ..]| {
        (0..64).filter(|bit| a >> bit & 1 == 1).count() as u64
    });
    check("clz.b32 %d32, %a32;", "%d32", &pairs(EDGES), |[a, ..]| {
        (0..32).take_while(|bit| a >> (31 - bit) & 1 == 0).count() as u64
    });
    check("brev.b32 %d32, %a32;", "%d32", &pairs(EDGES), |[a, ..]| {
        (0..32).fold(0, |out, bit| out | (a >> bit & 1) << (31 - bit))
    });
    let highest = |a: u64| (0..32).rev().find(|bit| a >> bit & 1 == 1);
    check("bfind.u32 %d32, %a32;", "%d32", &pairs(EDGES), |[a, ..]| {
        highest(a).map_or(0xffff_ffff, |bit| bit)
    });
    check("bfind.shiftamt.s32 %d32, %a32;", "%d32", &pairs(EDGES), |[a, ..]| {
        let a = if s(a) < 0 { !a } else { a };
        highest(a).map_or(0xffff_ffff, |bit| 31 - bit)
    });
}

#[test]
fn fields_are_extracted_and_inserted() {
    let inputs: Vec<[u64; 4]> =
        pairs(EDGES).into_iter().map(|[a, b, c, e]| [a, b, c % 40, e % 40]).collect();
    check("bfe.u32 %d32, %a32, %c32, %e32;", "%d32", &inputs, |[a, _, at, n]| {
        (0..n)
            .filter(|bit| at + bit < 32)
            .fold(0, |out, bit| if bit > 31 { out } else { out | (a >> (at + bit) & 1) << bit })
    });
    // The ISA's own definition, bit by bit.
    check("bfe.s32 %d32, %a32, %c32, %e32;", "%d32", &inputs, |[a, _, at, n]| {
        let sign = if n == 0 { 0 } else { a >> (at + n - 1).min(31) & 1 };
        (0..32).fold(0, |out, bit| {
            let value = if bit < n && at + bit <= 31 { a >> (at + bit) & 1 } else { sign };
            out | value << bit
        })
    });
    check("bfi.b32 %d32, %a32, %b32, %c32, %e32;", "%d32", &inputs, |[a, b, at, n]| {
        (0..n)
            .filter(|bit| at + bit < 32)
            .fold(u(b), |out, bit| out & !(1 << (at + bit)) | (a >> bit & 1) << (at + bit))
    });
}

#[test]
fn lookup_tables_of_three_bits() {
    for table in [0u64, 0x96, 0xe8, 0xca, 0x80, 0x1b, 0xff] {
        let instruction = format!("lop3.b32 %d32, %a32, %b32, %c32, {table};");
        check(&instruction, "%d32", &pairs(EDGES), |[a, b, c, _]| {
            (0..32).fold(0, |out, bit| {
                let [a, b, c] = [a, b, c].map(|v| v >> bit & 1);
                out | (table >> (a << 2 | b << 1 | c) & 1) << bit
            })
        });
    }
}

#[test]
fn bytes_are_permuted_in_every_mode() {
    let bytes = |a: u64, b: u64| u(b) << 32 | u(a);
    let pick = |value: u64, from: u64, to: u32| (value >> (8 * from) & 0xff) << (8 * to);
    check("prmt.b32 %d32, %a32, %b32, %c32;", "%d32", &pairs(EDGES), |[a, b, c, _]| {
        (0..4).fold(0, |out, at| {
            let selector = c >> (4 * at) & 15;
            let byte = bytes(a, b) >> (8 * (selector & 7)) & 0xff;
            let byte = match (selector & 8, byte & 0x80) {
                (0, _) => byte,
                (_, 0) => 0,
                _ => 0xff,
            };
            out | byte << (8 * at)
        })
    });
    // Tables of the ISA: source byte of each target byte, for selectors 0 to 3.
    let modes: [(&str, [[u64; 4]; 4]); 6] = [
        ("f4e", [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5], [3, 4, 5, 6]]),
        ("b4e", [[0, 7, 6, 5], [1, 0, 7, 6], [2, 1, 0, 7], [3, 2, 1, 0]]),
        ("rc8", [[0; 4], [1; 4], [2; 4], [3; 4]]),
        ("ecl", [[0, 1, 2, 3], [1, 1, 2, 3], [2, 2, 2, 3], [3, 3, 3, 3]]),
        ("ecr", [[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 2, 2], [0, 1, 2, 3]]),
        ("rc16", [[0, 1, 0, 1], [2, 3, 2, 3], [0, 1, 0, 1], [2, 3, 2, 3]]),
    ];
    for (mode, table) in modes {
        let instruction = format!("prmt.b32.{mode} %d32, %a32, %b32, %c32;");
        check(&instruction, "%d32", &pairs(EDGES), |[a, b, c, _]| {
            let sources = table[(c & 3) as usize];
            (0..4).fold(0, |out, at| out | pick(bytes(a, b), sources[at as usize], at))
        });
    }
}

#[test]
fn bytes_are_multiplied_and_added_up() {
    check("dp4a.s32.u32 %d32, %a32, %b32, %c32;", "%d32", &pairs(EDGES), |[a, b, c, _]| {
        let product = |at: u32| i64::from((a >> at) as i8) * i64::from((b >> at) as u8);
        u((s(c) + product(0) + product(8) + product(16) + product(24)) as u64)
    });
}

#[test]
fn comparisons_combine_and_negate() {
    check("setp.lt.s32 %q, %a32, %b32;", "%q", &pairs(EDGES), |[a, b, ..]| u64::from(s(a) < s(b)));
    check("setp.hs.u32 %q, %a32, %b32;", "%q", &pairs(EDGES), |[a, b, ..]| u64::from(u(a) >= u(b)));
    check("setp.ne.b16 %q, %a16, %b16;", "%q", &pairs(EDGES), |[a, b, ..]| {
        u64::from(a as u16 != b as u16)
    });
    let both = "setp.gt.u64 %s, %c64, %e64; setp.lt.and.s64 %w|%q, %a64, %b64, !%s;";
    check(both, "%q", &pairs(EDGES), |[a, b, c, e]| u64::from((a as i64 >= b as i64) && c <= e));
    check("set.le.u32.s32 %d32, %a32, %b32;", "%d32", &pairs(EDGES), |[a, b, ..]| {
        if s(a) <= s(b) { 0xffff_ffff } else { 0 }
    });
    check("slct.b32.s32 %d32, %a32, %b32, %c32;", "%d32", &pairs(EDGES), |[a, b, c, _]| {
        u(if s(c) >= 0 { a } else { b })
    });
    let logic = "setp.lt.u32 %s, %a32, %b32; setp.lt.u32 %w, %b32, %c32;\n\
                 xor.pred %q, %s, %w; not.pred %q, %q; @!%s or.pred %q, %q, %w;";
    check(logic, "%q", &pairs(EDGES), |[a, b, c, _]| {
        let (s, w) = (u(a) < u(b), u(b) < u(c));
        let q = s == w;
        u64::from(if s { q } else { q || w })
    });
}

#[test]
fn registers_are_packed_and_unpacked() {
    let swap = "{ .reg .b16 %x<4>; mov.b64 {%x0, %x1, %x2, %x3}, %a64;\n\
                mov.b64 %d64, {%x3, %x2, %x1, %x0}; }";
    check(swap, "%d64", &pairs(EDGES), |[a, ..]| {
        (0..4).fold(0, |out, at| out | (a >> (16 * at) & 0xffff) << (48 - 16 * at))
    });
    check(
        "{ .reg .b16 %x; mov.b32 {_, %x}, %a32; mov.b32 %d32, {%x, %b16}; }",
        "%d32",
        &pairs(EDGES),
        |[a, b, ..]| u(a) >> 16 | (b & 0xffff) << 16,
    );
}

#[test]
fn integers_change_width_and_saturate() {
    check("cvt.s64.s8 %d64, %a32;", "%d64", &pairs(EDGES), |[a, ..]| a as i8 as i64 as u64);
    check("cvt.u32.s16 %d32, %a16;", "%d32", &pairs(EDGES), |[a, ..]| u(a as i16 as u64));
    check("cvt.sat.s8.s32 %d32, %a32;", "%d32", &pairs(EDGES), |[a, ..]| {
        u(s(a).clamp(-128, 127) as u64)
    });
    check("cvt.sat.u16.s64 %d16, %a64;", "%d16", &pairs(EDGES), |[a, ..]| {
        (a as i64).clamp(0, 65535) as u64
    });
    check("cvt.pack.sat.s16.s32 %d32, %a32, %b32;", "%d32", &pairs(EDGES), |[a, b, ..]| {
        let half = |v: u64| s(v).clamp(-32768, 32767) as u64 & 0xffff;
        half(a) << 16 | half(b)
    });
}
