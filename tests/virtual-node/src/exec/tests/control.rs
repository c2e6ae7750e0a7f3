//! Where threads go: divergence, loops, calls, barriers, blocks that wait for each other.

use super::{Buffer, Shape, evaluate, launch, run};

fn numbers(n: u64) -> Vec<[u64; 4]> {
    (0..n).map(|lane| [lane, 0, 0, 0]).collect()
}

#[test]
fn lanes_part_and_meet_again() {
    let body = "and.b32 %i, %a32, 3; setp.eq.u32 %s, %i, 0; @%s bra A; setp.eq.u32 %s, %i, 1;\n\
                @%s bra B; mov.u32 %d32, 30; bra JOIN;\n\
                A: mov.u32 %d32, 10; bra JOIN;\n\
                B: mov.u32 %d32, 20;\nJOIN: activemask.b32 %i; add.u32 %d32, %d32, %i;";
    let found = evaluate(body, "%d32", &numbers(32));
    for (lane, value) in found.iter().enumerate() {
        // All 32 lanes have met: the mask is all ones, which is -1.
        let expected = [10, 20, 30, 30][lane % 4] - 1;
        assert_eq!(*value, expected, "lane {lane}");
    }
}

#[test]
fn loops_run_as_often_as_each_lane_wants() {
    // Collatz steps, whose counts differ wildly between lanes.
    let body = "add.u32 %b32, %a32, 1; mov.u32 %d32, 0;\n\
                LOOP: setp.eq.u32 %s, %b32, 1; @%s bra DONE; and.b32 %c32, %b32, 1;\n\
                setp.eq.u32 %w, %c32, 0; @%w shr.u32 %b32, %b32, 1; @%w bra NEXT;\n\
                mad.lo.u32 %b32, %b32, 3, 1;\nNEXT: add.u32 %d32, %d32, 1; bra LOOP;\nDONE:";
    let expected: Vec<u64> = (1..=96u64)
        .map(|start| {
            let (mut n, mut steps) = (start, 0);
            while n != 1 {
                n = if n % 2 == 0 { n / 2 } else { 3 * n + 1 };
                steps += 1;
            }
            steps
        })
        .collect();
    assert_eq!(evaluate(body, "%d32", &numbers(96)), expected);
}

#[test]
fn tables_of_branches() {
    let body = "and.b32 %i, %a32, 3; mov.u32 %d32, 0;\nTABLE: .branchtargets L0, L1, L2, L1;\n\
                brx.idx %i, TABLE;\nL0: add.u32 %d32, %d32, 1;\nL1: add.u32 %d32, %d32, 10;\n\
                L2: add.u32 %d32, %d32, 100;";
    let expected: Vec<u64> = (0..32).map(|lane| [111, 110, 100, 110][lane % 4]).collect();
    assert_eq!(evaluate(body, "%d32", &numbers(32)), expected);
}

#[test]
fn threads_leave_early_and_the_rest_goes_on() {
    let out = Buffer::of_words(&[0; 64]);
    let body = "mov.u32 %r0, %tid.x; ld.param.u64 %rd0, [p0]; mad.wide.u32 %rd0, %r0, 4, %rd0;\n\
                and.b32 %r1, %r0, 1; setp.eq.u32 %p0, %r1, 0; @%p0 exit;\n\
                bar.sync 0; activemask.b32 %r2; st.global.u32 [%rd0], %r2;";
    run(body, &Shape::threads(64), &[out.address]).unwrap();
    let expected: Vec<u32> = (0..64).map(|t| if t % 2 == 0 { 0 } else { 0xaaaa_aaaa }).collect();
    assert_eq!(out.words(), expected);
}

