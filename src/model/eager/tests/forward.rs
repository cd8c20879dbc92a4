//! Values against references written plainly, in f64.

use super::{assert_close, eager, random_var};
use crate::model::eager::Var;
use crate::model::ops::Ops;

fn wide(x: &Var) -> Vec<f64> {
    x.data().iter().map(|&v| f64::from(v)).collect()
}

#[test]
fn conv2d() {
    let e = eager();
    for (n, c, h, w, o, k, stride, pad, groups) in [
        (2, 3, 9, 8, 4, 3, 2, 1, 1),
        (1, 3, 40, 36, 8, 3, 2, 1, 1),
        (2, 5, 6, 7, 6, 1, 1, 0, 1),
        (1, 4, 9, 7, 6, 3, 1, 1, 2),
        (1, 2, 5, 5, 3, 2, 2, 0, 1),
        (2, 6, 17, 19, 6, 3, 1, 1, 6),
        (2, 6, 17, 20, 6, 3, 2, 1, 6),
        (1, 3, 16, 16, 3, 3, 2, 1, 3),
        (1, 3, 11, 13, 3, 5, 3, 2, 3),
        (1, 2, 5, 6, 2, 3, 1, 0, 2),
        (1, 40, 64, 64, 40, 3, 1, 1, 40),
    ] {
        let (x, wt, b) = (random_var(1, &[n, c, h, w]), random_var(2, &[o, c / groups, k, k]), random_var(3, &[o]));
        let y = e.conv2d(&x, &wt, Some(&b), stride, pad, groups);
        let (oh, ow) = ((h + 2 * pad - k) / stride + 1, (w + 2 * pad - k) / stride + 1);
        assert_eq!(y.shape(), [n, o, oh, ow]);
        let (xv, wv, bv) = (wide(&x), wide(&wt), wide(&b));
        let mut want = Vec::new();
        for i in 0..n * o {
            let (image, out) = (i / o, i % o);
            for yx in 0..oh * ow {
                let mut s = bv[out];
                for t in 0..c / groups * k * k {
                    let (ci, ky, kx) = (t / (k * k), t / k % k, t % k);
                    let (iy, ix) = (yx / ow * stride + ky, yx % ow * stride + kx);
                    if iy >= pad && ix >= pad && iy - pad < h && ix - pad < w {
                        let channel = out / (o / groups) * (c / groups) + ci;
                        s += wv[out * (c / groups) * k * k + t]
                            * xv[((image * c + channel) * h + iy - pad) * w + ix - pad];
                    }
                }
                want.push(s);
            }
        }
        assert_close(y.data(), &want, 1e-5, "conv2d");
    }
}

#[test]
fn conv_transpose2x2() {
    let e = eager();
    let (n, c, o, h, w) = (2, 5, 3, 4, 6);
    let (x, wt, b) = (random_var(1, &[n, c, h, w]), random_var(2, &[c, o, 2, 2]), random_var(3, &[o]));
    let y = e.conv_transpose2x2(&x, &wt, &b);
    assert_eq!(y.shape(), [n, o, 2 * h, 2 * w]);
    let (xv, wv, bv) = (wide(&x), wide(&wt), wide(&b));
    let mut want = Vec::new();
    for (i, k) in (0..n).flat_map(|i| (0..o).map(move |k| (i, k))) {
        for (y, x) in (0..2 * h).flat_map(|y| (0..2 * w).map(move |x| (y, x))) {
            let sum: f64 = (0..c)
                .map(|ch| xv[((i * c + ch) * h + y / 2) * w + x / 2] * wv[((ch * o + k) * 2 + y % 2) * 2 + x % 2])
                .sum();
            want.push(bv[k] + sum);
        }
    }
    assert_close(y.data(), &want, 1e-5, "conv_transpose2x2");
}

