//! An unmodified cudarc program finds eight devices and their memory.

use cudarc::driver::CudaContext;

#[test]
fn eight_devices_hold_their_own_data() {
    assert_eq!(CudaContext::device_count().expect("a driver"), 8);
    let mut held = Vec::new();
    for ordinal in 0..8 {
        let context = CudaContext::new(ordinal).expect("a device");
        assert_eq!(context.name().expect("a name"), "NVIDIA H100 80GB HBM3");
        assert_eq!(context.compute_capability().expect("a version"), (9, 0));
        let stream = context.default_stream();
        let data: Vec<u32> = (0..1000).map(|i| i * (ordinal as u32 + 1)).collect();
        let on_device = stream.clone_htod(&data).expect("room");
        held.push((stream, on_device, data));
    }
    for (stream, on_device, data) in held {
        assert_eq!(stream.clone_dtoh(&on_device).expect("a copy"), data);
    }
}

#[test]
fn devices_differ() {
    let contexts: Vec<_> = (0..8).map(|i| CudaContext::new(i).expect("a device")).collect();
    for (i, context) in contexts.iter().enumerate() {
        for other in &contexts[..i] {
            assert_ne!(context.uuid().expect("known"), other.uuid().expect("known"));
        }
    }
    assert!(CudaContext::new(8).is_err());
}
