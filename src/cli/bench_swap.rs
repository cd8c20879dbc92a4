//! `scanside bench swap`: a series right after the adapter was changed, beside one without a change, on the same volume and machine.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Args;

use crate::clock::Clock;
use crate::config::Config;
use crate::daemon::sideload::{Here, Models, roll_back_to};
use crate::daemon::{Model, Release};
use crate::image::phantom::{Phantom, PhantomOptions};
use crate::model::weights;
use crate::pipeline::SegmentOptions;
use crate::store::Store;
use crate::store::bundles::{self, Arrival, Event, Facts, Why};

/// Steps of a bundle that is committed without a trial; the benchmark is about what comes after.
const TO_COMMIT: [Event; 4] = [Event::Verified, Event::Staged, Event::ParityPassed, Event::Committed];

#[derive(Args, Debug)]
pub(crate) struct SwapArgs {
    /// Pairs of series
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// Slices of the phantom
    #[arg(long, default_value_t = 6)]
    slices: usize,
}

pub(crate) fn run(args: &SwapArgs) -> anyhow::Result<ExitCode> {
    ensure!((1..=1000).contains(&args.pairs), "--pairs is {}; 1 to 1000 are possible", args.pairs);
    ensure!((3..=200).contains(&args.slices), "--slices is {}; 3 to 200 are possible", args.slices);
    let base = weights::load_or_fetch(&mut |line| eprintln!("{line}"))?;
    let factory = Model::with_base(&base, std::path::Path::new(""), 0)?;
    drop(base);
    let dir = tempfile::tempdir().context("no folder for the benchmark's state")?;
    let (clock, config) = (Clock::System, Config::default());
    let store = Store::open(dir.path(), clock.clone())?;
    let here = Here { store: &store, clock: &clock, config: &config };
    let ready = [1u32, 2].map(|version| factory.again(version));
    let models = Models::new(factory);
    models.begin(here)?;
    for (version, model) in [1u32, 2].into_iter().zip(ready) {
        let row = committed(here, version)?;
        let release =
            Release { row, title: format!("bench {version}"), identity: String::new(), signer: String::new() };
        models.hold(Arc::new(model?.released(release)));
        store.with_conn(|c| {
            let tx = c.transaction()?;
            bundles::serve(&tx, Some(row), ("bench", "", ""), "benchmark", clock.now_ms())?;
            tx.commit()
        })?;
        models.settle(here)?;
    }
    let spacing = 25.0 * 3.0 / args.slices as f64;
    let options = PhantomOptions {
        seed: 1,
        dims: [256, 128, args.slices],
        spacing: [1.953_125, 1.953_125, spacing],
        ..Default::default()
    };
    let volume = Phantom::new(&options).volume;
    let series = || -> anyhow::Result<f64> {
        let start = Instant::now();
        let model = models.settle(here)?;
        let options = SegmentOptions { threads: model.threads, ..SegmentOptions::default() };
        model.segmenter.segment(&volume, None, &options, &|_| {})?;
        Ok(start.elapsed().as_secs_f64())
    };
    series()?;
    let (mut plain, mut swapped, mut swaps) = (Vec::new(), Vec::new(), Vec::new());
    let mut to = 1u32;
    for pair in 0..args.pairs {
        let mut with_swap = || -> anyhow::Result<(f64, f64)> {
            let start = Instant::now();
            let version = to.to_string();
            roll_back_to(here, Some(Some(version.as_str())), "")?.map_err(anyhow::Error::msg)?;
            models.settle(here)?;
            let swap = start.elapsed().as_secs_f64();
            to = 3 - to;
            Ok((swap, swap + series()?))
        };
        // Either side first, in turn: the machine warms up and cools down.
        let (p, (w, s)) = if pair % 2 == 0 {
            let p = series()?;
            (p, with_swap()?)
        } else {
            let s = with_swap()?;
            (series()?, s)
        };
        plain.push(p);
        swaps.push(w);
        swapped.push(s);
    }
    let median = |v: &mut Vec<f64>| {
        v.sort_by(f64::total_cmp);
        v[v.len() / 2]
    };
    let (p, s, w) = (median(&mut plain), median(&mut swapped), median(&mut swaps));
    println!("{} pairs, {} slices, median seconds of a series from its begin to its masks", args.pairs, args.slices);
    println!("  without a change of adapter  {p:8.3} s");
    println!("  right after one              {s:8.3} s    ratio {:.3}, difference {:+.3} s", s / p, s - p);
    println!("  the change itself            {w:8.4} s    a durable row and the exchange of the model");
    Ok(ExitCode::SUCCESS)
}

/// A row of a committed bundle; the model itself is held ready, so that no file is needed.
fn committed(here: Here<'_>, version: u32) -> anyhow::Result<i64> {
    let path = format!("{}/bench-{version}.bundle", bundles::FOLDER);
    let facts = Facts {
        name: "bench".into(),
        version,
        adapter_sha256: String::new(),
        identity: version.to_string(),
        signer: String::new(),
        evidence: "{}".into(),
    };
    let now = here.clock.now_ms();
    Ok(here.store.with_conn(|c| {
        let arrival = bundles::receive(c, &version.to_string(), &path, 0, "bench", now)?;
        let (Arrival::New(row) | Arrival::Known(row)) = arrival;
        let tx = c.transaction()?;
        bundles::set_facts(&tx, row.id, &facts)?;
        tx.commit()?;
        for event in TO_COMMIT {
            if let Some(seen) = bundles::get(c, row.id)? {
                let _ = bundles::advance(c, &seen, event, &Why::default(), now, |_| Ok(()))?;
            }
        }
        Ok(row.id)
    })?)
}
