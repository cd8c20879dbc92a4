//! Whether, and on what, to associate: decides on an A-ASSOCIATE-RQ without I/O (PS3.8 9.3).

use std::collections::BTreeMap;
use std::net::IpAddr;

use dicom_ul::pdu::{
    AssociationAC, AssociationRJ, AssociationRJResult, AssociationRJServiceProviderASCEReason,
    AssociationRJServiceProviderPresentationReason, AssociationRJServiceUserReason, AssociationRJSource, AssociationRQ,
    Pdu, PresentationContextProposed, PresentationContextResult, PresentationContextResultReason, UserVariableItem,
};

use super::{
    ENHANCED_MR_IMAGE_STORAGE, IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME,
    LEGACY_CONVERTED_ENHANCED_MR_IMAGE_STORAGE, MR_IMAGE_STORAGE, VERIFICATION,
};

/// The DICOM application context.
pub const APPLICATION_CONTEXT: &str = "1.2.840.10008.3.1.1.1";
/// Implicit VR Little Endian.
pub const IMPLICIT_LE: &str = "1.2.840.10008.1.2";
/// Explicit VR Little Endian.
pub const EXPLICIT_LE: &str = "1.2.840.10008.1.2.1";
/// Explicit VR Big Endian.
pub const EXPLICIT_BE: &str = "1.2.840.10008.1.2.2";
/// Deflated Explicit VR Little Endian.
pub const DEFLATED_LE: &str = "1.2.840.10008.1.2.1.99";

/// Transfer syntaxes taken for storage; the bytes are kept as they come.
pub const STORAGE_TRANSFER_SYNTAXES: [&str; 15] = [
    EXPLICIT_LE,
    IMPLICIT_LE,
    EXPLICIT_BE,
    DEFLATED_LE,
    "1.2.840.10008.1.2.5",    // RLE
    "1.2.840.10008.1.2.4.50", // JPEG baseline
    "1.2.840.10008.1.2.4.51", // JPEG extended
    "1.2.840.10008.1.2.4.57", // JPEG lossless
    "1.2.840.10008.1.2.4.70", // JPEG lossless, first-order prediction
    "1.2.840.10008.1.2.4.80", // JPEG-LS lossless
    "1.2.840.10008.1.2.4.81", // JPEG-LS near-lossless
    "1.2.840.10008.1.2.4.90", // JPEG 2000 lossless
    "1.2.840.10008.1.2.4.91", // JPEG 2000
    "1.2.840.10008.1.2.4.92", // JPEG 2000 part 2 lossless
    "1.2.840.10008.1.2.4.93", // JPEG 2000 part 2
];

/// A sender that is let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Its AE title.
    pub ae_title: String,
    /// If given, it may call from this address only.
    pub address: Option<IpAddr>,
}

/// Who may call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Callers {
    /// Those listed; nobody if the list is empty.
    Listed(Vec<Caller>),
    /// Anybody, whatever they call us: for the demonstration's archive only.
    Anybody,
}

/// Which storage SOP classes are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Classes {
    /// MR, Enhanced MR, Legacy Converted Enhanced MR.
    Mr,
    /// Every storage class.
    AnyStorage,
}

impl Classes {
    /// Whether objects of this class are taken.
    pub fn take(self, sop_class: &str) -> bool {
        match self {
            Classes::Mr => [MR_IMAGE_STORAGE, ENHANCED_MR_IMAGE_STORAGE, LEGACY_CONVERTED_ENHANCED_MR_IMAGE_STORAGE]
                .contains(&sop_class),
            Classes::AnyStorage => sop_class.starts_with("1.2.840.10008.5.1.4.1.1.") && super::is_uid(sop_class),
        }
    }
}

/// Our side's conditions.
#[derive(Clone, Debug)]
pub struct Acceptor {
    /// Our AE title; a request that calls another is rejected unless anybody may call.
    pub ae_title: String,
    /// Who may call.
    pub callers: Callers,
    /// What is taken.
    pub classes: Classes,
    /// Largest PDU body we take, bytes.
    pub max_pdu: u32,
}

