//! Modules and libraries in contexts: their variables' memory and their functions.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::context::{self, Context};
use super::handles::{Registry, new_handle};
use super::image::Image;
use super::status::{Answer, Status};
use super::{alloc, device};
use crate::config::Config;
use crate::memory::Memory;
use crate::ptx::{Global, Kernel};

/// Registers per thread where only PTX is known, which has as many as it likes.
const N_REGISTERS_ASSUMED: u32 = 32;

/// An image in a context.
pub(super) struct Module {
    pub(super) handle: usize,
    context: Arc<Context>,
    image: Arc<Image>,
    /// Addresses of the image's variables, in their order.
    globals: Arc<[u64]>,
    functions: Mutex<BTreeMap<String, Arc<Function>>>,
}

/// A kernel in a context.
pub(super) struct Function {
    pub(super) handle: usize,
    pub(super) context: Arc<Context>,
    pub(super) module: usize,
    pub(super) kernel: Arc<Kernel>,
    pub(super) globals: Arc<[u64]>,
    /// Registers per thread.
    pub(super) n_registers: u32,
    /// Dynamic shared memory that launches may ask for.
    pub(super) dynamic_shared_bytes_max: AtomicU32,
    pub(super) carveout_percent: AtomicU32,
    pub(super) allows_large_clusters: AtomicBool,
}

/// An image for all contexts, and the modules that it became in them.
pub(super) struct Library {
    image: Arc<Image>,
    modules: Mutex<HashMap<usize, Arc<Module>>>,
}

/// A kernel of a library, in no context yet.
pub(super) struct LibraryKernel {
    library: Weak<Library>,
    library_handle: usize,
    name: String,
}

static MODULES: Registry<Module> = Registry::new(Status::INVALID_HANDLE);
static FUNCTIONS: Registry<Function> = Registry::new(Status::INVALID_HANDLE);
static LIBRARIES: Registry<Library> = Registry::new(Status::INVALID_HANDLE);
static KERNELS: Registry<LibraryKernel> = Registry::new(Status::INVALID_HANDLE);

impl Module {
    /// Loads an image into the current context.
    pub(super) fn load(image: Arc<Image>) -> Answer<Arc<Module>> {
        let context = context::current()?;
        let globals = place_globals(&context, &image.module.globals)?;
        let handle = new_handle();
        let functions = Mutex::default();
        let module = Arc::new(Module { handle, context, image, globals, functions });
        MODULES.insert(handle, module.clone());
        Ok(module)
    }

    pub(super) fn get(handle: usize) -> Answer<Arc<Module>> {
        MODULES.get(handle)
    }

    /// `cuModuleUnload`.
    pub(super) fn unload(handle: usize) -> Answer {
        let module = MODULES.remove(handle)?;
        module.context.synchronize();
        FUNCTIONS.remove_if(|function| function.module == handle);
        for address in module.globals.iter() {
            module.context.allocations.lock().remove(address);
            alloc::release(*address);
        }
        Ok(())
    }

    /// The function of this name; the same one each time.
    pub(super) fn function(&self, name: &str) -> Answer<Arc<Function>> {
        let mut functions = self.functions.lock();
        if let Some(function) = functions.get(name) {
            return Ok(function.clone());
        }
        let kernel = self.image.module.kernel(name).ok_or(Status::NOT_FOUND)?.clone();
        let known = self.image.n_registers.get(name).copied();
        let static_bytes = kernel.static_shared_bytes as u32;
        let function = Arc::new(Function {
            handle: new_handle(),
            context: self.context.clone(),
            module: self.handle,
            n_registers: known.or(kernel.max_registers).unwrap_or(N_REGISTERS_ASSUMED),
            kernel,
            globals: self.globals.clone(),
            dynamic_shared_bytes_max: device::SHARED_BYTES.saturating_sub(static_bytes).into(),
            carveout_percent: AtomicU32::new(u32::MAX),
            allows_large_clusters: AtomicBool::new(false),
        });
        FUNCTIONS.insert(function.handle, function.clone());
        functions.insert(name.to_owned(), function.clone());
        Ok(function)
    }

    /// Address and size of the variable of this name.
    pub(super) fn global(&self, name: &str) -> Answer<(u64, usize)> {
        let globals = &self.image.module.globals;
        let idx = globals.iter().position(|global| global.name == name);
        let idx = idx.ok_or(Status::NOT_FOUND)?;
        Ok((self.globals[idx], globals[idx].n_bytes))
    }

    /// Names of all kernels.
    pub(super) fn names(&self) -> Vec<String> {
        self.image.module.kernels.iter().map(|kernel| kernel.name.clone()).collect()
    }
}

