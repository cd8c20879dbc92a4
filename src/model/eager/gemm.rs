//! Matrix products on rten's GEMM: a safe interface with AVX-512, AVX2 and NEON kernels, as fast as the `gemm` crate here.

use rten_gemm::{BiasVector, GemmExecutor, GemmInputA, GemmInputB, GemmOptions};
use rten_tensor::{Matrix, MatrixLayout, NdTensorView};

use super::simd::{self, pieces, rows_per_piece, wide};

thread_local! {
    /// The kernel chosen for this machine; not `Send`, so one for each thread.
    static EXECUTOR: GemmExecutor<f32> = GemmExecutor::new();
}

/// A row-major matrix, or the transpose of one.
#[derive(Clone, Copy)]
pub(super) struct Mat<'a> {
    view: Matrix<'a, f32>,
    data: &'a [f32],
    transposed: bool,
}

impl<'a> Mat<'a> {
    /// The first `rows * cols` values as a matrix.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        let data = &data[..rows * cols];
        Mat { view: NdTensorView::from_data([rows, cols], data), data, transposed: false }
    }

    /// The transpose, without copying.
    pub fn t(self) -> Self {
        Mat { view: self.view.transposed(), data: self.data, transposed: !self.transposed }
    }
}

/// What is added to every row or column of a product.
pub(super) enum Bias<'a> {
    None,
    /// One value per row of the result.
    PerRow(&'a [f32]),
    /// One value per column of the result.
    PerColumn(&'a [f32]),
}

/// `out = a b + bias` if `fresh` (old contents ignored), else `out += a b`.
pub(super) fn gemm(out: &mut [f32], a: Mat<'_>, b: Mat<'_>, fresh: bool, bias: Bias<'_>) {
    if a.view.rows() == 1 {
        return row_by_matrix(out, a.data, b, fresh, &bias);
    }
    if b.view.cols() == 1 {
        let bias = match bias {
            Bias::None => Bias::None,
            Bias::PerRow(b) => Bias::PerColumn(b),
            Bias::PerColumn(b) => Bias::PerRow(b),
        };
        return row_by_matrix(out, b.data, a.t(), fresh, &bias);
    }
    let options = GemmOptions {
        beta: if fresh { 0.0 } else { 1.0 },
        bias: match bias {
            Bias::None => None,
            Bias::PerRow(b) => Some(BiasVector::Column(b)),
            Bias::PerColumn(b) => Some(BiasVector::Row(b)),
        },
        ..GemmOptions::default()
    };
    let done = EXECUTOR.with(|e| e.gemm(out, GemmInputA::Unpacked(a.view), GemmInputB::Unpacked(b.view), options));
    if let Err(e) = done {
        panic!("matrix product: {e}");
    }
}

/// A product with a single row (a single column is the same, transposed). The executor splits these by the number of threads, and
/// its rounding with them; this one does not.
fn row_by_matrix(out: &mut [f32], a: &[f32], b: Mat<'_>, fresh: bool, bias: &Bias<'_>) {
    let (depth, columns) = (a.len(), out.len());
    pieces(out, rows_per_piece(depth), |start, out| {
        match bias {
            Bias::None if !fresh => {}
            Bias::None => out.fill(0.0),
            Bias::PerRow(bias) => out.fill(bias[0]),
            Bias::PerColumn(bias) => out.copy_from_slice(&bias[start..start + out.len()]),
        }
        wide(
            #[inline(always)]
            || {
                if b.transposed {
                    for (o, b) in out.iter_mut().zip(b.data[start * depth..].chunks_exact(depth)) {
                        *o += simd::dot(a, b);
                    }
                } else {
                    for (&a, b) in a.iter().zip(b.data.chunks_exact(columns)) {
                        simd::axpy(out, a, &b[start..start + out.len()]);
                    }
                }
            },
        );
    });
}
