//! Which layers take bytes: calibrate, measure each layer alone, keep the worst until the masks stay.
//!
//! Every step compares masks with those of the FP32 graphs on the same slices. Layers are ranked by what their bytes alone do to
//! the mask logits, because a mask of one layer in bytes seldom changes by a pixel, for the work that bytes would save: squared
//! errors of layers add up, so the greatest saving within an error takes the layers of least squared error for their work. How many
//! are kept is decided by Dice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use crate::adapter::Adapter;
use crate::engine::cpu::CpuEngine;
use crate::engine::{EngineError, Tensor};
use crate::image::Plane;
use crate::model::network::{NETWORK_VERSION, ShapeError};
use crate::model::onnx::calibrate::{Calibration, CalibrationError, Observer, RangeRule};
use crate::model::onnx::precision::{PrecisionError, quantisable};
use crate::model::onnx::{
    BOXES, EMBEDDING, Graph, IMAGE, Layer, Layers, Precision, RECIPE_FORMAT, Recipe, RecipeError, emit_all,
};
use crate::model::weights::BaseWeights;
use crate::pipeline::probe::{MaskTally, first_boxes, masks_from, masks_of};
use crate::pipeline::{EngineNetworks, Networks, NetworksError};

/// Network inputs `[1,3,S,S]`.
#[derive(Clone, Debug)]
pub struct Slices {
    /// Over which ranges are calibrated.
    pub calibration: Vec<Tensor>,
    /// On which layers and masks are measured: others than those of the calibration.
    pub measured: Vec<Tensor>,
}

/// How to search.
#[derive(Clone, Debug, PartialEq)]
pub struct SearchSetting {
    /// The rules to choose from, by the masks of a graph that is in bytes throughout; one needs no choice.
    pub rules: Vec<RangeRule>,
    /// Most that the masks may lose, in mean Dice with those of FP32.
    pub bound: f64,
    /// Measured slices on which each layer is tried alone.
    pub ranking: usize,
    /// Minutes after which no further layer is tried alone: those left are kept.
    pub minutes: f64,
    /// Threads of the engine, 0 for one per core.
    pub threads: usize,
    /// A former recipe of the same adapter and slices: what it says of a layer alone is not measured again where the rule is the same.
    pub known: Option<Recipe>,
}

impl Default for SearchSetting {
    fn default() -> Self {
        SearchSetting {
            rules: vec![
                RangeRule::MinMax,
                RangeRule::Percentile(99.99),
                RangeRule::Percentile(99.9),
                RangeRule::LeastError,
                RangeRule::Entropy,
            ],
            bound: 0.005,
            ranking: 3,
            minutes: 30.0,
            threads: 0,
            known: None,
        }
    }
}

/// What a search tells on its way.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    /// Slices calibrated of all.
    Calibrating(usize, usize),
    /// A rule, with everything in bytes: Dice with the masks of FP32, share of the logits that changed.
    Rule(RangeRule, f64, f64),
    /// Layers tried alone of all, the last one's name and share.
    Alone(usize, usize, String, f64),
    /// So many layers kept: Dice with the masks of FP32.
    Kept(usize, f64),
}

/// A layer in the order of keeping.
struct Ranked {
    graph: String,
    layer: String,
    alone: Option<f64>,
    work: f64,
}

/// A recipe and what was seen on the way to it.
#[derive(Clone, Debug)]
pub struct Found {
    /// The recipe; `made` says rule, bound and results, the caller adds what slices they were.
    pub recipe: Recipe,
    /// Each rule with everything in bytes: Dice and logit error.
    pub rules: Vec<(RangeRule, f64, f64)>,
    /// Dice of the recipe's masks with those of FP32.
    pub dice: f64,
    /// Largest magnitude inside the graphs; FP16 ends at 65504.
    pub largest: f32,
}