/// Allocates and fills a module's variables.
fn place_globals(context: &Context, globals: &[Global]) -> Answer<Arc<[u64]>> {
    let mut addresses = Vec::with_capacity(globals.len());
    for global in globals {
        addresses.push(alloc::allocate_in(context, global.n_bytes.max(1))?);
    }
    if Config::get().is_dry() {
        return Ok(addresses.into());
    }
    for (global, address) in globals.iter().zip(&addresses) {
        let mut bytes = global.initial.clone();
        for &(at, other_idx, offset) in &global.addresses {
            let other = addresses[other_idx].wrapping_add_signed(offset);
            bytes[at..at + 8].copy_from_slice(&other.to_le_bytes());
        }
        let n_bytes = bytes.len() as u64;
        let to = Memory::global().resolve(context.device, *address, n_bytes);
        let to = to.expect("it was allocated a moment ago");
        // SAFETY: the fresh allocation has this many bytes, and nobody else knows it.
        unsafe {
            to.copy_from_nonoverlapping(std::ptr::NonNull::from(&bytes[..]).cast(), bytes.len())
        };
    }
    Ok(addresses.into())
}

/// The function with this handle, which may be a library's kernel too.
pub(super) fn function(handle: usize) -> Answer<Arc<Function>> {
    match KERNELS.get(handle) {
        Ok(kernel) => kernel_function(&kernel),
        Err(_) => FUNCTIONS.get(handle),
    }
}

/// Takes all modules of a context away.
pub(super) fn forget(context: &Context) {
    MODULES.remove_if(|module| module.context.handle == context.handle);
    FUNCTIONS.remove_if(|function| function.context.handle == context.handle);
}

/// `cuLibraryLoadData`.
pub(super) fn load_library(image: Arc<Image>) -> usize {
    let handle = new_handle();
    LIBRARIES.insert(handle, Arc::new(Library { image, modules: Mutex::default() }));
    handle
}

/// `cuLibraryUnload`.
pub(super) fn unload_library(handle: usize) -> Answer {
    let library = LIBRARIES.remove(handle)?;
    KERNELS.remove_if(|kernel| kernel.library_handle == handle);
    for module in library.modules.lock().values() {
        // One whose context ended went with it.
        let _ = Module::unload(module.handle);
    }
    Ok(())
}

/// The library's module in the current context.
pub(super) fn library_module(handle: usize) -> Answer<Arc<Module>> {
    module_of(&*LIBRARIES.get(handle)?)
}

fn module_of(library: &Library) -> Answer<Arc<Module>> {
    let context = context::current()?;
    let mut modules = library.modules.lock();
    if let Some(module) = modules.get(&context.handle) {
        return Ok(module.clone());
    }
    let module = Module::load(library.image.clone())?;
    modules.insert(context.handle, module.clone());
    Ok(module)
}

/// `cuLibraryGetKernel`.
pub(super) fn library_kernel(handle: usize, name: &str) -> Answer<usize> {
    let library = LIBRARIES.get(handle)?;
    library.image.module.kernel(name).ok_or(Status::NOT_FOUND)?;
    let kernel_handle = new_handle();
    let kernel = LibraryKernel {
        library: Arc::downgrade(&library),
        library_handle: handle,
        name: name.to_owned(),
    };
    KERNELS.insert(kernel_handle, Arc::new(kernel));
    Ok(kernel_handle)
}

fn kernel_function(kernel: &LibraryKernel) -> Answer<Arc<Function>> {
    let library = kernel.library.upgrade().ok_or(Status::INVALID_HANDLE)?;
    module_of(&library)?.function(&kernel.name)
}

/// Attributes of functions, as `CUfunction_attribute` numbers them.
impl Function {
    pub(super) fn attribute(&self, attribute: i32) -> Answer<i32> {
        let cluster = |axis: usize| self.kernel.required_cluster.map_or(0, |cluster| cluster[axis]);
        let value = match attribute {
            0 => self.n_threads_max(),
            1 => self.kernel.static_shared_bytes as u32,
            2 | 7 | 15 | 16 => 0,
            3 => self.kernel.local_bytes as u32,
            4 => self.n_registers,
            5 | 6 => 90,
            8 => self.dynamic_shared_bytes_max.load(Ordering::Relaxed),
            9 => self.carveout_percent.load(Ordering::Relaxed),
            10 => u32::from(self.kernel.required_cluster.is_some()),
            11..=13 => cluster(attribute as usize - 11),
            14 => u32::from(self.allows_large_clusters.load(Ordering::Relaxed)),
            _ => return Err(Status::INVALID_VALUE),
        };
        Ok(value as i32)
    }

    pub(super) fn set_attribute(&self, attribute: i32, value: i32) -> Answer {
        match attribute {
            8 => {
                let room =
                    device::SHARED_OPT_IN_BYTES as i64 - self.kernel.static_shared_bytes as i64;
                if value < 0 || i64::from(value) > room {
                    return Err(Status::INVALID_VALUE);
                }
                self.dynamic_shared_bytes_max.store(value as u32, Ordering::Relaxed);
            }
            9 if (-1..=100).contains(&value) => {
                self.carveout_percent.store(value as u32, Ordering::Relaxed);
            }
            14 => self.allows_large_clusters.store(value != 0, Ordering::Relaxed),
            15 => {}
            _ => return Err(Status::INVALID_VALUE),
        }
        Ok(())
    }

    /// Threads that a block of this function may have: by its bounds and its registers.
    pub(super) fn n_threads_max(&self) -> u32 {
        let by_registers = super::occupancy::n_threads_max(self.n_registers);
        let bound = self.kernel.max_threads.unwrap_or(device::N_BLOCK_THREADS_MAX);
        bound.min(by_registers)
    }
}