#[test]
fn products() {
    let e = eager();
    for (batch, m, k, n) in
        [(6, 49, 32, 49), (1, 1, 100, 30), (2, 1, 4, 50_000), (3, 1, 40_000, 5), (2, 70, 300, 1), (1, 130, 64, 200)]
    {
        let (a, b) = (random_var(1, &[batch, m, k]), random_var(2, &[batch, k, n]));
        let (av, bv) = (wide(&a), wide(&b));
        let mut want = Vec::new();
        for i in 0..batch * m * n {
            let (s, r, c) = (i / (m * n), i / n % m, i % n);
            want.push((0..k).map(|j| av[(s * m + r) * k + j] * bv[(s * k + j) * n + c]).sum());
        }
        assert_close(e.matmul(&a, &b).data(), &want, 1e-6 * (k as f64).sqrt(), "matmul");
        if batch == 1 {
            let (w, bias) = (e.permute(&e.reshape(&b, &[k, n]), &[1, 0]), random_var(3, &[n]));
            let want: Vec<f64> = want.iter().enumerate().map(|(i, v)| v + f64::from(bias.data()[i % n])).collect();
            assert_close(e.linear(&a, &w, Some(&bias)).data(), &want, 2e-5, "linear");
        }
    }
}

/// Offset in a tensor of `shape` of the element that index `at` of the common shape reads.
fn source(shape: &[usize], at: &[usize]) -> usize {
    let at = &at[at.len() - shape.len()..];
    shape.iter().zip(at).fold(0, |o, (&d, &i)| o * d + if d == 1 { 0 } else { i })
}

fn indices(shape: &[usize]) -> Vec<Vec<usize>> {
    let total: usize = shape.iter().product();
    (0..total)
        .map(|mut i| {
            let mut at = vec![0; shape.len()];
            for (a, &d) in at.iter_mut().zip(shape).rev() {
                *a = i % d;
                i /= d;
            }
            at
        })
        .collect()
}

#[test]
fn broadcast_arithmetic() {
    let e = eager();
    let cases: [(&[usize], &[usize], &[usize]); 8] = [
        (&[3, 4], &[3, 4], &[3, 4]),
        (&[2, 1], &[1, 2], &[2, 2]),
        (&[130, 257], &[257], &[130, 257]),
        (&[1], &[200, 300], &[200, 300]),
        (&[2, 3, 70, 90], &[1, 3, 1, 1], &[2, 3, 70, 90]),
        (&[4, 1, 30, 1], &[20, 1, 50], &[4, 20, 30, 50]),
        (&[40, 1, 50], &[1, 30, 1], &[40, 30, 50]),
        (&[1, 1], &[1], &[1, 1]),
    ];
    for (a, b, shape) in cases {
        let (x, y) = (random_var(1, a), e.offset(&random_var(2, b), 2.0));
        type Op = fn(f64, f64) -> f64;
        let ops: [(Var, Op); 4] = [
            (e.add(&x, &y), |a, b| a + b),
            (e.sub(&x, &y), |a, b| a - b),
            (e.mul(&x, &y), |a, b| a * b),
            (e.div(&x, &y), |a, b| a / b),
        ];
        for (got, f) in ops {
            assert_eq!(got.shape(), shape);
            let want: Vec<f64> = indices(shape)
                .iter()
                .map(|at| f(f64::from(x.data()[source(a, at)]), f64::from(y.data()[source(b, at)])))
                .collect();
            assert_close(got.data(), &want, 1e-6, "broadcast");
        }
    }
}

