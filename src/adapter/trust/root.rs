//! The root of trust: which keys fill which role, how many must sign, and which were withdrawn.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::envelope::{Signed, canonical};
use super::key::{Key, KeyId};
use super::stamp::Stamp;
use crate::adapter::{Reason, Refused};

/// TUF's version that the metadata follow.
pub const SPEC_VERSION: &str = "1.0.31";
/// Largest root file, bytes.
pub const MAX_ROOT_BYTES: usize = 64 << 10;
/// Most keys in a root.
pub const MAX_KEYS: usize = 32;
/// Withdrawn keys that a root remembers at most.
const MAX_REVOKED: usize = 256;
/// Longest name of a key, characters.
pub const KEPT_NAMES: usize = 80;

/// A role's keys and how many of them must sign.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Role {
    /// The keys.
    pub keyids: BTreeSet<KeyId>,
    /// Signatures by different keys that are needed.
    pub threshold: u32,
}

/// TUF's four roles. Bundles have no timestamp and no snapshot of their own; those two go to the release keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootRoles {
    /// Signs roots.
    pub root: Role,
    /// As `targets`.
    pub snapshot: Role,
    /// Signs bundles.
    pub targets: Role,
    /// As `targets`.
    pub timestamp: Role,
}

/// The two roles that people hold keys of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleName {
    /// Decides about keys.
    Root,
    /// Releases bundles.
    Release,
}

/// Why a key was withdrawn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revoked {
    /// First root without it.
    pub root: u32,
    /// In words.
    pub why: String,
}

/// What TUF has no field for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootNotes {
    /// Who holds a key, for people.
    pub names: BTreeMap<KeyId, String>,
    /// Keys that were withdrawn; they never come back.
    pub revoked: BTreeMap<KeyId, Revoked>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum RootType {
    #[serde(rename = "root")]
    Root,
}

/// The root, TUF's root metadata.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Root {
    #[serde(rename = "_type")]
    kind: RootType,
    consistent_snapshot: bool,
    /// After this the root trusts nobody.
    pub expires: Stamp,
    /// All keys by identity.
    pub keys: BTreeMap<KeyId, Key>,
    /// Who signs what.
    pub roles: RootRoles,
    /// Names and withdrawn keys.
    pub scanside: RootNotes,
    spec_version: String,
    /// Grows by one with each root.
    pub version: u32,
}

impl Root {
    /// A first root without keys; it is not valid before [`Root::set_role`] has filled both roles.
    pub fn new(expires: Stamp) -> Self {
        let role = || Role { keyids: BTreeSet::new(), threshold: 1 };
        Root {
            kind: RootType::Root,
            consistent_snapshot: false,
            expires,
            keys: BTreeMap::new(),
            roles: RootRoles { root: role(), snapshot: role(), targets: role(), timestamp: role() },
            scanside: RootNotes::default(),
            spec_version: SPEC_VERSION.into(),
            version: 1,
        }
    }

    /// A role.
    pub fn role(&self, role: RoleName) -> &Role {
        match role {
            RoleName::Root => &self.roles.root,
            RoleName::Release => &self.roles.targets,
        }
    }

    /// Gives a role its keys and threshold. Keys that no role has any more are dropped, their names stay.
    pub fn set_role(&mut self, role: RoleName, keys: &BTreeMap<KeyId, Key>, threshold: u32) {
        let new = Role { keyids: keys.keys().cloned().collect(), threshold };
        match role {
            RoleName::Root => self.roles.root = new,
            RoleName::Release => {
                self.roles.snapshot = new.clone();
                self.roles.timestamp = new.clone();
                self.roles.targets = new;
            }
        }
        self.keys.extend(keys.iter().map(|(id, k)| (id.clone(), k.clone())));
        let used: BTreeSet<&KeyId> = self.roles.root.keyids.union(&self.roles.targets.keyids).collect();
        self.keys.retain(|id, _| used.contains(id));
    }

    /// Who holds a key: its name and first digits.
    pub fn name_of(&self, id: &KeyId) -> String {
        match self.scanside.names.get(id) {
            Some(name) => format!("{name} ({})", id.short()),
            None => id.short().to_string(),
        }
    }

    /// What is wrong with it by itself.
    ///
    /// # Errors
    /// A sentence.
    pub fn check(&self) -> Result<(), String> {
        if self.version == 0 || !follows_tuf(&self.spec_version) {
            return Err(format!("root of version {}, TUF {}", self.version, self.spec_version));
        }
        if self.keys.len() > MAX_KEYS || self.scanside.revoked.len() > MAX_REVOKED {
            return Err(format!("more than {MAX_KEYS} keys or {MAX_REVOKED} withdrawn ones"));
        }
        for (id, key) in &self.keys {
            if key.id() != *id {
                return Err(format!("key {} stands under another key's identity", id.short()));
            }
            if self.scanside.revoked.contains_key(id) {
                return Err(format!("key {} was withdrawn and is listed again", id.short()));
            }
        }
        let r = &self.roles;
        for (name, role) in [("root", &r.root), ("release", &r.targets)] {
            let n = role.keyids.len();
            if role.threshold == 0 || role.threshold as usize > n {
                return Err(format!("role {name} asks for {} signatures of {n} keys", role.threshold));
            }
            if let Some(id) = role.keyids.iter().find(|id| !self.keys.contains_key(*id)) {
                return Err(format!("role {name} names key {}, which is not listed", id.short()));
            }
        }
        if r.snapshot != r.targets || r.timestamp != r.targets {
            return Err("the roles snapshot and timestamp are not those of targets".into());
        }
        let mut words = self.scanside.names.values().chain(self.scanside.revoked.values().map(|r| &r.why));
        if self.scanside.names.len() > MAX_KEYS + MAX_REVOKED
            || words.any(|w| w.chars().count() > KEPT_NAMES || w.chars().any(char::is_control))
        {
            return Err(format!("a key's name is longer than {KEPT_NAMES} characters or unprintable"));
        }
        Ok(())
    }
}

