//! Graphs: work with an order, recorded or built, and made ready to be run as one.
//!
//! The nodes of a launch run one after another, in an order that their edges allow.

use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};

use super::context::Context;
use super::handles::{Registry, new_handle};
use super::launch::KernelCall;
use super::operation::{Failure, Operation, WorkCx};
use super::status::{Answer, Status};
use super::stream::Stream;
use crate::report;

/// A graph under construction.
pub(super) struct Graph {
    pub(super) handle: usize,
    nodes: Mutex<Vec<Node>>,
}

#[derive(Clone)]
struct Node {
    handle: usize,
    context: Arc<Context>,
    operation: Operation,
    /// Nodes that come before it.
    after: Vec<usize>,
    is_destroyed: bool,
}

/// Where a node's handle leads.
struct NodeRef {
    graph: Weak<Graph>,
    node_idx: usize,
}

/// The nodes of a graph in an order in which they may run.
#[derive(Clone)]
pub(super) struct Runs {
    nodes: Vec<Node>,
}

/// A graph that is ready to run.
pub(super) struct Exec {
    pub(super) handle: usize,
    runs: RwLock<Arc<Runs>>,
}

static GRAPHS: Registry<Graph> = Registry::new(Status::INVALID_VALUE);
static NODES: Registry<NodeRef> = Registry::new(Status::INVALID_VALUE);
static EXECS: Registry<Exec> = Registry::new(Status::INVALID_VALUE);

impl Graph {
    pub(super) fn create() -> Arc<Graph> {
        let graph = Arc::new(Graph { handle: new_handle(), nodes: Mutex::default() });
        GRAPHS.insert(graph.handle, graph.clone());
        graph
    }

    pub(super) fn get(handle: usize) -> Answer<Arc<Graph>> {
        GRAPHS.get(handle)
    }

    pub(super) fn destroy(&self) {
        for node in self.nodes.lock().iter() {
            let _ = NODES.remove(node.handle);
        }
        let _ = GRAPHS.remove(self.handle);
    }

    /// Appends a node behind others; answers its index.
    pub(super) fn add(
        self: &Arc<Graph>,
        context: &Arc<Context>,
        operation: Operation,
        after: Vec<usize>,
    ) -> usize {
        let mut nodes = self.nodes.lock();
        let (handle, node_idx) = (new_handle(), nodes.len());
        let context = context.clone();
        nodes.push(Node { handle, context, operation, after, is_destroyed: false });
        NODES.insert(handle, Arc::new(NodeRef { graph: Arc::downgrade(self), node_idx }));
        node_idx
    }

    /// As [`Graph::add`], by handles.
    pub(super) fn add_after(
        self: &Arc<Graph>,
        context: &Arc<Context>,
        operation: Operation,
        after: &[usize],
    ) -> Answer<usize> {
        let after = self.indices(after)?;
        let node_idx = self.add(context, operation, after);
        Ok(self.node_handle(node_idx))
    }

    pub(super) fn node_handle(&self, node_idx: usize) -> usize {
        self.nodes.lock()[node_idx].handle
    }

    /// The nodes of these handles, which must be this graph's.
    pub(super) fn indices(&self, handles: &[usize]) -> Answer<Vec<usize>> {
        let nodes = self.nodes.lock();
        let index = |handle: &usize| nodes.iter().position(|node| node.handle == *handle);
        handles.iter().map(|handle| index(handle).ok_or(Status::INVALID_VALUE)).collect()
    }

    /// Whether every node comes before these, or is one of them.
    pub(super) fn all_before(&self, last: &[usize]) -> bool {
        let nodes = self.nodes.lock();
        let mut is_before = vec![false; nodes.len()];
        let mut further = last.to_vec();
        while let Some(node_idx) = further.pop() {
            if !std::mem::replace(&mut is_before[node_idx], true) {
                further.extend(&nodes[node_idx].after);
            }
        }
        is_before.into_iter().all(|is_before| is_before)
    }

