//! Operations between lanes.

use super::{Buffer, Shape, evaluate, run};

/// Inputs of one warp: the lane's number twice and some mixture of it.
fn warp() -> Vec<[u64; 4]> {
    (0..32)
        .map(|lane: u64| [lane, lane * lane % 7, lane.wrapping_mul(0x9e37_79b9), 100 + lane])
        .collect()
}

#[test]
fn shuffles_clamp_at_segments() {
    // Each as the CUDA manual describes it, for a width of 8 (segment mask 0x18).
    let lanes = warp();
    let shuffle = |mode: &str, b: u32, c: u32| {
        let instruction = format!(
            "shfl.sync.{mode}.b32 %d32|%q, %e32, {b}, {c}, 0xffffffff;\n\
             @!%q add.u32 %d32, %d32, 1000;"
        );
        evaluate(&instruction, "%d32", &lanes)
    };
    let expect = |source: fn(u64) -> Option<u64>| -> Vec<u64> {
        (0..32).map(|lane| source(lane).map_or(1100 + lane, |source| 100 + source)).collect()
    };
    assert_eq!(shuffle("up", 3, 0x1800), expect(|l| (l % 8 >= 3).then(|| l - 3)));
    assert_eq!(shuffle("down", 3, 0x181f), expect(|l| (l % 8 < 5).then_some(l + 3)));
    assert_eq!(shuffle("bfly", 5, 0x181f), expect(|l| Some(l ^ 5)));
    assert_eq!(shuffle("idx", 13, 0x181f), expect(|l| Some(l / 8 * 8 + 5)));
    assert_eq!(shuffle("down", 1, 0x1f), expect(|l| (l < 31).then_some(l + 1)));
    assert_eq!(shuffle("bfly", 16, 0x1f), expect(|l| Some(l ^ 16)));
}

#[test]
fn votes_matches_and_reductions() {
    let lanes = warp();
    let odd = "and.b32 %i, %a32, 1; setp.eq.u32 %s, %i, 1;\n";
    let ballot = evaluate(&format!("{odd} vote.sync.ballot.b32 %d32, %s, -1;"), "%d32", &lanes);
    assert_eq!(ballot, [0xaaaa_aaaa; 32]);
    for (kind, expected) in [("all", 0), ("any", 1), ("uni", 0)] {
        let vote = evaluate(&format!("{odd} vote.sync.{kind}.pred %q, %s, -1;"), "%q", &lanes);
        assert_eq!(vote, [expected; 32], "{kind}");
    }
    let matched = evaluate("match.any.sync.b32 %d32, %b32, 0xffffffff;", "%d32", &lanes);
    for (lane, found) in matched.iter().enumerate() {
        let same = lanes.iter().enumerate().filter(|(_, other)| other[1] == lanes[lane][1]);
        assert_eq!(*found, same.fold(0, |mask, (other, _)| mask | 1 << other));
    }
    let all = evaluate("match.all.sync.b64 %d32|%q, %b64, 0xffffffff;", "%d32", &lanes);
    assert_eq!(all, [0; 32]);
    let sum = evaluate("redux.sync.add.s32 %d32, %a32, 0xffffffff;", "%d32", &lanes);
    assert_eq!(sum, [496; 32]);
    let least = evaluate("redux.sync.min.s32 %d32, %c32, 0xffffffff;", "%d32", &lanes);
    let expected = lanes.iter().map(|row| row[2] as i32).min().unwrap();
    assert_eq!(least, [u64::from(expected as u32); 32]);
    let elected = evaluate("elect.sync %d32|%q, 0xffffffff;", "%q", &lanes);
    assert_eq!(elected.iter().sum::<u64>(), 1);
    assert_eq!(elected[0], 1);
}

#[test]
fn lanes_of_a_mask_are_apart_from_the_rest() {
    // Only the upper half comes: it sees itself alone.
    let body = "setp.ge.u32 %s, %a32, 16; mov.u32 %d32, 7;\n\
                @!%s bra SKIP;\n redux.sync.add.u32 %d32, %a32, 0xffff0000;\n\
                activemask.b32 %i; xor.b32 %d32, %d32, %i;\nSKIP:";
    let found = evaluate(body, "%d32", &warp());
    assert_eq!(found[..16], [7; 16]);
    assert_eq!(found[16..], [376 ^ 0xffff_0000; 16]);
}

#[test]
fn lanes_wait_for_those_that_a_shuffle_names() {
    // Lanes loop a different number of times before they meet.
    let body = "mov.u32 %d32, 0;\nLOOP: setp.ge.u32 %s, %d32, %a32; @%s bra DONE;\n\
                add.u32 %d32, %d32, 1; bra LOOP;\n\
                DONE: shfl.sync.idx.b32 %d32, %d32, 31, 0x1f, 0xffffffff;";
    assert_eq!(evaluate(body, "%d32", &warp()), [31; 32]);
}

#[test]
fn barriers_of_a_warp_meet_at_different_instructions() {
    let body = "mov.u32 %r0, %tid.x; ld.param.u64 %rd0, [p0]; setp.lt.u32 %p0, %r0, 16;\n\
                @%p0 bra LOW;\nst.shared.u32 [dynamic], 5; bar.warp.sync 0xffffffff; bra END;\n\
                LOW: bar.warp.sync 0xffffffff; ld.shared.u32 %r1, [dynamic];\n\
                mad.wide.u32 %rd0, %r0, 4, %rd0; st.global.u32 [%rd0], %r1;\nEND:";
    let out = Buffer::of_words(&[0; 16]);
    let shape = Shape { dynamic_shared_bytes: 16, ..Shape::threads(32) };
    run(body, &shape, &[out.address]).unwrap();
    assert_eq!(out.words(), [5; 16]);
}
