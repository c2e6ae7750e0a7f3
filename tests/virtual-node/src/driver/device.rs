//! What an H100 SXM5 of 80 GB says of itself.

use super::status::{Answer, Status};
use crate::memory::DeviceIdx;

/// The device's name.
pub(super) const NAME: &str = "NVIDIA H100 80GB HBM3";
/// The version of CUDA that the driver speaks.
pub(super) const DRIVER_VERSION: i32 = 12060;
/// Streaming multiprocessors.
pub(super) const N_SMS: u32 = 132;
/// Threads that one block may have.
pub(super) const N_BLOCK_THREADS_MAX: u32 = 1024;
/// Threads that one multiprocessor holds.
pub(super) const N_SM_THREADS_MAX: u32 = 2048;
/// Blocks that one multiprocessor holds.
pub(super) const N_SM_BLOCKS_MAX: u32 = 32;
/// Registers of one multiprocessor, and the most that one block may have.
pub(super) const N_SM_REGISTERS: u32 = 65_536;
/// Shared memory that a block may have without asking.
pub(super) const SHARED_BYTES: u32 = 48 << 10;
/// Shared memory that a block may have after its function's attribute was set.
pub(super) const SHARED_OPT_IN_BYTES: u32 = 227 << 10;
/// Shared memory of one multiprocessor.
pub(super) const SM_SHARED_BYTES: u32 = 228 << 10;
/// Shared memory that the driver takes for itself from each block.
pub(super) const SHARED_RESERVED_BYTES: u32 = 1 << 10;
/// Blocks of a cluster that every program may have, and with the function's leave.
pub(super) const N_CLUSTER_BLOCKS: u32 = 8;
pub(super) const N_CLUSTER_BLOCKS_MAX: u32 = 16;
/// Blocks of a grid, by dimension.
pub(super) const GRID_MAX: [u32; 3] = [i32::MAX as u32, 65_535, 65_535];
/// Threads of a block, by dimension.
pub(super) const BLOCK_MAX: [u32; 3] = [1024, 1024, 64];

/// PCI buses of the eight devices of a DGX H100.
const PCI_BUSES: [i32; 8] = [0x1b, 0x43, 0x52, 0x61, 0x9d, 0xc3, 0xd1, 0xdf];

