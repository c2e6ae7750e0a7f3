//! Kernels by name, and how one is launched.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CString, c_int, c_void};
use std::ptr;

use cudarc::driver::sys::{
    self, CUfunction, CUfunction_attribute as Attribute, CUlaunchAttribute, CUlaunchAttributeID,
    CUlaunchAttributeValue, CUlaunchConfig, CUmodule, CUresult,
};

use super::artifact::ARTIFACTS;
use super::driver::{check, check_late};
use super::memory::DevicePtr;
use super::stream::Stream;
use crate::device::DeviceError;

/// Most parameters of a kernel of ours.
const N_PARAMS_MAX: usize = 40;

/// An entry point of a family's device code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// The family's folder.
    pub family: &'static str,
    /// Its `extern "C"` name.
    pub name: &'static str,
}

/// How many threads run a kernel. Programmatic dependent launch would be one more field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchConfig {
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y and z.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// Neighbours in x that run at once and reach each other's shared memory; 1 for none. Divides
    /// the grid.
    pub cluster: u32,
}

/// One parameter of a kernel, as its signature has it.
#[derive(Clone, Copy, Debug)]
pub enum Param<'a> {
    /// A number or an address of at most eight bytes, the lowest first.
    Word(u64),
    /// A struct or an array that is passed by value.
    Bytes(&'a [u8]),
}

impl From<DevicePtr> for Param<'_> {
    fn from(value: DevicePtr) -> Self {
        Param::Word(value.0)
    }
}

impl From<u32> for Param<'_> {
    fn from(value: u32) -> Self {
        Param::Word(value.into())
    }
}

impl From<i32> for Param<'_> {
    fn from(value: i32) -> Self {
        Param::Word((value as u32).into())
    }
}

impl From<u64> for Param<'_> {
    fn from(value: u64) -> Self {
        Param::Word(value)
    }
}

impl From<i64> for Param<'_> {
    fn from(value: i64) -> Self {
        Param::Word(value as u64)
    }
}

impl From<f32> for Param<'_> {
    fn from(value: f32) -> Self {
        Param::Word(value.to_bits().into())
    }
}

/// The loaded device code of all families, and the entry points that were used.
pub(super) struct Kernels {
    modules: HashMap<&'static str, CUmodule>,
    functions: RefCell<HashMap<Kernel, CUfunction>>,
    shared_bytes_max: usize,
}

impl Kernels {
    /// Loads all families into the current context.
    pub(super) fn load(shared_bytes_max: usize) -> Result<Kernels, DeviceError> {
        let mut kernels = Kernels {
            modules: HashMap::with_capacity(ARTIFACTS.len()),
            functions: RefCell::default(),
            shared_bytes_max,
        };
        for artifact in ARTIFACTS {
            kernels.add(artifact.family, artifact.cubin)?;
        }
        Ok(kernels)
    }

    /// Loads one family's device code: a CUBIN, or PTX that ends with a zero.
    pub(super) fn add(&mut self, family: &'static str, image: &[u8]) -> Result<(), DeviceError> {
        let mut module = ptr::null_mut();
        // SAFETY: a CUBIN says its own length, and PTX ends with a zero.
        check("cuModuleLoadData", unsafe {
            sys::cuModuleLoadData(&mut module, image.as_ptr().cast())
        })?;
        let before = self.modules.insert(family, module);
        assert!(before.is_none(), "family {family} is loaded twice");
        Ok(())
    }