    /// Handles of all nodes.
    pub(super) fn nodes(&self) -> Vec<usize> {
        let nodes = self.nodes.lock();
        nodes.iter().filter(|node| !node.is_destroyed).map(|node| node.handle).collect()
    }

    /// Handles of the nodes that come after none.
    pub(super) fn roots(&self) -> Vec<usize> {
        let nodes = self.nodes.lock();
        let roots = nodes.iter().filter(|node| !node.is_destroyed && node.after.is_empty());
        roots.map(|node| node.handle).collect()
    }

    /// All edges, as handles of the earlier and the later node.
    pub(super) fn edges(&self) -> Vec<(usize, usize)> {
        let nodes = self.nodes.lock();
        let edges = |node: &Node| -> Vec<(usize, usize)> {
            node.after.iter().map(|before| (nodes[*before].handle, node.handle)).collect()
        };
        nodes.iter().filter(|node| !node.is_destroyed).flat_map(edges).collect()
    }

    /// Adds edges from the nodes of the first handles to those of the second.
    pub(super) fn add_edges(&self, edges: &[(usize, usize)]) -> Answer {
        for (from, to) in edges {
            let pair = self.indices(&[*from, *to])?;
            let mut nodes = self.nodes.lock();
            let after = &mut nodes[pair[1]].after;
            if after.contains(&pair[0]) {
                return Err(Status::INVALID_VALUE);
            }
            after.push(pair[0]);
        }
        Ok(())
    }

    /// A copy with nodes of its own.
    pub(super) fn clone_graph(&self) -> Arc<Graph> {
        let copy = Graph::create();
        for node in self.nodes.lock().iter() {
            let node_idx = copy.add(&node.context, node.operation.clone(), node.after.clone());
            copy.nodes.lock()[node_idx].is_destroyed = node.is_destroyed;
        }
        copy
    }

    /// The nodes in an order in which they may run.
    pub(super) fn runs(&self) -> Answer<Runs> {
        let nodes = self.nodes.lock();
        let mut is_done = vec![false; nodes.len()];
        let mut order = Vec::with_capacity(nodes.len());
        // Captured nodes are in order, so one pass does unless edges were added later.
        while order.len() < nodes.len() {
            let n_before = order.len();
            for (node_idx, node) in nodes.iter().enumerate() {
                if !is_done[node_idx] && node.after.iter().all(|before| is_done[*before]) {
                    is_done[node_idx] = true;
                    order.push(node_idx);
                }
            }
            if order.len() == n_before {
                // A circle.
                return Err(Status::INVALID_VALUE);
            }
        }
        let live = order.into_iter().filter(|node_idx| !nodes[*node_idx].is_destroyed);
        Ok(Runs { nodes: live.map(|node_idx| nodes[node_idx].clone()).collect() })
    }
}

/// A node's operation, by its handle.
pub(super) fn operation(handle: usize) -> Answer<Operation> {
    with_node(handle, |node| node.operation.clone())
}

/// Exchanges a node's operation.
pub(super) fn set_operation(handle: usize, operation: Operation) -> Answer {
    with_node(handle, |node| node.operation = operation)
}

/// Takes a node out of its graph; what came after it comes after what was before it no longer.
pub(super) fn destroy_node(handle: usize) -> Answer {
    let node_ref = NODES.remove(handle)?;
    let graph = node_ref.graph.upgrade().ok_or(Status::INVALID_VALUE)?;
    let mut nodes = graph.nodes.lock();
    for node in nodes.iter_mut() {
        node.after.retain(|before| *before != node_ref.node_idx);
    }
    nodes[node_ref.node_idx].is_destroyed = true;
    Ok(())
}

/// Handles of the nodes right before a node, and right after it.
pub(super) fn neighbours(handle: usize) -> Answer<(Vec<usize>, Vec<usize>)> {
    let graph = NODES.get(handle)?.graph.upgrade().ok_or(Status::INVALID_VALUE)?;
    let edges = graph.edges();
    let before = edges.iter().filter(|edge| edge.1 == handle).map(|edge| edge.0).collect();
    let after = edges.iter().filter(|edge| edge.0 == handle).map(|edge| edge.1).collect();
    Ok((before, after))
}

