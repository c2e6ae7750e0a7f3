//! Reads of shared memory that nothing wrote. (Device memory needs no shadow: fresh allocations
//! are full of one pattern, and a word that still holds it was never written.)

use super::{Finding, Layout};

/// Which bytes of a cluster's shared memory were written.
#[derive(Debug)]
pub(super) struct Written {
    layout: Layout,
    bytes: Vec<bool>,
}

impl Written {
    pub(super) fn new(layout: Layout) -> Written {
        Written { layout, bytes: vec![false; layout.n_bytes()] }
    }

    pub(super) fn write(&mut self, first: usize, n_bytes: usize) {
        self.bytes[self.layout.within_block(first, n_bytes)].fill(true);
    }

    pub(super) fn read(&self, first: usize, n_bytes: usize) -> Result<(), Finding> {
        match self.layout.within_block(first, n_bytes).find(|&byte| !self.bytes[byte]) {
            Some(byte) => Err(Finding::UnwrittenShared { offset: self.layout.offset(byte) }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_told_apart() {
        let mut shared = Written::new(Layout::new(2, 1, 64));
        shared.write(8, 4);
        assert_eq!(shared.read(8, 4), Ok(()));
        assert_eq!(shared.read(8, 8), Err(Finding::UnwrittenShared { offset: 12 }));
        shared.write(60, 16);
        assert_eq!(shared.read(60, 16), Ok(()), "bounds are not checked here");
        assert_eq!(shared.read(64, 4), Err(Finding::UnwrittenShared { offset: 0 }), "another's");
    }
}
