//! `scanside bench receive`: images per second into this SCP, `storescp --fork` and Orthanc, in one run, as ratios.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::clock::Clock;
use crate::dicom::net::MR_IMAGE_STORAGE;
use crate::dicom::net::negotiate::{Acceptor, Caller, Callers, Classes, EXPLICIT_LE};
use crate::dicom::net::part10;
use crate::dicom::net::scp::{Scp, ScpOptions};
use crate::dicom::net::scu::{self, ScuOptions, Sent, Target};
use crate::store::{Spool, Store};

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sender {
    /// This program's SCU, one thread per association.
    Scanside,
    /// DCMTK's storescu, one process per association.
    Storescu,
}

/// What to measure.
#[derive(Args, Debug, Clone)]
pub struct ReceiveArgs {
    /// Images per measurement, 512 x 512 x 16 bit each
    #[arg(long, default_value_t = 300)]
    images: usize,
    /// Measurements per side and number of associations; the sides alternate
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Numbers of simultaneous associations
    #[arg(long, value_delimiter = ',', default_value = "1,8")]
    associations: Vec<usize>,
    /// Who sends; the same to every side
    #[arg(long, value_enum, default_value = "scanside")]
    sender: Sender,
    /// Where the images and each side's storage lie; default: a temporary folder
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Run as the receiving child process in this folder (used by the benchmark itself)
    #[arg(long, hide = true)]
    child: Option<PathBuf>,
}

const OUR_AE: &str = "SCANSIDE";
const SENDER_AE: &str = "BENCH";

