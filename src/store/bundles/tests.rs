use super::*;
use crate::store::{queue, review};

fn db() -> Connection {
    let c = Connection::open_in_memory().unwrap();
    for m in [queue::MIGRATION, review::MIGRATION, MIGRATION] {
        c.execute_batch(m).unwrap();
    }
    c
}

fn new(c: &mut Connection, n: u32) -> Bundle {
    let sha = format!("{n:064}");
    let Arrival::New(b) = receive(c, &sha, &format!("{FOLDER}/{sha}.bundle"), 10, "a.bundle", i64::from(n)).unwrap()
    else {
        panic!("known")
    };
    let tx = c.transaction().unwrap();
    let facts = Facts {
        name: "thigh".into(),
        version: n,
        adapter_sha256: format!("a{n}"),
        identity: format!("i{n}"),
        signer: "host".into(),
        evidence: "{}".into(),
    };
    set_facts(&tx, b.id, &facts).unwrap();
    tx.commit().unwrap();
    get(c, b.id).unwrap().unwrap()
}

fn go(c: &mut Connection, id: i64, events: &[Event]) -> Bundle {
    for e in events {
        let b = get(c, id).unwrap().unwrap();
        advance(c, &b, *e, &Why::said(format!("{e:?}")), 5, |tx| {
            if *e == Event::Committed {
                serve(tx, Some(id), ("thigh", "a", "host"), "committed", 5)?;
            }
            Ok(())
        })
        .unwrap()
        .unwrap();
    }
    get(c, id).unwrap().unwrap()
}

const TO_COMMIT: [Event; 4] = [Event::Verified, Event::Staged, Event::ParityPassed, Event::Committed];

#[test]
fn a_step_is_written_only_from_the_state_it_was_seen_in() {
    let mut c = db();
    let seen = new(&mut c, 1);
    go(&mut c, seen.id, &[Event::Begin]);
    let moved = advance(&mut c, &seen, Event::Verified, &Why::default(), 6, |_| panic!("written")).unwrap();
    assert_eq!(moved, Err(Illegal::Moved(State::Received { attempts: 1 })));
    let b = get(&c, seen.id).unwrap().unwrap();
    let illegal = advance(&mut c, &b, Event::Committed, &Why::default(), 6, |_| panic!("written")).unwrap();
    assert!(matches!(illegal, Err(Illegal::Step { .. })));
    // What fails in the transaction undoes the step.
    let failed = advance(&mut c, &b, Event::Verified, &Why::default(), 6, |_| Err(rusqlite::Error::InvalidQuery));
    assert!(failed.is_err());
    assert_eq!(get(&c, b.id).unwrap().unwrap(), b);
    let refused = go(&mut c, b.id, &[Event::Refused]);
    assert_eq!((refused.state, refused.path.as_str()), (State::Refused, ""));
    let words: Vec<String> = steps(&c, b.id).unwrap().into_iter().map(|s| s.state).collect();
    assert_eq!(words, ["received", "refused"], "an attempt is no step");
}

#[test]
fn the_same_bytes_have_one_life_at_a_time() {
    let mut c = db();
    let b = new(&mut c, 1);
    assert_eq!(receive(&mut c, &b.sha256, "x", 1, "b", 2).unwrap(), Arrival::Known(b.clone()));
    go(&mut c, b.id, &[Event::Refused]);
    assert!(matches!(receive(&mut c, &b.sha256, "x", 1, "b", 2).unwrap(), Arrival::New(_)));
}

