//! What the network expects of its weights, so that a wrong tensor is refused by name before any interpreter sees it.

use std::collections::BTreeMap;

use super::{DEPTHS, DIMS, EMBED, HEADS, MASK_TOKENS, PLACE, STRIDE, WINDOWS};

/// Tensor shapes by name.
pub type Shapes = BTreeMap<String, Vec<usize>>;

/// Why weights or sizes do not fit the network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// A tensor the network needs is not there.
    #[error("the weights lack the tensor {name}; they are not MobileSAM's, or not whole: fetch them again")]
    Missing {
        /// Name of the tensor.
        name: String,
    },
    /// A tensor has another shape.
    #[error("the tensor {name} has the shape {found:?}, the network needs {expected:?}")]
    Mismatch {
        /// Name of the tensor.
        name: String,
        /// What it is.
        found: Vec<usize>,
        /// What it must be.
        expected: Vec<usize>,
    },
    /// An adapter tensor names nothing in the network.
    #[error("the adapter's tensor {name} fits nothing in this network; it was made for another base or version")]
    Unknown {
        /// Name of the tensor.
        name: String,
    },
    /// Only one of `lora_a` and `lora_b` is there, or their ranks differ, or the rank is out of 1..=256.
    #[error("the LoRA pair of {name} is broken: {cause}")]
    LoraPair {
        /// Name of the layer.
        name: String,
        /// What is wrong.
        cause: String,
    },
    /// Gradient feedback while serving, which the graphs have no place for.
    #[error(
        "the adapter's tensor {name} feeds gradients back while serving (feedback = \"train-and-test\"), which no engine does: train \
         with feedback = \"off\" or \"train\""
    )]
    Feedback {
        /// Name of the tensor.
        name: String,
    },
    /// The input size does not fit the encoder.
    #[error("input size {size} is not a multiple of 32 between 32 and 2048")]
    ImageSize {
        /// The size asked for.
        size: usize,
    },
}

/// Highest LoRA rank.
pub const MAX_RANK: usize = 256;

/// A layer that may carry a LoRA pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoraTarget {
    /// The layer's name: `name.weight` is the base weight, `name.lora_a` and `name.lora_b` the pair.
    pub name: String,
    /// Input features.
    pub inputs: usize,
    /// Output features.
    pub outputs: usize,
    /// Whether it is a 1x1 convolution.
    pub convolution: bool,
}

/// Optional position codes of the encoder, which no base has: `[C, PLACE]` before each attention stage and the neck.
pub fn position_shapes() -> Shapes {
    let mut s = Shapes::new();
    for stage in 1..DIMS.len() {
        put(&mut s, &format!("image_encoder.layers.{stage}.position.weight"), &[DIMS[stage], PLACE]);
    }
    put(&mut s, "image_encoder.neck.position.weight", &[DIMS[3], PLACE]);
    s
}

/// Optional convolution adapters of the encoder, which no base has: a bottleneck of `channels` after each attention block.
pub fn conv_adapter_shapes(channels: usize) -> Shapes {
    let mut s = Shapes::new();
    for stage in 1..DIMS.len() {
        for block in 0..DEPTHS[stage] {
            let name = format!("image_encoder.layers.{stage}.blocks.{block}.adapter");
            put(&mut s, &format!("{name}.down.weight"), &[channels, DIMS[stage]]);
            put(&mut s, &format!("{name}.depth.weight"), &[channels, 1, 3, 3]);
            put(&mut s, &format!("{name}.up.weight"), &[DIMS[stage], channels]);
        }
    }
    s
}

/// Accepts an input size of the encoder: a multiple of 32, at most 2048.
///
/// # Errors
/// [`ShapeError::ImageSize`].
pub fn check_image_size(size: usize) -> Result<(), ShapeError> {
    if size.is_multiple_of(2 * STRIDE) && (2 * STRIDE..=2048).contains(&size) {
        Ok(())
    } else {
        Err(ShapeError::ImageSize { size })
    }
}

/// Every base tensor after folding, with its shape. The ImageNet head upstream ships is not part of it.
pub fn expected_base_shapes() -> Shapes {
    let mut s = Shapes::new();
    encoder(&mut s);
    prompt_encoder(&mut s);
    decoder(&mut s);
    s
}

fn put(s: &mut Shapes, name: &str, shape: &[usize]) {
    s.insert(name.to_string(), shape.to_vec());
}

fn linear(s: &mut Shapes, name: &str, inputs: usize, outputs: usize) {
    put(s, &format!("{name}.weight"), &[outputs, inputs]);
    put(s, &format!("{name}.bias"), &[outputs]);
}

fn norm(s: &mut Shapes, name: &str, n: usize) {
    put(s, &format!("{name}.weight"), &[n]);
    put(s, &format!("{name}.bias"), &[n]);
}