/// Why there is no recipe.
#[derive(Debug, thiserror::Error)]
pub enum QuantiseError {
    /// No slices.
    #[error("there are no {0} slices: name phantoms, or a manifest with labelled volumes")]
    Slices(&'static str),
    /// No rule.
    #[error("there is no rule to choose from")]
    Rules,
    /// The adapter does not fit.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// The calibration.
    #[error(transparent)]
    Calibration(#[from] CalibrationError),
    /// The graphs.
    #[error(transparent)]
    Graph(#[from] PrecisionError),
    /// The recipe.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The networks.
    #[error(transparent)]
    Networks(#[from] NetworksError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// A measured slice as FP32 has it.
struct Reference {
    image: Tensor,
    embedding: Tensor,
    boxes: Vec<[f32; 4]>,
    masks: Vec<Plane<f32>>,
}

struct Search<'a> {
    adapter: &'a Adapter,
    graphs: [Graph; 3],
    /// The same in FP32, loaded.
    engines: Vec<Arc<CpuEngine>>,
    setting: &'a SearchSetting,
    references: Vec<Reference>,
    /// Slices that were calibrated on.
    calibrated: usize,
}

/// Calibrates and searches.
///
/// # Errors
/// [`QuantiseError`].
pub fn search(
    base: &BaseWeights,
    adapter: &Adapter,
    slices: &Slices,
    setting: &SearchSetting,
    tell: &mut dyn FnMut(Told),
) -> Result<Found, QuantiseError> {
    if setting.rules.is_empty() {
        return Err(QuantiseError::Rules);
    }
    if slices.calibration.is_empty() || slices.measured.is_empty() {
        return Err(QuantiseError::Slices(if slices.measured.is_empty() { "measured" } else { "calibration" }));
    }
    let begin = Instant::now();
    let shapes = adapter.tensors.iter().map(|(n, t)| (n.clone(), t.shape.clone())).collect();
    let graphs = emit_all(base, &shapes, adapter.meta.input_size)?;
    let load = |g: &Graph| Ok(Arc::new(CpuEngine::load(&g.name, g.onnx.clone(), setting.threads)?));
    let engines = graphs.iter().map(load).collect::<Result<Vec<_>, EngineError>>()?;
    let s = Search { adapter, graphs, engines, setting, references: Vec::new(), calibrated: slices.calibration.len() };
    let full = s.networks(None)?;
    let references = slices.measured.iter().map(|i| reference(&full, i)).collect::<Result<Vec<_>, EngineError>>()?;
    let calibrations = calibrate(&full, &s.graphs, adapter, slices, setting.threads, tell)?;
    let s = Search { references, ..s };

    let mut recipe = Recipe {
        format: RECIPE_FORMAT,
        network_version: NETWORK_VERSION,
        base_sha256: base.sha256().into(),
        input_size: adapter.meta.input_size,
        made: BTreeMap::new(),
        graph: Layers::new(),
    };
    let mut rules = Vec::new();
    for &rule in &setting.rules {
        recipe.graph = s.layers(&calibrations, rule)?;
        let tally = s.whole(&recipe)?;
        tell(Told::Rule(rule, tally.dice(), tally.logit_error()));
        rules.push((rule, tally.dice(), tally.logit_error()));
    }
    // By logits: Dice of masks that all but agree is noise.
    let best = rules.iter().min_by(|a, b| a.2.total_cmp(&b.2)).map_or(setting.rules[0], |r| r.0);
    recipe.graph = s.layers(&calibrations, best)?;
    let ranking = s.rank(&mut recipe, best, begin, tell)?;
    let dice = s.cut(&mut recipe, &ranking, tell)?;
    let in_bytes: Vec<&Layer> = recipe.graph.values().flatten().map(|(_, l)| l).filter(|l| l.keep.is_none()).collect();
    let (bytes, saved) = (in_bytes.len(), in_bytes.iter().map(|l| l.work).sum::<f32>());
    let mut made = |name: &str, value: String| recipe.made.insert(name.into(), value);
    made("rule", best.word());
    made("bound", format!("{} mean Dice with the masks of FP32 on the measured slices", setting.bound));
    made(
        "found",
        format!(
            "Dice {dice:.4} with {bytes} of {} layers, {:.0} % of their work, in bytes",
            ranking.len(),
            100.0 * saved
        ),
    );
    made("adapter", format!("{} {}", adapter.meta.name, adapter.meta.version));
    let largest = calibrations.values().fold(0f32, |m, c| m.max(c.largest()));
    Ok(Found { recipe, rules, dice, largest })
}

fn reference(full: &EngineNetworks, image: &Tensor) -> Result<Reference, EngineError> {
    let embedding = full.encode(image)?;
    let boxes = first_boxes(full, &embedding)?;
    let masks = masks_from(full, &embedding, &boxes)?;
    Ok(Reference { image: image.clone(), embedding, boxes, masks })
}

fn inputs<'a>(graph: &'a Graph, adapter: &'a Adapter) -> Vec<(&'a str, &'a Tensor)> {
    let named = graph.adapter_inputs.keys().filter_map(|n| Some((n.as_str(), adapter.tensors.get(n)?)));
    named.collect()
}

/// Watches each graph over the calibration slices.
fn calibrate(
    full: &EngineNetworks,
    graphs: &[Graph; 3],
    adapter: &Adapter,
    slices: &Slices,
    threads: usize,
    tell: &mut dyn FnMut(Told),
) -> Result<BTreeMap<String, Calibration>, QuantiseError> {
    let [encoder, classifier, decoder] = graphs;
    let mut watched =
        [Observer::new(encoder, threads)?, Observer::new(classifier, threads)?, Observer::new(decoder, threads)?];
    let count = adapter.meta.task.structures.len();
    for (i, image) in slices.calibration.iter().enumerate() {
        let with = |graph, own: &[(&'static str, &Tensor)]| -> Vec<(String, Tensor)> {
            let all = own.iter().copied().chain(inputs(graph, adapter));
            all.map(|(n, t)| (n.to_string(), t.clone())).collect()
        };
        let run = |o: &mut Observer, given: &[(String, Tensor)]| {
            let given: Vec<(&str, &Tensor)> = given.iter().map(|(n, t)| (n.as_str(), t)).collect();
            o.run(&given)
        };
        let out = run(&mut watched[0], &with(encoder, &[(IMAGE, image)]))?;
        let Some(embedding) = out.first() else { return Err(QuantiseError::Slices("calibration")) };
        run(&mut watched[1], &with(classifier, &[(EMBEDDING, embedding)]))?;
        for boxes in [first_boxes(full, embedding)?, vec![[0.0, 0.0, 1.0, 1.0]; count]] {
            let boxes = Tensor { shape: vec![boxes.len(), 4], data: boxes.concat() };
            run(&mut watched[2], &with(decoder, &[(EMBEDDING, embedding), (BOXES, &boxes)]))?;
        }
        tell(Told::Calibrating(i + 1, slices.calibration.len()));
    }
    let names = graphs.iter().map(|g| g.name.clone());
    Ok(names.zip(watched).map(|(n, o)| (n, o.into_calibration())).collect())
}

impl Search<'_> {
    /// The network in FP32, or with a recipe's bytes; graphs that have none are not loaded again.
    fn networks(&self, recipe: Option<&Recipe>) -> Result<EngineNetworks, QuantiseError> {
        let mut made = self.graphs.clone();
        let mut own: Vec<bool> = Vec::with_capacity(made.len());
        for graph in &mut made {
            let bytes = recipe
                .filter(|r| r.graph.get(&graph.name).is_some_and(|layers| layers.values().any(|l| l.keep.is_none())));
            *graph = if bytes.is_some() { Precision::Int8 } else { Precision::Fp32 }.of(graph, bytes)?;
            own.push(bytes.is_some());
        }
        let mut at = 0..;
        Ok(EngineNetworks::of(&made, self.adapter, |g| {
            let i = at.next().unwrap_or_default();
            Ok(match self.engines.get(i).filter(|_| !own[i]) {
                Some(engine) => Box::new(engine.clone()),
                None => Box::new(
                    CpuEngine::load(&g.name, g.onnx.clone(), self.setting.threads)?.stating(Precision::Int8.word()),
                ),
            })
        })?)
    }

    /// Every layer in bytes, with its range by a rule.
    fn layers(&self, calibrations: &BTreeMap<String, Calibration>, rule: RangeRule) -> Result<Layers, QuantiseError> {
        let mut layers = Layers::new();
        let mut total = 0.0;
        for graph in &self.graphs {
            let all = quantisable(&graph.onnx)?;
            if all.is_empty() {
                continue;
            }
            let ranges = match calibrations.get(&graph.name) {
                Some(c) => c.ranges(rule)?,
                None => BTreeMap::new(),
            };
            let own = layers.entry(graph.name.clone()).or_default();
            // The decoder was run twice for each slice, the encoder once; shares are of one run each.
            let runs = if graph.name == self.graphs[2].name { 2 } else { 1 } * self.calibrated;
            for q in all {
                let values = calibrations.get(&graph.name).map_or(0, |c| c.seen(&q.activation)) as usize / runs.max(1);
                let range = ranges.get(&q.activation).copied().unwrap_or_default();
                let work = q.work(values);
                total += work;
                own.insert(q.layer, Layer { range: rounded(range), work: work as f32, alone: None, keep: None });
            }
        }
        let share = |l: &mut Layer| l.work = rounded((f64::from(l.work) / f64::max(total, 1.0)) as f32);
        layers.values_mut().flat_map(|g| g.values_mut()).for_each(share);
        Ok(layers)
    }

    /// Masks of the whole chain with a recipe.
    fn whole(&self, recipe: &Recipe) -> Result<MaskTally, QuantiseError> {
        let n = self.networks(Some(recipe))?;
        let mut tally = MaskTally::default();
        for r in &self.references {
            tally.add(&r.masks, &masks_of(&n, &r.image)?);
        }
        Ok(tally)
    }

    /// Layers from the one that hurts most for its work.
    fn rank(
        &self,
        recipe: &mut Recipe,
        rule: RangeRule,
        begin: Instant,
        tell: &mut dyn FnMut(Told),
    ) -> Result<Vec<Ranked>, QuantiseError> {
        let known = self.setting.known.as_ref().filter(|k| k.made.get("rule") == Some(&rule.word()));
        let known = |graph: &str, layer: &str| known?.graph.get(graph)?.get(layer)?.alone.map(f64::from);
        let all: Vec<(String, String, f64)> = recipe
            .graph
            .iter()
            .flat_map(|(g, layers)| layers.iter().map(|(n, l)| (g.clone(), n.clone(), f64::from(l.work))))
            .collect();
        let count = all.len();
        let mut out = Vec::with_capacity(count);
        for (i, (graph, layer, work)) in all.into_iter().enumerate() {
            let over = begin.elapsed().as_secs_f64() > 60.0 * self.setting.minutes;
            let alone = match known(&graph, &layer) {
                Some(alone) => Some(alone),
                None if over => None,
                None => Some(self.alone(recipe, &graph, &layer)?),
            };
            if let Some(alone) = alone {
                tell(Told::Alone(i + 1, count, layer.clone(), alone));
            }
            if let Some(l) = recipe.graph.get_mut(&graph).and_then(|g| g.get_mut(&layer)) {
                l.alone = alone.map(|a| rounded(a as f32));
            }
            out.push(Ranked { graph, layer, alone, work });
        }
        // What was not measured counts as the worst; equals keep the order of names.
        let harm = |r: &Ranked| r.alone.map_or(f64::INFINITY, |a| a * a / r.work.max(f64::MIN_POSITIVE));
        out.sort_by(|a, b| harm(b).total_cmp(&harm(a)));
        Ok(out)
    }

    /// Change of the mask logits with one layer in bytes.
    fn alone(&self, recipe: &Recipe, graph: &str, layer: &str) -> Result<f64, QuantiseError> {
        let mut one = recipe.clone();
        for (g, layers) in &mut one.graph {
            for (name, l) in layers.iter_mut() {
                l.keep = (g != graph || name != layer).then(|| "not the one".into());
            }
        }
        let n = self.networks(Some(&one))?;
        let mut tally = MaskTally::default();
        for r in self.references.iter().take(self.setting.ranking.max(1)) {
            // Only what follows the layer is run again, with the boxes of FP32: a box that jumps is not this layer's error.
            let embedding = if graph == self.graphs[0].name { &n.encode(&r.image)? } else { &r.embedding };
            tally.add(&r.masks, &masks_from(&n, embedding, &r.boxes)?);
        }
        Ok(tally.logit_error())
    }

    /// Keeps as few of the worst layers as the bound allows, by bisection, and writes the reasons.
    fn cut(&self, recipe: &mut Recipe, ranking: &[Ranked], tell: &mut dyn FnMut(Told)) -> Result<f64, QuantiseError> {
        let keep = |recipe: &mut Recipe, kept: usize| {
            for (i, r) in ranking.iter().enumerate() {
                if let Some(l) = recipe.graph.get_mut(&r.graph).and_then(|g| g.get_mut(&r.layer)) {
                    l.keep = (i < kept).then(|| reason(i, ranking.len(), r));
                }
            }
        };
        let mut dice_with = |recipe: &mut Recipe, kept: usize| -> Result<f64, QuantiseError> {
            keep(recipe, kept);
            let dice = self.whole(recipe)?.dice();
            tell(Told::Kept(kept, dice));
            Ok(dice)
        };
        // What was not measured stays as it is; all kept loses nothing.
        let mut low = ranking.iter().filter(|r| r.alone.is_none()).count();
        let (mut high, mut best) = (ranking.len(), 1.0);
        let first = dice_with(recipe, low)?;
        if first >= 1.0 - self.setting.bound {
            return Ok(first);
        }
        while high - low > 1 {
            let middle = low.midpoint(high);
            let dice = dice_with(recipe, middle)?;
            if dice >= 1.0 - self.setting.bound {
                (high, best) = (middle, dice);
            } else {
                low = middle;
            }
        }
        keep(recipe, high);
        Ok(best)
    }
}

fn reason(place: usize, of: usize, r: &Ranked) -> String {
    match r.alone {
        Some(share) => format!(
            "changes the mask logits by {:.2} % for {:.2} % of the work, place {} of {of}",
            100.0 * share,
            100.0 * r.work,
            place + 1
        ),
        None => "not measured: the search's time was up".into(),
    }
}

/// Three digits: a range is not known better, and the file stays readable.
fn rounded(v: f32) -> f32 {
    if v == 0.0 || !v.is_finite() {
        return v;
    }
    format!("{v:.2e}").parse().unwrap_or(v)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_a_recipe_have_three_digits() {
        assert_eq!([0.0, 1.0, 2.3456, 123_456.0, 0.000_123_456].map(rounded), [0.0, 1.0, 2.35, 123_000.0, 0.000_123]);
    }

    #[test]
    fn reasons_say_why() {
        let r = |alone| Ranked { graph: "encoder".into(), layer: "x".into(), alone, work: 0.0123 };
        assert!(reason(0, 9, &r(Some(0.0734))).contains("7.34 % for 1.23 % of the work, place 1 of 9"));
        assert!(reason(0, 9, &r(None)).contains("time was up"));
    }
}