/// Runs the benchmark; sides whose program is missing are left out, aloud.
///
/// # Errors
/// A side that does not start, or does not take an image.
pub fn run(args: &ReceiveArgs) -> anyhow::Result<ExitCode> {
    if let Some(dir) = &args.child {
        serve(dir)?;
        return Ok(ExitCode::SUCCESS);
    }
    ensure!(args.images > 0 && args.rounds > 0, "--images and --rounds start at 1");
    ensure!(args.associations.iter().all(|n| (1..=64).contains(n)), "--associations are 1 to 64");
    let temporary = match &args.dir {
        Some(dir) => tempfile::tempdir_in(dir),
        None => tempfile::tempdir(),
    }
    .context("no temporary folder")?;
    let work = temporary.path();
    let files = images(&work.join("images"), args.images)?;
    let floor = sync_milliseconds(work)?;
    println!("{} images of 512 x 512 x 16 bit, sender: {:?}, TCP_NODELAY on every side", args.images, args.sender);
    println!("this disk: {floor:.1} ms to write and sync 512 KiB; storescp answers without any sync");
    let mut sides = vec![Side::Scanside];
    for (side, program) in [(Side::Storescp, "storescp"), (Side::Orthanc, "Orthanc")] {
        match find(program) {
            Some(_) => sides.push(side),
            None => println!("SKIPPED: no {program} on this machine"),
        }
    }
    for &associations in &args.associations {
        let mut best = vec![0.0f64; sides.len()];
        let mut rss = 0;
        for round in 1..=args.rounds {
            for (i, side) in sides.iter().enumerate() {
                let storage = work.join("storage");
                std::fs::create_dir_all(&storage)?;
                let _ = Command::new("sync").status();
                let mut server = side.start(&storage)?;
                let seconds = send(args.sender, &files, &server, associations)?;
                let rate = args.images as f64 / seconds;
                best[i] = best[i].max(rate);
                if *side == Side::Scanside {
                    rss = rss.max(peak_rss_kib(server.child.id()).unwrap_or(0));
                }
                println!("  {associations} association(s), round {round}: {:<9} {rate:7.1} images/s", side.name());
                server.stop();
                std::fs::remove_dir_all(&storage)?;
            }
        }
        let ratios: Vec<String> = sides
            .iter()
            .zip(&best)
            .skip(1)
            .map(|(side, rate)| format!("{:.2} x {}", best[0] / rate, side.name()))
            .collect();
        println!(
            "{associations} association(s), best of {}: {} images/s = {}; peak RSS {:.1} MiB",
            args.rounds,
            sides.iter().zip(&best).map(|(s, r)| format!("{} {r:.1}", s.name())).collect::<Vec<_>>().join(", "),
            ratios.join(", "),
            rss as f64 / 1024.0
        );
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Scanside,
    Storescp,
    Orthanc,
}

struct Server {
    child: Child,
    port: u16,
    ae: &'static str,
}

impl Server {
    fn stop(&mut self) {
        // Our child ends when its input does; the others are killed.
        drop(self.child.stdin.take());
        for _ in 0..100 {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            if self.ae != OUR_AE {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Side::Scanside => "scanside",
            Side::Storescp => "storescp",
            Side::Orthanc => "Orthanc",
        }
    }

    fn start(self, storage: &Path) -> anyhow::Result<Server> {
        let quiet = |command: &mut Command| {
            command.env("TCP_NODELAY", "1").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
        };
        let server = match self {
            Side::Scanside => {
                let mut child = Command::new(std::env::current_exe()?)
                    .args(["bench", "receive", "--child"])
                    .arg(storage)
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::null())
                    .spawn()
                    .context("the receiving child does not start")?;
                let mut line = String::new();
                let stdout = child.stdout.take().context("no output of the child")?;
                BufReader::new(stdout).read_line(&mut line)?;
                let port = line.trim().parse().context("the receiving child did not start")?;
                Server { child, port, ae: OUR_AE }
            }
            Side::Storescp => {
                let port = free_port()?;
                let mut command = Command::new(find("storescp").context("storescp")?);
                command.args(["--fork", "--max-pdu", "131072", "-od"]).arg(storage).arg(port.to_string());
                Server { child: quiet(&mut command)?, port, ae: "STORESCP" }
            }
            Side::Orthanc => {
                let port = free_port()?;
                let config = serde_json::json!({
                    "Name": "bench", "StorageDirectory": storage, "IndexDirectory": storage,
                    "DicomServerEnabled": true, "DicomAet": "ORTHANC", "DicomPort": port,
                    "HttpServerEnabled": false, "RemoteAccessAllowed": false,
                    "DicomAlwaysAllowEcho": true, "DicomAlwaysAllowStore": true, "DicomCheckCalledAet": false,
                    "DicomThreadsCount": 8, "TcpNoDelay": true, "MaximumPduLength": 131_072,
                });
                let path = storage.join("orthanc.json");
                std::fs::write(&path, config.to_string())?;
                let mut command = Command::new(find("Orthanc").context("Orthanc")?);
                Server { child: quiet(command.arg(&path))?, port, ae: "ORTHANC" }
            }
        };
        for _ in 0..200 {
            if scu::echo(&target(&server), &ScuOptions::default()).is_ok() {
                return Ok(server);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        bail!("{} does not answer on port {}", self.name(), server.port)
    }
}

fn target(server: &Server) -> Target {
    Target { ae_title: server.ae.into(), address: format!("127.0.0.1:{}", server.port), calling_ae: SENDER_AE.into() }
}

/// Sends the files over so many associations at once; seconds until the last answer.
fn send(sender: Sender, files: &[PathBuf], server: &Server, associations: usize) -> anyhow::Result<f64> {
    let share = files.len().div_ceil(associations);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = files
            .chunks(share)
            .map(|part| {
                scope.spawn(move || match sender {
                    Sender::Scanside => {
                        for outcome in scu::send(part, &target(server), &ScuOptions::default()) {
                            ensure!(outcome.sent == Sent::Stored(0), "{:?}", outcome.sent);
                        }
                        Ok(())
                    }
                    Sender::Storescu => {
                        let status = Command::new("storescu")
                            .env("TCP_NODELAY", "1")
                            .args(["-R", "--max-pdu", "131072", "-aet", SENDER_AE, "-aec", server.ae, "127.0.0.1"])
                            .arg(server.port.to_string())
                            .args(part)
                            .stdout(Stdio::null())
                            .status()
                            .context("storescu does not start")?;
                        ensure!(status.success(), "storescu failed");
                        Ok(())
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().map_err(|_| anyhow::anyhow!("a sender failed"))??;
        }
        Ok(start.elapsed().as_secs_f64())
    })
}

/// The receiving side in a process of its own, so that its memory can be seen.
fn serve(dir: &Path) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let store = Store::open(dir, Clock::System)?;
        let (spool, _) = Spool::open(&store, 64 << 20)?;
        let options = ScpOptions {
            acceptor: Acceptor {
                ae_title: OUR_AE.into(),
                callers: Callers::Listed(vec![Caller { ae_title: SENDER_AE.into(), address: None }]),
                classes: Classes::Mr,
                max_pdu: 256 * 1024,
            },
            max_associations: 64,
            idle: Duration::from_secs(60),
            max_object: 1 << 30,
            first_association: 1,
        };
        let scp = Scp::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), options, Arc::new(spool)).await?;
        println!("{}", scp.local_addr().port());
        std::io::stdout().flush()?;
        tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
        scp.shutdown(Duration::from_secs(1)).await;
        Ok(())
    })
}