fn conv(s: &mut Shapes, name: &str, shape: [usize; 4]) {
    put(s, &format!("{name}.weight"), &shape);
    put(s, &format!("{name}.bias"), &shape[..1]);
}

fn encoder(s: &mut Shapes) {
    let e = "image_encoder";
    conv(s, &format!("{e}.patch_embed.seq.0"), [DIMS[0] / 2, 3, 3, 3]);
    conv(s, &format!("{e}.patch_embed.seq.2"), [DIMS[0], DIMS[0] / 2, 3, 3]);
    for (stage, (&c, &depth)) in DIMS.iter().zip(&DEPTHS).enumerate() {
        for block in 0..depth {
            let b = format!("{e}.layers.{stage}.blocks.{block}");
            if stage == 0 {
                conv(s, &format!("{b}.conv1"), [4 * c, c, 1, 1]);
                conv(s, &format!("{b}.conv2"), [4 * c, 1, 3, 3]);
                conv(s, &format!("{b}.conv3"), [c, 4 * c, 1, 1]);
                continue;
            }
            put(s, &format!("{b}.attn.attention_biases"), &[HEADS[stage], WINDOWS[stage] * WINDOWS[stage]]);
            norm(s, &format!("{b}.attn.norm"), c);
            linear(s, &format!("{b}.attn.qkv"), c, 3 * c);
            linear(s, &format!("{b}.attn.proj"), c, c);
            norm(s, &format!("{b}.mlp.norm"), c);
            linear(s, &format!("{b}.mlp.fc1"), c, 4 * c);
            linear(s, &format!("{b}.mlp.fc2"), 4 * c, c);
            conv(s, &format!("{b}.local_conv"), [c, 1, 3, 3]);
        }
        if let Some(&next) = DIMS.get(stage + 1) {
            let d = format!("{e}.layers.{stage}.downsample");
            conv(s, &format!("{d}.conv1"), [next, c, 1, 1]);
            conv(s, &format!("{d}.conv2"), [next, 1, 3, 3]);
            conv(s, &format!("{d}.conv3"), [next, next, 1, 1]);
        }
    }
    put(s, &format!("{e}.neck.0.weight"), &[EMBED, DIMS[3], 1, 1]);
    norm(s, &format!("{e}.neck.1"), EMBED);
    put(s, &format!("{e}.neck.2.weight"), &[EMBED, EMBED, 3, 3]);
    norm(s, &format!("{e}.neck.3"), EMBED);
}

fn prompt_encoder(s: &mut Shapes) {
    let p = "prompt_encoder";
    put(s, &format!("{p}.pe_layer.positional_encoding_gaussian_matrix"), &[2, EMBED / 2]);
    for i in 0..4 {
        put(s, &format!("{p}.point_embeddings.{i}.weight"), &[1, EMBED]);
    }
    put(s, &format!("{p}.not_a_point_embed.weight"), &[1, EMBED]);
    put(s, &format!("{p}.no_mask_embed.weight"), &[1, EMBED]);
    conv(s, &format!("{p}.mask_downscaling.0"), [4, 1, 2, 2]);
    norm(s, &format!("{p}.mask_downscaling.1"), 4);
    conv(s, &format!("{p}.mask_downscaling.3"), [16, 4, 2, 2]);
    norm(s, &format!("{p}.mask_downscaling.4"), 16);
    conv(s, &format!("{p}.mask_downscaling.6"), [EMBED, 16, 1, 1]);
}

fn decoder(s: &mut Shapes) {
    let d = "mask_decoder";
    let attention = |s: &mut Shapes, name: &str, inner: usize| {
        for p in ["q_proj", "k_proj", "v_proj"] {
            linear(s, &format!("{name}.{p}"), EMBED, inner);
        }
        linear(s, &format!("{name}.out_proj"), inner, EMBED);
    };
    for layer in 0..2 {
        let l = format!("{d}.transformer.layers.{layer}");
        attention(s, &format!("{l}.self_attn"), EMBED);
        attention(s, &format!("{l}.cross_attn_token_to_image"), EMBED / 2);
        attention(s, &format!("{l}.cross_attn_image_to_token"), EMBED / 2);
        for i in 1..=4 {
            norm(s, &format!("{l}.norm{i}"), EMBED);
        }
        linear(s, &format!("{l}.mlp.lin1"), EMBED, 2048);
        linear(s, &format!("{l}.mlp.lin2"), 2048, EMBED);
    }
    attention(s, &format!("{d}.transformer.final_attn_token_to_image"), EMBED / 2);
    norm(s, &format!("{d}.transformer.norm_final_attn"), EMBED);
    put(s, &format!("{d}.iou_token.weight"), &[1, EMBED]);
    put(s, &format!("{d}.mask_tokens.weight"), &[MASK_TOKENS, EMBED]);
    let up = |s: &mut Shapes, name: &str, i: usize, o: usize| {
        put(s, &format!("{name}.weight"), &[i, o, 2, 2]);
        put(s, &format!("{name}.bias"), &[o]);
    };
    up(s, &format!("{d}.output_upscaling.0"), EMBED, EMBED / 4);
    norm(s, &format!("{d}.output_upscaling.1"), EMBED / 4);
    up(s, &format!("{d}.output_upscaling.3"), EMBED / 4, EMBED / 8);
    let mlp = |s: &mut Shapes, name: &str, out: usize| {
        linear(s, &format!("{name}.layers.0"), EMBED, EMBED);
        linear(s, &format!("{name}.layers.1"), EMBED, EMBED);
        linear(s, &format!("{name}.layers.2"), EMBED, out);
    };
    for i in 0..MASK_TOKENS {
        mlp(s, &format!("{d}.output_hypernetworks_mlps.{i}"), EMBED / 8);
    }
    mlp(s, &format!("{d}.iou_prediction_head"), MASK_TOKENS);
}

