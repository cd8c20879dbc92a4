//! `scanside review`: results that wait for a person, and what the person decides.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand};

use super::{ConfigArgs, no_state};
use crate::clock::Clock;
use crate::daemon::gate;
use crate::labels::{LabelImage, Named};
use crate::store::queue::{self, JobState};
use crate::store::review::{self, Decision, Review, TruthDice, Waiting};
use crate::store::{Store, outbox};
use crate::terms::Side;

/// Reviews shown.
const SHOWN: usize = 1000;

#[derive(Args, Debug)]
pub(super) struct ReviewArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Results that wait for a decision
    List {
        /// Decided ones too
        #[arg(long)]
        all: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Accept results; what was held back below the bar is sent
    Accept {
        #[command(flatten)]
        decide: DecideArgs,
        /// Send it to the archives although the site is in its pilot
        #[arg(long)]
        release: bool,
    },
    /// Reject results; what was held back stays on this box
    Reject(DecideArgs),
    /// Compare a result with a corrected segmentation: its Dice counts for the site's bar
    Add {
        /// Number of the job
        id: i64,
        /// The corrected segmentation: DICOM SEG, seg.nrrd, NRRD or NIfTI
        #[arg(long)]
        truth: PathBuf,
        /// Who corrected it
        #[arg(long, default_value = "")]
        by: String,
    },
}

#[derive(Args, Debug)]
struct DecideArgs {
    /// Numbers of the jobs, as `scanside review list` shows them
    #[arg(required = true)]
    ids: Vec<i64>,
    /// Who decides
    #[arg(long, default_value = "")]
    by: String,
    /// Why, for the record; no patient data
    #[arg(long, default_value = "")]
    note: String,
}

pub(super) fn run(args: &ReviewArgs) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?.config;
    let dir = &config.storage.state_dir;
    if let What::List { all, json } = &args.what {
        let store = Store::open_read_only(dir, Clock::System).with_context(|| no_state(dir))?;
        return list(&store, *all, *json);
    }
    let store = Store::open_beside(dir, Clock::System).with_context(|| no_state(dir))?;
    match &args.what {
        What::List { .. } => {}
        What::Accept { decide, release } => decide_all(&store, decide, true, *release)?,
        What::Reject(decide) => decide_all(&store, decide, false, false)?,
        What::Add { id, truth, by } => add(&store, *id, truth, by)?,
    }
    if let Some(adapter) = store.with_conn(|c| review::adapter(c))? {
        let gate = store.with_conn(|c| gate::settle(c, &config.gate, &adapter, store.clock().now_ms()))?;
        println!("gate: {}", gate.sentence);
    }
    Ok(ExitCode::SUCCESS)
}

fn list(store: &Store, all: bool, json: bool) -> anyhow::Result<ExitCode> {
    let reviews = store.with_conn(|c| review::list(c, !all, SHOWN))?;
    if json {
        println!("{}", serde_json::to_string_pretty(&reviews)?);
        return Ok(ExitCode::SUCCESS);
    }
    if reviews.is_empty() {
        println!("no result waits for review");
    }
    for r in &reviews {
        let decision = match r.state.as_str() {
            "open" => r.reason.clone(),
            state if r.decided_by.is_empty() => state.to_string(),
            state => format!("{state} by {}", r.decided_by),
        };
        let dice = r.dice.map_or(String::new(), |d| format!(", Dice {d:.3}"));
        println!("{:>5}  {}  verdict {}, score {:.0}{dice}: {decision}", r.job_id, r.series_uid, r.verdict, r.score);
        println!("       {}", store.dir().join(format!("results/{}/montage.png", r.job_id)).display());
    }
    Ok(ExitCode::SUCCESS)
}

/// The review of a job; one is made for a result that went out without.
fn review_of(store: &Store, id: i64) -> anyhow::Result<Review> {
    if let Some(r) = store.with_conn(|c| review::get(c, id))? {
        return Ok(r);
    }
    let job = store.with_conn(|c| queue::get_job(c, id))?;
    let Some(job) = job else { bail!("there is no job {id}; `scanside status` lists them") };
    ensure!(!job.superseded, "job {id} was superseded: more images of its series came; review the newer one");
    ensure!(job.state == JobState::Done, "job {id} has no result to review: `scanside status` says why");
    let summary: serde_json::Value = serde_json::from_str(&job.summary).unwrap_or_default();
    let adapter = store.with_conn(|c| review::adapter(c))?.unwrap_or_default();
    let waiting = Waiting {
        // The summary names it; results of an earlier adapter do not count for the one in use.
        adapter: summary["adapter_sha256"].as_str().unwrap_or(&adapter).to_string(),
        pilot: false,
        reason: "asked for".into(),
        verdict: summary["verdict"].as_str().unwrap_or("D").to_string(),
        score: summary["score"].as_f64().unwrap_or(0.0),
    };
    let now = store.clock().now_ms();
    store.with_conn(|c| {
        let tx = c.transaction()?;
        review::wait(&tx, id, &waiting, now)?;
        tx.commit()
    })?;
    store.with_conn(|c| review::get(c, id))?.with_context(|| format!("job {id} vanished"))
}