#[test]
fn functions_are_called_with_their_own_names() {
    let text = ".version 8.5\n.target sm_90a\n.address_size 64\n\
        .func (.param .b32 result) power(.param .b32 base, .param .b32 n)\n{\n\
        .reg .b32 %r<5>; .reg .pred %p<2>;\nld.param.u32 %r1, [base]; ld.param.u32 %r2, [n];\n\
        mov.u32 %r3, 1;\n$L1: setp.eq.u32 %p1, %r2, 0; @%p1 bra $L2; mul.lo.u32 %r3, %r3, %r1;\n\
        sub.u32 %r2, %r2, 1; bra $L1;\n$L2: st.param.b32 [result], %r3; ret;\n}\n\
        .visible .entry test(.param .u64 out)\n{\n.reg .b32 %r<5>; .reg .b64 %rd<3>; \
        .reg .pred %p<2>;\n\
        mov.u32 %r1, %tid.x; ld.param.u64 %rd1, [out]; mad.wide.u32 %rd1, %r1, 4, %rd1;\n\
        mov.u32 %r3, 77; setp.lt.u32 %p1, %r1, 6;\n\
        { // callseq 0, 0\n.param .b32 base; st.param.b32 [base+0], 3; .param .b32 n;\n\
        st.param.b32 [n+0], %r1; .param .b32 retval0;\n@%p1 call.uni (retval0), power, (base, n);\n\
        @%p1 ld.param.b32 %r3, [retval0+0];\n}\n\
        {\n.param .b32 base; st.param.b32 [base+0], %r3; .param .b32 n; st.param.b32 [n], 1;\n\
        .param .b32 retval0; call (retval0), power, (base, n); ld.param.b32 %r2, [retval0];\n}\n\
        st.global.u32 [%rd1], %r2; ret;\n}";
    let out = Buffer::of_words(&[0; 8]);
    launch(text, &Shape::threads(8), &[out.address]).unwrap();
    assert_eq!(out.words(), [1, 3, 9, 27, 81, 243, 77, 77]);
}

#[test]
fn braces_hide_names() {
    let body = "mov.u32 %d32, 1; { .reg .b32 %d; mov.u32 %d, 5; bra DONE; mov.u32 %d, 9;\n\
                DONE: add.u32 %d32, %d32, %d; } { .reg .b32 %d; mov.u32 %d, 7; bra DONE;\n\
                mov.u32 %d, 9; DONE: add.u32 %d32, %d32, %d; }";
    assert_eq!(evaluate(body, "%d32", &numbers(1)), [13]);
}

#[test]
fn named_barriers_count_threads() {
    // Two warps produce, two consume; a reduction over all follows.
    let out = Buffer::of_words(&[0; 128]);
    let body = "mov.u32 %r0, %tid.x; ld.param.u64 %rd0, [p0]; mad.wide.u32 %rd0, %r0, 4, %rd0;\n\
                mov.u32 %r1, dynamic; setp.ge.u32 %p0, %r0, 64; @%p0 bra CONSUME;\n\
                mad.lo.u32 %r2, %r0, 4, %r1; st.shared.u32 [%r2], %r0; bar.arrive 3, 128; \
                bra END;\n\
                CONSUME: bar.sync 3, 128; sub.u32 %r3, 127, %r0; mad.lo.u32 %r2, %r3, 4, %r1;\n\
                ld.shared.u32 %r4, [%r2]; st.global.u32 [%rd0], %r4;\n\
                END: setp.lt.u32 %p1, %r0, 100; bar.red.popc.u32 %r5, 0, %p1;\n\
                barrier.red.or.aligned.pred %p2, 1, !%p1; @!%p2 trap;\n\
                @!%p0 st.global.u32 [%rd0], %r5;";
    let shape = Shape { dynamic_shared_bytes: 512, ..Shape::threads(128) };
    run(body, &shape, &[out.address]).unwrap();
    let words = out.words();
    assert_eq!(words[..64], [100; 64]);
    assert_eq!(words[64..], (0..64).rev().collect::<Vec<u32>>());
}

