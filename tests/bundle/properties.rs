//! What holds of every bundle.

use std::sync::LazyLock;

use proptest::prelude::*;
use scanside::adapter::bundle::{Archive, BoxFacts, Bundle, Purpose, Unverified, differences, verify};
use scanside::adapter::trust::TrustState;
use scanside::adapter::{Reason, Refused};

use crate::fixture::{BASE, Host, adapter, day, evidence, sign};

static GOOD: LazyLock<Vec<u8>> = LazyLock::new(|| Host::default().bundle(1));
static TRUST: LazyLock<TrustState> = LazyLock::new(|| TrustState::new(Host::default().roots[0].clone(), 0));

fn judge(bytes: Vec<u8>) -> Result<Bundle, Refused> {
    verify(bytes, &TRUST, day("2026-06-01").ms(), &BoxFacts::here(BASE, ""), Purpose::Install).outcome
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_flipped_byte_is_refused(at in 0usize..GOOD.len(), flip in 1u8..) {
        let mut bytes = GOOD.clone();
        bytes[at] ^= flip;
        prop_assert!(judge(bytes).is_err());
    }

    #[test]
    fn any_flipped_byte_of_headers_and_metadata_is_refused(at in 0usize..8192, flip in 1u8..) {
        let mut bytes = GOOD.clone();
        bytes[at] ^= flip;
        prop_assert!(judge(bytes).is_err());
    }

    #[test]
    fn any_truncation_is_refused(length in 0usize..GOOD.len()) {
        let refused = judge(GOOD[..length].to_vec()).unwrap_err();
        prop_assert!(matches!(refused.reason, Reason::Truncated | Reason::NotABundle), "{}", refused);
    }

    #[test]
    fn anything_is_read_without_panic(bytes: Vec<u8>) {
        prop_assert!(Unverified::parse(bytes).is_err());
    }
}

#[test]
fn made_twice_it_has_the_same_bytes_whoever_signs_first() {
    let host = Host::default();
    let again = Host::default();
    assert_eq!(host.draft(3).to_bytes().unwrap(), again.draft(3).to_bytes().unwrap());
    let bytes = host.draft(3).to_bytes().unwrap();
    let other: Vec<_> = Host::default().release_keys.into_iter().take(2).rev().collect();
    assert_eq!(host.sign(&host.draft(3)), sign(bytes, &other));
    assert_ne!(host.bundle(3), host.bundle(4));
}

#[test]
fn what_was_put_in_comes_out() {
    let host = Host::default();
    let mut draft = host.draft(5);
    draft.sites = vec!["a".into(), "b".into()];
    let bytes = host.sign(&draft);
    let facts = BoxFacts::here(BASE, "a");
    let bundle = verify(bytes.clone(), &TRUST, day("2026-06-01").ms(), &facts, Purpose::Install).outcome.unwrap();
    assert_eq!((bundle.name(), bundle.version(), bundle.signers().len()), ("thigh", 5, 2));
    assert_eq!(bundle.adapter(), &adapter(5));
    assert_eq!(bundle.evidence(), &evidence(&adapter(5)));
    assert_eq!(bundle.task(), &adapter(5).meta.task);
    assert_eq!(bundle.calibration(), None);
    assert_eq!(bundle.parity().len(), 1);
    let (made, read) = (&draft.parity[0], &bundle.parity()[0]);
    assert_eq!(
        (&made.volume.data, &made.expected, &made.segments),
        (&read.volume.data, &read.expected, &read.segments)
    );
    assert_eq!(bundle.bytes(), bytes);
    let folder = tempfile::tempdir().unwrap();
    bundle.keep(&folder.path().join("kept")).unwrap();
    assert_eq!(std::fs::read(folder.path().join("kept")).unwrap(), bytes);
    assert_eq!(bundle.keep(&folder.path().join("no/where")).unwrap_err().reason, Reason::Unreadable);
}

#[test]
fn any_tar_reads_it() {
    let mut archive = tar::Archive::new(&GOOD[..]);
    let names: Vec<String> =
        archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
    let ours: Vec<String> = Archive::parse(GOOD.clone()).unwrap().names().map(String::from).collect();
    assert_eq!(names, ours);
    assert_eq!(names[0], "manifest.json");
}

