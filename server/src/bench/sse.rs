//! Server-sent events out of bytes as they come, as the HTML standard has them read (section
//! 9.2.6), as far as answers use it: data, comments, any of the three line ends.

/// Bytes of one event at most.
const N_EVENT_BYTES_MAX: usize = 16 << 20;

/// What is not yet an event.
#[derive(Debug, Default)]
pub struct EventReader {
    /// Bytes of a line that is not over.
    line: Vec<u8>,
    /// Data of an event that is not over.
    data: Option<String>,
    /// The last byte was a carriage return, which a line feed may belong to.
    after_return: bool,
}

/// An event that is too long, or no text.
#[derive(Debug, PartialEq, Eq)]
pub struct BadEvent(pub &'static str);

impl EventReader {
    /// Takes bytes, and gives the data of the events that they complete.
    ///
    /// # Errors
    /// An event is too long, or no UTF-8.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<String>, BadEvent> {
        let mut events = Vec::new();
        for &byte in bytes {
            let after_return = std::mem::replace(&mut self.after_return, byte == b'\r');
            match byte {
                b'\n' if after_return => {}
                b'\n' | b'\r' => events.extend(self.end_line()?),
                _ if self.n_held() >= N_EVENT_BYTES_MAX => {
                    return Err(BadEvent("an event of more than 16 MiB"));
                }
                _ => self.line.push(byte),
            }
        }
        Ok(events)
    }

    /// Whether something has come that is not a whole event.
    pub fn is_within_event(&self) -> bool {
        !self.line.is_empty() || self.data.is_some()
    }

    fn n_held(&self) -> usize {
        self.line.len() + self.data.as_ref().map_or(0, String::len)
    }

    fn end_line(&mut self) -> Result<Option<String>, BadEvent> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            return Ok(self.data.take());
        }
        let line = String::from_utf8(line).map_err(|_| BadEvent("an event that is no UTF-8"))?;
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        if field == "data" {
            let value = value.strip_prefix(' ').unwrap_or(value);
            match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pieces: &[&[u8]]) -> Vec<String> {
        let mut reader = EventReader::default();
        pieces.iter().flat_map(|piece| reader.push(piece).expect("events are sound")).collect()
    }

    #[test]
    fn events_end_at_an_empty_line_however_the_bytes_are_cut() {
        let stream =
            b": hello\r\n\r\ndata: {\"a\":1}\n\ndata:x\ndata: y\n\nevent: z\rdata: [DONE]\r\r";
        let expected = ["{\"a\":1}", "x\ny", "[DONE]"];
        assert_eq!(read(&[stream]), expected);
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(read(&bytes), expected);
        for cut in 0..stream.len() {
            assert_eq!(read(&[&stream[..cut], &stream[cut..]]), expected, "{cut}");
        }
    }

    #[test]
    fn half_an_event_is_known_as_such() {
        let mut reader = EventReader::default();
        for (bytes, is_within) in
            [("data", true), (": 1", true), ("\n", true), ("\n", false), (": hm\n", false)]
        {
            reader.push(bytes.as_bytes()).expect("sound");
            assert_eq!(reader.is_within_event(), is_within, "{bytes:?}");
        }
    }

    #[test]
    fn an_event_without_end_is_cut_off() {
        let mut reader = EventReader::default();
        let megabyte = vec![b'x'; 1 << 20];
        let refused = (0..20).find_map(|_| reader.push(&megabyte).err());
        assert_eq!(refused, Some(BadEvent("an event of more than 16 MiB")));
        assert_eq!(
            EventReader::default().push(b"data: \xff\n"),
            Err(BadEvent("an event that is no UTF-8"))
        );
    }
}
