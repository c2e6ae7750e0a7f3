//! Streams, and their capture.

use super::api;
use super::ffi::{In, Out};
use crate::driver::capture::{self, Mode};
use crate::driver::operation::{HostCall, Operation};
use crate::driver::status::{Answer, Status};
use crate::driver::{event, stream};

api! {
    fn cuStreamCreate(handle: Out<usize>, flags: u32) {
        handle.put(stream::create(flags, 0)?)
    }

    fn cuStreamCreateWithPriority(handle: Out<usize>, flags: u32, priority: i32) {
        handle.put(stream::create(flags, priority)?)
    }

    fn cuStreamDestroy_v2(handle: usize) {
        stream::destroy(handle)
    }

    fn cuStreamSynchronize(handle: usize) {
        stream::get(handle)?.synchronize()
    }

    fn cuStreamQuery(handle: usize) {
        match stream::get(handle)?.is_idle()? {
            true => Ok(()),
            false => Err(Status::NOT_READY),
        }
    }

    fn cuStreamWaitEvent(handle: usize, event: usize, flags: u32) {
        if flags > 1 {
            return Err(Status::INVALID_VALUE);
        }
        event::wait_in_stream(&stream::get(handle)?, event)
    }

    fn cuStreamGetPriority(handle: usize, priority: Out<i32>) {
        priority.put(stream::get(handle)?.priority)
    }

    fn cuStreamGetFlags(handle: usize, flags: Out<u32>) {
        flags.put(stream::get(handle)?.flags)
    }

    fn cuStreamGetId(handle: usize, id: Out<u64>) {
        id.put(stream::id(&*stream::get(handle)?))
    }

    fn cuStreamGetCtx(handle: usize, context: Out<usize>) {
        context.put(stream::get(handle)?.context.handle)
    }

    fn cuStreamGetCtx_v2(handle: usize, context: Out<usize>, green: Out<usize>) {
        green.offer(0);
        context.put(stream::get(handle)?.context.handle)
    }

    fn cuStreamGetDevice(handle: usize, ordinal: Out<i32>) {
        ordinal.put(i32::from(stream::get(handle)?.context.device.0))
    }

    fn cuStreamAddCallback(
        handle: usize,
        callback: Option<extern "C" fn(usize, i32, *mut std::ffi::c_void)>,
        argument: usize,
        flags: u32,
    ) {
        let callback = callback.ok_or(Status::INVALID_VALUE)?;
        let stream = stream::get(handle)?;
        stream.forbid_in_capture()?;
        if flags != 0 {
            return Err(Status::INVALID_VALUE);
        }
        let task = move |cx: &crate::driver::WorkCx<'_>| {
            cx.wait_for_the_host();
            callback(handle, 0, argument as *mut std::ffi::c_void);
            Ok(())
        };
        let operation = Operation::Task { name: "callback", task: std::sync::Arc::new(task) };
        stream.submit(operation).map(|_| ())
    }

    fn cuLaunchHostFunc(
        handle: usize,
        function: Option<extern "C" fn(*mut std::ffi::c_void)>,
        argument: usize,
    ) {
        let function = function.ok_or(Status::INVALID_VALUE)?;
        let call = HostCall { function, argument };
        stream::get(handle)?.submit(Operation::Host(call)).map(|_| ())
    }

    fn cuStreamAttachMemAsync(_handle: usize, _address: u64, _n_bytes: usize, _flags: u32) {
        // Of managed memory only.
        Err(Status::NOT_SUPPORTED)
    }

    fn cuStreamBeginCapture_v2(handle: usize, mode: i32) {
        capture::begin(&stream::get(handle)?, Mode::from_code(mode)?)
    }

    fn cuStreamEndCapture(handle: usize, graph: Out<usize>) {
        graph.offer(0);
        let captured = capture::end(&stream::get(handle)?)?;
        graph.put(captured.handle)
    }

    fn cuStreamIsCapturing(handle: usize, status: Out<i32>) {
        let stream = stream::get(handle)?;
        if stream.is_legacy() {
            capture::forbid_legacy(&stream.context)?;
        }
        status.put(capture_status(&stream))
    }

    fn cuStreamGetCaptureInfo_v2(
        handle: usize,
        status: Out<i32>,
        id: Out<u64>,
        graph: Out<usize>,
        tail: Out<*const usize>,
        n_tail: Out<usize>,
    ) {
        put_capture_info(handle, &CaptureInfo { status, id, graph, tail, n_tail })
    }

    fn cuStreamGetCaptureInfo_v3(
        handle: usize,
        status: Out<i32>,
        id: Out<u64>,
        graph: Out<usize>,
        tail: Out<*const usize>,
        edges: Out<usize>,
        n_tail: Out<usize>,
    ) {
        // No edge is more than an order.
        edges.offer(0);
        put_capture_info(handle, &CaptureInfo { status, id, graph, tail, n_tail })
    }

    fn cuStreamUpdateCaptureDependencies(
        handle: usize,
        nodes: In<usize>,
        n_nodes: usize,
        flags: u32,
    ) {
        update_dependencies(handle, &nodes.slice(n_nodes)?, flags)
    }

    fn cuStreamUpdateCaptureDependencies_v2(
        handle: usize,
        nodes: In<usize>,
        _edges: usize,
        n_nodes: usize,
        flags: u32,
    ) {
        update_dependencies(handle, &nodes.slice(n_nodes)?, flags)
    }

    fn cuStreamCopyAttributes(to: usize, from: usize) {
        stream::get(to)?;
        stream::get(from).map(|_| ())
    }

    fn cuStreamGetAttribute(handle: usize, _attribute: i32, value: Out<[u64; 8]>) {
        stream::get(handle)?;
        value.put([0; 8])
    }

    fn cuStreamSetAttribute(handle: usize, _attribute: i32, _value: usize) {
        // Hints to caches and to how the host waits.
        stream::get(handle).map(|_| ())
    }

    fn cuThreadExchangeStreamCaptureMode(mode: Out<i32>) {
        let before = capture::exchange_mode(Mode::from_code(mode.get()?)?);
        mode.put(before.code())
    }
}

/// Where a caller wants to know about a capture.
struct CaptureInfo {
    status: Out<i32>,
    id: Out<u64>,
    graph: Out<usize>,
    tail: Out<*const usize>,
    n_tail: Out<usize>,
}

fn put_capture_info(handle: usize, out: &CaptureInfo) -> Answer {
    let stream = stream::get(handle)?;
    out.status.put(capture_status(&stream))?;
    let Some(info) = stream.capture.lock().as_ref().map(capture::Link::info) else {
        return Ok(());
    };
    out.id.offer(info.id);
    out.graph.offer(info.graph);
    out.n_tail.offer(info.tail.len());
    // The caller may look until the stream's next call; the list outlives that.
    out.tail.offer(Vec::leak(info.tail).as_ptr());
    Ok(())
}

fn update_dependencies(handle: usize, nodes: &[usize], flags: u32) -> Answer {
    let stream = stream::get(handle)?;
    let link = stream.capture.lock();
    let link = link.as_ref().ok_or(Status::ILLEGAL_STATE)?;
    let nodes = link.graph().indices(nodes)?;
    link.update(nodes, flags == 1);
    Ok(())
}

/// `CUstreamCaptureStatus`.
fn capture_status(stream: &stream::Stream) -> i32 {
    match stream.capture.lock().as_ref().map(capture::Link::info) {
        None => 0,
        Some(info) if !info.is_invalid => 1,
        Some(_) => 2,
    }
}
