//! What a restart, another try or the same file again must not change, and what it must mend.

use scanside::adapter::trust::TrustStore;
use scanside::clock::Clock;

use crate::kit::{SHORT, Site};

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
