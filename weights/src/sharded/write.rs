//! Cutting a checkpoint: every byte of it is read once, whole rows at a time, and goes to the files
//! of all ranks that want some of it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{COMMON_FILE, MANIFEST_FILE, Manifest, ShardedTensor, VERSION, ZERO};
use crate::catalog::TensorInfo;
use crate::checkpoint::Checkpoint;
use crate::error::LoadError;
use crate::loaded::Matrix;
use crate::rank::Seat;
use crate::resolve::Stored;

/// Ranks at most.
pub const N_RANKS_MAX: usize = 64;

/// Bytes that are read at once, but for rows that are longer.
const CHUNK_BYTES: usize = 8 << 20;

/// Where a file's tensors begin: at a page, so that what is mapped is aligned for every reader.
const PAGE_BYTES: usize = 4096;

/// Files of tensors, and what tells where they are.
const NOT_COPIED: [&str; 2] = [".safetensors", ".safetensors.index.json"];

/// Checksums of files that are not copied.
const SUMS_FILE: &str = "SHA256SUMS";

/// Cuts a checkpoint for `n_ranks` ranks into the folder `out`, which must not be there: it is
/// written under another name and gets its own when all of it is on the disk. `progress` is told
/// the bytes written and their total, and may end it.
///
/// # Errors
/// The ranks cannot share it, it is cut already, a file cannot be read or written, or `progress`
/// ended it. Nothing is left behind.
///
/// # Panics
/// If there are no ranks, or more than [`N_RANKS_MAX`].
pub fn write_sharded(
    checkpoint: &Checkpoint,
    out: &Path,
    n_ranks: usize,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<(), LoadError> {
    if let Some(n_ranks) = checkpoint.n_ranks() {
        return Err(LoadError::Sharded { n_ranks });
    }
    checkpoint.check_sharding(n_ranks)?;
    assert!((1..=N_RANKS_MAX).contains(&n_ranks), "{n_ranks} ranks");
    let failed = |source| LoadError::Write { path: out.display().to_string(), source };
    if out.symlink_metadata().is_ok() {
        return Err(LoadError::Exists { path: out.display().to_string() });
    }
    let partial = Partial::new(out).map_err(failed)?;
    let mut cutter = Cutter::new(checkpoint, n_ranks, progress);
    cutter.write(&partial.dir)?;
    checkpoint.check_intact()?;
    fs::rename(&partial.dir, out).map_err(failed)
}

/// A folder that goes unless it got another name.
struct Partial {
    dir: PathBuf,
}

impl Partial {
    fn new(out: &Path) -> io::Result<Partial> {
        let mut name = out.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        name.push(format!(".partial-{}", std::process::id()));
        let dir = out.with_file_name(name);
        fs::create_dir_all(&dir)?;
        Ok(Partial { dir })
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // It is not there any more where it got its name.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

struct Cutter<'a> {
    checkpoint: &'a Checkpoint,
    n_ranks: usize,
    progress: &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    n_done: u64,
    n_total: u64,
    chunk: Vec<u8>,
}

/// A file that grows.
struct Growing {
    path: PathBuf,
    file: File,
}

impl Growing {
    /// With a header for tensors that follow in that order.
    fn create(path: PathBuf, tensors: &[(&TensorInfo, Vec<usize>)]) -> Result<Growing, LoadError> {
        let mut entries = Map::new();
        entries.insert("__metadata__".to_owned(), json!({ "format": "lnserve" }));
        let mut end = 0;
        for (tensor, shape) in tensors {
            let begin = end;
            end += shape.iter().product::<usize>() * tensor.dtype.n_bytes();
            let dtype = tensor.dtype.to_string();
            let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [begin, end] });
            entries.insert(tensor.name.clone(), entry);
        }
        let text = Value::Object(entries).to_string();
        let n_bytes = (8 + text.len()).next_multiple_of(PAGE_BYTES) - 8;
        let created = File::create_new(&path).and_then(|mut file| {
            file.write_all(&(n_bytes as u64).to_le_bytes())?;
            file.write_all(format!("{text:n_bytes$}").as_bytes())?;
            // What is left out is a hole.
            file.set_len((8 + n_bytes + end) as u64)?;
            Ok(file)
        });
        match created {
            Ok(file) => Ok(Growing { path, file }),
            Err(source) => Err(LoadError::Write { path: path.display().to_string(), source }),
        }
    }

    fn change(
        &mut self,
        change: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> Result<(), LoadError> {
        let path = || self.path.display().to_string();
        change(&mut self.file).map_err(|source| LoadError::Write { path: path(), source })
    }
}

impl<'a> Cutter<'a> {
    fn new(
        checkpoint: &'a Checkpoint,
        n_ranks: usize,
        progress: &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Cutter<'a> {
        let n_total = checkpoint.tensors().map(|tensor| tensor.n_bytes).sum();
        Cutter { checkpoint, n_ranks, progress, n_done: 0, n_total, chunk: Vec::new() }
    }

    fn write(&mut self, dir: &Path) -> Result<(), LoadError> {
        let mut manifest = Manifest {
            version: VERSION,
            n_ranks: self.n_ranks,
            common: BTreeMap::new(),
            sharded: BTreeMap::new(),
        };
        self.common(dir, &mut manifest)?;
        self.matrices(dir, &mut manifest)?;
        for name in self.checkpoint.file_names()? {
            let is_ours = name == SUMS_FILE || name == MANIFEST_FILE;
            if is_ours || NOT_COPIED.iter().any(|suffix| name.ends_with(suffix)) {
                continue;
            }
            match self.checkpoint.file(&name) {
                Ok(Some(content)) => write_file(dir.join(name), &content)?,
                // Nothing that serving could read: weights in another form, for example.
                Ok(None) | Err(LoadError::TooLarge { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let text = serde_json::to_vec_pretty(&manifest).expect("names and numbers are JSON");
        write_file(dir.join(MANIFEST_FILE), &text)
    }

    /// What every rank holds whole.
    fn common(&mut self, dir: &Path, manifest: &mut Manifest) -> Result<(), LoadError> {
        let matrices: Vec<&str> =
            self.matrices_of().map(|stored| stored.tensor.name.as_str()).collect();
        let tensors = self.checkpoint.tensors();
        let mut tensors: Vec<(&TensorInfo, Vec<usize>)> = tensors
            .filter(|tensor| !matrices.contains(&tensor.name.as_str()))
            .map(|tensor| (tensor, tensor.shape.clone()))
            .collect();
        // Wide elements first: all are aligned.
        tensors.sort_by_key(|(tensor, _)| std::cmp::Reverse(tensor.dtype.n_bytes()));
        let mut file = Growing::create(dir.join(COMMON_FILE), &tensors)?;
        for (tensor, _) in tensors {
            let mut bytes = vec![0; tensor.n_bytes as usize];
            tensor.bytes.read_at(tensor.offset, &mut bytes)?;
            file.change(|file| file.write_all(&bytes))?;
            manifest.common.insert(tensor.name.clone(), hexadecimal(Sha256::digest(&bytes)));
            self.advance(tensor.n_bytes)?;
        }
        file.change(|file| file.sync_all())
    }

    fn matrices_of(&self) -> impl Iterator<Item = &'a Stored> + use<'a> {
        let model = self.checkpoint.model();
        let blocks = model.blocks.iter().flat_map(|block| &block.parameters);
        let all = std::iter::once(&model.embedding).chain(blocks).chain(&model.head);
        all.filter(|stored| !stored.spec.role.is_norm())
    }

    /// A file a rank.
    fn matrices(&mut self, dir: &Path, manifest: &mut Manifest) -> Result<(), LoadError> {
        let stored: Vec<&Stored> = self.matrices_of().collect();
        let n_ranks = self.n_ranks;
        let mut files = Vec::with_capacity(n_ranks);
        for rank_idx in 0..n_ranks {
            let shapes = stored.iter().map(|stored| {
                let slice = stored.spec.slice(rank_idx, n_ranks)?;
                Ok((&stored.tensor, vec![slice.rows.len(), slice.cols.len()]))
            });
            let shapes = shapes.collect::<Result<Vec<_>, LoadError>>()?;
            files.push(Growing::create(dir.join(Manifest::rank_file(rank_idx, n_ranks)), &shapes)?);
        }
        for stored in stored {
            let slices =
                (0..n_ranks).map(|rank_idx| Ok(Seat { rank_idx, n_ranks }.linear(stored)?.matrix));
            let slices = slices.collect::<Result<Vec<Matrix>, LoadError>>()?;
            let sha256 = self.matrix(&stored.tensor, &slices, &mut files)?;
            let shape = stored.tensor.shape.clone();
            manifest.sharded.insert(stored.tensor.name.clone(), ShardedTensor { shape, sha256 });
        }
        files.into_iter().try_for_each(|mut file| file.change(|file| file.sync_all()))
    }

    /// One matrix into all files; its slices' checksums.
    fn matrix(
        &mut self,
        tensor: &TensorInfo,
        slices: &[Matrix],
        files: &mut [Growing],
    ) -> Result<Vec<String>, LoadError> {
        let span = tensor.offset..tensor.offset + tensor.n_bytes as usize;
        if tensor.bytes.is_hole(span.clone()) {
            for (slice, file) in slices.iter().zip(files) {
                file.change(|file| file.seek(SeekFrom::Current(slice.n_bytes() as i64)).map(drop))?;
            }
            self.advance(tensor.n_bytes)?;
            return Ok(vec![ZERO.to_owned(); slices.len()]);
        }
        let mut sums: Vec<Sha256> = slices.iter().map(|_| Sha256::new()).collect();
        let row_bytes = tensor.shape[1..].iter().product::<usize>() * tensor.dtype.n_bytes();
        let step = (CHUNK_BYTES / row_bytes.max(1)).max(1) * row_bytes.max(1);
        let mut cut = Vec::new();
        for begin in span.clone().step_by(step) {
            let n_bytes = step.min(span.end - begin);
            self.chunk.resize(n_bytes, 0);
            tensor.bytes.read_at(begin, &mut self.chunk)?;
            for ((slice, file), sum) in slices.iter().zip(&mut *files).zip(&mut sums) {
                cut.clear();
                slice.cut(begin, &self.chunk, &mut cut);
                sum.update(&cut);
                file.change(|file| file.write_all(&cut))?;
            }
            self.advance(n_bytes as u64)?;
        }
        Ok(sums.into_iter().map(|sum| hexadecimal(sum.finalize())).collect())
    }

    fn advance(&mut self, n_bytes: u64) -> Result<(), LoadError> {
        self.n_done += n_bytes;
        match (self.progress)(self.n_done, self.n_total) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(LoadError::Interrupted),
        }
    }
}

impl Matrix {
    /// Adds to `out` what of the slice lies in `bytes`, which are whole rows of the tensor, from
    /// `begin` on.
    fn cut(&self, begin: usize, bytes: &[u8], out: &mut Vec<u8>) {
        let row_at = |at: usize| {
            at.saturating_sub(self.offset).div_ceil(self.row_stride.max(1)).min(self.n_rows)
        };
        let row_bytes = self.n_cols * self.dtype.n_bytes();
        for row_idx in row_at(begin)..row_at(begin + bytes.len()) {
            let at = self.offset + row_idx * self.row_stride - begin;
            out.extend_from_slice(&bytes[at..at + row_bytes]);
        }
    }
}

fn write_file(path: PathBuf, content: &[u8]) -> Result<(), LoadError> {
    let written = File::create_new(&path).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()
    });
    written.map_err(|source| LoadError::Write { path: path.display().to_string(), source })
}

/// A digest as `sha256sum` writes it.
pub(crate) fn hexadecimal(digest: impl AsRef<[u8]>) -> String {
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
