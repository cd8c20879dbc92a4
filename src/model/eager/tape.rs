//! The tape: values, how each came about, and the walk back from a loss.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::buffer::Buf;
use super::simd;
use crate::engine::Tensor;

/// Ids grow with creation, so descending ids are a reverse topological order.
static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// Sends an operation's upstream gradient on to its inputs. It captures values, never nodes, so that a graph is freed by its nodes alone.
type Back = Box<dyn Fn(Arc<Buf>, &mut Sink<'_>) + Send + Sync>;

pub(super) struct Node {
    id: u64,
    parents: Vec<Option<Arc<Node>>>,
    back: Option<Back>,
}

impl Drop for Node {
    /// Unlinks long chains in a loop: the recursive drop of a deep network would exhaust a thread's stack.
    fn drop(&mut self) {
        let mut rest: Vec<Arc<Node>> = self.parents.drain(..).flatten().collect();
        while let Some(node) = rest.pop() {
            if let Some(mut node) = Arc::into_inner(node) {
                rest.extend(node.parents.drain(..).flatten());
            }
        }
    }
}

/// A tensor of the eager interpreter: f32, row-major, cheap to clone. It is on the tape only if a gradient can reach it.
#[derive(Clone)]
pub struct Var {
    shape: Arc<[usize]>,
    pub(super) value: Arc<Buf>,
    node: Option<Arc<Node>>,
}

impl std::fmt::Debug for Var {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let head = &self.data()[..self.data().len().min(8)];
        write!(f, "Var{:?}(grad: {}) {head:?}..", self.shape, self.requires_grad())
    }
}

impl Var {
    /// A tensor that no gradient flows into.
    ///
    /// # Panics
    /// When shape and values disagree.
    pub fn constant(shape: &[usize], data: Vec<f32>) -> Var {
        Var::from_parts(shape, Arc::new(Buf::from_vec(data)), None)
    }

    /// A tensor that gradients are wanted for.
    ///
    /// # Panics
    /// When shape and values disagree.
    pub fn leaf(shape: &[usize], data: Vec<f32>) -> Var {
        let node = Node { id: NEXT_ID.fetch_add(1, Ordering::Relaxed), parents: Vec::new(), back: None };
        Var::from_parts(shape, Arc::new(Buf::from_vec(data)), Some(Arc::new(node)))
    }

    pub(super) fn constant_shared(shape: &[usize], value: Arc<Buf>) -> Var {
        Var::from_parts(shape, value, None)
    }

    fn from_parts(shape: &[usize], value: Arc<Buf>, node: Option<Arc<Node>>) -> Var {
        assert_eq!(shape.iter().product::<usize>(), value.len(), "tensor of shape {shape:?}");
        Var { shape: shape.into(), value, node }
    }

    /// The outcome of an operation on `inputs`; on the tape if any of them is and `grad` allows it.
    pub(super) fn outcome(
        grad: bool,
        shape: &[usize],
        value: Arc<Buf>,
        inputs: &[&Var],
        back: impl Fn(Arc<Buf>, &mut Sink<'_>) + Send + Sync + 'static,
    ) -> Var {
        let node = (grad && inputs.iter().any(|x| x.requires_grad())).then(|| {
            Arc::new(Node {
                id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
                parents: inputs.iter().map(|x| x.node.clone()).collect(),
                back: Some(Box::new(back)),
            })
        });
        Var::from_parts(shape, value, node)
    }

    /// Extent of each axis.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The values, row-major.
    pub fn data(&self) -> &[f32] {
        &self.value
    }

    /// The only value of a tensor with one.
    ///
    /// # Panics
    /// When there is not exactly one.
    pub fn item(&self) -> f32 {
        assert_eq!(self.value.len(), 1, "item of shape {:?}", self.shape);
        self.value[0]
    }

    /// Whether a gradient can reach this tensor.
    pub fn requires_grad(&self) -> bool {
        self.node.is_some()
    }

    /// The same values, cut from the tape.
    pub fn detach(&self) -> Var {
        Var { shape: self.shape.clone(), value: self.value.clone(), node: None }
    }

    /// The same values as a new leaf: gradients stop here and are kept.
    pub fn as_leaf(&self) -> Var {
        let node = Node { id: NEXT_ID.fetch_add(1, Ordering::Relaxed), parents: Vec::new(), back: None };
        Var { shape: self.shape.clone(), value: self.value.clone(), node: Some(Arc::new(node)) }
    }

    /// A copy outside the tape.
    pub fn to_tensor(&self) -> Tensor {
        Tensor::new(&self.shape, self.data().to_vec())
    }

    pub(super) fn id(&self) -> Option<u64> {
        self.node.as_ref().map(|n| n.id)
    }

    /// New values for a leaf, which stays the same leaf.
    pub(super) fn value_mut(&mut self) -> &mut Buf {
        if Arc::get_mut(&mut self.value).is_none() {
            self.value = Arc::new(Buf::from_vec(self.value.to_vec()));
        }
        match Arc::get_mut(&mut self.value) {
            Some(buf) => buf,
            None => unreachable!("a fresh Arc has one owner"),
        }
    }
}

/// Where an operation's backward pass puts the gradients of its inputs.
pub(super) struct Sink<'a> {
    parents: &'a [Option<Arc<Node>>],
    needed: &'a HashSet<u64>,
    grads: &'a mut HashMap<u64, Arc<Buf>>,
}

