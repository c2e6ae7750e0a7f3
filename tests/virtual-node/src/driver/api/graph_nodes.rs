//! The nodes of graphs: added, and changed in graphs and in what was made of them.

use std::ffi::c_void;
use std::sync::Arc;

use super::api;
use super::copy::Copy3d;
use super::ffi::{In, Out};
use super::launch::{ParamSource, call};
use crate::driver::context::{self, Context};
use crate::driver::copy::{Fill, Shape};
use crate::driver::graph::{self, Exec, Graph};
use crate::driver::launch::{KernelCall, Layout};
use crate::driver::operation::{HostCall, Operation};
use crate::driver::status::{Answer, Status};

/// `CUDA_KERNEL_NODE_PARAMS_v2`.
#[derive(Clone, Copy)]
#[repr(C)]
struct KernelParams {
    function: usize,
    grid: [u32; 3],
    block: [u32; 3],
    dynamic_shared_bytes: u32,
    params: usize,
    extra: usize,
    kernel: usize,
    context: usize,
}

/// `CUDA_MEMSET_NODE_PARAMS`.
#[derive(Clone, Copy)]
#[repr(C)]
struct FillParams {
    address: u64,
    pitch_bytes: usize,
    value: u32,
    value_bytes: u32,
    n_columns: usize,
    n_rows: usize,
}

/// `CUDA_HOST_NODE_PARAMS`.
#[derive(Clone, Copy)]
#[repr(C)]
struct HostParams {
    function: Option<extern "C" fn(*mut c_void)>,
    argument: usize,
}

impl KernelParams {
    /// The call; its parameters are read now. `before` is the call that it replaces.
    fn decode(&self) -> Answer<Operation> {
        let layout = Layout {
            grid: self.grid,
            block: self.block,
            cluster: None,
            dynamic_shared_bytes: self.dynamic_shared_bytes,
            is_cooperative: false,
        };
        let function = if self.function == 0 { self.kernel } else { self.function };
        let source = ParamSource { params: self.params, extra: self.extra };
        Ok(Operation::Kernel(Arc::new(call(function, layout, &source)?)))
    }

    fn encode(call: &KernelCall) -> KernelParams {
        KernelParams {
            function: call.function.handle,
            grid: call.layout.grid,
            block: call.layout.block,
            dynamic_shared_bytes: call.layout.dynamic_shared_bytes,
            params: call.param_pointers().as_ptr() as usize,
            extra: 0,
            kernel: 0,
            context: call.function.context.handle,
        }
    }
}

impl FillParams {
    fn decode(&self) -> Answer<Operation> {
        let value_bytes = u64::from(self.value_bytes);
        if !matches!(value_bytes, 1 | 2 | 4) {
            return Err(Status::INVALID_VALUE);
        }
        let row_bytes = self.n_columns as u64 * value_bytes;
        let shape = Shape { row_bytes, n_rows: self.n_rows as u64, n_layers: 1 };
        let pitch_bytes = if self.n_rows > 1 { self.pitch_bytes as u64 } else { row_bytes };
        let (address, value) = (self.address, self.value);
        let fill = Fill { address, value, value_bytes, shape, pitch_bytes };
        fill.check()?;
        Ok(Operation::Fill(fill))
    }
}

impl HostParams {
    fn decode(&self) -> Answer<Operation> {
        let function = self.function.ok_or(Status::INVALID_VALUE)?;
        Ok(Operation::Host(HostCall { function, argument: self.argument }))
    }
}

fn copy_operation(copy: &In<Copy3d>) -> Answer<Operation> {
    let copy = copy.get()?.decode()?;
    copy.check()?;
    Ok(Operation::Copy(copy))
}

/// The context of a node: the one that is named, else the current one.
fn node_context(handle: usize) -> Answer<Arc<Context>> {
    if handle == 0 { context::current() } else { context::get(handle) }
}

fn add(
    graph: usize,
    context: &Arc<Context>,
    operation: Operation,
    after: (In<usize>, usize),
) -> Answer<usize> {
    Graph::get(graph)?.add_after(context, operation, &after.0.slice(after.1)?)
}

api! {
    fn cuGraphAddEmptyNode(node: Out<usize>, graph: usize, after: In<usize>, n_after: usize) {
        node.put(add(graph, &context::current()?, Operation::Empty, (after, n_after))?)
    }

    fn cuGraphAddKernelNode_v2(
        node: Out<usize>,
        graph: usize,
        after: In<usize>,
        n_after: usize,
        params: In<KernelParams>,
    ) {
        let params = params.get()?;
        let operation = params.decode()?;
        node.put(add(graph, &node_context(params.context)?, operation, (after, n_after))?)
    }

    fn cuGraphKernelNodeGetParams_v2(node: usize, params: Out<KernelParams>) {
        params.put(KernelParams::encode(&*graph::kernel(node)?))
    }

    fn cuGraphKernelNodeSetParams_v2(node: usize, params: In<KernelParams>) {
        graph::kernel(node)?;
        graph::set_operation(node, params.get()?.decode()?)
    }

    fn cuGraphExecKernelNodeSetParams_v2(exec: usize, node: usize, params: In<KernelParams>) {
        Exec::get(exec)?.set_operation(node, params.get()?.decode()?)
    }

    fn cuGraphAddMemcpyNode(
        node: Out<usize>,
        graph: usize,
        after: In<usize>,
        n_after: usize,
        copy: In<Copy3d>,
        context: usize,
    ) {
        let operation = copy_operation(&copy)?;
        node.put(add(graph, &node_context(context)?, operation, (after, n_after))?)
    }

    fn cuGraphExecMemcpyNodeSetParams(exec: usize, node: usize, copy: In<Copy3d>, context: usize) {
        node_context(context)?;
        Exec::get(exec)?.set_operation(node, copy_operation(&copy)?)
    }

    fn cuGraphMemcpyNodeSetParams(node: usize, copy: In<Copy3d>) {
        graph::set_operation(node, copy_operation(&copy)?)
    }

    fn cuGraphAddMemsetNode(
        node: Out<usize>,
        graph: usize,
        after: In<usize>,
        n_after: usize,
        params: In<FillParams>,
        context: usize,
    ) {
        let operation = params.get()?.decode()?;
        node.put(add(graph, &node_context(context)?, operation, (after, n_after))?)
    }

    fn cuGraphExecMemsetNodeSetParams(
        exec: usize,
        node: usize,
        params: In<FillParams>,
        context: usize,
    ) {
        node_context(context)?;
        Exec::get(exec)?.set_operation(node, params.get()?.decode()?)
    }

    fn cuGraphMemsetNodeSetParams(node: usize, params: In<FillParams>) {
        graph::set_operation(node, params.get()?.decode()?)
    }

    fn cuGraphAddHostNode(
        node: Out<usize>,
        graph: usize,
        after: In<usize>,
        n_after: usize,
        params: In<HostParams>,
    ) {
        let operation = params.get()?.decode()?;
        node.put(add(graph, &context::current()?, operation, (after, n_after))?)
    }

    fn cuGraphExecHostNodeSetParams(exec: usize, node: usize, params: In<HostParams>) {
        Exec::get(exec)?.set_operation(node, params.get()?.decode()?)
    }

    fn cuGraphAddChildGraphNode(
        node: Out<usize>,
        graph: usize,
        after: In<usize>,
        n_after: usize,
        child: usize,
    ) {
        let operation = Operation::Graph(Arc::new(Graph::get(child)?.runs()?));
        node.put(add(graph, &context::current()?, operation, (after, n_after))?)
    }
}