/// Every layer that the network runs and that may carry a LoRA pair, in the order of their names: linears and 1x1
/// convolutions. Hypernetworks of the masks that are never decoded are left out.
pub fn lora_targets() -> Vec<LoraTarget> {
    let unused = |n: &str| {
        n.starts_with("prompt_encoder.")
            || (1..MASK_TOKENS).any(|i| n.starts_with(&format!("mask_decoder.output_hypernetworks_mlps.{i}.")))
            // Embeddings look like linears by their shape alone.
            || n.ends_with("_token.weight")
            || n.ends_with("_tokens.weight")
    };
    let mut targets = Vec::new();
    for (key, shape) in expected_base_shapes() {
        let Some(name) = key.strip_suffix(".weight") else { continue };
        if unused(&key) {
            continue;
        }
        let (outputs, inputs, convolution) = match shape[..] {
            [o, i] => (o, i, false),
            // A depthwise 3x3 is no matrix; a transposed convolution is 2x2.
            [o, i, 1, 1] => (o, i, true),
            _ => continue,
        };
        targets.push(LoraTarget { name: name.to_string(), inputs, outputs, convolution });
    }
    targets
}

/// Checks that a dictionary of shapes holds every base tensor as the network expects it. More tensors are no error.
///
/// # Errors
/// [`ShapeError::Missing`] or [`ShapeError::Mismatch`], by the first name in order.
pub fn check_base_shapes<'a>(shape_of: impl Fn(&str) -> Option<&'a [usize]>) -> Result<(), ShapeError> {
    for (name, expected) in expected_base_shapes() {
        match shape_of(&name) {
            None => return Err(ShapeError::Missing { name }),
            Some(found) if found != expected => {
                return Err(ShapeError::Mismatch { name, found: found.to_vec(), expected });
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Checks an adapter for K structures: each tensor is half of a LoRA pair, a replacement of a base weight, or part of
/// the class tokens and the classifier, which must be whole.
///
/// # Errors
/// The first [`ShapeError`] found.
pub fn check_adapter_shapes(adapter: &Shapes, structures: usize) -> Result<(), ShapeError> {
    let head = [
        ("class_tokens", vec![structures, EMBED]),
        ("classifier.fc1.weight", vec![EMBED, EMBED]),
        ("classifier.fc1.bias", vec![EMBED]),
        ("classifier.fc2.weight", vec![structures, EMBED]),
        ("classifier.fc2.bias", vec![structures]),
    ];
    for (name, _) in &head {
        if !adapter.contains_key(*name) {
            return Err(ShapeError::Missing { name: name.to_string() });
        }
    }
    let mut expected = expected_base_shapes();
    expected.extend(head.map(|(n, s)| (n.to_string(), s)));
    check_parts(adapter, &expected)
}

/// The same without asking for class tokens and classifier: what an encoder or a zero-shot decoder takes.
pub(crate) fn check_deltas(adapter: &Shapes) -> Result<(), ShapeError> {
    let mut expected = expected_base_shapes();
    for name in
        ["class_tokens", "classifier.fc1.weight", "classifier.fc1.bias", "classifier.fc2.weight", "classifier.fc2.bias"]
    {
        if let Some(shape) = adapter.get(name) {
            expected.insert(name.to_string(), shape.clone());
        }
    }
    check_parts(adapter, &expected)
}

fn check_parts(adapter: &Shapes, expected: &Shapes) -> Result<(), ShapeError> {
    let mut expected = expected.clone();
    expected.extend(position_shapes());
    expected.extend(super::feedback_shapes());
    if let Some(&[channels @ 1..=256, _]) =
        adapter.get("image_encoder.layers.1.blocks.0.adapter.down.weight").map(|s| &s[..])
    {
        expected.extend(conv_adapter_shapes(channels));
    }
    let targets: BTreeMap<String, LoraTarget> = lora_targets().into_iter().map(|t| (t.name.clone(), t)).collect();
    for (name, found) in adapter {
        if let Some(expected) = expected.get(name) {
            if found != expected {
                return Err(ShapeError::Mismatch {
                    name: name.clone(),
                    found: found.clone(),
                    expected: expected.clone(),
                });
            }
            continue;
        }
        let layer = name.strip_suffix(".lora_a").or_else(|| name.strip_suffix(".lora_b"));
        let Some(target) = layer.and_then(|l| targets.get(l)) else {
            return Err(ShapeError::Unknown { name: name.clone() });
        };
        check_pair(adapter, target)?;
    }
    Ok(())
}

fn check_pair(adapter: &Shapes, target: &LoraTarget) -> Result<(), ShapeError> {
    let broken = |cause: String| Err(ShapeError::LoraPair { name: target.name.clone(), cause });
    let half = |s: &str| adapter.get(&format!("{}.{s}", target.name));
    let (Some(a), Some(b)) = (half("lora_a"), half("lora_b")) else {
        return broken("one half is missing".into());
    };
    let (&[rank, inputs], &[outputs, rank_b]) = (&a[..], &b[..]) else {
        return broken(format!("shapes {a:?} and {b:?} are not matrices"));
    };
    if inputs != target.inputs || outputs != target.outputs || rank != rank_b || !(1..=MAX_RANK).contains(&rank) {
        return broken(format!(
            "shapes {a:?} and {b:?}, expected [r, {}] and [{}, r] with r in 1..={MAX_RANK}",
            target.inputs, target.outputs
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(k: usize) -> Shapes {
        let mut s = Shapes::new();
        put(&mut s, "class_tokens", &[k, EMBED]);
        linear(&mut s, "classifier.fc1", EMBED, EMBED);
        linear(&mut s, "classifier.fc2", EMBED, k);
        put(&mut s, "image_encoder.layers.1.blocks.0.attn.qkv.lora_a", &[4, 128]);
        put(&mut s, "image_encoder.layers.1.blocks.0.attn.qkv.lora_b", &[384, 4]);
        s
    }

    #[test]
    fn a_whole_adapter_passes_and_each_fault_is_named() {
        assert_eq!(check_adapter_shapes(&adapter(2), 2), Ok(()));
        let mut a = adapter(2);
        a.remove("class_tokens");
        assert!(matches!(check_adapter_shapes(&a, 2), Err(ShapeError::Missing { name }) if name == "class_tokens"));
        assert!(matches!(check_adapter_shapes(&adapter(3), 2), Err(ShapeError::Mismatch { .. })));
        let mut a = adapter(2);
        a.remove("image_encoder.layers.1.blocks.0.attn.qkv.lora_b");
        assert!(matches!(check_adapter_shapes(&a, 2), Err(ShapeError::LoraPair { .. })));
        let mut a = adapter(2);
        put(&mut a, "image_encoder.layers.1.blocks.0.attn.qkv.lora_b", &[384, 5]);
        assert!(matches!(check_adapter_shapes(&a, 2), Err(ShapeError::LoraPair { .. })));
        let mut a = adapter(2);
        put(&mut a, "image_encoder.layers.9.attn.qkv.weight", &[1]);
        assert!(matches!(check_adapter_shapes(&a, 2), Err(ShapeError::Unknown { .. })));
    }

    #[test]
    fn lora_fits_what_the_network_runs_as_a_matrix() {
        let targets = lora_targets();
        // 4 linears in each of 10 attention blocks; 2 per MBConv, 2 per merging, the neck; the decoder's 7 attentions,
        // 2 MLPs, one hypernetwork and the IoU head.
        assert_eq!(targets.iter().filter(|t| t.convolution).count(), 2 * 2 + 3 * 2 + 1);
        assert_eq!(targets.iter().filter(|t| !t.convolution).count(), 10 * 4 + 7 * 4 + 2 * 2 + 3 + 3);
    }

    #[test]
    fn parameters_number_what_upstream_says() {
        let count: usize = expected_base_shapes().values().map(|s| s.iter().product::<usize>()).sum();
        // 10.13 M with the ImageNet head and batch normalisation; the head alone has 321 000 + 640.
        assert!((9_600_000..9_900_000).contains(&count), "{count}");
    }

    #[test]
    fn sizes() {
        assert!(check_image_size(256).is_ok() && check_image_size(1024).is_ok());
        assert!(check_image_size(0).is_err() && check_image_size(250).is_err() && check_image_size(1 << 40).is_err());
    }
}
