//! The same graph in another precision: passes from one ONNX graph to another.
//!
//! TensorRT 11 knows no precision but the graph's own, and 8.6 and 10 take it as well: FP16 is tensors of that type, INT8 is quantising and
//! dequantising nodes round convolutions and matrix products. Inputs and outputs stay FP32 under their names, so every engine is
//! called alike, and LoRA's factors arrive as they are.

use std::collections::{BTreeMap, BTreeSet};

use half::f16;
use prost::Message;

use super::emitter::{CONSTANT, LAYOUT};
use super::proto::*;

/// Operators that stay FP32 in a graph of FP16: sums of squares and exponentials overflow or lose what small terms say.
/// The scales of bytes are FP32 by the operator's own definition (opset 17).
const WIDE: [&str; 9] = [
    "LayerNormalization",
    "Softmax",
    "ReduceMean",
    "ReduceSum",
    "Log",
    "Sin",
    "Cos",
    "QuantizeLinear",
    "DequantizeLinear",
];
/// Operators whose result is no float.
const NO_FLOAT: [&str; 2] = ["Greater", "QuantizeLinear"];
/// Least scale of a quantised tensor: one that never changes is not divided by nothing.
const LEAST_SCALE: f32 = 1e-8;
/// Largest magnitude of a signed byte as TensorRT uses it: symmetric, zero at zero.
pub(super) const BYTE: f32 = 127.0;

