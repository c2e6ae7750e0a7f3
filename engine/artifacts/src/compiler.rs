//! NVRTC, loaded by its path: source in; CUBIN, PTX and what the assembler says of each kernel out.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr;

use anyhow::{Context, Result, bail, ensure};
use libloading::Library;
use libloading::os::unix::{Library as UnixLibrary, RTLD_GLOBAL, RTLD_NOW, Symbol};

use crate::manifest::KernelFacts;
use crate::source::Unit;
use crate::toolchain::Toolchain;

/// All options but the include folder, whose path is this machine's. There is no `-lineinfo`: it
/// would write paths into the output.
pub(crate) const OPTIONS: &[&str] =
    &["--gpu-architecture=sm_90a", "--std=c++17", "-default-device", "--ptxas-options=-v"];

/// What one unit compiles to.
pub(crate) struct Artifact {
    pub(crate) cubin: Vec<u8>,
    pub(crate) ptx: String,
    /// By name.
    pub(crate) kernels: BTreeMap<String, KernelFacts>,
}

/// `nvrtcProgram`.
type Program = *mut c_void;
type Status = c_int;
type Create = unsafe extern "C" fn(
    *mut Program,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> Status;
type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status;
type GetSize = unsafe extern "C" fn(Program, *mut usize) -> Status;
type Get = unsafe extern "C" fn(Program, *mut c_char) -> Status;
type Destroy = unsafe extern "C" fn(*mut Program) -> Status;

/// The compiler's functions.
pub(crate) struct Compiler {
    create: Symbol<Create>,
    compile: Symbol<Compile>,
    log: (Symbol<GetSize>, Symbol<Get>),
    ptx: (Symbol<GetSize>, Symbol<Get>),
    cubin: (Symbol<GetSize>, Symbol<Get>),
    destroy: Symbol<Destroy>,
    include: CString,
    /// Keeps the functions' code loaded; last, so that it is dropped last.
    _library: Library,
}

impl Compiler {
    /// Loads the library.
    pub(crate) fn open(tools: &Toolchain) -> Result<Compiler> {
        // The compiler looks for its built-in functions by name: they must be loaded already.
        let builtins = load(&tools.libraries.join("libnvrtc-builtins.so.12.6"))?;
        std::mem::forget(builtins);
        let library = load(&tools.libraries.join("libnvrtc.so.12"))?;
        let include = tools.include.to_str().context("the include folder's path is UTF-8")?;
        // SAFETY: the types above are those of `nvrtc.h` 12.6, whose library was just loaded.
        unsafe {
            Ok(Compiler {
                create: library.get(b"nvrtcCreateProgram")?,
                compile: library.get(b"nvrtcCompileProgram")?,
                log: (library.get(b"nvrtcGetProgramLogSize")?, library.get(b"nvrtcGetProgramLog")?),
                ptx: (library.get(b"nvrtcGetPTXSize")?, library.get(b"nvrtcGetPTX")?),
                cubin: (library.get(b"nvrtcGetCUBINSize")?, library.get(b"nvrtcGetCUBIN")?),
                destroy: library.get(b"nvrtcDestroyProgram")?,
                include: CString::new(format!("--include-path={include}"))?,
                _library: library.into(),
            })
        }
    }

    /// Compiles one unit. Headers of ours are handed over as text, so that no path of this machine
    /// is ever known to the compiler but that of CUDA's own headers.
    pub(crate) fn compile(&self, unit: &Unit) -> Result<Artifact> {
        let source = CString::new(unit.text.as_str())?;
        let name = CString::new(format!("{}.cu", unit.name))?;
        let header_names = strings(unit.headers.keys())?;
        let headers = strings(unit.headers.values())?;
        let (header_names, headers) = (pointers(&header_names), pointers(&headers));
        let mut program = Running { compiler: self, program: ptr::null_mut() };
        // SAFETY: every string outlives the call, which copies them.
        let status = unsafe {
            (self.create)(
                &mut program.program,
                source.as_ptr(),
                name.as_ptr(),
                headers.len() as c_int,
                headers.as_ptr(),
                header_names.as_ptr(),
            )
        };
        ensure!(status == 0, "nvrtcCreateProgram of {}: error {status}", unit.name);
        let options = strings(OPTIONS.iter())?;
        let mut options = pointers(&options);
        options.push(self.include.as_ptr());
        // SAFETY: a program that was created; the options outlive the call.
        let status =
            unsafe { (self.compile)(program.program, options.len() as c_int, options.as_ptr()) };
        let log = program.text(&self.log)?;
        if status != 0 {
            bail!("{} does not compile (error {status})\n{log}", unit.name);
        }
        if log.contains("warning") {
            bail!("{} compiles with warnings\n{log}", unit.name);
        }
        let ptx = program.text(&self.ptx)?;
        let cubin = program.bytes(&self.cubin)?;
        let kernels = KernelFacts::all(&log, &ptx)
            .with_context(|| format!("in the compiler's log of {}\n{log}", unit.name))?;
        Ok(Artifact { cubin, ptx, kernels })
    }
}

/// A program, destroyed when dropped.
struct Running<'a> {
    compiler: &'a Compiler,
    program: Program,
}

impl Running<'_> {
    fn bytes(&self, (size, get): &(Symbol<GetSize>, Symbol<Get>)) -> Result<Vec<u8>> {
        let mut n_bytes = 0;
        // SAFETY: a program that was created.
        let status = unsafe { size(self.program, &mut n_bytes) };
        ensure!(status == 0, "NVRTC gives no size: error {status}");
        let mut bytes = vec![0u8; n_bytes];
        // SAFETY: the function writes as many bytes as it said.
        let status = unsafe { get(self.program, bytes.as_mut_ptr().cast()) };
        ensure!(status == 0, "NVRTC gives no output: error {status}");
        Ok(bytes)
    }

    fn text(&self, functions: &(Symbol<GetSize>, Symbol<Get>)) -> Result<String> {
        let bytes = self.bytes(functions)?;
        let text = CStr::from_bytes_until_nul(&bytes).context("text ends in a zero")?;
        Ok(text.to_str().context("text is UTF-8")?.to_owned())
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.program.is_null() {
            // SAFETY: a program that was created, destroyed once.
            unsafe { (self.compiler.destroy)(&mut self.program) };
        }
    }
}

fn load(path: &Path) -> Result<UnixLibrary> {
    // SAFETY: NVIDIA's libraries run nothing but their own set-up when they are loaded.
    let library = unsafe { UnixLibrary::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
    library.with_context(|| format!("cannot load {}", path.display()))
}

fn strings(texts: impl Iterator<Item = impl AsRef<str>>) -> Result<Vec<CString>> {
    texts.map(|text| Ok(CString::new(text.as_ref())?)).collect()
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).collect()
}
