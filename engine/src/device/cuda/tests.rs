//! The executor, as its users see it. Without a GPU its devices are the virtual node's.

use std::time::Duration;

use super::testing::TestDevice;
use super::{CudaExec, Event, Kernel, LaunchConfig};
use crate::device::DeviceError;

#[test]
fn bytes_come_back_as_they_went() {
    let device = TestDevice::open(1);
    let values: Vec<f32> = (0..1000).map(|i| i as f32 * 0.5 - 7.0).collect();
    let ptr = device.upload(&values);
    assert_eq!(device.download::<f32>(ptr, values.len()), values);
    assert_eq!(device.download::<f32>(ptr.elements::<f32>(990), 10), values[990..]);
    device.exec.zero(ptr.offset(4), 8).expect("it is filled");
    assert_eq!(device.download::<f32>(ptr, 4), [values[0], 0.0, 0.0, values[3]]);
}

#[test]
fn a_device_says_what_it_is() {
    let exec = CudaExec::open(7).expect("the node has eight");
    assert_eq!((exec.info().ordinal, exec.info().n_multiprocessors), (7, 132));
    assert_eq!(exec.info().shared_bytes_max, 227 << 10);
    let error = CudaExec::open(8).map(drop).expect_err("the node has eight");
    assert!(matches!(error, DeviceError::NoDevice { ordinal: 8, n_devices: 8 }), "{error}");
}

#[test]
fn no_more_of_the_cache_is_put_aside_than_a_device_allows() {
    // No other test asks for it on that device.
    let exec = CudaExec::open(7).expect("the node has eight");
    let granted = [20 << 20, 1 << 30, 0].map(|n_bytes| exec.set_aside(n_bytes).expect("it is set"));
    assert_eq!(granted, [20 << 20, 32_768_000, 0]);
}

#[test]
fn small_allocations_share_and_large_ones_do_not() {
    let exec = CudaExec::open(0).expect("the node has it");
    let claimed = exec.n_claimed_bytes();
    let (a, b) = (exec.alloc(1).expect("room"), exec.alloc(1000).expect("room"));
    assert_eq!(b.0 - a.0, super::ALIGNMENT as u64);
    exec.alloc(super::CHUNK_BYTES).expect("room");
    assert_eq!(exec.n_claimed_bytes(), claimed + super::CHUNK_BYTES);
    let c = exec.alloc(1).expect("room");
    assert_eq!(c.0 - b.0, 1024, "a chunk is not left for a large allocation");
}

#[test]
fn too_much_memory_is_refused_with_numbers() {
    let exec = CudaExec::open(0).expect("the node has it");
    // More than there is, whatever tests beside this one take and give back meanwhile.
    let (_, total) = exec.memory_bytes().expect("it is said");
    match exec.alloc(total + 1) {
        Err(DeviceError::OutOfMemory { n_bytes, free_bytes, total_bytes, .. }) => {
            assert_eq!((n_bytes, total_bytes), (total + 1, total));
            assert!(free_bytes <= total, "{free_bytes}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn nothing_is_allocated_after_boot() {
    let exec = CudaExec::open(0).expect("the node has it");
    exec.seal();
    let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| exec.alloc(256)));
    assert!(refused.is_err(), "a step must not allocate");
}

#[test]
fn copies_take_their_turn_in_a_graph() {
    let device = TestDevice::open(2);
    let exec = &device.exec;
    let (near, far) = (exec.alloc_pinned(64).expect("room"), exec.alloc_pinned(64).expect("room"));
    let (a, b) = (device.poisoned::<u32>(16), device.poisoned::<u32>(16));
    let stream = exec.stream();
    stream.begin_capture().expect("it begins");
    stream.copy_in(a, &near, 0, 64).expect("it is recorded");
    stream.copy_within(b, a, 64).expect("it is recorded");
    stream.fill(b, 0, 4).expect("it is recorded");
    stream.copy_out(&far, 0, b, 64).expect("it is recorded");
    let graph = stream.end_capture().expect("it ends");
    assert_eq!(graph.n_nodes(), 4);
    let event = exec.new_event().expect("it is made");
    for round in 1..4u32 {
        near.write(0, &[round; 16]);
        stream.launch(&graph).expect("it is submitted");
        stream.record(&event).expect("it is recorded");
        event.synchronize().expect("it passes");
        assert!(event.has_passed().expect("it is well"));
        let mut got = [u32::MAX; 16];
        far.read(0, &mut got);
        assert_eq!(got, std::array::from_fn(|i| if i == 0 { 0 } else { round }));
    }
}

#[test]
fn timed_events_tell_what_lies_between_them() {
    let device = TestDevice::open(1);
    let (exec, stream) = (&device.exec, device.exec.stream());
    let event = || exec.new_timed_event().expect("it is made");
    let (start, middle, end) = (event(), event(), event());
    let untimed = exec.new_event().expect("it is made");
    stream.record(&start).expect("it is recorded");
    device.poisoned::<u8>(8 << 20);
    stream.record(&middle).expect("it is recorded");
    stream.record(&untimed).expect("it is recorded");
    device.poisoned::<u8>(24 << 20);
    stream.record(&end).expect("it is recorded");
    end.synchronize().expect("it passes");
    let since = |end: &Event, start| end.since(start).expect("both have passed");
    let (whole, first, rest) = (since(&end, &start), since(&middle, &start), since(&end, &middle));
    assert!(!first.is_zero() && !rest.is_zero(), "{first:?} and {rest:?}");
    let parts = (first + rest).div_duration_f64(whole);
    assert!((0.999..1.001).contains(&parts), "{first:?} and {rest:?} of {whole:?}");
    assert_eq!(start.since(&end).expect("both have passed"), Duration::ZERO, "no time is negative");
    untimed.since(&start).expect_err("it keeps no time");
}

#[test]
fn waiting_for_the_device_while_recording_is_refused() {
    let exec = CudaExec::open(3).expect("the node has it");
    let ptr = exec.alloc(16).expect("room");
    let stream = exec.stream();
    stream.begin_capture().expect("it begins");
    exec.zero(ptr, 16).expect("it is recorded");
    let error = stream.synchronize().expect_err("that cannot be recorded");
    assert!(matches!(error, DeviceError::Driver { code: 900.., .. }), "{error}");
    stream.end_capture().map(drop).expect_err("the recording is spoiled");
    exec.zero(ptr, 16).expect("the stream runs again");
    exec.synchronize().expect("the stream runs again");
}

#[test]
fn a_kernel_that_is_not_there_is_named() {
    let exec = CudaExec::open(0).expect("the node has it");
    let config = LaunchConfig { grid: [1, 1, 1], block: [32, 1, 1], shared_bytes: 0, cluster: 1 };
    for (family, name) in [("nothing", "at_all"), ("swiglu", "at_all")] {
        // SAFETY: nothing is launched.
        let launched = unsafe { exec.launch(Kernel { family, name }, config, &[]) };
        let error = launched.expect_err("there is no such kernel");
        assert!(matches!(error, DeviceError::NoKernel { .. }), "{error}");
        assert!(error.to_string().contains(name), "{error}");
    }
}
