//! Launches and occupancy.

use std::sync::Arc;

use super::api;
use super::ffi::{In, Out, at_address};
use crate::driver::launch::{KernelCall, Layout, demand};
use crate::driver::module::{self, Function};
use crate::driver::operation::Operation;
use crate::driver::status::{Answer, Status};
use crate::driver::{context, device, occupancy, stream};

/// `CUlaunchConfig`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct LaunchConfig {
    grid: [u32; 3],
    block: [u32; 3],
    dynamic_shared_bytes: u32,
    stream: usize,
    attributes: usize,
    n_attributes: u32,
}

/// `CUlaunchAttribute`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Attribute {
    id: i32,
    padding: i32,
    value: [u32; 16],
}

/// Keys of the list that `extra` is: an end, the parameters' address, and their size's.
const EXTRA_END: usize = 0;
const EXTRA_BUFFER: usize = 1;
const EXTRA_BYTES: usize = 2;

/// Where a launch finds its parameters: one pointer each, or a block of them all.
pub(super) struct ParamSource {
    pub(super) params: usize,
    pub(super) extra: usize,
}

impl ParamSource {
    /// The parameter block.
    pub(super) fn read(&self, function: &Function) -> Answer<Vec<u8>> {
        let kernel = &function.kernel;
        if self.extra != 0 {
            return self.read_extra(kernel.n_param_bytes);
        }
        let mut block = vec![0; kernel.n_param_bytes];
        for (param_idx, param) in kernel.params.iter().enumerate() {
            let pointer = at_address::<usize>(self.params).at(param_idx)?;
            let value = at_address::<u8>(pointer).slice(param.size)?;
            block[param.offset..param.offset + param.size].copy_from_slice(&value);
        }
        Ok(block)
    }

    fn read_extra(&self, n_param_bytes: usize) -> Answer<Vec<u8>> {
        let list = at_address::<usize>(self.extra);
        let (mut buffer, mut n_bytes) = (0, 0);
        for pair_idx in 0..4 {
            match list.at(2 * pair_idx)? {
                EXTRA_END => break,
                EXTRA_BUFFER => buffer = list.at(2 * pair_idx + 1)?,
                EXTRA_BYTES => n_bytes = at_address(list.at(2 * pair_idx + 1)?).get()?,
                _ => return Err(Status::INVALID_VALUE),
            }
        }
        if n_bytes < n_param_bytes {
            return Err(Status::INVALID_VALUE);
        }
        at_address::<u8>(buffer).slice(n_param_bytes)
    }
}

/// Makes a call of a function, and checks it.
pub(super) fn call(function: usize, layout: Layout, params: &ParamSource) -> Answer<KernelCall> {
    let function = module::function(function)?;
    let params = params.read(&function)?;
    KernelCall::new(function, layout, params)
}

fn submit(function: usize, layout: Layout, params: &ParamSource, stream: usize) -> Answer {
    let stream = stream::get(stream)?;
    stream.context.clone().check()?;
    let call = call(function, layout, params)?;
    if call.function.context.handle != stream.context.handle {
        return Err(Status::INVALID_HANDLE);
    }
    stream.submit(Operation::Kernel(Arc::new(call))).map(|_| ())
}

impl LaunchConfig {
    fn layout(&self) -> Answer<Layout> {
        let mut layout = Layout {
            grid: self.grid,
            block: self.block,
            cluster: None,
            dynamic_shared_bytes: self.dynamic_shared_bytes,
            is_cooperative: false,
        };
        for attribute in
            at_address::<Attribute>(self.attributes).slice(self.n_attributes as usize)?
        {
            let [x, y, z, ..] = attribute.value;
            match attribute.id {
                2 => layout.is_cooperative = x != 0,
                4 => layout.cluster = Some([x, y, z]),
                // Hints, and leave to begin before the kernel before has ended: begun later, a
                // kernel does the same.
                0 | 1 | 3 | 5..=10 | 14 => {}
                _ => return Err(Status::NOT_SUPPORTED),
            }
        }
        Ok(layout)
    }
}

