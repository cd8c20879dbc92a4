//! `scanside demo`: scanner, box and archive in one process, over real C-STORE.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;

use crate::clock::Clock;
use crate::config::{Archive, Config, Modality};
use crate::daemon::status::Status;
use crate::daemon::{Daemon, Model};
use crate::dicom::net::archive::{Folder, Taken, open_to_all};
use crate::dicom::net::scp::Scp;
use crate::dicom::net::scu::{ScuOptions, Sent, Target, send};
use crate::image::phantom::{Phantom, PhantomOptions};
use crate::model::weights;
use crate::pipeline::write_dicom_series;
use crate::store::queue::JobState;

/// The longest the demo waits for its results.
const PATIENCE: Duration = Duration::from_secs(900);

#[derive(Args, Debug)]
pub(super) struct DemoArgs {
    /// A folder with one MR series of your own instead of the phantom
    #[arg(long)]
    series: Option<PathBuf>,
    /// The adapter; default: the phantom adapter that comes with the program
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Where everything is written; emptied of an earlier demo first
    #[arg(long, short, default_value = "scanside-demo")]
    out: PathBuf,
    /// Seed of the phantom
    #[arg(long, default_value_t = 20_261)]
    seed: u64,
}

pub(super) fn run(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let code = runtime.block_on(demo(args))?;
    runtime.shutdown_timeout(Duration::from_secs(5));
    Ok(code)
}

