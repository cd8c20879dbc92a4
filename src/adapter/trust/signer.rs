//! Who signs: a key in a file, or a command that holds the key elsewhere (a token, an encrypted file, another machine).

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use base64::Engine as _;

use super::key::{PublicKey, SecretKey};
use crate::adapter::{Reason, Refused};

/// A longer answer of an external signer is no signature, bytes.
const MAX_ANSWER: u64 = 4096;

/// Signs messages with one key.
pub trait Signer {
    /// The public half.
    fn public(&self) -> PublicKey;
    /// The signature of a message.
    ///
    /// # Errors
    /// [`Reason::Signer`].
    fn sign(&self, message: &[u8]) -> Result<[u8; 64], Refused>;
}

impl Signer for SecretKey {
    fn public(&self) -> PublicKey {
        SecretKey::public(self)
    }
    fn sign(&self, message: &[u8]) -> Result<[u8; 64], Refused> {
        Ok(SecretKey::sign(self, message))
    }
}

/// A shell command that gets the message on its standard input and answers the 64 bytes of the signature, raw, in hex or in
/// base64. It may ask a person (PIN, touch) on the terminal, and takes as long as that does.
#[derive(Clone, Debug)]
pub struct CommandSigner {
    /// The command line, run by `sh -c`.
    pub command: String,
    /// The public half of the key that it holds.
    pub public: PublicKey,
}

impl Signer for CommandSigner {
    fn public(&self) -> PublicKey {
        self.public.clone()
    }

    fn sign(&self, message: &[u8]) -> Result<[u8; 64], Refused> {
        let bad = |what: String| {
            Refused::new(
                Reason::Signer,
                format!("the signer `{}` {what}", self.command),
                "run it by itself: bytes on standard input, the 64 bytes of an ed25519 signature on standard output",
            )
        };
        let mut child = Command::new("sh")
            .args(["-c", &self.command])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| bad(format!("cannot be started: {e}")))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let mut answer = Vec::new();
        // Written beside the reading: a command that answers before it has read all must not block both.
        std::thread::scope(|scope| {
            scope.spawn(move || stdin.map(|mut pipe| pipe.write_all(message)));
            stdout.map(|pipe| pipe.take(MAX_ANSWER + 1).read_to_end(&mut answer))
        });
        let status = child.wait().map_err(|e| bad(format!("was lost: {e}")))?;
        if !status.success() {
            return Err(bad(format!("ended with {status}")));
        }
        signature(&answer).ok_or_else(|| bad(format!("answered {} bytes that are no signature", answer.len())))
    }
}

/// 64 raw bytes, or their hex or base64.
fn signature(answer: &[u8]) -> Option<[u8; 64]> {
    if let Ok(raw) = answer.try_into() {
        return Some(raw);
    }
    let text: String = std::str::from_utf8(answer).ok()?.split_whitespace().collect();
    let bytes = hex::decode(&text).ok().or_else(|| base64::engine::general_purpose::STANDARD.decode(&text).ok())?;
    bytes.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_answers_raw_hex_or_base64() {
        let raw = [7u8; 64];
        let base64 = base64::engine::general_purpose::STANDARD.encode(raw);
        assert_eq!(signature(&raw), Some(raw));
        assert_eq!(signature((hex::encode(raw) + "\n").as_bytes()), Some(raw));
        assert_eq!(signature((base64 + "\n").as_bytes()), Some(raw));
        assert_eq!(signature(b"no"), None);
        assert_eq!(signature(&[]), None);
    }

    #[test]
    fn a_command_that_fails_or_never_stops_talking_is_an_error_with_its_name() {
        let public = SecretKey::from_seed(&[1; 32]).public();
        for command in ["exit 3", "yes no", "cat >/dev/null; echo no"] {
            let e = CommandSigner { command: command.into(), public: public.clone() }.sign(&[0; 100_000]).unwrap_err();
            assert!(e.reason == Reason::Signer && e.sentence.contains(command), "{e}");
        }
    }
}