impl Signed<Root> {
    /// Reads a root file and checks it by itself: form, bounds, and that enough of its own root keys signed it.
    ///
    /// # Errors
    /// [`Reason::RootChain`].
    pub fn read(bytes: &[u8]) -> Result<Self, Refused> {
        let bad = |e: String| {
            Refused::new(Reason::RootChain, format!("a root is malformed: {e}"), "copy the root file again")
        };
        if bytes.len() > MAX_ROOT_BYTES {
            return Err(bad(format!("{} bytes; {MAX_ROOT_BYTES} are the most", bytes.len())));
        }
        let root: Signed<Root> = Signed::from_bytes(bytes).map_err(bad)?;
        root.signed.check().map_err(bad)?;
        let what = format!("root {}", root.signed.version);
        root.signed_by(&what, &root.signed, &root.signed.roles.root).map_err(in_chain)?;
        Ok(root)
    }

    /// Takes the next root: the following version, signed by enough of this one's keys and of its own, and still withdrawing
    /// every key that this one withdrew.
    ///
    /// # Errors
    /// [`Reason::RootChain`].
    pub fn advance(&self, next: &Signed<Root>) -> Result<(), Refused> {
        let (old, new) = (&self.signed, &next.signed);
        let bad = |e: String| Refused::new(Reason::RootChain, e, "ask for every root between, in order");
        if Some(new.version) != old.version.checked_add(1) {
            return Err(bad(format!("root {} cannot follow root {}", new.version, old.version)));
        }
        let what = format!("root {}", new.version);
        next.signed_by(&what, old, &old.roles.root).map_err(in_chain)?;
        next.signed_by(&what, new, &new.roles.root).map_err(in_chain)?;
        if let Some(id) = old.scanside.revoked.keys().find(|id| !new.scanside.revoked.contains_key(*id)) {
            return Err(bad(format!("{what} forgets that key {} was withdrawn", id.short())));
        }
        Ok(())
    }
}

/// `1.x.y`, in digits: a version that TUF can have, and no words with which a file could be given a wanted fingerprint.
fn follows_tuf(version: &str) -> bool {
    let parts: Vec<&str> = version.split('.').collect();
    let number = |p: &&str| (1..=3).contains(&p.len()) && p.bytes().all(|b| b.is_ascii_digit());
    parts.len() == 3 && parts.first() == Some(&"1") && parts.iter().all(number)
}

/// What people compare of a root by another way than the file: sha256 of what is signed, hex. Further signatures do not change it.
pub fn fingerprint(root: &Signed<Root>) -> String {
    hex::encode(Sha256::digest(canonical(&root.signed)))
}

fn in_chain(refused: Refused) -> Refused {
    Refused { reason: Reason::RootChain, ..refused }
}

/// Roots of ascending versions, each by itself valid.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain(Vec<Signed<Root>>);

impl Chain {
    /// Orders roots by version.
    ///
    /// # Errors
    /// [`Reason::RootChain`] where a version is missing or there twice.
    pub fn new(mut roots: Vec<Signed<Root>>) -> Result<Self, Refused> {
        roots.sort_by_key(|r| r.signed.version);
        for pair in roots.windows(2) {
            pair[0].advance(&pair[1])?;
        }
        Ok(Chain(roots))
    }

    /// The roots, oldest first.
    pub fn roots(&self) -> &[Signed<Root>] {
        &self.0
    }

    /// The newest.
    pub fn newest(&self) -> Option<&Signed<Root>> {
        self.0.last()
    }

    /// The newest root that `trusted` leads to; none where that is `trusted` itself.
    ///
    /// # Errors
    /// [`Reason::RootChain`] where the chain begins too late, or has another root of the trusted version.
    pub fn from_trusted(&self, trusted: &Signed<Root>) -> Result<Option<Signed<Root>>, Refused> {
        let mut at = trusted;
        for next in &self.0 {
            if next.signed.version == trusted.signed.version && next.signed != trusted.signed {
                return Err(Refused::new(
                    Reason::RootChain,
                    format!("there is another root {} than the one trusted here", trusted.signed.version),
                    "do not use it; ask the training host which root is theirs",
                ));
            }
            if next.signed.version > at.signed.version {
                at.advance(next)?;
                at = next;
            }
        }
        Ok((at.signed.version > trusted.signed.version).then(|| at.clone()))
    }
}
