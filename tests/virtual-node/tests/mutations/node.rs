//! Devices of a scenario: memory of their own, and launches without a driver.

use std::ffi::c_void;
use std::sync::Arc;
use std::time::Duration;

use virtual_node::exec::{Checks, Launch, STALL_MAX};
use virtual_node::memory::{DeviceIdx, Memory};
use virtual_node::ptx::Module;

/// A node whose memory nobody else uses.
#[derive(Clone, Copy)]
pub(crate) struct Node {
    memory: &'static Memory,
}

/// A launch in the words of a test.
pub(crate) struct Call<'a> {
    pub(crate) kernel: &'a str,
    pub(crate) grid: [u32; 3],
    pub(crate) n_threads: u32,
    /// Blocks in x.
    pub(crate) cluster: u32,
    /// Dynamic shared memory.
    pub(crate) shared_bytes: usize,
    pub(crate) params: &'a [Param],
}

/// How a launch is told to have stood still.
pub(crate) const STANDS_STILL: &str = "no progress";

/// A parameter of a kernel.
#[derive(Clone, Debug)]
pub(crate) enum Param {
    U32(u32),
    F32(f32),
    Address(u64),
    /// A struct of these words.
    Words(Vec<u64>),
}

impl Node {
    /// `n_devices`, all of them connected.
    pub(crate) fn new(n_devices: u8) -> Node {
        let memory = Box::leak(Box::new(Memory::new(usize::from(n_devices), true)));
        for from in 0..n_devices {
            for to in 0..n_devices {
                memory.enable_peer(DeviceIdx(from), DeviceIdx(to));
            }
        }
        Node { memory }
    }

    /// Takes the connection away.
    pub(crate) fn disconnect(self, from: u8, to: u8) {
        self.memory.disable_peer(DeviceIdx(from), DeviceIdx(to));
    }

    /// Poisoned memory of exactly that size.
    pub(crate) fn allocate(self, device: u8, n_bytes: usize) -> u64 {
        self.memory.allocate(DeviceIdx(device), n_bytes as u64).expect("there is room")
    }

    /// Memory with these numbers in it.
    pub(crate) fn upload<T: Copy>(self, device: u8, values: &[T]) -> u64 {
        let address = self.allocate(device, size_of_val(values));
        self.write(device, address, values);
        address
    }

    pub(crate) fn write<T: Copy>(self, device: u8, address: u64, values: &[T]) {
        let to = self.host(device, address, size_of_val(values));
        // SAFETY: `resolve` has checked that as many bytes are there, and no kernel of a scenario
        // touches them now.
        unsafe { libc::memcpy(to.cast(), values.as_ptr().cast(), size_of_val(values)) };
    }

    pub(crate) fn download(self, device: u8, address: u64, n_bytes: usize) -> Vec<u8> {
        let mut bytes = vec![0u8; n_bytes];
        let from = self.host(device, address, n_bytes);
        // SAFETY: as above; the scenario's launches have ended.
        unsafe { libc::memcpy(bytes.as_mut_ptr().cast(), from.cast(), n_bytes) };
        bytes
    }

    fn host(self, device: u8, address: u64, n_bytes: usize) -> *mut c_void {
        let place = self.memory.resolve(DeviceIdx(device), address, n_bytes as u64);
        place.expect("the scenario's own memory").as_ptr().cast()
    }

    /// Runs a kernel to its end.
    pub(crate) fn launch(self, module: &Module, device: u8, call: &Call<'_>) -> Result<(), String> {
        self.launch_patiently(module, device, call, STALL_MAX)
    }

    /// As [`Node::launch`], while nobody else does anything: a kernel that waits has waited enough.
    pub(crate) fn launch_alone(
        self,
        module: &Module,
        device: u8,
        call: &Call<'_>,
    ) -> Result<(), String> {
        self.launch_patiently(module, device, call, Duration::ZERO)
    }

    fn launch_patiently(
        self,
        module: &Module,
        device: u8,
        call: &Call<'_>,
        stall_max: Duration,
    ) -> Result<(), String> {
        let kernel = module.kernel(call.kernel).ok_or("no such kernel")?;
        assert_eq!(kernel.params.len(), call.params.len(), "parameters of {}", call.kernel);
        let mut params = vec![0u8; kernel.n_param_bytes];
        for (place, param) in kernel.params.iter().zip(call.params) {
            let bytes = param.bytes();
            assert_eq!(bytes.len(), place.size, "{param:?} of {}", call.kernel);
            params[place.offset..place.offset + place.size].copy_from_slice(&bytes);
        }
        let launch = Launch {
            kernel: Arc::clone(kernel),
            grid: call.grid,
            block: [call.n_threads, 1, 1],
            cluster: [call.cluster, 1, 1],
            dynamic_shared_bytes: call.shared_bytes,
            params,
            device: DeviceIdx(device),
            memory: self.memory,
            globals: Vec::new().into(),
            checks: Checks { races: true, init: true, ..Checks::default() },
            n_workers: 2,
            stall_max,
        };
        launch.run().map(|_| ()).map_err(|fault| fault.to_string())
    }
}

impl Param {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Param::U32(value) => value.to_le_bytes().to_vec(),
            Param::F32(value) => value.to_le_bytes().to_vec(),
            Param::Address(value) => value.to_le_bytes().to_vec(),
            Param::Words(words) => words.iter().flat_map(|word| word.to_le_bytes()).collect(),
        }
    }
}

/// Numbers from -2 to 2 as bf16 bits.
pub(crate) fn bf16s(seed: u32, n: usize) -> Vec<u16> {
    f32s(seed, n).into_iter().map(bf16_of).collect()
}

/// The upper half of an f32.
pub(crate) fn bf16_of(x: f32) -> u16 {
    (x.to_bits() >> 16) as u16
}

/// Numbers from -2 to 2, the same for the same seed.
pub(crate) fn f32s(seed: u32, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / u32::MAX as f32 * 4.0 - 2.0
    };
    (0..n).map(|_| next()).collect()
}
