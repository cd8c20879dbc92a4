//! The whole way: shadow, probation, committed, back and forth, the answer to the training host.

use scanside::daemon::sideload::Feedback;

use crate::kit::{NONE, SHORT, Site, releases};

#[test]
fn a_release_is_tried_committed_and_taken_back() {
    let mut site = Site::start(SHORT);
    let (_, first) = site.serve(701);
    let factory = first["adapter_sha256"].as_str().unwrap().to_string();
    assert!(first["bundle"].is_null());
    assert_eq!(first["calibrated"], false, "shadow compares scores of one scale only");
    assert!(site.said(&["status"]).contains("no bundle: the configuration's adapter"));

    // Shadow: the active adapter serves, the candidate runs beside it.
    site.take(2);
    site.until("shadow", || (site.newest() == "shadow").then_some(()));
    assert!(site.said(&["status"]).contains("candidate: thigh 2, shadow: 0 of 1 series"));
    let (_, second) = site.serve(702);
    assert_eq!(second["adapter_sha256"], factory.as_str());
    site.until("probation", || (site.newest() == "probation").then_some(()));
    let (a, code) = site.adapters();
    assert_eq!(code, 0, "{a:#}");
    let case = &a["bundles"][0]["cases"][0];
    assert!(case["stage"] == "shadow" && case["problem"] == "" && case["counts"] == true, "{case:#}");
    let dice: Vec<f64> = case["dice"].as_array().unwrap().iter().map(|d| d["dice"].as_f64().unwrap()).collect();
    assert!(dice.len() >= 2 && dice.iter().all(|d| *d > 0.5) && dice.iter().any(|d| *d < 1.0), "{dice:?}");
    assert!(case["candidate"]["score"].is_f64() && case["active"]["score"].is_f64(), "{case:#}");
    assert!(site.said(&["status"]).contains("on probation"));

    // Probation: it serves, and every object says which release made it.
    let (id, third) = site.serve(703);
    assert_eq!(
        (third["bundle"]["release"].as_str(), third["bundle"]["stage"].as_str()),
        (Some("thigh 2"), Some("probation"))
    );
    let adapter = releases().adapter(2).sha256().unwrap();
    assert_eq!(third["adapter_sha256"], adapter.as_str());
    for kind in ["seg", "sr", "text"] {
        let bytes = std::fs::read(site.state.join(format!("results/{id}/{kind}.dcm"))).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(
            text.contains("bundle thigh 2 (") && text.contains("signed by holder-"),
            "{kind} does not name the bundle"
        );
    }
    site.until("committed", || (site.newest() == "committed").then_some(()));
    let (_, fourth) = site.serve(704);
    assert_eq!(fourth["bundle"]["stage"], "committed");

    // The same again, and an older one.
    let same = site.file("same.bundle", &releases().bundle(2));
    assert!(site.said(&["sideload", same.to_str().unwrap()]).contains("committed"));
    let old = site.file("old.bundle", &releases().bundle(1));
    let out = site.sideload(&old);
    assert_eq!(out.status.code(), Some(42), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(String::from_utf8_lossy(&out.stderr).contains("older-version"));
    let (_, code) = site.adapters();
    assert_eq!(code, 3, "the newest bundle was refused, and the exit code says so");

    // Back, and forth again.
    let said = site.said(&["adapters", "rollback", "--by", "MM"]);
    assert!(said.contains("thigh-phantom") && said.contains("serves from the next series on"), "{said}");
    let (_, fifth) = site.serve(705);
    assert_eq!(fifth["adapter_sha256"], factory.as_str());
    assert!(!site.scanside(&["adapters", "rollback"]).status.success(), "nothing before it may serve");
    let out = site.scanside(&["adapters", "rollback", "7"]);
    assert!(String::from_utf8_lossy(&out.stderr).contains("kept are: thigh 2"), "{out:?}");
    site.said(&["adapters", "rollback", "2"]);
    let (_, sixth) = site.serve(706);
    assert_eq!(sixth["adapter_sha256"], adapter.as_str());
    let text = String::from_utf8_lossy(&site.scanside(&["adapters"]).stdout).into_owned();
    assert!(text.contains("active:    thigh-phantom 2") && text.contains("signed by holder-"), "{text}");
    assert!(text.contains("by a person (MM)"), "{text}");

    // After a start it serves still.
    site.kill();
    site.run();
    let (_, seventh) = site.serve(707);
    assert_eq!(seventh["adapter_sha256"], adapter.as_str());

    // The answer to the training host has figures and nothing that names anybody.
    site.said(&["review", "reject", &id.to_string(), "--by", "Dr. Who", "--note", "seen by me"]);
    let answer = site.dir.path().join("answer.json");
    site.said(&["adapters", "export", answer.to_str().unwrap()]);
    let text = std::fs::read_to_string(&answer).unwrap();
    let series = site.status()["jobs"][0]["series_uid"].as_str().unwrap().to_string();
    for secret in ["Who", "seen by me", "1.2.826", "2.25.", &series, "job", "_ms", "PACS"] {
        assert!(!text.contains(secret), "{secret} stands in the answer");
    }
    let feedback = Feedback::load(&answer).unwrap();
    let two = feedback.adapters.iter().find(|a| a.version == 2).unwrap();
    assert_eq!((two.shadow.len(), two.probation.len(), two.reviews.len()), (1, 1, 1), "{two:?}");
    assert_eq!(two.reviews[0].decision, "rejected");
    if cfg!(feature = "train") {
        let out = std::process::Command::new(env!("CARGO_BIN_EXE_scanside"))
            .args(["evaluate", "--feedback"])
            .arg(&answer)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success() && said.contains("| thigh 2 | committed | 1 |"), "{said}");
    }
}

