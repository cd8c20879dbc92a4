//! The network, written once over [`ops::Ops`]: run eagerly with gradients to train, emitted as ONNX to serve.

pub mod network;
#[cfg(feature = "train")]
pub mod eager;
pub mod ops;
