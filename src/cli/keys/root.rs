//! `scanside keys root`: the ceremonies about who may sign.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand};

use super::{SignerArgs, print_root_of, read_roots, root_bytes, root_path};
use crate::adapter::trust::{Key, KeyId, PublicKey, Revoked, RoleName, Root, Signed, Stamp, write_durably};

#[derive(Args, Debug)]
pub(super) struct RootArgs {
    #[command(subcommand)]
    command: RootCommand,
}

#[derive(Subcommand, Debug)]
enum RootCommand {
    /// Make the first root, unsigned
    Make(MakeArgs),
    /// Make the next root with other keys, thresholds or expiry, unsigned
    Rotate(RotateArgs),
    /// Make the next root without a key that must not count any more, unsigned
    Revoke(RevokeArgs),
    /// Make the next root with a later expiry and nothing else, unsigned
    Renew(RenewArgs),
    /// Add a signature to the newest root
    Sign(SignRootArgs),
    /// Show the roots and what is missing
    Show(FolderArgs),
}

#[derive(Args, Debug)]
struct FolderArgs {
    /// Folder of the roots: 1.root.json, 2.root.json, ...
    #[arg(long, default_value = "roots")]
    roots: PathBuf,
}

#[derive(Args, Debug)]
struct MakeArgs {
    #[command(flatten)]
    folder: FolderArgs,
    /// Public key of the role root (.pub.pem); repeat for each
    #[arg(long = "root-key", required = true)]
    root_keys: Vec<PathBuf>,
    /// How many root keys must sign
    #[arg(long, default_value_t = 2)]
    root_threshold: u32,
    /// Public key that may sign bundles (.pub.pem); repeat for each
    #[arg(long = "release-key", required = true)]
    release_keys: Vec<PathBuf>,
    /// How many release keys must sign
    #[arg(long, default_value_t = 2)]
    release_threshold: u32,
    /// Until when the root holds; boxes install nothing after it
    #[arg(long, value_parser = Stamp::parse)]
    expires: Stamp,
}

#[derive(Args, Debug)]
struct RotateArgs {
    #[command(flatten)]
    folder: FolderArgs,
    /// Public key to add to the role root; repeat for more
    #[arg(long)]
    add_root_key: Vec<PathBuf>,
    /// Public key to add to the release role; repeat for more
    #[arg(long)]
    add_release_key: Vec<PathBuf>,
    /// Key to take out of both roles: its file, or the first digits of its identity; repeat for more
    #[arg(long, value_name = "KEY")]
    remove: Vec<String>,
    /// How many root keys must sign from now on
    #[arg(long)]
    root_threshold: Option<u32>,
    /// How many release keys must sign from now on
    #[arg(long)]
    release_threshold: Option<u32>,
    /// Until when the new root holds
    #[arg(long, value_parser = Stamp::parse)]
    expires: Stamp,
}

#[derive(Args, Debug)]
struct RevokeArgs {
    #[command(flatten)]
    folder: FolderArgs,
    /// The key: its file, or the first digits of its identity
    key: String,
    /// Why, in a few words; every box will show it
    #[arg(long)]
    why: String,
    /// Public key to put in its place in the same roles
    #[arg(long, value_name = "PUBLIC")]
    replace_by: Option<PathBuf>,
    /// Until when the new root holds; default: as before
    #[arg(long, value_parser = Stamp::parse)]
    expires: Option<Stamp>,
}

#[derive(Args, Debug)]
struct RenewArgs {
    #[command(flatten)]
    folder: FolderArgs,
    /// Until when the new root holds
    #[arg(long, value_parser = Stamp::parse)]
    expires: Stamp,
}

#[derive(Args, Debug)]
struct SignRootArgs {
    #[command(flatten)]
    folder: FolderArgs,
    #[command(flatten)]
    signer: SignerArgs,
}

