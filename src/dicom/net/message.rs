//! DIMSE messages from presentation data values, however these are cut (PS3.8 Annex E).

use super::command::{Command, CommandError, MAX_COMMAND};

/// A breach of the protocol; the association cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A presentation data value is longer than its PDU, or too short for its header.
    #[error("a presentation data value does not fit its PDU")]
    BadPdv,
    /// A data set fragment where a command is due, or the reverse.
    #[error("a {0} fragment came out of turn")]
    OutOfTurn(&'static str),
    /// A message changes its presentation context.
    #[error("a message changed its presentation context from {0} to {1}")]
    ContextChanged(u8, u8),
    /// A command set larger than [`MAX_COMMAND`].
    #[error("a command set is larger than {MAX_COMMAND} bytes")]
    CommandTooLarge,
    /// A command set that cannot be decoded.
    #[error(transparent)]
    Command(#[from] CommandError),
}

/// A presentation data value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pdv<'a> {
    /// Presentation context id.
    pub context: u8,
    /// A command fragment, else a data set fragment.
    pub command: bool,
    /// The last fragment of its command or data set.
    pub last: bool,
    /// The fragment.
    pub data: &'a [u8],
}

/// The presentation data values of a P-DATA-TF PDU's body.
pub fn pdvs(body: &[u8]) -> impl Iterator<Item = Result<Pdv<'_>, ProtocolError>> {
    let mut rest = body;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let taken = (|| {
            let (&[a, b, c, d], after) = rest.split_first_chunk::<4>()?;
            let length = u32::from_be_bytes([a, b, c, d]) as usize;
            let (item, after) = after.split_at_checked(length)?;
            let (&[context, header], data) = item.split_first_chunk::<2>()?;
            Some((Pdv { context, command: header & 1 != 0, last: header & 2 != 0, data }, after))
        })();
        match taken {
            Some((pdv, after)) => {
                rest = after;
                Some(Ok(pdv))
            }
            None => {
                rest = &[];
                Some(Err(ProtocolError::BadPdv))
            }
        }
    })
}

/// The header of a P-DATA-TF PDU with one presentation data value of `length` bytes.
pub fn pdata_header(context: u8, command: bool, last: bool, length: usize) -> [u8; 12] {
    let item = (length as u32).saturating_add(2).to_be_bytes();
    let pdu = (length as u32).saturating_add(6).to_be_bytes();
    let flags = u8::from(command) | (u8::from(last) << 1);
    [4, 0, pdu[0], pdu[1], pdu[2], pdu[3], item[0], item[1], item[2], item[3], context, flags]
}

/// Largest PDU body below which a presentation data value makes sense.
const LEAST_PDU: usize = 64;

/// A command as whole P-DATA-TF PDUs for a peer that takes PDU bodies up to `max_pdu` bytes.
pub fn command_pdus(context: u8, command: &Command, max_pdu: usize) -> Vec<u8> {
    let bytes = command.encode();
    let room = max_pdu.max(LEAST_PDU) - 6;
    let mut out = Vec::with_capacity(bytes.len() + 12);
    let mut chunks = bytes.chunks(room).peekable();
    while let Some(chunk) = chunks.next() {
        out.extend_from_slice(&pdata_header(context, true, chunks.peek().is_none(), chunk.len()));
        out.extend_from_slice(chunk);
    }
    out
}

/// What a presentation data value completed.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A whole command on this presentation context.
    Command(u8, Command),
    /// A piece of the data set of the command before; `true`: its last piece.
    Data(&'a [u8], bool),
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Idle,
    Command {
        context: u8,
        bytes: Vec<u8>,
    },
    Data {
        context: u8,
    },
}

/// Puts messages together.
#[derive(Debug, Default)]
pub struct Assembler {
    state: State,
}

