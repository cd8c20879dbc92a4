//! Gradients against central differences.

use super::{check, check_at};
use crate::model::ops::Ops;

#[test]
fn linear() {
    for (lead, i, o) in [(&[3][..], 4, 5), (&[1], 7, 1), (&[2, 3], 5, 33), (&[49], 17, 3)] {
        let x: Vec<usize> = lead.iter().copied().chain([i]).collect();
        check("linear", &[&x, &[o, i], &[o]], |e, v| e.linear(&v[0], &v[1], Some(&v[2])));
        check("linear without bias", &[&x, &[o, i]], |e, v| e.linear(&v[0], &v[1], None));
    }
}

#[test]
fn matmul() {
    for (lead, m, k, n) in [(&[][..], 3, 4, 5), (&[2], 1, 7, 3), (&[3, 2], 5, 3, 1), (&[2, 2], 9, 8, 17)] {
        let a: Vec<usize> = lead.iter().copied().chain([m, k]).collect();
        let b: Vec<usize> = lead.iter().copied().chain([k, n]).collect();
        check("matmul", &[&a, &b], |e, v| e.matmul(&v[0], &v[1]));
    }
}

#[test]
fn conv2d() {
    // n, c, h, w, o, k, stride, pad, groups
    for (n, c, h, w, o, k, stride, pad, groups) in [
        (1, 3, 5, 6, 4, 1, 1, 0, 1),
        (2, 3, 4, 4, 5, 1, 1, 0, 1),
        (1, 2, 5, 5, 3, 3, 1, 1, 1),
        (2, 3, 7, 6, 4, 3, 2, 1, 1),
        (1, 2, 6, 6, 2, 2, 2, 0, 1),
        (1, 4, 5, 7, 6, 3, 1, 1, 2),
        (2, 4, 5, 5, 2, 3, 2, 1, 2),
        (1, 3, 4, 5, 2, 1, 2, 0, 1),
        (1, 2, 4, 4, 3, 3, 1, 0, 1),
        (1, 1, 1, 1, 2, 3, 1, 1, 1),
        // depthwise
        (1, 3, 5, 6, 3, 3, 1, 1, 3),
        (2, 3, 6, 5, 3, 3, 2, 1, 3),
        (1, 2, 7, 7, 2, 3, 2, 1, 2),
        (2, 2, 6, 9, 2, 5, 1, 2, 2),
        (1, 2, 8, 9, 2, 5, 3, 2, 2),
        (1, 2, 5, 4, 2, 3, 1, 0, 2),
        (1, 2, 6, 6, 2, 2, 2, 0, 2),
    ] {
        let (xs, ws) = ([n, c, h, w], [o, c / groups, k, k]);
        let what = format!("conv2d {xs:?} by {ws:?} stride {stride} pad {pad} groups {groups}");
        check(&what, &[&xs, &ws, &[o]], |e, v| e.conv2d(&v[0], &v[1], Some(&v[2]), stride, pad, groups));
        check(&what, &[&xs, &ws], |e, v| e.conv2d(&v[0], &v[1], None, stride, pad, groups));
    }
}

#[test]
fn conv_transpose2x2() {
    for (n, c, o, h, w) in [(1, 3, 2, 4, 5), (2, 2, 3, 3, 3), (1, 1, 1, 1, 1)] {
        check("conv_transpose2x2", &[&[n, c, h, w], &[c, o, 2, 2], &[o]], |e, v| {
            e.conv_transpose2x2(&v[0], &v[1], &v[2])
        });
    }
}

#[test]
fn broadcast_arithmetic() {
    let pairs: [(&[usize], &[usize]); 10] = [
        (&[3, 4], &[3, 4]),
        (&[2, 3, 5], &[5]),
        (&[2, 3, 2, 3], &[1, 3, 1, 1]),
        (&[2, 3], &[1]),
        (&[1], &[2, 2]),
        (&[3, 1], &[1, 4]),
        (&[2, 1, 3], &[4, 1]),
        (&[4, 1, 3, 1], &[2, 1, 5]),
        (&[2, 1], &[1, 2]),
        (&[1, 1, 7], &[3, 2, 7]),
    ];
    for (a, b) in pairs {
        let what = format!("{a:?} with {b:?}");
        check(&what, &[a, b], |e, v| e.add(&v[0], &v[1]));
        check(&what, &[a, b], |e, v| e.sub(&v[0], &v[1]));
        check(&what, &[a, b], |e, v| e.mul(&v[0], &v[1]));
        check_at(&what, &[a, b], |x| 1.5 + 0.5 * x, |e, v| e.div(&v[0], &v[1]));
    }
    // An operand on both sides: its gradients add up.
    check("x * x + x", &[&[5]], |e, v| e.add(&e.mul(&v[0], &v[0]), &v[0]));
    check_at("x / x * x", &[&[5]], |x| 1.5 + 0.5 * x, |e, v| e.mul(&e.div(&v[0], &v[0]), &v[0]));
}