api! {
    fn cuLaunchKernel(
        function: usize,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        block_x: u32,
        block_y: u32,
        block_z: u32,
        dynamic_shared_bytes: u32,
        stream: usize,
        params: usize,
        extra: usize,
    ) {
        let layout = Layout {
            grid: [grid_x, grid_y, grid_z],
            block: [block_x, block_y, block_z],
            cluster: None,
            dynamic_shared_bytes,
            is_cooperative: false,
        };
        submit(function, layout, &ParamSource { params, extra }, stream)
    }

    fn cuLaunchCooperativeKernel(
        function: usize,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        block_x: u32,
        block_y: u32,
        block_z: u32,
        dynamic_shared_bytes: u32,
        stream: usize,
        params: usize,
    ) {
        let layout = Layout {
            grid: [grid_x, grid_y, grid_z],
            block: [block_x, block_y, block_z],
            cluster: None,
            dynamic_shared_bytes,
            is_cooperative: true,
        };
        submit(function, layout, &ParamSource { params, extra: 0 }, stream)
    }

    fn cuLaunchKernelEx(config: In<LaunchConfig>, function: usize, params: usize, extra: usize) {
        let config = config.get()?;
        submit(function, config.layout()?, &ParamSource { params, extra }, config.stream)
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        n_blocks: Out<i32>,
        function: usize,
        n_threads: i32,
        dynamic_shared_bytes: usize,
    ) {
        n_blocks.put(n_blocks_per_sm(function, n_threads, dynamic_shared_bytes)?)
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        n_blocks: Out<i32>,
        function: usize,
        n_threads: i32,
        dynamic_shared_bytes: usize,
        _flags: u32,
    ) {
        n_blocks.put(n_blocks_per_sm(function, n_threads, dynamic_shared_bytes)?)
    }

    fn cuOccupancyMaxPotentialBlockSize(
        n_blocks: Out<i32>,
        n_threads: Out<i32>,
        function: usize,
        shared: Option<extern "C" fn(i32) -> usize>,
        dynamic_shared_bytes: usize,
        n_threads_max: i32,
    ) {
        let rule = SharedRule { shared, fixed: dynamic_shared_bytes };
        let (best, threads) = best_block(function, rule, n_threads_max)?;
        n_blocks.put(best)?;
        n_threads.put(threads)
    }

    fn cuOccupancyMaxPotentialBlockSizeWithFlags(
        n_blocks: Out<i32>,
        n_threads: Out<i32>,
        function: usize,
        shared: Option<extern "C" fn(i32) -> usize>,
        dynamic_shared_bytes: usize,
        n_threads_max: i32,
        _flags: u32,
    ) {
        let rule = SharedRule { shared, fixed: dynamic_shared_bytes };
        let (best, threads) = best_block(function, rule, n_threads_max)?;
        n_blocks.put(best)?;
        n_threads.put(threads)
    }

    fn cuOccupancyAvailableDynamicSMemPerBlock(
        n_bytes: Out<usize>,
        function: usize,
        n_blocks: i32,
        _n_threads: i32,
    ) {
        let static_bytes = module::function(function)?.kernel.static_shared_bytes as u32;
        let n_blocks = u32::try_from(n_blocks).map_err(|_| Status::INVALID_VALUE)?;
        n_bytes.put(occupancy::shared_bytes_for(n_blocks, static_bytes) as usize)
    }

    fn cuOccupancyMaxPotentialClusterSize(
        n_blocks: Out<i32>,
        function: usize,
        _config: In<LaunchConfig>,
    ) {
        let function = module::function(function)?;
        let allows_large = function.attribute(14)? != 0;
        let limit =
            if allows_large { device::N_CLUSTER_BLOCKS_MAX } else { device::N_CLUSTER_BLOCKS };
        n_blocks.put(limit as i32)
    }

    fn cuOccupancyMaxActiveClusters(
        n_clusters: Out<i32>,
        function: usize,
        config: In<LaunchConfig>,
    ) {
        context::current()?;
        let layout = config.get()?.layout()?;
        let function = module::function(function)?;
        let cluster = layout.cluster.or(function.kernel.required_cluster).unwrap_or([1; 3]);
        let n_blocks = occupancy::n_blocks_per_device(demand(&function, &layout));
        n_clusters.put((n_blocks / u64::from(cluster.iter().product::<u32>().max(1))) as i32)
    }
}

fn n_blocks_per_sm(function: usize, n_threads: i32, dynamic_shared_bytes: usize) -> Answer<i32> {
    let function = module::function(function)?;
    let n_threads = u32::try_from(n_threads).map_err(|_| Status::INVALID_VALUE)?;
    let layout = Layout {
        grid: [1; 3],
        block: [n_threads, 1, 1],
        cluster: None,
        dynamic_shared_bytes: dynamic_shared_bytes.min(u32::MAX as usize / 2) as u32,
        is_cooperative: false,
    };
    Ok(occupancy::n_blocks_per_sm(demand(&function, &layout)) as i32)
}

/// How much dynamic shared memory a block takes.
#[derive(Clone, Copy)]
struct SharedRule {
    shared: Option<extern "C" fn(i32) -> usize>,
    fixed: usize,
}

fn best_block(function: usize, rule: SharedRule, n_threads_max: i32) -> Answer<(i32, i32)> {
    let function = module::function(function)?;
    let own_max = function.n_threads_max();
    let asked = u32::try_from(n_threads_max).unwrap_or(0);
    let n_threads_max = if asked == 0 { own_max } else { asked.min(own_max) };
    let shared_bytes = |n_threads: u32| {
        let dynamic = rule.shared.map_or(rule.fixed, |shared| shared(n_threads as i32));
        (function.kernel.static_shared_bytes + dynamic) as u32
    };
    let (n_blocks, n_threads) =
        occupancy::best_block(function.n_registers, n_threads_max, shared_bytes);
    Ok((n_blocks as i32, n_threads as i32))
}
