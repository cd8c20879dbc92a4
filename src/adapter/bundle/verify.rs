//! Holds a bundle against what a box trusts, what time it is and what it has.

use std::path::Path;

use super::container::{ADAPTER, Archive, EVIDENCE, MANIFEST, read_file};
use super::evidence::Evidence;
use super::facts::{BoxFacts, Purpose};
use super::manifest::{Manifest, Target};
use super::parity::ParityCase;
use crate::adapter::trust::{CLOCK_TOLERANCE_MS, Chain, KeyId, RoleName, Root, Signed, TrustState, TrustStore, time};
use crate::adapter::{Adapter, Reason, Refused};
use crate::clock::Clock;
use crate::segex::SegexCalibration;
use crate::terms::Task;

/// A bundle whose form is sound and of which nothing is verified: for people who look into it.
#[derive(Clone, Debug)]
pub struct Unverified {
    /// The files.
    pub archive: Archive,
    /// The manifest with its signatures.
    pub manifest: Signed<Manifest>,
    /// The roots that it carries.
    pub roots: Chain,
}

impl Unverified {
    /// Finds manifest and roots in a bundle's bytes.
    ///
    /// # Errors
    /// As [`Archive::parse`]; [`Reason::Manifest`], [`Reason::RootChain`].
    pub fn parse(bytes: Vec<u8>) -> Result<Self, Refused> {
        let archive = Archive::parse(bytes)?;
        let manifest = archive.get(MANIFEST).unwrap_or_default();
        let manifest = Manifest::read(manifest).map_err(|e| {
            Refused::new(
                Reason::Manifest,
                format!("the bundle's manifest is refused: {e}"),
                "copy the bundle again; if that does not help, have it made anew",
            )
        })?;
        let roots = archive.names().filter(|n| n.starts_with("roots/")).filter_map(|n| archive.get(n));
        let roots = Chain::new(roots.map(Signed::<Root>::read).collect::<Result<_, _>>()?)?;
        Ok(Unverified { archive, manifest, roots })
    }

    /// Holds every file against the manifest.
    ///
    /// # Errors
    /// [`Reason::ExtraFile`], [`Reason::MissingFile`], [`Reason::ChangedFile`].
    pub fn check_files(&self) -> Result<(), Refused> {
        let targets = &self.manifest.signed.targets;
        let refuse = |reason, sentence: String| {
            Err(Refused::new(reason, sentence, "do not use it: it was changed after signing, or the copy is damaged"))
        };
        for name in self.archive.names().filter(|n| *n != MANIFEST) {
            let Some(target) = targets.get(name) else {
                return refuse(Reason::ExtraFile, format!("{name} is in the bundle but not in its manifest"));
            };
            if self.archive.get(name).map(Target::of).as_ref() != Some(target) {
                return refuse(Reason::ChangedFile, format!("{name} is not the file that was signed"));
            }
        }
        match targets.keys().find(|name| self.archive.get(name).is_none()) {
            Some(name) => refuse(Reason::MissingFile, format!("{name} is in the manifest but not in the bundle")),
            None => Ok(()),
        }
    }

    /// Adapter, evidence and parity images, held against the manifest and against each other.
    ///
    /// # Errors
    /// As [`Unverified::check_files`]; [`Reason::Adapter`], [`Reason::Parity`], [`Reason::Manifest`].
    pub fn contents(&self) -> Result<(Adapter, Evidence, Vec<ParityCase>), Refused> {
        self.check_files()?;
        let remedy = "have the bundle made anew on the training host";
        let unfit = |e: String| Refused::new(Reason::Adapter, e, remedy);
        let about = &self.manifest.signed.scanside;
        let adapter = Adapter::from_bytes(self.archive.get(ADAPTER).unwrap_or_default());
        let adapter = adapter.map_err(|e| unfit(e.to_string()))?;
        adapter.check(&about.base_sha256).map_err(|e| unfit(e.to_string()))?;
        let named = format!("{} {}", adapter.meta.name, adapter.meta.version);
        if named != about.adapter || adapter.meta.network_version != about.network_version {
            return Err(unfit(format!("the adapter inside is {named}, the manifest says {}", about.adapter)));
        }
        let evidence = Evidence::from_bytes(self.archive.get(EVIDENCE).unwrap_or_default())
            .map_err(|e| Refused::new(Reason::Manifest, e, remedy))?;
        let mut parity = Vec::new();
        for name in self.archive.names().filter(|n| n.starts_with("parity/")) {
            let case = ParityCase::from_bytes(self.archive.get(name).unwrap_or_default());
            let case = case.map_err(|e| Refused::new(Reason::Parity, format!("{name}: {e}"), remedy))?;
            let known = |key: &str| adapter.meta.task.structures.iter().any(|s| s.key == key);
            if let Some(s) = case.segments.iter().find(|s| !known(&s.structure.key)) {
                let what = format!("{name}: {:?} is no structure of the task", s.structure.key);
                return Err(Refused::new(Reason::Parity, what, remedy));
            }
            parity.push(case);
        }
        Ok((adapter, evidence, parity))
    }
}

