//! What a restart, another try or the same file again must not change, and what it must mend.

use scanside::adapter::trust::TrustStore;
use scanside::clock::Clock;

use crate::kit::{NONE, SHORT, Site, releases};

#[test]
fn a_bundle_on_probation_goes_on_by_any_clock() {
    let mut site = Site::start(&SHORT.replace("shadow_series = 1", "shadow_series = 0"));
    site.take(2);
    site.until("probation", || (site.newest() == "probation").then_some(()));
    // From now on the clock counts as set back, as it does in a box whose battery is empty.
    let year = 365 * 86_400_000;
    TrustStore::new(&site.state).update(|s| s.see(Clock::System.now_ms() + year)).unwrap();
    site.kill();
    site.run();
    assert_eq!(site.newest(), "probation", "{}", site.log());
    let (_, job) = site.serve(731);
    assert_eq!(
        (job["bundle"]["release"].as_str(), job["bundle"]["stage"].as_str()),
        (Some("thigh 2"), Some("probation"))
    );
    site.until("committed", || (site.newest() == "committed").then_some(()));
}

#[test]
fn what_was_committed_and_serves_no_more_is_refused_with_the_way_back() {
    let site = Site::start(NONE);
    for version in [2, 3] {
        site.take(version);
        site.until("committed", || (site.newest() == "committed").then_some(()));
    }
    let before = site.adapters().0;
    let two = site.file("again.bundle", &releases().bundle(2));
    let out = site.sideload(&two);
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(42), "{said}");
    assert!(said.contains("thigh 3 serves now") && said.contains("`scanside adapters rollback thigh:2`"), "{said}");
    let after = site.adapters().0;
    let of = |a: &serde_json::Value| (a["serving"]["bundle_id"].clone(), a["bundles"].clone());
    assert_eq!(of(&after), of(&before), "nothing changes");
    assert_eq!(site.kept().len(), 2);
    // What serves is what it says it is.
    let three = site.file("three.bundle", &releases().bundle(3));
    assert!(site.said(&["sideload", three.to_str().unwrap()]).contains("committed"));
    site.said(&["adapters", "rollback", "thigh:2"]);
    assert!(site.said(&["sideload", two.to_str().unwrap()]).contains("committed"));
}
