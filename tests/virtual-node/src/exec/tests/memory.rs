//! Loads, stores, atomic operations, and the spaces of memory.

use super::{Buffer, Shape, kernel, launch, run};

#[test]
fn vectors_and_narrow_elements() {
    let source = Buffer::new(&(0..64u8).map(|byte| byte.wrapping_mul(37)).collect::<Vec<_>>());
    let target = Buffer::of_words(&[0; 16]);
    let body = "ld.param.u64 %rd0, [p0]; ld.param.u64 %rd1, [p1];\n\
                ld.global.v4.u32 {%r0, %r1, %r2, %r3}, [%rd0+16];\n\
                st.global.v2.u32 [%rd1], {%r3, %r0};\n\
                ld.global.s8 %r4, [%rd0+7]; ld.global.u16 %r5, [%rd0+6];\n\
                ld.global.nc.L1::no_allocate.v2.s16 {%r6, %r7}, [%rd0+4];\n\
                st.global.v4.u32 [%rd1+16], {%r4, %r5, %r6, %r7};\n\
                ld.global.s16 %rd2, [%rd0+6]; st.global.u64 [%rd1+8], %rd2;\n\
                st.global.v2.u8 [%rd1+32], {%r0, %r1}; add.u64 %rd3, %rd1, 40;\n\
                st.volatile.global.u16 [%rd3+-4], %r2;";
    run(body, &Shape::threads(1), &[source.address, target.address]).unwrap();
    let bytes = source.bytes();
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let half = |at: usize| i16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
    let out = target.words();
    assert_eq!(out[..2], [word(28), word(16)]);
    assert_eq!(out[2..4], [half(6) as u32, (i32::from(half(6)) >> 31) as u32]);
    assert_eq!(out[4..6], [bytes[7] as i8 as u32, u32::from(half(6) as u16)]);
    assert_eq!(out[6..8], [half(4) as u32, half(6) as u32]);
    assert_eq!(out[8], u32::from(bytes[16]) | u32::from(bytes[20]) << 8);
    assert_eq!(out[9], word(24) & 0xffff);
}

#[test]
fn whole_warps_and_scattered_lanes_access_alike() {
    // Copies 64 words, forwards with stride 4, and backwards, for each space of addresses.
    let words: Vec<u32> = (0..64).map(|n| n * 3 + 1).collect();
    let source = Buffer::of_words(&words);
    for (index, expected) in [
        ("mov.u32 %r1, %r0;", words.clone()),
        ("sub.u32 %r1, 63, %r0;", words.iter().rev().copied().collect()),
        ("mov.u32 %r1, 5;", vec![words[5]; 64]),
    ] {
        let target = Buffer::of_words(&[0; 64]);
        let body = format!(
            "mov.u32 %r0, %tid.x; ld.param.u64 %rd0, [p0]; ld.param.u64 %rd1, [p1]; {index}\n\
             mad.wide.u32 %rd0, %r1, 4, %rd0; mad.wide.u32 %rd1, %r0, 4, %rd1;\n\
             ld.global.u32 %r2, [%rd0];\n\
             mov.u32 %r3, dynamic; mad.lo.u32 %r3, %r0, 4, %r3; st.shared.u32 [%r3], %r2;\n\
             bar.sync 0;\n mov.u64 %rd2, dynamic; cvta.shared.u64 %rd2, %rd2;\n\
             mad.wide.u32 %rd2, %r0, 4, %rd2; ld.u32 %r4, [%rd2]; st.u32 [%rd1], %r4;"
        );
        let shape = Shape { dynamic_shared_bytes: 256, ..Shape::threads(64) };
        run(&body, &shape, &[source.address, target.address]).unwrap();
        assert_eq!(target.words(), expected, "{index}");
    }
}

#[test]
fn local_memory_is_each_threads_own() {
    let target = Buffer::of_words(&[0; 64]);
    let body = ".local .align 8 .b8 mine[16]; mov.u32 %r0, %tid.x; ld.param.u64 %rd0, [p0];\n\
                mov.u64 %rd1, mine; cvta.local.u64 %rd2, %rd1; st.u32 [%rd2+4], %r0;\n\
                bar.sync 0; ld.local.u32 %r1, [mine+4]; mad.wide.u32 %rd0, %r0, 4, %rd0;\n\
                st.global.u32 [%rd0], %r1; isspacep.local %p0, %rd2; isspacep.shared %p1, %rd2;\n\
                @!%p0 trap; @%p1 trap;";
    run(body, &Shape::threads(64), &[target.address]).unwrap();
    assert_eq!(target.words(), (0..64).collect::<Vec<u32>>());
}

#[test]
fn parameters_of_any_size_and_generic_addresses_of_them() {
    let text = ".version 8.5\n.target sm_90a\n.address_size 64\n\
        .entry test(.param .u64 .ptr .global .align 16 out, .param .align 16 .b8 blob[32])\n{\n\
        .reg .b32 %r<4>; .reg .b64 %rd<4>;\nld.param.u64 %rd0, [out]; \
        ld.param.v2.u32 {%r0, %r1}, [blob+8];\n\
        mov.b64 %rd1, blob; cvta.param.u64 %rd2, %rd1; ld.u32 %r2, [%rd2+28];\n\
        add.u32 %r0, %r0, %r1; add.u32 %r0, %r0, %r2; st.global.u32 [%rd0], %r0; ret;\n}";
    let out = Buffer::of_words(&[0]);
    let params = [out.address, 0, 0, 5 | 7 << 32, 0, 11 << 32];
    launch(text, &Shape::threads(1), &params).unwrap();
    assert_eq!(out.words(), [23]);
}