/// A verified bundle.
#[derive(Clone, Debug)]
pub struct Bundle {
    id: String,
    manifest: Manifest,
    signers: Vec<String>,
    cautions: Vec<String>,
    adapter: Adapter,
    evidence: Evidence,
    parity: Vec<ParityCase>,
    bytes: Vec<u8>,
}

impl Bundle {
    /// Reads a bundle's file and holds it against this box; the one way in. A newer root that the bundle proves is taken at once,
    /// whatever becomes of the bundle: that is how a withdrawn key stops counting. Where it is accepted to be installed,
    /// the time is remembered too.
    ///
    /// # Errors
    /// [`Refused`] with every reason of docs/bundles.md but those of keys and `parity-failed`.
    pub fn open(
        path: &Path,
        store: &TrustStore,
        clock: &Clock,
        facts: &BoxFacts,
        purpose: Purpose,
    ) -> Result<Bundle, Refused> {
        let trust = store.load()?;
        let now = clock.now_ms();
        let checked = verify(read_file(path)?, &trust, now, facts, purpose);
        if let Some(root) = checked.root {
            store.update(|s| {
                if root.signed.version > s.root.signed.version {
                    s.root = root;
                }
            })?;
        }
        let bundle = checked.outcome?;
        if purpose == Purpose::Install {
            store.update(|s| s.see(now))?;
        }
        Ok(bundle)
    }

    /// Identity: sha256 of what was signed, hex.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Name of its line of releases.
    pub fn name(&self) -> &str {
        &self.manifest.scanside.name
    }

    /// Its version within that line.
    pub fn version(&self) -> u32 {
        self.manifest.version
    }

    /// What was signed.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Who signed, by name.
    pub fn signers(&self) -> &[String] {
        &self.signers
    }

    /// What a person should know although it is accepted; only with [`Purpose::Serve`].
    pub fn cautions(&self) -> &[String] {
        &self.cautions
    }

    /// The adapter, which fits this box's base and network.
    pub fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    /// The task: structures, codes, colours.
    pub fn task(&self) -> &Task {
        &self.adapter.meta.task
    }

    /// SegEx's calibration, where there is one.
    pub fn calibration(&self) -> Option<&SegexCalibration> {
        self.adapter.meta.segex.as_ref()
    }

    /// What was measured before the release.
    pub fn evidence(&self) -> &Evidence {
        &self.evidence
    }

    /// The parity images; at least one.
    pub fn parity(&self) -> &[ParityCase] {
        &self.parity
    }

    /// The bytes of the whole file: what was verified, to be kept on the box.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Writes the verified bytes to a file on the box, durably: whole or not at all.
    ///
    /// # Errors
    /// [`Reason::DiskFull`], [`Reason::Unreadable`].
    pub fn keep(&self, path: &Path) -> Result<(), Refused> {
        crate::adapter::trust::write_durably(path, &self.bytes)
            .map_err(|e| Refused::io(Reason::Unreadable, format!("cannot keep the bundle as {}", path.display()), &e))
    }

    /// Records that this bundle is committed: no older version of its name is installed from now on.
    ///
    /// # Errors
    /// As [`TrustStore::update`].
    pub fn commit(&self, store: &TrustStore, clock: &Clock) -> Result<(), Refused> {
        store
            .update(|s| {
                s.commit(self.name(), self.version(), &self.id);
                s.see(clock.now_ms());
            })
            .map(|_| ())
    }
}

/// What verifying yields.
#[derive(Debug)]
pub struct Checked {
    /// A newer root that the bundle proves; to be kept even where the bundle is refused.
    pub root: Option<Signed<Root>>,
    /// The bundle, or why not.
    pub outcome: Result<Bundle, Refused>,
}

/// Holds a bundle's bytes against a record of trust, a time and a box. Does no I/O and changes nothing.
pub fn verify(bytes: Vec<u8>, trust: &TrustState, now_ms: i64, facts: &BoxFacts, purpose: Purpose) -> Checked {
    let mut learnt = None;
    let outcome = judge(bytes, trust, now_ms, facts, purpose, &mut learnt);
    Checked { root: learnt, outcome }
}

