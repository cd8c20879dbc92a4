//! A JPEG-LS decoder for grey frames (ISO/IEC 14495-1, ITU-T T.87), lossless and near-lossless.
//!
//! Written here because the C++ reference needs cmake and the Rust port at hand brings a whole DICOM toolkit with it;
//! one component without restart intervals or palettes is small. Comments name the standard's code segments.

/// A decoded frame.
pub(super) struct Image {
    pub bits: u8,
    pub values: Vec<i32>,
}

/// Decodes a stream that must be `columns` x `rows` with one component.
pub(super) fn decode(data: &[u8], columns: u16, rows: u16) -> Result<Image, String> {
    let head = Head::parse(data)?;
    if (head.columns, head.rows) != (columns, rows) {
        return Err(format!("the stream is {} x {}, the object says {columns} x {rows}", head.columns, head.rows));
    }
    let mut scan = Scan::new(&head, data.get(head.scan..).unwrap_or(&[]));
    let values = scan.run(usize::from(columns), usize::from(rows))?;
    Ok(Image { bits: head.bits, values })
}

/// What the markers before the scan say.
struct Head {
    bits: u8,
    columns: u16,
    rows: u16,
    near: i32,
    max: i32,
    thresholds: [i32; 3],
    reset: i32,
    scan: usize,
}

impl Head {
    fn parse(data: &[u8]) -> Result<Head, String> {
        if !data.starts_with(&[0xFF, 0xD8]) {
            return Err("no start of image".into());
        }
        let mut at = 2;
        let mut frame: Option<(u8, u16, u16)> = None;
        let mut preset = [0i32; 5];
        loop {
            let Some(&[0xFF, marker, l0, l1]) = data.get(at..at + 4) else {
                return Err("a marker was expected".into());
            };
            if marker == 0xFF {
                at += 1;
                continue;
            }
            let length = usize::from(u16::from_be_bytes([l0, l1]));
            let body = data.get(at + 4..at + 2 + length.max(2)).ok_or("a marker segment is cut")?;
            at += 2 + length.max(2);
            match (marker, body) {
                (0xF7, &[bits, h0, h1, w0, w1, n, ..]) => {
                    if n != 1 {
                        return Err(format!("the stream has {n} components"));
                    }
                    if !(2..=16).contains(&bits) {
                        return Err(format!("{bits} bits per value"));
                    }
                    frame = Some((bits, u16::from_be_bytes([w0, w1]), u16::from_be_bytes([h0, h1])));
                }
                (0xF8, &[1, ref p @ ..]) => {
                    for (v, c) in preset.iter_mut().zip(p.chunks_exact(2)) {
                        *v = i32::from(u16::from_be_bytes([c[0], c[1]]));
                    }
                }
                (0xF8, _) => return Err("mapping tables and large dimensions are not read".into()),
                (0xDD, &[0, 0]) => {}
                (0xDD, _) => return Err("restart intervals are not read".into()),
                (0xDA, &[1, _, table, near, interleave, transform]) => {
                    let (bits, columns, rows) = frame.ok_or("a scan before the frame header")?;
                    if table != 0 || interleave != 0 || transform != 0 {
                        return Err("mapping tables, interleaving and point transforms are not read".into());
                    }
                    return Head::complete(bits, columns, rows, near.into(), preset, at);
                }
                (0xDA, _) => return Err("the scan header is not that of one component".into()),
                (0xC0..=0xC3 | 0xD9, _) => return Err("not a JPEG-LS stream".into()),
                _ => {}
            }
        }
    }

    fn complete(bits: u8, columns: u16, rows: u16, near: i32, preset: [i32; 5], scan: usize) -> Result<Head, String> {
        let full = (1 << bits) - 1;
        let max = if preset[0] == 0 { full } else { preset[0] };
        if max > full || max < 1 || near > (max / 2).min(255) {
            return Err(format!("impossible parameters: MAXVAL {max}, NEAR {near}, {bits} bits"));
        }
        // Default thresholds (C.2.4.1.1.1).
        let clamp = |v: i32, low: i32| if v > max || v < low { low } else { v };
        let (t1, t2, t3) = if max >= 128 {
            let f = (max.min(4095) + 128) / 256;
            (f + 2 + 3 * near, 4 * f + 3 + 5 * near, 17 * f + 4 + 7 * near)
        } else {
            let f = 256 / (max + 1);
            ((3 / f + 3 * near).max(2), (7 / f + 5 * near).max(3), (21 / f + 7 * near).max(4))
        };
        let mut t = [0; 3];
        t[0] = clamp(t1, near + 1);
        t[1] = clamp(t2, t[0]);
        t[2] = clamp(t3, t[1]);
        for (t, p) in t.iter_mut().zip(&preset[1..4]) {
            if *p != 0 {
                *t = *p;
            }
        }
        let reset = if preset[4] == 0 { 64 } else { preset[4] };
        if t[0] <= near || t[1] < t[0] || t[2] < t[1] || t[2] > max || !(3..=max.max(255)).contains(&reset) {
            return Err(format!("impossible parameters: thresholds {t:?}, RESET {reset}"));
        }
        Ok(Head { bits, columns, rows, near, max, thresholds: t, reset, scan })
    }
}

