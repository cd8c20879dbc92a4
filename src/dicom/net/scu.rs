//! The storage SCU: sends files as they are where the peer takes them so, and asks a peer for an echo. Blocking; run it where that is
//! allowed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dicom_ul::pdu::{
    AssociationRQ, Pdu, PresentationContextProposed, PresentationContextResultReason, UserVariableItem,
};

use super::command::{C_ECHO_RQ, C_STORE_RQ, Command, ERROR_COMMENT, RESPONDED_TO, RESPONSE, STATUS};
use super::message::{Assembler, Event, ProtocolError, command_pdus, pdata_header, pdvs};
use super::negotiate::{APPLICATION_CONTEXT, EXPLICIT_LE, IMPLICIT_LE, printable, usable_max_pdu, user_variables};
use super::part10::{Head, read_head};
use super::status::{Meaning, meaning};
use super::wire::{Frame, PduReader, WireError, encode};
use super::{VERIFICATION, is_uid};

/// Presentation contexts that fit into one association.
const MAX_CONTEXTS: usize = 128;
/// Largest file that is encoded anew, bytes: it is held in memory.
const MAX_ENCODED: u64 = 256 << 20;

/// Whom to call, and as whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its AE title.
    pub ae_title: String,
    /// Host name or address, and port.
    pub address: String,
    /// Our AE title.
    pub calling_ae: String,
}

/// Patience and sizes.
#[derive(Clone, Copy, Debug)]
pub struct ScuOptions {
    /// For the connection.
    pub connect: Duration,
    /// For every answer, and for every piece sent.
    pub answer: Duration,
    /// Largest PDU body we take and send, bytes.
    pub max_pdu: u32,
}

impl Default for ScuOptions {
    fn default() -> Self {
        ScuOptions { connect: Duration::from_secs(10), answer: Duration::from_secs(60), max_pdu: 128 * 1024 }
    }
}

/// Why there is no association, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum ScuError {
    /// The host is not known.
    #[error("{address} cannot be resolved: {cause}; check the address")]
    Resolve {
        /// As configured.
        address: String,
        /// The system's words.
        cause: std::io::Error,
    },
    /// No connection.
    #[error("{address} cannot be reached: {cause}; is it running, and is the port right?")]
    Connect {
        /// As configured.
        address: String,
        /// The system's words.
        cause: std::io::Error,
    },
    /// The peer rejects us.
    #[error("{ae} rejects the association: {why}")]
    Rejected {
        /// The peer's AE title.
        ae: String,
        /// Its reason.
        why: String,
    },
    /// The peer aborted, or answered what is not due.
    #[error("{ae} broke off: {why}")]
    Broken {
        /// The peer's AE title.
        ae: String,
        /// How.
        why: String,
    },
    /// The peer does not take what we need.
    #[error("{ae} does not take {what}")]
    NotTaken {
        /// The peer's AE title.
        ae: String,
        /// SOP class and transfer syntax.
        what: String,
    },
}

/// What became of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The peer took it with this status, 0000 or a warning.
    Stored(u16),
    /// Not now; sending again may succeed.
    Transient(String),
    /// It will be refused again.
    Permanent(String),
}

/// A file and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The file.
    pub path: PathBuf,
    /// Its SOP instance; empty where the file could not be read.
    pub sop_instance: String,
    /// What became of it.
    pub sent: Sent,
}

/// Asks the target for a C-ECHO.
///
/// # Errors
/// [`ScuError`].
pub fn echo(target: &Target, options: &ScuOptions) -> Result<(), ScuError> {
    let mut association = Association::open(target, options, &[(VERIFICATION.to_string(), IMPLICIT_LE.to_string())])?;
    let Some(&context) = association.contexts.values().next() else {
        return Err(ScuError::NotTaken { ae: target.ae_title.clone(), what: "Verification".into() });
    };
    let id = association.next_id();
    let request = command_pdus(context, &Command::echo_request(id), association.max_pdu);
    association.stream.write_all(&request).map_err(|e| association.broken(e))?;
    let (status, _) = association.answer(id, C_ECHO_RQ)?;
    association.release();
    if status == 0 { Ok(()) } else { Err(association.broken(format!("C-ECHO status {status:04X}"))) }
}

