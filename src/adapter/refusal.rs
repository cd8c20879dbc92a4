//! Why a bundle, or the trust that it is held against, was refused: a stable code, a sentence, a remedy.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Stable reason codes. Their names and numbers never change their meaning; docs/bundles.md lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The file cannot be read.
    Unreadable,
    /// The bytes are no bundle.
    NotABundle,
    /// A size, count or name is beyond every bundle: an archive bomb.
    TooLarge,
    /// The file ends early.
    Truncated,
    /// A name that leaves the bundle, a link, or a name that no bundle has.
    UnsafeName,
    /// A file that the manifest does not list.
    ExtraFile,
    /// A file that the manifest lists is not there.
    MissingFile,
    /// A file is not the one that was signed.
    ChangedFile,
    /// The manifest is malformed.
    Manifest,
    /// There is no signature.
    Unsigned,
    /// Every signature is by keys that nobody here trusts.
    WrongKey,
    /// Fewer signatures than the threshold.
    TooFewSignatures,
    /// Too few signatures are left without those of keys that were withdrawn.
    RevokedKey,
    /// A signature by a trusted key does not fit what it stands under.
    BadSignature,
    /// A newer root is not signed by the old and the new keys, or one in between is missing.
    RootChain,
    /// The root has expired.
    RootExpired,
    /// The bundle has expired.
    Expired,
    /// The clock is before a time that this box has already seen.
    ClockSetBack,
    /// Older than the last one committed.
    OlderVersion,
    /// The version of the one committed with other content.
    VersionReused,
    /// Exactly the one committed.
    AlreadyCommitted,
    /// Was never committed here.
    NeverCommitted,
    /// Made for other base weights.
    WrongBase,
    /// Made for another version of the network.
    WrongNetwork,
    /// Asks for more than this box has.
    Requirement,
    /// Not for this site.
    ForeignSite,
    /// The adapter does not fit the network or contradicts itself.
    Adapter,
    /// The parity images are malformed.
    Parity,
    /// The parity images do not come out as expected on this box.
    ParityFailed,
    /// This box has no root of trust yet.
    NoRoot,
    /// The record of trust is damaged.
    TrustDamaged,
    /// The record of trust was changed by somebody else, or would go back.
    TrustConflict,
    /// The disk is full.
    DiskFull,
    /// The record of trust cannot be read or written.
    TrustUnwritable,
    /// A key's file may be read by others, or is no key.
    KeyFile,
    /// An external signer failed.
    Signer,
}

impl Reason {
    /// All, in the order of their exit codes.
    pub const ALL: [Reason; 36] = {
        use Reason::*;
        [
            Unreadable,
            NotABundle,
            TooLarge,
            Truncated,
            UnsafeName,
            ExtraFile,
            MissingFile,
            ChangedFile,
            Manifest,
            Unsigned,
            WrongKey,
            TooFewSignatures,
            RevokedKey,
            BadSignature,
            RootChain,
            RootExpired,
            Expired,
            ClockSetBack,
            OlderVersion,
            VersionReused,
            AlreadyCommitted,
            NeverCommitted,
            WrongBase,
            WrongNetwork,
            Requirement,
            ForeignSite,
            Adapter,
            Parity,
            ParityFailed,
            NoRoot,
            TrustDamaged,
            TrustConflict,
            DiskFull,
            TrustUnwritable,
            KeyFile,
            Signer,
        ]
    };

