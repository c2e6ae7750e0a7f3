//! Kernels from PTX text: on every device, within the limits, and what their faults leave behind.

use std::ffi::CStr;
use std::ptr::null_mut;

use cudarc::driver::sys::{self, CUresult};

use crate::support::{
    Context, Launch, cu, device_bytes, device_words, function, new_stream, ok, read_words,
};

/// `scale(x, factor)` multiplies the word of each thread, `reach(x)` writes a word,
/// `bounded()` may have 64 threads, `shaped()` has 32 by 2, `timed(x)` says in nanoseconds what a
/// loop took.
const PTX: &CStr = c"
.version 8.5
.target sm_90a
.address_size 64
.global .align 4 .u32 counter = 41;
.visible .entry scale(.param .u64 x, .param .u64 factor)
{
    .reg .b32 %r<8>;
    .reg .b64 %rd<6>;
    ld.param.u64 %rd1, [x];
    ld.param.u64 %rd2, [factor];
    cvta.to.global.u64 %rd3, %rd1;
    mov.u32 %r1, %ctaid.x;
    mov.u32 %r2, %ntid.x;
    mov.u32 %r3, %tid.x;
    mad.lo.s32 %r4, %r1, %r2, %r3;
    mul.wide.u32 %rd4, %r4, 4;
    add.s64 %rd5, %rd3, %rd4;
    ld.global.u32 %r5, [%rd5];
    cvt.u32.u64 %r6, %rd2;
    mul.lo.s32 %r7, %r5, %r6;
    st.global.u32 [%rd5], %r7;
    ret;
}
.visible .entry reach(.param .u64 x)
{
    .reg .b32 %r<2>;
    .reg .b64 %rd<2>;
    ld.param.u64 %rd1, [x];
    mov.u32 %r1, 7;
    st.global.u32 [%rd1], %r1;
    ret;
}
.visible .entry bounded()
.maxntid 64, 1, 1
{
    ret;
}
.visible .entry shaped()
.reqntid 32, 2, 1
{
    ret;
}
.visible .entry stop()
{
    trap;
    ret;
}
.visible .entry timed(.param .u64 x)
{
    .reg .pred %p<2>;
    .reg .b32 %r<2>;
    .reg .b64 %rd<5>;
    ld.param.u64 %rd1, [x];
    mov.u64 %rd2, %globaltimer;
    mov.u32 %r1, 0;
again:
    add.u32 %r1, %r1, 1;
    setp.lt.u32 %p1, %r1, 10000;
    @%p1 bra again;
    mov.u64 %rd3, %globaltimer;
    sub.u64 %rd4, %rd3, %rd2;
    st.global.u64 [%rd1], %rd4;
    ret;
}
";

#[test]
fn one_kernel_runs_on_all_devices() {
    for ordinal in 0..8 {
        let _context = Context::new(ordinal);
        let words: Vec<u32> = (0..1000).collect();
        let address = device_words(&words);
        let launch = Launch::new(function(PTX, c"scale"), 10, 100);
        ok(launch.run(&[address, 3 + ordinal as u64]));
        let expected: Vec<u32> = words.iter().map(|word| word * (3 + ordinal as u32)).collect();
        assert_eq!(read_words(address, 1000), expected);
    }
}

#[test]
fn events_and_kernels_read_one_clock() {
    let _context = Context::new(0);
    let (address, stream) = (device_words(&[0, 0]), null_mut());
    let mut events = [null_mut(); 2];
    for event in &mut events {
        ok(cu!(cuEventCreate(event, 0)));
    }
    let [start, end] = events;
    ok(cu!(cuEventRecord(start, stream)));
    ok(Launch::new(function(PTX, c"timed"), 1, 1).run(&[address]));
    ok(cu!(cuEventRecord(end, stream)));
    ok(cu!(cuEventSynchronize(end)));
    let mut n_ms = 0.0;
    ok(cu!(cuEventElapsedTime(&mut n_ms, start, end)));
    let words = read_words(address, 2);
    let loop_ms = (u64::from(words[1]) << 32 | u64::from(words[0])) as f64 / 1e6;
    assert!(loop_ms > 0.0, "a loop takes time");
    // To what a float of milliseconds can tell.
    assert!(f64::from(n_ms) * (1.0 + 1e-6) >= loop_ms, "{n_ms} ms around {loop_ms} ms");
}