#[test]
fn without_a_service_the_command_checks_and_the_next_start_goes_on() {
    let mut site = Site::start(NONE);
    site.kill();
    let path = site.file("thigh-2.bundle", &releases().bundle(2));
    let said = site.said(&["sideload", path.to_str().unwrap()]);
    assert!(said.contains("parity-checked; the service goes on with it at its next start"), "{said}");
    assert_eq!(site.newest(), "parity-checked");
    site.run();
    site.until("committed", || (site.newest() == "committed").then_some(()));
    // Going back is set while nothing runs, too.
    site.kill();
    assert!(site.said(&["adapters", "rollback"]).contains("from its next start on"));
    site.run();
    assert!(site.said(&["status"]).contains("no bundle: the configuration's adapter"));
    // A damaged file is not served: what was before it is.
    site.said(&["adapters", "rollback", "2"]);
    site.kill();
    let file = site.state.join("bundles").join(&site.kept()[0]);
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    site.run();
    let (a, code) = site.adapters();
    assert_eq!(
        (a["bundles"][0]["state"].as_str(), a["bundles"][0]["code"].as_str()),
        (Some("rolled-back"), Some("changed-file"))
    );
    assert_eq!(code, 3);
    assert!(a["serving"]["bundle_id"].is_null(), "{a:#}");
    // The same file mends it, and a person lets it serve.
    let said = site.said(&["sideload", path.to_str().unwrap()]);
    assert!(said.contains("its file is whole again; `scanside adapters rollback thigh:2`"), "{said}");
    assert!(site.adapters().0["serving"]["bundle_id"].is_null(), "nothing else changes");
    site.said(&["adapters", "rollback", "thigh:2"]);
    let a = site.until("it serves", || {
        let (a, _) = site.adapters();
        a["serving"]["taken_ms"].is_i64().then_some(a)
    });
    assert!(!a["serving"]["bundle_id"].is_null() && a["bundles"][0]["state"] == "committed", "{a:#}");
    assert_eq!(a["bundles"].as_array().unwrap().len(), 1, "it is the same bundle still: {a:#}");
}

#[test]
fn a_blind_candidate_fails_in_shadow_and_on_probation_and_no_patient_is_turned_away() {
    let site = Site::start(SHORT);
    let path = site.file("blind.bundle", &releases().sign(releases().blind(2), 2));
    site.said(&["sideload", path.to_str().unwrap()]);
    site.serve(711);
    site.until("refused", || (site.newest() == "refused").then_some(()));
    let (a, code) = site.adapters();
    assert_eq!((a["bundles"][0]["code"].as_str(), code), (Some("shadow-failed"), 3), "{a:#}");
    assert_eq!(site.kept(), [""; 0]);
    assert!(site.said(&["status"]).contains("ADAPTER: thigh 2 is refused [shadow-failed]"));
    drop(site);

    let site = Site::start(&SHORT.replace("shadow_series = 1", "shadow_series = 0"));
    let path = site.file("blind.bundle", &releases().sign(releases().blind(2), 2));
    site.said(&["sideload", path.to_str().unwrap()]);
    site.until("probation", || (site.newest() == "probation").then_some(()));
    // The candidate would turn the series away; the adapter before it makes the result.
    let (_, job) = site.serve(712);
    assert_eq!(job["adapter"], "thigh-phantom 1");
    let (a, code) = site.adapters();
    assert_eq!((a["bundles"][0]["code"].as_str(), code), (Some("probation-failed"), 3), "{a:#}");
    assert_eq!(a["bundles"][0]["cases"][0]["problem"], "not-recognised");
    assert!(site.log().contains("is taken back [probation-failed]"), "{}", site.log());
    // What failed its probation cannot be taken up by hand.
    assert!(!site.scanside(&["adapters", "rollback", "2"]).status.success());
}