#[test]
fn serving_again_needs_a_commit_and_tells_of_withdrawn_keys() {
    let mut host = Host::default();
    let old = host.bundle(1);
    let id = Unverified::parse(old.clone()).unwrap().manifest.signed.id();
    let mut trust = TRUST.clone();
    let long_after = day("2040-01-01").ms();
    let serve = |bytes: Vec<u8>, trust: &TrustState| {
        verify(bytes, trust, long_after, &BoxFacts::here(BASE, ""), Purpose::Serve).outcome
    };
    assert_eq!(serve(old.clone(), &trust).unwrap_err().reason, Reason::NeverCommitted);
    trust.commit("thigh", 1, &id);
    trust.commit("thigh", 2, &"0".repeat(64));
    assert!(
        serve(old.clone(), &trust).unwrap().cautions().is_empty(),
        "older, expired, and still what was committed here"
    );
    host.revoke(0);
    trust.root = host.root().clone();
    let bundle = serve(old.clone(), &trust).unwrap();
    assert!(bundle.cautions()[0].contains("withdrawn"), "{:?}", bundle.cautions());
    let mut damaged = old;
    let at = damaged.len() / 2;
    damaged[at] ^= 1;
    assert_eq!(serve(damaged, &trust).unwrap_err().reason, Reason::ChangedFile);
}

#[test]
fn what_is_on_trial_goes_on_after_its_expiry_and_by_any_clock() {
    let mut host = Host::default();
    let bytes = host.bundle(2);
    let id = Unverified::parse(bytes.clone()).unwrap().manifest.signed.id();
    let go_on = |bytes: &[u8], trust: &TrustState, now: &str| {
        let facts = BoxFacts::here(BASE, "");
        verify(bytes.to_vec(), trust, day(now).ms(), &facts, Purpose::GoOn).outcome.map_err(|e| e.reason)
    };
    let mut trust = TRUST.clone();
    trust.see(day("2041-01-01").ms());
    // Before a time already seen; after the bundle's expiry; after the root's.
    for now in ["2026-06-01", "2035-06-01", "2040-01-01"] {
        assert!(go_on(&bytes, &trust, now).is_ok(), "{now}");
    }
    let now = "2026-06-01";
    // Lost power between the record of trust and the row.
    trust.commit("thigh", 2, &id);
    assert!(go_on(&bytes, &trust, now).is_ok());
    // Versions, signatures and files still count.
    let mut later = TRUST.clone();
    later.commit("thigh", 3, &"0".repeat(64));
    assert_eq!(go_on(&bytes, &later, now).unwrap_err(), Reason::OlderVersion);
    host.revoke(0);
    trust.root = host.root().clone();
    assert_eq!(go_on(&bytes, &trust, now).unwrap_err(), Reason::RevokedKey);
    let mut damaged = bytes;
    let at = damaged.len() / 2;
    damaged[at] ^= 1;
    assert_eq!(go_on(&damaged, &TRUST, now).unwrap_err(), Reason::ChangedFile);
}

#[test]
fn differences_are_told_in_words() {
    let host = Host::default();
    let open = |bytes: Vec<u8>| Unverified::parse(bytes).unwrap();
    let one = open(host.bundle(1));
    assert_eq!(differences(&one, &one).unwrap(), []);
    assert_eq!(
        differences(&one, &open(host.draft(1).to_bytes().unwrap())).unwrap(),
        [],
        "signatures are no difference"
    );
    let mut draft = host.draft(2);
    draft.sites = vec!["ward-3".into()];
    draft.evidence.rows[0].dice.as_mut().unwrap().mean = 0.8;
    draft.adapter.meta.task.structures[1].rgb = [1, 2, 3];
    draft.adapter.meta.presence[0].threshold = 0.25;
    let changes = differences(&one, &open(host.sign(&draft))).unwrap();
    let said = |what: &str| changes.iter().find(|c| c.what == what).map(|c| (c.before.as_str(), c.after.as_str()));
    assert_eq!(said("version"), Some(("1", "2")));
    assert_eq!(said("sites"), Some(("*", "ward-3")));
    assert_eq!(said("mean Dice over structures"), Some(("0.900", "0.850")));
    assert_eq!(said("Dice of VM"), None);
    assert!(said("structure VM").unwrap().1.contains("#010203"));
    assert_eq!(said("presence thresholds"), Some(("[0.5, 0.5]", "[0.25, 0.5]")));
    assert_eq!(said("tensors"), Some(("5", "5 differ")));
}

#[test]
fn parity_images_that_prove_nothing_are_refused_and_small_segments_decide_nothing() {
    use scanside::adapter::bundle::{LEAST_VOXELS, ParityCase, untold};
    let adapter = adapter(1);
    let mut case = crate::fixture::parity(&adapter, 1);
    assert!(untold(std::slice::from_ref(&case), &adapter.meta.task).is_empty());
    // All but a few voxels of the second structure go.
    let mut left = LEAST_VOXELS - 1;
    for v in case.expected.data.iter_mut().filter(|v| **v == 2) {
        match left {
            0 => *v = 0,
            _ => left -= 1,
        }
    }
    assert_eq!(untold(std::slice::from_ref(&case), &adapter.meta.task), ["VM"]);
    assert!(ParityCase::from_bytes(&case.to_bytes().unwrap()).is_ok());
    case.expected.data.fill(0);
    case.expected.data[0] = 1;
    assert!(ParityCase::from_bytes(&case.to_bytes().unwrap()).unwrap_err().contains("prove nothing"));
}