impl Assembler {
    /// Takes the next presentation data value.
    ///
    /// # Errors
    /// [`ProtocolError`]; the association must then be aborted.
    pub fn push<'a>(&mut self, pdv: Pdv<'a>) -> Result<Option<Event<'a>>, ProtocolError> {
        let state = std::mem::take(&mut self.state);
        match (state, pdv.command) {
            (State::Data { context }, false) => {
                if context != pdv.context {
                    return Err(ProtocolError::ContextChanged(context, pdv.context));
                }
                if !pdv.last {
                    self.state = State::Data { context };
                }
                Ok(Some(Event::Data(pdv.data, pdv.last)))
            }
            (State::Data { .. }, true) => Err(ProtocolError::OutOfTurn("command")),
            (_, false) => Err(ProtocolError::OutOfTurn("data set")),
            (state, true) => {
                let mut bytes = match state {
                    State::Command { context, .. } if context != pdv.context => {
                        return Err(ProtocolError::ContextChanged(context, pdv.context));
                    }
                    State::Command { bytes, .. } => bytes,
                    _ => Vec::new(),
                };
                if bytes.len() + pdv.data.len() > MAX_COMMAND {
                    return Err(ProtocolError::CommandTooLarge);
                }
                bytes.extend_from_slice(pdv.data);
                if !pdv.last {
                    self.state = State::Command { context: pdv.context, bytes };
                    return Ok(None);
                }
                let command = Command::decode(&bytes)?;
                if command.has_data_set() {
                    self.state = State::Data { context: pdv.context };
                }
                Ok(Some(Event::Command(pdv.context, command)))
            }
        }
    }

    /// Whether no message is under way.
    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(parts: &[(u8, bool, bool, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (context, command, last, data) in parts {
            out.extend_from_slice(&pdata_header(*context, *command, *last, data.len())[6..]);
            out.extend_from_slice(data);
        }
        out
    }

    #[test]
    fn a_message_survives_every_cut() {
        let command = Command::store_request(3, "1.2", "1.2.3");
        let bytes = command.encode();
        let data = b"0123456789";
        for cut in 0..=bytes.len() {
            for data_cut in 0..=data.len() {
                // Everything in one PDU: two command fragments, two data fragments.
                let pdu = body(&[
                    (5, true, false, &bytes[..cut]),
                    (5, true, true, &bytes[cut..]),
                    (5, false, false, &data[..data_cut]),
                    (5, false, true, &data[data_cut..]),
                ]);
                let (mut assembler, mut got, mut commands, mut ended) = (Assembler::default(), vec![], 0, false);
                for pdv in pdvs(&pdu) {
                    match assembler.push(pdv.unwrap()).unwrap() {
                        Some(Event::Command(5, c)) => {
                            assert_eq!(c, command);
                            commands += 1;
                        }
                        Some(Event::Data(d, last)) => {
                            got.extend_from_slice(d);
                            ended = last;
                        }
                        other => assert!(other.is_none()),
                    }
                }
                assert!(commands == 1 && got == data && ended && assembler.is_idle());
            }
        }
    }

    #[test]
    fn breaches_are_named() {
        let echo = Command::echo_request(1).encode();
        let store = Command::store_request(1, "1.2", "1.3").encode();
        let run = |pdu: &[u8]| {
            let mut assembler = Assembler::default();
            for pdv in pdvs(pdu) {
                assembler.push(pdv?)?;
            }
            Ok(())
        };
        assert_eq!(run(&body(&[(1, false, true, b"x")])), Err(ProtocolError::OutOfTurn("data set")));
        assert_eq!(
            run(&body(&[(1, true, true, &echo), (1, false, true, b"x")])),
            Err(ProtocolError::OutOfTurn("data set"))
        );
        assert_eq!(
            run(&body(&[(1, true, true, &store), (1, true, true, &store)])),
            Err(ProtocolError::OutOfTurn("command"))
        );
        assert_eq!(
            run(&body(&[(1, true, true, &store), (3, false, true, b"x")])),
            Err(ProtocolError::ContextChanged(1, 3))
        );
        assert_eq!(
            run(&body(&[(1, true, false, &vec![0; MAX_COMMAND]), (1, true, true, b"x")])),
            Err(ProtocolError::CommandTooLarge)
        );
        assert_eq!(run(&[0, 0, 0, 9, 1, 1]), Err(ProtocolError::BadPdv));
        assert_eq!(run(&[0, 0, 0, 1, 1]), Err(ProtocolError::BadPdv));
        assert_eq!(run(&[255, 255, 255, 255, 1, 1, 0]), Err(ProtocolError::BadPdv));
    }

    #[test]
    fn a_command_is_cut_to_the_peers_pdu() {
        let command = Command::store_request(3, "1.2.840.10008.5.1.4.1.1.4", "1.2.3");
        let wire = command_pdus(1, &command, 64);
        let (mut rest, mut assembler, mut whole) = (&wire[..], Assembler::default(), None);
        while !rest.is_empty() {
            let length = u32::from_be_bytes(rest[2..6].try_into().unwrap()) as usize;
            assert!(length <= 64);
            for pdv in pdvs(&rest[6..6 + length]) {
                if let Some(Event::Command(_, c)) = assembler.push(pdv.unwrap()).unwrap() {
                    whole = Some(c);
                }
            }
            rest = &rest[6 + length..];
        }
        assert_eq!(whole, Some(command));
    }
}
