//! Real peers: python-tuf reads and verifies the metadata, OpenSSL the keys and signatures, GNU tar the container.

use std::path::Path;
use std::process::Command;

use scanside::adapter::bundle::Archive;
use scanside::adapter::trust::{CommandSigner, PublicKey, SecretKey, Signer};

use crate::common::{peer, python_with};
use crate::fixture::{Host, files, forge};

fn unpack(bytes: &[u8], folder: &Path) {
    let archive = Archive::parse(bytes.to_vec()).unwrap();
    for name in archive.names() {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, archive.get(name).unwrap()).unwrap();
    }
}

#[test]
fn python_tuf_verifies_roots_manifest_and_files() {
    let Some(python) = python_with("tuf.api.metadata") else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/tuf_check.py");
    let check = |bytes: &[u8]| {
        let folder = tempfile::tempdir().unwrap();
        unpack(bytes, folder.path());
        let out = Command::new(&python).arg(&script).arg(folder.path()).output().unwrap();
        (
            out.status.success(),
            format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)),
        )
    };
    let mut host = Host::default();
    let new = host.revoke(0);
    let bundle = crate::fixture::sign(host.draft(4).to_bytes().unwrap(), &[new, SecretKey::from_seed(&[5; 32])]);
    let (ok, said) = check(&bundle);
    assert!(ok && said.contains("root 2, bundle version 4"), "{said}");
    // It refuses what we refuse: too few signatures, a file that is not the one that was signed.
    let (ok, said) = check(&host.bundle(4));
    assert!(!ok && said.contains("UnsignedMetadataError"), "{said}");
    let folder = tempfile::tempdir().unwrap();
    unpack(&bundle, folder.path());
    std::fs::write(folder.path().join("evidence.json"), "{}").unwrap();
    let out = Command::new(&python).arg(&script).arg(folder.path()).output().unwrap();
    assert!(!out.status.success() && String::from_utf8_lossy(&out.stderr).contains("LengthOrHashMismatchError"));
}

#[test]
fn openssl_reads_our_keys_and_signs_as_an_external_signer() {
    let Some(openssl) = peer("openssl") else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let run = |args: &[&str]| {
        let out = Command::new(&openssl).args(args).output().unwrap();
        assert!(out.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        out.stdout
    };
    // Our key in OpenSSL's hands.
    let ours = SecretKey::generate().unwrap();
    ours.save(Path::new(&path("ours.pem"))).unwrap();
    let public = run(&["pkey", "-in", &path("ours.pem"), "-pubout"]);
    assert_eq!(String::from_utf8(public).unwrap(), ours.public().to_pem().unwrap());
    std::fs::write(path("message"), b"some bytes").unwrap();
    std::fs::write(path("sig"), ours.sign(b"some bytes")).unwrap();
    run(&[
        "pkeyutl",
        "-verify",
        "-inkey",
        &path("ours.pem"),
        "-rawin",
        "-in",
        &path("message"),
        "-sigfile",
        &path("sig"),
    ]);
    // OpenSSL's key in ours, and OpenSSL as the one who signs.
    run(&["genpkey", "-algorithm", "ed25519", "-out", &path("theirs.pem")]);
    run(&["pkey", "-in", &path("theirs.pem"), "-pubout", "-out", &path("theirs.pub.pem")]);
    let signer = CommandSigner {
        command: format!(
            "cat > {m} && {} pkeyutl -sign -inkey {} -rawin -in {m}",
            openssl.display(),
            path("theirs.pem"),
            m = path("m")
        ),
        public: PublicKey::load(Path::new(&path("theirs.pub.pem"))).unwrap(),
    };
    let signature = signer.sign(b"a manifest").unwrap();
    assert!(signer.public().verifies(b"a manifest", &signature) && !signer.public().verifies(b"another", &signature));
}

#[test]
fn gnu_tar_lists_a_bundle() {
    let Some(tar) = peer("tar") else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("b.bundle");
    std::fs::write(&path, Host::default().bundle(1)).unwrap();
    let out = Command::new(tar).arg("-tf").arg(&path).output().unwrap();
    let names = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(
        names.lines().collect::<Vec<_>>(),
        ["manifest.json", "adapter.safetensors", "evidence.json", "parity/1.safetensors", "roots/1.json"]
    );
}

#[test]
fn forged_bundles_of_these_tests_are_sound_but_for_what_they_change() {
    let host = Host::default();
    let good = host.bundle(1);
    assert_eq!(forge(&good, &host.release_keys[..2], files(&good), |_| {}), good);
}
