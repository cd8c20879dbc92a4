//! The storage SCP: C-ECHO and C-STORE on any number of associations, everything bounded.
//!
//! An object streams through [`super::scan`] into a [`Sink`]; the answer is what the sink says once it is done, so a sink
//! that returns only after its object is durable makes 0000 mean durable.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dicom_ul::pdu::{AbortRQServiceProviderReason, Pdu};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::command::{
    AFFECTED_SOP_CLASS, AFFECTED_SOP_INSTANCE, C_CANCEL_RQ, C_ECHO_RQ, C_STORE_RQ, Command, RESPONSE,
};
use super::message::{Assembler, Event, ProtocolError, command_pdus, pdvs};
use super::negotiate::{Acceptor, Agreed, Context, printable, too_many};
use super::scan::Scanner;
use super::status::{
    CANNOT_UNDERSTAND, DATA_SET_MISMATCH, INVALID_SOP_INSTANCE, MISTYPED_ARGUMENT, OUT_OF_RESOURCES,
    PROCESSING_FAILURE, Refusal, SOP_CLASS_NOT_SUPPORTED, SUCCESS, UNRECOGNIZED_OPERATION,
};
use super::wire::{Frame, PduReader, WireError, abort, encode};
use super::{VERIFICATION, is_uid};

/// Bytes of an object held in memory before they go to the sink.
const CHUNK: usize = 1 << 20;
/// A connection must bring its request within this time.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that have not yet brought a request; one more is closed at once.
const LOBBY: usize = 64;

/// What a C-STORE request says, before its data set.
#[derive(Clone, Debug)]
pub struct StoreRequest {
    /// Number of the association, unique on this box.
    pub association: u64,
    /// Who sends.
    pub calling_ae: String,
    /// SOP class of the command.
    pub sop_class: String,
    /// SOP instance of the command; checked to be a UID.
    pub sop_instance: String,
    /// Encoding of the data set.
    pub transfer_syntax: String,
}

/// Series and study of an object, read from its data set; checked to be UIDs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parents {
    /// Study Instance UID.
    pub study: String,
    /// Series Instance UID.
    pub series: String,
}

/// How an association ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Released in order.
    Released,
    /// Aborted by either side, timed out, or the connection broke.
    Broken,
}

/// Takes objects. Its methods may block; they are called where that is allowed.
pub trait Sink: Send + Sync + 'static {
    /// An object starts.
    ///
    /// # Errors
    /// The refusal to answer with, e.g. for a full disk.
    fn begin(&self, request: &StoreRequest) -> Result<Box<dyn Incoming>, Refusal>;

    /// An association ended; `calling_ae` and number as in its requests.
    fn ended(&self, association: u64, calling_ae: &str, end: End) {
        let _ = (association, calling_ae, end);
    }
}

/// An object on its way into a [`Sink`]. Dropped before [`Incoming::finish`], it leaves nothing behind.
pub trait Incoming: Send {
    /// The next bytes of the data set.
    ///
    /// # Errors
    /// The refusal to answer with.
    fn append(&mut self, bytes: &[u8]) -> Result<(), Refusal>;

    /// The data set is whole and belongs where `parents` says. Returns once the object is safe.
    ///
    /// # Errors
    /// The refusal to answer with.
    fn finish(self: Box<Self>, parents: &Parents) -> Result<(), Refusal>;
}

/// Limits and conditions of an [`Scp`].
#[derive(Clone, Debug)]
pub struct ScpOptions {
    /// Whom and what we take.
    pub acceptor: Acceptor,
    /// Associations at once; one more is rejected.
    pub max_associations: usize,
    /// An association that brings no whole PDU for this long is aborted.
    pub idle: Duration,
    /// Largest data set, bytes; deflated ones also when inflated.
    pub max_object: u64,
    /// Number of the first association.
    pub first_association: u64,
}

/// Why the SCP cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ScpError {
    /// The port is taken.
    #[error("{0} is in use by another program; stop it, or choose another station.listen")]
    PortTaken(SocketAddr),
    /// Listening failed otherwise.
    #[error("cannot listen on {address}: {cause}; check station.listen")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// The system's words.
        cause: std::io::Error,
    },
}

