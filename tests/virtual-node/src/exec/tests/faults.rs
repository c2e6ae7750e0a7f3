//! Every kind of fault is seen, and names its place.

use super::{Buffer, Shape, kernel, run};
use crate::exec::KernelFault;
use crate::exec::fault::Cause;
use crate::exec::inst::Space;
use crate::memory;
use crate::ptx;

fn fault(body: &str, shape: &Shape, params: &[u64]) -> KernelFault {
    run(body, shape, params).expect_err("the kernel is wrong")
}

#[test]
fn an_access_beyond_an_allocation_names_thread_and_line() {
    let buffer = Buffer::of_words(&[0; 63]);
    let body = "ld.param.u64 %rd0, [p0]; mov.u32 %r0, %tid.x; mad.wide.u32 %rd0, %r0, 4, %rd0;\n\
                st.global.u32 [%rd0], %r0;";
    let fault = fault(body, &Shape::threads(64), &[buffer.address]);
    assert_eq!((fault.kernel.as_str(), fault.thread, fault.block), ("test", [63, 0, 0], [0; 3]));
    assert_eq!(fault.text, "st.global.u32 [%rd0], %r0;");
    let line = kernel(body).lines().position(|line| line.contains("st.global")).unwrap();
    assert_eq!(fault.line as usize, line + 1);
    let is_memory = matches!(
        *fault.cause,
        Cause::Memory(memory::Fault::OutOfBounds { .. } | memory::Fault::Unmapped { .. })
    );
    assert!(is_memory, "{fault}");
}

#[test]
fn misaligned_accesses() {
    let buffer = Buffer::of_words(&[0; 8]);
    let body = "ld.param.u64 %rd0, [p0]; ld.global.v2.u32 {%r0, %r1}, [%rd0+4];";
    let found = *fault(body, &Shape::threads(32), &[buffer.address]).cause;
    assert!(matches!(found, Cause::Misaligned { space: Space::Global, n_bytes: 8, .. }), "{found}");
    let body = "mov.u32 %r0, dynamic; ld.shared.u64 %rd0, [%r0+4];";
    let shape = Shape { dynamic_shared_bytes: 64, ..Shape::threads(1) };
    let found = *fault(body, &shape, &[]).cause;
    assert!(matches!(found, Cause::Misaligned { space: Space::Shared, .. }), "{found}");
}

#[test]
fn accesses_beyond_shared_local_and_parameters() {
    let shape = Shape { dynamic_shared_bytes: 64, ..Shape::threads(32) };
    let found = *fault("st.shared.u32 [dynamic+64], 1;", &shape, &[]).cause;
    assert!(matches!(found, Cause::Bounds { space: Space::Shared, limit: 64, .. }), "{found}");
    let local = ".local .b8 mine[32]; mov.u64 %rd0, mine; st.local.u32 [%rd0+32], 1;";
    let found = *fault(local, &Shape::threads(1), &[]).cause;
    assert!(matches!(found, Cause::Bounds { space: Space::Local, .. }), "{found}");
    let found = *fault("ld.param.u32 %r0, [p3+8];", &Shape::threads(1), &[]).cause;
    assert!(matches!(found, Cause::Bounds { space: Space::Param, .. }), "{found}");
    let write = "mov.u64 %rd0, p0; cvta.param.u64 %rd1, %rd0; st.u32 [%rd1], 1;";
    let found = *fault(write, &Shape::threads(1), &[]).cause;
    assert!(matches!(found, Cause::ReadOnly { .. }), "{found}");
}

#[test]
fn a_barrier_that_only_some_lanes_reach() {
    let body = "mov.u32 %r0, %tid.x; setp.lt.u32 %p0, %r0, 7; @%p0 bra HERE; bar.sync 0; bra END;\n\
                HERE: bar.sync 0;\nEND:";
    let found = *fault(body, &Shape::threads(64), &[]).cause;
    assert_eq!(found, Cause::Unconverged { active: 0xffff_ff80, expected: !0 });
}

#[test]
fn a_shuffle_whose_lanes_do_not_come() {
    let body = "mov.u32 %r0, %tid.x; setp.lt.u32 %p0, %r0, 16; @%p0 bra HERE; bar.sync 0; \
    bra END;\n\
                HERE: shfl.sync.bfly.b32 %r1, %r0, 1, 31, 0xffffffff; bar.sync 0;\nEND:";
    let found = *fault(body, &Shape::threads(32), &[]).cause;
    assert!(matches!(found, Cause::Unconverged { .. }), "{found}");
}