/// An element in Explicit VR Little Endian.
fn element(out: &mut Vec<u8>, tag: (u16, u16), vr: &[u8; 2], value: &[u8]) {
    out.extend_from_slice(&tag.0.to_le_bytes());
    out.extend_from_slice(&tag.1.to_le_bytes());
    out.extend_from_slice(vr);
    let padded = value.len() + value.len() % 2;
    if vr == b"OW" {
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(&(padded as u32).to_le_bytes());
    } else {
        out.extend_from_slice(&(padded as u16).to_le_bytes());
    }
    out.extend_from_slice(value);
    if value.len() % 2 == 1 {
        out.push(if vr == b"UI" { 0 } else { b' ' });
    }
}

/// Writes synthetic MR slices of 512 x 512 x 16 bit.
fn images(dir: &Path, count: usize) -> anyhow::Result<Vec<PathBuf>> {
    std::fs::create_dir_all(dir)?;
    let mut pixels = vec![0u8; 512 * 512 * 2];
    ChaCha8Rng::seed_from_u64(1).fill_bytes(&mut pixels);
    let mut files = Vec::with_capacity(count);
    for i in 0..count {
        let instance = format!("2.25.4711.1.{i}");
        let mut bytes = part10::head(MR_IMAGE_STORAGE, &instance, EXPLICIT_LE);
        let out = &mut bytes;
        element(out, (0x0008, 0x0016), b"UI", MR_IMAGE_STORAGE.as_bytes());
        element(out, (0x0008, 0x0018), b"UI", instance.as_bytes());
        element(out, (0x0008, 0x0060), b"CS", b"MR");
        element(out, (0x0010, 0x0010), b"PN", b"Bench^Mark");
        element(out, (0x0010, 0x0020), b"LO", b"BENCH");
        element(out, (0x0020, 0x000D), b"UI", b"2.25.4711");
        element(out, (0x0020, 0x000E), b"UI", b"2.25.4711.1");
        element(out, (0x0020, 0x0013), b"IS", i.to_string().as_bytes());
        element(out, (0x0028, 0x0002), b"US", &1u16.to_le_bytes());
        element(out, (0x0028, 0x0004), b"CS", b"MONOCHROME2");
        for (tag, value) in [(0x0010, 512u16), (0x0011, 512), (0x0100, 16), (0x0101, 16), (0x0102, 15), (0x0103, 0)] {
            element(out, (0x0028, tag), b"US", &value.to_le_bytes());
        }
        element(out, (0x7FE0, 0x0010), b"OW", &pixels);
        let path = dir.join(format!("{i:05}.dcm"));
        std::fs::write(&path, &bytes)?;
        files.push(path);
    }
    Ok(files)
}

/// Milliseconds to write 512 KiB into a new file and sync it, mean of 20.
fn sync_milliseconds(dir: &Path) -> anyhow::Result<f64> {
    let bytes = vec![7u8; 512 * 1024];
    let start = Instant::now();
    for i in 0..20 {
        let path = dir.join(format!("sync{i}"));
        let mut file = File::create(&path)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        std::fs::remove_file(path)?;
    }
    Ok(start.elapsed().as_secs_f64() * 1000.0 / 20.0)
}

fn peak_rss_kib(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix("kB")?.trim().parse().ok())
}

/// A port that was free a moment ago.
fn free_port() -> anyhow::Result<u16> {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    ensure!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err(), "port {port} is not free");
    Ok(port)
}

fn find(program: &str) -> Option<PathBuf> {
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&dirs)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/usr/local/sbin")])
        .map(|d| d.join(program))
        .find(|p| p.is_file())
}