fn judge(
    bytes: Vec<u8>,
    trust: &TrustState,
    now_ms: i64,
    facts: &BoxFacts,
    purpose: Purpose,
    learnt: &mut Option<Signed<Root>>,
) -> Result<Bundle, Refused> {
    let unverified = Unverified::parse(bytes)?;
    let manifest = &unverified.manifest;
    let mut cautions = Vec::new();
    *learnt = unverified.roots.from_trusted(&trust.root)?;
    let root = &learnt.as_ref().unwrap_or(&trust.root).signed;
    let id = manifest.signed.id();
    let name = &manifest.signed.scanside.name;
    let signers = match purpose {
        Purpose::Install => {
            check_time(root, trust, now_ms)?;
            let keys = manifest.signed_by("the bundle", root, root.role(RoleName::Release))?;
            check_release(&manifest.signed, &id, trust, now_ms)?;
            keys
        }
        Purpose::GoOn => {
            let keys = manifest.signed_by("the bundle", root, root.role(RoleName::Release))?;
            // Lost power between the record of trust and the row: the one committed goes on too.
            if !trust.committed(name, &id) {
                check_version(&manifest.signed, &id, trust)?;
            }
            keys
        }
        Purpose::Serve => {
            if !trust.committed(name, &id) {
                return Err(Refused::new(
                    Reason::NeverCommitted,
                    format!("{name} {} was never committed on this box", manifest.signed.version),
                    "install it like any other bundle",
                ));
            }
            manifest.signed_by("the bundle", root, root.role(RoleName::Release)).unwrap_or_else(|e| {
                cautions.push(format!("{} [{}]", e.sentence, e.reason));
                Vec::<KeyId>::new()
            })
        }
    };
    check_box(&manifest.signed, facts)?;
    let signers = signers.iter().map(|id| root.name_of(id)).collect();
    let (adapter, evidence, parity) = unverified.contents()?;
    let manifest = unverified.manifest.signed;
    Ok(Bundle { id, manifest, signers, cautions, adapter, evidence, parity, bytes: unverified.archive.into_bytes() })
}

/// The clock, and whether the root still speaks.
fn check_time(root: &Root, trust: &TrustState, now_ms: i64) -> Result<(), Refused> {
    trust.check_clock(now_ms)?;
    if now_ms >= root.expires.ms() {
        return Err(Refused::new(
            Reason::RootExpired,
            format!("root {} expired on {}", root.version, root.expires),
            "ask the training host for a new root (`scanside keys root renew`); check this box's clock",
        ));
    }
    Ok(())
}

/// Expiry and version, of a manifest whose signatures count.
fn check_release(manifest: &Manifest, id: &str, trust: &TrustState, now_ms: i64) -> Result<(), Refused> {
    let about = &manifest.scanside;
    let name = format!("{} {}", about.name, manifest.version);
    if now_ms.saturating_add(CLOCK_TOLERANCE_MS) < about.issued.ms() {
        return Err(Refused::new(
            Reason::ClockSetBack,
            format!("this box's clock says {}, but {name} was issued on {}", time(now_ms), about.issued),
            "set the clock",
        ));
    }
    if now_ms >= manifest.expires.ms() {
        return Err(Refused::new(
            Reason::Expired,
            format!("{name} expired on {}", manifest.expires),
            "ask for a newer bundle; check this box's clock",
        ));
    }
    check_version(manifest, id, trust)
}

/// That no newer version was committed, nor this one with other content or exactly so.
fn check_version(manifest: &Manifest, id: &str, trust: &TrustState) -> Result<(), Refused> {
    let about = &manifest.scanside;
    let name = format!("{} {}", about.name, manifest.version);
    let Some(last) = trust.version(&about.name) else { return Ok(()) };
    let refuse = |reason, sentence: String, remedy: &str| Err(Refused::new(reason, sentence, remedy));
    if manifest.version > last {
        return Ok(());
    }
    if manifest.version < last {
        return refuse(
            Reason::OlderVersion,
            format!("{name} is older than version {last}, which was committed here"),
            "to go back to what served before, use the box's own rollback; to withdraw a release, sign the old adapter under a \
             higher version",
        );
    }
    if trust.committed(&about.name, id) {
        return refuse(Reason::AlreadyCommitted, format!("{name} is already committed here"), "nothing is to be done");
    }
    refuse(
        Reason::VersionReused,
        format!("{name} differs from the version {last} that was committed here"),
        "two bundles must not share a version: have it made with a higher one",
    )
}

/// What the box is against what the bundle asks for.
fn check_box(manifest: &Manifest, facts: &BoxFacts) -> Result<(), Refused> {
    let about = &manifest.scanside;
    let name = format!("{} {}", about.name, manifest.version);
    let refuse = |reason, sentence: String, remedy: &str| Err(Refused::new(reason, sentence, remedy));
    if !about.sites.contains("*") && !about.sites.contains(&facts.site) {
        let sites: Vec<&str> = about.sites.iter().map(String::as_str).collect();
        let here = if facts.site.is_empty() { "without a name" } else { &facts.site };
        return refuse(
            Reason::ForeignSite,
            format!("{name} is for {}; this site is {here}", sites.join(", ")),
            "take the bundle of this site; station.site in the configuration names it",
        );
    }
    if about.network_version != facts.network_version {
        return refuse(
            Reason::WrongNetwork,
            format!(
                "{name} was trained with version {} of the network, this program runs {}",
                about.network_version, facts.network_version
            ),
            "update this program, or have the adapter trained again",
        );
    }
    if about.base_sha256 != facts.base_sha256 {
        return refuse(
            Reason::WrongBase,
            format!("{name} was trained on base weights {:.12}, here are {:.12}", about.base_sha256, facts.base_sha256),
            "fetch the base weights that it names (`scanside weights`), or have the adapter trained on these",
        );
    }
    let lacking = facts.lacks(&about.requires);
    if !lacking.is_empty() {
        return refuse(
            Reason::Requirement,
            format!("{name} asks for {}", lacking.join(" and ")),
            "update this program or this box, or take a bundle that asks for less",
        );
    }
    Ok(())
}