/// A presentation context agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// SOP class.
    pub abstract_syntax: String,
    /// Encoding of its data sets.
    pub transfer_syntax: String,
}

/// What both sides agreed on.
#[derive(Clone, Debug)]
pub struct Agreed {
    /// Who calls.
    pub calling_ae: String,
    /// The contexts accepted, by id.
    pub contexts: BTreeMap<u8, Context>,
    /// Abstract syntaxes refused, with the reason.
    pub refused: Vec<(String, &'static str)>,
    /// Largest PDU body the peer takes, bytes.
    pub peer_max_pdu: u32,
}

/// Reason of a rejection, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The A-ASSOCIATE-RJ.
    pub reply: AssociationRJ,
    /// In words, with the remedy.
    pub why: String,
}

fn reject(result: AssociationRJResult, source: AssociationRJSource, why: impl Into<String>) -> Rejected {
    Rejected { reply: AssociationRJ { result, source }, why: why.into() }
}

/// The rejection of one association too many.
pub fn too_many(limit: usize) -> Rejected {
    reject(
        AssociationRJResult::Transient,
        AssociationRJSource::ServiceProviderPresentation(
            AssociationRJServiceProviderPresentationReason::LocalLimitExceeded,
        ),
        format!("{limit} associations are open, which is receive.max_associations"),
    )
}

/// What may be in a log line of a title or UID that a stranger sent.
pub fn printable(text: &str) -> String {
    text.chars().take(64).map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect()
}

impl Acceptor {
    /// Decides on a request that came from `host`: the A-ASSOCIATE-AC and what was agreed on.
    ///
    /// # Errors
    /// The rejection to send.
    pub fn decide(&self, request: AssociationRQ, host: IpAddr) -> Result<(Pdu, Agreed), Rejected> {
        use AssociationRJServiceUserReason as User;
        let permanent =
            |reason, why: String| reject(AssociationRJResult::Permanent, AssociationRJSource::ServiceUser(reason), why);
        if request.protocol_version & 1 == 0 {
            return Err(reject(
                AssociationRJResult::Permanent,
                AssociationRJSource::ServiceProviderASCE(
                    AssociationRJServiceProviderASCEReason::ProtocolVersionNotSupported,
                ),
                format!("protocol version {:#06x} is not supported", request.protocol_version),
            ));
        }
        if super::trim_uid(request.application_context_name.as_bytes()) != APPLICATION_CONTEXT {
            let why = "the application context is not DICOM's".to_string();
            return Err(permanent(User::ApplicationContextNameNotSupported, why));
        }
        let (calling, called) = (printable(&request.calling_ae_title), printable(&request.called_ae_title));
        if let Callers::Listed(listed) = &self.callers {
            if request.called_ae_title != self.ae_title {
                let why = format!(
                    "{calling:?} calls {called:?}, we are {:?}; correct the sender, or station.ae_title",
                    self.ae_title
                );
                return Err(permanent(User::CalledAETitleNotRecognized, why));
            }
            let title = &request.calling_ae_title;
            let mut entries = listed.iter().filter(|c| c.ae_title == *title && !title.is_empty()).peekable();
            if entries.peek().is_none() {
                let why = format!("{calling:?} at {host} is no known sender; add a [[modality]] with this ae_title");
                return Err(permanent(User::CallingAETitleNotRecognized, why));
            }
            if !entries.any(|c| c.address.is_none_or(|a| a.to_canonical() == host.to_canonical())) {
                let why = format!("{calling:?} calls from {host}, which is not the address of its [[modality]]");
                return Err(permanent(User::CallingAETitleNotRecognized, why));
            }
        }
        let mut contexts = BTreeMap::new();
        let mut refused = Vec::new();
        let mut results = Vec::new();
        for proposed in request.presentation_contexts {
            let (result, abstract_syntax) = self.context(proposed);
            match result.reason {
                PresentationContextResultReason::Acceptance => {
                    let transfer_syntax = result.transfer_syntax.clone();
                    contexts.insert(result.id, Context { abstract_syntax, transfer_syntax });
                }
                PresentationContextResultReason::TransferSyntaxesNotSupported => {
                    refused.push((printable(&abstract_syntax), "none of its transfer syntaxes is taken"));
                }
                _ => refused.push((printable(&abstract_syntax), "this SOP class is not taken")),
            }
            results.push(result);
        }
        let peer_max_pdu = request
            .user_variables
            .iter()
            .find_map(|v| if let UserVariableItem::MaxLength(n) = v { Some(*n) } else { None })
            .unwrap_or(16_384);
        let accept = Pdu::AssociationAC(AssociationAC {
            protocol_version: 1,
            calling_ae_title: request.calling_ae_title,
            called_ae_title: request.called_ae_title,
            application_context_name: APPLICATION_CONTEXT.to_string(),
            presentation_contexts: results,
            user_variables: user_variables(self.max_pdu),
        });
        Ok((accept, Agreed { calling_ae: calling, contexts, refused, peer_max_pdu: usable_max_pdu(peer_max_pdu) }))
    }