#[test]
fn moved_values() {
    let e = eager();
    for (shape, axes) in [
        (&[2usize, 3, 4, 5][..], &[3usize, 1, 0, 2][..]),
        (&[1, 64, 40, 50], &[0, 2, 3, 1]),
        (&[300, 170], &[1, 0]),
        (&[4, 7, 2, 7, 3], &[0, 1, 3, 2, 4]),
        (&[1, 50, 3, 5, 32], &[2, 0, 3, 1, 4]),
        (&[6, 49, 32], &[0, 2, 1]),
        (&[5, 33, 40, 17], &[2, 3, 1, 0]),
        (&[3, 1, 1], &[2, 0, 1]),
    ] {
        let x = random_var(1, shape);
        let y = e.permute(&x, axes);
        let want: Vec<f64> = indices(y.shape())
            .iter()
            .map(|at| {
                let mut from = vec![0; axes.len()];
                for (i, &a) in axes.iter().enumerate() {
                    from[a] = at[i];
                }
                f64::from(x.data()[source(shape, &from)])
            })
            .collect();
        assert_close(y.data(), &want, 0.0, "permute");
    }
    let x = random_var(1, &[3, 4, 5]);
    for axis in 0..3 {
        let (s, p) = (e.slice(&x, axis, 1, 3), e.pad_end(&x, axis, 2));
        let c = e.concat(&[x.clone(), s.clone()], axis);
        for at in indices(s.shape()) {
            let mut from = at.clone();
            from[axis] += 1;
            assert_eq!(s.data()[source(s.shape(), &at)], x.data()[source(&[3, 4, 5], &from)]);
        }
        for (y, tail) in [(&p, None), (&c, Some(&s))] {
            for at in indices(y.shape()) {
                let got = y.data()[source(y.shape(), &at)];
                let want = if at[axis] < x.shape()[axis] {
                    x.data()[source(&[3, 4, 5], &at)]
                } else {
                    let mut from = at.clone();
                    from[axis] -= x.shape()[axis];
                    tail.map_or(0.0, |t| t.data()[source(t.shape(), &from)])
                };
                assert_eq!(got, want);
            }
        }
    }
    let y = e.expand(&random_var(1, &[3, 1, 2]), &[2, 3, 4, 2]);
    for at in indices(&[2, 3, 4, 2]) {
        assert_eq!(y.data()[source(&[2, 3, 4, 2], &at)], random_var(1, &[3, 1, 2]).data()[source(&[3, 1, 2], &at)]);
    }
}

#[test]
fn sums() {
    let e = eager();
    // The large ones are worked on in parallel pieces.
    for shape in [[2usize, 3, 4, 5], [30, 20, 15, 17], [1, 2, 300, 200], [40000, 1, 1, 3], [1, 1, 1, 100_000]] {
        for axes in [&[0usize][..], &[1], &[3], &[2, 3], &[0, 2], &[0, 1, 2], &[0, 1, 2, 3]] {
            let x = random_var(1, &shape);
            let y = e.sum(&x, axes);
            let mut want = vec![0.0; y.data().len()];
            for at in indices(&shape) {
                want[source(y.shape(), &at)] += f64::from(x.data()[source(&shape, &at)]);
            }
            let n: usize = axes.iter().map(|&a| shape[a]).product();
            assert_close(y.data(), &want, 1e-6 * (1.0 + (n as f64).sqrt()), "sum");
            let want: Vec<f64> = want.iter().map(|w| w / n as f64).collect();
            assert_close(e.mean(&x, axes).data(), &want, 1e-5, "mean");
        }
    }
}

#[test]
fn normalisation() {
    let e = eager();
    for (rows, width) in [(3, 1), (5, 7), (1000, 49), (70, 320)] {
        let x = e.scale(&random_var(1, &[rows, width]), 5.0);
        let (gain, bias) = (random_var(2, &[width]), random_var(3, &[width]));
        let (mut soft, mut norm) = (Vec::new(), Vec::new());
        for row in wide(&x).chunks(width) {
            let total: f64 = row.iter().map(|v| v.exp()).sum();
            soft.extend(row.iter().map(|v| v.exp() / total));
            let mean = row.iter().sum::<f64>() / width as f64;
            let var = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / width as f64;
            norm.extend(row.iter().enumerate().map(|(i, v)| {
                (v - mean) / (var + 1e-5).sqrt() * f64::from(gain.data()[i]) + f64::from(bias.data()[i])
            }));
        }
        assert_close(e.softmax(&x).data(), &soft, 1e-6, "softmax");
        assert_close(e.layer_norm(&x, &gain, &bias, 1e-5).data(), &norm, 1e-5, "layer_norm");
    }
}

