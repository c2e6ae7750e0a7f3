//! Graphs as wholes: made, made ready, launched, compared and looked at.

use super::api;
use super::ffi::{In, Out};
use crate::driver::complain;
use crate::driver::graph::{self, Exec, Graph};
use crate::driver::status::{Answer, Status};
use crate::driver::{context, stream};

/// `CUDA_GRAPH_INSTANTIATE_PARAMS`.
#[derive(Clone, Copy)]
#[repr(C)]
struct InstantiateParams {
    flags: u64,
    upload_stream: usize,
    error_node: usize,
    result: i32,
}

/// `CUgraphExecUpdateResultInfo`.
#[derive(Clone, Copy)]
#[repr(C)]
struct UpdateResult {
    result: i32,
    error_node: usize,
    error_from_node: usize,
}

/// `CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED`.
const TOPOLOGY_CHANGED: i32 = 2;

api! {
    fn cuGraphCreate(handle: Out<usize>, flags: u32) {
        if flags != 0 {
            return Err(Status::INVALID_VALUE);
        }
        context::current()?;
        handle.put(Graph::create().handle)
    }

    fn cuGraphDestroy(handle: usize) {
        Graph::get(handle)?.destroy();
        Ok(())
    }

    fn cuGraphClone(handle: Out<usize>, from: usize) {
        handle.put(Graph::get(from)?.clone_graph().handle)
    }

    fn cuGraphInstantiateWithFlags(exec: Out<usize>, handle: usize, _flags: u64) {
        exec.put(instantiate(handle)?)
    }

    fn cuGraphInstantiate_v2(
        exec: Out<usize>,
        handle: usize,
        error_node: Out<usize>,
        _log: usize,
        _log_bytes: usize,
    ) {
        error_node.offer(0);
        exec.put(instantiate(handle)?)
    }

    fn cuGraphInstantiateWithParams(
        exec: Out<usize>,
        handle: usize,
        params: Out<InstantiateParams>,
    ) {
        let given = params.get()?;
        let made = instantiate(handle);
        params.put(InstantiateParams { error_node: 0, result: i32::from(made.is_err()), ..given })?;
        exec.put(made?)
    }

    fn cuGraphExecDestroy(exec: usize) {
        Exec::destroy(exec)
    }

    fn cuGraphExecGetFlags(exec: usize, flags: Out<u64>) {
        Exec::get(exec)?;
        flags.put(0)
    }

    fn cuGraphUpload(exec: usize, stream: usize) {
        Exec::get(exec)?;
        stream::get(stream)?.forbid_in_capture()
    }

    fn cuGraphLaunch(exec: usize, stream: usize) {
        Exec::get(exec)?.launch(&*stream::get(stream)?)
    }

    fn cuGraphExecUpdate_v2(exec: usize, handle: usize, result: Out<UpdateResult>) {
        let updated = Exec::get(exec)?.update(&*Graph::get(handle)?);
        let code = if updated.is_ok() { 0 } else { TOPOLOGY_CHANGED };
        result.offer(UpdateResult { result: code, error_node: 0, error_from_node: 0 });
        updated.map_err(|node_idx| {
            complain(format_args!("a graph was not updated: node {node_idx} differs"));
            Status::GRAPH_EXEC_UPDATE_FAILURE
        })
    }

    fn cuGraphGetNodes(handle: usize, nodes: Out<usize>, n: Out<usize>) {
        put_list(&Graph::get(handle)?.nodes(), &nodes, &n)
    }

    fn cuGraphGetRootNodes(handle: usize, nodes: Out<usize>, n: Out<usize>) {
        put_list(&Graph::get(handle)?.roots(), &nodes, &n)
    }

    fn cuGraphGetEdges(handle: usize, from: Out<usize>, to: Out<usize>, n: Out<usize>) {
        put_edges(handle, &from, &to, &n)
    }

    fn cuGraphGetEdges_v2(
        handle: usize,
        from: Out<usize>,
        to: Out<usize>,
        _data: usize,
        n: Out<usize>,
    ) {
        put_edges(handle, &from, &to, &n)
    }

    fn cuGraphNodeGetDependencies(node: usize, nodes: Out<usize>, n: Out<usize>) {
        put_list(&graph::neighbours(node)?.0, &nodes, &n)
    }

    fn cuGraphNodeGetDependentNodes(node: usize, nodes: Out<usize>, n: Out<usize>) {
        put_list(&graph::neighbours(node)?.1, &nodes, &n)
    }

    fn cuGraphNodeGetDependencies_v2(
        node: usize,
        nodes: Out<usize>,
        _edges: usize,
        n: Out<usize>,
    ) {
        put_list(&graph::neighbours(node)?.0, &nodes, &n)
    }

    fn cuGraphNodeGetDependentNodes_v2(
        node: usize,
        nodes: Out<usize>,
        _edges: usize,
        n: Out<usize>,
    ) {
        put_list(&graph::neighbours(node)?.1, &nodes, &n)
    }

    fn cuGraphAddDependencies(handle: usize, from: In<usize>, to: In<usize>, n: usize) {
        let edges: Vec<_> = from.slice(n)?.into_iter().zip(to.slice(n)?).collect();
        Graph::get(handle)?.add_edges(&edges)
    }

    fn cuGraphAddDependencies_v2(
        handle: usize,
        from: In<usize>,
        to: In<usize>,
        _edges: usize,
        n: usize,
    ) {
        let edges: Vec<_> = from.slice(n)?.into_iter().zip(to.slice(n)?).collect();
        Graph::get(handle)?.add_edges(&edges)
    }

    fn cuGraphNodeGetType(node: usize, kind: Out<i32>) {
        kind.put(graph::operation(node)?.node_type())
    }

    fn cuGraphDestroyNode(node: usize) {
        graph::destroy_node(node)
    }
}

fn instantiate(handle: usize) -> Answer<usize> {
    context::current()?;
    Ok(Exec::create(&*Graph::get(handle)?)?.handle)
}

/// Answers with how many there are, and with as many as the caller has room for.
fn put_list(handles: &[usize], nodes: &Out<usize>, n: &Out<usize>) -> Answer {
    if nodes.is_null() {
        return n.put(handles.len());
    }
    let n_room = n.get()?;
    nodes.put_all(handles, n_room)?;
    n.put(handles.len().min(n_room))
}

fn put_edges(handle: usize, from: &Out<usize>, to: &Out<usize>, n: &Out<usize>) -> Answer {
    let edges = Graph::get(handle)?.edges();
    let (before, after): (Vec<_>, Vec<_>) = edges.into_iter().unzip();
    if from.is_null() || to.is_null() {
        return n.put(before.len());
    }
    let n_room = n.get()?;
    from.put_all(&before, n_room)?;
    to.put_all(&after, n_room)?;
    n.put(before.len().min(n_room))
}
