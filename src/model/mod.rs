//! The network, written once over [`ops::Ops`]: run eagerly with gradients to train, emitted as ONNX to serve.

#[cfg(feature = "train")]
pub mod autograd;
#[cfg(feature = "train")]
pub mod eager;
pub mod network;
pub mod onnx;
pub mod ops;
#[cfg(feature = "cuda")]
pub mod torch;
#[cfg(feature = "train")]
pub mod unet;
pub mod weights;