/// Attributes by number, as `cuda.h` numbers them. What is not listed is 0: the virtual node
/// does not do it, or no H100 does.
const ATTRIBUTES: &[(i32, i32)] = &[
    (1, N_BLOCK_THREADS_MAX as i32),
    (2, BLOCK_MAX[0] as i32),
    (3, BLOCK_MAX[1] as i32),
    (4, BLOCK_MAX[2] as i32),
    (5, GRID_MAX[0] as i32),
    (6, GRID_MAX[1] as i32),
    (7, GRID_MAX[2] as i32),
    (8, SHARED_BYTES as i32),
    (9, 65_536),    // constant memory
    (10, 32),       // warp
    (11, i32::MAX), // pitch
    (12, N_SM_REGISTERS as i32),
    (13, 1_980_000), // clock, kHz
    (14, 512),       // texture alignment
    (15, 1),         // copies overlap with kernels
    (16, N_SMS as i32),
    (19, 1),       // host memory can be mapped
    (21, 131_072), // from here to 30: textures
    (22, 131_072),
    (23, 65_536),
    (24, 16_384),
    (25, 16_384),
    (26, 16_384),
    (27, 32_768),
    (28, 32_768),
    (29, 2_048),
    (30, 512),
    (31, 1),         // concurrent kernels
    (32, 1),         // ECC
    (36, 2_619_000), // memory clock, kHz
    (37, 5_120),     // memory bus, bits
    (38, 50 << 20),  // L2
    (39, N_SM_THREADS_MAX as i32),
    (40, 3), // copy engines
    (41, 1), // unified addressing
    (42, 32_768),
    (43, 2_048),
    (44, 1),
    (45, 32_768),
    (46, 32_768),
    (47, 8_192),
    (48, 8_192),
    (49, 32_768),
    (51, 32),
    (52, 32_768),
    (53, 32_768),
    (54, 2_046),
    (55, 32_768),
    (56, 131_072),
    (57, 65_536),
    (58, 16_384),
    (59, 16_384),
    (60, 16_384),
    (61, 32_768),
    (62, 2_048),
    (63, 32_768),
    (64, 32_768),
    (65, 2_048),
    (66, 32_768),
    (67, 32_768),
    (68, 2_046),
    (69, 268_435_456),
    (70, 131_072),
    (71, 65_000),
    (72, 2_097_120),
    (73, 32_768),
    (74, 32_768),
    (75, 9), // compute capability 9.0
    (77, 32_768),
    (78, 1), // stream priorities
    (79, 1), // L1 for global memory
    (80, 1), // L1 for local memory
    (81, SM_SHARED_BYTES as i32),
    (82, N_SM_REGISTERS as i32),
    (87, 2), // double precision at half the speed of single
    (90, 1), // preemption
    (91, 1), // registered memory has one address
    (95, 1), // cooperative launch
    (97, SHARED_OPT_IN_BYTES as i32),
    (99, 1), // host memory can be registered
    (106, N_SM_BLOCKS_MAX as i32),
    (108, 32_768_000),  // L2 that may be set aside
    (109, 134_213_632), // access policy window
    (111, SHARED_RESERVED_BYTES as i32),
    (115, 1),  // memory pools
    (120, 1),  // clusters
    (126, 4),  // memory synchronization domains
    (127, 1),  // tensor maps
    (129, 1),  // unified function pointers
    (131, -1), // no NUMA node of its own
];

/// The last attribute of CUDA 12.6.
const LAST_ATTRIBUTE: i32 = 135;

/// `cuDeviceGetAttribute`.
pub(super) fn attribute(device: DeviceIdx, attribute: i32) -> Answer<i32> {
    match attribute {
        33 => Ok(PCI_BUSES[device.index()]),
        // Every device is a board of its own.
        85 => Ok(i32::from(device.0)),
        1..=LAST_ATTRIBUTE => {
            let found = ATTRIBUTES.iter().find(|(number, _)| *number == attribute);
            Ok(found.map_or(0, |(_, value)| *value))
        }
        _ => Err(Status::INVALID_VALUE),
    }
}

/// The device's UUID: the same in every run, different for each device.
pub(super) fn uuid(device: DeviceIdx) -> [u8; 16] {
    let mut uuid = *b"virtual-H100-\0\0\0";
    uuid[15] = device.0 + 1;
    uuid
}

/// Domain, bus and device, as `cuDeviceGetPCIBusId` writes them.
pub(super) fn pci_bus_id(device: DeviceIdx) -> String {
    format!("0000:{:02X}:00.0", PCI_BUSES[device.index()])
}

/// The device at a place on the bus.
pub(super) fn by_pci_bus_id(id: &str, n_devices: usize) -> Answer<DeviceIdx> {
    let mut devices = (0..n_devices as u8).map(DeviceIdx);
    let found = devices.find(|device| {
        let theirs = pci_bus_id(*device);
        theirs.eq_ignore_ascii_case(id) || theirs[5..].eq_ignore_ascii_case(id)
    });
    found.ok_or(Status::INVALID_DEVICE)
}

/// `cuDeviceGetP2PAttribute`: all devices are joined by NVLink alike.
pub(super) fn peer_attribute(attribute: i32, from: DeviceIdx, to: DeviceIdx) -> Answer<i32> {
    if from == to {
        return Err(Status::INVALID_DEVICE);
    }
    match attribute {
        1 => Ok(0),     // performance rank: the best
        2 | 3 => Ok(1), // access, native atomics
        4 => Ok(0),     // arrays
        _ => Err(Status::INVALID_VALUE),
    }
}