    fn context(&self, proposed: PresentationContextProposed) -> (PresentationContextResult, String) {
        use PresentationContextResultReason as Reason;
        let abstract_syntax = super::trim_uid(proposed.abstract_syntax.as_bytes());
        let offered: Vec<String> = proposed.transfer_syntaxes.iter().map(|t| super::trim_uid(t.as_bytes())).collect();
        let known: &[&str] = if abstract_syntax == VERIFICATION {
            &[EXPLICIT_LE, IMPLICIT_LE, EXPLICIT_BE]
        } else if self.classes.take(&abstract_syntax) {
            &STORAGE_TRANSFER_SYNTAXES
        } else {
            &[]
        };
        // Explicit little endian where it is offered; else the sender's first choice that we know.
        let chosen = offered
            .iter()
            .find(|t| known.contains(&EXPLICIT_LE) && *t == EXPLICIT_LE)
            .or_else(|| offered.iter().find(|t| known.contains(&t.as_str())));
        let reason = match chosen {
            _ if known.is_empty() => Reason::AbstractSyntaxNotSupported,
            None => Reason::TransferSyntaxesNotSupported,
            // Ids are odd; an even one would be ambiguous later.
            Some(_) if proposed.id.is_multiple_of(2) => Reason::NoReason,
            Some(_) => Reason::Acceptance,
        };
        let transfer_syntax = chosen.cloned().unwrap_or_else(|| IMPLICIT_LE.to_string());
        (PresentationContextResult { id: proposed.id, reason, transfer_syntax }, abstract_syntax)
    }
}

/// The user information that both our roles send.
pub fn user_variables(max_pdu: u32) -> Vec<UserVariableItem> {
    vec![
        UserVariableItem::MaxLength(max_pdu),
        UserVariableItem::ImplementationClassUID(IMPLEMENTATION_CLASS_UID.to_string()),
        UserVariableItem::ImplementationVersionName(IMPLEMENTATION_VERSION_NAME.to_string()),
    ]
}

