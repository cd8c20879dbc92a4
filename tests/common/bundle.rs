//! Bundles for tests: a training host with three root keys and three release keys, two of each needed, and bundles that it made
//! without an engine (the parity masks are the phantom's truth).
#![allow(dead_code)]

use std::collections::BTreeMap;

use scanside::adapter::bundle::{
    Archive, Draft, Evidence, EvidenceFigure, EvidenceRow, FEATURES, Manifest, ParityCase, Requires, Target, Unverified,
};
use scanside::adapter::trust::{Chain, Key, KeyId, Revoked, RoleName, Root, SecretKey, Signed, Stamp};
use scanside::adapter::{Adapter, AdapterMeta, FORMAT, Lora, Presence, Provenance};
use scanside::engine::{EngineIdentity, Tensor};
use scanside::image::phantom::{Phantom, PhantomLegs, PhantomOptions};
use scanside::pipeline::{CropRule, Prompting, SegmentInfo};
use scanside::terms::{Side, Task, structure};

/// sha256 of the base weights, as `scanside weights fetch` converts them.
pub const BASE: &str = "249544624d92a8bc4cb62a83d265e5bdd8a207d7be39d08047f679c1f4872e6c";

/// A stamp from `2026-01-31`.
pub fn day(text: &str) -> Stamp {
    Stamp::parse(text).unwrap()
}

/// Keys and roots.
pub struct Host {
    pub root_keys: Vec<SecretKey>,
    pub release_keys: Vec<SecretKey>,
    pub roots: Vec<Signed<Root>>,
}

fn keys(first: u8) -> Vec<SecretKey> {
    (first..first + 3).map(|seed| SecretKey::from_seed(&[seed; 32])).collect()
}

fn public(keys: &[SecretKey]) -> BTreeMap<KeyId, Key> {
    keys.iter().map(|k| Key::new(k.public())).map(|k| (k.id(), k)).collect()
}

impl Default for Host {
    fn default() -> Self {
        Host::new(1)
    }
}

impl Host {
    /// A host whose keys begin at a seed; another seed, six or more away, is a stranger.
    pub fn new(seed: u8) -> Self {
        let (root_keys, release_keys) = (keys(seed), keys(seed + 3));
        let mut root = Root::new(day("2036-01-01"));
        root.set_role(RoleName::Root, &public(&root_keys), 2);
        root.set_role(RoleName::Release, &public(&release_keys), 2);
        for (i, k) in root_keys.iter().chain(&release_keys).enumerate() {
            root.scanside.names.insert(k.public().id(), format!("holder-{}", i + 1));
        }
        let mut host = Host { root_keys, release_keys, roots: Vec::new() };
        host.publish(root);
        host
    }

    /// Signs a root with the first two root keys and makes it the newest.
    pub fn publish(&mut self, root: Root) {
        let mut signed = Signed::new(root);
        for key in &self.root_keys[..2] {
            signed.sign(key).unwrap();
        }
        self.roots.push(signed);
    }

    /// The newest root.
    pub fn root(&self) -> &Signed<Root> {
        self.roots.last().unwrap()
    }

    /// The root that would follow.
    pub fn next_root(&self) -> Root {
        let mut root = self.root().signed.clone();
        root.version += 1;
        root
    }

    /// Withdraws a release key and puts a new one in its place, which it returns.
    pub fn revoke(&mut self, which: usize) -> SecretKey {
        let mut root = self.next_root();
        let old = self.release_keys[which].public().id();
        let new = SecretKey::from_seed(&[200 + which as u8; 32]);
        let mut keys = public(&self.release_keys);
        keys.remove(&old);
        keys.extend(public(std::slice::from_ref(&new)));
        root.set_role(RoleName::Release, &keys, 2);
        root.scanside.revoked.insert(old, Revoked { root: root.version, why: "lost".into() });
        self.publish(root);
        new
    }

    /// A draft of a version for every site.
    pub fn draft(&self, version: u32) -> Draft {
        let adapter = adapter(version);
        Draft {
            evidence: evidence(&adapter),
            parity: vec![parity(&adapter, 1)],
            roots: Chain::new(self.roots.clone()).unwrap(),
            name: "thigh".into(),
            version,
            issued: day("2026-01-01"),
            expires: day("2035-01-01"),
            requires: Requires {
                features: FEATURES.map(String::from).into(),
                memory_mb: 1,
                scanside: env!("CARGO_PKG_VERSION").into(),
            },
            sites: vec!["*".into()],
            note: "for tests".into(),
            adapter,
        }
    }

    /// A draft's bytes signed by the first two release keys.
    pub fn sign(&self, draft: &Draft) -> Vec<u8> {
        sign(draft.to_bytes().unwrap(), &self.release_keys[..2])
    }

