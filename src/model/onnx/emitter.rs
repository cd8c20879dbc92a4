//! The interpreter that writes: every operation becomes nodes of an ONNX graph.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use prost::Message;

use super::Graph;
use super::proto::*;
use crate::engine::Tensor;
use crate::model::network::{self, Shapes};
use crate::model::ops::Ops;
use crate::model::weights::BaseWeights;

/// Begins the name of a constant that the network computes; a weight of the base has the base's own name.
pub(super) const CONSTANT: &str = "constant/";
/// Parts a weight's name from the layout in which it is written.
pub(super) const LAYOUT: char = '#';

/// A value of the graph being written: its shape, and either a node's output or a constant not yet written.
///
/// Constants stay values until a node reads them: reshaped and transposed weights are then written in the layout in which
/// they are used, and weights that nothing reads are not written at all.
#[derive(Clone, Debug)]
pub struct Value {
    name: Rc<str>,
    shape: Rc<[usize]>,
    constant: Option<Rc<Vec<f32>>>,
}

/// Writes a graph while the network runs over it.
pub struct Emitter<'a> {
    base: &'a BaseWeights,
    adapter: &'a Shapes,
    graph: RefCell<Building>,
}

#[derive(Default)]
struct Building {
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
    written: BTreeSet<String>,
    inputs: Vec<(String, Vec<usize>)>,
    adapter_inputs: Shapes,
    counts: BTreeMap<&'static str, usize>,
    constants: usize,
}

enum Attr<'a> {
    Int(i64),
    Ints(&'a [usize]),
    Float(f32),
    Text(&'a str),
}

impl<'a> Emitter<'a> {
    /// Starts an empty graph. `adapter` holds the shapes of the tensors that become graph inputs when read.
    pub fn new(base: &'a BaseWeights, adapter: &'a Shapes) -> Self {
        Emitter { base, adapter, graph: RefCell::default() }
    }

    /// Declares an input.
    pub fn input(&self, name: &str, shape: &[usize]) -> Value {
        self.graph.borrow_mut().inputs.push((name.to_string(), shape.to_vec()));
        Value { name: name.into(), shape: shape.into(), constant: None }
    }

    /// Ends the graph: names the outputs and serialises.
    pub fn finish(self, name: &str, outputs: &[(&str, Value)]) -> Graph {
        for (out, value) in outputs {
            let node = NodeProto {
                input: vec![self.read(value)],
                output: vec![out.to_string()],
                name: format!("output/{out}"),
                op_type: "Identity".into(),
                attribute: vec![],
            };
            self.graph.borrow_mut().nodes.push(node);
        }
        let g = self.graph.into_inner();
        let info = |name: &str, shape: &[usize]| ValueInfoProto {
            name: name.to_string(),
            r#type: Some(TypeProto {
                tensor_type: Some(TensorTypeProto {
                    elem_type: FLOAT,
                    shape: Some(TensorShapeProto {
                        dim: shape.iter().map(|&d| DimensionProto { dim_value: Some(d as i64) }).collect(),
                    }),
                }),
            }),
        };
        let adapter_inputs = g.adapter_inputs.iter();
        let input = g.inputs.iter().map(|(n, s)| info(n, s)).chain(adapter_inputs.map(|(n, s)| info(n, s))).collect();
        let model = ModelProto {
            ir_version: 8,
            producer_name: "scanside".into(),
            // Not the program's version: a graph keeps its bytes, and what was built from it its use, until the network changes.
            producer_version: format!("network {}", network::NETWORK_VERSION),
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 17 }],
            graph: Some(GraphProto {
                node: g.nodes,
                name: name.into(),
                initializer: g.initializers,
                input,
                output: outputs.iter().map(|(n, v)| info(n, &v.shape)).collect(),
            }),
        };
        Graph {
            name: name.into(),
            onnx: model.encode_to_vec(),
            inputs: g.inputs,
            adapter_inputs: g.adapter_inputs,
            outputs: outputs.iter().map(|(n, _)| n.to_string()).collect(),
        }
    }

    /// The name under which nodes read a value; writes it first if it is a constant.
    fn read(&self, v: &Value) -> String {
        if let Some(data) = &v.constant {
            let raw = data.iter().flat_map(|x| x.to_le_bytes()).collect();
            self.initializer(&v.name, &v.shape, FLOAT, raw);
        }
        v.name.to_string()
    }

    fn initializer(&self, name: &str, shape: &[usize], data_type: i32, raw_data: Vec<u8>) {
        let mut g = self.graph.borrow_mut();
        if g.written.insert(name.to_string()) {
            let dims = shape.iter().map(|&d| d as i64).collect();
            g.initializers.push(TensorProto { dims, data_type, name: name.to_string(), raw_data });
        }
    }

    /// A constant list of integers, shared by all who need the same one.
    fn ints(&self, values: &[usize]) -> String {
        let words: Vec<String> = values.iter().map(usize::to_string).collect();
        let name = format!("ints/{}", words.join("_"));
        let raw = values.iter().flat_map(|&v| (v as i64).to_le_bytes()).collect();
        self.initializer(&name, &[values.len()], INT64, raw);
        name
    }

    /// A constant scalar, shared likewise.
    fn scalar(&self, value: f32) -> String {
        let name = format!("scalar/{:08x}", value.to_bits());
        self.initializer(&name, &[], FLOAT, value.to_le_bytes().to_vec());
        name
    }

    fn node(&self, op: &'static str, inputs: Vec<String>, attrs: &[(&str, Attr)], shape: &[usize]) -> Value {
        let mut g = self.graph.borrow_mut();
        let count = g.counts.entry(op).or_default();
        let name = format!("{op}/{count}");
        *count += 1;
        let attribute = attrs
            .iter()
            .map(|(name, value)| {
                let mut a = AttributeProto { name: name.to_string(), ..Default::default() };
                match value {
                    Attr::Float(f) => (a.f, a.kind) = (*f, 1),
                    Attr::Int(i) => (a.i, a.kind) = (*i, 2),
                    Attr::Text(s) => (a.s, a.kind) = (s.as_bytes().to_vec(), 3),
                    Attr::Ints(v) => (a.ints, a.kind) = (v.iter().map(|&i| i as i64).collect(), 7),
                }
                a
            })
            .collect();
        g.nodes.push(NodeProto {
            input: inputs,
            output: vec![name.clone()],
            name: name.clone(),
            op_type: op.into(),
            attribute,
        });
        Value { name: name.into(), shape: shape.into(), constant: None }
    }

    fn unary(&self, op: &'static str, x: &Value) -> Value {
        self.node(op, vec![self.read(x)], &[], &x.shape)
    }

    fn binary(&self, op: &'static str, a: &Value, b: &Value) -> Value {
        let shape = broadcast(&a.shape, &b.shape);
        self.node(op, vec![self.read(a), self.read(b)], &[], &shape)
    }

    fn with_scalar(&self, op: &'static str, x: &Value, k: f32) -> Value {
        let k = self.scalar(k);
        self.node(op, vec![self.read(x), k], &[], &x.shape)
    }

    fn new_constant(&self, name: String, shape: &[usize], data: Rc<Vec<f32>>) -> Value {
        Value { name: name.into(), shape: shape.into(), constant: Some(data) }
    }
}