impl Sink<'_> {
    fn id(&self, input: usize) -> Option<u64> {
        self.parents.get(input)?.as_ref().map(|n| n.id).filter(|id| self.needed.contains(id))
    }

    /// Whether the gradient of that input is asked for; false for an optional input that was left out.
    pub fn wants(&self, input: usize) -> bool {
        self.id(input).is_some()
    }

    /// Adds to the gradient of an input (nothing if it is not asked for).
    pub fn add(&mut self, input: usize, grad: impl Into<Arc<Buf>>) {
        let Some(id) = self.id(input) else { return };
        let mut grad = grad.into();
        let Some(mut old) = self.grads.remove(&id) else {
            self.grads.insert(id, grad);
            return;
        };
        debug_assert_eq!(old.len(), grad.len());
        let sum = if let Some(old_buf) = Arc::get_mut(&mut old) {
            simd::add_assign(old_buf, &grad);
            old
        } else if let Some(grad_buf) = Arc::get_mut(&mut grad) {
            simd::add_assign(grad_buf, &old);
            grad
        } else {
            Arc::new(simd::map2(&old, &grad, |a, b| a + b))
        };
        self.grads.insert(id, sum);
    }

    /// Lets `f(out, fresh)` write (`fresh`: contents unspecified) or add into the gradient of an input of `len` values.
    pub fn emit(&mut self, input: usize, len: usize, f: impl FnOnce(&mut [f32], bool)) {
        let Some(id) = self.id(input) else { return };
        match self.grads.remove(&id) {
            None => {
                let mut buf = Buf::stale(len);
                f(&mut buf, true);
                self.grads.insert(id, Arc::new(buf));
            }
            Some(mut old) => {
                if let Some(buf) = Arc::get_mut(&mut old) {
                    f(buf, false);
                } else {
                    let mut buf = Buf::copy_of(&old);
                    f(&mut buf, false);
                    old = Arc::new(buf);
                }
                self.grads.insert(id, old);
            }
        }
    }
}

/// Walks back from `from` with gradient `seed`. Gradients are kept for `targets`, or for all leaves if there are none named.
pub(super) fn walk(from: &Var, seed: Arc<Buf>, targets: Option<&HashSet<u64>>) -> HashMap<u64, Arc<Buf>> {
    let Some(root) = &from.node else { return HashMap::new() };
    let mut nodes: Vec<&Arc<Node>> = Vec::new();
    let mut seen: HashSet<u64> = HashSet::from([root.id]);
    let mut open = vec![root];
    while let Some(node) = open.pop() {
        nodes.push(node);
        open.extend(node.parents.iter().flatten().filter(|p| seen.insert(p.id)));
    }
    nodes.sort_unstable_by_key(|n| n.id);

    // Only nodes on a way to a target are worked on.
    let needed: HashSet<u64> = match targets {
        None => seen,
        Some(targets) => {
            let mut needed = HashSet::new();
            for node in &nodes {
                if targets.contains(&node.id) || node.parents.iter().flatten().any(|p| needed.contains(&p.id)) {
                    needed.insert(node.id);
                }
            }
            needed
        }
    };

    let mut grads: HashMap<u64, Arc<Buf>> = HashMap::from([(root.id, seed)]);
    let mut kept: HashMap<u64, Arc<Buf>> = HashMap::new();
    for node in nodes.iter().rev().filter(|n| needed.contains(&n.id)) {
        let Some(grad) = grads.remove(&node.id) else { continue };
        let keep = targets.map_or(node.back.is_none(), |t| t.contains(&node.id));
        match &node.back {
            Some(back) => {
                if keep {
                    kept.insert(node.id, grad.clone());
                }
                back(grad, &mut Sink { parents: &node.parents, needed: &needed, grads: &mut grads });
            }
            None if keep => {
                kept.insert(node.id, grad);
            }
            None => {}
        }
    }
    kept
}
