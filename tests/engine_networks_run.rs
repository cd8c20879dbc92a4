//! An adapter's three graphs on the embedded CPU engine behind the pipeline: shapes, determinism over threads, and a whole
//! run on a small phantom. Weights are random: nothing is said about accuracy.
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use scanside::adapter::{Adapter, AdapterMeta, FORMAT, Lora, Presence, Provenance};
use scanside::engine::Tensor;
use scanside::image::phantom::{Phantom, PhantomOptions};
use scanside::model::weights::BaseWeights;
use scanside::pipeline::{CropRule, EngineNetworks, Networks, SegmentOptions, Segmenter};
use scanside::terms::{Task, structure};
use scanside::train::{TrainSettings, fresh_adapter};

const SIZE: usize = 64;

fn adapter(base: &BaseWeights) -> Adapter {
    let task = Task { name: "t".into(), structures: ["VL", "VM"].iter().filter_map(|k| structure(k)).collect() };
    let settings = TrainSettings::default();
    Adapter {
        tensors: fresh_adapter(base.tensors(), 2, &settings),
        meta: AdapterMeta {
            format: FORMAT,
            name: "random".into(),
            version: 1,
            network_version: scanside::model::network::NETWORK_VERSION,
            prompting: scanside::pipeline::Prompting::default(),
            base_sha256: base.sha256().into(),
            // Everything counts as present, so that the decoder runs.
            presence: task.structures.iter().map(|s| Presence { key: s.key.clone(), threshold: 0.0 }).collect(),
            task,
            input_size: SIZE,
            crop: CropRule::default(),
            lora: Lora { encoder_rank: settings.encoder_rank, decoder_rank: settings.decoder_rank },
            shape: Vec::new(),
            reference: Vec::new(),
            segex: None,
            provenance: Provenance {
                tool: "test".into(),
                seed: 0,
                steps: 0,
                volumes: 0,
                slices: 0,
                settings_sha256: String::new(),
                note: "random weights".into(),
            },
        },
    }
}

#[test]
fn graphs_run_behind_the_pipeline() {
    let base = BaseWeights::random(1);
    let adapter = adapter(&base);
    let networks = EngineNetworks::cpu(&base, &adapter, 1).unwrap();
    let embedding = networks.encode(&Tensor::zeros(&[1, 3, SIZE, SIZE])).unwrap();
    assert_eq!(embedding.shape, [1, 256, SIZE / 16, SIZE / 16]);
    let c = networks.classify(&embedding).unwrap();
    assert_eq!((c.logits.len(), c.cams.len(), c.cams[0].width), (2, 2, SIZE / 16));
    let d = networks.decode(&embedding, &[[0.1, 0.1, 0.9, 0.9]; 2]).unwrap();
    assert_eq!((d.masks.len(), d.masks[0].width, d.iou.len()), (2, SIZE / 4, 2));

    let options = PhantomOptions { dims: [128, 64, 3], spacing: [3.906_25, 3.906_25, 20.0], ..Default::default() };
    let phantom = Phantom::new(&options);
    let segmenter = Segmenter::new(Box::new(networks), adapter.model_info().unwrap()).unwrap();
    let run = |threads| {
        let options = SegmentOptions { threads, ..SegmentOptions::default() };
        segmenter.segment(&phantom.volume, None, &options, &|_| ()).unwrap()
    };
    let (one, two) = (run(1), run(2));
    assert_eq!(one.labels, two.labels);
    assert_eq!(one.engine.kind, "cpu");
    assert_eq!(one.adapter, "random 1");
    assert_eq!(one.adapter_sha256, adapter.sha256().unwrap());
}

#[test]
fn an_adapter_without_a_classifier_is_refused() {
    let base = BaseWeights::random(1);
    let mut adapter = adapter(&base);
    adapter.tensors.remove("classifier.fc2.bias");
    let Err(e) = EngineNetworks::cpu(&base, &adapter, 1) else { panic!("accepted") };
    assert!(e.to_string().contains("classifier.fc2.bias"), "{e}");
}