async fn demo(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let say = |text: &str| println!("[{:6.1} s] {text}", started.elapsed().as_secs_f64());
    prepare(&args.out)?;

    let base = weights::load_or_fetch(&mut |line| say(line))?;
    let adapter = args.adapter.clone().unwrap_or_default();
    let model = Model::with_base(&base, &adapter, 0)?;
    drop(base);
    say(&model.describe());

    let (files, phantom) = match &args.series {
        Some(dir) => (files_in(dir)?, None),
        None => {
            let options = PhantomOptions { seed: args.seed, ..PhantomOptions::default() };
            let phantom = Phantom::new(&options);
            let series = write_dicom_series(&args.out.join("series"), &phantom, &options)?;
            say(&format!("phantom series of {} slices, seed {}", series.files.len(), args.seed));
            (series.files, Some(phantom))
        }
    };

    let received = args.out.join("archive");
    let folder = Arc::new(Folder::new(&received)?);
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    let archive = Scp::bind(loopback, open_to_all("DEMO_PACS"), folder.clone()).await?;
    let mut config = Config::default();
    config.station.listen = loopback;
    config.storage.state_dir = args.out.join("state");
    config.storage.min_free_mb = 64;
    config.modality.push(Modality { ae_title: "DEMO_MR".into(), address: None, quiet_seconds: Some(5) });
    config.archive.push(Archive {
        ae_title: "DEMO_PACS".into(),
        address: archive.local_addr().to_string(),
        researcher: false,
    });
    let daemon = Daemon::start(config.clone(), model, Clock::System).await?;
    say(&format!("box on {}, archive on {}", daemon.local_addr(), archive.local_addr()));

    let target = Target {
        ae_title: config.station.ae_title.clone(),
        address: daemon.local_addr().to_string(),
        calling_ae: "DEMO_MR".into(),
    };
    let count = files.len();
    let outcomes = tokio::task::spawn_blocking(move || send(&files, &target, &ScuOptions::default())).await?;
    let last_slice = Instant::now();
    if let Some(bad) = outcomes.iter().find(|o| !matches!(o.sent, Sent::Stored(_))) {
        bail!("{} was not taken: {:?}", bad.path.display(), bad.sent);
    }
    say(&format!("{count} images sent by C-STORE, each answered 0000 once it was durable"));

    let status = wait(&daemon, &config, &say).await?;
    let seconds = last_slice.elapsed().as_secs_f64();
    let job = status.jobs.first().context("no job was made")?;
    say(&format!("{} objects in the archive, {seconds:.1} s after the last image", folder.taken().len()));
    println!();
    print!("{}", status.text());
    let summary: serde_json::Value = serde_json::from_str(&job.job.summary).unwrap_or_default();
    println!("\ntime of each step");
    println!(
        "  {:<34}{:6.2} s",
        "evidence that the series is complete",
        (job.job.created_ms - job.job.last_received_ms) as f64 / 1000.0
    );
    for step in summary["steps"].as_array().into_iter().flatten() {
        let name = step["step"].as_str().unwrap_or("?");
        println!("  {:<34}{:6.2} s", name, step["seconds"].as_f64().unwrap_or(0.0));
    }
    println!("  {:<34}{:6.2} s", "last image to archive", seconds);

    let taken = folder.taken();
    if let Some(phantom) = &phantom {
        println!();
        dice(phantom, &taken)?;
    }
    println!("\nwhere things lie");
    for t in &taken {
        println!("  {:<26} {}", class_name(&t.sop_class), t.path.display());
    }
    let picture = args.out.join(format!("state/results/{}/montage.png", job.job.id));
    if picture.exists() {
        println!("  {:<26} {}", "picture", picture.display());
    }
    let ok = job.job.state == JobState::Done;
    daemon.stop().await;
    archive.shutdown(Duration::from_secs(2)).await;
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Makes the folder, and removes what an earlier demo left: only if it is an earlier demo's.
fn prepare(out: &Path) -> anyhow::Result<()> {
    let mark = out.join(".scanside-demo");
    let empty = std::fs::read_dir(out).map_or(true, |mut d| d.next().is_none());
    if !empty && !mark.exists() {
        bail!("{} is not empty and not an earlier demo's; name another folder with --out", out.display());
    }
    for sub in ["series", "archive", "state"] {
        let dir = out.join(sub);
        if dir.exists() {
            std::fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        }
    }
    std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    std::fs::write(mark, "made by scanside demo\n")?;
    Ok(())
}

fn files_in(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .with_context(|| format!("cannot read {}", dir.display()))?
        .filter_map(|e| e.ok().map(|e| e.path()))
        .filter(|p| p.is_file())
        .collect();
    files.sort();
    if files.is_empty() {
        bail!("no files in {}", dir.display());
    }
    Ok(files)
}

/// Waits until the newest job has ended and its objects were delivered, telling what changes.
async fn wait(daemon: &Daemon, config: &Config, say: &impl Fn(&str)) -> anyhow::Result<Status> {
    let start = Instant::now();
    let mut told = String::new();
    loop {
        let status = Status::read(daemon.store(), config, 1)?;
        let line = match status.jobs.first() {
            None => "waiting for evidence that the series is complete".to_string(),
            Some(j) if j.job.state == JobState::Pending => format!("segmenting: {}", j.job.reason),
            Some(j) => {
                let waiting = j.deliveries.iter().filter(|d| d.state == "pending").count();
                if waiting == 0 {
                    return Ok(status);
                }
                if let Some(d) = j.deliveries.iter().find(|d| d.state == "failed") {
                    bail!("the archive refused {}: {}", d.kind, d.last_error);
                }
                format!("delivering {waiting} objects")
            }
        };
        if line != told {
            say(&line);
            told = line;
        }
        if start.elapsed() > PATIENCE {
            bail!("no result within {} s; see {}", PATIENCE.as_secs(), config.storage.state_dir.display());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn class_name(uid: &str) -> &'static str {
    match uid {
        "1.2.840.10008.5.1.4.1.1.66.4" => "segmentation",
        "1.2.840.10008.5.1.4.1.1.88.34" => "SegEx report (3D SR)",
        "1.2.840.10008.5.1.4.1.1.88.11" => "text report (Basic Text SR)",
        "1.2.840.10008.5.1.4.1.1.7" => "overlay (Secondary Capture)",
        _ => "object",
    }
}

/// Dice of the segmentation that the archive received against the phantom's truth.
#[cfg(feature = "train")]
fn dice(phantom: &Phantom, taken: &[Taken]) -> anyhow::Result<()> {
    use crate::terms::{STRUCTURE_KEYS, structure};
    use crate::train::labels::LabelImage;
    use std::collections::BTreeMap;

    let Some(seg) = taken.iter().find(|t| class_name(&t.sop_class) == "segmentation") else {
        bail!("the archive received no segmentation");
    };
    let image = LabelImage::load(&seg.path)?;
    println!("Dice against the phantom's truth, from the segmentation in the archive");
    for (leg, side) in [(1u8, "right"), (2, "left")] {
        for (i, key) in STRUCTURE_KEYS.iter().enumerate() {
            let Some(s) = structure(key) else { continue };
            let name = format!("{}, {side}", s.name);
            if image.segment(&name).is_none() {
                continue;
            }
            let found =
                image.onto(&phantom.volume.geometry, &BTreeMap::from([(name.clone(), 1u8)]), None, &seg.path)?;
            let (mut both, mut sum) = (0usize, 0usize);
            for v in 0..found.data.len() {
                let a = found.data[v] == 1;
                let b = usize::from(phantom.structures.data[v]) == i + 1 && phantom.legs.data[v] == leg;
                both += usize::from(a && b);
                sum += usize::from(a) + usize::from(b);
            }
            println!("  {name:<34}{:6.3}", 2.0 * both as f64 / sum.max(1) as f64);
        }
    }
    Ok(())
}

#[cfg(not(feature = "train"))]
fn dice(_: &Phantom, _: &[Taken]) -> anyhow::Result<()> {
    println!("this build has no training host (feature `train`), so Dice is not computed");
    Ok(())
}
