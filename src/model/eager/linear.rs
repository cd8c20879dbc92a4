//! Linear layers and batched matrix products.

use std::sync::Arc;

use rayon::prelude::*;

use super::buffer::Buf;
use super::gemm::{Bias, Mat, gemm};
use super::reduce::sum_rows;
use super::{Eager, Var};

impl Eager {
    /// `x W^T + b` over the last axis.
    pub(super) fn linear_op(&self, x: &Var, w: &Var, b: Option<&Var>) -> Var {
        let (&inputs, lead) = match x.shape().split_last() {
            Some(s) => s,
            None => panic!("linear of a scalar"),
        };
        let outputs = w.shape()[0];
        assert_eq!(w.shape(), [outputs, inputs], "linear weight for input {:?}", x.shape());
        let rows: usize = lead.iter().product();
        let mut out = Buf::stale(rows * outputs);
        let bias = b.map_or(Bias::None, |b| {
            assert_eq!(b.shape(), [outputs], "linear bias");
            Bias::PerColumn(b.data())
        });
        gemm(&mut out, Mat::new(x.data(), rows, inputs), Mat::new(w.data(), outputs, inputs).t(), true, bias);

        let shape: Vec<usize> = lead.iter().copied().chain([outputs]).collect();
        let (xv, wv) = (x.value.clone(), w.value.clone());
        let mut inputs_vars = vec![x, w];
        inputs_vars.extend(b);
        self.outcome(&shape, out, &inputs_vars, move |g, sink| {
            sink.emit(0, rows * inputs, |dx, fresh| {
                gemm(dx, Mat::new(&g, rows, outputs), Mat::new(&wv, outputs, inputs), fresh, Bias::None);
            });
            sink.emit(1, outputs * inputs, |dw, fresh| {
                gemm(dw, Mat::new(&g, rows, outputs).t(), Mat::new(&xv, rows, inputs), fresh, Bias::None);
            });
            if sink.wants(2) {
                sink.add(2, sum_rows(&g, outputs));
            }
        })
    }

    /// Matrix product over the last two axes; leading axes must be equal.
    pub(super) fn matmul_op(&self, a: &Var, b: &Var) -> Var {
        let (sa, sb) = (a.shape(), b.shape());
        let rank = sa.len();
        assert!(
            rank >= 2 && rank == sb.len() && sa[..rank - 2] == sb[..rank - 2] && sa[rank - 1] == sb[rank - 2],
            "matmul of {sa:?} and {sb:?}"
        );
        let batch: usize = sa[..rank - 2].iter().product();
        let (m, k, n) = (sa[rank - 2], sa[rank - 1], sb[rank - 1]);
        let mut out = Buf::stale(batch * m * n);
        batched(&mut out, m * n, |i, out| {
            let (a, b) = (&a.data()[i * m * k..], &b.data()[i * k * n..]);
            gemm(out, Mat::new(a, m, k), Mat::new(b, k, n), true, Bias::None);
        });
        let mut shape = sa.to_vec();
        shape[rank - 1] = n;
        let (av, bv): (Arc<Buf>, Arc<Buf>) = (a.value.clone(), b.value.clone());
        self.outcome(&shape, out, &[a, b], move |g, sink| {
            sink.emit(0, batch * m * k, |da, fresh| {
                batched(da, m * k, |i, da| {
                    gemm(da, Mat::new(&g[i * m * n..], m, n), Mat::new(&bv[i * k * n..], k, n).t(), fresh, Bias::None);
                });
            });
            sink.emit(1, batch * k * n, |db, fresh| {
                batched(db, k * n, |i, db| {
                    gemm(db, Mat::new(&av[i * m * k..], m, k).t(), Mat::new(&g[i * m * n..], m, n), fresh, Bias::None);
                });
            });
        })
    }
}

/// Calls `f(i, matrix)` for the matrices of `size` values in `out`; a single one is left to the product's own threads.
fn batched(out: &mut [f32], size: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    if out.len() <= size {
        f(0, out);
    } else {
        out.par_chunks_mut(size).enumerate().for_each(|(i, out)| f(i, out));
    }
}
