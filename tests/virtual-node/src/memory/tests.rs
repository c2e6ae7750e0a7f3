//! What memory promises, and that breaking it is noticed.

use std::collections::BTreeSet;

use super::*;

const A: DeviceIdx = DeviceIdx(0);
const B: DeviceIdx = DeviceIdx(1);

fn memory() -> Memory {
    Memory::new(2, true)
}

fn read(memory: &Memory, device: DeviceIdx, address: u64) -> u32 {
    let at = memory.resolve(device, address, 4).expect("live memory");
    // SAFETY: four bytes of a live allocation that only this test uses.
    unsafe { at.cast::<u32>().read_unaligned() }
}

fn write(memory: &Memory, device: DeviceIdx, address: u64, value: u32) {
    let at = memory.resolve(device, address, 4).expect("live memory");
    // SAFETY: four bytes of a live allocation that only this test uses.
    unsafe { at.cast::<u32>().write_unaligned(value) }
}

#[test]
fn fresh_memory_is_poison_and_nan() {
    let memory = memory();
    assert!(f32::from_bits(POISON).is_nan());
    assert!(half::bf16::from_bits(POISON as u16).is_nan());
    assert!(half::bf16::from_bits((POISON >> 16) as u16).is_nan());
    // Small and large, as pages that are shared and whole pages go different ways.
    for n_bytes in [4, 512, 5000, 1 << 20, (64 << 20) + 4] {
        for _ in 0..2 {
            let address = memory.allocate(A, n_bytes).expect("room");
            assert_eq!(address % ALIGNMENT_BYTES, 0);
            let places = BTreeSet::from([0, (n_bytes / 2) & !3, (n_bytes - 4) & !3]);
            for at in places {
                assert_eq!(read(&memory, A, address + at), POISON, "{n_bytes} at {at}");
                write(&memory, A, address + at, 7);
                assert_eq!(read(&memory, A, address + at), 7);
            }
            memory.free(address).expect("live");
        }
    }
}

#[test]
fn freed_memory_is_poison_when_it_comes_back() {
    let memory = memory();
    let n_bytes = SPACE_BYTES / 4;
    let mut seen = Vec::new();
    // The addresses wrap round, so the first place is handed out again.
    for _ in 0..6 {
        let address = memory.allocate(A, n_bytes).expect("room");
        assert_eq!(read(&memory, A, address + 8192), POISON);
        write(&memory, A, address + 8192, 7);
        memory.free(address).expect("live");
        seen.push(address);
    }
    assert_eq!(seen[0], seen[3], "{seen:x?}");
}

#[test]
fn a_range_must_lie_in_one_allocation() {
    let memory = memory();
    let first = memory.allocate(A, 1000).expect("room");
    let second = memory.allocate(A, 1000).expect("room");
    assert!(second > first + 1000, "a gap lies between");
    let mut window = Window::new(&memory, A);
    let ranges = [(first, 1001), (first + 999, 2), (first, u64::MAX), (first + 1000, 1)];
    for (address, n_bytes) in ranges {
        let fault = Fault::OutOfBounds { address, n_bytes, start: first, allocation_bytes: 1000 };
        assert_eq!(memory.resolve(A, address, n_bytes), Err(fault));
        window.resolve(first, 4).expect("now it is remembered");
        assert_eq!(window.resolve(address, n_bytes), Err(fault));
    }
    for address in [first - 1, second + (1 << 20), 0, u64::MAX] {
        let fault = Fault::Unmapped { address, n_bytes: 1 };
        assert_eq!(memory.resolve(A, address, 1), Err(fault));
        assert_eq!(window.resolve(address, 1), Err(fault));
    }
}

#[test]
fn a_freed_range_is_gone() {
    let memory = memory();
    let address = memory.allocate(A, 1000).expect("room");
    let mut window = Window::new(&memory, A);
    window.resolve(address, 4).expect("live");
    memory.free(address).expect("live");
    let fault = Fault::Freed { address: address + 4, n_bytes: 4, start: address };
    assert_eq!(memory.resolve(A, address + 4, 4), Err(fault));
    assert_eq!(window.resolve(address + 4, 4), Err(fault));
    assert_eq!(memory.free(address), Err(MemoryError::NotAllocated { address, freed: true }));
}