/// Bits of the scan; after 0xFF a zero bit is stuffed.
struct Bits<'a> {
    data: &'a [u8],
    at: usize,
    cache: u64,
    valid: u32,
    after_ff: bool,
}

impl Bits<'_> {
    fn fill(&mut self) {
        while self.valid <= 48 {
            let Some(&b) = self.data.get(self.at) else { return };
            let n = if self.after_ff {
                // A marker ends the scan.
                if b & 0x80 != 0 {
                    return;
                }
                7
            } else {
                8
            };
            self.at += 1;
            self.cache = (self.cache << n) | u64::from(b);
            self.valid += n;
            self.after_ff = b == 0xFF;
        }
    }

    fn bit(&mut self) -> Result<u32, String> {
        self.take(1)
    }

    fn take(&mut self, n: u32) -> Result<u32, String> {
        if n == 0 {
            return Ok(0);
        }
        if self.valid < n {
            self.fill();
            if self.valid < n {
                return Err("the scan ends too early".into());
            }
        }
        self.valid -= n;
        Ok((self.cache >> self.valid) as u32 & ((1u64 << n) - 1) as u32)
    }

    fn zeros(&mut self, most: u32) -> Result<u32, String> {
        let mut n = 0;
        while self.bit()? == 0 {
            n += 1;
            if n > most {
                return Err("a code is longer than its limit".into());
            }
        }
        Ok(n)
    }
}

#[derive(Clone, Copy)]
struct Context {
    a: i64,
    b: i64,
    c: i32,
    n: i64,
}

struct Scan<'a> {
    bits: Bits<'a>,
    near: i32,
    max: i32,
    range: i32,
    qbpp: u32,
    limit: u32,
    thresholds: [i32; 3],
    reset: i64,
    contexts: Vec<Context>,
    /// Contexts 365 and 366 of run interruption: A, N, Nn.
    run: [(i64, i64, i64); 2],
    run_index: usize,
}

const J: [u32; 32] =
    [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 9, 10, 11, 12, 13, 14, 15];

fn log2_ceil(v: i32) -> u32 {
    32 - (v - 1).leading_zeros().min(32)
}

impl<'a> Scan<'a> {
    fn new(head: &Head, data: &'a [u8]) -> Self {
        let range = (head.max + 2 * head.near) / (2 * head.near + 1) + 1;
        let bpp = log2_ceil(head.max + 1).max(2);
        let a = i64::from((range + 32) / 64).max(2);
        Scan {
            bits: Bits { data, at: 0, cache: 0, valid: 0, after_ff: false },
            near: head.near,
            max: head.max,
            range,
            qbpp: log2_ceil(range),
            limit: 2 * (bpp + bpp.max(8)),
            thresholds: head.thresholds,
            reset: head.reset.into(),
            contexts: vec![Context { a, b: 0, c: 0, n: 1 }; 365],
            run: [(a, 1, 0); 2],
            run_index: 0,
        }
    }

    fn run(&mut self, columns: usize, rows: usize) -> Result<Vec<i32>, String> {
        let mut out = vec![0i32; columns * rows];
        // Lines with one value before and one after: index x + 1.
        let mut above = vec![0i32; columns + 2];
        let mut line = vec![0i32; columns + 2];
        for y in 0..rows {
            above[columns + 1] = above[columns];
            line[0] = above[1];
            let mut x = 1;
            while x <= columns {
                let (ra, rb, rc, rd) = (line[x - 1], above[x], above[x - 1], above[x + 1]);
                let q = [self.quantize(rd - rb), self.quantize(rb - rc), self.quantize(rc - ra)];
                if q == [0, 0, 0] {
                    x = self.run_mode(&mut line, &above, x, columns)?;
                } else {
                    line[x] = self.regular(q, ra, rb, rc)?;
                    x += 1;
                }
            }
            out[y * columns..(y + 1) * columns].copy_from_slice(&line[1..=columns]);
            std::mem::swap(&mut above, &mut line);
        }
        Ok(out)
    }

    fn quantize(&self, d: i32) -> i32 {
        let [t1, t2, t3] = self.thresholds;
        let m = d.abs();
        let q = if m <= self.near {
            0
        } else if m < t1 {
            1
        } else if m < t2 {
            2
        } else if m < t3 {
            3
        } else {
            4
        };
        if d < 0 { -q } else { q }
    }

    /// Limited-length Golomb code (A.5.3).
    fn golomb(&mut self, k: u32, limit: u32) -> Result<i32, String> {
        let escape = limit.saturating_sub(self.qbpp + 1);
        let n = self.bits.zeros(escape)?;
        if n < escape { Ok(((n << k) | self.bits.take(k)?) as i32) } else { Ok(self.bits.take(self.qbpp)? as i32 + 1) }
    }