fn decide_all(store: &Store, args: &DecideArgs, accepted: bool, release: bool) -> anyhow::Result<()> {
    let now = store.clock().now_ms();
    for &id in &args.ids {
        let r = review_of(store, id)?;
        let d = Decision { accepted, by: &args.by, note: &args.note, release: release || !r.pilot };
        let released = store.with_conn(|c| review::decide(c, id, &d, now))?;
        let word = if accepted { "accepted" } else { "rejected" };
        let held = store.with_conn(|c| outbox::deliveries(c, id))?.iter().filter(|o| o.state == "held").count();
        let next = match (accepted, released) {
            (true, 0) if held > 0 => {
                "; it stays on this box, as it was made in the pilot (accept it with --release to send it)".to_string()
            }
            (true, n) if n > 0 => format!("; {n} objects go to the archives"),
            _ => String::new(),
        };
        println!("job {id}: {word}{next}");
    }
    Ok(())
}

fn add(store: &Store, id: i64, truth: &Path, by: &str) -> anyhow::Result<()> {
    review_of(store, id)?;
    let result = store.dir().join(format!("results/{id}/seg.dcm"));
    ensure!(result.is_file(), "job {id} found no structure, so there is nothing to compare: reject it instead");
    let dice = compare(&result, truth)?;
    ensure!(
        !dice.is_empty(),
        "{} names no structure of the result; name its segments after the structures",
        truth.display()
    );
    let now = store.clock().now_ms();
    store.with_conn(|c| review::add_truth(c, id, &dice, by, now))?;
    for d in &dice {
        println!("{:<4} {:<5} Dice {:.3}", d.structure, d.side, d.dice);
    }
    Ok(())
}

/// Dice of every structure that the correction tells of, by side where the correction's segments name sides.
fn compare(result: &Path, truth: &Path) -> anyhow::Result<Vec<TruthDice>> {
    let (ours, theirs) = (LabelImage::load(result)?, LabelImage::load(truth)?);
    let grid = ours.common_grid(&theirs).with_context(|| {
        format!("{} does not say where it lies: correct the result's own segmentation", truth.display())
    })?;
    let (a, b) = (ours.masks(&grid, None, result)?, theirs.masks(&grid, None, truth)?);
    let named = |image: &LabelImage| -> Vec<Option<Named>> { image.segments.iter().map(|s| s.structure()).collect() };
    let (of_ours, of_theirs) = (named(&ours), named(&theirs));
    let mut wanted: Vec<(&'static str, Option<Side>)> = Vec::new();
    for n in of_theirs.iter().flatten() {
        let sided = of_theirs.iter().flatten().filter(|m| m.key == n.key).all(|m| m.side.is_some());
        let key = (n.key, n.side.filter(|_| sided));
        // Without sides the whole structure is compared.
        if !wanted.contains(&key) {
            wanted.push(key);
        }
    }
    let mut out = Vec::new();
    for (key, side) in wanted {
        let pick = |names: &[Option<Named>], masks: &[Vec<bool>]| -> Vec<bool> {
            let mut all = vec![false; grid.voxels()];
            for (n, m) in names.iter().zip(masks) {
                if n.is_some_and(|n| n.key == key && (side.is_none() || n.side.is_none() || n.side == side)) {
                    all.iter_mut().zip(m).for_each(|(a, m)| *a |= m);
                }
            }
            all
        };
        let (p, q) = (pick(&of_ours, &a), pick(&of_theirs, &b));
        let count = |m: &[bool]| m.iter().filter(|v| **v).count();
        let both = p.iter().zip(&q).filter(|(p, q)| **p && **q).count();
        let sum = count(&p) + count(&q);
        if sum > 0 {
            let side = side.map_or("", Side::word).to_string();
            out.push(TruthDice { structure: key.into(), side, dice: 2.0 * both as f64 / sum as f64 });
        }
    }
    Ok(out)
}