/// Sends files over as few associations as their contexts allow; every file has its outcome.
///
/// Each file goes as it is, in its own transfer syntax; one in Explicit VR Little Endian goes encoded anew where the peer takes the
/// default transfer syntax alone. A broken association makes the rest transient: the caller tries again.
pub fn send(files: &[PathBuf], target: &Target, options: &ScuOptions) -> Vec<Outcome> {
    let mut outcomes: Vec<Option<Outcome>> = files.iter().map(|_| None).collect();
    let mut heads = Vec::new();
    for (i, path) in files.iter().enumerate() {
        match File::open(path).map_err(Into::into).and_then(|mut f| read_head(&mut f)) {
            Ok(head) if is_uid(&head.sop_class) && is_uid(&head.sop_instance) && is_uid(&head.transfer_syntax) => {
                heads.push((i, head));
            }
            Ok(_) => outcomes[i] = Some(permanent(path, "its file meta information holds no valid UIDs".into())),
            Err(e) => outcomes[i] = Some(permanent(path, e.to_string())),
        }
    }
    let mut groups: Vec<Group> = Vec::new();
    for (i, head) in heads {
        let wanted = proposals(&head);
        let missing = |g: &Group| wanted.iter().filter(|k| !g.contexts.contains(k)).count();
        let fits = groups.iter().position(|g| g.contexts.len() + missing(g) <= MAX_CONTEXTS);
        let at = fits.unwrap_or_else(|| {
            groups.push(Group::default());
            groups.len() - 1
        });
        for key in wanted {
            if !groups[at].contexts.contains(&key) {
                groups[at].contexts.push(key);
            }
        }
        groups[at].members.push((i, head));
    }
    for Group { contexts, members } in groups {
        let mut association = Association::open(target, options, &contexts).map_err(|e| e.to_string());
        for (i, head) in members {
            let sent = match &mut association {
                Err(why) => Sent::Transient(why.clone()),
                Ok(open) => match open.store(&files[i], &head) {
                    Ok(sent) => sent,
                    Err(e) => {
                        let why = e.to_string();
                        association = Err(why.clone());
                        Sent::Transient(why)
                    }
                },
            };
            outcomes[i] = Some(Outcome { path: files[i].clone(), sop_instance: head.sop_instance, sent });
        }
        if let Ok(mut open) = association {
            open.release();
        }
    }
    let untried = |path: &PathBuf| Outcome {
        path: path.clone(),
        sop_instance: String::new(),
        sent: Sent::Transient("was not tried".into()),
    };
    outcomes.into_iter().zip(files).map(|(o, path)| o.unwrap_or_else(|| untried(path))).collect()
}

/// Files that go over one association.
#[derive(Default)]
struct Group {
    contexts: Vec<(String, String)>,
    /// Place in the caller's list, and head.
    members: Vec<(usize, Head)>,
}

/// What is proposed for a file: its own transfer syntax, and the default one where the file can be encoded in it without its pixels being
/// touched: every peer takes that (PS3.5 10.1), and some nothing else.
fn proposals(head: &Head) -> Vec<(String, String)> {
    let mut out = vec![(head.sop_class.clone(), head.transfer_syntax.clone())];
    if head.transfer_syntax == EXPLICIT_LE {
        out.push((head.sop_class.clone(), IMPLICIT_LE.to_string()));
    }
    out
}