#[test]
fn peers_must_be_enabled() {
    let memory = memory();
    let address = memory.allocate(B, 16).expect("room");
    let fault = Fault::NoPeerAccess { accessor: A, owner: B, address };
    let mut window = Window::new(&memory, A);
    assert_eq!(window.resolve(address, 16), Err(fault));
    assert!(memory.enable_peer(A, B));
    assert!(!memory.enable_peer(A, B));
    window.resolve(address, 16).expect("enabled");
    assert!(memory.disable_peer(A, B));
    assert_eq!(window.resolve(address, 16), Err(fault));
    assert!(!memory.may_reach(B, A));
}

#[test]
fn every_byte_is_counted() {
    let memory = memory();
    assert_eq!(memory.info(A), MemoryInfo { free_bytes: TOTAL_BYTES, total_bytes: TOTAL_BYTES });
    let address = memory.allocate(A, 513).expect("room");
    assert_eq!(memory.info(A).free_bytes, TOTAL_BYTES - 1024);
    let n_bytes = TOTAL_BYTES - 1023;
    let error = MemoryError::OutOfMemory { device: A, n_bytes, free_bytes: TOTAL_BYTES - 1024 };
    assert_eq!(memory.allocate(A, n_bytes), Err(error));
    let rest = memory.allocate(A, TOTAL_BYTES - 1024).expect("exactly the rest");
    assert_eq!(memory.info(A).free_bytes, 0);
    memory.free(address).expect("live");
    memory.free(rest).expect("live");
    assert_eq!(memory.info(A).free_bytes, TOTAL_BYTES);
    assert_eq!(memory.info(B).free_bytes, TOTAL_BYTES);
}

#[test]
fn pinned_memory_is_everyones() {
    let memory = memory();
    let address = memory.allocate_host(10_000).expect("room");
    assert_eq!(read(&memory, A, address), POISON);
    write(&memory, A, address + 9996, 7);
    assert_eq!(read(&memory, B, address + 9996), 7);
    assert!(memory.resolve(A, address + 9999, 2).is_err());
    memory.free_host(address).expect("live");
    assert!(memory.resolve(A, address, 1).is_err());
    assert!(memory.free_host(address).is_err());
}

#[test]
fn a_program_registers_its_own_memory() {
    let memory = memory();
    let mine = [1u32; 64];
    let address = mine.as_ptr() as u64;
    assert!(memory.resolve(A, address, 4).is_err());
    memory.register_host(address, 256).expect("not yet registered");
    assert_eq!(read(&memory, A, address + 252), 1);
    let error = MemoryError::Registered { address: address + 128 };
    assert_eq!(memory.register_host(address + 128, 256), Err(error));
    assert!(memory.free_host(address).is_err(), "it is not the driver's to free");
    memory.unregister_host(address).expect("registered");
    assert!(memory.resolve(A, address, 4).is_err());
}

#[test]
fn the_host_may_not_follow_a_device_pointer() {
    let memory = memory();
    let address = memory.allocate(A, 4096).expect("room");
    // The kernel says whether the page may be read, without killing the test.
    // SAFETY: `write` reads from the address in the kernel, which refuses what is not readable.
    let (rc, errno) = unsafe {
        let mut ends = [0; 2];
        assert_eq!(libc::pipe(ends.as_mut_ptr()), 0);
        let rc = libc::write(ends[1], address as *const _, 1);
        let errno = *libc::__errno_location();
        libc::close(ends[0]);
        libc::close(ends[1]);
        (rc, errno)
    };
    assert_eq!((rc, errno), (-1, libc::EFAULT));
}

#[test]
fn dry_memory_is_address_space_only() {
    let memory = Memory::new(8, false);
    for device in (0..8).map(DeviceIdx) {
        let address = memory.allocate(device, 70 << 30).expect("room");
        assert_eq!(memory.resolve(device, address, 4), Err(Fault::Dry { address }));
        memory.check(device, address, 70 << 30).expect("it is live");
        assert!(memory.allocate(device, 70 << 30).is_err());
    }
}
