//! A receiving box in this process, a sender made of raw PDUs, and synthetic MR objects.
#![allow(dead_code)]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dicom_ul::pdu::{AssociationRQ, Pdu, PresentationContextProposed, read_pdu, write_pdu};
use scanside::clock::Clock;
use scanside::dicom::net::command::{Command, ERROR_COMMENT, RESPONDED_TO, STATUS};
use scanside::dicom::net::message::{pdata_header, pdvs};
use scanside::dicom::net::negotiate::{
    APPLICATION_CONTEXT, Acceptor, Caller, Callers, Classes, EXPLICIT_LE, user_variables,
};
use scanside::dicom::net::scp::{Scp, ScpOptions};
use scanside::dicom::net::{MR_IMAGE_STORAGE, VERIFICATION, part10};
use scanside::store::{Instance, Received, Spool, Store, StoreError, SweepReport, instances};

pub const SERIES: &str = "1.2.826.0.1.3680043.9.9999.2";

pub fn options() -> ScpOptions {
    let callers = vec![Caller { ae_title: "SENDER".into(), address: None }];
    ScpOptions {
        acceptor: Acceptor {
            ae_title: "SCANSIDE".into(),
            callers: Callers::Listed(callers),
            classes: Classes::Mr,
            max_pdu: 128 * 1024,
        },
        max_associations: 16,
        idle: Duration::from_secs(20),
        max_object: 64 << 20,
        first_association: 1,
    }
}

/// A storage SCP over a spool.
pub struct Receiver {
    pub runtime: tokio::runtime::Runtime,
    pub store: Store,
    pub address: SocketAddr,
    pub events: tokio::sync::mpsc::Receiver<Received>,
    pub sweep: SweepReport,
    scp: Option<Scp>,
}

/// Opens the state directory. The committer of a receiver that was just dropped may hold the lock for another moment.
pub fn open(dir: &Path) -> Store {
    for _ in 0..100 {
        match Store::open(dir, Clock::System) {
            Err(StoreError::Locked(_)) => std::thread::sleep(Duration::from_millis(100)),
            other => return other.unwrap(),
        }
    }
    panic!("{} stays locked", dir.display())
}

impl Receiver {
    pub fn start(dir: &Path) -> Receiver {
        Receiver::with(dir, options(), 0)
    }

    pub fn with(dir: &Path, options: ScpOptions, min_free: u64) -> Receiver {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let store = open(dir);
        let (spool, sweep) = Spool::open(&store, min_free).unwrap();
        let events = spool.subscribe(10_000);
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let scp = runtime.block_on(Scp::bind(loopback, options, Arc::new(spool))).unwrap();
        Receiver { runtime, store, address: scp.local_addr(), events, sweep, scp: Some(scp) }
    }

    pub fn rows(&self) -> Vec<Instance> {
        let mut all = Vec::new();
        for s in self.store.with_conn(|c| instances::series(c, false)).unwrap() {
            all.extend(self.store.with_conn(|c| instances::of_series(c, &s.series_uid)).unwrap());
        }
        all
    }

    /// The next event; `None` if none comes.
    pub fn next_event(&mut self) -> Option<Received> {
        let events = &mut self.events;
        let next = async { tokio::time::timeout(Duration::from_secs(10), events.recv()).await };
        self.runtime.block_on(next).ok().flatten()
    }

    pub fn files(&self) -> Vec<PathBuf> {
        list(&self.store.dir().join("spool/objects"))
    }

    pub fn unfinished(&self) -> Vec<PathBuf> {
        list(&self.store.dir().join("spool/incoming"))
    }

    /// An association proposing Verification (1) and MR in Explicit VR Little Endian (3).
    pub fn associate(&self) -> Raw {
        self.associate_on(&[(VERIFICATION, EXPLICIT_LE), (MR_IMAGE_STORAGE, EXPLICIT_LE)])
    }

    pub fn associate_on(&self, contexts: &[(&str, &str)]) -> Raw {
        let mut raw = Raw::connect(self.address);
        raw.send_pdu(&request("SENDER", "SCANSIDE", contexts));
        match raw.pdu() {
            Some(Pdu::AssociationAC(_)) => raw,
            other => panic!("not accepted: {other:?}"),
        }
    }

