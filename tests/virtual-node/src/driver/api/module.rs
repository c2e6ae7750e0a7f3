//! Modules, libraries and their functions.

use std::ffi::c_char;

use super::api;
use super::ffi::{Image as ImageArgument, In, Out, Text, out_at_address};
use crate::driver::image;
use crate::driver::module::{self, Module};
use crate::driver::status::{Answer, Status};

/// Options of the just-in-time compiler that are answered here.
const INFO_LOG_BYTES: i32 = 4;
const ERROR_LOG: i32 = 5;
const ERROR_LOG_BYTES: i32 = 6;

/// Where the caller wants what went wrong.
#[derive(Default)]
struct ErrorLog {
    address: usize,
    n_room: i32,
    /// The option's value that tells the log's size afterwards.
    size_at: usize,
}

impl ErrorLog {
    /// Reads the options; `values` holds pointers and numbers alike.
    fn decode(n: u32, options: &In<i32>, values: usize) -> Answer<ErrorLog> {
        let mut log = ErrorLog::default();
        for (at, option) in options.slice(n as usize)?.into_iter().enumerate() {
            let value = out_at_address::<usize>(values + 8 * at);
            match option {
                INFO_LOG_BYTES => value.put(0)?,
                ERROR_LOG => log.address = value.get()?,
                ERROR_LOG_BYTES => {
                    log.n_room = value.get()? as u32 as i32;
                    log.size_at = values + 8 * at;
                }
                _ => {}
            }
        }
        Ok(log)
    }

    fn write(&self, text: &str) {
        if self.address != 0 && self.n_room > 0 {
            let _ = out_at_address::<c_char>(self.address).put_text(text, self.n_room);
            let n_written = text.len().min(self.n_room as usize - 1) + 1;
            out_at_address::<usize>(self.size_at).offer(n_written);
        }
    }
}

/// Decodes an image, and tells the log where that fails.
fn load(bytes: &[u8], log: &ErrorLog) -> Answer<std::sync::Arc<image::Image>> {
    let loaded = image::load(bytes);
    loaded.map_err(|(status, text)| {
        log.write(&text);
        status
    })
}