#[test]
fn variables_hold_what_the_module_says() {
    let _context = Context::new(0);
    let (mut module, mut address, mut n_bytes) = (null_mut(), 0, 0);
    ok(cu!(cuModuleLoadData(&mut module, PTX.as_ptr().cast())));
    ok(cu!(cuModuleGetGlobal_v2(&mut address, &mut n_bytes, module, c"counter".as_ptr())));
    assert_eq!((read_words(address, 1), n_bytes), (vec![41], 4));
    let missing = cu!(cuModuleGetGlobal_v2(&mut address, &mut n_bytes, module, c"x".as_ptr()));
    assert_eq!(missing, CUresult::CUDA_ERROR_NOT_FOUND);
    ok(cu!(cuModuleUnload(module)));
}

#[test]
fn launches_keep_within_the_limits() {
    let _context = Context::new(0);
    let (bounded, shaped) = (function(PTX, c"bounded"), function(PTX, c"shaped"));
    let invalid = CUresult::CUDA_ERROR_INVALID_VALUE;
    let resources = CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
    ok(Launch::new(bounded, 1, 64).run(&[]));
    assert_eq!(Launch::new(bounded, 1, 65).run(&[]), resources);
    assert_eq!(Launch::new(bounded, 1, 1025).run(&[]), invalid);
    assert_eq!(Launch::new(bounded, 0, 64).run(&[]), invalid);
    assert_eq!(Launch::new(bounded, 1, 0).run(&[]), invalid);
    assert_eq!(Launch::new(bounded, 1 << 31, 1).run(&[]), invalid);
    assert_eq!(Launch::new(shaped, 1, 64).run(&[]), invalid);
    ok(cu!(cuCtxSynchronize()));
}

#[test]
fn dynamic_shared_memory_must_be_asked_for() {
    let _context = Context::new(0);
    let function = function(PTX, c"bounded");
    let mut launch = Launch::new(function, 1, 32);
    launch.dynamic_shared_bytes = 48 << 10;
    ok(launch.run(&[]));
    launch.dynamic_shared_bytes = (48 << 10) + 1;
    assert_eq!(launch.run(&[]), CUresult::CUDA_ERROR_INVALID_VALUE);
    let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    ok(cu!(cuFuncSetAttribute(function, attribute, 227 << 10)));
    ok(launch.run(&[]));
    let answer = cu!(cuFuncSetAttribute(function, attribute, (227 << 10) + 1));
    assert_eq!(answer, CUresult::CUDA_ERROR_INVALID_VALUE);
    ok(cu!(cuCtxSynchronize()));
}

#[test]
fn clusters_divide_the_grid() {
    let _context = Context::new(0);
    let function = function(PTX, c"bounded");
    let stream = new_stream();
    let run = |n_blocks: u32, cluster: u32| {
        let mut value = sys::CUlaunchAttributeValue { pad: [0; 64] };
        value.clusterDim.x = cluster;
        value.clusterDim.y = 1;
        value.clusterDim.z = 1;
        let id = sys::CUlaunchAttributeID_enum::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
        let mut attribute = sys::CUlaunchAttribute { id, pad: [0; 4], value };
        let config = sys::CUlaunchConfig {
            gridDimX: n_blocks,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: 32,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: 0,
            hStream: stream,
            attrs: &mut attribute,
            numAttrs: 1,
        };
        cu!(cuLaunchKernelEx(&config, function, null_mut(), null_mut()))
    };
    ok(run(8, 4));
    assert_eq!(run(9, 4), CUresult::CUDA_ERROR_INVALID_CLUSTER_SIZE);
    assert_eq!(run(16, 16), CUresult::CUDA_ERROR_INVALID_CLUSTER_SIZE);
    let attribute =
        sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED;
    ok(cu!(cuFuncSetAttribute(function, attribute, 1)));
    ok(run(16, 16));
    ok(cu!(cuStreamSynchronize(stream)));
}

#[test]
fn too_many_blocks_do_not_run_at_once() {
    let _context = Context::new(0);
    let function = function(PTX, c"bounded");
    let run = |n_blocks: u32| {
        let none = null_mut();
        cu!(cuLaunchCooperativeKernel(function, n_blocks, 1, 1, 64, 1, 1, 0, none, null_mut()))
    };
    ok(run(132 * 32));
    assert_eq!(run(132 * 32 + 1), CUresult::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE);
    ok(cu!(cuCtxSynchronize()));
}

#[test]
fn a_stream_runs_its_own_contexts_functions() {
    let _first = Context::new(0);
    let function = function(PTX, c"bounded");
    let _second = Context::new(1);
    let mut launch = Launch::new(function, 1, 32);
    launch.stream = new_stream();
    assert_eq!(launch.run(&[]), CUresult::CUDA_ERROR_INVALID_HANDLE);
}