#[test]
fn functions_of_one_value() {
    let shape: &[&[usize]] = &[&[3, 37]];
    check("scale", shape, |e, v| e.scale(&v[0], -2.5));
    check("offset", shape, |e, v| e.offset(&v[0], 3.0));
    check_at("gelu", shape, |x| 3.0 * x, |e, v| e.gelu(&v[0]));
    // Away from the kink, where a difference has no meaning.
    check_at("relu", shape, |x| if x.abs() < 0.05 { 0.1 } else { x }, |e, v| e.relu(&v[0]));
    check_at("sigmoid", shape, |x| 4.0 * x, |e, v| e.sigmoid(&v[0]));
    check_at("sin", shape, |x| 4.0 * x, |e, v| e.sin(&v[0]));
    check_at("cos", shape, |x| 4.0 * x, |e, v| e.cos(&v[0]));
    check_at("log", shape, |x| 1.2 + x, |e, v| e.log(&v[0]));
    check("exp", shape, |e, v| e.exp(&v[0]));
    check_at("sqrt", shape, |x| 1.3 + x, |e, v| e.sqrt(&v[0]));
    check_at("softplus", shape, |x| 4.0 * x, |e, v| e.softplus(&v[0]));
}

#[test]
fn normalisation() {
    for width in [1, 5, 32, 49] {
        check_at("softmax", &[&[2, 3, width]], |x| 2.0 * x, |e, v| e.softmax(&v[0]));
    }
    for width in [5, 32, 49] {
        check("layer_norm", &[&[2, 3, width], &[width], &[width]], |e, v| e.layer_norm(&v[0], &v[1], &v[2], 1e-5));
    }
}

#[test]
fn moved_values() {
    check("reshape", &[&[2, 6]], |e, v| e.reshape(&v[0], &[3, 4]));
    for axes in [[0, 1, 2, 3], [0, 2, 1, 3], [3, 2, 1, 0], [0, 3, 1, 2], [1, 0, 3, 2]] {
        check("permute", &[&[2, 3, 4, 5]], |e, v| e.permute(&v[0], &axes));
    }
    for axis in 0..3 {
        check("slice", &[&[3, 4, 5]], |e, v| e.slice(&v[0], axis, 1, 3));
        check("concat", &[&[2, 2, 2], &[2, 2, 2]], |e, v| e.concat(&[v[0].clone(), v[1].clone(), v[0].clone()], axis));
        check("pad_end", &[&[2, 3, 4]], |e, v| e.pad_end(&v[0], axis, 2));
    }
    // Slices that overlap, as query, key and value cut from one tensor do not but may.
    check("slices", &[&[2, 6]], |e, v| {
        e.add(&e.slice(&v[0], 1, 0, 4), &e.mul(&e.slice(&v[0], 1, 2, 6), &e.slice(&v[0], 1, 1, 5)))
    });
    check("expand", &[&[3, 1, 2]], |e, v| e.expand(&v[0], &[2, 3, 4, 2]));
    check("expand inner", &[&[3, 1]], |e, v| e.expand(&v[0], &[3, 5]));
}

#[test]
fn sums_and_means() {
    for axes in [&[0][..], &[1], &[2], &[3], &[2, 3], &[0, 2], &[1, 3], &[0, 1, 2, 3], &[]] {
        check("sum", &[&[2, 3, 4, 5]], |e, v| e.sum(&v[0], axes));
        check("mean", &[&[2, 3, 4, 5]], |e, v| e.mean(&v[0], axes));
    }
    check("sum_all", &[&[3, 4]], |e, v| e.sum_all(&v[0]));
    check("mean_all", &[&[3, 4]], |e, v| e.mean_all(&v[0]));
}

#[test]
fn resize() {
    for (from, to) in [((4, 5), (8, 10)), ((3, 3), (7, 5)), ((8, 6), (3, 4)), ((1, 1), (3, 2)), ((4, 4), (16, 16))] {
        check("resize", &[&[2, 2, from.0, from.1]], |e, v| e.resize_bilinear(&v[0], to.0, to.1));
    }
}

#[test]
fn losses() {
    let target = super::random_var(9, &[2, 5]).data().iter().map(|t| 0.5 + 0.5 * t).collect();
    let target = super::Var::constant(&[2, 5], target);
    check_at("bce", &[&[2, 5]], |x| 3.0 * x, |e, v| e.bce_with_logits(&v[0], &target));
    // The mask must be the same at each evaluation.
    check("dropout", &[&[40]], |e, v| {
        e.reseed(3);
        e.dropout(&v[0], 0.3)
    });
    // Soft Dice, composed.
    check("dice", &[&[2, 5]], |e, v| {
        let p = e.sigmoid(&v[0]);
        let both = e.sum(&e.mul(&p, &target), &[1]);
        let all = e.add(&e.sum(&p, &[1]), &e.sum(&target, &[1]));
        e.div(&e.offset(&e.scale(&both, 2.0), 1.0), &e.offset(&all, 1.0))
    });
}

#[test]
fn what_saturates_leaves_no_denormal_gradient() {
    let e = super::eager();
    let x = super::Var::constant(&[1, 481], (0..481).map(|i| 0.5 * (i - 240) as f32).collect()).as_leaf();
    let target = super::Var::constant(&[1, 481], vec![0.0; 481]);
    for (what, y) in [
        ("sigmoid", e.sigmoid(&x)),
        ("softmax", e.softmax(&x)),
        ("gelu", e.gelu(&x)),
        ("bce", e.bce_with_logits(&x, &target)),
    ] {
        // As small as a mean over the pixels of all masks makes it.
        let loss = e.scale(&e.sum_all(&e.mul(&y, &y)), 1e-6);
        let gradient = e.backward_to(&loss, &[&x]).remove(0).unwrap();
        assert!(gradient.data().iter().all(|g| !g.is_subnormal()), "{what}: {:?}", gradient.data());
        assert!(gradient.data().iter().any(|g| g.abs() > 1e-9), "{what}: no gradient at all");
    }
}
