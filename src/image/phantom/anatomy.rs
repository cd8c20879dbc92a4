//! Where a thigh's muscles lie: chains of balls at three stations along the limb.

/// One soft ball: offset from the femur's axis to medial and to the back, and radius; millimetres.
pub(super) type Ball = [f64; 3];

/// A muscle as a chain of balls at three stations: distal, middle and proximal thigh.
pub(super) struct Chain {
    pub(super) key: &'static str,
    pub(super) balls: &'static [[Ball; 3]],
}

/// A right leg: x to medial, y to the back, measured from mid-femur in pictures of grown-up thighs.
pub(super) const CHAINS: [Chain; 10] = [
    Chain {
        key: "VL",
        balls: &[
            [[-20.0, -32.0, 6.0], [-18.0, -38.0, 9.0], [-14.0, -40.0, 11.0]],
            [[-38.0, -20.0, 10.0], [-39.0, -23.0, 13.0], [-39.0, -25.0, 14.0]],
            [[-46.0, 0.0, 12.0], [-51.0, -3.0, 15.0], [-53.0, -5.0, 16.0]],
            [[-43.0, 19.0, 9.0], [-51.0, 17.0, 13.0], [-53.0, 15.0, 14.0]],
            [[-33.0, 32.0, 4.0], [-41.0, 33.0, 10.0], [-43.0, 31.0, 11.0]],
        ],
    },
    Chain {
        key: "VI",
        balls: &[
            [[-22.0, 16.0, 6.0], [-24.0, 16.0, 8.0], [-24.0, 16.0, 8.0]],
            [[-28.0, -2.0, 9.0], [-28.0, -3.0, 11.0], [-28.0, -3.0, 11.0]],
            [[-18.0, -21.0, 9.0], [-18.0, -20.0, 11.0], [-18.0, -20.0, 11.0]],
            [[2.0, -27.0, 9.0], [2.0, -27.0, 11.0], [3.0, -27.0, 12.0]],
            [[16.0, -20.0, 6.0], [18.0, -19.0, 10.0], [20.0, -20.0, 11.0]],
            [[20.0, -8.0, 3.0], [23.0, -3.0, 7.0], [24.0, -4.0, 9.0]],
        ],
    },
    Chain {
        key: "VM",
        balls: &[
            [[47.0, -6.0, 26.0], [47.0, -3.0, 19.0], [42.0, -4.0, 10.0]],
            [[30.0, -26.0, 15.0], [35.0, -21.0, 11.0], [35.0, -16.0, 6.0]],
            [[33.0, 12.0, 11.0], [32.0, 10.0, 9.0], [30.0, 9.0, 5.0]],
        ],
    },
    Chain {
        key: "RF",
        balls: &[
            [[4.0, -45.0, 5.0], [8.0, -45.0, 9.0], [10.0, -48.0, 11.0]],
            [[12.0, -44.0, 5.0], [22.0, -42.0, 9.0], [29.0, -44.0, 12.0]],
        ],
    },
    Chain {
        key: "SAR",
        balls: &[
            [[77.0, 22.0, 8.0], [75.0, -3.0, 8.0], [63.0, -20.0, 9.0]],
            [[74.0, 33.0, 8.0], [80.0, 9.0, 8.0], [71.0, -5.0, 9.0]],
        ],
    },
    Chain {
        key: "GRA",
        balls: &[
            [[83.0, 48.0, 8.0], [89.0, 32.0, 7.0], [91.0, 22.0, 7.0]],
            [[82.0, 54.0, 7.0], [90.0, 42.0, 7.0], [92.0, 38.0, 8.0]],
        ],
    },
    Chain {
        key: "ADD",
        balls: &[
            [[22.0, 34.0, 2.0], [27.0, 31.0, 9.0], [24.0, 30.0, 12.0]],
            [[38.0, 39.0, 5.0], [46.0, 36.0, 13.0], [46.0, 36.0, 18.0]],
            [[52.0, 43.0, 3.0], [66.0, 39.0, 10.0], [70.0, 34.0, 15.0]],
        ],
    },
    Chain {
        key: "BF",
        balls: &[
            [[-17.0, 40.0, 11.0], [-14.0, 39.0, 9.0], [-20.0, 40.0, 5.0]],
            [[-13.0, 57.0, 11.0], [-16.0, 57.0, 11.0], [-18.0, 57.0, 9.0]],
            [[-7.0, 73.0, 10.0], [-12.0, 74.0, 11.0], [-14.0, 74.0, 11.0]],
        ],
    },
    Chain { key: "ST", balls: &[[[17.0, 82.0, 8.0], [14.0, 80.0, 11.0], [18.0, 79.0, 13.0]]] },
    Chain {
        key: "SM",
        balls: &[
            [[38.0, 72.0, 13.0], [40.0, 73.0, 11.0], [46.0, 76.0, 7.0]],
            [[57.0, 69.0, 14.0], [58.0, 72.0, 11.0], [62.0, 73.0, 7.0]],
        ],
    },
];
/// Outer radius of the femur at the three stations, millimetres.
pub(super) const FEMUR: [f64; 3] = [15.5, 13.5, 13.5];
/// Softness of the union of one muscle's balls, millimetres.
pub(super) const SOFT: f64 = 3.5;
/// How far a muscle reaches beyond its balls, inside the compartment, before fat begins; millimetres.
pub(super) const REACH: f64 = 7.5;
/// Between the three stations, at 0, 0.5 and 1.
pub(super) fn stations(v: [f64; 3], t: f64) -> f64 {
    if t < 0.5 { v[0] + (v[1] - v[0]) * 2.0 * t } else { v[1] + (v[2] - v[1]) * (2.0 * t - 1.0) }
}
