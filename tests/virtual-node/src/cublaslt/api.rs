//! The C functions of libcublasLt, as far as a program that multiplies matrices calls them.
//!
//! Arguments that a caller may leave out are `Option<&mut T>`, which is a pointer in C. Handles
//! and device addresses are numbers.

use std::ffi::{c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::descriptors::{Descriptor, MatmulDesc, MatrixLayout, PointerMode, Preference};
use super::element::Element;
use super::heuristic::{Algo, AlgoBytes, candidates};
use super::matmul::{Factor, Matmul, Workspace};
use super::rules::{Layouts, Problem};
use super::status::{Refusal, Status, invalid, report, unsupported};
use crate::config::{self, Config};
use crate::driver::{self, Failure};
use crate::handles::{Registry, caller_room, caller_values};
use crate::memory::DeviceIdx;
use crate::report::record_kernel;

/// 12.6.4.
const VERSION: usize = 120_604;
const CUDART_VERSION: usize = 12_060;

/// Libraries' handles belong to the device that was current when they were made.
static LIBRARIES: Registry<DeviceIdx> = Registry::new();
static DESCS: Registry<MatmulDesc> = Registry::new();
static LAYOUTS: Registry<MatrixLayout> = Registry::new();
static PREFERENCES: Registry<Preference> = Registry::new();

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
pub struct HeuristicResult {
    algo: AlgoBytes,
    workspace_bytes: usize,
    state: u32,
    n_waves: f32,
    reserved: [c_int; 4],
}

/// Exports functions that answer with a status, and say on standard error why they refuse.
macro_rules! api {
    ($(fn $name:ident($($argument:ident: $type:ty),* $(,)?) $body:block)*) => {
        $(
            // SAFETY: the name is NVIDIA's, and the process has one libcublasLt: this one.
            #[unsafe(no_mangle)]
            pub extern "C" fn $name($($argument: $type),*) -> Status {
                answer(stringify!($name), move || $body)
            }
        )*
    };
}

fn answer(name: &str, body: impl FnOnce() -> Result<(), Refusal>) -> Status {
    let status = catch_unwind(AssertUnwindSafe(|| report(name, body())));
    let status = status.unwrap_or(Status::InternalError);
    if Config::get().trace {
        eprintln!("virtual node: {name}: {status:?}");
    }
    status
}

fn no_pointer() -> Refusal {
    invalid("a pointer that must not be null is")
}

fn put<T>(out: Option<&mut T>, value: T) -> Result<(), Refusal> {
    *out.ok_or_else(no_pointer)? = value;
    Ok(())
}

fn destroy<T: Descriptor>(registry: &Registry<T>, handle: usize) -> Result<(), Refusal> {
    registry.remove(handle).map(drop).ok_or_else(|| not_a::<T>(handle))
}

fn not_a<T: Descriptor>(handle: usize) -> Refusal {
    invalid(format!("{handle:#x} is no {}", T::NAME))
}

fn get<T: Descriptor + Clone>(registry: &Registry<T>, handle: usize) -> Result<T, Refusal> {
    registry.get(handle).ok_or_else(|| not_a::<T>(handle))
}

/// An attribute's value from the caller.
fn set_attribute<T: Descriptor>(
    registry: &Registry<T>,
    (handle, number): (usize, u32),
    (value, n_bytes): (usize, usize),
) -> Result<(), Refusal> {
    let bytes = caller_values(value, n_bytes).ok_or_else(no_pointer)?;
    let set = registry.with(handle, |descriptor| descriptor.set(number, bytes));
    set.ok_or_else(|| not_a::<T>(handle))?
}

/// An attribute's value to the caller, who may ask for its size alone.
fn get_attribute<T: Descriptor>(
    registry: &Registry<T>,
    (handle, number): (usize, u32),
    (value, n_bytes): (usize, usize),
    n_written: Option<&mut usize>,
) -> Result<(), Refusal> {
    let bytes = registry.with(handle, |descriptor| descriptor.get(number));
    let bytes = bytes.ok_or_else(|| not_a::<T>(handle))??;
    if n_bytes > 0 {
        let room = caller_room(value, n_bytes).ok_or_else(no_pointer)?;
        if room.len() != bytes.len() {
            let (asked, has) = (room.len(), bytes.len());
            return Err(invalid(format!("attribute {number} has {has} bytes, not {asked}")));
        }
        room.write_copy_of_slice(&bytes);
    }
    match n_written {
        Some(n_written) => *n_written = bytes.len(),
        None if n_bytes == 0 => return Err(no_pointer()),
        None => {}
    }
    Ok(())
}

fn library(handle: usize) -> Result<DeviceIdx, Refusal> {
    let reason = format!("{handle:#x} is no handle of cuBLASLt");
    LIBRARIES.get(handle).ok_or(Refusal { status: Status::NotInitialized, reason })
}

fn driver_refused(status: driver::Status) -> Refusal {
    let reason = format!("the driver answered {status:?}");
    Refusal { status: Status::ExecutionFailed, reason }
}

api! {
    fn cublasLtCreate(handle: Option<&mut usize>) {
        let device = driver::current_device().map_err(|status| Refusal {
            status: Status::NotInitialized,
            reason: format!("no device is current: {status:?}"),
        })?;
        put(handle, LIBRARIES.insert(device))
    }

    fn cublasLtDestroy(handle: usize) {
        library(handle)?;
        LIBRARIES.remove(handle);
        Ok(())
    }

    fn cublasLtMatmulDescCreate(desc: Option<&mut usize>, compute_type: u32, scale_type: u32) {
        put(desc, DESCS.insert(MatmulDesc::new(compute_type, scale_type)))
    }

    fn cublasLtMatmulDescDestroy(desc: usize) {
        destroy(&DESCS, desc)
    }

    fn cublasLtMatmulDescSetAttribute(
        desc: usize, number: u32, value: usize, n_bytes: usize,
    ) {
        set_attribute(&DESCS, (desc, number), (value, n_bytes))
    }

    fn cublasLtMatmulDescGetAttribute(
        desc: usize, number: u32, value: usize, n_bytes: usize, n_written: Option<&mut usize>,
    ) {
        get_attribute(&DESCS, (desc, number), (value, n_bytes), n_written)
    }

    fn cublasLtMatrixLayoutCreate(
        layout: Option<&mut usize>, cuda_type: u32, n_rows: u64, n_cols: u64, leading: i64,
    ) {
        put(layout, LAYOUTS.insert(MatrixLayout::new(cuda_type, n_rows, n_cols, leading)))
    }

    fn cublasLtMatrixLayoutDestroy(layout: usize) {
        destroy(&LAYOUTS, layout)
    }

    fn cublasLtMatrixLayoutSetAttribute(
        layout: usize, number: u32, value: usize, n_bytes: usize,
    ) {
        set_attribute(&LAYOUTS, (layout, number), (value, n_bytes))
    }

    fn cublasLtMatrixLayoutGetAttribute(
        layout: usize, number: u32, value: usize, n_bytes: usize, n_written: Option<&mut usize>,
    ) {
        get_attribute(&LAYOUTS, (layout, number), (value, n_bytes), n_written)
    }

    fn cublasLtMatmulPreferenceCreate(preference: Option<&mut usize>) {
        put(preference, PREFERENCES.insert(Preference::default()))
    }

    fn cublasLtMatmulPreferenceDestroy(preference: usize) {
        destroy(&PREFERENCES, preference)
    }

    fn cublasLtMatmulPreferenceSetAttribute(
        preference: usize, number: u32, value: usize, n_bytes: usize,
    ) {
        set_attribute(&PREFERENCES, (preference, number), (value, n_bytes))
    }

    fn cublasLtMatmulPreferenceGetAttribute(
        preference: usize, number: u32, value: usize, n_bytes: usize,
        n_written: Option<&mut usize>,
    ) {
        get_attribute(&PREFERENCES, (preference, number), (value, n_bytes), n_written)
    }

    fn cublasLtMatmulAlgoGetHeuristic(
        handle: usize, desc: usize, a: usize, b: usize, c: usize, d: usize, preference: usize,
        n_wanted: c_int, results: usize, n_found: Option<&mut c_int>,
    ) {
        library(handle)?;
        let n_found = n_found.ok_or_else(no_pointer)?;
        *n_found = 0;
        let n_wanted = usize::try_from(n_wanted).unwrap_or(0);
        let results = caller_room(results, n_wanted).filter(|results| !results.is_empty());
        let results = results.ok_or_else(|| invalid(format!("{n_wanted} results are wanted")))?;
        let problem = problem(desc, [a, b, c, d])?;
        let preference = get(&PREFERENCES, preference)?;
        let algos = candidates(&problem, &preference, n_wanted)?;
        if algos.is_empty() {
            return Err(unsupported("no algorithm keeps to the preference"));
        }
        for (algo, result) in algos.iter().zip(results) {
            result.write(result_of(algo, &problem));
        }
        *n_found = algos.len() as c_int;
        Ok(())
    }

    fn cublasLtMatmulAlgoCheck(
        handle: usize, desc: usize, a: usize, b: usize, c: usize, d: usize,
        algo: Option<&AlgoBytes>, result: Option<&mut HeuristicResult>,
    ) {
        library(handle)?;
        let problem = problem(desc, [a, b, c, d])?;
        let algo = Algo::from_bytes(algo.ok_or_else(no_pointer)?)?;
        algo.check(&problem)?;
        put(result, result_of(&algo, &problem))
    }

    fn cublasLtMatmul(
        handle: usize, desc: usize, alpha: usize, a: u64, a_layout: usize, b: u64,
        b_layout: usize, beta: usize, c: u64, c_layout: usize, d: u64, d_layout: usize,
        algo: Option<&AlgoBytes>, workspace: u64, workspace_bytes: usize, stream: usize,
    ) {
        let device = library(handle)?;
        let problem = problem(desc, [a_layout, b_layout, c_layout, d_layout])?;
        let mode = problem.operation.pointer_mode;
        let (alpha, beta) = (factor(alpha, mode)?, factor(beta, mode)?);
        let workspace = Workspace { address: workspace, n_bytes: workspace_bytes as u64 };
        let algo = chosen(algo, &problem, workspace)?;
        let n_parts = match config::current_checks().splits {
            true => algo.n_splits.into(),
            false => 1,
        };
        let matmul = Matmul { problem, alpha, beta, a, b, c, d, n_parts };
        matmul.check(&algo, workspace)?;
        submit(matmul, device, stream)
    }
}

fn problem(desc: usize, layouts: [usize; 4]) -> Result<Problem, Refusal> {
    let operation = get(&DESCS, desc)?.operation()?;
    let layout = |handle| get(&LAYOUTS, handle)?.layout();
    let [a, b, c, d] = layouts;
    let layouts = Layouts { a: layout(a)?, b: layout(b)?, c: layout(c)?, d: layout(d)? };
    Problem::new(operation, layouts)
}

fn result_of(algo: &Algo, problem: &Problem) -> HeuristicResult {
    HeuristicResult {
        algo: algo.to_bytes(),
        workspace_bytes: algo.workspace_bytes(problem) as usize,
        state: Status::Success as u32,
        n_waves: algo.n_waves(problem),
        reserved: [0; 4],
    }
}

/// The caller's algorithm; without one the library chooses within the workspace.
fn chosen(
    algo: Option<&AlgoBytes>,
    problem: &Problem,
    workspace: Workspace,
) -> Result<Algo, Refusal> {
    if let Some(bytes) = algo {
        return Algo::from_bytes(bytes);
    }
    let mut preference = Preference::default();
    let n_bytes = workspace.n_bytes.to_le_bytes();
    preference.set(super::descriptors::MAX_WORKSPACE_BYTES, &n_bytes)?;
    let first = candidates(problem, &preference, 1)?.into_iter().next();
    first.ok_or_else(|| unsupported("no algorithm fits the workspace"))
}

/// Alpha or beta: a value that is read now, or where the device will find it.
fn factor(pointer: usize, mode: PointerMode) -> Result<Factor, Refusal> {
    match mode {
        PointerMode::Host => {
            let bytes = caller_values(pointer, 4).ok_or_else(no_pointer)?;
            Ok(Factor::Value(Element::F32.read(bytes)))
        }
        PointerMode::Device if pointer == 0 => Err(no_pointer()),
        PointerMode::Device => Ok(Factor::At(pointer as u64)),
    }
}

fn submit(matmul: Matmul, device: DeviceIdx, stream: usize) -> Result<(), Refusal> {
    let of_stream = driver::stream_device(stream).map_err(driver_refused)?;
    if of_stream != device {
        let reason = format!("a handle of device {device} with a stream of device {of_stream}");
        return Err(invalid(reason));
    }
    let name = matmul.problem.kernel_name();
    let task = move |cx: &driver::WorkCx<'_>| {
        let result = if cx.is_dry {
            matmul.check_memory(cx.memory, cx.device)
        } else {
            matmul.run(cx.memory, cx.device, Config::get().n_threads)
        };
        result.map_err(|fault| {
            let failure = Failure::from(fault);
            Failure { text: format!("{name}: {}", failure.text), ..failure }
        })?;
        record_kernel(cx.device.index(), &name, matmul.counters());
        Ok(())
    };
    driver::enqueue(stream, "cublasLtMatmul", Arc::new(task)).map_err(driver_refused)
}

// SAFETY: as above.
#[unsafe(no_mangle)]
pub extern "C" fn cublasLtGetVersion() -> usize {
    VERSION
}

// SAFETY: as above.
#[unsafe(no_mangle)]
pub extern "C" fn cublasLtGetCudartVersion() -> usize {
    CUDART_VERSION
}

// SAFETY: as above.
#[unsafe(no_mangle)]
pub extern "C" fn cublasLtGetStatusName(status: u32) -> *const c_char {
    Status::from_number(status).map_or(c"CUBLAS_STATUS_UNKNOWN", Status::name).as_ptr()
}

// SAFETY: as above.
#[unsafe(no_mangle)]
pub extern "C" fn cublasLtGetStatusString(status: u32) -> *const c_char {
    cublasLtGetStatusName(status)
}
