//! What a restart, another try or the same file again must not change, and what it must mend.

use std::time::Duration;

use scanside::adapter::trust::TrustStore;
use scanside::clock::Clock;
use scanside::config::Effective;
use scanside::daemon::Model;
use scanside::daemon::sideload::{self, Candidates, Here};
use scanside::store::Store;
use scanside::store::bundles::{self, State};

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
    let model = || -> Vec<serde_json::Value> {
        let out = site.scanside(&["doctor", "--json"]);
        let all: Vec<serde_json::Value> = serde_json::from_slice(&out.stdout).unwrap();
        all.into_iter().filter(|c| c["group"] == "model").collect()
    };
    assert!(model()[0]["ok"] == false, "the configuration's adapter is the phantom's");
    for version in [2, 3] {
        site.take(version);
        site.until("committed", || (site.newest() == "committed").then_some(()));
    }
    // What serves is what the doctor judges.
    let checks = model();
    assert!(checks.len() == 1 && checks[0]["ok"] == true, "{checks:#?}");
    assert!(checks[0]["what"].as_str().unwrap().contains("from bundle thigh 3"), "{checks:#?}");
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

/// Makes the record of trust unreadable, for root too, until it is dropped.
struct NoTrust(std::path::PathBuf);

impl NoTrust {
    fn new(state: &std::path::Path) -> NoTrust {
        std::fs::rename(state.join("trust"), state.join("aside")).unwrap();
        std::fs::write(state.join("trust"), "").unwrap();
        NoTrust(state.to_path_buf())
    }
}

impl Drop for NoTrust {
    fn drop(&mut self) {
        std::fs::remove_file(self.0.join("trust")).unwrap();
        std::fs::rename(self.0.join("aside"), self.0.join("trust")).unwrap();
    }
}

#[test]
fn a_disk_that_fails_gives_no_bundle_up() {
    let mut site = Site::start(&SHORT.replace("shadow_series = 1", "shadow_series = 0"));
    site.kill();
    let config = Effective::load(Some(&site.config), &[]).unwrap().config;
    let path = site.file("thigh-2.bundle", &releases().bundle(2));
    let model = Model::load(&config).unwrap();
    let clock = Clock::System;
    {
        let store = Store::open(&site.state, clock.clone()).unwrap();
        let here = Here { store: &store, clock: &clock, config: &config };
        let candidates = Candidates { here, model: &model, progress: &|_| {} };
        sideload::receive(here, &path).unwrap();
        let trust = NoTrust::new(&site.state);
        for _ in 0..5 {
            let e = candidates.step().unwrap_err().to_string();
            assert!(e.contains("trust-unwritable"), "{e}");
            let rows = store.with_conn(|c| bundles::list(c, 10)).unwrap();
            assert_eq!(rows[0].state, State::Received { attempts: 0 });
        }
        drop(trust);
        assert!(candidates.step().unwrap());
        assert_eq!(store.with_conn(|c| bundles::list(c, 10)).unwrap()[0].state, State::Verified);
    }
    site.run();
    site.until("probation", || (site.newest() == "probation").then_some(()));
    // Nor is what serves taken back: the box receives, and its series wait.
    site.kill();
    let trust = NoTrust::new(&site.state);
    site.run();
    let series = site.send(732);
    let job = |state: &str| {
        let status = site.status();
        let job = status["jobs"].as_array()?.iter().find(|j| j["series_uid"] == series.series_uid.as_str())?.clone();
        (job["state"] == state).then_some(job)
    };
    site.until("its job", || job("pending"));
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(job("pending").unwrap()["attempts"], 0, "a series is not to blame");
    assert_eq!(site.newest(), "probation", "{}", site.log());
    assert!(site.log().contains("series wait for it"), "{}", site.log());
    drop(trust);
    let job = site.until("its result", || job("done"));
    let summary: serde_json::Value = serde_json::from_str(job["summary"].as_str().unwrap()).unwrap();
    assert_eq!(summary["bundle"]["release"], "thigh 2", "no other adapter made it: {summary:#}");
}
