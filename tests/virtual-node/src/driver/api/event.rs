//! Events.

use super::api;
use super::ffi::Out;
use crate::driver::status::Status;
use crate::driver::{event, stream};

api! {
    fn cuEventCreate(handle: Out<usize>, flags: u32) {
        handle.put(event::create(flags)?)
    }

    fn cuEventDestroy_v2(handle: usize) {
        event::destroy(handle)
    }

    fn cuEventRecord(handle: usize, stream: usize) {
        event::record(handle, &*stream::get(stream)?)
    }

    fn cuEventRecordWithFlags(handle: usize, stream: usize, flags: u32) {
        if flags > 1 {
            return Err(Status::INVALID_VALUE);
        }
        event::record(handle, &*stream::get(stream)?)
    }

    fn cuEventQuery(handle: usize) {
        match event::is_done(handle)? {
            true => Ok(()),
            false => Err(Status::NOT_READY),
        }
    }

    fn cuEventSynchronize(handle: usize) {
        event::synchronize(handle)
    }

    fn cuEventElapsedTime(n_ms: Out<f32>, start: usize, end: usize) {
        n_ms.put(event::elapsed_ms(start, end)?)
    }

    fn cuEventElapsedTime_v2(n_ms: Out<f32>, start: usize, end: usize) {
        n_ms.put(event::elapsed_ms(start, end)?)
    }
}
