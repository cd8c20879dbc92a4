//! Which results are worth a look: the worst, the median and the best of each structure, as outlines.

use super::run::{Found, Outcome, Prompt};
use crate::image::{Contours, Rgb, Tile, sheet};
use crate::terms::Side;
use crate::train::Case;

/// A row per structure: the automatic result of the legs with the least, the median and the highest Dice, each on its test
/// slice with the most wrong pixels. None where no result was kept. Cases are numbered from 1, never named.
pub fn overlays(keys: &[String], cases: &[Case], outcomes: &[Outcome], found: &[Found]) -> Option<Rgb> {
    let mut tiles = Vec::new();
    for (k, key) in keys.iter().enumerate() {
        let mut ranked: Vec<(f64, &Outcome)> = outcomes
            .iter()
            .filter(|o| o.prompt == Prompt::Automatic && &o.structure == key)
            .filter_map(|o| Some((o.agreement.dice?, o)))
            .collect();
        // Equal results in the order of the cases: the sort is stable.
        ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
        let Some(last) = ranked.len().checked_sub(1) else { continue };
        let mut places = vec![("worst", 0), ("median", last / 2), ("best", last)];
        places.dedup_by_key(|(_, i)| *i);
        let missing = 3 - places.len();
        for (word, i) in places {
            let (dice, o) = ranked[i];
            let leg = found.iter().find(|f| f.case == o.case && f.side == o.side)?;
            let slice = worst_slice(&cases[o.case], leg, k as u8 + 1);
            let picture = Contours {
                volume: &cases[o.case].volume,
                truth: &leg.truth,
                found: &leg.labels,
                label: k as u8 + 1,
                slice,
            }
            .picture();
            let side = o.side.map_or("", Side::word);
            let caption = vec![
                format!("{key} {word}, Dice {dice:.3}"),
                format!("case {} {side} slice {}", o.case + 1, slice + 1),
            ];
            tiles.push(Tile { picture, caption });
        }
        // Structures keep their row.
        tiles.extend((0..missing).map(|_| Tile { picture: Rgb::black(0, 0), caption: Vec::new() }));
    }
    if tiles.is_empty() {
        return None;
    }
    let foot =
        ["green: truth, pink: result, yellow: both".into(), "slices with the most wrong pixels of each leg".into()];
    Some(sheet(&tiles, 3, &foot))
}

/// The test slice on which most pixels of a label are wrong; of equals the one with most of the truth.
fn worst_slice(case: &Case, leg: &Found, label: u8) -> usize {
    let plane = leg.truth.geometry.plane();
    let of = |z: usize| {
        let range = z * plane..(z + 1) * plane;
        let pairs = leg.truth.data[range.clone()].iter().zip(&leg.labels.data[range]);
        let (mut wrong, mut size) = (0usize, 0usize);
        for (t, f) in pairs {
            wrong += usize::from((*t == label) != (*f == label));
            size += usize::from(*t == label);
        }
        (wrong, size)
    };
    case.test.iter().copied().max_by_key(|&z| (of(z), std::cmp::Reverse(z))).unwrap_or(0)
}
