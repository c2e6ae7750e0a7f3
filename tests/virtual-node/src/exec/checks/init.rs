//! Reads of shared memory that nothing wrote. (Device memory needs no shadow: fresh allocations
//! are full of one pattern, and a word that still holds it was never written.)

use super::Finding;

/// Which bytes of a block's shared memory were written.
#[derive(Debug)]
pub(super) struct Written {
    bytes: Vec<bool>,
}

impl Written {
    pub(super) fn new(shared_bytes: usize) -> Written {
        Written { bytes: vec![false; shared_bytes] }
    }

    pub(super) fn write(&mut self, first: usize, n_bytes: usize) {
        let end = (first + n_bytes).min(self.bytes.len());
        self.bytes[first.min(end)..end].fill(true);
    }

    pub(super) fn read(&self, first: usize, n_bytes: usize) -> Result<(), Finding> {
        let end = (first + n_bytes).min(self.bytes.len());
        match (first..end).find(|&byte| !self.bytes[byte]) {
            Some(offset) => Err(Finding::UnwrittenShared { offset }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_told_apart() {
        let mut shared = Written::new(64);
        shared.write(8, 4);
        assert_eq!(shared.read(8, 4), Ok(()));
        assert_eq!(shared.read(8, 8), Err(Finding::UnwrittenShared { offset: 12 }));
        shared.write(60, 16);
        assert_eq!(shared.read(60, 4), Ok(()), "bounds are not checked here");
    }
}
