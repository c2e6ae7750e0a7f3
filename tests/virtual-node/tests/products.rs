//! Products through cuBLASLt's C functions, as a program calls them: in a graph, with factors that
//! the device reads, and refused where the real library refuses.

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

use cudarc::cublaslt::sys::{
    self, cublasComputeType_t, cublasLtMatmulDescAttributes_t as Desc,
    cublasLtMatmulHeuristicResult_t as Heuristic, cublasLtMatmulPreferenceAttributes_t as Wish,
    cublasStatus_t as Status, cudaDataType_t as Type,
};
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, DevicePtrMut};
use virtual_node::client::Node;

const OK: Status = Status::CUBLAS_STATUS_SUCCESS;
/// FP8: one, two, minus a half.
const ONE: u8 = 0x38;
const TWO: u8 = 0x40;
const MINUS_HALF: u8 = 0xb0;

/// The library's objects for `d[n][m] = sum over k of a[m][k] b[n][k]`, FP8 to BF16.
struct Product {
    handle: sys::cublasLtHandle_t,
    desc: sys::cublasLtMatmulDesc_t,
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    preference: sys::cublasLtMatmulPreference_t,
}

impl Product {
    /// With the current context's device.
    fn new(m: u64, n: u64, k: u64) -> Product {
        let mut product = Product {
            handle: ptr::null_mut(),
            desc: ptr::null_mut(),
            layouts: [ptr::null_mut(); 3],
            preference: ptr::null_mut(),
        };
        let compute = cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let (f8, bf16) = (Type::CUDA_R_8F_E4M3, Type::CUDA_R_16BF);
        let [a, b, d] = &mut product.layouts;
        // SAFETY: places for the answers.
        unsafe {
            assert_eq!(sys::cublasLtCreate(&mut product.handle), OK);
            let desc = &mut product.desc;
            assert_eq!(sys::cublasLtMatmulDescCreate(desc, compute, Type::CUDA_R_32F), OK);
            assert_eq!(sys::cublasLtMatrixLayoutCreate(a, f8, k, m, k as i64), OK);
            assert_eq!(sys::cublasLtMatrixLayoutCreate(b, f8, k, n, k as i64), OK);
            assert_eq!(sys::cublasLtMatrixLayoutCreate(d, bf16, m, n, m as i64), OK);
            assert_eq!(sys::cublasLtMatmulPreferenceCreate(&mut product.preference), OK);
        }
        product.set(Desc::CUBLASLT_MATMUL_DESC_TRANSA, 1u32);
        product
    }

    fn set<T>(&self, attribute: Desc, value: T) {
        let bytes = (&raw const value).cast::<c_void>();
        // SAFETY: a live descriptor, and a value of the size that is told.
        let status = unsafe {
            sys::cublasLtMatmulDescSetAttribute(self.desc, attribute, bytes, size_of::<T>())
        };
        assert_eq!(status, OK);
    }

    fn allow_workspace(&self, n_bytes: usize) {
        let bytes = (&raw const n_bytes).cast::<c_void>();
        let wish = Wish::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        // SAFETY: a live preference, and a value of eight bytes.
        let status =
            unsafe { sys::cublasLtMatmulPreferenceSetAttribute(self.preference, wish, bytes, 8) };
        assert_eq!(status, OK);
    }

    fn algorithms(&self, n_max: usize) -> Result<Vec<Heuristic>, Status> {
        let [a, b, d] = self.layouts;
        // SAFETY: numbers alone, which are written over.
        let mut found: Vec<Heuristic> = vec![unsafe { std::mem::zeroed() }; n_max];
        let mut n_found = 0;
        // SAFETY: live objects, and room for as many answers as are asked for.
        let status = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                self.desc,
                a,
                b,
                d,
                d,
                self.preference,
                n_max as i32,
                found.as_mut_ptr(),
                &mut n_found,
            )
        };
        found.truncate(n_found as usize);
        if status == OK { Ok(found) } else { Err(status) }
    }

    fn submit(&self, stream: &CudaStream, buffers: &Buffers, algorithm: &Heuristic) -> Status {
        let (one, zero) = (1.0f32, 0.0f32);
        let [a, b, d] = self.layouts;
        // SAFETY: live objects, device memory, and two floats.
        unsafe {
            sys::cublasLtMatmul(
                self.handle,
                self.desc,
                (&raw const one).cast(),
                buffers.a as *const c_void,
                a,
                buffers.b as *const c_void,
                b,
                (&raw const zero).cast(),
                buffers.d as *const c_void,
                d,
                buffers.d as *mut c_void,
                d,
                &algorithm.algo,
                ptr::null_mut(),
                0,
                stream.cu_stream().cast(),
            )
        }
    }
}

/// Device addresses.
struct Buffers {
    a: u64,
    b: u64,
    d: u64,
}

fn stream(ordinal: usize) -> Arc<CudaStream> {
    let context = CudaContext::new(ordinal).expect("a device");
    // SAFETY: everything runs on one stream.
    unsafe { context.disable_event_tracking() };
    context.new_stream().expect("a stream")
}

fn address<T>(stream: &CudaStream, slice: &CudaSlice<T>) -> u64 {
    slice.device_ptr(stream).0
}

