//! Holds an adapter against the network that it is meant for.

use super::{Adapter, AdapterError, FORMAT};
use crate::model::network::{NETWORK_VERSION, Shapes, check_adapter_shapes, check_image_size};

/// Most structures of a task: labels are bytes and both legs share them.
const MAX_STRUCTURES: usize = 120;
/// An adapter carries at most this share of the base network's parameters.
pub const TRAINABLE_SHARE: f64 = 0.05;

impl Adapter {
    /// Holds the adapter against the network and its base weights, of which `base_sha256` is the source's hash. Accepted
    /// tensors: `<layer>.lora_a` `[r, in]` with `<layer>.lora_b` `[out, r]` for a layer of the base; a base tensor's own
    /// name, which replaces it; `class_tokens` `[K,256]` and `classifier.fc1|fc2.weight|bias`, which must be there.
    ///
    /// # Errors
    /// [`AdapterError::Base`] for other base weights, [`AdapterError::Shape`] for a tensor that does not fit.
    pub fn check(&self, base_sha256: &str) -> Result<(), AdapterError> {
        self.check_meta()?;
        if !self.meta.base_sha256.eq_ignore_ascii_case(base_sha256) {
            return Err(AdapterError::Base {
                name: self.meta.name.clone(),
                wanted: self.meta.base_sha256.clone(),
                found: base_sha256.into(),
            });
        }
        let shapes: Shapes = self.tensors.iter().map(|(n, t)| (n.clone(), t.shape.clone())).collect();
        check_adapter_shapes(&shapes, self.meta.task.structures.len())
            .map_err(|cause| AdapterError::Shape { name: self.meta.name.clone(), cause })
    }

    /// What of the adapter can be judged without a network.
    pub(super) fn check_meta(&self) -> Result<(), AdapterError> {
        let m = &self.meta;
        let problem = |problem: String| Err(AdapterError::Meta { name: m.name.clone(), problem });
        if m.format != FORMAT {
            return problem(format!("is of format {}, this program reads {FORMAT}: update the program", m.format));
        }
        if m.network_version != NETWORK_VERSION {
            return problem(format!(
                "was trained with version {} of the network, this program runs {NETWORK_VERSION}: train it again",
                m.network_version
            ));
        }
        let k = m.task.structures.len();
        if k == 0 || k > MAX_STRUCTURES {
            return problem(format!("lists {k} structures, 1 to {MAX_STRUCTURES} are possible"));
        }
        for (i, s) in m.task.structures.iter().enumerate() {
            if m.task.structures[..i].iter().any(|o| o.key == s.key) {
                return problem(format!("lists structure {} twice", s.key));
            }
            if s.key.is_empty() || s.key.len() > 16 || s.name.len() > 64 || s.code.value.len() > 16 {
                return problem(format!("structure {:?} has a key or code that DICOM cannot hold", s.key));
            }
        }
        if let Err(e) = check_image_size(m.input_size) {
            return problem(e.to_string());
        }
        if m.presence.len() != k || m.presence.iter().zip(&m.task.structures).any(|(p, s)| p.key != s.key) {
            return problem("presence thresholds do not follow the task's structures".into());
        }
        if m.presence.iter().any(|p| !(0.0..=1.0).contains(&p.threshold)) {
            return problem("a presence threshold lies outside 0 to 1".into());
        }
        for r in &m.reference {
            let spreads = [r.area, r.intensity, r.score];
            if spreads.iter().flatten().any(|s| !s.mean.is_finite() || !s.sd.is_finite() || s.sd < 0.0) {
                return problem(format!("calibration statistics of {} are malformed", r.key));
            }
        }
        if let Some(p) = m.segex.as_ref().and_then(|c| c.problem()) {
            return problem(p);
        }
        for s in &m.shape {
            if s.mean.iter().chain(s.precision.iter().flatten()).any(|v| !v.is_finite()) {
                return problem(format!("shape statistics of {} are malformed", s.key));
            }
        }
        Ok(())
    }
}
