//! Names and sentences of error codes.

use std::ffi::{CStr, c_char};

use super::api;
use super::ffi::Out;
use crate::driver::status::{Answer, Status};

api! {
    fn cuGetErrorName(code: i32, text: Out<*const c_char>) {
        put(text, Status(code).name())
    }

    fn cuGetErrorString(code: i32, text: Out<*const c_char>) {
        put(text, Status(code).sentence())
    }
}

fn put(out: Out<*const c_char>, text: Option<&'static CStr>) -> Answer {
    out.put(text.map_or(std::ptr::null(), CStr::as_ptr))?;
    text.map(|_| ()).ok_or(Status::INVALID_VALUE)
}