    /// Adds the error to the prediction and folds into the range (A.4.5 backwards).
    fn reconstruct(&self, prediction: i32, error: i32) -> i32 {
        let step = 2 * self.near + 1;
        let mut v = prediction + error * step;
        if v < -self.near {
            v += self.range * step;
        } else if v > self.max + self.near {
            v -= self.range * step;
        }
        v.clamp(0, self.max)
    }

    fn regular(&mut self, q: [i32; 3], ra: i32, rb: i32, rc: i32) -> Result<i32, String> {
        let mut id = 81 * q[0] + 9 * q[1] + q[2];
        let sign = if id < 0 { -1 } else { 1 };
        id *= sign;
        let mut c = self.contexts[id as usize];
        let edge = if rc >= ra.max(rb) {
            ra.min(rb)
        } else if rc <= ra.min(rb) {
            ra.max(rb)
        } else {
            ra + rb - rc
        };
        let prediction = (edge + sign * c.c).clamp(0, self.max);
        let mut k = 0;
        while (c.n << k) < c.a && k < 24 {
            k += 1;
        }
        let mapped = self.golomb(k, self.limit)?;
        let mut error = if mapped & 1 == 0 { mapped >> 1 } else { -((mapped + 1) >> 1) };
        if self.near == 0 && k == 0 && 2 * c.b <= -c.n {
            error = -(error + 1);
        }
        if error.abs() > self.range {
            return Err("an error out of range".into());
        }
        // Update (A.6).
        c.b += i64::from(error) * i64::from(2 * self.near + 1);
        c.a += i64::from(error.abs());
        if c.n == self.reset {
            c.a >>= 1;
            c.b = if c.b >= 0 { c.b >> 1 } else { -((1 - c.b) >> 1) };
            c.n >>= 1;
        }
        c.n += 1;
        if c.b <= -c.n {
            c.b = (c.b + c.n).max(1 - c.n);
            c.c = (c.c - 1).max(-128);
        } else if c.b > 0 {
            c.b = (c.b - c.n).min(0);
            c.c = (c.c + 1).min(127);
        }
        self.contexts[id as usize] = c;
        Ok(self.reconstruct(prediction, sign * error))
    }

    /// Run mode (A.7); returns the next column.
    fn run_mode(&mut self, line: &mut [i32], above: &[i32], start: usize, columns: usize) -> Result<usize, String> {
        let ra = line[start - 1];
        let left = columns + 1 - start;
        let mut run = 0;
        let mut interrupted = false;
        while run < left {
            let block = 1usize << J[self.run_index];
            if self.bits.bit()? == 1 {
                let n = block.min(left - run);
                run += n;
                if n == block && self.run_index < 31 {
                    self.run_index += 1;
                }
            } else {
                let rest = self.bits.take(J[self.run_index])? as usize;
                if run + rest >= left {
                    return Err("a run reaches over its line".into());
                }
                run += rest;
                interrupted = true;
                break;
            }
        }
        line[start..start + run].fill(ra);
        if !interrupted {
            return Ok(start + run);
        }
        let x = start + run;
        line[x] = self.interruption(ra, above[x])?;
        self.run_index = self.run_index.saturating_sub(1);
        Ok(x + 1)
    }

    /// The value that ends a run (A.7.2).
    fn interruption(&mut self, ra: i32, rb: i32) -> Result<i32, String> {
        let kind = usize::from((ra - rb).abs() <= self.near);
        let (a, n, nn) = self.run[kind];
        let temp = if kind == 1 { a + (n >> 1) } else { a };
        let mut k = 0;
        while (n << k) < temp && k < 24 {
            k += 1;
        }
        let mapped = self.golomb(k, self.limit - J[self.run_index] - 1)?;
        // EMErrval = 2 |Errval| - RItype - map.
        let t = mapped + kind as i32;
        let map = t & 1;
        let magnitude = (t + map) >> 1;
        let negative_is_mapped = k != 0 || 2 * nn >= n;
        let error = if negative_is_mapped == (map == 1) { -magnitude } else { magnitude };
        let (mut a, mut n, mut nn) = (a, n, nn);
        if error < 0 {
            nn += 1;
        }
        a += i64::from((mapped + 1 - kind as i32) >> 1);
        if n == self.reset {
            a >>= 1;
            n >>= 1;
            nn >>= 1;
        }
        n += 1;
        self.run[kind] = (a, n, nn);
        if magnitude > self.range {
            return Err("an error out of range".into());
        }
        if kind == 1 {
            Ok(self.reconstruct(ra, error))
        } else {
            let sign = if ra > rb { -1 } else { 1 };
            Ok(self.reconstruct(rb, sign * error))
        }
    }
}