impl Ops for Emitter<'_> {
    type T = Value;

    fn shape(&self, x: &Value) -> Vec<usize> {
        x.shape.to_vec()
    }

    fn param(&self, name: &str) -> Value {
        if let Some(shape) = self.adapter.get(name) {
            self.graph.borrow_mut().adapter_inputs.insert(name.to_string(), shape.clone());
            return Value { name: name.into(), shape: shape[..].into(), constant: None };
        }
        match self.base.get(name) {
            Some(Tensor { shape, data }) => self.new_constant(name.to_string(), shape, Rc::new(data.clone())),
            None => panic!("the network asks for {name}, which neither base nor adapter has"),
        }
    }

    fn has_param(&self, name: &str) -> bool {
        self.adapter.contains_key(name) || self.base.get(name).is_some()
    }

    fn constant(&self, shape: &[usize], data: Vec<f32>) -> Value {
        let count = {
            let mut g = self.graph.borrow_mut();
            g.constants += 1;
            g.constants
        };
        self.new_constant(format!("{CONSTANT}{count}"), shape, Rc::new(data))
    }

    fn conv2d(&self, x: &Value, w: &Value, b: Option<&Value>, stride: usize, pad: usize, groups: usize) -> Value {
        let (n, o, k) = (x.shape[0], w.shape[0], w.shape[2]);
        let out = |d: usize| (d + 2 * pad - k) / stride + 1;
        let mut inputs = vec![self.read(x), self.read(w)];
        inputs.extend(b.map(|b| self.read(b)));
        let attrs = [
            ("dilations", Attr::Ints(&[1, 1])),
            ("group", Attr::Int(groups as i64)),
            ("kernel_shape", Attr::Ints(&[k, k])),
            ("pads", Attr::Ints(&[pad; 4])),
            ("strides", Attr::Ints(&[stride; 2])),
        ];
        self.node("Conv", inputs, &attrs, &[n, o, out(x.shape[2]), out(x.shape[3])])
    }

    fn conv_transpose2x2(&self, x: &Value, w: &Value, b: &Value) -> Value {
        let shape = [x.shape[0], w.shape[1], 2 * x.shape[2], 2 * x.shape[3]];
        let attrs = [("kernel_shape", Attr::Ints(&[2, 2])), ("strides", Attr::Ints(&[2, 2]))];
        self.node("ConvTranspose", vec![self.read(x), self.read(w), self.read(b)], &attrs, &shape)
    }

    fn linear(&self, x: &Value, w: &Value, b: Option<&Value>) -> Value {
        let w = self.permute(w, &[1, 0]);
        let y = self.matmul(x, &w);
        b.map_or(y.clone(), |b| self.add(&y, b))
    }

    fn matmul(&self, a: &Value, b: &Value) -> Value {
        let mut shape = a.shape.to_vec();
        let (inner, last) = (shape.len() - 1, b.shape.len() - 1);
        assert_eq!(shape[inner], b.shape[last - 1], "matmul of {:?} and {:?}", a.shape, b.shape);
        shape[inner] = b.shape[last];
        self.node("MatMul", vec![self.read(a), self.read(b)], &[], &shape)
    }

    fn add(&self, a: &Value, b: &Value) -> Value {
        self.binary("Add", a, b)
    }
    fn sub(&self, a: &Value, b: &Value) -> Value {
        self.binary("Sub", a, b)
    }
    fn mul(&self, a: &Value, b: &Value) -> Value {
        self.binary("Mul", a, b)
    }
    fn div(&self, a: &Value, b: &Value) -> Value {
        self.binary("Div", a, b)
    }
    fn scale(&self, x: &Value, k: f32) -> Value {
        self.with_scalar("Mul", x, k)
    }
    fn offset(&self, x: &Value, k: f32) -> Value {
        self.with_scalar("Add", x, k)
    }

    fn gelu(&self, x: &Value) -> Value {
        // Opset 17 has no Gelu; this is the form that runtimes recognise and fuse.
        let erf = self.unary("Erf", &self.with_scalar("Div", x, std::f32::consts::SQRT_2));
        self.scale(&self.mul(x, &self.offset(&erf, 1.0)), 0.5)
    }
    fn relu(&self, x: &Value) -> Value {
        self.unary("Relu", x)
    }
    fn step(&self, x: &Value) -> Value {
        // Not Sign(Relu(x)): rten 0.27 gives Sign(0) = 1.
        let positive = self.with_scalar("Greater", x, 0.0);
        self.node("Cast", vec![self.read(&positive)], &[("to", Attr::Int(i64::from(FLOAT)))], &x.shape)
    }
    fn sigmoid(&self, x: &Value) -> Value {
        self.unary("Sigmoid", x)
    }
    fn sin(&self, x: &Value) -> Value {
        self.unary("Sin", x)
    }
    fn cos(&self, x: &Value) -> Value {
        self.unary("Cos", x)
    }
    fn log(&self, x: &Value) -> Value {
        self.unary("Log", x)
    }
    fn softmax(&self, x: &Value) -> Value {
        self.node("Softmax", vec![self.read(x)], &[("axis", Attr::Int(-1))], &x.shape)
    }
    fn layer_norm(&self, x: &Value, gain: &Value, bias: &Value, eps: f32) -> Value {
        let attrs = [("axis", Attr::Int(-1)), ("epsilon", Attr::Float(eps))];
        self.node("LayerNormalization", vec![self.read(x), self.read(gain), self.read(bias)], &attrs, &x.shape)
    }

    fn reshape(&self, x: &Value, shape: &[usize]) -> Value {
        assert_eq!(
            x.shape.iter().product::<usize>(),
            shape.iter().product::<usize>(),
            "reshape of {:?} to {shape:?}",
            x.shape
        );
        if *x.shape == *shape {
            return x.clone();
        }
        if let Some(data) = &x.constant {
            return self.new_constant(derived(&x.name, "as", shape), shape, data.clone());
        }
        let to = self.ints(shape);
        self.node("Reshape", vec![self.read(x), to], &[], shape)
    }

    fn permute(&self, x: &Value, axes: &[usize]) -> Value {
        if axes.iter().enumerate().all(|(i, &a)| i == a) {
            return x.clone();
        }
        let shape: Vec<usize> = axes.iter().map(|&a| x.shape[a]).collect();
        if let Some(data) = &x.constant {
            let moved = permuted(data, &x.shape, axes);
            return self.new_constant(derived(&x.name, "axes", axes), &shape, Rc::new(moved));
        }
        self.node("Transpose", vec![self.read(x)], &[("perm", Attr::Ints(axes))], &shape)
    }

    fn slice(&self, x: &Value, axis: usize, start: usize, end: usize) -> Value {
        let mut shape = x.shape.to_vec();
        assert!(start < end && end <= shape[axis], "slice {start}..{end} of axis {axis} of {shape:?}");
        if end - start == shape[axis] {
            return x.clone();
        }
        shape[axis] = end - start;
        let inputs = vec![self.read(x), self.ints(&[start]), self.ints(&[end]), self.ints(&[axis])];
        self.node("Slice", inputs, &[], &shape)
    }

    fn concat(&self, xs: &[Value], axis: usize) -> Value {
        let mut shape = xs[0].shape.to_vec();
        shape[axis] = xs.iter().map(|x| x.shape[axis]).sum();
        let inputs = xs.iter().map(|x| self.read(x)).collect();
        self.node("Concat", inputs, &[("axis", Attr::Int(axis as i64))], &shape)
    }

    fn pad_end(&self, x: &Value, axis: usize, count: usize) -> Value {
        let mut shape = x.shape.to_vec();
        let mut pads = vec![0; 2 * shape.len()];
        pads[shape.len() + axis] = count;
        shape[axis] += count;
        let inputs = vec![self.read(x), self.ints(&pads)];
        self.node("Pad", inputs, &[("mode", Attr::Text("constant"))], &shape)
    }

    fn expand(&self, x: &Value, shape: &[usize]) -> Value {
        if *x.shape == *shape {
            return x.clone();
        }
        let to = self.ints(shape);
        self.node("Expand", vec![self.read(x), to], &[], shape)
    }

    fn mean(&self, x: &Value, axes: &[usize]) -> Value {
        let attrs = [("axes", Attr::Ints(axes)), ("keepdims", Attr::Int(1))];
        self.node("ReduceMean", vec![self.read(x)], &attrs, &reduced(&x.shape, axes))
    }

    fn sum(&self, x: &Value, axes: &[usize]) -> Value {
        let inputs = vec![self.read(x), self.ints(axes)];
        self.node("ReduceSum", inputs, &[("keepdims", Attr::Int(1))], &reduced(&x.shape, axes))
    }

    fn resize_bilinear(&self, x: &Value, height: usize, width: usize) -> Value {
        let shape = [x.shape[0], x.shape[1], height, width];
        let inputs = vec![self.read(x), String::new(), String::new(), self.ints(&shape)];
        let attrs = [("coordinate_transformation_mode", Attr::Text("half_pixel")), ("mode", Attr::Text("linear"))];
        self.node("Resize", inputs, &attrs, &shape)
    }
}