#[test]
fn an_illegal_access_stays() {
    let context = Context::new(2);
    let reach = function(PTX, c"reach");
    let address = device_bytes(1024);
    ok(Launch::new(reach, 1, 1).run(&[address + 1020]));
    ok(cu!(cuCtxSynchronize()));
    ok(Launch::new(reach, 1, 1).run(&[address + 1024]));
    let illegal = CUresult::CUDA_ERROR_ILLEGAL_ADDRESS;
    assert_eq!(cu!(cuCtxSynchronize()), illegal);
    assert_eq!(cu!(cuCtxSynchronize()), illegal);
    let mut other = 0;
    assert_eq!(cu!(cuMemAlloc_v2(&mut other, 4)), illegal);
    assert_eq!(Launch::new(reach, 1, 1).run(&[address]), illegal);
    drop(context);
    // Another context of the same device knows nothing of it.
    let _fresh = Context::new(2);
    device_bytes(4);
    ok(cu!(cuCtxSynchronize()));
}

#[test]
fn faults_have_the_codes_of_the_real_driver() {
    for (name, offset, expected) in [
        (c"reach", 2, CUresult::CUDA_ERROR_MISALIGNED_ADDRESS),
        (c"reach", 1 << 30, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS),
        (c"stop", 0, CUresult::CUDA_ERROR_LAUNCH_FAILED),
    ] {
        let _context = Context::new(0);
        let address = device_bytes(1024);
        ok(Launch::new(function(PTX, name), 1, 1).run(&[address + offset]));
        assert_eq!(cu!(cuCtxSynchronize()), expected, "{name:?}");
    }
}

#[test]
fn a_kernel_may_not_use_what_was_freed() {
    let _context = Context::new(0);
    let reach = function(PTX, c"reach");
    let address = device_bytes(1024);
    ok(cu!(cuMemFree_v2(address)));
    ok(Launch::new(reach, 1, 1).run(&[address]));
    assert_eq!(cu!(cuCtxSynchronize()), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
}

#[test]
fn a_kernel_reaches_a_peer_only_with_leave() {
    let far = Context::new(3);
    let address = device_words(&[0]);
    for (may_reach, expected) in
        [(false, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS), (true, CUresult::CUDA_SUCCESS)]
    {
        let _near = Context::new(4);
        if may_reach {
            ok(cu!(cuCtxEnablePeerAccess(far.0, 0)));
        }
        ok(Launch::new(function(PTX, c"reach"), 1, 1).run(&[address]));
        assert_eq!(cu!(cuCtxSynchronize()), expected);
    }
    far.make_current();
    assert_eq!(read_words(address, 1), [7]);
}

#[test]
fn bad_modules_are_refused_with_a_reason() {
    let _context = Context::new(0);
    let mut module = null_mut();
    let load = |module: &mut _, text: &CStr| cu!(cuModuleLoadData(module, text.as_ptr().cast()));
    let broken = c".version 8.5\n.target sm_90a\n.address_size 64\n.entry f() { nonsense; }";
    assert_eq!(load(&mut module, broken), CUresult::CUDA_ERROR_INVALID_PTX);
    let foreign = c".version 8.7\n.target sm_100\n.address_size 64\n";
    assert_eq!(load(&mut module, foreign), CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
    let fatbin: [u8; 16] = [0x50, 0xed, 0x55, 0xba, 1, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let answer = cu!(cuModuleLoadData(&mut module, fatbin.as_ptr().cast()));
    assert_eq!(answer, CUresult::CUDA_ERROR_INVALID_IMAGE);
    let mut log = [0u8; 256];
    let mut options = [
        sys::CUjit_option_enum::CU_JIT_ERROR_LOG_BUFFER,
        sys::CUjit_option_enum::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
    ];
    let mut values = [log.as_mut_ptr().cast(), 256 as *mut _];
    let answer = cu!(cuModuleLoadDataEx(
        &mut module,
        broken.as_ptr().cast(),
        2,
        options.as_mut_ptr(),
        values.as_mut_ptr(),
    ));
    assert_eq!(answer, CUresult::CUDA_ERROR_INVALID_PTX);
    let text = CStr::from_bytes_until_nul(&log).expect("a zero").to_str().expect("ASCII");
    assert!(text.contains("nonsense"), "{text}");
}

#[test]
fn occupancy_follows_from_threads_and_shared_memory() {
    let _context = Context::new(0);
    let function = function(PTX, c"bounded");
    let n_blocks = |n_threads, shared_bytes| {
        let mut n_blocks = 0;
        ok(cu!(cuOccupancyMaxActiveBlocksPerMultiprocessor(
            &mut n_blocks,
            function,
            n_threads,
            shared_bytes,
        )));
        n_blocks
    };
    assert_eq!(n_blocks(64, 0), 32);
    assert_eq!(n_blocks(1024, 0), 2);
    assert_eq!(n_blocks(64, 100 << 10), 2);
    assert_eq!(n_blocks(64, 228 << 10), 0);
}