    /// Submits a kernel.
    ///
    /// # Safety
    /// `params` are what the kernel's signature says, and what they point to is what its
    /// documentation asks for.
    pub(super) unsafe fn launch(
        &self,
        stream: &Stream,
        kernel: Kernel,
        config: LaunchConfig,
        params: &[Param<'_>],
    ) -> Result<(), DeviceError> {
        assert!(params.len() <= N_PARAMS_MAX, "{kernel:?} has {} parameters", params.len());
        let mut pointers = [ptr::null_mut::<c_void>(); N_PARAMS_MAX];
        for (pointer, param) in pointers.iter_mut().zip(params) {
            *pointer = match param {
                Param::Word(word) => ptr::from_ref(word).cast_mut().cast(),
                Param::Bytes(bytes) => bytes.as_ptr().cast_mut().cast(),
            };
        }
        let function = self.function(kernel)?;
        let mut cluster = cluster_attribute(config.cluster);
        let config = CUlaunchConfig {
            gridDimX: config.grid[0],
            gridDimY: config.grid[1],
            gridDimZ: config.grid[2],
            blockDimX: config.block[0],
            blockDimY: config.block[1],
            blockDimZ: config.block[2],
            sharedMemBytes: config.shared_bytes,
            hStream: stream.raw(),
            attrs: &mut cluster,
            numAttrs: u32::from(config.cluster > 1),
        };
        // SAFETY: the caller answers for the parameters. The driver copies them and the attribute
        // during the call and writes to none.
        let result = unsafe {
            sys::cuLaunchKernelEx(&config, function, pointers.as_mut_ptr(), ptr::null_mut())
        };
        check(kernel.name, result)
    }

    fn function(&self, kernel: Kernel) -> Result<CUfunction, DeviceError> {
        if let Some(&function) = self.functions.borrow().get(&kernel) {
            return Ok(function);
        }
        let function = self.look_up(kernel)?;
        self.functions.borrow_mut().insert(kernel, function);
        Ok(function)
    }

    #[cold]
    fn look_up(&self, kernel: Kernel) -> Result<CUfunction, DeviceError> {
        let Kernel { family, name } = kernel;
        let no_kernel = DeviceError::NoKernel { family, name };
        let Some(&module) = self.modules.get(family) else {
            return Err(no_kernel);
        };
        let c_name = CString::new(name).expect("names of kernels have no zero in them");
        let mut function = ptr::null_mut();
        // SAFETY: the module was loaded and not unloaded; the name ends with a zero.
        match unsafe { sys::cuModuleGetFunction(&mut function, module, c_name.as_ptr()) } {
            CUresult::CUDA_ERROR_NOT_FOUND => return Err(no_kernel),
            result => check("cuModuleGetFunction", result)?,
        }
        self.allow_all_shared_memory(function)?;
        Ok(function)
    }

    /// Lets a kernel ask for more dynamic shared memory than the 48 KiB it gets unasked.
    fn allow_all_shared_memory(&self, function: CUfunction) -> Result<(), DeviceError> {
        let mut static_bytes: c_int = 0;
        // SAFETY: the function is of a loaded module; `static_bytes` outlives the call.
        unsafe {
            let attribute = Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
            let answer = sys::cuFuncGetAttribute(&mut static_bytes, attribute, function);
            check("cuFuncGetAttribute", answer)?;
            let dynamic_bytes = self.shared_bytes_max as c_int - static_bytes;
            let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            check("cuFuncSetAttribute", sys::cuFuncSetAttribute(function, attribute, dynamic_bytes))
        }
    }
}

/// Asks for clusters of `n_blocks` neighbours in x.
fn cluster_attribute(n_blocks: u32) -> CUlaunchAttribute {
    let mut value = CUlaunchAttributeValue { pad: [0; 64] };
    value.clusterDim.x = n_blocks;
    value.clusterDim.y = 1;
    value.clusterDim.z = 1;
    let id = CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
    CUlaunchAttribute { id, pad: [0; 4], value }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        for &module in self.modules.values() {
            // SAFETY: it was loaded here, and its executor drops it after its work.
            check_late("cuModuleUnload", unsafe { sys::cuModuleUnload(module) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_has_its_value_in_its_lowest_bytes() {
        let low_bytes = |param: Param<'_>| match param {
            Param::Word(word) => word.to_le_bytes(),
            Param::Bytes(_) => panic!("a word"),
        };
        assert_eq!(low_bytes((-2i32).into())[..4], (-2i32).to_le_bytes());
        assert_eq!(low_bytes(1.5f32.into())[..4], 1.5f32.to_le_bytes());
        assert_eq!(low_bytes(u64::MAX.into()), [255; 8]);
        assert_eq!(low_bytes(DevicePtr(1 << 40).into()), (1u64 << 40).to_le_bytes());
    }
}