fn with_node<T>(handle: usize, use_node: impl FnOnce(&mut Node) -> T) -> Answer<T> {
    let node_ref = NODES.get(handle)?;
    let graph = node_ref.graph.upgrade().ok_or(Status::INVALID_VALUE)?;
    let mut nodes = graph.nodes.lock();
    Ok(use_node(&mut nodes[node_ref.node_idx]))
}

impl Runs {
    pub(super) fn n_nodes(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn run(&self, cx: &WorkCx<'_>) -> Result<(), Failure> {
        for node in &self.nodes {
            node.operation.run(&cx.on(node.context.device))?;
        }
        Ok(())
    }
}

impl Exec {
    pub(super) fn create(graph: &Graph) -> Answer<Arc<Exec>> {
        let runs = RwLock::new(Arc::new(graph.runs()?));
        let exec = Arc::new(Exec { handle: new_handle(), runs });
        EXECS.insert(exec.handle, exec.clone());
        Ok(exec)
    }

    pub(super) fn get(handle: usize) -> Answer<Arc<Exec>> {
        EXECS.get(handle)
    }

    pub(super) fn destroy(handle: usize) -> Answer {
        EXECS.remove(handle).map(|_| ())
    }

    /// `cuGraphLaunch`.
    pub(super) fn launch(&self, stream: &Stream) -> Answer {
        let runs = self.runs.read().clone();
        let n_nodes = runs.n_nodes() as u64;
        let device = stream.context.device.index();
        let is_ahead = stream.queue.has_unseen_graph();
        report::record(device, |device| {
            device.graphs.n_launches += 1;
            device.graphs.n_nodes += n_nodes;
            device.graphs.n_ahead += u64::from(is_ahead);
        });
        if let Some(ticket) = stream.submit(Operation::Graph(runs))? {
            stream.queue.note_graph(&ticket);
        }
        Ok(())
    }

    /// `cuGraphExecUpdate`: takes over the operations of a graph of the same form. The error is
    /// the index of the first node that differs.
    pub(super) fn update(&self, graph: &Graph) -> Result<(), usize> {
        let new = graph.runs().map_err(|_| 0usize)?;
        let mut runs = self.runs.write();
        if new.nodes.len() != runs.nodes.len() {
            return Err(new.nodes.len().min(runs.nodes.len()));
        }
        for (node_idx, (old, new)) in runs.nodes.iter().zip(&new.nodes).enumerate() {
            let is_same_kind = match (&old.operation, &new.operation) {
                (Operation::Task { name: old, .. }, Operation::Task { name: new, .. }) => {
                    old == new
                }
                (old, new) => std::mem::discriminant(old) == std::mem::discriminant(new),
            };
            if !is_same_kind || old.after != new.after {
                return Err(node_idx);
            }
        }
        let taken = runs.nodes.iter().zip(new.nodes).map(|(old, new)| {
            // The handles by which single nodes are changed stay those of the first graph.
            Node { handle: old.handle, ..new }
        });
        *runs = Arc::new(Runs { nodes: taken.collect() });
        Ok(())
    }

    /// Exchanges the operation of the node that stood in the graph under this handle.
    pub(super) fn set_operation(&self, node: usize, operation: Operation) -> Answer {
        let mut runs = self.runs.write();
        let mut changed = Runs::clone(&runs);
        let found = changed.nodes.iter_mut().find(|candidate| candidate.handle == node);
        let found = found.ok_or(Status::INVALID_VALUE)?;
        if std::mem::discriminant(&found.operation) != std::mem::discriminant(&operation) {
            return Err(Status::INVALID_VALUE);
        }
        found.operation = operation;
        *runs = Arc::new(changed);
        Ok(())
    }
}

/// The kernel of a kernel node.
pub(super) fn kernel(handle: usize) -> Answer<Arc<KernelCall>> {
    match operation(handle)? {
        Operation::Kernel(call) => Ok(call),
        _ => Err(Status::INVALID_VALUE),
    }
}