/// A running storage SCP. Dropping it leaves it running; see [`Scp::shutdown`].
#[derive(Debug)]
pub struct Scp {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

struct Shared {
    options: ScpOptions,
    sink: Arc<dyn Sink>,
    associations: Semaphore,
    lobby: Arc<Semaphore>,
    next: AtomicU64,
    stop: watch::Receiver<bool>,
}

impl Scp {
    /// Starts listening and serving within the current tokio runtime. Port 0 takes a free one.
    ///
    /// # Errors
    /// [`ScpError`].
    pub async fn bind(address: SocketAddr, options: ScpOptions, sink: Arc<dyn Sink>) -> Result<Scp, ScpError> {
        let listen = |cause| ScpError::Listen { address, cause };
        let listener = TcpListener::bind(address).await.map_err(|e| match e.kind() {
            std::io::ErrorKind::AddrInUse => ScpError::PortTaken(address),
            _ => listen(e),
        })?;
        let bound = listener.local_addr().map_err(listen)?;
        let (stop, stopped) = watch::channel(false);
        let shared = Arc::new(Shared {
            associations: Semaphore::new(options.max_associations),
            lobby: Arc::new(Semaphore::new(LOBBY)),
            next: AtomicU64::new(options.first_association),
            sink,
            stop: stopped,
            options,
        });
        let task = tokio::spawn(accept(listener, shared));
        Ok(Scp { address: bound, stop, task })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more connections, lets objects under way be answered for `grace`, then aborts what is left.
    pub async fn shutdown(self, grace: Duration) {
        let _ = self.stop.send(true);
        let handle = self.task.abort_handle();
        if tokio::time::timeout(grace, self.task).await.is_err() {
            handle.abort();
        }
    }
}

/// Returns once the SCP is to stop; never, where it was dropped without [`Scp::shutdown`].
async fn stopped(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|s| *s).await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    let mut stop = shared.stop.clone();
    loop {
        tokio::select! {
            biased;
            () = stopped(&mut stop) => break,
            Some(ended) = connections.join_next() => {
                if let Err(e) = ended {
                    log::error!("a connection's task failed: {e}");
                }
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => match shared.lobby.clone().try_acquire_owned() {
                    Ok(place) => {
                        let shared = shared.clone();
                        connections.spawn(async move {
                            connection(stream, peer.ip(), place, &shared).await;
                        });
                    }
                    Err(_) => log::warn!("a connection from {} is closed: {LOBBY} others wait", peer.ip()),
                },
                // Out of file descriptors, or a connection that is gone again: the listener itself is sound.
                Err(e) => {
                    log::warn!("accepting a connection failed: {e}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Why an association is over.
#[derive(Debug, thiserror::Error)]
enum Over {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error("nothing came, or could be sent, within the time allowed")]
    Timeout,
    #[error("the peer aborted")]
    Aborted,
    #[error("a PDU that is not due")]
    Unexpected,
    #[error("a message on presentation context {0}, which was not accepted")]
    Context(u8),
    #[error("an object far beyond receive.max_object_mb")]
    Flood,
    #[error("this box is stopping")]
    Stopping,
}

async fn connection(mut stream: TcpStream, host: IpAddr, place: tokio::sync::OwnedSemaphorePermit, shared: &Shared) {
    if let Err(e) = stream.set_nodelay(true) {
        log::warn!("TCP_NODELAY cannot be set: {e}");
    }
    let options = &shared.options;
    let mut reader = PduReader::new(options.acceptor.max_pdu);
    let patience = REQUEST_TIMEOUT.min(options.idle);
    let request = match tokio::time::timeout(patience, reader.read(&mut stream)).await {
        Ok(Ok(Frame::Control(pdu))) => match *pdu {
            Pdu::AssociationRQ(request) => Ok(request),
            Pdu::AbortRQ { .. } => Err(Over::Aborted),
            _ => Err(Over::Unexpected),
        },
        Ok(Ok(Frame::Data(_))) => Err(Over::Unexpected),
        Ok(Err(e)) => Err(e.into()),
        Err(_) => Err(Over::Timeout),
    };
    let request = match request {
        Ok(request) => request,
        // Port scans and load balancers do this all day.
        Err(Over::Wire(WireError::Closed)) => return log::debug!("{host} connected and closed"),
        Err(over) => {
            log::warn!("{host} brought no association request: {over}");
            let _ = write(&mut stream, &abort(reason(&over)), options.idle).await;
            return;
        }
    };
    let calling = printable(&request.calling_ae_title);
    let decision = options.acceptor.decide(request, host);
    let permit = shared.associations.try_acquire();
    let (reply, agreed) = match (decision, &permit) {
        (Ok(accepted), Ok(_)) => accepted,
        (decision, _) => {
            let rejected = decision.err().unwrap_or_else(|| too_many(options.max_associations));
            log::warn!("association of {calling:?} from {host} is rejected: {}", rejected.why);
            let _ = write(&mut stream, &Pdu::AssociationRJ(rejected.reply), options.idle).await;
            return;
        }
    };
    drop(place);
    let number = shared.next.fetch_add(1, Ordering::Relaxed);
    for (class, why) in &agreed.refused {
        log::warn!(scanside_association = number; "association {number} of {calling:?}: {class} is refused, {why}");
    }
    log::info!(scanside_association = number; "association {number} of {calling:?} from {host}: {} contexts accepted", agreed.contexts.len());
    let mut association = Association { number, agreed, options, sink: &shared.sink, stored: 0, refused: 0 };
    let outcome = match write(&mut stream, &reply, options.idle).await {
        Ok(()) => association.serve(&mut stream, &mut reader, shared.stop.clone()).await,
        Err(over) => Err(over),
    };
    let counts = format!("{} stored, {} refused", association.stored, association.refused);
    let end = match outcome {
        Ok(()) => {
            log::info!(scanside_association = number; "association {number} of {calling:?} released: {counts}");
            End::Released
        }
        Err(over) => {
            log::warn!(scanside_association = number; "association {number} of {calling:?} ended: {over}; {counts}");
            if !matches!(over, Over::Aborted | Over::Wire(WireError::Closed | WireError::Io(_))) {
                let _ = write(&mut stream, &abort(reason(&over)), options.idle).await;
            }
            End::Broken
        }
    };
    drop(stream);
    let (sink, calling) = (shared.sink.clone(), association.agreed.calling_ae.clone());
    let told = tokio::task::spawn_blocking(move || sink.ended(number, &calling, end)).await;
    if told.is_err() {
        log::error!("the end of association {number} could not be recorded");
    }
}

fn reason(over: &Over) -> AbortRQServiceProviderReason {
    match over {
        Over::Wire(WireError::UnknownType(_)) => AbortRQServiceProviderReason::UnrecognizedPdu,
        Over::Unexpected => AbortRQServiceProviderReason::UnexpectedPdu,
        Over::Wire(_) | Over::Protocol(_) | Over::Context(_) => AbortRQServiceProviderReason::InvalidPduParameter,
        _ => AbortRQServiceProviderReason::ReasonNotSpecified,
    }
}

async fn write(stream: &mut TcpStream, pdu: &Pdu, patience: Duration) -> Result<(), Over> {
    write_bytes(stream, &encode(pdu)?, patience).await
}

async fn write_bytes(stream: &mut TcpStream, bytes: &[u8], patience: Duration) -> Result<(), Over> {
    let write = tokio::time::timeout(patience, stream.write_all(bytes)).await;
    write.map_err(|_| Over::Timeout)?.map_err(|e| Over::Wire(WireError::Io(e)))
}

/// An object being received.
struct Receiving {
    context: u8,
    command: Command,
    request: StoreRequest,
    scanner: Option<Scanner>,
    buffer: Vec<u8>,
    object: Option<Box<dyn Incoming>>,
    total: u64,
    /// Set once the object is refused; the rest of its data set is read and dropped.
    refusal: Option<Refusal>,
}

struct Association<'a> {
    number: u64,
    agreed: Agreed,
    options: &'a ScpOptions,
    sink: &'a Arc<dyn Sink>,
    stored: u64,
    refused: u64,
}

impl Association<'_> {
    async fn serve(
        &mut self,
        stream: &mut TcpStream,
        reader: &mut PduReader,
        mut stop: watch::Receiver<bool>,
    ) -> Result<(), Over> {
        let mut assembler = Assembler::default();
        let mut receiving: Option<Receiving> = None;
        loop {
            let frame = tokio::select! {
                biased;
                () = stopped(&mut stop), if assembler.is_idle() => return Err(Over::Stopping),
                frame = tokio::time::timeout(self.options.idle, reader.read(stream)) => frame,
            };
            let body = match frame.map_err(|_| Over::Timeout)?? {
                Frame::Data(body) => body,
                Frame::Control(pdu) => match *pdu {
                    Pdu::ReleaseRQ if assembler.is_idle() => {
                        write(stream, &Pdu::ReleaseRP, self.options.idle).await?;
                        return Ok(());
                    }
                    Pdu::AbortRQ { .. } => return Err(Over::Aborted),
                    _ => return Err(Over::Unexpected),
                },
            };
            for pdv in pdvs(body) {
                match assembler.push(pdv?)? {
                    None => {}
                    Some(Event::Command(context, command)) => {
                        let Some(agreed) = self.agreed.contexts.get(&context) else {
                            return Err(Over::Context(context));
                        };
                        if command.has_data_set() {
                            receiving = Some(self.start(context, agreed, command));
                        } else if let Some(answer) = self.answer(agreed, &command) {
                            self.reply(stream, context, &answer).await?;
                        }
                    }
                    Some(Event::Data(bytes, last)) => {
                        let Some(object) = &mut receiving else { return Err(Over::Unexpected) };
                        self.take(object, bytes).await?;
                        if last && let Some(object) = receiving.take() {
                            let (context, answer) = self.complete(object).await;
                            self.reply(stream, context, &answer).await?;
                        }
                    }
                }
            }
        }
    }

    async fn reply(&self, stream: &mut TcpStream, context: u8, answer: &Command) -> Result<(), Over> {
        let bytes = command_pdus(context, answer, self.agreed.peer_max_pdu as usize);
        write_bytes(stream, &bytes, self.options.idle).await
    }

    /// The answer to a command without a data set, if one is due.
    fn answer(&self, context: &Context, command: &Command) -> Option<Command> {
        match command.field() {
            C_ECHO_RQ if context.abstract_syntax == VERIFICATION => Some(command.response(SUCCESS, None)),
            C_ECHO_RQ => Some(command.response(SOP_CLASS_NOT_SUPPORTED, Some("C-ECHO belongs to Verification"))),
            C_STORE_RQ => Some(command.response(MISTYPED_ARGUMENT, Some("C-STORE without a data set"))),
            C_CANCEL_RQ => None,
            // A response that nobody asked for.
            field if field & RESPONSE != 0 => None,
            field => Some(command.response(UNRECOGNIZED_OPERATION, Some(&format!("operation {field:04X} is unknown")))),
        }
    }

    /// Checks a command that a data set follows.
    fn start(&self, id: u8, context: &Context, command: Command) -> Receiving {
        let request = StoreRequest {
            association: self.number,
            calling_ae: self.agreed.calling_ae.clone(),
            sop_class: command.uid(AFFECTED_SOP_CLASS).unwrap_or_default(),
            sop_instance: command.uid(AFFECTED_SOP_INSTANCE).unwrap_or_default(),
            transfer_syntax: context.transfer_syntax.clone(),
        };
        let refusal = if command.field() != C_STORE_RQ {
            Some(Refusal::new(UNRECOGNIZED_OPERATION, format!("operation {:04X} is unknown", command.field())))
        } else if !self.options.acceptor.classes.take(&request.sop_class) {
            let what = printable(&request.sop_class);
            Some(Refusal::new(SOP_CLASS_NOT_SUPPORTED, format!("SOP class {what} is not taken")))
        } else if request.sop_class != context.abstract_syntax {
            let comment = "SOP class of command and presentation context differ";
            Some(Refusal::new(SOP_CLASS_NOT_SUPPORTED, comment))
        } else if !is_uid(&request.sop_instance) {
            Some(Refusal::new(INVALID_SOP_INSTANCE, "Affected SOP Instance UID is no UID"))
        } else {
            None
        };
        Receiving {
            context: id,
            scanner: Some(Scanner::new(&context.transfer_syntax, self.options.max_object)),
            command,
            request,
            buffer: Vec::new(),
            object: None,
            total: 0,
            refusal,
        }
    }

    /// Takes a piece of a data set.
    async fn take(&self, object: &mut Receiving, bytes: &[u8]) -> Result<(), Over> {
        object.total += bytes.len() as u64;
        let limit = self.options.max_object;
        if object.total > limit {
            object.refuse(Refusal::new(OUT_OF_RESOURCES, format!("object is larger than {} MiB", limit >> 20)));
            // The rest is read to answer in order, but not for ever.
            if object.total > limit.saturating_mul(4).saturating_add(1 << 26) {
                return Err(Over::Flood);
            }
        }
        if object.refusal.is_some() {
            return Ok(());
        }
        if let Some(Err(e)) = object.scanner.as_mut().map(|s| s.feed(bytes)) {
            object.refuse(Refusal::new(CANNOT_UNDERSTAND, e.to_string()));
            return Ok(());
        }
        object.buffer.extend_from_slice(bytes);
        if object.buffer.len() >= CHUNK {
            let (mut writer, request, mut buffer) =
                (object.object.take(), object.request.clone(), std::mem::take(&mut object.buffer));
            let sink = self.sink.clone();
            let written = tokio::task::spawn_blocking(move || {
                let mut writer = match writer.take() {
                    Some(writer) => writer,
                    None => sink.begin(&request)?,
                };
                writer.append(&buffer)?;
                buffer.clear();
                Ok((writer, buffer))
            })
            .await
            .unwrap_or_else(|_| Err(Refusal::new(PROCESSING_FAILURE, "the object could not be written")));
            match written {
                Ok((writer, buffer)) => {
                    object.object = Some(writer);
                    object.buffer = buffer;
                }
                Err(refusal) => object.refuse(refusal),
            }
        }
        Ok(())
    }

    /// The data set is whole: decides on it, and gives the answer.
    async fn complete(&mut self, mut object: Receiving) -> (u8, Command) {
        let outcome = match object.refusal.take() {
            Some(refusal) => Err(refusal),
            None => self.finish(&mut object).await,
        };
        let answer = match outcome {
            Ok(()) => {
                self.stored += 1;
                object.command.response(SUCCESS, None)
            }
            Err(refusal) => {
                self.refused += 1;
                log::warn!(scanside_association = self.number; "association {}: an object is refused: {refusal}", self.number);
                object.command.response(refusal.status, Some(&refusal.comment))
            }
        };
        (object.context, answer)
    }

    async fn finish(&self, object: &mut Receiving) -> Result<(), Refusal> {
        let understood = |e: super::scan::ScanError| Refusal::new(CANNOT_UNDERSTAND, e.to_string());
        let ids = object.scanner.take().map(Scanner::finish).unwrap_or(Ok(Default::default())).map_err(understood)?;
        let mismatch = |what| Refusal::new(DATA_SET_MISMATCH, format!("{what} of command and data set differ"));
        if ids.sop_class.as_deref() != Some(&object.request.sop_class) {
            return Err(mismatch("SOP Class UID"));
        }
        if ids.sop_instance.as_deref() != Some(&object.request.sop_instance) {
            return Err(mismatch("SOP Instance UID"));
        }
        let needed = |uid: Option<String>, name| {
            uid.filter(|u| is_uid(u))
                .ok_or_else(|| Refusal::new(CANNOT_UNDERSTAND, format!("{name} is missing or no UID")))
        };
        let parents = Parents {
            study: needed(ids.study, "Study Instance UID")?,
            series: needed(ids.series, "Series Instance UID")?,
        };
        let (writer, request, buffer) =
            (object.object.take(), object.request.clone(), std::mem::take(&mut object.buffer));
        let sink = self.sink.clone();
        tokio::task::spawn_blocking(move || {
            let mut writer = match writer {
                Some(writer) => writer,
                None => sink.begin(&request)?,
            };
            writer.append(&buffer)?;
            drop(buffer);
            writer.finish(&parents)
        })
        .await
        .unwrap_or_else(|_| Err(Refusal::new(PROCESSING_FAILURE, "the object could not be written")))
    }
}

impl Receiving {
    fn refuse(&mut self, refusal: Refusal) {
        if self.refusal.is_none() {
            self.refusal = Some(refusal);
            self.object = None;
            self.buffer = Vec::new();
        }
    }
}