#[test]
fn atomic_operations_of_every_kind() {
    let cases = [
        ("add.u32", 7, 40u32, 0, 47u32),
        ("min.s32", -3i32 as u32, 2, 0, -3i32 as u32),
        ("max.u32", -3i32 as u32, 2, 0, -3i32 as u32),
        ("inc.u32", 5, 5, 0, 0),
        ("inc.u32", 5, 9, 0, 6),
        ("dec.u32", 0, 9, 0, 9),
        ("dec.u32", 12, 9, 0, 9),
        ("dec.u32", 4, 9, 0, 3),
        ("exch.b32", 4, 9, 0, 9),
        ("and.b32", 6, 3, 0, 2),
        ("or.b32", 6, 3, 0, 7),
        ("xor.b32", 6, 3, 0, 5),
        ("cas.b32", 6, 6, 9, 9),
        ("cas.b32", 6, 7, 9, 6),
        ("add.f32", 0x3fc0_0000, 0x4000_0000, 0, 0x4060_0000),
        ("add.noftz.f16x2", 0x3c00_4000, 0x3c00_3c00, 0, 0x4000_4200),
        ("add.noftz.bf16x2", 0x3f80_4000, 0x3f80_3f80, 0, 0x4000_4040),
    ];
    for (operation, old, a, b, expected) in cases {
        let cell = Buffer::of_words(&[old, 0]);
        let second = if operation.starts_with("cas") { format!(", {b}") } else { String::new() };
        let body = format!(
            "ld.param.u64 %rd0, [p0]; \
            atom.acq_rel.gpu.global.{operation} %r0, [%rd0], {a}{second};\n\
             st.global.u32 [%rd0+4], %r0;"
        );
        run(&body, &Shape::threads(1), &[cell.address]).unwrap();
        assert_eq!(cell.words(), [expected, old], "{operation} of {old:#x}, {a:#x}");
    }
}

#[test]
fn atomic_sums_from_all_workers_lose_nothing() {
    let cells = Buffer::new(&[0; 32]);
    let body = "ld.param.u64 %rd0, [p0]; red.global.add.u32 [%rd0], 1;\n\
                red.relaxed.gpu.global.add.f32 [%rd0+4], 0f3F800000; cvt.rn.f64.u32 %fd0, 2;\n\
                atom.global.add.f64 %fd1, [%rd0+8], %fd0;\n\
                red.global.add.v2.f32 [%rd0+16], {0f3F800000, 0f40000000};";
    let shape = Shape { grid: 64, n_workers: 2, ..Shape::threads(96) };
    run(body, &shape, &[cells.address]).unwrap();
    let words = cells.words();
    assert_eq!(words[0], 64 * 96);
    assert_eq!(f32::from_bits(words[1]), 6144.0);
    let sum = f64::from_bits(u64::from(words[2]) | u64::from(words[3]) << 32);
    assert_eq!(sum, 12288.0);
    assert_eq!(
        words[4..6].iter().map(|w| f32::from_bits(*w)).collect::<Vec<_>>(),
        [6144.0, 12288.0]
    );
}

#[test]
fn bytes_and_flops_are_counted() {
    let buffer = Buffer::of_words(&[0; 64]);
    let body = "mov.u32 %r0, %tid.x; ld.param.u64 %rd0, [p0]; mad.wide.u32 %rd0, %r0, 4, %rd0;\n\
                ld.global.f32 %f0, [%rd0]; fma.rn.f32 %f1, %f0, %f0, %f0; \
                setp.lt.u32 %p0, %r0, 40;\n\
                @%p0 st.global.f32 [%rd0], %f1;";
    let counters = run(body, &Shape::threads(64), &[buffer.address]).unwrap();
    assert_eq!((counters.bytes_read, counters.bytes_written), (256, 160));
    assert_eq!((counters.flops.f32, counters.n_launches, counters.n_blocks), (128, 1, 1));
    // With the `ret` of the kernel.
    assert_eq!(counters.n_warp_instructions, 2 * 8);
}

#[test]
fn globals_and_constants_are_where_the_launch_says() {
    let text =
        kernel("ld.param.u64 %rd0, [p0]; ld.const.u32 %r0, [table+4]; st.global.u32 [%rd0], %r0;");
    let text = text.replace(
        ".visible",
        ".const .align 4 .u32 table[3] = {1, 2};\n\
         .global .align 8 .u64 self = generic(table)+4;\n.visible",
    );
    let module = crate::ptx::load(&text).unwrap();
    assert_eq!(module.globals.len(), 2);
    let table = &module.globals[0];
    assert_eq!((table.name.as_str(), table.n_bytes, table.constant), ("table", 12, true));
    assert_eq!(table.initial, [1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(module.globals[1].addresses, [(0, 0, 4)]);
}
