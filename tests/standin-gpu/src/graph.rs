//! What a plan of the stand-in holds: the ONNX itself, run by the embedded CPU engine.

use half::f16;
use prost::Message;
use scanside::engine::cpu::CpuEngine;
use scanside::engine::{Engine, Tensor};
use scanside::model::onnx::proto::{FLOAT, FLOAT16, ModelProto, ValueInfoProto};

/// Begins every plan; the version that it was built by follows.
const MAGIC: &[u8] = b"STAND-IN PLAN\0";

/// A tensor that goes in or out.
#[derive(Clone, Debug)]
pub struct Port {
    pub name: std::ffi::CString,
    pub shape: Vec<i64>,
    pub input: bool,
}

impl Port {
    pub fn bytes(&self) -> usize {
        4 * self.shape.iter().product::<i64>() as usize
    }
}

/// A graph that was parsed.
#[derive(Clone)]
pub struct Parsed {
    pub onnx: Vec<u8>,
    pub ports: Vec<Port>,
    pub layers: usize,
    /// Whether it has FP16 tensors.
    pub half: bool,
    /// Whether it has Q/DQ nodes.
    pub int8: bool,
}

fn ports(all: &[ValueInfoProto], input: bool) -> Option<Vec<Port>> {
    all.iter()
        .map(|v| {
            let shape = v.r#type.as_ref()?.tensor_type.as_ref()?.shape.as_ref()?;
            let shape = shape.dim.iter().map(|d| d.dim_value).collect::<Option<Vec<i64>>>()?;
            Some(Port { name: std::ffi::CString::new(v.name.clone()).ok()?, shape, input })
        })
        .collect()
}

pub fn parse(onnx: &[u8]) -> Result<Parsed, String> {
    let model = ModelProto::decode(onnx).map_err(|e| format!("In function parse: not an ONNX model: {e}"))?;
    let graph = model.graph.as_ref().filter(|g| !g.node.is_empty()).ok_or("In function parse: no graph")?;
    let mut all = ports(&graph.input, true).ok_or("an input has no static shape")?;
    all.extend(ports(&graph.output, false).ok_or("an output has no static shape")?);
    Ok(Parsed {
        onnx: onnx.to_vec(),
        ports: all,
        layers: graph.node.len(),
        half: graph.initializer.iter().any(|t| t.data_type == FLOAT16),
        int8: graph.node.iter().any(|n| n.op_type == "QuantizeLinear"),
    })
}

pub fn plan(parsed: &Parsed, version: i32) -> Vec<u8> {
    [MAGIC, &version.to_le_bytes(), &parsed.onnx].concat()
}

/// The same graph in FP32: the CPU engine has no FP16. What FP16 cannot hold is lost all the same.
fn widened(onnx: &[u8]) -> Vec<u8> {
    let Ok(mut model) = ModelProto::decode(onnx) else { return onnx.to_vec() };
    if let Some(graph) = &mut model.graph {
        for t in graph.initializer.iter_mut().filter(|t| t.data_type == FLOAT16) {
            let values = t.raw_data.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32());
            t.raw_data = values.flat_map(f32::to_le_bytes).collect();
            t.data_type = FLOAT;
        }
        for n in graph.node.iter_mut().filter(|n| n.op_type == "Cast") {
            for a in n.attribute.iter_mut().filter(|a| a.name == "to" && a.i == i64::from(FLOAT16)) {
                a.i = i64::from(FLOAT);
            }
        }
    }
    model.encode_to_vec()
}

/// A plan that was loaded.
pub struct Loaded {
    pub ports: Vec<Port>,
    engine: CpuEngine,
}

pub fn load(plan: &[u8], version: i32) -> Result<Loaded, String> {
    let rest = plan.strip_prefix(MAGIC).filter(|r| r.len() > 4).ok_or("Serialization assertion magic failed")?;
    if rest[..4] != version.to_le_bytes() {
        return Err("The engine plan file is not compatible with this version of TensorRT".into());
    }
    let parsed = parse(&rest[4..])?;
    let engine = CpuEngine::load("stand-in", widened(&parsed.onnx), 1).map_err(|e| e.to_string())?;
    Ok(Loaded { ports: parsed.ports, engine })
}

impl Loaded {
    /// Reads the inputs at their addresses, computes, and writes the outputs to theirs.
    ///
    /// # Safety
    /// Every address holds its tensor.
    pub unsafe fn run(&self, addresses: &[usize]) -> Result<(), String> {
        let pairs = self.ports.iter().zip(addresses);
        let mut inputs = Vec::new();
        for (p, &a) in pairs.clone().filter(|(p, _)| p.input) {
            let n = p.bytes() / 4;
            let data = unsafe { std::slice::from_raw_parts(a as *const f32, n) }.to_vec();
            let shape = p.shape.iter().map(|d| *d as usize).collect();
            inputs.push((p.name.to_str().unwrap_or_default(), Tensor { shape, data }));
        }
        let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (*n, t)).collect();
        let outputs = self.engine.run(&given).map_err(|e| e.to_string())?;
        for ((p, &a), mut t) in pairs.filter(|(p, _)| !p.input).zip(outputs) {
            if p.name.as_c_str() == c"masks" {
                spoil(&mut t);
            }
            unsafe { std::slice::from_raw_parts_mut(a as *mut f32, t.data.len()) }.copy_from_slice(&t.data);
        }
        Ok(())
    }
}

/// Plays an engine whose masks are not what they should be.
fn spoil(masks: &mut Tensor) {
    if crate::fault("parity").is_some() {
        masks.data.iter_mut().for_each(|v| *v -= 2.0);
    }
    if crate::fault("nan").is_some() {
        masks.data[0] = f32::NAN;
    }
}
