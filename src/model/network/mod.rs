//! MobileSAM with classifier and LoRA branches, written once over [`Ops`](super::ops::Ops).
//!
//! Upstream names: the tensors are called as in MobileSAM's state dictionary, with every batch normalisation folded
//! into the convolution before it (`X.c.weight` and `X.bn.*` become `X.weight` and `X.bias`). The image is `[N,3,S,S]`,
//! S a multiple of 32; the embedding `[N,256,S/16,S/16]`. Weights must pass [`check_base_shapes`] and
//! [`check_adapter_shapes`] first: a wrong shape inside an interpreter is a panic.

mod classifier;
mod decoder;
mod encoder;
mod feedback;
mod layers;
mod rank;
mod shapes;

pub use classifier::{Classified, classify, classify_with_dropout};
pub use decoder::{Decoded, decode};
pub use encoder::{PLACE, encode, encode_from_stem, encode_stem};
pub use feedback::{FEEDBACK, feedback, feedback_shapes, normalised};
pub use layers::linear_lora;
pub use rank::{TRAINED_WHOLE, all_padded, engine_shapes, padded, rank_axis};
pub(crate) use shapes::check_deltas;
pub use shapes::{
    LoraTarget, MAX_RANK, ShapeError, Shapes, check_adapter_shapes, check_base_shapes, check_image_size,
    conv_adapter_shapes, expected_base_shapes, lora_targets, position_shapes,
};

/// Version of this definition: an adapter trained with another one does not fit, whatever its shapes say.
pub const NETWORK_VERSION: u32 = 2;
/// Channels of the image embedding, the tokens and the classifier.
pub const EMBED: usize = 256;
/// Pixels of the input along one edge of an embedding cell.
pub const STRIDE: usize = 16;
/// SAM's mean of each input channel, on the scale 0..255.
pub const PIXEL_MEAN: [f32; 3] = [123.675, 116.28, 103.53];
/// SAM's standard deviation of each input channel, on the scale 0..255.
pub const PIXEL_STD: [f32; 3] = [58.395, 57.12, 57.375];

/// Channels of TinyViT's four stages.
pub(crate) const DIMS: [usize; 4] = [64, 128, 160, 320];
/// Blocks in each stage.
pub(crate) const DEPTHS: [usize; 4] = [2, 2, 6, 2];
/// Attention heads in each stage; the first stage is convolution alone.
pub(crate) const HEADS: [usize; 4] = [2, 4, 5, 10];
/// Edge of the attention window in each stage.
pub(crate) const WINDOWS: [usize; 4] = [7, 7, 14, 7];
/// Attention heads of the mask decoder.
pub(crate) const DECODER_HEADS: usize = 8;
/// Output tokens for masks: one single-mask token and three for ambiguous prompts.
pub(crate) const MASK_TOKENS: usize = 4;