api! {
    fn cuModuleLoad(handle: Out<usize>, path: Text) {
        let bytes = std::fs::read(path.get()?).map_err(|_| Status::FILE_NOT_FOUND)?;
        handle.put(Module::load(load(&bytes, &ErrorLog::default())?)?.handle)
    }

    fn cuModuleLoadData(handle: Out<usize>, image: ImageArgument) {
        let image = load(&image.read()?, &ErrorLog::default())?;
        handle.put(Module::load(image)?.handle)
    }

    fn cuModuleLoadDataEx(
        handle: Out<usize>,
        image: ImageArgument,
        n_options: u32,
        options: In<i32>,
        values: usize,
    ) {
        let log = ErrorLog::decode(n_options, &options, values)?;
        handle.put(Module::load(load(&image.read()?, &log)?)?.handle)
    }

    fn cuModuleLoadFatBinary(_handle: Out<usize>, _image: ImageArgument) {
        load(&[0x50, 0xed, 0x55, 0xba], &ErrorLog::default()).map(|_| ())
    }

    fn cuModuleUnload(handle: usize) {
        Module::unload(handle)
    }

    fn cuModuleGetLoadingMode(mode: Out<i32>) {
        // Eager: whatever is wrong with a module shows when it is loaded.
        mode.put(1)
    }

    fn cuModuleGetFunction(function: Out<usize>, handle: usize, name: Text) {
        function.put(Module::get(handle)?.function(&name.get()?)?.handle)
    }

    fn cuModuleGetFunctionCount(count: Out<u32>, handle: usize) {
        count.put(Module::get(handle)?.names().len() as u32)
    }

    fn cuModuleEnumerateFunctions(functions: Out<usize>, n_room: u32, handle: usize) {
        let module = Module::get(handle)?;
        let names = module.names();
        let handles: Answer<Vec<usize>> =
            names.iter().map(|name| Ok(module.function(name)?.handle)).collect();
        functions.put_all(&handles?, n_room as usize)
    }

    fn cuModuleGetGlobal_v2(address: Out<u64>, n_bytes: Out<usize>, handle: usize, name: Text) {
        let (found, size) = Module::get(handle)?.global(&name.get()?)?;
        address.offer(found);
        n_bytes.offer(size);
        Ok(())
    }

    fn cuLibraryLoadData(
        handle: Out<usize>,
        image: ImageArgument,
        options: In<i32>,
        values: usize,
        n_options: u32,
        _library_options: usize,
        _library_values: usize,
        _n_library_options: u32,
    ) {
        let log = ErrorLog::decode(n_options, &options, values)?;
        handle.put(module::load_library(load(&image.read()?, &log)?))
    }

    fn cuLibraryLoadFromFile(
        handle: Out<usize>,
        path: Text,
        options: In<i32>,
        values: usize,
        n_options: u32,
        _library_options: usize,
        _library_values: usize,
        _n_library_options: u32,
    ) {
        let log = ErrorLog::decode(n_options, &options, values)?;
        let bytes = std::fs::read(path.get()?).map_err(|_| Status::FILE_NOT_FOUND)?;
        handle.put(module::load_library(load(&bytes, &log)?))
    }

    fn cuLibraryUnload(handle: usize) {
        module::unload_library(handle)
    }

    fn cuLibraryGetModule(module: Out<usize>, handle: usize) {
        module.put(module::library_module(handle)?.handle)
    }

    fn cuLibraryGetKernel(kernel: Out<usize>, handle: usize, name: Text) {
        kernel.put(module::library_kernel(handle, &name.get()?)?)
    }

    fn cuLibraryGetKernelCount(count: Out<u32>, handle: usize) {
        count.put(module::library_module(handle)?.names().len() as u32)
    }

    fn cuLibraryGetGlobal(address: Out<u64>, n_bytes: Out<usize>, handle: usize, name: Text) {
        let (found, size) = module::library_module(handle)?.global(&name.get()?)?;
        address.offer(found);
        n_bytes.offer(size);
        Ok(())
    }

    fn cuKernelGetFunction(function: Out<usize>, kernel: usize) {
        function.put(module::function(kernel)?.handle)
    }

    fn cuKernelGetAttribute(value: Out<i32>, attribute: i32, kernel: usize, _device: i32) {
        value.put(module::function(kernel)?.attribute(attribute)?)
    }

    fn cuKernelSetAttribute(attribute: i32, value: i32, kernel: usize, _device: i32) {
        module::function(kernel)?.set_attribute(attribute, value)
    }

    fn cuFuncGetAttribute(value: Out<i32>, attribute: i32, function: usize) {
        value.put(module::function(function)?.attribute(attribute)?)
    }

    fn cuFuncSetAttribute(function: usize, attribute: i32, value: i32) {
        module::function(function)?.set_attribute(attribute, value)
    }

    fn cuFuncSetCacheConfig(function: usize, _config: i32) {
        module::function(function).map(|_| ())
    }

    fn cuFuncSetSharedMemConfig(function: usize, _config: i32) {
        module::function(function).map(|_| ())
    }

    fn cuFuncGetModule(module: Out<usize>, function: usize) {
        module.put(module::function(function)?.module)
    }

    fn cuFuncGetName(name: Out<*const c_char>, function: usize) {
        let function = module::function(function)?;
        let text = std::ffi::CString::new(function.kernel.name.as_str());
        // The caller may keep it as long as the module; nobody asks often.
        name.put(text.map_err(|_| Status::UNKNOWN)?.into_raw())
    }

    fn cuFuncGetParamInfo(
        function: usize,
        param_idx: usize,
        offset: Out<usize>,
        n_bytes: Out<usize>,
    ) {
        let function = module::function(function)?;
        let param = function.kernel.params.get(param_idx).ok_or(Status::INVALID_VALUE)?;
        offset.put(param.offset)?;
        n_bytes.offer(param.size);
        Ok(())
    }

    fn cuFuncLoad(function: usize) {
        module::function(function).map(|_| ())
    }

    fn cuFuncIsLoaded(state: Out<i32>, function: usize) {
        module::function(function)?;
        state.put(1)
    }
}