/// The data set of a file in Implicit VR Little Endian; within, why it cannot be had.
fn implicit(path: &Path) -> std::io::Result<Result<Vec<u8>, String>> {
    let bytes = std::fs::metadata(path)?.len();
    if bytes > MAX_ENCODED {
        return Ok(Err(format!("{bytes} bytes are more than the {MAX_ENCODED} that are encoded anew")));
    }
    let file = std::fs::read(path)?;
    let mut object = match dicom_object::from_reader(&file[..]) {
        Ok(object) => object,
        Err(e) => return Ok(Err(e.to_string())),
    };
    object.update_meta(|meta| meta.transfer_syntax = IMPLICIT_LE.to_string());
    let mut out = Vec::with_capacity(file.len());
    Ok(object.write_dataset(&mut out).map(|()| out).map_err(|e| e.to_string()))
}

fn permanent(path: &Path, why: String) -> Outcome {
    Outcome { path: path.to_path_buf(), sop_instance: String::new(), sent: Sent::Permanent(why) }
}

/// An open association as its requestor.
pub struct Association {
    stream: TcpStream,
    reader: PduReader,
    ae: String,
    /// Accepted contexts: (SOP class, transfer syntax) to id.
    contexts: BTreeMap<(String, String), u8>,
    max_pdu: usize,
    buffer: Vec<u8>,
    last_id: u16,
}

impl Association {
    /// Connects and proposes one context per (SOP class, transfer syntax), at most 128.
    ///
    /// # Errors
    /// [`ScuError`].
    pub fn open(target: &Target, options: &ScuOptions, contexts: &[(String, String)]) -> Result<Self, ScuError> {
        let stream = connect(target, options)?;
        let mut this = Association {
            stream,
            reader: PduReader::new(options.max_pdu.max(128 * 1024)),
            ae: printable(&target.ae_title),
            contexts: BTreeMap::new(),
            max_pdu: 16_384,
            buffer: Vec::new(),
            last_id: 0,
        };
        let proposed: Vec<PresentationContextProposed> = contexts
            .iter()
            .take(MAX_CONTEXTS)
            .enumerate()
            .map(|(i, (class, syntax))| PresentationContextProposed {
                id: (i * 2 + 1) as u8,
                abstract_syntax: class.clone(),
                transfer_syntaxes: vec![syntax.clone()],
            })
            .collect();
        let request = encode(&Pdu::AssociationRQ(AssociationRQ {
            protocol_version: 1,
            calling_ae_title: target.calling_ae.clone(),
            called_ae_title: target.ae_title.clone(),
            application_context_name: APPLICATION_CONTEXT.to_string(),
            presentation_contexts: proposed,
            user_variables: user_variables(options.max_pdu.max(128 * 1024)),
        }))
        .map_err(|e| this.broken(e))?;
        this.stream.write_all(&request).map_err(|e| this.broken(e))?;
        let reply = match this.reader.read_blocking(&mut this.stream) {
            Ok(Frame::Control(pdu)) => *pdu,
            Ok(Frame::Data(_)) => return Err(this.broken("data before the association was answered")),
            Err(e) => return Err(this.broken(e)),
        };
        match reply {
            Pdu::AssociationAC(ac) => {
                for result in ac.presentation_contexts {
                    let asked = contexts.get(usize::from(result.id / 2));
                    if let Some(key) = asked.filter(|_| result.reason == PresentationContextResultReason::Acceptance) {
                        this.contexts.insert(key.clone(), result.id);
                    }
                }
                let theirs = ac.user_variables.iter().find_map(|v| match v {
                    UserVariableItem::MaxLength(n) => Some(*n),
                    _ => None,
                });
                this.max_pdu = usable_max_pdu(theirs.unwrap_or(16_384)).min(options.max_pdu.max(16_384)) as usize;
                Ok(this)
            }
            Pdu::AssociationRJ(rj) => Err(ScuError::Rejected { ae: this.ae, why: rj.source.to_string() }),
            Pdu::AbortRQ { .. } => Err(this.broken("it aborted instead of answering the association request")),
            _ => Err(this.broken("an unexpected answer to the association request")),
        }
    }

