//! PDUs on a stream: bounded before anything is allocated, P-DATA without copies.

use std::io::Read;

use dicom_ul::pdu::{AbortRQServiceProviderReason, AbortRQSource, Pdu, read_pdu, write_pdu};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes of a PDU's header.
pub const HEADER: usize = 6;
/// Largest PDU body that is not P-DATA. A request with 128 contexts and many transfer syntaxes takes about 64 KiB.
const MAX_CONTROL: usize = 1 << 20;
const P_DATA: u8 = 4;

/// Why no PDU could be read.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The peer closed the connection between two PDUs.
    #[error("the peer closed the connection")]
    Closed,
    /// The connection broke, or ended within a PDU.
    #[error("the connection broke: {0}")]
    Io(std::io::Error),
    /// A PDU larger than was agreed on.
    #[error("a PDU of {length} bytes, more than the {max} agreed on")]
    TooLarge {
        /// Its claimed length.
        length: usize,
        /// What was allowed.
        max: usize,
    },
    /// A PDU of unknown type.
    #[error("a PDU of unknown type {0:#04x}")]
    UnknownType(u8),
    /// A PDU that cannot be decoded.
    #[error("a malformed PDU: {0}")]
    Malformed(String),
}

/// A PDU as it comes.
#[derive(Debug)]
pub enum Frame<'a> {
    /// P-DATA-TF: its body.
    Data(&'a [u8]),
    /// Any other.
    Control(Box<Pdu>),
}

/// Reads PDUs; keeps one buffer, which grows to the largest PDU seen and no further than the limit.
#[derive(Debug)]
pub struct PduReader {
    buffer: Vec<u8>,
    max: usize,
}

impl PduReader {
    /// A reader of P-DATA bodies up to `max_pdu` bytes.
    pub fn new(max_pdu: u32) -> Self {
        PduReader { buffer: Vec::new(), max: max_pdu as usize }
    }

    /// Reads the next PDU. Not cancel-safe: a reader dropped within a PDU cannot go on.
    ///
    /// # Errors
    /// [`WireError`].
    pub async fn read<S: AsyncRead + Unpin>(&mut self, stream: &mut S) -> Result<Frame<'_>, WireError> {
        let mut header = [0u8; HEADER];
        let first = stream.read(&mut header).await.map_err(WireError::Io)?;
        if first == 0 {
            return Err(WireError::Closed);
        }
        let rest = header.get_mut(first..).unwrap_or_default();
        stream.read_exact(rest).await.map_err(WireError::Io)?;
        let end = self.prepare(header)?;
        // The body is taken as it arrives: a claimed length alone allocates nothing.
        let mut at = HEADER;
        while at < end {
            if self.buffer.len() < end && at == self.buffer.len() {
                self.buffer.resize(end.min((at * 2).max(16 * 1024)), 0);
            }
            let upto = end.min(self.buffer.len());
            let n = stream.read(&mut self.buffer[at..upto]).await.map_err(WireError::Io)?;
            if n == 0 {
                return Err(WireError::Io(std::io::ErrorKind::UnexpectedEof.into()));
            }
            at += n;
        }
        self.frame(end)
    }

    /// As [`PduReader::read`], blocking.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn read_blocking(&mut self, stream: &mut impl Read) -> Result<Frame<'_>, WireError> {
        let mut header = [0u8; HEADER];
        let first = stream.read(&mut header).map_err(WireError::Io)?;
        if first == 0 {
            return Err(WireError::Closed);
        }
        stream.read_exact(header.get_mut(first..).unwrap_or_default()).map_err(WireError::Io)?;
        let end = self.prepare(header)?;
        if self.buffer.len() < end {
            self.buffer.resize(end, 0);
        }
        stream.read_exact(&mut self.buffer[HEADER..end]).map_err(WireError::Io)?;
        self.frame(end)
    }

    /// Checks the header, puts it at the buffer's start, and returns where the PDU ends.
    fn prepare(&mut self, header: [u8; HEADER]) -> Result<usize, WireError> {
        let [kind, _, a, b, c, d] = header;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        let max = match kind {
            P_DATA => self.max,
            1..=7 => MAX_CONTROL.min(self.max.max(128 * 1024)),
            other => return Err(WireError::UnknownType(other)),
        };
        if length > max {
            return Err(WireError::TooLarge { length, max });
        }
        if self.buffer.len() < HEADER {
            self.buffer.resize(HEADER, 0);
        }
        self.buffer[..HEADER].copy_from_slice(&header);
        Ok(HEADER + length)
    }

    fn frame(&self, end: usize) -> Result<Frame<'_>, WireError> {
        if self.buffer[0] == P_DATA {
            return Ok(Frame::Data(&self.buffer[HEADER..end]));
        }
        let pdu = read_pdu(&self.buffer[..end], MAX_CONTROL as u32, true)
            .map_err(|e| WireError::Malformed(e.to_string()))?
            .ok_or_else(|| WireError::Malformed("cut short".into()))?;
        Ok(Frame::Control(Box::new(pdu)))
    }
}

/// A PDU's bytes.
///
/// # Errors
/// A text that its field cannot hold.
pub fn encode(pdu: &Pdu) -> Result<Vec<u8>, WireError> {
    let mut out = Vec::new();
    write_pdu(&mut out, pdu).map_err(|e| WireError::Malformed(e.to_string()))?;
    Ok(out)
}

/// An A-ABORT of the service provider.
pub fn abort(reason: AbortRQServiceProviderReason) -> Pdu {
    Pdu::AbortRQ { source: AbortRQSource::ServiceProvider(reason) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dicom::net::message::pdata_header;

    #[test]
    fn a_claimed_length_is_refused_before_anything_is_allocated() {
        let mut reader = PduReader::new(131_072);
        let claim = [4u8, 0, 0x5F, 0x5E, 0x10, 0, 0, 0];
        assert!(matches!(reader.read_blocking(&mut &claim[..]), Err(WireError::TooLarge { .. })));
        let claim = [1u8, 0, 0x5F, 0x5E, 0x10, 0, 0, 0];
        assert!(matches!(reader.read_blocking(&mut &claim[..]), Err(WireError::TooLarge { .. })));
        assert!(reader.buffer.capacity() < 1024);
        assert!(matches!(reader.read_blocking(&mut &[9u8, 0, 0, 0, 0, 0][..]), Err(WireError::UnknownType(9))));
        assert!(matches!(reader.read_blocking(&mut &[][..]), Err(WireError::Closed)));
        assert!(matches!(reader.read_blocking(&mut &[4u8, 0, 0][..]), Err(WireError::Io(_))));
    }

    #[tokio::test]
    async fn frames_come_as_they_were_sent() {
        let mut wire = pdata_header(1, false, true, 40_000).to_vec();
        wire.extend(std::iter::repeat_n(7, 40_000));
        wire.extend(encode(&Pdu::ReleaseRQ).unwrap());
        let mut stream = &wire[..];
        let mut reader = PduReader::new(131_072);
        assert!(matches!(reader.read(&mut stream).await, Ok(Frame::Data(d)) if d.len() == 40_006));
        assert!(matches!(reader.read(&mut stream).await, Ok(Frame::Control(p)) if *p == Pdu::ReleaseRQ));
        assert!(matches!(reader.read(&mut stream).await, Err(WireError::Closed)));
    }
}