#[test]
fn blocks_of_a_grid_may_wait_for_each_other() {
    // A barrier of the grid: every block spins until all have come, on one worker and on two.
    let body = "ld.param.u64 %rd0, [p0]; mov.u32 %r0, %tid.x; setp.ne.u32 %p0, %r0, 0; \
    @%p0 bra WAIT;\n\
                atom.add.release.gpu.global.u32 %r1, [%rd0], 1;\n\
                WAIT: ld.acquire.gpu.global.u32 %r2, [%rd0]; setp.lt.u32 %p1, %r2, 24; \
                @%p1 bra WAIT;\n\
                red.global.add.u32 [%rd0+4], 1;";
    for n_workers in [1, 2] {
        let cells = Buffer::of_words(&[0; 2]);
        let shape = Shape { grid: 24, n_workers, ..Shape::threads(64) };
        run(
            &body.replace("atom.add.release.gpu.global.u32", "atom.release.gpu.global.add.u32"),
            &shape,
            &[cells.address],
        )
        .unwrap();
        assert_eq!(cells.words(), [24, 24 * 64]);
    }
}

#[test]
fn a_lane_may_wait_for_another_of_its_warp() {
    // Lane 0 spins on what lane 1 writes afterwards, further down.
    let cell = Buffer::of_words(&[0]);
    let body = "ld.param.u64 %rd0, [p0]; mov.u32 %r0, %tid.x; setp.ne.u32 %p0, %r0, 0; \
    @%p0 bra WRITE;\n\
                WAIT: ld.volatile.global.u32 %r2, [%rd0]; setp.eq.u32 %p1, %r2, 0; @%p1 bra WAIT;\n\
                bra END;\nWRITE: setp.ne.u32 %p2, %r0, 1;\n\
                @!%p2 st.volatile.global.u32 [%rd0], 1;\nEND:";
    run(body, &Shape::threads(32), &[cell.address]).unwrap();
    assert_eq!(cell.words(), [1]);
}

#[test]
fn blocks_of_a_cluster_reach_each_others_shared_memory() {
    let out = Buffer::of_words(&[0; 8]);
    let body = "ld.param.u64 %rd0, [p0]; mov.u32 %r0, %cluster_ctarank; mov.u32 %r1, %ctaid.x;\n\
                mov.u32 %r2, dynamic; add.u32 %r3, %r1, 100; st.shared.u32 [%r2], %r3;\n\
                barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;\n\
                xor.b32 %r4, %r0, 1; mapa.shared::cluster.u32 %r5, %r2, %r4;\n\
                ld.shared::cluster.u32 %r6, [%r5]; getctarank.shared::cluster.u32 %r7, %r5;\n\
                mad.lo.u32 %r6, %r7, 1000, %r6; mad.wide.u32 %rd0, %r1, 4, %rd0;\n\
                st.global.u32 [%rd0], %r6; barrier.cluster.arrive; barrier.cluster.wait;";
    let shape = Shape { grid: 8, cluster: 4, dynamic_shared_bytes: 16, ..Shape::threads(32) };
    run(body, &shape, &[out.address]).unwrap();
    let expected: Vec<u32> =
        (0..8u32).map(|block| (block ^ 1) % 4 * 1000 + 100 + (block ^ 1)).collect();
    assert_eq!(out.words(), expected);
}

#[test]
fn threads_know_their_place() {
    let text = super::kernel(
        "ld.param.u64 %rd0, [p0]; mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x; \
        mov.u32 %r2, %ntid.x;\n\
         mad.lo.u32 %r3, %r1, %r2, %r0; mad.wide.u32 %rd1, %r3, 8, %rd0; mov.u32 %r4, %laneid;\n\
         mov.u32 %r5, %lanemask_lt; popc.b32 %r5, %r5; sub.u32 %r5, %r5, %r4;\n\
         mov.u32 %r6, %warpid; mov.u32 %r7, %nctaid.x; mad.lo.u32 %r6, %r7, 100, %r6;\n\
         st.global.v2.u32 [%rd1], {%r5, %r6};",
    );
    let out = Buffer::of_words(&[9; 160]);
    let shape = Shape { grid: 2, ..Shape::threads(40) };
    launch(&text, &shape, &[out.address, 0, 0, 0]).unwrap();
    for (thread, pair) in out.words().chunks(2).enumerate() {
        assert_eq!(pair, [0, 200 + thread as u32 % 40 / 32]);
    }
}