    fn broken(&self, why: impl std::fmt::Display) -> ScuError {
        ScuError::Broken { ae: self.ae.clone(), why: why.to_string() }
    }

    fn next_id(&mut self) -> u16 {
        self.last_id = self.last_id.wrapping_add(1);
        self.last_id
    }

    /// Sends one file and waits for its answer.
    ///
    /// # Errors
    /// The association is broken; nothing more can be sent on it.
    pub fn store(&mut self, path: &Path, head: &Head) -> Result<Sent, ScuError> {
        let taken = proposals(head).into_iter().find_map(|key| Some((*self.contexts.get(&key)?, key.1)));
        let Some((context, syntax)) = taken else {
            let (class, syntax) = (&head.sop_class, &head.transfer_syntax);
            return Ok(Sent::Permanent(format!("{} does not take SOP class {class} in {syntax}", self.ae)));
        };
        let opened: std::io::Result<(Box<dyn Read>, u64)> = if syntax == head.transfer_syntax {
            File::open(path).and_then(|mut f| {
                let left = f.metadata()?.len().saturating_sub(head.data_offset);
                f.seek(SeekFrom::Start(head.data_offset))?;
                Ok((Box::new(f) as Box<dyn Read>, left))
            })
        } else {
            match implicit(path) {
                Ok(Ok(bytes)) => {
                    let left = bytes.len() as u64;
                    Ok((Box::new(Cursor::new(bytes)), left))
                }
                Ok(Err(why)) => {
                    let why =
                        format!("{} takes {IMPLICIT_LE} alone, and the file cannot be encoded so: {why}", self.ae);
                    return Ok(Sent::Permanent(why));
                }
                Err(e) => Err(e),
            }
        };
        let (mut file, mut left) = match opened {
            Ok(opened) => opened,
            Err(e) => return Ok(Sent::Transient(format!("cannot read the file: {e}"))),
        };
        let id = self.next_id();
        let request = Command::store_request(id, &head.sop_class, &head.sop_instance);
        // The command travels with the first piece of the data set, in one write.
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        buffer.extend_from_slice(&command_pdus(context, &request, self.max_pdu));
        let room = (self.max_pdu - 6) as u64;
        loop {
            let n = left.min(room);
            left -= n;
            buffer.extend_from_slice(&pdata_header(context, false, left == 0, n as usize));
            let start = buffer.len();
            match (&mut file).take(n).read_to_end(&mut buffer) {
                Ok(_) if buffer.len() - start == n as usize => {}
                Ok(_) => return Err(self.broken("the file shrank while it was sent")),
                Err(e) => return Err(self.broken(format!("cannot read the file: {e}"))),
            }
            if let Err(e) = self.stream.write_all(&buffer) {
                return Err(self.broken(e));
            }
            buffer.clear();
            if left == 0 {
                break;
            }
        }
        self.buffer = buffer;
        let (status, comment) = self.answer(id, C_STORE_RQ)?;
        let words = || match &comment {
            Some(comment) => format!("{} answers {status:04X}: {}", self.ae, printable(comment)),
            None => format!("{} answers {status:04X}", self.ae),
        };
        Ok(match meaning(status) {
            Meaning::Success | Meaning::Warning => Sent::Stored(status),
            Meaning::Transient => Sent::Transient(words()),
            Meaning::Permanent => Sent::Permanent(words()),
        })
    }

