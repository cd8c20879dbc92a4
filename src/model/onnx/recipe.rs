//! The precision recipe: for each layer that INT8 can be given to, the range of what it reads, or why it is not.
//!
//! Layers are called by their weight's name in the base, so a recipe serves every adapter of its base and input size. It is a
//! TOML file with one line for each layer, made by `scanside quantise` and committed: graphs follow from it byte for byte on any
//! machine, while a calibration run again differs in its last digits from one processor to the next.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Graph;
use super::precision::{PrecisionError, quantisable, to_half, to_int8};
use crate::model::network::NETWORK_VERSION;

/// Format of the file; another number is refused.
pub const FORMAT: u32 = 1;
/// Largest file that is read, bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Precision of a graph. Inputs and outputs are FP32 in all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// As emitted.
    Fp32,
    /// FP16, with normalisation, softmax and sums in FP32.
    Fp16,
    /// Bytes where the recipe gives them, FP32 elsewhere: what a CPU runs.
    Int8,
    /// Bytes where the recipe gives them, [`Precision::Fp16`] elsewhere: what TensorRT is given.
    Int8Fp16,
}

impl Precision {
    /// All, from the widest.
    pub const ALL: [Precision; 4] = [Precision::Fp32, Precision::Fp16, Precision::Int8, Precision::Int8Fp16];

    /// In a word, as the command line and results have it.
    pub fn word(self) -> &'static str {
        match self {
            Precision::Fp32 => "fp32",
            Precision::Fp16 => "fp16",
            Precision::Int8 => "int8",
            Precision::Int8Fp16 => "int8-fp16",
        }
    }

    /// Whether a recipe is needed.
    pub fn is_int8(self) -> bool {
        matches!(self, Precision::Int8 | Precision::Int8Fp16)
    }

    /// An FP32 graph in this precision.
    ///
    /// # Errors
    /// [`RecipeError::None`] where bytes are asked for without a recipe; otherwise as [`Recipe::int8`].
    pub fn of(self, graph: &Graph, recipe: Option<&Recipe>) -> Result<Graph, RecipeError> {
        let int8 = || recipe.ok_or(RecipeError::None)?.int8(graph);
        let onnx = match self {
            Precision::Fp32 => graph.onnx.clone(),
            Precision::Fp16 => to_half(&graph.onnx)?,
            Precision::Int8 => int8()?,
            Precision::Int8Fp16 => to_half(&int8()?)?,
        };
        Ok(Graph { onnx, ..graph.clone() })
    }
}

impl std::str::FromStr for Precision {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        let known = Precision::ALL.into_iter().find(|p| p.word() == word);
        known.ok_or_else(|| format!("no precision {word:?}: fp32, fp16, int8 or int8-fp16"))
    }
}

/// Why a recipe cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The file could not be read or written.
    #[error("recipe {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is not understood, or contradicts itself.
    #[error("recipe {path}: {problem}")]
    Format {
        /// The file.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// It was made for something else.
    #[error(
        "the recipe is for {what} {wanted}, here it is {found}: take the recipe of this engine or make one with `scanside quantise`"
    )]
    Other {
        /// What differs.
        what: &'static str,
        /// What the recipe was made for.
        wanted: String,
        /// What is here.
        found: String,
    },
    /// INT8 without a recipe.
    #[error("INT8 needs a recipe: give --recipe, or make one with `scanside quantise`")]
    None,
    /// A layer of the graph is not in it.
    #[error(
        "the recipe says nothing of {layer} of the {graph}: it was made for adapters that train this layer; make one with `scanside quantise`"
    )]
    Layer {
        /// The graph.
        graph: String,
        /// The layer.
        layer: String,
    },
    /// The graph.
    #[error(transparent)]
    Graph(#[from] PrecisionError),
}

/// One layer's line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// Magnitude that the largest byte of what the layer reads stands for.
    pub range: f32,
    /// The layer's share of all multiply-adds that could be done in bytes.
    pub work: f32,
    /// Root mean square change of the mask logits, as a share of theirs, where this layer alone is in bytes; none where it was
    /// not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alone: Option<f32>,
    /// Why the layer keeps the wider precision; none where it takes bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<String>,
}

/// Layers of each graph by name.
pub type Layers = BTreeMap<String, BTreeMap<String, Layer>>;

/// What is in bytes and with which ranges, for one base and input size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Format of the file: [`FORMAT`].
    pub format: u32,
    /// Version of the network's definition.
    pub network_version: u32,
    /// sha256 of the base weights as they are loaded, hex.
    pub base_sha256: String,
    /// Edge of the network's input, pixels.
    pub input_size: usize,
    /// How it was made, by name: rule, images, adapter, what was found.
    pub made: BTreeMap<String, String>,
    /// The layers of each graph.
    pub graph: Layers,
}