/// A peer's maximum PDU length as we use it: 0 means no limit, and a tiny one would only make headers.
pub fn usable_max_pdu(peer: u32) -> u32 {
    match peer {
        0 => 256 * 1024,
        n => n.clamp(128, 256 * 1024),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn acceptor() -> Acceptor {
        let callers = vec![
            Caller { ae_title: "MR1".into(), address: None },
            Caller { ae_title: "MR2".into(), address: Some("10.0.0.9".parse().unwrap()) },
        ];
        Acceptor { ae_title: "BOX".into(), callers: Callers::Listed(callers), classes: Classes::Mr, max_pdu: 131_072 }
    }

    fn request(calling: &str, called: &str, contexts: &[(&str, &[&str])]) -> AssociationRQ {
        AssociationRQ {
            protocol_version: 1,
            calling_ae_title: calling.into(),
            called_ae_title: called.into(),
            application_context_name: APPLICATION_CONTEXT.into(),
            presentation_contexts: contexts
                .iter()
                .enumerate()
                .map(|(i, (class, syntaxes))| PresentationContextProposed {
                    id: i as u8 * 2 + 1,
                    abstract_syntax: class.to_string(),
                    transfer_syntaxes: syntaxes.iter().map(|s| s.to_string()).collect(),
                })
                .collect(),
            user_variables: vec![],
        }
    }

    fn reason(r: Result<(Pdu, Agreed), Rejected>) -> AssociationRJSource {
        r.unwrap_err().reply.source
    }

    #[test]
    fn closed_by_default_and_with_the_right_reason() {
        use AssociationRJServiceUserReason as User;
        let unknown = AssociationRJSource::ServiceUser(User::CallingAETitleNotRecognized);
        let a = acceptor();
        assert!(a.decide(request("MR1", "BOX", &[]), HOST).is_ok());
        assert_eq!(reason(a.decide(request("MR9", "BOX", &[]), HOST)), unknown);
        assert_eq!(reason(a.decide(request("", "BOX", &[]), HOST)), unknown);
        assert_eq!(reason(a.decide(request("mr1", "BOX", &[]), HOST)), unknown);
        assert_eq!(reason(a.decide(request("MR2", "BOX", &[]), HOST)), unknown);
        assert!(a.decide(request("MR2", "BOX", &[]), "10.0.0.9".parse().unwrap()).is_ok());
        assert!(a.decide(request("MR2", "BOX", &[]), "::ffff:10.0.0.9".parse().unwrap()).is_ok());
        assert_eq!(
            reason(a.decide(request("MR1", "ELSE", &[]), HOST)),
            AssociationRJSource::ServiceUser(User::CalledAETitleNotRecognized)
        );
        let nobody = Acceptor { callers: Callers::Listed(vec![]), ..a };
        assert_eq!(reason(nobody.decide(request("MR1", "BOX", &[]), HOST)), unknown);
    }

    #[test]
    fn wrong_protocol_or_application_context() {
        let mut r = request("MR1", "BOX", &[]);
        r.protocol_version = 2;
        assert!(matches!(reason(acceptor().decide(r, HOST)), AssociationRJSource::ServiceProviderASCE(_)));
        let mut r = request("MR1", "BOX", &[]);
        r.application_context_name = "1.2.3".into();
        assert_eq!(
            reason(acceptor().decide(r, HOST)),
            AssociationRJSource::ServiceUser(AssociationRJServiceUserReason::ApplicationContextNameNotSupported)
        );
    }

    #[test]
    fn contexts_are_taken_one_by_one() {
        let jpeg = "1.2.840.10008.1.2.4.70";
        let (_, agreed) = acceptor()
            .decide(
                request(
                    "MR1",
                    "BOX",
                    &[
                        (VERIFICATION, &[IMPLICIT_LE]),
                        (MR_IMAGE_STORAGE, &[jpeg, EXPLICIT_BE, EXPLICIT_LE]),
                        (MR_IMAGE_STORAGE, &[jpeg, IMPLICIT_LE]),
                        ("1.3.12.2.1107.5.9.1", &[EXPLICIT_LE]),
                        ("1.2.840.10008.5.1.4.1.1.2", &[EXPLICIT_LE]),
                        (ENHANCED_MR_IMAGE_STORAGE, &["1.2.840.10008.1.2.4.100"]),
                    ],
                ),
                HOST,
            )
            .unwrap();
        let chosen: Vec<_> = agreed.contexts.iter().map(|(i, c)| (*i, c.transfer_syntax.as_str())).collect();
        assert_eq!(chosen, [(1, IMPLICIT_LE), (3, EXPLICIT_LE), (5, jpeg)]);
        assert_eq!(agreed.refused.len(), 3);
    }

    #[test]
    fn the_archive_takes_any_storage_class_and_no_other() {
        assert!(Classes::AnyStorage.take("1.2.840.10008.5.1.4.1.1.66.4"));
        assert!(!Classes::AnyStorage.take("1.2.840.10008.5.1.4.1.2.2.1"));
        assert!(!Classes::Mr.take("1.2.840.10008.5.1.4.1.1.4.2"));
    }
}