    /// A good bundle.
    pub fn bundle(&self, version: u32) -> Vec<u8> {
        self.sign(&self.draft(version))
    }
}

/// Adds signatures.
pub fn sign(mut bytes: Vec<u8>, keys: &[SecretKey]) -> Vec<u8> {
    for key in keys {
        bytes = Unverified::parse(bytes).unwrap().sign(key).unwrap().0;
    }
    bytes
}

/// The files of a bundle but its manifest.
pub fn files(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let archive = Archive::parse(bytes.to_vec()).unwrap();
    let names = archive.names().filter(|n| *n != "manifest.json");
    names.map(|n| (n.to_string(), archive.get(n).unwrap().to_vec())).collect()
}

/// A bundle over other files, or with another manifest, properly signed: what a careless or a hostile holder of keys could make,
/// which this program's own `make` and `sign` refuse.
pub fn forge(
    bytes: &[u8],
    keys: &[SecretKey],
    mut files: Vec<(String, Vec<u8>)>,
    change: impl FnOnce(&mut Manifest),
) -> Vec<u8> {
    let mut manifest = Unverified::parse(bytes.to_vec()).unwrap().manifest;
    manifest.signed.targets = files.iter().map(|(n, b)| (n.clone(), Target::of(b))).collect();
    change(&mut manifest.signed);
    manifest.signatures.clear();
    for key in keys {
        manifest.sign(key).unwrap();
    }
    files.push(("manifest.json".into(), manifest.to_bytes()));
    Archive::write(&files).unwrap()
}

/// A small adapter for two structures, which no training made.
pub fn adapter(version: u32) -> Adapter {
    let keys = ["VL", "VM"];
    let t = |shape: &[usize]| {
        let n: usize = shape.iter().product();
        Tensor::new(shape, (0..n).map(|i| (i % 17) as f32 * 0.01 * version as f32).collect())
    };
    let tensors = [
        ("class_tokens", t(&[2, 256])),
        ("classifier.fc1.weight", t(&[256, 256])),
        ("classifier.fc1.bias", t(&[256])),
        ("classifier.fc2.weight", t(&[2, 256])),
        ("classifier.fc2.bias", t(&[2])),
    ];
    Adapter {
        meta: AdapterMeta {
            format: FORMAT,
            name: "thigh".into(),
            version,
            network_version: scanside::model::network::NETWORK_VERSION,
            base_sha256: BASE.into(),
            task: Task { name: "thigh".into(), structures: keys.iter().map(|k| structure(k).unwrap()).collect() },
            input_size: 256,
            crop: CropRule::default(),
            prompting: Prompting::default(),
            lora: Lora { encoder_rank: 0, decoder_rank: 0 },
            presence: keys.iter().map(|k| Presence { key: k.to_string(), threshold: 0.5 }).collect(),
            shape: Vec::new(),
            reference: Vec::new(),
            segex: None,
            provenance: Provenance {
                tool: "scanside".into(),
                seed: 1,
                steps: 2,
                volumes: 1,
                slices: 5,
                settings_sha256: String::new(),
                note: "no training".into(),
            },
        },
        tensors: tensors.into_iter().map(|(n, t)| (n.to_string(), t)).collect(),
    }
}

/// Evidence that names an adapter.
pub fn evidence(adapter: &Adapter) -> Evidence {
    let row = |key: &str| EvidenceRow {
        structure: key.into(),
        legs: 4,
        missing: 0,
        dice: Some(EvidenceFigure { mean: 0.9, sd: 0.01, min: 0.88, n: 4 }),
        hd95_mm: None,
        verdicts: [4, 0, 0, 0],
    };
    Evidence {
        source_sha256: "0".repeat(64),
        facts: vec![("adapter".into(), adapter.sha256().unwrap())],
        rows: adapter.meta.task.structures.iter().map(|s| row(&s.key)).collect(),
    }
}

/// A small phantom and its truth as the expected masks.
pub fn parity(adapter: &Adapter, seed: u64) -> ParityCase {
    let options = PhantomOptions { seed, legs: PhantomLegs::Both, dims: [128, 64, 2], spacing: [3.9, 3.9, 20.0] };
    let phantom = Phantom::new(&options);
    let task = &adapter.meta.task;
    let expected = phantom.truth(task, Side::Right);
    let segment = |(i, s): (usize, &scanside::terms::Structure)| SegmentInfo {
        label: i as u8 + 1,
        structure: s.clone(),
        side: Some(Side::Right),
    };
    ParityCase {
        volume: phantom.volume,
        expected,
        segments: task.structures.iter().enumerate().map(segment).collect(),
        engine: EngineIdentity { kind: "truth".into(), version: "0".into(), precision: "exact".into() },
        seed,
        least_dice: 0.98,
        every_structure: false,
    }
}