    /// Stable code: name, as in messages and JSON, and the exit code of a command that was refused for it.
    pub const fn code(self) -> (&'static str, u8) {
        match self {
            Reason::Unreadable => ("unreadable", 20),
            Reason::NotABundle => ("not-a-bundle", 21),
            Reason::TooLarge => ("too-large", 22),
            Reason::Truncated => ("truncated", 23),
            Reason::UnsafeName => ("unsafe-name", 24),
            Reason::ExtraFile => ("extra-file", 25),
            Reason::MissingFile => ("missing-file", 26),
            Reason::ChangedFile => ("changed-file", 27),
            Reason::Manifest => ("manifest", 28),
            Reason::Unsigned => ("unsigned", 30),
            Reason::WrongKey => ("wrong-key", 31),
            Reason::TooFewSignatures => ("too-few-signatures", 32),
            Reason::RevokedKey => ("revoked-key", 33),
            Reason::BadSignature => ("bad-signature", 34),
            Reason::RootChain => ("root-chain", 35),
            Reason::RootExpired => ("root-expired", 36),
            Reason::Expired => ("expired", 40),
            Reason::ClockSetBack => ("clock-set-back", 41),
            Reason::OlderVersion => ("older-version", 42),
            Reason::VersionReused => ("version-reused", 43),
            Reason::AlreadyCommitted => ("already-committed", 44),
            Reason::NeverCommitted => ("never-committed", 45),
            Reason::WrongBase => ("wrong-base", 50),
            Reason::WrongNetwork => ("wrong-network", 51),
            Reason::Requirement => ("requirement", 52),
            Reason::ForeignSite => ("foreign-site", 53),
            Reason::Adapter => ("adapter", 54),
            Reason::Parity => ("parity", 55),
            Reason::ParityFailed => ("parity-failed", 56),
            Reason::NoRoot => ("no-root", 60),
            Reason::TrustDamaged => ("trust-damaged", 61),
            Reason::TrustConflict => ("trust-conflict", 62),
            Reason::DiskFull => ("disk-full", 63),
            Reason::TrustUnwritable => ("trust-unwritable", 64),
            Reason::KeyFile => ("key-file", 65),
            Reason::Signer => ("signer", 66),
        }
    }

    /// The stable name.
    pub const fn name(self) -> &'static str {
        self.code().0
    }

    /// The exit code of a command that was refused for it.
    pub const fn exit_code(self) -> u8 {
        self.code().1
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A refusal as a person and a program can use it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{sentence} [{reason}]; {remedy}")]
pub struct Refused {
    /// Why, stable.
    pub reason: Reason,
    /// What is wrong, naming the thing.
    pub sentence: String,
    /// What to do now.
    pub remedy: String,
}

impl Refused {
    /// A refusal.
    pub fn new(reason: Reason, sentence: impl Into<String>, remedy: impl Into<String>) -> Self {
        Refused { reason, sentence: sentence.into(), remedy: remedy.into() }
    }

    /// A full disk, or `otherwise` for any other failure of the system.
    pub fn io(otherwise: Reason, what: impl fmt::Display, error: &std::io::Error) -> Self {
        use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        if matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge) {
            return Refused::new(
                Reason::DiskFull,
                format!("{what}: {error}"),
                "nothing was changed; free space on this disk and repeat",
            );
        }
        Refused::new(otherwise, format!("{what}: {error}"), "check that the file is there, its owner and the medium")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_exit_codes_are_unique_and_clear_of_the_commands_own() {
        for (i, a) in Reason::ALL.iter().enumerate() {
            assert!((3..=125).contains(&a.exit_code()), "{a}");
            for b in &Reason::ALL[i + 1..] {
                assert!(a.name() != b.name() && a.exit_code() < b.exit_code(), "{a} {b}");
            }
            assert_eq!(serde_json::to_string(a).unwrap(), format!("\"{}\"", a.name()));
        }
    }

    #[test]
    fn the_documentation_lists_exactly_these() {
        let text = include_str!("../../docs/bundles.md");
        let rows: Vec<(&str, u8)> = text
            .lines()
            .filter_map(|l| {
                let mut cells = l.strip_prefix("| `")?.split('|');
                Some((cells.next()?.trim().trim_end_matches('`'), cells.next()?.trim().parse().ok()?))
            })
            .collect();
        assert_eq!(rows, Reason::ALL.map(Reason::code));
    }

    #[test]
    fn a_full_disk_is_told_apart() {
        let of = |kind: std::io::ErrorKind| Refused::io(Reason::Unreadable, "x", &kind.into()).reason;
        assert_eq!(of(std::io::ErrorKind::StorageFull), Reason::DiskFull);
        assert_eq!(of(std::io::ErrorKind::NotFound), Reason::Unreadable);
    }
}