    /// The box still serves: an echo on a new association. Connections that were just dropped may still fill its lobby,
    /// and one too many is closed at once; a sender tries again, and so does this.
    pub fn assert_alive(&self) {
        let contexts = [(VERIFICATION, EXPLICIT_LE)];
        let accepted = (0..60).find_map(|_| {
            let mut raw = Raw::connect(self.address);
            raw.send_pdu(&request("SENDER", "SCANSIDE", &contexts));
            let accepted = matches!(raw.pdu(), Some(Pdu::AssociationAC(_)));
            if !accepted {
                std::thread::sleep(Duration::from_millis(250));
            }
            accepted.then_some(raw)
        });
        let mut raw = accepted.expect("the box takes no association any more");
        raw.send_command(1, &Command::echo_request(77));
        let answer = raw.answer();
        assert_eq!((answer.u16(STATUS), answer.u16(RESPONDED_TO)), (Some(0), Some(77)));
        raw.release();
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if let Some(scp) = self.scp.take() {
            self.runtime.block_on(scp.shutdown(Duration::from_secs(2)));
        }
    }
}

pub fn list(dir: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    all.sort();
    all
}

pub fn request(calling: &str, called: &str, contexts: &[(&str, &str)]) -> Pdu {
    Pdu::AssociationRQ(AssociationRQ {
        protocol_version: 1,
        calling_ae_title: calling.into(),
        called_ae_title: called.into(),
        application_context_name: APPLICATION_CONTEXT.into(),
        presentation_contexts: contexts
            .iter()
            .enumerate()
            .map(|(i, (class, syntax))| PresentationContextProposed {
                id: (i * 2 + 1) as u8,
                abstract_syntax: class.to_string(),
                transfer_syntaxes: vec![syntax.to_string()],
            })
            .collect(),
        user_variables: user_variables(128 * 1024),
    })
}

/// A peer that does what it is told, byte by byte.
pub struct Raw {
    pub stream: TcpStream,
}