/// Why a graph cannot be changed.
#[derive(Debug, thiserror::Error)]
pub enum PrecisionError {
    /// The bytes are no graph of ours.
    #[error("the ONNX graph cannot be read: {0}")]
    Read(#[from] prost::DecodeError),
    /// The model has no graph, or a constant is not what it says.
    #[error("the ONNX graph is not whole: {0}")]
    Whole(String),
    /// A constant is too large for FP16.
    #[error("the constant {0} does not fit FP16: keep this model in FP32")]
    Overflow(String),
    /// A calibration lacks a tensor.
    #[error("no range of {tensor} is known, which {node} reads: calibrate with the same graph")]
    Range {
        /// The tensor.
        tensor: String,
        /// The node that would be quantised.
        node: String,
    },
}

fn model(onnx: &[u8]) -> Result<(ModelProto, GraphProto), PrecisionError> {
    let mut model = ModelProto::decode(onnx)?;
    let graph = model.graph.take().ok_or_else(|| PrecisionError::Whole("it has no graph".into()))?;
    Ok((model, graph))
}

fn floats(t: &TensorProto) -> Result<Vec<f32>, PrecisionError> {
    let wanted: i64 = t.dims.iter().product();
    if t.data_type != FLOAT || t.raw_data.len() as i64 != 4 * wanted {
        return Err(PrecisionError::Whole(format!("the constant {} has {} bytes", t.name, t.raw_data.len())));
    }
    Ok(t.raw_data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

fn cast(from: &str, to: &str, kind: i32) -> NodeProto {
    let to_type = AttributeProto { name: "to".into(), i: i64::from(kind), kind: 2, ..Default::default() };
    NodeProto {
        input: vec![from.into()],
        output: vec![to.into()],
        name: format!("cast/{to}"),
        op_type: "Cast".into(),
        attribute: vec![to_type],
    }
}

/// The graph in FP16, with normalisation, softmax and sums in FP32.
///
/// # Errors
/// [`PrecisionError::Read`], [`PrecisionError::Whole`], [`PrecisionError::Overflow`].
pub fn to_half(onnx: &[u8]) -> Result<Vec<u8>, PrecisionError> {
    let (mut model, graph) = model(onnx)?;
    let wide = |n: &NodeProto| WIDE.contains(&n.op_type.as_str());
    // Who reads a constant decides in which precisions it is kept.
    let read_by = |of_wide: bool| -> BTreeSet<&str> {
        graph.node.iter().filter(|n| wide(n) == of_wide).flat_map(|n| n.input.iter().map(String::as_str)).collect()
    };
    let (by_wide, by_half) = (read_by(true), read_by(false));
    let inputs: BTreeSet<&str> = graph.input.iter().map(|i| i.name.as_str()).collect();
    let outputs: BTreeSet<&str> = graph.output.iter().map(|o| o.name.as_str()).collect();
    let mut other: BTreeSet<&str> =
        graph.initializer.iter().filter(|t| t.data_type != FLOAT).map(|t| t.name.as_str()).collect();
    other.extend(
        graph
            .node
            .iter()
            .filter(|n| NO_FLOAT.contains(&n.op_type.as_str()))
            .flat_map(|n| n.output.iter().map(String::as_str)),
    );
    other.insert("");

    let mut initializer = Vec::new();
    let mut constants = BTreeSet::new();
    for t in &graph.initializer {
        if t.data_type != FLOAT {
            initializer.push(t.clone());
            continue;
        }
        constants.insert(t.name.as_str());
        let values = floats(t)?;
        if by_half.contains(t.name.as_str()) {
            let halves: Vec<f16> = values.iter().map(|v| f16::from_f32(*v)).collect();
            if halves.iter().any(|h| !h.is_finite()) {
                return Err(PrecisionError::Overflow(t.name.clone()));
            }
            let raw_data = halves.iter().flat_map(|h| h.to_le_bytes()).collect();
            initializer.push(TensorProto { data_type: FLOAT16, raw_data, ..t.clone() });
        }
        if by_wide.contains(t.name.as_str()) {
            initializer.push(TensorProto { name: wide_name(&t.name), ..t.clone() });
        }
    }
    // Every float value is FP16 under its own name (of an input: another one), and FP32 under `wide_name` where it is asked for.
    let half_name = |v: &str| if inputs.contains(v) { format!("{v}/half") } else { v.to_string() };
    let mut made_wide: BTreeSet<String> = BTreeSet::new();
    let mut node: Vec<NodeProto> = graph.input.iter().map(|i| cast(&i.name, &half_name(&i.name), FLOAT16)).collect();
    for n in &graph.node {
        let mut own = n.clone();
        for name in own.input.iter_mut().filter(|i| !other.contains(i.as_str())) {
            if !wide(n) {
                *name = half_name(name);
                continue;
            }
            let wide_one = wide_name(name);
            if inputs.contains(name.as_str()) {
                // An input is FP32 already.
                continue;
            }
            if !constants.contains(name.as_str()) && made_wide.insert(wide_one.clone()) {
                node.push(cast(name, &wide_one, FLOAT));
            }
            *name = wide_one;
        }
        if n.op_type == "Cast" {
            for a in own.attribute.iter_mut().filter(|a| a.name == "to" && a.i == i64::from(FLOAT)) {
                a.i = i64::from(FLOAT16);
            }
        }
        let no_float = NO_FLOAT.contains(&n.op_type.as_str());
        let mut after = Vec::new();
        for name in own.output.iter_mut().filter(|_| !no_float) {
            let is_output = outputs.contains(name.as_str());
            match (wide(n), is_output) {
                (true, true) => {}
                (true, false) => {
                    let wide_one = wide_name(name);
                    made_wide.insert(wide_one.clone());
                    after.push(cast(&wide_one, name, FLOAT16));
                    *name = wide_one;
                }
                (false, true) => {
                    let half = format!("{name}/half");
                    after.push(cast(&half, name, FLOAT));
                    *name = half;
                }
                (false, false) => {}
            }
        }
        node.push(own);
        node.extend(after);
    }
    model.graph = Some(GraphProto { node, initializer, ..graph });
    Ok(model.encode_to_vec())
}

fn wide_name(v: &str) -> String {
    format!("{v}/float")
}

/// What [`to_int8`] quantises: nodes whose second input is a constant weight.
fn weighted<'a>(node: &'a NodeProto, constants: &BTreeMap<&str, &TensorProto>) -> Option<(&'a str, &'a str)> {
    let [x, w, ..] = node.input.as_slice() else { return None };
    let fits = matches!(node.op_type.as_str(), "Conv" | "MatMul" | "Gemm");
    // A matrix of more than two axes has no one axis of output channels. What the network computes by itself is no weight.
    let usable = |t: &&TensorProto| {
        let own = t.name.starts_with(CONSTANT);
        t.data_type == FLOAT && !own && (node.op_type == "Conv" || t.dims.len() == 2)
    };
    (fits && constants.get(w.as_str()).is_some_and(usable) && !constants.contains_key(x.as_str())).then_some((x, w))
}

/// A node that INT8 can be given to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quantisable {
    /// Its name in the graph, which differs between adapters that bring other tensors.
    pub node: String,
    /// The layer by the name of its weight in the base, e.g. `image_encoder.neck.2`: the same whatever the adapter brings.
    pub layer: String,
    /// The activation that it reads, whose range a calibration must tell.
    pub activation: String,
    /// Values of its weight.
    pub weights: usize,
    /// Values of the activation for each position that the weight is laid on: channels, times the square of a stride.
    pub each: usize,
}

impl Quantisable {
    /// Multiply-adds for an activation of so many values.
    pub fn work(&self, values: usize) -> f64 {
        self.weights as f64 * values as f64 / self.each.max(1) as f64
    }
}

/// The nodes that INT8 can be given to, in the graph's order.
///
/// # Errors
/// [`PrecisionError::Read`], [`PrecisionError::Whole`].
pub fn quantisable(onnx: &[u8]) -> Result<Vec<Quantisable>, PrecisionError> {
    let (_, graph) = model(onnx)?;
    let constants: BTreeMap<&str, &TensorProto> = graph.initializer.iter().map(|t| (t.name.as_str(), t)).collect();
    Ok(graph
        .node
        .iter()
        .filter_map(|n| {
            let (x, w) = weighted(n, &constants)?;
            let (weights, each) = constants.get(w).map_or((0, 1), |t| (t.raw_data.len() / 4, positions(n, t)));
            Some(Quantisable { node: n.name.clone(), layer: layer_of(w).into(), activation: x.into(), weights, each })
        })
        .collect())
}

/// [`Quantisable::each`] of a node with this weight.
fn positions(n: &NodeProto, weight: &TensorProto) -> usize {
    let attribute = |name: &str| n.attribute.iter().find(|a| a.name == name);
    let dim = |axis: usize| weight.dims.get(axis).copied().unwrap_or(1);
    let each = match n.op_type.as_str() {
        "Conv" => {
            let stride: i64 = attribute("strides").map_or(1, |a| a.ints.iter().product());
            dim(1).saturating_mul(attribute("group").map_or(1, |a| a.i)).saturating_mul(stride)
        }
        _ => dim(1 - channel_axis(n)),
    };
    usize::try_from(each).unwrap_or(1)
}

/// The layer that a constant is the weight of: its name without what the emitter added for another layout.
fn layer_of(weight: &str) -> &str {
    let base = weight.split_once(LAYOUT).map_or(weight, |(base, _)| base);
    base.strip_suffix(".weight").unwrap_or(base)
}

/// The graph with further outputs, so that a calibration sees the values inside.
///
/// # Errors
/// [`PrecisionError::Read`], [`PrecisionError::Whole`].
pub fn with_outputs(onnx: &[u8], names: &BTreeSet<String>) -> Result<Vec<u8>, PrecisionError> {
    let (mut model, mut graph) = model(onnx)?;
    let inputs: BTreeSet<&str> = graph.input.iter().map(|i| i.name.as_str()).collect();
    let further: Vec<ValueInfoProto> = names
        .iter()
        .filter(|n| !inputs.contains(n.as_str()) && graph.output.iter().all(|o| o.name != **n))
        .map(|n| ValueInfoProto {
            name: n.clone(),
            r#type: Some(TypeProto { tensor_type: Some(TensorTypeProto { elem_type: FLOAT, shape: None }) }),
        })
        .collect();
    graph.output.extend(further);
    model.graph = Some(graph);
    Ok(model.encode_to_vec())
}

/// The graph with INT8 convolutions and matrix products: activations by one scale each from `ranges` (largest magnitude), weights by one
/// scale for each output channel. Nodes named in `keep` stay as they are.
///
/// # Errors
/// [`PrecisionError::Range`] where a calibration lacks a tensor; otherwise as [`quantisable`].
pub fn to_int8(
    onnx: &[u8],
    ranges: &BTreeMap<String, f32>,
    keep: &BTreeSet<String>,
) -> Result<Vec<u8>, PrecisionError> {
    let (mut model, mut graph) = model(onnx)?;
    let nodes = std::mem::take(&mut graph.node);
    let constants: BTreeMap<&str, &TensorProto> = graph.initializer.iter().map(|t| (t.name.as_str(), t)).collect();
    let mut added: Vec<TensorProto> = Vec::new();
    let mut quantised: BTreeSet<String> = BTreeSet::new();
    let mut out = Vec::new();
    for mut n in nodes {
        let found = weighted(&n, &constants).map(|(x, w)| (x.to_string(), w.to_string()));
        if let Some((x, w)) = found.filter(|_| !keep.contains(&n.name)) {
            let range =
                *ranges.get(&x).ok_or_else(|| PrecisionError::Range { tensor: x.clone(), node: n.name.clone() })?;
            let (x8, w8) = (format!("{x}/int8"), format!("{w}/int8/{}", channel_axis(&n)));
            if quantised.insert(x8.clone()) {
                out.extend(activation(&x, &x8, range, &mut added));
            }
            if quantised.insert(w8.clone()) {
                let constant = constants.get(w.as_str()).ok_or_else(|| PrecisionError::Whole(w.clone()))?;
                out.push(weight(constant, &w8, channel_axis(&n), &mut added)?);
            }
            n.input[0] = x8;
            n.input[1] = w8;
        }
        out.push(n);
    }
    let read: BTreeSet<&str> = out.iter().flat_map(|n| n.input.iter().map(String::as_str)).collect();
    let mut initializer: Vec<TensorProto> =
        graph.initializer.iter().filter(|t| read.contains(t.name.as_str())).cloned().collect();
    initializer.extend(added);
    model.graph = Some(GraphProto { node: out, initializer, ..graph });
    Ok(model.encode_to_vec())
}

/// The axis of a weight's output channels.
fn channel_axis(n: &NodeProto) -> usize {
    let transposed = n.attribute.iter().any(|a| a.name == "transB" && a.i == 1);
    match n.op_type.as_str() {
        "Conv" => 0,
        "Gemm" if transposed => 0,
        _ => 1,
    }
}

fn node(op: &str, input: &[&str], output: &str, attribute: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        input: input.iter().map(|s| s.to_string()).collect(),
        output: vec![output.into()],
        name: format!("{op}/{output}"),
        op_type: op.into(),
        attribute,
    }
}

