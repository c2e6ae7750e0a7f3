//! The C functions of libcuda. They decode arguments, call the safe driver and encode the answer.
//!
//! Handles are `usize` here: they are looked up and never followed.

mod context;
mod copy;
mod device;
mod errors;
mod event;
mod ffi;
mod graph;
mod graph_nodes;
mod launch;
mod memory;
mod module;
mod proc_address;
mod stream;
mod tensor_map;

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::status::{Answer, Status};
use super::{complain, context as contexts};
use crate::config::Config;

/// Declares entry points: each is exported under its name, and `entries` lists them all for
/// `cuGetProcAddress`.
macro_rules! api {
    ($(
        $(#[$attribute:meta])*
        fn $name:ident($($argument:ident: $type:ty),* $(,)?) $body:block
    )*) => {
        $(
            $(#[$attribute])*
            // SAFETY: the name is NVIDIA's, and the process has one libcuda: this one.
            #[unsafe(no_mangle)]
            extern "C" fn $name($($argument: $type),*) -> i32 {
                $crate::driver::api::answer(stringify!($name), move || $body)
            }
        )*

        /// The names of this file's functions, and where they are.
        pub(super) fn entries() -> Vec<(&'static str, usize)> {
            vec![$((stringify!($name), $name as *const () as usize)),*]
        }
    };
}
use api;

/// Calls that may be made before `cuInit`.
const BEFORE_INIT: &[&str] =
    &["cuInit", "cuDriverGetVersion", "cuGetErrorName", "cuGetErrorString"];

/// Runs an entry point's body and encodes its answer; nothing unwinds into the C caller.
fn answer(name: &str, body: impl FnOnce() -> Answer) -> i32 {
    let is_early = !contexts::is_initialized()
        && !BEFORE_INIT.contains(&name)
        && !name.starts_with("cuGetProcAddress");
    let answer = if is_early {
        Err(Status::NOT_INITIALIZED)
    } else {
        catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| {
            complain(format_args!("{name} panicked"));
            Err(Status::UNKNOWN)
        })
    };
    if Config::get().trace {
        complain(format_args!("{name}: {answer:?}"));
    }
    match answer {
        Ok(()) => 0,
        Err(status) => status.0,
    }
}

/// Every entry point, by name.
fn entries() -> Vec<(&'static str, usize)> {
    let parts = [
        context::entries(),
        copy::entries(),
        device::entries(),
        errors::entries(),
        event::entries(),
        graph::entries(),
        graph_nodes::entries(),
        launch::entries(),
        memory::entries(),
        module::entries(),
        proc_address::entries(),
        stream::entries(),
        tensor_map::entries(),
    ];
    parts.into_iter().flatten().collect()
}