#[test]
fn the_previous_good_one_is_never_pruned() {
    let mut c = db();
    let ids: Vec<i64> = (1..=4).map(|n| new(&mut c, n).id).collect();
    for id in &ids {
        go(&mut c, *id, &TO_COMMIT);
    }
    let pruned = |c: &Connection, keep| prunable(c, keep).unwrap().iter().map(|b| b.version).collect::<Vec<_>>();
    assert_eq!(pruned(&c, 1), [2, 1]);
    assert_eq!(pruned(&c, 3), [1]);
    // A person goes back from 4 to 1: then 1 serves.
    go(&mut c, ids[3], &[Event::RolledBack]);
    let tx = c.transaction().unwrap();
    serve(&tx, Some(ids[0]), ("thigh", "a", "host"), "a person", 9).unwrap();
    tx.commit().unwrap();
    // 4 may be taken up again, but going back from 1 means 3: 4 is no longer committed.
    assert_eq!(previous(&c).unwrap().unwrap().bundle_id, Some(ids[2]));
    assert_eq!(pruned(&c, 1), [2]);
    assert_eq!(pruned(&c, 0), [4, 2]);
    // One that failed its probation takes no place.
    let five = new(&mut c, 5);
    let on = [Event::Verified, Event::Staged, Event::ParityPassed, Event::ProbationBegan, Event::RolledBack];
    go(&mut c, five.id, &on);
    assert_eq!(pruned(&c, 4), [5]);
    forget_file(&c, five.id).unwrap();
    assert_eq!(pruned(&c, 4), [0u32; 0]);
}

#[test]
fn a_file_that_came_again_is_not_the_first_to_go() {
    let mut c = db();
    let ids: Vec<i64> = (1..=4).map(|n| new(&mut c, n).id).collect();
    for id in &ids {
        go(&mut c, *id, &TO_COMMIT);
    }
    let pruned = |c: &Connection| prunable(c, 2).unwrap().iter().map(|b| b.version).collect::<Vec<_>>();
    assert_eq!(pruned(&c), [2, 1]);
    forget_file(&c, ids[0]).unwrap();
    let sha = format!("{:064}", 1);
    let gone = committed_of_file(&c, &sha).unwrap().unwrap();
    assert_eq!((gone.id, gone.path.as_str()), (ids[0], ""));
    keep_file(&c, ids[0], "bundles/1.bundle", 9).unwrap();
    assert_eq!(get(&c, ids[0]).unwrap().unwrap().path, "bundles/1.bundle");
    assert_eq!(pruned(&c), [2], "4 serves, 3 served before, and 1 changed last");
    // One whose file is there is left as it is; one that was never committed has no way back.
    keep_file(&c, ids[1], "elsewhere", 9).unwrap();
    assert_ne!(get(&c, ids[1]).unwrap().unwrap().path, "elsewhere");
    let five = new(&mut c, 5);
    assert_eq!(committed_of_file(&c, &five.sha256).unwrap(), None);
}

#[test]
fn files_without_a_row_are_swept() {
    let mut c = db();
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join(FOLDER);
    std::fs::create_dir(&folder).unwrap();
    let b = new(&mut c, 1);
    for name in ["x.part", "y.bundle", "lock"] {
        std::fs::write(folder.join(name), "x").unwrap();
    }
    std::fs::write(b.file(dir.path()), "x").unwrap();
    assert_eq!(sweep(&named_files(&c).unwrap(), dir.path()).unwrap(), 2);
    assert!(b.file(dir.path()).exists() && folder.join("lock").exists());
}

#[test]
fn cases_are_found_once() {
    let mut c = db();
    let b = new(&mut c, 1);
    let job = queue::open_job(&mut c, "1.2", &[1], "quiet", 1, 1).unwrap().unwrap();
    assert_eq!(untried(&c, b.id, 0).unwrap(), None);
    let ending = queue::Ending { state: queue::JobState::Done, code: "", sentence: "", summary: "{}" };
    queue::finish_job(&mut c, job.id, &ending, &[], &[], 7, |_| Ok(())).unwrap();
    assert_eq!(untried(&c, b.id, 8).unwrap(), None, "before it was in shadow");
    assert_eq!(untried(&c, b.id, 7).unwrap(), Some(job.id));
    let case = Case {
        stage: Stage::Shadow,
        job_id: job.id,
        at_ms: 9,
        counts: true,
        problem: String::new(),
        candidate: Side { score: Some(80.0), verdict: "B".into(), seconds: Some(2.0) },
        active: Side::default(),
        dice: vec![StructureDice { structure: "VL".into(), side: "left".into(), dice: 0.5 }],
    };
    let tx = c.transaction().unwrap();
    record_case(&tx, b.id, &case).unwrap();
    tx.commit().unwrap();
    assert_eq!(untried(&c, b.id, 7).unwrap(), None);
    assert_eq!(cases(&c, b.id, 10).unwrap(), [case]);
}
