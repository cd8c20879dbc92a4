//! `scanside keys`: keys, roots and what a box trusts.

#[cfg(feature = "train")]
mod root;
mod trust;

#[cfg(feature = "train")]
use trust::print_root as print_root_of;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::{Args, Subcommand};

#[cfg(feature = "train")]
use crate::adapter::trust::{Chain, CommandSigner, Signer};
use crate::adapter::trust::{MAX_ROOT_BYTES, PublicKey, Root, SecretKey, Signed};

#[derive(Args, Debug)]
pub(super) struct KeysArgs {
    #[command(subcommand)]
    command: KeysCommand,
}

#[derive(Subcommand, Debug)]
enum KeysCommand {
    /// Make a key: NAME.pem (secret, mode 600) and NAME.pub.pem
    Generate(GenerateArgs),
    /// Show a public key's identity
    Show(ShowArgs),
    /// Make, rotate, revoke, sign and show roots
    #[cfg(feature = "train")]
    Root(root::RootArgs),
    /// Tell this box whom to trust: its first root, and newer ones
    Trust(trust::TrustArgs),
}

#[derive(Args, Debug)]
struct GenerateArgs {
    /// Path without ending; its last part is the holder's name in roots, e.g. keys/anna-meier
    name: PathBuf,
}

#[derive(Args, Debug)]
struct ShowArgs {
    /// The .pub.pem file
    public: PathBuf,
}

/// Who signs.
#[cfg(feature = "train")]
#[derive(Args, Debug)]
#[group(skip)]
pub(super) struct SignerArgs {
    /// Secret key (PKCS#8 PEM, mode 600)
    #[arg(long, required_unless_present = "signer", conflicts_with = "signer")]
    key: Option<PathBuf>,
    /// Command that holds the key elsewhere: gets the bytes on standard input, answers the signature (raw, hex or base64)
    #[arg(long, value_name = "COMMAND", requires = "public")]
    signer: Option<String>,
    /// With --signer: the public key (.pub.pem)
    #[arg(long, requires = "signer")]
    public: Option<PathBuf>,
}

#[cfg(feature = "train")]
impl SignerArgs {
    /// The signer.
    ///
    /// # Errors
    /// A key that cannot be used.
    pub(super) fn signer(&self) -> anyhow::Result<Box<dyn Signer>> {
        if let Some(command) = &self.signer {
            let public = PublicKey::load(self.public.as_ref().context("--signer needs --public")?)?;
            return Ok(Box::new(CommandSigner { command: command.clone(), public }));
        }
        Ok(Box::new(SecretKey::load(self.key.as_ref().context("--key or --signer is missing")?)?))
    }
}

pub(super) fn run(args: &KeysArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        KeysCommand::Generate(args) => generate(args),
        KeysCommand::Show(args) => {
            let key = PublicKey::load(&args.public)?;
            println!("{}", key.id());
            Ok(ExitCode::SUCCESS)
        }
        #[cfg(feature = "train")]
        KeysCommand::Root(args) => root::run(args),
        KeysCommand::Trust(args) => trust::run(args),
    }
}

fn generate(args: &GenerateArgs) -> anyhow::Result<ExitCode> {
    let secret = args.name.with_added_extension("pem");
    let public = args.name.with_added_extension("pub.pem");
    ensure!(!public.exists(), "{} is there already; choose another name", public.display());
    let key = SecretKey::generate()?;
    key.save(&secret)?;
    let pem = key.public().to_pem()?;
    std::fs::write(&public, pem).with_context(|| format!("cannot write {}", public.display()))?;
    println!("key {}", key.public().id());
    println!("secret: {} (keep it off networks and shared disks, with a copy in a safe)", secret.display());
    println!("public: {} (goes into the root)", public.display());
    Ok(ExitCode::SUCCESS)
}

/// A root's file, of which enough of its own keys must have signed.
///
/// # Errors
/// The file, and what is wrong with it.
pub(super) fn read_root(path: &Path) -> anyhow::Result<Signed<Root>> {
    Ok(Signed::<Root>::read(&root_bytes(path)?)?)
}

fn root_bytes(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).with_context(|| format!("cannot read the root {}", path.display()))?;
    std::io::Read::read_to_end(&mut std::io::Read::take(file, MAX_ROOT_BYTES as u64 + 1), &mut bytes)
        .with_context(|| format!("cannot read the root {}", path.display()))?;
    Ok(bytes)
}

/// `N.root.json` of a folder.
#[cfg(feature = "train")]
fn root_path(folder: &Path, version: u32) -> PathBuf {
    folder.join(format!("{version}.root.json"))
}

/// Every root of a folder, from the first.
///
/// # Errors
/// A root that is missing, unsigned or does not follow.
#[cfg(feature = "train")]
pub(super) fn read_roots(folder: &Path) -> anyhow::Result<Chain> {
    let mut roots = vec![read_root(&root_path(folder, 1))?];
    for version in 2.. {
        let path = root_path(folder, version);
        if !path.exists() {
            break;
        }
        roots.push(read_root(&path)?);
    }
    Ok(Chain::new(roots)?)
}