#[test]
fn functions_of_one_value() {
    let e = eager();
    let x = e.scale(&random_var(1, &[40_001]), 6.0);
    let positive = e.offset(&e.scale(&x, 0.1), 0.7);
    type F = fn(f64) -> f64;
    let cases: [(&str, Var, &Var, F); 11] = [
        ("relu", e.relu(&x), &x, |v| v.max(0.0)),
        ("step", e.step(&x), &x, |v| f64::from(v > 0.0)),
        ("sigmoid", e.sigmoid(&x), &x, |v| 1.0 / (1.0 + (-v).exp())),
        ("sin", e.sin(&x), &x, f64::sin),
        ("cos", e.cos(&x), &x, f64::cos),
        ("log", e.log(&positive), &positive, f64::ln),
        ("exp", e.exp(&x), &x, f64::exp),
        ("sqrt", e.sqrt(&positive), &positive, f64::sqrt),
        ("softplus", e.softplus(&x), &x, |v| v.exp().ln_1p()),
        ("scale", e.scale(&x, 3.0), &x, |v| 3.0 * v),
        ("offset", e.offset(&x, 3.0), &x, |v| 3.0 + v),
    ];
    for (what, got, x, f) in cases {
        let want: Vec<f64> = wide(x).into_iter().map(f).collect();
        assert_close(got.data(), &want, 1e-6, what);
    }
    // torch.nn.functional.gelu in double precision.
    let points = Var::constant(&[6], vec![-3.0, -1.0, -0.1, 0.0, 0.5, 2.0]);
    let want = [-0.0040496940, -0.1586552539, -0.0460172163, 0.0, 0.3457312306, 1.9544997361];
    assert_close(e.gelu(&points).data(), &want, 1e-6, "gelu");
}

#[test]
fn resize() {
    let e = eager();
    for ((h, w), (oh, ow)) in [((4, 5), (8, 10)), ((7, 3), (3, 8)), ((64, 64), (256, 256)), ((1, 2), (3, 3))] {
        let x = random_var(1, &[2, h, w]);
        let at = |i: usize, from: usize, to: usize| {
            let p = ((i as f64 + 0.5) * from as f64 / to as f64 - 0.5).max(0.0);
            let low = (p as usize).min(from - 1);
            (low, (low + 1).min(from - 1), p - low as f64)
        };
        let mut want = Vec::new();
        for i in 0..2 * oh * ow {
            let ((y0, y1, ty), (x0, x1, tx)) = (at(i / ow % oh, h, oh), at(i % ow, w, ow));
            let v = |y: usize, c: usize| f64::from(x.data()[(i / (oh * ow) * h + y) * w + c]);
            let row = |y| v(y, x0) * (1.0 - tx) + v(y, x1) * tx;
            want.push(row(y0) * (1.0 - ty) + row(y1) * ty);
        }
        assert_close(e.resize_bilinear(&x, oh, ow).data(), &want, 1e-5, "resize");
    }
    // torch.nn.functional.interpolate([[0, 1], [2, 3]], size=(4, 4), mode="bilinear", align_corners=False).
    let y = e.resize_bilinear(&Var::constant(&[1, 1, 2, 2], vec![0.0, 1.0, 2.0, 3.0]), 4, 4);
    let want = [0.0, 0.25, 0.75, 1.0, 0.5, 0.75, 1.25, 1.5, 1.5, 1.75, 2.25, 2.5, 2.0, 2.25, 2.75, 3.0];
    assert_close(y.data(), &want, 1e-6, "resize");
}

#[test]
fn losses() {
    let e = eager();
    let (x, t) = (Var::constant(&[3], vec![-60.0, 0.3, 200.0]), Var::constant(&[3], vec![1.0, 0.25, 1.0]));
    let p = 1.0 / (1.0 + (-0.3f64).exp());
    let want = [60.0, -(0.25 * p.ln() + 0.75 * (1.0 - p).ln()), 0.0];
    assert_close(e.bce_with_logits(&x, &t).data(), &want, 1e-6, "bce");
    let ones = Var::constant(&[20_000], vec![1.0; 20_000]);
    let dropped = e.dropout(&ones, 0.3);
    let kept = dropped.data().iter().filter(|&&v| v != 0.0).count();
    assert!((13_700..14_300).contains(&kept), "{kept}");
    assert!(dropped.data().iter().all(|&v| v == 0.0 || v == 1.0 / 0.7));
    assert_eq!(e.dropout(&ones, 0.0).data(), ones.data());
}
