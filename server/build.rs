//! Makes Rust of the gRPC protocol in `proto/`, without `protoc` on the machine.

use std::error::Error;

const PROTOCOL: &str = "proto/kserve.proto";

fn main() -> Result<(), Box<dyn Error>> {
    // Cargo looks at the whole package for changes, which is more than is needed, and enough.
    let files = protox::compile([PROTOCOL], ["proto"])?;
    tonic_prost_build::configure().build_client(false).bytes(".inference").compile_fds(files)?;
    Ok(())
}