impl Raw {
    pub fn connect(address: SocketAddr) -> Raw {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Raw { stream }
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn send_pdu(&mut self, pdu: &Pdu) {
        let mut bytes = Vec::new();
        write_pdu(&mut bytes, pdu).unwrap();
        self.bytes(&bytes);
    }

    /// The next PDU; `None` once the peer closed the connection.
    pub fn pdu(&mut self) -> Option<Pdu> {
        read_pdu(&self.raw_pdu()?[..], 1 << 20, true).unwrap()
    }

    fn raw_pdu(&mut self) -> Option<Vec<u8>> {
        let mut bytes = vec![0u8; 6];
        self.stream.read_exact(&mut bytes).ok()?;
        let length = u32::from_be_bytes(bytes[2..6].try_into().unwrap()) as usize;
        bytes.resize(6 + length, 0);
        self.stream.read_exact(&mut bytes[6..]).ok()?;
        Some(bytes)
    }

    pub fn send_command(&mut self, context: u8, command: &Command) {
        let bytes = command.encode();
        self.bytes(&[&pdata_header(context, true, true, bytes.len())[..], &bytes].concat());
    }

    pub fn send_data(&mut self, context: u8, data: &[u8], last: bool) {
        self.bytes(&[&pdata_header(context, false, last, data.len())[..], data].concat());
    }

    /// The next response.
    pub fn answer(&mut self) -> Command {
        let pdu = self.raw_pdu().expect("an answer, not the end of the connection");
        assert_eq!(pdu[0], 4, "an answer, not a PDU of type {}", pdu[0]);
        let pdv = pdvs(&pdu[6..]).next().unwrap().unwrap();
        assert!(pdv.command && pdv.last);
        Command::decode(pdv.data).unwrap()
    }

    /// Stores a data set on context 3; the status and the comment of the answer.
    pub fn store(&mut self, class: &str, instance: &str, data: &[u8]) -> (u16, String) {
        self.store_on(3, class, instance, data)
    }

    pub fn store_on(&mut self, context: u8, class: &str, instance: &str, data: &[u8]) -> (u16, String) {
        self.send_command(context, &Command::store_request(5, class, instance));
        let pieces: Vec<&[u8]> = if data.is_empty() { vec![&[]] } else { data.chunks(100_000).collect() };
        for (i, piece) in pieces.iter().enumerate() {
            self.send_data(context, piece, i + 1 == pieces.len());
        }
        let answer = self.answer();
        assert_eq!(answer.u16(RESPONDED_TO), Some(5));
        (answer.u16(STATUS).unwrap(), answer.text(ERROR_COMMENT).unwrap_or_default())
    }

    pub fn release(mut self) {
        self.send_pdu(&Pdu::ReleaseRQ);
        assert_eq!(self.pdu(), Some(Pdu::ReleaseRP));
    }

    /// The peer aborts, or closes the connection, instead of answering.
    pub fn assert_ended(&mut self) {
        match self.pdu() {
            None | Some(Pdu::AbortRQ { .. }) => {}
            other => panic!("the association goes on: {other:?}"),
        }
    }
}

/// An element in Explicit VR, little endian.
pub fn element(tag: (u16, u16), vr: &str, value: &[u8]) -> Vec<u8> {
    let mut out = [tag.0.to_le_bytes(), tag.1.to_le_bytes()].concat();
    out.extend_from_slice(vr.as_bytes());
    let pad = value.len() % 2;
    if ["OB", "OW", "SQ", "UN"].contains(&vr) {
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(&((value.len() + pad) as u32).to_le_bytes());
    } else {
        out.extend_from_slice(&((value.len() + pad) as u16).to_le_bytes());
    }
    out.extend_from_slice(value);
    out.extend(std::iter::repeat_n(if vr == "UI" { 0 } else { b' ' }, pad));
    out
}

pub fn instance_uid(n: usize) -> String {
    format!("1.2.826.0.1.3680043.9.9999.2.{n}")
}

/// An MR data set with `middle` between its identifiers and its pixels (tags above 0020,0013).
pub fn data_set(n: usize, side: u16, middle: &[u8]) -> Vec<u8> {
    let pixels: Vec<u8> = (0..usize::from(side).pow(2) * 2).map(|i| (i * 7 + n) as u8).collect();
    [
        element((0x0008, 0x0016), "UI", MR_IMAGE_STORAGE.as_bytes()),
        element((0x0008, 0x0018), "UI", instance_uid(n).as_bytes()),
        element((0x0008, 0x0060), "CS", b"MR"),
        element((0x0010, 0x0010), "PN", b"Test^Only"),
        element((0x0010, 0x0020), "LO", b"T1"),
        element((0x0020, 0x000D), "UI", b"1.2.826.0.1.3680043.9.9999.1"),
        element((0x0020, 0x000E), "UI", SERIES.as_bytes()),
        element((0x0020, 0x0013), "IS", n.to_string().as_bytes()),
        middle.to_vec(),
        element((0x0028, 0x0002), "US", &[1, 0]),
        element((0x0028, 0x0004), "CS", b"MONOCHROME2"),
        element((0x0028, 0x0010), "US", &side.to_le_bytes()),
        element((0x0028, 0x0011), "US", &side.to_le_bytes()),
        element((0x0028, 0x0100), "US", &[16, 0]),
        element((0x0028, 0x0101), "US", &[16, 0]),
        element((0x0028, 0x0102), "US", &[15, 0]),
        element((0x0028, 0x0103), "US", &[0, 0]),
        element((0x7FE0, 0x0010), "OW", &pixels),
    ]
    .concat()
}

/// Writes MR files and returns their paths.
pub fn write_files(dir: &Path, count: usize, side: u16) -> Vec<PathBuf> {
    std::fs::create_dir_all(dir).unwrap();
    (0..count)
        .map(|n| {
            let mut bytes = part10::head(MR_IMAGE_STORAGE, &instance_uid(n), EXPLICIT_LE);
            bytes.extend(data_set(n, side, &[]));
            let path = dir.join(format!("{n:04}.dcm"));
            std::fs::write(&path, bytes).unwrap();
            path
        })
        .collect()
}