fn bf16s(stream: &Arc<CudaStream>, slice: &CudaSlice<u16>) -> Vec<f32> {
    let bits = stream.clone_dtoh(slice).expect("a copy");
    bits.into_iter().map(|bits| f32::from_bits(u32::from(bits) << 16)).collect()
}

#[test]
fn a_graph_reads_the_factors_of_its_launch() {
    let stream = stream(0);
    let (m, n, k) = (32, 3, 64);
    let product = Product::new(m, n, k);
    let a = stream.clone_htod(&vec![TWO; (m * k) as usize]).unwrap();
    let mut rows = vec![ONE; (n * k) as usize];
    rows[k as usize..][..k as usize].fill(MINUS_HALF);
    let b = stream.clone_htod(&rows).unwrap();
    let mut d = stream.alloc_zeros::<u16>((m * n) as usize).unwrap();
    let mut scale = stream.clone_htod(&[1.0f32]).unwrap();
    product.set(Desc::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, address(&stream, &scale));
    let algorithm = product.algorithms(1).unwrap()[0];
    let d_address = d.device_ptr_mut(&stream).0;
    let buffers = Buffers { a: address(&stream, &a), b: address(&stream, &b), d: d_address };

    let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    stream.begin_capture(mode).unwrap();
    assert_eq!(product.submit(&stream, &buffers, &algorithm), OK);
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).unwrap().unwrap();
    assert_eq!(bf16s(&stream, &d), vec![0.0; (m * n) as usize], "captured, not run");

    let node = Node::open().unwrap();
    for factor in [1.0f32, 0.25] {
        stream.memcpy_htod(&[factor], &mut scale).unwrap();
        node.reset();
        graph.launch().unwrap();
        let out = bf16s(&stream, &d);
        for (token, values) in out.chunks_exact(m as usize).enumerate() {
            let each = if token == 1 { -64.0 } else { 128.0 };
            assert_eq!(values, vec![each * factor; m as usize], "token {token}");
        }
        let kernel = node.counters().total().kernels["cublasLt e4m3->bf16 m=32 n=3 k=64"];
        assert_eq!((kernel.n_launches, kernel.flops.tensor_f8), (1, 2 * 32 * 3 * 64));
        assert_eq!((kernel.bytes_read, kernel.bytes_written), (32 * 64 + 3 * 64, 32 * 3 * 2));
    }
}

#[test]
fn algorithms_come_in_a_fixed_order_and_keep_to_the_workspace() {
    let _stream = stream(1);
    let product = Product::new(2304, 8, 16_384);
    let none = product.algorithms(8).unwrap();
    assert!(!none.is_empty() && none.iter().all(|found| found.workspaceSize == 0));
    product.allow_workspace(32 << 20);
    let some = product.algorithms(8).unwrap();
    assert!(some.len() > none.len() && some.iter().any(|found| found.workspaceSize > 0));
    assert_eq!(some, product.algorithms(8).unwrap());
}

#[test]
fn what_the_library_has_no_kernel_for_is_refused() {
    let _stream = stream(2);
    let refused = Status::CUBLAS_STATUS_NOT_SUPPORTED;
    assert_eq!(Product::new(40, 1, 64).algorithms(1).unwrap_err(), refused, "M");
    assert_eq!(Product::new(64, 1, 40).algorithms(1).unwrap_err(), refused, "K");
    let turned = Product::new(64, 64, 64);
    turned.set(Desc::CUBLASLT_MATMUL_DESC_TRANSA, 0u32);
    assert_eq!(turned.algorithms(1).unwrap_err(), refused, "not TN");
}

#[test]
fn a_handle_belongs_to_its_device_and_algorithms_to_their_kind() {
    let own = stream(3);
    let product = Product::new(16, 1, 16);
    let algorithm = product.algorithms(1).unwrap()[0];
    let memory = own.alloc_zeros::<u8>(4096).unwrap();
    let a = address(&own, &memory);
    let buffers = Buffers { a, b: a + 1024, d: a + 2048 };
    assert_eq!(product.submit(&own, &buffers, &algorithm), OK);
    let invalid = Status::CUBLAS_STATUS_INVALID_VALUE;
    assert_eq!(product.submit(&stream(4), &buffers, &algorithm), invalid, "another device");
    let mut foreign = algorithm;
    foreign.algo.data = [7; 8];
    assert_eq!(product.submit(&own, &buffers, &foreign), invalid, "no algorithm");
    let unaligned = Buffers { b: a + 1025, ..buffers };
    let refused = Status::CUBLAS_STATUS_NOT_SUPPORTED;
    assert_eq!(product.submit(&own, &unaligned, &algorithm), refused, "unaligned");
    own.synchronize().unwrap();
}

#[test]
fn reaching_beyond_an_allocation_ends_the_context() {
    let stream = stream(5);
    let product = Product::new(16, 1, 4096);
    let algorithm = product.algorithms(1).unwrap()[0];
    let memory = stream.alloc_zeros::<u8>(16 * 4096).unwrap();
    let a = address(&stream, &memory);
    let d = stream.alloc_zeros::<u16>(16).unwrap();
    let buffers = Buffers { a, b: a + 15 * 4096 + 16, d: address(&stream, &d) };
    assert_eq!(product.submit(&stream, &buffers, &algorithm), OK);
    assert!(stream.synchronize().is_err(), "B leaves its allocation");
    std::mem::forget((memory, d));
}