fn activation(x: &str, x8: &str, range: f32, added: &mut Vec<TensorProto>) -> [NodeProto; 2] {
    let (scale, zero, q) = (format!("{x8}/scale"), format!("{x8}/zero"), format!("{x8}/q"));
    let value = (range / BYTE).max(LEAST_SCALE);
    added.push(TensorProto {
        dims: vec![],
        data_type: FLOAT,
        name: scale.clone(),
        raw_data: value.to_le_bytes().to_vec(),
    });
    added.push(TensorProto { dims: vec![], data_type: INT8, name: zero.clone(), raw_data: vec![0] });
    [
        node("QuantizeLinear", &[x, &scale, &zero], &q, vec![]),
        node("DequantizeLinear", &[&q, &scale, &zero], x8, vec![]),
    ]
}

/// A weight as signed bytes with a scale for each index of `axis`.
fn weight(t: &TensorProto, name: &str, axis: usize, added: &mut Vec<TensorProto>) -> Result<NodeProto, PrecisionError> {
    let values = floats(t)?;
    let dims: Vec<usize> = t.dims.iter().map(|d| *d as usize).collect();
    let Some(&channels) = dims.get(axis) else {
        return Err(PrecisionError::Whole(format!("the weight {} has {} axes", t.name, dims.len())));
    };
    let inner: usize = dims[axis + 1..].iter().product();
    let channel = |i: usize| i / inner.max(1) % channels.max(1);
    let mut largest = vec![0f32; channels];
    for (i, v) in values.iter().enumerate() {
        largest[channel(i)] = largest[channel(i)].max(v.abs());
    }
    let scales: Vec<f32> = largest.iter().map(|m| (m / BYTE).max(LEAST_SCALE)).collect();
    let bytes = values.iter().enumerate().map(|(i, v)| (v / scales[channel(i)]).round().clamp(-BYTE, BYTE) as i8 as u8);
    let (q, scale, zero) = (format!("{name}/q"), format!("{name}/scale"), format!("{name}/zero"));
    added.push(TensorProto { dims: t.dims.clone(), data_type: INT8, name: q.clone(), raw_data: bytes.collect() });
    let raw_data = scales.iter().flat_map(|s| s.to_le_bytes()).collect();
    added.push(TensorProto { dims: vec![channels as i64], data_type: FLOAT, name: scale.clone(), raw_data });
    added.push(TensorProto {
        dims: vec![channels as i64],
        data_type: INT8,
        name: zero.clone(),
        raw_data: vec![0; channels],
    });
    let axis = AttributeProto { name: "axis".into(), i: axis as i64, kind: 2, ..Default::default() };
    Ok(node("DequantizeLinear", &[&q, &scale, &zero], name, vec![axis]))
}
