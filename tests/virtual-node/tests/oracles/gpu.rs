//! One GPU through the plain driver API, whichever libcuda the process finds: the virtual node's
//! here, a real one's on a machine that has it.

use std::ffi::{CString, c_void};
use std::sync::Arc;

use cudarc::driver::sys::CUfunction_attribute_enum as FunctionAttribute;
use cudarc::driver::{CudaContext, result, sys};

/// Device 0, current in this thread.
pub(crate) struct Gpu {
    context: Arc<CudaContext>,
}

/// A loaded module.
pub(crate) struct Module(sys::CUmodule);

/// Device memory, freed with its process.
#[derive(Clone, Copy)]
pub(crate) struct Buffer {
    pub(crate) address: u64,
    pub(crate) n_bytes: usize,
}

/// An argument of a kernel.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Map(pub(crate) [u8; 128]);

/// An argument of a kernel.
#[derive(Clone, Copy)]
pub(crate) enum Arg {
    Pointer(Buffer),
    I32(i32),
    I64(i64),
    F32(f32),
    Map(Map),
}

/// Blocks, threads of a block, dynamic shared memory.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(crate) grid: (u32, u32, u32),
    pub(crate) n_threads: u32,
    pub(crate) shared_bytes: u32,
}

impl Gpu {
    pub(crate) fn open() -> Gpu {
        let context = CudaContext::new(0).expect("a device");
        context.bind_to_thread().expect("a thread of its own");
        Gpu { context }
    }

    pub(crate) fn load(&self, ptx: &str) -> Module {
        let text = CString::new(ptx).expect("no zero bytes in PTX");
        // SAFETY: the image is text that ends in a zero byte, as the driver wants PTX.
        Module(unsafe { result::module::load_data(text.as_ptr().cast()) }.expect("PTX that loads"))
    }

    pub(crate) fn upload(&self, bytes: &[u8]) -> Buffer {
        // SAFETY: the memory is written before anyone reads it.
        unsafe {
            let address = result::malloc_sync(bytes.len()).expect("room");
            result::memcpy_htod_sync(address, bytes).expect("a copy");
            Buffer { address, n_bytes: bytes.len() }
        }
    }

    pub(crate) fn download(&self, buffer: Buffer) -> Vec<u8> {
        let mut bytes = vec![0; buffer.n_bytes];
        // SAFETY: the buffer is as long as the host's memory, and the copy is synchronous.
        unsafe { result::memcpy_dtoh_sync(&mut bytes, buffer.address) }.expect("a copy");
        bytes
    }

    /// Runs a kernel to its end.
    pub(crate) fn run(&self, module: &Module, name: &str, size: Size, args: &mut [Arg]) {
        let function = CString::new(name).expect("no zero bytes in a name");
        let mut pointers: Vec<*mut c_void> = args.iter_mut().map(Arg::pointer).collect();
        let attribute = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the module is loaded, the arguments live until the launch returns and are those
        // of the kernel, which the tables of the tests pair with its name.
        unsafe {
            let function = result::module::get_function(module.0, function).expect(name);
            result::function::set_function_attribute(function, attribute, size.shared_bytes as i32)
                .expect("a legal size");
            let block = (size.n_threads, 1, 1);
            let stream = std::ptr::null_mut();
            result::launch_kernel(
                function,
                size.grid,
                block,
                size.shared_bytes,
                stream,
                &mut pointers,
            )
            .expect(name);
        }
        self.context.synchronize().unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

impl Arg {
    fn pointer(&mut self) -> *mut c_void {
        match self {
            Arg::Pointer(buffer) => (&raw mut buffer.address).cast(),
            Arg::I32(value) => (&raw mut *value).cast(),
            Arg::I64(value) => (&raw mut *value).cast(),
            Arg::F32(value) => (&raw mut *value).cast(),
            Arg::Map(map) => (&raw mut map.0).cast(),
        }
    }
}

/// What a tensor map describes; sizes are elements, the contiguous dimension first.
pub(crate) struct Tensor<'a> {
    pub(crate) data_type: sys::CUtensorMapDataType,
    pub(crate) at: Buffer,
    pub(crate) dims: &'a [u64],
    /// Bytes between neighbours along each dimension but the first.
    pub(crate) strides: &'a [u64],
    pub(crate) box_dims: &'a [u32],
    pub(crate) swizzle: sys::CUtensorMapSwizzle,
}

impl Tensor<'_> {
    pub(crate) fn map(&self) -> Map {
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        let steps = vec![1u32; self.dims.len()];
        // SAFETY: the arrays are as long as the rank says, or one shorter.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                self.data_type,
                self.dims.len() as u32,
                self.at.address as *mut c_void,
                self.dims.as_ptr(),
                self.strides.as_ptr(),
                self.box_dims.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                self.swizzle,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_NONE,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
            .result()
            .expect("a legal tensor map");
        }
        let words = map.opaque.map(u64::to_le_bytes);
        Map(std::array::from_fn(|i| words[i / 8][i % 8]))
    }
}