    /// Waits for the response to a request.
    fn answer(&mut self, id: u16, field: u16) -> Result<(u16, Option<String>), ScuError> {
        let ae = self.ae.clone();
        let broken = |why: String| ScuError::Broken { ae: ae.clone(), why };
        let mut assembler = Assembler::default();
        loop {
            let body = match self.reader.read_blocking(&mut self.stream) {
                Ok(Frame::Data(body)) => body,
                Ok(Frame::Control(pdu)) => {
                    let aborted = matches!(*pdu, Pdu::AbortRQ { .. });
                    return Err(broken(if aborted { "it aborted" } else { "an unexpected PDU" }.into()));
                }
                Err(WireError::Io(e)) if e.kind() == std::io::ErrorKind::WouldBlock => {
                    return Err(broken("no answer within the time allowed".into()));
                }
                Err(e) => return Err(broken(e.to_string())),
            };
            for pdv in pdvs(body) {
                let event = pdv.and_then(|p| assembler.push(p)).map_err(|e: ProtocolError| broken(e.to_string()));
                match event? {
                    Some(Event::Command(_, c)) if c.field() == field | RESPONSE && c.u16(RESPONDED_TO) == Some(id) => {
                        let status = c.u16(STATUS).ok_or_else(|| broken("a response without status".into()))?;
                        return Ok((status, c.text(ERROR_COMMENT)));
                    }
                    Some(_) => return Err(broken("an answer to something else".into())),
                    None => {}
                }
            }
        }
    }

    /// Releases the association. A peer that does not answer changes nothing.
    pub fn release(&mut self) {
        let released = encode(&Pdu::ReleaseRQ).is_ok_and(|bytes| self.stream.write_all(&bytes).is_ok());
        if released {
            let _ = self.stream.set_read_timeout(Some(Duration::from_secs(5)));
            let _ = self.reader.read_blocking(&mut self.stream);
        }
    }
}

