//! The tensor operations that the network is a function over, and nothing more.
//!
//! Two interpreters implement them: `eager` computes at once and keeps gradients (training), `onnx` writes a graph
//! (serving). Shapes are static. A wrong shape is a programming error and panics; weights are checked against the
//! network's expected shapes before any interpreter sees them.

/// An interpreter of tensor operations. All tensors are f32, row-major; images are `[N, C, H, W]`.
pub trait Ops {
    /// A tensor of this interpreter; cheap to clone.
    type T: Clone;

    /// Extent of each axis.
    fn shape(&self, x: &Self::T) -> Vec<usize>;
    /// A named parameter: a base weight (frozen, an initializer in ONNX) or an adapter tensor (trainable, a graph input).
    fn param(&self, name: &str) -> Self::T;
    /// Whether a parameter of that name exists: LoRA branches are present only where an adapter carries them.
    fn has_param(&self, name: &str) -> bool;
    /// A constant.
    fn constant(&self, shape: &[usize], data: Vec<f32>) -> Self::T;

    /// 2-D convolution, zero padding on all sides. `x` `[N,C,H,W]`, `w` `[O,C/groups,k,k]`, `b` `[O]`.
    fn conv2d(
        &self,
        x: &Self::T,
        w: &Self::T,
        b: Option<&Self::T>,
        stride: usize,
        pad: usize,
        groups: usize,
    ) -> Self::T;
    /// Transposed convolution with kernel 2, stride 2. `w` `[C,O,2,2]`, `b` `[O]`.
    fn conv_transpose2x2(&self, x: &Self::T, w: &Self::T, b: &Self::T) -> Self::T;
    /// `x W^T + b` over the last axis. `x` `[.., I]`, `w` `[O,I]`, `b` `[O]`.
    fn linear(&self, x: &Self::T, w: &Self::T, b: Option<&Self::T>) -> Self::T;
    /// Batched matrix product over the last two axes; leading axes must be equal.
    fn matmul(&self, a: &Self::T, b: &Self::T) -> Self::T;

    /// Sum with NumPy broadcasting.
    fn add(&self, a: &Self::T, b: &Self::T) -> Self::T;
    /// Difference with NumPy broadcasting.
    fn sub(&self, a: &Self::T, b: &Self::T) -> Self::T;
    /// Product with NumPy broadcasting.
    fn mul(&self, a: &Self::T, b: &Self::T) -> Self::T;
    /// Quotient with NumPy broadcasting.
    fn div(&self, a: &Self::T, b: &Self::T) -> Self::T;
    /// `x * k`.
    fn scale(&self, x: &Self::T, k: f32) -> Self::T;
    /// `x + k`.
    fn offset(&self, x: &Self::T, k: f32) -> Self::T;

    /// Gaussian error linear unit, the exact form with erf.
    fn gelu(&self, x: &Self::T) -> Self::T;
    /// max(x, 0).
    fn relu(&self, x: &Self::T) -> Self::T;
    /// 1 where x > 0, else 0; no gradient. The derivative of [`Ops::relu`], which GradCAM's closed form needs.
    fn step(&self, x: &Self::T) -> Self::T;
    /// Logistic function.
    fn sigmoid(&self, x: &Self::T) -> Self::T;
    /// Sine.
    fn sin(&self, x: &Self::T) -> Self::T;
    /// Cosine.
    fn cos(&self, x: &Self::T) -> Self::T;
    /// Natural logarithm.
    fn log(&self, x: &Self::T) -> Self::T;
    /// Softmax over the last axis.
    fn softmax(&self, x: &Self::T) -> Self::T;
    /// Layer normalisation over the last axis; `gain`, `bias` `[last]`.
    fn layer_norm(&self, x: &Self::T, gain: &Self::T, bias: &Self::T, eps: f32) -> Self::T;

    /// Same values, another shape.
    fn reshape(&self, x: &Self::T, shape: &[usize]) -> Self::T;
    /// Axes in another order.
    fn permute(&self, x: &Self::T, axes: &[usize]) -> Self::T;
    /// `start..end` along one axis.
    fn slice(&self, x: &Self::T, axis: usize, start: usize, end: usize) -> Self::T;
    /// Tensors one after the other along an axis.
    fn concat(&self, xs: &[Self::T], axis: usize) -> Self::T;
    /// Zeros appended at the end of an axis.
    fn pad_end(&self, x: &Self::T, axis: usize, count: usize) -> Self::T;
    /// Repeats broadcastable axes to the given shape.
    fn expand(&self, x: &Self::T, shape: &[usize]) -> Self::T;
    /// Mean over axes, which stay with extent 1.
    fn mean(&self, x: &Self::T, axes: &[usize]) -> Self::T;
    /// Sum over axes, which stay with extent 1.
    fn sum(&self, x: &Self::T, axes: &[usize]) -> Self::T;
    /// Bilinear resize of the last two axes, half-pixel centres (PyTorch's `align_corners=False`).
    fn resize_bilinear(&self, x: &Self::T, height: usize, width: usize) -> Self::T;
}