/// A name for a constant in another layout: the same for the same layout, so that it is written once.
fn derived(name: &str, how: &str, list: &[usize]) -> String {
    let words: Vec<String> = list.iter().map(usize::to_string).collect();
    format!("{name}{LAYOUT}{how}_{}", words.join("_"))
}

fn reduced(shape: &[usize], axes: &[usize]) -> Vec<usize> {
    shape.iter().enumerate().map(|(i, &d)| if axes.contains(&i) { 1 } else { d }).collect()
}

fn broadcast(a: &[usize], b: &[usize]) -> Vec<usize> {
    let rank = a.len().max(b.len());
    let dim = |s: &[usize], i: usize| if i + s.len() < rank { 1 } else { s[i + s.len() - rank] };
    (0..rank)
        .map(|i| match (dim(a, i), dim(b, i)) {
            (x, y) if x == y || y == 1 => x,
            (1, y) => y,
            _ => panic!("shapes {a:?} and {b:?} do not broadcast"),
        })
        .collect()
}

fn permuted(data: &[f32], shape: &[usize], axes: &[usize]) -> Vec<f32> {
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i];
    }
    let dims: Vec<usize> = axes.iter().map(|&a| shape[a]).collect();
    let steps: Vec<usize> = axes.iter().map(|&a| strides[a]).collect();
    let mut index = vec![0; dims.len()];
    let mut at = 0;
    let mut out = Vec::with_capacity(data.len());
    for _ in 0..data.len() {
        out.push(data[at]);
        for axis in (0..dims.len()).rev() {
            index[axis] += 1;
            at += steps[axis];
            if index[axis] < dims[axis] {
                break;
            }
            at -= steps[axis] * dims[axis];
            index[axis] = 0;
        }
    }
    out
}
