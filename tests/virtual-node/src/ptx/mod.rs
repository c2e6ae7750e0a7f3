//! PTX text to decoded kernels: what the executor runs. It knows no memory and no device.