pub(super) fn run(args: &RootArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        RootCommand::Make(a) => make(a)?,
        RootCommand::Rotate(a) => rotate(a)?,
        RootCommand::Revoke(a) => revoke(a)?,
        RootCommand::Renew(a) => {
            let mut root = next(&a.folder.roots)?;
            root.expires = a.expires;
            save(&a.folder.roots, root)?;
        }
        RootCommand::Sign(a) => sign(a)?,
        RootCommand::Show(a) => show(&a.roots)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn make(a: &MakeArgs) -> anyhow::Result<()> {
    let folder = &a.folder.roots;
    let first = root_path(folder, 1);
    ensure!(!first.exists(), "{} is there already; `scanside keys root rotate` makes the next", first.display());
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut root = Root::new(a.expires);
    let mut names = BTreeMap::new();
    let root_keys = load(&a.root_keys, &mut names)?;
    let release_keys = load(&a.release_keys, &mut names)?;
    root.set_role(RoleName::Root, &root_keys, a.root_threshold);
    root.set_role(RoleName::Release, &release_keys, a.release_threshold);
    root.scanside.names = names;
    save(folder, root)
}

/// Keys by identity; their holders' names are the files'.
fn load(files: &[PathBuf], names: &mut BTreeMap<KeyId, String>) -> anyhow::Result<BTreeMap<KeyId, Key>> {
    let mut keys = BTreeMap::new();
    for file in files {
        let key = Key::new(PublicKey::load(file)?);
        let id = key.id();
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        names.insert(id.clone(), name.trim_end_matches(".pem").trim_end_matches(".pub").to_string());
        ensure!(keys.insert(id, key).is_none(), "{} is given twice", file.display());
    }
    Ok(keys)
}

/// The newest root, which must be whole, as a base for the next.
fn next(folder: &Path) -> anyhow::Result<Root> {
    let chain = read_roots(folder).context("the newest root must be signed by enough keys before the next is made")?;
    let mut root = chain.newest().context("there is no root")?.signed.clone();
    root.version = root.version.checked_add(1).context("there are too many roots")?;
    Ok(root)
}

fn save(folder: &Path, root: Root) -> anyhow::Result<()> {
    if let Err(e) = root.check() {
        bail!("this root would not hold: {e}");
    }
    let path = root_path(folder, root.version);
    ensure!(!path.exists(), "{} is there already", path.display());
    let signed = Signed::new(root);
    write_durably(&path, &signed.to_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    println!("{}", path.display());
    show(folder)
}

fn keys_of(root: &Root, role: RoleName) -> BTreeMap<KeyId, Key> {
    let ids = &root.role(role).keyids;
    root.keys.iter().filter(|(id, _)| ids.contains(*id)).map(|(id, k)| (id.clone(), k.clone())).collect()
}

/// The key of a root that a file or the first digits name.
fn find(root: &Root, what: &str) -> anyhow::Result<KeyId> {
    if Path::new(what).exists() {
        let id = PublicKey::load(Path::new(what))?.id();
        ensure!(root.keys.contains_key(&id), "{what} is not a key of root {}", root.version.saturating_sub(1));
        return Ok(id);
    }
    let found: Vec<&KeyId> = root.keys.keys().filter(|id| id.as_str().starts_with(what)).collect();
    match found[..] {
        [id] if what.len() >= 6 => Ok(id.clone()),
        _ => bail!("{what:?} is neither a file nor the first six or more digits of one key's identity"),
    }
}

fn rotate(a: &RotateArgs) -> anyhow::Result<()> {
    let mut root = next(&a.folder.roots)?;
    let mut names = BTreeMap::new();
    let added = [(RoleName::Root, &a.add_root_key), (RoleName::Release, &a.add_release_key)];
    let removed = a.remove.iter().map(|k| find(&root, k)).collect::<anyhow::Result<Vec<_>>>()?;
    for (role, files) in added {
        let mut keys = keys_of(&root, role);
        keys.extend(load(files, &mut names)?);
        keys.retain(|id, _| !removed.contains(id));
        let threshold = match role {
            RoleName::Root => a.root_threshold,
            RoleName::Release => a.release_threshold,
        };
        root.set_role(role, &keys, threshold.unwrap_or(root.role(role).threshold));
    }
    root.scanside.names.extend(names);
    withdraw(&mut root, &removed, "rotated out");
    root.expires = a.expires;
    save(&a.folder.roots, root)
}

fn revoke(a: &RevokeArgs) -> anyhow::Result<()> {
    let mut root = next(&a.folder.roots)?;
    let id = find(&root, &a.key)?;
    let mut names = BTreeMap::new();
    let files: Vec<PathBuf> = a.replace_by.iter().cloned().collect();
    let new = load(&files, &mut names)?;
    for role in [RoleName::Root, RoleName::Release] {
        let mut keys = keys_of(&root, role);
        if keys.remove(&id).is_none() {
            continue;
        }
        keys.extend(new.clone());
        let threshold = root.role(role).threshold;
        root.set_role(role, &keys, threshold);
    }
    root.scanside.names.extend(names);
    withdraw(&mut root, &[id], &a.why);
    root.expires = a.expires.unwrap_or(root.expires);
    save(&a.folder.roots, root)
}

/// A key that leaves never comes back, so that a bundle it signed can be told from one by a stranger.
fn withdraw(root: &mut Root, keys: &[KeyId], why: &str) {
    for id in keys {
        root.scanside.revoked.insert(id.clone(), Revoked { root: root.version, why: why.to_string() });
    }
}

fn newest_path(folder: &Path) -> anyhow::Result<PathBuf> {
    let newest = (1..).map(|v| root_path(folder, v)).take_while(|p| p.exists()).last();
    newest.with_context(|| format!("no 1.root.json in {}: `scanside keys root make`", folder.display()))
}

/// A root that may still lack signatures.
fn partly_signed(path: &Path) -> anyhow::Result<Signed<Root>> {
    let root: Signed<Root> =
        Signed::from_bytes(&root_bytes(path)?).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?;
    root.signed.check().map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?;
    Ok(root)
}

fn sign(a: &SignRootArgs) -> anyhow::Result<()> {
    let path = newest_path(&a.folder.roots)?;
    let mut root = partly_signed(&path)?;
    let signer = a.signer.signer()?;
    let id = signer.public().id();
    let before = root.signed.version.checked_sub(1).filter(|v| *v > 0).map(|v| root_path(&a.folder.roots, v));
    let before = before.map(|p| super::read_root(&p)).transpose()?;
    let counts = |r: &Root| r.role(RoleName::Root).keyids.contains(&id);
    ensure!(
        counts(&root.signed) || before.as_ref().is_some_and(|b| counts(&b.signed)),
        "key {} is no root key of this root nor of the one before: its signature would count for nothing",
        id.short()
    );
    root.sign(signer.as_ref())?;
    write_durably(&path, &root.to_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    println!("{} signed with key {}", path.display(), id.short());
    show(&a.folder.roots)
}

fn show(folder: &Path) -> anyhow::Result<()> {
    let path = newest_path(folder)?;
    let root = partly_signed(&path)?;
    print_root_of(&root);
    let version = root.signed.version;
    let missing = |by: &Root, whose: &str| {
        let role = by.role(RoleName::Root);
        let good = root.signatures.iter().filter(|s| role.keyids.contains(&s.keyid)).count();
        let lacking = (role.threshold as usize).saturating_sub(good);
        if lacking > 0 {
            println!("  missing: {lacking} more signature(s) by {whose} root keys (`scanside keys root sign`)");
        }
        lacking
    };
    let mut lacking = missing(&root.signed, "its own");
    if version > 1 {
        let before = super::read_root(&root_path(folder, version - 1))?;
        lacking += missing(&before.signed, "the former");
    }
    if lacking == 0 {
        read_roots(folder)?;
        println!("  complete: it can be given to boxes (inside bundles, or with `scanside keys trust`)");
    }
    Ok(())
}