#[test]
fn barriers_that_nobody_completes() {
    let body = "mov.u32 %r0, %tid.x; setp.lt.u32 %p0, %r0, 32; @%p0 bra A; bar.sync 2, 64; \
    bra END;\n\
                A: bar.sync 1, 64;\nEND:";
    let found = fault(body, &Shape::threads(64), &[]);
    assert_eq!(*found.cause, Cause::Deadlock { n_waiting: 2 });
    assert_eq!(found.text, "A: bar.sync 1, 64;");
    let uneven = "mov.u32 %r0, %tid.x; setp.lt.u32 %p0, %r0, 32; @%p0 bra A; bar.sync 1, 64; \
    bra END;\n\
                  A: bar.sync 1, 96;\nEND:";
    let found = *fault(uneven, &Shape::threads(64), &[]).cause;
    assert_eq!(found, Cause::BarrierCount { barrier: 1, found: 64, expected: 96 });
    let found = *fault("bar.sync 1, 33;", &Shape::threads(64), &[]).cause;
    assert!(matches!(found, Cause::BarrierUse { value: 33, .. }), "{found}");
    let found = *fault("mov.u32 %r0, 16; bar.sync %r0;", &Shape::threads(64), &[]).cause;
    assert!(matches!(found, Cause::BarrierUse { value: 16, .. }), "{found}");
}

#[test]
fn traps_and_tables_without_the_entry() {
    let found =
        fault("mov.u32 %r0, %tid.x; setp.eq.u32 %p0, %r0, 9; @%p0 trap;", &Shape::threads(32), &[]);
    assert_eq!((*found.cause, found.thread), (Cause::Trap, [9, 0, 0]));
    let table = "mov.u32 %r0, 2; T: .branchtargets A, A; brx.idx %r0, T;\nA:";
    let found = *fault(table, &Shape::threads(1), &[]).cause;
    assert_eq!(found, Cause::BranchTable { index: 2, n_targets: 2 });
}

#[test]
fn another_block_than_the_cluster_has() {
    let body = "mov.u32 %r0, dynamic; mapa.shared::cluster.u32 %r1, %r0, 3;\n\
                ld.shared::cluster.u32 %r2, [%r1];";
    let shape = Shape { grid: 2, cluster: 2, dynamic_shared_bytes: 16, ..Shape::threads(1) };
    let found = *fault(body, &shape, &[]).cause;
    assert_eq!(found, Cause::ClusterRank { rank: 3, n_blocks: 2 });
}

#[test]
fn launches_beyond_the_limits() {
    let found = *fault("", &Shape::threads(1056), &[]).cause;
    assert_eq!(found, Cause::Launch { what: "threads", found: 1056, limit: 1024 });
    let shape = Shape { dynamic_shared_bytes: 228 << 10, ..Shape::threads(32) };
    assert!(matches!(*fault("", &shape, &[]).cause, Cause::Launch { .. }));
}

#[test]
fn what_is_not_known_is_refused_with_its_line() {
    for (body, expected) in [
        ("frobnicate.b32 %r0, %r1;", "unknown opcode or modifier frobnicate.b32"),
        ("add.rn.sideways.f32 %f0, %f1, %f2;", "unknown opcode or modifier add.rn.sideways.f32"),
        ("ld.global.v2.sometimes.u32 {%r0, %r1}, [%rd0];", "unknown opcode"),
        ("add.u32 %r0, %r1, %nosuch;", "%nosuch is not declared here"),
        ("bra NOWHERE;", "NOWHERE is not declared here"),
        ("add.u32 %r0, %r1;", "has 2 operands instead of 3"),
        ("add.u32 %r0, %r1, %p1;", "operand 2 should be"),
        ("mul.lo.u32 %p0, %r1, %r1;", "operand 0 should be"),
        (".surf .b32 x;", "unknown directive .surf"),
        ("call (%r0), %rd1, (%r1);", "not supported"),
        ("ld.global.u32 %r0, [%rd0;", "unexpected"),
        ("fence.proxy;", "not supported"),
    ] {
        let text = kernel(body);
        let error = ptx::load(&text).expect_err(body);
        assert!(error.to_string().contains(expected), "{body}: {error}");
        let line = text.lines().position(|line| line == body).unwrap();
        assert_eq!(error.line as usize, line + 1, "{body}");
    }
}