fn connect(target: &Target, options: &ScuOptions) -> Result<TcpStream, ScuError> {
    let address = target.address.clone();
    let addresses = match target.address.to_socket_addrs() {
        Ok(found) => found,
        Err(cause) => return Err(ScuError::Resolve { address, cause }),
    };
    let mut last = std::io::Error::from(std::io::ErrorKind::NotFound);
    for candidate in addresses {
        let opened = TcpStream::connect_timeout(&candidate, options.connect).and_then(|stream| {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(options.answer))?;
            stream.set_write_timeout(Some(options.answer))?;
            Ok(stream)
        });
        match opened {
            Ok(stream) => return Ok(stream),
            Err(e) => last = e,
        }
    }
    Err(ScuError::Connect { address, cause: last })
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, TcpListener};

    use dicom_core::value::{DataSetSequence, PrimitiveValue};
    use dicom_core::{DataElement, Length, VR};
    use dicom_dictionary_std::tags;
    use dicom_object::{FileMetaTableBuilder, InMemDicomObject, open_file};

    use super::super::negotiate::{Acceptor, Callers, Classes};
    use super::super::part10;
    use super::*;

    const CLASS: &str = "1.2.840.10008.5.1.4.1.1.66.4";

    /// An archive that takes Implicit VR Little Endian alone: serves one association and gives the data sets that came.
    fn implicit_only(listener: &TcpListener) -> Vec<Vec<u8>> {
        let (mut stream, _) = listener.accept().unwrap();
        let mut reader = PduReader::new(128 * 1024);
        let mut request = match reader.read_blocking(&mut stream).unwrap() {
            Frame::Control(pdu) => match *pdu {
                Pdu::AssociationRQ(request) => request,
                other => panic!("{other:?}"),
            },
            Frame::Data(_) => panic!("data before the association"),
        };
        request.presentation_contexts.retain(|c| c.transfer_syntaxes == [IMPLICIT_LE]);
        let acceptor = Acceptor {
            ae_title: "PACS".into(),
            callers: Callers::Anybody,
            classes: Classes::AnyStorage,
            max_pdu: 128 * 1024,
        };
        let (accept, _) = acceptor.decide(request, IpAddr::V4(Ipv4Addr::LOCALHOST)).unwrap();
        stream.write_all(&encode(&accept).unwrap()).unwrap();
        let (mut assembler, mut asked, mut data, mut all) = (Assembler::default(), None, Vec::new(), Vec::new());
        loop {
            // Everything else is the release.
            let Ok(Frame::Data(body)) = reader.read_blocking(&mut stream) else { return all };
            let mut ended = false;
            for pdv in pdvs(body) {
                match assembler.push(pdv.unwrap()).unwrap() {
                    Some(Event::Command(context, command)) => asked = Some((context, command)),
                    Some(Event::Data(bytes, last)) => {
                        data.extend_from_slice(bytes);
                        ended = last;
                    }
                    None => {}
                }
            }
            if ended {
                let (context, command) = asked.take().unwrap();
                stream.write_all(&command_pdus(context, &command.response(0, None), 16_384)).unwrap();
                all.push(std::mem::take(&mut data));
            }
        }
    }

    #[test]
    fn an_archive_that_takes_the_default_transfer_syntax_alone_gets_the_object_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut item = InMemDicomObject::new_empty();
        item.put(DataElement::new(tags::SEGMENT_LABEL, VR::LO, PrimitiveValue::from("Vastus medialis")));
        let mut object = InMemDicomObject::new_empty();
        object.put(DataElement::new(tags::SOP_CLASS_UID, VR::UI, PrimitiveValue::from(CLASS)));
        object.put(DataElement::new(tags::SOP_INSTANCE_UID, VR::UI, PrimitiveValue::from("1.2.3")));
        object.put(DataElement::new(
            tags::SEGMENT_SEQUENCE,
            VR::SQ,
            DataSetSequence::new(vec![item], Length::UNDEFINED),
        ));
        object.put(DataElement::new(tags::PIXEL_DATA, VR::OB, PrimitiveValue::U8(vec![1, 2, 3, 4].into())));
        let path = dir.path().join("seg.dcm");
        let meta = FileMetaTableBuilder::new().transfer_syntax(EXPLICIT_LE);
        object.with_meta(meta).unwrap().write_to_file(&path).unwrap();

        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let archive = std::thread::spawn(move || implicit_only(&listener));
        let target = Target { ae_title: "PACS".into(), address, calling_ae: "BOX".into() };
        let outcomes = send(&[path], &target, &ScuOptions::default());
        assert_eq!(outcomes[0].sent, Sent::Stored(0));

        let mut kept = part10::head(CLASS, "1.2.3", IMPLICIT_LE);
        kept.extend(archive.join().unwrap().remove(0));
        let path = dir.path().join("kept.dcm");
        std::fs::write(&path, kept).unwrap();
        let object = open_file(&path).unwrap();
        let segments = object.element(tags::SEGMENT_SEQUENCE).unwrap().items().unwrap();
        assert_eq!(segments[0].element(tags::SEGMENT_LABEL).unwrap().to_str().unwrap(), "Vastus medialis");
        assert_eq!(object.element(tags::PIXEL_DATA).unwrap().to_bytes().unwrap()[..], [1, 2, 3, 4]);
    }

    #[test]
    fn the_default_transfer_syntax_is_proposed_for_what_is_not_compressed() {
        let head = |class: usize, syntax: &str| Head {
            sop_class: format!("1.2.840.10008.5.1.4.1.1.{class}"),
            sop_instance: "1.2.3".into(),
            transfer_syntax: syntax.into(),
            data_offset: 0,
        };
        let syntaxes = |h: Head| proposals(&h).into_iter().map(|(_, s)| s).collect::<Vec<_>>();
        assert_eq!(syntaxes(head(7, EXPLICIT_LE)), [EXPLICIT_LE, IMPLICIT_LE]);
        assert_eq!(syntaxes(head(7, IMPLICIT_LE)), [IMPLICIT_LE]);
        // What is compressed is not decompressed for a peer.
        assert_eq!(syntaxes(head(7, "1.2.840.10008.1.2.4.70")), ["1.2.840.10008.1.2.4.70"]);
    }
}