impl Recipe {
    /// Reads a recipe.
    ///
    /// # Errors
    /// [`RecipeError::Io`], [`RecipeError::Format`].
    pub fn load(path: &Path) -> Result<Self, RecipeError> {
        use std::io::Read;
        let io = |source| RecipeError::Io { path: path.into(), source };
        let mut text = String::new();
        std::fs::File::open(path).map_err(io)?.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(io)?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Reads a recipe from its text; `path` names it in errors.
    ///
    /// # Errors
    /// [`RecipeError::Format`].
    pub fn parse(text: &str, path: &str) -> Result<Self, RecipeError> {
        let bad = |problem: String| RecipeError::Format { path: path.into(), problem };
        if text.len() as u64 > MAX_BYTES {
            return Err(bad(format!("larger than {} KiB, which no recipe is", MAX_BYTES >> 10)));
        }
        let recipe: Recipe = toml::from_str(text).map_err(|e| bad(e.to_string()))?;
        if recipe.format != FORMAT {
            return Err(bad(format!("is of format {}, this program reads {FORMAT}", recipe.format)));
        }
        for (graph, layers) in &recipe.graph {
            for (name, layer) in layers {
                if !layer.range.is_finite() || layer.range < 0.0 {
                    return Err(bad(format!("the range of {name} of the {graph} is {}", layer.range)));
                }
                if layer.keep.as_ref().is_some_and(|k| k.trim().is_empty()) {
                    return Err(bad(format!("{name} of the {graph} is kept without a reason")));
                }
            }
        }
        Ok(recipe)
    }

    /// The text of its file: one line for each layer, in the order of names.
    pub fn text(&self) -> String {
        let quoted = |s: &str| toml::Value::String(s.into()).to_string();
        let mut out = String::from("# Made by `scanside quantise`; docs/precision.md explains it.\n");
        let _ = writeln!(out, "format = {}\nnetwork_version = {}", self.format, self.network_version);
        let _ = writeln!(out, "base_sha256 = {}\ninput_size = {}", quoted(&self.base_sha256), self.input_size);
        let _ = writeln!(out, "\n[made]");
        for (name, value) in &self.made {
            let _ = writeln!(out, "{} = {}", quoted(name), quoted(value));
        }
        for (graph, layers) in &self.graph {
            let _ = writeln!(out, "\n[graph.{}]", quoted(graph));
            for (name, l) in layers {
                let _ = write!(out, "{} = {{ range = {:?}, work = {:?}", quoted(name), l.range, l.work);
                if let Some(alone) = l.alone {
                    let _ = write!(out, ", alone = {alone:?}");
                }
                if let Some(keep) = &l.keep {
                    let _ = write!(out, ", keep = {}", quoted(keep));
                }
                let _ = writeln!(out, " }}");
            }
        }
        out
    }

    /// Holds the recipe against the base and the input size that it is to be used with.
    ///
    /// # Errors
    /// [`RecipeError::Other`].
    pub fn check(&self, base_sha256: &str, input_size: usize) -> Result<(), RecipeError> {
        let other = |what, wanted: String, found: String| Err(RecipeError::Other { what, wanted, found });
        if self.network_version != NETWORK_VERSION {
            return other("network version", self.network_version.to_string(), NETWORK_VERSION.to_string());
        }
        if !self.base_sha256.eq_ignore_ascii_case(base_sha256) {
            return other("base weights", self.base_sha256.clone(), base_sha256.into());
        }
        if self.input_size != input_size {
            return other("input size", self.input_size.to_string(), input_size.to_string());
        }
        Ok(())
    }

    /// The kept layers of all graphs with their reasons.
    pub fn kept(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        self.graph.iter().flat_map(|(graph, layers)| {
            layers.iter().filter_map(move |(name, l)| Some((graph.as_str(), name.as_str(), l.keep.as_deref()?)))
        })
    }

    /// An FP32 graph with bytes where the recipe gives them.
    ///
    /// # Errors
    /// [`RecipeError::Layer`] for a layer that the recipe does not know, [`RecipeError::Graph`].
    pub fn int8(&self, graph: &Graph) -> Result<Vec<u8>, RecipeError> {
        let none = BTreeMap::new();
        let layers = self.graph.get(&graph.name).unwrap_or(&none);
        let mut ranges: BTreeMap<String, f32> = BTreeMap::new();
        let mut keep = BTreeSet::new();
        for q in quantisable(&graph.onnx)? {
            let layer = layers
                .get(&q.layer)
                .ok_or_else(|| RecipeError::Layer { graph: graph.name.clone(), layer: q.layer.clone() })?;
            if layer.keep.is_some() {
                keep.insert(q.node);
            }
            // Layers that read the same tensor share its bytes.
            let range = ranges.entry(q.activation).or_insert(0.0);
            *range = range.max(layer.range);
        }
        Ok(to_int8(&graph.onnx, &ranges, &keep)?)
    }
}
